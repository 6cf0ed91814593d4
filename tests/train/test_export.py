"""One file, one meaning: stock diffusers, ComfyUI's rule and the trained module draw the same picture."""

import inspect
import json
import os
import stat

import numpy as np
import pytest
import torch
from diffusers import (
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from realgen.core.errors import InputError, OutputError
from realgen.generators.flux import FluxBackbone
from realgen.generators.qwen_image import QwenImageBackbone
from realgen.generators.sd3 import SD3Backbone
from realgen.generators.z_image import ZImageBackbone
from realgen.train.export import lora_state, merge_lora, write_lora

ADAPTERS = {
    "alpha twice the rank": {"r": 4, "lora_alpha": 8},
    "alpha a quarter of the rank": {"r": 8, "lora_alpha": 2},
    "ranks and alphas by layer": {
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {"to_q": 2, "to_v": 6},
        "alpha_pattern": {"to_q": 7, "to_k": 3},
    },
}
PLAIN = ADAPTERS["alpha twice the rank"]
MIXED = ADAPTERS["ranks and alphas by layer"]
TARGETS = list(FluxBackbone.lora_targets)


def add_lora(module, *, targets=TARGETS, adapter="default", seed=0, size=0.1, **config):
    """A LoRA that has learnt: A and B are drawn from the seed, so that it draws another picture than the base."""
    module.add_adapter(LoraConfig(target_modules=targets, **config), adapter)
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            if f".lora_A.{adapter}.weight" in name or f".lora_B.{adapter}.weight" in name:
                deviation = size if ".lora_B." in name else value.shape[1] ** -0.5
                value.copy_(torch.randn(value.shape, generator=draws) * deviation)
    return module


def open_pipeline(folder):
    """The embedded generator as anyone opens it."""
    opened = FluxPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    opened.set_progress_bar_config(disable=True)
    return opened


@pytest.fixture
def pipeline(tiny_weights):
    return open_pipeline(tiny_weights)


@pytest.fixture(scope="module")
def without(tiny_weights):
    """The picture of the base model."""
    return draw(open_pipeline(tiny_weights))


@pytest.fixture
def small():
    """A FLUX.1 transformer of a few thousand weights."""
    return small_flux()


def draw(pipeline):
    """(64, 64, 3) in [0, 1], always of the same noise."""
    drawn = pipeline(
        "a red car in the street",
        height=64,
        width=64,
        num_inference_steps=2,
        max_sequence_length=64,
        generator=torch.Generator().manual_seed(3),
        output_type="np",
    )
    return drawn.images[0]


def gap(one, other):
    return float(np.abs(one - other).max())


def comfy_deltas(tensors, module):
    """ComfyUI's rule (comfy/lora.py, comfy/weight_adapter/lora.py): {weight: scale B A}; every key must be used.

    Its key map names a weight X `transformer.X` for FLUX, SD3, Z-Image and Qwen-Image alike.
    """
    spellings = [(".lora_up.weight", ".lora_down.weight"), ("_lora.up.weight", "_lora.down.weight")]
    spellings += [(".lora_B.weight", ".lora_A.weight"), (".lora.up.weight", ".lora.down.weight")]
    deltas, used = {}, set()
    for name, weight in module.state_dict().items():
        x = "transformer." + name.removesuffix(".weight")
        for up, down in spellings:
            if name.endswith(".weight") and x + up in tensors:
                b, a = tensors[x + up].float(), tensors[x + down].float()
                scale = tensors[x + ".alpha"].item() / len(a) if x + ".alpha" in tensors else 1.0
                deltas[name] = scale * (b.flatten(1) @ a.flatten(1)).reshape(weight.shape)
                used |= {x + up, x + down, x + ".alpha"}
    assert set(tensors) <= used, "lora key not loaded"
    return deltas


def deltas_of(module, adapter):
    """What PEFT itself adds: {weight: delta}."""
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, LoraLayer)}
    return {f"{name}.weight": layer.get_delta_weight(adapter).detach() for name, layer in layers.items()}


def small_flux():
    return FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(2, 2, 4),
    )


def small_sd3():
    return SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        caption_projection_dim=16,
        pooled_projection_dim=8,
        pos_embed_max_size=8,
    )


def small_qwen():
    return QwenImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        axes_dims_rope=(2, 2, 4),
    )


def small_z_image():
    return ZImageTransformer2DModel(
        in_channels=4,
        dim=16,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=8,
        axes_dims=[2, 2, 4],
        axes_lens=[16, 16, 16],
    )


FAMILIES = {
    "FLUX.1": (FluxPipeline, small_flux, FluxBackbone.lora_targets),
    "SD3": (StableDiffusion3Pipeline, small_sd3, SD3Backbone.lora_targets),
    "Qwen-Image": (QwenImagePipeline, small_qwen, QwenImageBackbone.lora_targets),
    "Z-Image": (ZImagePipeline, small_z_image, ZImageBackbone.lora_targets),
}


