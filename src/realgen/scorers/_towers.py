"""The vision towers that detectors stand on, of transformers' own parts, with every projection open to be replaced.

Attention is written out here, because gates reach the projections as an argument: nothing is kept between two calls.
Names of parts are those that OmniAID publishes (github.com/yunncheng/OmniAID). Knows no weights, routers or scores.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from realgen.core.errors import ModelError
from realgen.scorers._shapes import HEAD_SIZE, TowerShape

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines (patches, head size) of DINOv3's rotary positions."""

MakeLinear = Callable[[nn.Linear], nn.Module]


class Tower(nn.Module):
    """Pixels (B, 3, H, W) to one vector (B, width)."""

    embeddings: nn.Module

    def rotation(self, pixels: Tensor) -> Rotation | None:
        """Rotary positions for a picture of this size; None where positions are embedded."""
        del pixels
        return None

    def encode(self, tokens: Tensor, gates: Tensor | None, rotation: Rotation | None) -> Tensor:
        """Embedded tokens (B, T, width) to the class token's final state (B, width)."""
        raise NotImplementedError

    def forward(self, pixels: Tensor) -> Tensor:
        """The class token's final state (B, width), without experts."""
        return self.encode(self.embeddings(pixels), None, self.rotation(pixels))


class ClipTower(Tower):
    """CLIP's vision tower."""

    def __init__(self, shape: TowerShape, make: MakeLinear) -> None:
        super().__init__()
        body = clip_body(shape)
        self.embeddings, self.ln_pre = body.embeddings, body.pre_layrnorm
        self.encoder_layers, self.ln_post = body.encoder.layers, body.post_layernorm
        for layer in self.encoder_layers:
            replace_projections(layer.self_attn, make)

    def encode(self, tokens: Tensor, gates: Tensor | None, rotation: Rotation | None) -> Tensor:
        """Embedded tokens (B, T, width) to the class token's final state (B, width)."""
        x = self.ln_pre(tokens)
        for layer in self.encoder_layers:
            mixed = _attend(layer.self_attn, layer.layer_norm1(x), gates, rotation)
            x = x + _project(layer.self_attn.out_proj, mixed, gates)
            x = x + layer.mlp(layer.layer_norm2(x))
        pooled: Tensor = self.ln_post(x[:, 0])
        return pooled


class DinoTower(Tower):
    """DINOv3's vision transformer; its positions are the same in training as in use."""

    def __init__(self, shape: TowerShape, make: MakeLinear) -> None:
        super().__init__()
        body = _dino_body(shape)
        self.embeddings, self.norm = body.embeddings, body.norm
        self.layer = getattr(body, "model", body).layer  # newer transformers put the layers into an encoder
        self.rope_embeddings = body.rope_embeddings
        for layer in self.layer:
            replace_projections(layer.attention, make)

    def rotation(self, pixels: Tensor) -> Rotation | None:
        """Cosines and sines of the patches' positions in [-1, 1]."""
        rotation: Rotation = self.rope_embeddings(pixels)
        return rotation

    def encode(self, tokens: Tensor, gates: Tensor | None, rotation: Rotation | None) -> Tensor:
        """Embedded tokens (B, T, width) to the class token's final state (B, width)."""
        x = tokens
        for layer in self.layer:
            mixed = _attend(layer.attention, layer.norm1(x), gates, rotation)
            x = x + layer.layer_scale1(_project(layer.attention.o_proj, mixed, gates))
            x = x + layer.layer_scale2(layer.mlp(layer.norm2(x)))
        pooled: Tensor = self.norm(x[:, 0])
        return pooled


def clip_body(shape: TowerShape) -> Any:
    """The CLIP vision tower of transformers, under its own names."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=shape.width,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.width // HEAD_SIZE,
        image_size=shape.side,
        patch_size=shape.patch,
        hidden_act="quick_gelu",
        layer_norm_eps=1e-5,
    )
    model = CLIPVisionModel(config)
    return getattr(model, "vision_model", model)  # newer transformers have no wrapper around the tower


def _dino_body(shape: TowerShape) -> Any:
    try:
        from transformers.models.dinov3_vit.configuration_dinov3_vit import DINOv3ViTConfig
        from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTModel
    except ImportError as error:
        raise ModelError("this transformers knows no DINOv3", hint='pip install -U "transformers>=5.6"') from error
    config = DINOv3ViTConfig(
        hidden_size=shape.width,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.width // HEAD_SIZE,
        patch_size=shape.patch,
        num_register_tokens=shape.num_registers,
        hidden_act="gelu",
        layer_norm_eps=1e-5,
        rope_theta=100.0,
        pos_embed_rescale=None,
    )
    return DINOv3ViTModel(config)


def replace_projections(attention: nn.Module, make: MakeLinear) -> None:
    """Put `make(linear)` in the place of every linear layer of an attention block."""
    for name, linear in list(attention.named_children()):
        if isinstance(linear, nn.Linear):
            setattr(attention, name, make(linear))


def _attend(attention: Any, x: Tensor, gates: Tensor | None, rotation: Rotation | None) -> Tensor:
    """Attention of x (B, T, width) up to its last projection."""
    query, key, value = (
        _project(linear, x, gates).unflatten(-1, (-1, HEAD_SIZE)).transpose(1, 2)  # (B, heads, T, head size)
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    if rotation is not None:
        query, key = _rotate(query, rotation), _rotate(key, rotation)
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def _project(linear: nn.Module, x: Tensor, gates: Tensor | None) -> Tensor:
    projected: Tensor = linear(x) if gates is None else linear(x, gates)
    return projected


def _rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn the patches' channels (i, i + half) by their positions; the tokens before the patches stay."""
    cosine, sine = rotation
    before, patches = x.split((x.shape[2] - len(cosine), len(cosine)), dim=2)
    first, second = patches.chunk(2, dim=-1)
    turned = patches * cosine + torch.cat([-second, first], dim=-1) * sine
    return torch.cat([before, turned], dim=2)
