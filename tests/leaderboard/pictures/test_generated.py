"""Samples, trajectories and hand-overs by the commands, of tiny diffusion models; figures derived again."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.engine.evaluate import eval_loader, predictions_of
from limbeck.engine.record import RunRecord
from limbeck.engine.registry import ADAPTERS
from limbeck.engine.weights import sha256_file
from limbeck.errors import ConfigError, CorruptFile, UserError
from limbeck.leaderboard.pictures.generator_run import (
    config_of,
    load_generator,
    real_images,
    requests_of,
    rows_by_class,
)
from limbeck.leaderboard.pictures.generators import shown, steps_of
from limbeck.leaderboard.pictures.hand_over_run import Remembered
from limbeck.leaderboard.pictures.hand_overs import HandOver, find_hand_over, handed
from limbeck.leaderboard.pictures.plans import StalePicture
from limbeck.leaderboard.pictures.plots import Axis, Series, plot
from limbeck.leaderboard.pictures.samples import find_samples
from limbeck.leaderboard.pictures.trajectories import drawn_steps, find_trajectories, stepwise
from limbeck.leaderboard.site.hand_over import hand_over_markdown, hand_over_table
from limbeck.multimodal.diffusion.hand_over import hand_over
from limbeck.multimodal.diffusion.samplers import generators, noise
from tests.leaderboard.fabricate import fabricate, write_all
from tests.leaderboard.pages import text_of
from tests.leaderboard.pictures.test_masks import call, group_of
from tests.multimodal.diffusion.toys import toy

BENCHMARK, PAIR = "toy-diffusion", "unet-2step"
KINDS = ("samples", "trajectories", "hand-over")


@pytest.fixture(scope="module")
def drawn(generator_runs: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A site with all pictures, and what lies beside them."""
    site = tmp_path_factory.mktemp("site")
    words = (BENCHMARK, "--results", generator_runs.results, "--runs", generator_runs.runs, "--out", site)
    call("samples", *words, "--rows", 2)
    call("trajectories", *words, "--images", 20)
    said = call("hand-over", *words)
    files = {kind: site / kind / BENCHMARK / f"{PAIR}.v1.json" for kind in KINDS}
    return SimpleNamespace(
        site=site, said=said, found={kind: json.loads(file.read_text()) for kind, file in files.items()}
    )


def weights_of(runs: SimpleNamespace, method: str) -> Path:
    return runs.runs / runs.records[method].id / "student.safetensors"


# --- what is drawn ---


def test_pictures_are_of_the_requests_that_figures_are_of(generator_runs: SimpleNamespace) -> None:
    for method in ("teacher", "CD"):
        record = generator_runs.records[method]
        model, run = load_generator(record, weights_of(generator_runs, method)), config_of(record)
        adapter: Any = ADAPTERS.make(run.model["adapter"])
        (first, _) = predictions_of(model, adapter, eval_loader(run.data, "test"), adapter.preprocessor(model))
        asked = requests_of(record, 25)
        made = model.generate(asked.labels, seed=asked.seed).images
        torch.testing.assert_close(made, first["image"], atol=1e-4, rtol=0)
        assert torch.equal(asked.labels, first["label"])


def test_samples_say_whose_and_how_good_they_are(generator_runs: SimpleNamespace, drawn: SimpleNamespace) -> None:
    found = drawn.found["samples"]
    assert [m["method"] for m in found["members"]] == ["teacher", "plain", "CD", "FromTeacher"]
    for member in found["members"]:
        record = generator_runs.records[member["method"]]
        assert (member["value"], member["calls"]) == (record.metrics["FD-digits"], record.metrics["calls"])
        assert member["student_sha256"] == record.student_sha256
    assert [(m["steps"], m["guidance"], m["calls"]) for m in found["members"][:2]] == [(4, 1.5, 8.0), (2, 1.0, 2.0)]
    real = real_images(generator_runs.records["plain"])
    assert (found["real"], found["real_hash"]) == ("digits", real.content_hash)
    assert (found["classes"], found["rows"]) == ([str(k) for k in range(10)], 2)


