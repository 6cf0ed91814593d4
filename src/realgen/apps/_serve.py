"""`realgen serve`: the options of the scoring server. Heavy imports wait until it runs."""

import importlib.util
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from realgen.apps import _show as show
from realgen.apps._options import Overrides, ProfileName, RecipeName
from realgen.core.errors import ConfigError

if TYPE_CHECKING:
    from realgen.core import wire
    from realgen.core.recipes import GenerateRecipe, ScoreRecipe

TOKEN = "REALGEN_TOKEN"  # noqa: S105  the variable's name
_SHORTEST_TOKEN = 16
_NEEDED = ("fastapi", "prometheus_client", "python_multipart", "uvicorn")
_MEGA = 10**6


def serve(
    overrides: Overrides = None,
    recipe: RecipeName = "score",
    profile: ProfileName = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than loopback need REALGEN_TOKEN.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8600,
    queue: Annotated[int, typer.Option(min=1, help="Images that may wait or be in work; more get 429.")] = 256,
    max_images: Annotated[int, typer.Option(min=1, help="Images in one call.")] = 64,
    max_image_mb: Annotated[float, typer.Option(min=0.001, help="Megabytes of one image file.")] = 32,
    max_body_mb: Annotated[float, typer.Option(min=0.001, help="Megabytes of one call.")] = 128,
    max_megapixels: Annotated[float, typer.Option(min=0.001, max=64, help="Megapixels of one image.")] = 16.8,
    body_seconds: Annotated[float, typer.Option(min=0.1, help="Seconds that a call may take to arrive.")] = 30,
    grace: Annotated[float, typer.Option(min=0, help="Seconds to finish accepted work when stopped.")] = 60,
) -> None:
    """Score images for other programs over HTTP."""
    from realgen.core import wire

    merged = load(recipe, profile, overrides or [])
    limits = wire.Limits(
        max_images=max_images,
        max_image_bytes=int(max_image_mb * _MEGA),
        max_body_bytes=int(max_body_mb * _MEGA),
        max_pixels=int(max_megapixels * _MEGA),
    )
    if max_images > queue:
        raise ConfigError(f"--max-images {max_images} do not fit --queue {queue}", hint="lower one or raise the other")
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise ConfigError(f"the server needs {', '.join(missing)}", hint='pip install "realgen[serve]"')
    _run(merged, limits, host=host, port=port, queue=queue, body_seconds=body_seconds, grace=grace)


def load(name: str, profile: str | None, overrides: Sequence[str]) -> "GenerateRecipe | ScoreRecipe":
    """A recipe that has scorers."""
    from realgen.core import config
    from realgen.core.recipes import GenerateRecipe, ScoreRecipe

    merged = config.load(name, profile=profile, overrides=overrides)
    if not isinstance(merged, GenerateRecipe | ScoreRecipe) or not merged.scorers:
        raise ConfigError(f"the recipe {name} has no scorers", hint="serve needs a recipe with scorers: {NAME: ...}")
    return merged


def token_for(host: str) -> str:
    """The token that callers must bear, from the environment; ConfigError where `host` needs one and there is none."""
    from realgen.apps._running import is_loopback

    token = os.environ.get(TOKEN, "").strip()
    if token and (len(token) < _SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token):
        raise ConfigError(
            f"{TOKEN} must have at least {_SHORTEST_TOKEN} printable characters and no space",
            hint="take the output of: openssl rand -hex 32",
        )
    if not token and not is_loopback(host):
        raise ConfigError(
            f"{host} can be reached from other machines and {TOKEN} is not set",
            hint=f"set {TOKEN} to the output of: openssl rand -hex 32, or keep --host 127.0.0.1",
        )
    return token


def _run(
    recipe: "GenerateRecipe | ScoreRecipe",
    limits: "wire.Limits",
    *,
    host: str,
    port: int,
    queue: int,
    body_seconds: float,
    grace: float,
) -> None:
    from realgen.apps._batching import Batcher, Served
    from realgen.apps._metrics import Metrics
    from realgen.apps._running import listen, make_server
    from realgen.apps.server import create_app

    def build() -> dict[str, Served]:
        from realgen.wiring import serving

        return {name: Served(scorer, model) for name, (scorer, model) in serving.load(recipe).items()}

    token = token_for(host)
    metrics = Metrics()
    batcher = Batcher(build, batch=recipe.machine.batch, max_queue=queue, observe=metrics.scored)
    app = create_app(batcher, metrics, limits=limits, token=token, body_seconds=body_seconds)
    with listen(host, port) as listening:
        where = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
        show.note(f"realgen: {', '.join(recipe.scorers)} on {where}, loading")
        batcher.start()
        server = make_server(app, batcher, grace=grace, on_ready=lambda: show.note("realgen: ready"))
        server.run(sockets=[listening])
    is_whole = batcher.is_alive
    batcher.stop()
    if batcher.failure is not None:
        raise batcher.failure
    if not is_whole:
        raise typer.Exit(1)  # a bug of a plug-in or of ours; its traceback is on stderr
    show.note("realgen: stopped")
