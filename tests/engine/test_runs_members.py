"""Links that run their members themselves: the engine runs nothing for them, and everything for what is beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from limbeck.engine.adapter import Batch, Forward
from limbeck.engine.distiller import Distiller
from limbeck.engine.method import LinkInputs, Method
from limbeck.engine.registry import METHODS
from limbeck.errors import TapError
from tests.engine.toys import ToyAdapter, ToyData, ToyNet, teacher_file


@METHODS.register_module(name="_AsksItself")
class AsksItself(Method):
    """Matches logits on twice the first five images; notes what it was given."""

    default_taps: ClassVar[Any] = (("logits", "logits"),)
    wants_inputs = True
    runs_members = True
    seen: ClassVar[list[LinkInputs]] = []

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        self.seen.append(batch)
        assert batch.second_forward is not None
        found = [batch.second_forward(name, 2 * batch.inputs[name][:5])[0] for name in (self.teachers[0], self.student)]
        return {"asked": (found[0] - found[1]).square().mean()}


class Counting(ToyAdapter):
    """Notes every forward: which member, how many samples, and whether its loss was wanted."""

    def __init__(self) -> None:
        self.calls: list[tuple[nn.Module, int, bool]] = []

    def forward(self, model: nn.Module, inputs: Any, batch: Batch, *, with_loss: bool) -> Forward:
        self.calls.append((model, len(inputs), with_loss))
        return super().forward(model, inputs, batch, with_loss=with_loss)


def make(folder: Path, *links: dict[str, Any], task_weight: float = 0.0) -> Distiller:
    members = dict(
        teacher=dict(type="frozen", model=dict(type="ToyNet", width=4), weights=teacher_file(folder)),
        student=dict(type="trained", model=dict(type="ToyNet", width=2)),
    )
    adapter = Counting()
    made = Distiller(members=members, links=links, adapter=adapter, task_weight=task_weight)
    adapter.calls.clear()
    AsksItself.seen.clear()
    return made


def batch() -> Batch:
    found = ToyData().__getitems__(list(range(12)))
    samples = found["data_samples"]
    return Batch(found["inputs"], samples["labels"], samples["ids"], samples["views"])


def calls(model: Distiller) -> list[tuple[str, int, bool]]:
    names = {id(model.member(name)): name for name in ("teacher", "student")}
    return [(names[id(member)], count, loss) for member, count, loss in model.adapter.calls]  # type: ignore[attr-defined]


OWN = dict(type="_AsksItself")
ASKED = [("teacher", 5, False), ("student", 5, False)]


def test_alone_it_is_all_that_is_run(tmp_path):
    model = make(tmp_path, OWN)
    terms = model.loss(batch())
    assert calls(model) == ASKED
    assert list(terms) == ["asksitself.loss_asked"]
    (seen,) = AsksItself.seen
    assert (seen.teacher, seen.student, seen.teachers) == ([], [], [[]])
    assert torch.equal(seen.inputs["student"], batch().inputs)
    assert model.teacher_forwards == 5  # what was asked, not what the batch has
    with torch.no_grad():
        logits = [model.member(name)(2 * batch().inputs[:5]) for name in ("teacher", "student")]
    assert terms["asksitself.loss_asked"].item() == pytest.approx((logits[0] - logits[1]).square().mean().item())
    terms["asksitself.loss_asked"].backward()
    assert all(p.grad is None for p in model.frozen["teacher"].parameters())
    assert any(p.grad is not None and p.grad.any() for p in model.deploy.parameters())


def test_with_a_task_loss_the_student_is_run_for_it_and_the_teacher_is_not(tmp_path):
    model, plain = make(tmp_path, OWN, task_weight=2.0), make(tmp_path, task_weight=2.0)
    terms = model.loss(batch())
    assert calls(model) == [("student", 12, True), *ASKED]
    assert list(terms) == ["student.loss_ce", "asksitself.loss_asked"]
    assert torch.equal(terms["student.loss_ce"], plain.loss(batch())["student.loss_ce"])
    assert AsksItself.seen[0].student == []


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("task_weight", [0.0, 1.0])
def test_beside_an_ordinary_link_each_gets_what_it_gets_alone(tmp_path, first, task_weight):
    usual = dict(type="ToyMatch")
    order = (OWN, usual) if first else (usual, OWN)
    model = make(tmp_path, *order, task_weight=task_weight)
    terms = model.loss(batch())
    whole = [("teacher", 12, False), ("student", 12, True)]
    assert calls(model) == [*whole, *ASKED]
    assert model.teacher_forwards == 12 + 5
    assert (AsksItself.seen[0].teacher, AsksItself.seen[0].student) == ([], [])
    alone = {**make(tmp_path, OWN).loss(batch()), **make(tmp_path, usual, task_weight=task_weight).loss(batch())}
    assert sorted(alone) == sorted(name.replace("1.", ".") for name in terms)
    for name, value in terms.items():
        assert torch.equal(value, alone[name.replace("1.", ".")])


def test_of_weight_zero_or_out_of_its_schedule_it_is_not_run(tmp_path):
    model = make(tmp_path, dict(OWN, weight=0.0), task_weight=1.0)
    assert list(model.loss(batch())) == ["student.loss_ce"]
    assert calls(model) == [("student", 12, True)]
    late = make(tmp_path, dict(OWN, schedule=dict(type="window", start=0.5)), dict(type="ToyMatch"))
    late.loss(batch())
    assert ("student", 5, False) not in calls(late)
    late.progress = 0.75
    late.loss(batch())
    assert calls(late)[-2:] == ASKED


def test_taps_of_a_member_that_only_such_links_read_are_still_checked(tmp_path):
    with pytest.raises(TapError, match="logit"):
        make(tmp_path, dict(OWN, taps=[("logits", "logit")]))


@METHODS.register_module(name="_SetsStudent")
class SetsStudent(Method):
    """Sets the student's weights before the first step, as step distillation does."""

    default_taps: ClassVar[Any] = (("logits", "logits"),)

    def connect(self, teacher_shapes: Any, student_shapes: Any) -> None:
        with torch.no_grad():
            for p in self.members[self.student].parameters():
                p.fill_(0.5)

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        return {"gap": (batch.student[0] - batch.teacher[0]).square().mean()}


def test_averages_start_as_what_a_link_made_of_the_member_that_they_follow():
    members = dict(
        student=dict(type="trained", model=dict(type="ToyNet", width=2)),
        average=dict(type="ema", of="student", momentum=0.9),
    )
    links = [dict(type="_SetsStudent", teacher="average")]
    model = Distiller(members=members, links=links, adapter=ToyAdapter())
    for name in ("student", "average"):
        assert all(bool((p == 0.5).all()) for p in model.member(name).parameters())
    assert not any(p.requires_grad for p in model.shadows["average"].parameters())
    assert isinstance(model.shadows["average"], ToyNet)
