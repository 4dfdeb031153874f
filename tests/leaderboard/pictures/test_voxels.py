"""Chosen voxels by the command: choice, weights and shares derived again by numpy, and what makes a picture stale."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from limbeck.cli import leaderboard
from limbeck.engine.record import RunRecord, config_hash
from limbeck.engine.registry import DATASETS
from limbeck.engine.weights import sha256_file
from limbeck.errors import ConfigError, CorruptFile
from limbeck.leaderboard.pictures.plans import StalePicture, picture_files
from limbeck.leaderboard.pictures.voxels import FOLDER, Voxels, chosen, find_voxels, plan_voxels
from limbeck.leaderboard.site.voxels import voxels_view
from limbeck.leaderboard.store import Group, load_results
from tests.leaderboard.fabricate import fabricate, linked, write_all
from tests.leaderboard.pages import text_of
from tests.leaderboard.pictures.test_masks import call
from tests.pointcloud.small_runs import EXTENT, LINK, STUDENT, scenes

BENCHMARK = "toy-lidar"


@pytest.fixture(scope="module")
def drawn(lidar_runs: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A site with the voxels of the tiny runs: three frames, in batches of two."""
    site = tmp_path_factory.mktemp("site")
    words = ["--results", lidar_runs.results, "--runs", lidar_runs.runs, "--out", site]
    said = call("voxels", BENCHMARK, *words, "--count", 3)
    picture = site / "voxels" / BENCHMARK / "big-small.v1.png"
    beside = picture.with_suffix(".json")
    return SimpleNamespace(site=site, said=said, picture=picture, found=json.loads(beside.read_text()))


def group_of(folder: Path, records: Any = ()) -> Group:
    (group,) = load_results(write_all(folder, records)).groups
    return group


def made_up(
    *links: dict[str, Any], method: str = "PointDistiller", task: str = "3d-object-detection"
) -> list[RunRecord]:
    figures = dict(metrics={"bev_ap40": 1.0}, val_metrics={"bev_ap40": 1.0}, primary_metric="bev_ap40", task=task)
    model = linked(*links, teacher="toy/big-small/teacher/seed0")
    return [fabricate("teacher", **figures), fabricate("plain", **figures), fabricate(method, model=model, **figures)]


def inside(place: tuple[float, float], boxes: np.ndarray) -> bool:
    """Whether a place lies in a box, by angles and distances."""
    for x, y, _, length, width, _, yaw in boxes:
        reach, angle = math.hypot(place[0] - x, place[1] - y), math.atan2(place[1] - y, place[0] - x) - yaw
        if abs(reach * math.cos(angle)) <= length / 2 and abs(reach * math.sin(angle)) <= width / 2:
            return True
    return False


