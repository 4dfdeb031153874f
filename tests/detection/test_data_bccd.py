"""BCCD: what is read, resized and hashed; and every file that is not as it should be is one clear error."""

import hashlib
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.detection.data.bccd import BCCD
from limbeck.engine.registry import DATASETS
from limbeck.errors import ConfigError, CorruptFile, DataMissing, UnknownName

DATA = os.environ.get("LIMBECK_DATA")
WIDTH, HEIGHT = 24, 18
NAMES = ["RBC", "WBC", "Platelets"]
BOXES = {1: [[2, 3, 10, 8], [0, 0, 4, 4]], 2: [[5, 5, 6, 12]], 3: [[1, 1, 2, 2], [8, 2, 9, 9], [0, 10, 24, 8]], 4: []}


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """No data but the test's own."""
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LIMBECK_DATA", raising=False)


def content():
    """Four images, the last one without boxes; category ids are not labels."""
    images = [dict(id=i, file_name=f"cell_{i}.png", width=WIDTH, height=HEIGHT) for i in BOXES]
    pairs = [(i, box) for i, boxes in BOXES.items() for box in boxes]
    annotations = [
        dict(id=10 + n, image_id=i, category_id=(7, 3, 5)[n % 3], bbox=box, area=box[2] * box[3], iscrowd=0)
        for n, (i, box) in enumerate(pairs)
    ]
    categories = [dict(id=key, name=name) for key, name in zip((7, 3, 5), NAMES)]
    return dict(images=images, annotations=annotations, categories=categories)


def write(root, data, split="train"):
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "annotations" / f"{split}.json").write_text(json.dumps(data))


@pytest.fixture
def root(tmp_path):
    """Noise as PNG, so that pixels are exact."""
    folder, rng = tmp_path / "bccd", np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    for i in BOXES:
        image = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / "images" / f"cell_{i}.png")
    for split in ("train", "val"):
        write(folder, content(), split)
    return folder


def write_manifest(root):
    files = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.suffix in (".png", ".json"))
    lines = [f"{hashlib.sha256((root / name).read_bytes()).hexdigest()}  {name}\n" for name in files]
    (root / "MANIFEST.sha256").write_text("".join(lines))


def bccd(root, split="train", size=(HEIGHT, WIDTH), **options):
    return DATASETS.make(dict(type="BCCD", split=split, root=str(root), size=size, **options))


def changed(root, change):
    """The annotations of train with a change made by a function."""
    data = content()
    change(data)
    write(root, data)


# --- what is read ---


def test_samples_are_the_stored_pixels_and_boxes(root):
    data = bccd(root)
    batch = data.__getitems__(range(4))
    samples = batch["data_samples"]
    assert (batch["inputs"].shape, batch["inputs"].dtype) == ((4, 3, HEIGHT, WIDTH), torch.uint8)
    by_image = {image: [a for a in content()["annotations"] if a["image_id"] == image] for image in BOXES}
    for i, name in enumerate(data.files):
        assert np.array_equal(batch["inputs"][i].permute(1, 2, 0).numpy(), np.asarray(Image.open(root / name)))
        wanted = by_image[data.image_ids[i]]
        corners = [[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in wanted)]
        assert samples["boxes"][i, : len(wanted)].tolist() == corners
        assert samples["labels"][i, : len(wanted)].tolist() == [(7, 3, 5).index(a["category_id"]) for a in wanted]
        assert (samples["labels"][i, len(wanted) :] == -1).all()
        assert name == f"images/cell_{data.image_ids[i]}.png"
    assert (data.classes, list(data.category_ids), data.name) == (NAMES, [7, 3, 5], "bccd")
    assert samples["shapes"].tolist() == [[HEIGHT, WIDTH]] * 4
    assert (samples["labels"] >= 0).sum(1).min() == 0  # an image without boxes stays


