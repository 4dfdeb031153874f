"""DT-Visualization's figures against loops of numpy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from limbeck.errors import ConfigError, UnknownName
from limbeck.multimodal.diffusion.trajectory import commitment, pairwise_diversity
from tests.multimodal.diffusion.toys import normal

X0S = normal(4, 6, 1, 2, 3)
LABELS = torch.tensor([0, 2, 0, 2, 2, 0])


def test_commitment_to_the_spread_is_its_definition() -> None:
    x = X0S.numpy().reshape(4, 6, -1)
    spread = np.mean([np.sum((x[-1].mean(0) - x[-1, b]) ** 2) for b in range(6)])
    expected = [np.mean([np.sum((x[i, b] - x[-1, b]) ** 2) for b in range(6)]) / spread for i in range(4)]
    np.testing.assert_allclose(commitment(X0S).numpy(), expected)
    means = {c: x[-1][LABELS.numpy() == c].mean(0) for c in (0, 2)}
    spread = np.mean([np.sum((means[int(LABELS[b])] - x[-1, b]) ** 2) for b in range(6)])
    expected = [np.mean([np.sum((x[i, b] - x[-1, b]) ** 2) for b in range(6)]) / spread for i in range(4)]
    np.testing.assert_allclose(commitment(X0S, labels=LABELS).numpy(), expected)


def test_commitment_is_one_at_the_mean_image_and_zero_at_the_end() -> None:
    last = X0S[-1]
    found = commitment(torch.stack([last.mean(0, keepdim=True).expand_as(last), (last + last.mean(0)) / 2, last]))
    np.testing.assert_allclose(found.numpy(), [1.0, 0.25, 0.0], atol=1e-12)


def test_commitment_to_the_first_step() -> None:
    x = X0S.numpy().reshape(4, 6, -1)
    distance = np.array([np.mean([np.linalg.norm(x[i, b] - x[-1, b]) for b in range(6)]) for i in range(4)])
    found = commitment(X0S, relative_to="first").numpy()
    np.testing.assert_allclose(found, distance / distance[0])
    assert (found[0], found[-1]) == (1.0, 0.0)


def test_nothing_to_divide_by_is_zero() -> None:
    assert commitment(X0S[:1], relative_to="first").tolist() == [0.0]  # a one-step sampler
    assert commitment(torch.ones(3, 4, 2)).tolist() == [0.0, 0.0, 0.0]


def test_pairwise_diversity_is_the_mean_over_pairs_and_classes() -> None:
    x = X0S.numpy().reshape(4, 6, -1)

    def over(members: list[int], step: int) -> float:
        pairs = itertools.combinations(members, 2)
        return float(np.mean([np.linalg.norm(x[step, a] - x[step, b]) for a, b in pairs]))

    np.testing.assert_allclose(pairwise_diversity(X0S).numpy(), [over(list(range(6)), i) for i in range(4)])
    expected = [(over([0, 2, 5], i) + over([1, 3, 4], i)) / 2 for i in range(4)]
    np.testing.assert_allclose(pairwise_diversity(X0S, labels=LABELS).numpy(), expected)
    assert pairwise_diversity(torch.ones(2, 3, 5)).tolist() == [0.0, 0.0]


def test_mistakes_are_told() -> None:
    with pytest.raises(ConfigError, match="2 of each class or more"):
        pairwise_diversity(X0S[:, :1])
    with pytest.raises(ConfigError, match="2 of each class or more"):
        commitment(X0S, labels=torch.tensor([0, 0, 0, 0, 0, 1]))
    with pytest.raises(ConfigError, match=r"labels are of shape \(6,\)"):
        pairwise_diversity(X0S, labels=LABELS[:2])
    with pytest.raises(ConfigError, match="1 step or more"):
        commitment(X0S[:0])
    with pytest.raises(UnknownName, match="relative_to"):
        commitment(X0S, relative_to="last")  # type: ignore[arg-type]
