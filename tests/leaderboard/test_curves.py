"""Curves by labels: means, intervals, gains and p from hand-made records, worked out again with scipy."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from rich.console import Console

from limbeck.engine.record import RunRecord
from limbeck.errors import ConfigError, UnknownName
from limbeck.leaderboard.checks import MixedRecords
from limbeck.leaderboard.compare import compare_benchmark, comparison_json, render_comparison
from limbeck.leaderboard.curves import Curve, Curves, build_curves, compare_curves, curves_json, curves_of
from limbeck.leaderboard.render_curves import render_compared, render_curves
from limbeck.leaderboard.site.build import build_site
from limbeck.leaderboard.store import Results, load_results
from limbeck.leaderboard.table import build_table, direction, title
from tests.leaderboard.fabricate import fabricate, write_all
from tests.leaderboard.pages import page_of, views_of
from tests.leaderboard.pages import text_of as page_text

# Accuracy by labels, then by seed.
ROUNDS: dict[str, dict[int, list[float]]] = {
    "plain": {10: [40.0, 42.0, 41.0], 20: [50.0, 51.0, 53.0], 40: [60.0, 62.0, 61.0]},
    "PCoreSet": {10: [40.0, 42.0, 41.0], 20: [52.0, 54.5, 54.0], 40: [63.0, 63.5, 66.0]},
    "DHO+Random": {10: [45.0, 44.0, 47.0], 20: [55.0, 55.5, 56.5], 40: [61.0, 64.0, 63.0]},
    "DHO+PCoreSet": {10: [45.0, 44.0, 47.0], 20: [56.0, 57.5, 56.0], 40: [66.0, 66.5, 68.0]},
}
SHOTS: dict[int, dict[str, list[float]]] = {
    1: {"plain": [20.0, 24.0, 22.0], "KD": [30.0, 31.0, 29.5], "DHO": [31.0, 33.0, 32.0]},
    4: {"plain": [40.0, 43.0, 42.0], "KD": [41.0, 45.0, 43.0], "DHO": [46.0, 45.0, 47.5]},
    16: {"plain": [60.0, 61.0, 62.0], "KD": [58.0, 60.5, 60.0], "DHO": [63.0, 62.0, 65.5]},
}


def active(rounds: Mapping[str, Mapping[int, Sequence[float]]] = ROUNDS, **changes: Any) -> list[RunRecord]:
    """An active loop's records, one a method and seed."""
    made = []
    for method, curve in rounds.items():
        training, _, choice = method.rpartition("+")
        strategy = "Random" if method == "plain" else choice
        config = dict(
            model=dict(links=[dict(type="DHO")] if training else [], members={}),
            loop=dict(type="ActiveLearning", strategy=dict(type=strategy)),
        )
        for seed in range(3):
            values = {n: v[seed] for n, v in curve.items()}
            metrics = {"top1": values[max(values)], "aulc": 50.0} | {f"top1@{n}": v for n, v in values.items()}
            metrics |= {f"covered@{n}": float(min(n, 10 - seed)) for n in values}
            made.append(
                fabricate(
                    method, seed, metrics=metrics, config=config | {"s": [method, seed]}, benchmark="active", **changes
                )
            )
    return made


def few_shot(
    shots: Mapping[int, Mapping[str, Sequence[float]]] = SHOTS, name: str = "clip-cnn-{}shot", **changes: Any
) -> list[RunRecord]:
    """Pairs that differ in their shots; every seed draws its own labelled images."""
    made = []
    for count, methods in shots.items():
        pair = name.format(count)
        for method, values in methods.items():
            for seed, value in enumerate(values):
                train = dict(type="PartlyLabelled", of=dict(type="Digits"), shots=count, shots_seed=seed)
                made.append(
                    fabricate(
                        method,
                        seed,
                        metrics={"top1": value},
                        config=dict(data=dict(train=train), s=[pair, method, seed]),
                        data__train_hash=f"{count:032x}{seed:032x}",
                        pair=pair,
                        benchmark="dho",
                        **changes,
                    )
                )
    return made


def loaded(folder: Path, *records: list[RunRecord]) -> Results:
    return load_results(write_all(folder, [r for some in records for r in some]))


def curve(found: Curves, method: str) -> Curve:
    return next(c for c in found.curves if c.method == method)


def adjusted(ps: Sequence[float]) -> list[float]:
    """Holm by its definition: the largest of (m − rank) · p over all that are as small or smaller."""
    order = np.argsort(ps)
    return [min(1.0, max((len(ps) - k) * ps[i] for k, i in enumerate(order) if ps[i] <= p)) for p in ps]


