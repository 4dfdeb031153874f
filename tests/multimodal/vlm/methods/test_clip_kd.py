"""CLIPKD: the sum of its three links with one projection."""

from __future__ import annotations

import pytest
import torch

from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError
from tests.multimodal.vlm.clip_toys import clip_distiller, connected, inputs
from tests.multimodal.vlm.toys import mixed_batch

TARGETS = [2, -1, 0, -1, -1, 1]
FACTORS = dict(fd=2000.0, icl=1.0, crd=1.0)


def test_terms_are_those_of_the_single_links_times_their_factors():
    batch, link = inputs(TARGETS), connected("CLIPKD")
    found = link(batch)
    assert list(found) == list(FACTORS)
    for name, factor in FACTORS.items():
        single = connected(f"CLIP{name.upper()}")
        single.phi.load_state_dict(link.phi.state_dict())
        torch.testing.assert_close(found[name], factor * single(batch)[name])
    assert {n for n, _ in link.named_parameters()} == {"phi.weight", "phi.bias", "log_scale", "log_cross"}


@pytest.mark.parametrize("left", list(FACTORS))
def test_a_factor_of_0_leaves_a_term_out_and_what_it_alone_would_train(left):
    link, batch = connected("CLIPKD", **{left: 0.0}), inputs(TARGETS)
    found = link(batch)
    assert set(found) == set(FACTORS) - {left}
    sum(found.values()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in link.parameters())


def test_a_run_of_mixed_batches():
    model = clip_distiller(dict(type="CLIPKD", weight=0.5))
    losses = model.loss(mixed_batch())
    twice = clip_distiller(dict(type="CLIPKD")).loss(mixed_batch())
    for name in FACTORS:
        torch.testing.assert_close(2.0 * losses[f"clipkd.loss_{name}"], twice[f"clipkd.loss_{name}"])
    sum(losses.values()).backward()
    assert all(p.grad is None for p in model.frozen["teacher"].parameters())


@pytest.mark.parametrize("factors", [dict(fd=0.0, icl=0.0, crd=0.0), dict(fd=-1.0)])
def test_factors_that_mean_nothing_are_refused(factors):
    with pytest.raises(ConfigError, match="one above 0"):
        METHODS.make(dict(type="CLIPKD", **factors))