def test_trajectories_are_those_of_the_samplers(generator_runs: SimpleNamespace, drawn: SimpleNamespace) -> None:
    found = drawn.found["trajectories"]
    assert [m["method"] for m in found["members"]] == ["teacher", "plain", "CD", "FromTeacher"]
    for member in found["members"]:
        record = generator_runs.records[member["method"]]
        model = load_generator(record, weights_of(generator_runs, member["method"]))
        asked = requests_of(record, 20)
        made = model.generate(asked.labels, seed=asked.seed, record=True)
        assert member["times"] == made.times.tolist()
        assert made.x0s is not None
        x0s = made.x0s.double().numpy().reshape(member["steps"], 20, -1)
        means = np.stack([x0s[-1][asked.labels.numpy() == k].mean(0) for k in asked.labels.tolist()])
        scale = ((means - x0s[-1]) ** 2).sum(1).mean()
        wanted = [((step - x0s[-1]) ** 2).sum(1).mean() / scale for step in x0s]
        assert member["commitment"] == pytest.approx(wanted, rel=1e-6)
        assert member["commitment"][-1] == 0.0


# --- hand-over ---


def test_ends_of_hand_overs_are_the_records_figures(generator_runs: SimpleNamespace, drawn: SimpleNamespace) -> None:
    found = drawn.found["hand-over"]
    teacher = generator_runs.records["teacher"]
    assert [m["method"] for m in found["members"]] == ["CD", "FromTeacher"]  # the plain student has no teacher
    assert [t["record"] for t in found["teachers"]] == [teacher.id]
    names = [n for n in teacher.metrics if n not in ("calls", "mse_to_teacher")]
    for member in found["members"]:
        points = {(p["base_steps"], p["at"]): p for p in member["points"]}
        assert list(points) == [(2, 0), (2, 1), (2, 2), (4, 1), (4, 2)]
        record = generator_runs.records[member["method"]]
        assert member["recorded"] == record.metrics
        for name in names:
            assert points[2, 0]["metrics"][name] == pytest.approx(record.metrics[name], rel=1e-3)
            assert points[4, 2]["metrics"][name] == pytest.approx(teacher.metrics[name], rel=1e-3)
        for (base_steps, at), point in points.items():
            assert point["calls"] == 2 * math.ceil(at * base_steps / 2) + 2 - at  # guidance counts twice
    assert (found["images"], found["higher_is_better"], found["primary_metric"]) == (40, False, "FD-digits")


def test_point_between_is_what_hand_over_makes(generator_runs: SimpleNamespace, drawn: SimpleNamespace) -> None:
    record, teacher = (generator_runs.records[m] for m in ("CD", "teacher"))
    asked, metric = requests_of(record), config_of(record).metric.build()
    made = hand_over(
        load_generator(teacher, weights_of(generator_runs, "teacher")),
        load_generator(record, weights_of(generator_runs, "CD")),
        noise(40, (1, 8, 8), asked.seed),
        asked.labels,
        student_steps=2,
        at=1,
        base_steps=4,
        guidance=1.5,
        student_kind="consistency",
        generators=generators(40, asked.seed),
    )
    metric.update([dict(image=made.images, label=asked.labels, split=asked.splits)])
    cd = drawn.found["hand-over"]["members"][0]
    point = next(p for p in cd["points"] if (p["base_steps"], p["at"]) == (4, 1))
    for name, value in metric.values().items():
        assert point["metrics"][name] == pytest.approx(value, rel=1e-3)


def test_remembered_teacher_answers_the_same_and_computes_once() -> None:
    base, student = toy(seed=1), toy(seed=2)
    remembered = Remembered(base)
    start, labels = noise(4, base.image_shape, 3), torch.tensor([0, 1, 2, 0])
    passes: list[int] = []
    base.network.register_forward_hook(lambda *_: passes.append(1))
    for at, base_steps in ((1, 4), (2, 4), (1, 8), (4, 8), (3, None)):
        options: dict[str, Any] = dict(student_steps=4, at=at, base_steps=base_steps, guidance=2.0)
        before = len(passes)
        found = hand_over(remembered, student, start, labels, **options)
        asked = len(passes) - before
        wanted = hand_over(base, student, start, labels, **options)
        assert torch.equal(found.images, wanted.images)
        assert found.calls == wanted.calls
        # both grids start at the same time, and all of a longer way is also on it
        assert asked == {(1, 4): 1, (2, 4): 1, (1, 8): 1, (4, 8): 6, (3, None): 1}[at, base_steps]
    other = hand_over(remembered, student, start.flip(0), labels, student_steps=4, at=1)
    assert torch.equal(other.images, hand_over(base, student, start.flip(0), labels, student_steps=4, at=1).images)


