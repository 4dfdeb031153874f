"""KITTI's folder: what is read, on files made here and on real frames; every bad file is one clear error."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from limbeck.errors import CorruptFile, DataMissing, UnknownName
from limbeck.pointcloud.data.frames import default_calibration, points_in_boxes, wrapped
from limbeck.pointcloud.data.kitti import KittiFolder

DATA = os.environ.get("LIMBECK_DATA")
real_data = pytest.mark.skipif(DATA is None, reason="LIMBECK_DATA does not name the shared data")
CAR = "Car 0.10 1 -1.57 500.00 170.00 560.00 200.00 1.50 1.60 4.00 -2.00 1.70 20.00 -1.57"
REGION = "DontCare -1 -1 -10 10.00 20.00 30.00 40.00 -1 -1 -1 -1000 -1000 -1000 -10"


def calib_text() -> str:
    plain = default_calibration()
    rows = {"P2": plain.P2, "R0_rect": plain.R0, "Tr_velo_to_cam": plain.velo_to_cam}
    return "".join(f"{key}: {' '.join(map(str, value.ravel()))}\n" for key, value in rows.items())


@pytest.fixture
def root(tmp_path) -> Path:
    """One frame of train, one of test; points before and behind the camera."""
    points = np.array([[10, 0, -1, 0.5], [20, 3, -1, 0.0], [-10, 0, -1, 1.0]], "<f4")
    for folder in ("training", "testing"):
        for part in ("velodyne", "calib", "label_2", "image_2"):
            (tmp_path / folder / part).mkdir(parents=True)
        (tmp_path / folder / "velodyne/000007.bin").write_bytes(points.tobytes())
        (tmp_path / folder / "calib/000007.txt").write_text(calib_text())
    (tmp_path / "training/label_2/000007.txt").write_text(f"{CAR}\n{REGION}\n\n")
    (tmp_path / "ImageSets").mkdir()
    for split in ("train", "test"):
        (tmp_path / f"ImageSets/{split}.txt").write_text("000007\n")
    return tmp_path


def test_a_frame_has_points_of_the_image_and_boxes_in_the_lidars_frame(root):
    folder = KittiFolder(root)
    assert folder.ids("train") == ["000007"]
    frame = folder.frame("000007")
    assert frame.points.dtype == np.float32
    assert frame.points.tolist() == [[10, 0, -1, 0.5], [20, 3, -1, 0]]
    assert frame.names == ("Car",)
    np.testing.assert_allclose(frame.boxes, [[20.27, 2.0, -1.78, 4.0, 1.6, 1.5, 1.57 - np.pi / 2]], atol=1e-5)
    assert (frame.truncated.tolist(), frame.occluded.tolist()) == ([pytest.approx(0.1)], [1])
    assert frame.bboxes.tolist() == [[500, 170, 560, 200]]
    assert frame.dont_care.tolist() == [[10, 20, 30, 40]]
    assert frame.difficulties().tolist() == [1]


def test_reduced_points_are_taken_whole_and_first(root):
    (root / "training/velodyne_reduced").mkdir()
    points = np.array([[-3, 0, -1, 0.25]], "<f4")
    (root / "training/velodyne_reduced/000007.bin").write_bytes(points.tobytes())
    assert KittiFolder(root).frame("000007").points.tolist() == [[-3, 0, -1, 0.25]]


def test_image_size_is_the_images_else_the_listed_else_the_nominal(root):
    def size() -> tuple[int, int]:
        calibration = KittiFolder(root).frame("000007").calibration
        assert calibration is not None
        return calibration.image_size

    assert size() == (1242, 375)
    (root / "frames.json").write_text(
        json.dumps([dict(id="000007", image_wh=[1224, 370]), dict(id="8", image_wh=None)])
    )
    assert size() == (1224, 370)
    Image.new("L", (1238, 374)).save(root / "training/image_2/000007.png")
    assert size() == (1238, 374)


def test_frames_of_test_have_no_labels_and_need_none(root):
    frame = KittiFolder(root).frame("000007", "test")
    assert (frame.names, frame.boxes.shape, frame.bboxes.shape, len(frame.points)) == ((), (0, 7), (0, 4), 2)


def test_a_frame_without_objects_is_fine(root):
    (root / "training/label_2/000007.txt").write_text(f"{REGION}\n")
    assert KittiFolder(root).frame("000007").boxes.shape == (0, 7)
    (root / "training/label_2/000007.txt").write_text("")
    assert KittiFolder(root).frame("000007").names == ()


BAD_POINTS = {
    "cut off": (b"1234567", "has 7 bytes, not a multiple of 16"),
    "three columns": (np.ones((3, 3), "<f4").tobytes(), "36 bytes, not a multiple of 16"),
    "empty": (b"", "the cloud has no points"),
    "NaN": (np.array([[5, 0, 0, 0.1], [np.nan, 0, 0, 0.1]], "<f4").tobytes(), "point 1 .* not finite"),
    "five columns": (np.full((4, 5), 7, "<f4").tobytes(), "reflectance 7 of point 0 .* 4 columns"),
    "behind": (np.array([[-5, 0, 0, 0.1]], "<f4").tobytes(), "none of its points is in the image"),
}


@pytest.mark.parametrize("case", BAD_POINTS)
def test_bad_points_are_refused(root, case):
    data, says = BAD_POINTS[case]
    (root / "training/velodyne/000007.bin").write_bytes(data)
    with pytest.raises(CorruptFile, match=f"velodyne/000007.bin: .*{says}"):
        KittiFolder(root).frame("000007")


BAD_LABELS = {
    "columns": (CAR.rsplit(" ", 1)[0], "line 2 has 14 columns, not 15"),
    "words": (CAR.replace("1.60", "wide"), "line 2: could not convert"),
    "size": (CAR.replace("4.00", "0.00"), r"line 2: .*\[1.5, 1.6, 0.0\] are not all above 0"),
    "negative": (CAR.replace("1.50", "-1.50"), "not all above 0"),
    "type": (CAR.replace("Car", "Horse"), "line 2 is of type 'Horse'"),
    "infinite": (CAR.replace("20.00", "inf"), "not finite"),
    "not text": (b"\xff\xfe\x00", "cannot be read as text"),
}


@pytest.mark.parametrize("case", BAD_LABELS)
def test_malformed_labels_are_refused(root, case):
    line, says = BAD_LABELS[case]
    content = line if isinstance(line, bytes) else f"{CAR}\n{line}\n".encode()
    (root / "training/label_2/000007.txt").write_bytes(content)
    with pytest.raises(CorruptFile, match=f"label_2/000007.txt: .*{says}"):
        KittiFolder(root).frame("000007")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("P2: ", "P9: "), "no line P2 with 12 numbers"),
        (("R0_rect: 1.0 ", "R0_rect: "), "no line R0_rect with 9 numbers"),
        (("Tr_velo_to_cam: 0.0 ", "Tr_velo_to_cam: nan "), "Tr_velo_to_cam is not finite"),
        (("R0_rect: 1.0 ", "R0_rect: 0.0 "), "no rotations"),
    ],
)
def test_bad_calibration_is_refused(root, change, says):
    text = calib_text()
    assert change[0] in text
    (root / "training/calib/000007.txt").write_text(text.replace(*change))
    with pytest.raises(CorruptFile, match=f"calib/000007.txt: .*{says}"):
        KittiFolder(root).frame("000007")


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("training/calib/000007.txt", "frame 000007 has no calibration"),
        ("training/label_2/000007.txt", "label_2/000007.txt is missing"),
        ("training/velodyne/000007.bin", "neither .*velodyne_reduced/000007.bin nor .*velodyne/000007.bin"),
    ],
)
def test_absent_files_are_named(root, path, says):
    (root / path).unlink()
    with pytest.raises(DataMissing, match=says):
        KittiFolder(root).frame("000007")


@pytest.mark.parametrize(
    ("text", "says"), [("", "lists no frames"), ("7\nseven\n", "'seven' is no frame"), ("7\n8\n7\n", "7 comes twice")]
)
def test_bad_lists_are_refused(root, text, says):
    (root / "ImageSets/train.txt").write_text(text)
    with pytest.raises(CorruptFile, match=says):
        KittiFolder(root).ids("train")


def test_unknown_split_and_folder(root, tmp_path):
    with pytest.raises(UnknownName, match=r"unknown split 'trian'.*did you mean 'train'"):
        KittiFolder(root).ids("trian")
    with pytest.raises(DataMissing, match="no folder ImageSets"):
        KittiFolder(tmp_path / "elsewhere")


@pytest.mark.parametrize("text", ["{", "[1]", '[{"id": "1", "image_wh": [3]}]'])
def test_a_bad_list_of_sizes_is_refused(root, text):
    (root / "frames.json").write_text(text)
    with pytest.raises(CorruptFile, match="does not list frames"):
        KittiFolder(root).frame("000007")


def test_a_bad_image_is_refused(root):
    (root / "training/image_2/000007.png").write_bytes(b"no image")
    with pytest.raises(CorruptFile, match="is no image"):
        KittiFolder(root).frame("000007")


@real_data
@pytest.mark.parametrize("name", ["kitti_frames", "lidar_kitti"])
def test_real_frames_are_as_their_list_says(name):
    root = Path(str(DATA)) / name
    folder = KittiFolder(root)
    listed = {(one.get("folder", "training"), one["id"]): one for one in json.loads((root / "frames.json").read_text())}
    cars = [0, 0]
    for split in ("train", "val"):
        for key in folder.ids(split):
            frame, one = folder.frame(key, split), listed["training", key]
            objects = [o for o in one["objects"] if o["type"] != "DontCare"]
            assert len(frame.points) == one["points"]
            assert frame.names == tuple(o["type"] for o in objects)
            boxes = np.array([o["box_lidar"] for o in objects])
            np.testing.assert_allclose(frame.boxes[:, :6], boxes[:, :6], atol=1e-3)
            assert np.abs(wrapped(frame.boxes[:, 6] - boxes[:, 6])).max() < 1e-3
            assert frame.difficulties().tolist() == [o["difficulty"] for o in objects]
            counts = points_in_boxes(frame.points, frame.boxes).sum(1)
            assert np.abs(counts - [o["num_points"] for o in objects]).max() <= 3  # on the faces
            near = [n > 0 for n, t, b in zip(counts, frame.names, frame.boxes) if t == "Car" and b[0] < 60]
            cars = [cars[0] + sum(near), cars[1] + len(near)]
            assert len(frame.dont_care) == len(one["objects"]) - len(objects)
    assert cars[0] / cars[1] > 0.94


@real_data
def test_projected_boxes_are_near_the_labelled_ones():
    folder = KittiFolder(Path(str(DATA)) / "kitti_frames")
    errors = []
    for key in folder.ids("train"):
        frame = folder.frame(key)
        assert frame.calibration is not None
        found = frame.calibration.clipped(frame.calibration.project(frame.boxes))
        errors.append(np.abs(found - frame.bboxes)[frame.occluded == 0])
    assert np.median(np.concatenate(errors)) < 3  # pixels; people drew the labelled ones


@real_data
def test_real_unlabelled_frames_have_points_and_the_images_size():
    frame = KittiFolder(Path(str(DATA)) / "lidar_kitti").frame("000003", "unlabelled")
    assert frame.names == ()
    assert len(frame.points) > 15_000
    assert frame.calibration is not None
    assert frame.calibration.image_size != (0, 0)
