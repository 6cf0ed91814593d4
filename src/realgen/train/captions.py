"""Captions of many lengths, written from what is true of each photograph.

`describe` measures a picture once; `write_caption` draws one of many true wordings of its class, its human
captions and its measurements. The words themselves are data: `vocabulary.yaml`.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from realgen.core.errors import DataError
from realgen.train.facts import Facts, describe
from realgen.train.photographs import Photograph
from realgen.train.vocabulary import Word, pick, vocabulary, with_article

__all__ = ["Facts", "describe", "said_of", "text_corpus", "write_caption"]

MAX_WORDS = 42
"""So that nearly every caption fits 64 tokens."""
DETAILS = (0.28, 0.13, 0.11, 0.1, 0.09, 0.08, 0.07, 0.07, 0.07)
"""Chance of none, one, two ... details beside the subject."""
COMMON = ("photo", "balanced")
"""What holds for most pictures, and is therefore said more seldom."""

_WEARING = re.compile(r"of a (woman|man|person)(?: on a street)?(?: wearing (.*))?$")
_NOUNS = {"man": "a man", "woman": "a woman", "boy": "a boy", "girl": "a girl", "child": "a child", "dog": "a dog"}
_NOUNS |= {"men": "men", "women": "women", "children": "children", "people": "people", "dogs": "dogs", "boys": "boys"}
_NOUNS |= {"cat": "a cat", "horse": "a horse", "bicycle": "a bicycle", "train": "a train", "pizza": "a pizza"}

Detail = tuple[str, str, str]
"""A phrase's key and the colours that it speaks of."""


def write_caption(photograph: Photograph, facts: Facts, rng: np.random.Generator, *, mirrored: bool = False) -> str:
    """One true caption, from the bare subject up to about 40 words; `mirrored` swaps left and right."""
    word = vocabulary().word(photograph.cls)
    head = _head(photograph, facts, word, rng, mirrored=mirrored)
    count = int(rng.choice(len(DETAILS), p=DETAILS))
    details = [
        detail
        for detail in _details(photograph, facts, word, mirrored=mirrored)
        if detail[0] not in COMMON or count > 4 or rng.random() < 0.3
    ]
    rng.shuffle(details)
    if count > 4 and len(photograph.captions) > 1:
        longer = f"{head}. {_human(photograph, rng, mirrored=mirrored, plain=False)}"
        head = longer if len(longer.split()) < MAX_WORDS else head
    writer = (_tagged, _told, _mixed)[int(rng.choice(3, p=(0.45, 0.25, 0.3)))]
    for chosen in range(min(count, len(details)), 0, -1):
        caption = writer(head, details[:chosen], word, rng)
        if len(caption.split()) <= MAX_WORDS:
            return caption
    return head if rng.random() < 0.8 else f"{head}."


def said_of(photograph: Photograph) -> str:
    """The one of man, woman and person that a template caption of a portrait names, or nothing."""
    if photograph.category != "people" or len(photograph.captions) != 1:
        return ""
    found = re.search(r"\ba (man|woman|person)\b", photograph.captions[0])
    return found.group(1) if found else ""


# ---- the subject ----------------------------------------------------------------------------------------


def _head(photograph: Photograph, facts: Facts, word: Word, rng: np.random.Generator, *, mirrored: bool) -> str:
    words, source = vocabulary(), vocabulary().source(photograph.source)
    if len(photograph.captions) > 1:
        return _human(photograph, rng, mirrored=mirrored)
    if photograph.cls == "scene":
        return pick(words.unnamed, rng)
    subject = _subject(photograph, facts, word, rng)
    if facts.saturation == "grey" and rng.random() < 0.4:
        kind = "grey"
    else:
        kind = (word.heads or source.heads) if rng.random() < source.share else "any"
    return pick(words.heads[kind], rng).format(x=subject)


def _human(photograph: Photograph, rng: np.random.Generator, *, mirrored: bool, plain: bool = True) -> str:
    """What people wrote, or the plain noun that most of them used."""
    captions = [text for text in photograph.captions if not (mirrored and re.search(r"\b(left|right)\b", text))]
    if not captions or (plain and rng.random() < 0.25):
        tokens = [set(re.findall(r"[a-z]+", text.lower())) for text in photograph.captions]
        common = [name for noun, name in _NOUNS.items() if 2 * sum(noun in found for found in tokens) > len(tokens)]
        subject = pick(common, rng) if common else pick(("a scene", "an everyday scene"), rng)
        return pick(vocabulary().heads["any"], rng).format(x=subject)
    text = _tidy(pick(captions, rng))
    lowered = text[0].lower() + text[1:]
    return text if rng.random() < 0.5 else lowered


