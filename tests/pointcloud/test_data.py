"""Data sets of LiDAR frames: batches, views, what counts, content; simulated scenes and KITTI's real frames."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.engine.data_sources import available
from limbeck.engine.registry import DATASETS
from limbeck.errors import ConfigError, DataMissing, UnknownName
from limbeck.pointcloud.data.frames import points_in_boxes

SHARED = Path(os.environ.get("LIMBECK_DATA", "missing"))
REAL = SHARED / "kitti_frames"
needs_kitti = pytest.mark.skipif(not REAL.is_dir(), reason="LIMBECK_DATA has no kitti_frames")


def scenes(split: str = "train", **options: Any) -> Any:
    return DATASETS.make(dict(type="LidarScenes", split=split, count=4) | options)


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b)


def test_batch_has_clouds_of_their_own_size_and_boxes_of_the_three_classes():
    data = scenes("val")
    batch = data.__getitems__([2, 0])
    samples = batch["data_samples"]
    frames = [data.frame(2), data.frame(0)]
    assert [torch.equal(points, torch.from_numpy(f.points)) for points, f in zip(batch["inputs"], frames)] == [True] * 2
    assert len({len(points) for points in batch["inputs"]}) == 2
    for frame, boxes, labels in zip(frames, samples["boxes"], samples["labels"], strict=True):
        ours = frame.labels >= 0
        assert torch.equal(boxes, torch.from_numpy(frame.boxes[ours]))
        assert labels.tolist() == frame.labels[ours].tolist()
        assert (boxes.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert (samples["ids"].tolist(), samples["views"].tolist()) == ([2, 0], [0, 0])
    assert data.classes == ["Pedestrian", "Cyclist", "Car"]
    assert torch.equal(data[2]["inputs"], batch["inputs"][0])
    assert torch.equal(data[-2]["data_samples"]["boxes"], samples["boxes"][0])
    assert set(data[2]["data_samples"]["truth"]) == set(samples["truth"])
    with pytest.raises(IndexError):
        data[4]


def test_truth_is_that_of_all_objects_and_what_is_out_of_range_does_not_count():
    near = scenes("val", point_cloud_range=(0, -10, -3, 15, 10, 1))
    frame = near.frame(1)
    truth = near[1]["data_samples"]["truth"]
    count = len(frame.names)
    assert torch.equal(truth["gt_boxes"][:count], torch.from_numpy(frame.boxes))
    inside = (np.abs(frame.boxes[:, 1] + 0.0) <= 10) & (frame.boxes[:, 0] >= 0) & (frame.boxes[:, 0] < 15)
    assert truth["gt_occluded"][:count].tolist() == np.where(inside, frame.occluded, 3).tolist()
    assert not inside.all()
    assert near.content_hash != scenes("val").content_hash


def test_views_are_drawn_from_seed_view_and_sample_alone():
    options = dict(augment=dict(flip=0.5), views=3)
    data, again, other = scenes(**options), scenes(**options), scenes(**options, seed=1)
    first = data.__getitems__([0, 1, 2])
    assert equal(first, again.__getitems__([0, 1, 2]))
    assert equal(first["inputs"][1], again.__getitems__([3, 1])["inputs"][1])
    assert not equal(first["inputs"], other.__getitems__([0, 1, 2])["inputs"])
    seen = []
    for epoch in range(4):
        data.set_epoch(epoch)
        seen.append(data[1])
    assert [int(one["data_samples"]["views"]) for one in seen] == [0, 1, 2, 0]
    assert equal(seen[0], seen[3])
    assert not equal(seen[0]["inputs"], seen[1]["inputs"])
    assert "truth" not in seen[0]["data_samples"]
    assert data.pipeline() != other.pipeline()


def test_augmentation_moves_points_with_their_boxes_and_shuffles_them():
    plain, moved = scenes(count=8), scenes(count=8, augment=dict())
    before, after = plain[5], moved[5]
    inside = [
        points_in_boxes(one["inputs"].numpy(), one["data_samples"]["boxes"].numpy(), margin=1e-3).sum(1)
        for one in (before, after)
    ]
    assert inside[0].sum() > 0
    assert np.abs(inside[0] - inside[1]).max() <= 2  # points at a face, by rounding
    assert len(before["inputs"]) == len(after["inputs"])
    assert not torch.equal(before["inputs"][:, 3], after["inputs"][:, 3])
    assert torch.equal(before["inputs"][:, 3].sort().values, after["inputs"][:, 3].sort().values)


def test_scenes_are_made_once_in_a_process(monkeypatch):
    calls = []
    whole = type(scenes()).frame
    monkeypatch.setattr(type(scenes()), "frame", lambda self, n: calls.append(n) or whole(self, n))
    first, second = scenes(scene_seed=77), scenes(scene_seed=77, augment=dict(), views=0)
    first.__getitems__([0, 1])
    second.__getitems__([1, 0])
    first.__getitems__([0, 1])
    assert calls == [0, 1]
    scenes(scene_seed=78).__getitems__([0])
    assert calls == [0, 1, 0]


def test_content_is_known_before_a_scene_is_made():
    hashes = [scenes(**o).content_hash for o in ({}, dict(count=5), dict(scene_seed=1))]
    hashes.append(scenes("val").content_hash)
    assert len(set(hashes)) == 4
    assert scenes().content_hash == scenes(seed=3, augment=dict()).content_hash
    assert [len(scenes(split, count=None)) for split in ("train", "val", "test")] == [300, 60, 200]


def test_bad_options_are_refused():
    for options, kind, said in (
        (dict(split="trian"), UnknownName, "split"),
        (dict(count=0), ConfigError, "at least 1"),
        (dict(augment=dict(flips=1)), UnknownName, "augmentation option"),
        (dict(seed=-1, augment=dict()), ConfigError, "0 or more"),
        (dict(point_cloud_range=(0, 0, 0, 1)), ConfigError, "a range is"),
        (dict(layouts="tables"), UnknownName, "layouts"),
    ):
        with pytest.raises(kind, match=said):
            scenes(**options)


def test_data_sources_name_the_data_sets():
    assert {"lidar-scenes", "kitti", "kitti-frames"} <= set(available())
    assert scenes().name == "lidar-scenes"


# --- KITTI ---


@needs_kitti
def test_real_frames_by_split():
    parts = {split: DATASETS.make(dict(type="KITTIFrames", split=split)) for split in ("train", "val", "test")}
    assert [len(part) for part in parts.values()] == [10, 3, 12]
    ids = [frame for part in parts.values() for frame in part.frame_ids]
    assert len(set(ids)) == 25
    assert parts["test"].frame_ids == (REAL / "ImageSets" / "val.txt").read_text().split()
    assert len({part.content_hash for part in parts.values()}) == 3
    assert parts["train"].content_hash == DATASETS.make(dict(type="KITTIFrames", split="train")).content_hash
    batch = parts["val"].__getitems__([0, 1, 2])
    assert all(10_000 < len(points) < 25_000 for points in batch["inputs"])
    assert batch["data_samples"]["truth"]["P2"].shape == (3, 3, 4)
    assert parts["val"].name == "kitti-frames"


@needs_kitti
def test_real_frames_can_be_limited_and_held_out():
    few = DATASETS.make(dict(type="KITTIFrames", split="train", limit=2, val_size=5, augment=dict(), views=0))
    assert len(few) == 2
    assert few.views == 0
    for options, said in ((dict(val_size=13), "leaves some of its 13 training frames"), (dict(limit=99), "between 1")):
        with pytest.raises(ConfigError, match=said):
            DATASETS.make(dict(type="KITTIFrames", split="train") | options)


@needs_kitti
def test_every_real_frame_is_test_for_detectors_that_saw_none():
    parts = {split: DATASETS.make(dict(type="KITTIFrames", split=split)) for split in ("train", "val", "test")}
    whole = DATASETS.make(dict(type="KITTIFrames", split="test", whole=True))
    assert whole.frame_ids == sorted(frame for part in parts.values() for frame in part.frame_ids)
    assert whole.content_hash not in {part.content_hash for part in parts.values()}
    with pytest.raises(ConfigError, match="makes every frame test; split is 'val'"):
        DATASETS.make(dict(type="KITTIFrames", split="val", whole=True))


@needs_kitti
def test_the_whole_of_kitti_reads_the_same_layout():
    few = DATASETS.make(dict(type="KITTI", split="test", root=str(REAL), val_size=2))
    assert len(few) == 12
    assert few.point_cloud_range[3] == 69.12
    assert few.name == "kitti"


def test_missing_kitti_says_where_to_put_it(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path))
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataMissing, match=r"put it into \$LIMBECK_DATA/kitti or set root"):
        DATASETS.make(dict(type="KITTI", split="train"))
