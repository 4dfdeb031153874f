"""Masks over training by the command: the run again is the record's, and figures are derived again from the masks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from limbeck.cli import leaderboard
from limbeck.engine.record import RunRecord, config_hash
from limbeck.engine.weights import sha256_file
from limbeck.errors import ConfigError, CorruptFile, OutputError, UnknownName
from limbeck.leaderboard.pictures.mask_run import changes, moved_most, movement
from limbeck.leaderboard.pictures.masks import FOLDER, find_masks, masked, plan_masks
from limbeck.leaderboard.pictures.plans import StalePicture, picture_files
from limbeck.leaderboard.site.masks import masks_view
from limbeck.leaderboard.store import Group, load_results
from tests.leaderboard.conftest import EPOCHS
from tests.leaderboard.fabricate import fabricate, linked, write_all
from tests.leaderboard.pages import text_of

BENCHMARK = "toy-boxes"


def call(*args: object) -> str:
    done = CliRunner().invoke(leaderboard.app, [str(word) for word in args])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def drawn(digit_runs: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A site with the masks of the tiny runs."""
    site = tmp_path_factory.mktemp("site")
    said = call(
        "masks", BENCHMARK, "--results", digit_runs.results, "--runs", digit_runs.runs, "--out", site, "--count", 2
    )
    picture = site / "masks" / BENCHMARK / "big-small.v1.png"
    return SimpleNamespace(
        site=site, said=said, picture=picture, found=json.loads(picture.with_suffix(".json").read_text())
    )


def group_of(folder: Path, records: Any = ()) -> Group:
    (group,) = load_results(write_all(folder, records)).groups
    return group


def made_up(*links: dict[str, Any], method: str = "ACAM-KD", task: str = "object-detection") -> list[RunRecord]:
    """Plain and a method with links, of which nothing was ever trained; the teacher is a run's."""
    figures = dict(metrics={"mAP": 1.0}, val_metrics={"mAP": 1.0}, primary_metric="mAP", task=task)
    model = linked(*links, teacher="toy/big-small/teacher/seed0")
    return [fabricate("teacher", **figures), fabricate("plain", **figures), fabricate(method, model=model, **figures)]


# --- the run again ---


def test_run_again_ends_with_the_record_s_weights(digit_runs: SimpleNamespace, drawn: SimpleNamespace) -> None:
    record = digit_runs.records["ACAM-KD"]
    found = drawn.found
    assert found["rerun_sha256"] == found["student_sha256"] == record.student_sha256
    assert (found["record"], found["config_hash"]) == (record.id, record.config_hash)
    text = drawn.said.replace("\n", "")
    assert f"{record.id}: the student's sha256 {record.student_sha256[:12]}… is the record's" in text
    assert sha256_file(drawn.picture) == found["picture_sha256"]
    with Image.open(drawn.picture) as opened:
        assert list(opened.size) == found["size"]


def test_epochs_images_and_levels_are_said(drawn: SimpleNamespace) -> None:
    found = drawn.found
    assert found["epochs"] == [0, 1, EPOCHS]
    assert found["samples"] == np.random.default_rng(0).permutation(4)[:2].tolist()
    assert found["levels"] == ["neck[0]", "neck[1]"]
    assert (found["finest"], found["map_size"], len(found["ranges"])) == (0, [8, 8], 3)
    for kind in ("spatial", "channel"):
        change, mean = (np.array(found["curves"][kind][key]) for key in ("change", "mean"))
        assert change.shape == mean.shape == (2, EPOCHS + 1)
        assert (change[:, 0] == 0).all()
        assert (change[:, 1:] > 0).all()  # they are trained
        assert ((mean > 0) & (mean < 1)).all()
    assert np.mean(found["changes"]) == pytest.approx(found["curves"]["spatial"]["change"][0][-1])
    largest = sorted(np.argsort(found["changes"])[-2:].tolist())
    assert found["moved_most"] == largest


def test_page_shows_the_numbers_below_the_examples(digit_runs: SimpleNamespace, drawn: SimpleNamespace) -> None:
    call("build", "--results", digit_runs.results, "--out", drawn.site)
    text = text_of(drawn.site / "index.html", BENCHMARK)
    (tag,) = re.findall(r"<img [^>]*>", text)
    assert f'src="../masks/{BENCHMARK}/big-small.v1.png"' in tag
    spatial = drawn.found["curves"]["spatial"]["change"]
    assert f"spatial masks {spatial[0][-1]:.4f} at neck[0] and {spatial[1][-1]:.4f} at neck[1]" in text
    low, high = (f(r[i] for r in drawn.found["ranges"]) for i, f in ((0, min), (1, max)))
    assert f"the masks reached {low:.3f} to {high:.3f}" in text
    assert "the student&#39;s weights are the record&#39;s, byte for byte" in text


def test_caption_says_when_the_run_again_is_another(digit_runs: SimpleNamespace, drawn: SimpleNamespace) -> None:
    found = find_masks(group_of(digit_runs.results), drawn.site)
    assert found is not None
    text = masks_view(found.model_copy(update=dict(rerun_sha256="f" * 64)))["text"]
    assert "weights are not the record's (sha256 ffffffffffff… for" in text


# --- when it no longer holds ---


