"""Plug-ins are files: listed without import, found by name, checked by their own options."""

import subprocess
import sys

import pytest

from realgen.core import plugins
from realgen.core.errors import ConfigError


@pytest.mark.parametrize("room", plugins.ROOMS)
def test_every_plugin_has_a_description_options_and_a_builder(room):
    assert plugins.names(room)
    for name in plugins.names(room):
        assert len(plugins.describe(room, name)) > 20
        module = plugins.find(room, name)
        assert callable(module.build)
        for field in module.Options.model_fields.values():
            assert field.description


def test_listing_imports_no_plugin():
    code = (
        "import sys\nfrom realgen.core import plugins\n"
        "[plugins.describe(room, name) for room in plugins.ROOMS for name in plugins.names(room)]\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_plugin_names_the_nearest():
    with pytest.raises(ConfigError) as caught:
        plugins.find("generators", "fluxx")
    assert "'flux'" in caught.value.hint


def test_an_unknown_room_names_the_rooms():
    with pytest.raises(ConfigError, match="unknown room"):
        plugins.names("kitchens")


def test_options_are_closed():
    with pytest.raises(ConfigError) as caught:
        plugins.configure("generators", "flux", {"stepz": 3})
    assert "stepz" in caught.value.message
    assert "steps" in caught.value.hint


def test_zero_steps_are_refused():
    with pytest.raises(ConfigError, match="steps"):
        plugins.configure("generators", "flux", {"steps": 0})
