"""`limbeck bench`, `demo`, `reproduce`, `train` and `doctor` as a user types them."""

from __future__ import annotations

import json
import queue
import shutil
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from limbeck.cli import main
from limbeck.engine import bench
from limbeck.engine.record import read_record
from limbeck.engine.suite import load_suite, plan
from tests.engine.toys import toy_pair, toy_suite

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("COLUMNS", "120")


def run(*args: object, code: int = 0) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in args])
    assert (stop.value.code or 0) == code


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Path:
    """A toy suite that has been run once; what that printed is in first.txt."""
    folder = tmp_path_factory.mktemp("suite")
    toy_suite(folder)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as printed:
        patch.setenv("PYTHONPATH", str(ROOT))
        run("bench", "run", folder / "toys.toml", "--out", folder / "out", "--jobs", "1")
    (folder / "first.txt").write_text(printed.getvalue())
    return folder


def test_bench_run_shows_the_table_and_the_second_time_says_that_all_was_there(suite, capsys):
    first = (suite / "first.txt").read_text()
    assert "7/7" in first
    assert "gain over plain" in first
    assert "toymatch" in first.lower()
    run("bench", "run", suite / "toys.toml", "--out", suite / "out", "--jobs", "1")
    assert "all 7 records of suite toys were there already" in capsys.readouterr().out


def demo_of(folder: Path, suite: Path, monkeypatch) -> Path:
    """A demo of the toys and a group that needs an extra; gives the suite's file."""
    file = folder / "demo.toml"
    text = (suite / "toys.toml").read_text().replace('"toys"', '"demo"')
    text += '[[groups]]\nconfig = "segmentation/digit_demo"\nmethods = ["KD"]\nextra = "segmentation"\n'
    file.write_text(text)
    monkeypatch.setattr("limbeck.engine.suite.suite_folders", lambda: [folder])
    return file


def test_demo_without_the_extra_leaves_its_group_out_and_says_so_once(suite, tmp_path, monkeypatch, capsys):
    demo_of(tmp_path, suite, monkeypatch)
    monkeypatch.setattr("limbeck.engine.suite.find_spec", lambda name: None)
    run("demo", "--out", suite / "out", "--jobs", "1")
    said = capsys.readouterr().out
    assert said.count("install it with: pip install 'limbeck[segmentation]'") == 1
    assert "left out: segmentation/digit_demo needs the 'segmentation' extra" in said
    assert "all 7 records of suite demo were there already" in said
    assert any("toy4-toy2" in p.read_text() for p in (suite / "out" / "site" / "benchmarks").iterdir())
    assert "site/index.html" in (suite / "out" / "index.html").read_text()


def test_runs_can_go_without_predictions(suite, tmp_path, monkeypatch):
    made = list((suite / "out" / "runs").rglob("predictions.safetensors"))
    assert len(made) == 7
    asked = []
    whole = bench.run_suite

    def run_suite(*args, **kwargs):
        asked.append(kwargs["predictions"])
        return whole(*args, **kwargs)

    monkeypatch.setattr(bench, "run_suite", run_suite)
    monkeypatch.setattr(bench, "_drive", lambda todo, pool, settings, *_: asked.append(settings.predictions))
    run(
        "bench", "run", suite / "toys.toml", "--out", tmp_path / "a", "--jobs", "1", "--no-predictions", code=2
    )  # no table
    assert asked == [False, False]
    run("bench", "run", suite / "toys.toml", "--out", suite / "out", "--jobs", "1", "--no-predictions")
    assert len([p for p in made if p.is_file()]) == 7  # all runs are done, whatever is asked for now
    (job, *_) = plan(load_suite(str(suite / "toys.toml")), only=["plain"])
    monkeypatch.setattr(bench, "_EVENTS", queue.Queue())
    bench.run_job(job.model_dump(), bench._Settings(bench.Paths(tmp_path / "b"), "cpu", 1, 1, predictions=False))
    assert read_record(bench.Paths(tmp_path / "b").records / f"{job.id}.json").predictions_sha256 is None
    assert list((tmp_path / "b").rglob("student.safetensors"))
    assert not list((tmp_path / "b").rglob("predictions*"))


