"""The nets of the CIFAR tables: published sizes, stage maps, taps before the last ReLU, and gradient everywhere."""

import copy

import pytest
import torch
from torch import nn

from limbeck.engine.registry import MODELS
from limbeck.engine.taps import check_taps, tapped
from limbeck.errors import ConfigError
from limbeck.vision._cifar_mobile import shuffle_channels
from limbeck.vision.models import CIFARNet, CIFARResNet, WideResNet

X4 = dict(widths=(32, 64, 128, 256))
CONV = dict(type="CIFARResNet", shortcut="conv")
# Parameters with 100 classes; (channels, side) of the stages and of the last map at 32 pixels.
NETS = {
    "resnet8": (dict(CONV, depth=8), 83_892, [(16, 32), (32, 16), (64, 8)], (64, 8)),
    "resnet20": (dict(CONV, depth=20), 278_324, [(16, 32), (32, 16), (64, 8)], (64, 8)),
    "resnet32": (dict(CONV, depth=32), 472_756, [(16, 32), (32, 16), (64, 8)], (64, 8)),
    "resnet56": (dict(CONV, depth=56), 861_620, [(16, 32), (32, 16), (64, 8)], (64, 8)),
    "resnet110": (dict(CONV, depth=110), 1_736_564, [(16, 32), (32, 16), (64, 8)], (64, 8)),
    "resnet8x4": (dict(CONV, depth=8, **X4), 1_233_540, [(64, 32), (128, 16), (256, 8)], (256, 8)),
    "resnet32x4": (dict(CONV, depth=32, **X4), 7_433_860, [(64, 32), (128, 16), (256, 8)], (256, 8)),
    "wrn-16-2": (dict(type="WideResNet", depth=16, widen=2), 703_284, [(32, 32), (64, 16), (128, 8)], (128, 8)),
    "wrn-40-1": (dict(type="WideResNet", depth=40, widen=1), 569_780, [(16, 32), (32, 16), (64, 8)], (64, 8)),
    "wrn-40-2": (dict(type="WideResNet", depth=40, widen=2), 2_255_156, [(32, 32), (64, 16), (128, 8)], (128, 8)),
    "vgg8": (dict(type="CIFARVGG", depth=8), 3_965_028, [(128, 16), (256, 8), (512, 4), (512, 4)], (512, 4)),
    "vgg13": (dict(type="CIFARVGG", depth=13), 9_462_180, [(128, 16), (256, 8), (512, 4), (512, 4)], (512, 4)),
    "resnet50": (dict(type="CIFARResNet50"), 23_705_252, [(256, 32), (512, 16), (1024, 8), (2048, 4)], (2048, 4)),
    "mobilenetv2": (dict(type="CIFARMobileNetV2"), 812_836, [(12, 16), (16, 8), (48, 4), (160, 2)], (1280, 2)),
    "shufflenetv1": (dict(type="CIFARShuffleNetV1"), 949_258, [(240, 16), (480, 8), (960, 4)], (960, 4)),
    "shufflenetv2": (dict(type="CIFARShuffleNetV2"), 1_355_528, [(116, 16), (232, 8), (464, 4)], (1024, 4)),
}
PUBLISHED_MILLIONS = {
    "resnet20": 0.28,
    "resnet56": 0.86,
    "resnet8x4": 1.23,
    "resnet32x4": 7.43,
    "wrn-16-2": 0.70,
    "wrn-40-1": 0.57,
    "wrn-40-2": 2.26,
    "vgg8": 3.97,
    "vgg13": 9.46,
    "resnet50": 23.71,
    "mobilenetv2": 0.81,
    "shufflenetv1": 0.95,
    "shufflenetv2": 1.36,
}


def build(name: str) -> CIFARNet:
    torch.manual_seed(0)
    return MODELS.make({**NETS[name][0], "num_classes": 100})


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def convolution(in_chs: int, out_chs: int, kernel: int, groups: int = 1) -> int:
    """Weights of a convolution without bias and of the batch norm after it."""
    return in_chs * out_chs * kernel**2 // groups + 2 * out_chs


@pytest.mark.parametrize("name", NETS)
def test_parameter_counts(name):
    assert count(build(name)) == NETS[name][1]


