"""Puts the prompt into a fixed phrase; needs no model.

The same for every seed.
"""

from collections.abc import Sequence

from pydantic import field_validator

from realgen.core.protocols import PromptOptimizer
from realgen.core.spec import Machine, Spec
from realgen.core.types import Rewrite


class Options(Spec):
    """The phrase."""

    pattern: str = "{prompt}, a real photograph, natural light, 50mm lens, fine natural detail"
    """The text, with {prompt} where the prompt goes."""

    @field_validator("pattern")
    @classmethod
    def _has_a_place_for_the_prompt(cls, pattern: str) -> str:
        if "{prompt}" not in pattern:
            raise ValueError("it must contain {prompt}, where the prompt goes")
        return pattern


class Template:
    """One phrase around every prompt."""

    def __init__(self, options: Options) -> None:
        self._pattern = options.pattern

    def __call__(self, prompts: Sequence[str], *, seeds: Sequence[int]) -> list[Rewrite]:
        """The phrase with each prompt in it; a full stop at the prompt's end is dropped."""
        pairs = zip(prompts, seeds, strict=True)
        return [Rewrite(self._pattern.replace("{prompt}", prompt.strip().rstrip("."))) for prompt, _ in pairs]


def build(options: Options, machine: Machine) -> PromptOptimizer:
    """The optimiser; the machine makes no difference to it."""
    del machine
    return Template(options)
