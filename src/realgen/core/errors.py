"""What can go wrong for a person, in one line with what to do. The command line catches `RealGenError` alone."""


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
