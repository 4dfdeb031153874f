"""A segmentation student from its run to its pictures: trained, published, loaded, predicted, drawn and exported."""

from __future__ import annotations

import json
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from typer.testing import CliRunner

from limbeck.cli.zoo import app
from limbeck.engine.config import RunConfig, parse
from limbeck.engine.evaluate import evaluate_weights
from limbeck.engine.record import read_record, record_path
from limbeck.engine.registry import DATASETS, MODELS
from limbeck.engine.run import STUDENT_FILE, RunOptions, execute
from limbeck.errors import ConfigError, CorruptFile, OutputError, ShapeMismatch, UserError
from limbeck.leaderboard.verify import verify_record
from limbeck.zoo import Predictor, add_student, export_student, find, list_students, load_student, weight_files
from limbeck.zoo.card import Card, read_card
from limbeck.zoo.index import SHIPPED
from limbeck.zoo.overlay import draw_overlay, percent, plan_outputs
from limbeck.zoo.publish import DATA_TERMS
from tests.zoo.fabricate import make_zoo

pytest.importorskip("mmseg", reason="segmentation students are mmsegmentation's networks")

NAME = "segformer_w8.scenes_plain"
STUDENT = dict(
    type="SegFormer",
    width=8,
    num_layers=[1, 1, 1, 1],
    channels=16,
    drop_path_rate=0.0,
    num_classes=11,
    input_size=[3, 64, 64],
    mean=0.5,
    std=0.5,
)


