"""Time that many records take: the index made and used, one benchmark shown, all tables built, the site built.

    python -m benchmarks.perf.leaderboard                      2,000 records
    python -m benchmarks.perf.leaderboard --records 100000     about 600 MB in a temporary folder, 2 GB with the site

Records are made up from a committed one: other benchmarks, pairs, methods and seeds, and random figures. Each case is a
process of its own, from its start to its end; the site is built twice, as on a new machine, and with an index. Prints
JSON, and ends with status 1 when showing one table takes more CPU seconds than `--limit`, or a page of the site is a
megabyte or more. With `--out benchmarks/perf/leaderboard.json` what was found is kept, by number of records.
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from limbeck.cli._progress import run_progress
from limbeck.engine.cost import cpu_name
from limbeck.engine.record import config_hash, record_id
from limbeck.engine.weights import write_json

TEMPLATE = Path(__file__).parents[2] / "results/digits/resnet20-resnet8/kd/seed0.json"
METHODS = ["plain", *(f"Method{n}" for n in range(1, 10))]
SEEDS, PAIRS = range(5), range(10)  # of a pair, of a benchmark
LOAD = "from limbeck.leaderboard.store import load_results; found = load_results({folder!r}{chosen})"
SHOW = "from limbeck.cli import main; main()"
PAGE = 1_000_000  # bytes that no page may have
TABLES = "; from limbeck.leaderboard.table import build_tables; build_tables(found)"


def runs() -> Iterator[tuple[str, str, str, int]]:
    """Benchmark, pair, method and seed of one record after the other, without end."""
    number = 0
    while True:
        for pair in PAIRS:
            yield f"made-up-{number}", f"big-small{pair}", "teacher", 0
            for method in METHODS:
                yield from ((f"made-up-{number}", f"big-small{pair}", method, seed) for seed in SEEDS)
        number += 1


def make_records(folder: Path, count: int, report: Any) -> None:
    """Write made-up records where their ids say."""
    template = json.loads(TEMPLATE.read_text(encoding="utf-8"))
    rng = random.Random(0)
    for done, ((benchmark, pair, method, seed), _) in enumerate(zip(runs(), range(count)), 1):
        place = dict(benchmark=benchmark, pair=pair, method=method, seed=seed)
        alone = method in ("teacher", "plain")
        config = template["config"] | place
        raw = template | place | dict(config=config, config_hash=config_hash(config))
        raw["metrics"] = {name: value + rng.gauss(0, 0.1) for name, value in template["metrics"].items()}
        raw["teacher_record"] = None if alone else record_id(benchmark, pair, "teacher", 0)
        raw["plain_record"] = None if alone else record_id(benchmark, pair, "plain", seed)
        path = folder / f"{record_id(**place)}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(raw, indent=1), encoding="utf-8")
        if done % 1000 == 0 or done == count:
            report("records", done, count)


def timed(command: list[str], cache: Path) -> dict[str, float]:
    """Wall and CPU seconds of a process and its own ones, in its own cache folder."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = os.environ | dict(LIMBECK_CACHE=str(cache))
    subprocess.run([sys.executable, *command], check=True, env=environment, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return dict(wall_seconds=round(time.perf_counter() - start, 3), cpu_seconds=round(cpu, 3))


def measured(folder: Path, cache: Path, site: Path, report: Any) -> dict[str, Any]:
    """Every case in turn; the second makes the index that the others use, but for the cold site."""
    one = LOAD.format(folder=str(folder), chosen=", benchmarks=['made-up-0']")
    show = ["-c", SHOW, "leaderboard", "show", "made-up-0", "--results", str(folder)]
    build = ["-c", SHOW, "leaderboard", "build", "--results", str(folder), "--out"]
    cases: dict[str, list[str]] = {
        "nothing, imports alone": ["-c", "import limbeck.leaderboard, polars"],
        "cold index, one benchmark loaded": ["-c", one],
        "warm index, one benchmark loaded": ["-c", one],
        "warm index, one benchmark shown": show,
        "warm index, all tables built": ["-c", LOAD.format(folder=str(folder), chosen="") + TABLES],
        "cold index, site built": [*build, str(site / "cold")],
        "warm index, site built": [*build, str(site / "warm")],
    }
    found = {}
    for done, (name, command) in enumerate(cases.items(), 1):
        found[name] = timed(command, site / "cache" if "site" in name and "cold" in name else cache)
        typer.echo(f"{name}: {found[name]}", err=True)
        report("cases", done, len(cases))
    return found


def sizes(site: Path) -> dict[str, Any]:
    """How many files a site has, how large they are, and its largest page."""
    files = [(p, p.stat().st_size) for p in site.rglob("*") if p.is_file()]
    page, largest = max(((p, n) for p, n in files if p.suffix == ".html"), key=lambda one: one[1])
    return dict(
        site_files=len(files),
        site_mb=round(sum(n for _, n in files) / 1e6, 1),
        largest_page=page.relative_to(site).as_posix(),
        largest_page_bytes=largest,
    )


def main(
    records: Annotated[int, typer.Option(min=511, help="How many.")] = 2000,
    folder: Annotated[Path | None, typer.Option(help="Where they are made; 6 kB each.")] = None,
    limit: Annotated[float, typer.Option(help="CPU seconds of showing one benchmark.")] = 5.0,
    out: Annotated[Path | None, typer.Option(help="A JSON file; what it has of other numbers stays.")] = None,
) -> None:
    """Make records in a temporary folder, and print what each case takes."""
    progress, report = run_progress(Console(stderr=True), "leaderboard")
    load = os.getloadavg()[0]
    with progress, tempfile.TemporaryDirectory(dir=folder) as name:
        make_records(Path(name) / "results", records, report)
        time.sleep(2.1)  # files that are newer than two seconds are in no index
        found = measured(Path(name) / "results", Path(name) / "cache", Path(name) / "site", report)
        found |= sizes(Path(name) / "site" / "warm")
        size = sum(p.stat().st_size for p in (Path(name) / "cache").rglob("*.parquet"))
    found |= dict(index_mb=round(size / 1e6, 2), cpu=cpu_name(), cores=os.cpu_count(), load_before=round(load, 2))
    print(json.dumps(found, indent=1))
    if out is not None:
        before = json.loads(out.read_text()) if out.is_file() else {}
        write_json(out, before | {str(records): found})
    if found["warm index, one benchmark shown"]["cpu_seconds"] > limit:
        typer.echo(f"showing one benchmark of {records:,} records took more than {limit} CPU seconds", err=True)
        raise typer.Exit(1)
    if found["largest_page_bytes"] >= PAGE:
        typer.echo(f"{found['largest_page']} has {found['largest_page_bytes']:,} bytes", err=True)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
