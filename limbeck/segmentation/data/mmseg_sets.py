"""Cityscapes, PASCAL VOC 2012 and ADE20K: mmsegmentation's data sets and transforms, presented as views."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL
import torch
from torch import Tensor

from limbeck.engine.augment import parse_augment, sample_uniforms
from limbeck.engine.data import ViewDataset, check_limit
from limbeck.engine.data_files import damaged, find_folder, usual_folders
from limbeck.engine.losses import IGNORE
from limbeck.engine.mmcv_ops import install
from limbeck.engine.registry import DATASETS, require
from limbeck.engine.weights import sha256_json
from limbeck.errors import ConfigError, DataMissing

PAD = (104, 116, 124)  # BGR, about ImageNet's mean: mmsegmentation pads with 0 after normalising
Transform = Callable[[dict[str, Any]], Any]


@dataclass(frozen=True)
class CropDistort:
    """mmsegmentation's training transforms: resize, crop, flip, distort the colours, pad to the crop.

    Args:
        crop: (height, width) of what comes out.
        ratio_range: of the random factor on the data set's `scale`.
        cat_max_ratio: a crop where one class has more than this share of the labelled pixels is drawn anew, ten times.
        flip: probability of a horizontal flip.
        distort: PhotoMetricDistortion with its defaults, or none.
    """

    crop: tuple[int, int] = (512, 512)
    ratio_range: tuple[float, float] = (0.5, 2.0)
    cat_max_ratio: float = 0.75
    flip: float = 0.5
    distort: bool = True

    def __post_init__(self) -> None:
        low, high = self.ratio_range
        if min(self.crop) < 1 or not 0 < low <= high or not 0 < self.cat_max_ratio <= 1 or not 0 <= self.flip <= 1:
            wanted = "a crop has positive sides, ratio_range rises from above 0, cat_max_ratio and flip are shares"
            raise ConfigError(f"{wanted}; got {self}")

    def transforms(self, scale: tuple[int, int]) -> list[Transform]:
        """In the order of mmsegmentation's configs, on BGR images with label maps."""
        from mmcv.transforms import Pad, RandomFlip, RandomResize
        from mmseg.datasets.transforms import PhotoMetricDistortion, RandomCrop

        low, high = self.ratio_range
        height, width = (int(side) for side in self.crop)
        return [
            RandomResize(scale=scale, ratio_range=(low, high), keep_ratio=True),
            RandomCrop(crop_size=(height, width), cat_max_ratio=self.cat_max_ratio, ignore_index=IGNORE),
            RandomFlip(prob=float(self.flip)),
            *([PhotoMetricDistortion()] if self.distort else []),
            Pad(size=(width, height), pad_val=dict(img=PAD, seg=IGNORE)),
        ]


@contextmanager
def drawn_from(seed: int, view: int, sample: int) -> Iterator[None]:
    """mmsegmentation draws from numpy's and Python's global generators: seed them for one sample, then restore them."""
    words = (sample_uniforms(seed, view, np.array([sample]), 2)[0] * 2.0**32).astype(np.uint32)
    numpy_state, python_state = np.random.get_state(), random.getstate()
    np.random.seed(words)
    random.seed(int(words[0]) << 32 | int(words[1]))
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


