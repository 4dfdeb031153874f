"""Suites: what is compared with what, as data; a suite expands to runs, of which only the missing ones are made."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from limbeck.engine.config import (
    PLAIN,
    TEACHER,
    PairConfig,
    RunConfig,
    TrainedTeacher,
    expand,
    is_teacher,
    load_pair,
    parse,
)
from limbeck.engine.record import RunRecord, config_hash, failure_path, read_record, record_id, record_path
from limbeck.engine.variant import Variant
from limbeck.errors import ConfigError, ExtraMissing, UnknownName

State = Literal["done", "stale", "failed", "missing"]
Extra = Literal["segmentation", "detection", "pointcloud", "diffusion", "multimodal"]
STACKS: dict[Extra, str] = {
    "segmentation": "mmseg",
    "detection": "mmdet",
    "pointcloud": "mmdet3d",
    "diffusion": "diffusers",
    "multimodal": "open_clip",
}


class Vary(BaseModel):
    """An ablation: one option of one method at several values; see `limbeck.engine.variant`."""

    model_config = ConfigDict(extra="forbid")

    method: str
    option: str
    values: list[Any] = Field(min_length=1)

    def names(self) -> list[str]:
        """The variants' method names."""
        return [Variant(self.option, value).method(self.method) for value in self.values]


class Group(BaseModel):
    """One benchmark pair of a suite: its config, the methods (empty: all of the config's), ablations and seeds."""

    model_config = ConfigDict(extra="forbid")

    config: str
    methods: list[str] = Field(default_factory=list)
    vary: list[Vary] = Field(default_factory=list)
    seeds: list[int] = Field(default_factory=list)
    extra: Extra | None = Field(None, description="the optional dependencies that its networks need")


class Suite(BaseModel):
    """A named list of groups; each becomes one group of rows in the table."""

    model_config = ConfigDict(extra="forbid")

    name: str
    title: str
    description: str = ""
    minutes: str = Field("", description="rough time on two cores, for people")
    seeds: list[int] = Field(min_length=1)
    groups: list[Group]

    def installed(self) -> tuple[Suite, list[ExtraMissing]]:
        """The suite without the groups whose extra is not installed, and why each of those is left out."""
        groups = [g for g in self.groups if g.extra is None or find_spec(STACKS[g.extra])]
        missing = [ExtraMissing(g.config, g.extra) for g in self.groups if g.extra and g not in groups]
        return self.model_copy(update=dict(groups=groups)), missing


class Job(BaseModel):
    """One run of a suite: which pair, method and seed."""

    config: str
    benchmark: str
    pair: str
    method: str
    seed: int
    trainers: dict[str, Job] = Field(default_factory=dict, description="the jobs of frozen members, by member")
    same_run: list[str] = Field(
        default_factory=list, description="ids of the companions' records that the run writes too"
    )

    @property
    def id(self) -> str:
        """The id of the record that this job writes."""
        return record_id(self.benchmark, self.pair, self.method, self.seed)

    @property
    def teacher_id(self) -> str | None:
        """The id of the first teacher's record, where the job needs one."""
        return next(iter(self.teacher_ids.values()), None)

    @property
    def teacher_ids(self) -> dict[str, str]:
        """The ids of the teachers' records that the job needs, by member."""
        return {member: job.id for member, job in self.trainers.items()}


def trainer(config: str, pair: PairConfig, member: str, seed: int, pupils: tuple[str, ...] = ()) -> Job:
    """The job that trains a teacher of a pair; another pair's teacher or student where the pair takes that one.

    Args:
        pupils: configs whose pairs this teacher is for, the nearest last.
    Raises: ConfigError when the other pair's network is another one, or is taught by its own pupil.
    """
    if member != TEACHER or pair.teacher_of is None:
        method = TEACHER if member == TEACHER else f"{TEACHER}-{member}"
        return Job(config=config, benchmark=pair.benchmark, pair=pair.pair, method=method, seed=seed)
    config, named, method = pair.teacher_of.rpartition(":")
    if not named:
        config, method = method, TEACHER
    if config in pupils:
        raise ConfigError(f"{' takes its teacher from '.join((*pupils, config))}; one of them must train its own")
    other = load_pair(config)
    run = expand(other, method, seed)
    method = run.method
    if run.deployed != pair.teacher:
        what = TEACHER if is_teacher(method) else f"student by {method}"
        raise ConfigError(
            f"pair {pair.benchmark}/{pair.pair} takes the {what} of {config}, but its own teacher config differs; "
            "make the two equal"
        )
    trainers = {m: trainer(config, other, m, seed, (*pupils, config)) for m in frozen_members(other, method)}
    return Job(config=config, benchmark=other.benchmark, pair=other.pair, method=method, seed=seed, trainers=trainers)


def _with_trainers(job: Job) -> list[Job]:
    """The jobs that a job needs, before those that need them, and the job itself."""
    return [*(j for needed in job.trainers.values() for j in _with_trainers(needed)), job]


def suite_folders() -> list[Path]:
    """Where suites lie: a checkout's benchmarks/suites, else the copy in the package."""
    package = Path(str(files("limbeck")))
    return [p for p in (package.parent / "benchmarks" / "suites", package / "_suites") if p.is_dir()]


def suites() -> dict[str, Path]:
    """Every suite's file by name."""
    found: dict[str, Path] = {}
    for folder in suite_folders():
        for path in sorted(folder.glob("*.toml")):
            found.setdefault(path.stem, path)
    return found


def load_suite(name: str) -> Suite:
    """Read a suite by name or path.

    Raises: UnknownName with near names; ConfigError for a file that does not parse.
    """
    path = Path(name)
    if not (path.suffix == ".toml" and path.is_file()):
        known = suites()
        if name not in known:
            raise UnknownName("suite", name, known)
        path = known[name]
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    suite: Suite = parse(Suite, raw, str(path))
    return suite


