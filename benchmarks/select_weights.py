"""Choose each method's weight, or its learning rate, on validation: one grid, epochs and seeds for all; never on test.

Usage: python -m benchmarks.select_weights vision/digits --out benchmarks/selection/digits.json
       python -m benchmarks.select_weights detection/bccd_gfl --factor 0.25 --factor 1 --factor 4 --of-config \
           --epochs 8 --seeds 1 --out benchmarks/selection/bccd.json
       python -m benchmarks.select_weights multimodal/diffusion/fashion_mnist_1step --rate --factor 0.3 --factor 1 \
           --factor 3 --seeds 1 --out benchmarks/selection/diffusion.json
"""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import typer

from benchmarks.subset import first
from limbeck.engine.config import PLAIN, TEACHER, PairConfig, load_pair
from limbeck.engine.weights import write_json

FACTORS = (0.001, 0.01, 0.1, 1.0)  # of the method's default weight, which is its authors'
SEEDS = (100, 101, 102)  # none of the suites' seeds


AUTHORS = {"KD+LS": 9.0}  # where the authors' weight is not the method's default
KNOBS = {"LabelKD": "threshold"}  # what varies in the place of a weight, of a link whose loss has none
RATE = "learning rate"
RATES = (0.3, 1.0, 3.0)  # of the recipe's


def rated(pair: PairConfig, method: str, factor: float) -> PairConfig:
    """The pair with the student's learning rate in one method, or in plain training, at `factor` times the recipe's."""
    copy = pair.model_copy(deep=True)
    if method == PLAIN:
        copy.recipe.optimizer["lr"] *= factor
    else:
        copy.methods[method].paramwise = dict(custom_keys={"members.student.": dict(lr_mult=factor)})
    return copy


def scaled(pair: PairConfig, method: str, factor: float, *, of_config: bool = False) -> PairConfig:
    """The pair with one method at `factor` times its authors' weight, whatever the config says now.

    A combination, such as KD+ND, has the base method's link first, at its chosen weight; its last link varies.

    Args:
        of_config: take the config's weight, where that has the authors' one for another size of maps and channels.
    """
    from inspect import signature

    from limbeck.engine.registry import METHODS

    copy = pair.model_copy(deep=True)
    link = copy.methods[method].links[-1]
    knob = knob_of(pair, method)
    default = signature(METHODS.lookup(link["type"])).parameters[knob].default
    weight = AUTHORS.get(method, float(default))
    link[knob] = factor * (link.get(knob, weight) if of_config else weight)
    return copy


def knob_of(pair: PairConfig, method: str) -> str:
    """The option of a method's last link that the grid varies: 'weight', but for links without a loss of their own."""
    return KNOBS.get(str(pair.methods[method].links[-1]["type"]), "weight")


def validate(
    config: str,
    method: str,
    factor: float,
    seed: int,
    work: str,
    *,
    epochs: int | None = None,
    of_config: bool = False,
    rate: bool = False,
) -> dict[str, Any]:
    """Train once, the student for `epochs`; give the validation metric and the weight or factor that it had."""
    from limbeck.engine.run import RunOptions, execute
    from limbeck.engine.single import single_run
    from limbeck.errors import TrainingStopped

    pair = load_pair(config)
    # A run tests what it saves; nothing here reads the figure.
    pair.data.test = first(pair.data.test, 10)
    pair.data.also = {}
    out = Path(work)
    weight = None
    if rate and method != TEACHER:
        pair = rated(pair, method, factor)
        weight = factor
    elif method not in (PLAIN, TEACHER):
        pair = scaled(pair, method, factor, of_config=of_config)
        weight = pair.methods[method].links[-1][knob_of(pair, method)]
    if epochs is not None and method != TEACHER:
        pair.recipe.epochs = epochs
    run = single_run(pair, method, seed, out)
    if method == TEACHER:
        options = RunOptions(out=out / "runs", records=out / "records", threads=1, latency_ms=0.0)
    else:
        place = out / "runs" / f"x{factor}"
        options = RunOptions(out=place, cache=out / "cache", teachers=out / "runs", threads=1, latency_ms=0.0)
    try:
        record = execute(run, options)
    except TrainingStopped as error:
        return dict(method=method, factor=factor, weight=weight, seed=seed, value=None, stopped=str(error))
    assert record is not None
    return dict(method=method, factor=factor, weight=weight, seed=seed, value=record.val_metrics[pair.metric.primary])


