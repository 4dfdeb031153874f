"""Trains sliders on recorded models, and samples with them from the noise of the test split's requests, on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from limbeck.engine.record import RunRecord
from limbeck.engine.weights import hash_state
from limbeck.errors import ConfigError
from limbeck.leaderboard.pictures.generator_run import config_of, load_generator, requests_of, train_images
from limbeck.multimodal.diffusion.controls.attributes import Pairs, halves
from limbeck.multimodal.diffusion.controls.low_rank import LowRankAdapter
from limbeck.multimodal.diffusion.controls.sliders import SCALES, ControlCurve, control_curve, train_slider
from limbeck.multimodal.diffusion.controls.transfer import bounded_ratio, bounded_slope, image_slopes
from limbeck.multimodal.diffusion.generator import ImageGenerator
from limbeck.multimodal.diffusion.samplers import noise

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Asked:
    """What is measured.

    steps, rank, seed: of a slider's training. images: requests. drawn: requests whose images are kept, the first.
    """

    attribute: str
    steps: int
    images: int
    rank: int
    seed: int
    drawn: int


@dataclass(frozen=True, eq=False)
class Seen:
    """Fields of sliders and curves, and what they are of.

    images: by record, those (S, drawn, C, H, W) of its teacher's slider at each scale. drawn: their classes.
    """

    sliders: list[dict[str, Any]]
    curves: list[dict[str, Any]]
    images: dict[str, Tensor]
    scales: Sequence[float]
    seed: int
    train_hash: str | None
    drawn: list[str]


def measure(
    records: Mapping[str, RunRecord],
    taught: Mapping[str, str],
    reverse: Sequence[str],
    weights: Mapping[str, Path],
    asked: Asked,
    report: Report,
) -> Seen:
    """The teacher's slider on the teacher and its students, and the slider of some students on these and the teacher.

    Args:
        records, weights: of students and teachers, by record id.
        taught: the teacher of each student. reverse: the students that a slider is trained on.
    Raises: CorruptFile, DataMissing, ConfigError.
    """
    first = records[next(iter(taught))]
    requests, size = requests_of(first, asked.images), config_of(first).data.eval_batch_size
    teachers = list(dict.fromkeys(taught.values()))
    models = {one: load_generator(records[one], weights[one]) for one in (*teachers, *taught)}
    for one, teacher in taught.items():
        _check_fits(one, models[one], models[teacher], asked.rank)
    pairs = {t: halves(*_training(records[t], models[t]), asked.attribute) for t in teachers}
    used = {t: [t, *(s for s, of in taught.items() if of == t)] for t in teachers}
    used |= {s: [s, taught[s]] for s in reverse}
    total, done = len(used) + sum(map(len, used.values())), 0
    sliders, curves, images = [], [], {}
    for trained, others in used.items():
        model, is_teacher = models[trained], trained not in taught
        times = None if is_teacher else model.schedule.trailing(model.sampler.steps).tolist()
        slider = _train(model, pairs[trained if is_teacher else taught[trained]], times, asked)
        report(done := done + 1, total)
        sliders.append(dict(trained_on=trained, sha256=hash_state(slider.state_dict()), times=times))
        own: np.ndarray | None = None
        for one in others:
            curve = _curve(models[one], slider, requests, asked.attribute, size)
            report(done := done + 1, total)
            curves.append(dict(slider=trained, model=one) | _figures(curve, own))
            own = image_slopes(curve) if own is None else own
            if is_teacher and curve.images is not None:
                images[one] = curve.images[:, : asked.drawn].clone()
    names = [requests.classes[int(label)] for label in requests.labels[: asked.drawn]]
    return Seen(sliders, curves, images, SCALES, requests.seed, records[teachers[0]].data.train_hash, names)


def _check_fits(student: str, model: ImageGenerator, teacher: ImageGenerator, rank: int) -> None:
    """Raises: ConfigError for a student of another architecture."""
    try:
        LowRankAdapter.of(teacher, rank=rank).check(model)
    except ConfigError as error:
        raise ConfigError(f"{student}: {error}") from error


def _training(record: RunRecord, model: ImageGenerator) -> tuple[Tensor, Tensor | None]:
    """The images that a teacher was trained on, and their labels; none for an unconditional model."""
    images, labels = train_images(record, model)
    return images, None if model.num_classes is None else labels


def _train(model: ImageGenerator, pairs: Pairs, times: Sequence[int] | None, asked: Asked) -> LowRankAdapter:
    """A slider of a model, by the loss on what its network predicts, which is of use at every time that it knows."""
    return train_slider(
        model,
        pairs,
        rank=asked.rank,
        steps=asked.steps,
        loss_on=model.prediction,
        times=times,
        seed=asked.seed,
        show=False,
    ).adapter


def _figures(curve: ControlCurve, own: np.ndarray | None) -> dict[str, Any]:
    """Of a curve; `own` are the slopes (B,) on the slider's own model, None where the curve is on that."""
    slopes = image_slopes(curve)
    ratio = None if own is None else bounded_ratio(slopes, own)
    return dict(
        means=curve.means.tolist(),
        image_slopes=slopes.tolist(),
        slope=bounded_slope(slopes)._asdict(),
        ratio=None if ratio is None else ratio._asdict(),
    )


def _curve(
    model: ImageGenerator, slider: LowRankAdapter, requests: Any, attribute: str, batch_size: int
) -> ControlCurve:
    """Of a model's own sampler; at scale 0 its images are those that its figures are of."""
    return control_curve(
        model,
        slider,
        model.sampler,
        noise(len(requests), model.image_shape, requests.seed),
        None if model.num_classes is None else requests.labels,
        SCALES,
        attribute,
        batch_size=batch_size,
        seed=requests.seed,
        keep_images=True,
    )