def test_another_size_moves_boxes_with_the_pixels(root):
    data, full = bccd(root, size=(HEIGHT // 2, WIDTH * 2)), bccd(root)
    for small, large in zip(data.objects, full.objects):
        assert np.allclose(small.boxes, large.boxes * (2, 0.5, 2, 0.5))
    assert data.pixels.shape == (4, HEIGHT // 2, WIDTH * 2, 3)
    assert data.scale_factors(np.arange(2)).tolist() == [[2, 0.5], [2, 0.5]]
    # A white cell on black stays where its box is.
    position = full.image_ids.index(2)
    x, y, w, h = BOXES[2][0]
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[y : y + h, x : x + w] = 255
    Image.fromarray(image).save(root / full.files[position])
    found = bccd(root, size=(HEIGHT * 2, WIDTH * 2))
    rows, columns = np.nonzero(found.pixels[position, ..., 0] > 127)
    assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == found.objects[position].boxes[0].tolist()


@pytest.mark.parametrize("mode", ["L", "RGBA", "LA", "P", "1"])
def test_other_kinds_of_images_become_rgb(root, mode):
    name = bccd(root).files[2]
    with Image.open(root / name) as opened:
        image = opened.convert(mode)
    image.save(root / name)
    found = bccd(root).pixels[2]
    assert np.array_equal(found, np.asarray(image.convert("RGB")))
    if mode in ("L", "LA", "1"):
        assert (found == found[..., :1]).all()


def test_order_is_a_fair_draw_and_limit_takes_its_head(root):
    data, part = bccd(root), bccd(root, limit=2)
    expected = sorted((f"images/cell_{i}.png" for i in BOXES), key=lambda n: hashlib.sha256(n.encode()).digest())
    assert data.files == expected
    assert (part.files, len(part)) == (expected[:2], 2)
    assert part.content_hash != data.content_hash
    (root / expected[3]).unlink()
    assert len(bccd(root, limit=3)) == 3  # the others are not opened
    with pytest.raises(ConfigError, match="between 1 and 4"):
        bccd(root, limit=5)


def test_augmented_batches_have_the_crop_and_change_with_the_epoch(root):
    data = bccd(root, augment=dict(size=(12, 30)), views=0)
    first = data.__getitems__(range(4))
    assert first["inputs"].shape == (4, 3, 12, 30)
    data.set_epoch(1)
    assert not torch.equal(data.__getitems__(range(4))["inputs"], first["inputs"])
    found = json.loads(json.dumps(data.pipeline()))
    assert found["decoder"].startswith("pillow")
    assert found["size"] == [HEIGHT, WIDTH]


def test_data_is_looked_for_in_the_usual_places(root, tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(DataMissing, match=r"elsewhere.*cache.*LIMBECK_DATA/bccd"):
        BCCD("train")
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path))
    assert BCCD("train", size=(9, 9)).root == root


# --- the content hash ---


@pytest.mark.parametrize("manifest", [False, True])
def test_content_hash_follows_content_split_and_size(root, manifest):
    def hashed():
        if manifest:
            write_manifest(root)
        return bccd(root).content_hash

    first = hashed()
    assert hashed() == first
    assert bccd(root, "val").content_hash != first
    assert bccd(root, size=(9, 12)).content_hash != first
    assert bccd(root, augment=dict(), seed=3).content_hash == first
    changed(root, lambda data: data["annotations"][0].update(bbox=[2, 3, 10, 9]))
    moved = hashed()
    assert moved != first
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "images" / "cell_2.png")
    assert hashed() not in (first, moved)


# --- boxes and annotations that are not as they should be ---


def test_box_over_the_border_is_cut(root):
    changed(root, lambda data: data["annotations"][0].update(bbox=[-3, 10, 10.5, 20]))
    data = bccd(root)
    assert data.objects[data.image_ids.index(1)].boxes[0].tolist() == [0, 10, 7.5, HEIGHT]


def test_crowds_are_kept_as_such(root):
    changed(root, lambda data: data["annotations"][1].update(iscrowd=1))
    samples = (data := bccd(root)).__getitems__(range(4))["data_samples"]
    assert samples["crowd"][data.image_ids.index(1)].tolist() == [False, True, False]
    assert samples["crowd"].sum() == 1


@pytest.mark.parametrize(
    ("box", "said"),
    [
        ([24, 3, 5, 5], "outside its image of 24 × 18"),
        ([-9, 3, 9, 5], "outside"),
        ([3, 40, 5, 5], "outside"),
        ([3, 3, 0, 5], "no area"),
        ([3, 3, 5, -1], "no area"),
        ([3, 3, 5], "not four numbers"),
        ([3, 3, 5, "4"], "not four numbers"),
        ([3, 3, 5, float("nan")], "not four numbers"),
        (None, "not four numbers"),
    ],
)
def test_box_that_is_none_is_named_with_file_and_annotation(root, box, said):
    changed(root, lambda data: data["annotations"][2].update(bbox=box))
    with pytest.raises(CorruptFile, match=rf"train\.json: annotation 12: box .*{said}.*sha256 is [0-9a-f]{{12}}…"):
        bccd(root)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d["annotations"][2].update(category_id=9), r"annotation 12 has category 9.*\[3, 5, 7\]"),
        (lambda d: d["annotations"][2].update(category_id=[7]), r"annotation 12 has category \[7\]"),
        (lambda d: d["annotations"][2].update(image_id=99), "annotation 12 is of image 99"),
        (lambda d: d["annotations"][2].update(id=10), "id 10 comes twice among the annotations"),
        (lambda d: d["annotations"][2].pop("id"), "entry 2 of annotations has no id"),
        (lambda d: d["annotations"].insert(0, 5), "entry 0 of annotations has no id"),
        (lambda d: d["images"][2].update(id=1), "id 1 comes twice among the images"),
        (lambda d: d["images"][2].update(file_name="cell_1.png"), r"images 1 and 3 are the same file cell_1\.png"),
        (lambda d: d["images"][2].pop("file_name"), "image 3 has no file_name"),
        (lambda d: d["images"][2].update(width=0), "image 3 has no width and height"),
        (lambda d: d["categories"][1].update(name="cat"), r"categories are \['Platelets', 'RBC', 'cat'\]"),
        (lambda d: d["categories"].pop(), "categories are"),
        (lambda d: d.pop("annotations"), "has no list of annotations"),
        (lambda d: d.update(images={}), "has no list of images"),
    ],
)
def test_annotations_that_do_not_fit_are_named(root, change, said):
    changed(root, change)
    with pytest.raises(CorruptFile, match=rf"train\.json: {said}"):
        bccd(root)


