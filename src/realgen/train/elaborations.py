"""Makes captions longer by clauses of other texts, as a prompt optimiser does by clauses of its own.

A model that learns to draw the longer text as its teacher draws the caption keeps to the subject, however much is said
beside it. Captions say "lit from the left" and "tight framing" of faces alone, and a prompt says them of a pizza: other
subjects get such clauses too, so that they do not come to mean a face.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from realgen.core.errors import DataError
from realgen.train.vocabulary import pick, vocabulary

MAX_CLAUSES = 6
CLAUSE_WORDS = range(2, 13)
FRAMING = 0.3
"""Share of clauses about framing and the side that light comes from, where nobody is in the picture."""
_PEOPLE = re.compile(r"\b((wo)?m[ae]n|person|people|portrait|face|lady|boys?|girls?|child(ren)?|official|politician)\b")


def read_clauses(files: Sequence[Path]) -> list[str]:
    """What stands between the commas and full stops of the files' lines, where it is of two to twelve words."""
    found: dict[str, None] = {}
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read {file}: {error}", hint="give a UTF-8 text file, a prompt a line") from error
        clauses = (" ".join(part.split()) for part in re.split(r"[,;.:!?—\n]", text))
        found.update(dict.fromkeys(clause for clause in clauses if len(clause.split()) in CLAUSE_WORDS))
    if not found:
        raise DataError("no clause of two to twelve words", hint="give files of prompts in whole sentences")
    return list(found)


class Elaborations:
    """Appends clauses to a share of captions, as many as their texts may hold."""

    def __init__(self, clauses: Sequence[str], *, share: float, fits: Callable[[str], bool], seed: int) -> None:
        self.clauses, self.share, self.fits, self.seed = clauses, share, fits, seed

    def __call__(self, captions: Sequence[str], index: int) -> list[str]:
        """The captions, some of them longer; depends on (seed, index) alone. An empty caption stays empty."""
        rng = np.random.default_rng((self.seed, index))
        return [
            self._longer(caption, rng) if caption and rng.random() < self.share else caption for caption in captions
        ]

    def _longer(self, caption: str, rng: np.random.Generator) -> str:
        framing = () if _PEOPLE.search(caption.lower()) else vocabulary().framing
        for _ in range(1 + int(rng.integers(MAX_CLAUSES))):
            clauses = framing if framing and rng.random() < FRAMING else self.clauses
            longer = f"{caption.rstrip('.')}, {pick(clauses, rng)}"
            if not self.fits(longer):
                break
            caption = longer
        return caption
