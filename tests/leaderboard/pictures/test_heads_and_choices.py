"""Reliability diagrams and chosen images by the commands, of tiny active loops; figures derived again."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.functional.classification import multiclass_calibration_error

from limbeck.engine.config import expand
from limbeck.engine.run import RunOptions, execute
from limbeck.engine.weights import save_weights, sha256_file
from limbeck.errors import ConfigError, CorruptFile, UserError
from limbeck.leaderboard.pictures.chosen import choosers, find_chosen, plan_chosen
from limbeck.leaderboard.pictures.plans import StalePicture
from limbeck.leaderboard.pictures.reliability import bins_of, dual, find_reliability
from limbeck.leaderboard.store import load_results
from tests.leaderboard.fabricate import fabricate, write_all
from tests.leaderboard.pages import text_of
from tests.leaderboard.pictures.test_masks import call, group_of
from tests.multimodal.vlm.test_run import tones_pair
from tests.multimodal.vlm.toys import LinearClassifier, student

PAIR = "linear-linear"


@pytest.fixture(scope="module")
def loops(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Two rounds of CE with random choice and of DHO with two strategies; DHO on two seeds."""
    folder = tmp_path_factory.mktemp("loops")
    torch.manual_seed(5)
    save_weights(folder / "teacher.safetensors", LinearClassifier().state_dict(), metadata={})
    two = dict(task_weight=0.5, student=student(norm=True), links=[dict(type="DHO")])
    pair = tones_pair(
        loop=dict(type="ActiveLearning", strategy=dict(type="Random"), rounds=2, budget=4),
        methods={
            "DHO+Random": two,
            "DHO+PCoreSet": two | dict(loop=dict(strategy=dict(type="PCoreSet"))),
        },
        recipe=dict(epochs=1, optimizer=dict(type="AdamW", lr=0.02), param_scheduler=[], save_dtype="float32"),
    )
    options = RunOptions(out=folder / "runs", records=folder / "results", threads=1, latency_ms=0.0)
    records = {}
    for method, seed in (("plain", 0), ("DHO+Random", 0), ("DHO+PCoreSet", 0)):
        run = expand(pair, method, seed, teacher_weights=str(folder / "teacher.safetensors"))
        records[method] = execute(run, options)
    return SimpleNamespace(results=folder / "results", runs=folder / "runs", records=records)


