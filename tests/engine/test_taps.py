"""Taps: the very tensors, for one forward, with nothing left behind."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from limbeck.engine.taps import check_taps, split_tap, tapped
from limbeck.errors import ConfigError, TapError
from tests.engine.toys import ToyNet

IMAGE = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))


class Outputs(nn.Module):
    """Gives whatever it is told to."""

    def __init__(self, make) -> None:
        super().__init__()
        self.make = make

    def forward(self, x):
        return self.make(x)


class Net(nn.Module):
    """A nested module, one shared by two names, and modules with outputs of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh()))
        self.shared = nn.Linear(4, 4)
        self.again = self.shared
        self.pair = Outputs(lambda x: (x + 1, x + 2))
        self.listed = Outputs(lambda x: [x * 2, x * 3])
        self.single = Outputs(lambda x: (x * 5,))
        self.named = Outputs(lambda x: {"a": x})
        self.skipped = nn.Linear(4, 4)

    def forward(self, x):
        x = self.stem(x)
        self.pair(x), self.listed(x), self.single(x), self.named(x)
        return self.again(self.shared(x))


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_tap_is_the_very_tensor():
    model, seen = ToyNet(), []
    model.layer2.register_forward_hook(lambda m, args, output: seen.append(output))
    with tapped(model, ["layer2", "fc"]) as store:
        logits = model(IMAGE)
    assert store["layer2"] is seen[0]
    assert store["fc"] is logits


def test_tap_carries_the_graph_into_the_weights():
    model = ToyNet()
    with tapped(model, ["layer2"]) as store:
        model(IMAGE)
    store["layer2"].sum().backward()
    assert model.layer1.weight.grad.abs().sum() > 0
    assert model.fc.weight.grad is None


def test_tap_under_no_grad_has_no_graph():
    model = ToyNet()
    with torch.no_grad(), tapped(model, ["layer2"]) as store:
        model(IMAGE)
    assert store["layer2"].grad_fn is None


def test_tap_under_inference_mode_can_be_read():
    model = ToyNet()
    with torch.inference_mode(), tapped(model, ["layer2"]) as store:
        model(IMAGE)
    assert store["layer2"].shape == (2, 4, 3, 3)


def test_hooks_are_gone_after_the_block():
    model = ToyNet()
    with tapped(model, ["layer1", "layer2", "fc"]):
        assert hooks(model) == 3
        model(IMAGE)
    assert hooks(model) == 0


def test_hooks_are_gone_after_an_exception_in_the_block():
    model = ToyNet()
    with pytest.raises(RuntimeError, match="stop"), tapped(model, ["layer1", "fc"]):
        raise RuntimeError("stop")
    assert hooks(model) == 0


def test_hooks_are_gone_after_an_exception_in_the_forward():
    model = ToyNet()
    with pytest.raises(RuntimeError), tapped(model, ["layer1", "fc"]):
        model(torch.zeros(2, 7, 6, 6))
    assert hooks(model) == 0


def test_hooks_are_gone_after_a_tap_error_in_a_hook():
    model = Net()
    with pytest.raises(TapError), tapped(model, ["pair[2]", "stem"]):
        model(torch.zeros(1, 4))
    assert hooks(model) == 0


def test_other_hooks_stay():
    model = ToyNet()
    model.fc.register_forward_hook(lambda m, args, output: None)
    with tapped(model, ["fc"]):
        model(IMAGE)
    assert hooks(model) == 1


def test_blocks_nest_without_disturbing_each_other():
    model = ToyNet()
    with tapped(model, ["fc"]) as outer:
        first = model(IMAGE)
        with tapped(model, ["fc"]) as inner:
            second = model(IMAGE * 2)
        assert hooks(model) == 1
    assert inner["fc"] is second
    with pytest.raises(TapError, match="2 times"):  # its block holds two forwards
        outer["fc"]
    assert first is not second


def test_output_of_the_model_is_not_changed():
    model = ToyNet().eval()
    with tapped(model, ["layer1", "layer2", "fc"]):
        inside = model(IMAGE)
    assert torch.equal(inside, model(IMAGE))


def test_nothing_keeps_tensors_or_graph_alive():
    class Saved:
        def __init__(self, tensor) -> None:
            self.tensor = tensor

    graph = weakref.WeakSet()

    def pack(tensor):
        saved = Saved(tensor.detach())  # else what a node saves of its own output is a cycle
        graph.add(saved)
        return saved

    model = ToyNet()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor), tapped(model, ["layer2"]) as store:
        logits = model(IMAGE)
    tensor = weakref.ref(store["layer2"])
    assert len(graph) > 0
    gc.disable()  # reference counts alone must do: no cycles
    try:
        del store, logits
        assert tensor() is None
        assert len(graph) == 0
    finally:
        gc.enable()


def test_nothing_is_kept_after_an_exception():
    model, kept = ToyNet(), []
    with pytest.raises(ZeroDivisionError), tapped(model, ["layer2"]) as store:  # noqa: PT012 - the block is the subject
        model(IMAGE)
        kept.append(weakref.ref(store["layer2"]))
        1 / 0  # noqa: B018
    del store
    gc.collect()
    assert kept[0]() is None


