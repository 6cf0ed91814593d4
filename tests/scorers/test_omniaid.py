"""OmniAID against its published formulas worked out slowly, its sign, its gradients, and every file it must refuse."""

import argparse
import os
import sys

import pytest
import torch
from safetensors.torch import save_file

from conftest import FLOAT32
from realgen.core.errors import ConfigError, ModelError
from realgen.core.plugins import configure
from realgen.core.spec import Machine
from realgen.hub import card as cards
from realgen.scorers._pixels import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, Preprocess
from realgen.scorers.omniaid import Options, build
from tiny_detectors import (
    CLIP_SIDE,
    DINO_SIDE,
    IMAGENET_STATISTICS,
    assert_contract,
    gradient_error,
    p_real,
    pictures,
    random_effort,
    random_omniaid,
    squashed,
    values,
)

VARIANTS = [
    ("clip", "svd", True),
    ("clip", "svd", False),
    ("clip", "lora", True),
    ("clip", "lora", False),
    ("dino", "svd", True),
    ("dino", "lora", True),
]
DROPPED = ("U_r", "V_r", "weight_original_fnorm")


@pytest.fixture
def save(tmp_path):
    """Writes a checkpoint as OmniAID's trainer does; gives its path."""

    def save(tensors, name="checkpoint.pth", **extra):
        torch.save({"model": tensors, "epoch": 3, "args": argparse.Namespace(lr=1e-4), **extra}, tmp_path / name)
        return str(tmp_path / name)

    return save


def opened(path, tower="clip", **options):
    size = {"size": DINO_SIDE} if tower == "dino" else {}
    return build(Options(model=path, **{**size, **options}), FLOAT32)


@pytest.mark.parametrize(("tower", "kind", "extractor"), VARIANTS)
def test_scores_are_those_of_the_published_formulas(save, tower, kind, extractor):
    tensors = random_omniaid(tower, kind=kind, extractor=extractor)
    scorer = opened(save(tensors), tower, via=40)
    images = pictures()
    statistics = {"statistics": IMAGENET_STATISTICS} if tower == "dino" else {}
    pixels = squashed(images, DINO_SIDE if tower == "dino" else CLIP_SIDE, via=40, **statistics)
    wanted = p_real(tensors, pixels, tower=tower)
    assert wanted.std() > 1e-3
    assert values(scorer(images, [""] * 4)) == pytest.approx(wanted.tolist(), abs=2e-5)


@pytest.mark.parametrize(
    ("num_experts", "num_routed", "top_k", "rank", "hidden"), [(3, 2, 1, 4, 8), (6, 5, 2, 1, 16), (3, 3, 2, 2, 8)]
)
def test_sizes_are_read_from_the_tensors(save, num_experts, num_routed, top_k, rank, hidden):
    shape = {"num_experts": num_experts, "num_routed": num_routed, "rank": rank, "hidden": hidden}
    tensors = random_omniaid(**shape)
    scorer = opened(save(tensors), top_k=top_k)
    images = pictures(2)
    wanted = p_real(tensors, squashed(images, CLIP_SIDE), top_k=top_k, num_experts=num_experts)
    assert values(scorer(images, ["", ""])) == pytest.approx(wanted.tolist(), abs=2e-5)


@pytest.mark.parametrize(("index", "wanted"), [(0, 1.0), (1, 0.0)])
def test_the_heads_first_class_is_real(save, index, wanted):
    tensors = random_omniaid()
    tensors["head.bias"][index] = 100.0
    assert values(opened(save(tensors))(pictures(2), ["", ""])) == pytest.approx([wanted] * 2, abs=1e-6)


@pytest.mark.parametrize(("tower", "kind", "extractor"), VARIANTS)
def test_gradients_to_the_pixels_are_those_of_finite_differences(save, tower, kind, extractor):
    scorer = opened(save(random_omniaid(tower, kind=kind, extractor=extractor)), tower, via=36)
    assert gradient_error(scorer) < 1e-6


def test_the_differentiable_path_is_the_other_one_where_nothing_is_resized(save):
    scorer = opened(save(random_omniaid()))
    images = pictures(size=(CLIP_SIDE, CLIP_SIDE))
    pixels = torch.stack([torch.tensor(list(image.getdata())).T.reshape(3, CLIP_SIDE, CLIP_SIDE) for image in images])
    found = scorer.differentiable(pixels / 255)
    assert found.tolist() == pytest.approx(values(scorer(images, [""] * 4)), abs=1e-6)


