"""The base of detection data sets: boxes and labels for every image, padded to one array a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from limbeck.engine.augment import sample_uniforms
from limbeck.engine.data import ViewDataset
from limbeck.engine.data_files import damaged, open_image
from limbeck.errors import ConfigError, DataMissing

Colour = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Objects:
    """The N labelled objects of an image.

    Args:
        boxes: float32 (N, 4), x1 y1 x2 y2 in pixels; a single pixel (x, y) has the box x y x+1 y+1.
        labels: int64 (N,), 0 … K − 1.
        crowd: bool (N,), regions of many objects, which training and evaluation ignore.
    """

    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray

    @classmethod
    def of(cls, boxes: Any, labels: Any, crowd: Any = None) -> Objects:
        """From anything that numpy makes arrays of; without `crowd` nothing is one."""
        found = np.asarray(labels, np.int64).reshape(-1)
        flags = np.zeros(len(found), bool) if crowd is None else np.asarray(crowd, bool).reshape(-1)
        return cls(np.asarray(boxes, np.float32).reshape(-1, 4), found, flags)

    def __len__(self) -> int:
        return len(self.labels)

    def moved(self, scale: tuple[float, float], shift: tuple[float, float] = (0.0, 0.0)) -> Objects:
        """Every corner (x, y) at (x · scale + shift); both are given for x and y."""
        boxes = self.boxes.astype(np.float64) * (*scale, *scale) + (*shift, *shift)
        return Objects(boxes.astype(np.float32), self.labels, self.crowd)

    def mirrored(self, width: int) -> Objects:
        """As in the image that is flipped from left to right."""
        x1, y1, x2, y2 = self.boxes.T
        return Objects(np.stack((width - x2, y1, width - x1, y2), 1), self.labels, self.crowd)

    def clipped(self, size: tuple[int, int], *, least_visible: float = 0.0, least_side: float = 0.0) -> Objects:
        """Boxes cut at the borders of an image; those of which too little is left are dropped.

        Args:
            size: height and width of the image.
            least_visible: share of a box's area that has to be left.
            least_side: of what is left, in pixels. A crowd stays while anything of it is left: it still hides objects.
        """
        height, width = size
        boxes = self.boxes.clip(0, (width, height, width, height)).astype(np.float32)
        sides, before = boxes[:, 2:] - boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]
        anything = (sides > 0).all(1)
        enough = (sides >= least_side).all(1) & (sides.prod(1) >= least_visible * before.prod(1))
        kept = anything & (enough | self.crowd)
        return Objects(boxes[kept], self.labels[kept], self.crowd[kept])


class DetectionDataset(ViewDataset):
    """A split of RGB images with boxes; subclasses implement `stored`, `_scales` and `__len__`.

    A batch has inputs uint8 (B, 3, H, W), the largest height and width in it; smaller images lie at the top left. Its
    `data_samples` have boxes float32 (B, M, 4) padded with 0, labels int64 (B, M) padded with −1, crowd bool (B, M) and
    shapes int64 (B, 2), height and width of each image before padding. M is the most boxes of an image, at least 1.

    Args:
        split: 'train', 'val' or 'test'.
        augment: called with (image, objects, dice), where dice are its `draws` uniform numbers; or None.
        views, seed: see ViewDataset.

    Attributes:
        classes: class names in the order of labels.
        palette: one RGB colour a class.
        image_ids, category_ids: of samples and labels in the data set's own annotation files.
        multiple: of which the padded height and width are.
        padding: RGB of what is padded.
    """

    palette: list[Colour]
    image_ids: Sequence[int | str]
    category_ids: Sequence[int]
    multiple: ClassVar[int] = 1
    padding: ClassVar[Colour] = (128, 128, 128)

    def __init__(self, split: str, *, augment: Any, views: int, seed: int) -> None:
        super().__init__(split, views=views, seed=seed, augment=augment)

    @property
    def metainfo(self) -> dict[str, Any]:
        """What mmengine's evaluator and mmdetection's pictures ask a data set for."""
        return super().metainfo | {"palette": [list(colour) for colour in self.palette]}

    def pipeline(self) -> dict[str, Any]:
        """Everything that decides the pixels, with the library that scales them."""
        scaled = {} if self.augment is None else {"scaler": f"opencv {cv2.__version__}"}
        return super().pipeline() | scaled

    def stored(self, sample: int) -> tuple[np.ndarray, Objects]:
        """Pixels uint8 (H, W, 3), not to be written to, and objects of a sample before augmentation."""
        raise NotImplementedError

    def scale_factors(self, ids: np.ndarray) -> np.ndarray:
        """(B, 2): by what x and y of the original image were multiplied; boxes divided by it fit the original.

        Raises: ConfigError for augmented images, whose boxes are not to be brought back.
        """
        if self.augment is not None:
            raise ConfigError(f"{self.name}'s {self.split} is augmented; take boxes back to the images without augment")
        return self._scales(ids)

    def _scales(self, ids: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def batch(self, ids: np.ndarray) -> tuple[np.ndarray, dict[str, Tensor]]:
        shown = [self.stored(int(sample)) for sample in ids]
        if self.augment is not None:
            dice = sample_uniforms(self.seed, self.view, ids, self.augment.draws)
            shown = [self.augment(image, objects, row) for (image, objects), row in zip(shown, dice)]
        images, objects = zip(*shown, strict=True)
        shapes = torch.tensor([image.shape[:2] for image in images], dtype=torch.int64)
        return padded_images(images, self.multiple, self.padding), padded_objects(objects) | {"shapes": shapes}


def padded_images(images: Sequence[np.ndarray], multiple: int, colour: Colour) -> np.ndarray:
    """uint8 (B, 3, H, W) of images (h, w, 3) at the top left of H × W, which are multiples of `multiple`."""
    height, width = (-(-max(image.shape[axis] for image in images) // multiple) * multiple for axis in (0, 1))
    found = np.empty((len(images), height, width, 3), np.uint8)
    for place, image in zip(found, images):
        if image.shape[:2] != (height, width):
            place[:] = colour
        place[: image.shape[0], : image.shape[1]] = image
    return found.transpose(0, 3, 1, 2)


def padded_objects(objects: Sequence[Objects]) -> dict[str, Tensor]:
    """Boxes (B, M, 4), labels (B, M) and crowd (B, M) of B images; M is the most of one, at least 1."""
    count, most = len(objects), max([1, *(len(one) for one in objects)])
    boxes = torch.zeros(count, most, 4)
    labels = torch.full((count, most), -1, dtype=torch.int64)
    crowd = torch.zeros(count, most, dtype=torch.bool)
    for n, one in enumerate(objects):
        boxes[n, : len(one)] = torch.from_numpy(one.boxes)
        labels[n, : len(one)] = torch.from_numpy(one.labels)
        crowd[n, : len(one)] = torch.from_numpy(one.crowd)
    return {"boxes": boxes, "labels": labels, "crowd": crowd}


def open_picture(path: Path, size: tuple[int, int], expected: str | None = None) -> tuple[Image.Image, str]:
    """A decoded RGB image and the sha256 of its file; grey images and those with transparency become RGB.

    Args:
        size: width and height that the annotations say.
        expected: sha256 that the file has to have, or None.
    Raises: DataMissing; CorruptFile when it is not whole, not the expected file or of another size.
    """
    if not path.exists():
        raise DataMissing(f"{path} is missing, which the annotations name; complete the folder")
    image, found = open_image(path, expected)
    if image.size != size:
        sizes = "{} × {} pixels, its annotations say {} × {}".format(*image.size, *size)
        raise damaged(path, f"has {sizes}", expected)
    return image.convert("RGB"), found
