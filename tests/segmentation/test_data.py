"""Segmentation data: augmentation moves image and labels alike; digit scenes are what the generator makes."""

import json

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from limbeck.engine.augment import sample_uniforms
from limbeck.engine.losses import IGNORE
from limbeck.engine.registry import DATASETS
from limbeck.engine.scenes import SceneMaker
from limbeck.errors import ConfigError, UnknownName
from limbeck.segmentation.data.augment import ScaleCropFlip
from limbeck.segmentation.data.base import SegmentationDataset
from limbeck.segmentation.data.digit_scenes import DigitScenes

COLOURS = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [255, 255, 255]], np.uint8)


class Painted(SegmentationDataset):
    """Maps whose colours say their labels."""

    name = "painted"

    def __init__(self, maps, augment=None, views=0, seed=0):
        super().__init__("train", size=maps.shape[1:], augment=augment, views=views, seed=seed)
        self.maps, self.pixels = maps, COLOURS[maps]
        self.classes = list("abcdef")
        self.palette = [tuple(c) for c in COLOURS.tolist()]
        self.content_hash = "0" * 64

    def stored(self, ids):
        return self.pixels[ids], self.maps[ids]

    def __len__(self):
        return len(self.maps)


def patches(count=30, height=36, width=48, cell=12):
    """Label maps (N, H, W) of square patches of 6 classes."""
    rng = np.random.default_rng(0)
    grid = rng.integers(0, 6, (count, -(-height // cell), -(-width // cell)), dtype=np.uint8)
    return grid.repeat(cell, 1).repeat(cell, 2)[:, :height, :width].copy()


def same(a, b) -> bool:
    return torch.equal(a["inputs"], b["inputs"]) and all(
        torch.equal(a["data_samples"][k], b["data_samples"][k]) for k in ("labels", "ids", "views")
    )


# --- the augmentation ---


@pytest.mark.parametrize("scale", [(1.0, 1.5), (0.75, 1.0), (0.5, 2.0)])
def test_image_and_labels_get_the_same_geometry(scale):
    maps = patches()
    pixels, labels = ScaleCropFlip(scale=scale)(COLOURS[maps], maps, np.arange(30), seed=1, view=2)
    known = labels != IGNORE
    assert (pixels[~known] == 128).all()
    assert (labels[known] < 6).all()
    exact = known & (pixels == COLOURS[labels % 6]).all(-1)
    assert exact.sum() / known.sum() > 0.6  # the others are the blended edges of patches of 12 pixels
    distance = np.abs(pixels[:, :, :, None, :].astype(int) - COLOURS).sum(-1)  # (B, H, W, 6)
    own = np.take_along_axis(distance, (labels % 6)[..., None].astype(int), 3)[..., 0]
    assert (own[known] <= 3 * 200).all()  # at a corner of four patches the nearest one has at least a quarter


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("scale", [0.8, 1.0, 1.13, 1.5])
def test_edges_of_labels_and_images_meet_to_half_a_pixel(axis, scale):
    # Across one edge, bilinear weights pass a half exactly where the nearest pixel changes.
    for edge in range(8, 24):
        maps = np.zeros((1, 32, 32), np.uint8)
        maps[0][(np.s_[edge:], np.s_[:, edge:])[axis]] = 5
        augment = ScaleCropFlip(scale=(scale, scale), size=(50, 50))
        pixels, labels = augment(COLOURS[maps], maps, np.array([edge]), seed=3, view=0)
        known = labels != IGNORE
        assert set(labels[known]) == {0, 5}
        whiter = pixels[..., 0] > 127.5
        tied = np.abs(pixels[..., 0].astype(int) - 127.5) <= 1
        assert ((labels == 5) == whiter)[known & ~tied].all()


def test_scale_one_is_a_crop_of_the_padded_original_by_a_loop():
    maps = patches(20, 10, 14, 3)
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (20, 10, 14, 3), dtype=np.uint8)
    ids = rng.integers(0, 1000, 20)
    pixels, labels = ScaleCropFlip((1, 1), size=(7, 20), fill=9)(images, maps, ids, seed=5, view=6)
    for n, sample in enumerate(ids):
        _, a, b, c = sample_uniforms(5, 6, np.array([sample]), 4)[0]
        top, left = int(a * 4), int(b * 7)  # cut 7 of 10 rows; lay 14 columns into 20
        for y in range(7):
            for x in range(20):
                column = (19 - x if c < 0.5 else x) - left
                inside = 0 <= column < 14
                assert labels[n, y, x] == (maps[n, top + y, column] if inside else IGNORE)
                assert pixels[n, y, x].tolist() == (images[n, top + y, column].tolist() if inside else [9, 9, 9])


def test_scales_are_uniform_in_their_range_and_places_too():
    maps = np.ones((400, 40, 40), np.uint8)
    _, labels = ScaleCropFlip((0.5, 1.0), flip=False)(COLOURS[maps], maps, np.arange(400), seed=0, view=0)
    known = labels != IGNORE
    sides, tops = known.any(2).sum(1), known.any(2).argmax(1)
    assert (sides.min(), sides.max()) == (20, 40)
    assert abs(sides.mean() - 30) < 1
    assert abs(np.corrcoef(sides, known.any(1).sum(1))[0, 1] - 1) < 1e-6  # the shape is kept
    small = sides < 22
    assert tops[small].min() <= 2
    assert tops[small].max() >= 16


def test_half_of_the_samples_are_flipped():
    maps = np.zeros((500, 4, 6), np.uint8)
    maps[:, :, 3:] = 1
    _, labels = ScaleCropFlip((1, 1))(COLOURS[maps], maps, np.arange(500), seed=0, view=0)
    flipped = labels[:, 0, 0] == 1
    assert 200 < flipped.sum() < 300
    assert np.array_equal(labels[flipped], maps[flipped][:, :, ::-1])
    assert np.array_equal(labels[~flipped], maps[~flipped])
    _, labels = ScaleCropFlip((1, 1), flip=False)(COLOURS[maps], maps, np.arange(500), seed=0, view=0)
    assert np.array_equal(labels, maps)


def test_ignored_pixels_stay_ignored():
    maps = np.full((5, 8, 8), IGNORE, np.uint8)
    images = np.zeros((5, 8, 8, 3), np.uint8)
    _, labels = ScaleCropFlip((0.5, 2.0))(images, maps, np.arange(5), seed=0, view=0)
    assert (labels == IGNORE).all()


def test_what_is_kept_does_not_change():
    data = Painted(patches(), augment=dict(scale=(0.7, 1.4)))
    pixels, maps = data.pixels.copy(), data.maps.copy()
    batch = data.__getitems__(range(30))
    batch["inputs"].zero_()
    batch["data_samples"]["labels"].zero_()
    plain = Painted(data.maps).__getitems__([1, 2])
    plain["inputs"].zero_()
    plain["data_samples"]["labels"].zero_()
    assert np.array_equal(data.pixels, pixels)
    assert np.array_equal(data.maps, maps)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(size=(0, 10)), r"size .*\(0, 10\)"),
        (dict(size=(10,)), "size"),
        (dict(size=(10.5, 10)), "size"),
        (dict(scale=(0.0, 1.0)), "scale"),
        (dict(scale=(1.5, 1.0)), "scale"),
        (dict(fill=256), "fill"),
        (dict(flipp=True), "flip"),
    ],
)
def test_wrong_augmentations_are_user_errors(options, said):
    with pytest.raises(ConfigError, match=said):
        Painted(patches(), augment=options)