@pytest.mark.parametrize("config", ADAPTERS.values(), ids=ADAPTERS)
def test_every_reader_draws_the_trained_picture(config, pipeline, without, tiny_weights, tmp_path):
    add_lora(pipeline.transformer, **config)
    trained = draw(pipeline)
    assert gap(trained, without) > 1e-2
    file = write_lora(pipeline.transformer, tmp_path)
    assert file == tmp_path / "pytorch_lora_weights.safetensors"
    in_diffusers, in_comfy = open_pipeline(tiny_weights), open_pipeline(tiny_weights)
    in_diffusers.load_lora_weights(tmp_path)
    assert gap(draw(in_diffusers), trained) < 1e-4
    with torch.no_grad():
        for name, delta in comfy_deltas(load_file(file), in_comfy.transformer).items():
            in_comfy.transformer.get_parameter(name).add_(delta)
    assert gap(draw(in_comfy), trained) < 1e-4


@pytest.mark.parametrize("with_metadata", [True, False])
@pytest.mark.parametrize(("cls", "build", "targets"), FAMILIES.values(), ids=FAMILIES)
def test_every_family_reads_the_same_weights(cls, build, targets, with_metadata, tmp_path):
    trained, fresh = add_lora(build(), targets=list(targets), **MIXED), build()
    expected = deltas_of(trained, "default")
    file = write_lora(trained, tmp_path / "lora.safetensors")
    if not with_metadata:
        save_file(load_file(file), file)
    in_comfy = comfy_deltas(load_file(file), fresh)
    parts = inspect.signature(cls.__init__).parameters.keys() - {"self", "transformer", "is_distilled"}
    cls(transformer=fresh, **dict.fromkeys(parts)).load_lora_weights(file)
    loaded = deltas_of(fresh, "default_0")
    assert loaded.keys() == expected.keys() == in_comfy.keys()
    assert all(any(name.endswith(f"{target}.weight") for name in expected) for target in targets)
    for name, delta in expected.items():
        assert delta.abs().max() > 1e-3
        assert torch.allclose(loaded[name], delta, rtol=0, atol=1e-7)
        assert torch.allclose(in_comfy[name], delta, rtol=0, atol=1e-7)


def test_each_layer_keeps_its_own_rank_and_scale(small):
    add_lora(small, **MIXED)
    state = lora_state(small)
    block = "transformer_blocks.0."
    for layer, rank, alpha in [("attn.to_q", 2, 7), ("attn.to_v", 6, 8), ("attn.to_k", 4, 3), ("ff.net.2", 4, 8)]:
        trained = small.get_submodule(block + layer)
        a, b = (state[f"transformer.{block}{layer}.lora_{part}.weight"] for part in "AB")
        assert a.shape[0] == b.shape[1] == rank
        assert torch.equal(a, trained.lora_A["default"].weight)
        assert torch.allclose(b, trained.lora_B["default"].weight * alpha / rank, rtol=1e-6)


def test_a_scale_by_the_root_of_the_rank_is_folded_too(small):
    add_lora(small, r=4, lora_alpha=8, use_rslora=True)
    expected = small.get_submodule("transformer_blocks.0.attn.to_q").lora_B["default"].weight * 8 / 2
    assert torch.equal(lora_state(small)["transformer.transformer_blocks.0.attn.to_q.lora_B.weight"], expected)


def test_the_metadata_says_alpha_is_rank(small, tmp_path):
    add_lora(small, targets=["attn.to_q", "attn.to_k", "attn.to_v"], r=4, lora_alpha=8, rank_pattern={"attn.to_q": 2})
    with safe_open(write_lora(small, tmp_path), "pt") as file:
        keys, metadata = list(file.keys()), file.metadata()
    assert all(key.endswith((".lora_A.weight", ".lora_B.weight")) for key in keys)
    config = json.loads(metadata["lora_adapter_metadata"])
    blocks = ["single_transformer_blocks.0", "transformer_blocks.0"]
    assert config == {
        "transformer.r": 4,
        "transformer.lora_alpha": 4,
        "transformer.rank_pattern": {f"^{block}.attn.to_q": 2 for block in blocks},
        "transformer.alpha_pattern": {f"^{block}.attn.to_q": 2 for block in blocks},
        "transformer.target_modules": [f"{block}.attn.to_{part}" for block in blocks for part in "kqv"],
    }


def test_the_tensors_are_a_copy_in_float32_whatever_the_module_is_in(small):
    add_lora(small, r=4, lora_alpha=4)
    small.to(torch.bfloat16)
    state = lora_state(small)
    before = {key: value.clone() for key, value in state.items()}
    with torch.no_grad():
        for value in small.parameters():
            value.zero_()
    assert {value.dtype for value in state.values()} == {torch.float32}
    assert all(torch.equal(value, before[key]) for key, value in state.items())


