"""Configs: a pair file in pure Python describes a benchmark pair; one method and one seed of it make a run."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from limbeck.engine.record import Selection, Task, record_id
from limbeck.errors import ConfigError, UnknownName

TEACHER, PLAIN = "teacher", "plain"
PRETRAINED = ("pretrained", "pretrained_backbone")  # keys of model configs: the whole network, or all but its head
Dict = dict[str, Any]
# What running somebody's Python file may raise.
_BROKEN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


def _absent(value: Any) -> bool:
    """Fields that came later are left out while they say nothing, so that older records keep their config's hash."""
    return not value


class DataConfig(_Strict):
    """Data sets by split, and how batches are made."""

    train: Dict
    val: Dict
    test: Dict
    batch_size: int = Field(64, gt=0)
    eval_batch_size: int = Field(250, gt=0)
    num_workers: int = Field(0, ge=0)
    unlabelled_batch_size: int = Field(
        0,
        ge=0,
        description="unlabelled images of every batch beside `batch_size` labelled ones; of a partly labelled set",
        exclude_if=_absent,
    )
    steps: int = Field(
        0,
        ge=0,
        description="updates an epoch of a partly labelled set; 0 is one pass over its labelled images",
        exclude_if=_absent,
    )
    also: dict[str, Dict] = Field(
        default_factory=dict,
        description="further test sets by name, with figures of their own; one whose files are not there is left out",
        exclude_if=_absent,
    )


class MetricConfig(_Strict):
    """The task's metric and which of its values ranks."""

    type: str
    primary: str = "top1"
    higher_is_better: bool = True
    options: Dict = Field(default_factory=dict, description="arguments of the metric", exclude_if=_absent)

    def build(self) -> Any:
        """The metric, with nothing seen. Raises: UnknownName, ConfigError."""
        from limbeck.engine.registry import METRICS

        return METRICS.make({"type": self.type, **self.options}, where="in metric")


class RecipeConfig(_Strict):
    """How a member is trained; the same for every method of a pair."""

    epochs: int = Field(ge=0, description="0 trains nothing: the member is evaluated as it is, as a zero-shot one is")
    optimizer: Dict = Field(default_factory=lambda: dict(type="SGD", lr=0.05, momentum=0.9, weight_decay=5e-4))
    param_scheduler: list[Dict] = Field(default_factory=list)
    clip_grad: Dict | None = None
    selection: Selection = "last"
    val_interval: int | None = Field(None, description="epochs between validations; None validates after the last one")
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    channels_last: bool = False
    save_dtype: Literal["float16", "float32"] = Field(
        "float16", description="of the saved student, which gives the metrics"
    )

    optimizers: dict[str, Dict] = Field(
        default_factory=dict,
        description="of further trained members, by name, with their links' parameters; others share `optimizer`",
        exclude_if=_absent,
    )
    paramwise: Dict | None = Field(
        None, description="mmengine's paramwise_cfg: custom_keys with lr_mult and decay_mult", exclude_if=_absent
    )


class CacheConfig(_Strict):
    """Keep the teacher's taps; needs a deterministic pipeline or a fixed pool of views."""

    dtype: Literal["float16", "float32"] = "float16"


class MethodConfig(_Strict):
    """What one method adds to plain training."""

    links: list[Dict] = Field(default_factory=list)
    task_weight: float = 1.0
    task_schedule: Dict = Field(
        default_factory=dict,
        description="how the task's own weight changes with progress, as a link's `schedule` does its own",
    )
    student: Dict | None = Field(
        default=None, description="where the method deploys another network than the pair's student"
    )
    members: dict[str, Dict] = Field(
        default_factory=dict,
        description="keys of members that differ: dict(teacher=dict(type='trained')) trains it too",
    )
    train: Dict | None = Field(
        default=None, description="training data in the place of the pair's, for a method that needs no images"
    )
    cache: bool = Field(
        default=True, description="False for a method that alters the images, so that nothing can be cached"
    )
    companions: dict[str, str] = Field(
        default_factory=dict,
        description="trained members that are kept too, and the pair under which each has a record of its own",
    )
    optimizers: dict[str, Dict] = Field(
        default_factory=dict, description="of the trained members that do not share the recipe's optimizer"
    )
    paramwise: Dict | None = Field(
        default=None,
        description="as the recipe's, and added to it, for this method alone",
    )
    loop: Dict = Field(default_factory=dict, description="keys that differ from the pair's loop")
    same_run_as: str | None = Field(
        default=None, description="config of the pair whose method of this name also trains this pair's student"
    )