def test_table_is_made_of_the_file_over_seeds(drawn: SimpleNamespace) -> None:
    raw = json.loads(json.dumps(drawn.found["hand-over"]))
    again = json.loads(json.dumps(raw["members"][0]))
    again |= dict(seed=1, record=again["record"].replace("seed0", "seed1"))
    for point in again["points"]:
        if point["at"] < 2:
            point["metrics"]["FD-digits"] += 2.0
    raw["members"].insert(1, again)
    columns, rows = hand_over_table(HandOver.model_validate(raw))
    assert columns[:5] == ["method", "teacher's steps", "hand-over at", "calls", "FD-digits ↓"]
    assert [row[:4] for row in rows] == [
        ["teacher alone", "2", "–", "4"],
        ["teacher alone", "4", "–", "8"],
        ["CD", "–", "0", "2"],
        ["CD", "2", "1", "3"],
        ["CD", "4", "1", "5"],
        ["FromTeacher", "–", "0", "2"],
        ["FromTeacher", "2", "1", "3"],
        ["FromTeacher", "4", "1", "5"],
    ]
    alone = raw["members"][0]["points"][0]["metrics"]["FD-digits"]
    assert rows[2][4] == f"{alone + 1.0:.2f} ± {12.7062 * 1.0:.2f}"  # t(1) · √2 / √2
    assert "±" not in rows[0][4]
    table = hand_over_markdown(HandOver.model_validate(drawn.found["hand-over"]))
    assert table in drawn.said
    assert "with guidance 1.5" in table


# --- the page ---


def test_page_shows_all_of_it(generator_runs: SimpleNamespace, drawn: SimpleNamespace) -> None:
    call("build", "--results", generator_runs.results, "--out", drawn.site)
    text = text_of(drawn.site / "index.html", BENCHMARK)
    for kind in KINDS:
        picture = drawn.site / kind / BENCHMARK / f"{PAIR}.v1.png"
        assert f'src="../{kind}/{BENCHMARK}/{PAIR}.v1.png"' in text
        assert sha256_file(picture) == drawn.found[kind]["picture_sha256"]
        with Image.open(picture) as opened:
            assert list(opened.size) == drawn.found[kind]["size"]
    value = generator_runs.records["CD"].metrics["FD-digits"]
    assert f"CD, seed 0: 2 steps, 2 network calls, FD-digits {value:.2f}" in text
    assert '<th scope="row">teacher alone</th><td>4</td><td>–</td><td>8</td>' in text
    assert "§ Starts from the teacher&#39;s weights, the plain student from its own: CD, FromTeacher." in text or (
        "§ Starts from the teacher&#39;s weights, the plain student from its own: FromTeacher, CD." in text
    )


@pytest.mark.parametrize("find", [find_samples, find_trajectories, find_hand_over])
def test_changed_or_further_runs_make_pictures_stale(
    generator_runs: SimpleNamespace, drawn: SimpleNamespace, tmp_path: Path, find: Any
) -> None:
    records = generator_runs.records
    old = records["CD"]
    cases = dict(
        changed=records | {"CD": old.model_copy(update=dict(student_sha256="f" * 64))},
        more=records | {"PD": old.model_copy(update=dict(method="PD"))},
        less={method: record for method, record in records.items() if method != "CD"},
    )
    for name, made in cases.items():
        with pytest.raises(StalePicture, match=r"drawn without .* draw it again with: limbeck leaderboard"):
            find(group_of(tmp_path / name, made.values()), drawn.site)
    assert find(group_of(generator_runs.results), drawn.site) is not None
    assert find(group_of(generator_runs.results), tmp_path) is None


# --- what is not drawn ---


def generator_record(method: str, steps: int, seed: int = 0, **sampler: Any) -> RunRecord:
    links = [] if method in ("teacher", "plain") else [dict(type="PD")]
    model = dict(sampler=dict(steps=steps, **sampler))
    config = dict(
        model=dict(members=dict(student=dict(type="trained", model=model)), deploy="student", links=links),
        s=[method, seed],
    )
    figures = dict(metrics={"FD-digits": 5.0}, val_metrics={}, primary_metric="FD-digits", higher_is_better=False)
    return fabricate(method, seed, task="image-generation", config=config, **figures)


