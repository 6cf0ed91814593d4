"""OmniAID, a feature detector: a mixture of SVD experts on a CLIP or DINOv3 tower.

P(real) is softmax over the head's two logits at index 0 (0 real, 1 fake; the authors' script gives P(fake)). Pictures
are squashed to a square with a bilinear filter, as each file was trained, and normalised with CLIP's statistics on CLIP
and ImageNet's on DINOv3:

    checkpoint_omniaid_v1.pth, RealGen V1's checkpoint-0.pth    512, then 336    CLIP
    checkpoint_omniaid_v2.pth                                   336              CLIP
    checkpoint_omniaid_dino_v2.pth as RealGen V2 uses it        512, then 448    DINOv3

Source: arXiv 2511.08423, github.com/yunncheng/OmniAID.
"""

from pydantic import Field
from torch import nn

from realgen.core.errors import ModelError
from realgen.core.spec import Machine, Spec
from realgen.core.types import ScorerInfo
from realgen.scorers._detector import ImageDetector, first_of_two
from realgen.scorers._mixture import ClipMixture, Mixture, build_mixture, published
from realgen.scorers._pixels import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from realgen.scorers._weights import fill, open_weights

_DINO_SIDE, _DINO_PATCH = 448, 16


class Options(Spec):
    """Which OmniAID, and how its pictures are made."""

    model: str | None = None
    """The .pth or .safetensors file, or a folder with one; a card sets it."""

    size: int | None = Field(default=None, ge=16)
    """Side in pixels that the tower sees; null takes CLIP's own, or 448 for DINOv3."""

    via: int | None = Field(default=None, ge=16)
    """Side in pixels that is resized to before, as the weights were trained; null resizes once."""

    top_k: int = Field(default=2, ge=1)
    """Routed experts that look at a picture; the file that was trained on GenImage has 1."""


class OmniAID(ImageDetector):
    """OmniAID as a scorer, a differentiable scorer and a trainable detector."""

    module: Mixture

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """What a refresh trains, by name: the head and the SVD experts; of LoRA weights the head alone (RealGen V2)."""
        has_svd = self.module.experts.kind == "svd"
        named = self.module.named_parameters()
        return {name: part for name, part in named if name.startswith("head.") or (has_svd and "_experts." in name)}


def build(options: Options, machine: Machine) -> OmniAID:
    """The detector, loaded; ModelError where the file is no OmniAID or does not fit the options."""
    tensors = published(open_weights(options.model, "omniaid"))
    source = str(options.model)
    module = fill(
        lambda: build_mixture(tensors, top_k=options.top_k, source=source), tensors, source=source, machine=machine
    )
    info = ScorerInfo(
        low=0.0,
        high=1.0,
        is_detector=True,
        is_held_out=False,
        licence="MIT",
        source="OmniAID, arXiv 2511.08423, github.com/yunncheng/OmniAID",
    )
    return OmniAID(module, preprocess_of(module, options), real=first_of_two, info=info, batch=machine.batch)


def preprocess_of(module: Mixture, options: Options) -> Preprocess:
    """How this tower's pictures are made; ModelError where the tower cannot read such a size."""
    if isinstance(module, ClipMixture):
        side = module.embeddings.image_size
        if options.size not in {None, side}:
            raise ModelError(f"this CLIP tower sees {side} pixels, not {options.size}", hint=f"options.size={side}")
        return Preprocess(size=side, via=options.via)
    side = options.size or _DINO_SIDE
    if side % _DINO_PATCH:
        raise ModelError(f"DINOv3 cannot see {side} pixels", hint=f"options.size: a multiple of {_DINO_PATCH}")
    return Preprocess(size=side, via=options.via, mean=IMAGENET_MEAN, std=IMAGENET_STD)