def close(found: float | None, wanted: float) -> bool:
    return found is not None and found == pytest.approx(wanted, rel=1e-9, abs=1e-12)


def test_rounds_have_means_and_t_intervals(tmp_path: Path) -> None:
    top1, covered = build_curves(loaded(tmp_path, active()))
    assert (top1.name, top1.kind, top1.metric, top1.xs, top1.axis) == (
        "active/big-small", "rounds", "top1", [10, 20, 40], "labels",
    )  # fmt: skip
    assert [c.method for c in top1.curves] == ["plain", "DHO+PCoreSet", "DHO+Random", "PCoreSet"]
    for one in top1.curves:
        for point in one.points:
            values = ROUNDS[one.method][point.x]
            low, high = scipy.stats.t.interval(0.95, 2, np.mean(values), scipy.stats.sem(values))
            assert close(point.estimate.mean, float(np.mean(values)))
            assert close(point.estimate.low, low)
            assert close(point.estimate.high, high)
            assert point.records[2] == f"active/big-small/{one.method.lower()}/seed2"
    assert (covered.metric, covered.is_primary, covered.higher_is_better) == ("covered", False, None)
    assert [p.estimate.mean for p in curve(covered, "plain").points] == [9.0, 9.0, 9.0]  # of 10, 9 and 8


def test_gains_are_over_plain_and_over_random_choice_with_the_same_training(tmp_path: Path) -> None:
    top1 = build_curves(loaded(tmp_path, active()))[0]
    assert {c.method: (c.strategy, c.training) for c in top1.curves} == {
        "plain": ("Random", 0),
        "PCoreSet": ("PCoreSet", 0),
        "DHO+Random": ("Random", 1),
        "DHO+PCoreSet": ("PCoreSet", 1),
    }
    methods = ["DHO+PCoreSet", "DHO+Random", "PCoreSet"]
    for place, x in enumerate((10, 20, 40)):
        tests = [scipy.stats.ttest_rel(ROUNDS[m][x], ROUNDS["plain"][x]) for m in methods]
        raw = [1.0 if ROUNDS[m][x] == ROUNDS["plain"][x] else t.pvalue for m, t in zip(methods, tests)]
        for method, test, p, wanted in zip(methods, tests, raw, adjusted(raw)):
            gain = curve(top1, method).points[place].over_plain
            assert gain is not None
            assert gain.over == "plain"
            assert close(
                gain.paired.difference.mean, float(np.mean(np.subtract(ROUNDS[method][x], ROUNDS["plain"][x])))
            )
            assert close(gain.paired.p, p)
            assert close(gain.p, wanted)
            if p < 1:
                assert close(gain.paired.difference.low, test.confidence_interval().low)
        # Of the methods that train as DHO does one has a random choice to be measured by, so nothing is adjusted.
        gain = curve(top1, "DHO+PCoreSet").points[place].over_random
        assert gain is not None
        assert gain.over == "DHO+Random"
        if x > 10:
            test = scipy.stats.ttest_rel(ROUNDS["DHO+PCoreSet"][x], ROUNDS["DHO+Random"][x])
            assert close(gain.p, test.pvalue)
        else:
            assert (gain.paired.difference.mean, gain.p) == (0.0, 1.0)  # round 0 is the same student
    for method in ("plain", "PCoreSet", "DHO+Random"):  # plain itself, over plain already, and the measure
        assert all(p.over_random is None for p in curve(top1, method).points)
    assert all(p.over_plain is None for p in curve(top1, "plain").points)


def test_flagged_methods_take_no_part_in_the_adjustment(tmp_path: Path) -> None:
    records = [r.model_copy(update=dict(status="unreliable")) if r.method == "PCoreSet" else r for r in active()]
    top1 = build_curves(loaded(tmp_path, records))[0]
    flagged = curve(top1, "PCoreSet")
    assert flagged.flags == ("unreliable",)
    assert flagged.points[1].over_plain is not None
    assert flagged.points[1].over_plain.p is None
    methods = ["DHO+PCoreSet", "DHO+Random"]
    raw = [scipy.stats.ttest_rel(ROUNDS[m][20], ROUNDS["plain"][20]).pvalue for m in methods]
    for method, wanted in zip(methods, adjusted(raw)):
        gain = curve(top1, method).points[1].over_plain
        assert gain is not None
        assert close(gain.p, wanted)


