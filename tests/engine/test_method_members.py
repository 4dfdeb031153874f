"""What a method may change of its pair: training data of its own, and moving averages that its links read."""

from __future__ import annotations

from typing import Any

import pytest

from limbeck.engine.config import PairConfig, expand
from limbeck.engine.distiller import Distiller
from limbeck.engine.record import config_hash
from limbeck.errors import UnknownName
from tests.engine.toys import teacher_file, toy_pair

AVERAGE = dict(type="ema", of="student", momentum=0.9)


def pair(**method: Any) -> PairConfig:
    return toy_pair(methods=dict(Own=method, ToyMatch=dict(links=[dict(type="ToyMatch")])))


def test_training_data_of_a_method_take_the_place_of_the_pairs():
    other = dict(type="ToyData", split="train", variant=5)
    made = pair(links=[dict(type="ToyMatch")], train=other)
    run = expand(made, "Own", 0)
    assert run.data.train == other
    for name in ("plain", "teacher", "ToyMatch"):
        assert expand(made, name, 0).data == toy_pair().data
    assert (run.data.val, run.data.test, run.data.batch_size) == (
        toy_pair().data.val,
        toy_pair().data.test,
        toy_pair().data.batch_size,
    )
    assert expand(made, "Own@weight=2.0", 0).data.train == other  # of its variants too
    assert made.data.train == toy_pair().data.train


def test_methods_without_their_own_data_keep_their_hash():
    def digest(made: PairConfig) -> str:
        return config_hash(expand(made, "ToyMatch", 0).model_dump(mode="json"))

    assert digest(pair(links=[dict(type="ToyMatch")], train=dict(type="ToyData"))) == digest(toy_pair())


def test_average_that_a_link_reads_is_no_teacher_to_be_trained(tmp_path):
    links = [dict(type="ToyMean", teacher=["teacher", "average"])]
    run = expand(pair(links=links, members=dict(average=AVERAGE)), "Own", 0, teacher_weights=teacher_file(tmp_path))
    members = run.model["members"]
    assert list(members) == ["teacher", "student", "average"]
    assert members["average"] == AVERAGE
    assert members["teacher"]["type"] == "frozen"
    parts = {key: value for key, value in run.model.items() if key != "type"}
    model = Distiller(**parts)
    assert list(model.shadows) == ["average"]
    assert model.specs["average"].momentum == 0.9
    assert model.methods()[0].teachers == ("teacher", "average")


def test_average_alone_makes_self_distillation(tmp_path):
    links = [dict(type="ToyMatch", teacher="average", may_be_zero=True)]
    run = expand(pair(links=links, members=dict(average=AVERAGE)), "Own", 0)
    assert list(run.model["members"]) == ["student", "average"]


def test_average_that_no_link_reads_is_an_unknown_member():
    with pytest.raises(UnknownName, match="unknown member 'averge' in members of method Own"):
        expand(pair(links=[dict(type="ToyMatch")], members=dict(averge=AVERAGE)), "Own", 0)
    links = [dict(type="ToyMean", teacher=["teacher", "average"])]
    with pytest.raises(UnknownName, match="teacher 'average'"):  # not declared: it would have to be a teacher
        expand(pair(links=links), "Own", 0)
