"""Random OmniAID and Effort checkpoints in their published layout, and what they answer, worked out slowly.

The second half is the published formulas in float64 with plain loops; it shares no line with the package.
"""

import io
import math
import struct
import zlib

import numpy as np
import torch
from PIL import Image

WIDTH, LAYERS, MLP, HEAD = 128, 2, 48, 64
CLIP_SIDE, CLIP_PATCH = 28, 14
DINO_SIDE, DINO_PATCH, REGISTERS = 32, 16, 3
CLIP_STATISTICS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Draw:
    """Random tensors by name."""

    def __init__(self, seed):
        self.generator, self.tensors = torch.Generator().manual_seed(seed), {}

    def __call__(self, name, *shape, scale=1.0, mean=0.0):
        self.tensors[name] = mean + scale * torch.randn(shape, generator=self.generator)

    def linear(self, name, num_out, num_in, *, scale=1.0):
        self(f"{name}.weight", num_out, num_in, scale=scale / num_in**0.5)
        self(f"{name}.bias", num_out, scale=0.1)

    def norm(self, name):
        self(f"{name}.weight", WIDTH, scale=0.1, mean=1.0)
        self(f"{name}.bias", WIDTH, scale=0.1)


def random_omniaid(tower="clip", *, kind="svd", extractor=True, num_experts=4, num_routed=3, rank=2, hidden=12, seed=0):
    """A whole OmniAID checkpoint, with what only training needs."""
    draw = Draw(seed)

    def project(name, has_bias):
        _project(draw, name, kind, has_bias, num_experts=num_experts, rank=rank)

    _tower(draw, tower, "", project, first=True)
    if extractor:
        _tower(draw, tower, "feature_extractor.", lambda name, has_bias: _plain(draw, name, has_bias), first=False)
    draw.linear("gating_network.network.0", hidden, WIDTH)
    draw.linear("gating_network.network.2", num_routed, hidden, scale=3)
    draw.linear("head", 2, WIDTH, scale=2)
    return draw.tensors


def random_effort(seed=0):
    """A whole Effort checkpoint, as its authors save it."""
    draw = Draw(seed)

    def project(name, has_bias):
        _plain(draw, name, has_bias)
        draw.tensors[f"{name}.weight_main"] = draw.tensors.pop(f"{name}.weight")
        draw(f"{name}.U_residual", WIDTH, 1)
        draw(f"{name}.S_residual", 1)
        draw(f"{name}.V_residual", 1, WIDTH, scale=0.1)
        for part, shape in (("U_r", (WIDTH, 5)), ("S_r", (5,)), ("V_r", (5, WIDTH))):
            draw(f"{name}.{part}", *shape)

    _tower(draw, "clip", "backbone.", project, first=False)
    draw.linear("head", 2, WIDTH, scale=2)
    return draw.tensors


def _plain(draw, name, has_bias):
    draw(f"{name}.weight", WIDTH, WIDTH, scale=WIDTH**-0.5)
    if has_bias:
        draw(f"{name}.bias", WIDTH, scale=0.1)


def _project(draw, name, kind, has_bias, *, num_experts, rank):
    _plain(draw, name, has_bias)
    weight = draw.tensors.pop(f"{name}.weight")
    draw.tensors[f"{name}.{'weight_main' if kind == 'svd' else 'weight_fixed'}"] = weight
    for expert in range(num_experts):
        if kind == "svd":
            draw(f"{name}.U_experts.{expert}", WIDTH, rank)
            draw(f"{name}.S_experts.{expert}", rank, scale=0.5)
            draw(f"{name}.V_experts.{expert}", rank, WIDTH, scale=0.1)
        else:
            draw(f"{name}.lora_A_experts.{expert}", rank, WIDTH, scale=0.1)
            draw(f"{name}.lora_B_experts.{expert}", WIDTH, rank, scale=0.5)
    if kind == "svd":
        draw(f"{name}.U_r", WIDTH, 5)
        draw(f"{name}.V_r", 5, WIDTH)
        draw(f"{name}.weight_original_fnorm")


def _tower(draw, tower, root, project, *, first):
    (_clip_tower if tower == "clip" else _dino_tower)(draw, root, project, first=first)


