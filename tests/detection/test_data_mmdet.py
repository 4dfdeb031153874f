"""COCO and VOC through mmdetection's classes, on small trees of each layout."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.engine.augment import sample_uniforms
from limbeck.engine.data import SPLITS
from limbeck.engine.mmcv_ops import install
from limbeck.engine.registry import DATASETS
from limbeck.errors import ConfigError, CorruptFile, DataMissing, UnknownName

pytest.importorskip("mmdet")
install()  # before mmdet is imported

KINDS = ("COCO2017", "VOC0712")
SIZES = [(40, 60), (64, 48), (33, 70)]  # (height, width), in turn
SCALE = (96, 64)
PADDING = [124, 116, 104]


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """No data but the test's own."""
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LIMBECK_DATA", raising=False)


def picture(path: Path, seed: int) -> tuple[int, int]:
    """Noise as a PNG, whatever the name says, so that pixels are exact; returns its size."""
    height, width = SIZES[seed % 3]
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, format="PNG")
    return height, width


def coco(root: Path) -> None:
    """Image i has i % 4 boxes; every other one of the third image's kind has a crowd. Ids are COCO's 80 of 90."""
    from mmdet.datasets import CocoDataset

    names = CocoDataset.METAINFO["classes"]
    ids = [k for k in range(1, 91) if k not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
    for part, count in (("train2017", 10), ("val2017", 4)):
        images, annotations = [], []
        for i in range(count):
            height, width = picture(root / part / f"{i:012d}.jpg", i)
            images.append(dict(id=100 + i, file_name=f"{i:012d}.jpg", height=height, width=width))
            for j in range(i % 4):
                x, y, w, h = 5 + 3 * j, 4 + i, 20 - j, 12
                one = dict(
                    id=len(annotations) + 1, image_id=100 + i, category_id=ids[(7 * i + j) % 80], bbox=[x, y, w, h]
                )
                annotations.append(one | dict(area=w * h, iscrowd=int(j == 2)))
        (root / "annotations").mkdir(exist_ok=True)
        categories = [dict(id=key, name=name) for key, name in zip(ids, names, strict=True)]
        content = dict(images=images, annotations=annotations, categories=categories)
        (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))


def voc(root: Path) -> None:
    for year, part, count in (("VOC2007", "trainval", 6), ("VOC2012", "trainval", 4), ("VOC2007", "test", 4)):
        names = []
        for i in range(count):
            name = f"{year[3:]}_{part}_{i:03d}"
            height, width = picture(root / year / "JPEGImages" / f"{name}.jpg", i)
            objects = "".join(
                f"<object><name>{('cat', 'dog', 'sofa')[j]}</name><difficult>{int(j == 2)}</difficult>"
                f"<bndbox><xmin>{6 + 3 * j}</xmin><ymin>{5 + i}</ymin>"
                f"<xmax>{26 + j}</xmax><ymax>{17 + i}</ymax></bndbox>"
                "</object>"
                for j in range(i % 4)
            )
            text = f"<annotation><size><width>{width}</width><height>{height}</height></size>{objects}</annotation>"
            xml = root / year / "Annotations" / f"{name}.xml"
            xml.parent.mkdir(parents=True, exist_ok=True)
            xml.write_text(text)
            names.append(name)
        lists = root / year / "ImageSets" / "Main"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{part}.txt").write_text("".join(f"{name}\n" for name in names))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Both trees: ten training images and four to test in each."""
    folder = tmp_path_factory.mktemp("whole")
    for root, write in ((folder / "coco", coco), (folder / "VOCdevkit", voc)):
        root.mkdir()
        write(root)
    return folder