def test_nested_names_are_tapped():
    model, x = Net(), torch.randn(1, 4)
    with tapped(model, ["stem.1.0", "stem.1"]) as store:
        model(x)
    assert torch.equal(store["stem.1.0"], model.stem[1][0](model.stem[0](x)))
    assert torch.equal(store["stem.1"], store["stem.1.0"].tanh())


def test_shared_module_is_found_by_either_name_and_is_ambiguous():
    model, x = Net(), torch.randn(1, 4)
    check_taps(model, ["shared", "again"], (), "teacher")
    with tapped(model, ["shared", "again"]) as store:
        model(x)
    for tap in ("shared", "again"):
        with pytest.raises(TapError, match=f"'{tap}' was called 2 times in one forward"):
            store[tap]


@pytest.mark.parametrize(
    ("tap", "factor", "shift"),
    [("pair[0]", 1, 1), ("pair[1]", 1, 2), ("listed[0]", 2, 0), ("listed[1]", 3, 0), ("single", 5, 0)],
)
def test_index_into_tuple_and_list_outputs(tap, factor, shift):
    model, x = Net(), torch.randn(1, 4)
    with tapped(model, [tap]) as store:
        model(x)
    assert torch.equal(store[tap], model.stem(x) * factor + shift)


def test_several_indices_of_one_module_share_one_hook():
    model = Net()
    with tapped(model, ["pair[0]", "pair[1]"]) as store:
        assert hooks(model) == 1
        model(torch.zeros(1, 4))
    assert torch.allclose(store["pair[1]"] - store["pair[0]"], torch.ones(1, 4))


@pytest.mark.parametrize("tap", ["pair[2]", "stem[0]", "named[0]"])
def test_index_that_is_not_there_is_named(tap):
    model = Net()
    with pytest.raises(TapError, match=rf"tap '{tap[:-3]}\[\d\]'.*no index"), tapped(model, [tap]):
        model(torch.zeros(1, 4))


def test_tuple_output_without_index_says_how_to_write_it():
    model = Net()
    with tapped(model, ["pair"]) as store:
        model(torch.zeros(1, 4))
    with pytest.raises(TapError, match=r"'pair' gives a tuple of 2, not a tensor; write pair\[0\]"):
        store["pair"]


def test_dict_output_is_no_tensor():
    model = Net()
    with tapped(model, ["named"]) as store:
        model(torch.zeros(1, 4))
    with pytest.raises(TapError, match="'named' gives a dict"):
        store["named"]


def test_module_that_the_forward_skips_is_named():
    model = Net()
    with tapped(model, ["skipped"]) as store:
        model(torch.zeros(1, 4))
    assert "skipped" not in store
    with pytest.raises(TapError, match="'skipped' was not reached"):
        store["skipped"]


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("tap", ["layer1", "norm"])
@pytest.mark.parametrize("grad", [True, False])
def test_tap_that_a_later_layer_overwrites_is_an_error(norm, tap, grad):
    model = ToyNet(norm=norm)
    with torch.set_grad_enabled(grad), tapped(model, [tap, "act"]) as store:
        model(IMAGE)
    assert store["act"].min() >= 0
    if norm and tap == "layer1":  # batch norm makes a tensor of its own
        assert store[tap].min() < 0
    else:
        with pytest.raises(TapError, match=f"'{tap}' was overwritten in place"):
            store[tap]


def test_unknown_tap_lists_near_names_and_the_member():
    with pytest.raises(TapError, match=r"member 'student' has no tap 'layer3'; did you mean 'layer[12]'"):
        check_taps(ToyNet(), ["layer1", "layer3"], ("logits",), "student")


def test_unknown_tap_is_a_config_error():
    assert issubclass(TapError, ConfigError)


def test_unknown_tap_may_be_near_an_offer():
    with pytest.raises(TapError, match="'logits'"):
        check_taps(ToyNet(), ["logit"], ("logits",), "student")


@pytest.mark.parametrize("tap", ["", "[0]", "layer1.weight", "layer1.", "layer1[-1]", "layer1[x]", "layer1[0][0]"])
def test_what_is_no_tap_is_refused(tap):
    with pytest.raises(TapError):
        check_taps(ToyNet(), [tap], ("logits",), "student")


def test_offered_and_nested_taps_pass():
    check_taps(Net(), ["logits", "stem.1.0", "pair[1]"], ("logits",), "teacher")


def test_tap_that_names_no_module_is_left_to_the_caller():
    model = ToyNet()
    with tapped(model, ["logits", "fc"]) as store:
        logits = model(IMAGE)
    assert "logits" not in store
    store.put("logits", logits)
    assert store["logits"] is logits


@pytest.mark.parametrize(
    ("tap", "parts"),
    [("neck", ("neck", None)), ("neck[1]", ("neck", 1)), ("a.b.0[12]", ("a.b.0", 12)), ("a[-1]", ("a[-1]", None))],
)
def test_split_tap(tap, parts):
    assert split_tap(tap) == parts
