"""Measures students at every hand-over step on the requests of the test split, on the CPU."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.engine.record import RunRecord
from limbeck.leaderboard.pictures.generator_run import Requests, config_of, load_generator, requests_of
from limbeck.multimodal.diffusion.denoiser import Denoiser, Prediction
from limbeck.multimodal.diffusion.generator import ImageGenerator
from limbeck.multimodal.diffusion.hand_over import hand_over
from limbeck.multimodal.diffusion.samplers import generators, noise

Report = Callable[[int, int], None]
Key = tuple[str, int, int]  # of a point: the student's record, the teacher's steps, and where it hands over


@dataclass(frozen=True)
class Seen:
    """Of each student, by record id, the fields of its points; and what the figures are of."""

    points: dict[str, list[dict[str, Any]]]
    seed: int
    images: int
    metric_id: str


class Remembered(Denoiser):
    """A teacher that is asked the same questions for every student and hand-over step, and computes each once.

    What it counts as calls is what it would have cost; `forget` before a new batch.
    """

    def __init__(self, model: Denoiser) -> None:
        super().__init__(
            model.network,
            model.schedule,
            model.prediction,
            model.num_classes,
            model.image_shape[1:],
            model.image_shape[0],
            model.clip,
            model.has_null,
        )
        self.forget()

    def forget(self) -> None:
        """Drop all answers."""
        self._known: dict[tuple[Any, float], list[tuple[Prediction, Tensor | None, int]]] = defaultdict(list)

    def predict(self, z: Tensor, t: Any, labels: Tensor | None = None, guidance: float = 1.0) -> Prediction:
        """As `Denoiser.predict`, for one time as an int."""
        known = self._known[int(t), guidance]
        for found, asked, calls in known:
            if torch.equal(found.z, z) and _same(asked, labels):
                self.calls += calls
                return found
        before = self.calls
        found = super().predict(z, t, labels, guidance)
        known.append((found, labels, self.calls - before))
        return found


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b if a is None or b is None else torch.equal(a, b)


def measure(
    records: Mapping[str, RunRecord],
    taught: Mapping[str, str],
    weights: Mapping[str, Path],
    images: int | None,
    report: Report,
) -> Seen:
    """Every student at every hand-over step 0 … N, with the teacher on the student's times and on its own.

    Args:
        records, weights: of students and teachers, by record id.
        taught: the teacher of each student.
        images: requests, the first; all where not given.
    Raises: CorruptFile, DataMissing, ConfigError.
    """
    first = records[next(iter(taught))]
    run = config_of(first)
    asked = requests_of(first, images)
    teachers = {one: load_generator(records[one], weights[one]) for one in dict.fromkeys(taught.values())}
    remembered = {one: Remembered(model) for one, model in teachers.items()}
    students = {one: load_generator(records[one], weights[one]) for one in taught}
    metrics: dict[Key, Any] = {}
    calls: dict[Key, int] = {}
    shape, size = next(iter(students.values())).image_shape, run.data.eval_batch_size
    starts = range(0, len(asked), size)
    for done, start in enumerate(starts):
        rows = slice(start, start + size)
        z = noise(len(asked.labels[rows]), shape, asked.seed, first=start)
        for base in remembered.values():
            base.forget()
        for student, teacher in taught.items():
            for base_steps, at in points_of(students[student], teachers[teacher]):
                # The teacher's own images are the same for every student
                key = (teacher if at == students[student].sampler.steps else student, base_steps, at)
                if key in metrics and len(metrics[key][1]) > done:
                    continue
                made = _made(remembered[teacher], teachers[teacher], students[student], z, asked, start, base_steps, at)
                calls[key] = made.calls
                metric, seen = metrics.setdefault(key, (run.metric.build(), []))
                metric.update([dict(image=made.images, label=asked.labels[rows], split=asked.splits[rows])])
                seen.append(start)
        report(done + 1, len(starts))
    values = {key: metric.values() for key, (metric, _) in metrics.items()}
    identity = next(iter(metrics.values()))[0].metric_id
    points: dict[str, list[dict[str, Any]]] = {}
    for student, teacher in taught.items():
        steps = students[student].sampler.steps
        points[student] = []
        for base_steps, at in points_of(students[student], teachers[teacher]):
            key = (teacher if at == steps else student, base_steps, at)
            points[student].append(dict(at=at, base_steps=base_steps, calls=calls[key], metrics=values[key]))
    return Seen(points, asked.seed, len(asked), identity)


def points_of(student: ImageGenerator, teacher: ImageGenerator) -> Iterator[tuple[int, int]]:
    """The teacher's steps and the hand-over step of every point; the student alone comes once."""
    steps = student.sampler.steps
    for base_steps in dict.fromkeys((steps, teacher.sampler.steps)):
        for at in range(0 if base_steps == steps else 1, steps + 1):
            yield base_steps, at


def _made(
    base: Denoiser,
    teacher: ImageGenerator,
    student: ImageGenerator,
    z: Tensor,
    asked: Requests,
    start: int,
    base_steps: int,
    at: int,
) -> Any:
    """Images of a batch of requests, from the noise and with the draws on the way that their figures are of."""
    sampler = student.sampler
    labels = None if student.num_classes is None else asked.labels[start : start + len(z)]
    return hand_over(
        base,
        student,
        z,
        labels,
        student_steps=sampler.steps,
        at=at,
        base_steps=base_steps,
        guidance=teacher.sampler.guidance,
        student_guidance=sampler.guidance,
        student_kind=sampler.kind,
        clip=sampler.clip,
        generators=generators(len(z), asked.seed, first=start),
    )
