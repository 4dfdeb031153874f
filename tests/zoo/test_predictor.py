"""Predictions: one or many images, folders, and images that cannot be read."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from limbeck.errors import ConfigError, UserError
from limbeck.zoo import Predictor
from limbeck.zoo.index import SHIPPED, list_students
from tests.zoo.fabricate import NAME, digits, make_zoo


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return make_zoo(tmp_path_factory.mktemp("zoo"))[0]


@pytest.fixture(scope="module")
def predictor(zoo):
    return Predictor(NAME, batch_size=4, zoo_dir=zoo)


@pytest.fixture
def folder(tmp_path):
    for place, pixels in enumerate(digits(6)[0].numpy()):
        path = tmp_path / "scans" / ("deep" if place % 2 else ".") / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[0]).save(path)
    (tmp_path / "scans" / "notes.txt").write_text("not an image")
    return tmp_path / "scans"


def test_one_image_gives_a_list_of_one(predictor):
    image = digits(1)[0][0]
    (found,) = predictor(image)
    chances = predictor.model(predictor.preprocess(image)).softmax(1)[0].detach()
    assert (found.source, found.index) == (0, int(chances.argmax()))
    assert found.label == predictor.card.classes[found.index]
    assert found.probability == pytest.approx(float(chances.max()), abs=1e-6)
    assert found.top[0] == (found.label, found.probability)


def test_many_images_keep_their_order_over_batches(predictor):
    images, labels = digits(11)
    found = predictor([image.numpy()[0] for image in images])
    assert [p.source for p in found] == list(range(11))
    assert [p.index for p in found] == predictor.model(predictor.preprocess(images)).argmax(1).tolist()
    assert sum(p.index == y for p, y in zip(found, labels.tolist())) > 5
    assert [p.index for p in predictor(images)] == [p.index for p in found]
    assert [p.index for p in predictor(images.permute(0, 2, 3, 1).numpy())] == [p.index for p in found]
    assert [p.index for p in predictor(image for image in images)] == [p.index for p in found]


def test_top_classes_are_sorted_and_sum_to_one(zoo):
    (found,) = Predictor(NAME, top_k=100, zoo_dir=zoo)(digits(1)[0][0])
    chances = [chance for _, chance in found.top]
    assert len(chances) == 10
    assert chances == sorted(chances, reverse=True)
    assert sum(chances) == pytest.approx(1, abs=1e-5)


def test_folder_is_by_path(predictor, folder):
    found = predictor.predict_folder(folder)
    names = ["0.png", "2.png", "4.png", "deep/1.png", "deep/3.png", "deep/5.png"]
    assert [p.source for p in found] == [str(folder / name) for name in names]
    order = digits(6)[0][[0, 2, 4, 1, 3, 5]]
    assert [p.index for p in found] == [p.index for p in predictor(order)]
    assert json.loads(json.dumps(found[0].to_dict()))["label"] == found[0].label


def test_path_and_pil_image(predictor, folder):
    with Image.open(folder / "0.png") as image:
        assert predictor(image)[0].top == predictor(folder / "0.png")[0].top


def test_no_images_give_no_predictions(predictor):
    assert predictor([]) == []


def test_invert_is_for_dark_ink(zoo, predictor):
    images = digits(8)[0]
    inverted = Predictor(NAME, invert=True, zoo_dir=zoo)
    assert [p.index for p in inverted(255 - images)] == [p.index for p in predictor(images)]


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"text", lambda b: b[:40]])
def test_unreadable_image_is_named(predictor, folder, damage):
    path = folder / "deep" / "3.png"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"3\.png: "):
        predictor.predict_folder(folder)


def test_truncated_image_in_memory_is_refused(predictor, folder):
    path = folder / "0.png"
    path.write_bytes(path.read_bytes()[:-30])
    with Image.open(path) as image, pytest.raises(UserError, match=r"image 0: .*not a whole image"):
        predictor(image)


def test_absent_file_and_folder_are_named(predictor, tmp_path):
    with pytest.raises(UserError, match=r"gone\.png: no such image"):
        predictor(tmp_path / "gone.png")
    with pytest.raises(UserError, match="gone: no such folder"):
        predictor.predict_folder(tmp_path / "gone")
    with pytest.raises(UserError, match="no image in it"):
        predictor.predict_folder(tmp_path)


def test_image_that_is_none_names_its_place(predictor):
    with pytest.raises(UserError, match="image 1: "):
        predictor([digits(1)[0][0], torch.zeros(8, 8, dtype=torch.int64)])
    with pytest.raises(UserError, match="image 0: one image was expected, got a batch of 2"):
        predictor([digits(2)[0]])


def test_sizes_below_one_are_refused(zoo):
    with pytest.raises(ConfigError, match="batch_size and top_k"):
        Predictor(NAME, batch_size=0, zoo_dir=zoo)


@pytest.mark.parametrize("card", [c for c in list_students(zoo_dir=SHIPPED) if not c.generates], ids=lambda c: c.name)
def test_shipped_student_predicts(card):
    stacks = {"semantic-segmentation": "mmseg", "object-detection": "mmdet", "3d-object-detection": "mmdet3d"}
    if stack := stacks.get(card.task):
        pytest.importorskip(stack, reason="the networks are OpenMMLab's")
    predictor = Predictor(card.name, zoo_dir=SHIPPED)
    assert not predictor.model.training
    assert sum(p.numel() for p in predictor.model.parameters()) == card.parameters
    if card.task == "3d-object-detection":
        draw = torch.Generator().manual_seed(0)
        cloud = torch.rand(500, 4, generator=draw) * torch.tensor([30.0, 20.0, 2.0, 1.0]) - torch.tensor([0, 10, 2, 0])
        (found,) = predictor(cloud)
        assert found.boxes.shape == (len(found.labels), 7)
        assert set(found.labels) <= set(card.classes)
        return
    channels, height, width = card.preprocessing.input_size
    (found,) = predictor(torch.zeros(channels, height, width, dtype=torch.uint8))
    if card.task == "semantic-segmentation":
        assert found.map.shape == (height, width)
        assert set(found.shares) <= set(card.classes)
        assert sum(found.shares.values()) == pytest.approx(1.0)
        return
    if card.task == "object-detection":
        assert found.size == (height, width)
        assert found.classes == tuple(card.classes)
        assert found.boxes.shape == (len(found.labels), 4)
        return
    assert found.label in card.classes
    if card.dataset.name == "digits":
        images, labels = digits()
        right = sum(p.index == y for p, y in zip(predictor(images), labels.tolist()))
        assert 100 * right / len(labels) == pytest.approx(card.metrics["top1"], abs=0.3)  # a sample or so of 450
