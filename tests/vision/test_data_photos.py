"""Photographs: kept in memory or read anew, the small collections, and folders that are not as they should be."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from limbeck.engine.augment import sample_uniforms
from limbeck.engine.registry import DATASETS
from limbeck.errors import ConfigError, CorruptFile, DataMissing, UnknownName
from limbeck.vision.data.folder import ImageFolder
from limbeck.vision.data.photos import photo_augment

DATA = os.environ.get("LIMBECK_DATA")
CROP = {"scale": (0.4, 1.0)}
SHIFT = {"type": "ShiftFlip", "pad": 3, "flip": True}


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """No data but the test's own."""
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LIMBECK_DATA", raising=False)


def write_photos(root, classes=("ant", "bee", "cow"), counts=(("train", 6), ("val", 2), ("test", 3)), size=None):
    """PNG noise of different shapes, or all of one `size` (width, height)."""
    rng = np.random.default_rng(0)
    for split, count in counts:
        for label in classes:
            folder = root / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                width, height = size or (20 + 3 * i, 26 - 2 * i)
                Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return root


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos")


# --- in memory ---


@pytest.mark.parametrize("augment", [None, CROP, SHIFT])
@pytest.mark.parametrize("size", [None, (12, 12)])
def test_in_memory_gives_the_same_pixels_without_opening_a_file_again(tmp_path, augment, size):
    root = write_photos(tmp_path / "photos", size=size)
    options = dict(root=str(root), split="train", size=12, augment=augment, views=3, seed=4)
    fresh, kept = ImageFolder(**options), ImageFolder(**options, in_memory=True)
    assert fresh.pipeline() == kept.pipeline()
    wanted = []
    for epoch in range(3):
        fresh.set_epoch(epoch)
        wanted.append(fresh.__getitems__(range(18))["inputs"])
    for path in root.rglob("*.png"):
        path.unlink()
    for epoch in (2, 0, 1, 5):
        kept.set_epoch(epoch)
        assert torch.equal(kept.__getitems__(range(18))["inputs"], wanted[epoch % 3])
        assert torch.equal(kept.__getitems__([7, 2])["inputs"], wanted[epoch % 3][[7, 2]])
    assert (augment is None) == torch.equal(wanted[0], wanted[1])


@pytest.mark.parametrize("augment", [CROP, SHIFT])
def test_augmenting_does_not_change_what_is_kept(photos, augment):
    data = ImageFolder(str(photos), "train", size=12, augment=augment, in_memory=True)
    before = [np.copy(x) for x in data._memory]
    data.__getitems__(range(18))["inputs"].zero_()
    assert all(np.array_equal(a, b) for a, b in zip(before, data._memory))


def test_batches_of_unaugmented_pixels_are_copies(photos):
    data = ImageFolder(str(photos), "test", size=12, in_memory=True)
    first = data.__getitems__([0, 1])["inputs"].clone()
    data.__getitems__([0, 1])["inputs"].zero_()
    assert torch.equal(data.__getitems__([0, 1])["inputs"], first)


def test_images_of_the_stored_size_are_the_stored_pixels(tmp_path):
    root = write_photos(tmp_path / "photos", size=(12, 12))
    data = ImageFolder(str(root), "test", size=12, in_memory=True)
    for i, name in enumerate(data.files):
        assert np.array_equal(data[i]["inputs"].permute(1, 2, 0).numpy(), np.asarray(Image.open(root / name)))


def test_shift_flip_of_photographs_equals_a_loop(tmp_path):
    root = write_photos(tmp_path / "photos", size=(9, 9))
    plain = ImageFolder(str(root), "train", size=9).__getitems__(range(18))["inputs"]
    data = ImageFolder(str(root), "train", size=9, augment=SHIFT, seed=6, in_memory=True)
    data.set_epoch(2)
    found = data.__getitems__(range(18))["inputs"]
    for i in range(18):
        a, b, c = sample_uniforms(6, 2, np.array([i]), 3)[0]
        padded = torch.zeros(3, 15, 15, dtype=torch.uint8)
        padded[:, 3:12, 3:12] = plain[i]
        cut = padded[:, int(a * 7) : int(a * 7) + 9, int(b * 7) : int(b * 7) + 9]
        assert torch.equal(found[i], cut.flip(2) if c < 0.5 else cut)
    assert json.loads(json.dumps(data.pipeline()))["augment"] == SHIFT


@pytest.mark.parametrize("workers", [0, 1])
def test_loader_shows_the_same_pixels_from_memory(photos, workers):
    data = ImageFolder(str(photos), "train", size=12, augment=CROP, in_memory=True)
    loader = DataLoader(data, batch_size=8, num_workers=workers, collate_fn=lambda batch: batch)
    data.set_epoch(1)
    batches = list(loader)
    assert [len(b["inputs"]) for b in batches] == [8, 8, 2]
    assert torch.equal(batches[1]["inputs"], data.__getitems__(range(8, 16))["inputs"])


def test_limit_decodes_only_what_it_takes(photos):
    names = ImageFolder(str(photos), "train").files
    (photos / names[10]).write_bytes(b"no picture")
    assert len(ImageFolder(str(photos), "train", limit=10, in_memory=True)) == 10
    with pytest.raises(CorruptFile, match=names[10]):
        ImageFolder(str(photos), "train", limit=11, in_memory=True)