def test_missing_rounds_and_seeds_are_left_out(tmp_path: Path) -> None:
    records = active()
    short = next(r for r in records if r.method == "PCoreSet" and r.seed == 2)
    metrics = {k: v for k, v in short.metrics.items() if not k.endswith("@40")}
    records[records.index(short)] = short.model_copy(update=dict(metrics=metrics))
    point = curve(build_curves(loaded(tmp_path, records))[0], "PCoreSet").points[2]
    assert (point.x, point.values) == (40, {0: 63.0, 1: 63.5})
    assert point.over_plain is not None
    assert point.over_plain.paired.seeds == (0, 1)
    assert close(point.over_plain.paired.p, scipy.stats.ttest_rel([63.0, 63.5], [60.0, 62.0]).pvalue)


def test_pairs_that_differ_in_shots_make_one_curve(tmp_path: Path) -> None:
    (found,) = build_curves(loaded(tmp_path, few_shot()))
    assert (found.name, found.kind, found.axis) == ("dho/clip-cnn", "shots", "labels a class")
    assert found.pairs == ("clip-cnn-1shot", "clip-cnn-4shot", "clip-cnn-16shot")
    assert found.xs == [1, 4, 16]
    for place, x in enumerate(found.xs):
        raw = [scipy.stats.ttest_rel(SHOTS[x][m], SHOTS[x]["plain"]).pvalue for m in ("DHO", "KD")]
        for method, p, wanted in zip(("DHO", "KD"), raw, adjusted(raw)):
            point = curve(found, method).points[place]
            assert close(point.estimate.mean, float(np.mean(SHOTS[x][method])))
            assert point.over_plain is not None
            assert close(point.over_plain.paired.p, p)
            assert close(point.over_plain.p, wanted)
            assert point.over_random is None


def test_one_pair_and_other_data_make_no_curve(tmp_path: Path) -> None:
    one = loaded(tmp_path / "one", few_shot({4: SHOTS[4]}))
    assert build_curves(one) == []
    with pytest.raises(ConfigError, match="dho has no curve by labels"):
        curves_of(one, ["dho"])
    assert build_curves(loaded(tmp_path / "plain", [fabricate("plain", 0)])) == []


def test_two_pairs_with_the_same_shots_are_told_apart_by_name(tmp_path: Path) -> None:
    weak = {s: {m: [v - 9 for v in vs] for m, vs in methods.items()} for s, methods in SHOTS.items()}
    results = loaded(tmp_path, few_shot(), few_shot(weak, "{}-shot weak-cnn"))
    assert {c.name: c.xs for c in build_curves(results)} == {"dho/clip-cnn": [1, 4, 16], "dho/weak-cnn": [1, 4, 16]}
    (found,) = curves_of(results, ["dho"], pair="4-shot weak-cnn")
    assert found.name == "dho/weak-cnn"
    with pytest.raises(UnknownName, match="unknown pair 'clip-cnn-5shot'"):
        curves_of(results, ["dho"], pair="clip-cnn-5shot")


def test_labelled_images_may_differ_between_pairs_and_not_within_one(tmp_path: Path) -> None:
    records = few_shot()
    other = records[-1]
    changed = other.model_copy(update=dict(data=other.data.model_copy(update=dict(train_hash="f" * 64))))
    with pytest.raises(MixedRecords, match="differ in training data hash"):
        loaded(tmp_path, [*records[:-1], changed])


def test_two_methods_are_compared_by_labels(tmp_path: Path) -> None:
    results = loaded(tmp_path, few_shot(), active())
    comparisons = compare_benchmark(results, "dho", "kd", "DHO")
    assert [c.name for c in comparisons] == ["dho/clip-cnn-16shot", "dho/clip-cnn-1shot", "dho/clip-cnn-4shot"]
    found = comparisons[0].curve
    assert found is not None
    assert all(c.curve == found for c in comparisons)
    for point in found.points:
        kd, dho = SHOTS[point.x]["KD"], SHOTS[point.x]["DHO"]
        test = scipy.stats.ttest_rel(kd, dho)
        assert close(point.paired.difference.mean, float(np.mean(np.subtract(kd, dho))))
        assert close(point.paired.p, test.pvalue)
        assert close(point.paired.difference.high, test.confidence_interval().high)
    assert compare_benchmark(results, "dho", "KD", "DHO", pair="clip-cnn-4shot")[0].curve is None
    (loop,) = compare_benchmark(results, "active", "DHO+PCoreSet", "DHO+Random")
    assert loop.curve is not None
    assert [p.x for p in loop.curve.points] == [10, 20, 40]
    assert json.loads(json.dumps(comparison_json(loop)))["curve"]["points"][1]["a"]["mean"] == pytest.approx(56.5)
    assert compare_curves(build_curves(results)[0], "nothing", "plain") is None


