"""Qwen2.5-VL on this machine: batches of images of different sizes, each with the same question. Knows no question.

transformers' own processor class needs torchvision; this puts its parts together without it. The chat is written by
the tokenizer's template, and its one image token is repeated once for every merged patch (grid product / merge²).
Decoding is greedy and heeds none of the checkpoint's sampling defaults. In bfloat16 a batch rounds differently from
its images alone.
"""

import inspect
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL.Image import Image
from torch import Tensor

from realgen.core.errors import ConfigError, ModelError, unloadable
from realgen.core.spec import Machine
from realgen.core.types import Score
from realgen.hub.device import pick_device, pick_dtype
from realgen.hub.integrity import check_folder
from realgen.hub.names import find_local
from realgen.scorers._answers import Written

Answer = TypeVar("Answer")

_MOST_ELONGATED = 200  # the image processor refuses a longer side of more than 200 times the shorter
_MODEL_TYPE = "qwen2_5_vl"
_HINT = "give the folder of a Qwen2.5-VL model, or name a server that runs another: options.server.base_url"


class LocalViewer:
    """A Qwen2.5-VL model with its tokenizer (padding on the left) and its image processor."""

    def __init__(self, model: Any, tokenizer: Any, processor: Any, *, batch: int) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._processor = processor
        self._batch = batch
        self._image_token: str = tokenizer.convert_ids_to_tokens(model.config.image_token_id)
        self._needs_token_types = "mm_token_type_ids" in inspect.signature(type(model).forward).parameters
        self._asked("")  # a template that shows no image is said now

    def weigh(self, images: Sequence[Image], question: str, *, words: Sequence[str]) -> list[dict[str, float] | Score]:
        """The logit of each of `words` as the answer's first token, in one forward pass a batch."""
        ids = self._ids(words)

        def weigh(inputs: dict[str, Tensor]) -> list[dict[str, float]]:
            logits = self._model(**inputs, logits_to_keep=1, use_cache=False).logits  # (B, 1, V)
            rows: list[list[float]] = logits[:, -1, ids].float().tolist()
            return [dict(zip(words, row, strict=True)) for row in rows]

        return self._in_batches(images, question, weigh)

    def write(self, images: Sequence[Image], question: str, *, max_tokens: int) -> list[Written | Score]:
        """The likeliest answer to each image, token by token."""

        def write(inputs: dict[str, Tensor]) -> list[Written]:
            tokens = self._model.generate(**inputs, max_new_tokens=max_tokens)
            written = tokens[:, inputs["input_ids"].shape[1] :]  # (B, at most max_tokens), filled up after an end
            ends = torch.tensor(self._model.generation_config.eos_token_id, device=tokens.device).reshape(-1)
            is_complete: list[bool] = torch.isin(written, ends).any(dim=1).tolist()
            texts = self._tokenizer.batch_decode(written, skip_special_tokens=True)
            return [Written(*pair) for pair in zip(texts, is_complete, strict=True)]

        return self._in_batches(images, question, write)

    def _in_batches(
        self, images: Sequence[Image], question: str, answer: Callable[[dict[str, Tensor]], Sequence[Answer]]
    ) -> list[Answer | Score]:
        unseen = Score(None, reason=f"its longer side is more than {_MOST_ELONGATED} times the shorter")
        found: list[Answer | Score] = [unseen] * len(images)
        shown = [i for i, image in enumerate(images) if max(image.size) <= _MOST_ELONGATED * min(image.size)]
        for start in range(0, len(shown), self._batch):
            rows = shown[start : start + self._batch]
            with torch.inference_mode():
                answers = answer(self._inputs([images[row] for row in rows], question))
            for row, one in zip(rows, answers, strict=True):
                found[row] = one
        return found

    def _inputs(self, images: Sequence[Image], question: str) -> dict[str, Tensor]:
        """What the model reads: input_ids (B, T), and the patches of all images (P, D) with their grids (B, 3)."""
        seen = self._processor(images=list(images), input_data_format="channels_last", return_tensors="pt")
        num_tokens = seen["image_grid_thw"].prod(dim=1) // self._processor.merge_size**2  # (B,)
        chat = self._asked(question)
        texts = [chat.replace(self._image_token, self._image_token * count) for count in num_tokens.tolist()]
        tokens = self._tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        inputs = {name: tokens[name] for name in ("input_ids", "attention_mask")}
        inputs |= {name: seen[name] for name in ("pixel_values", "image_grid_thw")}
        if self._needs_token_types:  # without them newer transformers place the patches like words, silently
            inputs["mm_token_type_ids"] = (tokens["input_ids"] == self._model.config.image_token_id).int()
        return {name: tensor.to(self._model.device) for name, tensor in inputs.items()}

    def _asked(self, question: str) -> str:
        """The chat up to the answer, with one image token."""
        from jinja2 import TemplateError

        content = [{"type": "image"}, {"type": "text", "text": question}]
        try:
            chat: str = self._tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise ModelError(f"the model has no chat template for images: {_line(error)}", hint=_HINT) from error
        if chat.count(self._image_token) != 1:
            raise ModelError(f"its chat shows {chat.count(self._image_token)} images instead of one", hint=_HINT)
        return chat

    def _ids(self, words: Sequence[str]) -> list[int]:
        vocabulary = self._tokenizer.get_vocab()
        if missing := [word for word in words if word not in vocabulary]:
            hint = "choose words that are a single token: options.real_tokens, options.fake_tokens"
            raise ConfigError(f"{', '.join(missing)}: no token of the model's vocabulary", hint=hint)
        return [vocabulary[word] for word in words]


