import pytest

from realgen.prompt_optimizers._answer import clean, content_words, cut, judge, max_repeats

PROMPT = "a portrait of an old fisherman at dawn"
GOOD = "An old fisherman on a pier, low golden light from the left, 85mm lens, deep lines in his skin."


@pytest.mark.parametrize(
    "answer",
    [
        GOOD,
        f"  {GOOD}\n",
        f'"{GOOD}"',
        f"“{GOOD}”",
        f"Sure! {GOOD}",
        f"Sure, here is a description of the photograph:\n\n{GOOD}",
        f'Here\'s the rewritten prompt: "{GOOD}"',
        f"**Description:** {GOOD}",
        f"Rewritten prompt: {GOOD}",
        f"<think>The user wants: a fisherman.\nSo...</think>\n\n{GOOD}",
        f"no opening tag, thoughts</think>{GOOD}",
        f"<|im_start|>{GOOD}<|im_end|>",
        f"{GOOD}</s></s>",
        f"- {GOOD}",
        f"```text\n{GOOD}\n```",
        f"{GOOD}\n\nLet me know if you would like another one!",
    ],
)
def test_talk_around_an_answer_is_stripped(answer: str) -> None:
    assert clean(answer) == GOOD
    rewrite = judge(answer, PROMPT, max_words=45)
    assert (rewrite.text, rewrite.reason) == (GOOD, "")


@pytest.mark.parametrize("detail", ["a 16:9 photograph", "a photograph at 5:30", "a photograph, f/2:8"])
def test_a_colon_between_digits_ends_no_preamble(detail: str) -> None:
    text = f"This is {detail} of an old fisherman mending nets on a pier."
    assert clean(text) == text


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "empty"),
        ("<think>and on and on", "empty"),
        ("Sure!", "empty"),
        ("Old fisherman.", "shorter"),
        ("fisherman " * 200, "too long"),
        ("an old fisherman stands " * 5, "repeated"),
        (f"{GOOD} <|im_start|>user hello", "template"),
        ("A red fox runs over deep snow under a clear sky.", "lost"),
    ],
)
def test_a_degenerate_answer_falls_back_to_the_prompt_and_says_why(answer: str, reason: str) -> None:
    rewrite = judge(answer, PROMPT, max_words=45)
    assert rewrite.text == PROMPT
    assert reason in rewrite.reason


def test_an_answer_a_little_too_long_ends_with_its_last_sentence_that_fits() -> None:
    """Two sentences of 19 and 11 words under a limit of 20: the first stays."""
    longer = f"{GOOD} The sea behind him is flat and grey as far as one sees."
    assert judge(longer, PROMPT, max_words=20).text == GOOD
    assert judge("fisherman and " * 15, PROMPT, max_words=20).text == PROMPT


def test_an_answer_that_was_broken_off_loses_its_last_piece_or_is_dropped() -> None:
    assert judge(f"{GOOD} The sea behind", PROMPT, max_words=45, is_complete=False).text == GOOD
    broken = judge("An old fisherman on a", PROMPT, max_words=45, is_complete=False)
    assert broken.text == PROMPT
    assert "broke off" in broken.reason


def test_words_are_compared_without_their_endings() -> None:
    for one, other in [
        ("houses", "house"),
        ("smiling", "smiles"),
        ("ladies", "lady"),
        ("glasses", "glass"),
        ("running", "run"),
    ]:
        assert content_words(one) == content_words(other), one
    assert content_words("a photo of the portrait") == set()
    assert judge("Any words will do here.", "a photo", max_words=45).reason == ""


def test_a_prompt_without_spaces_between_words_is_compared_by_character() -> None:
    assert judge("一位老渔夫站在码头", "老渔夫", max_words=45).reason == ""


def test_cut_and_repeats_by_hand() -> None:
    """`a b c d` occurs at 0 and 4 of `a b c d a b c d`."""
    assert cut("One two. Three 3.5 four. Five", 5) == "One two. Three 3.5 four."
    assert cut("no end at all", 2) == ""
    assert max_repeats("a b c d a b c d") == 2
    assert max_repeats("a b") == 0


@pytest.mark.parametrize(
    ("prompt", "answer", "is_kept"),
    [
        ("一只猫", "A grey cat sleeps on a warm stone wall.", True),
        ("кошка на диване", "A grey cat sleeps on a worn green sofa.", True),
        ("一只猫", "一只灰色的猫睡在墙上", True),
        ("一只猫", "红色的狐狸在雪地里跑过", False),
        ("a cat", "红色的狐狸在雪地里跑过", False),
        ("2024年の東京のcafe", "A quiet coffee house at dusk, shot at 35mm.", True),
        ("穿T恤的男孩", "A boy in a white shirt leans on a wall.", True),
        ("一只猫", "I'm sorry, but I cannot help with that.", False),
        ("a cat", "A red fox runs over deep snow.", False),
    ],
)
def test_a_translation_cannot_be_held_against_the_words_of_the_prompt(prompt, answer, is_kept):
    assert (judge(answer, prompt, max_words=40).text == answer) is is_kept


def test_half_a_surrogate_pair_and_nul_are_no_text():
    assert clean("A cat \ud83d at\0 dawn.") == "A cat at dawn."


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I cannot describe the fisherman.",
        "I apologize, but a portrait of an old fisherman is not something that I write.",
        "I'm really sorry, but the fisherman cannot be described.",
        "I won't write about a fisherman.",
        "Unfortunately I can't describe a fisherman at dawn.",
        "As a language model, I cannot see the fisherman.",
        "很抱歉 我无法描述一只猫 fisherman",
        "Sorry. This request for an old fisherman goes against the policy.",
        "Unfortunately, the request for an old fisherman goes against the policy.",
        "Es tut mir leid, den fisherman kann ich nicht beschreiben.",
    ],
)
def test_a_refusal_is_no_rewrite(answer):
    assert judge(answer, PROMPT, max_words=40).reason == "the model refused"


def test_an_assistant_in_the_picture_refuses_nothing():
    text = "As an assistant hands him a net, an old fisherman leans over the rail at dawn."
    assert judge(text, PROMPT, max_words=40).text == text


def test_words_of_the_prompt_refuse_nothing():
    text = "I can't stop smiling, says a neon sign over a bar at night."
    assert judge(text, "a neon sign that says I can't stop smiling", max_words=40).text == text
