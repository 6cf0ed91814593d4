"""OmniAID's network: a tower whose attention projections hold experts, a router that opens two of them, and a head.

The published layout is the module's own, so that what it saves, its authors' code reads. All sizes are read from the
tensors' shapes; only `top_k` and the width of an attention head are not in them. The router looks at the vector of a
second, frozen tower where the checkpoint holds one (`feature_extractor`), else, as RealGen V1's weights do, at the mean
of the patches as the first tower embeds them. Unlike its authors' code, it lets gradients through the second tower,
so that those of the pixels are whole. Knows no files and no pictures.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from realgen.core.errors import ModelError
from realgen.scorers._shapes import TowerShape, clip_shape, count, dino_shape, size_of
from realgen.scorers._svd_experts import Kind, LoraExpertLinear, Router, SvdExpertLinear, gates_of
from realgen.scorers._towers import ClipTower, DinoTower, MakeLinear, Tower, clip_body

_DROPPED = ("U_r", "V_r", "weight_original_fnorm", "position_ids", "inv_freq")  # of training, or computed anew


@dataclass(frozen=True, slots=True)
class ExpertShape:
    """The sizes of experts and router that their tensors tell."""

    kind: Kind
    num_experts: int
    rank: int
    hidden: int
    """Width of the router's hidden layer."""
    num_routed: int
    """Experts that the router chooses among."""


class Mixture(Tower):
    """Normalised pixels (B, 3, H, W) to logits (B, 2): real, fake."""

    feature_extractor: nn.Module | None

    def add_experts(self, width: int, experts: ExpertShape, *, top_k: int) -> None:
        """The router and the head."""
        self.experts, self.top_k = experts, top_k
        self.gating_network = Router(width, hidden=experts.hidden, num_routed=experts.num_routed)
        self.head = nn.Linear(width, 2)

    def features(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        """What the router looks at (B, width)."""
        raise NotImplementedError

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (B, 2): real, fake."""
        tokens = self.embeddings(pixels)
        routed = self.gating_network(self.features(pixels, tokens))
        gates = gates_of(routed, top_k=self.top_k, num_experts=self.experts.num_experts)
        logits: Tensor = self.head(self.encode(tokens, gates, self.rotation(pixels)))
        return logits


class ClipMixture(Mixture, ClipTower):
    """OmniAID on CLIP."""

    def __init__(self, shape: TowerShape, experts: ExpertShape, *, top_k: int, has_extractor: bool) -> None:
        ClipTower.__init__(self, shape, _maker(experts))
        self.feature_extractor = clip_body(shape) if has_extractor else None
        self.add_experts(shape.width, experts, top_k=top_k)

    def features(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        """The second tower's vector, or the mean of the embedded patches (B, width)."""
        if self.feature_extractor is None:
            return tokens[:, 1:].mean(dim=1)
        pooled: Tensor = self.feature_extractor(pixels).pooler_output
        return pooled


class DinoMixture(Mixture, DinoTower):
    """OmniAID on DINOv3."""

    def __init__(self, shape: TowerShape, experts: ExpertShape, *, top_k: int) -> None:
        DinoTower.__init__(self, shape, _maker(experts))
        self.feature_extractor = DinoTower(shape, lambda linear: linear)
        self.add_experts(shape.width, experts, top_k=top_k)

    def features(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        """The second tower's vector (B, width)."""
        del tokens
        assert self.feature_extractor is not None
        pooled: Tensor = self.feature_extractor(pixels)
        return pooled


def build_mixture(tensors: Mapping[str, Tensor], *, top_k: int, source: str) -> Mixture:
    """The module that a checkpoint's tensors are for, not filled; ModelError where they are for another model."""
    is_clip, is_dino = count(tensors, "encoder_layers.") > 0, count(tensors, "layer.") > 0
    first = "encoder_layers.0.self_attn.q_proj." if is_clip or not is_dino else "layer.0.attention.q_proj."
    experts = _expert_shape(tensors, first, source=source)
    if not 1 <= top_k <= experts.num_routed or experts.num_experts - experts.num_routed not in {0, 1}:
        message = f"{source}: {experts.num_experts} experts, of which it routes {experts.num_routed}, {top_k} at a time"
        raise ModelError(message, hint="set options.top_k to at most the number of routed experts")
    if is_clip:
        shape = clip_shape(tensors, root="", layers="encoder_layers.", source=source)
        has_extractor = any(name.startswith("feature_extractor.") for name in tensors)
        return ClipMixture(shape, experts, top_k=top_k, has_extractor=has_extractor)
    return DinoMixture(dino_shape(tensors, source=source), experts, top_k=top_k)


def published(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what only training needs, and a second DINOv3 tower under the names that transformers first gave it."""
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(_DROPPED)}
    return {name.replace("feature_extractor.model.layer.", "feature_extractor.layer."): kept[name] for name in kept}


def _maker(experts: ExpertShape) -> MakeLinear:
    cls = SvdExpertLinear if experts.kind == "svd" else LoraExpertLinear
    return lambda linear: cls(linear, num_experts=experts.num_experts, rank=experts.rank)


def _expert_shape(tensors: Mapping[str, Tensor], first: str, *, source: str) -> ExpertShape:
    is_lora = f"{first}weight_fixed" in tensors
    down = f"{first}{'lora_A_experts' if is_lora else 'V_experts'}."
    return ExpertShape(
        kind="lora" if is_lora else "svd",
        rank=size_of(tensors, f"{down}0", 0, source=source),
        num_experts=count(tensors, down),
        hidden=size_of(tensors, "gating_network.network.0.weight", 0, source=source),
        num_routed=size_of(tensors, "gating_network.network.2.weight", 0, source=source),
    )
