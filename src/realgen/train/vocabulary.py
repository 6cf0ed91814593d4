"""The words of `vocabulary.yaml`: how classes, sources and measured facts are said."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, TypeVar

import numpy as np
import yaml

Chosen = TypeVar("Chosen")


@dataclass(frozen=True, slots=True)
class Source:
    """How the photographs of one source are framed."""

    heads: str = "any"
    """Which openings beside the general ones; they also tell the framing."""
    share: float = 0.0
    """How often those are used."""
    place: str = ""
    clothes: tuple[float, ...] = ()
    """Top, bottom, left and right of where clothes are, as shares of the sides."""
    subject: tuple[str, ...] = ()
    """Colours of the middle that are surely the subject's."""
    background: bool = False
    """Whether the colour of the rim is that of a background."""


@dataclass(frozen=True, slots=True)
class Word:
    """How one class is said."""

    names: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    nouns: tuple[str, ...] = ()
    sentences: tuple[str, ...] = ()
    place: str = ""
    heads: str = ""
    colours: tuple[str, ...] = ()
    """Colours that the middle of the picture may lend to the subject."""


@dataclass(frozen=True, slots=True)
class Phrase:
    """How one fact is said: after "with", between commas, or as a sentence."""

    nouns: tuple[str, ...]
    tags: tuple[str, ...]
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Vocabulary:
    """All wordings, by what they say."""

    colours: Mapping[str, tuple[str, ...]]
    heads: Mapping[str, tuple[str, ...]]
    sources: Mapping[str, Source]
    classes: Mapping[str, Word]
    phrases: Mapping[str, Phrase]
    people: Mapping[str, tuple[str, ...]]
    callings: Mapping[str, tuple[str, ...]]
    """Words for a man, a woman and a person of any work, age or kin, without their articles."""
    looks: tuple[str, ...]
    """Adjectives for any of them."""
    framing: tuple[str, ...]
    """Clauses that captions have for people more than for anything else."""
    unnamed: tuple[str, ...] = field(default=("a photo",))

    def source(self, name: str) -> Source:
        """By the first part of the manifest's source: `congress/hi` is `congress`."""
        return self.sources.get(name.split("/", maxsplit=1)[0], Source())

    def word(self, cls: str) -> Word:
        """A class without an entry is called by its own name."""
        return self.classes.get(cls) or Word(names=(with_article(cls),))


_VOWEL = re.compile(r"(?!eu|ewe|one\b|once|uni|use|usu|uk|ut[ei])[aeiou]|hour|honest|heir", re.IGNORECASE)
"""How a noun starts that is spoken with a vowel first."""


def with_article(noun: str) -> str:
    """`a` or `an` before a countable noun."""
    takes_an = _VOWEL.match(noun) is not None
    return f"{'an' if takes_an else 'a'} {noun}"


def pick(options: Sequence[Chosen], rng: np.random.Generator) -> Chosen:
    """One of them, all as likely."""
    return options[int(rng.integers(len(options)))]


@cache
def vocabulary() -> Vocabulary:
    """The shipped wordings, read once."""
    text = files("realgen.train").joinpath("vocabulary.yaml").read_text(encoding="utf-8")
    raw = yaml.safe_load(text)
    return Vocabulary(
        colours=_tuples(raw["colours"]),
        heads=_tuples(raw["heads"]),
        sources={name: Source(**_frozen(entry)) for name, entry in raw["sources"].items()},
        classes=_classes(raw),
        phrases={name: Phrase(**_frozen(entry)) for name, entry in raw["phrases"].items()},
        people=_tuples(raw["people"]),
        callings=_tuples(raw["callings"]),
        looks=tuple(raw["looks"]),
        framing=tuple(raw["framing"]),
        unnamed=tuple(raw["unnamed"]),
    )


def _frozen(entry: Mapping[str, object]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}


def _tuples(lists: Mapping[str, list[str]]) -> dict[str, tuple[str, ...]]:
    return {key: tuple(values) for key, values in lists.items()}


def _classes(raw: Mapping[str, Any]) -> dict[str, Word]:
    """Classes of their own, then those that share the wider words of a group, then those that only have a name."""
    names: Mapping[str, object] = raw["names"]
    words: dict[str, Word] = {}
    for group in raw["groups"]:
        kinds = tuple(group["kinds"])
        for member in group["members"]:
            words[member] = Word(names=(str(names.get(member) or with_article(member)),), kinds=kinds)
    for cls, name in names.items():
        words.setdefault(cls, Word(names=(str(name),)))
    for cls, entry in raw["classes"].items():
        words[cls] = Word(**_frozen({"names": [with_article(cls)], **entry}))
    return words
