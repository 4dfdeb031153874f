"""Limbeck: a model zoo and benchmark suite for knowledge distillation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Predictor", "UserError", "__version__", "list_students", "load_student"]

if TYPE_CHECKING:
    from limbeck.errors import UserError
    from limbeck.zoo import Predictor, list_students, load_student

# Public names and the module that has each: torch is imported by the first use, not by `import limbeck`.
_LAZY = {
    "Predictor": "limbeck.zoo",
    "UserError": "limbeck.errors",
    "list_students": "limbeck.zoo",
    "load_student": "limbeck.zoo",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'limbeck' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
