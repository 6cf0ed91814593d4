"""What trainings start from: photographs, the embedded model, a FLUX.1 to train."""

from typing import TYPE_CHECKING

from realgen.core.errors import ConfigError
from realgen.core.spec import Machine
from realgen.core.training_recipes import PhotographRecipe
from realgen.hub import card as cards
from realgen.hub import fetch

if TYPE_CHECKING:
    from diffusers import FluxPipeline

    from realgen.train.photographs import Photograph


def read_split(recipe: PhotographRecipe, split: str) -> "list[Photograph]":
    """The photographs of the recipe's data that belong to `split`."""
    from realgen.train.photographs import read_photographs

    if recipe.data is None:
        raise ConfigError("no photographs", hint="give data=FOLDER")
    return read_photographs(recipe.data, split=split)


def embedded() -> str:
    """Folder of the model that ships."""
    return str(fetch.locate(cards.read("tiny")))


def load_flux(model: str, machine: Machine, *, beside: "FluxPipeline | None" = None) -> "FluxPipeline":
    """A FLUX.1 in float32; `beside` another it brings its transformer alone, and shares all else."""
    from diffusers import FluxPipeline

    from realgen.generators._loading import load_pipeline

    shared = {} if beside is None else {name: part for name, part in beside.components.items() if name != "transformer"}
    return load_pipeline(FluxPipeline, model, machine.model_copy(update={"dtype": "float32"}), parts=shared)
