"""Ground truth of detection: boxes of a padded batch, and the same as mmdetection reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import ConfigError, ShapeMismatch


@dataclass(slots=True)
class DetectionTargets:
    """Boxes and labels of B images that lie at the top left of a padded batch.

    Args:
        boxes: (B, M, 4) float32, x1 y1 x2 y2 in pixels of the network input, padded with 0.
        labels: (B, M) int64, 0 … K − 1; −1 is padding.
        shapes: (B, 2) int64, height and width of each image before padding.
        input_shape: height and width of the padded batch.
        crowd: (B, M) bool, regions of many objects, which training ignores; None where there are none.
    """

    boxes: Tensor
    labels: Tensor
    shapes: Tensor
    input_shape: tuple[int, int]
    crowd: Tensor | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def of(self, index: int) -> tuple[Tensor, Tensor]:
        """Boxes (n, 4) and labels (n,) of an image's objects, without padding and crowds."""
        real = self.labels[index] >= 0
        if self.crowd is not None:
            real = real & ~self.crowd[index]
        return self.boxes[index][real], self.labels[index][real]

    def crowds(self, index: int) -> tuple[Tensor, Tensor]:
        """Boxes (n, 4) and labels (n,) of an image's crowds."""
        real = self.labels[index] >= 0
        real = torch.zeros_like(real) if self.crowd is None else real & self.crowd[index]
        return self.boxes[index][real], self.labels[index][real]


def read_targets(inputs: Tensor, samples: dict[str, Tensor]) -> DetectionTargets | None:
    """The targets of images (B, C, H, W) from their `data_samples`; None where these have no boxes.

    Raises: ShapeMismatch when the parts do not belong together; ConfigError, naming the sample, for a box that does not
        lie in its image or has no area, and for an image that is larger than the batch.
    """
    shapes = read_shapes(inputs, samples)
    if samples.get("boxes") is None:
        return None
    boxes, labels, crowd = samples["boxes"], samples.get("labels"), samples.get("crowd")
    if labels is None:
        raise ConfigError("data_samples have boxes without labels; a batch of detection needs both")
    count, most = len(inputs), labels.shape[1] if labels.dim() == 2 else -1
    fits = {tuple(labels.shape), tuple(boxes.shape[:2])} == {(count, most)} and tuple(boxes.shape[2:]) == (4,)
    if not fits or (crowd is not None and crowd.shape != labels.shape):
        found = [tuple(part.shape) for part in (boxes, labels, crowd) if part is not None]
        raise ShapeMismatch(f"boxes, labels and crowd {found} do not fit {count} images; (B, M, 4) and (B, M) would")
    _check_boxes(boxes, labels, shapes, samples.get("ids"))
    size = (int(inputs.shape[2]), int(inputs.shape[3]))
    return DetectionTargets(boxes.float(), labels.long(), shapes, size, None if crowd is None else crowd.bool())


def read_shapes(inputs: Tensor, samples: dict[str, Tensor]) -> Tensor:
    """Height and width of each image before padding (B, 2); the whole batch's where the samples do not say.

    Raises: ShapeMismatch; ConfigError for an image that is larger than the batch.
    """
    whole = torch.tensor(inputs.shape[2:], dtype=torch.int64, device=inputs.device)
    shapes = samples.get("shapes")
    if shapes is None:
        return whole.expand(len(inputs), 2)
    if shapes.shape != (len(inputs), 2):
        raise ShapeMismatch(f"shapes {tuple(shapes.shape)} do not fit {len(inputs)} images; (B, 2) would")
    wrong = ((shapes < 1) | (shapes > whole)).any(1)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0, 0])
        raise ConfigError(
            f"{_sample(samples.get('ids'), row)} is said to be {shapes[row].tolist()} high and wide, in a batch of "
            f"{whole.tolist()}; shapes are those before padding"
        )
    return shapes.long()


def _check_boxes(boxes: Tensor, labels: Tensor, shapes: Tensor, ids: Tensor | None) -> None:
    limit = shapes.flip(1)[:, None].to(boxes)
    low, high = boxes[..., :2], boxes[..., 2:]
    right = (low >= 0) & (low < high) & (high <= limit)  # false for NaN too
    wrong = ~right.all(2) & (labels >= 0)
    if bool(wrong.any()):
        row, place = (int(n) for n in wrong.nonzero()[0])
        height, width = shapes[row].tolist()
        box = [round(n, 2) for n in boxes[row, place].tolist()]
        raise ConfigError(
            f"{_sample(ids, row)} has box {box}, which breaks 0 ≤ x1 < x2 ≤ {width} or 0 ≤ y1 < y2 ≤ {height}; "
            "clip boxes to their image and drop those without area"
        )


def _sample(ids: Tensor | None, row: int) -> str:
    return f"image {row} of the batch" if ids is None else f"sample {int(ids[row])}"


def mmdet_samples(
    shapes: Tensor, input_shape: tuple[int, int], targets: DetectionTargets | None = None, *, divisor: int = 32
) -> list[Any]:
    """Fresh `DetDataSample`s of a padded batch, with ground truth where `targets` are given.

    Args:
        shapes: (B, 2), height and width of each image before padding.
        input_shape: height and width of the padded batch.
        divisor: to whose multiple mmdetection would pad an image alone; anchors beyond that take no part in training.
    """
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    samples = []
    for index, (height, width) in enumerate(shapes.tolist()):
        padded = tuple(min(-(-side // divisor) * divisor, most) for side, most in zip((height, width), input_shape))
        meta = dict(img_shape=(height, width), ori_shape=(height, width), scale_factor=(1.0, 1.0))
        sample = DetDataSample(metainfo=meta | dict(pad_shape=padded, batch_input_shape=input_shape))
        if targets is not None:
            for name, (boxes, labels) in dict(gt=targets.of(index), ignored=targets.crowds(index)).items():
                setattr(sample, f"{name}_instances", InstanceData(bboxes=boxes, labels=labels))
        samples.append(sample)
    return samples