@pytest.mark.parametrize("what", ["weights", "config", "gone"])
def test_changed_record_makes_the_files_stale(
    digit_runs: SimpleNamespace, drawn: SimpleNamespace, tmp_path: Path, what: str
) -> None:
    records = dict(digit_runs.records)
    old = records.pop("ACAM-KD")
    config = old.config | {"recipe": old.config["recipe"] | {"epochs": 9}}
    if what != "gone":
        changed = (
            dict(student_sha256="f" * 64) if what == "weights" else dict(config=config, config_hash=config_hash(config))
        )
        records["ACAM-KD"] = old.model_copy(update=changed)
    group = group_of(tmp_path, records.values())
    with pytest.raises(StalePicture, match=r"other weights of .*, and not shown; .*leaderboard masks toy-boxes --pair"):
        find_masks(group, drawn.site)


def test_picture_that_is_not_whole_is_stale(
    digit_runs: SimpleNamespace, drawn: SimpleNamespace, tmp_path: Path
) -> None:
    group = group_of(digit_runs.results)
    picture, beside = picture_files(tmp_path, FOLDER, group)
    assert find_masks(group, tmp_path) is None
    picture.parent.mkdir(parents=True)
    beside.write_text(json.dumps(drawn.found))
    picture.write_bytes(b"another picture")
    with pytest.raises(StalePicture, match=r"v1\.png: not the picture that its JSON describes"):
        find_masks(group, tmp_path)


# --- errors ---


def test_benchmark_without_a_run_with_masks_is_refused(tmp_path: Path) -> None:
    results = load_results(write_all(tmp_path, made_up(dict(type="FGD"), method="FGD")))
    with pytest.raises(ConfigError, match=r"toy/big-small: no record of a method with ACAMKD masks; run ACAM-KD"):
        plan_masks(results, ["toy"], weights={})


def test_channel_masks_alone_are_refused(tmp_path: Path) -> None:
    results = load_results(write_all(tmp_path, made_up(dict(type="ACAMKD", masks="channel"))))
    with pytest.raises(ConfigError, match=r"acam-kd/seed0 has no spatial masks to draw; run ACAM-KD with masks='both'"):
        plan_masks(results, ["toy"], weights={})


def test_other_task_and_unknown_pair_are_refused(tmp_path: Path) -> None:
    results = load_results(write_all(tmp_path, made_up(dict(type="ACAMKD"), task="image-classification")))
    with pytest.raises(ConfigError, match="toy is image classification; name a benchmark of a task that is drawn"):
        plan_masks(results, ["toy"], weights={})
    with pytest.raises(UnknownName, match="unknown pair 'big' of toy"):
        plan_masks(results, ["toy"], weights={}, pair="big")


def test_teacher_s_weights_are_needed(tmp_path: Path) -> None:
    results = load_results(write_all(tmp_path, made_up(dict(type="ACAMKD"))))
    with pytest.raises(ConfigError, match=r"the zoo has no weights of toy/big-small/teacher/seed0; .*--runs"):
        plan_masks(results, ["toy"], weights={})
    with pytest.raises(ConfigError, match=r"neither the zoo nor .*teacher/seed0/student\.safetensors has the weights"):
        plan_masks(results, ["toy"], weights={}, runs=tmp_path)


def test_lowest_seed_is_drawn(tmp_path: Path) -> None:
    model = linked(dict(type="ACAMKD"))
    made = [fabricate(m, s, model=model if m == "ACAM-KD" else None) for m in ("plain", "ACAM-KD") for s in (2, 1)]
    assert masked(group_of(tmp_path, made)).id == "toy/big-small/acam-kd/seed1"


def test_count_place_and_data_are_checked_before_training(digit_runs: SimpleNamespace, tmp_path: Path) -> None:
    words = ["masks", BENCHMARK, "--results", digit_runs.results, "--runs", digit_runs.runs]
    with pytest.raises(ConfigError, match="--count 5: the validation split has 4 images"):
        call(*words, "--out", tmp_path / "site", "--count", 5)
    with pytest.raises(OutputError, match="lies in the folder of records"):
        call(*words, "--out", digit_runs.results / "site")
    old = digit_runs.records["ACAM-KD"]
    other = old.model_copy(update=dict(data=old.data.model_copy(update=dict(val_hash="e" * 64))))
    write_all(tmp_path / "r", (digit_runs.records | {"ACAM-KD": other}).values())
    with pytest.raises(CorruptFile, match=r"validation split of digit-scenes-boxes found here .* has eeee"):
        call("masks", BENCHMARK, "--results", tmp_path / "r", "--runs", digit_runs.runs, "--out", tmp_path / "site")
    assert not (tmp_path / "site").exists()


# --- figures ---


def test_figures_are_what_loops_say() -> None:
    rng = np.random.default_rng(0)
    shapes = [((4, 6), 5), ((2, 3), 7)]  # by level: of a map, and channels
    masks = [
        [[{"spatial": rng.random((3, *size)), "channel": rng.random((3, c))} for size, c in shapes] for _ in range(2)]
        for _ in range(4)
    ]
    for kind, (change, mean) in movement(masks).items():
        for level in range(2):
            for epoch in range(4):
                per_image = [
                    np.mean([abs(a - b) for a, b in zip(now[level][kind].flat, start[level][kind].flat)])
                    for now, start in zip(masks[epoch], masks[0])
                ]
                assert change[level][epoch] == pytest.approx(np.mean(per_image))
                assert mean[level][epoch] == pytest.approx(np.mean([np.mean(now[level][kind]) for now in masks[epoch]]))
    finest = [[levels[0]["spatial"] for levels in images] for images in masks]
    wanted = [
        np.mean([[abs(finest[3][i][m][p] - finest[0][i][m][p]) for p in np.ndindex(4, 6)] for i in range(2)])
        for m in range(3)
    ]
    assert changes(finest) == pytest.approx(wanted)
    assert moved_most(finest) == sorted(np.argsort(wanted)[-2:].tolist())
