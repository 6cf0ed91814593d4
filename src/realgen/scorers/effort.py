"""Effort, a feature detector that is held out of every reward: SVD residuals on CLIP ViT-L/14.

P(real) is softmax over the head's two logits at index 0 (0 real, 1 fake; the authors' code gives P(fake)). Pictures are
squashed to 224 x 224 with a bilinear filter and normalised with CLIP's statistics, as its authors do. RealGen's own
scripts leave the normalisation out, or take ImageNet's: their figures are not comparable.

Source: arXiv 2411.15633, github.com/YZY-stack/Effort-AIGI-Detection.
"""

from torch import Tensor, nn

from realgen.core.spec import Machine, Spec
from realgen.core.types import ScorerInfo
from realgen.scorers._detector import ImageDetector, first_of_two
from realgen.scorers._pixels import Preprocess
from realgen.scorers._shapes import TowerShape, clip_shape, size_of
from realgen.scorers._svd_experts import SplitLinear
from realgen.scorers._towers import clip_body, replace_projections
from realgen.scorers._weights import fill, open_weights

_DROPPED = ("S_r", "U_r", "V_r", "weight_original_fnorm", "position_ids")  # of training, or computed anew


class Options(Spec):
    """Which Effort."""

    model: str | None = None
    """The .pth or .safetensors file, or a folder with one; a card sets it."""


class EffortNetwork(nn.Module):
    """Normalised pixels (B, 3, H, W) to logits (B, 2): real, fake."""

    def __init__(self, shape: TowerShape, *, rank: int) -> None:
        super().__init__()
        self.backbone = clip_body(shape)
        for layer in self.backbone.encoder.layers:
            replace_projections(layer.self_attn, lambda linear: SplitLinear(linear, rank=rank))
        self.head = nn.Linear(shape.width, 2)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (B, 2): real, fake."""
        logits: Tensor = self.head(self.backbone(pixels).pooler_output)
        return logits


def build(options: Options, machine: Machine) -> ImageDetector:
    """The detector, loaded; ModelError where the file is no Effort checkpoint."""
    read = open_weights(options.model, "effort")
    tensors = {name: tensor for name, tensor in read.items() if not name.endswith(_DROPPED)}
    source = str(options.model)
    shape = clip_shape(tensors, root="backbone.", layers="backbone.encoder.layers.", source=source)
    rank = size_of(tensors, "backbone.encoder.layers.0.self_attn.q_proj.S_residual", 0, source=source)
    network = fill(lambda: EffortNetwork(shape, rank=rank), tensors, source=source, machine=machine)
    info = ScorerInfo(
        low=0.0,
        high=1.0,
        is_detector=True,
        is_held_out=True,
        licence="CC-BY-NC-4.0",
        source="Effort, arXiv 2411.15633, github.com/YZY-stack/Effort-AIGI-Detection",
    )
    return ImageDetector(network, Preprocess(size=shape.side), real=first_of_two, info=info, batch=machine.batch)
