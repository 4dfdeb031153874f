"""A detector from its run to its pictures: trained, published, loaded, predicted, drawn and exported."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.ops import box_convert, box_iou
from typer.testing import CliRunner

from limbeck.cli.zoo import app
from limbeck.detection.adapter import DetectionAdapter
from limbeck.engine.config import RunConfig, parse
from limbeck.engine.evaluate import evaluate_weights
from limbeck.engine.record import read_record, record_path
from limbeck.engine.registry import DATASETS, MODELS
from limbeck.engine.run import STUDENT_FILE, RunOptions, execute
from limbeck.errors import ConfigError, CorruptFile, OutputError, ShapeMismatch, UserError
from limbeck.leaderboard.verify import verify_record
from limbeck.zoo import Predictor, add_student, export_student, find, list_students, load_student, weight_files
from limbeck.zoo.boxes import draw_boxes
from limbeck.zoo.card import Card, read_card
from limbeck.zoo.names import architecture_name
from limbeck.zoo.publish import DATA_TERMS

pytest.importorskip("mmdet", reason="detectors are mmdetection's networks")

NAME = "gfl_resnet18w8.digit-boxes_plain"
SIZE = (64, 64)
SCENES = dict(type="DigitScenesBoxes", split="test", count=8, size=list(SIZE))
STUDENT = dict(
    type="ResNetDetector",
    base_channels=8,
    channels=8,
    stacked_convs=1,
    score_thr=0.0,  # a detector of one epoch is sure of nothing
    max_per_img=12,
    num_classes=10,
    input_size=[3, *SIZE],
    mean=0.5,
    std=0.5,
)


def run_config() -> RunConfig:
    return parse(
        RunConfig,
        dict(
            task="object-detection",
            benchmark="digit-boxes",
            pair="big-small",
            method="plain",
            model=dict(
                type="Distiller",
                members=dict(student=dict(type="trained", model=STUDENT)),
                deploy="student",
                adapter=dict(type="DetectionAdapter"),
                links=[],
                task_weight=1.0,
            ),
            data=dict(
                {split: dict(SCENES, split=split) for split in ("train", "val", "test")},
                batch_size=4,
                eval_batch_size=8,
            ),
            metric=dict(type="DetectionMetric", primary="mAP"),
            recipe=dict(epochs=1, optimizer=dict(type="AdamW", lr=1e-3)),
        ),
        "test run",
    )


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A run of one epoch, its record and its student in a zoo of its own."""
    folder = tmp_path_factory.mktemp("detection")
    config = run_config()
    execute(config, RunOptions(out=folder / "runs", records=folder / "records", threads=1, latency_ms=1.0))
    record = record_path(folder / "records", config.id)
    weights = folder / "runs" / config.id / STUDENT_FILE
    card = add_student(record, weights, zoo_dir=folder / "zoo")
    return SimpleNamespace(zoo=folder / "zoo", record=read_record(record), weights=weights, card=card)


@pytest.fixture(scope="module")
def predictor(published):
    return Predictor(NAME, batch_size=2, score=0.0, zoo_dir=published.zoo)


@pytest.fixture(scope="module")
def scenes():
    """Test images, uint8 (8, 3, 64, 64)."""
    return DATASETS.make(SCENES).__getitems__(range(8))["inputs"]


@pytest.fixture
def own_zoo(published, monkeypatch):
    monkeypatch.setenv("LIMBECK_ZOO", str(published.zoo))
    monkeypatch.setenv("COLUMNS", "200")


def saved(image: torch.Tensor, path, mode: str = "RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.permute(1, 2, 0).numpy()).convert(mode).save(path)
    return path


def assert_same(found, expected):
    assert found.labels == expected.labels
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-3)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4)  # a batch of another size rounds otherwise