@pytest.mark.parametrize(("name", "millions"), PUBLISHED_MILLIONS.items())
def test_parameter_counts_are_the_published_ones(name, millions):
    assert round(NETS[name][1] / 1e6, 2) == millions


def test_parameter_counts_follow_from_the_architecture():
    """Counted layer by layer from widths and strides, not from the modules."""
    wide = 3 * 16 * 9 + 2 * 128 + 128 * 100 + 100  # stem, last batch norm, classifier of WRN-16-2
    for in_chs, out_chs in ((16, 32), (32, 64), (64, 128)):
        wide += 2 * in_chs + in_chs * out_chs * 9 + 2 * out_chs + out_chs**2 * 9 + in_chs * out_chs
        wide += 4 * out_chs + 2 * out_chs**2 * 9
    assert count(build("wrn-16-2")) == wide

    vgg = 3 * 64 * 9 + 64 + 2 * 64 + 512 * 100 + 100  # its convolutions have biases
    for in_chs, out_chs in ((64, 128), (128, 256), (256, 512), (512, 512)):
        vgg += in_chs * out_chs * 9 + 3 * out_chs
    assert count(build("vgg8")) == vgg

    shuffle = convolution(3, 24, 1) + convolution(464, 1024, 1) + 1024 * 100 + 100
    channels = 24
    for width, blocks in ((116, 4), (232, 8), (464, 4)):
        half = width // 2
        shuffle += convolution(channels, channels, 3, channels) + convolution(channels, half, 1)
        shuffle += convolution(channels, half, 1)
        shuffle += convolution(half, half, 3, half) + convolution(half, half, 1)
        shuffle += (blocks - 1) * (2 * convolution(half, half, 1) + convolution(half, half, 3, half))
        channels = width
    assert count(build("shufflenetv2")) == shuffle


@pytest.mark.parametrize("name", NETS)
def test_stage_maps_and_heads(name):
    model, (_, _, stages, last) = build(name), NETS[name]
    taps = [f"layer{i}" for i in range(1, len(stages) + 1)]
    preacts = [f"preact{i}" for i in range(1, len(stages) + 1)]
    names = [*taps, *preacts, "features", "global_pool", "fc"]
    check_taps(model, names, (), name)
    x = torch.randn(2, 3, 32, 32)
    with tapped(model.eval(), names) as found:
        logits = model(x)
    for tap, preact, (channels, side) in zip(taps, preacts, stages, strict=True):
        assert found[tap].shape == found[preact].shape == (2, channels, side, side)
        assert (found[preact] < 0).any()
    assert found["features"].shape == (2, last[0], last[1], last[1])
    assert found["global_pool"].shape == (2, model.num_features) == (2, last[0])
    torch.testing.assert_close(found["global_pool"], found["features"].flatten(2).mean(2))
    torch.testing.assert_close(logits, nn.functional.linear(found["global_pool"], model.fc.weight, model.fc.bias))
    assert torch.equal(model.forward_features(x), found["features"])
    assert torch.equal(model.forward_head(found["features"], pre_logits=True), found["global_pool"])
    assert (found["features"] >= 0).all()


@pytest.mark.parametrize("name", ["resnet8", "resnet8x4", "vgg8", "resnet50", "shufflenetv1"])
def test_a_stage_is_the_relu_of_its_preact(name):
    model = build(name).eval()
    with tapped(model, ["layer1", "preact1", "layer2", "preact2"]) as found:
        model(torch.randn(2, 3, 32, 32))
    for stage in "12":
        assert torch.equal(found[f"preact{stage}"].relu(), found[f"layer{stage}"])


def test_wide_resnet_preacts_are_the_next_batch_norm_and_stages_end_in_a_sum():
    model = build("wrn-16-2").eval()
    with tapped(model, ["layer1", "preact1", "layer3", "preact3", "features"]) as found:
        model(torch.randn(2, 3, 32, 32))
    assert (found["layer1"] < 0).any()
    torch.testing.assert_close(found["preact1"], model.layer2[0].bn1(found["layer1"]))
    torch.testing.assert_close(found["preact3"], model.bn1(found["layer3"]))
    assert torch.equal(found["preact3"].relu(), found["features"])


