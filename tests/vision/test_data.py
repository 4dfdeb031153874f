"""Data sets: splits, hashes, stateless augmentation, the places where data is looked for."""

import gzip
import hashlib
import json
import os
import struct
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from typer.testing import CliRunner

from limbeck.engine import data_sources
from limbeck.engine.augment import sample_uniforms, splitmix64
from limbeck.engine.digits import split_indices
from limbeck.engine.registry import DATASETS
from limbeck.errors import ConfigError, CorruptFile, DataMissing, UnknownName
from limbeck.vision.data import fashion_mnist, get
from limbeck.vision.data.augment import CropFlip, ShiftFlip
from limbeck.vision.data.digits import Digits
from limbeck.vision.data.folder import ImageFolder

DATA = os.environ.get("LIMBECK_DATA")


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """No data but the test's own."""
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LIMBECK_DATA", raising=False)
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "debian")


def same(a, b) -> bool:
    return torch.equal(a["inputs"], b["inputs"]) and all(
        torch.equal(a["data_samples"][k], b["data_samples"][k]) for k in ("labels", "ids", "views")
    )


# --- the hash and the augmentation ---


def test_splitmix64_gives_the_published_sequence():
    # First outputs of SplitMix64 seeded with 1234567, as listed by the authors' test vectors.
    step = 0x9E3779B97F4A7C15
    states = [(1234567 + i * step) % 2**64 for i in range(3)]
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert splitmix64(np.array(states, np.uint64)).tolist() == expected


def test_uniforms_are_uniform_and_independent_of_the_batch():
    dice = sample_uniforms(5, 2, np.arange(20_000), 3)
    assert dice.min() >= 0
    assert dice.max() < 1
    assert np.abs(dice.mean(0) - 0.5).max() < 0.01
    assert np.abs(np.corrcoef(dice.T) - np.eye(3)).max() < 0.03
    assert np.array_equal(sample_uniforms(5, 2, np.array([7, 3]), 3), dice[[7, 3]])
    assert not np.array_equal(sample_uniforms(5, 3, np.arange(9), 3), dice[:9])
    assert not np.array_equal(sample_uniforms(6, 2, np.arange(9), 3), dice[:9])


@pytest.mark.parametrize(("pad", "flip"), [(0, False), (2, False), (0, True), (1, True), (4, True)])
@pytest.mark.parametrize("channels", [1, 3])
def test_shift_flip_equals_a_loop_over_samples(pad, flip, channels):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, channels, 6, 5), dtype=np.uint8)
    ids = rng.integers(0, 1000, 40)
    expected = np.zeros_like(images)
    for n, (image, sample) in enumerate(zip(images, ids)):
        a, b, c = sample_uniforms(9, 4, np.array([sample]), 3)[0]
        dy, dx = int(a * (2 * pad + 1)) - pad, int(b * (2 * pad + 1)) - pad
        for y in range(6):
            for x in range(5):
                source = 4 - x if flip and c < 0.5 else x
                if 0 <= y + dy < 6 and 0 <= source + dx < 5:
                    expected[n, :, y, x] = image[:, y + dy, source + dx]
    assert np.array_equal(ShiftFlip(pad, flip)(images, ids, seed=9, view=4), expected)


def test_crop_boxes_lie_in_the_image_and_keep_scale_and_ratio():
    augment = CropFlip(scale=(0.3, 0.9))
    for sample in range(200):
        dice = sample_uniforms(0, 0, np.array([sample]), 40)[0]
        top, left, h, w = augment.box(60, 80, dice)
        assert 0 <= top <= 60 - h
        assert 0 <= left <= 80 - w
        assert 0.27 * 4800 < h * w < 0.93 * 4800
        assert 0.7 < w / h < 1.4


def test_crop_box_falls_back_to_the_centre():
    assert CropFlip(scale=(1.0, 1.0)).box(10, 100, np.full(40, 0.5)) == (0, 43, 10, 13)


# --- digits ---


def test_digits_split_is_disjoint_complete_and_stratified():
    from sklearn.datasets import load_digits

    labels = load_digits().target
    parts = split_indices(labels)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(1797))
    for name, share in (("train", 0.60), ("val", 0.15), ("test", 0.25)):
        counts = np.bincount(labels[parts[name]], minlength=10)
        assert np.abs(counts - share * np.bincount(labels)).max() <= 1


