"""What both heads of a saved student say of its record's test split, on the CPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from limbeck.engine.adapter import TaskAdapter
from limbeck.engine.config import RunConfig, parse
from limbeck.engine.data import UNLABELLED
from limbeck.engine.evaluate import build_dataset, eval_loader, predictions_of, without_pretrained
from limbeck.engine.record import RunRecord
from limbeck.engine.registry import ADAPTERS, MODELS
from limbeck.engine.weights import load_into
from limbeck.errors import ConfigError, CorruptFile
from limbeck.leaderboard.pictures.reliability import Bins, bins_of

_LOGITS = {"ce": "ce_logits", "kd": "kd_logits", "answer": "logits"}


@dataclass(frozen=True)
class Seen:
    """The bins of each head, the mix of the answer, and how many samples have a label."""

    heads: dict[str, Bins]
    alpha: float
    beta: float
    samples: int


def head_bins(record: RunRecord, weights: Path) -> Seen:
    """Bins of the CE head, the KD head and the answer.

    Raises: CorruptFile when weights or the test split are not those of the record; ConfigError for a student that has
        not two heads; DataMissing, ExtraMissing.
    """
    run = parse(RunConfig, dict(record.config), f"the config of {record.id}")
    dataset = build_dataset(run.data, "test")
    if dataset.content_hash != record.data.content_hash:
        raise CorruptFile(
            f"the test split of {record.data.name} found here has hash {dataset.content_hash[:12]}…, that of "
            f"{record.id} has {record.data.content_hash[:12]}…; get the data that the record was made with"
        )
    adapter = cast(TaskAdapter, ADAPTERS.make(run.model["adapter"]))
    model = cast(nn.Module, MODELS.make(without_pretrained(run.deployed)))
    load_into(model, weights, sha256=record.student_sha256)
    loader = eval_loader(run.data, "test", dataset)
    parts = predictions_of(model, adapter, loader, adapter.preprocessor(model))
    if not all("kd_logits" in part for part in parts):
        raise ConfigError(f"{record.id} has not two heads to draw; name a benchmark with DHO")
    labels = torch.cat([part["labels"] for part in parts])
    known = labels != UNLABELLED
    heads = {
        head: _bins(torch.cat([part[name] for part in parts])[known], labels[known]) for head, name in _LOGITS.items()
    }
    first = parts[0]
    return Seen(heads, float(first["alpha"][0]), float(first["beta"][0]), int(known.sum()))


def _bins(logits: Tensor, labels: Tensor) -> Bins:
    confidence, answer = logits.double().softmax(1).max(1)
    return bins_of(confidence.numpy(), (answer == labels).numpy())
