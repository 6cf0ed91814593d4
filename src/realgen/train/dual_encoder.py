"""Trains a small image-text dual encoder of CLIP's class on captioned photographs: how well a picture fits its prompt.

The text tower starts from a generator's CLIP text encoder, which already knows words; the image tower starts fresh.
Knows no generator and nothing that was generated.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig

from realgen.core.errors import ModelError
from realgen.train.captions import write_caption
from realgen.train.classifier import augment
from realgen.train.facts import describe
from realgen.train.optimizers import MuonAdamW
from realgen.train.photographs import Photograph, to_tensor
from realgen.train.precision import computing_in
from realgen.train.run import warmup_cosine
from realgen.train.single import SingleModelTrainer
from realgen.train.vocabulary import vocabulary

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""CLIP's own normalisation, so that the exported folder is read as any CLIP is."""
ADAM_NAMES = ("*embedding*", "*logit_scale*")
HUMAN_CAPTIONS = 2
"""Photographs with so many captions or more were described by people."""


def build_dual_encoder(text_model: CLIPTextModel, *, side: int) -> CLIPModel:
    """A fresh CLIP of some 4 million parameters for `side` pixels, its text tower a copy of `text_model`."""
    vision = CLIPVisionConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=3,
        image_size=side,
        patch_size=side // 8,
        hidden_act="gelu",
    )
    config = CLIPConfig(
        text_config={name: value for name, value in text_model.config.to_dict().items() if name != "_name_or_path"},
        vision_config=vision.to_dict(),
        projection_dim=text_model.config.hidden_size,
    )
    model = CLIPModel(config)
    source = {name.removeprefix("text_model."): value for name, value in text_model.state_dict().items()}
    model.text_model.load_state_dict(source)
    return model