def test_mobilenet_stages_are_linear_and_shufflenet_v2_shuffles_after_its_preact():
    mobile, shuffle = build("mobilenetv2").eval(), build("shufflenetv2").eval()
    with tapped(mobile, ["layer2", "preact2"]) as found:
        mobile(torch.randn(2, 3, 32, 32))
    assert torch.equal(found["layer2"], found["preact2"])
    with tapped(shuffle, ["layer2", "preact2", "layer2.6"]) as found:
        shuffle(torch.randn(2, 3, 32, 32))
    assert torch.equal(found["layer2"], shuffle_channels(found["preact2"].relu(), 2))
    # The half that passes is the first half of the block's input.
    assert torch.equal(found["preact2"][:, :116], found["layer2.6"][:, :116])


def test_shuffle_takes_a_channel_of_each_group_in_turn():
    x = torch.arange(6.0).reshape(1, 6, 1, 1)
    assert shuffle_channels(x, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5]
    assert shuffle_channels(x, 3).flatten().tolist() == [0, 2, 4, 1, 3, 5]
    assert torch.equal(shuffle_channels(shuffle_channels(x, 2), 3), x)


@pytest.mark.parametrize("name", NETS)
def test_gradient_reaches_every_parameter(name):
    model = build(name)
    nn.functional.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.arange(4)).backward()
    unreached = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.count_nonzero()]
    assert unreached == []


@pytest.mark.parametrize("name", NETS)
def test_second_names_of_taps_add_nothing_to_state_and_survive_a_copy(name):
    model = build(name)
    assert not [key for key in model.state_dict() if "preact" in key or "features" in key]
    twin = copy.deepcopy(model).eval()
    with tapped(twin, ["preact1"]) as found:
        twin(torch.randn(1, 3, 32, 32))
    assert "preact1" in found


def test_a_grown_stage_names_its_preact_again():
    model = CIFARResNet(8, width=4).eval()
    model.layer1.append(copy.deepcopy(model.layer1[0]))
    model.name_preacts()
    with tapped(model, ["layer1", "preact1"]) as found:
        model(torch.randn(1, 3, 8, 8))
    assert torch.equal(found["preact1"].relu(), found["layer1"])


@pytest.mark.parametrize("name", ["vgg8", "mobilenetv2", "shufflenetv1", "shufflenetv2", "wrn-40-1", "resnet50"])
def test_grey_images_and_other_class_counts(name):
    model = MODELS.make({**NETS[name][0], "in_chans": 1, "num_classes": 7, "mean": 0.3, "input_size": (1, 32, 32)})
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 7)
    assert (model.normalization.mean, model.input_size) == ((0.3,), (1, 32, 32))


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (dict(type="WideResNet", depth=20), "6n \\+ 4"),
        (dict(type="WideResNet", depth=4), "6n \\+ 4"),
        (dict(type="CIFARVGG", depth=9), "one of \\[8"),
        (dict(type="CIFARResNet", shortcut="B"), "'pad' or 'conv'"),
        (dict(type="CIFARResNet", widths=(16, 32, 64)), "three stages"),
        (dict(type="CIFARResNet50", input_size=(1, 32, 32)), "in_chans"),
    ],
)
def test_errors_name_the_value(config, text):
    with pytest.raises(ConfigError, match=text):
        MODELS.make(config)


def test_a_net_without_a_stem_says_so():
    model = CIFARNet(10, 3, 0.5, 0.5, None)
    with pytest.raises(NotImplementedError, match="no stem"):
        model.forward_features(torch.zeros(1, 3, 8, 8))


def test_shortcut_conv_projects_and_pad_has_no_parameters():
    assert count(CIFARResNet(20, shortcut="conv")) - count(CIFARResNet(20)) == 16 * 32 + 32 * 64 + 2 * 32 + 2 * 64
    assert [type(m) for m in (CIFARResNet(8, shortcut="conv").layer1[0].downsample,)] == [nn.Identity]
    assert WideResNet(10, widen=1).layer1[0].project is None


def test_no_classes_leave_the_pooled_feature():
    model = build("resnet8x4").eval()
    bare = MODELS.make({**NETS["resnet8x4"][0], "num_classes": 0}).eval()
    bare.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("fc.")})  # there is no fc
    image = torch.randn(2, 3, 32, 32)
    assert bare(image).shape == (2, 256)
    assert torch.equal(model.fc(bare(image)), model(image))
