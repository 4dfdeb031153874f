"""CIFAR: the JPEG copy and the published binary files, what is read of them and what is refused."""

import dataclasses
import hashlib
import io
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from limbeck.engine.registry import DATASETS
from limbeck.errors import ConfigError, CorruptFile, DataMissing, UnknownName
from limbeck.vision.data._cifar_files import CIFAR100_CLASSES, PUBLISHED

DATA = os.environ.get("LIMBECK_DATA")


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """No data but the test's own."""
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LIMBECK_DATA", raising=False)


def picture(seed: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    """A smooth picture: JPEG keeps it nearly as it was."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def jpeg(seed: int, size: tuple[int, int] = (32, 32), mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    picture(seed, size).convert(mode).save(file, "JPEG", quality=95)
    return file.getvalue()


def container(path, files: list[bytes], labels=None, **other) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    offsets = np.cumsum([0, *(len(f) for f in files)]).astype(np.int64)
    labels = np.arange(len(files)) % 10 if labels is None else np.asarray(labels)
    arrays = dict(jpeg=np.frombuffer(b"".join(files), np.uint8), offsets=offsets, labels=labels.astype(np.uint8))
    np.savez_compressed(path, **{**arrays, **other})


@pytest.fixture
def copy(tmp_path):
    """A JPEG copy of 40 + 20 images."""
    container(tmp_path / "copy" / "train.npz", [jpeg(i) for i in range(40)])
    container(tmp_path / "copy" / "test.npz", [jpeg(100 + i) for i in range(20)])
    return tmp_path / "copy"


def made(split: str, root=None, kind: str = "CIFAR10JPEG", **options):
    options = options if root is None else {"root": str(root), **options}
    return DATASETS.make(dict(type=kind, split=split, **options))


# --- the JPEG copy ---


def test_jpeg_pixels_are_those_of_the_pictures(copy):
    data = made("train", copy, val_size=10)
    batch = data.__getitems__([0, 7, 29])
    assert batch["inputs"].shape == (3, 3, 32, 32)
    assert batch["inputs"].dtype == torch.uint8
    for row, i in zip(batch["inputs"], (0, 7, 29)):
        original = np.asarray(picture(i)).astype(int).transpose(2, 0, 1)
        assert np.abs(row.numpy() - original).mean() < 6  # of noise: another picture or axis is off by more than 30
        others = [np.abs(row.numpy() - o).mean() for o in (original[::-1], original.transpose(0, 2, 1))]
        assert min(others) > 20
    assert batch["data_samples"]["labels"].tolist() == [0, 7, 9]
    assert (data.name, data.classes[3], data.classes[9]) == ("cifar10-jpeg", "cat", "truck")


def test_val_is_the_end_of_the_training_file_and_limit_a_prefix(copy):
    train, val, test = (made(split, copy, val_size=10) for split in ("train", "val", "test"))
    assert [len(d) for d in (train, val, test)] == [30, 10, 20]
    whole = made("train", copy, val_size=1)
    assert np.array_equal(whole.pixels[:30], train.pixels)
    assert np.array_equal(whole.pixels[30:39], val.pixels[:9])
    part = made("train", copy, val_size=10, limit=20)
    assert np.array_equal(part.pixels, train.pixels[:20])
    assert np.bincount(part.labels).tolist() == [2] * 10
    assert len({d.content_hash for d in (train, val, test, part)}) == 4
    assert np.array_equal(made("val", copy, val_size=10, limit=4).pixels, val.pixels[:4])


def test_only_the_samples_asked_for_are_decoded(copy):
    files = [jpeg(i) for i in range(40)]
    files[25] = b"no picture"
    container(copy / "train.npz", files)
    assert len(made("train", copy, val_size=10, limit=25)) == 25
    assert len(made("val", copy, val_size=10)) == 10
    with pytest.raises(CorruptFile, match=r"train\.npz: image 25 does not decode \(no JPEG file\)"):
        made("train", copy, val_size=10)


def test_content_hash_is_of_the_stored_bytes_and_not_of_their_place(copy):
    from limbeck.engine.data import content_hash

    files = [jpeg(100 + i) for i in range(20)]
    lengths = np.cumsum([0, *(len(f) for f in files)]).astype(np.int64)
    labels = (np.arange(20) % 10).astype(np.uint8)
    wanted = content_hash("cifar10-jpeg", "test", np.frombuffer(b"".join(files), np.uint8), lengths, labels)
    assert made("test", copy).content_hash == wanted
    before = made("val", copy, val_size=10).content_hash
    container(copy / "train.npz", [jpeg(900), *(jpeg(i) for i in range(1, 40))])
    assert made("val", copy, val_size=10).content_hash == before
    container(copy / "train.npz", [*(jpeg(i) for i in range(39)), jpeg(900)])
    assert made("val", copy, val_size=10).content_hash != before


def test_jpeg_augmentation_is_stateless_and_named_in_the_pipeline(copy):
    a, b = (made("test", copy, augment={"pad": 4, "flip": True}, views=2, seed=5) for _ in range(2))
    first = a.__getitems__(range(20))["inputs"]
    assert torch.equal(b.__getitems__([11, 2])["inputs"], first[[11, 2]])
    a.set_epoch(1)
    assert not torch.equal(a.__getitems__(range(20))["inputs"], first)
    a.set_epoch(2)
    assert torch.equal(a.__getitems__(range(20))["inputs"], first)
    found = json.loads(json.dumps(a.pipeline()))
    assert found["decoder"].startswith("pillow ")
    assert found["augment"] == {"type": "ShiftFlip", "pad": 4, "flip": True}


def test_fewer_samples_than_a_batch_are_one_short_batch(copy):
    loader = DataLoader(made("test", copy, limit=3), batch_size=64, collate_fn=lambda batch: batch)
    assert [len(batch["inputs"]) for batch in loader] == [3]


def test_one_class_only_is_a_split_like_any_other(copy):
    container(copy / "test.npz", [jpeg(i) for i in range(4)], [6, 6, 6, 6])
    data = made("test", copy)
    assert data.labels.tolist() == [6] * 4
    assert len(data.classes) == 10


def test_grey_jpegs_become_three_equal_channels(copy):
    container(copy / "test.npz", [jpeg(0, mode="L"), jpeg(1)])
    grey = made("test", copy).pixels[0]
    assert np.array_equal(grey[0], grey[1])
    assert np.array_equal(grey[0], grey[2])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labels": [0, 1, 10]}, r"label 10 of sample 2 is not in 0 to 9"),
        ({"labels": [0, 1]}, r"labels \(2,\)"),
        ({"offsets": np.array([0, 5, 5, 9])}, "offsets do not rise"),
        ({"offsets": np.array([0.0, 1.0, 2.0, 3.0])}, "offsets"),
        ({"jpeg": np.zeros(7, np.uint8)}, "offsets do not rise from 0 to 7"),
        ({"jpeg": np.zeros(7, np.float32)}, "float32"),
    ],
)
def test_container_that_does_not_fit_itself_is_refused(tmp_path, change, said):
    labels = change.pop("labels", None)
    container(tmp_path / "test.npz", [jpeg(i) for i in range(3)], labels, **change)
    with pytest.raises(CorruptFile, match=rf"test\.npz: .*{said}"):
        made("test", tmp_path)


def test_image_of_another_size_is_named(tmp_path):
    container(tmp_path / "test.npz", [jpeg(0), jpeg(1, size=(30, 32))])
    with pytest.raises(CorruptFile, match=r"test\.npz: image 1 is 30 × 32, not 32 × 32 pixels"):
        made("test", tmp_path)


def test_truncated_jpeg_is_named(tmp_path):
    container(tmp_path / "test.npz", [jpeg(0), jpeg(1)[:-300], jpeg(2)])
    with pytest.raises(CorruptFile, match=r"test\.npz: image 1 does not decode \(image file is truncated"):
        made("test", tmp_path)


@pytest.mark.parametrize("manifest", [True, False])
def test_truncated_container_is_named_with_both_hashes(copy, manifest):
    path = copy / "test.npz"
    if manifest:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        (copy / "MANIFEST.sha256").write_text(f"{digest}  test.npz\n")
    assert len(made("test", copy)) == 20
    path.write_bytes(path.read_bytes()[:-500])
    wanted = "[0-9a-f]{12}…" if manifest else "not known"
    with pytest.raises(CorruptFile, match=rf"test\.npz.*sha256 is [0-9a-f]{{12}}…, expected {wanted}"):
        made("test", copy)


def test_pickled_arrays_are_not_loaded(tmp_path):
    container(tmp_path / "test.npz", [jpeg(0)], jpeg=np.array([{"a": 1}], dtype=object))
    with pytest.raises(CorruptFile, match="allow_pickle"):
        made("test", tmp_path)


def test_jpeg_copy_is_looked_for_in_order(copy, tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path / "data"))
    for count, place in ((3, tmp_path / "cache" / "data" / "cifar10"), (4, tmp_path / "data" / "cifar10")):
        container(place / "test.npz", [jpeg(i) for i in range(count)])
        assert len(made("test")) == count
    assert len(made("test", copy)) == 20
    with pytest.raises(DataMissing, match=r"elsewhere; put train\.npz and test\.npz into \$LIMBECK_DATA/cifar10"):
        made("test", tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"split": "trian"}, UnknownName, "train"),
        ({"split": "train", "val_size": 40}, ConfigError, "val_size is between 1 and 39; got 40"),
        ({"split": "train", "val_size": 10, "limit": 31}, ConfigError, "between 1 and 30"),
        ({"split": "test", "limit": 0}, ConfigError, "got 0"),
    ],
)
def test_wrong_options_are_user_errors(copy, options, error, said):
    with pytest.raises(error, match=said):
        made(options.pop("split"), copy, **options)


# --- the published binary files ---


def small(name: str, monkeypatch, train: int, test: int, **changes) -> None:
    """Let the published files hold so many images each."""
    data = PUBLISHED[name]
    counts = {"train": dict.fromkeys(data.train, train), "test": dict.fromkeys(data.test, test)}
    monkeypatch.setitem(PUBLISHED, name, dataclasses.replace(data, **counts, **changes))


def write_bin(folder, name: str, seed: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The files as the authors' page describes them: label byte(s), then 1024 red, 1024 green and 1024 blue bytes."""
    data = PUBLISHED[name]
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    written = {}
    for file, count in {**data.train, **data.test}.items():
        images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        labels = rng.integers(0, len(data.classes), count).astype(np.uint8)
        with open(folder / file, "wb") as out:
            for image, label in zip(images, labels):
                out.write(bytes([17, label] if name == "cifar100" else [label]))
                for channel in range(3):
                    out.write(bytes(image[:, :, channel].reshape(-1).tolist()))
        written[file] = (images, labels)
    return written


@pytest.mark.parametrize(("name", "kind"), [("cifar10", "CIFAR10"), ("cifar100", "CIFAR100")])
def test_binary_files_give_the_pixels_in_file_order(tmp_path, monkeypatch, name, kind):
    small(name, monkeypatch, 6, 5)
    written = write_bin(tmp_path, name)
    images = np.concatenate([written[f][0] for f in PUBLISHED[name].train])
    labels = np.concatenate([written[f][1] for f in PUBLISHED[name].train])
    train, val = (made(split, tmp_path, kind, val_size=4) for split in ("train", "val"))
    assert np.array_equal(np.concatenate([train.pixels, val.pixels]), images.transpose(0, 3, 1, 2))
    assert np.concatenate([train.labels, val.labels]).tolist() == labels.tolist()
    assert len(val) == 4
    test = made("test", tmp_path, kind)
    (images, labels), *_ = (written[f] for f in PUBLISHED[name].test)
    batch = test.__getitems__([3, 0])
    assert torch.equal(batch["inputs"], torch.from_numpy(images[[3, 0]].transpose(0, 3, 1, 2).copy()))
    assert batch["data_samples"]["labels"].tolist() == labels[[3, 0]].tolist()
    assert (test.name, len(test.classes)) == (name, len(PUBLISHED[name].classes))


def test_binary_files_are_found_in_the_unpacked_archive_and_below_the_data_folder(tmp_path, monkeypatch):
    small("cifar10", monkeypatch, 2, 3)
    small("cifar100", monkeypatch, 2, 4)
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path / "data"))
    write_bin(tmp_path / "data" / "cifar10_original" / "cifar-10-batches-bin", "cifar10")
    write_bin(tmp_path / "cache" / "data" / "cifar100", "cifar100")
    assert len(made("test", kind="CIFAR10")) == 3
    assert len(made("test", kind="CIFAR100")) == 4
    container(tmp_path / "data" / "cifar10" / "test.npz", [jpeg(0)])
    assert len(made("test", kind="CIFAR10")) == 3  # the JPEG copy is another data set


