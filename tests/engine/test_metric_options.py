"""Arguments of a metric: they reach it wherever it is built, and configs without any keep their hash."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from limbeck.engine.config import MetricConfig, expand, load_pair
from limbeck.engine.evaluate import evaluate_weights
from limbeck.engine.record import config_hash, read_record
from limbeck.engine.registry import METRICS
from limbeck.engine.run import RunOptions, execute
from limbeck.errors import TeacherOff, UnknownName
from tests.engine.toys import ToyMetric, toy_pair, toy_run

ROOT = Path(__file__).parents[2]


@METRICS.register_module(name="_ScaledTop1")
class ScaledTop1(ToyMetric):
    built: ClassVar[list[float]] = []

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.built.append(scale)

    def values(self) -> dict[str, float]:
        return {"top1": self.scale * super().values()["top1"]}


def options(folder: Path, name: str) -> RunOptions:
    return RunOptions(out=folder / name, records=folder / f"{name}-records", threads=1, latency_ms=1.0)


def test_options_reach_the_metric_in_validation_test_and_verification(tmp_path):
    recipe = dict(epochs=2, optimizer=dict(type="SGD", lr=0.05), val_interval=1)
    also = toy_pair().data.model_dump() | dict(also=dict(more=dict(type="ToyData", split="test", variant=3)))
    found = {}
    for scale in (1.0, 0.5):
        metric = dict(type="_ScaledTop1", **(dict(options=dict(scale=scale)) if scale != 1.0 else {}))
        ScaledTop1.built.clear()
        run = toy_run(tmp_path, recipe=recipe, data=also, metric=metric)
        record = execute(run, options(tmp_path, str(scale)))
        assert record is not None
        again = evaluate_weights(record.config, tmp_path / str(scale) / run.id / "student.safetensors")
        assert set(ScaledTop1.built) == {scale}
        found[scale] = (record.metrics, record.val_metrics, again)
    for whole, half in zip(found[1.0], found[0.5]):
        assert set(whole) >= {"top1"}
        assert half == pytest.approx({name: value / 2 for name, value in whole.items()})
    assert "more.top1" in found[1.0][0]


def test_teacher_is_checked_by_the_metric_with_its_options(tmp_path):
    metric = dict(type="_ScaledTop1", options=dict(scale=0.5))
    run = toy_run(tmp_path, metric=metric)
    run.model["members"]["teacher"]["expected"] = {"top1": 100.0}
    with pytest.raises(TeacherOff, match="top1"):
        execute(run, options(tmp_path, "off"))
    assert ScaledTop1.built[-1] == 0.5


def test_unknown_options_and_metrics_are_answered_with_near_names():
    with pytest.raises(UnknownName, match=r"'scael'.*in metric.*did you mean 'scale'"):
        MetricConfig(type="_ScaledTop1", options=dict(scael=2.0)).build()
    with pytest.raises(UnknownName, match="_ScaledTop1"):
        MetricConfig(type="_ScaledTop2").build()
    one, two = (MetricConfig(type="_ScaledTop1").build() for _ in range(2))
    assert one is not two


def test_options_are_part_of_a_config_only_where_there_are_any():
    def dumped(**metric: Any) -> Any:
        return expand(toy_pair(metric=dict(type="_ScaledTop1", **metric)), "plain", 0).model_dump(mode="json")

    assert "options" not in dumped()["metric"]
    assert dumped(options={}) == dumped()
    assert dumped(options=dict(scale=2.0))["metric"]["options"] == {"scale": 2.0}
    assert config_hash(dumped(options=dict(scale=2.0))) != config_hash(dumped())


@pytest.mark.parametrize("method", ["plain", "teacher"])
def test_committed_records_still_have_their_configs_hash(method):
    path = ROOT / "results" / "digits" / "resnet20-resnet8" / method / "seed0.json"
    record = read_record(path)
    run = expand(load_pair("vision/digits"), method, 0)
    assert run.model_dump(mode="json") == record.config
    assert config_hash(run.model_dump(mode="json")) == record.config_hash
