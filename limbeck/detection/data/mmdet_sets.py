"""COCO and PASCAL VOC: mmdetection's data sets, presented as views with padded batches."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

import cv2
import numpy as np

from limbeck.detection.data.augment import ResizeFlip, checked_scale, fitted, resized
from limbeck.detection.data.base import DetectionDataset, Objects, open_picture
from limbeck.engine.augment import parse_augment
from limbeck.engine.data import check_limit, content_hash
from limbeck.engine.data_files import damaged, decoder, find_folder, usual_folders
from limbeck.engine.mmcv_ops import install
from limbeck.engine.registry import DATASETS, require
from limbeck.engine.weights import sha256_json
from limbeck.errors import ConfigError, CorruptFile, DataMissing

BROKEN = (ValueError, KeyError, TypeError, AttributeError, AssertionError, ParseError)  # how mmdetection takes them
LEAST_SIDE = 32  # mmdetection leaves smaller images out of training


@dataclass(frozen=True, slots=True)
class Sample:
    """An image's path, its id in the annotations, height and width, and what is in it."""

    path: Path
    id: int | str
    size: tuple[int, int]
    objects: Objects


class _MMDetDataset(DetectionDataset):
    """A data set of mmdetection: its file lists, labels and rules. Subclasses name class, folders and layout.

    Images keep their proportions and are padded to the largest of the batch, a multiple of 32, with about ImageNet's
    mean. mmdetection's rules decide which annotations count: those without area or outside the image do not. What it
    ignores (COCO's crowds, VOC's difficult objects) is `crowd`. Boxes are cut at the image's borders.
    Test is the published test or validation set, which the papers' figures are of. Samples are ordered by the sha256
    of their path; the last val_size of the training set are held out as val. The content hash is of every path, file
    size and box; no image is opened before it is asked for.

    Args:
        split: 'train', 'val' or 'test'.
        root: the data set's folder; None looks in $LIMBECK_DATA and in the cache folder.
        scale: (longer side, shorter side) that images are brought into, as large as they fit.
        augment: `dict(scales=((1333, 640), (1333, 800)), flip=0.5)`, both optional; None for none.
        views, seed: see ViewDataset.
        limit: takes the first samples only.
        val_size: how many of the training images are val.
        empty: train on images without boxes, and on those under 32 pixels, too.
    Raises: DataMissing, CorruptFile, ConfigError; ExtraMissing without mmdetection.
    """

    kind: str  # mmdetection's class
    folder: str
    layout: str
    default_scale: tuple[int, int]
    default_val_size: int
    multiple = 32
    padding = (124, 116, 104)

    def __init__(
        self,
        split: str,
        root: str | None = None,
        scale: Sequence[int] | None = None,
        augment: Mapping[str, Any] | None = None,
        views: int = 0,
        seed: int = 0,
        limit: int | None = None,
        val_size: int | None = None,
        empty: bool = False,
    ) -> None:
        self.scale = checked_scale(self.default_scale if scale is None else scale)
        transform = parse_augment(ResizeFlip, augment)
        if transform is not None:
            transform = replace(transform, scales=[list(scale) for scale in transform.scales or [self.scale]])
        super().__init__(split, augment=transform, views=views, seed=seed)
        install()
        kind = getattr(require("mmdet.datasets", f"the data set {self.name}", "detection"), self.kind)
        self.val_size = self.default_val_size if val_size is None else val_size
        parts = self.parts("test" if split == "test" else "train")
        advice = f"put it into $LIMBECK_DATA/{self.folder} or set root; it has {self.layout}"
        wanted = [path for part in parts for path in self.wanted(part)]
        self.root = find_folder(self.name, usual_folders(self.folder, root), wanted, advice)
        sources = [self._read(kind, part) for part in parts]
        self.classes = [str(name) for name in sources[0].metainfo["classes"]]
        self.palette = [tuple(colour) for colour in sources[0].metainfo["palette"]]
        self.category_ids = self._categories(sources[0])
        found = [self._sample(info) for source in sources for info in source.data_list]
        self._samples = self._chosen(found, limit, empty)
        self.image_ids = [sample.id for sample in self._samples]
        self.content_hash = sha256_json(self._content())

    @classmethod
    def parts(cls, part: str) -> list[dict[str, Any]]:
        """Arguments of mmdetection's class for 'train' or 'test'; several are joined."""
        raise NotImplementedError

    @classmethod
    def wanted(cls, part: Mapping[str, Any]) -> list[str]:
        """Paths below the root that one of `parts` needs."""
        raise NotImplementedError

    def _read(self, kind: Any, part: Mapping[str, Any]) -> Any:
        """mmdetection's data set, which lists everything and filters nothing. Raises: CorruptFile, DataMissing."""
        path = self.root / part["ann_file"]
        try:
            with redirect_stdout(io.StringIO()):  # pycocotools prints
                return _naming(kind, path)(
                    data_root=str(self.root), pipeline=[], serialize_data=False, test_mode=True, **part
                )
        except BROKEN as error:
            raise damaged(path, f"does not read as annotations ({type(error).__name__}: {error})") from error

    def _categories(self, source: Any) -> Sequence[int]:
        """Ids in the order of labels. Raises: CorruptFile when the annotations lack a class or mix them."""
        found = getattr(source, "cat_ids", None) or range(1, len(self.classes) + 1)
        if len(found) != len(self.classes):
            reason = f"has {len(found)} of the {len(self.classes)} categories of {self.name}"
            raise damaged(Path(source.ann_file), reason)
        if list(found) != sorted(found):  # mmdetection gives labels in the file's order, whatever the names are
            raise damaged(Path(source.ann_file), f"lists its categories in another order than {self.name}")
        return found

    def _sample(self, info: Mapping[str, Any]) -> Sample:
        instances, size = info["instances"], (int(info["height"]), int(info["width"]))
        objects = Objects.of(
            [one["bbox"] for one in instances],
            [one["bbox_label"] for one in instances],
            [one["ignore_flag"] for one in instances],
        )
        return Sample(Path(info["img_path"]), info["img_id"], size, objects.clipped(size))

    def _chosen(self, found: list[Sample], limit: int | None, empty: bool) -> list[Sample]:
        """The split's samples, in the order of their hashes."""
        ranked = sorted(found, key=lambda s: hashlib.sha256(self._below(s.path).encode()).digest())
        if self.split != "test":
            cut = len(ranked) - self.val_size
            if not 0 < cut < len(ranked):
                raise ConfigError(
                    f"val_size of {self.name} is at least 1 and leaves some of its {len(ranked)} training images; "
                    f"got {self.val_size}"
                )
            ranked = ranked[cut:] if self.split == "val" else ranked[:cut]
        if self.split == "train" and not empty:
            ranked = [s for s in ranked if len(s.objects) and min(s.size) >= LEAST_SIDE]
        if not ranked:
            raise DataMissing(f"{self.root} has no images of {self.split}; complete the folder: it has {self.layout}")
        return ranked[: check_limit(limit, len(ranked), self.name)]

    def _content(self) -> dict[str, Any]:
        objects = [s.objects for s in self._samples]
        counts = np.array([len(one) for one in objects])
        arrays = [np.concatenate([getattr(one, field) for one in objects]) for field in ("boxes", "labels", "crowd")]
        return {
            "split": self.split,
            "files": [(self._below(s.path), self._size(s.path)) for s in self._samples],
            "objects": content_hash(self.name, self.split, counts, *arrays),
        }

    def _below(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _size(self, path: Path) -> int:
        if not path.is_file():
            raise DataMissing(f"{path} is missing; complete the folder: it has {self.layout}")
        return path.stat().st_size

    def pipeline(self) -> dict[str, Any]:
        """Everything that decides the pixels, with the libraries that list, decode and resize."""
        libraries = f"mmdetection {version('mmdet')}, {decoder()}, opencv {cv2.__version__}"
        return super().pipeline() | {"scale": list(self.scale), "libraries": libraries}

    def stored(self, sample: int) -> tuple[np.ndarray, Objects]:
        """The image of the file where it is augmented, else that brought into `scale`."""
        found = self._samples[sample]
        image = np.asarray(open_picture(found.path, (found.size[1], found.size[0]))[0])
        return (image, found.objects) if self.augment is not None else resized(image, found.objects, self.scale)

    def _scales(self, ids: np.ndarray) -> np.ndarray:
        before = np.array([self._samples[int(sample)].size for sample in ids])
        after = np.array([fitted((int(h), int(w)), self.scale) for h, w in before])
        return (after / before)[:, ::-1]

    def __len__(self) -> int:
        return len(self._samples)


def _naming(kind: Any, path: Path) -> Any:
    """mmdetection's class, whose errors name the file, and the image where one file has many."""

    class Naming(kind):
        def parse_data_info(self, raw: dict[str, Any]) -> Any:
            own = raw.get("xml_path")
            try:
                return super().parse_data_info(raw)
            except FileNotFoundError as error:
                raise DataMissing(f"{error.filename} is missing; complete the folder") from error
            except BROKEN as error:
                where = "" if own else f" of image {raw['raw_img_info']['img_id']}"
                raise _unreadable(Path(own or path), where, error) from error

    return Naming


def _unreadable(path: Path, where: str, error: BaseException) -> CorruptFile:
    return damaged(path, f"annotation{where} does not read ({type(error).__name__}: {error})")


@DATASETS.register_module()
class COCO2017(_MMDetDataset):
    """COCO (arXiv 1405.0312), 80 classes: 118,287 training images, of which 5,000 are val, and val2017 to test."""

    name = "coco2017"
    kind = "CocoDataset"
    folder = "coco"
    layout = "{train,val}2017/*.jpg and annotations/instances_{train,val}2017.json"
    default_scale = (1333, 800)
    default_val_size = 5000

    @classmethod
    def parts(cls, part: str) -> list[dict[str, Any]]:
        name = "val2017" if part == "test" else "train2017"
        return [dict(ann_file=f"annotations/instances_{name}.json", data_prefix=dict(img=name))]

    @classmethod
    def wanted(cls, part: Mapping[str, Any]) -> list[str]:
        return [part["ann_file"], part["data_prefix"]["img"]]


@DATASETS.register_module()
class VOC0712(_MMDetDataset):
    """PASCAL VOC, 20 classes: 16,551 images of 2007's and 2012's trainval, of which 2,000 are val; 2007's test to test.

    Papers give VOC's own AP50, in which difficult objects are left out; COCO's figures, which `DetectionMetric` gives
    with such objects as crowds, do not compare with it.
    """

    name = "voc0712"
    kind = "VOCDataset"
    folder = "VOCdevkit"
    layout = "VOC2007 and VOC2012 with JPEGImages, Annotations and ImageSets/Main/{trainval,test}.txt"
    default_scale = (1000, 600)
    default_val_size = 2000

    @classmethod
    def parts(cls, part: str) -> list[dict[str, Any]]:
        years, name = (("VOC2007",), "test") if part == "test" else (("VOC2007", "VOC2012"), "trainval")
        return [
            dict(ann_file=f"{year}/ImageSets/Main/{name}.txt", data_prefix=dict(sub_data_root=year)) for year in years
        ]

    @classmethod
    def wanted(cls, part: Mapping[str, Any]) -> list[str]:
        year = part["data_prefix"]["sub_data_root"]
        return [part["ann_file"], f"{year}/JPEGImages", f"{year}/Annotations"]
