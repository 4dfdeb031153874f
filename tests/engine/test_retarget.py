"""Links that change the targets of the student's own loss once the teachers have run; taps without sample rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.engine.method import LinkInputs, Method
from limbeck.engine.registry import METHODS
from limbeck.engine.run import RunOptions, execute
from limbeck.engine.weights import read_weights
from limbeck.errors import ConfigError
from tests.engine.test_distiller import batch, make
from tests.engine.toys import ToyMatch, toy_pair, toy_run


@METHODS.register_module()
class ToyRelabel(ToyMatch):
    """The student learns the teacher's class in place of the label; no term of its own."""

    alters_targets = True
    seen: list[LinkInputs] = []

    def retarget(self, batch: LinkInputs) -> Tensor:
        self.seen.append(batch)
        return (batch.teacher[0].argmax(1) + batch.targets) % 3

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        return {}


@METHODS.register_module()
class ToyRows(ToyMatch):
    """Taps something whose rows are no samples."""

    default_taps = (("flat", "flat"),)


@pytest.fixture(autouse=True)
def _forget() -> None:
    ToyRelabel.seen.clear()


def relabelled(model: Any, targets: Tensor) -> Tensor:
    return (model.frozen["teacher"](batch().inputs).argmax(1) + targets) % 3


def test_targets_stay_unless_a_method_says_so():
    assert ToyMatch.alters_targets is False
    given = LinkInputs(teacher=[], student=[], targets=torch.zeros(2))
    assert ToyMatch().retarget(given) is given.targets
    assert isinstance(ToyMatch(), Method)


def test_students_own_loss_is_on_what_the_link_made_and_other_links_see_the_labels(tmp_path):
    model, data = make(tmp_path, [dict(type="ToyRelabel"), dict(type="ToyRelabel", weight=0.0)]), batch()
    labels = data.targets.clone()
    terms = model.loss(data)
    want = F.cross_entropy(model.deploy(data.inputs), relabelled(model, labels))
    torch.testing.assert_close(terms["student.loss_ce"], want)
    assert set(terms) == {"student.loss_ce"}
    assert torch.equal(data.targets, labels)
    (seen,) = ToyRelabel.seen
    assert seen.student == []
    assert torch.equal(seen.targets, labels)
    assert not seen.teacher[0].requires_grad


def test_two_links_alter_in_turn_while_others_see_the_labels(tmp_path, monkeypatch):
    links = [dict(type="ToyRelabel"), dict(type="ToyRelabel"), dict(type="ToyMatch")]
    model, data, given = make(tmp_path, links), batch(), []
    whole = ToyMatch.forward
    monkeypatch.setattr(ToyMatch, "forward", lambda self, b: given.append(b.targets) or whole(self, b))
    terms = model.loss(data)
    twice = relabelled(model, relabelled(model, data.targets))
    torch.testing.assert_close(terms["student.loss_ce"], F.cross_entropy(model.deploy(data.inputs), twice))
    assert torch.equal(given[0], data.targets)


def test_weight_zero_is_the_plain_run_bit_for_bit(tmp_path):
    methods = dict(Zero=dict(links=[dict(type="ToyRelabel", weight=0.0)]), One=dict(links=[dict(type="ToyRelabel")]))
    states = {}
    for name in ("plain", "Zero", "One"):
        run = toy_run(tmp_path, name, methods=methods)
        execute(run, RunOptions(out=tmp_path / "runs", threads=1))
        states[name] = read_weights(tmp_path / "runs" / run.id / "student.safetensors")[0]
        assert bool(ToyRelabel.seen) == (name == "One")
    assert all(torch.equal(states["plain"][k], states["Zero"][k]) for k in states["plain"])
    assert not all(torch.equal(states["plain"][k], states["One"][k]) for k in states["plain"])


def test_cache_refuses_a_tap_whose_rows_are_no_samples(tmp_path, monkeypatch):
    from tests.engine.toys import ToyAdapter

    whole = ToyAdapter.forward

    def with_rows(self: Any, *args: Any, **options: Any) -> Any:
        found = whole(self, *args, **options)
        logits = found.offers["logits"]
        found.offers["flat"] = (logits() if callable(logits) else logits).flatten()[:, None]
        return found

    monkeypatch.setattr(ToyAdapter, "forward", with_rows)
    monkeypatch.setattr(ToyAdapter, "offers", (*ToyAdapter.offers, "flat"))
    data = dict(toy_pair().data.model_dump(), train=dict(type="ToyData", split="train", views=1))
    methods = dict(Rows=dict(links=[dict(type="ToyRows")]))
    run = toy_run(tmp_path, "Rows", data=data, cache=dict(dtype="float32"), methods=methods)
    said = r"tap 'flat' of 'teacher' gives \(\d+, 1\) for \d+ samples, .* set cache=False for method Rows"
    with pytest.raises(ConfigError, match=said):
        execute(run, RunOptions(out=tmp_path / "runs", cache=tmp_path / "cache", threads=1))
    assert not (tmp_path / "cache").exists()
