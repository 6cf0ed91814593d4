"""RealGen: photographs that cannot be told from real ones. Public names load what they need when they are used."""

from importlib import import_module
from importlib.metadata import version
from typing import Any

_PUBLIC = {
    "Request": "realgen.core.types",
    "Sample": "realgen.core.types",
    "RealGenError": "realgen.core.errors",
    "load": "realgen.core.config",
    "generate": "realgen.pipeline",
    "build_generator": "realgen.wiring.use",
    "build_optimizer": "realgen.wiring.use",
}

__version__ = version("realgen")
__all__ = ["__version__", *_PUBLIC]  # noqa: PLE0604 - the names of the table


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'realgen' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
