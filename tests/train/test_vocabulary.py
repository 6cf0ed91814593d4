"""The shipped words: whole, well formed, of no person by name, and true of their class."""

import re
from importlib.resources import files

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from realgen.train.facts import COLOURS
from realgen.train.vocabulary import Source, Vocabulary, Word, vocabulary, with_article

WORDS = vocabulary()
RAW = yaml.safe_load(files("realgen.train").joinpath("vocabulary.yaml").read_text(encoding="utf-8"))
PLACES = {"", "studio", "street", "outdoor", "indoor", "perhaps outdoor", "shop", "table"}
FACTS = ["dark", "dim", "bright", "high-key", "soft light", "hard light", "warm", "cool", "muted", "vivid", "grey"]
FACTS += ["soft", "crisp", "plain", "shallow", "busy", "from left", "from right", "from above"]
FACTS += ["blue sky", "pale sky", "night", "flag", "plain colour", "colour behind", "colour", "colours", "clothes"]
FACTS += ["daylight", "sunny", "soft daylight", "overcast", "golden", "bright room", "dark room", "green around"]
FACTS += ["face", "crisp face", "soft face", "half", "fashion", "photo", "balanced"]
NUM_COLOURS = {"plain colour": 1, "colour behind": 1, "colour": 1, "clothes": 1, "colours": 2}
# Peoples, places and breeds that a class's own name does not hold already.
PROPER = {"Korean", "Mexican", "Boston", "American", "African", "English", "French", "Lhasa", "Apso", "Leonberger"}
PROPER |= {"Pembroke", "T-shirt"}


def said_of(word: Word) -> tuple[str, ...]:
    return (*word.names, *word.kinds, *word.nouns, *word.sentences)


# ---- articles -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("noun", "said"),
    [
        ("cat", "a cat"),
        ("apple", "an apple"),
        ("Irish setter", "an Irish setter"),
        ("oboe", "an oboe"),
        ("umbrella", "an umbrella"),
        ("unicycle", "a unicycle"),
        ("yurt", "a yurt"),
        ("German shepherd", "a German shepherd"),
    ],
)
def test_articles(noun, said):
    assert with_article(noun) == said


@settings(max_examples=20)
@given(st.text(alphabet="bcdfgjklmnpqrstvwxz", min_size=1, max_size=9))
def test_a_consonant_takes_a(noun):
    assert with_article(noun) == f"a {noun}"


def test_no_name_puts_a_before_a_vowel_that_is_spoken():
    for word in WORDS.classes.values():
        for text in said_of(word):
            assert not re.search(r"\ba (?!European)[aeioAEIO]", text), text
            assert not re.search(r"\ban [bcdfgjklmnpqrstvwxzBCDFGJKLMNPQRSTVWXZ]", text), text


# ---- classes --------------------------------------------------------------------------------------------


def test_every_class_has_words_and_every_word_is_tidy():
    assert len(WORDS.classes) > 400
    for cls, word in WORDS.classes.items():
        assert word.names, cls
        for text in said_of(word):
            assert text, cls
            assert text == " ".join(text.split()), text
            assert "{" not in text, text


def test_every_member_of_a_group_has_the_group_s_wider_words():
    seen: set[str] = set()
    for group in RAW["groups"]:
        assert group["kinds"]
        for member in group["members"]:
            assert member not in seen, f"{member} is in two groups"
            seen.add(member)
            if member not in RAW["classes"]:
                assert WORDS.word(member).kinds == tuple(group["kinds"]), member


def test_a_class_s_own_entry_wins_over_its_group_and_its_name():
    for cls, entry in RAW["classes"].items():
        word = WORDS.word(cls)
        assert word.kinds == tuple(entry["kinds"])
        assert word.names == tuple(entry.get("names", [with_article(cls)]))


def test_names_that_differ_replace_the_class():
    assert WORDS.word("ice bear").names == ("a polar bear",)
    assert WORDS.word("ice bear").kinds == WORDS.word("lion").kinds
    assert WORDS.word("lion").names == ("a lion",)
    assert WORDS.word("binoculars") == Word(names=("binoculars",))


def test_an_unknown_class_is_called_by_its_name():
    assert WORDS.word("ocarina of clay") == Word(names=("an ocarina of clay",))


def test_places_heads_and_colours_are_known_ones():
    for entry in (*WORDS.classes.values(), *WORDS.sources.values()):
        assert entry.place in PLACES
        assert not entry.heads or entry.heads in WORDS.heads
    for word in WORDS.classes.values():
        assert set(word.colours) <= set(COLOURS)


