"""Representation alignment: a middle layer of a denoiser learns to know what a frozen image encoder sees.

    loss = 1 - mean of cos(mlp(h), f) over image tokens, h a layer's of the noisy picture, f the encoder's of the clean

Denoising alone is slow to learn what is in a picture; this says it directly. Yu et al. 2024, arXiv 2410.06940.
Knows no model: the layer, the encoder's features and their widths are given to it.
"""

from torch import Tensor, nn
from torch.nn import functional as F


class RepresentationAlignment(nn.Module):
    """Keeps what `layer` gives for image tokens at each forward, and compares it with features of the clean pictures.

    `layer` returns the tokens of the text and those of the picture, (B, tokens, width) each. Only the projection is
    trained here; the layer learns through `loss`, times `weight`.
    """

    def __init__(self, layer: nn.Module, *, width: int, features: int, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self.projection = nn.Sequential(
            nn.Linear(width, 2 * width),
            nn.SiLU(),
            nn.Linear(2 * width, 2 * width),
            nn.SiLU(),
            nn.Linear(2 * width, features),
        )
        self._kept: Tensor | None = None
        layer.register_forward_hook(self._keep)

    def _keep(self, _layer: nn.Module, _inputs: object, outputs: tuple[Tensor, Tensor]) -> None:
        self._kept = outputs[1]

    def loss(self, features: Tensor) -> Tensor:
        """One minus the mean cosine for each picture of the last forward (B,); features (B, tokens, F) unscaled."""
        if self._kept is None:
            raise RuntimeError("the layer has not run")
        projected, self._kept = self.projection(self._kept), None
        return 1 - F.cosine_similarity(projected.float(), features.float(), dim=-1).mean(1)


def standardised(features: Tensor) -> Tensor:
    """Features (..., F) of mean 0 and deviation 1 in every channel, in the same number format.

    Those of a transformer share a large common part, which every cosine would be about.
    """
    flat = features.flatten(0, -2)
    sample = flat[:: max(1, len(flat) // 100_000)].float()
    mean, deviation = sample.mean(0), sample.std(0).clamp(min=1e-6)
    for part in flat.split(100_000):  # in place: they are large
        part.copy_((part.float() - mean) / deviation)
    return features
