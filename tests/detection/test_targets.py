"""Padded batches of the detection adapter: what padding and crowds leave unchanged, and input that is refused."""

from __future__ import annotations

from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("mmdet", reason="the detection extra is not installed")

from limbeck.detection.adapter import DetectionAdapter, zero_padding
from limbeck.detection.targets import DetectionTargets
from limbeck.engine.cost import evaluating
from limbeck.engine.registry import MODELS
from limbeck.errors import ConfigError, ShapeMismatch
from tests.detection.networks import BOXES, SIZE, K, base, batch, by_level, losses_of, network, raw, theirs

# --- padding and normalisation ---


@pytest.mark.parametrize("head", ["gfl", "faster_rcnn"])
def test_batch_of_two_sizes_is_that_of_mmdetections_preprocessor(head):
    """Pixels, the shapes that heads read, losses and predictions, for images that are padded to multiples of 32."""
    from mmdet.models import DetDataPreprocessor

    model: Any = network(head, mean=0.5, std=0.25)
    given = raw()
    ours = DetectionAdapter().preprocessor(model)(given, True)
    samples = theirs()
    lists = dict(inputs=[given["inputs"][0], given["inputs"][1, :, :, :80]], data_samples=samples)
    ready = DetDataPreprocessor(mean=[127.5] * 3, std=[63.75] * 3, pad_size_divisor=32)(lists, True)
    torch.testing.assert_close(ours["inputs"], ready["inputs"], rtol=0, atol=1e-6)
    assert not ours["inputs"][1, :, :, 80:].any()
    mine = DetectionAdapter().batch(ready["inputs"], ours["data_samples"])
    torch.manual_seed(5)
    want = by_level(model.loss(ready["inputs"], ready["data_samples"]))
    assert {k.partition(".")[2]: v for k, v in by_level(losses_of(model, mine)).items()} == want
    with evaluating(model), torch.no_grad():
        (found,) = DetectionAdapter().predict(model, ready["inputs"], mine)
        other = model.predict(ready["inputs"], ready["data_samples"], rescale=False)
    for row, one in enumerate(other):
        assert torch.equal(found["boxes"][row, : len(one.pred_instances)], one.pred_instances.bboxes)


def test_what_the_padding_holds_changes_nothing():
    model = network().eval()
    adapter, given = DetectionAdapter(), raw()
    other = deepcopy(given)
    other["inputs"][1, :, :, 80:] = 255
    found = []
    for data in (given, other):
        ready = adapter.preprocessor(model)(data, False)
        found += adapter.predict(model, ready["inputs"], adapter.batch(ready["inputs"], ready["data_samples"]))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_anchors_beyond_the_padding_of_an_image_alone_are_not_trained():
    """An image of 64 × 32 in a batch of 64 × 96: its right two thirds get no gradient, with a divisor of 96 they do."""
    model: Any = network("retinanet")
    small = dict(
        boxes=torch.tensor([BOXES[0], [[2.0, 2, 30, 30], [0, 0, 0, 0]]]), shapes=torch.tensor([[64, 96], [64, 32]])
    )
    for divisor, trained in ((32, False), (96, True)):
        given = batch(model, **small)
        forward = DetectionAdapter(pad_size_divisor=divisor).forward(model, given.inputs, given, with_loss=True)
        logits = forward.offers["cls_logits"]()[0]
        (gradient,) = torch.autograd.grad(forward.losses["bbox_head.loss_cls"], logits)
        assert bool(gradient[1, :, :, 4:].any()) is trained
        assert gradient[1, :, :, :4].any()
        assert gradient[0].any()


def test_zero_padding_keeps_images_that_fill_the_batch():
    images = torch.ones(2, 3, 4, 6)
    assert zero_padding(images, torch.tensor([[4, 6], [4, 6]])) is images
    found = zero_padding(images, torch.tensor([[4, 6], [3, 2]]))
    assert torch.equal(found[0], images[0])
    want = np.zeros((3, 4, 6))
    want[:, :3, :2] = 1
    assert np.array_equal(found[1], want)
    assert torch.equal(images, torch.ones(2, 3, 4, 6))


def test_each_member_gets_its_own_normalisation_and_padding_of_zero():
    a, b = network(), network(mean=0.5, std=0.25)
    adapter, pixels = DetectionAdapter(), raw()["inputs"]
    given = batch(a)
    found = adapter.member_inputs(given, a, b)
    torch.testing.assert_close(found[:, :, :, :80], ((pixels / 255.0 - 0.5) / 0.25)[:, :, :, :80], rtol=0, atol=1e-5)
    assert not found[1, :, :, 80:].any()
    torch.testing.assert_close(found, adapter.preprocessor(b)(raw(), False)["inputs"], rtol=0, atol=1e-5)
    assert adapter.member_inputs(given, a, network()) is given.inputs


