"""A LiDAR detector from its run to its pictures: trained, published, loaded, predicted, drawn and exported."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from limbeck.cli.zoo import app
from limbeck.engine.config import expand
from limbeck.engine.evaluate import evaluate_weights
from limbeck.engine.record import read_record, record_path
from limbeck.engine.registry import ADAPTERS, DATASETS
from limbeck.engine.run import STUDENT_FILE, RunOptions, execute
from limbeck.errors import ConfigError, CorruptFile, ShapeMismatch, UserError
from limbeck.leaderboard.verify import verify_record
from limbeck.zoo import Predictor, add_student, export_student, load_student, weight_files
from limbeck.zoo.card import CloudPreprocessing, read_card
from limbeck.zoo.images import read_image
from limbeck.zoo.names import architecture_name
from limbeck.zoo.terms import DATA_TERMS
from tests.pointcloud.small_runs import EXTENT, lidar_pair, scenes

pytest.importorskip("mmdet3d", reason="detectors are mmdetection3d's networks")

NAME = "pointpillars4.toy-lidar_plain"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A run of one epoch, its record and its student in a zoo of its own."""
    folder = tmp_path_factory.mktemp("lidar")
    config = expand(lidar_pair(), "plain", 0)
    execute(config, RunOptions(out=folder / "runs", records=folder / "records", threads=1, latency_ms=1.0))
    record = record_path(folder / "records", config.id)
    weights = folder / "runs" / config.id / STUDENT_FILE
    card = add_student(record, weights, zoo_dir=folder / "zoo")
    return SimpleNamespace(zoo=folder / "zoo", record=read_record(record), weights=weights, card=card)


@pytest.fixture(scope="module")
def student(published: SimpleNamespace) -> Any:
    return load_student(NAME, zoo_dir=published.zoo)


@pytest.fixture(scope="module")
def clouds() -> list[np.ndarray]:
    """Test clouds, float32 (P, 4)."""
    return [one.numpy() for one in DATASETS.make(scenes("test")).__getitems__(range(3))["inputs"]]


@pytest.fixture
def own_zoo(published: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_ZOO", str(published.zoo))
    monkeypatch.setenv("COLUMNS", "200")


def saved(cloud: np.ndarray, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cloud.astype("<f4").tofile(path)
    return path


def call(*args: Any) -> str:
    result = CliRunner().invoke(app, [str(a) for a in args], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


# --- the card ---


def test_card_has_the_voxels_the_classes_and_their_colours(published: SimpleNamespace, student: Any) -> None:
    card = published.card
    assert (card.name, card.task) == (NAME, "3d-object-detection")
    assert (card.detects_3d, card.detects, card.segments) == (True, False, False)
    assert card.classes == ("Pedestrian", "Cyclist", "Car")
    assert len(set(card.palette)) == 3
    assert card.preprocessing is None
    spec = card.voxels
    assert isinstance(spec, CloudPreprocessing)
    assert (spec.point_cloud_range, spec.voxel_size) == (EXTENT, (0.32, 0.32, 4.0))
    assert (spec.max_points, spec.max_voxels) == (16, (2000, 2000))
    assert "reflectance" in spec.note
    assert (card.primary_metric, card.metrics) == ("bev_ap40", published.record.metrics)
    assert card.dataset.licence == "Apache-2.0"
    assert read_card(published.zoo / "cards" / f"{NAME}.json") == card
    assert student.preprocess.grid == student.grid


def test_terms_of_kitti_say_what_may_be_done() -> None:
    for name in ("kitti", "kitti-frames"):
        assert "NC" in DATA_TERMS[name].licence
    for name in ("lidar-scenes", "kitti", "kitti-frames"):
        assert "not for driving" in DATA_TERMS[name].limits


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (dict(type="PointPillarsDetector", width=16), "pointpillars16"),
        (dict(type="PointPillarsDetector", width=22.63), "pointpillars23"),
        (dict(type="PointPillarsDetector"), "pointpillars64"),
        (dict(type="SECONDDetector", width=32), "second32"),
        (dict(type="SECONDDetector"), "second128"),
    ],
)
def test_architecture_names(config: dict[str, Any], name: str) -> None:
    assert architecture_name(config) == name


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (dict(palette=None), "a detector needs a palette"),
        (dict(task="object-detection"), "a card of object-detection has preprocessing and no voxels"),
        (
            dict(preprocessing=dict(input_size=[1, 8, 8], mean=[0.5], std=[0.5])),
            "a card of 3d-object-detection has voxels and no preprocessing",
        ),
    ],
)
def test_card_that_does_not_fit_is_refused(
    published: SimpleNamespace, tmp_path: Path, values: dict[str, Any], said: str
) -> None:
    path = tmp_path / f"{NAME}.json"
    path.write_text(json.dumps(published.card.model_dump(mode="json") | values))
    with pytest.raises(CorruptFile, match=said):
        read_card(path)


