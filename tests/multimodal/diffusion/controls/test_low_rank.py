"""Low-rank adapters: what they compute, that nothing is left of them, their keys, files and mistakes."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from limbeck.engine.weights import hash_state
from limbeck.errors import ConfigError, CorruptFile
from limbeck.multimodal.diffusion.controls.low_rank import LAYERS, LowRankAdapter
from limbeck.multimodal.diffusion.denoiser import Denoiser
from tests.multimodal.diffusion.toys import normal, toy

Z = normal(3, 1, 4, 4, dtype=torch.float32)
T = torch.tensor([3, 20, 50])
LABELS = torch.tensor([2, 0, 1])


def filled(model: nn.Module, seed: int = 5, **options: Any) -> LowRankAdapter:
    """An adapter that does something: B is drawn too."""
    adapter = LowRankAdapter.of(model, **options)
    adapter.load_state_dict({k: normal(*v.shape, seed=seed, dtype=v.dtype) for k, v in adapter.state_dict().items()})
    return adapter


def wide(adapter: LowRankAdapter) -> LowRankAdapter:
    """In float64."""
    down, up = ({k: v.detach().double() for k, v in part.items()} for part in (adapter.down, adapter.up))
    return LowRankAdapter(down, up, adapter.rank, adapter.alpha, adapter.layers)


def unet(seed: int = 0, **changes: Any) -> Denoiser:
    pytest.importorskip("diffusers", reason="needs the 'multimodal' extra")
    from limbeck.engine.registry import MODELS

    torch.manual_seed(seed)
    network = dict(type="UNet2DModel", block_out_channels=(8, 16), **changes)
    return MODELS.make(dict(type="Denoiser", network=network, num_classes=3, image_size=4, channels=1)).eval()


def test_a_linear_layer_gets_the_product_added() -> None:
    layer = nn.Sequential(nn.Linear(5, 7)).double()
    adapter = wide(filled(layer, rank=3, alpha=2.0))
    x, (a, b) = normal(4, 5), (adapter.down["0"], adapter.up["0"])
    assert a.shape == (3, 5)
    assert b.shape == (7, 3)
    with adapter.on(layer, 1.5):
        found = layer(x)
    torch.testing.assert_close(found, layer(x) + 2.0 / 3 * 1.5 * (x @ a.T @ b.T), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [dict(stride=2, padding=1), dict(padding=2, dilation=2, padding_mode="circular")])
def test_a_convolution_gets_two_convolutions_added(options) -> None:
    layer = nn.Sequential(nn.Conv2d(4, 6, 3, bias=False, **options)).double()
    adapter = wide(filled(layer, rank=2, alpha=1.0))
    x, (a, b) = normal(2, 4, 9, 8), (adapter.down["0"], adapter.up["0"])
    assert a.shape == (2, 4, 3, 3)
    assert b.shape == (6, 2, 1, 1)
    with adapter.on(layer, -3.0):
        found = layer(x)
    narrow = nn.Conv2d(4, 2, 3, bias=False, **options).double()
    narrow.weight.data = a.data
    torch.testing.assert_close(found, layer(x) - 1.5 * F.conv2d(narrow(x), b), rtol=1e-12, atol=1e-12)


def test_rank_is_limited_by_a_layers_width() -> None:
    adapter = filled(nn.Sequential(nn.Linear(2, 9), nn.Linear(9, 1), nn.Linear(8, 8)), rank=4)
    assert [len(a) for a in adapter.down.values()] == [2, 1, 4]
    layer = nn.Sequential(nn.Linear(2, 9))
    small = filled(layer, rank=4, alpha=6.0)
    with small.on(layer):  # α over the limited rank
        change = layer[0].weight - layer[0].parametrizations.weight.original  # type: ignore[union-attr, operator]
    torch.testing.assert_close(change, 3.0 * small.up["0"] @ small.down["0"])


def test_a_new_adapter_changes_nothing_and_is_drawn_by_its_seed() -> None:
    model = toy()
    adapter, same, other = (LowRankAdapter.of(model, rank=4, seed=s) for s in (0, 0, 1))
    before = model(Z, T, LABELS)
    with adapter.on(model, 3.0):
        assert torch.equal(model(Z, T, LABELS), before)
    assert all(not up.any() for up in adapter.up.values())
    for name, a in adapter.down.items():  # Kaiming-uniform with a = 1 is within √(3 / fan-in)
        bound = math.sqrt(3 / a[0].numel())
        assert 0.5 * bound < float(a.detach().abs().max()) <= bound
        assert torch.equal(a, same.down[name])
        assert not torch.equal(a, other.down[name])


@pytest.mark.parametrize("seed", [0, 1])  # the base, and a student
@pytest.mark.parametrize("scale", [0, 0.0, -0.0])
def test_at_scale_zero_it_is_the_model_bit_for_bit(seed, scale) -> None:
    adapter, model = filled(toy(seed=0)), toy(seed=seed)
    before = model(Z, T, LABELS)
    with adapter.on(model, scale):
        found = model(Z, T, LABELS)
    assert torch.equal(found, before)
    assert torch.equal(torch.signbit(found), torch.signbit(before))


def test_the_term_is_linear_in_the_scale() -> None:
    model = toy()
    adapter = filled(model)
    change: dict[float, Tensor] = {}
    layer: Any = model.network.first
    for scale in (1.0, 2.0, -1.0):
        with adapter.on(model, scale):
            change[scale] = (layer.parametrizations.weight[0](torch.zeros_like(layer.weight))).detach()
    assert change[1.0].abs().min() > 0
    assert torch.equal(change[2.0], 2 * change[1.0])
    assert torch.equal(change[-1.0], -change[1.0])
    with adapter.on(model, 1.0) as switch:
        switch.scale = 2.0
        assert torch.equal(layer.parametrizations.weight[0](torch.zeros_like(layer.weight)), change[2.0])


def test_nothing_is_left_behind() -> None:
    model = toy()
    adapter = filled(model)
    before, modules, weights = hash_state(model.state_dict()), list(model.modules()), dict(model.named_parameters())
    order, kinds = list(model.state_dict()), [type(m) for m in model.modules()]
    output = model(Z, T, LABELS)
    with adapter.on(model, 2.0):
        assert not torch.allclose(model(Z, T, LABELS), output)
    with pytest.raises(ConfigError, match="is out of range"), adapter.on(model, 2.0):
        model(Z, T, LABELS + 9)
    assert hash_state(model.state_dict()) == before
    assert torch.equal(model(Z, T, LABELS), output)
    assert list(model.state_dict()) == order
    assert list(model.modules()) == modules
    assert [type(m) for m in model.modules()] == kinds
    after = dict(model.named_parameters())
    assert list(after) == list(weights)  # optimisers know parameters by their order
    assert all(after[name] is value for name, value in weights.items())


def test_adapters_add_up_and_come_off_one_by_one() -> None:
    model = toy()
    one, two = filled(model, seed=5), filled(model, seed=6)
    layer: Any = model.network.first
    plain, before = layer.weight.detach().clone(), hash_state(model.state_dict())

    def change(adapter: LowRankAdapter, scale: float) -> Tensor:
        # of one input channel, so r is 1
        return scale * (adapter.up["first"].flatten(1) @ adapter.down["first"].flatten(1)).reshape(plain.shape)

    with one.on(model, 1.0):
        with two.on(model, -2.0):
            torch.testing.assert_close(layer.weight, plain + change(one, 1.0) + change(two, -2.0))
        torch.testing.assert_close(layer.weight, plain + change(one, 1.0))
    first, second = one.on(model, 1.0), two.on(model, -2.0)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)  # the one that came first goes first
    torch.testing.assert_close(layer.weight, plain + change(two, -2.0))
    second.__exit__(None, None, None)
    assert hash_state(model.state_dict()) == before


def test_gradients_reach_the_adapter_whether_or_not_the_model_is_frozen() -> None:
    model = toy().requires_grad_(False)
    adapter = filled(model)
    with adapter.on(model):
        model(Z, T, LABELS).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapter.parameters())
    assert all(p.grad is None for p in model.parameters())


def test_keys_and_shapes_are_those_of_the_student() -> None:
    base, student = unet(0), unet(1)
    adapter, own = filled(base), LowRankAdapter.of(student)
    assert {k: v.shape for k, v in adapter.state_dict().items()} == {k: v.shape for k, v in own.state_dict().items()}
    own.load_state_dict(adapter.state_dict())
    args = Z, T, LABELS
    with adapter.on(student):
        found = student(*args)
    with own.on(student):
        assert torch.equal(student(*args), found)
    assert not torch.allclose(student(*args), found)
    back = LowRankAdapter.of(base)
    back.load_state_dict(filled(student, seed=9).state_dict())
    back.check(base)


def test_the_default_layers_of_a_unet() -> None:
    names = set(LowRankAdapter.of(unet()).down)
    model: Any = unet()
    convolutions = {n for n, m in model.network.named_modules() if isinstance(m, nn.Conv2d)}
    attention = {f"mid_block.attentions.0.{n}" for n in ("to_q", "to_k", "to_v", "to_out.0")}
    assert names == convolutions | attention
    assert not any(LowRankAdapter.of(model, layers=r"time_emb").down.keys() & names)
    assert LowRankAdapter.of(unet(), layers=r"^mid_block\.attentions").down.keys() == attention


def test_a_unet_at_scale_zero_is_itself_bit_for_bit() -> None:
    model = unet()
    adapter, before, state = filled(model), model(Z, T, LABELS), hash_state(model.state_dict())
    with adapter.on(model, 0.0):
        assert torch.equal(model(Z, T, LABELS), before)
    with adapter.on(model, 1.0):
        assert not torch.allclose(model(Z, T, LABELS), before)
    assert torch.equal(model(Z, T, LABELS), before)
    assert hash_state(model.state_dict()) == state


def test_a_file_gives_the_same_adapter(tmp_path) -> None:
    model = toy()
    adapter = filled(model, rank=3, alpha=0.3, layers="first|last")
    path = tmp_path / "slider.safetensors"
    sha256 = adapter.save(path, metadata={"base": "toy"})
    found = LowRankAdapter.load(path, sha256=sha256)
    assert (found.rank, found.alpha, found.layers) == (3, 0.3, "first|last")
    assert hash_state(found.state_dict()) == hash_state(adapter.state_dict())
    with adapter.on(model, 2.0):
        expected = model(Z, T, LABELS)
    with found.on(model, 2.0):
        assert torch.equal(model(Z, T, LABELS), expected)
    with pytest.raises(CorruptFile, match="sha256 is"):
        LowRankAdapter.load(path, sha256="0" * 64)


def test_files_that_are_no_adapter(tmp_path) -> None:
    model, path = toy(), tmp_path / "a.safetensors"
    with pytest.raises(CorruptFile, match="no such weight file"):
        LowRankAdapter.load(path)
    save_file(dict(model.state_dict()), path)
    with pytest.raises(CorruptFile, match="holds no low-rank adapter"):
        LowRankAdapter.load(path)
    adapter = filled(model)
    adapter.save(path)
    state = load_file(path)
    damaged = copy.copy(adapter)
    damaged.rank = "four"  # type: ignore[assignment]
    damaged.save(path)
    with pytest.raises(CorruptFile, match="damaged"):
        LowRankAdapter.load(path)
    facts = {"format": "limbeck-low-rank-adapter", "rank": "4", "alpha": "1.0", "layers": LAYERS}
    state.pop("first.up")
    save_file(state, path, metadata=facts)
    with pytest.raises(CorruptFile, match="holds no low-rank adapter"):
        LowRankAdapter.load(path)


def test_another_architecture_is_refused_and_left_alone() -> None:
    adapter = filled(toy())
    deeper, wider = unet(), toy()
    wider.network.last = nn.Conv2d(9, 1, 3, padding=1)
    before = hash_state(deeper.state_dict())
    with pytest.raises(ConfigError, match=r"does not fit UNet2DModel: it lacks .*; has unknown first\.down"):
        adapter.on(deeper).__enter__()
    assert hash_state(deeper.state_dict()) == before
    with pytest.raises(ConfigError, match=r"other shapes for last\.down; use it on models of the architecture"):
        adapter.check(wider)
    with pytest.raises(ConfigError, match=r"state is of another adapter: it lacks .* has unknown"):
        LowRankAdapter.of(deeper).load_state_dict(adapter.state_dict())
    with pytest.raises(ConfigError, match="other shapes"):
        LowRankAdapter.of(toy(), rank=1).load_state_dict(adapter.state_dict())
    with pytest.raises(ConfigError, match=r"lacks time\.down, time\.up"):
        LowRankAdapter.of(toy()).load_state_dict(filled(toy(), layers="first|last").state_dict())


@pytest.mark.parametrize("scale", [math.nan, math.inf, "1", None, True])
def test_scales_that_are_none(scale) -> None:
    model = toy()
    with pytest.raises(ConfigError, match="scale of an adapter is a finite number"):
        filled(model).on(model, scale).__enter__()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(rank=0), "rank of an adapter is an integer of 1 or more; got 0"),
        (dict(rank=2.0), "got 2.0"),
        (dict(alpha=0.0), "alpha of an adapter is a positive number"),
        (dict(alpha=math.nan), "got nan"),
        (dict(layers="firts"), r"'firts' matches no linear or convolution layer of ToyNetwork; did you mean 'first'"),
        (dict(layers="label"), "matches no linear or convolution layer"),  # an embedding
        (dict(layers="(first"), "no regular expression"),
    ],
)
def test_bad_arguments(options, said) -> None:
    with pytest.raises(ConfigError, match=said):
        LowRankAdapter.of(toy(), **options)