def test_choice_and_weights_are_what_numpy_says(drawn: SimpleNamespace) -> None:
    dataset = DATASETS.make(scenes("val"))
    assert [one["sample"] for one in drawn.found["frames"]] == np.random.default_rng(0).permutation(4)[:3].tolist()
    for one in drawn.found["frames"]:
        batch = dataset.__getitems__([one["sample"]])
        points = batch["inputs"][0].numpy().astype(np.float32)
        seen = points[((points[:, :3] >= EXTENT[:3]) & (points[:, :3] < EXTENT[3:])).all(1)]
        low, size = np.array(EXTENT[:2], np.float32), np.float32(0.32)
        pillars = Counter(map(tuple, np.floor((seen[:, :2] - low) / size).astype(int).tolist()))  # in order of points
        assert one["pillars"] == len(pillars) < STUDENT["max_voxels"]
        boxes = batch["data_samples"]["boxes"][0].numpy()
        boxes = boxes[((boxes[:, :2] >= EXTENT[:2]) & (boxes[:, :2] < EXTENT[3:5])).all(1)]
        assert one["objects"] == len(boxes)
        counts = np.minimum(list(pillars.values()), STUDENT["max_points"])
        within = np.array(
            [inside((EXTENT[0] + 0.32 * (i + 0.5), EXTENT[1] + 0.32 * (j + 0.5)), boxes) for i, j in pillars]
        )
        centres = np.argsort(-counts, kind="stable")[: LINK["num_voxels"] // 2]  # two frames share them
        weights = np.exp(counts[centres] / LINK["temperature"])
        weights *= len(centres) / weights.sum()
        assert one["centres"] == len(centres) == 25
        assert one["pillars_inside"] == pytest.approx(within.mean())
        assert one["centres_inside"] == pytest.approx(within[centres].mean())
        assert one["weight_inside"] == pytest.approx(weights[within[centres]].sum() / weights.sum(), abs=1e-6)
        assert one["effective_centres"] == pytest.approx(weights.sum() ** 2 / (weights**2).sum(), rel=1e-5)
        assert sum(one["histogram"]) == len(centres)
        assert weights.max() <= drawn.found["largest_weight"] + 1e-6


def test_description_names_run_teacher_and_options(lidar_runs: SimpleNamespace, drawn: SimpleNamespace) -> None:
    record, teacher = lidar_runs.records["PointDistiller"], lidar_runs.records["teacher"]
    found = drawn.found
    assert (found["record"], found["config_hash"]) == (record.id, record.config_hash)
    assert (found["teacher_record"], found["teacher_sha256"]) == (teacher.id, teacher.student_sha256)
    assert (found["tap"], found["batch_size"]) == ("voxel_encoder", 2)
    assert {key: found["options"][key] for key in ("num_voxels", "temperature", "scope")} == {
        "num_voxels": 50,
        "temperature": 3.0,
        "scope": "cloud",
    }
    assert sha256_file(drawn.picture) == found["picture_sha256"]
    assert str(drawn.picture) in drawn.said.replace("\n", "")


def test_page_shows_the_picture_and_its_shares(lidar_runs: SimpleNamespace, drawn: SimpleNamespace) -> None:
    call("build", "--results", lidar_runs.results, "--out", drawn.site)
    text = text_of(drawn.site / "index.html", BENCHMARK)
    (tag,) = re.findall(r"<img [^>]*>", text)
    assert f'src="../voxels/{BENCHMARK}/big-small.v1.png"' in tag
    assert "Chosen voxels" in text
    share = np.mean([one["pillars_inside"] for one in drawn.found["frames"]])
    assert f"{100 * share:.1f} % of all pillars lie inside true boxes" in text
    assert "takes the 50 fullest pillars of a batch of 2 frames" in text


def test_caption_tells_options_apart(drawn: SimpleNamespace) -> None:
    found = Voxels.model_validate(drawn.found)
    options = found.options | dict(scope="batch", reweight="official", sampling="random")
    text = voxels_view(found.model_copy(update=dict(options=options)))["text"]
    assert "50 randomly drawn pillars" in text
    assert "over the batch, all weighted alike" in text


@pytest.mark.parametrize("what", ["weights", "config", "gone"])
def test_changed_record_makes_the_files_stale(
    lidar_runs: SimpleNamespace, drawn: SimpleNamespace, tmp_path: Path, what: str
) -> None:
    records = dict(lidar_runs.records)
    old = records.pop("PointDistiller")
    config = old.config | {"recipe": old.config["recipe"] | {"epochs": 9}}
    if what != "gone":
        changed = (
            dict(student_sha256="f" * 64) if what == "weights" else dict(config=config, config_hash=config_hash(config))
        )
        records["PointDistiller"] = old.model_copy(update=changed)
    group = group_of(tmp_path, records.values())
    with pytest.raises(
        StalePicture, match=r"other weights of .*, and not shown; .*leaderboard voxels toy-lidar --pair"
    ):
        find_voxels(group, drawn.site)


def test_picture_that_is_not_whole_is_stale(
    lidar_runs: SimpleNamespace, drawn: SimpleNamespace, tmp_path: Path
) -> None:
    group = group_of(lidar_runs.results)
    picture, beside = picture_files(tmp_path, FOLDER, group)
    assert find_voxels(group, tmp_path) is None
    picture.parent.mkdir(parents=True)
    beside.write_text(json.dumps(drawn.found))
    picture.write_bytes(b"another picture")
    with pytest.raises(StalePicture, match="not the picture that its JSON describes"):
        find_voxels(group, tmp_path)


# --- errors ---


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    without = load_results(write_all(tmp_path / "a", made_up(dict(type="CWD"), method="CWD")))
    with pytest.raises(ConfigError, match="no record of a method with a PointDistiller link; run PointDistiller"):
        plan_voxels(without, ["toy"], weights={})
    other = load_results(write_all(tmp_path / "b", made_up(dict(type="PointDistiller"), task="object-detection")))
    with pytest.raises(ConfigError, match="pictures are drawn for 3d object detection; toy is object detection"):
        plan_voxels(other, ["toy"], weights={})
    lacking = load_results(write_all(tmp_path / "c", made_up(dict(type="PointDistiller"))))
    with pytest.raises(ConfigError, match=r"the zoo has no weights of toy/big-small/teacher/seed0; .*--runs"):
        plan_voxels(lacking, ["toy"], weights={})


def test_the_method_itself_comes_before_others_with_its_link(tmp_path: Path) -> None:
    model = linked(dict(type="PointDistiller"))
    made = [fabricate(m, 0, model=None if m == "plain" else model) for m in ("plain", "CWD+Points", "PointDistiller")]
    assert chosen(group_of(tmp_path, made)).method == "PointDistiller"
    assert chosen(group_of(tmp_path / "b", made[:2])).method == "CWD+Points"


def test_other_weights_data_and_counts_are_refused(lidar_runs: SimpleNamespace, tmp_path: Path) -> None:
    words = ["voxels", BENCHMARK, "--runs", lidar_runs.runs, "--out", tmp_path / "site"]
    with pytest.raises(ConfigError, match="--count 5: the validation split has 4"):
        call(*words, "--results", lidar_runs.results, "--count", 5)
    old = lidar_runs.records["PointDistiller"]
    other = old.model_copy(update=dict(data=old.data.model_copy(update=dict(val_hash="e" * 64))))
    write_all(tmp_path / "r", (lidar_runs.records | {"PointDistiller": other}).values())
    with pytest.raises(CorruptFile, match=r"validation split of lidar-scenes found here .* has eeee"):
        call(*words, "--results", tmp_path / "r")
    runs = tmp_path / "runs" / lidar_runs.records["teacher"].id
    runs.mkdir(parents=True)
    (runs / "student.safetensors").write_bytes(b"other")
    with pytest.raises(CorruptFile, match=r"sha256"):
        call(*words[:2], "--runs", tmp_path / "runs", "--out", tmp_path / "site", "--results", lidar_runs.results)
    assert not (tmp_path / "site").exists()


def test_help_has_an_example() -> None:
    assert "leaderboard voxels lidar-scenes" in CliRunner().invoke(leaderboard.app, ["voxels", "--help"]).output
