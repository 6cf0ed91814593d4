"""A CLIP checkpoint's tensors under transformers' names, and the sizes that their shapes tell.

Three layouts are read: transformers' `CLIPModel`; OpenAI's names, which open_clip shares; and Long-CLIP's, which are
OpenAI's with a second table of text positions. What no shape tells is the activation (OpenAI's models are trained with
QuickGELU, open_clip's ViT-H-14 with GELU) and the width of a head (64, but 80 in the ViT-H-14's image tower): the
caller says them. TorchScript archives, which OpenAI's own files are, are not read.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPConfig

from realgen.core.errors import ModelError
from realgen.scorers._checkpoint import shape_of

KEPT_POSITIONS = 20
"""Long-CLIP's first text positions, which stay in CLIP's own table; the later ones are in the second table."""

_IGNORED = {"input_resolution", "context_length", "vocab_size", "attn_mask"}
_PARTS = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.": "vision_model.pre_layrnorm.",
    "visual.ln_post.": "vision_model.post_layernorm.",
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "transformer.resblocks.": "text_model.encoder.layers.",
    "ln_final.": "text_model.final_layer_norm.",
}
_TRANSPOSED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
_BLOCK = {
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".c_fc.": ".fc1.",
    ".c_proj.": ".fc2.",
    ".attn.": ".self_attn.",
}


def translate(tensors: Mapping[str, Tensor], *, source: str) -> dict[str, Tensor]:
    """The same tensors as `CLIPModel` names them; a name that means nothing to us is kept, for the caller to refuse.

    Raises ModelError for a checkpoint that is no CLIP.
    """
    kept = {key: value for key, value in tensors.items() if key not in _IGNORED and not key.endswith(".position_ids")}
    if any(key.startswith("vision_model.") for key in kept):
        return kept
    if "visual.conv1.weight" not in kept:
        first = ", ".join(sorted(kept)[:3]) or "nothing"
        raise ModelError(f"{source} is no CLIP checkpoint: it holds {first}", hint="give one of transformers or OpenAI")
    _fold_positions(kept, source)
    translated: dict[str, Tensor] = {}
    for key, value in kept.items():
        translated.update(_translated(key, value))
    return translated


def _fold_positions(tensors: dict[str, Tensor], source: str) -> None:
    """Long-CLIP reads its first positions from one table and the others from a second: one table of both."""
    later = tensors.pop("positional_embedding_res", None)
    if later is None:
        return
    if shape_of(tensors, "positional_embedding", source=source) != later.shape:
        raise ModelError(f"{source}: its two tables of positions differ in shape", hint="is the file whole?")
    first = tensors["positional_embedding"]
    tensors["positional_embedding"] = torch.cat([first[:KEPT_POSITIONS], later[KEPT_POSITIONS:]])


def _translated(key: str, value: Tensor) -> dict[str, Tensor]:
    if key in _TRANSPOSED:
        return {_TRANSPOSED[key]: value.T.contiguous()}
    name = key
    for part, ours in _PARTS.items():
        if key == part or (part.endswith(".") and key.startswith(part)):
            name = ours + key.removeprefix(part)
    if ".encoder.layers." in name:
        for part, ours in _BLOCK.items():
            name = name.replace(part, ours)
    if joined := re.fullmatch(r"(.*\.self_attn\.)in_proj_(weight|bias)", name):
        return {f"{joined[1]}{one}_proj.{joined[2]}": t for one, t in zip("qkv", value.chunk(3), strict=True)}
    return {name: value}


def config_of(
    tensors: Mapping[str, Tensor], *, source: str, activation: str = "quick_gelu", vision_head_width: int = 64
) -> CLIPConfig:
    """Layers, widths, patches and positions of translated tensors; heads are 64 wide in the text tower.

    Texts end with the highest token, as in CLIP's vocabulary. Raises ModelError for sizes that do not fit together.
    """

    def shape(key: str) -> torch.Size:
        return shape_of(tensors, key, source=source)

    width, _, patch, _ = shape("vision_model.embeddings.patch_embedding.weight")
    side = round((shape("vision_model.embeddings.position_embedding.weight")[0] - 1) ** 0.5)
    vocabulary, text_width = shape("text_model.embeddings.token_embedding.weight")
    vision = {"patch_size": patch, "image_size": side * patch, "num_channels": 3}
    text = {
        "vocab_size": vocabulary,
        "max_position_embeddings": shape("text_model.embeddings.position_embedding.weight")[0],
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
    }
    projection = shape("text_projection.weight")[0]
    for tower, part, wide, head in (("vision", vision, width, vision_head_width), ("text", text, text_width, 64)):
        if wide % head:
            raise ModelError(
                f"{source}: its {tower} tower is {wide} wide, no multiple of {head}",
                hint="set options.vision_head_width",
            )
        part.update(_tower(tensors, tower, wide, source), num_attention_heads=wide // head)
        part.update(hidden_act=activation, projection_dim=projection)
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection)


def _tower(tensors: Mapping[str, Tensor], tower: str, width: int, source: str) -> dict[str, Any]:
    pattern = re.compile(rf"{tower}_model\.encoder\.layers\.(\d+)\.")
    layers = {int(found[1]) for found in map(pattern.match, tensors) if found}
    inner = shape_of(tensors, f"{tower}_model.encoder.layers.0.mlp.fc1.weight", source=source)[0]
    return {"num_hidden_layers": max(layers) + 1, "hidden_size": width, "intermediate_size": inner}
