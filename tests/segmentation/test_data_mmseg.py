"""Cityscapes, VOC 2012 and ADE20K through mmsegmentation's classes, on small trees of each layout."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.engine.data import SPLITS
from limbeck.engine.evaluate import whole_batch
from limbeck.engine.registry import DATASETS
from limbeck.errors import ConfigError, CorruptFile, DataMissing, UnknownName
from limbeck.segmentation.data.mmseg_sets import PAD, drawn_from

pytest.importorskip("mmseg")

IGNORE = 255
KINDS = ("Cityscapes", "VOC2012", "ADE20K")
CLASSES = {"Cityscapes": 19, "VOC2012": 21, "ADE20K": 150}
SIZES = [(24, 32), (20, 30), (28, 26)]  # (height, width), in turn
CROP = dict(crop=(16, 24))


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """No data but the test's own."""
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LIMBECK_DATA", raising=False)


def save(image: Path, labels: Path, seed: int, stored: Sequence[int], size: tuple[int, int]) -> None:
    """A random image, and a label map of a few of these values in blocks."""
    rng = np.random.default_rng(seed)
    for path in (image, labels):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(image)
    blocks = rng.choice(np.array(stored, np.uint8), (size[0] // 2, size[1] // 2))
    found = Image.fromarray(blocks.repeat(2, 0).repeat(2, 1), "L")
    if "VOC" in str(labels):  # as the challenge's files: colour by palette
        found = found.convert("P")
        found.putpalette(list(range(256)) * 3)
        found.putdata(list(blocks.repeat(2, 0).repeat(2, 1).flatten()))
    found.save(labels)


def cityscapes(root: Path) -> None:
    for part, count in (("train", 10), ("val", 3)):
        for i in range(count):
            name = f"{part}/{'ab'[i % 2]}/{'ab'[i % 2]}_{i:06d}_000019"
            image = root / "leftImg8bit" / f"{name}_leftImg8bit.png"
            save(image, root / "gtFine" / f"{name}_gtFine_labelTrainIds.png", i, [*range(19), IGNORE], (24, 32))


def voc(root: Path) -> None:
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for number, (part, count) in enumerate((("train", 6), ("aug", 4), ("val", 3))):
        names = [f"2007_{number}{i:05d}" for i in range(count)]
        for i, name in enumerate(names):
            labels = root / ("SegmentationClassAug" if part == "aug" else "SegmentationClass") / f"{name}.png"
            save(root / "JPEGImages" / f"{name}.jpg", labels, 10 * number + i, [*range(21), IGNORE], SIZES[i % 3])
        (lists / f"{part}.txt").write_text("".join(f"{name}\n" for name in names))


def ade(root: Path) -> None:
    for part, count in (("training", 10), ("validation", 3)):
        for i in range(count):
            name = f"ADE_{part}_{i:08d}"
            labels = root / "annotations" / part / f"{name}.png"
            save(root / "images" / part / f"{name}.jpg", labels, i, range(151), SIZES[i % 3])


def trees(folder: Path) -> dict[str, Path]:
    return {
        "Cityscapes": folder / "cityscapes",
        "VOC2012": folder / "VOCdevkit" / "VOC2012",
        "ADE20K": folder / "ade" / "ADEChallengeData2016",
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The three trees: ten training images and three to test in each."""
    folder = tmp_path_factory.mktemp("whole")
    for (_, root), write in zip(trees(folder).items(), (cityscapes, voc, ade)):
        write(root)
    return folder


@pytest.fixture
def roots(whole, tmp_path) -> dict[str, Path]:
    """Copies of the trees, for the test to damage."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    return trees(tmp_path)


def made(kind: str, roots: dict[str, Path], split: str = "train", **options: Any) -> Any:
    return DATASETS.make(dict(type=kind, split=split, root=str(roots[kind]), **{"val_size": 3, **options}))


def decoded(data: Any, sample: int) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W, 3) and stored labels (H, W) of a sample by Pillow alone."""
    files = data._files[sample]
    return np.asarray(Image.open(files["img_path"]).convert("RGB")), np.asarray(Image.open(files["seg_map_path"]))


def names(data: Any) -> list[str]:
    return [Path(f["img_path"]).relative_to(data.root).as_posix() for f in data._files]


# --- what is in a split ---


@pytest.mark.parametrize("kind", KINDS)
def test_val_is_held_out_by_hash_and_test_is_the_published_validation_set(kind, roots):
    train, val, test = (made(kind, roots, split) for split in SPLITS)
    assert [len(d) for d in (train, val, test)] == [7, 3, 3]
    trained = [*names(train), *names(val)]
    assert trained == sorted(trained, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    assert len(set(trained)) == 10
    assert not set(names(test)) & set(trained)
    assert len({d.content_hash for d in (train, val, test)}) == 3
    for data in (train, val, test):
        assert len(data.classes) == CLASSES[kind]
        assert data.metainfo["classes"] == data.classes
        assert all(name == name.strip() for name in data.classes)
    assert names(made(kind, roots, limit=4)) == names(train)[:4]
    assert made(kind, roots, limit=4).content_hash != train.content_hash


def test_voc_has_the_extra_labels_only_where_asked(roots):
    both, own = made("VOC2012", roots), made("VOC2012", roots, sbd=False)
    assert (len(both), len(own)) == (7, 3)
    assert {Path(f["seg_map_path"]).parent.name for f in both._files} == {"SegmentationClass", "SegmentationClassAug"}
    assert {Path(f["seg_map_path"]).parent.name for f in own._files} == {"SegmentationClass"}
    assert names(made("VOC2012", roots, "test", sbd=False)) == names(made("VOC2012", roots, "test"))


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_rgb_and_labels_those_of_the_files(kind, roots):
    data = made(kind, roots)
    for i in range(len(data)):
        batch = data.__getitems__([i])
        image, stored = decoded(data, i)
        if kind == "ADE20K":  # 0 is no class
            stored = np.where(stored == 0, IGNORE, stored.astype(int) - 1)
        pixels, labels = batch["inputs"], batch["data_samples"]["labels"]
        assert (pixels.dtype, labels.dtype) == (torch.uint8, torch.int64)
        assert np.array_equal(labels[0].numpy(), stored)
        error = np.abs(pixels[0].numpy().transpose(1, 2, 0).astype(int) - image)
        assert error.max() <= (0 if kind == "Cityscapes" else 6)  # two JPEG decoders differ a little
        assert batch["data_samples"]["ids"].tolist() == [i]
        assert batch["data_samples"]["views"].tolist() == [0]


def test_ade_has_both_ends_of_its_labels(roots):
    data = made("ADE20K", roots)
    seen = torch.cat([data.__getitems__([i])["data_samples"]["labels"].flatten() for i in range(len(data))])
    stored = np.concatenate([decoded(data, i)[1].flatten() for i in range(len(data))])
    assert {0, 149, IGNORE} <= set(seen.tolist())
    assert int((seen == IGNORE).sum()) == int((stored == 0).sum())
    assert int((seen == 0).sum()) == int((stored == 1).sum())


def test_images_of_one_size_are_one_batch_and_others_are_not(roots):
    batch = made("Cityscapes", roots, "test").__getitems__([2, 0])
    assert batch["inputs"].shape == (2, 3, 24, 32)
    assert batch["data_samples"]["labels"].shape == (2, 24, 32)
    with pytest.raises(ConfigError, match="eval_batch_size=1"):
        made("VOC2012", roots, "test").__getitems__(range(3))


def test_scale_resizes_images_and_labels_alike(roots):
    data = made("ADE20K", roots, "test", scale=(60, 14))
    for i in range(3):
        height, width = decoded(data, i)[1].shape
        batch = data.__getitems__([i])
        factor = min(60 / max(height, width), 14 / min(height, width))
        assert batch["inputs"].shape[2:] == (int(height * factor + 0.5), int(width * factor + 0.5))
        assert batch["data_samples"]["labels"].shape[1:] == batch["inputs"].shape[2:]
        stored = (decoded(data, i)[1].astype(int) - 1) % 256
        assert set(batch["data_samples"]["labels"].unique().tolist()) <= set(np.unique(stored).tolist())


# --- augmentation ---


@pytest.mark.parametrize("kind", KINDS)
def test_augmented_images_have_the_crops_size(kind, roots):
    batch = made(kind, roots, augment=CROP, scale=(32, 20)).__getitems__(range(7))
    assert batch["inputs"].shape == (7, 3, 16, 24)
    assert batch["data_samples"]["labels"].shape == (7, 16, 24)
    labels = batch["data_samples"]["labels"]
    assert bool(((labels < CLASSES[kind]) | (labels == IGNORE)).all())


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_depend_on_seed_view_and_id_alone(kind, roots):
    options: dict[str, Any] = dict(augment=CROP, scale=(32, 20))
    data, same, other = (made(kind, roots, **options, seed=seed) for seed in (1, 1, 2))
    first = data.__getitems__([0, 1, 2])
    np.random.seed(99)
    random.seed(99)
    again = same.__getitems__([2, 0])
    assert torch.equal(again["inputs"], first["inputs"][[2, 0]])
    assert torch.equal(again["data_samples"]["labels"], first["data_samples"]["labels"][[2, 0]])
    assert not torch.equal(other.__getitems__([0, 1, 2])["inputs"], first["inputs"])
    data.set_epoch(1)
    assert not torch.equal(data.__getitems__([0, 1, 2])["inputs"], first["inputs"])
    assert data.__getitems__([0])["data_samples"]["views"].tolist() == [1]


def test_augmentation_is_mmsegmentations_pipeline_of_the_same_random_numbers(roots):
    """The steps of its Cityscapes config, built by its own registry."""
    from mmengine.registry import DefaultScope
    from mmseg.datasets import CityscapesDataset

    data = made("Cityscapes", roots, augment=CROP, scale=(32, 20), seed=3)
    steps = [
        dict(type="LoadImageFromFile"),
        dict(type="LoadAnnotations"),
        dict(type="RandomResize", scale=(32, 20), ratio_range=(0.5, 2.0), keep_ratio=True),
        dict(type="RandomCrop", crop_size=(16, 24), cat_max_ratio=0.75),
        dict(type="RandomFlip", prob=0.5),
        dict(type="PhotoMetricDistortion"),
        dict(type="Pad", size=(24, 16), pad_val=dict(img=PAD, seg=IGNORE)),
        dict(type="PackSegInputs"),
    ]
    prefix = dict(img_path="leftImg8bit/train", seg_map_path="gtFine/train")
    with DefaultScope.overwrite_default_scope("mmseg"):
        theirs = CityscapesDataset(data_root=str(data.root), data_prefix=prefix, pipeline=steps)
    paths = [theirs.get_data_info(i)["img_path"] for i in range(len(theirs))]
    ours = data.__getitems__(range(7))
    for sample in range(7):
        with drawn_from(3, 0, sample):
            found = theirs.prepare_data(paths.index(data._files[sample]["img_path"]))
        assert torch.equal(found["inputs"].flip(0), ours["inputs"][sample])  # BGR to RGB
        assert torch.equal(found["data_samples"].gt_sem_seg.data[0].long(), ours["data_samples"]["labels"][sample])


def test_views_come_again_and_workers_see_the_same(roots):
    data = made("Cityscapes", roots, augment=CROP, scale=(32, 20), views=2)
    first = data.__getitems__(range(4))["inputs"]
    data.set_epoch(2)
    assert torch.equal(data.__getitems__(range(4))["inputs"], first)
    data.set_epoch(1)
    assert not torch.equal(data.__getitems__(range(4))["inputs"], first)
    loader = torch.utils.data.DataLoader(data, batch_size=4, num_workers=1, collate_fn=whole_batch)
    assert torch.equal(next(iter(loader))["inputs"], data.__getitems__(range(4))["inputs"])


def test_global_generators_are_left_as_they_were(roots):
    data = made("Cityscapes", roots, augment=CROP, scale=(32, 20))
    np.random.seed(5)
    random.seed(5)
    expected = (np.random.random(), random.random())
    np.random.seed(5)
    random.seed(5)
    data.__getitems__(range(3))
    assert (np.random.random(), random.random()) == expected


def test_image_and_labels_are_moved_together(roots):
    """Red holds the label, so that it tells where a pixel came from; nothing is resized."""
    root = roots["Cityscapes"]
    for path in (root / "leftImg8bit").rglob("*.png"):
        labels = root / "gtFine" / path.relative_to(root / "leftImg8bit")
        stored = np.asarray(Image.open(str(labels).replace("leftImg8bit", "gtFine_labelTrainIds")))
        Image.fromarray(np.repeat(stored[..., None], 3, 2)).save(path)
    options = dict(crop=(20, 40), ratio_range=(1.0, 1.0), distort=False)
    data = made("Cityscapes", roots, augment=options, scale=(32, 24))
    batch = data.__getitems__(range(7))
    pixels, labels = batch["inputs"], batch["data_samples"]["labels"]
    assert pixels.shape == (7, 3, 20, 40)
    inside = labels[:, :, :32]
    assert torch.equal(pixels[:, 0, :, :32].long(), inside)
    assert bool((labels[:, :, 32:] == IGNORE).all())  # padded on the right
    mean = torch.tensor([124, 116, 104]).view(3, 1, 1)
    assert bool((pixels[:, :, :, 32:] == mean).all())
    flips = [
        bool((inside[i].flip(1) == whole[top : top + 20]).all()) for i in range(7) for whole, top in places_of(data, i)
    ]
    plain = [bool((inside[i] == whole[top : top + 20]).all()) for i in range(7) for whole, top in places_of(data, i)]
    assert sum(flips) + sum(plain) == 7
    assert sum(flips) > 0
    assert sum(plain) > 0


def places_of(data: Any, sample: int) -> list[tuple[torch.Tensor, int]]:
    """The stored labels of a sample with every row that a crop of 20 of its 24 rows may start at."""
    stored = torch.from_numpy(decoded(data, sample)[1].copy()).long()
    return [(stored, top) for top in range(5)]


def test_a_crop_of_one_class_is_drawn_anew(roots):
    """Nine tenths of every image are road; a crop that holds another class too is looked for."""
    root = roots["Cityscapes"]
    for path in (root / "gtFine").rglob("*.png"):
        stored = np.zeros((24, 32), np.uint8)
        stored[:, 20:] = 11
        Image.fromarray(stored).save(path)
    counts = []
    for ratio in (1.0, 0.75):
        augment = dict(crop=(8, 12), ratio_range=(1.0, 1.0), cat_max_ratio=ratio)
        data = made("Cityscapes", roots, augment=augment, scale=(32, 24))
        pure = 0
        for epoch in range(20):
            data.set_epoch(epoch)
            labels = data.__getitems__(range(7))["data_samples"]["labels"]
            pure += sum(len(one.unique()) == 1 for one in labels)
        counts.append(pure)
    assert counts[0] > 40
    assert counts[1] < counts[0] / 4


def test_the_pipeline_says_what_decides_the_pixels(roots):
    plain, augmented = made("VOC2012", roots, "test"), made("VOC2012", roots, augment=CROP)
    assert (plain.pipeline()["scale"], plain.pipeline()["augment"]) == (None, None)
    assert augmented.pipeline()["scale"] == [2048, 512]
    assert augmented.pipeline()["augment"] == dict(
        type="CropDistort", crop=[16, 24], ratio_range=[0.5, 2.0], cat_max_ratio=0.75, flip=0.5, distort=True
    )
    assert "mmsegmentation 1." in plain.pipeline()["libraries"]
    assert made("Cityscapes", roots, augment=CROP).pipeline()["scale"] == [2048, 1024]


def test_nothing_is_opened_before_it_is_asked_for(roots, monkeypatch):
    import mmcv

    def opened(*args: Any, **kwargs: Any) -> None:
        raise OSError("opened")

    monkeypatch.setattr(mmcv, "imfrombytes", opened)
    data = made("ADE20K", roots)
    with pytest.raises(CorruptFile, match="opened"):
        data.__getitems__([0])


# --- what is refused ---


@pytest.mark.parametrize(
    ("kind", "said"),
    [("Cityscapes", "csCreateTrainIdLabelImgs"), ("VOC2012", "SegmentationClassAug"), ("ADE20K", "annotations")],
)
def test_missing_data_is_one_sentence_with_the_layout(kind, said, tmp_path, monkeypatch):
    with pytest.raises(DataMissing, match=said) as caught:
        DATASETS.make(dict(type=kind, split="train", root=str(tmp_path / "nowhere")))
    assert "nowhere" in str(caught.value)
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path))
    with pytest.raises(DataMissing, match="LIMBECK_DATA"):
        DATASETS.make(dict(type=kind, split="test"))


@pytest.mark.parametrize("kind", KINDS)
def test_data_are_found_below_the_shared_folder(kind, roots, tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path))
    found = DATASETS.make(dict(type=kind, split="test"))
    assert found.content_hash == made(kind, roots, "test").content_hash


def test_a_missing_label_map_and_an_empty_folder_are_named(roots):
    data = made("ADE20K", roots)
    lost = Path(data._files[3]["seg_map_path"])
    lost.unlink()
    with pytest.raises(DataMissing, match=lost.name):
        made("ADE20K", roots)
    for path in (roots["Cityscapes"] / "leftImg8bit" / "val").rglob("*.png"):
        path.unlink()
    with pytest.raises(DataMissing, match="no images of test"):
        made("Cityscapes", roots, "test")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("key", ["img_path", "seg_map_path"])
def test_a_broken_file_is_named(kind, key, roots):
    data = made(kind, roots)
    path = Path(data._files[1][key])
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(CorruptFile, match=path.name):
        data.__getitems__([1])
    path.write_bytes(b"")
    with pytest.raises(CorruptFile, match=path.name):
        data.__getitems__([1])


def test_labels_of_another_kind_or_size_are_named(roots):
    data = made("Cityscapes", roots)
    path = Path(data._files[0]["seg_map_path"])
    Image.fromarray(np.full((24, 32), 26, np.uint8)).save(path)  # 26 is a car's label id, not its train id
    with pytest.raises(CorruptFile, match="label 26 is not in 0 to 18"):
        data.__getitems__([0])
    Image.fromarray(np.zeros((24, 30), np.uint8)).save(path)
    with pytest.raises(CorruptFile, match=r"\(24, 30\) pixels for an image of \(24, 32\)"):
        data.__getitems__([0])


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        (dict(val_size=10), ConfigError, "val_size"),
        (dict(val_size=0), ConfigError, "val_size"),
        (dict(limit=8), ConfigError, "limit"),
        (dict(views=-1), ConfigError, "views"),
        (dict(split="trainval"), UnknownName, "split"),
        (dict(augment=dict(crops=(8, 8))), UnknownName, "crop"),
        (dict(augment=dict(crop=(0, 8))), ConfigError, "positive"),
        (dict(augment=dict(ratio_range=(2.0, 0.5))), ConfigError, "rises"),
        (dict(augment=dict(cat_max_ratio=0.0)), ConfigError, "cat_max_ratio"),
        (dict(augment=dict(flip=1.5)), ConfigError, "flip"),
        (dict(scala=(8, 8)), UnknownName, "scale"),
    ],
)
def test_wrong_options_are_refused(options, kind, said, roots):
    with pytest.raises(kind, match=said):
        made("Cityscapes", roots, **{"split": "train", **options})