def test_the_chosen_adapter_is_written_at_its_strength(small):
    add_lora(small, **PLAIN)
    add_lora(small, adapter="other", seed=1, r=2, lora_alpha=2)
    whole = lora_state(small, adapter="other")
    small.set_adapters(["other"], [0.5])
    half = lora_state(small, adapter="other")
    key = "transformer.transformer_blocks.0.attn.to_q.lora_B.weight"
    assert whole[key].shape[1] == 2
    assert torch.equal(half[key], whole[key] / 2)


def test_half_the_bytes_draw_nearly_the_same_picture(pipeline, tiny_weights, tmp_path):
    add_lora(pipeline.transformer, **PLAIN)
    file = write_lora(pipeline.transformer, tmp_path / "run" / "half.safetensors", dtype=torch.bfloat16)
    assert file == tmp_path / "run" / "half.safetensors"
    assert {value.dtype for value in load_file(file).values()} == {torch.bfloat16}
    loaded = open_pipeline(tiny_weights)
    loaded.load_lora_weights(file)
    assert gap(draw(loaded), draw(pipeline)) < 2 / 255


def test_a_merged_pipeline_is_a_plain_folder_that_draws_the_same(pipeline, without, tmp_path):
    names = set(pipeline.transformer.state_dict())
    add_lora(pipeline.transformer, **PLAIN)
    trained = draw(pipeline)
    assert gap(trained, without) > 1e-2
    merge_lora(pipeline.transformer)
    assert set(pipeline.transformer.state_dict()) == names
    assert gap(draw(pipeline), trained) < 1e-5
    pipeline.save_pretrained(tmp_path)
    assert gap(draw(open_pipeline(tmp_path)), trained) < 1e-5
    add_lora(pipeline.transformer, r=2, lora_alpha=2)  # the next round of training starts from the merged weights


def test_only_active_adapters_are_merged(small):
    inputs = {
        "hidden_states": torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(0)),
        "encoder_hidden_states": torch.ones(1, 3, 8),
        "pooled_projections": torch.ones(1, 8),
        "timestep": torch.tensor([0.5]),
        "img_ids": torch.zeros(6, 3),
        "txt_ids": torch.zeros(3, 3),
    }
    small.eval()
    add_lora(small, size=0.5, **PLAIN)
    add_lora(small, adapter="other", seed=1, size=0.5, r=2, lora_alpha=2)
    with torch.no_grad():
        small.set_adapters(["default"])
        one = small(**inputs).sample
        small.set_adapters(["other"])
        other = small(**inputs).sample
        merge_lora(small)
        merged = small(**inputs).sample
    assert (merged - other).abs().max() < 1e-5
    assert (merged - one).abs().max() > 1e-2


@pytest.mark.parametrize("act", [lora_state, merge_lora, lambda module: write_lora(module, None)])
def test_a_module_without_a_lora_is_an_error(small, act):
    with pytest.raises(InputError, match="FluxTransformer2DModel has no LoRA") as caught:
        act(small)
    assert "add_adapter" in caught.value.hint


def test_a_name_that_no_adapter_has_is_an_error(small):
    add_lora(small, **PLAIN)
    with pytest.raises(InputError, match="no LoRA named other"):
        lora_state(small, adapter="other")


def test_a_wrapper_is_an_error_for_its_layers_have_other_names(small):
    wrapped = get_peft_model(small, LoraConfig(target_modules=["attn.to_q"]))
    with pytest.raises(InputError, match="no LoRA"):
        lora_state(wrapped)


@pytest.mark.parametrize("kind", [{"use_dora": True}, {"lora_bias": True}, {"modules_to_save": ["proj_out"]}])
def test_what_the_file_cannot_say_is_an_error(small, kind):
    add_lora(small, targets=["attn.to_q"], **PLAIN, **kind)
    with pytest.raises(InputError, match="cannot"):
        lora_state(small)


def test_a_failed_write_leaves_the_old_file(small, tmp_path, monkeypatch):
    add_lora(small, **PLAIN)
    file = write_lora(small, tmp_path)
    before = file.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match="No space left") as caught:
        write_lora(small, tmp_path)
    assert caught.value.hint
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_that_cannot_be_made_is_an_error(small, tmp_path):
    add_lora(small, **PLAIN)
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OutputError, match="taken"):
        write_lora(small, tmp_path / "taken")


def test_a_process_that_does_not_write_still_names_the_file(small, tmp_path):
    add_lora(small, **PLAIN)
    assert write_lora(small, tmp_path, writes=False) == tmp_path / "pytorch_lora_weights.safetensors"
    assert not list(tmp_path.iterdir())


def test_others_may_read_the_file(small, tmp_path):
    add_lora(small, **PLAIN)
    (tmp_path / "any").write_text("")
    written = write_lora(small, tmp_path)
    assert stat.S_IMODE(written.stat().st_mode) == stat.S_IMODE((tmp_path / "any").stat().st_mode)