class _MMSegDataset(ViewDataset):
    """A data set of mmsegmentation: its file lists, labels and transforms. Subclasses name class, folders and layout.

    A batch's inputs are RGB, its `data_samples` have labels int64 (B, H, W), 255 for pixels to ignore. Augmented images
    have one size; others keep that of their files or of `scale`, so where it differs evaluate with `eval_batch_size=1`.
    Test is the published validation set, which the papers' figures are of. Samples are ordered by the sha256 of their
    path; the last val_size of the training set are held out as val. The content hash is of every path and file size; no
    image is opened before it is asked for.

    Args:
        split: 'train', 'val' or 'test'.
        root: the data set's folder; None looks in $LIMBECK_DATA and in the cache folder.
        scale: (longer side, shorter side) that images are resized into, keeping their proportions. Random resizing
            multiplies it; None is mmsegmentation's. Without augmentation None keeps the files' size, and labels are
            resized with the images (mmsegmentation tests VOC and ADE20K with images, but not labels, in 2048×512).
        augment: `dict(crop=(512, 1024), ratio_range=(0.5, 2.0), cat_max_ratio=0.75, flip=0.5, distort=True)`, all of
            them optional; None for none.
        views, seed: see ViewDataset.
        limit: takes the first samples only.
        val_size: how many of the training images are val.
    Raises: DataMissing, CorruptFile, ConfigError; ExtraMissing without mmsegmentation.
    """

    kind: str  # mmsegmentation's class
    folder: str
    layout: str
    default_scale: tuple[int, int]
    default_val_size: int

    def __init__(
        self,
        split: str,
        root: str | None = None,
        scale: tuple[int, int] | None = None,
        augment: Mapping[str, Any] | None = None,
        views: int = 0,
        seed: int = 0,
        limit: int | None = None,
        val_size: int | None = None,
    ) -> None:
        super().__init__(split, views=views, seed=seed, augment=parse_augment(CropDistort, augment))
        install()
        kind = getattr(require("mmseg.datasets", f"the data set {self.name}", "segmentation"), self.kind)
        self.val_size = self.default_val_size if val_size is None else val_size
        self.scale = None if scale is None else (int(scale[0]), int(scale[1]))
        if self.scale is None and augment is not None:
            self.scale = self.default_scale
        parts = self.parts("test" if split == "test" else "train")
        self.root = self._find(root, parts)
        sources = [kind(data_root=str(self.root), pipeline=[], serialize_data=False, **part) for part in parts]
        self.classes = [str(name).strip() for name in sources[0].metainfo["classes"]]
        self._files = self._chosen([source.get_data_info(i) for source in sources for i in range(len(source))], limit)
        sizes = [(self._below(p), self._size(p)) for f in self._files for p in (f["img_path"], f["seg_map_path"])]
        self.content_hash = sha256_json({"split": split, "files": sizes})
        self._loaders, self._transforms = self._steps()

    def parts(self, part: str) -> list[dict[str, Any]]:
        """Arguments of mmsegmentation's class for 'train' or 'test'; several are joined."""
        raise NotImplementedError

    def _find(self, root: str | None, parts: list[dict[str, Any]]) -> Path:
        wanted = [path for part in parts for path in (*part["data_prefix"].values(), part.get("ann_file", ""))]
        advice = f"put it into $LIMBECK_DATA/{self.folder} or set root; it has {self.layout}"
        return find_folder(self.name, usual_folders(self.folder, root), wanted, advice)

    def _chosen(self, found: list[dict[str, Any]], limit: int | None) -> list[dict[str, Any]]:
        """The split's files, in the order of their hashes."""
        if not found:
            raise DataMissing(f"{self.root} has no images of {self.split}; complete the folder: it has {self.layout}")
        ranked = sorted(found, key=lambda f: hashlib.sha256(self._below(f["img_path"]).encode()).digest())
        if self.split != "test":
            cut = len(ranked) - self.val_size
            if not 0 < cut < len(ranked):
                raise ConfigError(
                    f"val_size of {self.name} is at least 1 and leaves some of its {len(ranked)} training images; "
                    f"got {self.val_size}"
                )
            ranked = ranked[cut:] if self.split == "val" else ranked[:cut]
        return ranked[: check_limit(limit, len(ranked), self.name)]

    def _below(self, path: str) -> str:
        return Path(path).relative_to(self.root).as_posix()

    def _size(self, path: str) -> int:
        file = Path(path)
        if not file.is_file():
            raise DataMissing(f"{file} is missing; complete the folder: it has {self.layout}")
        return file.stat().st_size

    def _steps(self) -> tuple[dict[str, Transform], list[Transform]]:
        """What reads the image and the label map, by the key of the path; and what is done to both."""
        from mmcv.transforms import LoadImageFromFile, Resize
        from mmseg.datasets.transforms import LoadAnnotations

        loaders: dict[str, Transform] = {"img_path": LoadImageFromFile(), "seg_map_path": LoadAnnotations()}
        if isinstance(self.augment, CropDistort) and self.scale is not None:
            return loaders, self.augment.transforms(self.scale)
        return loaders, [] if self.scale is None else [Resize(scale=self.scale, keep_ratio=True)]

    def pipeline(self) -> dict[str, Any]:
        """Everything that decides the pixels, with the libraries that decode, resize and distort."""
        libraries = f"mmsegmentation {version('mmsegmentation')}, pillow {PIL.__version__}, opencv {cv2.__version__}"
        return super().pipeline() | {"scale": None if self.scale is None else list(self.scale), "libraries": libraries}

    def batch(self, ids: np.ndarray) -> tuple[np.ndarray, dict[str, Tensor]]:
        """RGB pixels (B, 3, H, W) and labels (B, H, W). Raises: CorruptFile; ConfigError where sizes differ."""
        pixels, labels = zip(*(self._sample(int(i)) for i in ids), strict=True)
        if len({label.shape for label in labels}) > 1:
            raise ConfigError(
                f"images of {self.name}'s {self.split} differ in size and cannot be one batch; "
                "set data.eval_batch_size=1, or augment with a crop"
            )
        return np.stack(pixels), {"labels": torch.from_numpy(np.stack(labels).astype(np.int64))}

    def _sample(self, sample: int) -> tuple[np.ndarray, np.ndarray]:
        """RGB (3, H, W) and label map (H, W), both uint8."""
        found = self._loaded(sample)
        with drawn_from(self.seed, self.view, sample):
            for transform in self._transforms:
                found = transform(found)
        return np.ascontiguousarray(found["img"][..., ::-1].transpose(2, 0, 1)), found["gt_seg_map"]

    def _loaded(self, sample: int) -> dict[str, Any]:
        """mmsegmentation's results with `img`, BGR (H, W, 3), and `gt_seg_map` (H, W). Raises: CorruptFile."""
        found = dict(self._files[sample], seg_fields=[])
        for key, load in self._loaders.items():
            try:
                found = load(found)
            except (AssertionError, OSError, SyntaxError, cv2.error) as error:  # a broken file, to OpenCV and Pillow
                raise damaged(Path(found[key]), f"not a whole image ({error})") from error
        labels, path = found["gt_seg_map"], Path(found["seg_map_path"])
        if labels.shape != found["img"].shape[:2]:
            raise damaged(path, f"labels of {labels.shape} pixels for an image of {found['img'].shape[:2]}")
        wrong = labels[(labels >= len(self.classes)) & (labels != IGNORE)]
        if wrong.size:
            raise damaged(path, f"label {wrong[0]} is not in 0 to {len(self.classes) - 1}, nor {IGNORE}")
        return found

    def __len__(self) -> int:
        return len(self._files)


