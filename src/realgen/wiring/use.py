"""What draws and what scores."""

from collections.abc import Mapping

from realgen.core.errors import ConfigError
from realgen.core.grpo_recipe import FlowGrpoRecipe
from realgen.core.protocols import Generator, PromptOptimizer, Scorer
from realgen.core.recipes import GenerateRecipe, Recipe, ScoreRecipe
from realgen.core.spec import Plug
from realgen.hub import card as cards
from realgen.hub.plugs import build, build_scorer, configure


def check(recipe: Recipe) -> None:
    """Validate every plug-in's options of a recipe without loading a model."""
    if isinstance(recipe, GenerateRecipe | FlowGrpoRecipe):
        configure("generators", recipe.generator)
        if recipe.prompt_optimizer is not None:
            configure("prompt_optimizers", recipe.prompt_optimizer)
    if isinstance(recipe, GenerateRecipe | ScoreRecipe | FlowGrpoRecipe):
        for plug in recipe.scorers.values():
            configure("scorers", plug)
        for name in recipe.rewarded:
            if any(cards.read(card).is_held_out for card in _cards_of(recipe.scorers[name])):
                raise _held_out(name)


def build_generator(recipe: GenerateRecipe | FlowGrpoRecipe) -> Generator:
    """The recipe's generator, its files fetched where they are missing."""
    generator: Generator = build("generators", recipe.generator, recipe.machine)
    return generator


def build_optimizer(recipe: GenerateRecipe | FlowGrpoRecipe) -> PromptOptimizer | None:
    """The recipe's prompt optimiser, or None where prompts are drawn as they stand."""
    if recipe.prompt_optimizer is None:
        return None
    optimizer: PromptOptimizer = build("prompt_optimizers", recipe.prompt_optimizer, recipe.machine)
    return optimizer


def build_scorers(recipe: GenerateRecipe | ScoreRecipe | FlowGrpoRecipe) -> dict[str, Scorer]:
    """The recipe's scorers by name; ConfigError where a held-out detector is part of its reward."""
    check(recipe)
    scorers: dict[str, Scorer] = {}
    for name, plug in recipe.scorers.items():
        scorer = build_scorer(plug, recipe.machine)
        if scorer.info.is_held_out and name in recipe.rewarded:
            raise _held_out(name)
        scorers[name] = scorer
    return scorers


def _cards_of(plug: Plug) -> list[str]:
    """The card of a scorer, and of one that it wraps."""
    inner = plug.options.get("scorer")
    own = [plug.card] if plug.card is not None else []
    return [*own, *(_cards_of(Plug.model_validate(inner)) if isinstance(inner, Mapping) else [])]


def _held_out(name: str) -> ConfigError:
    return ConfigError(
        f"the scorer {name!r} is held out: it only evaluates", hint="take it out of the reward, leave it in scorers"
    )