@pytest.mark.parametrize(
    ("split", "size", "expected"),
    [
        ("train", 1078, "9a578664c8f991383d7435988ac73c3bac1fb101286dd37d06cf895676fc61cb"),
        ("val", 269, "83c1c2921115929baf2a76d40a28ceed850ec01bdc038c0d1cd22ce8e2f8a190"),
        ("test", 450, "e8605d0605961f9405a29305c995abd13f2c362626e65f4251dbe5f4a465e79b"),
    ],
)
def test_digits_content_hash_is_the_recorded_one(split, size, expected):
    # Records hold these hashes: a change here makes every digits record incomparable.
    data = DATASETS.make({"type": "Digits", "split": split, "augment": {"pad": 1}, "seed": 3})
    assert (len(data), data.content_hash) == (size, expected)


def test_digits_pixels_are_the_sixteen_grey_levels_scaled():
    from sklearn.datasets import load_digits

    data = Digits("test")
    batch = data.__getitems__(range(len(data)))
    original = load_digits()
    chosen = split_indices(original.target)["test"]
    assert batch["inputs"].shape == (450, 1, 8, 8)
    assert batch["inputs"].dtype == torch.uint8
    torch.testing.assert_close(
        batch["inputs"][:, 0].double() / 255 * 16, torch.from_numpy(original.images[chosen]), rtol=0, atol=0.04
    )
    assert batch["data_samples"]["labels"].tolist() == original.target[chosen].tolist()
    assert batch["data_samples"]["ids"].tolist() == list(range(450))
    assert data.classes == list("0123456789")


def test_limit_takes_the_first_samples_and_changes_the_hash():
    full, part = Digits("train"), Digits("train", limit=100)
    assert len(part) == 100
    assert same(part.__getitems__(range(100)), full.__getitems__(range(100)))
    assert part.content_hash != full.content_hash
    with pytest.raises(ConfigError, match="1078"):
        Digits("train", limit=2000)


# --- views ---


def test_views_repeat_after_their_number():
    data = Digits("train", augment={"pad": 1}, views=3)
    shown = []
    for epoch in range(6):
        data.set_epoch(epoch)
        shown.append(data.__getitems__(range(200)))
        assert shown[-1]["data_samples"]["views"].tolist() == [epoch % 3] * 200
    assert all(same(shown[e], shown[e + 3]) for e in range(3))
    assert not torch.equal(shown[0]["inputs"], shown[1]["inputs"])


def test_zero_views_make_new_ones_every_epoch():
    data = Digits("train", augment={"pad": 1})
    batches = []
    for epoch in (0, 1, 50):
        data.set_epoch(epoch)
        batches.append(data.__getitems__(range(100)))
        assert batches[-1]["data_samples"]["views"][0] == epoch
    assert not torch.equal(batches[0]["inputs"], batches[2]["inputs"])


@pytest.mark.parametrize("options", [{"augment": {"pad": 1}, "views": 1}, {}, {"views": 5}])
def test_one_view_or_no_augmentation_is_the_same_in_every_epoch(options):
    data = Digits("train", **options)
    first = data.__getitems__(range(50))
    data.set_epoch(4)
    assert same(data.__getitems__(range(50)), first)
    assert data.views == 1
    assert first["data_samples"]["views"].tolist() == [0] * 50


def test_a_sample_is_the_same_in_any_batch_and_object():
    a, b = (Digits("train", augment={"pad": 2, "flip": True}, seed=8) for _ in range(2))
    a.set_epoch(3)
    b.set_epoch(3)
    whole = a.__getitems__(range(300))
    mixed = b.__getitems__([250, 3, 77, 3])
    assert torch.equal(mixed["inputs"], whole["inputs"][[250, 3, 77, 3]])
    one = b[77]
    assert torch.equal(one["inputs"], whole["inputs"][77])
    assert int(one["data_samples"]["ids"]) == 77
    assert int(b[-1]["data_samples"]["ids"]) == len(b) - 1
    with pytest.raises(IndexError):
        b[len(b)]


def test_seed_changes_pixels_but_not_content():
    a, b = (Digits("train", augment={"pad": 1}, seed=s) for s in (0, 1))
    assert a.content_hash == b.content_hash
    assert not torch.equal(a.__getitems__(range(50))["inputs"], b.__getitems__(range(50))["inputs"])


def test_pipeline_is_json_and_knows_what_decides_the_pixels():
    data = Digits("train", augment={"pad": 1}, views=4, seed=2)
    found = json.loads(json.dumps(data.pipeline()))
    assert found == data.pipeline()
    assert (found["dataset"], found["split"], found["seed"], found["views"]) == ("digits", "train", 2, 4)
    assert found["augment"] == {"type": "ShiftFlip", "pad": 1, "flip": False}
    assert Digits("val", seed=1).pipeline() == Digits("val", seed=2, views=7).pipeline()


