"""Our towers against transformers' own: plain, and with their weights split into a main part and experts."""

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, DINOv3ViTConfig, DINOv3ViTModel

from conftest import FLOAT32
from realgen.scorers._mixture import build_mixture, published
from realgen.scorers._shapes import TowerShape
from realgen.scorers._towers import ClipTower, DinoTower
from realgen.scorers._weights import fill

SIZES = {"hidden_size": 128, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
SHAPE = TowerShape(width=128, num_layers=2, mlp=48, patch=14, side=28, num_registers=3)


def clip():
    torch.manual_seed(0)
    config = CLIPVisionConfig(**SIZES, image_size=28, patch_size=14, hidden_act="quick_gelu", initializer_factor=5.0)
    return CLIPVisionModel(config).eval()


def dino():
    torch.manual_seed(0)
    config = DINOv3ViTConfig(
        **SIZES, image_size=28, patch_size=14, num_register_tokens=3, initializer_range=0.2, pos_embed_rescale=2.0
    )
    return DINOv3ViTModel(config).eval()


def clip_tensors(model):
    """The tower's tensors under the names of OmniAID's first tower."""
    renames = {"pre_layrnorm": "ln_pre", "encoder.layers": "encoder_layers", "post_layernorm": "ln_post"}
    tensors = {}
    for name, tensor in model.state_dict().items():
        ours = name.removeprefix("vision_model.")
        for old, new in renames.items():
            ours = ours.replace(old, new)
        tensors[ours] = tensor
    return tensors


def dino_tensors(model):
    return {name.removeprefix("model."): tensor for name, tensor in model.state_dict().items()}


def pixels():
    return torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("model", "names", "tower"), [(clip, clip_tensors, ClipTower), (dino, dino_tensors, DinoTower)]
)
def test_a_plain_tower_is_transformers_own(model, names, tower):
    theirs = model()
    ours = fill(lambda: tower(SHAPE, lambda linear: linear), names(theirs), source="x", machine=FLOAT32)
    with torch.no_grad():
        wanted = theirs(pixels()).pooler_output
        torch.testing.assert_close(ours(pixels()), wanted, atol=1e-5, rtol=1e-5)


def test_dinov3s_positions_are_the_same_in_training():
    ours = fill(lambda: DinoTower(SHAPE, lambda linear: linear), dino_tensors(dino()), source="x", machine=FLOAT32)
    with torch.no_grad():
        before = ours(pixels())
        torch.testing.assert_close(ours.train()(pixels()), before)


def split(tensors, names, *, rank, num_experts):
    """Every projection as its main part and the experts' share of the rest, which sum to the whole."""
    parts = {name: tensor for name, tensor in tensors.items() if not name.endswith(names)}
    for name in (name for name in tensors if name.endswith(names)):
        u, s, v = torch.linalg.svd(tensors[name].double())
        root = name.removesuffix("weight")
        parts[f"{root}weight_main"] = (u[:, :-rank] @ torch.diag(s[:-rank]) @ v[:-rank]).float()
        for expert in range(num_experts):
            parts[f"{root}U_experts.{expert}"] = u[:, -rank:].float()
            parts[f"{root}S_experts.{expert}"] = s[-rank:].float() / 2  # the routed gates sum to 1, the last is 1
            parts[f"{root}V_experts.{expert}"] = v[-rank:].float()
    return parts


@pytest.mark.parametrize("rank", [1, 8])
@pytest.mark.parametrize("kind", ["clip", "dino"])
def test_weights_split_over_the_experts_give_the_plain_towers_vector(kind, rank):
    theirs = clip() if kind == "clip" else dino()
    plain = clip_tensors(theirs) if kind == "clip" else dino_tensors(theirs)
    last = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "out_proj.weight", "o_proj.weight")
    tensors = split(plain, last, rank=rank, num_experts=4)
    generator = torch.Generator().manual_seed(2)
    for name, shape in (("network.0", (8, 128)), ("network.2", (3, 8))):
        tensors[f"gating_network.{name}.weight"] = torch.randn(shape, generator=generator)
        tensors[f"gating_network.{name}.bias"] = torch.randn(shape[0], generator=generator)
    tensors["head.weight"] = torch.randn(2, 128, generator=generator)
    tensors["head.bias"] = torch.zeros(2)
    bodies = {f"feature_extractor.{name.removeprefix('vision_model.')}": t for name, t in theirs.state_dict().items()}
    tensors = published({**tensors, **bodies})
    ours = fill(lambda: build_mixture(tensors, top_k=2, source="x"), tensors, source="x", machine=FLOAT32)
    with torch.no_grad():
        wanted = theirs(pixels()).pooler_output @ tensors["head.weight"].T
        torch.testing.assert_close(ours(pixels()), wanted, atol=1e-4, rtol=1e-4)
