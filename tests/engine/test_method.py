"""The base of every method: taps, members, weight and schedule, and what it refuses."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from limbeck.engine.adapter import Batch
from limbeck.engine.method import LinkInputs, Method
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, UnknownName


class Match(Method):
    """Not registered: built through the registry by its class."""

    default_taps: ClassVar[Any] = (("logits", "logits"),)

    def __init__(self, *, sharpness: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sharpness = sharpness

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        return {"match": self.sharpness * (batch.student[0] - batch.teacher[0]).square().mean()}


class NoForward(Method):
    default_taps: ClassVar[Any] = (("logits", "logits"),)


class NoTaps(Method):
    pass


def test_defaults() -> None:
    link = Match()
    assert (link.teachers, link.student, link.taps) == (("teacher",), "student", [("logits", "logits")])
    assert (link.weight, link.may_be_zero, link.name) == (1.0, False, "match")


def test_several_teachers_keep_their_order() -> None:
    class Ensemble(Match):
        many_teachers = True

    assert Ensemble(teacher=["b", "a"]).teachers == ("b", "a")


def test_several_teachers_for_a_method_of_one_are_refused() -> None:
    with pytest.raises(ConfigError, match="reads one teacher"):
        Match(teacher=["b", "a"])


def test_what_a_method_asks_for_is_asked_by_none_of_its_own_accord() -> None:
    link = Match()
    asked = (link.wants_inputs, link.wants_data, link.alters_batch, link.many_teachers, link.own_terms)
    assert asked == (False, False, False, False, frozenset())
    assert (link.optimizer, link.assumption, link.members, link.shapes) == (None, "", {}, {})


def test_members_are_no_submodules() -> None:
    link = Match()
    link.members = {"teacher": torch.nn.Linear(2, 2)}
    assert not list(link.parameters())
    assert Match().members == {}


def test_batch_is_left_as_it_is_unless_altered() -> None:
    data = Batch(torch.zeros(2, 1), torch.zeros(2))
    assert Match().alter(data, torch.Generator()) is data


def test_generator_is_decided_by_the_draw_alone() -> None:
    def drawn(draw: int) -> Tensor:
        return torch.rand(4, generator=LinkInputs(teacher=[], student=[], draw=draw).generator())

    torch.manual_seed(0)
    first = drawn(1)
    torch.manual_seed(1)
    assert torch.equal(drawn(1), first)
    assert not torch.equal(drawn(2), first)
    assert LinkInputs(teacher=[], student=[]).generator().device.type == "cpu"


def test_taps_of_a_config_replace_the_default_ones() -> None:
    assert Match(taps=[["neck", "neck.0"], ("fc", "head")]).taps == [("neck", "neck.0"), ("fc", "head")]


@pytest.mark.parametrize("taps", [[], [("logits",)], [("a", "b", "c")], [("a", "b"), ("c",)]])
def test_taps_that_are_no_pairs_are_refused(taps: list[Any]) -> None:
    with pytest.raises(ConfigError, match=r"Match needs taps as pairs \[\(teacher tap, student tap\), …\]"):
        Match(taps=taps)


def test_method_without_default_taps_asks_for_them() -> None:
    with pytest.raises(ConfigError, match=r"NoTaps needs taps as pairs .*; got None"):
        NoTaps()
    assert NoTaps(taps=[("a", "b")]).taps == [("a", "b")]


@pytest.mark.parametrize(("progress", "factor"), [(0.0, 0.0), (0.25, 25.0), (0.5, 50.0), (1.0, 50.0)])
def test_factor_is_weight_times_schedule(progress: float, factor: float) -> None:
    assert Match(weight=50, schedule={"type": "warmup", "end": 0.5}).factor(progress) == factor


def test_weight_zero_is_zero_at_any_progress() -> None:
    link = Match(weight=0.0, schedule={"type": "decay"})
    assert [link.factor(p) for p in (0.0, 0.5, 1.0)] == [0.0, 0.0, 0.0]


def test_unknown_schedule_names_a_near_one() -> None:
    with pytest.raises(UnknownName, match="unknown schedule 'warmpu'; did you mean 'warmup'"):
        Match(schedule={"type": "warmpu"})


@pytest.mark.parametrize(("key", "meant"), [("sharpnes", "sharpness"), ("shedule", "schedule"), ("tap", "taps")])
def test_unknown_key_names_a_near_one_of_class_or_base(key: str, meant: str) -> None:
    with pytest.raises(UnknownName, match=f"unknown key of method Match: '{key}' in link 3; did you mean .*'{meant}'"):
        METHODS.make({"type": Match, key: 1}, where="in link 3")


def test_registry_passes_keys_of_class_and_base() -> None:
    link = METHODS.make({"type": Match, "sharpness": 2.0, "weight": 3.0, "student": "small", "may_be_zero": True})
    assert (link.sharpness, link.weight, link.student, link.may_be_zero) == (2.0, 3.0, "small", True)


def test_unknown_type_names_a_near_method() -> None:
    with pytest.raises(UnknownName, match="unknown method 'FitNets' in link 0; did you mean 'FitNet'"):
        METHODS.make({"type": "FitNets"}, where="in link 0")


def test_config_without_type_is_refused() -> None:
    with pytest.raises(ConfigError, match="a method config needs a 'type' key"):
        METHODS.make({"weight": 1.0})


def test_method_without_forward_is_named() -> None:
    with pytest.raises(NotImplementedError, match="NoForward does not implement forward"):
        NoForward()(LinkInputs(teacher=[torch.zeros(1)], student=[torch.zeros(1)]))


def test_connect_builds_nothing_unless_overridden() -> None:
    link = Match()
    link.connect([(2, 3)], [(2, 3)])
    assert not link.state_dict()


def test_terms_are_not_weighted_by_the_method() -> None:
    # The engine multiplies once; a method that did so too would square the weight.
    batch = LinkInputs(teacher=[torch.zeros(2, 3)], student=[torch.ones(2, 3)])
    assert Match(weight=5.0)(batch)["match"].item() == Match()(batch)["match"].item() == 1.0


def test_link_inputs_do_not_share_their_defaults() -> None:
    first, second = (LinkInputs(teacher=[], student=[]) for _ in range(2))
    first.teachers.append([])
    first.inputs["x"] = 1
    assert (second.teachers, second.inputs) == ([], {})
