"""Detection data: boxes move with the pixels; batches are padded; digit scenes are what the generator makes."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from limbeck.detection.data.augment import ResizeFlip, ScaleCropFlip, fitted, resized
from limbeck.detection.data.base import DetectionDataset, Objects
from limbeck.detection.data.digit_scenes import DigitScenesBoxes
from limbeck.engine.augment import parse_augment, sample_uniforms
from limbeck.engine.data_sources import located, sources
from limbeck.engine.evaluate import whole_batch
from limbeck.engine.registry import DATASETS
from limbeck.engine.scenes import SceneMaker
from limbeck.errors import ConfigError, UnknownName

HEIGHT, WIDTH = 48, 64


class Painted(DetectionDataset):
    """Black images with one white box each, and some of other sizes."""

    name = "painted"
    multiple = 8

    def __init__(self, boxes, sizes=None, augment=None, views=0, seed=0):
        super().__init__("train", augment=parse_augment(ScaleCropFlip, augment), views=views, seed=seed)
        self.objects = [Objects.of(b, np.arange(len(b))) for b in boxes]
        self.images = [painted(b, s) for b, s in zip(boxes, sizes or [(HEIGHT, WIDTH)] * len(boxes))]
        self.classes, self.palette, self.content_hash = list("abcd"), [(1, 2, 3)] * 4, "0" * 64

    def stored(self, sample):
        return self.images[sample], self.objects[sample]

    def _scales(self, ids):
        return np.ones((len(ids), 2))

    def __len__(self):
        return len(self.images)


def painted(boxes, size=(HEIGHT, WIDTH)):
    image = np.zeros((*size, 3), np.uint8)
    for x1, y1, x2, y2 in np.asarray(boxes, int).reshape(-1, 4):
        image[y1:y2, x1:x2] = 255
    return image


def seen(image):
    """x1 y1 x2 y2 of the pixels that are more white than black."""
    rows, columns = np.nonzero(image[..., 0] > 127.5)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def random_boxes(count, seed=0):
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, (40, 28), (count, 2))
    return np.concatenate((corners, corners + rng.integers(8, 20, (count, 2))), 1)


# --- boxes ---


def test_clipping_drops_what_is_too_little_and_keeps_crowds():
    boxes = [
        [-6, 0, 4, 10],
        [-7, 0, 3, 10],
        [-7, 0, 3, 10],
        [20, 0, 30, 10],
        [20, 0, 30, 10],
        [5, 8, 7, 20],
        [1, 1, 4, 4],
    ]
    objects = Objects.of(boxes, range(7), [0, 0, 1, 0, 1, 0, 0])
    found = objects.clipped((10, 20), least_visible=0.35)
    assert found.labels.tolist() == [0, 2, 6]  # 40 % stay; 30 % do not, but of a crowd they do; outside nothing does
    assert found.boxes.tolist() == [[0, 0, 4, 10], [0, 0, 3, 10], [1, 1, 4, 4]]
    assert found.crowd.tolist() == [False, True, False]
    assert objects.clipped((10, 20)).labels.tolist() == [0, 1, 2, 5, 6]
    assert objects.clipped((10, 20), least_side=3).labels.tolist() == [0, 1, 2, 6]
    assert objects.boxes[0].tolist() == [-6, 0, 4, 10]  # what is kept does not change


def test_no_objects_stay_none():
    none = Objects.of([], [])
    for found in (none.moved((2, 2), (1, 1)), none.mirrored(9), none.clipped((4, 4), least_visible=0.5)):
        assert (found.boxes.shape, found.labels.shape, found.crowd.shape) == ((0, 4), (0,), (0,))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.4, 2.0), st.floats(0.0, 1.0))
def test_what_a_box_keeps_of_its_area_decides(seed, factor, least):
    boxes = random_boxes(5, seed % 1000)
    augment = ScaleCropFlip(scale=(factor, factor), least_visible=least, least_side=0)
    dice = sample_uniforms(seed, 0, np.arange(1), 4)[0]
    _, found = augment(painted(boxes), Objects.of(boxes, range(5)), dice)
    _, all_of_them = ScaleCropFlip(scale=(factor, factor), least_visible=0, least_side=0)(
        painted(boxes), Objects.of(boxes, range(5)), dice
    )
    wide, high = round(WIDTH * factor) / WIDTH, round(HEIGHT * factor) / HEIGHT
    for box, label in zip(all_of_them.boxes, all_of_them.labels):
        left = (box[2] - box[0]) * (box[3] - box[1])
        share = left / ((boxes[label, 2] - boxes[label, 0]) * wide * (boxes[label, 3] - boxes[label, 1]) * high)
        if abs(share - least) > 1e-4:
            assert (label in found.labels) == (share > least)
    assert set(found.labels) <= set(all_of_them.labels)


# --- the augmentation ---


@pytest.mark.parametrize("scale", [(1.0, 1.6), (0.6, 1.0), (0.5, 2.0)])
def test_boxes_stay_on_what_they_hold(scale):
    for n, box in enumerate(random_boxes(60)):
        augment = ScaleCropFlip(scale=scale, size=(60, 50), fill=0, least_visible=0.1)
        dice = sample_uniforms(0, 0, np.array([n]), 4)[0]
        image, found = augment(painted([box]), Objects.of([box], [3]), dice)
        assert image.shape == (60, 50, 3)
        for x in found.boxes:  # an edge of bilinear pixels passes a half where the box has its side
            assert np.abs(x - seen(image)).max() <= 0.51 if scale[0] >= 1 else np.abs(x - seen(image)).max() <= 1
            assert x.min() >= 0
            assert (x[2:] <= (50, 60)).all()
        if not len(found):
            white = (image[..., 0] > 127).sum()
            assert white < 0.2 * (box[2] - box[0]) * (box[3] - box[1]) * scale[1] ** 2


def test_scale_one_is_a_crop_of_the_padded_original_by_a_loop():
    rng = np.random.default_rng(1)
    flips = set()
    for sample in rng.integers(0, 1000, 20):
        image = rng.integers(0, 256, (10, 14, 3), dtype=np.uint8)
        dice = sample_uniforms(5, 6, np.array([sample]), 4)[0]
        box = [2, 1, 13, 9]
        pixels, found = ScaleCropFlip((1, 1), size=(7, 20), fill=9)(image, Objects.of([box], [0]), dice)
        top, left = int(dice[1] * 4), int(dice[2] * 7)  # cut 7 of 10 rows; lay 14 columns into 20
        flipped = dice[3] < 0.5
        flips.add(bool(flipped))
        for y in range(7):
            for x in range(20):
                column = (19 - x if flipped else x) - left
                inside = 0 <= column < 14
                assert pixels[y, x].tolist() == (image[top + y, column].tolist() if inside else [9, 9, 9])
                x1, y1, x2, y2 = found.boxes[0]
                within = x1 <= x < x2 and y1 <= y < y2
                assert within == (box[0] <= column < box[2] and box[1] <= top + y < box[3])
    assert flips == {True, False}


def test_half_of_the_samples_are_flipped_and_none_where_not_asked():
    box = [3, 4, 20, 30]
    objects = Objects.of([box], [0])
    dice = sample_uniforms(0, 0, np.arange(400), 4)
    flipped = [ScaleCropFlip((1, 1))(painted([box]), objects, row)[1].boxes[0].tolist() for row in dice]
    assert sorted({tuple(one) for one in flipped}) == [(3, 4, 20, 30), (WIDTH - 20, 4, WIDTH - 3, 30)]
    assert 160 < sum(one == box for one in flipped) < 240
    plain = [ScaleCropFlip((1, 1), flip=False)(painted([box]), objects, row)[1].boxes[0].tolist() for row in dice]
    assert all(one == box for one in plain)


def test_resize_flip_draws_one_of_the_scales_and_keeps_proportions():
    box = [8, 8, 40, 32]
    augment = ResizeFlip(scales=((128, 96), (96, 96)), flip=0.25)
    found = [augment(painted([box]), Objects.of([box], [0]), row) for row in sample_uniforms(0, 0, np.arange(400), 2)]
    sizes = [image.shape[:2] for image, _ in found]
    assert set(sizes) == {(96, 128), (72, 96)}
    assert 160 < sizes.count((96, 128)) < 240
    mirrored = 0
    for image, objects in found:
        assert objects.boxes[0].tolist() == seen(image)
        mirrored += objects.boxes[0][0] != 8 * image.shape[1] / WIDTH
    assert 70 < mirrored < 130
    image, objects = resized(painted([box]), Objects.of([box], [0]), (64, 48))
    assert image.shape == (HEIGHT, WIDTH, 3)
    assert objects.boxes.tolist() == [box]
    assert fitted((480, 640), (1333, 800)) == (800, 1067)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(size=(0, 10)), r"size .*\(0, 10\)"),
        (dict(scale=(0.0, 1.0)), "scale"),
        (dict(scale=(1.5, 1.0)), "scale"),
        (dict(fill=256), "fill"),
        (dict(least_visible=1.5), "least_visible"),
        (dict(least_side=-1), "least_side"),
        (dict(flipp=True), "flip"),
        (dict(draws=3), "draws"),
    ],
)
def test_wrong_augmentations_are_user_errors(options, said):
    with pytest.raises(ConfigError, match=said):
        Painted(random_boxes(2)[:, None], augment=options)


@pytest.mark.parametrize("options", [dict(scales=()), dict(scales=((0, 5),)), dict(scales=((5,),)), dict(flip=2)])
def test_wrong_resizing_is_a_user_error(options):
    with pytest.raises(ConfigError, match=r"scale|flip"):
        ResizeFlip(**options)


# --- the base ---


def test_batches_are_padded_to_the_largest():
    boxes = [random_boxes(3), random_boxes(1), np.zeros((0, 4), int)]
    data = Painted(boxes, sizes=[(48, 60), (40, 64), (9, 9)])
    batch = data.__getitems__([2, 0, 1])
    images, samples = batch["inputs"], batch["data_samples"]
    assert (images.shape, images.dtype, images.is_contiguous()) == ((3, 3, 48, 64), torch.uint8, True)
    assert samples["shapes"].tolist() == [[9, 9], [48, 60], [40, 64]]
    assert samples["labels"].tolist() == [[-1, -1, -1], [0, 1, 2], [0, -1, -1]]
    assert {k: (tuple(v.shape), v.dtype) for k, v in samples.items()} == {
        "boxes": ((3, 3, 4), torch.float32),
        "labels": ((3, 3), torch.int64),
        "crowd": ((3, 3), torch.bool),
        "shapes": ((3, 2), torch.int64),
        "ids": ((3,), torch.int64),
        "views": ((3,), torch.int64),
    }
    assert samples["boxes"][1].tolist() == boxes[0].tolist()
    assert samples["boxes"][0].abs().sum() == 0
    for n, (height, width) in enumerate(samples["shapes"].tolist()):
        inside = images[n, :, :height, :width].permute(1, 2, 0).numpy()
        assert np.array_equal(inside, data.images[[2, 0, 1][n]])
        assert (images[n, :, height:] == 128).all()
        assert (images[n, :, :, width:] == 128).all()
    alone = data.__getitems__([2])
    assert alone["inputs"].shape == (1, 3, 16, 16)  # a multiple of 8
    assert alone["data_samples"]["labels"].tolist() == [[-1]]  # one place at least
    one = data[1]["data_samples"]
    assert (one["boxes"].tolist(), one["shapes"].tolist()) == (boxes[1].tolist(), [40, 64])
    assert data.metainfo == {"classes": list("abcd"), "palette": [[1, 2, 3]] * 4}


def test_a_sample_depends_on_seed_view_and_id_alone():
    boxes = random_boxes(12)[:, None]
    a, b, other = (Painted(boxes, augment=dict(), seed=seed) for seed in (4, 4, 5))
    before = [image.copy() for image in a.images]
    whole, mixed = a.__getitems__(range(12)), b.__getitems__([9, 3, 7, 3])
    assert torch.equal(mixed["inputs"], whole["inputs"][[9, 3, 7, 3]])
    for key in ("boxes", "labels", "ids"):
        assert torch.equal(mixed["data_samples"][key], whole["data_samples"][key][[9, 3, 7, 3]])
    assert not torch.equal(other.__getitems__(range(12))["data_samples"]["boxes"], whole["data_samples"]["boxes"])
    a.set_epoch(1)
    later = a.__getitems__(range(12))
    assert not torch.equal(later["data_samples"]["boxes"], whole["data_samples"]["boxes"])
    assert later["data_samples"]["views"].tolist() == [1] * 12
    later["inputs"].zero_()
    assert all(np.array_equal(x, y) for x, y in zip(a.images, before))


def test_loader_gives_whole_batches_of_the_current_epoch():
    data = Painted(random_boxes(7)[:, None], augment=dict())
    data.set_epoch(2)
    batches = list(DataLoader(data, batch_size=4, num_workers=1, collate_fn=whole_batch))
    assert [len(b["inputs"]) for b in batches] == [4, 3]
    again = data.__getitems__(range(4, 7))
    assert torch.equal(batches[1]["inputs"], again["inputs"])
    assert torch.equal(batches[1]["data_samples"]["boxes"], again["data_samples"]["boxes"])


def test_pipeline_is_json_and_knows_what_decides_the_pixels():
    found = Painted(random_boxes(2)[:, None], augment=dict(size=(24, 24)), views=3, seed=2).pipeline()
    assert json.loads(json.dumps(found)) == found
    options = dict(scale=[0.75, 1.5], flip=True, size=[24, 24], fill=128, least_visible=0.3, least_side=2.0)
    assert found["augment"] == {"type": "ScaleCropFlip", **options}
    assert (found["seed"], found["views"]) == (2, 3)
    assert found["scaler"].startswith("opencv")


def test_augmented_images_cannot_be_taken_back():
    data = Painted(random_boxes(2)[:, None])
    assert data.scale_factors(np.arange(2)).tolist() == [[1, 1], [1, 1]]
    with pytest.raises(ConfigError, match="painted's train is augmented"):
        Painted(random_boxes(2)[:, None], augment=dict()).scale_factors(np.arange(2))


# --- digit scenes ---


def test_digit_scenes_are_those_of_the_generator():
    config = dict(type="DigitScenesBoxes", split="val", count=12, size=(40, 48), scene_seed=3)
    data, make = DATASETS.make(config), SceneMaker("val", seed=3, size=(40, 48))
    batch = data.__getitems__([11, 0, 4, 0])
    samples = batch["data_samples"]
    for row, index in enumerate([11, 0, 4, 0]):
        scene, count = make(index), len(make(index).labels)
        assert np.array_equal(batch["inputs"][row].permute(1, 2, 0).numpy(), scene.image)
        assert np.array_equal(samples["boxes"][row, :count].numpy(), scene.boxes)
        assert samples["labels"][row].tolist()[:count] == scene.labels.tolist()
        assert (samples["labels"][row, count:] == -1).all()
    assert data.classes == list("0123456789")
    assert len(set(data.palette)) == 10
    assert not samples["crowd"].any()


def test_digit_scenes_are_made_once_and_only_when_asked_for(monkeypatch):
    made = []
    make = SceneMaker.__call__
    monkeypatch.setattr(SceneMaker, "__call__", lambda self, index: made.append(index) or make(self, index))
    data = DigitScenesBoxes("train", count=9)
    assert (len(data.content_hash), made) == (64, [])
    first = data.__getitems__([5, 2, 5])
    assert sorted(made) == [2, 5]
    assert torch.equal(data.__getitems__([5, 2, 5])["inputs"], first["inputs"])
    assert len(made) == 2


def test_hash_of_digit_scenes_follows_every_argument_but_the_augmentation():
    base = dict(split="train", count=5)
    changes = [dict(), dict(split="val"), dict(count=6), dict(size=(96, 104)), dict(scene_seed=1), dict(digits=(1, 2))]
    changes.append(dict(scale=(14, 20)))
    assert len({DigitScenesBoxes(**{**base, **change}).content_hash for change in changes}) == len(changes)
    assert (
        DigitScenesBoxes("train", 5, augment=dict(), seed=3).content_hash == DigitScenesBoxes("train", 5).content_hash
    )
    assert DATASETS.make(dict(type="DigitScenes", **base, size=(96, 96))).content_hash != (
        DigitScenesBoxes("train", 5).content_hash
    )
    with pytest.raises(ConfigError, match="count"):
        DigitScenesBoxes("train", count=0)
    with pytest.raises(UnknownName, match="val"):
        DigitScenesBoxes("valid")


# --- where data sets are ---


def test_sources_are_listed_and_found(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path))
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    names = {"bccd", "coco2017", "voc0712"}
    assert names | {"digit-scenes-boxes"} <= set(sources())
    assert all(located()[name] == "" for name in names)
    for split in ("train", "val", "test"):
        (tmp_path / "bccd" / "annotations").mkdir(parents=True, exist_ok=True)
        (tmp_path / "bccd" / "annotations" / f"{split}.json").touch()
        (tmp_path / "coco" / f"{split}2017").mkdir(parents=True)
        (tmp_path / "coco" / "annotations").mkdir(exist_ok=True)
        (tmp_path / "coco" / "annotations" / f"instances_{split}2017.json").touch()
    for year, names in (("VOC2007", ("trainval", "test")), ("VOC2012", ("trainval",))):
        for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (tmp_path / "VOCdevkit" / year / folder).mkdir(parents=True)
        for name in names:
            (tmp_path / "VOCdevkit" / year / "ImageSets" / "Main" / f"{name}.txt").touch()
    (tmp_path / "bccd" / "images").mkdir()
    places = located()
    found = {name: places[name] for name in ("bccd", "coco2017", "voc0712")}
    assert found == {n: str(tmp_path / f) for n, f in zip(found, ("bccd", "coco", "VOCdevkit"))}
