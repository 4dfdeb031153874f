"""Rerun of published tables: what has a config here and its data runs; of the rest, exactly what is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from limbeck.engine.config import PLAIN, DataConfig, PairConfig
from limbeck.engine.data_sources import sources
from limbeck.engine.record import iter_records, read_record, record_id, record_path
from limbeck.engine.suite import STACKS, Group, Suite
from limbeck.errors import DataMissing, ExtraMissing, UnknownName
from limbeck.leaderboard.figures import BLANK, grid, number
from limbeck.leaderboard.reported.names import aliases, counterpart, source_rows
from limbeck.leaderboard.reported.rows import ReportedRow
from limbeck.leaderboard.rerun import Cell
from limbeck.leaderboard.shipped import shipped_pairs

if TYPE_CHECKING:
    from rich.console import Console

PREFIX = "reported:"
State = Literal["can run", "data missing", "extra missing", "no counterpart"]


@dataclass(frozen=True)
class PublishedCell:
    """One printed figure and what stands in the way of making it here.

    why: of 'no counterpart' what has none; of the others what to do. config, method: ours, where there are any.
    """

    row: ReportedRow
    state: State
    why: str = ""
    config: str = ""
    benchmark: str = ""
    pair: str = ""
    method: str = ""

    @property
    def json(self) -> dict[str, Any]:
        """Its values for JSON."""
        keys = ("state", "why", "config", "benchmark", "pair", "method")
        own = {key: getattr(self, key) for key in keys}
        return {**own, "printed": self.row.method, "value": float(self.row.distilled_value), "place": self.row.place}


def published_cells(
    identity: str,
    cells: Sequence[Cell] = (),
    *,
    pair: str | None = None,
    missing: Callable[[DataConfig], str] | None = None,
) -> list[PublishedCell]:
    """The figures of a published table, each with what can be done about it here.

    Args:
        identity: of the source, with or without 'reported:'.
        cells: methods, as printed or as ours; all when none is named. pair: figures of this pair of ours alone.
        missing: says what data a config lacks, empty where all is here; looked up on this machine by default.
    Raises: UnknownName with near sources, methods or pairs.
    """
    rows = source_rows(identity.removeprefix(PREFIX))
    names = {row.method: {row.method.lower(), (counterpart(row).method or "").lower()} for row in rows}
    for cell in cells:
        if not any(cell.method.lower() in known for known in names.values()):
            raise UnknownName("method", cell.method, names, f"in {identity}")
    asked = {cell.method.lower() for cell in cells}
    rows = [row for row in rows if not asked or asked & names[row.method]]
    keys = {(b, counterpart(row).pair or "") for row in rows for b in counterpart(row).benchmarks}
    configs = shipped_pairs({(b, p) for b, p in keys if p}) if any(p for _, p in keys) else {}
    look = missing or missing_data
    found = [_cell(row, configs, look) for row in rows]
    if pair is not None:
        known = {c.pair for c in found if c.pair}
        if pair not in known:
            raise UnknownName("pair", pair, known, f"with a config in {identity}")
        found = [c for c in found if c.pair == pair]
    return found


def _cell(
    row: ReportedRow, configs: dict[tuple[str, str], tuple[str, PairConfig]], look: Callable[[DataConfig], str]
) -> PublishedCell:
    ours = counterpart(row)
    lacking = [
        f"{what} {name or 'not printed'}"
        for what, name, here in (
            ("data set", row.dataset, ours.benchmarks),
            ("teacher", row.teacher, ours.teacher),
            ("student", row.student, ours.student),
            ("method", row.method, ours.method),
        )
        if not here
    ]
    if lacking:
        return PublishedCell(row, "no counterpart", ", ".join(lacking))
    key = next(((b, ours.pair or "") for b in ours.benchmarks if (b, ours.pair) in configs), None)
    if key is None:
        return PublishedCell(row, "no counterpart", f"no config of {ours.pair} on {row.dataset}")
    name, pair = configs[key]
    method = next((m for m in pair.method_names() if m.lower() == (ours.method or "").lower()), None)
    if method is None:
        return PublishedCell(row, "no counterpart", f"{name} has no method {ours.method}", name, *key)
    if aliases().metrics.get(row.metric) != pair.metric.primary:
        said = f"{name} is measured by {pair.metric.primary}, not by {row.metric}"
        return PublishedCell(row, "no counterpart", said, name, *key, method)
    extra: Any = name.partition("/")[0]
    if extra in STACKS and not find_spec(STACKS[extra]):
        return PublishedCell(row, "extra missing", str(ExtraMissing(name, extra)), name, *key, method)
    said = look(pair.data)
    return PublishedCell(row, "data missing" if said else "can run", said, name, *key, method)


def missing_data(data: DataConfig) -> str:
    """Which data set of a config is not here: what it is, where to put it, which command gets it; else empty."""
    known = sources()
    for cfg in (data.train, data.val, data.test):
        inner = cfg.get("of")
        kind = str((inner if isinstance(inner, dict) else cfg).get("type", ""))
        source = known.get(kind.lower())
        if source is None or source.find is None:
            continue
        try:
            source.find()
        except DataMissing as error:
            command = f"limbeck data get {kind.lower()}"
            if source.fetch is None:
                return f"{source.text}. {error}; it cannot be downloaded: {source.why}"
            return f"{source.text}. {error}" + ("" if command in str(error) else f"; get it with: {command}")
    return ""


def published_suite(identity: str, cells: Iterable[PublishedCell]) -> Suite | None:
    """The suite that makes the figures which can be made here, on seed 0; None where there are none."""
    methods: dict[str, list[str]] = {}
    for cell in cells:
        if cell.state == "can run" and cell.method not in methods.setdefault(cell.config, []):
            methods[cell.config].append(cell.method)
    groups = [Group(config=config, methods=names, extra=None) for config, names in methods.items()]
    name = identity.removeprefix(PREFIX)
    return Suite(name=name, title=name, seeds=[0], groups=groups, minutes="") if groups else None


def render_published(identity: str, cells: Sequence[PublishedCell], results: Path, console: Console) -> None:
    """Print what of a published table can run here, and what the rest lacks."""
    from rich.text import Text

    name = identity.removeprefix(PREFIX)
    counts = Counter(c.state for c in cells)
    said = ", ".join(f"{n} {state}" for state, n in counts.items())
    console.print(Text(f"{PREFIX}{name}: {len(cells)} figures; {said}", style="bold"))
    for config in dict.fromkeys(c.config for c in cells if c.state != "no counterpart"):
        mine = [c for c in cells if c.config == config and c.state != "no counterpart"]
        methods = ", ".join(dict.fromkeys(c.method for c in mine))
        console.print(Text(f"\n{config}: {mine[0].state}", style="green" if mine[0].state == "can run" else "yellow"))
        console.print(Text(f"  methods: {methods}"))
        options = "".join(f" --cells {m}" for m in dict.fromkeys(c.method for c in mine))
        console.print(
            Text(f"  run them: limbeck bench reproduce {PREFIX}{name} --pair {mine[0].pair}{options}"), soft_wrap=True
        )
        console.print(Text(f"  compute: {measured_time(mine[0], results)}"))
    for why in dict.fromkeys(c.why for c in cells if c.state in ("data missing", "extra missing")):
        console.print(Text(f"\nmissing here: {why}", style="yellow"), soft_wrap=True)
    none = Counter(c.why for c in cells if c.state == "no counterpart")
    if none:
        console.print(Text("\nno counterpart here:", style="dim"))
        for why, n in none.most_common():
            console.print(Text(f"  {n:3d} × {why}", style="dim"))


def measured_time(cell: PublishedCell, results: Path) -> str:
    """How long runs of a cell's pair took by the records; that nobody measured it, where there are none."""
    folder = results / cell.benchmark / cell.pair
    records = [record for _, record in iter_records(folder)] if folder.is_dir() else []
    if not records:
        return "no measurement exists: there is no record of ours of this pair"
    hours = sorted(r.cost.train_seconds / 3600 for r in records)
    place = sorted({r.environment.device if r.environment.device != "cpu" else r.environment.cpu for r in records})
    return f"{hours[0]:.2g} to {hours[-1]:.2g} h a run in {len(records)} records, on {', '.join(place)}"


