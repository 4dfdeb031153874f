"""The tiny CLIP: its own images, wrong captions by the count, the loss by a loop, determinism, and that it learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import limbeck.multimodal.vlm._tiny_clip as tiny
from limbeck.engine.digits import read_digits
from limbeck.engine.registry import DATASETS, MODELS
from limbeck.errors import ConfigError, UnknownName
from limbeck.multimodal.vlm._tiny_clip import (
    DIGIT_WORDS,
    TINY_SAMPLES,
    TINY_TEMPLATES,
    TinyCLIP,
    caption_classes,
    contrastive_loss,
    tiny_clip,
    train_tiny_clip,
)
from limbeck.multimodal.vlm.zero_shot import evaluate_zero_shot, open_split


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path))
    return tmp_path


def test_size_and_shapes():
    model = TinyCLIP()
    assert 120_000 < sum(p.numel() for p in model.parameters()) < 126_000
    assert model.encode_image(torch.zeros(2, 1, 8, 8)).shape == (2, 64)
    tokens = model.tokenizer([t.replace("{}", "seven") for t in TINY_TEMPLATES])
    assert tokens.shape[1] <= 6
    assert model.encode_text(tokens, normalize=True).norm(dim=1).tolist() == pytest.approx([1.0] * 4)


def test_padding_changes_no_text():
    model = TinyCLIP().train()
    texts = ["seven", "a photo of the digit seven"]
    together = model.encode_text(model.tokenizer(texts))
    for row, text in zip(together, texts):
        torch.testing.assert_close(row, model.encode_text(model.tokenizer([text]))[0])


def test_digits_may_be_words_or_figures():
    assert torch.equal(TinyCLIP.tokenizer(["the number 7."]), TinyCLIP.tokenizer(["The number seven"]))
    with pytest.raises(UnknownName, match="unknown word 'svn'"):
        TinyCLIP.tokenizer(["the number svn"])
    with pytest.raises(ConfigError, match="without words"):
        TinyCLIP.tokenizer([" . "])


@pytest.mark.parametrize("noise", [0.0, 0.2, 0.4, 1.0])
def test_captions_are_wrong_by_the_count(noise):
    labels = np.arange(300) % 10
    named = caption_classes(labels, noise, np.random.default_rng(0))
    wrong = named != labels
    assert wrong.sum() == round(300 * noise)
    following = (named == (labels + 1) % 10)[wrong]
    assert following.sum() == round(0.7 * wrong.sum())
    assert ((named >= 0) & (named < 10)).all()


def test_noise_out_of_range():
    with pytest.raises(ConfigError, match=r"in \[0, 1\]; got 1\.5"):
        train_tiny_clip(1.5)


def test_loss_is_the_formula():
    draw = torch.Generator().manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(5, 3, generator=draw), dim=1) for _ in range(2))
    classes = torch.tensor([0, 1, 0, 2, 0])
    found = contrastive_loss(image, text, classes, torch.tensor(4.0))
    V, U = image.double().numpy(), text.double().numpy()
    total = 0.0
    for A, B in ((V, U), (U, V)):
        for i in range(5):
            z = 4.0 * A[i] @ B.T
            log_p = z - np.log(np.exp(z).sum())
            same = [j for j in range(5) if classes[j] == classes[i]]
            total -= np.mean([log_p[j] for j in same]) / 5
    assert float(found) == pytest.approx(total / 2, rel=1e-5)


def test_trained_on_images_that_no_student_sees():
    pool = open_split("Digits", "train", limit=1078 - TINY_SAMPLES)
    pixels, _ = read_digits("train")
    assert len(pool) + TINY_SAMPLES == len(pixels)
    assert np.array_equal(pool.pixels[:, 0], pixels[:-TINY_SAMPLES])


def test_same_arguments_same_weights_and_the_callers_generator_is_left_alone():
    before = torch.random.get_rng_state()
    made = [train_tiny_clip(0.4, seed, steps=4).state_dict() for seed in (0, 0, 1)]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(v, made[1][k]) for k, v in made[0].items())
    assert not torch.equal(made[0]["visual.5.weight"], made[2]["visual.5.weight"])


def test_trained_once_and_kept_by_options(monkeypatch, cache):
    asked = []

    def quick(caption_noise, seed):
        asked.append((caption_noise, seed))
        return train_tiny_clip(caption_noise, seed, steps=2)

    monkeypatch.setattr(tiny, "train_tiny_clip", quick)
    first, second = tiny_clip(0.2, 1), tiny_clip(0.2, 1)
    tiny_clip(0.4, 1)
    assert asked == [(0.2, 1), (0.4, 1)]
    assert all(torch.equal(v, second.state_dict()[k]) for k, v in first.state_dict().items())
    path = sorted((cache / "tiny_clip").iterdir())[0]
    path.write_bytes(b"damaged")
    tiny_clip(0.2, 1)
    tiny_clip(0.4, 1)
    assert len(asked) == 3
    monkeypatch.setattr(tiny, "train_tiny_clip", None)
    config = dict(type="ZeroShotTiny", caption_noise=0.2, seed=1)
    model = MODELS.make(config).eval()
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        rows = []
        for word in DIGIT_WORDS:
            own = first.encode_text(first.tokenizer([t.replace("{}", word) for t in TINY_TEMPLATES]), normalize=True)
            rows.append(torch.nn.functional.normalize(own.mean(0), dim=0))
        expected = first.logit_scale.exp() * first.encode_image(x, normalize=True) @ torch.stack(rows, 1)
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
        empty = MODELS.make({**config, "pretrained": False}).eval()
        assert empty.text.abs().sum() == 0
        empty.load_state_dict(model.state_dict())
        assert torch.equal(empty(x), model(x))
    assert not any("token" in k or "transformer" in k for k in model.state_dict())


def test_it_learns_something_but_not_everything():
    """Far above chance of 10 %, far below what clean labels give, and wrong towards the next digit."""
    model = MODELS.make(dict(type="ZeroShotTiny")).eval()
    test = DATASETS.make(dict(type="Digits", split="test"))
    found = evaluate_zero_shot(model, test, test.classes)
    assert 40 < found.top1 < 90
    images = (torch.from_numpy(test.pixels).float() / 255 - 0.3) / 0.38
    with torch.no_grad():
        chosen = model(images).argmax(1).numpy()
    wrong = chosen != test.labels
    assert (chosen[wrong] == (test.labels[wrong] + 1) % 10).mean() > 0.3  # 1 in 9 if errors had no direction
