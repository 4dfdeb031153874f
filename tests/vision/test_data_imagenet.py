"""The layouts of ImageNet and Tiny ImageNet: what is held out, labels, names, and what is refused."""

import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.engine.registry import DATASETS
from limbeck.errors import ConfigError, CorruptFile, DataMissing
from limbeck.vision.data import photos

WNIDS = ("n03", "n01", "n02")


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """No data but the test's own."""
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LIMBECK_DATA", raising=False)


def save(path, seed: int, size=(9, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "JPEG")


@pytest.fixture
def imagenet(tmp_path):
    """Three classes of 12 training and 4 validation images."""
    root = tmp_path / "imagenet"
    for k, wnid in enumerate(WNIDS):
        for i in range(12):
            save(root / "train" / wnid / f"{wnid}_{i}.JPEG", 100 * k + i)
        for i in range(4):
            save(root / "val" / wnid / f"ILSVRC2012_val_{4 * k + i:08d}.JPEG", 1000 + 4 * k + i)
    return root


@pytest.fixture
def tiny(tmp_path):
    """Three classes of 12 training images; 6 validation images labelled by a list; an unlabelled test image."""
    root = tmp_path / "tiny-imagenet-200"
    for k, wnid in enumerate(WNIDS):
        for i in range(12):
            save(root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", 100 * k + i)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("")
    lines = []
    for i in range(6):
        save(root / "val" / "images" / f"val_{i}.JPEG", 1000 + i)
        lines.append(f"val_{i}.JPEG\t{WNIDS[i % 3]}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    save(root / "test" / "images" / "test_0.JPEG", 2000)
    (root / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\tnewt\nn03\tbullfrog\nn04\tother\n")
    return root


def made(kind: str, root, split: str, **options):
    return DATASETS.make(dict(type=kind, root=str(root), split=split, **{"val_per_class": 3, **options}))


def test_imagenet_holds_out_the_highest_hashes_of_each_class(imagenet):
    train, val, test = (made("ImageNet", imagenet, split) for split in ("train", "val", "test"))
    assert [len(d) for d in (train, val, test)] == [27, 9, 12]
    for wnid in WNIDS:
        names = [f"train/{wnid}/{wnid}_{i}.JPEG" for i in range(12)]
        ranked = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
        assert {f for f in val.files if wnid in f} == set(ranked[-3:])
        assert {f for f in train.files if wnid in f} == set(ranked[:-3])
    assert {f.split("/")[0] for f in test.files} == {"val"}
    for data in (train, val, test):
        assert data.classes == ["n01", "n02", "n03"]
        assert [data.classes[label] for label in data.labels] == [f.split("/")[1] for f in data.files]
    assert (train.name, train.size, train.crop_pct) == ("imagenet", 224, 0.875)
    assert len({d.content_hash for d in (train, val, test, made("ImageNet", imagenet, "train", val_per_class=4))}) == 4


def test_tiny_imagenet_holds_out_the_last_names_and_reads_the_list(tiny):
    train, val, test = (made("TinyImageNet", tiny, split) for split in ("train", "val", "test"))
    assert [len(d) for d in (train, val, test)] == [27, 9, 6]
    for wnid in WNIDS:
        names = sorted(f"train/{wnid}/images/{wnid}_{i}.JPEG" for i in range(12))
        assert {f for f in val.files if wnid in f} == set(names[-3:])
        assert {f for f in train.files if wnid in f} == set(names[:-3])
    wanted = {f"val/images/val_{i}.JPEG": sorted(WNIDS).index(WNIDS[i % 3]) for i in range(6)}
    assert dict(zip(test.files, test.labels.tolist())) == wanted
    assert (test.name, test.size) == ("tiny-imagenet", 64)
    batch = test.__getitems__(range(6))
    assert batch["inputs"].shape == (6, 3, 64, 64)


@pytest.mark.parametrize("kind", ["ImageNet", "TinyImageNet"])
def test_nothing_is_opened_before_it_is_asked_for(kind, imagenet, tiny, monkeypatch):
    def opened(*args, **kwargs):
        raise AssertionError("opened an image")

    root = imagenet if kind == "ImageNet" else tiny
    with monkeypatch.context() as patched:
        patched.setattr(photos.Image, "open", opened)
        data = made(kind, root, "train", size=8)
        with pytest.raises(AssertionError):
            data.__getitems__([0])
    assert data.__getitems__([0])["inputs"].shape == (1, 3, 8, 8)


@pytest.mark.parametrize("kind", ["ImageNet", "TinyImageNet"])
def test_limit_augmentation_and_memory_work_as_in_a_folder(kind, imagenet, tiny):
    root = imagenet if kind == "ImageNet" else tiny
    options = dict(size=8, limit=10, augment={"scale": (0.5, 1.0)}, views=2)
    fresh, kept = made(kind, root, "train", **options), made(kind, root, "train", in_memory=True, **options)
    whole = made(kind, root, "train", size=8)
    assert fresh.files == whole.files[:10]
    assert fresh.content_hash == kept.content_hash != whole.content_hash
    first = fresh.__getitems__(range(10))["inputs"]
    assert torch.equal(kept.__getitems__(range(10))["inputs"], first)
    kept.set_epoch(1)
    assert not torch.equal(kept.__getitems__(range(10))["inputs"], first)


def test_names_come_from_a_file(tiny, tmp_path):
    data = made("TinyImageNet", tiny, "val", names="words.txt")
    assert data.classes == ["goldfish, Carassius auratus", "newt", "bullfrog"]
    assert data.content_hash == made("TinyImageNet", tiny, "val").content_hash
    listed = tmp_path / "names.json"
    listed.write_text(json.dumps({"n01": "a", "n02": "b", "n03": "c"}))
    assert made("TinyImageNet", tiny, "val", names=str(listed)).classes == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("none.txt", None, "cannot read"),
        ("short.txt", "n01\tgoldfish\n", "no name for n02"),
        ("prose.txt", "no tab here\n", "a tab and a name"),
        ("list.json", "[1]", "JSON object"),
        ("broken.json", "{", "broken.json"),
    ],
)
def test_a_file_of_names_that_does_not_fit_is_a_user_error(tiny, name, text, said):
    if text is not None:
        (tiny / name).write_text(text)
    with pytest.raises(ConfigError, match=rf"names: .*{said}"):
        made("TinyImageNet", tiny, "val", names=name)


def test_content_hash_is_of_paths_and_sizes_or_the_manifest(imagenet):
    def found():
        return made("ImageNet", imagenet, "train").content_hash

    before = found()
    path = imagenet / "train" / "n01" / "n01_0.JPEG"
    path.write_bytes(path.read_bytes() + b"\0")
    assert found() != before
    files = sorted(p for p in (imagenet / "train").rglob("*.JPEG"))
    lines = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(imagenet).as_posix()}\n" for p in files]
    (imagenet / "MANIFEST.sha256").write_text("".join(lines))
    listed = found()
    assert listed != before
    assert len(made("ImageNet", imagenet, "val")) == 9
    path.unlink()
    with pytest.raises(CorruptFile, match=r"n01_0\.JPEG"):
        found()


def test_too_few_images_to_hold_out_are_named(imagenet):
    with pytest.raises(ConfigError, match=r"train/n01 has 12 images, too few to hold out val_per_class=12"):
        made("ImageNet", imagenet, "train", val_per_class=12)
    with pytest.raises(ConfigError, match="val_per_class is positive"):
        made("ImageNet", imagenet, "train", val_per_class=0)


def test_missing_parts_are_named(imagenet, tiny, tmp_path):
    for kind, folder in (("ImageNet", "imagenet"), ("TinyImageNet", "tiny-imagenet-200")):
        with pytest.raises(DataMissing, match=rf"put its train and val into \$LIMBECK_DATA/{folder}"):
            DATASETS.make({"type": kind, "split": "train"})
    for path in sorted((imagenet / "val").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    with pytest.raises(DataMissing, match="imagenet/val has no images"):
        made("ImageNet", imagenet, "test")
    (tiny / "val" / "val_annotations.txt").unlink()
    with pytest.raises(DataMissing, match=r"val_annotations\.txt is missing"):
        made("TinyImageNet", tiny, "test")
    assert len(made("TinyImageNet", tiny, "val")) == 9
    (tmp_path / "empty" / "train").mkdir(parents=True)
    with pytest.raises(DataMissing, match="empty/train has no images"):
        made("ImageNet", tmp_path / "empty", "train")


def test_a_validation_class_that_train_lacks_is_refused(imagenet):
    (imagenet / "val" / "n02").rename(imagenet / "val" / "n99")
    with pytest.raises(ConfigError, match="val has the class folder 'n99'"):
        made("ImageNet", imagenet, "test")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("val_0.JPEG\tn99\t0", "line 7"),
        ("prose", "line 7"),
        ("val_77.JPEG\tn01", r"line 7 names val/images/val_77\.JPEG"),
    ],
)
def test_lines_of_the_list_that_do_not_fit_are_named(tiny, line, said):
    with open(tiny / "val" / "val_annotations.txt", "a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(CorruptFile, match=rf"val_annotations\.txt: {said}"):
        made("TinyImageNet", tiny, "test")


def test_found_below_the_data_folder(imagenet, tiny, monkeypatch):
    monkeypatch.setenv("LIMBECK_DATA", str(imagenet.parent))
    assert len(DATASETS.make({"type": "ImageNet", "split": "test"})) == 12
    assert len(DATASETS.make({"type": "TinyImageNet", "split": "test"})) == 6


def test_a_broken_image_is_named(tiny):
    path = tiny / "val" / "images" / "val_3.JPEG"
    path.write_bytes(path.read_bytes()[:200])
    data = made("TinyImageNet", tiny, "test")
    with pytest.raises(CorruptFile, match=r"val_3\.JPEG"):
        data.__getitems__(range(6))