# --- the base ---


def test_batches_have_the_contract_shapes_and_types():
    for augment, shape in ((None, (36, 48)), (dict(), (36, 48)), (dict(size=(24, 60)), (24, 60))):
        batch = Painted(patches(), augment=augment).__getitems__([3, 0, 7])
        assert (batch["inputs"].shape, batch["inputs"].dtype) == ((3, 3, *shape), torch.uint8)
        labels = batch["data_samples"]["labels"]
        assert (labels.shape, labels.dtype) == ((3, *shape), torch.int64)
        assert batch["inputs"].is_contiguous()
    data = Painted(patches())
    one = data[3]
    assert torch.equal(one["inputs"].permute(1, 2, 0), torch.from_numpy(data.pixels[3]))
    assert torch.equal(one["data_samples"]["labels"], torch.from_numpy(data.maps[3]).long())
    assert not hasattr(data, "labels")  # the engine would take it for one label a sample
    assert data.metainfo == {"classes": list("abcdef"), "palette": COLOURS.tolist()}


def test_a_sample_depends_on_seed_view_and_id_alone():
    a, b = (Painted(patches(), augment=dict(), seed=4) for _ in range(2))
    whole = a.__getitems__(range(30))
    mixed = b.__getitems__([25, 3, 7, 3])
    assert torch.equal(mixed["inputs"], whole["inputs"][[25, 3, 7, 3]])
    assert torch.equal(mixed["data_samples"]["labels"], whole["data_samples"]["labels"][[25, 3, 7, 3]])
    other = Painted(patches(), augment=dict(), seed=5).__getitems__(range(30))
    a.set_epoch(1)
    later = a.__getitems__(range(30))
    assert not torch.equal(other["inputs"], whole["inputs"])
    assert not torch.equal(later["inputs"], whole["inputs"])
    assert later["data_samples"]["views"].tolist() == [1] * 30