def _tidy(text: str) -> str:
    """Without stray quotes, with no space before apostrophes and commas, and no full stop."""
    bare = re.sub(r"\s'\s|\"", " ", text).replace(" '", "'").replace(" ,", ",")
    return " ".join(bare.split()).rstrip(" .")


def _subject(photograph: Photograph, facts: Facts, word: Word, rng: np.random.Generator) -> str:
    source = vocabulary().source(photograph.source)
    if photograph.category == "people":
        return _person(photograph, rng)
    written = photograph.captions[0] if photograph.captions else ""
    if photograph.source == "voc_vehicles" and re.search(r"cars|buses|trains|people", written):
        return written.removeprefix("a photo of ")
    name = pick(word.kinds if word.kinds and rng.random() < 0.25 else word.names, rng)
    if facts.centre in (word.colours or source.subject) and rng.random() < 0.6:
        return _coloured(name, _colour(facts.centre, rng))
    return name


def _person(photograph: Photograph, rng: np.random.Generator) -> str:
    people = vocabulary().people
    if vocabulary().source(photograph.source).heads == "official":
        who = said_of(photograph)
        return pick(people[f"official {who}" if who in ("man", "woman") else "official"], rng)
    found = _WEARING.search(photograph.captions[0] if photograph.captions else "")
    kind, clothes = (found.group(1), found.group(2)) if found else ("person", None)
    person = pick(people["person" if rng.random() < 0.1 else kind], rng)
    if not clothes or rng.random() < 0.4:
        return person
    garments = re.split(r", | and ", clothes)
    kept = [garment for garment in garments if rng.random() < 0.75] or garments[:1]
    return f"{person} {pick(('wearing', 'wearing', 'in', 'dressed in'), rng)} {_listed(kept)}"


def _coloured(name: str, colour: str) -> str:
    bare = re.sub(r"^an? ", "", name)
    return with_article(f"{colour} {bare}") if bare != name else f"{colour} {name}"


def _colour(name: str, rng: np.random.Generator) -> str:
    return pick(vocabulary().colours[name], rng) if rng.random() < 0.4 else name


# ---- the details ----------------------------------------------------------------------------------------


def _details(photograph: Photograph, facts: Facts, word: Word, *, mirrored: bool) -> list[Detail]:
    """Everything that may be said beside the subject."""
    keys = [facts.brightness, facts.contrast, facts.tone, facts.saturation, facts.sharpness]
    keys += [
        _behind(photograph, facts),
        _lit(photograph, facts, mirrored=mirrored),
        "flag" if facts.flag else "",
        "photo",
        "own" if word.nouns else "",
    ]
    keys += ["" if facts.brightness or facts.contrast else "balanced"]
    keys += _placed(photograph, facts, word) + _framed(photograph, facts)
    found = [(key, "", "") for key in keys if key]
    return found + _coloured_details(photograph, facts)


def _behind(photograph: Photograph, facts: Facts) -> str:
    """What lies behind the subject, only where there is one subject."""
    source = vocabulary().source(photograph.source)
    if facts.background == "plain":
        return "plain" if source.background else ""
    if facts.background == "shallow":
        return "shallow" if source.heads != "official" and (source.background or source.place == "street") else ""
    return facts.background


def _lit(photograph: Photograph, facts: Facts, *, mirrored: bool) -> str:
    """Left and right only of faces that fill the frame: elsewhere the thing itself may be dark on one side."""
    if facts.light == "from above":
        return facts.light
    if vocabulary().source(photograph.source).heads != "face":
        return ""
    swapped = {"from left": "from right", "from right": "from left"}
    return swapped.get(facts.light, "") if mirrored else facts.light


