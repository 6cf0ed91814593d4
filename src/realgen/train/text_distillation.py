"""Gives fresh text encoders a sense of words before they see a picture.

Both encoders of a FLUX.1 folder learn to predict a sentence encoder's embedding of the same text, so that a word
which no caption holds lies near its relatives. The heads that compare are thrown away.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from diffusers import FluxPipeline
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

from realgen.train.optimizers import MuonAdamW
from realgen.train.precision import computing_in
from realgen.train.run import warmup_cosine
from realgen.train.scaffold import save_pipeline


class Teacher(Protocol):
    """What gives texts a meaning."""

    @property
    def width(self) -> int:
        """Length of an embedding."""
        ...

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (B, width)."""
        ...


class SentenceTeacher:
    """A sentence encoder from a local folder (MiniLM's class): texts to unit vectors (B, width)."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder).eval()
        self.width: int = self.model.config.hidden_size

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """The mean of the last states over the words, normalised."""
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, max_length=96, return_tensors="pt")
        states = self.model(**tokens).last_hidden_state.float()
        mask = tokens.attention_mask[..., None]
        return F.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)

    def words(self) -> list[str]:
        """The whole lower-case words of its vocabulary."""
        return sorted(
            word for word in self.tokenizer.get_vocab() if word.isalpha() and word.islower() and len(word) > 2
        )


class TextDistiller:
    """Trains `pipeline`'s two text encoders towards the teacher's embeddings."""

    dtype = torch.bfloat16
    """What matrix products compute in; wiring sets the machine's."""

    def __init__(
        self,
        pipeline: FluxPipeline,
        teacher: Teacher,
        texts: Sequence[str],
        held_out: Sequence[str],
        *,
        steps: int,
        batch: int,
        learning_rate: float,
        seed: int,
    ) -> None:
        self.pipeline, self.teacher, self.texts, self.held_out = pipeline, teacher, texts, held_out
        self.steps, self.batch, self.learning_rate, self.seed = steps, batch, learning_rate, seed
        clip, t5 = pipeline.text_encoder, pipeline.text_encoder_2
        self.module = nn.ModuleDict(
            {
                "clip": clip,
                "t5": t5,
                "clip_head": nn.Linear(clip.config.hidden_size, teacher.width),
                "t5_head": nn.Linear(t5.config.d_model, teacher.width),
            }
        ).to(pipeline.device)
        self.optimizer = MuonAdamW(
            self.module.named_parameters(),
            lr=learning_rate,
            weight_decay=0.0,
            adam_names=("*embed*", "*shared*", "*head*", "*relative*"),
        )

    def step(self, index: int) -> Mapping[str, float]:
        """One optimiser step on texts that depend on (seed, index) alone."""
        rng = np.random.default_rng((self.seed, index))
        texts = [self.texts[int(i)] for i in rng.integers(len(self.texts), size=self.batch)]
        with computing_in(self.dtype, self.pipeline.device):
            clip, t5 = self._students(texts)
        clip_loss, t5_loss = _contrast(clip.float(), t5.float(), self.teacher(texts).to(self.pipeline.device))
        (clip_loss + t5_loss).backward()
        self.optimizer.clip(1.0)
        self.optimizer.step(self.learning_rate * warmup_cosine(index, steps=self.steps, warmup=50, floor=0.02))
        return {"clip_loss": clip_loss.item(), "t5_loss": t5_loss.item()}

    def _students(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        clip_ids, t5_ids, mask = tokenize(self.pipeline, texts)
        pooled = self.module["clip"](clip_ids).pooler_output
        states = self.module["t5"](t5_ids)[0]  # (B, T, D), padded without a mask, as FluxPipeline does
        mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return self.module["clip_head"](pooled), self.module["t5_head"](mean)

    @torch.no_grad()
    def evaluate(self) -> Mapping[str, float]:
        """Mean cosine to the teacher on held-out texts."""
        targets = self.teacher(self.held_out).to(self.pipeline.device)
        clip, t5 = self._students(self.held_out)
        return {
            "clip_cosine": float(F.cosine_similarity(clip, targets).mean()),
            "t5_cosine": float(F.cosine_similarity(t5, targets).mean()),
        }

    def preview(self) -> list[Image.Image]:
        """Nothing to see."""
        return []

    def export(self, folder: Path) -> None:
        """Write the whole FLUX.1 folder, the flow still untrained."""
        save_pipeline(self.pipeline, folder, dtype=torch.float32)

    def state_dict(self) -> dict[str, Any]:
        """Encoders, heads and optimiser."""
        return {"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])


def with_words(texts: Sequence[str], words: Sequence[str], *, seed: int) -> list[str]:
    """`texts` sentence by sentence, and each word in a few plain phrasings and between other words, shuffled."""
    sentences = [part for text in texts for part in (re.split(r"(?<=[.!?]) +", text) if len(text) > 300 else [text])]
    rng = np.random.default_rng(seed)
    frames = ("{}", "a {}", "a photo of a {}", "{} and {}", "a {} with a {}", "the {} of a {}", "a {} {}")
    phrased = [
        frames[int(rng.integers(len(frames)))].format(word, words[int(rng.integers(len(words)))])
        for word in words
        for _ in range(4)
    ]
    joined = [*sentences, *phrased]
    return [joined[int(index)] for index in rng.permutation(len(joined))]


def tokenize(
    pipeline: FluxPipeline,
    texts: Sequence[str],
    *,
    length: int = 64,
    clip_padding: Literal["max_length", "longest"] = "max_length",
) -> tuple[Tensor, Tensor, Tensor]:
    """Ids as FluxPipeline makes them: CLIP's (B, 77), T5's (B, length), and a mask of T5's real tokens (B, length).

    CLIP's attention is causal, so its ids may as well end with the longest text's: the pooled state is the same.
    """
    clip = pipeline.tokenizer(list(texts), padding=clip_padding, max_length=77, truncation=True, return_tensors="pt")
    t5 = pipeline.tokenizer_2(
        list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    device = pipeline.device
    return clip.input_ids.to(device), t5.input_ids.to(device), t5.attention_mask.float().to(device)


def _contrast(clip: Tensor, t5: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine distance to the own target, and telling it from the batch's other targets (temperature 0.05)."""
    losses = []
    for student in (clip, t5):
        similarity = F.normalize(student, dim=-1) @ targets.T
        own = 1 - similarity.diagonal().mean()
        losses.append(own + 0.1 * F.cross_entropy(similarity / 0.05, torch.arange(len(targets), device=targets.device)))
    return losses[0], losses[1]
