"""`limbeck zoo`: what each command prints, and that mistakes cost one line and exit status 2."""

from __future__ import annotations

import json

import pytest
from PIL import Image
from typer.testing import CliRunner

from limbeck.cli.zoo import app
from limbeck.engine.record import write_record
from limbeck.engine.weights import sha256_file
from limbeck.errors import CorruptFile, UnknownName, UserError
from limbeck.zoo import find, load_student, weights_path
from tests.zoo.fabricate import NAME, digits, fabricate, flip_bit, make_zoo, write_weights


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    for method in ("plain", "KD"):
        made, _ = make_zoo(tmp_path, method)
    monkeypatch.setenv("LIMBECK_ZOO", str(made))
    monkeypatch.setenv("COLUMNS", "200")
    return made


def call(*args) -> str:
    result = CliRunner().invoke(app, [str(a) for a in args], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_list_shows_figures_of_the_records(zoo):
    text = call("list", "--method", "kd", "--task", "image-classification")
    assert NAME in text
    assert "top1 12.50" in text
    assert "resnet8w4.toy_plain" not in text


def test_list_json(zoo):
    cards = json.loads(call("list", "--json"))
    assert {"resnet8w4.toy_plain", NAME} <= {c["name"] for c in cards}
    assert all(len(c["sha256"]) == 64 for c in cards)


def test_list_of_nothing_says_which_methods_there_are(zoo):
    text = call("list", "--method", "KDD")
    assert "no such students" in text
    assert "KD" in text
    assert "plain" in text


def test_info_tells_record_licences_and_pixels(zoo):
    text = call("info", NAME)
    for part in ("toy/big-small/kd/seed0", "CC-BY-4.0", "Apache-2.0", "white on black", "resnet20.toy_teacher", "12.5"):
        assert part in text
    assert json.loads(call("info", NAME, "--json")) == find(NAME).model_dump(mode="json")


def scans(folder, count):
    folder.mkdir()
    for place, pixels in enumerate(digits(count)[0].numpy()):
        Image.fromarray(pixels[0]).save(folder / f"{place:03d}.png")
    return folder


def test_predict_files_and_folders(zoo, tmp_path):
    folder = scans(tmp_path / "scans", 3)
    lines = call("predict", NAME, folder, folder / "001.png", "--top-k", 2).splitlines()
    assert [line.split("\t")[0] for line in lines] == [str(folder / f"{i:03d}.png") for i in (0, 1, 2, 1)]
    model = load_student(NAME)
    label = model.card.classes[int(model(model.preprocess(folder / "000.png")).argmax())]
    assert lines[0].split("\t")[1].startswith(f"{label} 0.") or lines[0].split("\t")[1] == f"{label} 1.0000"
    assert all(len(line.split("\t")) == 3 for line in lines)


def test_predict_many_into_a_file(zoo, tmp_path):
    folder = scans(tmp_path / "scans", 70)
    assert "70 predictions in" in call("predict", NAME, folder, "--out", tmp_path / "p.json", "--top-k", 3)
    found = json.loads((tmp_path / "p.json").read_text())
    assert found["student"] == NAME
    assert len(found["predictions"]) == 70
    assert len(found["predictions"][0]["top"]) == 3


def test_predict_inverted(zoo, tmp_path):
    folder = scans(tmp_path / "scans", 4)
    dark = tmp_path / "dark"
    dark.mkdir()
    for path in folder.iterdir():
        with Image.open(path) as image:
            image.point(lambda v: 255 - v).save(dark / path.name)
    light = [line.split("\t")[1:] for line in call("predict", NAME, folder).splitlines()]
    assert [line.split("\t")[1:] for line in call("predict", NAME, dark, "--invert").splitlines()] == light


def test_export_reports_the_check(zoo, tmp_path):
    text = call("export", NAME, "--out", tmp_path / "a.onnx")
    assert sha256_file(tmp_path / "a.onnx") in text
    assert "64 real images" in text
    assert "largest" not in call("export", NAME, "--out", tmp_path / "a.pt", "--format", "torchscript", "--no-check")


def test_add_makes_a_student(tmp_path, monkeypatch):
    weights = tmp_path / "student.safetensors"
    record = write_record(tmp_path / "records", fabricate(write_weights(weights)))
    assert f"{NAME}: top1 12.50" in call("add", record, weights, "--zoo", tmp_path / "zoo")
    monkeypatch.setenv("LIMBECK_ZOO", str(tmp_path / "zoo"))
    assert NAME in call("list")


@pytest.mark.parametrize(
    ("args", "error", "said"),
    [
        (["info", "resnet8w4.toy_kb"], UnknownName, f"did you mean '{NAME}'"),
        (["list", "--task", "image-clasification"], UnknownName, "image-classification"),
        (["predict", NAME, "gone.png"], UserError, r"gone\.png"),
        (["export", NAME, "--out", "a", "--format", "onxx"], UnknownName, "onnx"),
        (["add", "gone.json", "gone.safetensors"], UserError, r"gone\.json"),
    ],
)
def test_mistakes_are_user_errors(zoo, args, error, said):
    with pytest.raises(error, match=said):
        CliRunner().invoke(app, args, catch_exceptions=False)


def test_damaged_weights_are_named(zoo):
    flip_bit(weights_path(NAME))
    with pytest.raises(CorruptFile, match=r"sha256 is .*expected"):
        CliRunner().invoke(app, ["predict", NAME, "x.png"], catch_exceptions=False)


@pytest.mark.parametrize("command", ["list", "info", "predict", "export", "add"])
def test_help_has_an_example(command):
    assert f"Example: limbeck zoo {command}" in call(command, "--help")
