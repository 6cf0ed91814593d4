"""A backbone of a tiny checkpoint, sampled by the shared loop, and held against diffusers' own pipeline."""

import numpy as np
import torch

from conftest import FLOAT32
from generators import factories
from realgen.core import plugins
from realgen.formulas.flow import trajectory

TEXTS = ["a red cat on a wall", "two dogs"]
SEEDS = [3, 4]


def build(name, *, machine=FLOAT32, **options):
    options = {**factories.options_of(name), "steps": 2, "size": (64, 48), **options}
    return plugins.find("generators", name).build(plugins.configure("generators", name, options), machine)


@torch.inference_mode()
def final_latents(backbone, texts, *, seeds, steps, size, guidance):
    condition = backbone.encode(texts)
    velocity = lambda x, sigma: backbone.velocity(x, sigma, condition, guidance=guidance, size=size)  # noqa: E731
    *_, last = trajectory(velocity, backbone.noise(seeds, size), backbone.sigmas(steps, size))
    return last.x


@torch.inference_mode()
def differences(backbone, stock, *, steps, size, guidance, packed, unpacked, negative=None, **call):
    """Largest differences of latents, pixels and levels from a stock pipeline's, from the same noise.

    `packed` makes our tokens of its latents, `unpacked` the latents that it is given of our tokens.
    """
    stock.set_progress_bar_config(disable=True)
    ours = final_latents(backbone, TEXTS, seeds=SEEDS, steps=steps, size=size, guidance=guidance)

    def drawn(kind):
        # Texts in new lists: Z-Image's pipeline writes into those that it is given.
        texts = {"prompt": [*TEXTS], **({"negative_prompt": [negative] * 2} if negative else {})}
        given = {**call, **texts, "width": size[0], "height": size[1], "num_inference_steps": steps}
        return stock(**given, latents=unpacked(backbone.noise(SEEDS, size)), output_type=kind).images

    theirs, pixels = packed(drawn("latent")), drawn("np")
    decoded = backbone.decode(ours, size).permute(0, 2, 3, 1).numpy()
    levels = (stock.scheduler.sigmas - backbone.sigmas(steps, size)).abs().max()
    return {
        "latents": float((ours - theirs).abs().max()),
        "pixels": float(np.abs(decoded - pixels).max()),
        "levels": float(levels),
    }
