"""HPSv3: which of two pictures people would prefer for a prompt, by a Qwen2-VL-7B that was trained on their choices.

Facts from the package hpsv3 1.0.0, which is not needed: the picture is resized to about 256 x 28 x 28 pixels, the
question ends with the token `<|Reward|>`, and a head on that token's state gives mean and log-deviation of a normal;
the score is the mean, about 5 to 15 for good pictures (the reference divides it by 15). Positions are
counted through text and picture alike, as that package does under the transformers release it pins; Qwen2-VL's own
two-dimensional ones give other scores. What follows the token cannot be seen by it and is left out.

The shipped question is in our words, so scores differ from published ones; `instruction` takes the published wording.
A picture more than 200 times as long as wide is squeezed to that. "<|" in a prompt is broken up: it begins the
model's own tokens.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import Qwen2VLConfig, Qwen2VLModel

from realgen.core.errors import ConfigError, ModelError
from realgen.core.spec import Machine, Spec
from realgen.core.types import Score, ScorerInfo
from realgen.hub.device import pick_device, pick_dtype
from realgen.hub.names import expand, find_local
from realgen.scorers._checkpoint import find, read_tensors, shape_of
from realgen.scorers._pixels import CLIP_MEAN, CLIP_STD
from realgen.scorers._scoring import score_batch
from realgen.scorers._weights import fill

PIXELS = 256 * 28 * 28
"""Pixels that every picture is resized to, as nearly as whole patches allow."""

REWARD_TOKEN, PROMPT_MARK = "<|Reward|>", "{text_prompt}"

_HEAD = (0, 3, 5)  # linear layers of the head: ReLU and dropout after the first, ReLU after the second
_MOST_ELONGATED = 200


class Options(Spec):
    """The reward model, what it was trained from, and the question."""

    model: str | None = None
    """Folder or file of HPSv3's weights; a card sets it."""

    base: str = "Qwen/Qwen2-VL-7B-Instruct"
    """Folder or hub id with the configuration and the tokenizer of the model that it was trained from."""

    instruction: str | None = None
    """Text file with the question, {text_prompt} and <|Reward|> once each; null takes the shipped one."""


@dataclass(frozen=True)
class Patches:
    """How a picture becomes patches: resized (bicubic) to whole merged patches of `pixels` in all, cut, normalised."""

    patch: int = 14
    merge: int = 2
    frames: int = 2
    pixels: int = PIXELS

    def __call__(self, image: Image.Image) -> Tensor:
        """(rows / merge, columns / merge, merge * merge, 3 * frames * patch * patch) of an RGB image."""
        width, height = self.fitted(image.width, image.height)
        resized = np.array(image.resize((width, height), Image.Resampling.BICUBIC))
        normalised = (torch.from_numpy(resized).float() / 255 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
        side = self.patch * self.merge
        grid = normalised.view(height // side, self.merge, self.patch, width // side, self.merge, self.patch, 3)
        patches = grid.permute(0, 3, 1, 4, 6, 2, 5)  # rows, columns, rows and columns of merge, channel, rows, columns
        repeated = patches.unsqueeze(5).expand(-1, -1, -1, -1, -1, self.frames, -1, -1)
        return repeated.flatten(4).flatten(2, 3)

    def fitted(self, width: int, height: int) -> tuple[int, int]:
        """Width and height in whole merged patches: rounded, then scaled down or up to `pixels` where they differ."""
        side = self.patch * self.merge
        wide, high = max(width, height / _MOST_ELONGATED), max(height, width / _MOST_ELONGATED)
        columns, rows = max(1, round(wide / side)), max(1, round(high / side))
        if columns * rows * side**2 > self.pixels:
            shrink = math.sqrt(wide * high / self.pixels)
            columns, rows = (max(1, math.floor(edge / shrink / side)) for edge in (wide, high))
        elif columns * rows * side**2 < self.pixels:
            grow = math.sqrt(self.pixels / (wide * high))
            columns, rows = (math.ceil(edge * grow / side) for edge in (wide, high))
        return columns * side, rows * side


class Hpsv3:
    """The reward's mean of each image and its prompt."""

    info: ScorerInfo

    def __init__(
        self, model: Qwen2VLModel, head: nn.Module, tokenizer: Any, *, question: str, batch: int, source: str
    ) -> None:
        self._model, self._head, self._tokenizer = model, head, tokenizer
        self._question, self._batch = question, batch
        vision = model.config.vision_config
        self._patches = Patches(vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)
        _check_template(self._tokens, source)
        reach = bound(model, head)
        self.info = ScorerInfo(-reach, reach, is_detector=False, is_held_out=False, licence="unknown", source=source)

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[Score]:
        """One Score an image."""
        return score_batch(images, prompts, self._values, prepare=self._patches, batch=self._batch, needs_prompt=True)

    def _values(self, prepared: list[Tensor], prompts: list[str]) -> list[float]:
        counts = [patches.shape[0] * patches.shape[1] for patches in prepared]
        tokens = [self._tokens(prompt, count) for prompt, count in zip(prompts, counts, strict=True)]
        device, ends = self._model.device, torch.tensor([len(row) - 1 for row in tokens])
        # Attention looks back alone and a row's last own state is read: what fills up a row is never seen.
        ids = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in tokens], batch_first=True).to(device)  # (B, T)
        merge = self._patches.merge
        grids = torch.tensor([[1, patches.shape[0] * merge, patches.shape[1] * merge] for patches in prepared])
        states = self._model(
            input_ids=ids,
            position_ids=torch.arange(ids.shape[1], device=device).expand(3, *ids.shape),
            pixel_values=torch.cat([patches.flatten(0, 2) for patches in prepared]).to(device),
            image_grid_thw=grids.to(device),
            use_cache=False,
        ).last_hidden_state  # (B, T, D)
        read = states[torch.arange(len(ends)), ends]
        means: list[float] = self._head(read.float())[:, 0].tolist()
        return means

    def _tokens(self, prompt: str, num_patches: int) -> list[int]:
        """Tokens of the chat up to the reward token, the picture's token once for every merged patch."""
        question = self._question.replace(PROMPT_MARK, prompt.replace("<|", "< |"))
        content = [{"type": "image"}, {"type": "text", "text": question}]
        chat = self._tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
        ids: list[int] = self._tokenizer(chat, add_special_tokens=False).input_ids
        ids = ids[: ids.index(self._tokenizer.convert_tokens_to_ids(REWARD_TOKEN)) + 1]
        picture = ids.index(self._model.config.image_token_id)
        return [*ids[:picture], *ids[picture : picture + 1] * num_patches, *ids[picture + 1 :]]


