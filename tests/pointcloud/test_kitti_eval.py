"""KITTI's average precision against plain loops over shapely's overlaps, mmdet3d's own code, and counts by hand."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from limbeck.errors import ConfigError, ShapeMismatch
from limbeck.pointcloud.data.frames import CLASSES
from limbeck.pointcloud.kitti_eval import KINDS, LEVELS, STRICTNESS, VIEWS, KittiResult, evaluate
from tests.pointcloud.kitti_cases import (
    Frames,
    found,
    grid,
    moved,
    naive,
    random_frames,
    shuffled,
    truth,
)

CAR = CLASSES.index("Car")
CEILINGS = {1: (0, 9.0909), 5: (10.0, 18.1818), 10: (22.5, 27.2727), 17: (40.0, 45.4545), 20: (47.5, 45.4545)}
CEILINGS |= {30: (72.5, 72.7273), 40: (97.5, 90.9091), 41: (100, 100), 42: (100, 100), 60: (100, 100), 97: (100, 100)}


def car(frames: Frames, kind: str = "AP40", view: str = "BEV", level: str = "moderate", loose: bool = False) -> float:
    values = evaluate(*frames).ap(view, level, kind=kind, strictness=STRICTNESS[loose])  # type: ignore[arg-type]
    return float(values[CAR])


def one_frame(count: int, wrong: tuple[float, ...] = (), **options) -> Frames:
    """Cars that are all found, with scores 0.9, 0.899, …, and false positives of given scores."""
    boxes = grid(count)
    scores = 0.9 - 0.001 * np.arange(count)
    strays = grid(len(wrong), 200)
    detected = found(np.concatenate((boxes, strays)), np.concatenate((scores, wrong)))
    return [truth(boxes, **options)], [detected]


def shifted(boxes: np.ndarray, x: float = 0.0, y: float = 0.0, yaw: float = 0.0) -> np.ndarray:
    return boxes + np.array([x, y, 0, 0, 0, 0, yaw])


def same(a: KittiResult, b: KittiResult) -> None:
    assert (a.boxes == b.boxes).all()
    for kind in KINDS:
        assert a.values[kind] == pytest.approx(b.values[kind], abs=1e-9, nan_ok=True)


# --- the whole metric once more ---


@pytest.mark.parametrize("seed", range(8))
def test_every_figure_is_that_of_plain_loops(seed):
    frames = random_frames(seed, frames=4, crowd=6)
    result = evaluate(*frames, views=VIEWS)
    for v, view in enumerate(VIEWS):
        for k, name in enumerate(CLASSES):
            for d in range(len(LEVELS)):
                for s in (0, 1) if result.boxes[k, d] else ():
                    values = naive(frames, name, view, d, bool(s))
                    assert values["boxes"] == result.boxes[k, d]
                    assert {kind: result.values[kind][v, k, d, s] for kind in KINDS} == pytest.approx(
                        {kind: values[kind] for kind in KINDS}, abs=1e-9
                    )


@pytest.mark.parametrize("seed", range(3))
def test_equal_scores_and_crowded_groups_are_those_of_plain_loops(seed):
    labels, detections = random_frames(100 + seed, frames=2, crowd=12)
    frames = labels, [replace(one, scores=np.round(one.scores, 1)) for one in detections]
    result = evaluate(*frames)
    for k, name in enumerate(CLASSES):
        if result.boxes[k, 2]:
            values = naive(frames, name, "BEV", 2, True)
            assert {kind: result.values[kind][0, k, 2, 1] for kind in KINDS} == pytest.approx(
                {kind: values[kind] for kind in KINDS}, abs=1e-9
            )


@pytest.mark.skipif(find_spec("mmdet3d") is None or find_spec("numba") is None, reason="needs mmdet3d and numba")
def test_figures_are_those_of_mmdet3d(tmp_path):
    cases = [random_frames(seed, frames=4, crowd=7) for seed in (201, 202, 203)]
    plain = [tuple([asdict(one) for one in side] for side in case) for case in cases]
    (tmp_path / "cases.pickle").write_bytes(pickle.dumps(plain))
    script = Path(__file__).parent / "mmdet3d_oracle.py"
    command = [sys.executable, str(script), str(tmp_path / "cases.pickle"), str(tmp_path / "values.json")]
    subprocess.run(command, check=True, env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "NUMBA_DISABLE_JIT": "1"})
    counted = 0
    for case, wanted in zip(cases, json.loads((tmp_path / "values.json").read_text())):
        result = evaluate(*case, views=VIEWS)
        log = result.log()
        for name, value in wanted.items():
            key = name.removeprefix("KITTI/")
            kind = key.split("_")[0]
            there = (result.boxes > 0).all(0) if kind == "Overall" else result.boxes[CLASSES.index(kind)] > 0
            if there[LEVELS.index(key.split("_")[3])]:
                counted += 1
                assert log[key] == pytest.approx(value, abs=1e-3)
            elif kind != "Overall":
                assert value == 0
                assert key not in log
    assert counted > 200


# --- easy cases, counted by hand ---


@pytest.mark.parametrize("count", CEILINGS)
def test_perfect_detections_reach_the_ceiling_and_the_exact_area_is_whole(count):
    frames = one_frame(count)
    result = evaluate(*frames, classes=["Car"], views=VIEWS)
    for view in VIEWS:
        for level in LEVELS:
            for strictness in STRICTNESS:
                values = [result.ap(view, level, kind=kind, strictness=strictness)[0] for kind in KINDS]
                assert values == pytest.approx([CEILINGS[count][1], CEILINGS[count][0], 100.0], abs=1e-4)
    assert result.boxes.tolist() == [[count] * 3]
    assert result.ceilings()[0] == pytest.approx([CEILINGS[count][0]] * 3)
    assert result.ceilings("AP11")[0] == pytest.approx([CEILINGS[count][1]] * 3, abs=1e-4)


def test_one_false_positive_counts_by_its_rank():
    assert car(one_frame(10, (0.8995,))) == pytest.approx(22.5 * 10 / 11)
    assert car(one_frame(10, (0.8995,)), "AP11") == pytest.approx(100 * (1 + 2 * 10 / 11) / 11)
    assert car(one_frame(10, (0.8995,)), "exact") == pytest.approx(10 + 90 * 10 / 11)
    assert car(one_frame(10, (0.95,))) == pytest.approx(22.5 * 10 / 11)
    assert car(one_frame(10, (0.95,)), "AP11") == pytest.approx(300 * 10 / 11 / 11)


@pytest.mark.parametrize("kind", KINDS)
def test_false_positives_below_every_hit_do_not_matter(kind):
    assert car(one_frame(50, (0.1, 0.2, 0.3, 0.01)), kind) == pytest.approx(car(one_frame(50), kind)) == 100


def test_an_overlap_at_the_threshold_is_no_match_and_a_hair_more_is():
    for length, shift, width, strictness, name in (
        (8.5, 1.5, 2.0, 0, "Car"),  # 7 of 10 metres
        (3.0, 1.0, 2.0, 1, "Car"),  # 2 of 4
        (3.0, 1.0, 2.0, 0, "Cyclist"),
        (2.5, 1.5, 1.0, 1, "Pedestrian"),  # 1 of 4
    ):
        labels = np.array([[0.0, 1.0, 20.0, length, 2.0, width, 0.0]])
        for nearer, hits in ((0.0, 0.0), (1e-5, 100.0)):
            other = shifted(labels, x=shift - nearer)
            result = evaluate([truth(labels, name)], [found(other, [0.5], name)])
            for view in ("BEV", "3D"):
                values = result.ap(view, "easy", kind="exact", strictness=STRICTNESS[strictness])
                assert values[CLASSES.index(name)] == pytest.approx(hits)


def test_a_box_apart_in_height_matches_from_above_alone():
    labels = grid(1)
    frames = [truth(labels)], [found(shifted(labels, y=-0.4), [0.5])]  # 1.1 of 1.9 metres
    assert car(frames, "exact", "BEV") == pytest.approx(100)
    assert car(frames, "exact", "3D") == 0
    assert car(frames, "exact", "3D", loose=True) == pytest.approx(100)


@pytest.mark.parametrize(("name", "neighbour"), [("Car", "Van"), ("Pedestrian", "Person_sitting")])
def test_a_neighbour_class_neither_helps_nor_hurts(name, neighbour):
    boxes = grid(6)
    labels = [truth(boxes, [*[name] * 4, neighbour, neighbour.upper()])]
    k = CLASSES.index(name)
    hit = evaluate(labels, [found(boxes, [0.1, 0.2, 0.3, 0.4, 0.8, 0.9], name)])
    missed = evaluate(labels, [found(boxes[:4], [0.1, 0.2, 0.3, 0.4], name)])
    assert hit.boxes[k].tolist() == [4] * 3
    same(hit, missed)
    assert hit.ap("BEV", "easy", kind="exact")[k] == pytest.approx(100)
    other = evaluate(labels, [found(boxes, [0.1, 0.2, 0.3, 0.4, 0.8, 0.9], [*[name] * 4, "Cyclist", "Cyclist"])])
    same(other, hit)


def test_a_truck_hit_by_a_car_is_a_false_positive():
    boxes = grid(3)
    frames = [truth(boxes, ["Car", "Car", "Truck"])], [found(boxes, [0.5, 0.4, 0.9])]
    assert car(frames, "exact") == pytest.approx(200 / 3)


def test_a_pedestrian_called_car_is_wrong_for_both():
    boxes = grid(2)
    frames = [truth(boxes, ["Car", "Pedestrian"])], [found(boxes, [0.5, 0.9])]
    result = evaluate(*frames)
    assert result.ap("BEV", "easy", kind="exact")[CAR] == pytest.approx(50)
    assert result.ap("BEV", "easy", kind="exact")[0] == 0


@pytest.mark.parametrize(
    ("height", "wrong"),
    [(20.0, (False,) * 3), (30.0, (False, True, True)), (25.0, (False, True, True)), (40.0, (True,) * 3)],
)
def test_a_low_detection_without_a_match_is_wrong_only_where_its_level_counts_it(height, wrong):
    boxes = grid(1)
    labels = [truth(boxes)]
    heights = [60.0, height]
    detected = [found(np.concatenate((boxes, grid(1, 30))), [0.5, 0.9], height=heights)]
    result = evaluate(labels, detected)
    values = [result.ap("BEV", level, kind="exact")[CAR] for level in LEVELS]
    assert values == pytest.approx([50.0 if one else 100.0 for one in wrong])


@pytest.mark.parametrize(
    ("height", "counts"), [(40.0, (0, 1, 1)), (40.1, (1, 1, 1)), (25.0, (0, 0, 0)), (25.1, (0, 1, 1))]
)
def test_a_labelled_box_at_the_height_of_its_level_is_ignored(height, counts):
    boxes = grid(1)
    result = evaluate([truth(boxes, height=height)], [found(boxes, [0.5], height=height)])
    assert tuple(result.boxes[CAR]) == counts
    assert np.isnan(result.ap("BEV", "easy")[CAR]) == (counts[0] == 0)


def test_levels_are_nested_by_occlusion_and_truncation():
    labels = truth(grid(8), occluded=[0, 1, 2, 3, 0, 0, 0, 0], truncated=[0, 0, 0, 0, 0.15, 0.3, 0.5, 0.51])
    assert evaluate([labels], [found(grid(0), [])]).boxes[CAR].tolist() == [2, 4, 6]


def test_of_two_detections_of_a_car_the_better_scored_is_right():
    boxes = np.concatenate((grid(1), shifted(grid(1), x=0.1), grid(1, 20)))
    labels = truth(boxes[[0, 2]])
    first, last = (car(([labels], [found(boxes, scores)]), "exact") for scores in ((0.9, 0.8, 0.7), (0.9, 0.5, 0.7)))
    assert last == pytest.approx(100)
    assert first == pytest.approx(50 + 50 * 2 / 3)


def test_a_detection_in_a_dont_care_region_is_no_false_positive_in_2d_alone():
    boxes = np.concatenate((grid(1), grid(1, 12)))
    detected = found(boxes, [0.5, 0.9])
    labels = truth(boxes[:1], dont_care=[detected.bboxes[1] + [-5, -5, 5, 5]])
    result = evaluate([labels], [detected], views=VIEWS)
    assert [result.ap(view, "easy", kind="exact")[CAR] for view in VIEWS] == pytest.approx([100, 50, 50])
    far = truth(boxes[:1], dont_care=[detected.bboxes[1] + 30])
    assert evaluate([far], [detected], views=["2D"]).ap("2D", "easy", kind="exact")[CAR] == pytest.approx(50)


# --- what must not matter ---


@pytest.mark.parametrize("seed", [300, 301])
def test_scores_by_rank_frame_order_and_a_common_motion_leave_everything(seed):
    frames = random_frames(seed, frames=6, crowd=6)
    result = evaluate(*frames, views=VIEWS)
    same(evaluate(*shuffled(frames, 1), views=VIEWS), result)
    squared = frames[0], [replace(one, scores=3 * np.exp(5 * one.scores) - 100) for one in frames[1]]
    same(evaluate(*squared, views=VIEWS), result)
    same(evaluate(*moved(frames, 0.81, (12.0, -3.0)), views=VIEWS), result)
    same(
        evaluate(*frames),
        KittiResult(result.classes, VIEWS[1:], result.boxes, {k: v[1:] for k, v in result.values.items()}),
    )


def test_a_box_turned_by_half_is_the_same_and_by_a_quarter_is_not():
    labels = grid(1)
    for turn, hits in ((np.pi, 100), (-3 * np.pi, 100), (np.pi / 2, 0)):
        frames = [truth(labels)], [found(shifted(labels, yaw=turn), [0.5])]
        assert car(frames, "exact") == car(frames, "exact", "3D") == pytest.approx(hits)


# --- little or nothing there ---


def test_frames_without_boxes_or_detections():
    none, nothing = truth(grid(0)), found(grid(0), [])
    empty = evaluate([], [])
    assert (empty.boxes == 0).all()
    assert empty.log() == {}
    assert np.isnan(empty.overall("BEV", "moderate"))
    assert evaluate([none], [nothing]).log() == {}
    result = evaluate([truth(grid(3)), none], [nothing, nothing])
    assert result.overall("3D", "hard") == 0
    assert result.boxes[CAR].tolist() == [3, 3, 3]
    wrong = evaluate([none, truth(grid(2))], [found(grid(2), [0.9, 0.8]), found(grid(2), [0.5, 0.6])])
    assert wrong.ap("BEV", "easy", kind="exact")[CAR] == pytest.approx(50)


def test_classes_without_a_box_are_not_in_the_mean():
    result = evaluate([truth(grid(45))], [found(grid(45), np.linspace(0.1, 0.9, 45))])
    assert np.isnan(result.ap("BEV", "easy")[:2]).all()
    assert result.overall("BEV", "easy") == pytest.approx(100)
    assert not any(key.startswith(("Pedestrian", "cyclist")) for key in result.log())


def test_names_of_the_log_are_those_of_mmdet3d():
    log = evaluate(*one_frame(50), classes=["Car"], views=VIEWS).log()
    assert len(log) == 3 * 3 * 3 * (2 + 1)
    assert (
        log["Car_BEV_AP40_moderate_strict"] == log["Overall_3D_AP40_moderate"] == log["Car_2D_AP11_hard_loose"] == 100
    )
    assert log["car_3d_ap_exact_moderate_strict"] == log["overall_bev_ap_exact_easy"] == 100


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda a, b: (a, []), ShapeMismatch, "1 labelled frames and detections of 0"),
        (lambda a, b: ([replace(a[0], occluded=np.zeros(2))], b), ShapeMismatch, r"labels of frame 0: occluded \(2,\)"),
        (
            lambda a, b: (a, [replace(b[0], boxes=np.zeros((3, 6)))]),
            ShapeMismatch,
            r"frame 0: boxes \(3, 6\) do not fit",
        ),
        (lambda a, b: (a, [replace(b[0], scores=b[0].scores * np.nan)]), ConfigError, "scores are not all finite"),
    ],
)
def test_wrong_frames_are_user_errors(change, error, said):
    with pytest.raises(error, match=said):
        evaluate(*change(*one_frame(3)))


def test_other_classes_and_views_are_user_errors():
    with pytest.raises(ConfigError, match="Pedestrian, Cyclist, Car; got 'Van'"):
        evaluate(*one_frame(3), classes=["Van"])
    with pytest.raises(ConfigError, match="no class"):
        evaluate(*one_frame(3), classes=[])
    with pytest.raises(ConfigError, match="'2D' was not evaluated"):
        evaluate(*one_frame(3)).ap("2D", "easy")
