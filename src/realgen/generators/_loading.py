"""Opens a diffusers pipeline from a folder or a hub id, for the machine at hand. Knows no particular model."""

import json
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from diffusers import DiffusionPipeline, PipelineQuantizationConfig
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from realgen.core.errors import ModelError, unloadable
from realgen.core.spec import Machine
from realgen.hub.device import pick_device, pick_dtype
from realgen.hub.fetch import check_folder
from realgen.hub.names import find_local

PipelineType = TypeVar("PipelineType", bound=DiffusionPipeline)
_LOAD_ERRORS = (ImportError, OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError)


def load_pipeline(
    cls: type[PipelineType],
    model: str,
    machine: Machine,
    *,
    lora: str | None = None,
    lora_scale: float = 1.0,
    parts: Mapping[str, Any] = MappingProxyType({}),
) -> PipelineType:
    """The pipeline in evaluation mode, frozen, on the machine's device, with its offload, tiling and quantisation.

    `parts` are components that stand in memory already, in place of the model's own.
    """
    device = pick_device(machine)
    model = str(check_model(model) or model)
    lora = None if lora is None else str(find_local(lora, what="LoRA") or lora)
    options: dict[str, Any] = {"dtype": pick_dtype(machine, device), "use_safetensors": True}
    if machine.quantize != "none":
        options["quantization_config"] = _quantization(machine)
    diffusers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()  # it warns of texts cut for CLIP; lengths are ours to check
    transformers_logging.disable_progress_bar()
    try:
        pipeline: PipelineType = cls.from_pretrained(model, **options, **parts)
    except _LOAD_ERRORS as error:
        raise unloadable(error, f"cannot load {model}: {_first_line(error)}", hint=_hint(error)) from error
    if lora is not None:
        _load_lora(pipeline, lora, lora_scale)
    for part in pipeline.components.values():
        if hasattr(part, "requires_grad_"):
            part.requires_grad_(False).eval()
    pipeline.set_progress_bar_config(disable=True)
    if machine.vae_tiling:
        pipeline.vae.enable_tiling()
    if machine.offload == "none" or device.type == "cpu":
        pipeline.to(device)
    elif machine.offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    else:
        pipeline.enable_sequential_cpu_offload(device=device)
    return pipeline


def check_model(model: str) -> Path | None:
    """The folder `model`, which must be a whole diffusers folder; None where it is taken for a hub id."""
    path = find_local(model)
    if path is None:
        return None
    if not (path / "model_index.json").is_file():
        raise ModelError(f"{model} is no diffusers folder (no model_index.json)", hint="give the folder that holds it")
    try:
        index = json.loads((path / "model_index.json").read_text(encoding="utf-8"))
        parts = [part for part, value in index.items() if isinstance(value, list) and value[0]]
    except (ValueError, OSError, AttributeError, IndexError) as error:
        raise ModelError(f"{path / 'model_index.json'} is damaged: {error}", hint="fetch the model again") from error
    for part in parts:
        if not (path / part).is_dir():
            raise ModelError(f"{model} has no folder {part}", hint="fetch the model again")
    check_folder(path)
    return path


def _quantization(machine: Machine) -> PipelineQuantizationConfig:
    backend, options = "bitsandbytes_8bit", dict[str, Any](load_in_8bit=True)
    if machine.quantize == "nf4":
        dtype = pick_dtype(machine, pick_device(machine))
        backend = "bitsandbytes_4bit"
        options = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    return PipelineQuantizationConfig(
        quant_backend=backend, quant_kwargs=options, components_to_quantize=["transformer"]
    )


def _load_lora(pipeline: DiffusionPipeline, lora: str, scale: float) -> None:
    if find_spec("peft") is None:
        raise ModelError("a LoRA needs peft", hint='pip install "realgen[train]"')
    try:
        pipeline.load_lora_weights(lora, adapter_name="lora")
        pipeline.set_adapters("lora", scale)
    except _LOAD_ERRORS as error:
        said = f"the LoRA {lora} does not fit this model: {_first_line(error)}"
        raise unloadable(error, said, hint="was it made for another model?") from error
    if not pipeline.get_list_adapters():
        raise ModelError(f"the LoRA {lora} fits no layer of this model", hint="was it made for another model?")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _hint(error: Exception) -> str:
    text = str(error).lower()
    if "bitsandbytes" in text or "no gpu found" in text:
        return "pip install bitsandbytes (CUDA), or machine.quantize=none"
    if isinstance(error, ImportError):
        return "install the package that it names"
    if "gated" in text or re.search(r"\b40[13] client error", text):
        return "accept the model's licence on its page, then set HF_TOKEN or run `hf auth login`"
    if "connect" in text or "offline" in text or "resolve" in text:
        return "the hub cannot be reached: give a local folder with generator.options.model=PATH"
    return "the files may be damaged or made for another model: fetch them again"