def test_images_keep_their_size_whatever_the_model_was_built_for():
    ready = DetectionAdapter().preprocessor(network())(
        dict(inputs=torch.zeros(1, 3, 32, 160, dtype=torch.uint8)), False
    )
    assert ready["inputs"].shape == (1, 3, 32, 160)


# --- targets ---


def test_targets_of_an_image_are_without_padding_and_crowds():
    crowd = torch.tensor([[False, True], [False, False]])
    targets = batch(network(), crowd=crowd).targets
    assert isinstance(targets, DetectionTargets)
    assert len(targets) == 2
    assert targets.input_shape == SIZE
    assert targets.of(0)[0].tolist() == [BOXES[0][0]]
    assert targets.crowds(0)[1].tolist() == [2]
    assert targets.of(1)[1].tolist() == [1]
    assert targets.crowds(1)[0].shape == (0, 4)
    assert batch(network()).targets.of(0)[0].tolist() == BOXES[0]
    assert batch(network()).targets.crowds(0)[0].shape == (0, 4)


# --- bad input ---


@pytest.mark.parametrize(
    ("box", "said"),
    [
        ([50.0, 10, 50, 60], r"sample 7 has box \[50.0, 10.0, 50.0, 60.0\], which breaks 0 ≤ x1 < x2 ≤ 96"),
        ([50.0, 10, 97, 60], "sample 7"),
        ([-1.0, 10, 50, 60], "sample 7"),
        ([5.0, 60, 50, 60], "drop those without area"),
        ([5.0, float("nan"), 50, 60], "sample 7"),
    ],
)
def test_box_outside_its_image_is_refused(box, said):
    boxes = raw()["data_samples"]["boxes"]
    boxes[0, 1] = torch.tensor(box)
    with pytest.raises(ConfigError, match=said):
        batch(network(), boxes=boxes)


def test_box_in_the_padding_is_refused():
    boxes = raw()["data_samples"]["boxes"]
    boxes[1, 0, 2] = 90.0
    with pytest.raises(ConfigError, match=r"sample 9 .* ≤ 80"):
        batch(network(), boxes=boxes)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        (dict(labels=torch.zeros(2, 3, dtype=torch.long)), ShapeMismatch, r"\(2, 2, 4\), \(2, 3\)"),
        (dict(boxes=torch.zeros(2, 2, 5)), ShapeMismatch, r"\(2, 2, 5\)"),
        (dict(crowd=torch.zeros(2, 1, dtype=torch.bool)), ShapeMismatch, r"\(2, 1\)"),
        (dict(shapes=torch.tensor([[64, 96]])), ShapeMismatch, "2 images"),
        (dict(shapes=torch.tensor([[64, 96], [64, 97]])), ConfigError, r"sample 9 is said to be \[64, 97\]"),
        (dict(labels=None), ConfigError, "boxes without labels"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes, error, said):
    model = network()
    with pytest.raises(error, match=said):
        batch(model, **changes)


def test_label_that_is_no_class_and_batch_without_boxes_are_refused():
    model = network()
    with pytest.raises(ConfigError, match="sample 9 has label 3, and GFL has 3 classes"):
        losses_of(model, batch(model, labels=torch.tensor([[0, 2], [3, -1]])))
    with pytest.raises(ConfigError, match="GFL cannot be trained on a batch without boxes"):
        losses_of(model, batch(model, boxes=None, labels=None))


def test_model_of_other_classes_and_bad_divisor_are_refused():
    data = SimpleNamespace(name="toy", classes=["a"] * 4)
    with pytest.raises(ConfigError, match="GFL has 3 classes and data set toy has 4"):
        DetectionAdapter().check_data(network(), data)
    with pytest.raises(ConfigError, match="pad_size_divisor is 1 or more"):
        DetectionAdapter(pad_size_divisor=0)


def test_mask_head_is_a_teachers_only():
    config = base("faster_rcnn")
    mask = dict(type="FCNMaskHead", num_convs=1, in_channels=8, conv_out_channels=8, num_classes=K)
    config["roi_head"]["mask_head"] = mask
    config["roi_head"]["mask_roi_extractor"] = deepcopy(config["roi_head"]["bbox_roi_extractor"])
    config["train_cfg"]["rcnn"]["mask_size"] = 14
    config["test_cfg"]["rcnn"]["mask_thr_binary"] = 0.5
    model = MODELS.make(dict(type="mmdet", config=config, num_classes=K, input_size=(3, *SIZE))).eval()
    with pytest.raises(ConfigError, match="FasterRCNN has a mask head"):
        losses_of(model, batch(model))
    (found,) = DetectionAdapter().predict(model, batch(model).inputs, batch(model))
    assert found["boxes"].shape[1] > 1
