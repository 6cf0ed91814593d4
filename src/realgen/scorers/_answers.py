"""What a vision-language model wrote, on its way to a Score. Knows no model and no question."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from realgen.core.types import Score


@dataclass(frozen=True, slots=True)
class Written:
    """A model's words, and whether it ended them itself."""

    text: str
    is_complete: bool = True


def without_thoughts(text: str) -> str:
    """`text` after the model's thoughts, which stand between <think> and </think>; nothing where they never end."""
    after = text.rpartition("</think>")[2]
    return after.partition("<think>")[0].strip()


def excerpt(text: str) -> str:
    """The beginning of `text` in one line, quoted, for a reason."""
    line = " ".join(text.split())
    return repr(line if len(line) <= 80 else f"{line[:79]}…")


def scored(answer: Written | Score, read: Callable[[str], Score]) -> Score:
    """What `read` finds in an answer without its thoughts; an answer that never came is unscored already."""
    if isinstance(answer, Score):
        return answer
    score = read(without_thoughts(answer.text))
    if score.value is None and not answer.is_complete:
        return replace(score, reason=f"cut off at max_tokens: {score.reason}")
    return score