class TeacherConfig(_Strict):
    """One more teacher of a pair, trained as `teacher-<its name>`; links read it by that name."""

    model: Dict
    recipe: RecipeConfig | None = Field(default=None, description="None takes the pair's teacher_recipe")
    data: Dict = Field(default_factory=dict, description="keys of the data config that differ; adds to teacher_data")


class PairConfig(_Strict):
    """A benchmark pair: the data, teacher and student, the recipes, and the methods that are compared on it."""

    task: Task
    benchmark: str
    benchmark_version: int = 1
    pair: str
    title: str = ""
    data: DataConfig
    adapter: Dict
    metric: MetricConfig
    teacher: Dict
    student: Dict
    recipe: RecipeConfig
    teacher_recipe: RecipeConfig | None = None
    teacher_data: Dict = Field(default_factory=dict, description="keys of the data config that differ for the teacher")
    teacher_tolerance: float = 0.5
    teacher_seeds: Literal["first", "run"] = Field(
        "first",
        description="'run' makes a teacher for every seed, as one that is fitted to the run's few labels has to be",
    )
    teacher_of: str | None = Field(
        None,
        description="config of another pair, whose trained teacher is taken; CONFIG:METHOD takes its student by a "
        "method, as a teacher assistant (arXiv 1902.03393) is one",
    )
    teachers: dict[str, TeacherConfig] = Field(default_factory=dict, description="further teachers, by member name")
    cache: CacheConfig | None = None
    loop: Dict = Field(
        default_factory=dict, description="a run made of several runs, for students; see `limbeck.engine.loop`"
    )
    methods: dict[str, MethodConfig]
    reported: dict[str, float] = Field(
        default_factory=dict, description="published values of the primary metric by method; shown, never ranked"
    )
    reported_source: str = ""

    @field_validator("methods")
    @classmethod
    def _names_of_methods(cls, methods: dict[str, MethodConfig]) -> dict[str, MethodConfig]:
        for name in methods:
            if is_teacher(name) or "@" in name:
                raise ValueError(
                    f"no method is named {name!r}: 'teacher' and 'teacher-…' name teachers, what has an '@' a variant"
                )
        return methods

    @field_validator("teachers")
    @classmethod
    def _names_of_teachers(cls, teachers: dict[str, TeacherConfig]) -> dict[str, TeacherConfig]:
        for name in teachers:
            if name in (TEACHER, "student") or "@" in name:
                raise ValueError(f"no further teacher is named {name!r}; choose a name of its own without '@'")
        return teachers

    def method_names(self) -> list[str]:
        """'plain' and the methods, in the file's order."""
        return [PLAIN, *(m for m in self.methods if m != PLAIN)]


class RunConfig(_Strict):
    """One run, fully resolved: what a record keeps."""

    task: Task
    benchmark: str
    benchmark_version: int = 1
    pair: str
    method: str
    seed: int = 0
    model: Dict
    data: DataConfig
    metric: MetricConfig
    recipe: RecipeConfig
    cache: CacheConfig | None = None
    companions: dict[str, str] = Field(
        default_factory=dict,
        description="other trained members that are kept, and the pairs of their records",
        exclude_if=_absent,
    )
    loop: Dict = Field(default_factory=dict, description="what makes several runs of this one", exclude_if=_absent)

    @property
    def id(self) -> str:
        """The id of the record that this run writes."""
        return record_id(self.benchmark, self.pair, self.method, self.seed)

    @property
    def deployed(self) -> Dict:
        """The config of the network that the run keeps."""
        return self.model["members"][self.model["deploy"]]["model"]

    def seen_from(self, member: str) -> RunConfig:
        """The same run as a companion's record has it: that member is deployed, and this one its companion."""
        others = {m: p for m, p in self.companions.items() if m != member}
        return self.model_copy(
            update=dict(
                pair=self.companions[member],
                model={**self.model, "deploy": member},
                companions={self.model["deploy"]: self.pair, **others},
            )
        )

    def companion_runs(self) -> list[RunConfig]:
        """`seen_from` every companion."""
        return [self.seen_from(member) for member in self.companions]


