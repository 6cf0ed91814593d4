"""What a person calls a model is found on this machine, left to the hub, or said to be nowhere."""

import pytest

from realgen.core.errors import ConfigError, ModelError
from realgen.hub.fetch import cache_folder
from realgen.hub.names import expand, find_local


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "models" / "cat").mkdir(parents=True)


@pytest.mark.parametrize("name", ["models/cat", "./models/cat", "~/models/cat", "models"])
def test_what_is_on_this_machine_is_found(name, tmp_path):
    found = find_local(name)
    assert found is not None
    assert found.resolve() in {tmp_path / "models", tmp_path / "models" / "cat"}


@pytest.mark.parametrize("name", ["owner/name", "black-forest-labs/FLUX.1-dev", "a.b/c_d", "_x/y"])
def test_a_hub_id_is_left_to_the_hub(name):
    assert find_local(name) is None


@pytest.mark.parametrize(
    "name", ["", "name", "./owner/name", "/owner/name", "../x", "a/b/c", "loras/x.safetensors", "a/" + "b" * 999 + "/c"]
)
def test_what_can_be_neither_is_said_to_be_nowhere(name):
    with pytest.raises(ModelError, match="no LoRA at"):
        find_local(name, what="LoRA")


def test_a_home_that_nobody_has_is_one_line():
    with pytest.raises(ConfigError, match="no such home folder"):
        expand("~nobody-of-that-name/x")


def test_a_cache_without_a_home_is_one_line(monkeypatch):
    def homeless(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.expanduser", homeless)
    monkeypatch.delenv("REALGEN_CACHE", raising=False)
    with pytest.raises(ConfigError, match=r"~/\.cache/realgen: there is no such home folder"):
        cache_folder()
