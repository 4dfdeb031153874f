"""The log of a run: a line an epoch in log.jsonl, and the curves that its record keeps."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_gather_object
from mmengine.hooks import Hook

from limbeck.engine.hooks import Facts


class LogHook(Hook):
    """Writes one JSON line an epoch, the mean of every loss term, and one a validation; notes both for the record.

    Over several processes the mean is that of all of them. A resumed run takes back the lines that came after its
    checkpoint, which it writes again.
    """

    priority = "LOW"

    def __init__(self, path: Path, facts: Facts) -> None:
        self.path, self.facts = path, facts
        self._sums: dict[str, torch.Tensor] = {}
        self._count = 0

    def before_train_epoch(self, runner: Any) -> None:
        self._sums, self._count = {}, 0

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        for key, value in (outputs or {}).items():
            value = value.detach()
            self._sums[key] = self._sums[key] + value if key in self._sums else value
        self._count += 1

    def after_train_epoch(self, runner: Any) -> None:
        means = {k: v.item() / max(self._count, 1) for k, v in self._sums.items()}
        if runner.world_size > 1:
            means = _mean_of(all_gather_object(means))
        self.facts.epochs.append((runner.epoch + 1, self.facts.lr_last, means))
        if not runner.rank:
            self._write(dict(epoch=runner.epoch + 1, **means))

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        self.facts.validations.append((runner.epoch, self.facts.last_val))
        if not runner.rank:
            self._write(dict(epoch=runner.epoch, val=metrics))

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["log_bytes"] = self._bytes()

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        if not runner.rank and self._bytes() > checkpoint.get("log_bytes", self._bytes()):
            os.truncate(self.path, checkpoint["log_bytes"])

    def _bytes(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def _write(self, line: dict[str, Any]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _mean_of(ranks: list[dict[str, float]]) -> dict[str, float]:
    """Of each term; a rank whose batches did not have it adds 0, as a step without it does."""
    names = dict.fromkeys(name for means in ranks for name in means)
    return {name: sum(means.get(name, 0.0) for means in ranks) / len(ranks) for name in names}