def load(name: str, machine: Machine, *, max_pixels: int | None = None) -> LocalViewer:
    """The model in a folder or on the hub, on the machine's device; ModelError where its files are not what they say.

    Only safetensors are read, and no code that came with them. `max_pixels` replaces the checkpoint's own bound.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoTokenizer, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil
    from transformers.utils import logging

    folder = find_local(name)
    source = name if folder is None else str(_model_folder(folder))
    device = pick_device(machine)
    bound = {} if max_pixels is None else {"max_pixels": max_pixels}
    settings = {"dtype": pick_dtype(machine, device), "use_safetensors": True, "output_loading_info": True}
    logging.disable_progress_bar()
    try:
        model_type = AutoConfig.from_pretrained(source, trust_remote_code=False).model_type
        if model_type != _MODEL_TYPE:
            raise ModelError(f"{name} is a model of type {model_type}, not {_MODEL_TYPE}", hint=_HINT)
        tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left", trust_remote_code=False)
        processor = Qwen2VLImageProcessorPil.from_pretrained(source, **bound)
        model, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(source, **settings)
    except (ImportError, OSError, ValueError, LookupError, RuntimeError, TypeError, SafetensorError) as error:
        raise unloadable(error, f"cannot load {name}: {_line(error)}", hint=_HINT) from error
    if missing := sorted(report["missing_keys"]):
        raise ModelError(f"{name} lacks {len(missing)} weights, such as {missing[0]}", hint="fetch the model again")
    _decode_greedily(model, tokenizer)
    return LocalViewer(model.to(device).eval().requires_grad_(False), tokenizer, processor, batch=machine.batch)


def _decode_greedily(model: Any, tokenizer: Any) -> None:
    from transformers import GenerationConfig

    ends = model.generation_config.eos_token_id or tokenizer.eos_token_id
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = ends[0] if isinstance(ends, list) else ends
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id
    )


def _model_folder(folder: Path) -> Path:
    """`folder`, or the one folder below it that holds a Qwen2.5-VL model."""
    check_folder(folder)
    if (folder / "config.json").is_file():
        return folder
    below = [file.parent for file in sorted(folder.rglob("config.json")) if _model_type(file) == _MODEL_TYPE]
    if len(below) != 1:
        raise ModelError(f"{folder} holds {len(below)} models of type {_MODEL_TYPE} instead of one", hint=_HINT)
    return below[0]


def _model_type(file: Path) -> str:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    return str(config.get("model_type", "")) if isinstance(config, dict) else ""


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