@pytest.mark.parametrize("workers", [0, 1])
def test_loader_gives_whole_batches_of_the_current_epoch(workers):
    data = Digits("train", augment={"pad": 1}, limit=40)
    loader = DataLoader(
        data, batch_size=16, num_workers=workers, persistent_workers=workers > 0, collate_fn=lambda batch: batch
    )
    for epoch in range(2):
        data.set_epoch(epoch)
        batches = list(loader)
        assert [len(b["inputs"]) for b in batches] == [16, 16, 8]
        assert same(batches[1], data.__getitems__(range(16, 32)))
        assert batches[0]["data_samples"]["views"][0] == epoch


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"split": "trian"}, UnknownName),
        ({"split": "train", "augment": {"padd": 1}}, UnknownName),
        ({"split": "train", "augment": {"pad": -1}}, ConfigError),
        ({"split": "train", "views": -1}, ConfigError),
    ],
)
def test_wrong_options_are_user_errors(options, error):
    with pytest.raises(error):
        DATASETS.make(dict(type="Digits", **options))


# --- Fashion-MNIST ---


def arrays(count: int = 30) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(count)
    return rng.integers(0, 256, (count, 28, 28), dtype=np.uint8), rng.integers(0, 10, count).astype(np.uint8)


def write_idx(folder, prefix: str, images: np.ndarray, labels: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in ((f"{prefix}-images-idx3-ubyte.gz", images), (f"{prefix}-labels-idx1-ubyte.gz", labels)):
        header = bytes([0, 0, 8, value.ndim]) + struct.pack(f">{value.ndim}I", *value.shape)
        (folder / name).write_bytes(gzip.compress(header + value.tobytes()))


def write_npz(folder, part: str, images: np.ndarray, labels: np.ndarray, manifest: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / f"{part}.npz", images=images, labels=labels)
    if manifest:
        digest = hashlib.sha256((folder / f"{part}.npz").read_bytes()).hexdigest()
        (folder / "MANIFEST.sha256").write_text(f"{digest}  {part}.npz\n")


def fashion(split: str, **options):
    return DATASETS.make(dict(type="FashionMNIST", split=split, **options))


def test_fashion_mnist_is_the_same_from_npz_and_idx(tmp_path):
    images, labels = arrays()
    write_npz(tmp_path / "npz", "train", images, labels, manifest=True)
    write_idx(tmp_path / "idx", "train", images, labels)
    for split, chosen in (("train", slice(0, 22)), ("val", slice(22, 30))):
        a, b = (fashion(split, root=str(tmp_path / kind), val_size=8) for kind in ("npz", "idx"))
        assert a.content_hash == b.content_hash
        batch = a.__getitems__(range(len(a)))
        assert same(batch, b.__getitems__(range(len(b))))
        assert np.array_equal(batch["inputs"][:, 0].numpy(), images[chosen])
        assert batch["data_samples"]["labels"].tolist() == labels[chosen].tolist()
    assert len(a.classes) == 10


def test_fashion_mnist_is_looked_for_in_order(tmp_path, monkeypatch):
    folders = [tmp_path / "cache" / "data" / "fashion_mnist", tmp_path / "debian", tmp_path / "data" / "fashion_mnist"]
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path / "data"))
    for count, folder in enumerate(folders, start=11):
        if folder.name == "debian":
            write_idx(folder, "t10k", *arrays(count))
        else:
            write_npz(folder, "test", *arrays(count))
        assert len(fashion("test")) == count


def test_fashion_mnist_absent_names_the_command(tmp_path):
    with pytest.raises(DataMissing, match="limbeck data get fashion-mnist"):
        fashion("train")
    with pytest.raises(DataMissing, match="elsewhere"):
        fashion("train", root=str(tmp_path / "elsewhere"))


@pytest.mark.parametrize("cut", [0.1, 0.6, 0.98])
def test_truncated_idx_is_named_with_both_hashes(tmp_path, cut):
    write_idx(tmp_path, "t10k", *arrays())
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * cut)])
    with pytest.raises(CorruptFile, match=r"t10k-images.*sha256 is [0-9a-f]{12}…, expected cc1d090a38ac"):
        fashion("test", root=str(tmp_path))


