"""Tokens and maps: row-major rearrangement, token grids, and a bridge for every pair of kinds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from limbeck.engine.bridges import (
    ConvBridge,
    GridBridge,
    LinearBridge,
    PoolBridge,
    make_bridge,
    map_to_tokens,
    resize_map,
    tokens_to_map,
)
from limbeck.engine.bridges_tokens import tap_form, token_grid
from limbeck.errors import ConfigError, ShapeMismatch

Shape = tuple[int, ...]
VECTOR, TOKENS, CLASS_TOKENS, MAP = (2, 4), (2, 16, 4), (2, 17, 4), (2, 4, 4, 4)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- rearrangement ---


@pytest.mark.parametrize("prefix", [0, 1])
def test_tokens_fill_the_map_row_by_row(prefix: int) -> None:
    x = randn(2, prefix + 9, 4)
    found = tokens_to_map(x)
    assert found.shape == (2, 4, 3, 3)
    for b, c, i, j in np.ndindex(2, 4, 3, 3):
        assert found[b, c, i, j] == x[b, prefix + 3 * i + j, c]


def test_given_prefix_is_dropped() -> None:
    x = randn(2, 11, 4)
    assert torch.equal(tokens_to_map(x, prefix=2), tokens_to_map(x[:, 2:]))


def test_maps_of_any_size_are_read_row_by_row_in_either_layout() -> None:
    x = randn(2, 4, 3, 5)
    found = map_to_tokens(x)
    assert found.shape == (2, 15, 4)
    for b, c, i, j in np.ndindex(2, 4, 3, 5):
        assert found[b, 5 * i + j, c] == x[b, c, i, j]
    assert torch.equal(map_to_tokens(x.permute(0, 2, 3, 1), layout="nhwc"), found)


def test_tokens_and_maps_are_inverse() -> None:
    x = randn(2, 4, 3, 3)
    assert torch.equal(tokens_to_map(map_to_tokens(x)), x)


@given(st.integers(1, 40), st.integers(0, 1))
def test_grid_is_inferred_for_none_or_one_class_token(side: int, prefix: int) -> None:
    assert token_grid(side * side + prefix) == (prefix, side)


@pytest.mark.parametrize(("tokens", "prefix"), [(3, None), (6, None), (198, None), (197, 0), (65, 2), (1, 1), (2, 3)])
def test_other_token_counts_have_no_grid(tokens: int, prefix: int | None) -> None:
    assert token_grid(tokens, prefix) is None
    with pytest.raises(ShapeMismatch, match=rf"tokens_to_map: {tokens} tokens \(1, {tokens}, 4\) make no square grid"):
        tokens_to_map(torch.zeros(1, tokens, 4), prefix)


def test_wrong_axes_are_named() -> None:
    with pytest.raises(ShapeMismatch, match=r"tokens_to_map: tokens \(B, N, D\) are needed; got \(2, 4\)"):
        tokens_to_map(torch.zeros(2, 4))
    with pytest.raises(ShapeMismatch, match=r"map_to_tokens: a map of four axes is needed; got \(2, 9, 4\)"):
        map_to_tokens(torch.zeros(2, 9, 4))
    with pytest.raises(ShapeMismatch, match=r"here: \(2, 1, 1, 1, 1\) is neither a vector"):
        tap_form((2, 1, 1, 1, 1), what="here")
    with pytest.raises(ConfigError, match=r"here: layout is 'nchw' or 'nhwc'; got 'hwc'"):
        tap_form(MAP, what="here", layout="hwc")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shape", "layout"), [(VECTOR, "nchw"), (TOKENS, "nchw"), (MAP, "nchw"), ((2, 3, 5, 4), "nhwc")]
)
def test_forms_go_to_a_map_and_back(shape: Shape, layout) -> None:
    form, x = tap_form(shape, layout=layout), randn(*shape)
    as_map = form.to_map(x)
    assert as_map.shape == (2, form.width, *form.size)
    assert torch.equal(form.from_map(as_map), x)


# --- a bridge for every pair ---


@pytest.mark.parametrize(
    ("student", "teacher", "kind"),
    [
        (VECTOR, (2, 6), LinearBridge),
        (TOKENS, (2, 16, 6), LinearBridge),
        (CLASS_TOKENS, (2, 17, 6), LinearBridge),
        ((2, 5, 4), (2, 5, 6), LinearBridge),
        (TOKENS, (2, 17, 6), GridBridge),
        (CLASS_TOKENS, (2, 9, 6), GridBridge),
        (TOKENS, (2, 65, 6), GridBridge),
        (TOKENS, (2, 6, 4, 4), GridBridge),
        (CLASS_TOKENS, (2, 6, 7, 5), GridBridge),
        (MAP, (2, 16, 6), GridBridge),
        (MAP, (2, 10, 6), GridBridge),
        (MAP, (2, 6, 4, 4), ConvBridge),
        (MAP, (2, 6), PoolBridge),
        (TOKENS, (2, 6), PoolBridge),
        (CLASS_TOKENS, (2, 6), PoolBridge),
    ],
)
def test_every_pair_gets_its_bridge_and_trains(student: Shape, teacher: Shape, kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    bridge = make_bridge(student, teacher)
    assert type(bridge) is kind
    x, target = randn(*student).requires_grad_(), bridge.target(randn(*teacher, seed=1))
    out = bridge(x)
    assert out.shape == target.shape
    ((out - target) ** 2).mean().backward()
    assert x.grad is not None
    assert x.grad.flatten(1).abs().max() > 0
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in bridge.parameters() if p.dim() > 1)
    assert bridge(x[:1].expand(3, *student[1:])).shape[0] == 3


def test_target_is_the_teachers_tap_less_its_class_token_where_grids_are_compared() -> None:
    t = randn(2, 17, 6)
    assert torch.equal(make_bridge(MAP, (2, 17, 6)).target(t), t[:, 1:])
    assert make_bridge(CLASS_TOKENS, (2, 17, 6)).target(t) is t
    t = randn(2, 18, 6)
    assert torch.equal(make_bridge(MAP, (2, 18, 6), teacher_prefix=2).target(t), t[:, 2:])


@pytest.mark.parametrize("prefix", [0, 1])
def test_same_grid_is_a_matrix_at_every_position(prefix: int) -> None:
    bridge = make_bridge((2, prefix + 16, 4), (2, 6, 4, 4), norm_act=False)
    x = randn(2, prefix + 16, 4)
    weight, bias = bridge.conv.weight[:, :, 0, 0], bridge.conv.bias
    out = bridge(x)
    for i, j in np.ndindex(4, 4):
        expected = x[:, prefix + 4 * i + j] @ weight.T + bias
        torch.testing.assert_close(out[:, :, i, j], expected)
    tokens = make_bridge(MAP, (2, 16, 6))
    tokens.load_state_dict(bridge.state_dict())
    torch.testing.assert_close(tokens(tokens_to_map(x)), map_to_tokens(out))


def test_pool_bridge_is_a_linear_map_of_the_patch_mean() -> None:
    bridge, x = make_bridge(CLASS_TOKENS, (2, 6)), randn(*CLASS_TOKENS)
    torch.testing.assert_close(bridge(x), bridge.linear(sum(x[:, i] for i in range(1, 17)) / 16))


def test_norm_and_relu_follow_maps_of_convolutions_alone() -> None:
    x = randn(8, 16, 4)
    rectified = make_bridge((8, 16, 4), (8, 6, 4, 4))
    assert rectified(x).min() == 0
    for teacher, options in (((8, 17, 6), {}), ((8, 4, 4, 6), {"teacher_layout": "nhwc"})):
        assert make_bridge((8, 16, 4), teacher, **options)(x).min() < 0


def test_nhwc_is_said_not_guessed() -> None:
    swin, student = (2, 4, 4, 6), (2, 5, 4, 6)  # the first is also a legal (B, C, H, W)
    assert isinstance(make_bridge(student, swin), ConvBridge)
    bridge = make_bridge(student, swin, teacher_layout="nhwc")
    assert isinstance(bridge, GridBridge)
    assert (bridge.conv.in_channels, bridge.conv.out_channels) == (5, 6)
    assert bridge(randn(*student)).shape == swin
    back = make_bridge(swin, (2, 5, 2, 2), student_layout="nhwc", norm_act=False)
    x = randn(*swin)
    blocks = x.reshape(2, 2, 2, 2, 2, 6).mean((2, 4)).permute(0, 3, 1, 2)
    torch.testing.assert_close(back(x), back.conv(blocks))


def test_resizing_averages_blocks_or_interpolates() -> None:
    x = randn(1, 2, 4, 4)
    torch.testing.assert_close(resize_map(x, (2, 2)), x.reshape(1, 2, 2, 2, 2, 2).mean((3, 5)))
    assert resize_map(x, (4, 4)) is x
    line = torch.tensor([0.0, 4.0]).reshape(1, 1, 1, 2)
    # Bilinear with half-pixel centres, by hand.
    torch.testing.assert_close(resize_map(line, (1, 4)).flatten(), torch.tensor([0.0, 1.0, 3.0, 4.0]))
    assert resize_map(x, (8, 2)).shape == (1, 2, 8, 2)


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (VECTOR, MAP, r"here: teacher tap .* a vector \(B, D\) cannot be bridged to a map"),
        (VECTOR, TOKENS, r"a vector \(B, D\) cannot be bridged to tokens"),
        ((2, 4, 1, 1, 1), MAP, "5 axes cannot be bridged to a map"),
        (MAP, (3, 16, 4), "both sides must see the same batch"),
        (MAP, (2, 6, 4), r"here: teacher tap: 6 tokens \(2, 6, 4\) make no square grid with none or one class token"),
        ((2, 6, 4), (2, 4), r"here: student tap: 6 tokens"),
        ((2, 4, 7, 7), (2, 4, 20, 20), "ConvBridge: one convolution cannot bring"),
    ],
)
def test_what_cannot_be_bridged_is_said_in_one_sentence(student: Shape, teacher: Shape, message: str) -> None:
    with pytest.raises(ShapeMismatch, match=message):
        make_bridge(student, teacher, what="here")


def test_wrong_prefix_is_named() -> None:
    with pytest.raises(ShapeMismatch, match=r"17 tokens \(2, 17, 4\) make no square grid after 2 prefix tokens"):
        make_bridge(CLASS_TOKENS, MAP, student_prefix=2)
