"""Tip-Adapter-F: logits, what is trained, the first step of AdamW by hand, and the search against brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from limbeck.engine.registry import MODELS
from limbeck.errors import ConfigError, ShapeMismatch, UnknownName
from limbeck.multimodal.vlm.tip_adapter import (
    TipAdapterF,
    TipAdapterSettings,
    fit_tip_adapter,
    initial_keys,
    search_alpha_beta,
    search_grid,
)
from tests.multimodal.vlm.toy_teachers import toy_features, toy_teacher

QUICK = dict(epochs=3, alphas=[0.5, 1.0, 2.0], betas=[0.5, 1.0, 5.0])


def fitted(**changes) -> TipAdapterF:
    features, labels = toy_features(16)
    val, val_labels = toy_features(40, seed=2)
    settings = TipAdapterSettings(**{**QUICK, **changes})
    return fit_tip_adapter(toy_teacher(), features, labels, val_features=val, val_labels=val_labels, settings=settings)


def numpy_logits(model: TipAdapterF, v: np.ndarray, alpha: float, beta: float, scale: float = 7.0) -> np.ndarray:
    W, G, Y = (t.detach().double().numpy() for t in (model.text, model.keys, model.values))
    found = np.zeros((len(v), W.shape[1]))
    for i, row in enumerate(v):
        found[i] = scale * row @ W
        for key, value in zip(G, Y):
            found[i] += alpha * np.exp(-beta * (1 - row @ key)) * value
    return found


def test_logits_are_the_formula():
    model = fitted()
    x = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(8))
    v = model.features(x).detach().double().numpy()
    expected = numpy_logits(model, v, float(model.alpha), float(model.beta))
    np.testing.assert_allclose(model(x).detach(), expected, rtol=1e-4, atol=1e-4)
    assert (model.values.sum(1) == 1).all()
    assert torch.equal(model.values.argmax(1), toy_features(16)[1])


def test_unfitted_is_the_zero_shot_teacher():
    zero_shot = toy_teacher()
    model = TipAdapterF(zero_shot, 9)
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(model(x), zero_shot(x))
    assert model.normalization == zero_shot.normalization
    assert model.input_size == zero_shot.input_size
    assert "embedding" in dict(model.named_modules())


def test_only_keys_are_trained_and_the_zero_shot_teacher_stays():
    zero_shot = toy_teacher()
    before = {k: v.clone() for k, v in zero_shot.state_dict().items()}
    features, labels = toy_features(16)
    model = fit_tip_adapter(
        zero_shot,
        features,
        labels,
        val_features=features,
        val_labels=labels,
        settings=TipAdapterSettings(**QUICK, scale=100.0),
    )
    assert all(torch.equal(v, before[k]) for k, v in zero_shot.state_dict().items())
    assert model.logit_scale == 100.0
    assert zero_shot.logit_scale == 7.0
    assert not torch.allclose(model.keys, initial_keys(features[None]))
    model.classify(features).sum().backward()
    assert model.keys.grad is not None
    assert all(p.grad is None for p in zero_shot.parameters())


def test_keys_start_from_the_mean_of_views():
    features, _ = toy_features(6)
    other, _ = toy_features(6, seed=4)
    found = initial_keys(torch.stack([features, other]))
    expected = (features + other).double().numpy() / 2
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected, axis=1, keepdims=True), rtol=1e-5)


def test_first_step_of_adamw_by_hand():
    features, labels = toy_features(8)
    val, val_labels = toy_features(12, seed=2)
    settings = TipAdapterSettings(epochs=1, alpha=1.3, beta=0.7, select="last", alphas=[1.0], betas=[1.0])
    model = fit_tip_adapter(toy_teacher(), features, labels, val_features=val, val_labels=val_labels, settings=settings)
    v, G = features.double().numpy(), features.double().numpy().copy()
    Y = np.eye(4)[labels.numpy()]
    logits = 7.0 * v @ model.text.double().numpy()
    a = np.exp(-0.7 * (1 - v @ G.T))
    logits += 1.3 * a @ Y
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    # dL/dG_j = mean_b (p_b − y_b) · Y_j · alpha · beta · a_bj · v_b
    weight = ((p - Y) @ Y.T) * a * 1.3 * 0.7 / len(v)
    grad = weight.T @ v
    expected = G * (1 - 1e-3 * 0.01) - 1e-3 * grad / (np.abs(grad) + 1e-4)
    np.testing.assert_allclose(model.keys.detach(), expected, rtol=1e-5, atol=2e-6)


def test_view_of_an_epoch():
    """With the second view a copy of the first, nothing changes; with noise there, something does."""
    features, labels = toy_features(16)
    val, val_labels = toy_features(40, seed=2)
    found = []
    for second in (features, toy_features(16, seed=9)[0]):
        found.append(
            fit_tip_adapter(
                toy_teacher(),
                torch.stack([features, second]),
                labels,
                val_features=val,
                val_labels=val_labels,
                settings=TipAdapterSettings(**QUICK, select="last"),
            ).keys
        )
    assert torch.equal(found[0], fitted(select="last").keys)
    assert not torch.allclose(found[1], found[0])


def test_same_seed_same_keys_and_small_batches():
    assert torch.equal(fitted(batch_size=5, seed=3).keys, fitted(batch_size=5, seed=3).keys)
    assert not torch.equal(
        fitted(batch_size=5, seed=3, select="last").keys, fitted(batch_size=5, seed=4, select="last").keys
    )


def test_no_epoch_is_the_training_free_adapter():
    torch.testing.assert_close(fitted(epochs=0).keys.detach(), toy_features(16)[0])


def test_search_is_brute_force_with_its_ties():
    model = fitted()
    val, labels = toy_features(40, seed=2)
    alphas, betas = search_grid(3.0, 7), search_grid(7.0, 9)
    text_logits = 7.0 * val @ model.text
    found = search_alpha_beta(
        text_logits, val, labels, keys=model.keys.detach(), values=model.values, alphas=alphas, betas=betas
    )
    best = (0.0, 0.0, -1.0)
    for beta in betas:
        for alpha in alphas:
            logits = numpy_logits(model, val.double().numpy(), alpha, beta)
            right = float((logits.argmax(1) == labels.numpy()).mean())
            if right > best[2]:
                best = (alpha, beta, right)
    assert found == pytest.approx(best)


def test_equals_keep_the_first():
    val, labels = toy_features(4)
    perfect = 1000.0 * torch.eye(4)[labels]
    zero = torch.zeros(1, 4)
    found = search_alpha_beta(
        perfect, val, labels, keys=torch.zeros(1, 6), values=zero, alphas=[0.3, 0.1], betas=[9.0, 2.0]
    )
    assert found == (0.3, 9.0, 1.0)


def test_grid_is_the_official_one():
    grid = search_grid(7.0, 200)
    assert len(grid) == 200
    assert grid[0] == pytest.approx(0.1)
    assert grid[-1] == pytest.approx(0.1 + 199 * 6.9 / 200)


def test_best_epoch_is_not_worse_on_validation_than_the_last():
    val, labels = toy_features(40, seed=2)
    fixed = dict(alphas=[1.17], betas=[1.0], epochs=12, lr=0.3)
    right = {
        select: (fitted(select=select, **fixed).classify(val).argmax(1) == labels).float().mean()
        for select in ("best_val", "last")
    }
    assert right["best_val"] >= right["last"]


def test_registry_gives_the_shape_for_saved_weights():
    tiny = dict(type="ZeroShotTiny")
    model = MODELS.make(dict(type="TipAdapterF", zero_shot=tiny, support=7, pretrained=False))
    assert model.keys.shape == (7, 64)
    assert model.values.shape == (7, 10)
    with pytest.raises(ConfigError, match="zero-shot teacher"):
        MODELS.make(dict(type="TipAdapterF", zero_shot=dict(type="timm", model="resnet18"), support=7))


@pytest.mark.parametrize(
    ("features", "labels", "error", "said"),
    [
        (torch.ones(3, 5), torch.zeros(3, dtype=torch.long), ShapeMismatch, "width 6"),
        (torch.ones(3, 6), torch.zeros(4, dtype=torch.long), ShapeMismatch, "support set"),
        (torch.ones(0, 6), torch.zeros(0, dtype=torch.long), ConfigError, "is empty"),
        (torch.ones(2, 6), torch.tensor([0, 4]), ConfigError, "labels from 0 to 4"),
    ],
)
def test_bad_support(features, labels, error, said):
    val, val_labels = toy_features(8)
    with pytest.raises(error, match=said):
        fit_tip_adapter(toy_teacher(), features, labels, val_features=val, val_labels=val_labels)


def test_bad_settings():
    with pytest.raises(UnknownName, match="select"):
        fitted(select="best_test")
    with pytest.raises(ConfigError, match="at least one value"):
        fitted(alphas=[])
    with pytest.raises(ConfigError, match="at least one image"):
        TipAdapterF(toy_teacher(), 0)
