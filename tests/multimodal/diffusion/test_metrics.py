"""The metric that the engine calls: on real digits, copies, noise, and what it refuses."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.engine.data_files import shared_data
from limbeck.engine.registry import METRICS
from limbeck.errors import ConfigError, DataMissing, UnknownName
from limbeck.multimodal.diffusion.evaluation import reference
from limbeck.multimodal.diffusion.evaluation.features import FOLDER, NETS, extract, from_pixels, load_features
from limbeck.multimodal.diffusion.evaluation.figures import Sample, measure
from limbeck.multimodal.diffusion.evaluation.reference import read_split, reference_sample
from limbeck.multimodal.diffusion.metrics import GenerationMetric

JUDGE = json.loads((FOLDER / "feature_nets.json").read_text())["digits"]["judge"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(reference, "_KEPT", {})


def digits(split: str = "val") -> tuple[torch.Tensor, torch.Tensor]:
    found = read_split(dict(type="Digits", split=split))
    return from_pixels(found.pixels), found.labels


def singles(images: torch.Tensor, labels: torch.Tensor, calls: int = 2) -> list[dict[str, Any]]:
    return [dict(image=x, label=int(y), calls=calls) for x, y in zip(images, labels)]


def made(x: torch.Tensor, y: torch.Tensor, **kwargs: Any) -> GenerationMetric:
    metric = METRICS.make(dict(type="GenerationMetric", features="digits", **kwargs))
    metric.update(singles(x, y))
    return metric


@pytest.fixture(scope="module")
def unseen() -> dict[str, float]:
    return made(*digits("val")).values()


def test_unseen_real_digits_are_near_the_floor(unseen):
    assert unseen["FD-digits"] < 3 * unseen["FD-digits_bias"]
    assert unseen["FD-digits_floor"] < 3 * unseen["FD-digits_bias"]
    assert unseen["memorisation"] == pytest.approx(1, abs=0.15)
    assert unseen["diversity_share"] == pytest.approx(1, abs=0.1)
    assert unseen["label_agreement"] == pytest.approx(JUDGE["val_accuracy"], abs=0.4)  # one of 269 images
    assert unseen["label_entropy"] == pytest.approx(math.log(10), abs=0.02)
    assert unseen["calls"] == 2
    assert unseen["coverage"] > 0.8
    assert all(math.isfinite(v) for v in unseen.values())
    assert set(unseen) == {
        *("FD-digits", "FD-digits_bias", "FD-digits_floor", "MMD2-digits", "precision", "recall", "density"),
        *("coverage", "diversity", "diversity_share", "label_agreement", "label_entropy", "memorisation", "calls"),
    }


def test_figures_are_those_of_measure(unseen):
    val = read_split(dict(type="Digits", split="val"))
    generated = Sample(
        extract(load_features("digits"), val.pixels)[0],
        val.labels.numpy(),
        extract(load_features("digits", "judge"), val.pixels)[1],
    )
    real = reference_sample("digits", read_split(dict(type="Digits", split="test")))
    assert len(real) == 450
    expected = measure("digits", 10, real, generated).values
    assert {name: unseen[name] for name in expected} == pytest.approx(expected, rel=1e-6)


def test_copies_of_training_images_are_memorised():
    images, labels = digits("train")
    found = made(images[:300], labels[:300])
    assert found.values()["memorisation"] == 0
    assert "memorisation" not in made(images[:300], labels[:300], training=None).values()


def test_the_reference_itself_has_distance_zero_and_is_named():
    images, labels = digits("test")
    metric = made(images, labels, training=None)
    found = metric.values()
    assert abs(found["FD-digits"]) < 1e-8
    assert found["precision"] == found["recall"] == found["coverage"] == found["diversity_share"] == 1
    real = read_split(dict(type="Digits", split="test")).content_hash
    nets = [NETS["digits"].sha256[role][:12] for role in ("features", "judge")]
    assert metric.metric_id == "-".join([*nets, real[:12], "m450"])


def test_one_image_and_noise_are_far(unseen):
    images, labels = digits("val")
    collapsed = made(images[:1].expand(200, -1, -1, -1), labels[:1].expand(200), training=None).values()
    assert collapsed["diversity"] == collapsed["diversity_share"] == collapsed["label_entropy"] == 0
    assert collapsed["recall"] < 0.02
    assert collapsed["coverage"] < 0.1
    noise = torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noisy = made(noise, torch.arange(200) % 10).values()
    assert noisy["FD-digits"] > 20 * unseen["FD-digits"]
    assert noisy["precision"] < 0.3
    assert noisy["label_agreement"] < 40
    assert noisy["memorisation"] > 1.5


def test_batches_give_what_single_images_give():
    images, labels = digits("val")
    one = made(images, labels, training=None)
    other = GenerationMetric("digits", training=None)
    for rows in torch.arange(len(labels)).split(64):
        other.update([dict(image=images[rows], label=labels[rows], calls=torch.full((len(rows),), 2))])
    assert other.values() == pytest.approx(one.values())
    assert other.per_class() == one.per_class()
    assert other.metric_id == one.metric_id


def test_an_update_after_values_counts_and_reset_forgets():
    images, labels = digits("val")
    metric = made(images[:100], labels[:100], training=None)
    first = metric.values()
    metric.update(singles(images[100:], labels[100:], calls=8))
    assert metric.values()["FD-digits"] != first["FD-digits"]
    assert metric.values()["calls"] == pytest.approx((100 * 2 + 169 * 8) / 269)
    metric.reset()
    metric.update(singles(images[:100], labels[:100]))
    assert metric.values() == first


def test_the_number_of_images_can_be_fixed():
    images, labels = digits("val")
    metric = made(images, labels, images=120, training=None)
    assert metric.metric_id.endswith("-m120")
    rows = torch.from_numpy(metric._rows)
    assert metric.values() == pytest.approx(made(images[rows], labels[rows], training=None).values())
    with pytest.raises(ConfigError, match="got 269 generated images and needs 270"):
        made(images, labels, images=270).values()
    with pytest.raises(ConfigError, match="images is at least 1"):
        GenerationMetric("digits", images=0)


def test_agreement_of_each_class_and_a_missing_class():
    images, labels = digits("val")
    kept = labels != 3
    metric = made(images[kept], labels[kept], training=None)
    found = metric.per_class()["label_agreement"]
    assert len(found) == 10
    assert found[3] == 0
    assert all(value > 90 for c, value in enumerate(found) if c != 3)
    assert metric.values()["label_entropy"] < math.log(10) - 0.05
    wrong = made(images, (labels + 1) % 10, training=None)
    assert wrong.values()["label_agreement"] < 2


def test_images_of_the_teacher_from_the_same_noise_are_compared():
    images, labels = digits("val")
    metric = GenerationMetric("digits", training=None)
    metric.update(singles(images[:60], labels[:60]), singles(images[:60] * 0.5, labels[:60]))
    expected = ((images[:60] * 0.5) ** 2).double().mean().item()
    assert metric.values()["mse_to_teacher"] == pytest.approx(expected, rel=1e-6)
    alone = GenerationMetric("digits", training=None)
    alone.update(singles(images[:60], labels[:60]))
    assert "mse_to_teacher" not in alone.values()


def test_floors_and_intervals_have_the_names_of_values(unseen):
    metric = made(*digits("val"))
    floors, widths = metric.floors(), metric.intervals(resamples=30)
    assert floors["FD-digits"] == pytest.approx(unseen["FD-digits_floor"])
    assert floors.keys() <= unseen.keys()
    assert widths.keys() <= unseen.keys()
    assert floors["label_agreement"] > 97
    for name, (low, high) in widths.items():
        assert low <= unseen[name] <= high


# --- what is refused ---


def test_images_that_do_not_fit_are_refused():
    images, labels = digits("val")
    with pytest.raises(ConfigError, match=r"takes float images \(1, 8, 8\).* got torch.float32 \(3, 8, 8\)"):
        made(images.expand(-1, 3, -1, -1), labels)
    with pytest.raises(ConfigError, match=r"got torch.float32 \(1, 28, 28\): choose the features of this data set"):
        made(torch.zeros(3, 1, 28, 28), labels[:3])
    with pytest.raises(ConfigError, match=r"got torch.uint8 \(1, 8, 8\)"):
        made((images * 100).byte(), labels)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_images_that_are_not_finite_are_refused_by_number(value):
    images, labels = digits("val")
    broken = images.clone()
    broken[17, 0, 3, 3] = value
    with pytest.raises(ConfigError, match="generated image 17 has values that are not finite; look for NaN"):
        made(broken, labels)
    metric = made(images[:5], labels[:5])
    with pytest.raises(ConfigError, match="generated image 22"):
        metric.update([dict(image=broken, label=labels)])


def test_labels_that_are_no_class_are_refused():
    images, labels = digits("val")
    for bad in (10, -1):
        with pytest.raises(ConfigError, match=f"0 to 9; got label {bad}"):
            made(images, torch.full_like(labels, bad))
    with pytest.raises(ConfigError, match="got 3 labels for 4 images"):
        GenerationMetric("digits").update([dict(image=images[:4], label=labels[:3])])


def test_too_few_images_are_refused():
    images, labels = digits("val")
    with pytest.raises(ConfigError, match="got 0 generated images"):
        GenerationMetric("digits").values()
    with pytest.raises(ConfigError, match="density and coverage with k=5 needs at least 6 images in each set; got 5"):
        made(images[:5], labels[:5]).values()
    assert math.isfinite(made(images[:6], labels[:6]).values()["FD-digits"])


def test_unknown_features_keys_and_references_are_refused():
    with pytest.raises(UnknownName, match="did you mean 'digits'"):
        GenerationMetric("digit")
    with pytest.raises(UnknownName, match="key of metric GenerationMetric"):
        METRICS.make(dict(type="GenerationMetric", k=3))
    with pytest.raises(UnknownName, match="in the metric's reference"):
        made(*digits("val"), reference=dict(type="Digit", split="test"))


def test_missing_data_is_said_at_the_first_batch(tmp_path):
    metric = GenerationMetric("fashion-mnist", reference=dict(type="FashionMNIST", split="test", root=str(tmp_path)))
    with pytest.raises(DataMissing, match="limbeck data get fashion-mnist"):
        metric.update([dict(image=torch.zeros(1, 28, 28), label=0)])
    with pytest.raises(DataMissing, match="limbeck data get fashion-mnist"):
        made(*digits("val"), training=dict(type="FashionMNIST", split="train", root=str(tmp_path)))


# --- the cache ---


def test_reference_features_are_kept_and_a_damaged_file_is_made_anew(tmp_path, monkeypatch):
    images, labels = digits("val")
    first = made(images, labels).values()
    files = sorted((tmp_path / "cache" / "generation").glob("*.npz"))
    assert len(files) == 2  # features, and distances to the training images
    asked: list[int] = []

    def counted(net: Any, pixels: torch.Tensor, **kwargs: Any) -> Any:
        asked.append(len(pixels))
        return extract(net, pixels, **kwargs)

    monkeypatch.setattr(reference, "extract", counted)
    assert made(images, labels).values() == first  # from memory
    monkeypatch.setattr(reference, "_KEPT", {})
    assert made(images, labels).values() == first  # from the files
    assert not asked
    for file in files:
        file.write_bytes(file.read_bytes()[:100])
    monkeypatch.setattr(reference, "_KEPT", {})
    assert made(images, labels).values() == first
    assert asked == [450, 450]
    assert np.load(files[0])


def test_another_split_has_other_features(tmp_path):
    images, labels = digits("val")
    small = dict(type="Digits", split="test", limit=100)
    found = made(images, labels, reference=small, training=None)
    assert found.values() != made(images, labels, training=None).values()
    assert found.metric_id != made(images, labels, training=None).metric_id
    assert len(list((tmp_path / "cache" / "generation").glob("*.npz"))) == 2


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "file"))
    assert math.isfinite(made(*digits("val")).values()["FD-digits"])


@pytest.mark.skipif(shared_data() is None, reason="LIMBECK_DATA is not set")
def test_fashion_mnist_validation_images_are_near_the_test_images():
    val = read_split(dict(type="FashionMNIST", split="val", limit=1000))
    metric = GenerationMetric(reference=dict(type="FashionMNIST", split="test", limit=2000), training=None)
    metric.update([dict(image=from_pixels(val.pixels), label=val.labels)])
    found = metric.values()
    assert found["FD-fashion-mnist"] < 3 * found["FD-fashion-mnist_bias"]
    assert found["label_agreement"] == pytest.approx(90.5, abs=3)
    assert found["coverage"] == pytest.approx(0.969, abs=0.03)
    assert found["precision"] > 0.85
    assert "calls" not in found
