"""Measures the cost of distilling as ratios within one run and writes them down.

    python -m benchmarks.perf                 all, into out/perf.json
    python -m benchmarks.perf step cache      only these
    python -m benchmarks.perf methods         not among "all": some minutes
    python -m benchmarks.perf methods --config segmentation/camvid_cnn
                                              the methods of that pair on its own data, steps alone;
                                              benchmarks/perf/steps has what was found
    python -m benchmarks.perf selection       not among "all"; benchmarks/perf/selection.py takes sizes

step    KD step ÷ (plain student step + teacher forward), ResNet pair at 64 px, whole loop included
cache   step with a warm teacher cache ÷ plain student step, random crops and flips included
memory  peak memory ÷ (student training + teacher weights + tapped tensors)
methods every method's step ÷ (plain student step + its teachers' forwards), batch by batch, without the loading of
        data; and its peak memory ÷ plain's
start   heavy modules that `limbeck --help` and `import limbeck` load, and their CPU seconds
selection  seconds a pick of PCoreSet on a file of probabilities, and peak memory
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from limbeck.engine.config import PairConfig

SAMPLES = 160  # of a shipped pair's training images
HEAVY = ("torch", "torchvision", "timm", "mmengine", "mmcv", "numpy", "scipy", "sklearn", "plotly", "ray")


def step(rounds: int) -> dict[str, Any]:
    """(a) Interleaved rounds; the median of the rounds' ratios."""
    from benchmarks.perf.loops import bare_steps, engine_steps, pair, teacher_steps, teacher_weights

    ratios: dict[str, list[float]] = {"engine ÷ engine's plain + teacher": [], "engine ÷ bare plain + teacher": []}
    ratios["bare KD ÷ bare plain + teacher"] = []
    with tempfile.TemporaryDirectory() as folder:
        config = pair()
        weights = teacher_weights(config, Path(folder))
        for index in range(rounds):
            kd = _typical(engine_steps(config, "KD", weights, Path(folder) / f"kd{index}"))
            plain = _typical(engine_steps(config, "plain", weights, Path(folder) / f"plain{index}"))
            teacher = _typical(teacher_steps(config, 20))
            bare, bare_kd = (_typical(bare_steps(config, m, weights)) for m in ("plain", "KD"))
            values = (kd / (plain + teacher), kd / (bare + teacher), bare_kd / (bare + teacher))
            for found, value in zip(ratios.values(), values):
                found.append(value)
    return {name: _summary(found) for name, found in ratios.items()}


def cache(rounds: int) -> dict[str, Any]:
    """(b) Four views of crops and flips; the first run fills the cache, the measured ones read it."""
    from benchmarks.perf.loops import engine_steps, pair, teacher_weights

    ratios, uncached = [], []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        cold = pair(views=4, cache=True, epochs=4)
        warm, without = pair(views=4, cache=True), pair(views=4)
        weights = teacher_weights(cold, root)
        engine_steps(cold, "KD", weights, root / "cold", root / "cache")
        for index in range(rounds):
            cached = _typical(engine_steps(warm, "KD", weights, root / f"warm{index}", root / "cache"))
            plain = _typical(engine_steps(without, "plain", weights, root / f"plain{index}"))
            full = _typical(engine_steps(without, "KD", weights, root / f"full{index}"))
            ratios.append(cached / plain)
            uncached.append(full / plain)
    return {"warm cache ÷ plain": _summary(ratios), "no cache ÷ plain": _summary(uncached)}


def memory(rounds: int) -> dict[str, Any]:
    """(c) Each case in a process of its own; peaks are above what the process holds before anything is built."""
    found = {case: [_child(case) for _ in range(rounds)] for case in ("plain", "KD")}
    extra = found["KD"][0]["teacher"] + found["KD"][0]["taps"]
    ratios = [kd["peak"] / (plain["peak"] + extra) for kd, plain in zip(found["KD"], found["plain"])]
    return {"peak ÷ plain peak + teacher + taps": _summary(ratios)}