@pytest.mark.parametrize(
    ("augment", "error", "said"),
    [
        ({"type": "CropFlop"}, UnknownName, "CropFlip"),
        ({"pad": 3}, UnknownName, "pad"),
        ({"type": "ShiftFlip", "scale": (0.5, 1)}, UnknownName, "scale"),
        ({"scale": (0, 1)}, ConfigError, "scale"),
    ],
)
def test_wrong_augmentations_are_user_errors(augment, error, said):
    with pytest.raises(error, match=said):
        photo_augment(augment)


# --- folders that are not as they should be ---


def test_one_class_only_is_refused(tmp_path):
    root = write_photos(tmp_path / "photos", classes=("ant",))
    with pytest.raises(ConfigError, match=r"photos has the class 'ant' only; a classifier needs two or more"):
        ImageFolder(str(root), "train")


@pytest.mark.parametrize("split", ["val", "test"])
def test_missing_split_folder_is_named(tmp_path, split):
    root = write_photos(tmp_path / "photos", counts=(("train", 2),))
    with pytest.raises(DataMissing, match=rf"photos/{split} has no folders of images"):
        ImageFolder(str(root), split)


def test_a_class_without_images_in_a_split_keeps_the_labels_of_train(photos):
    for path in (photos / "val" / "bee").iterdir():
        path.unlink()
    (photos / "val" / "bee").rmdir()
    data = ImageFolder(str(photos), "val")
    assert data.classes == ["ant", "bee", "cow"]
    assert np.bincount(data.labels, minlength=3).tolist() == [2, 0, 2]


def test_a_class_that_train_lacks_is_refused(photos):
    (photos / "val" / "bee").rename(photos / "val" / "bea")
    with pytest.raises(ConfigError, match=r"val has the class folder 'bea', which train lacks"):
        ImageFolder(str(photos), "val")


def test_hidden_folders_and_other_files_are_no_samples(photos):
    before = ImageFolder(str(photos), "train").content_hash
    (photos / "train" / ".checkpoints").mkdir()
    (photos / "train" / ".checkpoints" / "0.png").write_bytes(b"")
    (photos / "train" / "ant" / "notes.txt").write_text("no picture")
    (photos / "train" / "loose.png").write_bytes(b"")
    data = ImageFolder(str(photos), "train")
    assert data.classes == ["ant", "bee", "cow"]
    assert data.content_hash == before


# --- the small collections ---


@pytest.mark.parametrize(("kind", "name", "size"), [("Flowers5", "flowers5", 128), ("DTD10", "dtd10", 160)])
def test_small_photos_are_looked_for_in_order(tmp_path, monkeypatch, kind, name, size):
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path / "data"))
    with pytest.raises(DataMissing, match=rf"{name} is not in .*put its folders .*\$LIMBECK_DATA/{name}") as caught:
        DATASETS.make({"type": kind, "split": "train"})
    assert "\n" not in str(caught.value)
    places = [tmp_path / "cache" / "data" / name, tmp_path / "data" / name, tmp_path / "own"]
    for count, place in enumerate(places, start=2):
        write_photos(place, counts=(("train", count),))
        root = {"root": str(place)} if place.name == "own" else {}
        data = DATASETS.make({"type": kind, "split": "train", **root})
        assert len(data) == 3 * count
        assert (data.name, data.size) == (name, size)
        assert data[0]["inputs"].shape == (3, size, size)


@pytest.mark.parametrize("kind", ["Flowers5", "DTD10"])
def test_small_photos_take_the_options_of_an_image_folder(photos, kind):
    options = dict(size=10, crop_pct=0.8, augment=CROP, views=2, seed=3, limit=7)
    data = DATASETS.make(dict(type=kind, root=str(photos), split="train", **options))
    folder = ImageFolder(str(photos), "train", **options)
    assert torch.equal(data.__getitems__(range(7))["inputs"], folder.__getitems__(range(7))["inputs"])
    assert data.content_hash == folder.content_hash
    with pytest.raises(UnknownName, match="crop_pct"):
        DATASETS.make(dict(type=kind, root=str(photos), split="train", crop_pc=0.8))


@pytest.mark.skipif(DATA is None, reason="LIMBECK_DATA is not set")
@pytest.mark.parametrize(
    ("kind", "split", "count", "classes", "digest"),
    [
        ("Flowers5", "val", 427, 5, "29a464988cb5d93b74f66600e6630d5ba4f148cd61b4ef1db8c1ecaaa14e1597"),
        ("DTD10", "train", 612, 10, "be28fd25cdd2233b51ad649a9130e66c9b4aca6dfc558f62d5410cb16bf4904b"),
        ("DTD10", "test", 394, 10, "bb4e5349ef6e553489ef05d6059b32437dbf5b635e1b9449b372ee5327752b57"),
    ],
)
def test_real_small_photos(monkeypatch, kind, split, count, classes, digest):
    monkeypatch.setenv("LIMBECK_DATA", str(DATA))
    data = DATASETS.make({"type": kind, "split": split})
    assert (len(data), len(data.classes), data.content_hash) == (count, classes, digest)
    assert data.classes == sorted(data.classes)
    assert np.bincount(data.labels, minlength=classes).min() > 0
    assert data.__getitems__(range(count))["inputs"].shape == (count, 3, data.size, data.size)
