"""Opening a pipeline: what is no model is refused in one line, and what is opened is frozen and in evaluation."""

import json
from types import SimpleNamespace

import pytest
import torch
from diffusers import FluxPipeline

from realgen.core.errors import ConfigError, ModelError
from realgen.core.spec import Machine
from realgen.generators import _loading as loading

FLOAT32 = Machine(device="cpu", dtype="float32")


def refusal(model):
    with pytest.raises(ModelError) as caught:
        loading.check_model(str(model))
    assert caught.value.hint
    return caught.value.message


# ---- check_model ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["owner/name", "black-forest-labs/FLUX.1-dev"])
def test_a_hub_id_is_left_to_the_hub(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loading.check_model(model)


@pytest.mark.parametrize("model", ["name", "./owner/name", "/owner/name", "~/name", "a/b/c", "../x"])
def test_a_path_that_is_not_there_is_refused(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal(model) == f"no model at {model}"


def test_a_folder_without_an_index_is_no_diffusers_folder(tmp_path):
    assert "no model_index.json" in refusal(tmp_path)


def test_a_single_file_is_no_diffusers_folder(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert "no diffusers folder" in refusal(tmp_path / "model.safetensors")


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe"])
def test_a_damaged_index_is_named(tmp_path, content):
    (tmp_path / "model_index.json").write_bytes(content)
    assert "model_index.json is damaged" in refusal(tmp_path)


def test_a_missing_part_is_named_and_an_absent_one_is_not(tmp_path):
    index = {"_class_name": "X", "image_encoder": [None, None], "vae": ["diffusers", "AutoencoderKL"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert refusal(tmp_path).endswith("has no folder vae")
    (tmp_path / "vae").mkdir()
    assert refusal(tmp_path).endswith("holds no safetensors weights")


def test_a_truncated_weight_file_is_named(tmp_path):
    (tmp_path / "model_index.json").write_text('{"vae": ["diffusers", "AutoencoderKL"]}')
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "model.safetensors").write_bytes(b"\x10")
    assert "truncated" in refusal(tmp_path)


def test_a_whole_folder_passes(random_flux):
    loading.check_model(str(random_flux))


# ---- hints ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("You are trying to access a gated repo.", "HF_TOKEN"),
        ("401 Client Error: Unauthorized", "HF_TOKEN"),
        ("403 Client Error: Forbidden", "HF_TOKEN"),
        ("We couldn't connect to 'https://huggingface.co'", "generator.options.model=PATH"),
        ("offline mode is enabled", "generator.options.model=PATH"),
        ("Failed to resolve 'huggingface.co'", "generator.options.model=PATH"),
        ("unexpected key transformer.proj", "fetch them again"),
        ("", "fetch them again"),
    ],
)
def test_the_hint_follows_what_went_wrong(said, hint):
    class Pipeline:
        @staticmethod
        def from_pretrained(model, **options):
            raise OSError(said)

    with pytest.raises(ModelError) as caught:
        loading.load_pipeline(Pipeline, "owner/name", FLOAT32)
    assert hint in caught.value.hint
    assert caught.value.message == f"cannot load owner/name: {said or 'OSError'}"


def test_only_the_first_line_of_a_long_error_is_kept():
    assert loading._first_line(ValueError("\n one\ntwo")) == "one"
    assert loading._first_line(ValueError("x" * 999)) == "x" * 200
    assert loading._first_line(KeyError()) == "KeyError"


def test_our_own_bugs_are_not_called_damaged_files():
    class Pipeline:
        @staticmethod
        def from_pretrained(model, **options):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loading.load_pipeline(Pipeline, "owner/name", FLOAT32)


# ---- quantisation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_quantising_without_its_library_says_what_to_install(random_flux, quantize):
    with pytest.raises(ModelError) as caught:
        loading.load_pipeline(FluxPipeline, str(random_flux), FLOAT32.model_copy(update={"quantize": quantize}))
    assert caught.value.hint == "pip install bitsandbytes (CUDA), or machine.quantize=none"


@pytest.mark.parametrize(
    ("quantize", "backend", "options"),
    [
        ("int8", "bitsandbytes_8bit", {"load_in_8bit": True}),
        (
            "nf4",
            "bitsandbytes_4bit",
            {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32},
        ),
    ],
)
def test_the_transformer_alone_is_quantised(monkeypatch, quantize, backend, options):
    monkeypatch.setattr(loading, "PipelineQuantizationConfig", lambda **given: given)
    assert loading._quantization(FLOAT32.model_copy(update={"quantize": quantize})) == {
        "quant_backend": backend,
        "quant_kwargs": options,
        "components_to_quantize": ["transformer"],
    }


# ---- what is opened -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipeline(random_flux):
    return loading.load_pipeline(FluxPipeline, str(random_flux), FLOAT32)


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "text_encoder_2"])
def test_every_part_is_frozen_in_evaluation_and_of_the_asked_format(pipeline, part):
    module = getattr(pipeline, part)
    assert not any(inner.training for inner in module.modules())
    for parameter in module.parameters():
        assert not parameter.requires_grad
        assert parameter.dtype == torch.float32
        assert parameter.device.type == "cpu"


