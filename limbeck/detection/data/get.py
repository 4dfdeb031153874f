"""Where the data sets of object detection are looked for; none of them is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from limbeck.engine.data_files import find_folder, usual_folders
from limbeck.engine.data_sources import Source


def sources() -> dict[str, Source]:
    """Name of a data set → where it comes from."""
    return {
        "digit-scenes-boxes": Source(
            "Digit scenes, handwritten digits over textures with boxes, any number, made from Digits (CC-BY-4.0)",
            place="made when asked for, from scikit-learn's digits",
        ),
        "bccd": Source(
            "BCCD, 364 microscope images 640 × 480 with boxes of 3 kinds of blood cells, 8 MB, MIT licence",
            _find_bccd,
            why="its public copies have other folders and annotations in XML",
        ),
        "coco2017": Source(
            "COCO 2017, 123,287 photographs with boxes in 80 classes, 19 GB, Flickr's terms",
            lambda: _find("COCO2017"),
            why="it is large",
        ),
        "voc0712": Source(
            "PASCAL VOC 2007 and 2012, 21,503 photographs with boxes in 20 classes, 3 GB, Flickr's terms",
            lambda: _find("VOC0712"),
            why="it comes as three archives, which are to be joined",
        ),
    }


def _find_bccd() -> Path:
    from limbeck.detection.data.bccd import ADVICE

    wanted = ["images", *(f"annotations/{split}.json" for split in ("train", "val", "test"))]
    return find_folder("bccd", usual_folders("bccd", None), wanted, ADVICE)


def _find(kind: str) -> Path:
    """The folder of one of mmdetection's data sets, in its layout. Raises: DataMissing, with the layout."""
    from limbeck.detection.data import mmdet_sets  # this does not import mmdetection

    found: Any = getattr(mmdet_sets, kind)
    parts: Sequence[dict[str, Any]] = [*found.parts("train"), *found.parts("test")]
    wanted = [path for part in parts for path in found.wanted(part)]
    advice = f"put it into $LIMBECK_DATA/{found.folder}; it has {found.layout}"
    return find_folder(found.name, usual_folders(found.folder, None), wanted, advice)