@pytest.fixture(scope="module")
def drawn(loops: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A site with both pictures, and what lies beside them."""
    site = tmp_path_factory.mktemp("site")
    words = ("tones", "--results", loops.results, "--runs", loops.runs, "--out", site)
    call("reliability", *words)
    call("chosen", *words, "--count", 3)
    found = {
        kind: json.loads((site / kind / "tones" / f"{PAIR}.v1.json").read_text()) for kind in ("reliability", "chosen")
    }
    return SimpleNamespace(site=site, **found)


def test_bins_are_what_a_loop_says() -> None:
    rng = np.random.default_rng(0)
    confidence, right = rng.random(500), rng.random(500) < 0.6
    confidence[:3] = 0.0, 1.0, 1 / 3  # both ends, and an edge, which belongs to the bin above
    found = bins_of(confidence, right, 15)
    error = 0.0
    for place in range(15):
        low, high = place / 15, (place + 1) / 15
        inside = [i for i, c in enumerate(confidence) if low <= c < high or (place == 14 and c == 1.0)]
        assert found.counts[place] == len(inside)
        assert found.accuracy[place] == pytest.approx(np.mean(right[inside]))
        assert found.confidence[place] == pytest.approx(np.mean(confidence[inside]))
        error += len(inside) / 500 * abs(np.mean(right[inside]) - np.mean(confidence[inside]))
    assert found.ece == pytest.approx(error)
    assert (found.top1, found.mean_confidence) == (pytest.approx(100 * right.mean()), pytest.approx(confidence.mean()))


def test_empty_bins_have_no_accuracy_and_ece_is_torchmetrics() -> None:
    rng = np.random.default_rng(1)
    probabilities = rng.dirichlet(np.full(4, 0.5), 300)
    labels = rng.integers(0, 4, 300)
    found = bins_of(probabilities.max(1), probabilities.argmax(1) == labels)
    assert found.counts[:3] == [0, 0, 0]  # of four classes the likeliest has a quarter
    assert found.accuracy[0] is None
    wanted = multiclass_calibration_error(torch.from_numpy(probabilities), torch.from_numpy(labels), 4, n_bins=15)
    assert found.ece == pytest.approx(float(wanted), abs=1e-6)


def test_heads_have_the_figures_of_the_records(loops: SimpleNamespace, drawn: SimpleNamespace) -> None:
    assert [m["method"] for m in drawn.reliability["members"]] == ["DHO+PCoreSet", "DHO+Random"]  # plain has one head
    for member in drawn.reliability["members"]:
        metrics = loops.records[member["method"]].metrics
        for head, names in (("ce", "{}_ce_head"), ("kd", "{}_kd_head"), ("answer", "{}")):
            found = member["heads"][head]
            assert found["top1"] == pytest.approx(metrics[names.format("top1")])
            assert found["ece"] == pytest.approx(metrics[names.format("ece")], abs=1e-5)
            assert sum(found["counts"]) == drawn.reliability["samples"] == 60
        assert (round(member["alpha"], 3), round(member["beta"], 3)) == (metrics["alpha"], metrics["beta"])


def test_choices_are_those_of_the_runs(loops: SimpleNamespace, drawn: SimpleNamespace) -> None:
    assert [m["method"] for m in drawn.chosen["members"]] == ["plain", "DHO+PCoreSet", "DHO+Random"]
    assert (drawn.chosen["classes"], drawn.chosen["pool"]) == (3, 60)
    for member in drawn.chosen["members"]:
        assert [r["number"] for r in member["rounds"]] == [1, 2]
        assert [r["before"] for r in member["rounds"]] == [6, 10]
        for one in member["rounds"]:
            place = loops.runs / member["record"] / "rounds" / str(one["number"]) / "asked.json"
            assert one["ids"] == json.loads(place.read_text())["ids"]
            assert one["classes"] == [i % 3 for i in one["ids"]]  # the truth of this data set
            assert one["shown"] == 3


def test_page_shows_both_pictures_with_their_figures(loops: SimpleNamespace, drawn: SimpleNamespace) -> None:
    call("build", "--results", loops.results, "--out", drawn.site)
    text = text_of(drawn.site / "index.html", "tones")
    for kind in ("reliability", "chosen"):
        picture = drawn.site / kind / "tones" / f"{PAIR}.v1.png"
        assert f'src="../{kind}/tones/{PAIR}.v1.png"' in text
        found = getattr(drawn, kind)
        assert sha256_file(picture) == found["picture_sha256"]
        with Image.open(picture) as opened:
            assert list(opened.size) == found["size"]
    first = drawn.reliability["members"][0]
    ece = 100 * first["heads"]["ce"]["ece"]
    assert f"{first['method']}, seed 0: CE head ECE {ece:.1f} %" in text
    covered = len(set(drawn.chosen["members"][0]["rounds"][0]["classes"]))
    assert f"plain: round 1 {covered} classes in 4 images" in text
    assert text.count('data-plot="curves"') == 2  # accuracy and coverage of the loops


@pytest.mark.parametrize("find", [find_reliability, find_chosen])
def test_changed_or_further_runs_make_pictures_stale(
    loops: SimpleNamespace, drawn: SimpleNamespace, tmp_path: Path, find: object
) -> None:
    old = loops.records["DHO+Random"]
    changed = loops.records | {"DHO+Random": old.model_copy(update=dict(student_sha256="f" * 64))}
    more = loops.records | {"DHO+Margin": old.model_copy(update=dict(method="DHO+Margin"))}
    less = {method: record for method, record in loops.records.items() if method != "DHO+Random"}
    for name, records in dict(changed=changed, more=more, less=less).items():
        with pytest.raises(StalePicture, match=r"drawn without .* draw it again with: limbeck leaderboard"):
            find(group_of(tmp_path / name, records.values()), drawn.site)  # type: ignore[operator]
    assert find(group_of(loops.results), drawn.site) is not None  # type: ignore[operator]
    assert find(group_of(loops.results), tmp_path) is None  # type: ignore[operator]


def test_records_without_heads_or_loops_are_refused(tmp_path: Path) -> None:
    made = [fabricate("plain", 0, task="vlm-classification")]
    group = group_of(tmp_path, made)
    with pytest.raises(ConfigError, match="no record of a student with two heads; run DHO"):
        dual(group)
    with pytest.raises(ConfigError, match="no record of an active loop"):
        choosers(group)
    with pytest.raises(ConfigError, match=r"lies in the folders of the runs.*--runs"):
        plan_chosen(load_results(tmp_path), ["toy"], weights={})
    other = load_results(write_all(tmp_path / "other", [fabricate("plain", 0)]))
    with pytest.raises(ConfigError, match="toy is image classification"):
        plan_chosen(other, ["toy"], weights={}, runs=tmp_path)


def test_other_weights_and_missing_choices_are_refused(loops: SimpleNamespace, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(loops.runs, tmp_path / "runs")
    record = loops.records["DHO+PCoreSet"]
    words = ("tones", "--results", loops.results, "--runs", tmp_path / "runs", "--out", tmp_path / "site")
    asked = tmp_path / "runs" / record.id / "rounds" / "2" / "asked.json"
    asked.unlink()
    with pytest.raises(ConfigError, match=r"rounds/2/asked\.json: is missing"):
        call("chosen", *words)
    asked.write_text('{"ids": [1,')
    with pytest.raises(CorruptFile, match="not whole"):
        call("chosen", *words)
    shutil.copyfile(
        tmp_path / "runs" / loops.records["plain"].id / "student.safetensors",
        tmp_path / "runs" / record.id / "student.safetensors",
    )
    for command in ("chosen", "reliability"):
        with pytest.raises(UserError, match="sha256"):
            call(command, *words)
    assert not (tmp_path / "site").exists()


def test_curves_and_compare_by_the_command(loops: SimpleNamespace) -> None:
    said = call("curves", "tones", "--results", loops.results)
    assert "tones/linear-linear: top-1 ↑ by labels" in said
    assert call("compare", "tones", "--results", loops.results) == said
    found = json.loads(call("curves", "tones", "--results", loops.results, "--json"))
    assert [(f["metric"], f["curves"][0]["method"]) for f in found] == [("top1", "plain"), ("covered", "plain")]
    both = call("compare", "tones", "DHO+PCoreSet", "DHO+Random", "--results", loops.results)
    assert "tones/linear-linear: top-1 by labels" in both
    with pytest.raises(ConfigError, match="name a second method: compare tones KD plain"):
        call("compare", "tones", "KD", "--results", loops.results)