def _placed(photograph: Photograph, facts: Facts, word: Word) -> list[str]:
    place = word.place or vocabulary().source(photograph.source).place
    if photograph.source == "flickr8k" and photograph.category == "outdoor":
        place = "outdoor"
    dark = facts.brightness in ("dark", "dim")
    if place == "indoor":
        return [
            place,
            {"bright": "bright room", "high-key": "bright room", "dark": "dark room"}.get(facts.brightness, ""),
        ]
    if place == "perhaps outdoor":
        return [facts.sky if facts.sky == "blue sky" else ""]
    if place not in ("outdoor", "street"):
        return [place]
    keys = [place, "" if dark or facts.sky == "night" else "daylight"]
    if facts.sky == "night":
        return [place, "night"] if photograph.cls in ("street", "buildings") else [place]
    keys += [facts.sky, "golden" if facts.tone == "warm" and not dark and photograph.category != "people" else ""]
    keys += ["sunny" if facts.sky == "blue sky" and not dark and facts.contrast != "soft light" else ""]
    keys += ["soft daylight" if facts.contrast == "soft light" and not dark and facts.sky != "blue sky" else ""]
    grey_day = facts.sky == "pale sky" and facts.saturation == "muted"
    return [*keys, "overcast" if grey_day and facts.contrast != "hard light" else ""]


def _framed(photograph: Photograph, facts: Facts) -> list[str]:
    heads = vocabulary().source(photograph.source).heads
    if heads == "face":
        return ["face", {"crisp": "crisp face", "soft": "soft face"}.get(facts.sharpness, "")]
    return [heads] if heads in ("half", "fashion") else []


def _coloured_details(photograph: Photograph, facts: Facts) -> list[Detail]:
    source = vocabulary().source(photograph.source)
    details = []
    if facts.behind and source.background:
        details.append(("plain colour" if facts.background == "plain" else "colour behind", facts.behind, ""))
    if facts.clothes:
        details.append(("clothes", facts.clothes, ""))
    if facts.behind == "green" and photograph.category in ("animals", "plants"):
        details.append(("green around", "", ""))
    if len(facts.hues) == 1 and photograph.category != "people":
        details.append(("colour", facts.hues[0], ""))
    if len(facts.hues) == 2 and photograph.category != "people":
        details.append(("colours", facts.hues[0], facts.hues[1]))
    return details


# ---- the wording ----------------------------------------------------------------------------------------


def _say(detail: Detail, form: str, word: Word, rng: np.random.Generator) -> str:
    key, first, second = detail
    forms = (word.nouns, word.nouns, word.sentences) if key == "own" else _forms(key)
    options = forms[("nouns", "tags", "sentences").index(form)] or forms[0]
    text = pick(options, rng)
    return text.format(c=_colour(first, rng) if first else "", d=_colour(second, rng) if second else "")


def _forms(key: str) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    phrase = vocabulary().phrases[key]
    return phrase.nouns, phrase.tags, phrase.sentences


def _tagged(head: str, details: Sequence[Detail], word: Word, rng: np.random.Generator) -> str:
    """Head, tag, tag, tag."""
    forms = [("tags", "nouns")[int(rng.random() < 0.4)] for _ in details]
    return ", ".join([head, *(_say(detail, form, word, rng) for detail, form in zip(details, forms, strict=True))])


def _told(head: str, details: Sequence[Detail], word: Word, rng: np.random.Generator) -> str:
    """A sentence for the subject and one for every detail."""
    sentences = [head[0].upper() + head[1:] + "."]
    sentences += [_closed(_say(detail, "sentences", word, rng)) for detail in details]
    return " ".join(sentences)


def _mixed(head: str, details: Sequence[Detail], word: Word, rng: np.random.Generator) -> str:
    """Head with noun and noun, then sentences or tags."""
    count = min(len(details), 1 + int(rng.random() < 0.5))
    opening = f"{head} with {_listed([_say(detail, 'nouns', word, rng) for detail in details[:count]])}"
    if rng.random() < 0.5:
        return _tagged(opening, details[count:], word, rng)
    return _told(opening, details[count:], word, rng)


def _closed(text: str) -> str:
    return text if text.endswith(".") else f"{text[0].upper()}{text[1:]}."


def _listed(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


# ---- a corpus -------------------------------------------------------------------------------------------


def text_corpus(
    photographs: Sequence[Photograph], prompt_files: Sequence[str | Path], *, seed: int, rounds: int
) -> Iterator[str]:
    """Captions of every photograph, `rounds` times over, then every line of the prompt files."""
    rng = np.random.default_rng(seed)
    facts = [describe(photograph) for photograph in photographs]
    for _ in range(rounds):
        for photograph, known in zip(photographs, facts, strict=True):
            yield write_caption(photograph, known, rng)
    for file in prompt_files:
        try:
            lines = Path(file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read the prompts {file}: {error}", hint="give a UTF-8 text file") from error
        yield from (line.strip() for line in lines if line.strip())
