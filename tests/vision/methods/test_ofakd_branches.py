"""OFA-KD's exit branches: depth, widths, merging and initial weights as the paper's code has them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from limbeck.engine.bridges_tokens import tap_form
from limbeck.vision.methods._exit_branches import PatchMerging, SepConv, conv_branch, init_branch, token_branch
from tests.vision.methods import conftest as common


@pytest.mark.parametrize(("stages_after", "side"), [(3, 56), (2, 28), (1, 14), (0, 7), (2, 3)])
def test_conv_branch_halves_and_doubles_to_the_width(stages_after: int, side: int) -> None:
    branch = conv_branch(4, stages_after, 40, 10)
    assert branch(torch.zeros(2, 4, side, side)).shape == (2, 10)
    convs = [m for m in branch if isinstance(m, SepConv)]
    assert len(convs) == stages_after
    x = torch.zeros(2, 4, side, side)
    for i, conv in enumerate(convs):
        x = conv(x)
        side = -(-side // 2)
        assert x.shape == (2, 40 if i == stages_after - 1 else 4 * 2 ** (i + 1), side, side)


def test_last_conv_branch_has_the_papers_parameters() -> None:
    count = sum(p.numel() for p in conv_branch(64, 0, 96, 10).parameters())
    assert count == 64 * 96 + 96 + 96 * 10 + 10


@pytest.mark.parametrize(
    ("shape", "stages_after", "merges", "depth"),
    [
        ((2, 197, 32), 3, 1, 3),
        ((2, 196, 32), 0, 1, 1),
        ((2, 65, 32), 2, 0, 2),
        ((2, 49, 16), 1, 0, 1),
        ((2, 4, 16), 1, 0, 1),
        ((2, 784, 16), 2, 2, 2),
        ((2, 3136, 8), 3, 3, 3),
    ],
)
def test_token_branch_merges_to_seven_patches_a_side(
    shape: tuple[int, ...], stages_after: int, merges: int, depth: int
) -> None:
    branch = token_branch(tap_form(shape), stages_after, 32, 10)
    assert branch(torch.zeros(shape)).shape == (2, 10)
    assert (len(branch.merge), len(branch.blocks)) == (merges, depth)
    acts = [type(m.act) for m in branch.merge]
    # As in the official code: of several the last has none, a single one keeps its own.
    assert acts == [nn.GELU] * merges if merges < 2 else acts == [nn.GELU] * (merges - 1) + [nn.Identity]


def test_patch_merging_sees_two_by_two_neighbours() -> None:
    torch.manual_seed(0)
    merging = PatchMerging(3, 5, nn.Identity())
    x = common.randn(1, 3, 4, 4).requires_grad_()
    gradient = torch.autograd.grad(merging(x)[0, :, 1, 0].square().sum(), x)[0].abs().sum((0, 1))
    assert (gradient > 0).nonzero().tolist() == [[2, 0], [2, 1], [3, 0], [3, 1]]
    assert merging(torch.zeros(2, 3, 5, 3)).shape == (2, 5, 3, 2)


def test_class_token_is_classified_where_there_is_one_and_else_the_mean() -> None:
    torch.manual_seed(0)
    for tokens in (10, 9):
        branch = token_branch(tap_form((2, tokens, 8)), 0, 8, 4)
        branch.blocks = nn.Sequential()
        x = common.randn(2, tokens, 8)
        torch.testing.assert_close(branch(x), branch.head(x[:, 0] if tokens == 10 else x.mean(1)))


def test_initial_weights_are_the_papers() -> None:
    torch.manual_seed(0)
    branch = conv_branch(64, 2, 128, 100).apply(init_branch)
    pointwise = branch[1][5].weight  # 128 → 128 channels
    assert pointwise.std().item() == pytest.approx(math.sqrt(2 / 128), rel=0.05)
    assert branch[-1].weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert branch[-1].bias.abs().max() == 0
    tokens = token_branch(tap_form((2, 196, 32)), 0, 32, 10).apply(init_branch)
    assert tokens.merge[0].reduction.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert tokens.blocks[0].norm1.weight.eq(1).all()
