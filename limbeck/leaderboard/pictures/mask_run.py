"""A run with masks trained again: looked at before the first step and after every epoch, without changing it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from mmengine.hooks import Hook
from torch.utils.data import Subset

from limbeck.engine.distiller import Distiller
from limbeck.engine.evaluate import eval_loader
from limbeck.engine.hooks import distiller_of
from limbeck.engine.record import RunRecord
from limbeck.engine.run import STUDENT_FILE, RunOptions, execute
from limbeck.engine.weights import copy_file
from limbeck.leaderboard.pictures.masks import LINK, Report
from limbeck.leaderboard.pictures.val_samples import val_samples

LevelMasks = dict[str, np.ndarray]  # by kind: 'channel' (M, C), 'spatial' (M, H, W)
AllMasks = Sequence[Sequence[Sequence[LevelMasks]]]  # by epoch, 0 before the first step, then image, then level


@dataclass(frozen=True)
class Seen:
    """What a run showed.

    samples: of the validation split.
    images: theirs, uint8 (H, W, 3).
    masks: of every image after every epoch.
    levels: the student's taps.
    student_sha256: of the student that the run saved.
    content_hash: of the validation split.
    """

    samples: list[int]
    images: list[np.ndarray]
    masks: AllMasks
    levels: list[str]
    student_sha256: str
    content_hash: str

    @property
    def finest(self) -> int:
        """The level with the largest spatial masks."""
        sizes = [level["spatial"].size for level in self.masks[0][0]]
        return sizes.index(max(sizes))

    def spatial(self) -> list[list[np.ndarray]]:
        """The spatial masks (M, H, W) of the finest level, by epoch, then image."""
        return [[levels[self.finest]["spatial"] for levels in images] for images in self.masks]

    def ranges(self) -> list[tuple[float, float]]:
        """Smallest and largest value of each of them over all images and epochs."""
        flat = np.concatenate([mask.reshape(len(mask), -1) for images in self.spatial() for mask in images], 1)
        return [(float(row.min()), float(row.max())) for row in flat]

    def changes(self) -> list[float]:
        """See the function of that name."""
        return changes(self.spatial())


def changes(masks: Sequence[Sequence[np.ndarray]]) -> list[float]:
    """Mean absolute difference of each mask between the first and the last epoch, mean over images.

    Args:
        masks: (M, H, W), by epoch, then image.
    """
    moved = [np.abs(end - start).mean((1, 2)) for start, end in zip(masks[0], masks[-1], strict=True)]
    return [float(value) for value in np.mean(moved, 0)]


def moved_most(masks: Sequence[Sequence[np.ndarray]], count: int = 2) -> list[int]:
    """The `count` masks that changed most, in their own order."""
    found = changes(masks)
    return sorted(sorted(range(len(found)), key=lambda index: (-found[index], index))[:count])


def movement(masks: AllMasks) -> dict[str, tuple[list[list[float]], list[list[float]]]]:
    """By kind: mean absolute change from the start, and mean, each by level and epoch; images count alike."""
    found = {}
    for kind in ("spatial", "channel"):
        if kind not in masks[0][0][0]:
            continue
        change, mean = [], []
        for level in range(len(masks[0][0])):
            start = [levels[level][kind] for levels in masks[0]]
            now = [[levels[level][kind] for levels in images] for images in masks]
            change.append([float(np.mean([np.abs(m - s).mean() for m, s in zip(e, start)])) for e in now])
            mean.append([float(np.mean([m.mean() for m in e])) for e in now])
        found[kind] = (change, mean)
    return found


class MaskHook(Hook):
    """Keeps the masks of some images before the first step and after every epoch.

    Teacher and student are in eval mode, forwards are without gradient and past the teacher's cache; modes and the
    count of the teacher's forwards are put back, and nothing draws a random number: the run is not changed.

    Args:
        batches: of the loader, one an image, before preprocessing.
    """

    priority = "LOWEST"

    def __init__(self, batches: Sequence[Mapping[str, Any]]) -> None:
        self.batches = batches
        self.masks: list[list[list[LevelMasks]]] = []
        self.levels: list[str] = []

    def before_train(self, runner: Any) -> None:
        self.masks.append(self._look(distiller_of(runner)))

    def after_train_epoch(self, runner: Any) -> None:
        self.masks.append(self._look(distiller_of(runner)))

    @torch.no_grad()
    def _look(self, model: Distiller) -> list[list[LevelMasks]]:
        link = next(link for link in model.methods() if type(link).__name__ == LINK)
        self.levels = [student for _, student in link.taps]
        teachers, students = ([pair[side] for pair in link.taps] for side in (0, 1))
        counted = model.teacher_forwards
        found = []
        for data in self.batches:
            ready = cast(dict[str, Any], model.data_preprocessor(dict(data), False))
            batch = model.adapter.batch(ready["inputs"], ready["data_samples"])
            t = model.member_taps(link.teachers[0], batch, teachers)
            s = model.member_taps(link.student, batch, students)
            levels = cast(Any, link).masks([t[tap] for tap in teachers], [s[tap] for tap in students])
            found.append([{kind: mask[0].float().cpu().numpy() for kind, mask in level.items()} for level in levels])
        model.teacher_forwards = counted
        return found


def train_again(record: RunRecord, teachers: Mapping[str, Path], count: int, report: Report) -> Seen:
    """Train a record's config again on the CPU, with its number of threads, in a folder that is removed afterwards.

    Args:
        teachers: files of weights by record id; the engine checks each against the sha256 in the config.
        count: images of the validation split, drawn at random with a fixed seed.
    Raises: ConfigError for a count that the split does not have; CorruptFile when it is not the record's, or weights
        are not; DataMissing, ExtraMissing.
    """
    run, dataset, samples = val_samples(record, count)
    alone = run.data.model_copy(update=dict(eval_batch_size=1))
    hook = MaskHook(list(eval_loader(alone, "val", Subset(dataset, samples))))
    with tempfile.TemporaryDirectory(prefix="limbeck-masks-") as scratch:
        runs = Path(scratch) / "runs"
        for identity, path in teachers.items():  # where the config's 'run://' weights are looked for
            copy_file(path, runs / identity / STUDENT_FILE)
        options = RunOptions(
            out=runs,
            cache=Path(scratch) / "cache",
            threads=record.environment.threads,
            latency_ms=record.cost.student_latency_ms,
            progress=lambda stage, done, total: report(done, total) if stage == "train" else None,
            hooks=[hook],
            predictions=False,
        )
        again = execute(run, options)
    assert again is not None  # rank 0 always has one
    images = [batch["inputs"][0].permute(1, 2, 0).contiguous().numpy() for batch in hook.batches]
    return Seen(samples, images, hook.masks, hook.levels, again.student_sha256, dataset.content_hash)