@dataclass(frozen=True)
class PublishedResult:
    """A printed figure beside the run that was made of it here; gains are over each side's own plain student."""

    cell: PublishedCell
    value: float
    gain: float | None

    @property
    def printed_gain(self) -> float | None:
        """The printed gain, positive is better."""
        return None if self.cell.row.gain is None else float(self.cell.row.gain)

    @property
    def difference(self) -> float:
        """Measured minus printed value."""
        return self.value - float(self.cell.row.distilled_value)


def published_results(cells: Iterable[PublishedCell], records: Path) -> list[PublishedResult]:
    """The figures of a published table whose runs are in a folder of records, seed 0."""
    found = []
    for cell in cells:
        if cell.state == "no counterpart":
            continue
        paths = [record_path(records, record_id(cell.benchmark, cell.pair, m, 0)) for m in (cell.method, PLAIN)]
        if not paths[0].is_file():
            continue
        record = read_record(paths[0])
        plain = read_record(paths[1]) if paths[1].is_file() else None
        sign = 1.0 if record.higher_is_better else -1.0
        gain = None if plain is None else sign * (record.value - plain.value)
        found.append(PublishedResult(cell, record.value, gain))
    return found


def render_results(found: Sequence[PublishedResult], console: Console) -> None:
    """Print printed and measured figures beside each other."""
    from rich.text import Text

    columns = ("pair", "method", "printed", "measured", "difference", "printed gain", "measured gain")
    lines = grid(*columns, words=(0, 1))
    for one in found:
        row = one.cell.row
        lines.add_row(
            Text(one.cell.pair),
            Text(one.cell.method),
            Text(str(row.distilled_value), style="cyan"),
            number(one.value, 2),
            number(one.difference, 2, sign=True),
            Text(BLANK if one.printed_gain is None else number(one.printed_gain, 2, sign=True), style="cyan"),
            number(one.gain, 2, sign=True),
        )
    console.print(lines)
    console.print(
        Text(
            "One seed here; the printed figures state no interval, and many are of the best test epoch where ours are "
            "of the last one. So a difference is told, not judged.",
            style="dim",
        )
    )


def render_list(console: Console) -> None:
    """Print every table that can be named: suites, and the published ones with how many figures each has."""
    from rich.text import Text

    from limbeck.engine.suite import load_suite, suites

    lines = grid("table", "what", words=(0, 1))
    for name in suites():
        lines.add_row(Text(name), Text(load_suite(name).title))
    lines.add_section()
    for identity in aliases().sources:
        rows = source_rows(identity)
        tasks = ", ".join(sorted({row.task for row in rows}))
        lines.add_row(Text(f"{PREFIX}{identity}"), Text(f"{rows[0].source_title}; {len(rows)} figures, {tasks}"))
    console.print(lines)
    console.print(Text("A benchmark, or BENCHMARK/PAIR, of a suite is a table too.", style="dim"))
