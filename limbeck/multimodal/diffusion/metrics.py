"""Figures of generated images against real ones, as the engine asks for them: quality, diversity, labels, calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from limbeck.engine.data import SPLITS
from limbeck.engine.registry import METRICS
from limbeck.errors import ConfigError
from limbeck.multimodal.diffusion.evaluation.features import extract, load_features, net_spec, to_pixels
from limbeck.multimodal.diffusion.evaluation.figures import Measured, Sample, drawn, halves, intervals, measure
from limbeck.multimodal.diffusion.evaluation.neighbours import memorisation_ratio
from limbeck.multimodal.diffusion.evaluation.reference import (
    RealSplit,
    distances_to_training,
    read_split,
    reference_sample,
    to_training,
)
from limbeck.multimodal.diffusion.evaluation.statistics import frechet_distance, label_agreement
from limbeck.multimodal.diffusion.fid_metric import FIDMetric

__all__ = ["FIDMetric", "GenerationMetric"]


@METRICS.register_module()
class GenerationMetric:
    """Gathers generated images and compares them with a real split, in the features of a small net that we trained.

    Its Fréchet distance is `FD-<features>`, lower is better; it is no FID, which has Inception's features, and its
    values compare only with those of one `metric_id`. Definitions follow metrics.md, where it differs from section 6
    of diffusion.md: k is 3 for precision and recall, not 5; the kernel distance is over all pairs, not over subsets;
    memorisation compares distances to training images of generated and of unseen real images; diversity is a plain
    distance in the features of the last layer.

    A prediction is `dict(image=(C, H, W), label=int, calls=int)`, or of a whole batch `dict(image=(B, C, H, W),
    label=(B,), calls=(B,))`, the form that the engine's cache of a teacher's predictions keeps. Images are float in
    [−1, 1]; label is the class that was asked for; calls, the network calls for the image, may be left out.

    `values` are those of `figures.measure`, and
        `FD-<features>_floor`: of two disjoint parts of the real split, of as many images as were generated, but at most
        half of them, against all others;
        `memorisation`: see `memorisation_ratio`; of at most 1,000 images;
        `calls`: network calls an image, mean;
        `mse_to_teacher`: mean squared difference of pixels, where the engine gives the teacher's images from the same
        noise.

    Args:
        features: the feature net, 'fashion-mnist' or 'digits'.
        reference: config of the real split; None is that split of the data set that the net was trained on which the
            predictions name by `split`, an index into train, val and test; without one, test.
        training: config of the split that the generator was trained on, for `memorisation`; 'own' is the train split of
            that data set; None leaves the figure out.
        images: how many generated images the figures are of, drawn with a fixed seed from those given; None takes all.
    Raises: UnknownName for `features`; ConfigError for images that do not fit, are not finite, or are too few;
        DataMissing, CorruptFile.
    """

    def __init__(
        self,
        features: str = "fashion-mnist",
        reference: Mapping[str, Any] | None = None,
        training: Mapping[str, Any] | Literal["own"] | None = "own",
        images: int | None = None,
    ) -> None:
        self.features = features
        self.spec = net_spec(features)
        if images is not None and images < 1:
            raise ConfigError(f"images is at least 1, or None for all; got {images}")
        self.images = images
        self._reference_cfg = None if reference is None else dict(reference)
        own = dict(type=self.spec.dataset, split="train")
        self._training_cfg = None if training is None else own if isinstance(training, str) else dict(training)
        self.reset()

    def reset(self) -> None:
        """Forget every image."""
        self._split: str | None = None
        self._pixels: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._calls: list[Tensor] = []
        self._squares: list[Tensor] = []
        self._forget()

    def _forget(self) -> None:
        for name in ("_real", "_reference", "_rows", "_sample", "_measured"):
            self.__dict__.pop(name, None)

    def update(
        self, predictions: Sequence[Mapping[str, Any]], teacher: Sequence[Mapping[str, Any]] | None = None
    ) -> None:
        """Add images, with the teacher's from the same noise where given. Raises: ConfigError."""
        for prediction in predictions:
            self._note_split(prediction)
        _ = self._real, self._training  # missing data should be said before thousands of images are made
        for prediction in predictions:
            self._add(prediction)
        for mine, theirs in zip(predictions, teacher or predictions[:0], strict=teacher is not None):
            a, b = (_batch(p["image"]).float() for p in (mine, theirs))
            if a.shape == b.shape:
                self._squares.append((a - b.to(a)).square().flatten(1).mean(1).cpu())
        self._forget()

    def _note_split(self, prediction: Mapping[str, Any]) -> None:
        if "split" not in prediction:
            return
        named = {SPLITS[int(k)] for k in torch.as_tensor(prediction["split"]).reshape(-1).unique()}
        if named and named != {self._split or min(named)}:
            got = ", ".join(sorted(named | {s for s in [self._split] if s}))
            raise ConfigError(f"figures are of requests of one split; got {got}: reset the metric between splits")
        self._split = next(iter(named), self._split)

    def _add(self, prediction: Mapping[str, Any]) -> None:
        images = _batch(prediction["image"]).detach().cpu()
        labels = torch.as_tensor(prediction["label"]).reshape(-1).cpu()
        start = sum(map(len, self._labels))
        if tuple(images.shape[1:]) != self.spec.image or not images.is_floating_point():
            raise ConfigError(
                f"GenerationMetric with features {self.features!r} takes float images {self.spec.image} in [-1, 1]; "
                f"got {images.dtype} {tuple(images.shape[1:])}: choose the features of this data set"
            )
        wrong = (~images.isfinite().flatten(1).all(1)).nonzero().flatten()
        if len(wrong):
            raise ConfigError(
                f"generated image {start + int(wrong[0])} has values that are not finite; look for NaN in the model's "
                "weights or its sampler's settings"
            )
        off = labels[(labels < 0) | (labels >= self.spec.num_classes)]
        if len(labels) != len(images) or len(off):
            said = f"label {int(off[0])}" if len(off) else f"{len(labels)} labels for {len(images)} images"
            raise ConfigError(
                f"generated images have one label each, in 0 to {self.spec.num_classes - 1}; got {said}: ask the "
                "sampler for these classes"
            )
        self._pixels.append(to_pixels(images))
        self._labels.append(labels.long())
        if "calls" in prediction:
            self._calls.append(torch.as_tensor(prediction["calls"]).reshape(-1).cpu().double())

    # --- what the figures are of ---

    @cached_property
    def _real(self) -> RealSplit:
        own = dict(type=self.spec.dataset, split=self._split or "test")
        return read_split(self._reference_cfg or own, "in the metric's reference")

    @cached_property
    def _training(self) -> RealSplit | None:
        return None if self._training_cfg is None else read_split(self._training_cfg, "in the metric's training split")

    @cached_property
    def _reference(self) -> Sample:
        found = reference_sample(self.features, self._real)
        if len(found) and int(found.labels.max()) >= self.spec.num_classes:
            raise ConfigError(
                f"data set {self._real.name} has a label {found.labels.max()}, and features {self.features!r} know "
                f"{self.spec.num_classes} classes; choose the features of this data set"
            )
        return found

    @cached_property
    def _rows(self) -> np.ndarray:
        count = sum(map(len, self._labels))
        if not count or count < (self.images or 0):
            raise ConfigError(
                f"the metric got {count} generated images and needs {self.images or 'at least one'}; generate more"
            )
        return drawn(count, self.images or count)

    def _used_pixels(self) -> Tensor:
        rows = torch.from_numpy(self._rows)
        return torch.cat(self._pixels)[rows]

    @cached_property
    def _sample(self) -> Sample:
        pixels = self._used_pixels()
        return Sample(
            extract(load_features(self.features), pixels)[0],
            torch.cat(self._labels).numpy()[self._rows],
            extract(load_features(self.features, "judge"), pixels)[1],
        )

    @cached_property
    def _measured(self) -> Measured:
        return measure(self.features, self.spec.num_classes, self._reference, self._sample)

    @property
    def metric_id(self) -> str:
        """Both nets, the real split, and the number of generated images: values compare only where this is the same."""
        nets = (self.spec.sha256["features"], self.spec.sha256["judge"], self._real.content_hash)
        return "-".join([*(digest[:12] for digest in nets), f"m{len(self._rows)}"])

    # --- figures ---

    def values(self) -> dict[str, float]:
        """Figures by name, see the class. Raises: ConfigError for fewer than six images."""
        found = dict(self._measured.values)
        part, rest = halves(self._reference, len(self._rows))
        found[f"FD-{self.features}_floor"] = frechet_distance(rest.features, part.features)
        if self._training is not None:
            near = distances_to_training(self._real, self._training)
            found["memorisation"] = memorisation_ratio(to_training(self._used_pixels(), self._training), near)
        for name, parts in (("calls", self._calls), ("mse_to_teacher", self._squares)):
            if parts:
                found[name] = float(torch.cat(parts).double().mean())
        return found

    def floors(self) -> dict[str, float]:
        """The figures that real images themselves have, as generated images: one part of the real split to the others.

        The part has as many images as were generated, at most half of the split.
        """
        part, rest = halves(self._reference, len(self._rows))
        return measure(self.features, self.spec.num_classes, rest, part).values

    def intervals(self, *, resamples: int = 200) -> dict[str, tuple[float, float]]:
        """95 % bootstrap intervals over images, see `figures.intervals`."""
        return intervals(self.features, self._reference, self._sample, self._measured, resamples=resamples)

    def per_class(self) -> dict[str, list[float]]:
        """`label_agreement` of each class in percent, in the order of labels; 0 for one without images."""
        sample = self._sample
        return {"label_agreement": label_agreement(sample.predicted, sample.labels, self.spec.num_classes)}


def _batch(image: Tensor) -> Tensor:
    return image[None] if image.ndim == 3 else image