def test_binary_files_absent_name_the_command(tmp_path):
    with pytest.raises(DataMissing, match=r"CIFAR-10 is not in .*limbeck data get cifar10$"):
        made("train", kind="CIFAR10")
    (tmp_path / "cifar-100-python").mkdir()
    with pytest.raises(DataMissing, match=r"pickles are not loaded.*limbeck data get cifar100$"):
        made("train", tmp_path, "CIFAR100")


def test_binary_file_of_another_length_label_or_hash_is_refused(tmp_path, monkeypatch):
    small("cifar10", monkeypatch, 6, 5)
    write_bin(tmp_path, "cifar10")
    path = tmp_path / "data_batch_3.bin"
    whole = path.read_bytes()
    for cut in (1, 3073):
        path.write_bytes(whole[:-cut])
        with pytest.raises(CorruptFile, match=r"data_batch_3\.bin: \d+ bytes are not 6 images of 3073 bytes"):
            made("train", tmp_path, "CIFAR10", val_size=4)
    path.write_bytes(whole[:3073] + bytes([10]) + whole[3074:])
    with pytest.raises(CorruptFile, match=r"data_batch_3\.bin: label 10 of sample 1 is not in 0 to 9"):
        made("train", tmp_path, "CIFAR10", val_size=4)
    (tmp_path / "MANIFEST.sha256").write_text(f"{hashlib.sha256(whole).hexdigest()}  data_batch_3.bin\n")
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CorruptFile, match=r"data_batch_3\.bin: not the file that MANIFEST.sha256 lists"):
        made("train", tmp_path, "CIFAR10", val_size=4)


