"""Whom a flow learns against: each tells its answers from photographs in its own way, and learns to.

    learns:   mean max(0, 1 - D(photograph | its caption, s)) + mean max(0, 1 + D(answer | text, s))
    asks for: -mean w(s) D(answer | text, s)

or, where D is a log-odds (`EnlargedOpponent`), with smoothing h,

    learns:   cross entropy of sigmoid D with 1 - h for photographs and h for answers
    asks for: mean w(s) log(1 + exp(-D(answer | text, s)))

Both are means over groups of places that an opponent looks at, so that the few places that see a whole picture count as
much as the many that see a detail. One opponent looks at decoded pictures, one at their contents, enlarged, and one at
latents that are noised anew:

    (1 - t) x + t n,    t = least + (most - least) u^f,    u uniform, n normal

Where there is more noise, coarser things are compared. Knows no model.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from realgen.formulas.flow import interpolate
from realgen.train.discriminator import decoder_loss, discriminator_loss
from realgen.train.enlarged_discriminator import EnlargedDiscriminator, enlarged
from realgen.train.feature_discriminator import FeatureDiscriminator, augmented, level_waves
from realgen.train.flow_features import FlowFeatures
from realgen.train.half_drawn import between
from realgen.train.latent_discriminator import LatentDiscriminator
from realgen.train.lattice import lattice
from realgen.train.optimizers import little_momentum, step_at

Read = Callable[[Any], Tensor]
"""What backbones read of texts to one vector a text (B, C)."""


class Seen(NamedTuple):
    """What an opponent looks at of a batch."""

    shown: tuple[Tensor, ...]
    """Each (B, ...)."""
    asked: Tensor
    """What it should be (B, C)."""

    def beside(self, other: "Seen") -> "Seen":
        """These, then the others, without their gradients."""
        pairs = zip(self.shown, other.shown, strict=True)
        return Seen(tuple(torch.cat(pair).detach() for pair in pairs), torch.cat([self.asked, other.asked]).detach())

    def at(self, places: Tensor) -> "Seen":
        """Those at these places, without their gradients."""
        places = places.to(self.asked.device)
        return Seen(tuple(one[places].detach() for one in self.shown), self.asked[places].detach())


class Opponent(ABC):
    """Learns to tell photographs from answers, both as packed latents (B, tokens, C).

    Beside each batch it learns from `older` answers of the last `MEMORY` that it was shown: what was drawn before has
    to look wrong still, or flow and opponent go round in circles.
    """

    MEMORY = 480

    def __init__(
        self, module: nn.Module, read: Read, *, weight: float, learning_rate: float, updates: int, older: int = 0
    ) -> None:
        self.module, self.read, self.weight = module, read, weight
        self.learning_rate, self.updates, self.older = learning_rate, updates, older
        self.optimizer = little_momentum(module, learning_rate)
        self.memory: Seen | None = None

    def asked(self, condition: Any, sigma: Tensor) -> Tensor:
        """What answers to texts at levels (B,) should be (B, C): both as numbers."""
        return torch.cat([self.read(condition), level_waves(sigma)], 1)

    @abstractmethod
    def see(self, latents: Tensor, condition: Any, sigma: Tensor, generator: torch.Generator) -> Seen:
        """What it looks at of latents that answer texts at levels (B,); gradients reach the latents."""

    @abstractmethod
    def judge(self, seen: Seen, generator: torch.Generator) -> list[Tensor]:
        """Its answers, each (B, places of a group), float32: above 0 is real."""

    def learn(self, real: Seen, fake: Seen, share: float, generator: torch.Generator) -> dict[str, float]:
        """The updates of a step at this share of the learning rate, and what it said before the first of them."""
        fakes = self._with_older(fake, generator)
        both, metrics = real.beside(fakes), dict[str, float]()
        for _ in range(self.updates):
            groups = [one.split([len(real.asked), len(fakes.asked)]) for one in self.judge(both, generator)]
            loss = torch.stack([self.told_apart(on_real, on_fake) for on_real, on_fake in groups]).mean()
            loss.backward()  # type: ignore[no-untyped-call]
            step_at(self.optimizer, self.learning_rate * share)
            self.optimizer.zero_grad(set_to_none=True)
            metrics = metrics or {
                "discriminator": loss.item(),
                "on_photographs": torch.stack([on_real.mean() for on_real, _ in groups]).mean().item(),
                "on_pictures": torch.stack([on_fake.mean() for _, on_fake in groups]).mean().item(),
            }
        return metrics

    def asks(self, fake: Seen, weights: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """What the flow shall lower, with answers weighing `weights` (B,) each; and the scalars it is made of."""
        groups = self.judge(fake, generator)
        losses = [self.looking_real(answers, weights[: len(answers), None]) for answers in groups]
        adversarial = torch.stack(losses).mean()
        return self.weight * adversarial, {"adversarial": adversarial}

    def told_apart(self, on_real: Tensor, on_fake: Tensor) -> Tensor:
        """What it lowers, of its answers to photographs and to answers."""
        return discriminator_loss(on_real, on_fake)

    def looking_real(self, on_fake: Tensor, weights: Tensor) -> Tensor:
        """What the flow lowers, of those to its answers (B, places), weighing `weights` (B, 1)."""
        return decoder_loss(on_fake * weights)

    def _with_older(self, fake: Seen, generator: torch.Generator) -> Seen:
        """These and some that it was shown before; it remembers these."""
        if not self.older:
            return fake
        memory = self.memory
        kept = fake if memory is None else memory.beside(fake)
        self.memory = kept.at(torch.arange(len(kept.asked))[-self.MEMORY :])
        if memory is None:
            return fake
        places = torch.randperm(len(memory.asked), generator=generator)[: self.older]
        return fake.beside(memory.at(places))

    def state_dict(self) -> dict[str, Any]:
        """What it has learned, its moments, and what it remembers."""
        memory = None if self.memory is None else self.memory._asdict()
        return {"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict(), "memory": memory}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.memory = None if state["memory"] is None else Seen(**state["memory"])


class PictureOpponent(Opponent):
    """Looks at what `decode` makes of the first `count` latents of a batch, or of all: pixels around [0, 1], augmented.

    With a `lattice_weight` it asks too that they follow the lattice of their `squares` tokens a side no more than
    photographs do.
    """

    def __init__(
        self,
        module: FeatureDiscriminator,
        read: Read,
        decode: Callable[[Tensor], Tensor],
        *,
        count: int | None,
        lattice_weight: float,
        squares: int,
        **learning: Any,
    ) -> None:
        super().__init__(module, read, **learning)
        self.decode, self.count = decode, count
        self.lattice_weight, self.squares = lattice_weight, squares

    @override
    def see(self, latents: Tensor, condition: Any, sigma: Tensor, generator: torch.Generator) -> Seen:
        """Pictures, and text and level."""
        asked = self.asked(condition, sigma)
        return Seen((self.decode(latents[: self.count]).float(),), asked[: self.count])

    def judge(self, seen: Seen, generator: torch.Generator) -> list[Tensor]:
        """One group: the places of all scales."""
        return [self.module(augmented(seen.shown[0], generator), seen.asked).float()]

    def asks(self, fake: Seen, weights: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """That pictures look real, and not woven."""
        loss, parts = super().asks(fake, weights, generator)
        if not self.lattice_weight:
            return loss, parts
        woven = lattice(fake.shown[0], self.squares)
        return loss + self.lattice_weight * woven.relu(), parts | {"lattice": woven}


class LatentOpponent(Opponent):
    """Looks at latents through a frozen flow, under other noise each time.

    `to_condition` makes of a condition's tensors, a row a text, what the flow reads.
    """

    def __init__(
        self,
        module: LatentDiscriminator,
        read: Read,
        features: FlowFeatures,
        to_condition: Callable[[Iterable[Tensor]], Any],
        *,
        levels: tuple[float, float],
        finer: float,
        **learning: Any,
    ) -> None:
        super().__init__(module, read, **learning)
        self.features, self.to_condition = features, to_condition
        self.levels, self.finer = levels, finer

    @override
    def see(self, latents: Tensor, condition: Any, sigma: Tensor, generator: torch.Generator) -> Seen:
        """Latents and what the frozen flow reads beside them; text and level."""
        return Seen((latents, *condition), self.asked(condition, sigma))

    def judge(self, seen: Seen, generator: torch.Generator) -> list[Tensor]:
        """Two groups: places, and wholes. The level of each latent's noise is told."""
        latents, *condition = seen.shown
        noise = torch.randn(latents.shape, generator=generator).to(latents.device)
        level = between(self.levels, len(latents), generator, power=self.finer).to(latents.device)
        noised = interpolate(latents, noise, level)
        maps = self.features(noised, level, self.to_condition(condition))
        answers = self.module(maps, torch.cat([seen.asked, level_waves(level)], 1))
        return [one.float() for one in answers]