def predicted(model: Any, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the task's own evaluation gets of a batch."""
    adapter = DetectionAdapter()
    with torch.inference_mode():
        return adapter.predict(model, inputs, adapter.batch(inputs, None))[0]


# --- the card ---


def test_card_has_classes_palette_and_the_size_that_was_evaluated(published):
    card, dataset = published.card, DATASETS.make(SCENES)
    assert (card.name, card.task) == (NAME, "object-detection")
    assert (card.detects, card.segments) == (True, False)
    assert (card.primary_metric, card.metrics) == ("mAP", published.record.metrics)
    assert card.classes == tuple("0123456789")
    assert card.palette == tuple(dataset.palette)
    assert (card.preprocessing.input_size, card.preprocessing.crop_pct) == ((3, 64, 64), None)
    assert "boxes are brought back" in card.preprocessing.note
    assert card.dataset.licence == "CC-BY-4.0"
    assert read_card(published.zoo / "cards" / f"{NAME}.json") == card


def test_terms_of_blood_cells():
    terms = DATA_TERMS["bccd"]
    assert terms.licence == "MIT"
    assert "No medical device" in terms.limits


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (dict(type="ResNetDetector", depth=18, base_channels=10, head="gfl"), "gfl_resnet18w10"),
        (dict(type="ResNetDetector", depth=50, head="retinanet"), "retinanet_resnet50"),
        (dict(type="ResNetDetector"), "gfl_resnet18"),
        (dict(type="TimmDetector", model="tf_efficientnet_lite0"), "gfl_lite0"),
        (dict(type="TimmDetector", model="tf_efficientnet_lite0", head="faster_rcnn"), "faster_rcnn_lite0"),
        (dict(type="TimmDetector", model="resnet18.a1_in1k"), "gfl_resnet18"),
        (dict(type="MobileNetV2Detector", width=0.35), "gfl_mobilenetv2_035"),
        (dict(type="mmdet", config=dict(type="FCOS", backbone=dict(type="ResNet", depth=50))), "fcos_resnet50"),
    ],
)
def test_architecture_names(config, name):
    assert architecture_name(config) == name


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (dict(palette=None), "a detector needs a palette"),
        (dict(classes=["a"] * 10), "a detector needs a name of its own"),
        (
            dict(preprocessing=dict(input_size=[1, 8, 8], mean=[0.5], std=[0.5], crop_pct=0.9)),
            "a detector takes the whole image",
        ),
    ],
)
def test_card_that_cannot_be_drawn_is_refused(published, tmp_path, values, said):
    path = tmp_path / f"{NAME}.json"
    path.write_text(json.dumps(published.card.model_dump(mode="json") | values))
    with pytest.raises(CorruptFile, match=said):
        read_card(path)


def test_classes_that_do_not_fit_the_detector_are_refused(published, tmp_path):
    data = published.record.data.model_copy(update=dict(classes=["a", "b"]))
    with pytest.raises(ConfigError, match="2 classes, but its student has 10"):
        add_student(published.record.model_copy(update=dict(data=data)), published.weights, zoo_dir=tmp_path)


def test_data_of_several_sizes_is_refused(published, tmp_path, monkeypatch):
    monkeypatch.setattr(DATASETS, "make", lambda *args, **kwargs: SimpleNamespace(classes=[], palette=[]))
    with pytest.raises(ConfigError, match="images of several sizes"):
        add_student(published.record, published.weights, zoo_dir=tmp_path)


def test_published_weights_verify(published):
    found = verify_record(published.record, evaluate_weights, weight_files(zoo_dir=published.zoo))
    assert (found.verdict, set(found.found)) == ("holds", set(published.record.metrics))
    assert found.differences == {"mAP": pytest.approx(0, abs=1e-4)}


# --- predictions ---


