"""Zero-shot evaluation: counts, interval, names, data sets by name and options."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.engine.pixels import PixelPreprocessor, input_of
from limbeck.errors import ConfigError, DataMissing, UnknownName
from limbeck.multimodal.vlm.zero_shot import (
    class_names,
    evaluate_zero_shot,
    image_features,
    open_split,
    read_names,
    teacher_config,
    wilson_interval,
)
from tests.multimodal.vlm.toy_teachers import toy_teacher


@pytest.mark.parametrize(("correct", "images"), [(0, 5), (5, 5), (143, 300), (1, 1)])
def test_interval_is_wilsons(correct, images):
    p, z = correct / images, 1.959963984540054
    centre = (p + z * z / (2 * images)) / (1 + z * z / images)
    half = z / (1 + z * z / images) * math.sqrt(p * (1 - p) / images + z * z / (4 * images**2))
    assert wilson_interval(correct, images) == pytest.approx((100 * (centre - half), 100 * (centre + half)), abs=1e-6)


def test_counts_are_those_of_a_loop():
    digits = open_split("Digits", "test", limit=50)
    model = toy_teacher(classes=10, side=8)  # three channels: grey digits are repeated
    calls = []
    found = evaluate_zero_shot(
        model, digits, digits.classes, batch_size=16, report=lambda *a: calls.append(a), config=dict(type="toy")
    )
    prepare = PixelPreprocessor(*input_of(model))
    right = [0] * 10
    with torch.no_grad():
        for index in range(50):
            one = digits[index]
            logits = model(prepare({"inputs": one["inputs"][None]})["inputs"])
            right[int(one["data_samples"]["labels"])] += int(logits.argmax()) == one["data_samples"]["labels"]
    assert [c.correct for c in found.classes] == right
    assert [c.images for c in found.classes] == np.bincount(digits.labels, minlength=10).tolist()
    assert found.correct == sum(right)
    assert found.top1 == pytest.approx(2.0 * sum(right))
    assert found.low < found.top1 < found.high
    assert [c[1:] for c in calls] == [(16, 50), (32, 50), (48, 50), (50, 50)]
    assert (found.dataset, found.split) == ("digits", "test")
    assert json.loads(json.dumps(found.to_json()))["classes"][3]["images"] == found.classes[3].images


def test_features_are_in_order_and_mode_is_kept():
    digits = open_split("Digits", "val", limit=20)
    model = toy_teacher(classes=10, side=8).train()
    features, labels = image_features(model, digits, batch_size=7)
    assert model.training
    assert labels.tolist() == digits.labels.tolist()
    whole, _ = image_features(model, digits, batch_size=20)
    torch.testing.assert_close(features, whole)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(20))


def test_too_few_names_for_the_labels():
    digits = open_split("Digits", "test", limit=30)
    with pytest.raises(ConfigError, match="there are 4 names"):
        evaluate_zero_shot(toy_teacher(side=8), digits, ["a", "b", "c", "d"])


def test_images_of_a_folder_by_options(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "test" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (12, 12), (60 * i, 90, 30)).save(tmp_path / "test" / name / f"{i}.png")
    images = open_split("ImageFolder", "test", [f"root={tmp_path}", "size=4"])
    assert class_names(images) == ["cat", "dog"]
    found = evaluate_zero_shot(toy_teacher(classes=2), images, ["cat", "dog"])
    assert [c.images for c in found.classes] == [4, 4]


@pytest.mark.parametrize(
    ("args", "error", "said"),
    [
        (("Digit", "test"), UnknownName, "did you mean 'Digits'"),
        (("Digits", "tset"), UnknownName, "did you mean 'test'"),
        (("Digits", "test", ["limitt=3"]), UnknownName, "did you mean 'limit'"),
        (("Digits", "test", ["limit"]), ConfigError, "not of the form key=value"),
        (("Digits", "test", [], 10**6), ConfigError, "between 1 and 450"),
    ],
)
def test_mistakes_in_the_data_set(args, error, said):
    with pytest.raises(error, match=said):
        open_split(*args)


def test_names_of_files(tmp_path):
    lines, listed = tmp_path / "names.txt", tmp_path / "names.json"
    lines.write_text("zero\none  \n\ntwo\n")
    listed.write_text(json.dumps(["zero", "one", "two"]))
    assert read_names(lines) == read_names(listed) == ["zero", "one", "two"]
    digits = open_split("Digits", "test", limit=3)
    with pytest.raises(ConfigError, match="fewer names than classes: 3 for 10"):
        class_names(digits, lines)
    listed.write_text(json.dumps([str(i) for i in range(11)]))
    with pytest.raises(ConfigError, match="more names than classes: 11 for 10"):
        class_names(digits, listed)


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        (None, DataMissing, "No such file"),
        (b'["a", ', ConfigError, "not whole JSON"),
        (b'{"a": 1}', ConfigError, "no list of texts"),
        (b"[1, 2]", ConfigError, "no list of texts"),
        (b"\xff\xfe", ConfigError, "no UTF-8 text"),
    ],
)
def test_bad_files_of_names(tmp_path, content, error, said):
    file = tmp_path / "names"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(error, match=said):
        read_names(file)


def test_configs_of_teachers():
    names = ["a", "b"]
    assert teacher_config("RN50", "openai", names) == dict(type="ZeroShot", model="RN50", tag="openai", classes=names)
    assert teacher_config("joined", None, names, ["dtd"], 96) == dict(
        type="ZeroShotJoined", classes=names, templates="dtd", input_size=[3, 96, 96]
    )
    assert teacher_config("tiny", None, names, ["{}", "a {}"]) == dict(
        type="ZeroShotTiny", classes=names, templates=["{}", "a {}"]
    )
    with pytest.raises(ConfigError, match="has no tag"):
        teacher_config("joined", "openai", names)
    with pytest.raises(ConfigError, match="size is of model 'joined' alone"):
        teacher_config("RN50", "openai", names, size=96)
