"""Errors: near names, one sentence each, and safe passage between processes."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from limbeck import errors
from limbeck.errors import ExtraMissing, UnknownName, UserError, near

KINDS = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, UserError)]


def test_near_finds_a_typo():
    assert near("epoch", ["epochs", "optimizer", "selection"]) == "did you mean 'epochs'?"


def test_near_ignores_case_and_gives_the_registered_spelling():
    assert near("fitnet", ["KD", "FitNet", "SPKD"]) == "did you mean 'FitNet'?"


def test_near_lists_several_matches_best_first():
    said = near("resnet20", ["resnet8", "resnet20x4", "vit"])
    assert said.index("resnet20x4") < said.index("resnet8")
    assert "vit" not in said


def test_near_finds_a_module_by_its_last_part():
    assert "'stages.0.blocks.1.conv_dw'" in near("conv_dw", ["stages.0.blocks.1.conv_dw", "classifier"])


def test_near_without_a_match_lists_what_there_is():
    assert near("zzz", ["a", "b"]) == "there are: a, b"


def test_near_cuts_a_long_list():
    said = near("zzz", [f"name{i:02d}" for i in range(40)])
    assert said.endswith("name11, …")


def test_near_of_nothing():
    assert near("zzz", []) == "there are none"


@settings(suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no failure
@given(st.text(max_size=12), st.lists(st.text(max_size=12), max_size=6))
def test_near_always_answers(name, known):
    assert near(name, known)


@given(st.text(min_size=1, max_size=12, alphabet="abcdefgh"), st.lists(st.text(max_size=12), max_size=6))
def test_near_finds_the_very_name(name, known):
    assert near(name, [*known, name]).startswith("did you mean")


def test_unknown_name_says_kind_name_place_and_near_names():
    error = UnknownName("method", "KDD", ["KD", "AT"], "in pair demo/a-b")
    assert str(error) == "unknown method 'KDD' in pair demo/a-b; did you mean 'KD'?"
    assert (error.kind, error.name) == ("method", "KDD")


def test_extra_missing_names_the_install_command():
    assert "pip install 'limbeck[detection]'" in str(ExtraMissing("GFL", "detection"))


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_every_error_has_one_base(kind):
    assert issubclass(kind, UserError)
    assert kind.__doc__


@pytest.mark.parametrize(
    "error",
    [
        UnknownName("method", "KDD", ["KD"]),
        ExtraMissing("GFL", "detection"),
        *(k("said") for k in KINDS if "__init__" not in vars(k)),
    ],
    ids=lambda e: type(e).__name__,
)
def test_error_crosses_a_process_border(error):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)