def test_boxes_are_those_that_the_model_predicts(predictor, published, scenes):
    model: Any = load_student(NAME, zoo_dir=published.zoo)
    found = predictor(scenes)
    assert [p.source for p in found] == list(range(8))
    for place, one in enumerate(found):
        # in batches of two as well: near-equal scores change places where another size rounds otherwise
        expected = predicted(model, model.preprocess(scenes[place // 2 * 2 :][:2]))
        real = expected["pred"][place % 2] >= 0
        assert len(one.boxes) == len(one.labels) == len(one.scores) == int(real.sum()) > 0
        np.testing.assert_allclose(one.boxes, expected["boxes"][place % 2][real], atol=1e-3)
        np.testing.assert_allclose(one.scores, expected["scores"][place % 2][real], atol=1e-6)
        assert one.labels == tuple(str(label) for label in expected["pred"][place % 2][real].tolist())


@pytest.mark.parametrize("size", [(64, 64), (128, 64), (64, 192), (90, 130), (33, 17)])
def test_boxes_come_back_to_the_image_s_own_size(predictor, scenes, size):
    image = F.interpolate(scenes[:1].float(), size=size).to(torch.uint8)[0]
    (found,) = predictor(image)
    small = predicted(predictor.model, predictor.preprocess(image))
    height, width = size
    assert found.size == size
    for box, (x1, y1, x2, y2) in zip(found.boxes, small["boxes"][0].tolist()):
        expected = [x1 / 64 * width, y1 / 64 * height, x2 / 64 * width, y2 / 64 * height]
        np.testing.assert_allclose(box, expected, atol=1e-3)
    assert found.boxes.min() >= 0
    assert (found.boxes <= [width, height] * 2).all()


def test_known_box_is_scaled_by_width_and_height(predictor, scenes, monkeypatch):
    made = dict(
        boxes=torch.tensor([[[8.0, 16, 32, 64], [0, 0, 1, 1]]]),
        scores=torch.tensor([[0.9, 0.0]]),
        pred=torch.tensor([[3, -1]]),
    )
    monkeypatch.setattr("limbeck.detection.adapter.DetectionAdapter.predict", lambda *args: [made])
    (found,) = predictor(torch.zeros(3, 128, 640, dtype=torch.uint8))
    assert found.boxes.tolist() == [[80.0, 32.0, 320.0, 128.0]]
    assert (found.labels, found.counts) == (("3",), {"3": 1})


def test_what_scores_less_is_left_out(published, predictor, scenes):
    (every,) = predictor(scenes[0])
    middle = float(np.sort(every.scores)[len(every.scores) // 2])
    (some,) = Predictor(NAME, score=middle, zoo_dir=published.zoo)(scenes[0])
    assert 0 < len(some.scores) < len(every.scores)
    assert (some.scores == every.scores[every.scores >= middle]).all()


def test_nothing_found_is_an_empty_prediction(published, scenes):
    (found,) = Predictor(NAME, score=1.0, zoo_dir=published.zoo)(scenes[0])
    assert (found.boxes.shape, found.boxes.dtype, found.labels, found.counts) == ((0, 4), np.float32, (), {})
    assert found.to_dict() == dict(source=0, size=[64, 64], detections=[])
    plain = scenes[0].permute(1, 2, 0).numpy().repeat(4, 0).repeat(4, 1)
    assert np.array_equal(np.asarray(found.overlay()), plain)


def test_json_has_box_label_and_score(predictor, scenes):
    (found,) = predictor(scenes[0])
    value = json.loads(json.dumps(found.to_dict()))
    assert (value["source"], value["size"]) == (0, [64, 64])
    assert [d["label"] for d in value["detections"]] == list(found.labels)
    np.testing.assert_array_equal([d["box"] for d in value["detections"]], found.boxes)
    scores = [d["score"] for d in value["detections"]]
    assert scores == sorted(scores, reverse=True)
    assert sum(found.counts.values()) == len(scores)


def test_files_of_every_mode_are_taken(predictor, scenes, tmp_path):
    expected = predictor([scenes[0], scenes[0]])[0]
    paths = [saved(scenes[0], tmp_path / f"{mode}.png", mode) for mode in ("RGB", "RGBA", "L")]
    rgb, rgba, grey = predictor(paths)
    for found in (rgb, rgba):
        assert_same(found, expected)
    assert [p.source for p in (rgb, rgba, grey)] == [str(path) for path in paths]
    assert rgb.overlay().tobytes() == expected.overlay().tobytes()
    assert grey.overlay().mode == "RGB"
    with Image.open(paths[2]) as opened:
        assert_same(predictor(opened)[0], grey)


def test_bad_images_are_named(predictor, scenes, tmp_path):
    path = saved(scenes[0], tmp_path / "half.png")
    path.write_bytes(path.read_bytes()[:300])
    (tmp_path / "text.png").write_text("no image")
    for wrong, said in (
        (path, r"half\.png: "),
        (tmp_path / "text.png", r"text\.png: not an image"),
        (tmp_path / "gone.png", r"gone\.png: no such image"),
        ([scenes[:2]], "image 0: one image was expected, got a batch of 2"),
    ):
        with pytest.raises(UserError, match=said):
            predictor(wrong)


def test_picture_of_an_image_that_changed_is_refused(predictor, scenes, tmp_path):
    (found,) = predictor(saved(scenes[0], tmp_path / "a.png"))
    saved(scenes[0][:, :32], tmp_path / "a.png")
    with pytest.raises(ShapeMismatch, match="changed"):
        found.overlay()


@pytest.mark.parametrize("score", [-0.1, 1.1, float("nan")])
def test_score_that_is_no_score_is_refused(published, score):
    with pytest.raises(ConfigError, match="score is from 0 to 1"):
        Predictor(NAME, score=score, zoo_dir=published.zoo)


# --- pictures ---


def test_box_is_drawn_in_its_colour_along_its_border():
    pixels = np.full((300, 400, 3), 90, np.uint8)
    drawn = np.asarray(draw_boxes(pixels, np.array([[100.0, 50, 200, 150]]), ["cell 0.87"], [(200, 0, 0)]))
    assert drawn.shape == pixels.shape
    coloured = (drawn == (200, 0, 0)).all(2)
    inside = coloured[50:150, 100:200]
    assert inside[0].all()
    assert inside[-1].all()
    assert inside[:, 0].all()
    assert inside[:, -1].all()
    assert not coloured[150:].any()
    assert not coloured[50:, 200:].any()
    assert not inside[2:-2, 2:-2].any()
    assert coloured[:50].any()  # the label stands above
    assert (drawn[:50] > 180).all(2).any()  # in white, softened at the edges of letters


def test_small_image_is_drawn_larger_and_labels_stay_inside():
    boxes = np.array([[0.0, 0, 8, 8], [7, 7, 8, 8], [3, 3, 3, 3]])
    drawn = draw_boxes(np.zeros((8, 8, 3), np.uint8), boxes, ["first 0.99", "b 0.50", "c 0.10"], [(255, 255, 0)] * 3)
    assert drawn.size == (256, 256)


# --- the command ---


def call(*args) -> str:
    result = CliRunner().invoke(app, [str(a) for a in args], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_predict_writes_a_picture_and_a_json_file_an_image(own_zoo, predictor, scenes, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    paths = [saved(scenes[0], folder / "a.png"), saved(scenes[1][:, :40], folder / "deep" / "b.png")]
    lines = [line.split("\t") for line in call("predict", NAME, folder, "--out", out, "--score", 0).splitlines()]
    assert [line[0] for line in lines] == [str(path) for path in paths]
    for line, expected, stem in zip(lines, predictor(paths), ("a", "deep/b")):
        assert line[1:] == [f"{label} {count}" for label, count in expected.counts.items()]
        written = json.loads((out / f"{stem}_boxes.json").read_text())
        assert [d["label"] for d in written["detections"]] == list(expected.labels)
        np.testing.assert_allclose([d["box"] for d in written["detections"]], expected.boxes, atol=1e-3)
        with Image.open(out / f"{stem}_overlay.png") as overlay:
            assert overlay.size == expected.overlay().size
    assert len(list(out.rglob("*"))) == 5  # two pictures, two JSON files and a folder


def test_predict_json_has_paths_and_the_default_threshold_holds(own_zoo, scenes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = saved(scenes[0], tmp_path / "a.png")
    for _ in range(2):
        (row,) = json.loads(call("predict", NAME, path, "--json"))
    assert (row["overlay"], row["boxes"]) == ("out/predict/a_overlay.png", "out/predict/a_boxes.json")
    assert json.loads((tmp_path / row["boxes"]).read_text()) == {k: row[k] for k in ("source", "size", "detections")}
    assert row["detections"] == []  # a detector of one epoch reaches no 0.3
    assert call("predict", NAME, path) == f"{path}\tnothing found\n"


def test_predict_mistakes_are_user_errors(own_zoo, scenes, tmp_path):
    path = saved(scenes[0], tmp_path / "a.png")
    for args, error, said in (
        ([NAME, path, "--out", path], OutputError, "cannot write"),
        ([NAME, path, "--out", tmp_path / "out", "--top-k", 2], ConfigError, "--score instead"),
        (["resnet8w4.digits_kd", path, "--score", 0.5], ConfigError, "of image-classification; leave it out"),
    ):
        with pytest.raises(error, match=said):
            CliRunner().invoke(app, ["predict", *map(str, args)], catch_exceptions=False)


def test_list_and_info_show_task_and_map(own_zoo, published):
    text = call("list", "--task", "object-detection")
    assert NAME in text
    assert f"mAP {published.card.value:.2f}" in text
    assert [c.name for c in list_students("object-detection", zoo_dir=published.zoo)] == [NAME]
    text = call("info", NAME)
    for part in ("object-detection", "mAP", "AP50", "#1f77b4", "boxes are brought back"):
        assert part in text
    assert Card.model_validate(json.loads(call("info", NAME, "--json"))) == find(NAME)


# --- export ---


@pytest.mark.parametrize("format", ["onnx", "torchscript", "torch-export"])
def test_export_gives_every_map_of_the_head_by_name(published, predictor, scenes, tmp_path, format):
    if format == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    path = tmp_path / "student"
    report = export_student(NAME, path, format, zoo_dir=published.zoo)
    names = [f"{kind}_{level}" for kind in ("cls_logits", "box_outputs") for level in range(4)]
    assert (report.inputs, report.samples, list(report.outputs)) == ("real", 8, names)
    assert report.max_difference is not None
    assert report.max_difference <= 1e-4
    inputs = predictor.preprocess(scenes[:3])
    extra = {"limbeck.json": ""}
    if format == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        assert [o.name for o in session.get_outputs()] == names
        found = [torch.from_numpy(o) for o in session.run(names, {"images": inputs.numpy()})]
        props = session.get_modelmeta().custom_metadata_map
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch deprecates TorchScript
            loaded = (
                torch.jit.load(path, _extra_files=extra)
                if format == "torchscript"
                else torch.export.load(path, extra_files=extra).module()
            )
        found, props = loaded(inputs), json.loads(extra["limbeck.json"])
    with torch.inference_mode():
        expected = predictor.model(inputs)
    assert [tuple(o.shape[:2]) for o in found] == [(3, 10)] * 4 + [(3, 4 * 17)] * 4
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)
    assert json.loads(props["limbeck.outputs"]) == names
    assert json.loads(props["limbeck.strides"]) == [8, 16, 32, 64]
    assert props["limbeck.head"] == "GFLHead"
    assert json.loads(props["limbeck.test_cfg"])["max_per_img"] == 12


@pytest.mark.parametrize("wrong", [lambda out: out[:-1], lambda out: [*out[:-1], out[-1] + 1e-3]])
def test_file_with_one_wrong_output_is_not_kept(published, predictor, tmp_path, monkeypatch, wrong):
    import limbeck.zoo.export as export_module

    monkeypatch.setitem(export_module.RUNNERS, "torchscript", lambda content: lambda x: wrong(predictor.model(x)))
    with pytest.raises(UserError, match=r"off from torch by .*nothing was written"):
        export_student(NAME, tmp_path / "a.pt", "torchscript", zoo_dir=published.zoo)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", ["onnx", "torchscript", "torch-export"])
def test_two_stage_detector_cannot_be_exported(published, tmp_path, monkeypatch, format):
    model = MODELS.make(dict(STUDENT, head="faster_rcnn", fc_channels=16, proposals=16)).eval()
    model.card = published.card
    monkeypatch.setattr("limbeck.zoo.export.load_student", lambda *args, **kwargs: model)
    with pytest.raises(ConfigError, match="only one-stage detectors can be exported"):
        export_student(NAME, tmp_path / "a", format, zoo_dir=published.zoo)


DATA = os.environ.get("LIMBECK_DATA")


@pytest.mark.skipif(DATA is None, reason="LIMBECK_DATA is not set")
def test_shipped_student_finds_the_red_cells_of_real_photographs():
    bccd = Path(str(DATA)) / "bccd"
    truth = json.loads((bccd / "annotations" / "test.json").read_text(encoding="utf-8"))
    red = next(c["id"] for c in truth["categories"] if c["name"] == "RBC")
    predictor = Predictor("gfl_resnet18w10.bccd_crosskd")
    hits = cells = 0
    for image in truth["images"][:8]:
        (path,) = (bccd / "images").rglob(image["file_name"])
        (found,) = predictor(path)
        assert found.size == (image["height"], image["width"])
        ours = torch.from_numpy(found.boxes[[n == "RBC" for n in found.labels]])
        boxes = [a["bbox"] for a in truth["annotations"] if (a["image_id"], a["category_id"]) == (image["id"], red)]
        theirs = box_convert(torch.tensor(boxes), "xywh", "xyxy")
        hits += int((box_iou(theirs, ours).amax(1) > 0.5).sum())
        cells += len(boxes)
    assert cells > 50
    assert hits > 0.8 * cells
