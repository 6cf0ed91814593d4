"""Flow-matching training of any FlowBackbone on captioned photographs: from scratch, in full, or as LoRA.

    loss = E || v(x_sigma, sigma, text) - (noise - data) ||^2,    sigma = shifted logit-normal

With a teacher (the model before, frozen) guidance is distilled into the guidance embedding, as FLUX.1-dev has it:

    loss = E || v(x, sigma, text; g) - [v0(x, sigma, "") + g (v0(x, sigma, text) - v0(x, sigma, ""))] ||^2

with g uniform over `distil_guidance`, and 1 in the target at noise levels above `guided_below`. With a weaker model w
beside the teacher, half of the guidance leads away from its answers (Karras et al. 2024, arXiv 2406.02507):

    target = v0(text) + (g - 1) / 2 [(v0(text) - v0("")) + (v0(text) - w(text))]

With `own_guidance` a distilled model goes on learning from photographs, and the teacher holds what is not taught.

Sources: Esser et al. 2024, arXiv 2403.03206; Meng et al. 2023, arXiv 2210.03142. Knows no model: what is trained is
what the backbone and `texts` hold.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from realgen.core.protocols import FlowBackbone, Size
from realgen.formulas.flow import Velocity
from realgen.formulas.pixels import to_images
from realgen.train.ahead import Ahead
from realgen.train.drawn import finished
from realgen.train.flow_data import Batch, FlowData
from realgen.train.optimizers import MuonAdamW
from realgen.train.own_guidance import OwnGuidance, guidance_felt
from realgen.train.precision import computing_in
from realgen.train.representation import RepresentationAlignment
from realgen.train.run import Ema, warmup_cosine

ADAM_NAMES = ("*embed*", "*shared*", "*relative*", "proj_out.*", "*norm*", "*lora*")
"""Tables, inputs, outputs and modulations, for which Muon's orthogonal updates make no sense or cost too much."""


