"""Which words of a command line are KEY=VALUE, and which are prompts or paths."""

import pytest

from realgen.apps._options import is_override, split_paths, split_words


@pytest.mark.parametrize("word", ["a=1", "generator.options.steps=3", "x_1.y=", "a=b=c", "a=[1,\n2]"])
def test_a_dotted_key_and_a_value_is_a_setting(word):
    assert is_override(word)


@pytest.mark.parametrize("word", ["", "=3", "a cat", "x = y", "a b=1", "a..b=1", "1a=2", "./a=b.png", "a-b=c"])
def test_anything_else_is_not(word):
    assert not is_override(word)


def test_words_keep_their_order():
    assert split_words(["b", "x=1", "a", "y=2"]) == (["b", "a"], ["x=1", "y=2"])


def test_a_path_that_is_there_is_a_path_whatever_it_is_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "machine.batch=2").touch()
    assert split_paths(["shots", "machine.batch=2", "machine.batch=1"]) == (
        ["shots", "machine.batch=2"],
        ["machine.batch=1"],
    )
