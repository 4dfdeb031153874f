"""Kept predictions: bit for bit those that would be made again, of frozen members alone, and never stale or torn."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from limbeck.engine.config import DataConfig
from limbeck.engine.distiller import Distiller
from limbeck.engine.evaluate import eval_loader, evaluate
from limbeck.engine.predictions import PredictionCache
from limbeck.engine.run import RunOptions, execute
from limbeck.engine.weights import read_weights, save_weights
from limbeck.errors import CorruptFile, OutputError
from tests.engine.toys import ToyAdapter, ToyMetric, teacher_file, toy_run

TOY = {split: dict(type="ToyData", split=split, size=26) for split in ("train", "val", "test")}


class Keeping(ToyMetric):
    """Remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[tuple[list[Any], list[Any] | None]] = []

    def update(self, predictions: list[Any], teacher: list[Any] | None = None) -> None:
        super().update(predictions, teacher)
        self.given.append((predictions, teacher))


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The members that predicted, one entry a batch."""
    seen: list[nn.Module] = []
    original = ToyAdapter.predict

    def predict(self: ToyAdapter, model: nn.Module, inputs: Any, batch: Any) -> list[Any]:
        seen.append(model)
        return original(self, model, inputs, batch)

    monkeypatch.setattr(ToyAdapter, "predict", predict)
    return seen


def make(folder: Path, weights: str | None = None, **teacher: Any) -> Distiller:
    members = {
        "teacher": dict(
            type="frozen", model=dict(type="ToyNet", width=4, **teacher), weights=weights or teacher_file(folder)
        ),
        "average": dict(type="ema", of="student"),
        "student": dict(type="trained", model=dict(type="ToyNet", width=2)),
    }
    return Distiller(members=members, adapter=dict(type="ToyAdapter"))


def loader_of(split: str = "val", batch: int = 10, **data: Any) -> DataLoader:
    config = DataConfig(**{k: {**v, **data} for k, v in TOY.items()}, eval_batch_size=batch)
    return eval_loader(config, split)


def measured(model: Distiller, member: str, loader: DataLoader, cache: PredictionCache | None, **kwargs: Any) -> list:
    metric = Keeping()
    common: dict[str, Any] = dict(adapter=model.adapter, preprocessor=model.data_preprocessor, deploy=model.deploy)
    evaluate(model.member(member), loader=loader, metric=metric, cache=cache, **common, **kwargs)
    return metric.given


def same(a: list, b: list) -> bool:
    """Bit for bit, batch by batch, names, kinds and all."""

    def equal(x: Any, y: Any) -> bool:
        if isinstance(x, Tensor):
            return x.dtype == y.dtype and torch.equal(x, y)
        if isinstance(x, dict):
            return x.keys() == y.keys() and all(equal(x[k], y[k]) for k in x)
        if isinstance(x, (list, tuple)):
            return len(x) == len(y) and all(map(equal, x, y))
        return x == y

    return equal(a, b)


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []


# --- what is kept ---


def test_kept_predictions_equal_recomputed_ones_and_cost_no_forward(tmp_path, forwards):
    model = make(tmp_path)
    cache = PredictionCache(tmp_path / "cache", model)
    exact = measured(model, "teacher", loader_of(), None)
    cold = measured(model, "teacher", loader_of(), cache)
    assert len(forwards) == 6
    warm = measured(model, "teacher", loader_of(), cache)
    assert len(forwards) == 6
    assert same(exact, cold)
    assert same(exact, warm)
    assert [len(p[0]["labels"]) for p, _ in warm] == [10, 10, 6]
    assert len(files(tmp_path / "cache")) == 1


def test_teacher_beside_the_student_is_read_from_the_cache_and_the_student_is_not(tmp_path, forwards):
    model = make(tmp_path)
    cache, teacher = PredictionCache(tmp_path / "cache", model), model.frozen["teacher"]
    cold = measured(model, "student", loader_of(), cache, teacher=teacher)
    with torch.no_grad():
        model.deploy.fc.bias += 1.0
    forwards.clear()
    warm = measured(model, "student", loader_of(), cache, teacher=teacher)
    assert all(member is model.deploy for member in forwards)
    assert len(forwards) == 3
    assert same([t for _, t in cold], [t for _, t in warm])
    assert not same([s for s, _ in cold], [s for s, _ in warm])


@pytest.mark.parametrize("member", ["student", "average"])
def test_member_that_moves_is_never_kept(tmp_path, member, forwards):
    model = make(tmp_path)
    cache = PredictionCache(tmp_path / "cache", model)
    assert not cache.keeps(model.member(member), loader_of())
    for _ in range(2):
        measured(model, member, loader_of(), cache)
    cache.save(model.member(member), loader_of(), [dict(logits=torch.zeros(1))] * 3)
    assert cache.load(model.member(member), loader_of()) is None
    assert len(forwards) == 6
    assert files(tmp_path / "cache") == []


def test_data_set_that_does_not_describe_itself_is_not_kept(tmp_path):
    model, loader = make(tmp_path), loader_of()
    loader.dataset.pipeline = None
    cache = PredictionCache(tmp_path / "cache", model)
    measured(model, "teacher", loader, cache)
    assert files(tmp_path / "cache") == []


@pytest.mark.parametrize(
    "predictions",
    [
        [[dict(logits=torch.zeros(2)), dict(logits=torch.zeros(2))]] * 3,  # several a batch
        [[dict(boxes=[torch.zeros(4)])]] * 3,
        [[torch.zeros(2)]] * 3,
        [[{}]] * 3,
        [[dict(logits=torch.zeros(2))], ["a cat"], [dict(logits=torch.zeros(2))]],
    ],
)
def test_predictions_of_another_kind_are_made_again(tmp_path, predictions, monkeypatch):
    model = make(tmp_path)
    cache = PredictionCache(tmp_path / "cache", model)
    found = iter(predictions)
    monkeypatch.setattr(ToyAdapter, "predict", lambda *_: next(found))
    monkeypatch.setattr(ToyMetric, "update", lambda *_: None)
    monkeypatch.setattr(ToyMetric, "values", lambda _: {})
    assert len(measured(model, "teacher", loader_of(), cache)) == 3
    assert files(tmp_path / "cache") == []


def test_tensors_that_share_memory_or_are_turned_are_kept(tmp_path):
    model, loader = make(tmp_path), loader_of()
    cache, pool = PredictionCache(tmp_path / "cache", model), torch.arange(30.0).reshape(10, 3)
    given = [dict(labels=pool[:5, 0], logits=pool[i:].T, whole=pool, half=pool.half()) for i in range(3)]
    cache.save(model.frozen["teacher"], loader, given)
    assert same(cache.load(model.frozen["teacher"], loader), given)


def test_reading_does_not_run_through_the_data(tmp_path, monkeypatch):
    model, loader = make(tmp_path), loader_of()
    cache = PredictionCache(tmp_path / "cache", model)
    measured(model, "teacher", loader, cache)
    monkeypatch.setattr(DataLoader, "__iter__", lambda _: pytest.fail("read the data"))
    assert len(cache.load(model.frozen["teacher"], loader)) == 3


@pytest.mark.parametrize(("member", "cached"), [("student", True), ("student", False), ("teacher", False)])
def test_predictions_that_are_not_kept_are_let_go(tmp_path, member, cached, monkeypatch):
    model, alive = make(tmp_path), []
    cache = PredictionCache(tmp_path / "cache", model) if cached else None

    def update(self: ToyMetric, predictions: list[Any], teacher: list[Any] | None = None) -> None:
        alive.append(weakref.ref(predictions[0]["logits"]))
        assert sum(reference() is not None for reference in alive) <= 2  # this batch's and the last one's

    monkeypatch.setattr(Keeping, "update", update)
    monkeypatch.setattr(Keeping, "values", lambda _: {})
    measured(model, member, loader_of(batch=3), cache)
    assert len(alive) == 9


# --- the key ---


def test_each_of_weights_data_split_batch_and_preprocessing_has_a_file_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(ToyAdapter, "describe", lambda _, deploy, member: dict(shifts=[deploy.shift, member.shift]))
    model, loader = make(tmp_path), loader_of()
    state, _ = read_weights(teacher_file(tmp_path))
    state["fc.bias"][0] += 1e-6
    save_weights(tmp_path / "moved.safetensors", state, metadata={})
    asked = [
        (model, loader),
        (make(tmp_path, str(tmp_path / "moved.safetensors")), loader),
        (make(tmp_path, shift=1.5), loader),  # the same weights on another normalisation
        (model, loader_of("test")),
        (model, loader_of(variant=1)),
        (model, loader_of(size=25)),
        (model, loader_of(batch=13)),
    ]
    caches = [PredictionCache(tmp_path / "cache", m) for m, _ in asked]
    paths = {c._path(c.model.frozen["teacher"], data) for c, (_, data) in zip(caches, asked)}
    assert len(paths) == len(asked)
    measured(model, "teacher", loader, caches[0])
    assert caches[0].load(model.frozen["teacher"], loader) is not None
    assert all(c.load(c.model.frozen["teacher"], data) is None for c, (_, data) in zip(caches[1:], asked[1:]))


def test_key_is_the_same_for_a_member_that_is_built_again(tmp_path):
    first, second = make(tmp_path), make(tmp_path)
    paths = {PredictionCache(tmp_path, m)._path(m.frozen["teacher"], loader_of()) for m in (first, second)}
    assert len(paths) == 1


# --- files ---


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_truncated_file_is_named(tmp_path, share):
    model, loader = make(tmp_path), loader_of()
    cache = PredictionCache(tmp_path / "cache", model)
    measured(model, "teacher", loader, cache)
    (path,) = (tmp_path / "cache").iterdir()
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CorruptFile, match=rf"{path.name}: not whole .*; delete it"):
        measured(model, "teacher", loader, cache)


@pytest.mark.parametrize(
    ("key", "said"), [("7/logits", "holds '7/logits'"), ("x", "holds 'x'"), ("1/logits", "lacks some of 3 batches")]
)
def test_file_of_other_batches_is_named(tmp_path, key, said):
    model, loader = make(tmp_path), loader_of()
    cache = PredictionCache(tmp_path, model)
    path = cache._path(model.frozen["teacher"], loader)
    assert path is not None
    save_weights(path, {"0/logits": torch.zeros(1), key: torch.zeros(1)}, metadata={})
    with pytest.raises(CorruptFile, match=rf"{path.name}: {said}.*delete it"):
        cache.load(model.frozen["teacher"], loader)


def test_failed_write_leaves_nothing(tmp_path, monkeypatch):
    model, loader = make(tmp_path), loader_of()
    cache = PredictionCache(tmp_path / "cache", model)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OutputError, match=r"cannot write .*predictions-.*No space left on device"):
        measured(model, "teacher", loader, cache)
    assert files(tmp_path / "cache") == []


def test_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    model = make(tmp_path)
    with pytest.raises(OutputError, match="cannot write"):
        measured(model, "teacher", loader_of(), PredictionCache(tmp_path / "file" / "cache", model))


# --- whole runs ---


def test_second_run_of_a_suite_asks_the_teacher_for_nothing_and_says_the_same(tmp_path, forwards):
    def run(name: str, seed: int, cache: Path | None) -> Any:
        config = toy_run(tmp_path, seed=seed)
        teacher = config.model["members"]["teacher"]
        teacher["expected"], teacher["tolerance"] = {"top1": 50.0}, 50.0  # measured on validation, and never off
        forwards.clear()
        options = RunOptions(out=tmp_path / name, records=tmp_path / name / "r", cache=cache, threads=1)
        return execute(config, options), sum(member.layer1.out_channels == 4 for member in forwards)

    cold, asked = run("a", 0, tmp_path / "cache")
    assert asked == 2  # once on validation and once on test, a batch each
    assert len(files(tmp_path / "cache")) == 2
    warm, asked = run("b", 1, tmp_path / "cache")
    assert asked == 0
    for seed, record in ((0, cold), (1, warm)):
        exact, _ = run("c", seed, None)
        assert (record.metrics, record.val_metrics) == (exact.metrics, exact.val_metrics)
        assert record.student_sha256 == exact.student_sha256
    assert len(files(tmp_path / "cache")) == 2