def _clip_tower(draw, root, project, *, first):
    patches = (CLIP_SIDE // CLIP_PATCH) ** 2
    draw(f"{root}embeddings.class_embedding", WIDTH)
    draw(f"{root}embeddings.patch_embedding.weight", WIDTH, 3, CLIP_PATCH, CLIP_PATCH, scale=0.1)
    draw(f"{root}embeddings.position_embedding.weight", patches + 1, WIDTH)
    pre, layers, post = clip_names(root, first=first)
    draw.norm(pre)
    for index in range(LAYERS):
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            project(f"{layers}{index}.self_attn.{name}", True)
        draw.norm(f"{layers}{index}.layer_norm1")
        draw.norm(f"{layers}{index}.layer_norm2")
        draw.linear(f"{layers}{index}.mlp.fc1", MLP, WIDTH)
        draw.linear(f"{layers}{index}.mlp.fc2", WIDTH, MLP)
    draw.norm(post)


def _dino_tower(draw, root, project, *, first):
    del first
    draw(f"{root}embeddings.cls_token", 1, 1, WIDTH)
    draw(f"{root}embeddings.mask_token", 1, 1, WIDTH)
    draw(f"{root}embeddings.register_tokens", 1, REGISTERS, WIDTH)
    draw(f"{root}embeddings.patch_embeddings.weight", WIDTH, 3, DINO_PATCH, DINO_PATCH, scale=0.1)
    draw(f"{root}embeddings.patch_embeddings.bias", WIDTH)
    for index in range(LAYERS):
        layer = f"{root}layer.{index}."
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            project(f"{layer}attention.{name}", name != "k_proj")
        for name in ("norm1", "norm2"):
            draw.norm(f"{layer}{name}")
        for name in ("layer_scale1", "layer_scale2"):
            draw(f"{layer}{name}.lambda1", WIDTH, scale=0.2, mean=0.8)
        draw.linear(f"{layer}mlp.up_proj", MLP, WIDTH)
        draw.linear(f"{layer}mlp.down_proj", WIDTH, MLP)
    draw.norm(f"{root}norm")


def clip_names(root, *, first):
    """How OmniAID names its first tower's norms and layers, and how transformers names those of any other."""
    if first:
        return "ln_pre", "encoder_layers.", "ln_post"
    return f"{root}pre_layrnorm", f"{root}encoder.layers.", f"{root}post_layernorm"


# --- the published formulas, slowly -------------------------------------------------------------------------------


def p_real(tensors, pixels, *, tower="clip", top_k=2, num_experts=4):
    """P(real) of normalised pixels (B, 3, H, W), by OmniAID's formulas."""
    t = {name: tensor.double() for name, tensor in tensors.items()}
    return torch.stack([_p_real(t, image.double(), tower, top_k, num_experts) for image in pixels])


def effort_p_real(tensors, pixels):
    """P(real) of normalised pixels (B, 3, H, W), by Effort's formulas."""
    t = {name: tensor.double() for name, tensor in tensors.items()}
    return torch.stack([_head(t, _clip_vector(t, image.double(), "backbone.", None, first=False)) for image in pixels])


def _p_real(t, image, tower, top_k, num_experts):
    vector = _clip_vector if tower == "clip" else _dino_vector
    if any(name.startswith("feature_extractor.") for name in t):
        features = vector(t, image, "feature_extractor.", None, first=False)
    else:
        features = _clip_tokens(t, image, "")[1:].mean(0)
    hidden = (t["gating_network.network.0.weight"] @ features + t["gating_network.network.0.bias"]).clamp(min=0)
    logits = (t["gating_network.network.2.weight"] @ hidden + t["gating_network.network.2.bias"]).tolist()
    chosen = sorted(range(len(logits)), key=lambda index: -logits[index])[:top_k]
    total = sum(math.exp(logits[index]) for index in chosen)
    gates = [math.exp(logits[index]) / total if index in chosen else 0.0 for index in range(len(logits))]
    gates += [1.0] * (num_experts - len(gates))
    return _head(t, vector(t, image, "", gates, first=True))


def _head(t, vector):
    real, fake = (t["head.weight"] @ vector + t["head.bias"]).tolist()
    return torch.tensor(1 / (1 + math.exp(fake - real)), dtype=torch.float64)


def _clip_tokens(t, image, root):
    weight = t[f"{root}embeddings.patch_embedding.weight"]
    tokens = [t[f"{root}embeddings.class_embedding"], *_patches(image, weight)]
    return torch.stack(tokens) + t[f"{root}embeddings.position_embedding.weight"]


def _clip_vector(t, image, root, gates, *, first):
    pre, layers, post = clip_names(root, first=first)
    x = _norm(t, pre, _clip_tokens(t, image, root))
    for index in range(LAYERS):
        layer = f"{layers}{index}."
        mixed = _attention(t, f"{layer}self_attn.", _norm(t, f"{layer}layer_norm1", x), gates, None)
        x = x + _linear(t, f"{layer}self_attn.out_proj", mixed, gates)
        inner = _linear(t, f"{layer}mlp.fc1", _norm(t, f"{layer}layer_norm2", x), None)
        x = x + _linear(t, f"{layer}mlp.fc2", inner / (1 + (-1.702 * inner).exp()), None)
    return _norm(t, post, x[:1])[0]


def _dino_vector(t, image, root, gates, *, first):
    del first
    weight, bias = (t[f"{root}embeddings.patch_embeddings.{part}"] for part in ("weight", "bias"))
    tokens = [t[f"{root}embeddings.cls_token"][0, 0], *t[f"{root}embeddings.register_tokens"][0]]
    x = torch.stack([*tokens, *(patch + bias for patch in _patches(image, weight))])
    angles = _angles(image.shape[1] // DINO_PATCH, image.shape[2] // DINO_PATCH)
    for index in range(LAYERS):
        layer = f"{root}layer.{index}."
        mixed = _attention(t, f"{layer}attention.", _norm(t, f"{layer}norm1", x), gates, angles)
        x = x + _linear(t, f"{layer}attention.o_proj", mixed, gates) * t[f"{layer}layer_scale1.lambda1"]
        inner = _linear(t, f"{layer}mlp.up_proj", _norm(t, f"{layer}norm2", x), None)
        inner = inner * (1 + torch.erf(inner / math.sqrt(2))) / 2
        x = x + _linear(t, f"{layer}mlp.down_proj", inner, None) * t[f"{layer}layer_scale2.lambda1"]
    return _norm(t, f"{root}norm", x[:1])[0]


def _angles(rows, columns):
    """Angle of each patch and each pair of channels: y's frequencies, then x's; base 100."""
    quarter = HEAD // 4
    angles = torch.zeros(rows * columns, HEAD // 2, dtype=torch.float64)
    for row in range(rows):
        for column in range(columns):
            place = (2 * (row + 0.5) / rows - 1, 2 * (column + 0.5) / columns - 1)
            for axis in range(2):
                for index in range(quarter):
                    angles[row * columns + column, axis * quarter + index] = (
                        2 * math.pi * place[axis] / 100 ** (index / quarter)
                    )
    return angles


def _patches(image, weight):
    side = weight.shape[-1]
    for row in range(image.shape[1] // side):
        for column in range(image.shape[2] // side):
            patch = image[:, row * side : (row + 1) * side, column * side : (column + 1) * side]
            yield weight.flatten(1) @ patch.flatten()


def _norm(t, name, x):
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * t[f"{name}.weight"] + t[f"{name}.bias"]


def _linear(t, name, x, gates):
    """The layer with its experts merged into one weight."""
    weight = next(
        t[f"{name}.{part}"] for part in ("weight", "weight_main", "weight_fixed") if f"{name}.{part}" in t
    ).clone()
    for expert, gate in enumerate(gates or ()):
        if f"{name}.weight_fixed" in t:
            weight += gate * t[f"{name}.lora_B_experts.{expert}"] @ t[f"{name}.lora_A_experts.{expert}"]
        else:
            scale = torch.diag(t[f"{name}.S_experts.{expert}"])
            weight += gate * t[f"{name}.U_experts.{expert}"] @ scale @ t[f"{name}.V_experts.{expert}"]
    if f"{name}.S_residual" in t:
        weight += t[f"{name}.U_residual"] @ torch.diag(t[f"{name}.S_residual"]) @ t[f"{name}.V_residual"]
    return x @ weight.T + t.get(f"{name}.bias", 0)


def _attention(t, name, x, gates, angles):
    query, key, value = (_linear(t, f"{name}{part}_proj", x, gates) for part in "qkv")
    heads = []
    for start in range(0, WIDTH, HEAD):
        q, k, v = (tensor[:, start : start + HEAD] for tensor in (query, key, value))
        if angles is not None:
            q, k = _turned(q, angles), _turned(k, angles)
        weights = (q @ k.T / math.sqrt(HEAD)).exp()
        heads.append(weights / weights.sum(1, keepdim=True) @ v)
    return torch.cat(heads, 1)


def _turned(x, angles):
    """Each pair of channels (i, i + 32) of the patches, which come last, turned as a complex number."""
    pairs = torch.complex(x[-len(angles) :, : HEAD // 2], x[-len(angles) :, HEAD // 2 :])
    turned = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([x[: -len(angles)], torch.cat([turned.real, turned.imag], 1)])


# --- pictures -----------------------------------------------------------------------------------------------------


def pictures(count=4, *, size=(37, 50), seed=0):
    """Smooth random pictures."""
    rng = np.random.default_rng(seed)
    small = (rng.uniform(0, 255, (5, 5, 3)).astype(np.uint8) for _ in range(count))
    return [Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC) for pixels in small]


def odd_pictures():
    """Pictures of one pixel, with a palette, in CMYK, of 16 bits, and one whose data end too early."""
    one, wide = Image.new("RGB", (1, 1), "red"), Image.linear_gradient("L")
    deep = Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64))
    return [one, wide.convert("P"), wide.convert("CMYK"), deep, _truncated()]


def _truncated():
    header = struct.pack(">IIBBBBB", 40, 40, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(900))[:10])]
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in chunks:
        data += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return Image.open(io.BytesIO(data))


def squashed(images, side, *, via=None, statistics=CLIP_STATISTICS):
    """Normalised pixels (B, 3, side, side) in float64, by Pillow and numpy."""
    mean, std = (np.array(part) for part in statistics)
    prepared = []
    for image in images:
        steps = [via, side] if via else [side]
        for step in steps:
            image = image.resize((step, step), Image.Resampling.BILINEAR)  # noqa: PLW2901
        prepared.append(((np.asarray(image) / 255 - mean) / std).transpose(2, 0, 1))
    return torch.from_numpy(np.stack(prepared))


def gradient_error(scorer, size=(30, 34), *, seed=0) -> float:
    """Largest difference between a scorer's gradient in three directions and central differences, in float64."""
    generator = torch.Generator().manual_seed(seed)
    scorer.module.double()
    pixels = (0.2 + 0.6 * torch.rand(1, 3, *size, generator=generator, dtype=torch.float64)).requires_grad_()
    (gradient,) = torch.autograd.grad(scorer.differentiable(pixels).sum(), pixels)
    assert gradient.abs().max() > 1e-6
    errors = []
    for _ in range(3):
        direction = torch.randn(pixels.shape, generator=generator, dtype=torch.float64)
        direction /= direction.norm()
        with torch.no_grad():
            ahead, behind = (scorer.differentiable(pixels + step * direction) for step in (1e-5, -1e-5))
        errors.append(abs(((ahead - behind) / 2e-5 - (gradient * direction).sum()).item()))
    return max(errors) / gradient.norm().item()


def assert_contract(scorer, images: list[Image.Image]) -> None:
    """What every scorer keeps to."""
    before = [image.tobytes() for image in images]
    state = torch.get_rng_state()
    together = values(scorer(images, [""] * len(images)))
    alone = [values(scorer([image], ["a prompt"]))[0] for image in images]
    backwards = values(scorer(images[::-1], [""] * len(images)))[::-1]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(together, backwards, atol=1e-5)
    assert all(0 <= value <= 1 for value in together)
    assert [image.tobytes() for image in images] == before
    assert torch.equal(state, torch.get_rng_state())
    assert scorer([], []) == []
    odd = scorer(odd_pictures(), [""] * 5)
    assert [score.value is None for score in odd] == [False] * 4 + [True]
    assert odd[4].reason
    assert not scorer.module.training
    assert (scorer.info.low, scorer.info.high, scorer.info.is_detector) == (0, 1, True)


def values(scores) -> list[float]:
    return [score.value for score in scores]