@pytest.fixture
def roots(whole, tmp_path) -> dict[str, Path]:
    """Copies of the trees, for the test to damage."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    return {"COCO2017": tmp_path / "coco", "VOC0712": tmp_path / "VOCdevkit"}


def made(kind: str, roots: dict[str, Path], split: str = "train", **options: Any) -> Any:
    return DATASETS.make(
        dict(type=kind, split=split, root=str(roots[kind]), **{"val_size": 3, "scale": SCALE, **options})
    )


def names(data: Any) -> list[str]:
    return [sample.path.relative_to(data.root).as_posix() for sample in data._samples]


# --- what is in a split ---


@pytest.mark.parametrize("kind", KINDS)
def test_val_is_held_out_by_hash_and_images_without_boxes_are_not_trained_on(kind, roots):
    train, val, test = (made(kind, roots, split) for split in SPLITS)
    full = made(kind, roots, empty=True)
    assert [len(d) for d in (full, val, test)] == [7, 3, 4]
    trained = [*names(full), *names(val)]
    assert trained == sorted(trained, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    assert len(set(trained)) == 10
    assert not set(names(test)) & set(trained)
    assert names(train) == [n for n, s in zip(names(full), full._samples) if len(s.objects)]
    assert len(train) < 7
    assert min(len(sample.objects) for sample in test._samples) == 0
    assert len({d.content_hash for d in (train, val, test, full)}) == 4
    assert (len(train.classes), len(train.palette), len(train.category_ids)) == (
        (80,) * 3 if kind == "COCO2017" else (20,) * 3
    )
    assert made(kind, roots, limit=2).content_hash != train.content_hash
    assert names(made(kind, roots, limit=2)) == names(train)[:2]


@pytest.mark.parametrize("kind", KINDS)
def test_the_hash_follows_boxes_and_files(kind, roots):
    first = made(kind, roots, "test").content_hash
    assert made(kind, roots, "test", scale=(50, 40)).content_hash == first  # of the pipeline, not of the content
    path = next(iter((roots[kind]).rglob("*val2017.json" if kind == "COCO2017" else "*test_003.xml")))
    before = path.read_text()
    path.write_text(before.replace('"bbox": [5, 7', '"bbox": [6, 7').replace("<ymin>8<", "<ymin>9<"))
    assert path.read_text() != before
    assert made(kind, roots, "test").content_hash != first


def test_coco_boxes_are_those_of_the_file(roots):
    data = made("COCO2017", roots, "test")
    content = json.loads((roots["COCO2017"] / "annotations" / "instances_val2017.json").read_text())
    names_by_id = {c["id"]: c["name"] for c in content["categories"]}
    total = 0
    for sample in data._samples:
        wanted = [a for a in content["annotations"] if a["image_id"] == sample.id]
        corners = [[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in wanted)]
        assert sample.objects.boxes.tolist() == corners
        assert [data.classes[k] for k in sample.objects.labels] == [names_by_id[a["category_id"]] for a in wanted]
        assert [data.category_ids[k] for k in sample.objects.labels] == [a["category_id"] for a in wanted]
        assert sample.objects.crowd.tolist() == [bool(a["iscrowd"]) for a in wanted]
        total += len(wanted)
    assert total == 6
    assert list(data.image_ids) == [sample.id for sample in data._samples]


def test_voc_boxes_follow_mmdetections_convention_and_difficult_ones_are_crowds(roots):
    data = made("VOC0712", roots, "test")
    sample = next(s for s in data._samples if s.id == "2007_test_003")
    assert sample.objects.boxes.tolist() == [[5, 7, 25, 19], [8, 7, 26, 19], [11, 7, 27, 19]]  # one less than the file
    assert [data.classes[k] for k in sample.objects.labels] == ["cat", "dog", "sofa"]
    assert sample.objects.crowd.tolist() == [False, False, True]
    both = {name.split("/")[0] for name in names(made("VOC0712", roots, empty=True, val_size=1))}
    assert both == {"VOC2007", "VOC2012"}


def test_boxes_over_the_border_are_cut_and_those_outside_are_left_out(roots):
    path = roots["COCO2017"] / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    mine = [a for a in content["annotations"] if a["image_id"] == 103]  # 40 x 60 pixels
    for one, box in zip(mine, ([-5, -5, 15, 20], [50, 30, 40, 40], [80, 5, 20, 20])):
        one["bbox"] = box
    path.write_text(json.dumps(content))
    sample = next(s for s in made("COCO2017", roots, "test")._samples if s.id == 103)
    assert sample.objects.boxes.tolist() == [[0, 0, 10, 15], [50, 30, 60, 40]]


# --- batches ---


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_padded_at_the_right_and_below_to_multiples_of_32(kind, roots):
    data = made(kind, roots, "test")
    batch = data.__getitems__(range(4))
    images, samples = batch["inputs"], batch["data_samples"]
    shapes = [(int(h * f + 0.5), int(w * f + 0.5)) for h, w in (s.size for s in data._samples) for f in [factor(h, w)]]
    assert samples["shapes"].tolist() == [list(shape) for shape in shapes]
    assert images.shape == (4, 3, 96, 96)
    for n, (height, width) in enumerate(shapes):
        for outside in (images[n, :, height:], images[n, :, :, width:]):
            assert (outside == torch.tensor(PADDING).view(3, 1, 1)).all()
        boxes, known = samples["boxes"][n], samples["labels"][n] >= 0
        own = data._samples[n]
        scale = np.tile((width / own.size[1], height / own.size[0]), 2)
        assert np.allclose(boxes[known].numpy(), own.objects.boxes * scale, atol=1e-4)
        assert np.allclose(boxes[known].numpy() / np.tile(data.scale_factors(np.array([n]))[0], 2), own.objects.boxes)
        assert samples["crowd"][n, known].tolist() == own.objects.crowd.tolist()
    small = made(kind, roots, "test", scale=(60, 40))
    same = next(n for n, s in enumerate(small._samples) if s.size == (40, 60))
    pixels = np.asarray(Image.open(small._samples[same].path))
    assert np.array_equal(small[same]["inputs"][:, :40, :60].permute(1, 2, 0).numpy(), pixels)


def factor(height: int, width: int) -> float:
    return min(96 / max(height, width), 64 / min(height, width))


@pytest.mark.parametrize("kind", KINDS)
def test_resize_and_flip_are_mmdetections(kind, roots):
    """Its own transforms, with the scale and the flip that our random numbers choose."""
    from mmdet.datasets.transforms import LoadAnnotations, RandomFlip, Resize

    scales = ((96, 64), (80, 64), (64, 40))
    data = made(kind, roots, "train", augment=dict(scales=scales), seed=3, empty=True, views=0)
    flips = 0
    for n in range(len(data)):
        sample = data._samples[n]
        dice = sample_uniforms(3, 0, np.array([n]), 2)[0]
        image = np.asarray(Image.open(sample.path))
        instances = [
            dict(bbox=box.tolist(), bbox_label=int(label), ignore_flag=int(crowd))
            for box, label, crowd in zip(sample.objects.boxes, sample.objects.labels, sample.objects.crowd)
        ]
        found: Any = dict(img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2], instances=instances)
        flip = RandomFlip(prob=1.0 if dice[1] < 0.5 else 0.0)
        for step in (LoadAnnotations(), Resize(scale=scales[int(dice[0] * 3)], keep_ratio=True), flip):
            found = step(found)
        own = data[n]
        height, width = own["data_samples"]["shapes"].tolist()
        count = len(instances)
        assert found["img"].shape[:2] == (height, width)
        assert np.array_equal(own["inputs"][:, :height, :width].permute(1, 2, 0).numpy(), found["img"])
        assert np.allclose(own["data_samples"]["boxes"][:count].numpy(), found["gt_bboxes"].tensor.numpy(), atol=1e-4)
        flips += int(found["flip"])
    assert 0 < flips < len(data)


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_depend_on_seed_view_and_id_alone(kind, roots):
    augment = dict(scales=(SCALE, (48, 32)), flip=0.5)
    data, same = (made(kind, roots, augment=augment, seed=1) for _ in range(2))
    for sample in range(len(data)):
        a, b = data.__getitems__([sample]), same.__getitems__([sample])
        assert torch.equal(a["inputs"], b["inputs"])
        assert torch.equal(a["data_samples"]["boxes"], b["data_samples"]["boxes"])

    def shapes(epoch):
        data.set_epoch(epoch)
        return data.__getitems__(range(len(data)))["data_samples"]["shapes"].tolist()

    assert len({str(shapes(epoch)) for epoch in range(6)}) > 1
    with pytest.raises(ConfigError, match="is augmented"):
        data.scale_factors(np.arange(2))


def test_default_scale_and_the_pipeline(roots):
    data = made("COCO2017", roots, scale=None, augment=dict())
    found = data.pipeline()
    assert json.loads(json.dumps(found)) == found
    assert found["scale"] == [1333, 800]
    assert found["augment"] == dict(type="ResizeFlip", scales=[[1333, 800]], flip=0.5)
    assert "mmdetection 3" in found["libraries"]
    assert made("VOC0712", roots, scale=None).scale == (1000, 600)


# --- what is not as it should be ---


@pytest.mark.parametrize("kind", KINDS)
def test_missing_files_are_named(kind, roots, tmp_path):
    path = made(kind, roots, "test")._samples[1].path
    path.unlink()
    with pytest.raises(DataMissing, match=rf"{path.name} is missing; complete the folder: it has"):
        made(kind, roots, "test")
    with pytest.raises(DataMissing, match=r"nowhere; put it into \$LIMBECK_DATA/.* it has"):
        DATASETS.make(dict(type=kind, split="test", root=str(tmp_path / "nowhere")))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cut", [0.0, 0.5, 0.95])
def test_corrupt_image_is_named_when_it_is_read(kind, cut, roots):
    data = made(kind, roots, "test")
    path = data._samples[1].path
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * cut)])
    with pytest.raises(CorruptFile, match=rf"{path.name}: does not decode"):
        data.__getitems__([0, 1])


@pytest.mark.parametrize("kind", KINDS)
def test_image_of_another_size_is_named_and_grey_ones_become_rgb(kind, roots):
    data = made(kind, roots, "test")
    sample = data._samples[1]
    with Image.open(sample.path) as opened:
        grey = opened.convert("L")
    grey.save(sample.path, format="PNG")
    height, width = data[1]["data_samples"]["shapes"].tolist()
    assert torch.equal(*data[1]["inputs"][:2, :height, :width])
    grey.resize((10, 10)).save(sample.path, format="PNG")
    with pytest.raises(CorruptFile, match=rf"{sample.path.name}: has 10 × 10 pixels, its annotations say"):
        data[1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d["annotations"][3].update(id=1), "does not read as annotations .*not unique"),
        (lambda d: d["annotations"][3].pop("bbox"), r"annotation of image 103 does not read \(KeyError: 'bbox'\)"),
        (lambda d: d["annotations"][3].update(bbox=[1, 2]), "annotation of image 103 does not read"),
        (lambda d: d["images"][1].pop("height"), "annotation of image 101 does not read|does not read as annotations"),
        (lambda d: d["categories"].pop(), "has 79 of the 80 categories of coco2017"),
        (lambda d: d["categories"].reverse(), "lists its categories in another order than coco2017"),
        (lambda d: d.pop("categories"), "does not read as annotations|has 0 of the 80"),
        (lambda d: d["annotations"][0].pop("image_id"), r"does not read as annotations \(KeyError: 'image_id'\)"),
    ],
)
def test_annotations_of_coco_that_do_not_fit_are_named(roots, change, said):
    path = roots["COCO2017"] / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(CorruptFile, match=rf"instances_val2017\.json: {said}"):
        made("COCO2017", roots, "test")


@pytest.mark.parametrize("text", ["{", "", "[]"])
def test_annotations_of_coco_that_are_no_json_are_named(roots, text):
    (roots["COCO2017"] / "annotations" / "instances_val2017.json").write_text(text)
    with pytest.raises(CorruptFile, match=r"instances_val2017\.json: does not read as annotations"):
        made("COCO2017", roots, "test")


@pytest.mark.parametrize("text", ["<annotation>", "", "<annotation><object/></annotation>"])
def test_annotations_of_voc_that_do_not_fit_are_named(roots, text):
    xml = roots["VOC0712"] / "VOC2007" / "Annotations" / "2007_test_002.xml"
    xml.write_text(text)
    with pytest.raises(CorruptFile, match=r"2007_test_002\.xml: annotation does not read"):
        made("VOC0712", roots, "test")
    xml.unlink()
    with pytest.raises(DataMissing, match=r"2007_test_002\.xml is missing"):
        made("VOC0712", roots, "test")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        (dict(val_size=0), ConfigError, "val_size"),
        (dict(val_size=10), ConfigError, "val_size .* 10 training images"),
        (dict(scale=(0, 5)), ConfigError, "scale"),
        (dict(augment=dict(crop=3)), UnknownName, "crop"),
        (dict(augment=dict(flip=2)), ConfigError, "flip"),
        (dict(split="valid"), UnknownName, "val"),
        (dict(limit=99), ConfigError, "limit"),
    ],
)
def test_wrong_options_are_user_errors(kind, roots, options, error, said):
    with pytest.raises(error, match=said):
        made(kind, roots, **options)
