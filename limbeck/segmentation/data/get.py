"""Where the data sets of semantic segmentation are looked for; none of them is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from limbeck.engine.data_files import find_folder, usual_folders
from limbeck.engine.data_sources import Source


def sources() -> dict[str, Source]:
    """Name of a data set → where it comes from."""
    return {
        "digit-scenes": Source(
            "Digit scenes, handwritten digits over textures with label maps, any number, made from Digits (CC-BY-4.0)",
            place="made when asked for, from scikit-learn's digits",
        ),
        "camvid": Source(
            "CamVid, 701 road scenes 480 × 360 in 11 classes, 47 MB as JPEG, CC BY-NC 4.0",
            _find_camvid,
            why="its public copies have other folders",
        ),
        "voc2012": Source(
            "PASCAL VOC 2012 with SBD's labels, 12,031 photographs in 21 classes, Flickr's terms",
            lambda: _find("VOC2012", ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation")),
            why="it is large, and SBD's labels come from another place",
        ),
        "cityscapes": Source(
            "Cityscapes, 3,475 street scenes 2048 × 1024 in 19 classes, non-commercial terms of its own",
            lambda: _find("Cityscapes", ("leftImg8bit/train", "leftImg8bit/val", "gtFine/train", "gtFine/val")),
            why="each user has to register and agree to its terms",
        ),
        "ade20k": Source(
            "ADE20K (SceneParse150), 22,210 photographs in 150 classes, for non-commercial research and education",
            lambda: _find(
                "ADE20K", [f"{a}/{b}" for a in ("images", "annotations") for b in ("training", "validation")]
            ),
            why="each user has to agree to its terms",
        ),
    }


def _find_camvid() -> Path:
    from limbeck.segmentation.data.camvid import ADVICE

    folders = usual_folders("camvid", None)
    return find_folder("camvid", folders, [f"{split}/images" for split in ("train", "val", "test")], ADVICE)


def _find(kind: str, parts: Sequence[str]) -> Path:
    """The folder of one of mmsegmentation's data sets, in its layout. Raises: DataMissing, with the layout."""
    from limbeck.segmentation.data import mmseg_sets  # this does not import mmsegmentation

    found: Any = getattr(mmseg_sets, kind)
    advice = f"put it into $LIMBECK_DATA/{found.folder}; it has {found.layout}"
    return find_folder(found.name, usual_folders(found.folder, None), parts, advice)