def is_teacher(method: str) -> bool:
    """Whether a method's name is that of a run which trains a teacher."""
    return method.lower() == TEACHER or method.lower().startswith(f"{TEACHER}-")


def parse(model: type[BaseModel], value: Any, where: str) -> Any:
    """Validate `value`; an unknown key is answered with near names.

    Raises: UnknownName, ConfigError.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        found = error.errors()
        # A mistyped key is an unknown one and mostly a missing one too: the unknown one says more.
        first = next((e for e in found if e["type"] == "extra_forbidden"), found[0])
        path = [str(p) for p in first["loc"]]
        if first["type"] == "extra_forbidden":
            known = _known_fields(model, path[:-1])
            place = f" at {'.'.join(path[:-1])}" if path[:-1] else ""
            raise UnknownName("config key", path[-1], known, f"in {where}{place}") from error
        raise ConfigError(f"{where}: {'.'.join(path) or 'config'}: {first['msg']}") from error


def _known_fields(model: type[BaseModel], path: list[str]) -> set[str]:
    for part in path:
        field = model.model_fields.get(part)
        inner = [] if field is None else [field.annotation, *getattr(field.annotation, "__args__", ())]
        nested = [t for t in inner if isinstance(t, type) and issubclass(t, BaseModel)]
        if nested:
            model = nested[0]
    return set(model.model_fields)


def config_file(name: str) -> Path:
    """Find a config: a path, or a shipped one by 'task/name' such as 'vision/digits'.

    Raises: UnknownName with near names.
    """
    path = Path(name)
    if path.suffix == ".py" and path.is_file():
        return path
    shipped = shipped_configs()
    if name in shipped:
        return shipped[name]
    raise UnknownName("config", name, shipped)


def shipped_configs() -> dict[str, Path]:
    """Every config in the package, by 'task/name'."""
    root = Path(str(files("limbeck")))
    found = {}
    for path in sorted(root.glob("**/configs/*.py")):
        if path.name != "__init__.py":
            found[f"{path.parent.parent.relative_to(root).as_posix()}/{path.stem}"] = path
    return found


def load_pair(name: str, overrides: list[str] | None = None) -> PairConfig:
    """Read a pair config through mmengine's Config.

    Args:
        overrides: see `with_overrides`.
    Raises: ConfigError for a file that does not run or lacks keys; UnknownName for unknown keys.
    """
    from mmengine.config import Config

    path = config_file(name)
    beside = str(path.resolve().parent)
    if path not in shipped_configs().values() and beside not in sys.path:
        sys.path.append(beside)  # a user's own modules, named by custom_imports, lie beside the config
    try:
        raw = Config.fromfile(str(path), lazy_import=False).to_dict()
    except _BROKEN as error:
        said = (str(error).splitlines() or [""])[0]  # mmengine prints all of sys.path after the first line
        raise ConfigError(f"{path}: the config does not run: {type(error).__name__}: {said}") from error
    raw.pop("custom_imports", None)  # mmengine has imported them: a user's own methods, models and data
    # What a file imports to compute with is no key; mmengine leaves out modules and Python functions, but not all else.
    keys = {k: v for k, v in raw.items() if not k.startswith("_") and not callable(v)}
    pair: PairConfig = parse(PairConfig, keys, str(path))
    return parse(PairConfig, with_overrides(pair.model_dump(), overrides), "overridden config") if overrides else pair


@dataclass(frozen=True)
class TrainedTeacher:
    """A frozen member's weights.

    weights: 'run://<record id>', 'zoo://name' or a path. metric: what it must reach on validation, else the run stops.
    """

    weights: str | None = None
    sha256: str | None = None
    metric: float | None = None


def expand(
    pair: PairConfig,
    method: str,
    seed: int,
    *,
    teacher_weights: str | None = None,
    teacher_sha256: str | None = None,
    teacher_metric: float | None = None,
    trained: Mapping[str, TrainedTeacher] | None = None,
) -> RunConfig:
    """One run of a pair: 'teacher' trains the teacher alone, 'plain' the student alone, a method name links the two.

    Args:
        method: of the pair; 'teacher-NAME' for a further teacher; 'NAME@option=value' for a variant, see
            `limbeck.engine.variant`.
        teacher_weights, teacher_sha256, teacher_metric: the main teacher's, where `trained` does not have it.
        trained: the teachers by member name, 'teacher' the main one; needed by every method that has links.
    Raises: UnknownName for a method that the pair does not have.
    """
    from limbeck.engine.variant import apply_variant, split_variant

    if (other := _same_run(pair, method)) is not None:
        return _as_companion(pair, expand(load_pair(other), method, seed))
    given = {TEACHER: TrainedTeacher(teacher_weights, teacher_sha256, teacher_metric), **(trained or {})}
    base, variant = split_variant(method)
    known = {m.lower(): m for m in [TEACHER, *(f"{TEACHER}-{t}" for t in pair.teachers), *pair.method_names()]}
    if base.lower() not in known:
        raise UnknownName("method", base, known.values(), f"in pair {pair.benchmark}/{pair.pair}")
    name = known[base.lower()]
    teacher = _teacher_of(pair, name)
    if teacher is not None and variant is not None:
        raise ConfigError(f"{method}: a teacher has no variants; vary a method that it teaches, or its own config")
    spec = pair.methods.get(name, MethodConfig())
    student_model = spec.student or pair.student
    if variant is not None:
        spec, student_model = apply_variant(spec, student_model, variant, name)
    student: Dict = dict(type="trained", model=student_model if teacher is None else teacher.model)
    read = teachers_of(spec)
    averages = {n: keys for n, keys in spec.members.items() if n in read and keys.get("type") == "ema"}
    members: Dict = {n: _frozen(pair, n, given.get(n, TrainedTeacher())) for n in read if n not in averages}
    for member, keys in spec.members.items():
        if member in averages:
            continue
        if member not in members:
            raise UnknownName("member", member, members, f"in members of method {name}")
        own = members[member] if keys.get("type", "frozen") == "frozen" else {"model": _model_of(pair, member)}
        members[member] = {**own, **keys}
    model = dict(
        type="Distiller",
        members={**members, "student": student, **averages},
        deploy="student",
        adapter=pair.adapter,
        links=spec.links,
        task_weight=spec.task_weight,
        **(dict(task_schedule=spec.task_schedule) if spec.task_schedule else {}),
    )
    data = pair.data
    if teacher is not None and (changed := {**pair.teacher_data, **teacher.data}):
        data = parse(DataConfig, {**pair.data.model_dump(), **changed}, "teacher_data")
    elif spec.train is not None:
        data = data.model_copy(update=dict(train=spec.train))
    data = data.model_copy(update=dict(train=_seeded(data.train, seed, cached=teacher is None and bool(pair.cache))))
    recipe = pair.recipe if teacher is None else teacher.recipe or pair.teacher_recipe or pair.recipe
    if teacher is None and spec.optimizers:
        recipe = recipe.model_copy(update=dict(optimizers=spec.optimizers))
    if teacher is None and spec.paramwise:
        shared = recipe.paramwise or {}
        keys = {**shared.get("custom_keys", {}), **spec.paramwise.get("custom_keys", {})}
        recipe = recipe.model_copy(update=dict(paramwise={**shared, **spec.paramwise, "custom_keys": keys}))
    for member in spec.companions:
        if members.get(member, {}).get("type") != "trained":
            raise ConfigError(f"method {name} keeps {member!r} as companion, which its members do not train")
    value = dict(
        task=pair.task,
        benchmark=pair.benchmark,
        benchmark_version=pair.benchmark_version,
        pair=pair.pair,
        method=name if variant is None else variant.method(name),
        seed=seed,
        model=deepcopy(model),
        data=data.model_dump(),
        metric=pair.metric.model_dump(),
        recipe=recipe.model_dump(),
        cache=pair.cache.model_dump() if pair.cache and spec.links and spec.cache else None,
        companions=spec.companions if teacher is None else {},
        loop={**pair.loop, **spec.loop} if teacher is None else {},
    )
    return parse(RunConfig, value, f"run {name} of {pair.benchmark}/{pair.pair}")


def _seeded(train: Dict, seed: int, *, cached: bool) -> Dict:
    """A training set's config with the seeds that the run decides.

    A cache wants one pool of views for every seed; plain and uncached methods then see that pool too. Which images a
    partly labelled set labels is drawn anew by every seed where it says shots_seed='run'.
    """
    if cached and any(cfg.get("augment") is not None for cfg in (train, train.get("of") or {})):
        train = {"seed": 0, **train}
    return {**train, "shots_seed": seed} if train.get("shots_seed") == "run" else train


def _same_run(pair: PairConfig, method: str) -> str | None:
    """The config whose run of this method trains the pair's student too; None where the pair makes its own."""
    base = method.partition("@")[0].lower()
    return next((spec.same_run_as for name, spec in pair.methods.items() if name.lower() == base), None)


