"""Recipes as closed, typed records: what can be said in YAML, and what each key means. Reads nothing."""

from typing import Literal

from realgen.core.adversarial_recipe import AdversarialRecipe
from realgen.core.grpo_recipe import FlowGrpoRecipe
from realgen.core.spec import Machine, Plug, Scored
from realgen.core.training_recipes import (
    AlignmentRecipe,
    AutoencoderRecipe,
    ClassifierRecipe,
    DecoderRecipe,
    DetectorRecipe,
    ExpertsRecipe,
    FlowSftRecipe,
    TextDistillationRecipe,
    UnseenWordsRecipe,
)


class ScoreRecipe(Scored):
    """How images are scored."""

    kind: Literal["score"]

    machine: Machine = Machine()


class GenerateRecipe(Scored):
    """How prompts become images."""

    kind: Literal["generate"]

    prompt_optimizer: Plug | None = None
    """Rewrites the prompt; null draws the prompt as it stands."""

    generator: Plug
    """Draws the text."""

    machine: Machine = Machine()


Recipe = (
    GenerateRecipe
    | ScoreRecipe
    | AutoencoderRecipe
    | DecoderRecipe
    | TextDistillationRecipe
    | FlowSftRecipe
    | AdversarialRecipe
    | ExpertsRecipe
    | ClassifierRecipe
    | DetectorRecipe
    | FlowGrpoRecipe
    | AlignmentRecipe
    | UnseenWordsRecipe
)