def test_runs_are_chosen_by_their_samplers(tmp_path: Path) -> None:
    made = [generator_record("teacher", 50, guidance=1.5), generator_record("plain", 4)]
    made += [generator_record("PD", 4, seed) for seed in (0, 1)] + [generator_record("CD", 4, kind="consistency")]
    made += [generator_record("Noisy", 4, eta=1.0), generator_record("BOOT", 1)]
    plain = [generator_record("plain", 4, 1)]
    group = group_of(tmp_path, [*made, *plain])
    assert [r.method for r in shown(group)] == ["teacher", "plain", "BOOT", "CD", "Noisy", "PD"]
    assert [r.method for r in stepwise(group)] == ["teacher", "plain", "CD", "Noisy", "PD"]
    assert [(r.method, r.seed) for r in handed(group)] == [("teacher", 0), ("CD", 0), ("PD", 0), ("PD", 1)]
    assert steps_of(made[0]) == 50


def test_one_step_students_have_no_course(tmp_path: Path) -> None:
    group = group_of(tmp_path, [generator_record(m, s) for m, s in (("teacher", 50), ("plain", 1), ("PD", 1))])
    with pytest.raises(ConfigError, match="its students take one step, which has no course"):
        stepwise(group)
    with pytest.raises(ConfigError, match="nothing to hand over to; name a pair of 2 steps or more"):
        handed(group)


def test_other_tasks_weights_and_counts_are_refused(generator_runs: SimpleNamespace, tmp_path: Path) -> None:
    write_all(tmp_path / "other", [fabricate("plain", 0)])
    for kind in KINDS:
        with pytest.raises(ConfigError, match="toy is image classification"):
            call(kind, "toy", "--results", tmp_path / "other", "--runs", tmp_path, "--out", tmp_path / "site")
    words = (BENCHMARK, "--results", generator_runs.results, "--out", tmp_path / "site")
    with pytest.raises(ConfigError, match="the zoo has no weights of"):
        call("samples", *words)
    words = (*words, "--runs", generator_runs.runs)
    with pytest.raises(ConfigError, match="is of 40 requested images; ask for 1 to that many, not 50"):
        call("samples", *words, "--rows", 5)
    with pytest.raises(ConfigError, match="--count is from 1 to the 20 of --images"):
        call("trajectories", *words, "--images", 20, "--count", 21)
    with pytest.raises(UserError, match="sha256"):
        load_generator(generator_runs.records["CD"], weights_of(generator_runs, "plain"))
    other = generator_runs.records["CD"]
    other = other.model_copy(update=dict(data=other.data.model_copy(update=dict(content_hash="e" * 64))))
    with pytest.raises(CorruptFile, match="found here has hash"):
        requests_of(other)
    assert not (tmp_path / "site").exists()


# --- parts ---


def test_real_images_go_round_the_classes() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2])
    found = rows_by_class(labels, 3, 2, seed=0)
    assert labels[found].tolist() == [0, 1, 2, 0, 1, 2]
    assert len(set(found.tolist())) == 6
    assert torch.equal(found, rows_by_class(labels, 3, 2, seed=0))
    with pytest.raises(ConfigError, match="class 1 has 2 real images, not 3"):
        rows_by_class(labels, 3, 3, seed=0)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8, 16, 50])
def test_drawn_steps_stand_at_their_share_of_the_course(steps: int) -> None:
    found = drawn_steps(steps)
    assert next(iter(found.items())) == (0, 0)
    assert len(found) == len(set(found.values())) == min(steps, 8)
    for step, slot in found.items():
        assert 0 <= slot < 8
        assert abs(step / steps - slot / 8) <= 0.5 / min(steps, 8)


@pytest.mark.parametrize(
    ("values", "log"),
    [
        ([0.0, 1.0], False),
        ([2200.0, 6.0], True),
        ([0.51, 0.53], False),
        ([1, 100], True),
        ([5.0], True),
        ([0.0], False),
    ],
)
def test_axes_have_room_and_round_ticks(values: list[float], log: bool) -> None:
    axis = Axis.over(values, log=log)
    assert all(0 < axis.at(v) < 1 for v in values)
    assert axis.log == (log and min(values) > 0 and max(values) >= 10 * min(values))
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 10
    assert all(-1e-9 <= axis.at(t) <= 1 + 1e-9 for t in ticks)


def test_plot_has_its_points_in_their_places() -> None:
    picture = plot("a", [Series("one", [0.0, 1.0], [0.0, 1.0])], ("x", "y"))
    pixels = np.asarray(picture).astype(int)
    line = np.abs(pixels - (90, 90, 90)).sum(2) < 12
    ys, xs = np.nonzero(line[34:250, 70:])
    assert np.corrcoef(xs, ys)[0, 1] < -0.9  # up to the right