def _as_companion(pair: PairConfig, run: RunConfig) -> RunConfig:
    """The companion's side of another pair's run.

    Raises: ConfigError when that run keeps no student of this pair, or another network.
    """
    member = next((m for m, name in run.companions.items() if name == pair.pair), None)
    if member is None or run.benchmark != pair.benchmark:
        raise ConfigError(
            f"{run.benchmark}/{run.pair}: {run.method} keeps no companion for pair {pair.benchmark}/{pair.pair}; "
            "name it in that method's companions"
        )
    if run.model["members"][member]["model"] != pair.student:
        raise ConfigError(
            f"{run.benchmark}/{run.pair}: {run.method} trains another {member!r} than the student of {pair.pair}; "
            "make the two model configs equal"
        )
    return run.seen_from(member)


def _teacher_of(pair: PairConfig, method: str) -> TeacherConfig | None:
    """The teacher that a method name trains; None for plain and distilled students."""
    if method == TEACHER:
        return TeacherConfig(model=pair.teacher, recipe=None)
    return pair.teachers.get(method.removeprefix(f"{TEACHER}-")) if method.startswith(f"{TEACHER}-") else None


def teachers_of(spec: MethodConfig) -> list[str]:
    """The members that a method's links read beside the student, in the order in which they are named."""
    found: dict[str, None] = {}
    for link in spec.links:
        named = link.get("teacher", TEACHER)
        for member in [named] if isinstance(named, str) else named:
            if member != "student":
                found[member] = None
    return list(found)


