"""CamVid: what is read, resized and hashed; and every folder that is not as it should be is one clear error."""

import hashlib
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.engine.losses import IGNORE
from limbeck.engine.registry import DATASETS
from limbeck.errors import ConfigError, CorruptFile, DataMissing, UnknownName
from limbeck.segmentation.data.camvid import CLASSES, CamVid

DATA = os.environ.get("LIMBECK_DATA")
WIDTH, HEIGHT = 24, 18


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """No data but the test's own."""
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LIMBECK_DATA", raising=False)


def write_camvid(root, counts=(("train", 5), ("val", 2), ("test", 3))):
    """Noise as PNG, so that pixels are exact, with labels of all classes and void."""
    rng = np.random.default_rng(0)
    for split, count in counts:
        for kind in ("images", "labels"):
            (root / split / kind).mkdir(parents=True)
        for i in range(count):
            image = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            Image.fromarray(image).save(root / split / "images" / f"{split}_{i}.png")
            labels = rng.integers(0, 12, (HEIGHT, WIDTH), dtype=np.uint8)
            Image.fromarray(labels).save(root / split / "labels" / f"{split}_{i}.png")
    return root


def write_manifest(root):
    files = sorted(p.relative_to(root).as_posix() for p in root.rglob("*.png"))
    lines = [f"{hashlib.sha256((root / name).read_bytes()).hexdigest()}  {name}\n" for name in files]
    (root / "MANIFEST.sha256").write_text("".join(lines))


def write_meta(root, **changes):
    meta = {"classes": [n for n, _ in CLASSES], "palette_rgb": [list(c) for _, c in CLASSES], "void_index": 11}
    (root / "meta.json").write_text(json.dumps({**meta, **changes}))


@pytest.fixture
def root(tmp_path):
    return write_camvid(tmp_path / "camvid")


def camvid(root, split="train", size=(HEIGHT, WIDTH), **options):
    return DATASETS.make(dict(type="CamVid", split=split, root=str(root), size=size, **options))


# --- what is read ---


def test_samples_are_the_stored_pixels_and_void_is_ignored(root):
    data = camvid(root)
    batch = data.__getitems__(range(5))
    assert (batch["inputs"].shape, batch["inputs"].dtype) == ((5, 3, HEIGHT, WIDTH), torch.uint8)
    assert batch["data_samples"]["labels"].dtype == torch.int64
    for i, name in enumerate(data.files):
        assert np.array_equal(batch["inputs"][i].permute(1, 2, 0).numpy(), np.asarray(Image.open(root / name)))
        stored = np.asarray(Image.open(root / name.replace("images", "labels"))).astype(int)
        stored[stored == 11] = 255
        assert np.array_equal(batch["data_samples"]["labels"][i].numpy(), stored)
    assert (data.maps == IGNORE).any()
    assert [len(data.classes), len(data.palette), data.name] == [11, 11, "camvid"]


