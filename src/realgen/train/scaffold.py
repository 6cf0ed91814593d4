"""Lays out a fresh FLUX.1 folder of small size: autoencoder and tokenizers as given, everything else untrained.

The folder has FLUX.1-dev's own layout (safetensors, `text_model.*` keys in CLIP's file), so that any tool that
opens FLUX.1 opens it.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

from realgen.train.autoencoder import open_autoencoder
from realgen.train.photographs import Photograph, of_one_size, to_tensor

SHIFT = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
TEXT_TOKENS = 64


def build_pipeline(autoencoder: AutoencoderKL, tokenizers: Path, *, seed: int) -> FluxPipeline:
    """An untrained pipeline around an autoencoder, with tokenizers from `tokenizers`/{tokenizer,tokenizer_2}."""
    torch.manual_seed(seed)
    clip = CLIPTokenizer.from_pretrained(tokenizers / "tokenizer")
    t5 = T5TokenizerFast.from_pretrained(tokenizers / "tokenizer_2")
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0, **SHIFT),
        vae=autoencoder,
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(clip),
                hidden_size=128,
                intermediate_size=512,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=77,
                projection_dim=128,
                bos_token_id=clip.bos_token_id,
                eos_token_id=clip.eos_token_id,
                pad_token_id=clip.pad_token_id,
            )
        ),
        tokenizer=clip,
        text_encoder_2=T5EncoderModel(
            T5Config(
                vocab_size=len(t5),
                d_model=256,
                d_kv=64,
                d_ff=512,
                num_layers=2,
                num_heads=4,
                feed_forward_proj="gated-gelu",
                dropout_rate=0.0,
                pad_token_id=t5.pad_token_id,
                eos_token_id=t5.eos_token_id,
                tie_word_embeddings=False,
            )
        ),
        tokenizer_2=t5,
        transformer=FluxTransformer2DModel(
            in_channels=autoencoder.config["latent_channels"] * 4,
            num_layers=1,
            num_single_layers=6,
            attention_head_dim=64,
            num_attention_heads=4,
            joint_attention_dim=256,
            pooled_projection_dim=128,
            guidance_embeds=True,
            axes_dims_rope=(16, 24, 24),
        ),
    )
    _start_quiet(pipeline.transformer)
    return pipeline


def measure_latents(autoencoder: AutoencoderKL, photographs: Sequence[Photograph]) -> tuple[float, float]:
    """The `scaling_factor` and `shift_factor` that give the latents of `photographs` mean 0 and deviation 1."""
    latents = []
    with torch.no_grad():
        for start in range(0, len(photographs), 64):
            pixels = to_tensor([photograph.pixels for photograph in photographs[start : start + 64]]).to(
                autoencoder.device
            )
            latents.append(autoencoder.encode(pixels).latent_dist.mean)
    joined: Tensor = torch.cat(latents)
    return 1 / float(joined.std()), float(joined.mean())


def open_measured(folder: Path, photographs: Sequence[Photograph], *, device: torch.device) -> AutoencoderKL:
    """The autoencoder in `folder`, its latents scaled as up to 2,000 of the photographs say."""
    autoencoder = open_autoencoder(folder).eval().to(device)
    scaling, shift = measure_latents(autoencoder, of_one_size(photographs)[:2000])
    autoencoder.register_to_config(scaling_factor=scaling, shift_factor=shift)
    return autoencoder


def save_pipeline(pipeline: FluxPipeline, folder: Path, *, dtype: torch.dtype) -> None:
    """Write a FLUX.1 folder in `dtype`, with CLIP's keys and the tokenizers' files as FLUX.1-dev has them.

    The pipeline itself keeps every bit: what is exported on the way changes nothing of a training.
    """
    with _in_dtype(pipeline, dtype):
        pipeline.save_pretrained(folder)
    for name, tokenizer in (("tokenizer", pipeline.tokenizer), ("tokenizer_2", pipeline.tokenizer_2)):
        for wanted in ("vocab.json", "merges.txt", "special_tokens_map.json", "spiece.model"):
            if (source := Path(tokenizer.name_or_path) / wanted).is_file():
                shutil.copyfile(source, folder / name / wanted)
    for file in folder.rglob("*.json"):
        if file.name in {"config.json", "model_index.json"}:
            _tidy(file)
    keys = folder / "text_encoder" / "model.safetensors"
    weights = {
        name if name.startswith("text_model.") else f"text_model.{name}": value
        for name, value in load_file(keys).items()
    }
    save_file(weights, keys, metadata={"format": "pt"})


@contextmanager
def _in_dtype(pipeline: FluxPipeline, dtype: torch.dtype) -> Iterator[None]:
    parts = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    parameters = [(parameter, parameter.data) for part in parts for parameter in part.parameters()]
    owners = [owner for part in parts for owner in part.modules()]
    buffers = [(owner, *named) for owner in owners for named in owner.named_buffers(recurse=False)]
    pipeline.to(dtype=dtype)
    try:
        yield
    finally:
        for parameter, data in parameters:
            parameter.data = data
        for owner, name, buffer in buffers:
            setattr(owner, name, buffer)


def _tidy(file: Path) -> None:
    """Forget where the model was opened from, and let a call without a dtype open all parts in float32."""
    fields = json.loads(file.read_text(encoding="utf-8"))
    fields.pop("_name_or_path", None)
    if "dtype" in fields:
        fields["dtype"] = "float32"
    file.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def _start_quiet(transformer: FluxTransformer2DModel) -> None:
    """Every block starts as the identity (AdaLN-Zero, Peebles & Xie 2023) and the output at zero."""
    with torch.no_grad():
        for name, module in transformer.named_modules():
            is_modulation = name.endswith((".norm1.linear", ".norm1_context.linear", ".norm.linear", "norm_out.linear"))
            if is_modulation or name == "proj_out":
                module.weight.zero_()
                module.bias.zero_()