def bound(model: Qwen2VLModel, head: nn.Module) -> float:
    """What no score leaves, far beyond those seen: the last norm bounds the state's length, each layer stretches it."""
    scale = model.language_model.norm.weight.float()
    length = scale.abs().max() * len(scale) ** 0.5 * 1.01  # rounding
    for layer in (head[place] for place in _HEAD):
        length = length * layer.weight.norm() + layer.bias.norm()
    return float(length)


def build(options: Options, machine: Machine) -> Hpsv3:
    """A scorer from options; ModelError where the files are missing, damaged or something else."""
    if options.model is None:
        raise ConfigError("hpsv3: no model", hint="give card=hps-v3 or options.model=PATH")
    question = _question(options.instruction)
    config, tokenizer = _base(options.base)
    body, top = _renamed(read_tensors(find(options.model)))
    words = shape_of(body, "language_model.embed_tokens.weight", source=options.model)[0]
    config.text_config.vocab_size = words
    if len(tokenizer) > words:
        message = f"{options.model} knows {words} tokens, the tokenizer of {options.base} {len(tokenizer)}"
        raise ModelError(message, hint="set options.base to the model that it was trained from")
    dtype = str(pick_dtype(machine, pick_device(machine))).removeprefix("torch.")
    as_asked, in_float32 = (machine.model_copy(update={"dtype": name}) for name in (dtype, "float32"))
    model = fill(lambda: Qwen2VLModel(config), body, source=options.model, machine=as_asked)
    above = f"the rm_head of {options.model}"
    shapes = [shape_of(top, f"{place}.weight", source=above) for place in _HEAD]
    head = fill(lambda: _head(shapes), top, source=above, machine=in_float32)
    return Hpsv3(model, head, tokenizer, question=question, batch=machine.batch, source=options.model)


def _head(shapes: Sequence[torch.Size]) -> nn.Module:
    first, second, third = (nn.Linear(wide, narrow) for narrow, wide in shapes)
    return nn.Sequential(first, nn.ReLU(), nn.Identity(), second, nn.ReLU(), third)


def _renamed(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The body's tensors under the names of transformers 4.52 and later, and the head's; lm_head is not used."""
    body, head = {}, {}
    for key, tensor in tensors.items():
        name = key.removeprefix("model.")
        if key.startswith("rm_head."):
            head[key.removeprefix("rm_head.")] = tensor
        elif name.startswith(("visual.", "language_model.")):
            body[name] = tensor
        elif not key.startswith("lm_head."):
            body[f"language_model.{name}"] = tensor
    return body, head


def _check_template(tokens: Callable[[str, int], list[int]], source: str) -> None:
    """The tokenizer must write chats, with a picture where the question has one; ModelError where it does not."""
    try:
        tokens("", 1)
    except ValueError as error:
        hint = "set options.base to a folder of Qwen2-VL-7B-Instruct"
        raise ModelError(
            f"{source}: the chat template of its base shows no picture, or is missing", hint=hint
        ) from error


def _question(file: str | None) -> str:
    if file is None:
        return (resources.files("realgen") / "prompts" / "hpsv3.md").read_text(encoding="utf-8")
    try:
        question = expand(file).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the instruction {file}: {error}", hint="give a UTF-8 text file") from error
    for mark in (PROMPT_MARK, REWARD_TOKEN):
        if question.count(mark) != 1:
            raise ConfigError(f"the instruction {file} must hold {mark} once", hint="see the shipped prompts/hpsv3.md")
    return question


def _base(name: str) -> tuple[Qwen2VLConfig, Any]:
    from transformers import AutoTokenizer

    source = str(find_local(name) or name)
    try:
        config = Qwen2VLConfig.from_pretrained(source)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, LookupError) as error:
        said = " ".join(str(error).split())[:200]
        raise ModelError(f"cannot load {name}: {said}", hint="set options.base to a folder of Qwen2-VL-7B") from error
    tokenizer.add_tokens([REWARD_TOKEN], special_tokens=True)
    return config, tokenizer