def test_half_size_averages_pixels_and_picks_labels(root):
    data, full = camvid(root, size=(HEIGHT // 2, WIDTH // 2)), camvid(root)
    assert data.files == full.files
    for small, large in zip(data.maps, full.maps):
        blocks = large.reshape(HEIGHT // 2, 2, WIDTH // 2, 2)
        assert (blocks == small[:, None, :, None]).any((1, 3)).all()  # each label is one of the four that it stands for
    # An image of blocks of one colour keeps the colours.
    flat = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    name = root / full.files[0]
    Image.fromarray(flat.repeat(6, 0).repeat(6, 1)).save(name)
    found = camvid(root, size=(HEIGHT // 2, WIDTH // 2)).pixels[0]
    assert np.array_equal(found[1::3, 1::3], flat)
    steps = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    steps[:, ::2] = 200
    Image.fromarray(steps).save(name)
    inner = camvid(root, size=(HEIGHT // 2, WIDTH // 2)).pixels[0][:, 1:-1]
    assert (inner == 100).all()  # stripes of a pixel are averaged, not picked


@pytest.mark.parametrize("mode", ["L", "RGBA", "LA", "P", "1"])
def test_other_kinds_of_images_become_rgb(root, mode):
    name = camvid(root).files[2]
    with Image.open(root / name) as opened:
        image = opened.convert(mode)
    image.save(root / name)
    found = camvid(root).pixels[2]
    assert np.array_equal(found, np.asarray(image.convert("RGB")))
    if mode in ("L", "LA", "1"):
        assert (found == found[..., :1]).all()


def test_label_maps_with_a_palette_are_read_by_index(root):
    before = camvid(root)
    path = root / before.files[0].replace("images", "labels")
    with Image.open(path) as opened:
        values = np.asarray(opened)
    image = Image.fromarray(values).convert("P")
    image = Image.frombytes("P", image.size, values.tobytes())
    image.putpalette([c for _, colour in CLASSES for c in colour] + [0, 0, 0])
    image.save(path)
    assert np.array_equal(camvid(root).maps[0], before.maps[0])


def test_order_is_a_fair_draw_and_limit_takes_its_head(root):
    data, part = camvid(root), camvid(root, limit=2)
    names = [f"train/images/train_{i}.png" for i in range(5)]
    expected = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    assert data.files == expected
    assert part.files == expected[:2]
    assert np.array_equal(part.pixels, data.pixels[:2])
    assert part.content_hash != data.content_hash
    (root / expected[4]).write_bytes(b"no picture")
    assert len(camvid(root, limit=4)) == 4
    with pytest.raises(ConfigError, match="between 1 and 5"):
        camvid(root, limit=6)


def test_augmented_batches_have_the_crop_and_change_with_the_epoch(root):
    data = camvid(root, augment=dict(size=(12, 30)), views=0)
    first = data.__getitems__(range(5))
    assert first["inputs"].shape == (5, 3, 12, 30)
    assert first["data_samples"]["labels"].shape == (5, 12, 30)
    data.set_epoch(1)
    assert not torch.equal(data.__getitems__(range(5))["inputs"], first["inputs"])
    assert json.loads(json.dumps(data.pipeline()))["decoder"].startswith("pillow")


def test_data_is_looked_for_in_the_usual_places(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path / "data"))
    with pytest.raises(DataMissing, match=r"data.*cache.*LIMBECK_DATA/camvid"):
        CamVid("train")
    write_camvid(tmp_path / "cache" / "data" / "camvid", counts=(("train", 1),))
    assert len(CamVid("train", size=(9, 9))) == 1
    write_camvid(tmp_path / "data" / "camvid", counts=(("train", 2),))
    assert len(CamVid("train", size=(9, 9))) == 2
    with pytest.raises(DataMissing, match="elsewhere"):
        CamVid("train", root=str(tmp_path / "elsewhere"))


# --- the content hash ---


@pytest.mark.parametrize("manifest", [False, True])
def test_content_hash_follows_content_split_and_size(root, manifest):
    def hashes():
        if manifest:
            write_manifest(root)
        return camvid(root).content_hash

    first = hashes()
    assert hashes() == first
    assert camvid(root, "val").content_hash != first
    assert camvid(root, size=(9, 12)).content_hash != first
    assert camvid(root, augment=dict(), seed=3).content_hash == first
    path = root / "train" / "labels" / "train_0.png"
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)).save(path)
    assert hashes() != first


# --- folders that are not as they should be ---


def test_image_without_label_map_is_named(root):
    (root / "train" / "labels" / "train_3.png").unlink()
    with pytest.raises(DataMissing, match=r"images.train_3\.png has no partner in .*labels"):
        camvid(root)
    for path in (root / "train" / "labels").iterdir():
        path.unlink()
    (root / "train" / "labels").rmdir()
    with pytest.raises(DataMissing, match=r"train_0\.png"):
        camvid(root)


def test_label_map_without_image_is_named(root):
    (root / "train" / "images" / "train_3.png").unlink()
    with pytest.raises(DataMissing, match=r"labels.train_3\.png has no partner in .*images"):
        camvid(root)


def test_empty_split_is_named(root):
    for kind in ("images", "labels"):
        for path in (root / "val" / kind).iterdir():
            path.unlink()
    with pytest.raises(DataMissing, match=r"val.images has no \.jpg or \.png"):
        camvid(root, "val")


@pytest.mark.parametrize("value", [12, 255])
def test_label_outside_the_classes_is_named(root, value):
    path = root / "train" / "labels" / "train_1.png"
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[7, 5] = value
    Image.fromarray(labels).save(path)
    with pytest.raises(CorruptFile, match=rf"train_1\.png: label {value} at row 7, column 5 is not in 0 to 10"):
        camvid(root, size=(2, 2))  # it is found where resizing would lose it


def test_label_map_of_another_size_is_named(root):
    Image.fromarray(np.zeros((HEIGHT, WIDTH + 1), np.uint8)).save(root / "train" / "labels" / "train_2.png")
    with pytest.raises(CorruptFile, match=r"train_2\.png: label map is 25 × 18, its image 24 × 18 pixels"):
        camvid(root)


@pytest.mark.parametrize("mode", ["RGB", "LA", "1"])
def test_label_map_of_several_channels_is_named(root, mode):
    Image.new(mode, (WIDTH, HEIGHT)).save(root / "train" / "labels" / "train_2.png")
    with pytest.raises(CorruptFile, match=rf"train_2\.png: label map has mode {mode}"):
        camvid(root)


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_sixteen_bit_files_are_named(root, kind):
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint16)).save(root / "train" / kind / "train_2.png")
    with pytest.raises(CorruptFile, match=r"train_2\.png: has pixels of mode I;16, not of 8 bits"):
        camvid(root)


@pytest.mark.parametrize("kind", ["images", "labels"])
@pytest.mark.parametrize("cut", [0.0, 0.02, 0.1, 0.5, 0.9])
def test_truncated_file_is_named_with_its_hash(root, kind, cut):
    path = root / "train" / kind / "train_4.png"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * cut)])
    with pytest.raises(CorruptFile, match=rf"{kind}.train_4\.png: does not decode .*sha256 is [0-9a-f]{{12}}…"):
        camvid(root)