def test_published_layout_is_that_of_the_authors_page():
    assert sum(PUBLISHED["cifar10"].train.values()) == sum(PUBLISHED["cifar100"].train.values()) == 50_000
    assert sum(PUBLISHED["cifar10"].test.values()) == sum(PUBLISHED["cifar100"].test.values()) == 10_000
    assert len(set(CIFAR100_CLASSES)) == 100
    assert list(CIFAR100_CLASSES) == sorted(CIFAR100_CLASSES)


# --- the real data ---


@pytest.mark.skipif(DATA is None, reason="LIMBECK_DATA is not set")
def test_real_jpeg_copy(monkeypatch):
    monkeypatch.setenv("LIMBECK_DATA", str(DATA))
    test, val = made("test"), made("val")
    assert [len(d) for d in (test, val)] == [10_000, 5_000]
    assert np.bincount(test.labels).tolist() == [1000] * 10
    assert np.bincount(val.labels).tolist() == [500] * 10
    assert test.content_hash == "5ca93a585bc60d7eb7f17c06d1a7dd7d5d6022110501958edcf51e9bd8ad37e2"
    assert val.content_hash == "ac83ea82d0773cd53ad9cef4e78ad4c8f2047d7583ed70976401a1939844ccd2"
    train = made("train", limit=2000)
    assert np.bincount(train.labels).tolist() == [200] * 10
    assert train.pixels.mean((0, 2, 3)) / 255 == pytest.approx([0.4913, 0.4821, 0.4465], abs=0.01)
    assert train.pixels.std((0, 2, 3)) / 255 == pytest.approx([0.2452, 0.2428, 0.2606], abs=0.01)


@pytest.mark.skipif(DATA is None, reason="LIMBECK_DATA is not set")
def test_real_class_names():
    with open(os.path.join(str(DATA), "classnames", "cifar100.json"), encoding="utf-8") as file:
        assert json.load(file)["fine"] == list(CIFAR100_CLASSES)
    with open(os.path.join(str(DATA), "classnames", "cifar10.json"), encoding="utf-8") as file:
        assert json.load(file)["classes"] == list(PUBLISHED["cifar10"].classes)