@pytest.mark.parametrize("text", [b"{", b"\xff\xfe", b"", b"[]"])
def test_file_that_is_no_json_of_coco_is_named(root, text):
    (root / "annotations" / "train.json").write_bytes(text)
    with pytest.raises(CorruptFile, match=r"train\.json: (not a JSON file|has no list)"):
        bccd(root)


def test_missing_annotations_and_empty_ones_are_named(root):
    with pytest.raises(DataMissing, match=r"annotations/\{train,val,test\}\.json"):
        bccd(root, "test")
    changed(root, lambda data: data.update(images=[], annotations=[]))
    with pytest.raises(DataMissing, match=r"train\.json lists no images"):
        bccd(root)


# --- images that are not as they should be ---


def test_missing_image_is_named(root):
    (root / "images" / "cell_3.png").unlink()
    with pytest.raises(DataMissing, match=r"cell_3\.png is missing"):
        bccd(root)


def test_image_of_another_size_is_named(root):
    Image.new("RGB", (HEIGHT, WIDTH)).save(root / "images" / "cell_3.png")
    with pytest.raises(CorruptFile, match=r"cell_3\.png: has 18 × 24 pixels, its annotations say 24 × 18"):
        bccd(root)


@pytest.mark.parametrize("cut", [0.0, 0.02, 0.3, 0.9])
def test_truncated_jpeg_is_named_with_its_hash(root, cut):
    path = root / "images" / "cell_3.png"  # a JPEG under another name is read as what it is
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, format="JPEG", quality=95)
    assert len(bccd(root)) == 4
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * cut)])
    with pytest.raises(CorruptFile, match=r"cell_3\.png: does not decode .*sha256 is [0-9a-f]{12}…"):
        bccd(root)


