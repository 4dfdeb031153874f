"""Slopes of single images and transfer ratios, against curves whose slopes are known, and a loop of resamples."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from limbeck.multimodal.diffusion.controls.sliders import SCALES, ControlCurve, transfer_ratio
from limbeck.multimodal.diffusion.controls.transfer import bounded_ratio, bounded_slope, image_slopes


def curve(slopes: np.ndarray, seed: int = 0) -> ControlCurve:
    """Lines of these slopes with a bend that no slope sees."""
    scales = np.array(SCALES)
    start = np.random.default_rng(seed).normal(size=len(slopes))
    return ControlCurve(SCALES, torch.from_numpy(start + np.outer(scales, slopes) + 0.3 * (scales**2)[:, None]))


SLOPES = np.random.default_rng(1).normal(0.5, 0.2, 40)


def test_image_slopes_are_those_of_the_lines() -> None:
    found = curve(SLOPES)
    np.testing.assert_allclose(image_slopes(found), SLOPES)
    assert found.slope == pytest.approx(bounded_slope(image_slopes(found)).value)
    uneven = ControlCurve((0.0, 1.0, 4.0), torch.from_numpy(np.random.default_rng(2).normal(size=(3, 5))))
    wanted = np.polyfit(uneven.scales, uneven.values.numpy(), 1)[0]
    np.testing.assert_allclose(image_slopes(uneven), wanted)


def test_ratio_is_the_librarys_with_a_loop_of_resamples() -> None:
    other = 0.8 * SLOPES + np.random.default_rng(3).normal(0, 0.05, 40)
    found = bounded_ratio(other, SLOPES)
    assert found is not None
    assert found.value == pytest.approx(transfer_ratio(curve(other), curve(SLOPES)))
    draw = np.random.default_rng([0, 0])
    ratios = []
    for _ in range(200):
        rows = draw.integers(40, size=40)  # the same images of both
        ratios.append(other[rows].mean() / SLOPES[rows].mean())
    low, high = np.quantile(ratios, [0.025, 0.975]) - np.mean(ratios)
    assert (found.low, found.high) == pytest.approx((found.value + low, found.value + high))
    assert found.low < 0.8 < found.high


def test_same_effect_is_one_and_none_is_nothing() -> None:
    assert bounded_ratio(SLOPES, SLOPES) == pytest.approx((1.0, 1.0, 1.0))
    assert bounded_ratio(-SLOPES, SLOPES) == pytest.approx((-1.0, -1.0, -1.0))
    assert bounded_ratio(0 * SLOPES, SLOPES) == pytest.approx((0.0, 0.0, 0.0))


def test_no_ratio_to_what_is_not_told_from_nothing() -> None:
    assert bounded_ratio(SLOPES, np.zeros(40)) is None
    assert bounded_ratio(SLOPES, np.random.default_rng(4).normal(0.01, 1.0, 40)) is None
    once = np.zeros(40)
    once[3] = 1.0  # resamples without that image have no slope at all
    assert bounded_ratio(SLOPES, once) is None
