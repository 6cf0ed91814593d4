"""What every flow backbone keeps to, over tiny checkpoints of each; and packing and guidance by hand."""

import numpy as np
import pytest
import torch
from PIL import Image

from generators.sampling import build, final_latents
from realgen.core import plugins
from realgen.core.errors import ConfigError, InputError
from realgen.core.spec import Machine
from realgen.generators._packed import guidance_scales, pack, unpack

GUIDANCE = {"flux": 3.5, "qwen_image": 4.0, "sd3": 4.5, "z_image": 4.0}
SIZE = (64, 48)


@pytest.fixture(params=sorted(GUIDANCE))
def name(request):
    return request.param


def velocity_of(backbone, texts, *, guidance, seeds=(0, 1), sigma=(0.9, 0.3)):
    condition, x = backbone.encode(texts), backbone.noise(seeds[: len(texts)], SIZE)
    return backbone.velocity(x, torch.tensor(sigma[: len(texts)]), condition, guidance=guidance, size=SIZE)


def picture(size=SIZE):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


# ---- sampling -------------------------------------------------------------------------------------------


def test_a_batch_of_two_is_two_batches_of_one(name):
    backbone, texts = build(name).backbone, ["a", "two dogs on a wall"]
    given = {"steps": 3, "size": SIZE, "guidance": GUIDANCE[name]}
    together = final_latents(backbone, texts, seeds=[7, 8], **given)
    pixels = backbone.decode(together, SIZE)
    for i, text in enumerate(texts):
        alone = final_latents(backbone, [text], seeds=[7 + i], **given)
        assert (alone[0] - together[i]).abs().max() < 1e-4
        assert (backbone.decode(alone, SIZE)[0] - pixels[i]).abs().max() < 1e-4


def test_levels_fall_from_one_to_zero(name):
    for steps in (2, 5, 28):
        levels = build(name).backbone.sigmas(steps, SIZE)
        assert levels.shape == (steps + 1,)
        assert (levels[0], levels[-1]) == (1, 0)
        assert (levels.diff() < 0).all()


def test_noise_is_a_seeds_and_float32(name):
    backbone = build(name).backbone
    both, second = backbone.noise([5, 6], SIZE), backbone.noise([6], SIZE)
    assert both.shape == (2, 12, 16)
    assert both.dtype == torch.float32
    assert torch.equal(both[1:], second)


def test_guidance_may_differ_from_image_to_image(name):
    backbone, texts = build(name).backbone, ["a cat", "b"]
    with torch.no_grad():
        together = velocity_of(backbone, texts, guidance=torch.tensor([0.0, GUIDANCE[name]]))
        for i, guidance in enumerate((0.0, GUIDANCE[name])):
            alone = velocity_of(backbone, texts, guidance=guidance)
            assert (alone[i] - together[i]).abs().max() < 1e-5


# ---- the autoencoder ------------------------------------------------------------------------------------


def test_latents_of_an_image_are_decoded_as_the_autoencoder_does(name):
    backbone = build(name).backbone
    vae = backbone.pipeline.vae
    with torch.no_grad():
        x = backbone.latents([picture(), picture()])
        pixels = backbone.decode(x, SIZE)
        given = torch.from_numpy(np.array(picture())).permute(2, 0, 1)[None].float() / 127.5 - 1
        mean = vae.encode(given[:, :, None] if name == "qwen_image" else given).latent_dist.mean
        expected = vae.decode(mean).sample.view(1, 3, SIZE[1], SIZE[0])
    assert x.shape == (2, 12, 16)
    assert x.dtype == torch.float32
    assert pixels.shape == (2, 3, 48, 64)
    assert pixels.min() >= 0
    assert pixels.max() <= 1
    assert (pixels[:1] - (expected / 2 + 0.5).clamp(0, 1)).abs().max() < 1e-5


# ---- training -------------------------------------------------------------------------------------------


def test_gradients_reach_the_module_and_the_state_after_sampling(name):
    backbone = build(name).backbone
    final_latents(backbone, ["a", "bcd"], seeds=[0, 1], steps=2, size=SIZE, guidance=GUIDANCE[name])
    backbone.module.requires_grad_(True)
    x = backbone.noise([0, 1], SIZE).requires_grad_()
    condition = backbone.encode(["a", "bcd"])
    v = backbone.velocity(x, torch.tensor([0.9, 0.3]), condition, guidance=GUIDANCE[name], size=SIZE)
    (v - 1).square().mean().backward()
    assert v.dtype == torch.float32
    assert x.grad.abs().max() > 0
    layers = [layer for layer, _ in backbone.module.named_modules() if layer.endswith(backbone.lora_targets)]
    unused = 0
    for layer in layers:
        gradient = backbone.module.get_submodule(layer).weight.grad
        unused += gradient is None or not gradient.abs().max() > 0
        assert gradient is None or gradient.isfinite().all()
    assert unused <= 5, "all but the last block's text stream, which leads nowhere"
    assert len(layers) - unused >= 8


