"""Variants: one option of a method at another value, named 'KD@temperature=2', so that an ablation is data."""

from __future__ import annotations

from ast import literal_eval
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from limbeck.errors import ConfigError

if TYPE_CHECKING:
    from limbeck.engine.config import MethodConfig


@dataclass(frozen=True)
class Variant:
    """One option at one value.

    option: 'task_weight'; 'student.KEY' for an argument of the student; else an argument of the method's first link, or
        'N.KEY' for one of link N, counted from 0.
    """

    option: str
    value: Any

    def method(self, base: str) -> str:
        """The variant's own method name, such as 'KD@temperature=2'."""
        return f"{base}@{self.option}={self.value!r}"


def split_variant(method: str) -> tuple[str, Variant | None]:
    """'KD@temperature=2' → ('KD', Variant); a plain name → (name, None).

    Raises: ConfigError when what follows the '@' is not option=value with a Python literal as value.
    """
    base, at, rest = method.partition("@")
    if not at:
        return method, None
    option, eq, text = rest.partition("=")
    try:
        value = literal_eval(text)
    except (ValueError, SyntaxError, TypeError) as error:
        raise ConfigError(
            f"method {method!r}: {text!r} is not a Python literal; write NAME@option=value, as KD@temperature=2"
        ) from error
    if not (base and option and eq):
        raise ConfigError(f"method {method!r} is not of the form NAME@option=value, as KD@temperature=2")
    return base, Variant(option, value)


def apply_variant(
    spec: MethodConfig, student: Mapping[str, Any], variant: Variant, name: str
) -> tuple[MethodConfig, dict[str, Any]]:
    """A method's config and its student's model config with the variant's option set; the originals stay as they are.

    Raises: ConfigError when the method has no such link, or a task weight is no number.
    """
    changed, model = spec.model_copy(deep=True), dict(student)
    where, dot, key = variant.option.partition(".")
    if variant.option == "task_weight":
        if isinstance(variant.value, bool) or not isinstance(variant.value, (int, float)):
            raise ConfigError(f"{variant.method(name)}: task_weight is a number; got {variant.value!r}")
        changed.task_weight = float(variant.value)
    elif dot and where == "student":
        model[key] = variant.value
    else:
        index, key = (int(where), key) if dot and where.isdecimal() else (0, variant.option)
        if index >= len(changed.links):
            raise ConfigError(
                f"{variant.method(name)}: method {name} has {len(changed.links)} links, none numbered {index}"
            )
        changed.links[index][key] = variant.value
    return changed, model