class FlowSftTrainer:
    """Trains the backbone's module, and its text encoders where they are given a learning rate.

    `short_reader` is the same model padding its texts to a shorter length: where it is given, it reads the half of a
    batch whose texts are shorter, which saves time and teaches the model to do without the padding. `alignment` has a
    loss of its own, on the features that the batch then must hold. `elaborate` makes captions longer for the module,
    not for its teacher. `tokenize` makes of captions what the backbone encodes as well; batches then hold that.
    """

    dtype = torch.bfloat16
    """What matrix products compute in; wiring sets the machine's."""

    def __init__(
        self,
        backbone: FlowBackbone,
        texts: nn.ModuleList,
        data: FlowData,
        held_out: FlowData,
        save: Callable[[Path], None],
        *,
        steps: int,
        batch: int,
        learning_rate: float,
        text_learning_rate: float,
        caption_dropout: float,
        ema_decay: float,
        size: Size,
        hold: float = 0.0,
        short_reader: FlowBackbone | None = None,
        alignment: RepresentationAlignment | None = None,
        preview_prompts: Sequence[str] = (),
        teacher: FlowBackbone | None = None,
        weaker: FlowBackbone | None = None,
        distil_guidance: tuple[float, float] = (1.0, 6.0),
        guided_below: float = 1.0,
        own_guidance: OwnGuidance | None = None,
        elaborate: Callable[[Sequence[str], int], list[str]] | None = None,
        tokenize: Callable[[Sequence[str]], Any] | None = None,
        loaders: int = 0,
    ) -> None:
        self.backbone, self.data, self.held_out, self.save = backbone, data, held_out, save
        self.steps, self.batch, self.size, self.hold = steps, batch, size, hold
        self.short_reader, self.alignment = short_reader, alignment
        self.caption_dropout, self.preview_prompts = caption_dropout, preview_prompts
        self.teacher, self.weaker, self.distil_guidance, self.elaborate = teacher, weaker, distil_guidance, elaborate
        self.own_guidance, self.guided_below, self.tokenize = own_guidance, guided_below, tokenize
        self.module = nn.ModuleDict({"flow": backbone.module, "texts": texts})
        texts.requires_grad_(text_learning_rate > 0).eval()
        self.learning_rates = {"flow": learning_rate}
        if text_learning_rate > 0:
            self.learning_rates["texts"] = text_learning_rate
        if alignment is not None:
            self.module["alignment"] = alignment
            self.learning_rates["alignment"] = learning_rate
        self.optimizers = {
            name: MuonAdamW(self.module[name].named_parameters(), lr=rate, weight_decay=0.01, adam_names=ADAM_NAMES)
            for name, rate in self.learning_rates.items()
        }
        self.ema = Ema(self.module, ema_decay)
        self.device = next(backbone.module.parameters()).device
        self._batches = Ahead(self._batch, loaders=loaders)

    def step(self, index: int) -> Mapping[str, Tensor]:
        """One optimiser step on batch `index`."""
        batch = self._batches(index).to(self.device)
        self.module["flow"].train()  # the text encoders stay in evaluation: their dropout would draw from global chance
        losses: dict[str, Tensor] = {}
        for part, reader in self._parts(batch):
            found = {"loss": self._loss(part, index, reader).mean()}
            total = found["loss"]
            if self.alignment is not None and part.features is not None:
                with computing_in(self.dtype, self.device):
                    found["alignment_loss"] = self.alignment.loss(part.features).mean()
                total = total + self.alignment.weight * found["alignment_loss"]
            share = len(part.x) / len(batch.x)
            (total * share).backward()
            for name, value in found.items():
                losses[name] = losses.get(name, torch.zeros(())) + value.detach() * share
        norms = {f"grad_norm_{name}": optimizer.clip(1.0) for name, optimizer in self.optimizers.items()}
        share = warmup_cosine(index, steps=self.steps, warmup=min(200, self.steps // 10), hold=self.hold, floor=0.02)
        with computing_in(self.dtype, self.device):
            for name, optimizer in self.optimizers.items():
                optimizer.step(self.learning_rates[name] * share)
        self.ema.update(self.module)
        return losses | norms

    def _batch(self, index: int) -> Batch:
        batch = self.data.batch(index, count=self.batch, caption_dropout=self.caption_dropout)
        if self.elaborate is not None:
            batch = batch.reworded(self.elaborate(batch.captions, index))
        if self.tokenize is not None:
            taught = None if batch.taught is None else self.tokenize(batch.taught)
            batch = batch._replace(captions=self.tokenize(batch.captions), taught=taught)
        return batch

    def _parts(self, batch: Batch) -> list[tuple[Batch, FlowBackbone]]:
        """The batch, or its shorter and its longer half by text, with what reads their texts."""
        half = len(batch.x) // 2
        if self.short_reader is None or half == 0:
            return [(batch, self.backbone)]
        lengths = [self.backbone.num_text_tokens(caption) for caption in batch.captions]
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        fits = lengths[order[half - 1]] <= self.short_reader.max_text_tokens
        reader = self.short_reader if fits else self.backbone
        return [(batch.at(order[:half]), reader), (batch.at(order[half:]), self.backbone)]

    def _loss(self, batch: Batch, index: int, reader: FlowBackbone) -> Tensor:
        guidance: Tensor | float = 1.0
        weight: Tensor | float = 1.0
        with computing_in(self.dtype, self.device):
            if self.teacher is None:
                target = batch.target
            elif self.own_guidance is not None:
                chance = torch.Generator().manual_seed(index)
                lesson = self.own_guidance.lesson(self.backbone, self.teacher, batch, chance=chance, size=self.size)
                guidance, target, weight = lesson
            else:
                low, high = self.distil_guidance
                draw = torch.rand(len(batch.x), generator=torch.Generator().manual_seed(index)).to(self.device)
                guidance = low + (high - low) * draw
                felt = guidance_felt(guidance, batch.sigma, below=self.guided_below)
                with torch.no_grad():
                    captions = batch.captions if batch.taught is None else batch.taught
                    teach = guided_velocity(self.teacher, captions, scale=felt, size=self.size, weaker=self.weaker)
                    target = teach(batch.x, batch.sigma)
            condition = reader.encode(batch.captions)
            v = self.backbone.velocity(batch.x, batch.sigma, condition, guidance=guidance, size=self.size)
        return weight * F.mse_loss(v.float(), target.float(), reduction="none").mean((1, 2))

    @torch.compiler.set_stance("force_eager")  # other shapes than a step's are not worth compiling
    def evaluate(self) -> Mapping[str, float]:
        """The average's flow-matching loss on held-out photographs with fixed captions, noise and levels."""
        self.ema.swap(self.module)
        self.module.eval()
        with torch.no_grad():
            batch = self.held_out.fixed(min(256, len(self.held_out.photographs))).to(self.device)
            loss = self._loss(batch, 0, self.backbone).mean()
        self.ema.swap(self.module)
        return {"held_out_loss": float(loss)}

    @torch.compiler.set_stance("force_eager")
    @torch.no_grad()
    def preview(self) -> list[Image.Image]:
        """The average's pictures of the preview prompts with guidance 3 and seed 0."""
        self.ema.swap(self.module)
        self.module.eval()
        with computing_in(self.dtype, self.device):
            velocity = self._preview_velocity()
            x = self.backbone.noise([0] * len(self.preview_prompts), self.size)
            x = finished(velocity, x, self.backbone.sigmas(20, self.size))
            images = to_images(self.backbone.decode(x, self.size))
        self.ema.swap(self.module)
        return images

    def _preview_velocity(self) -> Velocity:
        if self.teacher is None:
            return guided_velocity(self.backbone, self.preview_prompts, scale=3.0, size=self.size)
        condition = self.backbone.encode(self.preview_prompts)
        return lambda x, sigma: self.backbone.velocity(x, sigma, condition, guidance=3.0, size=self.size)

    def export(self, folder: Path) -> None:
        """Write the average in the format of the model."""
        self.ema.swap(self.module)
        self.save(folder)
        self.ema.swap(self.module)

    def state_dict(self) -> dict[str, Any]:
        """Trained weights, moments and average: data and noise follow from the step."""
        return {
            "parameters": {name: value for name, value in self.module.named_parameters() if value.requires_grad},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "ema": self.ema.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.module.load_state_dict(state["parameters"], strict=False)
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.ema.load_state_dict(state["ema"])


def guided_velocity(
    backbone: FlowBackbone,
    texts: Any,
    *,
    scale: float | Tensor,
    size: Size,
    weaker: FlowBackbone | None = None,
) -> Velocity:
    """Classifier-free guidance, v(text) + (scale - 1) (v(text) - v(empty)): Ho & Salimans 2022, arXiv 2207.12598.

    With a weaker model half of it leads away from that one's answers instead: Karras et al. 2024, arXiv 2406.02507.
    """
    condition, weakly = backbone.encode(texts), None if weaker is None else weaker.encode(texts)
    nothing = cache(lambda count: backbone.encode([""] * count))
    weight = scale.view(-1, 1, 1) if isinstance(scale, Tensor) else scale

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        with_text = backbone.velocity(x, sigma, condition, guidance=1.0, size=size)
        without = backbone.velocity(x, sigma, nothing(len(x)), guidance=1.0, size=size)
        direction = with_text - without
        if weaker is not None and weakly is not None:
            weak = weaker.velocity(x, sigma, weakly, guidance=1.0, size=size)
            direction = (direction + with_text - weak) / 2
        return with_text + (weight - 1) * direction

    return velocity
