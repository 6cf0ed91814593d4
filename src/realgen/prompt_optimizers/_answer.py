"""What a language model answered, as a text that can be drawn: stripped of talk, and judged. Knows no model."""

import re
import unicodedata
from collections import Counter

from realgen.core.types import Rewrite

_MIN_WORDS = 3
_MAX_REPEATS = 3  # of one run of four words
_TEMPLATE_TOKEN = re.compile(r"<\|[^|>\n]{1,40}\|>|</?s>|<(?:bos|eos|pad|unk)>|\[/?INST\]|<(?:start|end)_of_turn>")
_NO_TEXT = re.compile("[\0\ud800-\udfff]")  # a server's JSON can hold half of a surrogate pair
_THINKING = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_THOUGHT_BEFORE = re.compile(r"^.*</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_THOUGHT_AFTER = re.compile(r"<think(?:ing)?>.*$", re.DOTALL | re.IGNORECASE)
_GREETING = re.compile(r"^(?:sure(?: thing)?|certainly|of course|absolutely|okay|ok|great)\s*[!,.:]\s*", re.IGNORECASE)
_PREAMBLE = re.compile(
    r"^(?:here(?:['\u2019]s| is| are| it is| you go)|this is|below is|let me"
    r"|i (?:have|would|can|will)|i['\u2019](?:ve|d|ll))\b"
    r"[^:\n]{0,120}(?:(?<!\d):|:(?!\d))\s*",
    re.IGNORECASE,
)
_LABEL = re.compile(
    r"^(?:\w+ ){0,3}(?:prompt|description|caption|photo|photograph|image|answer|output|text)\s*:\s*", re.IGNORECASE
)
_REFUSAL = re.compile(
    r"(?:i['\u2019]?m|i am)(?: (?:really|so|very))? (?:sorry|unable|not able|afraid)\b|i apologi[sz]e\b"
    r"|i (?:cannot|can['\u2019]?t|won['\u2019]?t|will not)\b|sorry[,.!]|sorry (?:but )?i\b|unfortunately[, ]"
    r"|as an? (?:ai|language model)\b|as an? assistant, i\b|我?(?:很|非常|十分)?抱歉|我(?:无法|不能)|对不起|對不起"
    r"|申し訳|к сожалению|извините|(?:es )?tut mir leid|leider kann ich|je suis désolé|désolée?,|lo siento",
    re.IGNORECASE,
)
_CLOSING = re.compile(
    r"\n\s*(?:let me know|i hope|feel free|would you|please let|note:|this (?:description|prompt|version|text))\b.*$",
    re.DOTALL | re.IGNORECASE,
)
_MARKDOWN = re.compile(r"\*\*|__|```\w*|^\s*(?:#+|[-*•]|\d+[.)])\s+", re.MULTILINE)
_SENTENCE_END = re.compile(r"[.!?。](?=[\"'\u201d\u2019)]?(?:\s|$))")
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+")
_QUOTES = {'"': '"', "'": "'", "\u201c": "\u201d", "\u2018": "\u2019", "«": "»", "`": "`"}
_STOP_WORDS = frozenset(
    [
        "a",
        "about",
        "above",
        "an",
        "and",
        "are",
        "as",
        "at",
        "back",
        "be",
        "below",
        "beside",
        "between",
        "by",
        "close",
        "for",
        "front",
        "from",
        "has",
        "have",
        "her",
        "his",
        "i",
        "in",
        "inside",
        "into",
        "is",
        "it",
        "its",
        "me",
        "my",
        "near",
        "of",
        "off",
        "on",
        "or",
        "our",
        "out",
        "outside",
        "over",
        "please",
        "she",
        "some",
        "that",
        "the",
        "their",
        "them",
        "there",
        "these",
        "they",
        "this",
        "those",
        "through",
        "to",
        "two",
        "under",
        "up",
        "very",
        "was",
        "we",
        "were",
        "with",
        "without",
        "you",
        "your",
        "create",
        "draw",
        "generate",
        "image",
        "make",
        "photo",
        "photograph",
        "photography",
        "picture",
        "portrait",
        "realistic",
        "shot",
        "show",
        "view",
    ]
)


def judge(answer: str, prompt: str, *, max_words: int, is_complete: bool = True) -> Rewrite:
    """The answer as a Rewrite; the prompt itself, with a reason, where the answer is degenerate.

    An answer of up to twice `max_words` words, or one that was broken off at the model's limit (not `is_complete`),
    is cut at its last complete sentence that fits, if there is one.
    """
    text = clean(answer)
    is_longer = max_words < len(text.split()) <= 2 * max_words
    whole = cut(text, max_words) if is_longer or not is_complete else text
    reason = fault(whole or text, prompt, max_words=max_words)
    if not reason and not whole:
        reason = "the model's answer broke off before its first sentence ended"
    return Rewrite(text=prompt, reason=reason) if reason else Rewrite(text=whole)


def fault(text: str, prompt: str, *, max_words: int) -> str:
    """Why a cleaned text cannot stand for the prompt, or "" where it can."""
    num_words = len(text.split())
    faults = {
        "the model's answer was empty": not text,
        "the model's answer held template tokens": _TEMPLATE_TOKEN.search(text) is not None,
        f"the model's answer was shorter than {_MIN_WORDS} words": len(_WORD.findall(text)) < _MIN_WORDS,
        f"the model's answer was too long: {num_words} words, {max_words} allowed": num_words > max_words,
        "the model's answer repeated itself": max_repeats(text) > _MAX_REPEATS,
        "the model refused": _refuses(text, prompt),
        "the model's answer lost what the prompt asked for": _is_lost(prompt, text),
    }
    return next((reason for reason, is_true in faults.items() if is_true), "")


def clean(answer: str) -> str:
    """One line without thinking, greetings, preambles, labels, markdown, closing talk, quotes and end tokens."""
    text = _THOUGHT_AFTER.sub("", _THOUGHT_BEFORE.sub("", _THINKING.sub("", _NO_TEXT.sub("", answer))))
    text = _CLOSING.sub("", _MARKDOWN.sub("", _strip_tokens(text)))
    text = " ".join(text.split())
    previous = None
    while text != previous:
        previous = text
        for pattern in (_GREETING, _PREAMBLE, _LABEL):
            text = pattern.sub("", text)
        text = _unquote(text)
    return text


def cut(text: str, max_words: int) -> str:
    """The longest run of complete sentences from the start within `max_words` words; "" where there is none."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    fitting = [end for end in ends if len(text[:end].split()) <= max_words]
    return text[: fitting[-1]] if fitting else ""


def max_repeats(text: str) -> int:
    """How often the commonest run of four words occurs."""
    words = _WORD.findall(text.lower())
    runs = Counter(zip(words, words[1:], words[2:], words[3:], strict=False))
    return max(runs.values(), default=0)


def content_words(text: str) -> set[str]:
    """The words that carry meaning, lower case, without their endings."""
    return {stem(word) for word in _WORD.findall(text.lower()) if word not in _STOP_WORDS}


def stem(word: str) -> str:
    """A word without -ing, -es, -s or -e: `smiling` and `smiles` are one, and so are `lady` and `ladies`."""
    root = re.sub(r"(?<=\w{3})(?:ing|es|s|e)$", "", word)
    root = re.sub(r"(?<=\w{2})([b-df-hj-np-tv-z])\1$", r"\1", root)
    return re.sub(r"y$", "i", root)


def _refuses(text: str, prompt: str) -> bool:
    """Whether it begins as refusals do, and not with words of the prompt."""
    found = _REFUSAL.match(text)
    return found is not None and found[0].lower() not in prompt.lower()


def _is_lost(prompt: str, text: str) -> bool:
    """Whether none of the prompt's words is left; a translation into Latin letters cannot be held against them."""
    wanted = content_words(prompt)
    is_translated = _is_latin(text) and not _is_latin(prompt)
    return bool(wanted) and not is_translated and not wanted & content_words(text)


def _is_latin(text: str) -> bool:
    letters = [unicodedata.name(c, "").startswith("LATIN") for c in text if c.isalpha()]
    return 2 * sum(letters) >= len(letters)


def _strip_tokens(text: str) -> str:
    """Without template tokens at either end; those in between are left for `fault` to find."""
    text, previous = text.strip(), None
    while text != previous:
        previous = text
        found = list(_TEMPLATE_TOKEN.finditer(text))
        if found and found[0].start() == 0:
            text = text[found[0].end() :].strip()
        elif found and found[-1].end() == len(text):
            text = text[: found[-1].start()].strip()
    return text


def _unquote(text: str) -> str:
    text = text.strip()
    is_quoted = len(text) >= 2 and _QUOTES.get(text[0]) == text[-1]
    return text[1:-1].strip() if is_quoted and text[0] not in text[1:-1] else text