def test_idx_of_another_length_than_its_header_is_refused(tmp_path):
    write_idx(tmp_path, "t10k", *arrays())
    path = tmp_path / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1]))
    with pytest.raises(CorruptFile, match="t10k-labels"):
        fashion("test", root=str(tmp_path))


@pytest.mark.parametrize("manifest", [True, False])
def test_truncated_npz_is_named_with_both_hashes(tmp_path, manifest):
    write_npz(tmp_path, "test", *arrays(), manifest=manifest)
    assert len(fashion("test", root=str(tmp_path))) == 30
    path = tmp_path / "test.npz"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(
        CorruptFile,
        match=r"test\.npz.*sha256 is [0-9a-f]{12}…, expected " + ("[0-9a-f]{12}" if manifest else "not known"),
    ):
        fashion("test", root=str(tmp_path))


def test_hashes_are_remembered_until_the_file_changes(tmp_path, monkeypatch):
    from limbeck.engine import data_files

    write_npz(tmp_path, "test", *arrays(), manifest=True)
    fashion("test", root=str(tmp_path))
    monkeypatch.setattr(data_files, "sha256_file", lambda path: "0" * 64)
    fashion("test", root=str(tmp_path))
    os.utime(tmp_path / "test.npz", ns=(1, 1))
    with pytest.raises(CorruptFile):
        fashion("test", root=str(tmp_path))


def test_fashion_mnist_label_that_is_no_class_is_named(tmp_path):
    images, labels = arrays()
    labels[17] = 10
    write_npz(tmp_path, "test", images, labels)
    with pytest.raises(CorruptFile, match=r"test\.npz: label 10 of sample 17 is not in 0 to 9"):
        fashion("test", root=str(tmp_path))


def test_val_size_must_leave_training_samples(tmp_path):
    write_npz(tmp_path, "train", *arrays())
    with pytest.raises(ConfigError, match="val_size"):
        fashion("train", root=str(tmp_path))


@pytest.mark.skipif(DATA is None, reason="LIMBECK_DATA is not set")
def test_real_fashion_mnist(monkeypatch):
    monkeypatch.setenv("LIMBECK_DATA", str(DATA))
    train, val, test = (fashion(split) for split in ("train", "val", "test"))
    assert [len(d) for d in (train, val, test)] == [55_000, 5_000, 10_000]
    assert np.bincount(test.labels).tolist() == [1000] * 10
    assert train.pixels.mean() / 255 == pytest.approx(0.2860, abs=2e-3)
    assert train.content_hash == "03f818a017190151dc3be2890c1160680c90497c6bc27d029c6ec0b4d800040f"
    assert val.content_hash == "ba48b96515dbcd4f5b0eac309ea61d389f453ef5823fb1c2e90faed33e9979b6"
    assert test.content_hash == "9ab2f038ce36c4b7f07e9170606e2073c0af4b2d68bd2b1f372bab4c2ab6b15c"


# --- download ---


@pytest.fixture
def upstream(monkeypatch):
    """Stands for torchvision's downloader."""
    import torchvision.datasets

    def download(root, *, train, download):
        images, labels = arrays(30 if train else 12)
        return SimpleNamespace(data=torch.from_numpy(images), targets=torch.from_numpy(labels).long())

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", download)


def test_get_checks_and_stores_what_arrives(upstream, monkeypatch):
    from limbeck.engine.data import content_hash

    wanted = {part: content_hash("fashion-mnist", part, *arrays(n)) for part, n in (("train", 30), ("test", 12))}
    monkeypatch.setattr(get, "FASHION_MNIST_CONTENT", wanted)
    folder = data_sources.get("fashion-mnist", progress=False)
    assert sorted(p.name for p in folder.iterdir()) == ["test.npz", "train.npz"]
    assert len(fashion("test")) == 12
    assert len(fashion("train", val_size=5)) == 25
    assert data_sources.get("fashion-mnist") == folder


def test_get_refuses_other_content(upstream):
    with pytest.raises(CorruptFile, match="expected b5b4748e19c7"):
        data_sources.get("fashion-mnist")
    with pytest.raises(DataMissing):
        fashion("train")


def test_get_without_network_says_what_else_to_do(monkeypatch):
    import torchvision.datasets

    def unreachable(*args, **kwargs):
        raise RuntimeError("Error downloading")

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", unreachable)
    with pytest.raises(DataMissing, match="apt-get install dataset-fashion-mnist"):
        data_sources.get("fashion-mnist")


def test_get_unknown_name():
    with pytest.raises(UnknownName, match="fashion-mnist"):
        data_sources.get("fashion-mnst")


