"""Rerun: which runs a table's cells need, and run by run what came out again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from limbeck.engine.config import PLAIN, is_teacher, load_pair
from limbeck.engine.record import RunRecord, read_record, record_path
from limbeck.engine.suite import Group, Job, Suite, load_suite, plan, suites
from limbeck.errors import ConfigError, UnknownName
from limbeck.leaderboard.figures import BLANK, grid, number
from limbeck.leaderboard.stats import estimate
from limbeck.leaderboard.table import decimals, title

if TYPE_CHECKING:
    from rich.console import Console

Verdict = Literal["identical", "within tolerance", "differs", "missing"]
STYLES: dict[Verdict, str] = {
    "identical": "green",
    "within tolerance": "green",
    "differs": "red",
    "missing": "yellow",
}


@dataclass(frozen=True)
class Cell:
    """What to run again: a method, on one seed or on all."""

    method: str
    seed: int | None = None


@dataclass(frozen=True)
class Plan:
    """The jobs that are run, teachers first, and the ids of those that were asked for."""

    jobs: tuple[Job, ...]
    wanted: tuple[str, ...]


@dataclass(frozen=True)
class RerunCell:
    """One run, as recorded and as run again, in the primary metric.

    low, high: what counts as within tolerance; None where nothing but equality does.
    """

    id: str
    metric: str
    recorded: float | None
    found: float | None
    verdict: Verdict
    low: float | None = None
    high: float | None = None
    notes: tuple[str, ...] = ()


def parse_cells(texts: Sequence[str] | None) -> list[Cell]:
    """'KD' and 'KD/0' as cells.

    Raises: ConfigError for an empty method.
    """
    cells = []
    for text in texts or ():
        method, slash, seed = text.rpartition("/")
        cell = Cell(method, int(seed)) if slash and seed.isdecimal() else Cell(text)
        if not cell.method or cell.method.endswith("/"):
            raise ConfigError(f"a cell is METHOD or METHOD/SEED, as KD/0; got {text!r}")
        cells.append(cell)
    return cells


def table_suite(name: str) -> Suite:
    """A suite by name or file, or all groups of all suites that make a benchmark, or one pair 'benchmark/pair' of it.

    Raises: UnknownName with near suites and benchmarks.
    """
    known = suites()
    if name in known or (name.endswith(".toml") and Path(name).is_file()):
        return load_suite(name)
    groups: list[Group] = []
    tables: set[str] = set()
    for suite in map(load_suite, known):
        for group in suite.groups:
            pair = load_pair(group.config)
            tables |= {pair.benchmark, f"{pair.benchmark}/{pair.pair}"}
            if name in (pair.benchmark, f"{pair.benchmark}/{pair.pair}"):
                groups.append(group.model_copy(update=dict(seeds=group.seeds or suite.seeds)))
    if not groups:
        raise UnknownName("table", name, {*known, *tables}, "among those of limbeck bench reproduce --list")
    return Suite(name=name.replace("/", "-"), title=name, seeds=groups[0].seeds, groups=groups, minutes="")


def plan_cells(suite: Suite, cells: Sequence[Cell], *, pair: str | None = None) -> Plan:
    """The runs of some cells, all when none is named, and what they need: the plain student of each seed, the teachers.

    Args:
        pair: cells of this pair alone.
    Raises: UnknownName for a method or pair that the suite does not have; ConfigError for a seed that it does not have.
    """
    jobs = plan(suite)
    if pair is not None and pair not in {j.pair for j in jobs}:
        raise UnknownName("pair", pair, {j.pair for j in jobs}, f"in {suite.name}")
    offered = [j for j in jobs if pair in (None, j.pair)]
    wanted = [j for j in offered if not cells]
    for cell in cells:
        of_method = [j for j in offered if j.method.lower() == cell.method.lower()]
        if not of_method:
            raise UnknownName("method", cell.method, {j.method for j in offered}, f"in {suite.name}")
        found = [j for j in of_method if cell.seed in (None, j.seed)]
        if not found:
            seeds = ", ".join(map(str, sorted({j.seed for j in of_method})))
            raise ConfigError(f"{suite.name} has {cell.method} on the seeds {seeds}; none is {cell.seed}")
        wanted += found
    plain = {(j.config, j.seed): j for j in jobs if j.method.lower() == PLAIN}
    baselines = [plain[j.config, j.seed] for j in wanted if not is_teacher(j.method) and (j.config, j.seed) in plain]
    needed = {identity for job in (*wanted, *baselines) for identity in _with_trainers(job)}
    kept = [job for job in jobs if job.id in needed]
    for job in kept:
        job.same_run = [identity for identity in job.same_run if identity in needed]
    ids = {job.id for job in wanted}
    return Plan(tuple(kept), tuple(job.id for job in kept if job.id in ids))


def _with_trainers(job: Job) -> list[str]:
    return [job.id, *(identity for needed in job.trainers.values() for identity in _with_trainers(needed))]


def recorded_cost(jobs: Sequence[str], results: str | Path) -> str:
    """What records say of how long some runs take; that no measurement exists, where none does."""
    records = [_read(results, identity) for identity in jobs]
    known = [r for r in records if r is not None]
    if not known:
        return f"{len(jobs)} runs; no measurement of their time exists in {results}"
    seconds = math.fsum(r.cost.train_seconds for r in known)
    places = sorted({r.environment.machine for r in known})
    rest = f"; {len(jobs) - len(known)} were never timed" if len(known) < len(jobs) else ""
    took = f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
    took += f" of training, one after another, on {', '.join(places)}"
    return f"{len(jobs)} runs, of which {len(known)} took {took}{rest}"


def _read(folder: str | Path, identity: str) -> RunRecord | None:
    path = record_path(folder, identity)
    return read_record(path) if path.is_file() else None


def compare_cells(
    wanted: Sequence[str],
    ours: str | Path,
    theirs: str | Path,
    *,
    tolerance: float | None = None,
    failed: Mapping[str, str] | None = None,
) -> list[RerunCell]:
    """Each run as recorded in one folder and as run again in another.

    identical: equal values in every shared metric. within tolerance: the new value lies in the 95 % prediction interval
    of the method's recorded seeds, mean ± t · s · √(1 + 1/n), or is at most `tolerance` off the recorded one where that
    is given. differs: neither, or other data. missing: one of the two folders has no such record. Training curves and
    cost are not judged.

    Raises: CorruptFile for a damaged record; ConfigError for a negative tolerance.
    """
    if tolerance is not None and not tolerance >= 0:
        raise ConfigError(f"a tolerance is 0 or more; got {tolerance}")
    return [_compared(i, _read(ours, i), _read(theirs, i), theirs, tolerance, (failed or {}).get(i)) for i in wanted]


def _compared(
    identity: str,
    ours: RunRecord | None,
    theirs: RunRecord | None,
    folder: str | Path,
    tolerance: float | None,
    failure: str | None,
) -> RerunCell:
    some = theirs or ours
    metric = some.primary_metric if some else ""
    values = (theirs.value if theirs else None, ours.value if ours else None)
    if ours is None or theirs is None:
        notes = [f"no record in {folder}"] if theirs is None else []
        notes += [f"the run failed: {failure}" if failure else "it was not run again"] if ours is None else []
        return RerunCell(identity, metric, *values, "missing", notes=tuple(notes))
    notes = _notes(ours, theirs)
    if ours.data.content_hash != theirs.data.content_hash:
        return RerunCell(identity, metric, *values, "differs", notes=tuple(notes))
    shared = ours.metrics.keys() & theirs.metrics.keys()
    low, high = _limits(identity, theirs, folder, tolerance)
    if shared and all(ours.metrics[m] == theirs.metrics[m] for m in shared):
        verdict: Verdict = "identical"
    elif low is not None and high is not None and low <= ours.value <= high:
        verdict = "within tolerance"
    else:
        verdict = "differs"
        notes += ["a single recorded seed states no tolerance; give one with --tolerance"] if low is None else []
    return RerunCell(identity, metric, *values, verdict, low, high, tuple(notes))


def _notes(ours: RunRecord, theirs: RunRecord) -> list[str]:
    notes = []
    if ours.data.content_hash != theirs.data.content_hash:
        notes.append(f"other data: {theirs.data.content_hash[:12]}… and {ours.data.content_hash[:12]}…")
    if ours.config_hash != theirs.config_hash:
        notes.append("other config")
    if ours.initial_hash != theirs.initial_hash:
        notes.append("other initial weights")
    if ours.environment.limbeck != theirs.environment.limbeck:
        notes.append(f"limbeck {theirs.environment.limbeck} and {ours.environment.limbeck}")
    if ours.environment.torch != theirs.environment.torch:
        notes.append(f"torch {theirs.environment.torch} and {ours.environment.torch}")
    return notes


def _limits(
    identity: str, record: RunRecord, folder: str | Path, tolerance: float | None
) -> tuple[float | None, float | None]:
    """The values that count as within tolerance."""
    if tolerance is not None:
        return record.value - tolerance, record.value + tolerance
    beside = sorted(record_path(folder, identity).parent.glob("seed*.json"))
    seeds = [read_record(p) for p in beside if not p.name.endswith(".failed.json")]
    found = estimate([r.value for r in seeds if record.primary_metric == r.primary_metric])
    if found.half is None:
        return None, None
    half = found.half * math.sqrt(found.n + 1)  # t·s/√n → t·s·√(1 + 1/n)
    return found.mean - half, found.mean + half


def holds(cells: Sequence[RerunCell]) -> bool:
    """Whether no cell differs or is missing."""
    return all(c.verdict in ("identical", "within tolerance") for c in cells)


def render_cells(cells: Sequence[RerunCell], console: Console, *, tolerance: float | None = None) -> None:
    """Print a reproduction, one line a run."""
    from rich.text import Text

    lines = grid("run", "metric", "recorded", "again", "tolerance", "verdict", "notes", words=(0, 1, 5, 6))
    for cell in cells:
        places = decimals([v for v in (cell.recorded, cell.found) if v is not None])
        span = BLANK if cell.low is None else f"{number(cell.low, places)} … {number(cell.high, places)}"
        lines.add_row(
            Text(cell.id),
            Text(title(cell.metric) if cell.metric else ""),
            number(cell.recorded, places),
            number(cell.found, places),
            span,
            Text(cell.verdict, style=STYLES[cell.verdict]),
            Text(", ".join(cell.notes)),
        )
    console.print(lines)
    counts = {v: sum(c.verdict == v for c in cells) for v in STYLES}
    console.print(Text(", ".join(f"{n} {v}" for v, n in counts.items() if n), style="bold"))
    stated = (
        "the 95 % prediction interval of the method's recorded seeds, mean ± t · s · √(1 + 1/n)"
        if tolerance is None
        else f"at most {tolerance:g} off the recorded value"
    )
    console.print(Text(f"Identical: equal in every metric. Within tolerance: {stated}.", style="dim"))


def cells_json(cells: Sequence[RerunCell]) -> list[dict[str, Any]]:
    """A reproduction as JSON values."""
    return [asdict(c) for c in cells]