def test_card_with_other_voxels_than_its_model_is_refused(published: SimpleNamespace, tmp_path: Path) -> None:
    values = published.card.model_dump(mode="json")
    values["voxels"]["max_points"] = 17
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / f"{NAME}.json").write_text(json.dumps(values))
    (tmp_path / "weights").symlink_to(published.zoo / "weights")
    with pytest.raises(CorruptFile, match="other voxels"):
        load_student(NAME, zoo_dir=tmp_path)


def test_published_weights_verify(published: SimpleNamespace) -> None:
    found = verify_record(published.record, evaluate_weights, weight_files(zoo_dir=published.zoo))
    assert (found.verdict, set(found.found)) == ("holds", set(published.record.metrics))


# --- predictions ---


def test_boxes_are_those_that_the_evaluation_sees(student: Any, clouds: list[np.ndarray]) -> None:
    adapter = ADAPTERS.make(dict(type="PointCloudAdapter"))
    ready = adapter.preprocessor(student)(dict(inputs=[torch.from_numpy(one) for one in clouds]))
    with torch.inference_mode():
        (expected,) = adapter.predict(student, ready["inputs"], adapter.batch(ready["inputs"], None))
    for row, one in enumerate(student.detect.stream(clouds, score=0.0)):
        real = expected["pred"][row] >= 0
        assert len(one.boxes) == len(one.labels) == len(one.scores) == int(real.sum()) > 0
        np.testing.assert_allclose(one.boxes, expected["boxes"][row][real], atol=1e-5)
        np.testing.assert_allclose(one.scores, expected["scores"][row][real], atol=1e-6)
        assert one.labels == tuple(student.card.classes[k] for k in expected["pred"][row][real].tolist())
        assert (one.source, one.points) == (row, len(clouds[row]))
        assert (np.diff(one.scores) <= 0).all()


def test_files_arrays_and_tensors_of_a_cloud_agree(
    published: SimpleNamespace, student: Any, clouds: list[np.ndarray], tmp_path: Path
) -> None:
    cloud = clouds[0]
    first = student.detect(cloud, score=0.0)
    path = saved(cloud, tmp_path / "a.bin")
    for other in (path, str(path), torch.from_numpy(cloud), cloud.astype(np.float64)):
        found = student.detect(other, score=0.0)
        np.testing.assert_array_equal(found.boxes, first.boxes)
    batched, _ = Predictor(NAME, score=0.0, zoo_dir=published.zoo)([cloud, clouds[1]])
    np.testing.assert_allclose(batched.scores, first.scores, atol=1e-5)