@pytest.mark.parametrize("workers", [0, 1])
def test_loader_gives_whole_batches_of_the_current_epoch(workers):
    data = Painted(patches(), augment=dict())
    loader = DataLoader(data, batch_size=12, num_workers=workers, collate_fn=lambda batch: batch)
    data.set_epoch(2)
    batches = list(loader)
    assert [len(b["inputs"]) for b in batches] == [12, 12, 6]
    assert same(batches[1], data.__getitems__(range(12, 24)))


def test_pipeline_is_json_and_knows_what_decides_the_pixels():
    data = Painted(patches(), augment=dict(size=(24, 24)), views=3, seed=2)
    found = json.loads(json.dumps(data.pipeline()))
    assert found == data.pipeline()
    assert found["size"] == [36, 48]
    options = {"scale": [0.75, 1.5], "flip": True, "size": [24, 24], "fill": 128}
    assert found["augment"] == {"type": "ScaleCropFlip", **options}
    assert (found["seed"], found["views"]) == (2, 3)


# --- digit scenes ---


def test_digit_scenes_are_those_of_the_generator():
    data = DATASETS.make(dict(type="DigitScenes", split="val", count=12, size=(40, 48), scene_seed=3))
    make = SceneMaker("val", seed=3, size=(40, 48))
    batch = data.__getitems__([11, 0, 4, 0])
    for row, index in enumerate([11, 0, 4, 0]):
        assert np.array_equal(batch["inputs"][row].permute(1, 2, 0).numpy(), make(index).image)
        assert np.array_equal(batch["data_samples"]["labels"][row].numpy(), make(index).mask)
    assert data.classes == ["background", *"0123456789"]
    assert len(data.palette) == len(set(data.palette)) == 11


def test_digit_scenes_are_made_once_and_only_when_asked_for(monkeypatch):
    made = []
    make = SceneMaker.__call__
    monkeypatch.setattr(SceneMaker, "__call__", lambda self, index: made.append(index) or make(self, index))
    data = DigitScenes("train", count=9)
    assert len(data.content_hash) == 64
    assert made == []
    first = data.__getitems__([5, 2, 5])
    assert sorted(made) == [2, 5]
    assert same(data.__getitems__([5, 2, 5]), first)
    assert len(made) == 2
    assert data.maps.shape == (9, 64, 64)
    assert sorted(made) == list(range(9))
    assert data.pixels.shape == (9, 64, 64, 3)
    assert len(made) == 9
    assert np.array_equal(data.maps[[5, 2]], first["data_samples"]["labels"][:2].numpy())


def test_seed_of_the_augmentation_does_not_change_scenes_or_hash():
    a, b = (DigitScenes("train", count=6, seed=s) for s in (0, 1))
    assert a.content_hash == b.content_hash
    assert same(a.__getitems__(range(6)), b.__getitems__(range(6)))
    a, b = (DigitScenes("train", count=6, seed=s, augment=dict(flip=False)) for s in (0, 1))
    assert not torch.equal(a.__getitems__(range(6))["inputs"], b.__getitems__(range(6))["inputs"])


def test_hash_of_digit_scenes_follows_every_argument():
    base = dict(split="train", count=5, size=(64, 64), scene_seed=0)
    changes = [dict(), dict(split="val"), dict(split="test"), dict(count=6), dict(size=(64, 72)), dict(scene_seed=1)]
    assert len({DigitScenes(**{**base, **change}).content_hash for change in changes}) == 6


def test_counts_of_digit_scenes():
    assert [len(DigitScenes(split)) for split in ("train", "val", "test")] == [2000, 500, 1000]
    few, more = DigitScenes("test", count=3), DigitScenes("test", count=5)
    assert same(few.__getitems__(range(3)), more.__getitems__(range(3)))


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        (dict(split="trian"), UnknownName, "train"),
        (dict(split="train", count=0), ConfigError, "count"),
        (dict(split="train", size=(0, 64)), ConfigError, r"size .*\(0, 64\)"),
        (dict(split="train", size=(16, 64)), ConfigError, "32 pixels"),
        (dict(split="train", size=64), ConfigError, "size"),
        (dict(split="train", views=-1), ConfigError, "views"),
        (dict(split="train", augment=dict(pad=1)), UnknownName, "pad"),
    ],
)
def test_wrong_options_of_digit_scenes_are_user_errors(options, error, said):
    with pytest.raises(error, match=said):
        DATASETS.make(dict(type="DigitScenes", **options))
