"""Draws what a gallery still lacks, by a recipe's models, with progress; Ctrl-C keeps what is finished."""

import contextlib
import time
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from realgen.apps import _show as show
from realgen.core.errors import RealGenError

if TYPE_CHECKING:
    from realgen.core.protocols import PromptOptimizer
    from realgen.core.recipes import GenerateRecipe
    from realgen.core.types import Progress, Request, Sample
    from realgen.gallery import Gallery


def draw(
    recipe: "GenerateRecipe", gallery: "Gallery", *, optimizer: "PromptOptimizer | None", best_of: int | None
) -> None:
    """Draw what is pending; what is finished is kept whatever happens."""
    from realgen.core.types import Progress

    pending = gallery.pending
    show.note(f"realgen: {len(pending)} to draw with {recipe.generator.card or recipe.generator.name}, loading")
    if not pending:
        gallery.finish()
        return
    try:
        samples = _samples(recipe, pending, optimizer=optimizer, best_of=best_of)
        with show.progress(len(pending)) as bar:
            began = time.perf_counter()
            for item in samples:
                if isinstance(item, Progress):
                    bar.within(item)
                else:
                    bar.drawn(item, gallery.add(item, seconds=time.perf_counter() - began))
                    began = time.perf_counter()
    except (RealGenError, MemoryError, RuntimeError, OSError):
        with contextlib.suppress(RealGenError):  # a full disk takes no contact sheet either
            gallery.finish()
        gallery.discard()
        raise
    except KeyboardInterrupt:
        gallery.finish()
        how = "realgen generate" if gallery.manifest.requests else "run the same again with"
        show.note(f"stopped; finished pictures are kept: {how} --resume {gallery.folder}")
        raise
    gallery.finish()


def _samples(
    recipe: "GenerateRecipe", pending: "Sequence[Request]", *, optimizer: "PromptOptimizer | None", best_of: int | None
) -> "Iterable[Sample | Progress]":
    """The recipe's models put together; scorers outside of the reward look at the chosen pictures alone."""
    from realgen import pipeline, search
    from realgen.wiring import use

    batch = recipe.machine.batch
    scorers = {} if best_of is None else use.build_scorers(recipe)
    generate = partial(
        pipeline.generate,
        generator=use.build_generator(recipe),
        optimizer=optimizer or use.build_optimizer(recipe),
        batch=batch,
    )
    if best_of is None:
        return generate(pending)
    assert recipe.reward is not None
    rewarded = {name: scorer for name, scorer in scorers.items() if name in recipe.rewarded}
    others = {name: scorer for name, scorer in scorers.items() if name not in recipe.rewarded}
    chosen = search.best_of(
        pending,
        lambda requests: pipeline.score(generate(requests), rewarded, batch=batch),
        spec=recipe.reward,
        num=best_of,
    )
    return pipeline.score(chosen, others, batch=1)