def main(
    config: str,
    out: Annotated[Path, typer.Option(help="Where the grid's results go.")],
    jobs: int = 2,
    work: Path = Path("out/select"),
    seeds: Annotated[int, typer.Option(help="How many of the selection seeds.")] = len(SEEDS),
    only: Annotated[
        list[str] | None, typer.Option(help="These methods; the file keeps the others, and other factors of these.")
    ] = None,
    factor: Annotated[list[float] | None, typer.Option(help="Grid, instead of the usual one; repeatable.")] = None,
    of_config: Annotated[bool, typer.Option(help="Factors of the config's weights, not of the authors'.")] = False,
    epochs: Annotated[int | None, typer.Option(help="Of every student, instead of the config's.")] = None,
    rate: Annotated[bool, typer.Option(help="Vary the learning rate, plain training's too, not the weights.")] = False,
) -> None:
    """Run the grid and write every validation value and the choice."""
    from limbeck.engine.suite import state, trainer

    pair = load_pair(config)
    methods = [m for m in pair.methods if not only or m in only]
    factors = tuple(factor or FACTORS) if not rate else tuple(sorted({1.0, *(factor or RATES)}))
    before: dict[str, Any] = json.loads(out.read_text()) if only and out.is_file() else dict(chosen={}, runs=[])
    folder = str(work / config.replace("/", "-"))
    grid = [(m, f, s) for s in SEEDS[:seeds] for m in methods for f in factors]
    grid += [(PLAIN, f, s) for s in SEEDS[:seeds] for f in (factors if rate else (1.0,))]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        if state(trainer(config, pair, TEACHER, 0), Path(folder) / "records")[0] != "done":
            pool.submit(validate, config, TEACHER, 1.0, 0, folder).result()
        train = partial(validate, config, work=folder, epochs=epochs, of_config=of_config, rate=rate)
        futures = [pool.submit(train, m, f, s) for m, f, s in grid]
        rows = []
        for future in futures:
            rows.append(future.result())
            typer.echo(rows[-1])
    new = {(r["method"], r["factor"]) for r in rows}
    kept = [r for r in before["runs"] if r["method"] != PLAIN and (r["method"], r["factor"]) not in new]
    rows = [*kept, *rows]
    chosen = {}
    better = max if pair.metric.higher_is_better else min
    for method in [*methods, *([PLAIN] if rate else [])]:
        means = {}
        for f in sorted({r["factor"] for r in rows if r["method"] == method}):
            values = [r["value"] for r in rows if r["method"] == method and r["factor"] == f]
            if None not in values:
                means[f] = mean(values)
        best = better(means, key=lambda f: means[f])
        chosen[method] = dict(
            factor=best,
            weight=next(r["weight"] for r in rows if (r["method"], r["factor"]) == (method, best)),
            **({} if (knob := RATE if rate else knob_of(pair, method)) == "weight" else {"option": knob}),
            validation={str(f): round(v, 3) for f, v in means.items()},
        )
    plain = mean(r["value"] for r in rows if r["method"] == PLAIN and r["factor"] == 1.0)
    write_json(
        out,
        dict(
            config=config,
            metric=pair.metric.primary,
            epochs=epochs or pair.recipe.epochs,
            plain=round(plain, 3),
            chosen={**before["chosen"], **chosen},
            runs=rows,
        ),
    )


if __name__ == "__main__":
    typer.run(main)
