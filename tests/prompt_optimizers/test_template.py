import pytest

from realgen.core.errors import ConfigError
from realgen.core.plugins import configure
from realgen.core.spec import Machine
from realgen.prompt_optimizers.template import Options, build


def test_the_prompt_goes_into_the_phrase_as_it_stands() -> None:
    optimizer = build(Options(pattern="photo: {prompt}, {not a field}"), Machine())
    texts = [rewrite.text for rewrite in optimizer(["a {red} fox. ", "two foxes"], seeds=[1, 2])]
    assert texts == ["photo: a {red} fox, {not a field}", "photo: two foxes, {not a field}"]


def test_a_phrase_without_a_place_for_the_prompt_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"must contain \{prompt\}"):
        configure("prompt_optimizers", "template", {"pattern": "a photograph"})


def test_prompts_and_seeds_must_match() -> None:
    with pytest.raises(ValueError, match="zip"):
        build(Options(), Machine())(["a", "b"], seeds=[1])
