"""Students: what two heads answer, where they start, and which backbones they take."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from limbeck.engine.evaluate import without_pretrained
from limbeck.engine.registry import MODELS
from limbeck.errors import ConfigError
from limbeck.multimodal.vlm.students import DualHead
from tests.multimodal.vlm.toys import LinearFeatures, distiller, softmax, student


def make(**changes) -> DualHead:
    torch.manual_seed(0)
    return MODELS.make({**student(), **changes})


def test_two_heads_answer_with_the_log_of_their_mix():
    model, x = make(alpha=0.3, beta=2.0), torch.randn(5, 1, 8, 8)
    features = model.features(x).double()
    ce, kd = (
        (features @ h.weight.double().T + h.bias.double()).detach().numpy() for h in (model.ce_head, model.kd_head)
    )
    expected = np.log(0.3 * softmax(ce) + 0.7 * softmax(kd / 2.0))
    np.testing.assert_allclose(model(x).detach().numpy(), expected, rtol=1e-5, atol=1e-6)
    model.set_knobs(1.0, 4.0)
    torch.testing.assert_close(model(x), model.ce_head(model.features(x)).log_softmax(1))
    assert (model.normalization, model.input_size) == (model.backbone.normalization, (1, 8, 8))


def test_one_head_answers_with_its_logits_and_has_no_knobs():
    model, x = make(kd_head=None), torch.randn(5, 1, 8, 8)
    assert torch.equal(model(x), model.ce_head(model.features(x)))
    assert torch.equal(model.kd_logits(model.features(x)), model(x))
    assert set(model.state_dict()) == {f"{m}.{p}" for m in ("backbone.fc", "ce_head") for p in ("weight", "bias")}
    with pytest.raises(ConfigError, match="nothing to mix"):
        model.set_knobs(0.5, 1.0)


def test_knobs_travel_in_the_weights():
    model, other = make(), make()
    model.set_knobs(0.35, 1.5)
    other.load_state_dict(model.state_dict())
    assert (other.alpha.item(), other.beta.item()) == (pytest.approx(0.35), 1.5)
    assert not [name for name, _ in model.named_parameters() if name in ("alpha", "beta")]
    for alpha, beta in ((-0.1, 1.0), (0.5, 0.0), (0.5, float("inf"))):
        with pytest.raises(ConfigError, match="alpha in"):
            model.set_knobs(alpha, beta)


def test_cosine_head_reads_features_of_unit_length_and_scales_its_bias_too():
    model = make(kd_head="cosine")
    features = torch.randn(4, 6).double()
    head = model.double().kd_head
    unit = features.numpy() / np.linalg.norm(features.numpy(), axis=1, keepdims=True)
    expected = 100.0 * (unit @ head.weight.detach().numpy().T + head.bias.detach().numpy())
    np.testing.assert_allclose(model.kd_logits(features).detach().numpy(), expected, rtol=1e-10)
    torch.testing.assert_close(model.kd_logits(3.0 * features), model.kd_logits(features))


def test_one_seed_gives_one_and_two_heads_the_same_backbone_and_ce_head():
    one, two = (distiller(head).members["student"].state_dict() for head in (None, "linear"))
    assert set(one) < set(two)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(two["kd_head.weight"], two["ce_head.weight"])


@pytest.mark.parametrize("init", ["text", "text_raw"])
def test_heads_start_from_the_backbones_text_classifier(init, monkeypatch):
    text = torch.arange(18.0).reshape(3, 6)
    monkeypatch.setattr(LinearFeatures, "text_classifier", lambda self, raw: text + raw, raising=False)
    model = make(kd_head="cosine", init=init)
    for head in (model.ce_head, model.kd_head):
        assert torch.equal(head.weight, text + (init == "text_raw"))
        assert not head.bias.any()
    monkeypatch.setattr(LinearFeatures, "text_classifier", lambda self, raw: text[:2], raising=False)
    with pytest.raises(ConfigError, match=r"text classifier is \(2, 6\)"):
        make(init=init)
    monkeypatch.delattr(LinearFeatures, "text_classifier")
    with pytest.raises(ConfigError, match="LinearFeatures lacks"):
        make(init=init)


@pytest.mark.parametrize(
    ("backbone", "width"),
    [
        (dict(type="SmallCNN"), 128),
        (dict(type="CIFARResNet", depth=8, width=4, in_chans=1), 16),
        (dict(type="timm", model="resnet18", in_chans=1, input_size=(1, 32, 32)), 512),
    ],
)
def test_backbones_lose_their_own_classifier(backbone, width):
    model = make(backbone=backbone).eval()
    assert model.num_features == width
    size = model.input_size
    assert model(torch.zeros(2, *size)).shape == (2, 3)
    heads = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert len(heads) == 2  # the two of its own


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(backbone=dict(type="CIFARResNet", num_classes=10)), "leave out num_classes=10"),
        (dict(kd_head="mlp"), "got 'mlp' and 'random'"),
        (dict(init="image"), "got 'linear' and 'image'"),
        (dict(num_classes=1), "2 or more; got 1"),
        (dict(alpha=2.0), "alpha in"),
    ],
)
def test_what_cannot_be_built_is_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        make(**changes)


def test_a_backbones_weights_are_not_fetched_where_others_come_next():
    config = {**student(), "backbone": dict(type="timm", model="resnet18", pretrained=True)}
    found = without_pretrained(config)
    assert found == {**config, "backbone": {**config["backbone"], "pretrained": False}}
    assert without_pretrained(student()) == student()


@pytest.mark.parametrize("kd_head", [None, "cosine"])
def test_students_are_exported_whole(kd_head):
    model, x = make(kd_head=kd_head).eval(), torch.randn(3, 1, 8, 8)
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), model(x))


def test_a_backbone_that_gives_maps_is_refused(monkeypatch):
    monkeypatch.setattr(LinearFeatures, "forward", lambda self, x: x)
    with pytest.raises(ConfigError, match=r"features \(B, d\); LinearFeatures gives \(2, 1, 8, 8\)"):
        make()


def test_small_cnn_is_the_specs_student():
    model = make(backbone=dict(type="SmallCNN"), num_classes=10)
    assert model.features(torch.zeros(2, 1, 8, 8)).shape == (2, 128)
    # 1·16·9 + 16·32·9 of the convolutions, 2 · (16 + 32) of the norms, two heads of 128 · 10 + 10.
    assert sum(p.numel() for p in model.parameters()) == 144 + 4608 + 96 + 2 * 1290