@pytest.mark.parametrize("tower", ["clip", "dino"])
def test_the_contract_of_every_scorer(save, tower):
    assert_contract(opened(save(random_omniaid(tower)), tower), pictures())


def test_its_state_is_the_published_layout_and_reads_back(save, tmp_path):
    for tower in ("clip", "dino"):
        tensors = random_omniaid(tower)
        scorer = opened(save(tensors), tower)
        state = scorer.module.state_dict()
        assert set(state) == {name for name in tensors if not name.endswith(DROPPED)}
        save_file(state, tmp_path / f"{tower}.safetensors")
        again = opened(str(tmp_path / f"{tower}.safetensors"), tower)
        assert values(again(pictures(1), [""])) == pytest.approx(values(scorer(pictures(1), [""])), abs=1e-6)


def test_a_second_tower_under_newer_names_is_read(save):
    tensors = random_omniaid("dino")
    renamed = {
        name.replace("feature_extractor.layer.", "feature_extractor.model.layer."): tensors[name] for name in tensors
    }
    assert renamed.keys() != tensors.keys()
    old, new = opened(save(tensors), "dino"), opened(save(renamed, "new.pth"), "dino")
    assert values(old(pictures(1), [""])) == pytest.approx(values(new(pictures(1), [""])), abs=1e-6)


def test_every_wrapper_is_taken_off(save, tmp_path):
    tensors = random_omniaid()
    wanted = values(opened(save(tensors))(pictures(1), [""]))
    prefixed = {f"module.{name}": tensor for name, tensor in tensors.items()}
    torch.save(prefixed, tmp_path / "bare.pth")
    (tmp_path / "folder").mkdir()
    torch.save({"state_dict": prefixed}, tmp_path / "folder" / "some.pt")
    for path in (tmp_path / "bare.pth", tmp_path / "folder"):
        assert values(opened(str(path))(pictures(1), [""])) == pytest.approx(wanted, abs=1e-6)


def test_a_refresh_trains_the_head_and_the_experts_and_nothing_else(save):
    scorer = opened(save(random_omniaid()))
    assert not any(parameter.requires_grad for parameter in scorer.module.parameters())
    names = set(scorer.trainable_parameters())
    assert {"head.weight", "head.bias", "encoder_layers.1.self_attn.out_proj.V_experts.3"} <= names
    assert all(name.startswith("head.") or "_experts." in name for name in names)
    assert len(names) == 2 + 2 * 4 * 4 * 3  # head; layers, projections, experts, U S V
    lora = opened(save(random_omniaid(kind="lora")))
    assert set(lora.trainable_parameters()) == {"head.weight", "head.bias"}


def test_a_step_on_the_trainable_parameters_changes_the_score(save):
    scorer = opened(save(random_omniaid()))
    parameters = [parameter.requires_grad_() for parameter in scorer.trainable_parameters().values()]
    pixels = torch.full((1, 3, 30, 30), 0.5)
    before = scorer.differentiable(pixels)
    before.sum().backward()
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(parameter.grad, alpha=0.05)
    assert scorer.differentiable(pixels).item() > before.item()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"head.bias": None}, "lacks head.bias"),
        ({"encoder_layers.1.mlp.fc1.weight": None}, "encoder_layers.1.mlp.fc1.weight"),
        ({"encoder_layers.0.self_attn.q_proj.V_experts.0": None}, "encoder_layers.0.self_attn.q_proj.V_experts.0"),
        ({"stranger": torch.zeros(1)}, "stranger"),
        ({"head.weight": torch.zeros(3, 128)}, r"head.weight.*\(3, 128\)"),
        ({"gating_network.network.2.weight": torch.zeros(9, 12)}, "4 experts, of which it routes 9"),
        ({"embeddings.class_embedding": torch.zeros(100)}, "width 100 is no multiple of 64"),
        ({"embeddings.class_embedding": torch.zeros(())}, "lacks embeddings.class_embedding"),
    ],
)
def test_a_file_that_does_not_fit_is_named_in_one_line(save, change, said):
    tensors = {name: tensor for name, tensor in {**random_omniaid(), **change}.items() if tensor is not None}
    path = save(tensors)
    with pytest.raises(ModelError, match=said) as caught:
        opened(path)
    assert path in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_a_file_of_another_detector_is_refused(save):
    with pytest.raises(ModelError, match=r"not for this plug-in.*backbone\.embeddings"):
        opened(save(random_effort()))
    with pytest.raises(ModelError, match="feature_extractor"):
        opened(save(random_omniaid("dino", extractor=False)), "dino")


