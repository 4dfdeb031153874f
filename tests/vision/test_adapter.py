"""The vision adapter: normalisation between members, losses, predictions."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from limbeck.engine.adapter import Batch
from limbeck.engine.pixels import RAW, affine_between
from limbeck.engine.registry import ADAPTERS
from limbeck.errors import ConfigError
from limbeck.vision.adapter import VisionAdapter
from limbeck.vision.models import CIFARResNet, Normalization, describe

A = Normalization((0.2860,), (0.3530,))
RGB = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
RGB2 = Normalization((0.4, 0.5, 0.6), (0.2, 0.3, 0.1))


class Tiny(nn.Module):
    def __init__(self, norm: Normalization = A, size: tuple[int, int, int] = (1, 8, 8), classes: int = 4) -> None:
        super().__init__()
        describe(self, norm.mean, norm.std, size)
        self.fc = nn.Linear(size[0], classes)

    def forward(self, x):
        return self.fc(x.mean((2, 3)))


def loaded(channels: int = 1, side: int = 8, count: int = 3) -> dict:
    images = torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8)
    ids = torch.arange(count)
    return {"inputs": images, "data_samples": {"labels": ids % 4, "ids": ids + 10, "views": torch.zeros_like(ids)}}


def prepared(adapter: VisionAdapter, deploy: nn.Module, data: dict) -> Batch:
    ready = adapter.preprocessor(deploy)(data, True)
    return adapter.batch(ready["inputs"], ready["data_samples"])


def by_hand(images: torch.Tensor, norm: Normalization) -> torch.Tensor:
    mean, std = (torch.tensor(v, dtype=torch.float64).reshape(-1, 1, 1) for v in (norm.mean, norm.std))
    return (images.double() / 255 - mean) / std


def test_preprocessor_normalises_for_the_deployed_model_and_keeps_the_samples():
    data = loaded()
    batch = prepared(VisionAdapter(), Tiny(), data)
    torch.testing.assert_close(batch.inputs.double(), by_hand(data["inputs"], A), rtol=0, atol=1e-5)
    assert batch.inputs.dtype == torch.float32
    assert torch.equal(batch.targets, data["data_samples"]["labels"])
    assert torch.equal(batch.ids, data["data_samples"]["ids"])
    assert torch.equal(batch.views, data["data_samples"]["views"])


def test_preprocessor_repeats_a_grey_channel():
    data = loaded()
    batch = prepared(VisionAdapter(), Tiny(RGB, (3, 8, 8)), data)
    torch.testing.assert_close(batch.inputs.double(), by_hand(data["inputs"], RGB), rtol=0, atol=1e-5)
    assert batch.inputs.shape == (3, 3, 8, 8)


def test_preprocessor_brings_images_to_the_input_size():
    assert prepared(VisionAdapter(), Tiny(size=(1, 12, 10)), loaded()).inputs.shape == (3, 1, 12, 10)


def test_preprocessor_keeps_no_state_for_checkpoints():
    assert not VisionAdapter().preprocessor(Tiny()).state_dict()


@pytest.mark.parametrize(("source", "target"), [(RGB, RGB2), (A, RGB), (A, Normalization((0.5,), (0.5,))), (RAW, RGB)])
def test_renormalising_equals_normalising_from_scratch(source, target):
    images = torch.randint(0, 256, (2, len(source.mean), 5, 5))
    scale, bias = affine_between(source, target)
    found = by_hand(images, source) * scale + bias
    torch.testing.assert_close(found, by_hand(images, target), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("channels", "target", "size"), [(3, RGB2, (3, 8, 8)), (1, RGB, (3, 8, 8))])
def test_member_inputs_are_what_the_members_own_preprocessor_gives(channels, target, size):
    adapter, data = VisionAdapter(), loaded(channels)
    deploy = Tiny(RGB if channels == 3 else A, (channels, 8, 8))
    member = Tiny(target, size)
    batch = prepared(adapter, deploy, data)
    for _ in range(2):  # the second call takes the remembered affine
        found = adapter.member_inputs(batch, deploy, member)
        torch.testing.assert_close(found, prepared(adapter, member, data).inputs, rtol=0, atol=1e-5)


def test_member_inputs_are_the_same_tensor_where_nothing_differs():
    adapter, deploy = VisionAdapter(), Tiny()
    batch = prepared(adapter, deploy, loaded())
    assert adapter.member_inputs(batch, deploy, deploy) is batch.inputs
    assert adapter.member_inputs(batch, deploy, Tiny()) is batch.inputs


@pytest.mark.parametrize("size", [(16, 16), (4, 4)])
def test_member_inputs_interpolate_to_the_members_size(size):
    adapter, deploy, member = VisionAdapter(), Tiny(), Tiny(size=(1, *size))
    batch = prepared(adapter, deploy, loaded())
    found = adapter.member_inputs(batch, deploy, member)
    expected = F.interpolate(batch.inputs, size=size, mode="bilinear", antialias=size[0] < 8)
    torch.testing.assert_close(found, expected)


def test_gradients_flow_through_the_conversion():
    adapter, deploy, member = VisionAdapter(), Tiny(), Tiny(RGB, (3, 16, 16))
    inputs = torch.randn(2, 1, 8, 8, requires_grad=True)
    adapter.member_inputs(Batch(inputs), deploy, member).sum().backward()
    # A bilinear resize to twice the size sums each pixel four times; three channels see it.
    torch.testing.assert_close(inputs.grad, torch.full_like(inputs, 4 * sum(A.std[0] / s for s in RGB.std)))


def test_colour_images_cannot_feed_a_grey_model():
    with pytest.raises(ConfigError, match="in_chans=3"):
        prepared(VisionAdapter(), Tiny(), loaded(3))


def test_models_without_a_normalisation_are_named():
    with pytest.raises(ConfigError, match="Linear"):
        VisionAdapter().preprocessor(nn.Linear(2, 2))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_forward_gives_logits_and_cross_entropy(smoothing):
    adapter = ADAPTERS.make({"type": "VisionAdapter", "label_smoothing": smoothing})
    model = Tiny()
    batch = prepared(adapter, model, loaded())
    found = adapter.forward(model, batch.inputs, batch, with_loss=True)
    logs = found.offers["logits"].log_softmax(1)
    expected = -(1 - smoothing) * logs[torch.arange(3), batch.targets].mean() - smoothing * logs.mean()
    torch.testing.assert_close(found.losses["loss_ce"], expected)
    found.losses["loss_ce"].backward()
    assert model.fc.weight.grad is not None
    assert not adapter.forward(model, batch.inputs, batch, with_loss=False).losses


def test_predict_gives_one_dict_a_batch():
    adapter, model = VisionAdapter(), Tiny()
    batch = prepared(adapter, model, loaded())
    (found,) = adapter.predict(model, batch.inputs, batch)
    torch.testing.assert_close(found["logits"], model(batch.inputs).detach())
    assert not found["logits"].requires_grad
    assert torch.equal(found["labels"], batch.targets)
    assert torch.equal(found["ids"], batch.ids)


def test_example_fits_the_model():
    model = CIFARResNet(8, width=4, in_chans=1, input_size=(1, 28, 28))
    adapter = VisionAdapter()
    batch = adapter.example(model)
    assert batch.inputs.shape == (2, 1, 28, 28)
    assert torch.isfinite(adapter.forward(model, batch.inputs, batch, with_loss=True).losses["loss_ce"])


def test_label_smoothing_is_checked():
    with pytest.raises(ConfigError, match="label_smoothing"):
        VisionAdapter(label_smoothing=1.0)


def test_description_changes_with_whatever_changes_the_members_input():
    adapter = VisionAdapter()
    models = [Tiny(), Tiny(RGB, (3, 8, 8)), Tiny(RGB2, (3, 8, 8)), Tiny(size=(1, 9, 8))]
    found = [json.dumps(adapter.describe(a, b)) for a in models for b in models]
    assert len(set(found)) == 16
    assert found[0] == json.dumps(adapter.describe(Tiny(), Tiny()))