@DATASETS.register_module()
class Cityscapes(_MMSegDataset):
    """Cityscapes (arXiv 1604.01685): 2,975 training and 500 validation images of 2048×1024 pixels, 19 classes."""

    name = "cityscapes"
    kind = "CityscapesDataset"
    folder = "cityscapes"
    layout = (
        "leftImg8bit/{train,val}/<city>/*_leftImg8bit.png and gtFine/{train,val}/<city>/*_gtFine_labelTrainIds.png, "
        "which cityscapesscripts' csCreateTrainIdLabelImgs writes"
    )
    default_scale = (2048, 1024)
    default_val_size = 250

    def parts(self, part: str) -> list[dict[str, Any]]:
        folder = "val" if part == "test" else "train"
        return [dict(data_prefix=dict(img_path=f"leftImg8bit/{folder}", seg_map_path=f"gtFine/{folder}"))]


@DATASETS.register_module()
class VOC2012(_MMSegDataset):
    """PASCAL VOC 2012, background and 20 classes: 1,464 training images, with SBD's labels 10,582, and 1,449 to test.

    Args:
        sbd: add the images of `aug.txt`, as nearly all papers do (Hariharan et al., ICCV 2011).
        kwargs: as for every data set of mmsegmentation: split, root, scale, augment, views, seed, limit, val_size.
    """

    name = "voc2012"
    kind = "PascalVOCDataset"
    folder = "VOCdevkit/VOC2012"
    layout = (
        "JPEGImages, SegmentationClass, ImageSets/Segmentation/{train,val}.txt and, for sbd=True, SegmentationClassAug "
        "and ImageSets/Segmentation/aug.txt, which mmsegmentation's voc_aug.py writes"
    )
    default_scale = (2048, 512)
    default_val_size = 500

    def __init__(self, split: str, sbd: bool = True, **kwargs: Any) -> None:
        self.sbd = sbd
        super().__init__(split, **kwargs)

    def parts(self, part: str) -> list[dict[str, Any]]:
        lists = ["val"] if part == "test" else ["train", "aug"] if self.sbd else ["train"]
        return [
            dict(
                data_prefix=dict(
                    img_path="JPEGImages", seg_map_path=f"SegmentationClass{'Aug' if name == 'aug' else ''}"
                ),
                ann_file=f"ImageSets/Segmentation/{name}.txt",
            )
            for name in lists
        ]


@DATASETS.register_module()
class ADE20K(_MMSegDataset):
    """ADE20K as SceneParse150 (Zhou et al., CVPR 2017): 20,210 training and 2,000 validation images, 150 classes.

    Label 0 of the files, which is none of the classes, becomes 255 and the others move down by one.
    """

    name = "ade20k"
    kind = "ADE20KDataset"
    folder = "ade/ADEChallengeData2016"
    layout = "images/{training,validation}/*.jpg and annotations/{training,validation}/*.png"
    default_scale = (2048, 512)
    default_val_size = 1000

    def parts(self, part: str) -> list[dict[str, Any]]:
        folder = "validation" if part == "test" else "training"
        return [dict(data_prefix=dict(img_path=f"images/{folder}", seg_map_path=f"annotations/{folder}"))]
