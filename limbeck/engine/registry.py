"""Registries: names in configs to classes, imported only when a config asks for one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from inspect import isclass, signature
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

from mmengine.registry import Registry

from limbeck.errors import ConfigError, ExtraMissing, UnknownName

# One method, one file: every package's methods/ folder is looked through by name.
TASK_PACKAGES = ("vision", "segmentation", "detection", "pointcloud", "multimodal.vlm", "multimodal.diffusion")


def package_modules(*rooms: str) -> Iterator[ModuleType]:
    """`limbeck.<package>.<room>` of every task package that has it, imported one after another."""
    for package in TASK_PACKAGES:
        for room in rooms:
            name = f"limbeck.{package}.{room}"
            try:
                found = find_spec(name)
            except ModuleNotFoundError:
                continue
            if found is not None:
                yield import_module(name)


class LimbeckRegistry(Registry):
    """An mmengine registry whose members are imported at first use and whose errors list near names."""

    def __init__(self, kind: str, rooms: tuple[str, ...]) -> None:
        super().__init__(kind, scope="limbeck")
        self.kind = kind
        self.rooms = rooms
        self._filled = False

    def fill(self) -> None:
        """Import the modules that register members; each once."""
        if self._filled:
            return
        self._filled = True
        for module in package_modules(*self.rooms):
            for part in iter_modules(getattr(module, "__path__", [])):
                if not part.name.startswith("_"):
                    import_module(f"{module.__name__}.{part.name}")

    def names(self) -> list[str]:
        """Registered names, sorted."""
        self.fill()
        return sorted(self.module_dict)

    def lookup(self, name: str, where: str = "") -> Any:
        """The class or function registered as `name`.

        Raises: UnknownName, with near matches.
        """
        self.fill()
        if name not in self.module_dict:
            raise UnknownName(self.kind, name, self.module_dict, where)
        return self.module_dict[name]

    def make(self, cfg: Mapping[str, Any], where: str = "", **extra: Any) -> Any:
        """Build from a config with a `type` key; `extra` are keyword arguments that the caller supplies.

        Raises: UnknownName for the type or for a key that the class does not take; ConfigError for a key that it lacks.
        """
        args = dict(cfg)
        if "type" not in args:
            place = f" {where}" if where else ""
            raise ConfigError(f"a {self.kind} config needs a 'type' key{place}; got {sorted(args)}")
        kind = args.pop("type")
        target = kind if callable(kind) else self.lookup(str(kind), where)
        name = getattr(target, "__name__", str(kind))
        known = accepted_keys(target)
        if known is not None:
            for key in args:
                if key not in known:
                    raise UnknownName(f"key of {self.kind} {name}:", key, known - set(extra), where)
        given = {**extra, **args}
        if known is not None:
            try:
                signature(target).bind(**given)
            except TypeError as error:
                raise ConfigError(f"{self.kind} {name}{' ' + where if where else ''}: {error}") from error
        return target(**given)


def accepted_keys(target: Any) -> set[str] | None:
    """Keyword arguments that a class or function takes, through `**kwargs` up its bases; None where anything goes."""
    steps = [vars(c)["__init__"] for c in target.__mro__ if "__init__" in vars(c)] if isclass(target) else [target]
    known: set[str] = set()
    for step in steps:
        if not callable(step) or step is object.__init__:
            break
        params = signature(step).parameters
        known |= {n for n, p in params.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(p.kind is p.VAR_KEYWORD for p in params.values()):
            return known - {"self"}
    return None


METHODS = LimbeckRegistry("method", ("methods",))
MODELS = LimbeckRegistry("model", ("models", "students"))
DATASETS = LimbeckRegistry("dataset", ("data",))
METRICS = LimbeckRegistry("metric", ("metrics",))
ADAPTERS = LimbeckRegistry("adapter", ("adapter",))
STRATEGIES = LimbeckRegistry("strategy", ("strategies",))
LOOPS = LimbeckRegistry("loop", ("loops",))


def require(module: str, what: str, extra: str) -> Any:
    """Import an optional dependency.

    Raises: ExtraMissing, naming the install command.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] == module.split(".")[0]:
            raise ExtraMissing(what, extra) from error
        raise
