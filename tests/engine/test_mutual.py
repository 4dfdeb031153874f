"""Deep mutual learning (arXiv 1706.00384): two trained members and a KD link in each direction."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.engine.adapter import Batch
from limbeck.engine.distiller import Distiller
from tests.engine.toys import ToyData

LINKS = [
    dict(type="KD", teacher="peer", student="student", temperature=1.0, weight=1.0),
    dict(type="KD", teacher="student", student="peer", temperature=1.0, weight=1.0),
]


def make(links: list[dict[str, Any]], **options: Any) -> Distiller:
    members = {
        name: dict(type="trained", model=dict(type="ToyNet", width=width))
        for name, width in (("student", 2), ("peer", 4))
    }
    return Distiller(members=members, links=links, adapter=dict(type="ToyAdapter"), **options).train()


def batch() -> Batch:
    found = ToyData().__getitems__(list(range(12)))
    return Batch(found["inputs"], found["data_samples"]["labels"], found["data_samples"]["ids"])


def divergence(p: Tensor, q: Tensor) -> float:
    """Mean over samples of KL(softmax(p) ‖ softmax(q)), in plain Python."""
    total = 0.0
    for row_p, row_q in zip(p.double().softmax(1).tolist(), q.double().softmax(1).tolist()):
        total += sum(a * (math.log(a) - math.log(b)) for a, b in zip(row_p, row_q))
    return total / len(p)


def test_each_member_learns_from_the_others_logits() -> None:
    model = make(LINKS)
    logits = {name: member(batch().inputs).detach() for name, member in model.members.items()}
    terms = model.loss(batch())
    assert list(terms) == ["student.loss_ce", "peer.loss_ce", "kd.loss_kl", "kd1.loss_kl"]
    assert terms["kd.loss_kl"].item() == pytest.approx(divergence(logits["peer"], logits["student"]), rel=1e-4)
    assert terms["kd1.loss_kl"].item() == pytest.approx(divergence(logits["student"], logits["peer"]), rel=1e-4)


@pytest.mark.parametrize(("term", "trained"), [("kd.loss_kl", "student"), ("kd1.loss_kl", "peer")])
def test_each_direction_sends_gradient_into_its_student_alone(term: str, trained: str) -> None:
    model = make(LINKS)
    model.loss(batch())[term].backward()
    for name, member in model.members.items():
        moved = [p.grad is not None and bool(p.grad.any()) for p in member.parameters()]
        assert all(moved) if name == trained else not any(moved)


def test_members_that_only_follow_each_other_come_to_agree() -> None:
    model = make(LINKS, task_weight=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gaps = []
    for _ in range(60):
        optimizer.zero_grad()
        terms = model.loss(batch())
        gaps.append(terms["kd.loss_kl"].item() + terms["kd1.loss_kl"].item())
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
    assert gaps[-1] < 0.1 * gaps[0]


def test_weight_zero_both_ways_is_two_that_learn_alone_bit_for_bit() -> None:
    found = []
    for links in ([], [{**link, "weight": 0.0} for link in LINKS]):
        model = make(links)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            torch.stack(list(model.loss(batch()).values())).sum().backward()
            optimizer.step()
        found.append(model.members.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(state.values() for state in found), strict=True))
