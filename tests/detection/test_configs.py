"""The shipped detection pairs: every method of them makes a real run, and teacher and student are what they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from limbeck.engine.config import PairConfig, load_pair, parse, with_overrides
from limbeck.engine.record import RunRecord
from limbeck.engine.run import RunOptions, execute
from limbeck.engine.single import single_run

pytest.importorskip("mmdet", reason="the networks are mmdetection's")
ROOT = Path(__file__).resolve().parents[2]
SHORT = [
    "recipe.epochs=2",
    "data.train.count=4",
    "data.val.count=2",
    "data.test.count=2",
    "data.batch_size=2",
    "data.eval_batch_size=2",
]
METHODS = list(load_pair("detection/digit_scenes").methods)


@pytest.fixture(scope="module")
def pair() -> PairConfig:
    config = parse(PairConfig, with_overrides(load_pair("detection/digit_scenes").model_dump(), SHORT), "digit_scenes")
    config.methods["MasKD"].links[0].update(stage1_iterations=2, stage1_batch_size=2)
    return config


@pytest.fixture(scope="module")
def out(pair: PairConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the teacher's run."""
    folder = tmp_path_factory.mktemp("detection")
    run(pair, "teacher", folder)
    return folder


def run(pair: PairConfig, method: str, out: Path) -> RunRecord:
    options = RunOptions(out=out / "runs", records=out / "records", threads=1, latency_ms=1.0)
    record = execute(single_run(pair, method, 0, out), options)
    assert record is not None
    return record


@pytest.mark.parametrize("method", ["plain", *METHODS])
def test_every_method_makes_a_run_on_digit_scenes(pair, out, method):
    record = run(pair, method, out)
    assert set(record.metrics) == {"mAP", "AP50", "AP75"}
    assert len(record.per_class["AP"]) == 10
    assert (record.teacher_record is None) == (method == "plain")
    assert record.student.parameters < 6e5


def without_weights(methods: dict) -> dict:
    plain = {name: m.model_copy(deep=True) for name, m in methods.items()}
    for method in plain.values():
        method.paramwise = None
        for link in method.links:
            for key in ("weight", "foreground", "background", "relation"):
                link.pop(key, None)
    return plain


def test_pairs_of_one_kind_have_the_same_methods_but_for_weights_and_rates():
    ours, scenes = load_pair("detection/bccd_gfl").methods, load_pair("detection/digit_scenes").methods
    assert ours != scenes
    assert without_weights(ours) == without_weights(scenes)


def test_weights_on_bccd_are_those_that_the_grid_chose_on_validation():
    said = json.loads((ROOT / "benchmarks" / "selection" / "bccd.json").read_text(encoding="utf-8"))
    assert said["config"] == "detection/bccd_gfl"
    methods = load_pair("detection/bccd_gfl").methods
    assert set(said["chosen"]) == set(methods) - {"DIST"} - {m for m in methods if m.startswith("ACAM-KD ")}
    for name, choice in said["chosen"].items():
        runs = {r["factor"]: r for r in said["runs"] if r["method"] == name}
        best = max(runs.values(), key=lambda r: r["value"])
        assert (choice["factor"], choice["weight"]) == (best["factor"], best["weight"]), name
        assert choice["weight"] == pytest.approx(methods[name].links[-1].get("weight", 1.0)), name


def test_student_on_bccd_has_at_most_a_quarter_of_the_teacher_s_operations():
    from limbeck.engine.cost import count_flops
    from limbeck.engine.evaluate import without_pretrained
    from limbeck.engine.registry import ADAPTERS, MODELS

    config = load_pair("detection/bccd_gfl")
    adapter = ADAPTERS.make(config.adapter)
    flops = []
    for model in (config.teacher, config.student):
        network = MODELS.make(without_pretrained(model))
        flops.append(count_flops(network, adapter.example(network).inputs))
    assert flops[1] <= flops[0] / 4
