"""Taps: read a module's output during one forward, without copies and without leaving anything behind."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from limbeck.errors import TapError, near

_INDEX = re.compile(r"^(?P<module>.*?)(?:\[(?P<index>\d+)\])?$")


def split_tap(tap: str) -> tuple[str, int | None]:
    """Split 'neck[1]' into the module name and the index into its tuple output."""
    match = _INDEX.match(tap)
    assert match is not None  # the pattern matches every string
    index = match["index"]
    return match["module"], None if index is None else int(index)


def check_taps(model: nn.Module, taps: Iterable[str], offers: Iterable[str], member: str) -> None:
    """Check that every tap names a module of `model` or something that the task adapter offers.

    Raises: TapError listing near names.
    """
    modules = {name for name, _ in model.named_modules(remove_duplicate=False) if name}  # a shared module has two names
    for tap in taps:
        name, _ = split_tap(tap)
        if name not in modules and name not in offers:
            raise TapError(f"member {member!r} has no tap {tap!r}; {near(name, modules | set(offers))}")


class Tapped:
    """The tensors that one forward left at the taps; valid until the forward's scope ends."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._versions: dict[str, int] = {}
        self._calls: dict[str, int] = {}

    def put(self, tap: str, value: Any) -> None:
        self._values[tap] = value
        self._calls[tap] = self._calls.get(tap, 0) + 1
        if isinstance(value, Tensor) and not value.is_inference():
            self._versions[tap] = value._version

    def __contains__(self, tap: str) -> bool:
        return tap in self._values

    def __getitem__(self, tap: str) -> Tensor:
        """The tensor at `tap`.

        Raises: TapError when the forward passed there never or more than once, when the output is no tensor, or when a
            later layer overwrote it.
        """
        if tap not in self._values:
            raise TapError(f"tap {tap!r} was not reached by the forward; tap a layer that is used")
        value = self._values[tap]
        if self._calls[tap] > 1:
            raise TapError(
                f"tap {tap!r} was called {self._calls[tap]} times in one forward, so which output is meant is unknown; "
                "tap a layer that is called once, or what the task adapter offers"
            )
        if not isinstance(value, Tensor):
            size = f" of {len(value)}" if isinstance(value, (tuple, list)) else ""
            kind = f"{type(value).__name__}{size}"
            raise TapError(f"tap {tap!r} gives a {kind}, not a tensor; write {tap}[0], {tap}[1], …")
        if tap in self._versions and value._version != self._versions[tap]:
            raise TapError(f"tap {tap!r} was overwritten in place by a later layer; tap that layer instead")
        return value


@contextmanager
def tapped(model: nn.Module, taps: Iterable[str]) -> Iterator[Tapped]:
    """Hook the named modules for the forwards inside the `with` block and collect their outputs.

    A tap that names no module is left to the caller (the task adapter offers it). A module that is called several times
    is ambiguous, and reading its tap an error. Hooks are removed on every exit.
    """
    store = Tapped()
    by_module: dict[str, list[tuple[str, int | None]]] = {}
    for tap in taps:
        name, index = split_tap(tap)
        by_module.setdefault(name, []).append((tap, index))
    handles = []
    try:
        for name, wanted in by_module.items():
            try:
                module = model.get_submodule(name) if name else None
            except AttributeError:
                continue
            if module is None:
                continue

            def keep(_module: nn.Module, _args: Any, output: Any, wanted: Any = wanted) -> None:
                for tap, index in wanted:
                    if index is None:
                        value = output[0] if isinstance(output, (tuple, list)) and len(output) == 1 else output
                    elif isinstance(output, (tuple, list)) and index < len(output):
                        value = output[index]
                    else:
                        raise TapError(f"tap {tap!r}: the module's output has no index {index}")
                    store.put(tap, value)

            handles.append(module.register_forward_hook(keep))
        yield store
    finally:
        for handle in handles:
            handle.remove()
