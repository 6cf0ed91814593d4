"""One plug of a recipe to its options, and to the live plug-in: card and files found, nothing decided."""

from dataclasses import replace
from typing import Any

from realgen.core import config, plugins
from realgen.core.errors import ConfigError
from realgen.core.protocols import Scorer
from realgen.core.spec import Machine, Plug, Spec
from realgen.hub import card as cards
from realgen.hub import fetch


def configure(room: str, plug: Plug) -> Spec:
    """A plug's options as its own record: the plug-in's defaults < its card's < the recipe's."""
    options: dict[str, Any] = dict(plug.options)
    if plug.card is not None:
        card = cards.read(plug.card)
        if (card.room, card.plugin) != (room, plug.name):
            raise ConfigError(
                f"the card {card.name} is for {card.room}/{card.plugin}, not for {room}/{plug.name}",
                hint=f"name: {card.plugin}",
            )
        options = config.merge(card.options, options)
    return plugins.configure(room, plug.name, options)


def build(room: str, plug: Plug, machine: Machine) -> Any:
    """The live plug-in; the files that its card names are fetched where they are missing."""
    options = configure(room, plug)
    if plug.card is not None and getattr(options, "model", "") is None:
        options = options.model_copy(update={"model": str(fetch.locate(cards.read(plug.card)))})
    use_threads(machine)
    return plugins.find(room, plug.name).build(options, machine)


def build_scorer(plug: Plug, machine: Machine) -> Scorer:
    """The live scorer; its card's licence and caution, and whether the card holds it out, go into its info."""
    scorer: Scorer = build("scorers", plug, machine)
    if plug.card is not None:
        card = cards.read(plug.card)
        is_held_out = scorer.info.is_held_out or card.is_held_out
        scorer.info = replace(scorer.info, licence=card.licence, is_held_out=is_held_out, caution=card.caution)
    return scorer


def use_threads(machine: Machine) -> None:
    """Hold torch to the machine's number of threads."""
    import torch

    if machine.threads is not None:
        torch.set_num_threads(machine.threads)
