"""Attributes against images whose answer is known, and sorting by them."""

from __future__ import annotations

import math

import pytest
import torch

from limbeck.errors import ConfigError, ShapeMismatch, UnknownName
from limbeck.multimodal.diffusion.controls.attributes import Pairs, halves, height, ink_mass, measure, width


def bar(rows: int, columns: int, channels: int = 1, ink: float = 1.0) -> torch.Tensor:
    image = -torch.ones(1, channels, 12, 10)
    image[..., 2 : 2 + rows, 3 : 3 + columns] = 2 * ink - 1
    return image


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 6), (10, 2)])
def test_a_bar_has_its_own_size(rows, columns, channels) -> None:
    image = bar(rows, columns, channels, ink=0.5)
    assert float(width(image)) == pytest.approx(columns)
    assert float(height(image)) == pytest.approx(rows)
    assert float(ink_mass(image)) == pytest.approx(0.5 * rows * columns / 120)


def test_extent_is_of_each_image_and_wherever_it_lies() -> None:
    images = torch.cat([bar(2, 3), bar(4, 5), bar(2, 3).roll((4, 3), (2, 3))])
    assert width(images).tolist() == pytest.approx([3, 5, 3])
    assert height(images).tolist() == pytest.approx([2, 4, 2])
    torch.testing.assert_close(width(images), height(images.transpose(2, 3)))


def test_faint_ink_and_empty_images() -> None:
    faint = bar(2, 3).clamp(min=-0.85)
    assert float(width(faint)) == pytest.approx(3)
    assert float(width(-torch.ones(1, 1, 4, 4))) == 0
    assert float(width(bar(2, 3) * 1.5)) == pytest.approx(3)  # beyond the range


def test_measure_takes_names_and_functions() -> None:
    images = torch.cat([bar(1, 1), bar(2, 2)])
    assert torch.equal(measure(images, "ink_mass"), ink_mass(images))
    assert measure(images, lambda x: x.amax((1, 2, 3))).tolist() == [1, 1]
    with pytest.raises(UnknownName, match="unknown attribute 'widht'; did you mean 'width'"):
        measure(images, "widht")
    with pytest.raises(ConfigError, match="one finite number for each of 2 images; got \\(\\)"):
        measure(images, lambda x: x.mean())
    with pytest.raises(ConfigError, match="with NaN"):
        measure(images, lambda x: x.mean((1, 2, 3)) * math.nan)


def leveled(levels: list[float]) -> torch.Tensor:
    return torch.tensor(levels)[:, None, None, None].expand(-1, 1, 2, 2).clone()


def test_halves_are_within_each_class() -> None:
    levels = [0.3, 0.1, -0.5, 0.2, 0.9, 0.8, -0.1]
    labels = torch.tensor([0, 0, 4, 0, 4, 4, 4])
    pairs = halves(leveled(levels), labels, "ink_mass")
    assert pairs.low_labels is not None
    assert pairs.high_labels is not None
    # sorted within the classes, and the middle one of three is in neither
    assert pairs.low_labels.tolist() == [0, 4, 4]
    assert pairs.low[:, 0, 0, 0].tolist() == pytest.approx([0.1, -0.5, -0.1])
    assert pairs.high_labels.tolist() == [0, 4, 4]
    assert pairs.high[:, 0, 0, 0].tolist() == pytest.approx([0.3, 0.8, 0.9])
    quarters = halves(leveled(levels[2:3] + levels[4:]), None, "ink_mass", share=0.25)
    assert (quarters.low.mean().item(), quarters.high.mean().item()) == pytest.approx((-0.5, 0.9))
    assert quarters.low_labels is None


def test_pairs_are_drawn_within_a_class_and_evenly() -> None:
    low_labels, high_labels = torch.tensor([2, 0, 2, 0, 0]), torch.tensor([0, 2])
    pairs = Pairs(leveled([1.0, 2.0, 3.0, 4.0, 5.0]), leveled([10.0, 20.0]), low_labels, high_labels)
    low, high, labels = pairs.draw(6000, torch.Generator().manual_seed(0))
    assert labels is not None
    drawn = list(zip(labels.tolist(), low[:, 0, 0, 0].tolist(), high[:, 0, 0, 0].tolist()))
    assert {(k, h) for k, _, h in drawn} == {(0, 10.0), (2, 20.0)}
    share = {(k, x): sum(d[:2] == (k, x) for d in drawn) / 6000 for k, x, _ in set(drawn)}
    assert share == pytest.approx({(2, 1): 1 / 4, (2, 3): 1 / 4, (0, 2): 1 / 6, (0, 4): 1 / 6, (0, 5): 1 / 6}, abs=0.02)
    again = pairs.draw(6000, torch.Generator().manual_seed(0))
    assert torch.equal(again[0], low)
    without = Pairs(pairs.low, pairs.high).draw(1000, torch.Generator().manual_seed(0))
    assert without[2] is None
    assert set(without[0][:, 0, 0, 0].tolist()) == {1.0, 2.0, 3.0, 4.0, 5.0}


def test_images_that_cannot_be_parted() -> None:
    images = leveled([0.1, 0.2, 0.3])
    with pytest.raises(ConfigError, match="1 images of class 7 cannot be parted into low and high"):
        halves(images, torch.tensor([1, 1, 7]), "ink_mass")
    with pytest.raises(ConfigError, match="all have the same value"):
        halves(leveled([0.5, 0.5]), None, "ink_mass")
    for share in (0.0, 0.6, math.nan):
        with pytest.raises(ConfigError, match="share of the images"):
            halves(images, None, "ink_mass", share=share)
    with pytest.raises(ConfigError, match="labels of 3 images"):
        halves(images, torch.tensor([0, 1]), "ink_mass")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(low=torch.zeros(2, 4)), "low images are"),
        (dict(high=torch.zeros(0, 1, 2, 2)), "1 or more"),
        (dict(high=torch.zeros(2, 1, 2, 2, dtype=torch.uint8)), "numbers in \\[-1, 1\\], 1 or more; got torch.uint8"),
        (dict(low=torch.full((2, 1, 2, 2), math.nan)), "low images hold NaN"),
        (dict(low_labels=None), "both have labels, or neither"),
        (dict(low_labels=torch.tensor([0])), "labels of 2 images"),
        (dict(low_labels=torch.tensor([0.0, 1.0])), "torch.float32"),
        (dict(low_labels=torch.tensor([0, -1])), "from 0 on; got torch.int64 \\(2,\\), the least -1"),
        (dict(low_labels=torch.tensor([0, 3])), "class 1 has low or high images alone"),
    ],
)
def test_pairs_that_do_not_fit(change, said) -> None:
    good = dict(low=torch.zeros(2, 1, 2, 2), high=torch.ones(2, 1, 2, 2))
    labels = dict(low_labels=torch.tensor([0, 1]), high_labels=torch.tensor([1, 0]))
    Pairs(**good, **labels)
    with pytest.raises(ConfigError, match=said):
        Pairs(**{**good, **labels, **change})


def test_pairs_of_different_shapes() -> None:
    with pytest.raises(ShapeMismatch, match="make them of one shape"):
        Pairs(torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 3, 3))
