"""Several optimisers under AMP: one scaler, one update of its scale a step, and the steps of float32.

A CPU scaler stands in for the GPU's: the same class with another device.
"""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.optim.optimizer import amp_optimizer_wrapper
from torch import Tensor, nn

from limbeck.engine import runner
from limbeck.engine.config import RecipeConfig
from limbeck.engine.distiller import Distiller
from limbeck.engine.runner import JointOptimWrapper, build_optim_wrapper
from limbeck.errors import DeviceError
from tests.engine.test_distiller import make
from tests.engine.toys import ToyBridge, ToyData

SGD = dict(type="SGD", lr=0.1, momentum=0.9)


class Own(ToyBridge):
    optimizer = dict(type="Adam", lr=0.01)


class Another(Own):
    optimizer = dict(type="SGD", lr=0.05)


@pytest.fixture
def amp(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this machine pass for one that has half precision."""
    monkeypatch.setattr(runner, "is_cuda_available", lambda: True)
    monkeypatch.setattr(amp_optimizer_wrapper, "is_cuda_available", lambda: True)
    monkeypatch.setattr(amp_optimizer_wrapper, "GradScaler", partial(torch.amp.GradScaler, "cpu"))


def built(folder: Path, precision: str, **recipe: Any) -> tuple[Distiller, Any]:
    model = make(folder, [dict(type=Own), dict(type=Another, weight=0.5)])
    options: dict[str, Any] = dict(epochs=1, optimizer=dict(SGD), precision=precision, **recipe)
    return model, build_optim_wrapper(model, model.links, RecipeConfig(**options))


def loss_of(model: Distiller, step: int = 0) -> Tensor:
    data = ToyData("train").__getitems__(list(range(12 * step, 12 * step + 12)))
    return torch.stack(list(model(**data, mode="loss").values())).sum()


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def scaler_of(wrapper: Any) -> torch.amp.GradScaler:
    (scaler,) = {id(w.loss_scaler): w.loss_scaler for w in wrapper.values()}.values()
    return scaler


def test_optimisers_share_one_scaler(tmp_path, amp):
    _, wrapper = built(tmp_path, "float16")
    assert isinstance(wrapper, JointOptimWrapper)
    assert len(wrapper) == 3
    assert scaler_of(wrapper).is_enabled()


@pytest.mark.parametrize("clip", [None, dict(max_norm=0.05), dict(type="value", clip_value=1e-3)])
@pytest.mark.parametrize("growth", [1, 2000])
def test_scaled_steps_are_those_of_float32(tmp_path, amp, clip, growth):
    """With growth at every step, an update between two optimisers would halve the second one's gradients."""
    (exact, plain), (scaled, wrapper) = (built(tmp_path, p, clip_grad=clip) for p in ("float32", "float16"))
    scaler_of(wrapper).set_growth_interval(growth)
    before = state_of(exact)
    for step in range(3):
        plain.update_params(loss_of(exact, step))
        wrapper.update_params(loss_of(scaled, step))
    found = state_of(scaled)
    for key, value in state_of(exact).items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-7)
        assert torch.equal(value, before[key]) == key.endswith("drop") or not torch.equal(value, before[key])


def test_scale_is_updated_once_a_step(tmp_path, amp):
    model, wrapper = built(tmp_path, "float16")
    scaler = scaler_of(wrapper)
    scaler.set_growth_interval(2)
    found = []
    for _ in range(4):
        wrapper.update_params(loss_of(model))
        found.append(scaler.get_scale() / 2.0**16)
    assert found == [1.0, 2.0, 2.0, 4.0]


def test_gradient_that_overflows_skips_its_own_optimiser_and_halves_the_scale(tmp_path, amp):
    model, wrapper = built(tmp_path, "float16")
    wrapper.update_params(loss_of(model))
    before, scale = state_of(model), scaler_of(wrapper).get_scale()
    handle = model.links[0].bridge.weight.register_hook(lambda grad: grad * torch.inf)
    wrapper.update_params(loss_of(model))
    handle.remove()
    after = state_of(model)
    for key in ("links.0.bridge.weight", "links.0.bridge.bias"):
        assert torch.equal(after[key], before[key])
    for key in ("links.1.bridge.weight", "members.student.fc.weight"):
        assert torch.isfinite(after[key]).all()
        assert not torch.equal(after[key], before[key])
    assert scaler_of(wrapper).get_scale() == scale / 2