def benchmarks_of(names: list[str] | None) -> list[str] | None:
    """Benchmark names, with each suite's name replaced by the benchmarks that it has; None stays None."""
    if not names:
        return None
    known = suites()
    found: dict[str, None] = {}
    for name in names:
        groups = load_suite(name).groups if name in known else []
        for benchmark in [load_pair(group.config).benchmark for group in groups] or [name]:
            found[benchmark] = None
    return list(found)


def plan(suite: Suite, *, seeds: int | None = None, only: list[str] | None = None) -> list[Job]:
    """The suite's jobs, group by group: the teacher first, then seed by seed, so that an early stop leaves whole seeds.

    Args:
        seeds: take the first N seeds; at least 1.
        only: methods to run, with their variants, or single variants; 'plain' is always run with them, for without it
            no gain can be told.
    Raises: UnknownName for a method that no group has; ConfigError for fewer seeds than one, or for two different runs
        of one record.
    """
    if seeds is not None and seeds < 1:
        raise ConfigError(f"a suite needs at least 1 seed; got {seeds}")
    wanted = None if not only else {o.lower() for o in only} | {PLAIN}
    jobs: dict[str, Job] = {}  # by id: groups may share runs
    offered: dict[str, None] = {}
    for group in suite.groups:
        pair = load_pair(group.config)
        names = group.methods or pair.method_names()
        names = [PLAIN, *(n for n in names if n.lower() != PLAIN)]
        names += [variant for vary in group.vary for variant in vary.names()]
        bases = [n.partition("@")[0] for n in names]
        offered |= dict.fromkeys([*names, *bases])
        if wanted is not None:
            names = [n for n, base in zip(names, bases) if not wanted.isdisjoint((n.lower(), base.lower()))]
        for job in _jobs(group, pair, names, (group.seeds or suite.seeds)[:seeds]):
            _check_same(jobs.setdefault(job.id, job), job)
    for name in only or []:
        if name.lower() not in {o.lower() for o in offered}:
            raise UnknownName("method", name, offered, f"in suite {suite.name!r}")
    for job in jobs.values():
        job.same_run = [identity for identity in job.same_run if identity in jobs]
    return list(jobs.values())


def _jobs(group: Group, pair: PairConfig, names: list[str], seeds: list[int]) -> list[Job]:
    """A group's jobs, teachers first; a teacher is trained with the first seed, or each where the pair says so."""
    base: dict[str, Any] = dict(config=group.config, benchmark=pair.benchmark, pair=pair.pair)
    frozen: dict[str, list[str]] = {name: frozen_members(pair, name) for name in names}
    taught = {seed: seed if pair.teacher_seeds == "run" else seeds[0] for seed in seeds}  # the teacher's seed by run's
    trainers = {
        (member, seed): trainer(group.config, pair, member, seed)
        for seed in dict.fromkeys(taught.values())
        for member in dict.fromkeys((TEACHER, *(m for members in frozen.values() for m in members)))
    }
    companions = {name: _companions(pair, name) for name in names}
    students = [
        Job(
            **base,
            method=name,
            seed=seed,
            trainers={member: trainers[member, taught[seed]] for member in frozen[name]},
            same_run=[record_id(pair.benchmark, other, name, seed) for other in companions[name]],
        )
        for seed in seeds
        for name in names
    ]
    return [*(j for job in trainers.values() for j in _with_trainers(job)), *students]


def _companions(pair: PairConfig, name: str) -> list[str]:
    """The pairs whose students a method's run keeps too."""
    return [] if name == PLAIN else list(expand(pair, name, 0).companions.values())


def _check_same(first: Job, second: Job) -> None:
    """Two jobs of one id are one run.

    Raises: ConfigError where one would silently take the other's place.
    """
    if (first.config, first.method) == (second.config, second.method):
        return
    runs = [expand(load_pair(job.config), job.method, job.seed) for job in (first, second)]
    if runs[0] != runs[1]:
        raise ConfigError(
            f"{first.method!r} of {first.config} and {second.method!r} of {second.config} differ, but their records "
            f"would both be {first.id}; leave one out, or give it another name"
        )


def frozen_members(pair: PairConfig, name: str) -> list[str]:
    """The frozen members of a method or variant."""
    members = expand(pair, name, 0).model["members"]
    return [member for member, cfg in members.items() if cfg["type"] == "frozen"]


def resolve(job: Job, records: Path) -> RunConfig:
    """The job's run config; a linked method needs its teachers' records.

    Raises: ConfigError when a teacher has not been trained yet.
    """
    pair = load_pair(job.config)
    trained = {}
    for member, identity in job.teacher_ids.items():
        path = record_path(records, identity)
        if not path.is_file():
            raise ConfigError(f"{job.id} needs the teacher's record {path}; run the teacher first")
        teacher = read_record(path)
        metric = teacher.val_metrics.get(pair.metric.primary)
        trained[member] = TrainedTeacher(f"run://{identity}", teacher.student_sha256, metric)
    return expand(pair, job.method, job.seed, trained=trained)


def state(job: Job, records: Path) -> tuple[State, RunRecord | None]:
    """Whether a job's record is there and still what the config says, for itself and for its teacher.

    Raises: CorruptFile when its record is damaged.
    """
    path = record_path(records, job.id)
    if not path.is_file():
        return ("failed" if failure_path(records, job.id).is_file() else "missing"), None
    record = read_record(path)
    if any(state(teacher, records)[0] != "done" for teacher in job.trainers.values()):
        return "stale", record
    current = config_hash(resolve(job, records).model_dump(mode="json"))
    return ("done" if current == record.config_hash else "stale"), record