def test_data_commands(tmp_path):
    from limbeck.cli.data import app

    listed = CliRunner().invoke(app, ["list"])
    assert listed.exit_code == 0
    assert "fashion-mnist" in listed.output
    for part in ("train", "test"):
        write_npz(tmp_path / "cache" / "data" / "fashion_mnist", part, *arrays())
    found = CliRunner().invoke(app, ["get", "fashion-mnist"])
    assert found.exit_code == 0
    assert "fashion_mnist" in found.output


# --- image folders ---


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2), ("test", 3)):
        for label in ("ant", "bee"):
            folder = tmp_path / "photos" / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "photos"


def write_manifest(root) -> None:
    files = sorted(p for p in root.rglob("*") if p.suffix == ".png")
    lines = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(root).as_posix()}" for p in files]
    (root / "MANIFEST.sha256").write_text("\n".join(lines) + "\n")


def test_image_folder_eval_is_resize_and_centre_crop(photos):
    data = ImageFolder(str(photos), "test", size=10)
    assert (len(data), data.classes, data.name, data.views) == (6, ["ant", "bee"], "photos", 1)
    batch = data.__getitems__(range(6))
    for i in range(6):
        image = Image.open(photos / data.files[i])
        expected = np.asarray(image.resize((12, 10), Image.Resampling.BICUBIC))[:, 1:11].transpose(2, 0, 1)
        assert np.abs(batch["inputs"][i].numpy().astype(int) - expected).max() <= 2
        assert data.files[i].split("/")[1] == data.classes[batch["data_samples"]["labels"][i]]


def test_image_folder_augmentation_is_stateless(photos):
    options = {
        "type": "ImageFolder",
        "root": str(photos),
        "split": "train",
        "size": 10,
        "augment": {"scale": (0.5, 1)},
        "views": 2,
    }
    a, b = DATASETS.make(options), DATASETS.make(options)
    first = a.__getitems__(range(12))
    assert torch.equal(b.__getitems__([7, 2])["inputs"], first["inputs"][[7, 2]])
    a.set_epoch(1)
    assert not torch.equal(a.__getitems__(range(12))["inputs"], first["inputs"])
    a.set_epoch(2)
    assert same(a.__getitems__(range(12)), first)
    assert json.loads(json.dumps(a.pipeline())) == a.pipeline()


def test_image_folder_hash_is_of_the_content(photos):
    def found(**options):
        return ImageFolder(str(photos), "train", **options).content_hash

    before = found()
    assert found() == found(size=10) == before
    assert found(limit=5) != before
    path = photos / "train" / "ant" / "0.png"
    Image.fromarray(np.zeros((20, 24, 3), np.uint8)).save(path)
    assert found() != before


def test_image_folder_manifest_must_list_the_files(photos):
    write_manifest(photos)
    before = ImageFolder(str(photos), "train").content_hash
    assert len(before) == 64
    (photos / "train" / "bee" / "3.png").unlink()
    with pytest.raises(CorruptFile, match=r"3\.png"):
        ImageFolder(str(photos), "train")
    assert len(ImageFolder(str(photos), "test")) == 6


def test_image_folder_broken_image_is_named(photos):
    data = ImageFolder(str(photos), "val", size=10)
    path = photos / data.files[1]
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(CorruptFile, match=path.name):
        data.__getitems__([0, 1])


def test_image_folder_is_found_below_the_data_folder(photos, monkeypatch):
    monkeypatch.setenv("LIMBECK_DATA", str(photos.parent))
    assert len(ImageFolder("photos", "val")) == 4


def test_image_folder_absent(photos):
    with pytest.raises(DataMissing, match="nowhere"):
        ImageFolder("nowhere", "train")
    with pytest.raises(DataMissing, match="no folders of images"):
        ImageFolder(str(photos / "train"), "train")


@pytest.mark.skipif(DATA is None, reason="LIMBECK_DATA is not set")
def test_real_flowers(monkeypatch):
    monkeypatch.setenv("LIMBECK_DATA", str(DATA))
    sizes = {split: len(ImageFolder("flowers5", split, size=64)) for split in ("train", "val", "test")}
    assert sizes == {"train": 3023, "val": 427, "test": 857}
    prefix = ImageFolder("flowers5", "train", size=64, limit=100)
    assert np.bincount(prefix.labels, minlength=5).min() >= 10
    assert prefix.__getitems__(range(16))["inputs"].shape == (16, 3, 64, 64)