def test_sixteen_bit_image_and_folder_in_its_place_are_named(root):
    path = root / "images" / "cell_3.png"
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint16)).save(path)
    with pytest.raises(CorruptFile, match=r"cell_3\.png: has pixels of mode I;16, not of 8 bits"):
        bccd(root)
    path.unlink()
    path.mkdir()
    with pytest.raises(CorruptFile, match=r"cell_3\.png: does not decode"):
        bccd(root)


def test_file_that_the_manifest_does_not_list_so_is_named(root):
    write_manifest(root)
    assert len(bccd(root)) == 4
    path = root / "images" / "cell_3.png"
    expected = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    Image.new("RGB", (WIDTH, HEIGHT)).save(path)
    with pytest.raises(CorruptFile, match=rf"cell_3\.png: not the file that MANIFEST.*expected {expected}"):
        bccd(root)
    listed = (root / "MANIFEST.sha256").read_text().splitlines()
    (root / "MANIFEST.sha256").write_text("\n".join(line for line in listed if "cell_3" not in line))
    with pytest.raises(CorruptFile, match=r"cell_3\.png: is not listed in MANIFEST\.sha256"):
        bccd(root)
    changed(root, lambda data: data["annotations"].pop())
    with pytest.raises(CorruptFile, match=r"train\.json: not the file that MANIFEST"):
        bccd(root)


def test_meta_that_names_another_manifest_is_refused(root):
    write_manifest(root)
    meta = root / "meta.json"
    meta.write_text(
        json.dumps(dict(manifest_sha256=hashlib.sha256((root / "MANIFEST.sha256").read_bytes()).hexdigest()))
    )
    assert len(bccd(root)) == 4
    meta.write_text(json.dumps(dict(manifest_sha256="0" * 64)))
    with pytest.raises(CorruptFile, match=r"MANIFEST\.sha256: not the list that meta\.json names"):
        bccd(root)
    meta.write_text("{")
    with pytest.raises(CorruptFile, match=r"meta\.json: not a JSON file"):
        bccd(root)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        (dict(size=(0, 240)), ConfigError, r"size of bccd .*\(0, 240\)"),
        (dict(size=(180,)), ConfigError, "size"),
        (dict(augment=dict(size=(0, 8))), ConfigError, r"crop.*\(0, 8\)"),
        (dict(augment=dict(crop=8)), UnknownName, "crop"),
        (dict(split="valid"), UnknownName, "val"),
        (dict(views=-1), ConfigError, "views"),
    ],
)
def test_wrong_options_are_user_errors(root, options, error, said):
    with pytest.raises(error, match=said):
        bccd(root, **options)


# --- the real thing ---


@pytest.mark.skipif(DATA is None, reason="LIMBECK_DATA is not set")
def test_real_bccd(monkeypatch):
    monkeypatch.setenv("LIMBECK_DATA", str(DATA))
    test = BCCD("test")
    meta = json.loads((test.root / "meta.json").read_text())
    labels = np.concatenate([one.labels for one in test.objects])
    assert np.bincount(labels).tolist() == [meta["instances"]["test"][name] for name in test.classes]
    assert (len(test), list(test.category_ids), test.pixels.shape) == (72, [1, 2, 3], (72, 192, 256, 3))
    sides = np.concatenate([one.boxes[:, 2:] - one.boxes[:, :2] for one in test.objects])
    medians = [np.sqrt(np.median(sides[labels == k].prod(1))) for k in range(3)]
    assert np.allclose(medians, (41, 75, 15), atol=4)  # as the specification says for this size
    train = BCCD("train", limit=20)
    assert train.content_hash != BCCD("train", limit=21).content_hash
    assert 100 < train.pixels.mean() < 230
    # Records hold this hash.
    assert test.content_hash == "7f1ad55d3f5efa9c584d8d6e39b330e117d7b7f00601bedeb100b9071814008f"
