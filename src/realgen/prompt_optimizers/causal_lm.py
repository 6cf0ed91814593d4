"""Rewrites with any Hugging Face instruct model, with or without a LoRA, on this machine.

Sampling is the Gumbel-max trick: the likeliest token after adding Gumbel noise is a sample of the softmax. The noise
of a prompt comes from a generator of its own, on the CPU, so its rewrite is the same in any batch and on any device,
as far as the logits are (in bfloat16 a batch rounds differently).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from realgen.core.errors import ConfigError, ModelError, unloadable
from realgen.core.protocols import PromptOptimizer
from realgen.core.spec import Machine, Spec
from realgen.core.types import Rewrite
from realgen.hub.device import pick_device, pick_dtype
from realgen.hub.integrity import check_folder
from realgen.hub.names import expand, find_local
from realgen.prompt_optimizers._answer import judge
from realgen.prompt_optimizers._question import messages, shipped_instruction


class Options(Spec):
    """The model and how it samples."""

    model: str | None = None
    """Folder of the model, or its id on the Hugging Face hub; a card fills it in."""

    lora: str | None = None
    """Folder of a LoRA adapter that peft saved for this model."""

    instruction: str | None = None
    """What the model is told to do; null takes the shipped instruction."""

    temperature: float = Field(default=0.7, ge=0)
    """Spread of the sampling; 0 takes the likeliest word, whatever the seed."""

    top_p: float = Field(default=0.9, gt=0, le=1)
    """Sample among the likeliest words that together have this probability."""

    max_tokens: int = Field(default=120, ge=1)
    """Longest answer in the model's tokens, thoughts included."""

    max_words: int = Field(default=45, ge=3)
    """Longest text in words."""

    thinking: bool = False
    """Let a model that can think before it writes do so; it needs a max_tokens of 1024 or more."""


class GumbelMax:
    """A logits processor that turns greedy decoding into sampling, with one random generator a row."""

    def __init__(self, seeds: Sequence[int], *, temperature: float, top_p: float) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._temperature = temperature
        self._top_p = top_p

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (B, V) plus noise: their argmax is a sample at this temperature within the top p."""
        del input_ids
        if self._temperature == 0:
            return scores
        logits = keep_top_p(scores.float() / self._temperature, self._top_p)
        noise = torch.stack([gumbel(logits.shape[-1], generator) for generator in self._generators])
        return logits + noise.to(logits.device)


def gumbel(size: int, generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise (size,): minus the logarithm of a standard exponential draw."""
    drawn = torch.empty(size).exponential_(generator=generator)
    return -drawn.clamp_min(torch.finfo(drawn.dtype).tiny).log()


def keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Logits (B, V) with all but the likeliest tokens that together reach `top_p` at minus infinity."""
    if top_p == 1:
        return logits
    ranked, order = logits.sort(dim=-1, descending=True, stable=True)
    probability = ranked.softmax(dim=-1)
    is_beyond = probability.cumsum(dim=-1) - probability >= top_p  # the likeliest has 0 before it: never beyond
    return logits.masked_fill(is_beyond.scatter(-1, order, is_beyond), float("-inf"))


class CausalLM:
    """An instruct model as a prompt optimiser."""

    def __init__(self, tokenizer: Any, model: Any, *, options: Options, batch: int) -> None:
        self._tokenizer = tokenizer
        self._model = model
        self._options = options
        self._batch = batch
        self._instruction = options.instruction or shipped_instruction()

    def __call__(self, prompts: Sequence[str], *, seeds: Sequence[int]) -> list[Rewrite]:
        """One rewrite a prompt, in order; a prompt that does not fit the model's window is kept, with the reason."""
        asked = [self._ask(prompt) for prompt in prompts]
        pairs = list(zip(asked, seeds, strict=True))
        fitting = [i for i, (text, _) in enumerate(pairs) if self._fits(text)]
        rewrites: dict[int, Rewrite] = {}
        for start in range(0, len(fitting), self._batch):
            rows = fitting[start : start + self._batch]
            texts, row_seeds = zip(*(pairs[i] for i in rows), strict=True)
            for i, (answer, is_complete) in zip(rows, self._answer(texts, seeds=row_seeds), strict=True):
                rewrites[i] = judge(answer, prompts[i], max_words=self._options.max_words, is_complete=is_complete)
        kept = "the prompt is too long for the prompt model"
        return [rewrites.get(i) or Rewrite(text=prompt, reason=kept) for i, prompt in enumerate(prompts)]

    def _ask(self, prompt: str) -> str:
        """The chat, as the model's own template writes it."""
        from jinja2 import TemplateError

        try:
            return self._render(messages(self._instruction, prompt))
        except TemplateError:  # some templates refuse a system role
            return self._render(messages(self._instruction, prompt, has_system=False))

    def _render(self, chat: list[dict[str, str]]) -> str:
        rendered: str = self._tokenizer.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=True, enable_thinking=self._options.thinking
        )
        return rendered

    def _fits(self, text: str) -> bool:
        window = self._model.config.get_text_config().max_position_embeddings
        num_tokens = len(self._tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
        return bool(num_tokens + self._options.max_tokens <= window)

    def _answer(self, texts: Sequence[str], *, seeds: Sequence[int]) -> list[tuple[str, bool]]:
        """One answer a text, and whether the model ended it itself."""
        inputs = self._tokenizer(list(texts), return_tensors="pt", padding=True, add_special_tokens=False)
        ids = inputs["input_ids"].to(self._model.device)  # (B, T), padded on the left
        sampler = GumbelMax(seeds, temperature=self._options.temperature, top_p=self._options.top_p)
        with torch.inference_mode():
            tokens = self._model.generate(
                input_ids=ids,
                attention_mask=inputs["attention_mask"].to(ids.device),
                max_new_tokens=self._options.max_tokens,
                logits_processor=[sampler],
            )
        written = tokens[:, ids.shape[1] :]  # (B, at most max_tokens), filled up after an end
        ends = torch.tensor(self._model.generation_config.eos_token_id, device=ids.device).reshape(-1)
        is_complete: list[bool] = torch.isin(written, ends).any(dim=1).tolist()
        return list(zip(self._tokenizer.batch_decode(written, skip_special_tokens=True), is_complete, strict=True))


def build(options: Options, machine: Machine) -> PromptOptimizer:
    """The model, loaded; ModelError where its files are damaged, missing or no instruct model."""
    if options.model is None:
        raise ConfigError("causal_lm: no model", hint="give prompt_optimizer.card=NAME or .options.model=PATH")
    if (folder := find_local(options.model)) is not None:
        check_folder(folder)
    device = pick_device(machine)
    dtype = pick_dtype(machine, device)
    if machine.dtype == "auto" and device.type == "cpu":
        dtype = torch.float32  # in bfloat16 a prompt's text changes with the prompts beside it
    tokenizer, model = _load(str(folder or options.model), dtype)
    if not tokenizer.chat_template:
        raise ModelError(f"{options.model} has no chat template", hint="choose an instruct model")
    if options.lora is not None:
        model = _with_lora(model, expand(options.lora))
    return CausalLM(tokenizer, model.to(device).eval(), options=options, batch=machine.batch)


def _load(name: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """Tokenizer (padding on the left) and model; only safetensors, and no code that came with them."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left", trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, use_safetensors=True, trust_remote_code=False)
    except (OSError, ValueError, LookupError, RuntimeError, SafetensorError) as error:
        said = " ".join(str(error).split())[:200]
        hint = "set options.model to the folder of a Hugging Face language model, or name a card: realgen list cards"
        raise unloadable(error, f"cannot load {name}: {said}", hint=hint) from error
    ends = model.generation_config.eos_token_id or model.config.eos_token_id or tokenizer.eos_token_id
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = ends[0] if isinstance(ends, list) else ends
    # A checkpoint's own sampling defaults would warn, or act behind our options' back.
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id
    )
    return tokenizer, model


def _with_lora(model: Any, folder: Path) -> Any:
    check_folder(folder)
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ModelError("a LoRA needs peft", hint="pip install peft") from error
    try:
        return PeftModel.from_pretrained(model, str(folder))
    except (OSError, ValueError, LookupError, RuntimeError) as error:
        said = " ".join(str(error).split())[:200]
        hint = "train it on this very model"
        raise unloadable(error, f"{folder} is no LoRA for this model: {said}", hint=hint) from error
