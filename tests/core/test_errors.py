"""Errors for people: a message, a hint, one family that the command line catches."""

import errno
import inspect
import pickle

import pytest
import torch

from realgen.core import errors
from realgen.core.errors import (
    ConfigError,
    DataError,
    InputError,
    ModelError,
    OutputError,
    RealGenError,
    for_person,
    out_of_memory,
    unloadable,
)

KINDS = [ConfigError, InputError, ModelError, DataError, OutputError]


@pytest.mark.parametrize("kind", [RealGenError, *KINDS])
def test_message_and_hint_are_kept_apart(kind):
    failure = kind("no file x", hint="give one")
    assert (failure.message, failure.hint, str(failure)) == ("no file x", "give one", "no file x")
    assert kind("no file x").hint == ""


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_caught_as_one_family_and_as_no_other(kind):
    with pytest.raises(RealGenError):
        raise kind("x")
    assert not issubclass(kind, OSError | ValueError)
    assert not any(issubclass(kind, other) for other in KINDS if other is not kind)


def test_every_kind_of_the_file_is_looked_at_and_told_apart_in_words():
    found = {kind for _, kind in inspect.getmembers(errors, inspect.isclass)}
    assert found == {RealGenError, *KINDS}
    assert len({kind.__doc__ for kind in found}) == len(found)


def test_the_hint_is_given_by_name_alone():
    with pytest.raises(TypeError):
        RealGenError("x", "y")


def test_the_message_survives_another_process():
    assert str(pickle.loads(pickle.dumps(ModelError("no model")))) == "no model"


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total"), "2.00 GiB"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB). Tried to allocate 512 bytes"), "512 bytes"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"), ""),
        (RuntimeError("Invalid buffer size: 16.00 GiB"), "16.00 GiB"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), ""),
        (MemoryError(), ""),
    ],
)
def test_memory_that_ran_out_is_known_by_what_torch_says(error, asked):
    told = out_of_memory(error)
    assert told is not None
    assert asked in told.message
    assert "machine.batch=1" in told.hint


def test_memory_that_the_cpu_has_not_is_known_too():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**17)
    assert out_of_memory(caught.value) is not None


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shapes differ"),
        ValueError("out of memory"),
        FileNotFoundError(errno.ENOENT, "No such file", "out of memory.jsonl"),
    ],
)
def test_other_errors_say_nothing_of_memory(error):
    assert out_of_memory(error) is None


def test_a_person_is_told_of_both_and_of_nothing_else():
    ours = InputError("no")
    assert for_person(ours) is ours
    assert "out of memory" in str(for_person(MemoryError()))
    assert for_person(RuntimeError("a bug")) is None


def test_files_are_blamed_only_where_it_was_not_memory():
    assert str(unloadable(ValueError("x"), "cannot load m", hint="fetch it")) == "cannot load m"
    assert "out of memory" in str(unloadable(MemoryError(), "cannot load m", hint="fetch it"))
