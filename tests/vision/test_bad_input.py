"""What a user may get wrong about data and models: each is one sentence before training, or has a defined meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limbeck.engine.config import expand, load_pair
from limbeck.engine.record import RunRecord
from limbeck.engine.registry import DATASETS, MODELS
from limbeck.engine.run import RunOptions, execute
from limbeck.engine.weights import save_weights
from limbeck.errors import ConfigError, ShapeMismatch, TrainingStopped
from limbeck.vision.data.base import ArrayDataset


@DATASETS.register_module(force=True)
class FourClasses(ArrayDataset):
    """Ten grey images a class whose label `last` may be moved, or which all carry one label."""

    name = "four-classes"

    def __init__(self, split: str, last: int = 3, only: int | None = None) -> None:
        labels = np.repeat(np.array([0, 1, 2, last]), 10) if only is None else np.full(40, only)
        pixels = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
        self.classes = ["a", "b", "c", "d"]
        super().__init__(split, pixels, labels, augment=None, views=0, seed=0, limit=None)


def run(
    folder: Path,
    method: str,
    *,
    data: dict[str, Any] | None = None,
    teacher: dict[str, Any] | None = None,
    student: dict[str, Any] | None = None,
    limit: int | None = None,
) -> RunRecord:
    """One epoch of digits, or of four made-up classes where `data` has their arguments."""
    pair = load_pair("vision/digits")
    pair.recipe.epochs = 1
    if data is not None:
        for split in ("train", "val", "test"):
            setattr(pair.data, split, dict(type="FourClasses", split=split))
        pair.data.train.update(data)
        pair.student["num_classes"] = pair.teacher["num_classes"] = 4
    if limit is not None:
        pair.data.train["limit"] = limit
    pair.student.update(student or {})
    pair.teacher.update(teacher or {})
    weights = folder / "teacher.safetensors"
    save_weights(weights, MODELS.make(pair.teacher).state_dict(), metadata={})
    config = expand(pair, method, 0, teacher_weights=str(weights))
    record = execute(config, RunOptions(out=folder / "runs", records=folder / "records", threads=1, latency_ms=0.0))
    assert record is not None
    return record


def nothing_was_written(folder: Path) -> bool:
    return not list(folder.rglob("*.json")) and not list((folder / "runs").rglob("student.safetensors"))


def test_student_with_fewer_classes_than_the_data(tmp_path):
    with pytest.raises(ConfigError, match=r"CIFARResNet has 5 classes and data set digits has 10.*num_classes=10"):
        run(tmp_path, "plain", student={"num_classes": 5})
    assert nothing_was_written(tmp_path)


@pytest.mark.parametrize("label", [4, -1])
def test_label_out_of_range(tmp_path, label):
    with pytest.raises(ConfigError, match=r"four-classes has labels from .* names 4 classes"):
        run(tmp_path, "KD", data={"last": label})
    assert nothing_was_written(tmp_path)


@pytest.mark.parametrize("method", ["KD", "DKD", "DIST", "SinKD", "BDKD", "MixupKD", "OFAKD"])
def test_teacher_with_other_classes_cannot_give_logits(tmp_path, method):
    with pytest.raises(ShapeMismatch, match=r"5\).*10\)|5 classes|10 classes"):
        run(tmp_path, method, teacher={"num_classes": 5})
    assert nothing_was_written(tmp_path)


@pytest.mark.parametrize("method", ["FitNet", "AT", "SPKD", "RKD"])
def test_teacher_with_other_classes_can_give_features(tmp_path, method):
    record = run(tmp_path, method, teacher={"num_classes": 5})
    assert "agreement" not in record.metrics  # of 5 and 10 classes none agree


def test_fewer_samples_than_a_batch_is_one_small_batch(tmp_path):
    record = run(tmp_path, "KD", limit=20)
    assert (record.recipe.batch_size, record.recipe.steps) == (20, 1)


def test_images_of_another_size_than_a_member_wants_are_resized_for_it(tmp_path):
    record = run(tmp_path, "KD", teacher={"input_size": (1, 16, 16)}, student={"input_size": (1, 12, 12)})
    assert record.metrics["top1"] >= 0.0
    with pytest.raises(ShapeMismatch, match="student map of exactly half"):
        run(tmp_path, "FitNet", teacher={"input_size": (1, 24, 24)})


@pytest.mark.parametrize("method", ["plain", "KD", "FitNet"])
def test_one_class_only_trains(tmp_path, method):
    assert run(tmp_path, method, data={"only": 2}).data.train_samples == 40


@pytest.mark.parametrize(("method", "said"), [("ND", "class 0"), ("CRD", "class")])
def test_one_class_only_is_refused_where_others_are_needed(tmp_path, method, said):
    with pytest.raises((ConfigError, TrainingStopped), match=said):
        run(tmp_path, method, data={"only": 2})
    assert nothing_was_written(tmp_path)
