"""What can go wrong for a person, in one line with what to do. The command line shows a `RealGenError` so."""

import re

_NO_MEMORY = re.compile(r"out of memory|(?:can't|cannot) allocate memory|not enough memory", re.IGNORECASE)
_ASKED_FOR = re.compile(r"tried to allocate ([\d.]+ \w+)", re.IGNORECASE)


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
    """What to do where `error` says that memory ran out, as torch says it of each of its devices; else None."""
    if not isinstance(error, MemoryError | RuntimeError | OSError):
        return None
    if not isinstance(error, MemoryError) and _NO_MEMORY.search(str(error)) is None:
        return None
    asked = _ASKED_FOR.search(str(error))
    return RealGenError(
        "out of memory" + (f": {asked[1]} more could not be had" if asked else ""),
        hint="take fewer images at once (machine.batch=1) or smaller ones; a GPU's parts can wait on the CPU: "
        "machine.offload=model",
    )
