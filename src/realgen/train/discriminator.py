"""A patch discriminator and what it needs to sharpen a decoder: hinge losses and an adaptive weight.

    discriminator: mean max(0, 1 - D(real)) + mean max(0, 1 + D(fake)),    decoder: -mean D(fake)

Sources: Isola et al. 2017, arXiv 1611.07004 (patches); Miyato et al. 2018, arXiv 1802.05957 (spectral norm, hinge);
Esser et al. 2021, arXiv 2012.09841, eq. 7 (adaptive weight). Knows neither decoder nor photographs.
"""

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

_MAX_WEIGHT = 1e4


class PatchDiscriminator(nn.Module):
    """Pixels (B, 3, H, W) in [-1, 1] to (B, 1, H/8, W/8): above 0 where a patch of 38 pixels looks real."""

    def __init__(self, *, width: int = 48) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for level in range(3):
            layers += [spectral_norm(nn.Conv2d(channels, width << level, 4, stride=2, padding=1)), nn.LeakyReLU(0.2)]
            channels = width << level
        self.layers = nn.Sequential(*layers, spectral_norm(nn.Conv2d(channels, 1, 3, padding=1)))

    def forward(self, pixels: Tensor) -> Tensor:
        """The patches' answers."""
        answers: Tensor = self.layers(pixels)
        return answers


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of a discriminator's answers to photographs and to a decoder's pictures."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def decoder_loss(fake: Tensor) -> Tensor:
    """What the decoder lowers to look real."""
    return -fake.mean()


def adaptive_weight(pixel_gradient: Tensor, adversarial_gradient: Tensor) -> Tensor:
    """The factor that makes the adversarial gradient as long as the pixel loss's at one layer; at most 10,000."""
    return (pixel_gradient.norm() / (adversarial_gradient.norm() + 1e-6)).clamp(max=_MAX_WEIGHT)