def run_config() -> RunConfig:
    scenes = {split: dict(type="DigitScenes", split=split, count=8) for split in ("train", "val", "test")}
    return parse(
        RunConfig,
        dict(
            task="semantic-segmentation",
            benchmark="scenes",
            pair="mit16-mit8",
            method="plain",
            model=dict(
                type="Distiller",
                members=dict(student=dict(type="trained", model=STUDENT)),
                deploy="student",
                adapter=dict(type="SegmentationAdapter"),
                links=[],
                task_weight=1.0,
            ),
            data=dict(scenes, batch_size=4, eval_batch_size=8),
            metric=dict(type="SegmentationMetric", primary="mIoU"),
            recipe=dict(epochs=1, optimizer=dict(type="AdamW", lr=3e-3)),
        ),
        "test run",
    )


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A run of one epoch, its record and its student in a zoo of its own."""
    folder = tmp_path_factory.mktemp("segmentation")
    config = run_config()
    execute(config, RunOptions(out=folder / "runs", records=folder / "records", threads=1, latency_ms=1.0))
    record = record_path(folder / "records", config.id)
    weights = folder / "runs" / config.id / STUDENT_FILE
    card = add_student(record, weights, zoo_dir=folder / "zoo")
    return SimpleNamespace(zoo=folder / "zoo", record=read_record(record), weights=weights, card=card)


@pytest.fixture(scope="module")
def predictor(published):
    return Predictor(NAME, batch_size=2, zoo_dir=published.zoo)


@pytest.fixture(scope="module")
def scenes():
    """Test images, uint8 (8, 3, 64, 64)."""
    return DATASETS.make(dict(type="DigitScenes", split="test", count=8)).__getitems__(range(8))["inputs"]


@pytest.fixture
def own_zoo(published, monkeypatch):
    monkeypatch.setenv("LIMBECK_ZOO", str(published.zoo))
    monkeypatch.setenv("COLUMNS", "200")


def saved(image: torch.Tensor, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return path


# --- the card ---


def test_card_has_classes_palette_and_the_size_that_was_evaluated(published):
    card, dataset = published.card, DATASETS.make(dict(type="DigitScenes", split="test", count=8))
    assert card.name == NAME
    assert (card.task, card.primary_metric, card.value) == (
        "semantic-segmentation",
        "mIoU",
        published.record.metrics["mIoU"],
    )
    assert card.classes == tuple(dataset.classes)
    assert card.palette == tuple(dataset.palette)
    assert card.preprocessing.input_size == (3, 64, 64)
    assert card.preprocessing.crop_pct is None
    assert "nearest" in card.preprocessing.note
    assert card.dataset.licence == "CC-BY-4.0"
    assert read_card(published.zoo / "cards" / f"{NAME}.json") == card


def test_size_of_the_card_is_the_data_s_where_the_student_was_trained_on_crops(published, tmp_path):
    config = json.loads(json.dumps(published.record.config))
    config["data"]["test"]["size"] = [32, 96]
    record = published.record.model_copy(update=dict(config=config))
    assert add_student(record, published.weights, zoo_dir=tmp_path).preprocessing.input_size == (3, 32, 96)


def test_cards_of_segmentation_data_state_terms():
    terms = DATA_TERMS["camvid"]
    assert terms.licence == "CC BY-NC 4.0, personal and research use only"
    assert "SegNet" in terms.source
    assert "Cambridge" in terms.limits
    assert "do not compare" in terms.limits


def test_classification_cards_keep_their_text(tmp_path):
    for path in sorted((SHIPPED / "cards").glob("*.json"))[:5]:
        assert json.loads(path.read_text()) == read_card(path).model_dump(mode="json")
    zoo, card = make_zoo(tmp_path)
    assert card.palette is None
    assert "palette" not in json.loads((zoo / "cards" / f"{card.name}.json").read_text())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (dict(palette=None), "needs a palette"),
        (dict(palette=[[0, 0, 0]]), "1 colours for 11 classes"),
        (dict(palette=[[0, 0, 256]] * 11), "palette"),
        (dict(classes=["a"] * 11), "a name of its own"),
        (dict(preprocessing=dict(input_size=[1, 8, 8], mean=[0.5], std=[0.5], crop_pct=0.9)), "the whole image"),
    ],
)
def test_card_that_cannot_be_drawn_is_refused(published, tmp_path, values, said):
    path = tmp_path / f"{NAME}.json"
    path.write_text(json.dumps(published.card.model_dump(mode="json") | values))
    with pytest.raises(CorruptFile, match=said):
        read_card(path)


def test_published_weights_verify(published):
    found = verify_record(published.record, evaluate_weights, weight_files(zoo_dir=published.zoo))
    assert (found.verdict, set(found.found)) == ("holds", {"mIoU", "mAcc", "aAcc"})
    assert found.differences == {"mIoU": pytest.approx(0, abs=1e-4)}


# --- predictions ---


def test_map_is_the_argmax_of_the_logits(predictor, published, scenes):
    model = load_student(NAME, zoo_dir=published.zoo)
    with torch.inference_mode():
        expected = model(model.preprocess(scenes)).argmax(1).numpy()
    found = predictor(scenes)
    assert [p.source for p in found] == list(range(8))
    assert all(p.map.dtype == np.uint8 and np.array_equal(p.map, e) for p, e in zip(found, expected))
    assert predictor(scenes[3])[0].shares == found[3].shares


def test_shares_are_parts_of_the_pixels_largest_first(predictor, published, scenes):
    (found,) = predictor(scenes[0])
    naive = {c: (found.map == i).mean() for i, c in enumerate(published.card.classes) if (found.map == i).any()}
    assert found.shares == pytest.approx(naive)
    assert list(found.shares.values()) == sorted(found.shares.values(), reverse=True)
    assert json.loads(json.dumps(found.to_dict())) == dict(source=0, size=[64, 64], shares=found.shares)


@pytest.mark.parametrize("size", [(64, 64), (90, 130), (48, 200), (33, 17)])
def test_map_comes_back_to_the_image_s_own_size_by_nearest(predictor, scenes, size):
    image = F.interpolate(scenes[:1].float(), size=size).to(torch.uint8)[0]
    (found,) = predictor(image)
    assert found.map.shape == size
    small = predictor.model(predictor.preprocess(image)).argmax(1)[0].numpy()
    height, width = size
    # the pixel whose centre is nearest, in integers: floor((i + ½) · 64 / n)
    rows = [(2 * i + 1) * 64 // (2 * height) for i in range(height)]
    columns = [(2 * i + 1) * 64 // (2 * width) for i in range(width)]
    assert np.array_equal(found.map, small[np.ix_(rows, columns)])


def test_paths_pil_images_and_grey_ones_are_taken(predictor, scenes, tmp_path):
    path = saved(scenes[0], tmp_path / "a.png")
    expected = predictor(scenes[0])[0]
    with Image.open(path) as image:
        (opened,) = predictor(image)
    (read,) = predictor(path)
    assert np.array_equal(opened.map, expected.map)
    assert (read.source, read.shares) == (str(path), expected.shares)
    assert opened.overlay().tobytes() == read.overlay().tobytes() == expected.overlay().tobytes()  # after it was closed
    assert predictor(scenes[0][0].float() / 255)[0].overlay().mode == "RGB"


def test_bad_images_are_named(predictor, scenes, tmp_path):
    path = saved(scenes[0], tmp_path / "half.png")
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match=r"half\.png: "):
        predictor(path)
    with pytest.raises(UserError, match="image 1: "):
        predictor([scenes[0], torch.zeros(8, 8, dtype=torch.int64)])
    with pytest.raises(UserError, match="image 0: one image was expected, got a batch of 2"):
        predictor([scenes[:2]])


def test_overlay_of_an_image_that_changed_is_refused(predictor, scenes, tmp_path):
    (found,) = predictor(saved(scenes[0], tmp_path / "a.png"))
    saved(scenes[0][:, :32], tmp_path / "a.png")
    with pytest.raises(ShapeMismatch, match="changed"):
        found.overlay()
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserError, match=r"a\.png"):
        found.overlay()


# --- pictures ---

COLOURS = {"road": (200, 0, 0), "sky": (0, 100, 0), "car": (10, 20, 30)}


def test_overlay_is_half_image_half_colour():
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    labels = np.zeros((300, 400), np.uint8)
    labels[:100] = 1
    drawn = np.asarray(draw_overlay(pixels, labels, {"road": 2 / 3, "sky": 1 / 3}, COLOURS))
    expected = (pixels.astype(float) + np.array(list(COLOURS.values()))[labels]) / 2
    assert drawn.shape[0] > 300
    assert drawn.shape[1] == 400
    assert np.abs(drawn[:300] - expected).max() <= 0.5
    legend = {tuple(c) for c in drawn[300:].reshape(-1, 3).tolist()}
    assert COLOURS["road"] in legend
    assert COLOURS["sky"] in legend
    assert COLOURS["car"] not in legend  # it does not occur


def test_small_image_is_drawn_larger_and_the_legend_has_room():
    pixels = np.arange(8 * 4 * 3, dtype=np.uint8).reshape(8, 4, 3)
    name = "a class with a rather long name"
    drawn = draw_overlay(pixels, np.zeros((8, 4), np.uint8), {name: 1.0}, {name: (255, 255, 255)})
    assert drawn.width > 128  # 32 times as large: 128 × 256; the text is wider
    expected = (pixels.astype(float) + 255) / 2
    assert np.abs(np.asarray(drawn)[:256:32, :128:32] - expected).max() <= 0.5


@pytest.mark.parametrize(("share", "said"), [(1.0, "100.0 %"), (0.12345, "12.3 %"), (0.0004, "< 0.1 %")])
def test_percent(share, said):
    assert percent(share) == said


def test_outputs_keep_places_and_no_two_share_a_name(tmp_path):
    for name in ("in/a.png", "in/deep/a.png", "in/b.v2.png", "more/a.png", "a.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    out = tmp_path / "out"
    given = [tmp_path / "in", tmp_path / "in" / "a.png", tmp_path / "more", tmp_path / "a.jpg"]
    stems = [stem.relative_to(out).as_posix() for _, stem in plan_outputs(given, out)]
    assert stems == ["a", "b.v2", "deep/a", "a", "a_2", "a_3"]


def test_pictures_do_not_take_the_place_of_images(tmp_path):
    for name in ("a.png", "a_labels.png"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"a_labels\.png is an image to predict"):
        plan_outputs([tmp_path], tmp_path)


# --- the command ---


def call(*args) -> str:
    result = CliRunner().invoke(app, [str(a) for a in args], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_predict_writes_two_pictures_an_image(own_zoo, predictor, scenes, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    paths = [saved(scenes[0], folder / "a.png"), saved(scenes[1][:, :40], folder / "deep" / "b.png")]
    lines = [line.split("\t") for line in call("predict", NAME, folder, "--out", out, "--top-k", 2).splitlines()]
    assert [line[0] for line in lines] == [str(path) for path in paths]
    for line, path, stem in zip(lines, paths, ("a", "deep/b")):
        (expected,) = predictor(path)
        assert line[1:] == [f"{c} {percent(s)}" for c, s in list(expected.shares.items())[:2]]
        with Image.open(out / f"{stem}_labels.png") as labels, Image.open(out / f"{stem}_overlay.png") as overlay:
            assert labels.mode == "L"
            assert np.array_equal(np.asarray(labels), expected.map)
            assert overlay.tobytes() == expected.overlay().tobytes()
    assert len(list(out.rglob("*"))) == 5  # four pictures and a folder


def test_predict_json_has_paths_and_shares_and_writes_over_older_pictures(own_zoo, scenes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = saved(scenes[0], tmp_path / "a.png")
    for _ in range(2):
        (row,) = json.loads(call("predict", NAME, path, "--json"))
    assert sum(row["shares"].values()) == pytest.approx(1)
    assert (row["source"], row["size"]) == (str(path), [64, 64])
    assert (row["overlay"], row["labels"]) == ("out/predict/a_overlay.png", "out/predict/a_labels.png")
    assert (tmp_path / row["labels"]).is_file()


def test_predict_mistakes_are_user_errors(own_zoo, scenes, tmp_path):
    path = saved(scenes[0], tmp_path / "a.png")
    for args, error, said in (
        ([path, "--out", path], OutputError, "cannot write"),
        ([tmp_path / "gone.png", "--out", tmp_path / "out"], UserError, r"gone\.png: no such image"),
    ):
        with pytest.raises(error, match=said):
            CliRunner().invoke(app, ["predict", NAME, *map(str, args)], catch_exceptions=False)


def test_list_and_info_show_task_and_miou(own_zoo, published):
    text = call("list")
    assert f"mIoU {published.card.value:.2f}" in text
    assert "semantic-segmentation" in text
    assert [c.name for c in list_students("semantic-segmentation", zoo_dir=published.zoo)] == [NAME]
    text = call("info", NAME)
    for part in ("semantic-segmentation", "mIoU", "background", "#1f77b4", "nearest"):
        assert part in text
    assert Card.model_validate(json.loads(call("info", NAME, "--json"))) == find(NAME)


# --- export ---


@pytest.mark.parametrize("format", ["onnx", "torchscript", "torch-export"])
def test_export_gives_a_logit_for_every_class_and_pixel(published, predictor, scenes, tmp_path, format):
    if format == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    path = tmp_path / "student"
    report = export_student(NAME, path, format, zoo_dir=published.zoo)
    assert (report.inputs, report.samples) == ("real", 8)
    assert report.max_difference is not None
    assert report.max_difference <= 1e-4
    inputs = predictor.preprocess(scenes[:3])
    extra = {"limbeck.json": ""}
    if format == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        found = torch.from_numpy(session.run(["logits"], {"images": inputs.numpy()})[0])
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
    assert found.shape == (3, 11, 64, 64)
    torch.testing.assert_close(found, predictor.model(inputs), atol=1e-4, rtol=0)
    assert json.loads(props["limbeck.palette"])[1] == [31, 119, 180]


def test_classes_that_do_not_fit_the_logits_are_refused(published, tmp_path):
    record = published.record.model_copy(update=dict(per_class={}, data=published.record.data))
    record = record.model_copy(update=dict(data=record.data.model_copy(update=dict(classes=["a", "b"]))))
    with pytest.raises(ConfigError, match=r"2 classes.*11 logits"):
        add_student(record, published.weights, zoo_dir=tmp_path)


def test_architecture_of_the_card_is_the_student_s(published):
    assert sum(p.numel() for p in MODELS.make(STUDENT).parameters()) == published.card.parameters