def test_nobody_is_named():
    for texts in (*WORDS.people.values(), WORDS.unnamed):
        assert all(text == text.lower() for text in texts)
    for cls, word in WORDS.classes.items():
        for text in (*word.names, *word.kinds, *word.nouns):
            capitals = set(re.findall(r"\b[A-Z][\w-]*", text))
            assert capitals <= PROPER | set(re.findall(r"[A-Z][\w-]*", cls)), text
    for phrase in WORDS.phrases.values():
        for text in (*phrase.nouns, *phrase.tags):
            assert set(re.findall(r"\b[A-Z][\w-]*", text)) <= {"American"}, text


def test_a_person_of_every_kind_that_captions_name():
    assert {"woman", "man", "person", "official", "official woman", "official man"} == set(WORDS.people)
    for kind in ("woman", "man", "official woman", "official man"):
        other = {"woman": "man", "man": "woman"}[kind.removeprefix("official ")]
        assert not any(re.search(rf"\b{other}\b", text) for text in WORDS.people[kind])
    for kind in ("person", "official"):
        assert not any(re.search(r"\b(wo)?man\b|\blady\b", text) for text in WORDS.people[kind])


# ---- sources --------------------------------------------------------------------------------------------


def test_sources_are_found_by_the_first_part_of_their_name():
    assert WORDS.source("congress/hi") == WORDS.source("congress") == WORDS.sources["congress"]
    assert WORDS.source("nowhere/at/all") == WORDS.source("") == Source()


@pytest.mark.parametrize("name", sorted(WORDS.sources))
def test_a_source_is_framed_within_the_picture(name):
    source = WORDS.sources[name]
    assert 0 <= source.share <= 1
    assert set(source.subject) <= set(COLOURS)
    if source.clothes:
        top, bottom, left, right = source.clothes
        assert 0 <= top < bottom <= 1
        assert 0 <= left < right <= 1
        assert left + right == pytest.approx(1), "a mirrored picture has its clothes in the same place"


# ---- phrases --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", FACTS)
def test_every_fact_has_words_in_every_form(key):
    phrase = WORDS.phrases[key]
    assert phrase.nouns
    assert phrase.tags
    assert phrase.sentences


def test_no_phrase_is_left_unsaid():
    assert set(WORDS.phrases) == {*FACTS, *(PLACES - {"", "perhaps outdoor"})}


@pytest.mark.parametrize("key", sorted(WORDS.phrases))
def test_phrases_are_well_formed(key):
    phrase = WORDS.phrases[key]
    slots = {0: set(), 1: {"c"}, 2: {"c", "d"}}[NUM_COLOURS.get(key, 0)]
    for text in (*phrase.nouns, *phrase.tags, *phrase.sentences):
        assert set(re.findall(r"\{(\w*)\}", text)) == slots, text
        assert text == " ".join(text.split()), text
    for text in (*phrase.nouns, *phrase.tags):
        assert not text.endswith("."), text
        assert "," not in text, text
    for text in phrase.sentences:
        assert text.endswith("."), text
        assert text[0].isupper(), text


@pytest.mark.parametrize(("one", "other"), [("left", "right"), ("right", "left")])
def test_the_light_s_sides_are_not_mixed_up(one, other):
    phrase = WORDS.phrases[f"from {one}"]
    said = " ".join((*phrase.nouns, *phrase.tags, *phrase.sentences)).replace("bright", "")
    assert one in said
    assert other not in said


def test_heads_take_one_subject():
    for kind, heads in WORDS.heads.items():
        assert heads, kind
        assert all(head.count("{x}") == 1 for head in heads), kind
        assert all(head.format(x="a cat").count("a cat") == 1 for head in heads)


def test_every_colour_that_is_measured_has_words_and_shares_none():
    assert set(WORDS.colours) == set(COLOURS)
    for name, synonyms in WORDS.colours.items():
        assert synonyms[0] == name
        others = {text for other, texts in WORDS.colours.items() if other != name for text in texts}
        assert not set(synonyms) & others


def test_it_is_read_once():
    assert vocabulary() is WORDS
    assert isinstance(WORDS, Vocabulary)


@pytest.mark.parametrize(
    ("noun", "said"),
    [
        ("apple", "an apple"),
        ("upright", "an upright"),
        ("hourglass", "an hourglass"),
        ("umbrella", "an umbrella"),
        ("European fire salamander", "a European fire salamander"),
        ("unicycle", "a unicycle"),
        ("house", "a house"),
    ],
)
def test_articles_go_by_sound(noun, said):
    assert with_article(noun) == said
