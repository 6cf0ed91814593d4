"""What can go wrong for a person, in one line with what to do. The command line shows a `RealGenError` so."""

import errno
import re

_NO_MEMORY = re.compile(
    r"out of memory|(?:can't|cannot) allocate memory|not enough memory|_ALLOC_FAILED|invalid buffer size", re.IGNORECASE
)
_ASKED_FOR = re.compile(r"(?:tried to allocate|invalid buffer size:) ([\d.]+ \w+)", re.IGNORECASE)


class RealGenError(Exception):
    """A failure that a person can mend: what happened, and a hint at what to do."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(RealGenError):
    """A recipe, a profile or an override says something that cannot be."""


class InputError(RealGenError):
    """A prompt, a file or an option that a person gave cannot be used."""


class ModelError(RealGenError):
    """A model's files are missing, damaged, or made for something else."""


class DataError(RealGenError):
    """Training or benchmark data cannot be read."""


class OutputError(RealGenError):
    """A result cannot be written where it was asked for."""


def out_of_memory(error: BaseException) -> RealGenError | None:
    """What to do where Python, the system or torch says by `error` that memory ran out; None where it says else."""
    said = str(error)
    is_so = (
        isinstance(error, MemoryError)
        or (isinstance(error, RuntimeError) and _NO_MEMORY.search(said) is not None)
        or (isinstance(error, OSError) and (error.errno == errno.ENOMEM or getattr(error, "winerror", None) == 1455))
    )
    if not is_so:
        return None
    asked = _ASKED_FOR.search(said)
    return RealGenError(
        "out of memory" + (f": {asked[1]} more could not be had" if asked else ""),
        hint="take fewer images at once (machine.batch=1, or a training's batch) or smaller ones, or draw with "
        "machine.offload=model",
    )


def for_person(error: BaseException) -> RealGenError | None:
    """What a person is told of `error`: itself, or that memory ran out; None where it is a mistake of ours."""
    return error if isinstance(error, RealGenError) else out_of_memory(error)


def unloadable(error: BaseException, message: str, *, hint: str) -> RealGenError:
    """A ModelError of files that cannot be loaded, unless it was memory that ran out."""
    return out_of_memory(error) or ModelError(message, hint=hint)
