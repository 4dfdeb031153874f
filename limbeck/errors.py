"""Errors that a user can cause: one sentence each, saying what is wrong, where, and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError


class UserError(Exception):
    """Base of every error that the command line prints without a traceback, with exit status 2."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Cross process borders by message: the constructors of some subclasses take other arguments."""
        return _rebuild, (type(self), str(self), self.__dict__)


def _rebuild(kind: type[UserError], message: str, state: dict[str, Any]) -> UserError:
    error = kind.__new__(kind, message)
    error.__dict__.update(state)
    return error


class ConfigError(UserError):
    """A config, suite or argument asks for something that does not exist or does not fit."""


class UnknownName(ConfigError):
    """A method, tap, model, key or suite that nobody registered; lists the nearest names."""

    def __init__(self, kind: str, name: str, known: Iterable[str], where: str = "") -> None:
        self.kind, self.name = kind, name
        super().__init__(f"unknown {kind} {name!r}{' ' + where if where else ''}; {near(name, known)}")


class ShapeMismatch(ConfigError):
    """Two taps of a link do not fit; names both shapes and the bridge that would fit."""


class TapError(ConfigError):
    """A tap names no module, or what it names cannot be tapped."""


class CorruptFile(UserError):
    """A weight file, record, cache or data set is damaged; names the file, the expected and the found hash."""


class DataMissing(UserError):
    """A data set is not on this machine; names the command that gets it."""


class NotFetched(UserError):
    """A file cannot be had from its address: no network, no such file, offline, or cut off; the next try goes on."""


class ExtraMissing(UserError):
    """An optional dependency is absent; names the install command."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs the '{extra}' extra; install it with: pip install 'limbeck[{extra}]'")


class OutputError(UserError):
    """The output folder cannot be used: read-only, full, or taken by another run."""


class DeviceError(UserError):
    """The device asked for is not there."""


class TrainingStopped(UserError):
    """A run was ended by a guard of the engine; no record is written, a failure record is."""


class NonFiniteLoss(TrainingStopped):
    """A loss term became NaN or infinite; names term, iteration and sample ids."""


class DeadLoss(TrainingStopped):
    """A configured loss is absent, zero or sends no gradient into the trained member."""


class TeacherOff(TrainingStopped):
    """A frozen member does not reach the metric that its card or record states."""


def first_problem(error: ValidationError, whole: str) -> str:
    """The first thing that pydantic finds wrong, after its place: 'data.shots: Input should be a valid integer'.

    Args:
        whole: stands for the place where all of the value is meant.
    """
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or whole}: {first['msg']}"


def near(name: str, known: Iterable[str], count: int = 3) -> str:
    """Say which known names come near `name`, or list some where none does."""
    names = sorted({str(k) for k in known})
    lowered = {n.lower(): n for n in names}
    matches = [lowered[m] for m in get_close_matches(name.lower(), list(lowered), n=count, cutoff=0.5)]
    if not matches:  # a module path: compare its last parts
        tail = name.rsplit(".", 1)[-1].lower()
        matches = [n for n in names if tail and tail in n.lower()][:count]
    if matches:
        return "did you mean " + " or ".join(repr(m) for m in matches) + "?"
    if not names:
        return "there are none"
    shown = ", ".join(names[:12])
    return f"there are: {shown}{', …' if len(names) > 12 else ''}"
