"""The zoo: find, load, run, export and publish distilled students."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = [
    "Card",
    "Predictor",
    "add_student",
    "export_student",
    "find",
    "list_public",
    "list_students",
    "load_public",
    "load_student",
    "push_student",
    "weight_files",
    "weights_path",
]

if TYPE_CHECKING:
    from limbeck.zoo.card import Card
    from limbeck.zoo.export import export_student
    from limbeck.zoo.index import find, list_students, weight_files, weights_path
    from limbeck.zoo.load import load_student
    from limbeck.zoo.predictor import Predictor
    from limbeck.zoo.public import list_public, load_public
    from limbeck.zoo.publish import add_student
    from limbeck.zoo.push import push_student

# Public names and the module that has each: torch is imported by the first use that needs it.
_LAZY = {
    "Card": "card",
    "Predictor": "predictor",
    "add_student": "publish",
    "export_student": "export",
    "find": "index",
    "list_public": "public",
    "list_students": "index",
    "load_public": "public",
    "load_student": "load",
    "push_student": "push",
    "weight_files": "index",
    "weights_path": "index",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f"limbeck.zoo.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'limbeck.zoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