def test_the_layers_of_a_lora_are_there_and_learn(name):
    from peft import LoraConfig

    backbone = build(name).backbone
    layers = [layer for layer, _ in backbone.module.named_modules()]
    for target in backbone.lora_targets:
        assert any(layer.endswith("." + target) for layer in layers), target
    with torch.no_grad():
        before = velocity_of(backbone, ["a", "b"], guidance=GUIDANCE[name])
    backbone.module.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=list(backbone.lora_targets)))
    v = velocity_of(backbone, ["a", "b"], guidance=GUIDANCE[name])
    assert (v - before).abs().max() < 1e-5
    (v - 1).square().mean().backward()
    trained = {key: p for key, p in backbone.module.named_parameters() if p.requires_grad}
    assert all("lora" in key for key in trained)
    assert sum(p.grad is not None and bool(p.grad.abs().max() > 0) for p in trained.values()) >= 8


def test_a_saved_lora_is_loaded_at_its_strength(name, tmp_path):
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    backbone = build(name).backbone
    torch.manual_seed(0)
    targets = list(backbone.lora_targets)
    module = backbone.module
    module.add_adapter(LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=targets))
    backbone.pipeline.save_lora_weights(tmp_path, transformer_lora_layers=get_peft_model_state_dict(module))
    given = {"seeds": [0], "steps": 2, "size": SIZE, "guidance": GUIDANCE[name]}
    trained = final_latents(backbone, ["a"], **given)
    loaded = final_latents(build(name, lora=str(tmp_path)).backbone, ["a"], **given)
    without = final_latents(build(name).backbone, ["a"], **given)
    silent = final_latents(build(name, lora=str(tmp_path), lora_scale=0.0).backbone, ["a"], **given)
    assert (trained - loaded).abs().max() < 1e-4
    assert (trained - without).abs().max() > 1e-3
    assert (silent - without).abs().max() < 1e-5


def test_bfloat16_is_close_and_the_state_stays_float32(name):
    with torch.no_grad():
        exact = velocity_of(build(name).backbone, ["a", "bcd"], guidance=GUIDANCE[name])
        machine = Machine(device="cpu", dtype="bfloat16")
        backbone = build(name, machine=machine).backbone
        rounded = velocity_of(backbone, ["a", "bcd"], guidance=GUIDANCE[name])
        pixels = backbone.decode(backbone.latents([picture()]), SIZE)
    assert backbone.module.dtype == torch.bfloat16
    assert rounded.dtype == pixels.dtype == torch.float32
    assert torch.corrcoef(torch.stack([exact.flatten(), rounded.flatten()]))[0, 1] > 0.99


# ---- texts ----------------------------------------------------------------------------------------------


def test_remembered_texts_need_no_encoder_and_a_new_one_still_works(name, monkeypatch):
    backbone, texts = build(name).backbone, ["a", "a longer text"]
    with torch.no_grad():
        before = velocity_of(build(name).backbone, texts, guidance=GUIDANCE[name])
        backbone.remember(texts)
        with monkeypatch.context() as patch:
            patch.setattr(backbone._texts, "_encode", None)
            after = velocity_of(backbone, texts, guidance=GUIDANCE[name])
            assert len(velocity_of(backbone, texts[1:], guidance=GUIDANCE[name])) == 1
        assert (after - before).abs().max() < 1e-5
        assert len(velocity_of(backbone, ["a", "new"], guidance=GUIDANCE[name])) == 2


def test_remembering_sends_every_text_encoder_to_the_cpu(name, monkeypatch):
    backbone = build(name).backbone
    sent = []
    parts = {key: part for key, part in backbone.pipeline.components.items() if key.startswith("text_encoder")}
    for key, part in parts.items():
        monkeypatch.setattr(part, "to", lambda device, key=key: sent.append((key, device)))
    backbone.remember(["a"])
    assert sorted(sent) == [(key, "cpu") for key in sorted(parts)]


# ---- what is refused ------------------------------------------------------------------------------------


def test_a_size_that_cannot_be_drawn_names_the_nearest(name):
    backbone = build(name).backbone
    for size in ((72, 64), (0, 64), (64, -16), (8, 8)):
        with pytest.raises(InputError, match="multiples of 16") as caught:
            backbone.check_size(size)
        assert "nearest" in caught.value.hint
    with pytest.raises(InputError, match="multiples of 16"):
        build(name, size=(130, 64))


def test_an_unknown_option_and_no_model_are_errors(name):
    with pytest.raises(ConfigError):
        plugins.configure("generators", name, {"stepz": 3})
    with pytest.raises(ConfigError, match="no model"):
        build(name, model=None)


# ---- by hand --------------------------------------------------------------------------------------------


def test_packing_by_hand_and_back():
    latents = torch.arange(16.0).view(1, 1, 4, 4)
    tokens = pack(latents)
    assert tokens[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert torch.equal(unpack(tokens, 4, 4), latents)


def test_guidance_scales_by_hand():
    x = torch.zeros(2, 3, 4)
    assert guidance_scales(1.0, x, none=1) is None
    assert guidance_scales(0, x, none=0) is None
    assert guidance_scales(torch.tensor([0.5, 1.0]), x, none=1) is None
    assert guidance_scales(2, x, none=1).tolist() == [[[2]]]
    assert guidance_scales(torch.tensor([0.5, 3.0]), x, none=1).tolist() == [[[1]], [[3]]]