def test_bench_run_without_the_extra_of_a_group_is_refused_before_training(suite, tmp_path, monkeypatch, capsys):
    file = demo_of(tmp_path, suite, monkeypatch)
    (tmp_path / "mmseg.py").write_text("raise ModuleNotFoundError('as where it is not installed', name='mmseg')\n")
    monkeypatch.syspath_prepend(tmp_path)  # the worker gets this process's sys.path
    run("bench", "run", file, "--out", tmp_path / "out", "--jobs", "1", code=2)
    said = capsys.readouterr().err
    assert "segmentation needs the 'segmentation' extra; install it with: pip install 'limbeck[segmentation]'" in said
    assert not list((tmp_path / "out").rglob("seed*.json"))


def test_bench_status_counts(suite, capsys):
    run("bench", "status", suite / "toys.toml", "--out", suite / "out")
    said = capsys.readouterr().out
    assert "7 done" in said
    run("bench", "status", suite / "toys.toml", "--out", suite / "nowhere")
    assert "7 missing" in capsys.readouterr().out


def test_bench_list_names_every_suite_and_its_runs(capsys):
    run("bench", "list")
    said = capsys.readouterr().out
    assert "demo" in said
    assert "fashion-mnist" in said
    assert f" {len(plan(load_suite('demo')))} " in said


def test_reproduce_says_identical_for_the_same_machine(suite, capsys):
    run(
        "reproduce",
        suite / "toys.toml",
        "--results",
        suite / "out" / "records",
        "--out",
        suite / "again",
        "--jobs",
        "1",
    )
    said = capsys.readouterr().out
    assert said.count("identical") >= 4


def test_reproduce_of_one_method_asks_for_no_other(suite, capsys):
    again, records = suite / "one", suite / "out" / "records"
    run("reproduce", suite / "toys.toml", "--only", "ToyMatch", "--results", records, "--out", again, "--jobs", "1")
    assert "missing" not in capsys.readouterr().out


def test_reproduce_of_other_figures_says_so_and_exits_1(suite, capsys, tmp_path):
    theirs = tmp_path / "theirs"
    shutil.copytree(suite / "out" / "records", theirs)
    for path in theirs.rglob("toymatch/seed*.json"):
        record = json.loads(path.read_text())
        record["metrics"]["top1"] += 90.0 if "seed0" in path.name else 90.1
        path.write_text(json.dumps(record))
    out = suite / "out"
    run("reproduce", suite / "toys.toml", "--results", theirs, "--out", out, "--jobs", "1", code=1)
    assert "differs" in capsys.readouterr().out


def test_train_takes_overrides_and_says_where_the_record_is(tmp_path, capsys):
    pair = toy_pair()
    lines = ["custom_imports = dict(imports=['tests.engine.toys'])"]
    lines += [f"{key} = {value!r}" for key, value in pair.model_dump(exclude_defaults=True).items()]
    (tmp_path / "toy.py").write_text("\n".join(lines))
    run(
        "train",
        tmp_path / "toy.py",
        "--out",
        tmp_path / "out",
        "--set",
        "recipe.epochs=1",
        "--set",
        "data.train.size=24",
    )
    said = capsys.readouterr().out
    path = tmp_path / "out" / "records" / "toy" / "toy4-toy2" / "plain" / "seed0.json"
    assert str(path) in said
    record = json.loads(path.read_text())
    assert (record["recipe"]["epochs"], record["cost"]["samples_seen"]) == (1, 24)


def test_doctor_says_which_ops_are_used_and_where_data_is(capsys):
    run("doctor")
    said = capsys.readouterr().out
    assert "torch" in said
    assert "inside scikit-learn" in said
    if "mmcv ops" in said:
        assert "compiled ops" in said or "torch fallback" in said


def test_every_help_has_an_example(capsys):
    commands = [["train"], ["demo"], ["reproduce"], ["doctor"]]
    commands += [["bench", c] for c in ("run", "list", "status")]
    commands += [["leaderboard", c] for c in ("show", "build", "compare", "verify", "reproduce")]
    commands += [["zoo", c] for c in ("list", "info", "predict", "export", "add")]
    commands += [["data", c] for c in ("list", "get")]
    for command in commands:
        run(*command, "--help")
        assert "Example:" in capsys.readouterr().out, command
