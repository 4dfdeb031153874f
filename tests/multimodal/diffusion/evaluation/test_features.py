"""Feature nets: what they take, what is shipped, and that other weights are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from limbeck.engine.data_files import shared_data
from limbeck.engine.digits import read_digits
from limbeck.errors import ConfigError, CorruptFile, UnknownName
from limbeck.multimodal.diffusion.evaluation import features
from limbeck.multimodal.diffusion.evaluation.features import (
    FOLDER,
    NETS,
    ROLES,
    build_net,
    extract,
    from_pixels,
    load_features,
    to_pixels,
    weight_file,
)

FACTS = json.loads((FOLDER / "feature_nets.json").read_text())
needs_fashion = pytest.mark.skipif(shared_data() is None, reason="LIMBECK_DATA is not set")


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    pixels, labels = read_digits("test")
    return torch.from_numpy(pixels[:, None]), torch.from_numpy(labels)


def test_pixels_make_the_round_trip_and_images_are_clipped():
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_pixels(from_pixels(pixels)), pixels)
    assert from_pixels(pixels).min() == -1
    assert from_pixels(pixels).max() == 1
    assert to_pixels(torch.tensor([-7.0, -1.0, 1.0, 1.2])).tolist() == [0, 0, 255, 255]
    levels = torch.tensor([-1 + 0.49 / 127.5, -1 + 0.51 / 127.5])
    assert to_pixels(levels).tolist() == [0, 1]


def test_features_see_256_grey_levels_alone(digits):
    net, x = load_features("digits"), from_pixels(digits[0][:5])
    assert torch.equal(net.features(x + 0.4 / 127.5), net.features(x))
    assert torch.equal(net.features(x * 1.0 + 0.0), net.features(x))
    assert not torch.equal(net.features(x - 0.6 / 127.5), net.features(x))


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("role", ROLES)
def test_shipped_nets_are_frozen_small_and_described(name, role):
    net = load_features(name, role)
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())
    assert load_features(name, role) is net
    x = torch.rand(3, *NETS[name].image) * 2 - 1
    assert net.features(x).shape == (3, NETS[name].dim)
    assert net(x).shape == (3, 10)
    assert torch.equal(net.features(x), net.features(x))
    assert weight_file(name, role).stat().st_size < 600_000
    assert FACTS[name][role]["sha256"] == NETS[name].sha256[role]
    other = FACTS[name]["judge" if role == "features" else "features"]
    assert FACTS[name][role]["seed"] != other["seed"]


def test_a_batch_changes_no_image_of_it(digits):
    net = load_features("digits")
    whole, alone = extract(net, digits[0][:40]), extract(net, digits[0][:40], batch=1)
    np.testing.assert_allclose(whole[0], alone[0], atol=1e-5)
    np.testing.assert_array_equal(whole[1], alone[1])
    assert whole[0].dtype == np.float64


@pytest.mark.parametrize("role", ROLES)
def test_accuracy_on_digits_is_the_written_one(digits, role):
    _, predicted = extract(load_features("digits", role), digits[0])
    found = 100 * (predicted == digits[1].numpy()).mean()
    assert found == pytest.approx(FACTS["digits"][role]["test_accuracy"], abs=0.3)  # one of 450 images
    assert found > 97


def test_features_of_the_training_digits_have_mean_0_and_deviation_1():
    pixels, _ = read_digits("train")
    found, _ = extract(load_features("digits"), torch.from_numpy(pixels[:, None]))
    np.testing.assert_allclose(found.mean(0), 0, atol=2e-3)  # the buffers are in half precision
    np.testing.assert_allclose(found.std(0, ddof=1), 1, atol=2e-3)


@needs_fashion
def test_accuracy_on_fashion_mnist_is_near_the_written_one():
    from limbeck.multimodal.diffusion.evaluation.reference import read_split

    split = read_split(dict(type="FashionMNIST", split="test", limit=2000))
    for role in ROLES:
        _, predicted = extract(load_features("fashion-mnist", role), split.pixels)
        found, written = 100 * np.mean(predicted == split.labels.numpy()), FACTS["fashion-mnist"][role]["test_accuracy"]
        assert found == pytest.approx(written, abs=3)  # of a fifth of the split: three times its deviation
        assert written > 89


def test_a_tampered_file_is_refused(tmp_path, monkeypatch):
    data = bytearray(weight_file("digits", "features").read_bytes())
    data[-1] ^= 1
    (tmp_path / "digits-features.safetensors").write_bytes(data)
    monkeypatch.setattr(features, "weight_file", lambda name, role: tmp_path / f"{name}-{role}.safetensors")
    load_features.cache_clear()
    with pytest.raises(CorruptFile, match=f"expected {NETS['digits'].sha256['features'][:12]}"):
        load_features("digits")
    with pytest.raises(CorruptFile, match="no such weight file"):
        load_features("digits", "judge")
    monkeypatch.undo()
    load_features("digits")


def test_what_does_not_fit_is_refused():
    net = load_features("digits")
    for shape in ((2, 3, 8, 8), (2, 1, 28, 28), (1, 8, 8)):
        with pytest.raises(ConfigError, match=r"takes images \(B, 1, 8, 8\); got .* choose the features"):
            net.features(torch.zeros(shape))
    with pytest.raises(UnknownName, match="did you mean 'fashion-mnist'"):
        load_features("fashion_mnist")
    with pytest.raises(UnknownName, match="role"):
        load_features("digits", "critic")  # type: ignore[arg-type]


def test_the_training_script_repeats_and_writes_what_can_be_loaded(tmp_path, monkeypatch):
    script = pytest.importorskip("benchmarks.feature_net", reason="needs the repository, not the package alone")
    monkeypatch.setitem(script.EPOCHS, "digits", 1)
    threads = torch.get_num_threads()
    try:
        for folder in ("a", "b"):
            script.main("digits", "features", tmp_path / folder)
        script.main("digits", "judge", tmp_path / "a")
    finally:
        torch.set_num_threads(threads)
    a, b = (json.loads((tmp_path / folder / script.FACTS).read_text())["digits"] for folder in "ab")
    assert a["features"] == b["features"]
    assert a["features"]["sha256"] != a["judge"]["sha256"]
    assert a["features"]["train_images"] == 1078
    from limbeck.engine.weights import load_into

    net = build_net("digits").eval()
    load_into(net, weight_file("digits", "features", tmp_path / "a"), sha256=a["features"]["sha256"])
    pixels, labels = read_digits("test")
    _, predicted = extract(net, torch.from_numpy(pixels[:, None]))
    assert 100 * (predicted == labels).mean() == pytest.approx(a["features"]["test_accuracy"], abs=0.01)
