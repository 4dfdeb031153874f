"""What bad input gets: one sentence on stderr, exit status 2, no traceback, nothing half-written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from limbeck.cli import main
from limbeck.engine.output import exclusive
from tests.engine.toys import teacher_file, toy_pair, toy_run


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The toy pair as a config file."""
    lines = ["custom_imports = dict(imports=['tests.engine.toys'])"]
    lines += [f"{key} = {value!r}" for key, value in toy_pair().model_dump(exclude_defaults=True).items()]
    path = tmp_path / "toy.py"
    path.write_text("\n".join(lines))
    return path


def refused(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """Run a command that must exit with 2; give its one sentence."""
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in args])
    assert stop.value.code == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ")
    assert "Traceback" not in said
    return said


def train(config: Path, *extra: object, method: str = "ToyMatch") -> list[object]:
    out = config.parent / "out"
    return [
        "train",
        config,
        "--method",
        method,
        "--teacher",
        teacher_file(config.parent),
        "--out",
        out,
        "--device",
        "cpu",
        *extra,
    ]


def written(config: Path) -> list[Path]:
    """Everything that a run would have left."""
    return [p for p in (config.parent / "out").rglob("*") if p.is_file() and p.name != ".lock"]


def test_good_input_works(config, capsys):
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in train(config)])
    assert stop.value.code == 0
    assert "top1" in capsys.readouterr().out


def test_unknown_method(config, capsys):
    assert "unknown method 'ToyMach' in pair toy/toy4-toy2; did you mean 'ToyMatch'" in refused(
        capsys, *train(config, method="ToyMach")
    )


def test_unknown_config(capsys):
    assert "unknown config 'vision/digit'; did you mean 'vision/digits'" in refused(capsys, "train", "vision/digit")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("'epochs'", "'epoch'", "did you mean 'epochs'"),
        (
            "'type': 'ToyNet', 'width': 2",
            "'type': 'ToyNt', 'width': 2",
            "unknown model 'ToyNt' of member 'student'; did you mean 'ToyNet'",
        ),
        ("'type': 'ToyNet', 'width': 2", "'type': 'ToyNet', 'widht': 2", "did you mean 'width'"),
        (
            "{'type': 'ToyMatch'}",
            "{'type': 'ToyMatch', 'taps': [('layer1', 'layr1')]}",
            "has no tap 'layr1'; did you mean 'layer1'",
        ),
        ("{'type': 'ToyMatch'}", "{'type': 'ToyMatch', 'wieght': 1}", "did you mean 'weight'"),
        ("'type': 'ToyData', 'split': 'train'", "'type': 'ToyDta', 'split': 'train'", "unknown dataset 'ToyDta'"),
    ],
)
def test_mistyped_names_in_a_config(config, capsys, old, new, said):
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new))
    assert said in refused(capsys, *train(config))
    assert written(config) == []


def test_shapes_that_do_not_fit_name_both_and_the_bridge(tmp_path, capsys):
    from limbeck.engine.config import load_pair

    pair = load_pair("vision/digits")
    pair.student["num_classes"] = 5
    lines = [f"{key} = {value!r}" for key, value in pair.model_dump(exclude_defaults=True).items()]
    (tmp_path / "five.py").write_text("\n".join(lines))
    weights = _digits_teacher(tmp_path)
    said = refused(
        capsys, "train", tmp_path / "five.py", "--method", "KD", "--teacher", weights, "--out", tmp_path / "out"
    )
    assert "(2, 10)" in said
    assert "(2, 5)" in said


def _digits_teacher(folder: Path) -> Path:
    from limbeck.engine.config import load_pair
    from limbeck.engine.registry import MODELS
    from limbeck.engine.weights import save_weights

    path = folder / "teacher20.safetensors"
    save_weights(path, MODELS.make(load_pair("vision/digits").teacher).state_dict(), metadata={})
    return path


def test_truncated_teacher_weights(config, capsys):
    path = Path(teacher_file(config.parent))
    cut = config.parent / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:-40])
    said = refused(capsys, "train", config, "--method", "ToyMatch", "--teacher", cut, "--out", config.parent / "out")
    assert "cut.safetensors: not a whole safetensors file" in said
    assert "sha256" in said


def test_missing_teacher_says_what_to_do(config, capsys):
    said = refused(capsys, "train", config, "--method", "ToyMatch", "--out", config.parent / "out")
    assert "train it first (--method teacher) or pass --teacher FILE" in said


def test_gpu_that_is_not_there(config, capsys):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    said = refused(capsys, "train", config, "--device", "cuda")
    assert "torch sees no GPU here; use --device cpu" in said


def test_output_that_cannot_be_written(config, capsys):
    (config.parent / "file").write_text("")
    said = refused(
        capsys, "train", config, "--method", "plain", "--out", config.parent / "file" / "out", "--device", "cpu"
    )
    assert "choose another" in said


def test_no_space_is_told_before_training(config, capsys, monkeypatch):
    usage = shutil.disk_usage(config.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    said = refused(capsys, *train(config))
    assert "free space or choose another folder" in said
    assert not list(config.parent.rglob("student.safetensors"))


def test_second_run_in_one_folder(config, capsys):
    folder = config.parent / "out" / "runs" / toy_run(config.parent).id
    with exclusive(folder):
        assert "another run is writing here" in refused(capsys, *train(config))


def test_unknown_suite_and_student_and_benchmark(tmp_path, capsys):
    assert "unknown suite 'dmo'; did you mean 'demo'" in refused(capsys, "bench", "run", "dmo")
    assert "unknown student 'resnet8.digits'" in refused(capsys, "zoo", "info", "resnet8.digits")
    assert "no such folder of records" in refused(capsys, "leaderboard", "show", "--results", tmp_path / "none")


def test_torn_record_is_named(tmp_path, capsys):
    path = tmp_path / "records" / "digits" / "resnet20-resnet8" / "plain" / "seed0.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"record_version": 1})[:-5])
    said = refused(capsys, "leaderboard", "show", "--results", tmp_path / "records")
    assert "seed0.json: not a whole JSON record" in said


def test_override_of_an_unknown_key(config, capsys):
    assert "did you mean 'epochs'" in refused(capsys, *train(config, "--set", "recipe.epoch=3"))


def test_data_set_that_is_not_there(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("LIMBECK_DATA", raising=False)
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path))
    if Path("/usr/share/datasets/fashion-mnist").is_dir():
        pytest.skip("the data set is installed here")
    said = refused(capsys, "train", "vision/fashion_mnist", "--method", "plain", "--out", tmp_path / "out")
    assert "limbeck data get fashion-mnist" in said
