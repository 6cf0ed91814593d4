"""Alignment with the prompt, or preference, by an image and a text encoder: CLIP, LongCLIP, PickScore, HPSv2.1.

The score is the cosine of the two embeddings times `scale`. What others report of the same models:
CLIP, exp(logit_scale) = 100 times the cosine (the reference divides that by 30); PickScore, exp(logit_scale) times the
cosine, about 20 (the reference divides by 26); HPSv2.1, the cosine, in tables 100 times; LongCLIP, here the cosine. The
reference takes LongCLIP's plain dot product over 100, which an image can raise by its embedding's length alone: ours is
normalised. A text longer than the model reads is cut, its end token kept, as the reference does, and counted in
`num_truncated`. The text is not cleaned (HTML entities, broken Unicode) as OpenAI's tokenizer does.
"""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from PIL.Image import Image
from pydantic import Field
from torch import Tensor
from transformers import CLIPModel

from realgen.core.errors import ConfigError, ModelError
from realgen.core.spec import Machine, Spec
from realgen.core.types import Score, ScorerInfo
from realgen.hub.names import find_local
from realgen.scorers._checkpoint import find
from realgen.scorers._clip import embed_images, load_clip, unit
from realgen.scorers._pixels import Preprocess
from realgen.scorers._scoring import score_batch

CACHED_TEXTS = 4096
"""Texts whose embeddings are kept, those used last."""


class Options(Spec):
    """The two towers and the score's scale."""

    model: str | None = None
    """Folder, file or hub id of a CLIP as transformers, OpenAI, open_clip or Long-CLIP lay it out; a card sets it."""

    tokenizer: str | None = None
    """Folder or hub id of its tokenizer; null looks beside the weights."""

    scale: float | None = Field(default=1.0, gt=0)
    """What the cosine is multiplied by; null takes the checkpoint's own exp(logit_scale)."""

    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    """Activation of a checkpoint without config.json: quick_gelu in OpenAI's, gelu in open_clip's larger ones."""

    vision_head_width: int = Field(default=64, ge=1)
    """Width of an image tower's head in a checkpoint without config.json: 80 in a ViT-H-14."""


class DualEncoder:
    """Scores in [-scale, scale]: scale times the cosine of image and prompt."""

    num_truncated = 0
    """Scored prompts that were longer than the model reads."""

    def __init__(
        self, model: CLIPModel, tokenizer: Any, *, preprocess: Preprocess, scale: float, batch: int, source: str
    ) -> None:
        self.module = model
        self.info = ScorerInfo(-scale, scale, is_detector=False, is_held_out=False, licence="unknown", source=source)
        self._tokenizer, self._end = tokenizer, _end_token(model, tokenizer, source)
        self._preprocess, self._scale, self._batch = preprocess, scale, batch
        self._texts: OrderedDict[str, Tensor] = OrderedDict()

    @torch.no_grad()
    def __call__(self, images: Sequence[Image], prompts: Sequence[str]) -> list[Score]:
        """One Score an image: how well it fits its prompt."""
        return score_batch(
            images, prompts, self._values, prepare=self._preprocess, batch=self._batch, needs_prompt=True
        )

    def differentiable(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) of pixels (B, 3, H, W) in [0, 1], with gradients to the pixels alone.

        The protocol's `differentiable` takes no prompts; a score that needs them takes them here, one an image.
        """
        return self._scale * self._cosines(self._preprocess.differentiable(pixels), prompts)

    def embed_texts(self, prompts: Sequence[str]) -> Tensor:
        """Unit embeddings (B, D); those of texts that were seen lately are kept."""
        missing = [text for text in dict.fromkeys(prompts) if text not in self._texts]
        for start in range(0, len(missing), self._batch):
            chunk = missing[start : start + self._batch]
            self._texts.update(zip(chunk, self._embed_texts(chunk), strict=True))
        for text in prompts:
            self._texts.move_to_end(text)
        found = torch.stack([self._texts[text] for text in prompts])
        while len(self._texts) > CACHED_TEXTS:
            self._texts.popitem(last=False)
        return found

    def tokens(self, text: str) -> list[int]:
        """Tokens of `text` with those of its start and end, as many as the model reads; the last is always the end."""
        found = self._all_tokens(text)
        limit = self._max_tokens
        return found if len(found) <= limit else [*found[: limit - 1], self._end]

    def _all_tokens(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, truncation=False, verbose=False).input_ids
        return ids

    @property
    def _max_tokens(self) -> int:
        limit: int = self.module.config.text_config.max_position_embeddings
        return limit

    @torch.no_grad()
    def _embed_texts(self, texts: list[str]) -> Tensor:
        tokens = [self.tokens(text) for text in texts]
        longest = max(map(len, tokens))
        # Attention looks back alone and the state at the first end token is read: what fills up a row is never seen.
        filled = [[*row, *[self._end] * (longest - len(row))] for row in tokens]
        ids = torch.tensor(filled, device=self.module.text_projection.weight.device)
        return unit(self.module.text_projection(self.module.text_model(input_ids=ids).pooler_output))

    def _values(self, prepared: list[Tensor], prompts: list[str]) -> list[float]:
        self.num_truncated += sum(len(self._all_tokens(text)) > self._max_tokens for text in prompts)
        cosines: list[float] = self._cosines(torch.stack(prepared), prompts).clamp(-1, 1).tolist()
        return [self._scale * cosine for cosine in cosines]

    def _cosines(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        return (embed_images(self.module, pixels) * self.embed_texts(prompts)).sum(dim=-1)


def build(options: Options, machine: Machine) -> DualEncoder:
    """A scorer from options; ModelError where the files are missing, damaged or no CLIP."""
    if options.model is None:
        raise ConfigError("dual_encoder: no model", hint="give card=NAME or options.model=PATH")
    path = find(options.model)
    model, preprocess = load_clip(
        path, machine, activation=options.activation, vision_head_width=options.vision_head_width
    )
    scale = model.logit_scale.exp().item() if options.scale is None else options.scale
    tokenizer = _load_tokenizer(options.tokenizer, path)
    return DualEncoder(model, tokenizer, preprocess=preprocess, scale=scale, batch=machine.batch, source=options.model)


def _load_tokenizer(name: str | None, beside: Path) -> Any:
    from transformers import AutoTokenizer

    folder = str(beside if name is None else find_local(name, what="tokenizer") or name)
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, LookupError) as error:
        hint = "set options.tokenizer, such as openai/clip-vit-large-patch14 (needs the hub) or a folder"
        said = " ".join(str(error).split())[:200]
        raise ModelError(f"no tokenizer in {folder}: {said}", hint=hint) from error


def _end_token(model: CLIPModel, tokenizer: Any, source: str) -> int:
    """The token that ends every text, which must be the one at which the model reads the text's embedding."""
    config = model.config.text_config
    # Old configurations say 2 and mean the highest token (transformers, pull request 24773).
    read_at = config.vocab_size - 1 if config.eos_token_id == 2 else config.eos_token_id
    end: int = tokenizer("").input_ids[-1]
    if end != read_at or len(tokenizer) > config.vocab_size:
        raise ModelError(
            f"{source} reads texts at token {read_at} of {config.vocab_size}; its tokenizer ends them with {end}",
            hint="set options.tokenizer to the tokenizer that the model was trained with",
        )
    return end
