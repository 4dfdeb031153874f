"""Bridges: every pair of sizes that ConvBridge serves, what it refuses, and what the errors suggest."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from limbeck.engine.bridges import (
    ConvBridge,
    LinearBridge,
    mismatch,
    pool_to_smaller,
    require_same_shape,
    suggest_bridge,
)
from limbeck.errors import ShapeMismatch, UserError

Size = tuple[int, int]


@pytest.mark.parametrize(
    ("student", "teacher", "kind", "kernel", "stride"),
    [
        ((8, 8), (8, 8), nn.Conv2d, (1, 1), (1, 1)),
        ((16, 8), (16, 8), nn.Conv2d, (1, 1), (1, 1)),
        ((16, 16), (8, 8), nn.Conv2d, (3, 3), (2, 2)),
        ((16, 12), (8, 6), nn.Conv2d, (3, 3), (2, 2)),
        ((8, 8), (16, 16), nn.ConvTranspose2d, (4, 4), (2, 2)),
        ((4, 6), (8, 12), nn.ConvTranspose2d, (4, 4), (2, 2)),
        ((10, 8), (8, 8), nn.Conv2d, (3, 1), (1, 1)),
        ((10, 10), (8, 8), nn.Conv2d, (3, 3), (1, 1)),
        ((16, 8), (8, 8), nn.Conv2d, (9, 1), (1, 1)),
        ((9, 13), (4, 4), nn.Conv2d, (6, 10), (1, 1)),
        ((2, 2), (1, 1), nn.Conv2d, (3, 3), (2, 2)),
        ((1, 1), (1, 1), nn.Conv2d, (1, 1), (1, 1)),
    ],
)
def test_conv_bridge_kernel_follows_the_sizes(
    student: Size, teacher: Size, kind: type[nn.Module], kernel: Size, stride: Size
) -> None:
    bridge = ConvBridge((2, 4, *student), (2, 6, *teacher))
    conv = bridge[0]
    assert type(conv) is kind
    assert (conv.kernel_size, conv.stride) == (kernel, stride)
    assert bridge(torch.randn(2, 4, *student)).shape == (2, 6, *teacher)


@settings(max_examples=60, deadline=None)
@given(*[st.integers(1, 12)] * 4)
def test_conv_bridge_gives_the_teachers_shape_or_refuses(h_s: int, w_s: int, h_t: int, w_t: int) -> None:
    bridgeable = (h_s >= h_t and w_s >= w_t) or (2 * h_s, 2 * w_s) == (h_t, w_t)
    student, teacher = (3, 2, h_s, w_s), (3, 5, h_t, w_t)
    if bridgeable:
        assert ConvBridge(student, teacher)(torch.zeros(student)).shape == teacher
    else:
        with pytest.raises(ShapeMismatch):
            ConvBridge(student, teacher)


def test_conv_bridge_serves_other_batches_than_it_was_built_for() -> None:
    assert ConvBridge((1, 4, 8, 8), (1, 6, 8, 8))(torch.zeros(5, 4, 8, 8)).shape == (5, 6, 8, 8)


def test_conv_bridge_ends_in_norm_and_relu_unless_told_otherwise() -> None:
    x = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    full, bare = (ConvBridge((8, 4, 8, 8), (8, 6, 8, 8), norm_act=flag) for flag in (True, False))
    assert [type(m) for m in full] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    assert [type(m) for m in bare] == [nn.Conv2d]
    normed = full[1](full[0](x))
    torch.testing.assert_close(normed.mean((0, 2, 3)), torch.zeros(6), rtol=0, atol=1e-5)
    torch.testing.assert_close(full(x), normed.clamp(min=0))
    assert bare(x).min() < 0


@pytest.mark.parametrize("teacher", [(20, 20), (8, 7), (7, 14), (15, 15)])
def test_conv_bridge_refuses_smaller_maps_and_says_what_fits(teacher: Size) -> None:
    pattern = rf"student tap \(2, 4, 7, 7\) to teacher tap \(2, 6, {teacher[0]}, {teacher[1]}\); .*half.*or larger"
    with pytest.raises(ShapeMismatch, match=pattern):
        ConvBridge((2, 4, 7, 7), (2, 6, *teacher))


@pytest.mark.parametrize(("student", "teacher"), [((2, 4), (2, 6)), ((2, 4, 8, 8), (2, 6)), ((2, 9, 4), (2, 6, 8, 8))])
def test_conv_bridge_refuses_what_is_no_map(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    with pytest.raises(ShapeMismatch) as error:
        ConvBridge(student, teacher)
    assert f"teacher tap {teacher} and student tap {student}" in str(error.value)


def test_linear_bridge_brings_a_vector_to_the_teachers_width() -> None:
    bridge = LinearBridge(4, 6)
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    assert bridge(x).shape == (3, 6)
    torch.testing.assert_close(bridge(x) - bridge(torch.zeros(3, 4)), x @ bridge.weight.T)


def test_equal_shapes_pass() -> None:
    require_same_shape(torch.zeros(2, 3), torch.ones(2, 3), "here")


def test_unequal_shapes_name_place_both_shapes_and_bridge() -> None:
    with pytest.raises(ShapeMismatch) as error:
        require_same_shape(torch.zeros(2, 3), torch.zeros(2, 5), "a link")
    assert str(error.value) == (
        "a link: teacher tap (2, 5) and student tap (2, 3) do not fit; a LinearBridge(3 → 5) would fit"
    )


def test_mismatch_is_an_error_the_command_line_prints() -> None:
    assert isinstance(mismatch("x", (2, 5), (2, 3)), UserError)


@pytest.mark.parametrize(
    ("teacher", "student", "hint"),
    [
        ((2, 5), (2, 3), "a LinearBridge(3 → 5) would fit"),
        ((2, 6, 8, 8), (2, 4, 16, 16), "a ConvBridge(4×16×16 → 6×8×8) would fit"),
        ((2, 9, 5), (2, 9, 3), "a LinearBridge(3 → 5) would fit"),
        ((2, 16, 5), (2, 9, 3), "a GridBridge(9×3 → 16×5) would fit"),
        ((2, 6, 8, 8), (2, 65, 3), "a GridBridge(65×3 → 6×8×8) would fit"),
        ((2, 17, 5), (2, 4, 8, 8), "a GridBridge(4×8×8 → 17×5) would fit"),
        ((2, 5), (2, 4, 8, 8), "a PoolBridge(4×8×8 → 5) would fit"),
        ((2, 5), (2, 17, 4), "a PoolBridge(17×4 → 5) would fit"),
        ((2, 5), (2, 6, 4), "6 tokens make no square grid: a PoolBridge needs their number of prefix tokens"),
        ((2, 6, 4), (2, 4, 8, 8), "6 tokens make no square grid: a GridBridge needs their number of prefix tokens"),
        ((2, 1, 1, 1, 1), (2, 2, 1, 1, 1), "tap layers of equal shape"),
        ((2, 5, 8, 8), (2, 5), "a vector (B, D) cannot be bridged to a map (B, C, H, W): tap layers of the same kind"),
        ((2, 9, 5), (2, 5), "a vector (B, D) cannot be bridged to tokens (B, N, D): tap layers of the same kind"),
        ((2, 1, 1, 1, 1), (2, 5), "a vector (B, D) cannot be bridged to 5 axes: tap layers of the same kind"),
        ((2, 5), (3, 5), "both sides must see the same batch"),
    ],
)
def test_suggestion_fits_the_kinds(teacher: tuple[int, ...], student: tuple[int, ...], hint: str) -> None:
    assert suggest_bridge(teacher, student) == hint


@pytest.mark.parametrize(
    ("a", "b", "size"),
    [((4, 4), (4, 4), (4, 4)), ((8, 8), (4, 4), (4, 4)), ((2, 2), (6, 6), (2, 2)), ((8, 2), (4, 6), (4, 2))],
)
def test_pooling_gives_block_means_at_the_smaller_size(a: Size, b: Size, size: Size) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, channels, *s, generator=generator) for channels, s in ((3, a), (5, b))]
    for before, after in zip(maps, pool_to_smaller(*maps)):
        assert after.shape == (*before.shape[:2], *size)
        x = before.double().numpy()
        rows, columns = x.shape[2] // size[0], x.shape[3] // size[1]
        for i in np.ndindex(*after.shape):
            block = x[i[0], i[1], i[2] * rows : (i[2] + 1) * rows, i[3] * columns : (i[3] + 1) * columns]
            assert after[i].item() == pytest.approx(block.mean(), rel=1e-5, abs=1e-6)


def test_pooling_leaves_a_map_of_the_right_size_alone() -> None:
    small, large = torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 8, 8)
    assert pool_to_smaller(small, large)[0] is small
    assert pool_to_smaller(large, small)[1] is small
