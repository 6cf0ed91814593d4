"""What kinds of thing an English noun names, by a WordNet 3 dictionary (its `data.noun` and `index.noun`).

Source: Fellbaum 1998, WordNet (the files' format: wndb(5WN)). Knows neither photographs nor captions.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from realgen.core.errors import DataError

SENSES = 3
"""Senses of a word that are looked at; the most frequent come first."""
TANGIBLE = frozenset({5, 6, 8, 13, 15, 17, 18, 20})
"""Lexicographer files: animal, artifact, body, food, location, object, person, plant."""
LANDFORM = 17
_KIND, _INSTANCE = "@", "@i"


class Sense(NamedTuple):
    """One meaning of a noun."""

    names: tuple[str, ...]
    """Its synonyms, lower case, with spaces."""
    file: int
    """Number of its lexicographer file."""
    kinds: tuple[str, ...]
    """Offsets of what it is a kind of."""
    is_instance: bool
    """Whether it is one thing that has a name, as a city is."""


class WordNet:
    """The nouns of the dictionary in `folder`."""

    def __init__(self, folder: Path) -> None:
        try:
            self._senses = dict(map(_sense, _lines(folder / "data.noun")))
            self._index = dict(map(_entry, _lines(folder / "index.noun")))
        except (OSError, ValueError, IndexError) as error:
            raise DataError(
                f"{folder} holds no WordNet: {error}", hint="give the folder with data.noun and index.noun of WordNet 3"
            ) from error
        if not self._senses.keys() >= {offset for offsets in self._index.values() for offset in offsets}:
            raise DataError(f"index.noun in {folder} names what data.noun lacks", hint="take both from one WordNet")

    def senses(self, word: str) -> Iterator[list[Sense]]:
        """Each of the word's first senses that can be photographed, followed by its kinds, nearest first."""
        for offset in self._index.get(word, ())[:SENSES]:
            sense = self._senses[offset]
            if sense.file in TANGIBLE and not sense.is_instance:
                yield [self._senses[one] for one in self._above(offset)]

    def _above(self, offset: str) -> list[str]:
        """`offset` and what it is a kind of, level by level."""
        found = [offset]
        for one in found:
            found += [kind for kind in self._senses[one].kinds if kind not in found]
        return found


def _lines(file: Path) -> Iterator[str]:
    """The entries of a file, without its licence."""
    with file.open(encoding="utf-8") as lines:
        yield from (line for line in lines if not line.startswith(" "))


def _sense(line: str) -> tuple[str, Sense]:
    fields = line.partition("|")[0].split()
    ends = 4 + 2 * int(fields[3], 16)
    names = tuple(name.lower().replace("_", " ") for name in fields[4:ends:2])
    pointers = list(zip(fields[ends + 1 :: 4], fields[ends + 2 :: 4], strict=False))
    kinds = tuple(offset for symbol, offset in pointers if symbol in (_KIND, _INSTANCE))
    return fields[0], Sense(names, int(fields[1]), kinds, any(symbol == _INSTANCE for symbol, _ in pointers))


def _entry(line: str) -> tuple[str, list[str]]:
    """A lemma and the offsets of its senses, which end the line."""
    fields = line.split()
    return fields[0], fields[len(fields) - int(fields[2]) :]