@pytest.mark.parametrize(("offload", "called"), [("none", "to"), ("model", "model"), ("sequential", "sequential")])
def test_offload_tiling_and_format_are_what_the_machine_says(offload, called, monkeypatch):
    told = []

    class Pipeline:
        components = {"scheduler": object()}
        vae = SimpleNamespace(enable_tiling=lambda: told.append("tiling"))

        @classmethod
        def from_pretrained(cls, model, **options):
            told.append((model, options))
            return cls()

        def set_progress_bar_config(self, *, disable):
            assert disable

        def to(self, device):
            told.append(("to", device.type))

        def enable_model_cpu_offload(self, *, device):
            told.append(("model", device.type))

        def enable_sequential_cpu_offload(self, *, device):
            told.append(("sequential", device.type))

    monkeypatch.setattr(loading, "pick_device", lambda machine: torch.device(machine.device))
    for device in ("mps", "cpu"):
        told.clear()
        machine = Machine(device=device, dtype="bfloat16", offload=offload, vae_tiling=True)
        loading.load_pipeline(Pipeline, "owner/name", machine)
        assert told == [
            ("owner/name", {"dtype": torch.bfloat16, "use_safetensors": True}),
            "tiling",
            ("to" if device == "cpu" else called, device),
        ]


# ---- LoRA -----------------------------------------------------------------------------------------------


class Adapted:
    """A pipeline that takes a LoRA, or fails as it is told."""

    def __init__(self, failure=None, adapters=("lora",)):
        self.failure, self.adapters, self.told = failure, adapters, []

    def load_lora_weights(self, lora, *, adapter_name):
        if self.failure:
            raise self.failure
        self.told.append((lora, adapter_name))

    def set_adapters(self, name, scale):
        self.told.append((name, scale))

    def get_list_adapters(self):
        return {"transformer": list(self.adapters)} if self.adapters else {}


def test_a_lora_is_loaded_at_its_scale():
    pipeline = Adapted()
    loading._load_lora(pipeline, "owner/x", 0.7)
    assert pipeline.told == [("owner/x", "lora"), ("lora", 0.7)]


@pytest.mark.parametrize(
    ("pipeline", "message", "hint"),
    [
        (
            Adapted(RuntimeError("size mismatch\nmore")),
            "the LoRA owner/x does not fit this model: size mismatch",
            "another",
        ),
        (Adapted(OSError("no file")), "the LoRA owner/x does not fit this model: no file", "another"),
        (Adapted(adapters=()), "the LoRA owner/x fits no layer of this model", "another"),
    ],
)
def test_a_lora_that_cannot_be_used_is_one_clear_error(pipeline, message, hint):
    with pytest.raises(ModelError) as caught:
        loading._load_lora(pipeline, "owner/x", 1.0)
    assert caught.value.message == message
    assert hint in caught.value.hint


@pytest.mark.parametrize("lora", ["nowhere", "./nowhere", "loras/portrait.safetensors", "~nobody/x", "/nowhere/x"])
def test_a_lora_that_is_not_there_is_said_before_the_model_is_read(lora, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ModelError, ConfigError), match=r"no LoRA at|no such home"):
        loading.load_pipeline(None, "owner/name", FLOAT32, lora=lora)


def test_a_lora_without_peft_says_what_to_install(monkeypatch):
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(ModelError) as caught:
        loading._load_lora(Adapted(ValueError("PEFT backend is required")), "x", 1.0)
    assert caught.value.message == "a LoRA needs peft"
    assert "realgen[train]" in caught.value.hint


def test_a_folder_in_the_home_folder_is_opened(random_flux, monkeypatch):
    monkeypatch.setenv("HOME", str(random_flux.parent))
    opened = loading.load_pipeline(FluxPipeline, f"~/{random_flux.name}", FLOAT32)
    assert isinstance(opened, FluxPipeline)


@pytest.mark.parametrize("index", ["[1]", '"x"', '{"a": []}', "{"])
def test_an_index_that_is_none_is_called_damaged(tmp_path, index):
    (tmp_path / "model_index.json").write_text(index)
    with pytest.raises(ModelError, match="damaged"):
        loading.check_model(str(tmp_path))


def test_another_missing_package_is_not_called_bitsandbytes():
    assert loading._hint(ImportError("no module named sentencepiece")) == "install the package that it names"