class DualEncoderTrainer(SingleModelTrainer):
    """One dual encoder, its optimiser and its average."""

    def __init__(
        self,
        model: CLIPModel,
        tokenizer: CLIPTokenizer,
        photographs: Sequence[Photograph],
        held_out: Sequence[Photograph],
        *,
        side: int,
        steps: int,
        batch: int,
        learning_rate: float,
        ema_decay: float,
        seed: int,
    ) -> None:
        self.optimizer = MuonAdamW(model.named_parameters(), lr=learning_rate, weight_decay=0.02, adam_names=ADAM_NAMES)
        super().__init__(model, self.optimizer, ema_decay=ema_decay)
        self.tokenizer, self.photographs, self.held_out = tokenizer, photographs, held_out
        self.steps, self.batch, self.learning_rate, self.seed = steps, batch, learning_rate, seed
        self.facts = [describe(photograph) for photograph in photographs]
        self.pixels = np.stack([_square(photograph.pixels, side) for photograph in photographs])
        self.held_out_pixels = np.stack([_square(photograph.pixels, side) for photograph in held_out])

    def step(self, index: int) -> Mapping[str, float]:
        """One optimiser step on photographs and captions that depend on (seed, index) alone."""
        rng = np.random.default_rng((self.seed, index))
        chosen = rng.choice(len(self.photographs), size=self.batch, replace=False)
        captions = [write_caption(self.photographs[place], self.facts[place], rng) for place in chosen]
        pixels = _normalised(augment(to_tensor(list(self.pixels[chosen])), rng).to(self.device))
        self.model.train()
        with computing_in(self.dtype, self.device):
            images, texts = self._embed_images(pixels), self._embed_texts(captions)
        loss = contrastive_loss(images.float(), texts.float(), captions, scale=self.model.logit_scale.exp())
        loss.backward()
        self.optimizer.clip(1.0)
        share = warmup_cosine(index, steps=self.steps, warmup=min(100, self.steps // 4))
        self.optimizer.step(self.learning_rate * share)
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=4.6)
        self.ema.update(self.model)
        return {"loss": loss.item(), "scale": self.model.logit_scale.exp().item()}

    def _embed_images(self, pixels: Tensor) -> Tensor:
        pooled = self.model.vision_model(pixel_values=pixels).pooler_output
        return F.normalize(self.model.visual_projection(pooled), dim=-1)

    def _embed_texts(self, texts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(self.device)
        pooled = self.model.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output
        return F.normalize(self.model.text_projection(pooled), dim=-1)

    @torch.no_grad()
    def evaluate(self) -> Mapping[str, float]:
        """Recall at 1 and 5 among held-out photographs with human captions, and zero-shot category accuracy.

        A photograph's category is that of the class whose name fits it best, among the classes held out.
        """
        self.ema.swap(self.model)
        self.model.eval()
        pixels = to_tensor(list(self.held_out_pixels)).split(64)
        images = torch.cat([self._embed_images(_normalised(chunk.to(self.device))) for chunk in pixels])
        described = [place for place, one in enumerate(self.held_out) if len(one.captions) >= HUMAN_CAPTIONS]
        figures: dict[str, float] = {}
        if described:
            texts = self._embed_texts([self.held_out[place].captions[0] for place in described])
            figures |= recalls(texts @ images[described].T)
        named = [place for place, one in enumerate(self.held_out) if one.category]
        classes = sorted({(str(self.held_out[place].category), self.held_out[place].cls) for place in named})
        if classes:
            texts = self._embed_texts([f"a photo of {_name(category, cls)}" for category, cls in classes])
            nearest = (images[named] @ texts.T).argmax(1).tolist()
            hits = [
                classes[found][0] == self.held_out[place].category for place, found in zip(named, nearest, strict=True)
            ]
            figures["zero_shot"] = sum(hits) / len(hits)
        self.ema.swap(self.model)
        return figures

    def preview(self) -> list[Image.Image]:
        """Nothing to see."""
        return []

    def export(self, folder: Path) -> None:
        """Write the average in bfloat16 and the tokenizer, as a CLIP folder."""
        with self.ema.applied(self.model):
            copy.deepcopy(self.model).to(torch.bfloat16).save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def patch_encoder(folder: Path, *, device: torch.device) -> tuple[Callable[[Sequence[Image.Image]], Tensor], int]:
    """What turns images into the patch tokens (B, tokens, F) of an exported encoder, and F.

    They are taken before its last layer: what that gives for patches is read by nothing, so it was never trained.
    ModelError where `folder` is missing, damaged or no CLIP.
    """
    hint = "give the model folder of a run of alignment-tiny"
    try:
        model, found = CLIPModel.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        said = " ".join(str(error).split())[:200]
        raise ModelError(f"cannot open a CLIP in {folder}: {said}", hint=hint) from error
    if found["missing_keys"]:
        raise ModelError(f"cannot open a CLIP in {folder}: it lacks {min(found['missing_keys'])}", hint=hint)
    model.eval().to(device)
    side = model.config.vision_config.image_size

    @torch.no_grad()
    def encode(images: Sequence[Image.Image]) -> Tensor:
        pixels = to_tensor([_square(np.asarray(image), side) for image in images]).to(model.device)
        pixels = _normalised(pixels)
        states: Tensor = model.vision_model(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]
        return states[:, 1:]

    return encode, int(model.config.vision_config.hidden_size)


def contrastive_loss(images: Tensor, texts: Tensor, captions: Sequence[str], *, scale: Tensor) -> Tensor:
    """CLIP's loss (Radford et al. 2021) of unit vectors (B, D); pairs of the same caption share the target evenly."""
    alike = torch.tensor([[one == other for other in captions] for one in captions]).float().to(images.device)
    target = alike / alike.sum(1, keepdim=True)
    logits = scale * images @ texts.T
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def recalls(similarity: Tensor) -> dict[str, float]:
    """Share of texts (rows) whose own image (the diagonal) is first, and among the first five; a tie is a miss."""
    place = (similarity >= similarity.diagonal()[:, None]).sum(1) - 1
    return {"recall_1": float((place < 1).float().mean()), "recall_5": float((place < 5).float().mean())}


def _name(category: str, cls: str) -> str:
    return vocabulary().word(cls).names[0] if cls else category


def _square(pixels: np.ndarray, side: int) -> np.ndarray:
    if pixels.shape[:2] == (side, side):
        return pixels
    resized: np.ndarray = np.array(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))
    return resized


def _normalised(pixels: Tensor) -> Tensor:
    mean, std = (pixels.new_tensor(part).view(3, 1, 1) for part in (MEAN, STD))
    return ((pixels + 1) / 2 - mean) / std
