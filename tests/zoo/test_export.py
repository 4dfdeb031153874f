"""Export: files that compute what torch does, with what a user of them needs inside."""

from __future__ import annotations

import json
import warnings

import onnx
import onnxruntime
import pytest
import torch

import limbeck.zoo.export as export_module
from limbeck.engine.weights import sha256_file
from limbeck.errors import DataMissing, ExtraMissing, OutputError, UnknownName, UserError
from limbeck.zoo import export_student, load_student
from tests.zoo.fabricate import NAME, digits, make_zoo


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return make_zoo(tmp_path_factory.mktemp("zoo"))[0]


def test_onnx_agrees_with_torch_on_real_digits(zoo, tmp_path):
    report = export_student(NAME, tmp_path / "a.onnx", zoo_dir=zoo)
    assert (report.inputs, report.samples) == ("real", 64)
    assert report.max_difference is not None
    assert 0 <= report.max_difference <= 1e-4
    assert (report.file_bytes, report.sha256) == (
        (tmp_path / "a.onnx").stat().st_size,
        sha256_file(tmp_path / "a.onnx"),
    )
    model = load_student(NAME, zoo_dir=zoo)
    inputs = model.preprocess(digits()[0])
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    for batch in (inputs, inputs[:1], inputs[:7]):
        found = torch.from_numpy(session.run(["logits"], {"images": batch.numpy()})[0])
        torch.testing.assert_close(found, model(batch).detach(), atol=1e-4, rtol=0)


def test_onnx_holds_what_its_user_needs(zoo, tmp_path):
    export_student(NAME, tmp_path / "a.onnx", zoo_dir=zoo)
    proto = onnx.load(tmp_path / "a.onnx")
    onnx.checker.check_model(proto)
    props = {p.key: p.value for p in proto.metadata_props}
    card = load_student(NAME, zoo_dir=zoo).card
    assert json.loads(props["limbeck.input_size"]) == [1, 8, 8]
    assert (json.loads(props["limbeck.mean"]), json.loads(props["limbeck.std"])) == ([0.3], [0.38])
    assert json.loads(props["limbeck.classes"]) == list(card.classes)
    assert props["limbeck.weights_sha256"] == card.sha256
    assert props["limbeck.pixels"] == "white on black"
    assert props["limbeck.data_licence"] == "CC-BY-4.0"
    assert list(tmp_path.iterdir()) == [tmp_path / "a.onnx"]  # no weights beside it


@pytest.mark.parametrize("format", ["torchscript", "torch-export"])
def test_torch_formats_agree_and_hold_the_metadata(zoo, tmp_path, format):
    report = export_student(NAME, tmp_path / "a.pt2", format, zoo_dir=zoo)
    assert report.max_difference is not None
    assert report.max_difference <= 1e-4
    extra = {"limbeck.json": ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if format == "torchscript":
            loaded = torch.jit.load(tmp_path / "a.pt2", _extra_files=extra)
        else:
            loaded = torch.export.load(tmp_path / "a.pt2", extra_files=extra).module()
    model = load_student(NAME, zoo_dir=zoo)
    inputs = model.preprocess(digits(5)[0])
    torch.testing.assert_close(loaded(inputs), model(inputs), atol=1e-4, rtol=0)
    assert json.loads(extra["limbeck.json"])["limbeck.weights_sha256"] == model.card.sha256


def test_without_data_random_images_serve(zoo, tmp_path, monkeypatch):
    def absent(*args, **kwargs):
        raise DataMissing("not here")

    monkeypatch.setattr(export_module.DATASETS, "make", absent)
    report = export_student(NAME, tmp_path / "a.pt", "torchscript", zoo_dir=zoo)
    assert (report.inputs, report.samples) == ("random", 64)
    assert report.max_difference is not None


def test_without_check_nothing_is_claimed(zoo, tmp_path):
    report = export_student(NAME, tmp_path / "a.pt", "torchscript", check=False, zoo_dir=zoo)
    assert (report.inputs, report.samples, report.max_difference) == (None, 0, None)


@pytest.mark.parametrize("shift", [1e-3, float("nan")])
def test_file_that_is_off_is_not_kept(zoo, tmp_path, monkeypatch, shift):
    model = load_student(NAME, zoo_dir=zoo)
    monkeypatch.setitem(export_module.RUNNERS, "torchscript", lambda content: lambda x: model(x) + shift)
    (tmp_path / "a.pt").write_text("older")
    with pytest.raises(UserError, match=r"off from torch by .*nothing was written"):
        export_student(NAME, tmp_path / "a.pt", "torchscript", zoo_dir=zoo)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["older"]


def test_unknown_format_gives_near_names(zoo, tmp_path):
    with pytest.raises(UnknownName, match="did you mean 'onnx'"):
        export_student(NAME, tmp_path / "a", "onxx", zoo_dir=zoo)


@pytest.mark.parametrize("module", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_extra_names_the_install_command(zoo, tmp_path, monkeypatch, module):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ExtraMissing, match=r"pip install 'limbeck\[export\]'"):
        export_student(NAME, tmp_path / "a.onnx", zoo_dir=zoo)


def test_folder_that_cannot_be_written_is_named(zoo, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        export_student(NAME, tmp_path / "file" / "a.pt", "torchscript", zoo_dir=zoo)
