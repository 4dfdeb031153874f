"""Variants: names that say what changed and can be read back, and configs that change in that one place."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.engine.config import MethodConfig, expand
from limbeck.engine.record import record_id
from limbeck.engine.variant import Variant, apply_variant, split_variant
from limbeck.errors import ConfigError, UnknownName
from tests.engine.toys import toy_pair

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def two_links() -> MethodConfig:
    return MethodConfig(links=[dict(type="ToyMatch", weight=1.0), dict(type="ToyBridge", weight=2.0)])


# --- names ---


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (2, "KD@option=2"),
        (2.0, "KD@option=2.0"),
        (1e-05, "KD@option=1e-05"),
        (-1, "KD@option=-1"),
        (True, "KD@option=True"),
        (None, "KD@option=None"),
        ("std", "KD@option='std'"),
        ("a=b@c", "KD@option='a=b@c'"),
        ([1, 3, 5], "KD@option=[1, 3, 5]"),
        ([["layer1", "layer2"]], "KD@option=[['layer1', 'layer2']]"),
    ],
)
def test_name_says_option_and_value_and_is_read_back(value: Any, name: str) -> None:
    variant = Variant("option", value)
    assert variant.method("KD") == name
    base, found = split_variant(name)
    assert (base, found) == ("KD", variant)
    assert found is not None
    assert type(found.value) is type(value)


@given(st.from_regex(r"[a-z_0-9.]+", fullmatch=True), VALUES)
def test_name_of_any_value_is_read_back(option: str, value: Any) -> None:
    variant = Variant(option, value)
    assert split_variant(variant.method("KD+LS")) == ("KD+LS", variant)


def test_plain_name_is_no_variant() -> None:
    assert split_variant("KD+LS") == ("KD+LS", None)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("KD@", "'' is not a Python literal; write NAME@option=value, as KD@temperature=2"),
        ("KD@temperature", "'' is not a Python literal"),
        ("KD@temperature=", "'' is not a Python literal"),
        ("KD@temperature=two", "'two' is not a Python literal"),
        ("KD@temperature=inf", "'inf' is not a Python literal"),
        ("KD@temperature=[1", r"'\[1' is not a Python literal"),
        ("KD@taps={[1]}", r"'\{\[1\]\}' is not a Python literal"),
        ("KD@temperature=__import__('os')", "is not a Python literal"),
        ("KD@=2", "'KD@=2' is not of the form NAME@option=value"),
        ("@temperature=2", "'@temperature=2' is not of the form NAME@option=value"),
    ],
)
def test_bad_name_is_answered_with_the_form(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        split_variant(name)
    with pytest.raises(ConfigError, match=said):
        expand(toy_pair(), name, 0)


# --- configs ---


@pytest.mark.parametrize(
    ("option", "index", "key"),
    [("temperature", 0, "temperature"), ("weight", 0, "weight"), ("0.weight", 0, "weight"), ("1.mode", 1, "mode")],
)
def test_option_is_set_in_its_link_alone(option: str, index: int, key: str) -> None:
    spec, student = two_links(), dict(type="ToyNet")
    changed, model = apply_variant(spec, student, Variant(option, 9), "M")
    expected = two_links()
    expected.links[index][key] = 9
    assert (changed, model) == (expected, student)
    assert spec == two_links()


def test_task_weight_is_set_as_a_number() -> None:
    changed, _ = apply_variant(two_links(), {}, Variant("task_weight", 0), "M")
    assert changed == two_links().model_copy(update={"task_weight": 0.0})


@pytest.mark.parametrize("value", ["0.5", True, None, [1.0]])
def test_task_weight_that_is_no_number_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"M@task_weight=.*: task_weight is a number; got"):
        apply_variant(two_links(), {}, Variant("task_weight", value), "M")


def test_student_argument_is_set_in_a_copy() -> None:
    student = dict(type="ToyNet", width=2)
    spec, model = apply_variant(two_links(), student, Variant("student.width", 3), "M")
    assert (spec, model, student) == (two_links(), dict(type="ToyNet", width=3), dict(type="ToyNet", width=2))


@pytest.mark.parametrize(("option", "index"), [("2.weight", 2), ("17.weight", 17)])
def test_link_that_is_not_there_is_named(option: str, index: int) -> None:
    with pytest.raises(ConfigError, match=rf"M@{index}.weight=1: method M has 2 links, none numbered {index}"):
        apply_variant(two_links(), {}, Variant(option, 1), "M")


# --- runs ---


def test_variant_of_a_method_changes_one_place_of_its_run() -> None:
    base, variant = (expand(toy_pair(), name, 1) for name in ("ToyMatch", "toymatch@mode='zero'"))
    assert variant.method == "ToyMatch@mode='zero'"
    assert variant.id == "toy/toy4-toy2/toymatch@mode=-zero/seed1"
    assert variant.model["links"] == [dict(type="ToyMatch", mode="zero")]
    assert variant.model_dump(exclude={"method", "model"}) == base.model_dump(exclude={"method", "model"})
    assert {k: v for k, v in variant.model.items() if k != "links"} == {
        k: v for k, v in base.model.items() if k != "links"
    }


def test_variant_of_the_student_leaves_the_teacher() -> None:
    run = expand(toy_pair(), "ToyMatch@student.width=3", 0)
    assert run.model["members"]["student"]["model"] == dict(type="ToyNet", width=3)
    assert run.model["members"]["teacher"]["model"] == dict(type="ToyNet", width=4)
    assert expand(toy_pair(), "plain@student.width=3", 0).model["members"] == {
        "student": dict(type="trained", model=dict(type="ToyNet", width=3))
    }


def test_variant_of_a_methods_own_student() -> None:
    pair = toy_pair(methods=dict(M=dict(student=dict(type="ToyNet", width=6, norm=True))))
    assert expand(pair, "M@student.width=5", 0).model["members"]["student"]["model"] == dict(
        type="ToyNet", width=5, norm=True
    )


def test_variant_may_name_other_teachers() -> None:
    teachers = dict(wide=dict(model=dict(type="ToyNet", width=8)))
    pair = toy_pair(teachers=teachers, methods=dict(M=dict(links=[dict(type="ToyMean", teacher=["teacher", "wide"])])))
    assert list(expand(pair, "M", 0).model["members"]) == ["teacher", "wide", "student"]
    assert list(expand(pair, "M@teacher=['wide']", 0).model["members"]) == ["wide", "student"]
    with pytest.raises(UnknownName, match="unknown teacher 'wie' in pair toy/toy4-toy2; did you mean 'wide'"):
        expand(pair, "M@teacher=['wie']", 0)


@pytest.mark.parametrize("method", ["teacher@student.width=8", "teacher-wide@weight=2"])
def test_variant_of_a_teacher_is_refused_and_not_ignored(method: str) -> None:
    pair = toy_pair(teachers=dict(wide=dict(model=dict(type="ToyNet", width=8))))
    with pytest.raises(ConfigError, match="a teacher has no variants"):
        expand(pair, method, 0)


def test_variant_of_an_unknown_method_is_answered_with_near_names() -> None:
    with pytest.raises(UnknownName, match="unknown method 'ToyMach' in pair toy/toy4-toy2; did you mean 'ToyMatch'"):
        expand(toy_pair(), "ToyMach@weight=2", 0)


@given(st.lists(st.integers(-9, 9), min_size=1, max_size=3), st.lists(st.integers(-9, 9), min_size=1, max_size=3))
def test_records_of_variants_by_numbers_lie_apart(a: list[int], b: list[int]) -> None:
    ids = {record_id("b", "p", Variant("student.depths", value).method("KD"), 0) for value in (a, b)}
    assert (len(ids) == 1) == (a == b)