def methods(rounds: int) -> dict[str, Any]:
    """Step and memory of every method, each beside plain and teacher steps of the same round."""
    from benchmarks.perf.loops import every_method, pair

    steps = method_steps(every_method(pair(samples=1280)), rounds)
    plain = _child("plain")["peak"]
    return {n: {"step": found, "memory": round(_child(n)["peak"] / plain, 4)} for n, found in steps.items()}


def method_steps(config: PairConfig, rounds: int) -> dict[str, dict[str, float]]:
    """Every method's step ÷ (plain student step + its frozen members' forwards): of a round the median over batches."""
    from benchmarks.perf.loops import alternating_steps, teacher_weights

    with tempfile.TemporaryDirectory() as folder:
        weights = teacher_weights(config, Path(folder))
        return {
            name: _summary([_typical(alternating_steps(config, name, weights)) for _ in range(rounds)])
            for name in config.methods
        }


def start(rounds: int) -> dict[str, Any]:
    """(d) What is loaded, and user + system seconds."""
    code = {
        "import limbeck": "import limbeck",
        "limbeck --help": "import limbeck.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: pass",
    }
    tail = f"\nimport sys, os; print('@', [m for m in {HEAVY!r} if m in sys.modules], sum(os.times()[:2]))"
    found = {}
    for name, body in code.items():
        seconds, loaded = [], ""
        for _ in range(rounds):
            done = subprocess.run([sys.executable, "-c", body + tail], capture_output=True, text=True, check=True)
            loaded, _, spent = done.stdout.rsplit("@ ", 1)[1].strip().rpartition(" ")
            seconds.append(float(spent))
        found[name] = dict(heavy_modules=loaded, cpu_seconds=_summary(seconds))
    return found


def selection(rounds: int) -> dict[str, Any]:
    """(e) Each round in a process of its own, at small sizes."""
    command = [sys.executable, "-m", "benchmarks.perf.selection"]
    found = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(rounds)]
    cases = [json.loads(text.splitlines()[-1]) for text in found]
    return {name: _summary([case[name] for case in cases]) for name in ("seconds_a_pick", "peak_mb")}


def _child(case: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.perf.memory", case]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _typical(times: list[float]) -> float:
    from benchmarks.perf.loops import WARMUP

    return median(times[WARMUP:])


def _summary(values: list[float]) -> dict[str, float]:
    return dict(
        median=round(median(values), 4), min=round(min(values), 4), max=round(max(values), 4), rounds=len(values)
    )


def main(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            help="step, cache, memory, methods, start, selection; all but methods and selection by default."
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Repetitions; the median counts.")] = 5,
    config: Annotated[str | None, typer.Option(help="With 'methods': a shipped pair, such as vision/digits.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="With --config: these methods; what --out has of others stays. Repeatable.")
    ] = None,
    out: Path = Path("out/perf.json"),
) -> None:
    """Measure and print ratios.

    Example: python -m benchmarks.perf step --rounds 7
    """
    cases = dict(step=step, cache=cache, memory=memory, methods=methods, start=start, selection=selection)
    if config is not None:
        from benchmarks.perf.loops import shipped_pair

        of_pair = shipped_pair(config, SAMPLES)
        of_pair.methods = {n: m for n, m in of_pair.methods.items() if not only or n in only}
        before = json.loads(out.read_text())["methods"].get(of_pair.pair, {}) if only and out.is_file() else {}
        cases = dict(methods=lambda rounds: {of_pair.pair: before | method_steps(of_pair, rounds)})
    found = {}
    for name in what or [c for c in cases if c not in ("methods", "selection")]:
        if name not in cases:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(cases)}")
        found[name] = cases[name](rounds)
        typer.echo(json.dumps({name: found[name]}, indent=1, ensure_ascii=False))
    from limbeck.engine.weights import write_json

    write_json(out, found)


if __name__ == "__main__":
    typer.run(main)
