import pytest

from realgen.core.config import validate
from realgen.core.errors import ConfigError, ModelError
from realgen.core.spec import Plug
from realgen.hub import plugs
from realgen.hub.card import Card, HubSource, PackageSource, WheelSource, names, read

FIELDS = {
    "name": "x",
    "summary": "s",
    "room": "generators",
    "plugin": "flux",
    "licence": "MIT",
    "source": {"kind": "hub", "repo": "a/b"},
    "min_memory_gb": 1,
}


@pytest.mark.parametrize("name", names())
def test_every_shipped_card_reads(name: str) -> None:
    card = read(name)
    assert card.name == name
    assert card.summary.endswith(".")
    assert "\n" not in card.summary


def test_the_shipped_cards_say_where_their_files_come_from() -> None:
    assert {"tiny", "flux1-dev", "flux1-schnell", "qwen3-4b", "qwen3-4b-instruct-2507"} <= set(names())
    assert isinstance(read("tiny").source, PackageSource)
    assert read("tiny").options == {"max_text_tokens": 64, "steps": 8, "guidance": 3.0, "size": [128, 128]}
    dev = read("flux1-dev")
    assert dev.gated
    assert isinstance(dev.source, HubSource)
    assert read("flux1-schnell").options["steps"] == 4
    assert isinstance(read("smollm2-135m-instruct").source, WheelSource)
    plugins = {"qwen-image": "qwen_image", "z-image": "z_image", "z-image-turbo": "z_image"}
    plugins |= {f"stable-diffusion-3.5-{size}": "sd3" for size in ("large", "medium")}
    assert {name: read(name).plugin for name in plugins} == plugins
    assert (read("z-image-turbo").options["guidance"], read("z-image-turbo").options["steps"]) == (0, 9)
    assert read("stable-diffusion-3.5-large").gated


@pytest.mark.parametrize("name", [name for name in names() if read(name).room == "generators"])
def test_a_generators_card_gives_options_that_its_plug_in_takes(name: str) -> None:
    configured = plugs.configure("generators", Plug(name=read(name).plugin, card=name))
    assert configured.steps == read(name).options["steps"]


def test_an_unknown_card_gets_a_suggestion() -> None:
    with pytest.raises(ModelError, match="no card 'flux-dev'") as caught:
        read("flux-dev")
    assert "flux1-dev" in caught.value.hint


@pytest.mark.parametrize(
    "change",
    [
        {"sauce": "x"},
        {"source": {"kind": "hub", "repo": "a/b", "convert": "gguf"}},
        {"source": {"kind": "ftp"}},
        {"room": "kitchen"},
        {"min_memory_gb": 0},
    ],
)
def test_a_card_is_closed(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="card x"):
        validate(Card, {**FIELDS, **change}, where="card x")
