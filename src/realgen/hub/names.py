"""What a person calls a model: a folder or a file on this machine, or a repository of the Hugging Face hub."""

import os
import re
from pathlib import Path

from realgen.core.errors import ConfigError, ModelError

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_FILE = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


def expand(path: str | Path) -> Path:
    """`path` with ~ as the home folder that it stands for; ConfigError where there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{path}: there is no such home folder", hint="write the whole path, or set HOME") from error


def find_local(name: str, *, what: str = "model") -> Path | None:
    """The folder or file `name`; None where it can only be a hub id, ModelError where it cannot be one either."""
    path = expand(name)
    if name and os.path.exists(path):  # noqa: PTH110  Path.exists raises for a name that is too long
        return path
    if not _HUB_ID.fullmatch(name) or name.endswith(_FILE):
        raise ModelError(f"no {what} at {name}", hint="give a folder, a file, or a hub id such as owner/name")
    return None