def test_a_truncated_file_is_refused(save):
    path = save(random_omniaid())
    with open(path, "r+b") as stream:  # noqa: PTH123
        stream.truncate(os.path.getsize(path) // 2)  # noqa: PTH202
    with pytest.raises(ModelError, match="damaged"):
        opened(path)


class Payload:
    """Pickled, it is a call that leaves a trace."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (self.trace,)


def test_code_in_a_checkpoint_is_refused_and_never_runs(save, tmp_path):
    trace = tmp_path / "it ran"
    path = save(random_omniaid(), hook=Payload(str(trace)))
    with pytest.raises(ModelError, match=r"mkdir.*refused, and nothing in it was executed"):
        opened(path)
    assert not trace.exists()


def test_without_a_model_it_says_what_to_give():
    with pytest.raises(ConfigError, match="omniaid: no model") as caught:
        build(Options(), FLOAT32)
    assert "options.model" in caught.value.hint


def test_a_transformers_without_dinov3_says_so(save, monkeypatch):
    path = save(random_omniaid("dino"))
    monkeypatch.setitem(sys.modules, "transformers.models.dinov3_vit.modeling_dinov3_vit", None)
    with pytest.raises(ModelError, match="knows no DINOv3") as caught:
        opened(path, "dino")
    assert "transformers" in caught.value.hint


def test_a_size_that_the_tower_cannot_see_is_refused(save):
    with pytest.raises(ModelError, match="sees 28 pixels, not 336"):
        opened(save(random_omniaid()), size=336)
    with pytest.raises(ModelError, match="cannot see 50 pixels"):
        opened(save(random_omniaid("dino")), "dino", size=50)


def test_more_experts_at_a_time_than_are_routed_are_refused(save):
    with pytest.raises(ModelError, match="routes 3, 4 at a time"):
        opened(save(random_omniaid()), top_k=4)


def test_dinov3_sees_448_pixels_unless_told(save):
    scorer = build(Options(model=save(random_omniaid("dino"))), FLOAT32)
    assert scorer.preprocess == Preprocess(size=448, mean=IMAGENET_MEAN, std=IMAGENET_STD)


@pytest.mark.parametrize(
    ("card", "size", "via"),
    [
        ("omniaid-v1", 336, 512),
        ("omniaid-realgen", 336, 512),
        ("omniaid-v2", 336, None),
        ("omniaid-dino-v2", 448, 512),
    ],
)
def test_every_card_names_the_pictures_its_weights_were_trained_on(card, size, via):
    read = cards.read(card)
    options = configure("scorers", "omniaid", read.options)
    assert (options.size, options.via, options.top_k) == (size, via, 2)
    assert (read.plugin, read.source.kind, read.source.convert) == ("omniaid", "hub", "checkpoint")
    assert read.licence in {"MIT", "Apache-2.0", "MIT AND LicenseRef-DINOv3-License"}
    assert not read.is_held_out


def test_the_preprocessing_of_a_card_is_that_of_its_authors():
    images = pictures(1, size=(700, 410))
    found = Preprocess(size=336, via=512, mean=CLIP_MEAN, std=CLIP_STD)(images[0])
    torch.testing.assert_close(found.double(), squashed(images, 336, via=512)[0], atol=1e-5, rtol=0)


def test_its_origin_is_named(save):
    info = opened(save(random_omniaid())).info
    assert (info.licence, info.is_held_out) == ("MIT", False)
    assert "2511.08423" in info.source


def test_another_number_format_is_obeyed_and_the_default_is_float32(save):
    path = save(random_omniaid("dino"))
    half = build(Options(model=path, size=DINO_SIDE), Machine(device="cpu", dtype="bfloat16"))
    whole = build(Options(model=path, size=DINO_SIDE), Machine(device="cpu"))
    assert next(half.module.parameters()).dtype == torch.bfloat16
    assert next(whole.module.parameters()).dtype == torch.float32
    assert half.module.rope_embeddings.inv_freq.dtype == torch.float32
    images = pictures(2)
    assert values(half(images, ["", ""])) == pytest.approx(values(whole(images, ["", ""])), abs=0.1)
