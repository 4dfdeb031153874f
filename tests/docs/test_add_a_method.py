"""The pages that add a method and a model: their files are written, imported and distilled as they stand."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import torch

from limbeck.engine.adapter import Batch
from limbeck.engine.config import PairConfig, load_pair, parse, with_overrides
from limbeck.engine.record import RunRecord
from limbeck.engine.registry import METHODS, MODELS
from limbeck.engine.run import RunOptions, execute
from limbeck.engine.single import single_run
from limbeck.engine.suite import load_suite, plan
from tests.docs.pages import titled

SHORT = ["recipe.epochs=1", "teacher_recipe.epochs=1"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that modules are imported from; what they register is forgotten afterwards."""
    modules = set(sys.modules)
    known = {}
    for registry in (METHODS, MODELS):
        registry.fill()
        known[registry] = dict(registry.module_dict)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for registry, before in known.items():
        for name in registry.module_dict.keys() - before.keys():
            del registry.module_dict[name]
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "") or "").startswith(str(tmp_path)):
            del sys.modules[name]


def write(folder: Path, page: str) -> None:
    for name, text in titled(page).items():
        (folder / name).write_text(text, encoding="utf-8")


def distil(pair: PairConfig, method: str, out: Path) -> RunRecord:
    options = RunOptions(out=out / "runs", records=out / "records", threads=1, latency_ms=1.0)
    record = execute(single_run(pair, method, 0, out), options)
    assert record is not None
    return record


def test_method_of_the_page_distils_from_outside_the_package(project: Path) -> None:
    write(project, "add-a-method.md")
    pair = parse(PairConfig, with_overrides(load_pair("my_digits.py").model_dump(), SHORT), "my_digits.py")
    distil(pair, "teacher", project / "out")
    record = distil(pair, "LogitRegression", project / "out")
    assert (record.benchmark, record.method, record.recipe.epochs) == ("my-digits", "LogitRegression", 1)
    log = (project / "out" / "runs" / record.id / "log.jsonl").read_text()
    assert "logitregression.loss_l2" in log


def test_suite_of_the_page_plans_every_seed(project: Path) -> None:
    write(project, "add-a-method.md")
    jobs = plan(load_suite("my_suite.toml"))
    assert [j.seed for j in jobs if j.method == "LogitRegression"] == [0, 1, 2]


def test_config_entry_of_the_page_is_that_of_its_config() -> None:
    page = (Path(__file__).parents[2] / "docs" / "add-a-method.md").read_text(encoding="utf-8")
    entries = [line.strip() for line in page.splitlines() if line.strip().startswith("LogitRegression=dict(")]
    assert len(entries) == 2
    assert entries[0] == entries[1]


def test_tests_of_the_page_pass(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(project, "add-a-method.md")
    # the page's test imports the file from its place inside the package
    monkeypatch.setitem(sys.modules, "limbeck.vision.methods.logit_regression", import_module("logit_regression"))
    tests = inspect.getmembers(import_module("test_logit_regression"), inspect.isfunction)
    run = [function() for name, function in tests if name.startswith("test_")]
    assert len(run) == 4


def test_model_of_the_page_trains_and_is_distilled(project: Path) -> None:
    write(project, "add-a-model.md")
    pair = parse(PairConfig, with_overrides(load_pair("tiny_digits.py").model_dump(), SHORT), "tiny_digits.py")
    records = [distil(pair, method, project / "out") for method in ("teacher", "plain", "KD", "FitNet")]
    assert records[1].student.name.startswith("TinyConvNet")
    assert records[1].initial_hash == records[2].initial_hash == records[3].initial_hash


def test_members_of_the_engine_page_teach_each_other(project: Path) -> None:
    write(project, "engine.md")
    model = import_module("members").model
    images = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    terms = model.train().loss(Batch(images, targets=torch.arange(8), ids=torch.arange(8)))
    assert [name for name in terms if name.startswith("kd")] == ["kd.loss_kl", "kd1.loss_kl", "kd2.loss_kl"]
    assert {"a.loss_ce", "b.loss_ce"} < terms.keys()
