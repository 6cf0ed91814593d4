"""A LoRA as diffusers and ComfyUI load it, and a model with its LoRA merged in. Knows a diffusers module, no model.

The file holds `transformer.LAYER.lora_A.weight` and `transformer.LAYER.lora_B.weight` and nothing else, with the
adapter's scale (alpha / rank, or what replaces it) multiplied into B, so that W + B A is the whole rule:

* a reader that finds no `.alpha` takes 1 for the scale (ComfyUI's LoRAAdapter; diffusers' get_peft_kwargs);
* the metadata, which diffusers believes before anything else, says alpha = rank of every layer.

`.alpha` keys, even alpha = rank, would shut readers out: of diffusers 0.42's loaders SD3's refuses a key without
"lora", Qwen-Image's and Z-Image's take the file for another layout and prefix its keys twice, and FLUX's refuses
`.alpha` beside metadata.
"""

import contextlib
import json
import os
from collections import Counter
from pathlib import Path

import torch
from diffusers.loaders import PeftAdapterMixin
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from peft import get_peft_model_state_dict
from safetensors.torch import save
from torch import Tensor, nn

from realgen.core.errors import InputError, OutputError
from realgen.train.world import whole

PREFIX = "transformer."
"""How both readers name the denoiser in a file that may hold text encoders too."""


def lora_state(module: nn.Module, *, adapter: str = "default") -> dict[str, Tensor]:
    """The file's tensors: A (rank, in) and B (out, rank) of every layer, float32 on the CPU, copied.

    B carries the adapter's scale at the strength that is set on it now. Raises InputError where the module has no
    such adapter, or one that A and B do not say in full (DoRA, biases, whole trained layers).
    """
    _check_adapters(module, adapter)
    state = {}
    for key, value in get_peft_model_state_dict(module, adapter_name=adapter).items():
        layer, _, part = key.rpartition(".lora_")
        if part not in {"A.weight", "B.weight"}:
            raise InputError(
                f"the adapter {adapter} holds {key}, which a LoRA file cannot", hint="train a plain LoRA, or merge it"
            )
        scale = module.get_submodule(layer).scaling[adapter] if part == "B.weight" else 1.0
        state[PREFIX + key] = whole(value.detach()).float().cpu() * scale
    return state


def write_lora(
    module: nn.Module,
    path: Path,
    *,
    adapter: str = "default",
    dtype: torch.dtype = torch.float32,
    writes: bool = True,
) -> Path:
    """Write the adapter atomically in `dtype`; returns the file.

    `path` is the file where it ends in .safetensors, else the folder of `pytorch_lora_weights.safetensors`. Every
    process of a sharded run must call it, and one `writes`.
    Raises InputError as `lora_state` does, OutputError where the disk refuses; an older file then stays as it was.
    """
    state = {key: value.to(dtype).contiguous() for key, value in lora_state(module, adapter=adapter).items()}
    file = path if path.suffix == ".safetensors" else path / LORA_WEIGHT_NAME_SAFE
    if not writes:
        return file
    staged = file.with_name(f".{file.name}.staged")  # another ending: a reader of the folder must not pick it
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # not safetensors' save_file: its errors are no OSErrors, and its files are for their owner's eyes only
        staged.write_bytes(save(state, metadata=_metadata(state)))
        os.replace(staged, file)
    except OSError as error:
        with contextlib.suppress(OSError):
            staged.unlink(missing_ok=True)
        raise OutputError(
            f"cannot write the LoRA {file}: {error}", hint="free some space, or choose another place"
        ) from error
    return file


def merge_lora(module: nn.Module) -> None:
    """Add the active adapters to the weights, in place, and take the adapters off: a plain module to save.

    Weights in bfloat16 round the sum to 8 bits; merge in float32 where that matters. Raises InputError where there
    is no adapter.
    """
    _check_adapters(module)
    module.fuse_lora()
    module.unload_lora()


def _check_adapters(module: nn.Module, adapter: str | None = None) -> None:
    # a wrapper (DistributedDataParallel, PeftModel) has other layer names, which no reader would find
    adapters = getattr(module, "peft_config", {}) if isinstance(module, PeftAdapterMixin) else {}
    if not adapters or (adapter is not None and adapter not in adapters):
        raise InputError(
            f"this {type(module).__name__} has no LoRA" + (f" named {adapter}" if adapters else ""),
            hint="give the diffusers model itself, after add_adapter(LoraConfig(...))",
        )


def _metadata(state: dict[str, Tensor]) -> dict[str, str]:
    """LoraConfig's fields for the folded weights: without them diffusers before 0.42 misreads unequal ranks."""
    end = ".lora_A.weight"
    ranks = {key.removeprefix(PREFIX).removesuffix(end): len(state[key]) for key in state if key.endswith(end)}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    others = {f"^{layer}": own for layer, own in ranks.items() if own != rank}  # ^: the whole name, not an ending
    config = {
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(ranks),
    }
    packed = {PREFIX + field: value for field, value in config.items()}
    # one entry: safetensors writes several in an order that differs from process to process
    return {LORA_ADAPTER_METADATA_KEY: json.dumps(packed, sort_keys=True)}
