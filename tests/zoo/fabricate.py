"""Makes a tiny real student and a made-up record of it; nothing here was ever measured."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.config import RunConfig, parse
from limbeck.engine.record import RunRecord, config_hash
from limbeck.engine.registry import DATASETS, MODELS
from limbeck.engine.weights import save_weights
from limbeck.zoo import add_student
from limbeck.zoo.card import Card

SHAPE = dict(in_chans=1, num_classes=10, mean=[0.3], std=[0.38], input_size=[1, 8, 8])
STUDENT = dict(type="CIFARResNet", depth=8, width=4, **SHAPE)
TEACHER = dict(type="CIFARResNet", depth=20, width=16, **SHAPE)
NAME = "resnet8w4.toy_kd"


def digits(count: int | None = None) -> tuple[Tensor, Tensor]:
    """The first real test digits, uint8 (B, 1, 8, 8), and their labels."""
    dataset = DATASETS.make(dict(type="Digits", split="test"))
    batch = dataset.__getitems__(range(len(dataset) if count is None else count))
    return batch["inputs"], batch["data_samples"]["labels"]


@cache
def trained() -> nn.Module:
    """A student after some steps on the training digits: far from good, but no longer chance."""
    torch.manual_seed(0)
    model = MODELS.make(STUDENT).train()
    dataset = DATASETS.make(dict(type="Digits", split="train"))
    batch = dataset.__getitems__(range(len(dataset)))
    inputs, labels = (batch["inputs"].float() / 255 - 0.3) / 0.38, batch["data_samples"]["labels"]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(80):
        chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(step))[:128]
        optimizer.zero_grad()
        F.cross_entropy(model(inputs[chosen]), labels[chosen]).backward()
        optimizer.step()
    return model.eval()


def write_weights(path: Path, model: nn.Module | None = None) -> str:
    """Save a student as a run does; gives its sha256."""
    state = (model or trained()).state_dict()
    return save_weights(path, state, metadata={"limbeck": json.dumps({"id": "made-up"})}, dtype=torch.float16)


def run_config(method: str, seed: int, student: dict[str, Any]) -> dict[str, Any]:
    """A resolved config, valid for the engine."""
    members: dict[str, Any] = dict(student=dict(type="trained", model=student))
    if method not in ("teacher", "plain"):
        members["teacher"] = dict(type="frozen", model=TEACHER, weights="run://toy/big-small/teacher/seed0")
    value = dict(
        task="image-classification",
        benchmark="toy",
        pair="big-small",
        method=method,
        seed=seed,
        model=dict(
            type="Distiller",
            members=members,
            deploy="student",
            adapter=dict(type="VisionAdapter"),
            links=[],
            task_weight=1.0,
        ),
        data={split: dict(type="Digits", split=split) for split in ("train", "val", "test")},
        metric=dict(type="ClassificationMetric"),
        recipe=dict(epochs=1),
    )
    return parse(RunConfig, value, "made-up run").model_dump(mode="json")


def fabricate(
    sha256: str, method: str = "KD", seed: int = 0, student: dict[str, Any] | None = None, **changes: Any
) -> RunRecord:
    """A valid record with the weights of that hash; `changes` replace fields."""
    config = changes.pop("config", None) or run_config(method, seed, student or STUDENT)
    distilled = method not in ("teacher", "plain")
    values: dict[str, Any] = dict(
        task="image-classification",
        benchmark="toy",
        pair="big-small",
        method=method,
        seed=seed,
        data=dict(name="digits", content_hash="d" * 64, train_samples=8, val_samples=2, test_samples=5),
        teacher=dict(name="CIFARResNet 20 16", parameters=270_000, flops=1000) if distilled else None,
        student=dict(name="CIFARResNet 8 4", parameters=4_900, flops=500),
        config=config,
        config_hash=config_hash(config),
        metrics=dict(top1=12.5, nll=2.0),
        per_class=dict(top1={str(c): 12.5 for c in range(10)}),
        recipe=dict(
            batch_size=64,
            learning_rate_first=0.1,
            learning_rate_max=0.1,
            learning_rate_last=0.0,
            epochs=1,
            steps=1,
            optimizer="SGD",
            selection="last",
        ),
        cost=dict(train_seconds=1.0, samples_seen=8, teacher_forwards=8, peak_memory_mb=1.0),
        environment=dict(
            device="cpu",
            cpu="made-up CPU",
            threads=1,
            platform="fixture",
            python="3.11",
            torch="2.x",
            limbeck="0.0-fixture",
            git_commit="c" * 40,
            git_dirty=True,
        ),
        student_sha256=sha256,
        initial_hash="0" * 64,
        teacher_record="toy/big-small/teacher/seed0" if distilled else None,
        finished="2025-01-01T00:00:00+00:00",
    )
    return RunRecord.model_validate(values | changes)


def make_zoo(folder: Path, method: str = "KD", seed: int = 0, **changes: Any) -> tuple[Path, Card]:
    """A zoo folder with one more student of a made-up record."""
    weights = folder / "run" / "student.safetensors"
    sha256 = write_weights(weights)
    zoo = folder / "zoo"
    return zoo, add_student(fabricate(sha256, method, seed, **changes), weights, zoo_dir=zoo)


def flip_bit(path: Path, place: int = -1) -> None:
    """Damage one bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
