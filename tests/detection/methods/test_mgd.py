"""MGD against float64 references: what is dropped, the generation loss, what learns, and a real step of detectors."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from limbeck.detection.methods.mgd import MGD, Generator, mgd_loss, random_mask
from limbeck.engine.method import LinkInputs
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch, UnknownName
from tests.vision.methods import conftest as common

SIZES = ((4, 5), (2, 3))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def connected(teacher: int = 4, student: int = 3, batch: int = 2, **options: Any) -> MGD:
    torch.manual_seed(0)
    link = MGD(**{"taps": [("a", "a"), ("b", "b")], **options})
    link.connect([(batch, teacher, *s) for s in SIZES], [(batch, student, *s) for s in SIZES])
    return link


def inputs(teacher: int = 4, student: int = 3, draw: int = 7) -> LinkInputs:
    return LinkInputs(
        teacher=[common.randn(2, teacher, *s, seed=i) for i, s in enumerate(SIZES)],
        student=[common.randn(2, student, *s, seed=9 + i).requires_grad_() for i, s in enumerate(SIZES)],
        draw=draw,
    )


def naive_conv(x: np.ndarray, conv: nn.Module) -> np.ndarray:
    """Of one image (C, H, W), padded to keep its size."""
    kernel, bias = common.array(cast(Tensor, conv.weight)), common.array(cast(Tensor, conv.bias))
    half = kernel.shape[2] // 2
    padded = np.pad(x, ((0, 0), (half, half), (half, half)))
    out = np.zeros((len(kernel), *x.shape[1:]))
    for o, i, j in np.ndindex(*out.shape):
        out[o, i, j] = (kernel[o] * padded[:, i : i + kernel.shape[2], j : j + kernel.shape[3]]).sum() + bias[o]
    return out


def naive_link(link: MGD, batch: LinkInputs, masks: list[np.ndarray]) -> float:
    total = 0.0
    for level, (s, t) in enumerate(zip(batch.student, batch.teacher)):
        g = cast(Generator, link.generators[level])
        for si, ti, mask in zip(common.array(s), common.array(t), masks[level]):
            x = si if isinstance(link.bridges[level], nn.Identity) else naive_conv(si, link.bridges[level])
            x = naive_conv(np.maximum(naive_conv(mask * x, g[0]), 0), g[2])
            total += ((x - ti) ** 2).sum() / len(s)
    return total


# --- what is dropped ---


def test_ratio_is_the_share_that_is_dropped_and_its_ends_are_exact() -> None:
    shape = (16, 3, 32, 32)
    assert bool((random_mask(shape, 0.0, generator()) == 1).all())
    assert bool((random_mask(shape, 1.0, generator()) == 0).all())
    for ratio in (0.15, 0.65):
        mask = random_mask(shape, ratio, generator())
        assert set(mask.unique().tolist()) == {0.0, 1.0}
        assert 1 - mask.mean().item() == pytest.approx(ratio, abs=4 * (ratio * (1 - ratio) / mask.numel()) ** 0.5)


def test_mask_is_one_for_all_channels_or_for_all_positions() -> None:
    assert random_mask((2, 3, 4, 5), 0.5, generator()).shape == (2, 1, 4, 5)
    assert random_mask((2, 3, 4, 5), 0.5, generator(), mask_on="channel").shape == (2, 3, 1, 1)
    with pytest.raises(UnknownName, match=r"unknown mask_on 'chanel' of MGD; did you mean 'channel'\?"):
        random_mask((2, 3, 4, 5), 0.5, generator(), mask_on="chanel")


def test_draws_differ_by_step_and_image_and_leave_the_global_generator_alone() -> None:
    link, state = connected(), torch.get_rng_state()
    values = [link(inputs(draw=draw))["generation"].item() for draw in (1, 1, 2)]
    assert values[0] == values[1] != values[2]
    assert torch.equal(torch.get_rng_state(), state)
    mask = random_mask((2, 1, 8, 8), 0.5, generator())
    assert not torch.equal(mask[0], mask[1])


# --- the loss ---


def test_loss_matches_the_reference_and_is_a_sum_over_channels_and_positions() -> None:
    s, t = common.randn(2, 3, 4, 5), common.randn(2, 3, 4, 5, seed=1)
    common.check_reference(mgd_loss, lambda s, t: ((s - t) ** 2).sum() / len(s), s, t)
    common.check_one_sided(mgd_loss, s, t)
    for dtype in common.HALVES:
        common.check_half(mgd_loss, s, t, dtype)
    expected = mgd_loss(s, t)
    torch.testing.assert_close(mgd_loss(s.repeat(2, 1, 1, 1), t.repeat(2, 1, 1, 1)), expected)
    torch.testing.assert_close(mgd_loss(s.repeat(1, 1, 2, 1), t.repeat(1, 1, 2, 1)), 2 * expected)
    with pytest.raises(ShapeMismatch, match="MGD"):
        mgd_loss(s, t[:, :2])


@pytest.mark.parametrize("mask_on", ["position", "channel"])
@pytest.mark.parametrize("student", [3, 4])
def test_link_matches_the_reference(student: int, mask_on: str) -> None:
    link, batch = connected(student=student, mask_on=mask_on, ratio=0.5), inputs(student=student)
    draws = batch.generator()
    masks = [common.array(random_mask((2, 4, *s), 0.5, draws, mask_on=mask_on)) for s in SIZES]
    found = link(batch)
    assert list(found) == ["generation"]
    assert found["generation"].item() == pytest.approx(naive_link(link, batch, masks), rel=1e-5)


def test_everything_dropped_leaves_nothing_of_the_student() -> None:
    link, batch = connected(ratio=1.0), inputs()
    loss = link(batch)["generation"]
    loss.backward()
    assert all(s.grad is not None and not s.grad.any() for s in batch.student)
    other = inputs()
    other.student = [s + 1 for s in other.student]
    assert torch.equal(link(other)["generation"], loss)


def test_identity_generator_and_equal_maps_give_zero() -> None:
    link = connected(student=4, ratio=0.0)
    for g in link.generators:
        for conv in (cast(Generator, g)[0], cast(Generator, g)[2]):
            nn.init.dirac_(cast(Tensor, conv.weight))
            nn.init.zeros_(cast(Tensor, conv.bias))
    maps = [t.abs() for t in inputs().teacher]
    assert link(LinkInputs(teacher=maps, student=[m.clone() for m in maps]))["generation"].item() == 0.0


def test_gradient_reaches_student_bridge_and_generator_alone() -> None:
    link, batch = connected(), inputs()
    for t in batch.teacher:
        t.requires_grad_()
    link(batch)["generation"].backward()
    assert all(t.grad is None for t in batch.teacher)
    assert all(s.grad is not None and s.grad.any() for s in batch.student)
    assert all(p.grad is not None and p.grad.any() for p in link.parameters())
    names = {name.rsplit(".", 1)[0] for name, _ in link.named_parameters()}
    assert names == {"bridges.0", "bridges.1", *(f"generators.{i}.{j}" for i in range(2) for j in (0, 2))}
    assert not list(connected(student=4).bridges.parameters())


@pytest.mark.parametrize("dtype", common.HALVES)
def test_half_precision_maps_are_computed_in_float32(dtype: torch.dtype) -> None:
    link, batch = connected(), inputs()
    half = LinkInputs(teacher=[t.to(dtype) for t in batch.teacher], student=[s.to(dtype) for s in batch.student])
    back = LinkInputs(teacher=[t.float() for t in half.teacher], student=[s.float() for s in half.student])
    with torch.autocast("cpu", dtype=dtype):
        found = link(half)["generation"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, link(back)["generation"], rtol=1e-5, atol=1e-7)


def test_options_and_maps_that_do_not_fit_are_refused() -> None:
    common.check_registered("MGD", MGD, weight=2e-5, typo="ratios", meant="ratio", ratio=0.45, mask_on="channel")
    assert MGD().taps == [(f"neck.fpn_convs.{i}.conv",) * 2 for i in range(5)]
    for ratio in (-0.1, 1.1):
        with pytest.raises(ConfigError, match=r"MGD needs ratio in \[0, 1\]"):
            MGD(ratio=ratio)
    with pytest.raises(UnknownName, match="unknown mask_on"):
        METHODS.make(dict(type="MGD", mask_on="both"))
    with pytest.raises(ShapeMismatch, match=r"MGD: teacher map .* do not fit"):
        MGD(taps=[("a", "a")]).connect([(2, 3, 4, 5)], [(2, 3, 4, 6)])