class EnlargedOpponent(Opponent):
    """Looks at the contents of what `decode` makes of latents: enlarged to `side` pixels, each time in another way."""

    SMOOTHING = 0.05

    def __init__(
        self,
        module: EnlargedDiscriminator,
        read: Read,
        decode: Callable[[Tensor], Tensor],
        *,
        side: int,
        noise: float,
        **learning: Any,
    ) -> None:
        super().__init__(module, read, **learning)
        self.decode, self.side, self.noise = decode, side, noise

    @override
    def see(self, latents: Tensor, condition: Any, sigma: Tensor, generator: torch.Generator) -> Seen:
        """Pictures; text and level."""
        return Seen((self.decode(latents).float(),), self.asked(condition, sigma))

    def judge(self, seen: Seen, generator: torch.Generator) -> list[Tensor]:
        """Four groups: places, wholes, and details at two scales."""
        pixels = enlarged(seen.shown[0], self.side, generator, noise=self.noise)
        return [one.float() for one in self.module(pixels, seen.asked)]

    @override
    def told_apart(self, on_real: Tensor, on_fake: Tensor) -> Tensor:
        """Cross entropy, never quite sure."""
        real, fake = torch.full_like(on_real, 1 - self.SMOOTHING), torch.full_like(on_fake, self.SMOOTHING)
        with_logits = F.binary_cross_entropy_with_logits
        return with_logits(on_real, real) + with_logits(on_fake, fake)

    @override
    def looking_real(self, on_fake: Tensor, weights: Tensor) -> Tensor:
        """The negative log-probability of real."""
        return (weights * F.softplus(-on_fake)).mean()