def _model_of(pair: PairConfig, member: str) -> Dict:
    if member != TEACHER and member not in pair.teachers:
        raise UnknownName("teacher", member, [TEACHER, *pair.teachers], f"in pair {pair.benchmark}/{pair.pair}")
    return pair.teacher if member == TEACHER else pair.teachers[member].model


def _frozen(pair: PairConfig, member: str, trained: TrainedTeacher) -> Dict:
    model = _model_of(pair, member)
    own = bool(model.get("pretrained"))
    loads = {key: False for key in PRETRAINED if model.get(key)}
    return dict(
        type="frozen",
        model={**model, **loads} if trained.weights else model,  # nothing is loaded twice
        weights=trained.weights,
        **(dict(initial_weights=True) if own and not trained.weights else {}),
        sha256=trained.sha256,
        expected=None if trained.metric is None else {pair.metric.primary: trained.metric},
        tolerance=pair.teacher_tolerance,
    )


def with_overrides(config: Mapping[str, Any], overrides: list[str]) -> Dict:
    """Apply 'a.b=value' overrides to nested dicts; values are read as Python literals, else kept as text.

    Arguments of a data set, model or adapter may be new ('data.train.limit=100'): what is built of them checks them.

    Raises: UnknownName when a path does not exist.
    """
    from ast import literal_eval

    result: Dict = deepcopy(dict(config))
    for text in overrides:
        path, eq, raw = text.partition("=")
        if not eq:
            raise ConfigError(f"override {text!r} is not of the form key.path=value")
        try:
            value = literal_eval(raw)
        except (ValueError, SyntaxError, TypeError):
            value = raw
        node: Any = result
        *parents, last = path.split(".")
        for part in parents:
            if not isinstance(node, dict) or part not in node:
                raise UnknownName("config key", part, node if isinstance(node, dict) else [], f"in override {text!r}")
            node = node[part]
        free = (len(parents) == 2 and parents[0] == "data") or parents[:1] in (["teacher"], ["student"], ["adapter"])
        if not isinstance(node, dict) or (last not in node and not free):
            raise UnknownName("config key", last, node if isinstance(node, dict) else [], f"in override {text!r}")
        node[last] = value
    return result
