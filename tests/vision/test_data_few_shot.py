"""The ten few-shot sets: every layout reads, splits and class names are the lists', and damage is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from limbeck.engine.registry import DATASETS
from limbeck.errors import CorruptFile, DataMissing

JSON = ("Caltech101", "DTD", "EuroSAT", "Food101", "Flowers102", "OxfordPets", "StanfordCars", "SUN397", "UCF101")
COUNTS = dict(train=6, val=2, test=4)


def lay_out(root: Path, kind: str) -> Path:
    """A tiny copy of a data set's layout: two classes, the shade of an image tells its label and its place."""
    target = DATASETS.lookup(kind)
    folder = root / target.folder
    (folder / target.images_in).mkdir(parents=True, exist_ok=True)
    rows: dict[str, list] = {}
    for split, count in COUNTS.items():
        rows[split] = [[f"{split}_{i}.jpg", i % 2, ("red_fox", "sea lion")[i % 2]] for i in range(count)]
        for name, label, _ in rows[split]:
            shade = np.full((20, 30, 3), 40 + 150 * label, np.uint8)
            Image.fromarray(shade).save(folder / target.images_in / name)
    if kind == "FGVCAircraft":
        (folder / "variants.txt").write_text("red_fox\nsea lion\n")
        for split, found in rows.items():
            lines = [f"{name.removesuffix('.jpg')} {variant}" for name, _, variant in found]
            (folder / f"images_variant_{split}.txt").write_text("\n".join(lines) + "\n")
    else:
        (folder / target.listed_in).write_text(json.dumps(rows))
    return folder


@pytest.mark.parametrize("kind", [*JSON, "FGVCAircraft"])
def test_every_layout_reads(kind, tmp_path, monkeypatch):
    folder = lay_out(tmp_path, kind)
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path))
    for split, count in COUNTS.items():
        found = DATASETS.make(dict(type=kind, split=split, size=8))
        assert found.classes == ["red fox", "sea lion"]
        assert len(found) == count
        pixels, targets = found.batch(np.arange(count))
        assert pixels.shape == (count, 3, 8, 8)
        assert np.array_equal(pixels.mean((1, 2, 3)) > 100, targets["labels"].numpy() == 1)
        assert sorted(Path(name).stem for name in found.files) == [f"{split}_{i}" for i in range(count)]
    hashes = {DATASETS.make(dict(type=kind, split=split, root=str(folder))).content_hash for split in COUNTS}
    assert len(hashes) == 3


def test_folder_that_is_not_there_is_said_with_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path))
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataMissing, match=r"eurosat is not in .*; put split_zhou_EuroSAT.json and 2750 into"):
        DATASETS.make(dict(type="EuroSAT", split="train"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not a list of train, val and test"),
        ('{"train": [["a.jpg", 0, "x"]], "val": []}', "not a list of train, val and test"),
        ('{"train": [["a.jpg", 0, "x"]], "val": [["b.jpg", 0, "y"]], "test": []}', "label 0 is both 'x' and 'y'"),
        ('{"train": [["a.jpg", 0, "x"]], "val": [["b.jpg", 2, "y"]], "test": []}', "labels are not 0 to 1"),
        ('{"train": [], "val": [["b.jpg", 0, "x"]], "test": [["c.jpg", 1, "y"]]}', "split 'train' is empty"),
    ],
)
def test_damaged_lists_are_said(content, said, tmp_path):
    folder = lay_out(tmp_path, "DTD")
    (folder / "split_zhou_DescribableTextures.json").write_text(content)
    with pytest.raises(CorruptFile, match=said):
        DATASETS.make(dict(type="DTD", split="train", root=str(folder)))


def test_aircraft_that_no_list_of_variants_has_is_said(tmp_path):
    folder = lay_out(tmp_path, "FGVCAircraft")
    (folder / "images_variant_val.txt").write_text("val_0 blimp\n")
    with pytest.raises(CorruptFile, match=r"variant 'blimp' is not in variants.txt"):
        DATASETS.make(dict(type="FGVCAircraft", split="train", root=str(tmp_path)))


def test_image_that_is_missing_is_said_when_it_is_read(tmp_path):
    folder = lay_out(tmp_path, "OxfordPets")
    (folder / "images" / "val_1.jpg").unlink()
    found = DATASETS.make(dict(type="OxfordPets", split="val", root=str(folder), size=8))
    with pytest.raises(CorruptFile, match=r"val_1\.jpg: not a whole image"):
        found.batch(np.arange(2))