def text_of(*calls: Any, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    for render, found in calls:
        render(found, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_curves_are_printed_in_parts_that_fit(tmp_path: Path) -> None:
    top1, covered = build_curves(loaded(tmp_path, active()))
    wide, narrow = text_of((render_curves, top1), width=120), text_of((render_curves, top1), width=50)
    for said in (wide, narrow):
        assert "+3.17 ± " in said  # PCoreSet at 40: 3, 1.5 and 5
        assert "gain over random" in said
        assert "Holm-adjusted" in said
    assert narrow.count("gain over plain") == 2  # three numbers of labels do not fit beside each other
    assert wide.count("gain over plain") == 1
    said = text_of((render_curves, covered))
    assert "classes covered by labels" in said
    assert "gain" not in said


def test_comparison_prints_the_curve_once_and_no_metric_at_a_number_of_labels(tmp_path: Path) -> None:
    results = loaded(tmp_path, few_shot(), active())
    (loop,) = compare_benchmark(results, "active", "DHO+PCoreSet", "DHO+Random")
    said = text_of((render_comparison, loop))
    assert "top1@" not in said
    assert "AULC" in said
    pairs = [c.curve for c in compare_benchmark(results, "dho", "KD", "DHO")]
    said = text_of((render_compared, pairs))
    assert said.count("dho/clip-cnn: top-1 by labels a class") == 1
    assert "KD − DHO" in said
    assert text_of((render_compared, [])) == ""


def test_table_has_the_area_and_no_column_a_round(tmp_path: Path) -> None:
    more = dict(top1_ce_head=1.0, top1_mix=2.0, top1_mix_half=1.0, ece_ce_head=0.1, ece_kd_head=0.1, alpha=0.5)
    records = [r.model_copy(update=dict(metrics=r.metrics | more)) for r in active()]
    table = build_table(loaded(tmp_path, records).groups[0])
    assert table.metrics == ("top1", "aulc", "top1_ce_head", "top1_mix", "alpha")
    assert f"{title('aulc')} {direction(table, 'aulc')}" == "AULC ↑"
    assert (title("top1_ce_head"), direction(table, "alpha")) == ("top-1, CE head", "")


def test_json_holds_every_value(tmp_path: Path) -> None:
    found = json.loads(json.dumps(curves_json(build_curves(loaded(tmp_path, few_shot()))[0])))
    assert found["axis"] == "labels a class"
    assert found["curves"][1]["points"][2]["values"] == {"0": 63.0, "1": 62.0, "2": 65.5}


def test_page_draws_curves_and_says_them_in_a_table(tmp_path: Path) -> None:
    from tests.leaderboard.site.test_build import Page

    write_all(tmp_path / "r", [*few_shot(), *active()])
    index = build_site(tmp_path / "r", tmp_path / "site")
    text, page = page_text(index, "dho"), Page(page_of(index, "dho"))
    (loop,) = {p.stem for p in (index.parent / "benchmarks").iterdir()} - {"dho"}
    assert text.count('data-plot="curves"') == 1
    assert page_text(index, loop).count('data-plot="curves"') == 2  # the loop's accuracy and coverage
    slug = "dho-clip-cnn-1shot-v1-top1-by-shots"
    assert f'href="#{slug}"' in text
    assert text.index(f'<section id="{slug}"') < text.index('<section id="dho-clip-cnn-16shot-v1"')
    (shown,) = views_of(tmp_path / "r")["dho-clip-cnn-16shot-v1"]["across"]
    assert shown["svg"] in text
    plot = shown["plot"]
    assert (plot["xs"], plot["log"], plot["axis"]) == ([1, 4, 16], True, "labels a class")
    dho = next(s for s in plot["series"] if s["method"] == "DHO")
    assert [p["mean"] for p in dho["points"]] == pytest.approx([np.mean(SHOTS[x]["DHO"]) for x in (1, 4, 16)])
    for point, shots in zip(dho["points"], (1, 4, 16)):
        links = page.popover_links[point["popover"]]
        assert f"../records/dho/clip-cnn-{shots}shot/dho/seed0.html" in links  # each number opens its own records
    assert "32.00<span" in text  # the same figure in the table
    assert page.targets <= page.ids
    assert json.loads((index.parent / "tables" / f"{slug}.json").read_text())["pairs"][0] == "clip-cnn-1shot"
    assert page_text(build_site(tmp_path / "r", tmp_path / "site"), "dho") == text


def test_page_without_curves_says_nothing_of_them(tmp_path: Path) -> None:
    write_all(tmp_path / "r", [fabricate("plain", s) for s in range(2)])
    index = build_site(tmp_path / "r", tmp_path / "site")
    assert 'data-plot="curves"' not in page_text(index)
    assert "AULC" not in (index.parent / "numbers.html").read_text(encoding="utf-8")
