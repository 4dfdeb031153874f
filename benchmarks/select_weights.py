"""Choose each method's weight on validation: the same grid, epochs and seeds for every method; test is never looked at.

Usage: python -m benchmarks.select_weights vision/digits --out benchmarks/selection/digits.json
"""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import typer

from limbeck.engine.config import PLAIN, TEACHER, PairConfig, load_pair
from limbeck.engine.weights import write_json

FACTORS = (0.001, 0.01, 0.1, 1.0)  # of the method's default weight, which is its authors'
SEEDS = (100, 101, 102)  # none of the suites' seeds


AUTHORS = {"KD+LS": 9.0}  # where the authors' weight is not the method's default


def scaled(pair: PairConfig, method: str, factor: float) -> PairConfig:
    """The pair with one method at `factor` times its authors' weight, whatever the config says now.

    A combination, such as KD+ND, has the base method's link first, at its chosen weight; its last link varies.
    """
    from inspect import signature

    from limbeck.engine.registry import METHODS

    copy = pair.model_copy(deep=True)
    link = copy.methods[method].links[-1]
    default = signature(METHODS.lookup(link["type"])).parameters["weight"].default
    weight = AUTHORS.get(method, float(default))
    link["weight"] = factor * weight
    return copy


def validate(config: str, method: str, factor: float, seed: int, work: str) -> dict[str, Any]:
    """Train once; give the validation metric."""
    from limbeck.engine.run import RunOptions, execute
    from limbeck.engine.single import single_run
    from limbeck.errors import TrainingStopped

    pair = load_pair(config)
    pair.data.test["limit"] = 10  # a run tests what it saves; nothing here reads the figure
    out = Path(work)
    if method not in (PLAIN, TEACHER):
        pair = scaled(pair, method, factor)
    run = single_run(pair, method, seed, out)
    if method == TEACHER:
        options = RunOptions(out=out / "runs", records=out / "records", threads=1, latency_ms=0.0)
    else:
        options = RunOptions(out=out / "runs" / f"x{factor}", cache=out / "cache", threads=1, latency_ms=0.0)
        if "teacher" in run.model["members"]:
            teacher = run.model["members"]["teacher"]
            teacher["weights"] = str(out / "runs" / teacher["weights"].removeprefix("run://") / "student.safetensors")
    try:
        record = execute(run, options)
    except TrainingStopped as error:
        return dict(method=method, factor=factor, seed=seed, value=None, stopped=str(error))
    assert record is not None
    return dict(method=method, factor=factor, seed=seed, value=record.val_metrics[pair.metric.primary])


def main(
    config: str,
    out: Annotated[Path, typer.Option(help="Where the grid's results go.")],
    jobs: int = 2,
    work: Path = Path("out/select"),
    seeds: Annotated[int, typer.Option(help="How many of the selection seeds.")] = len(SEEDS),
    only: Annotated[list[str] | None, typer.Option(help="These methods; the file keeps the others.")] = None,
) -> None:
    """Run the grid and write every validation value and the choice."""
    pair = load_pair(config)
    methods = [m for m in pair.methods if not only or m in only]
    before: dict[str, Any] = json.loads(out.read_text()) if only and out.is_file() else dict(chosen={}, runs=[])
    folder = str(work / config.replace("/", "-"))
    grid = [(m, f, s) for s in SEEDS[:seeds] for m in methods for f in FACTORS]
    grid += [(PLAIN, 1.0, s) for s in SEEDS[:seeds]]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        pool.submit(validate, config, TEACHER, 1.0, 0, folder).result()
        futures = [pool.submit(validate, config, m, f, s, folder) for m, f, s in grid]
        rows = []
        for future in futures:
            rows.append(future.result())
            typer.echo(rows[-1])
    chosen = {}
    for method in methods:
        means = {}
        for factor in FACTORS:
            values = [r["value"] for r in rows if r["method"] == method and r["factor"] == factor]
            if None not in values:
                means[factor] = mean(values)
        chosen[method] = dict(
            factor=max(means, key=lambda f: means[f]), validation={str(f): round(v, 3) for f, v in means.items()}
        )
    plain = mean(r["value"] for r in rows if r["method"] == PLAIN)
    kept = [r for r in before["runs"] if r["method"] not in (*methods, PLAIN)]
    write_json(
        out,
        dict(
            config=config,
            metric=pair.metric.primary,
            plain=round(plain, 3),
            chosen={**before["chosen"], **chosen},
            runs=[*kept, *rows],
        ),
    )


if __name__ == "__main__":
    typer.run(main)
