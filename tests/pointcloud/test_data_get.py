"""What is said of data sets that are not here, and the check of a user's copy of KITTI."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from limbeck.cli.data import app
from limbeck.engine import data_sources
from limbeck.errors import CorruptFile, DataMissing
from limbeck.pointcloud.data.get import index_path, prepare_kitti


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    """No data but the test's own, in this folder."""
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def kitti(data):
    root = data / "kitti"
    for part in ("velodyne", "label_2", "calib"):
        (root / "training" / part).mkdir(parents=True)
    (root / "ImageSets").mkdir()
    for split, ids in (("train", "123"), ("val", "45")):
        (root / f"ImageSets/{split}.txt").write_text("".join(f"00000{k}\n" for k in ids))
        for k in ids:
            (root / f"training/velodyne/00000{k}.bin").write_bytes(np.ones((int(k), 4), "<f4").tobytes())
            (root / f"training/label_2/00000{k}.txt").write_text("")
            (root / f"training/calib/00000{k}.txt").write_text("P2: 1\n")
    return root


def test_kitti_is_checked_and_an_index_written(kitti):
    folder = data_sources.get("kitti", progress=False)
    assert folder == kitti
    index = json.loads(index_path().read_text())
    assert index["counts"] == {"train": 3, "val": 2}
    assert index["frames"]["val"] == {"000004": [64, 0, 6], "000005": [80, 0, 6]}
    first = index["content_hash"]
    assert prepare_kitti()[1]["content_hash"] == first
    (kitti / "training/label_2/000002.txt").write_text("\n")
    assert prepare_kitti(kitti)[1]["content_hash"] != first
    assert data_sources.located()["kitti"] == str(kitti)


def test_the_command_says_how_many_frames_there_are(kitti):
    result = CliRunner().invoke(app, ["get", "kitti"])
    assert result.exit_code == 0
    assert "3 train, 2 val frames are complete" in result.output
    assert str(kitti) in result.output


def test_without_kitti_it_says_which_archives_go_where():
    with pytest.raises(
        DataMissing, match=r"velodyne, label_2, calib.*\$LIMBECK_DATA/kitti.*cannot be downloaded: each user"
    ):
        data_sources.get("kitti")
    assert data_sources.located()["kitti"] == ""


def test_absent_files_are_counted_and_the_first_named(kitti):
    (kitti / "training/calib/000002.txt").unlink()
    (kitti / "training/velodyne/000005.bin").unlink()
    with pytest.raises(DataMissing, match=r"2 files of .* are missing, the first is .*calib/000002.txt"):
        data_sources.get("kitti")
    assert not index_path().exists()


@pytest.mark.parametrize("size", [0, 15])
def test_points_that_are_cut_off_are_found(kitti, size):
    (kitti / "training/velodyne/000003.bin").write_bytes(bytes(size))
    with pytest.raises(CorruptFile, match=rf"000003.bin: has {size} bytes"):
        prepare_kitti()


@pytest.mark.parametrize(
    ("name", "folder", "parts"),
    [
        ("kitti-frames", "kitti_frames", ["training/velodyne_reduced", "ImageSets/train.txt"]),
        ("av2-sweeps", "lidar_av2", ["frames.json"]),
    ],
)
def test_small_copies_are_looked_for(data, name, folder, parts):
    with pytest.raises(DataMissing, match=rf"LIMBECK_DATA/{folder}; it cannot be downloaded: "):
        data_sources.get(name)
    for part in parts:
        (data / folder / part).mkdir(parents=True)
    assert data_sources.get(name) == data / folder


def test_simulated_scenes_need_nothing():
    assert data_sources.get("lidar-scenes") is None