def test_folder_in_the_place_of_a_file_is_named(root):
    path = root / "train" / "images" / "train_4.png"
    path.unlink()
    path.mkdir()
    with pytest.raises(CorruptFile, match=r"train_4\.png: does not decode"):
        camvid(root)


def test_file_that_the_manifest_does_not_list_so_is_named(root):
    write_manifest(root)
    assert len(camvid(root)) == 5
    path = root / "train" / "images" / "train_4.png"
    expected = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    Image.new("RGB", (WIDTH, HEIGHT)).save(path)
    with pytest.raises(CorruptFile, match=rf"train_4\.png: not the file that MANIFEST.*expected {expected}"):
        camvid(root)
    for kind in ("images", "labels"):
        (root / "train" / kind / "train_4.png").unlink()
    with pytest.raises(CorruptFile, match=r"train_4\.png: MANIFEST.sha256 and the folder differ in 2 files"):
        camvid(root)


@pytest.mark.parametrize(
    ("key", "value"), [("classes", ["sky"]), ("palette_rgb", [[0, 0, 0]] * 11), ("void_index", 255)]
)
def test_meta_of_another_version_is_refused(root, key, value):
    write_meta(root)
    assert len(camvid(root)) == 5
    write_meta(root, **{key: value})
    with pytest.raises(ConfigError, match=rf"meta\.json: {key}.*11-class"):
        camvid(root)


@pytest.mark.parametrize("text", [b"{", b"\xff\xfe", b""])
def test_damaged_meta_is_named(root, text):
    (root / "meta.json").write_bytes(text)
    with pytest.raises(CorruptFile, match=r"meta\.json: not a JSON file"):
        camvid(root)


def test_manifest_that_meta_does_not_name_is_refused(root):
    write_manifest(root)
    write_meta(root, manifest_sha256=hashlib.sha256((root / "MANIFEST.sha256").read_bytes()).hexdigest())
    assert len(camvid(root)) == 5
    write_meta(root, manifest_sha256="0" * 64)
    with pytest.raises(CorruptFile, match=r"MANIFEST\.sha256: not the list that meta\.json names"):
        camvid(root)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        (dict(size=(0, 240)), ConfigError, r"size of camvid .*\(0, 240\)"),
        (dict(size=(180,)), ConfigError, "size"),
        (dict(size=(180.0, 240)), ConfigError, "size"),
        (dict(augment=dict(size=(0, 8))), ConfigError, r"crop.*\(0, 8\)"),
        (dict(augment=dict(crop=8)), UnknownName, "crop"),
        (dict(split="valid"), UnknownName, "val"),
        (dict(views=-1), ConfigError, "views"),
    ],
)
def test_wrong_options_are_user_errors(root, options, error, said):
    with pytest.raises(error, match=said):
        camvid(root, **options)


# --- the real thing ---


@pytest.mark.skipif(DATA is None, reason="LIMBECK_DATA is not set")
def test_real_camvid(monkeypatch):
    monkeypatch.setenv("LIMBECK_DATA", str(DATA))
    val = CamVid("val", size=(360, 480))
    counts = json.loads((val.root / "meta.json").read_text())["pixel_counts"]["val"]
    found = np.bincount(val.maps.ravel(), minlength=256)
    assert found[:11].tolist() == [counts[name] for name in val.classes]
    assert found[IGNORE] == counts["void"]
    assert len(val) == 101
    train = CamVid("train", limit=40)
    assert train.pixels.shape == (40, 180, 240, 3)
    assert {name.split("/")[-1][:6] for name in train.files} == {"0001TP", "0006R0", "0016E5"}
    assert 80 < train.pixels.mean() < 120
    assert CamVid("test", limit=2).content_hash != val.content_hash
    # Records hold this hash.
    assert CamVid("val").content_hash == "3fd6a3ecc69da4cbac052369fac5bb5df48faa740b23b49cf045beb8d6feb03c"
