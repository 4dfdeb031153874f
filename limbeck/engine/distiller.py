"""The distilling model: members (frozen, trained, ema), the links between them, and the guards of a step."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS as MMENGINE_MODELS
from torch import Tensor, nn

from limbeck.engine.adapter import Batch, Forward, TaskAdapter
from limbeck.engine.cache import TeacherCache
from limbeck.engine.config import PRETRAINED
from limbeck.engine.cost import evaluating
from limbeck.engine.members import Member, parse_members
from limbeck.engine.method import LinkInputs, Method
from limbeck.engine.registry import ADAPTERS, METHODS, MODELS
from limbeck.engine.schedule import build_schedule
from limbeck.engine.sources import resolve_weights
from limbeck.engine.taps import Tapped, check_taps, split_tap, tapped
from limbeck.engine.weights import hash_state, load_into
from limbeck.errors import ConfigError, DeadLoss, NonFiniteLoss, TapError, UnknownName


@contextmanager
def isolated_rng(seed: int, name: str) -> Iterator[None]:
    """Draw from a generator of its own: what one member or link draws changes no other's numbers."""
    number = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:6], "big")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(number)
        yield


@MMENGINE_MODELS.register_module()
class Distiller(BaseModel):
    """Members and links as one mmengine model; only `deploy` is evaluated, saved alone and exported.

    Trained members and the links' bridges are submodules. Frozen and EMA members are not: they are neither in the state
    dict nor the optimiser, are never wrapped by DDP, and stay in eval mode whatever `train()` is called with.

    Args:
        members: name → dict(type='frozen'|'trained'|'ema', model=…, weights=…); see `limbeck.engine.members`.
        links: method configs, dict(type='KD', weight=0.9, …).
        adapter: the task adapter's config, or an instance.
        deploy: the member that is kept.
        task_weight: factor on the trained members' own task losses.
        task_schedule: how that factor changes with progress, as a link's does; see `limbeck.engine.schedule`.
        seed: decides every member's and bridge's initial weights, each by its own name.
        runs: folder in which 'run://' weights are looked up.
    Raises: UnknownName, TapError, ShapeMismatch, CorruptFile.
    """

    def __init__(
        self,
        *,
        members: Mapping[str, Mapping[str, Any]],
        links: Sequence[Mapping[str, Any]] = (),
        adapter: Mapping[str, Any] | TaskAdapter,
        deploy: str = "student",
        task_weight: float = 1.0,
        task_schedule: Mapping[str, Any] | None = None,
        seed: int = 0,
        runs: str | Path | None = None,
    ) -> None:
        specs = parse_members(members, deploy)
        adapter = adapter if isinstance(adapter, TaskAdapter) else cast(TaskAdapter, ADAPTERS.make(adapter))
        models = {name: _build_member(name, spec, seed, runs) for name, spec in specs.items() if spec.type != "ema"}
        super().__init__(data_preprocessor=adapter.preprocessor(models[specs[deploy].of or deploy]))
        self.adapter = adapter
        self.deploy_name = deploy
        self.specs = specs
        self.task_weight = float(task_weight)
        self.task_schedule = build_schedule(task_schedule)
        self.task_scheduled = task_schedule is not None
        self.seed = seed
        self.members = nn.ModuleDict({n: m for n, m in models.items() if specs[n].type == "trained"})
        # Plain dicts, so that nn.Module does not see what is inside.
        self.frozen = {n: m for n, m in models.items() if specs[n].type == "frozen"}
        self.shadows = {n: _shadow(models[s.of]) for n, s in specs.items() if s.type == "ema" and s.of is not None}
        self.frozen_hashes = {n: hash_state(m.state_dict()) for n, m in self.frozen.items()}
        self.links = nn.ModuleList(self._build_links(links))
        self.tap_shapes: dict[str, dict[str, tuple[int, ...]]] = {}  # of one example batch, by member and tap
        self.example_size = 0  # how many samples that batch has
        self._connect()
        # After the links: one of them may have set a layer, or all of a member's weights.
        for name, shadow in self.shadows.items():
            shadow.load_state_dict(models[cast(str, specs[name].of)].state_dict())
        self.initial_hashes = {n: hash_state(m.state_dict()) for n, m in models.items() if specs[n].type == "trained"}
        self.caches: dict[str, TeacherCache] = {}
        self.progress = 0.0
        self.iteration = 0
        self.teacher_forwards = 0
        self._alive: set[int] = set()

    # --- building ---

    def _build_links(self, configs: Iterable[Mapping[str, Any]]) -> list[Method]:
        links = []
        for index, cfg in enumerate(configs):
            with isolated_rng(self.seed, f"link {index}"):
                link = METHODS.make(cfg, where=f"in link {index}")
            for name in (*link.teachers, link.student):
                if name not in self.specs:
                    raise UnknownName("member", name, self.specs, f"in link {index} ({link.name})")
            if self.specs[link.student].type != "trained":
                raise ConfigError(
                    f"link {index} ({link.name}) trains {link.student!r}, which is {self.specs[link.student].type}"
                )
            links.append(link)
        return links

    def _connect(self) -> None:
        """Check every tap, find the tapped shapes with one example forward, and let the links build their bridges."""
        if not len(self.links):
            return
        for name in self.specs:
            check_taps(self.member(name), self.taps_of(name, self.links), self.adapter.offers, name)
        example = self.adapter.example(self.member(self.deploy_name))
        self.example_size = batch_size(example)
        found: dict[str, Tapped] = {}
        for name in self.specs:
            taps = self.taps_of(name, self.links)
            with evaluating(self.member(name)), torch.no_grad(), isolated_rng(self.seed, "example"):
                found[name], _ = self._forward_member(name, example, taps, with_loss=False)
        self.tap_shapes = {
            name: {tap: tuple(store[tap].shape) for tap in self.taps_of(name, self.links)}
            for name, store in found.items()
        }
        for index, link in enumerate(self.methods()):
            teacher = [self.tap_shapes[link.teachers[0]][t] for t, _ in link.taps]
            student = [self.tap_shapes[link.student][s] for _, s in link.taps]
            link.members = {name: self.member(name) for name in (*link.teachers, link.student)}
            link.shapes = {name: [self.tap_shapes[name][t] for t, _ in link.taps] for name in link.teachers}
            with isolated_rng(self.seed, f"bridge {index}"):
                link.connect(teacher, student)

    # --- members ---

    def member(self, name: str) -> nn.Module:
        """A member by name, whatever its type."""
        if name in self.frozen:
            return self.frozen[name]
        if name in self.shadows:
            return self.shadows[name]
        return self.members[name]

    @property
    def initial_hash(self) -> str:
        """Of the deployed member's weights before its first step."""
        return self.initial_hashes[self.specs[self.deploy_name].of or self.deploy_name]

    def redeploy(self, name: str) -> None:
        """Deploy another trained member: evaluation and `data_preprocessor` are its own from now on."""
        if name == self.deploy_name:
            return
        self.deploy_name = name
        self.data_preprocessor = self.adapter.preprocessor(self.deploy).to(next(self.deploy.parameters()).device)

    @property
    def deploy(self) -> nn.Module:
        """The member that is evaluated, saved and exported."""
        return self.member(self.deploy_name)

    def taps_of(self, member: str, links: Iterable[nn.Module]) -> list[str]:
        """The taps that `links` read of a member, each once."""
        taps: dict[str, None] = {}
        for link in cast(Iterable[Method], links):
            for teacher, student in link.taps:
                if member in link.teachers:
                    taps[teacher] = None
                if member == link.student:
                    taps[student] = None
        return list(taps)

    def methods(self) -> list[Method]:
        """The links, typed."""
        return [cast(Method, link) for link in self.links]

    def identity(self, name: str) -> dict[str, Any]:
        """What decides a frozen member's outputs on given inputs, for keys of caches: network, weights, versions."""
        from limbeck import __version__

        model = self.specs[name].model
        config = {k: v for k, v in model.items() if k not in PRETRAINED} if isinstance(model, Mapping) else repr(model)
        return dict(
            model=config,
            weights=self.frozen_hashes[name],
            precision=self.specs[name].precision,
            limbeck=__version__,
            torch=torch.__version__,
        )

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Distiller:
        super()._apply(fn, recurse)
        for model in (*self.frozen.values(), *self.shadows.values()):
            model._apply(fn)
        return self

    def to(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Move trained, frozen and EMA members alike."""
        return super().to(*args, **kwargs)

    # --- the step ---

    def forward(self, inputs: Any, data_samples: Any = None, mode: str = "tensor") -> Any:
        """mmengine's entry: 'loss' gives named terms, 'predict' predictions of `deploy`, 'tensor' its raw output."""
        batch = self.adapter.batch(inputs, data_samples)
        if mode == "loss":
            return self.loss(batch)
        if mode == "predict":
            return self.adapter.predict(self.deploy, self._inputs(self.deploy_name, batch), batch)
        if mode == "tensor":
            return self.deploy(batch.inputs)
        raise ConfigError(f"mode {mode!r} is none of 'loss', 'predict', 'tensor'")

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Every loss term of one step, weighted, by name.

        Raises: NonFiniteLoss, DeadLoss.
        """
        active = [(i, m, m.factor(self.progress)) for i, m in enumerate(self.methods())]
        active = [(i, m, w) for i, m, w in active if w != 0.0]
        links = [m for _, m, _ in active]
        for index, method, _ in active:
            if method.alters_batch:
                batch = method.alter(batch, torch.Generator().manual_seed(self._draw(index)))
        reading = [m for m in links if not m.runs_members]
        # Teachers first: their activations are gone before the student's graph is built.
        found: dict[str, Any] = {
            n: self._fixed_taps(n, batch, taps) for n in self._fixed_names() if (taps := self.taps_of(n, reading))
        }
        own = self._own_batches(active, found, batch)
        terms: dict[str, Tensor] = {}
        task_weight = self.task_weight * self.task_schedule(self.progress)
        for name in self.members:
            taps = self.taps_of(name, reading)
            if not taps and self.task_weight == 0.0 and len(reading) < len(links):
                continue  # its links run it themselves, and its own loss counts nothing
            found[name], forward = self._forward_member(name, own[name], taps, with_loss=True)
            for key, value in forward.losses.items():
                total = sum(value) if isinstance(value, (list, tuple)) else value
                scale = task_weight if "loss" in key else 1.0
                terms[f"{name}.{key}"] = cast(Tensor, total if scale == 1.0 else total * scale)
        for index, method, weight in active:
            for key, raw in method(self._link_inputs(index, method, found, batch)).items():
                term = f"{method.name}{index or ''}.loss_{key}"
                if index not in self._alive:
                    self._check_alive(term, raw, method, own=key in method.own_terms)
                terms[term] = raw * weight
            self._alive.add(index)
        self._check_finite(terms, batch)
        return terms

    def _own_batches(
        self, active: Sequence[tuple[int, Method, float]], found: Mapping[str, Any], batch: Batch
    ) -> dict[str, Batch]:
        """What each trained member's own losses are computed on: the batch, with other targets where a link says so."""
        own = dict.fromkeys(self.members, batch)
        for index, method, _ in active:
            if method.alters_targets:
                seen = own[method.student]
                targets = method.retarget(self._link_inputs(index, method, found, seen))
                own[method.student] = replace(seen, targets=targets)
        return own

    def _draw(self, index: int) -> int:
        """Decides the random numbers of one link in one step."""
        text = f"{self.seed}/{index}/{self.iteration}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")

    def _link_inputs(self, index: int, method: Method, found: Mapping[str, Any], batch: Batch) -> LinkInputs:
        taps = [] if method.runs_members else method.taps
        teachers = [[found[name][t].detach() for t, _ in taps] for name in method.teachers]
        return LinkInputs(
            teacher=teachers[0],
            student=[found[method.student][s] for _, s in taps] if method.student in found else [],
            targets=batch.targets,
            progress=self.progress,
            ids=batch.ids,
            teachers=teachers,
            inputs={n: self._inputs(n, batch) for n in (*method.teachers, method.student)}
            if method.wants_inputs
            else {},
            second_forward=self._second_forward(method, batch),
            draw=self._draw(index),
        )

    def _second_forward(self, method: Method, batch: Batch) -> Callable[..., list[Tensor]]:
        def again(member: str, inputs: Any) -> list[Tensor]:
            side = 0 if member in method.teachers else 1
            wanted = [pair[side] for pair in method.taps]
            fixed = member not in self.members
            with torch.set_grad_enabled(torch.is_grad_enabled() and not fixed):
                store, _ = self._run(member, inputs, batch, wanted, with_loss=False)
            if member in self.frozen:  # a method may ask about fewer or more samples than the batch has
                self.teacher_forwards += batch_size(batch) if isinstance(inputs, Mapping) else len(inputs)
            return [store[tap] for tap in wanted]

        return again

    def _fixed_names(self) -> list[str]:
        return [*self.frozen, *self.shadows]

    def _inputs(self, name: str, batch: Batch) -> Any:
        return self.adapter.member_inputs(batch, self.deploy, self.member(name))

    def _forward_member(self, name: str, batch: Batch, taps: list[str], *, with_loss: bool) -> tuple[Tapped, Forward]:
        return self._run(name, self._inputs(name, batch), batch, taps, with_loss=with_loss)

    def _run(self, name: str, inputs: Any, batch: Batch, taps: list[str], *, with_loss: bool) -> tuple[Tapped, Forward]:
        model = self.member(name)
        precision = self.specs[name].precision
        taps = list(dict.fromkeys(taps))  # a link may read one tap in several pairs
        with ExitStack() as stack:
            store = stack.enter_context(tapped(model, taps))
            if precision != "float32" or name in self.frozen:  # a step's autocast is of the members that it trains
                kind = next(model.parameters()).device.type
                half = None if precision == "float32" else getattr(torch, precision)
                stack.enter_context(torch.autocast(kind, dtype=half, enabled=half is not None))
            forward = self.adapter.forward(model, inputs, batch, with_loss=with_loss)
        for tap in taps:
            name, index = split_tap(tap)
            if tap not in store and name in forward.offers:
                store.put(tap, _offered(forward.offers[name], index, tap))
        return store, forward

    def _fixed_taps(self, name: str, batch: Batch, taps: list[str]) -> Mapping[str, Tensor]:
        """Taps of a member without gradient; of samples that its cache has, from there, and it runs on the others."""
        cache, ids = self.caches.get(name), batch.ids
        if cache is None or ids is None:
            return self._fixed_forward(name, batch, taps)
        if set(taps) == set(cache.shapes):
            missing = cache.missing(ids, batch.views)
            part = None if missing.all() or not missing.any() else batch.rows(missing)
            if part is not None and part.ids is not None:
                cache.put(part.ids, part.views, self._fixed_forward(name, part, taps))
        if (hit := cache.get(ids, batch.views, taps)) is not None:
            device = next(self.deploy.parameters()).device
            return {tap: value.to(device, non_blocking=True) for tap, value in hit.items()}
        return cache.put(ids, batch.views, self._fixed_forward(name, batch, taps))

    def _fixed_forward(self, name: str, batch: Batch, taps: list[str]) -> dict[str, Tensor]:
        with torch.no_grad():
            store, _ = self._forward_member(name, batch, taps, with_loss=False)
        if name in self.frozen:
            self.teacher_forwards += batch_size(batch)
        return {tap: store[tap].float() if store[tap].is_floating_point() else store[tap] for tap in taps}

    @torch.no_grad()
    def member_taps(self, name: str, batch: Batch, taps: list[str]) -> Mapping[str, Tensor]:
        """Taps of a member in eval mode on a preprocessed batch, without graph, past every cache."""
        with evaluating(self.member(name)):
            store, _ = self._forward_member(name, batch, taps, with_loss=False)
        self.teacher_forwards += batch_size(batch) if name in self.frozen else 0
        return {tap: store[tap].detach().clone() for tap in taps}

    # --- guards ---

    def _check_alive(self, term: str, value: Tensor, method: Method, *, own: bool) -> None:
        """Guard 2: in its first step a term is not zero unless declared, and moves what it is there to train.

        Args:
            own: it trains the link's own parameters, not the trained member.
        """
        target = "the link's own parameters" if own else repr(method.student)
        if not value.requires_grad:
            raise DeadLoss(f"{term} sends no gradient into {target}: nothing it is computed from is trained")
        if method.may_be_zero or not torch.isfinite(value):  # `_check_finite` names the latter, and the sample ids
            return
        if value.item() == 0.0:
            raise DeadLoss(f"{term} is exactly zero in its first step; check its taps, or declare may_be_zero=True")
        trained = method if own else self.members[method.student]
        params = [p for p in trained.parameters() if p.requires_grad]
        try:
            grads = torch.autograd.grad(value, params, retain_graph=True, allow_unused=True) if params else ()
        except RuntimeError as error:
            if "checkpoint" not in str(error):
                raise
            raise ConfigError(
                f"{term}: {method.student!r} uses reentrant activation checkpointing, through which no gradient can be "
                "checked; build it without (with_cp=False)"
            ) from error
        if not any(g is not None and bool(torch.count_nonzero(g)) for g in grads):
            raise DeadLoss(f"{term} sends no gradient into {target}; check that its student taps are trained layers")

    def _check_finite(self, terms: Mapping[str, Tensor], batch: Batch) -> None:
        stacked = torch.stack([value.detach().float().mean() for value in terms.values()])
        if bool(torch.isfinite(stacked).all()):
            return
        bad = [f"{name} = {value.item()}" for name, value in zip(terms, stacked) if not torch.isfinite(value)]
        ids = (
            "unknown"
            if batch.ids is None
            else ", ".join(str(int(i)) for i in batch.ids[:16]) + (" …" if len(batch.ids) > 16 else "")
        )
        raise NonFiniteLoss(
            f"non-finite loss at iteration {self.iteration}: {'; '.join(bad)}; sample ids {ids}; "
            "lower the learning rate or the weight"
        )

    # --- EMA and state for resume ---

    @torch.no_grad()
    def update_shadows(self) -> None:
        """After an optimiser step: every EMA member moves towards the member it follows."""
        for name, shadow in self.shadows.items():
            spec = self.specs[name]
            source = self.members[cast(str, spec.of)]
            for mine, theirs in zip(shadow.parameters(), source.parameters()):
                mine.lerp_(theirs, 1.0 - spec.momentum)
            for mine, theirs in zip(shadow.buffers(), source.buffers()):
                mine.copy_(theirs)

    def shadow_state(self) -> dict[str, dict[str, Tensor]]:
        """State of the EMA members, for checkpoints."""
        return {name: model.state_dict() for name, model in self.shadows.items()}

    def load_shadow_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Restore the EMA members."""
        for name, model in self.shadows.items():
            model.load_state_dict(state[name])


def batch_size(batch: Batch) -> int:
    """Number of samples in a batch."""
    if batch.ids is not None:
        return len(batch.ids)
    return len(batch.targets if isinstance(batch.inputs, dict) else batch.inputs)


def _offered(value: Any, index: int | None, tap: str) -> Any:
    """What the adapter offers at a tap: the whole of it, or one of several levels; computed now where it is lazy."""
    value = value() if callable(value) else value
    if index is None:
        return value
    if isinstance(value, (tuple, list)) and index < len(value):
        return value[index]
    raise TapError(f"tap {tap!r}: what the adapter offers has no index {index}")


def _build_member(name: str, spec: Member, seed: int, runs: str | Path | None) -> nn.Module:
    with isolated_rng(seed, f"member {spec.init or name}"):
        model = (
            spec.model
            if isinstance(spec.model, nn.Module)
            else MODELS.make(spec.model or {}, where=f"of member {name!r}")
        )
    if spec.weights is not None:
        load_into(model, resolve_weights(spec.weights, runs), sha256=spec.sha256)
    elif spec.type == "frozen" and not spec.initial_weights:
        raise ConfigError(
            f"frozen member {name!r} has no weights; name them, or say initial_weights=True if the model loads its own"
        )
    return _freeze(model) if spec.type == "frozen" else model


def _freeze(model: nn.Module) -> nn.Module:
    return model.eval().requires_grad_(False)


def _shadow(source: nn.Module) -> nn.Module:
    return _freeze(deepcopy(source))
