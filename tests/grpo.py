"""A whole GRPO trainer of no quality: a random FLUX.1 of 32 pixels and scores that are read off the pixels."""

import numpy as np

from realgen.core.grpo_recipe import FlowGrpoRecipe, Lora, Window
from realgen.core.spec import Machine, Plug, RewardSpec
from realgen.core.types import Score
from realgen.train.evaluation import Evaluation
from realgen.train.geometry import Geometry
from realgen.train.loop import FlowGrpoTrainer
from realgen.train.scoring import ScoringQueue
from realgen.train.world import World
from realgen.wiring import policy

SIZE = (32, 32)
PROMPTS = ["a cat", "a dog", "the sea", "an old man", "red tulips", "a bed"]


def light(images, prompts):
    """Brightness as the reward, redness beside it."""
    arrays = [np.asarray(image, dtype=np.float64) / 255 for image in images]
    return [{"light": Score(float(a.mean())), "red": Score(float(a[..., 0].mean()))} for a in arrays]


def recipe_of(**changes):
    values = {
        "kind": "flow_grpo",
        "generator": Plug(name="flux"),
        "scorers": {"light": Plug(name="residual"), "red": Plug(name="residual")},
        "reward": RewardSpec(weights={"light": 1.0}),
        "prompts": "-",
        "eval_prompts": "-",
        "steps": 4,
        "learning_rate": 1e-3,
        "ema_decay": 0.9,
        "evaluate_every": 2,
        "snapshots": (),
        "num_prompts": 2,
        "group": 4,
        "window": Window(length=2, first=0, last=1),
        "clip": 1e-3,
        "lora": Lora(rank=2, alpha=4),
        "machine": Machine(device="cpu", dtype="float32", batch=2, threads=1),
        "num_previews": 2,
        "is_scoring_beside": False,
    }
    return FlowGrpoRecipe(**(values | changes))


def load_generator(folder, recipe):
    """The generator on the FLUX.1 in `folder`, as wiring builds it."""
    options = {"model": str(folder), "steps": 4, "guidance": 3.0, "size": SIZE, "max_text_tokens": 16}
    return policy.build_generator(recipe.model_copy(update={"generator": Plug(name="flux", options=options)}))


def build_trainer(folder, recipe, *, score=light, world=World(), save=lambda folder: None):  # noqa: B008 - frozen
    generator = load_generator(folder, recipe)
    return trainer_of(generator, recipe, score=score, world=world, save=save)


def trainer_of(generator, recipe, *, score=light, world=World(), save=lambda folder: None):  # noqa: B008 - frozen
    pairs = [(prompt, prompt) for prompt in PROMPTS]
    return FlowGrpoTrainer(
        recipe,
        policy.build_policy(recipe, generator, world),
        ScoringQueue(score, is_beside=recipe.is_scoring_beside),
        Evaluation(generator, score, pairs[:4], batch=recipe.machine.batch, num_previews=recipe.num_previews),
        pairs,
        save,
        geometry=Geometry(recipe.num_prompts, recipe.group, recipe.updates, recipe.machine.batch, world.size),
        world=world,
    )