def test_what_scores_less_is_left_out(student: Any, clouds: list[np.ndarray]) -> None:
    every = student.detect(clouds[0], score=0.0)
    middle = float(np.sort(every.scores)[len(every.scores) // 2])
    some = student.detect(clouds[0], score=middle)
    assert 0 < len(some.scores) < len(every.scores)
    assert (some.scores == every.scores[every.scores >= middle]).all()
    nothing = student.detect(clouds[0], score=1.0)
    assert (nothing.boxes.shape, nothing.labels, nothing.counts) == ((0, 7), (), {})
    assert nothing.overlay().width >= 400
    assert "0 objects" in nothing.page()
    with pytest.raises(ConfigError, match="score is from 0 to 1"):
        student.detect(clouds[0], score=1.5)


def test_json_says_frame_and_units(student: Any, clouds: list[np.ndarray]) -> None:
    found = student.detect(clouds[0], score=0.0)
    value = json.loads(json.dumps(found.to_dict()))
    assert set(value) == {"source", "points", "points_in_range", "frame", "detections"}
    inside = ((clouds[0][:, :3] >= EXTENT[:3]) & (clouds[0][:, :3] < EXTENT[3:])).all(1).sum()
    assert (value["points"], value["points_in_range"]) == (len(clouds[0]), inside)
    assert "LiDAR" in value["frame"]
    assert "metres" in value["frame"]
    first = value["detections"][0]
    assert list(first) == ["class", "score", "x", "y", "z", "l", "w", "h", "yaw"]
    np.testing.assert_allclose(list(first.values())[2:], found.boxes[0], rtol=1e-6)


GOOD = np.array([[5.0, 1.0, -1.0, 0.2], [9.0, 2.0, 0.0, 0.9]], np.float32)
FAR = np.add(GOOD, [500, 0, 0, 0])


@pytest.mark.parametrize(
    ("cloud", "said"),
    [
        (np.array([[np.nan, 0, 0, 0.5], *GOOD]), r"point 0 is .*1 of 3 are not finite"),
        (np.array([*GOOD, [np.inf, 0, 0, 0.5]]), r"point 2 .* not finite"),
        (np.zeros((0, 4)), "the cloud has no points"),
        (np.zeros((5, 3)), r"shape \(5, 3\), not \(P, 4\): x, y, z, reflectance"),
        (np.zeros((5, 5)), r"shape \(5, 5\)"),
        (np.zeros(8), r"shape \(8,\)"),
        (np.zeros((3, 4), int), "is of floats"),
        (GOOD * [1, 1, 1, 100], "reflectance 20 of point 0 is not in 0 to 1"),
        (FAR, "none of the 2 points lies in the range .*x 0 to 25.6"),
        ([[1.0, 2, 3, 0.5]], "got list"),
    ],
)
def test_bad_clouds_are_user_errors_that_name_their_place(student: Any, cloud: Any, said: str) -> None:
    with pytest.raises(UserError, match=f"cloud 1: .*{said}"):
        list(student.detect.stream([GOOD, cloud]))


def test_bad_files_are_user_errors_that_name_them(student: Any, tmp_path: Path) -> None:
    cut = saved(GOOD, tmp_path / "cut.bin")
    cut.write_bytes(cut.read_bytes()[:-3])
    holes = saved(np.array([[np.nan, 0, 0, 0.5]]), tmp_path / "holes.bin")
    far = saved(FAR, tmp_path / "far.bin")
    empty = saved(GOOD[:0], tmp_path / "empty.bin")
    Image.new("RGB", (8, 8)).save(tmp_path / "street.png")
    for path, said in (
        (cut, "has 29 bytes, not a multiple of 16: it is cut off"),
        (holes, "not a LiDAR cloud: point 0"),
        (far, "none of the 2 points lies in the range"),
        (empty, "the cloud has no points"),
        (tmp_path / "street.png", "is an image, and this student reads LiDAR clouds"),
        (tmp_path / "gone.bin", "no such file of a LiDAR cloud"),
        (tmp_path, "cannot be read"),
    ):
        with pytest.raises(UserError, match=f"{re.escape(path.name)}: .*{said}|{re.escape(path.name)}: {said}"):
            student.detect(path)


def test_image_student_refuses_a_cloud(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.bin: looks like a LiDAR cloud, and this student reads images"):
        read_image(saved(GOOD, tmp_path / "a.bin"))


def test_inversion_is_of_images(published: SimpleNamespace) -> None:
    with pytest.raises(ConfigError, match="reads LiDAR clouds; leave it out"):
        Predictor(NAME, invert=True, zoo_dir=published.zoo)


def test_picture_of_a_cloud_that_changed_is_refused(student: Any, clouds: list[np.ndarray], tmp_path: Path) -> None:
    path = saved(clouds[0], tmp_path / "a.bin")
    found = student.detect(path)
    saved(clouds[0][:-5], path)
    with pytest.raises(ShapeMismatch, match="changed"):
        found.overlay()


# --- the command ---


def test_predict_writes_picture_boxes_and_page_of_each_cloud(
    own_zoo: None, student: Any, clouds: list[np.ndarray], tmp_path: Path
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    paths = [saved(clouds[0], folder / "a.bin"), saved(clouds[1], folder / "deep" / "b.bin")]
    lines = [line.split("\t") for line in call("predict", NAME, folder, "--out", out, "--score", 0).splitlines()]
    assert [line[0] for line in lines] == [str(path) for path in paths]
    for path, stem in zip(paths, ("a", "deep/b")):
        expected = student.detect(path, score=0.0)
        written = json.loads((out / f"{stem}_boxes.json").read_text())
        assert [d["class"] for d in written["detections"]] == list(expected.labels)
        with Image.open(out / f"{stem}_bev.png") as picture:
            assert picture.size == expected.overlay().size
        assert f": {len(expected.boxes)} object" in (out / f"{stem}_3d.html").read_text()
    assert len(list(out.rglob("*"))) == 7  # three files each, and a folder
    (row,) = json.loads(call("predict", NAME, paths[0], "--out", out, "--json"))
    assert (row["bev"], row["page"]) == (str(out / "a_bev.png"), str(out / "a_3d.html"))
    for args, said in (
        ([NAME, paths[0], "--top-k", 2], "--score instead"),
        ([NAME, tmp_path / "out"], "no LiDAR cloud in it"),
    ):
        with pytest.raises(UserError, match=said):
            CliRunner().invoke(app, ["predict", *map(str, args)], catch_exceptions=False)


def test_info_says_range_and_voxels(own_zoo: None) -> None:
    text = call("info", NAME)
    for part in ("x 0 to 25.6", "y -12.8 to 12.8", "0.32 × 0.32 × 4 m", "Car #0072b2", "bev_ap40"):
        assert part in text


# --- export ---


@pytest.mark.parametrize("format", ["onnx", "torchscript", "torch-export"])
def test_export_takes_pillars_and_gives_the_head_s_maps(
    published: SimpleNamespace, student: Any, clouds: list[np.ndarray], tmp_path: Path, format: str
) -> None:
    if format == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    path = tmp_path / "student"
    report = export_student(NAME, path, format, zoo_dir=published.zoo)
    assert (report.inputs, report.samples, report.what) == ("real", 4, "clouds")
    assert report.outputs == ("cls_logits", "box_outputs", "dir_logits")
    assert report.max_difference is not None
    assert report.max_difference <= 1e-4
    voxels = student.preprocess(clouds[1])
    inputs = [voxels.voxels, voxels.num_points.long(), voxels.coors.long()]
    # pillars without points, wherever they claim to be, are padding
    padded = [torch.cat([one, torch.zeros(7, *one.shape[1:], dtype=one.dtype)]) for one in inputs]
    with torch.inference_mode():
        expected = student(voxels)
    for given in (inputs, padded):
        found, props = run_exported(path, format, given)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=0)
    assert json.loads(props["limbeck.voxel_size"]) == [0.32, 0.32, 4.0]
    assert len(json.loads(props["limbeck.anchor_sizes"])) == 3
    assert json.loads(props["limbeck.test_cfg"])["max_num"] == 12


def run_exported(path: Path, format: str, inputs: list[torch.Tensor]) -> tuple[list[torch.Tensor], dict[str, str]]:
    """Outputs and metadata of an exported file."""
    if format == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = ("voxels", "num_points", "coors")
        found = session.run(None, {name: one.numpy() for name, one in zip(names, inputs)})
        return [torch.from_numpy(one) for one in found], session.get_modelmeta().custom_metadata_map
    extra = {"limbeck.json": ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates TorchScript
        loaded: Any = (
            torch.jit.load(path, _extra_files=extra)
            if format == "torchscript"
            else torch.export.load(path, extra_files=extra).module()
        )
    return list(loaded(*inputs)), json.loads(extra["limbeck.json"])


def test_sparse_detector_is_not_exported(
    published: SimpleNamespace, student: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sparse = SimpleNamespace(card=student.card, middle_encoder=type("SparseEncoder", (), {})(), grid=student.grid)
    monkeypatch.setattr("limbeck.zoo.export.load_student", lambda *args, **kwargs: sparse)
    with pytest.raises(ConfigError, match=r"sparse convolutions \(SparseEncoder\).*run this one by limbeck\.Predictor"):
        export_student(NAME, tmp_path / "a", zoo_dir=published.zoo)