def test_link_that_its_schedule_leaves_out_is_not_stepped(tmp_path, amp):
    late = dict(type="warmup", end=0.5)
    model = make(tmp_path, [dict(type=Own, schedule=late), dict(type=Another)])
    recipe = RecipeConfig(epochs=1, optimizer=dict(SGD), precision="float16")
    wrapper = build_optim_wrapper(model, model.links, recipe)
    for progress in (0.0, 0.25):
        model.progress = progress
        before = state_of(model)
        wrapper.update_params(loss_of(model))
        after = state_of(model)
        moved = {k for k in after if not torch.equal(after[k], before[k])}
        assert ("links.0.bridge.weight" in moved) == (progress > 0)
        assert {"links.1.bridge.weight", "members.student.fc.weight"} <= moved
        assert all(p.grad is None for p in model.parameters())


def test_resumed_optimisers_share_the_saved_scale(tmp_path, amp):
    model, wrapper = built(tmp_path, "float16")
    scaler_of(wrapper).set_growth_interval(1)
    for step in range(2):
        wrapper.update_params(loss_of(model, step))
    twin, again = built(tmp_path, "float16")
    twin.load_state_dict(model.state_dict())
    again.load_state_dict(deepcopy(wrapper.state_dict()))
    assert scaler_of(again).state_dict() == scaler_of(wrapper).state_dict()
    for m, w in ((model, wrapper), (twin, again)):
        w.update_params(loss_of(m, 2))
    assert scaler_of(again).get_scale() == scaler_of(wrapper).get_scale() == 2.0**19
    mine, theirs = state_of(model), state_of(twin)
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_train_step_under_autocast_moves_every_group(tmp_path, amp, monkeypatch):
    """Through mmengine's train_step, in bfloat16, which is what autocast has on a CPU."""
    monkeypatch.setattr("mmengine.runner.amp.get_device", lambda: "cpu")
    model, wrapper = built(tmp_path, "bfloat16")
    dtypes = []
    model.deploy.fc.register_forward_hook(lambda _m, _i, output: dtypes.append(output.dtype))
    before = state_of(model)
    model.train_step(ToyData("train").__getitems__(list(range(12))), wrapper)
    after = state_of(model)
    assert set(dtypes) == {torch.bfloat16}
    for key in ("links.0.bridge.weight", "links.1.bridge.weight", "members.student.fc.weight"):
        assert not torch.equal(after[key], before[key])


def test_clipping_leaves_the_recipe_as_it_was(tmp_path):
    """It is part of the config that the record keeps, with its hash."""
    model = make(tmp_path, [dict(type=Own)])
    recipe = RecipeConfig(epochs=1, optimizer=dict(SGD), clip_grad=dict(type="value", clip_value=0.1))
    before = recipe.model_dump()
    wrapper = build_optim_wrapper(model, model.links, recipe)
    assert recipe.model_dump() == before
    assert {w.grad_name for w in wrapper.values()} == {"grad_value"}


def test_float16_without_a_gpu_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "is_cuda_available", lambda: False)
    with pytest.raises(DeviceError, match=r"recipe.precision='float16' needs a GPU.*use 'bfloat16' or 'float32'"):
        built(tmp_path, "float16")


def test_bfloat16_on_a_cpu_trains_in_it_and_leaves_the_frozen_teacher_as_it_is(tmp_path, monkeypatch):
    """The teacher's outputs are cached by its own precision; a step's autocast must not change them."""
    monkeypatch.setattr(runner, "is_cuda_available", lambda: False)
    model, wrapper = built(tmp_path, "bfloat16")
    seen: dict[str, set[torch.dtype]] = dict(teacher=set(), student=set())
    for name, found in seen.items():
        model.member(name).fc.register_forward_hook(lambda _m, _i, output, found=found: found.add(output.dtype))
    before = state_of(model)
    losses = model.train_step(ToyData("train").__getitems__(list(range(12))), wrapper)
    after = state_of(model)
    assert seen == dict(teacher={torch.float32}, student={torch.bfloat16})
    assert all(value.dtype == torch.float32 for value in after.values() if value.is_floating_point())
    for key in ("links.0.bridge.weight", "links.1.bridge.weight", "members.student.fc.weight"):
        assert not torch.equal(after[key], before[key])
    twin, _ = built(tmp_path, "float32")
    exact = sum(value.item() for value in twin(**ToyData("train").__getitems__(list(range(12))), mode="loss").values())
    assert float(losses["loss"]) == pytest.approx(exact, rel=0.03)
