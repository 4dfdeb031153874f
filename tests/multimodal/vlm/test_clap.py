"""CLAP: the constraint's weights, the loss, what gets gradient, the schedule with its quirks, and training by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from limbeck.engine.registry import MODELS
from limbeck.errors import ShapeMismatch, UnknownName
from limbeck.multimodal.vlm.clap import (
    CLAP,
    CLAPSettings,
    clap_loss,
    constraint_weights,
    fit_clap,
    initial_prototypes,
    lr_factor,
)
from tests.multimodal.vlm.toy_teachers import toy_features, toy_teacher


def test_starts_as_the_zero_shot_teacher():
    zero_shot = toy_teacher()
    model = CLAP(zero_shot, 1)
    x = torch.randn(5, 3, 4, 4)
    torch.testing.assert_close(model(x), zero_shot(x))
    torch.testing.assert_close(model.prototypes.norm(dim=0), zero_shot.text_norms)
    assert model.input_size == zero_shot.input_size


def test_weights_are_mean_zero_shot_probabilities():
    features, labels = toy_features(11)
    labels = labels.clamp(max=2)  # class 3 has no image
    zero_shot = toy_teacher()
    logits = 7.0 * features @ zero_shot.text
    found = constraint_weights(logits, labels)
    for c in range(4):
        own = []
        for row, label in zip(logits.double().numpy(), labels):
            if label == c:
                p = np.exp(row)
                own.append(p[c] / p.sum())
        assert float(found[c]) == pytest.approx(np.mean(own) if own else 0.0, rel=1e-5)
    assert found[3] == 0
    assert ((found >= 0) & (found <= 1)).all()


def test_loss_is_the_formula_and_the_constraint_starts_at_0():
    draw = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(5, 4, generator=draw), torch.tensor([0, 1, 2, 3, 0])
    P, P0, a = (torch.randn(6, 4, generator=draw) for _ in range(2)), None, torch.tensor([0.5, 0.0, 1.0, 0.25])
    P, P0 = P
    ce = np.mean([-row[y] + np.log(np.exp(row).sum()) for row, y in zip(logits.double().numpy(), labels)])
    held = np.mean([float(a[c]) * ((P[:, c] - P0[:, c]).double().numpy() ** 2).sum() for c in range(4)])
    assert float(clap_loss(logits, labels, P, P0, a)) == pytest.approx(ce + held, rel=1e-5)
    assert float(clap_loss(logits, labels, P0, P0, a)) == pytest.approx(ce, rel=1e-5)


def test_gradient_reaches_the_prototypes_alone():
    zero_shot = toy_teacher()
    model = CLAP(zero_shot, 8)
    features, labels = toy_features(8)
    loss = clap_loss(model.classify(features), labels, model.prototypes, initial_prototypes(zero_shot), torch.ones(4))
    loss.backward()
    assert model.prototypes.grad.abs().sum() > 0
    assert all(p.grad is None for name, p in model.named_parameters() if name != "prototypes")


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_schedule(schedule):
    factors = [lr_factor(step, 50, 0.1, schedule) for step in range(51)]
    assert factors[0] == 0.0
    np.testing.assert_allclose(factors[:6], np.arange(6) / 5)
    share = np.arange(46) / 45
    expected = 1 - share if schedule == "linear" else (1 + np.cos(np.pi * share)) / 2
    np.testing.assert_allclose(factors[5:], expected, atol=1e-12)


def test_a_single_step_changes_nothing():
    """The warm-up starts at 0: quirk of the code's schedule."""
    features, labels = toy_features(8)
    zero_shot = toy_teacher()
    found = fit_clap(zero_shot, features, labels, settings=CLAPSettings(passes=1, batch_size=64))
    assert torch.equal(found.prototypes, initial_prototypes(zero_shot))


@pytest.mark.parametrize("constraint_scale", [None, 100.0])
def test_training_by_hand(constraint_scale):
    """SGD with momentum in float64, with numpy's gradient of the formula, on the same draws."""
    zero_shot = toy_teacher()
    views = torch.stack([toy_features(10)[0], toy_features(10, seed=5)[0]])
    plain, labels = toy_features(10, seed=6)
    settings = CLAPSettings(passes=6, batch_size=5, seed=2, constraint_scale=constraint_scale)
    found = fit_clap(zero_shot, views, labels, plain_features=plain, settings=settings).prototypes.detach()

    v, y, W = views.double().numpy(), labels.numpy(), zero_shot.text.double().numpy()
    P0 = W * zero_shot.text_norms.double().numpy()
    a = np.zeros(4)
    for c in range(4):
        z = np.exp((constraint_scale or 7.0) * plain.double().numpy()[y == c] @ W)
        a[c] = (z[:, c] / z.sum(1)).mean()
    P, momentum, rng = P0.copy(), np.zeros_like(P0), np.random.default_rng(2)
    steps = 6 * 10 // 5
    for step in range(steps):
        chosen, view = rng.integers(0, 10, 5), rng.integers(0, 2, 5)
        x = v[view, chosen]
        length = np.linalg.norm(P, axis=0)
        Q = P / length
        p = np.exp(7.0 * x @ Q)
        p /= p.sum(1, keepdims=True)
        dQ = 7.0 * x.T @ (p - np.eye(4)[y[chosen]]) / 5
        grad = (dQ - Q * (Q * dQ).sum(0)) / length + 2 * a * (P - P0) / 4
        momentum = 0.9 * momentum + grad
        P -= 0.01 * lr_factor(step, steps, 0.1, "linear") * momentum
    assert np.abs(P - P0).max() > 1e-3
    np.testing.assert_allclose(found, P, rtol=1e-4, atol=1e-6)


def test_the_teacher_stays_and_seeds_decide():
    zero_shot = toy_teacher()
    before = {k: v.clone() for k, v in zero_shot.state_dict().items()}
    features, labels = toy_features(12)
    made = [
        fit_clap(zero_shot, features, labels, settings=CLAPSettings(passes=20, batch_size=8, seed=seed)).prototypes
        for seed in (0, 0, 1)
    ]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    assert all(torch.equal(v, before[k]) for k, v in zero_shot.state_dict().items())


def test_fitting_lowers_the_loss_on_its_support():
    zero_shot = toy_teacher()
    features, labels = toy_features(40)
    model = fit_clap(zero_shot, features, labels, settings=CLAPSettings(passes=100, batch_size=16, lr=0.1))
    entropy = torch.nn.functional.cross_entropy
    assert entropy(model.classify(features), labels) < entropy(zero_shot.classify(features), labels)


def test_bad_input():
    features, labels = toy_features(8)
    with pytest.raises(UnknownName, match="schedule"):
        fit_clap(toy_teacher(), features, labels, settings=CLAPSettings(schedule="step"))  # type: ignore[arg-type]
    with pytest.raises(ShapeMismatch, match="without augmentation"):
        fit_clap(toy_teacher(), features, labels, plain_features=features[:3])


def test_registry_gives_the_shape_for_saved_weights():
    model = MODELS.make(dict(type="CLAP", zero_shot=dict(type="ZeroShotTiny"), support=7, pretrained=False))
    assert model.prototypes.shape == (64, 10)
    assert {k.partition(".")[0] for k in model.state_dict()} == {
        "image",
        "text",
        "text_norms",
        "logit_scale",
        "prototypes",
        "support_ids",
        "support_labels",
    }
