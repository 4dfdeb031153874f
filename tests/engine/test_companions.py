"""Two students of one run: each keeps its file and its record, starts as if alone, and is made only once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.engine.bench import run_suite
from limbeck.engine.config import PairConfig, RunConfig, expand, load_pair
from limbeck.engine.record import RunRecord, iter_records
from limbeck.engine.run import RunOptions, execute
from limbeck.engine.suite import Suite, plan
from limbeck.engine.weights import read_weights, sha256_file
from limbeck.errors import ConfigError, UnknownName
from tests.engine.toys import toy_pair

ROOT = Path(__file__).parents[2]
NARROW, WIDE = dict(type="ToyNet", width=2), dict(type="ToyNet", width=3)
BOTH = [dict(type="ToyMatch"), dict(type="ToyMatch", teacher="student", student="teacher")]


def mutual(weight: float = 1.0, **changes: Any) -> dict[str, Any]:
    """A method that trains the narrow and the wide net together and keeps both."""
    links = [dict(link, weight=weight) for link in BOTH]
    members = dict(teacher=dict(type="trained", init="student"))
    return dict(links=links, members=members, companions=dict(teacher="wide"), **changes)


def configs(folder: Path, **changes: Any) -> tuple[str, str]:
    """Two pair files: the run is the narrow one's, and the wide one has its record too."""
    narrow = str(folder / "narrow.py")
    write(folder, "narrow", pair="narrow", student=NARROW, teacher=WIDE, methods=dict(Mutual=mutual(**changes)))
    methods = dict(Mutual=dict(same_run_as=narrow))
    return narrow, write(folder, "wide", pair="wide", student=WIDE, teacher=NARROW, methods=methods)


def write(folder: Path, name: str, **changes: Any) -> str:
    values = toy_pair(**changes).model_dump(exclude_defaults=True)
    lines = ["custom_imports = dict(imports=['tests.engine.toys'])", *(f"{k} = {v!r}" for k, v in values.items())]
    (folder / f"{name}.py").write_text("\n".join(lines))
    return str(folder / f"{name}.py")


def runs(folder: Path, **changes: Any) -> tuple[RunConfig, RunConfig]:
    """The run as each of the two pairs has it."""
    return tuple(expand(load_pair(config), "Mutual", 0) for config in configs(folder, **changes))  # type: ignore[return-value]


def options(folder: Path) -> RunOptions:
    return RunOptions(out=folder / "runs", records=folder / "records", threads=1, latency_ms=1.0)


def records_of(folder: Path) -> dict[str, RunRecord]:
    return {f"{r.pair}/{r.method}": r for _, r in iter_records(folder / "records")}


def student(folder: Path, run: RunConfig) -> dict[str, torch.Tensor]:
    return read_weights(folder / "runs" / run.id / "student.safetensors")[0]


def test_one_run_keeps_both_students_with_a_record_each(tmp_path):
    narrow, wide = runs(tmp_path)
    execute(narrow, options(tmp_path))
    records = records_of(tmp_path)
    assert set(records) == {"narrow/Mutual", "wide/Mutual"}
    for run, model in ((narrow, NARROW), (wide, WIDE)):
        record = records[f"{run.pair}/Mutual"]
        path = tmp_path / "runs" / run.id / "student.safetensors"
        assert record.config == run.model_dump(mode="json")
        assert record.student_sha256 == sha256_file(path)
        assert record.student.name == f"ToyNet (width {model['width']})"
        assert len(student(tmp_path, run)["layer1.bias"]) == model["width"]
        assert record.plain_record == f"toy/{run.pair}/plain/seed0"
    curves = [records[f"{run.pair}/Mutual"].history for run in (narrow, wide)]
    assert curves[0] is not None
    assert curves[1] is not None
    assert curves[0].losses == curves[1].losses
    assert {"student.loss_ce", "teacher.loss_ce"} < set(curves[0].losses)
    assert (curves[0].val_epochs, curves[1].val_epochs, curves[1].val_metrics) == ([4], [], {})  # never validated


@pytest.mark.parametrize("side", [0, 1])
def test_either_side_alone_makes_the_very_same_run(tmp_path, side):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = runs(tmp_path / "a"), runs(tmp_path / "b")
    execute(first[0], options(tmp_path / "a"))
    execute(second[1], options(tmp_path / "b"))
    a, b = student(tmp_path / "a", first[side]), student(tmp_path / "b", second[side])
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_companion_starts_and_without_weight_ends_as_if_it_were_alone(tmp_path):
    run = runs(tmp_path, weight=0.0)
    execute(run[0], options(tmp_path))
    for one, config in zip(run, configs(tmp_path, weight=0.0)):
        alone = expand(load_pair(config), "plain", 0)
        record = execute(alone, options(tmp_path))
        assert record is not None
        assert record.initial_hash == records_of(tmp_path)[f"{one.pair}/Mutual"].initial_hash
        mine, theirs = student(tmp_path, one), student(tmp_path, alone)
        assert all(torch.equal(mine[k], theirs[k]) for k in mine)


def test_each_member_may_have_its_own_optimizer(tmp_path):
    slow = dict(type="SGD", lr=0.0)
    run = runs(tmp_path, optimizers=dict(teacher=slow))
    assert run[0].recipe.optimizers == run[1].recipe.optimizers == dict(teacher=slow)
    record = execute(run[0], options(tmp_path))
    assert record is not None
    still = expand(load_pair(configs(tmp_path)[1]), "plain", 0)
    still = still.model_copy(update=dict(recipe=still.recipe.model_copy(update=dict(optimizer=slow))))
    execute(still, options(tmp_path))
    kept, unmoved = student(tmp_path, run[1]), student(tmp_path, still)
    assert all(torch.equal(kept[k], unmoved[k]) for k in kept)
    assert record.recipe.learning_rate_first == 0.05


def test_optimizer_of_no_member_is_named(tmp_path):
    run = runs(tmp_path, optimizers=dict(teachr=dict(type="SGD", lr=0.1)))[0]
    with pytest.raises(UnknownName, match=r"teachr.*did you mean.*teacher"):
        execute(run, options(tmp_path))


def test_suite_makes_the_run_once_and_finds_both_records(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    groups = [dict(config=c) for c in configs(tmp_path)]
    suite = Suite.model_validate(dict(name="toys", title="Toys", seeds=[0], groups=groups))
    ids = [f"toy/{pair}/mutual/seed0" for pair in ("narrow", "wide")]
    assert {job.id: job.same_run for job in plan(suite) if job.method == "Mutual"} == {
        ids[0]: [ids[1]],
        ids[1]: [ids[0]],
    }
    events: list[Any] = []
    outcome = run_suite(suite, tmp_path / "out", jobs=1, on_event=events.append)
    assert set(ids) <= set(outcome.made)
    assert [e.id for e in events if e.kind == "start" and "mutual" in e.id] == [ids[0]]
    assert {e.id for e in events if e.kind == "finish"} == set(outcome.made)
    latency = {r.student.name: set() for _, r in iter_records(tmp_path / "out" / "records")}
    for _, record in iter_records(tmp_path / "out" / "records"):
        latency[record.student.name].add(record.cost.student_latency_ms)
    assert [len(found) for found in latency.values()] == [1, 1]  # measured once, also for the companion
    again = run_suite(suite, tmp_path / "out", jobs=1)
    assert again.made == []


def test_resumed_run_still_keeps_both(tmp_path, monkeypatch):
    import limbeck.engine.run as module

    (tmp_path / "straight").mkdir()
    (tmp_path / "cut").mkdir()
    narrow, wide = runs(tmp_path / "straight")
    execute(narrow, options(tmp_path / "straight"))
    run = runs(tmp_path / "cut")[0]

    class Cut(Exception):
        pass

    def stop(*args: Any) -> None:
        raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(module, "_keep", stop)
        with pytest.raises(Cut):
            execute(run, options(tmp_path / "cut"))
    assert not records_of(tmp_path / "cut")
    execute(run, options(tmp_path / "cut"))
    for one in (narrow, wide):
        a, b = student(tmp_path / "straight", one), student(tmp_path / "cut", one)
        assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(companions=dict(teacher="other")), "keeps no companion for pair toy/wide"),
        (dict(companions=dict(nobody="wide")), "keeps 'nobody' as companion, which its members do not train"),
        (dict(members={}), "keeps 'teacher' as companion, which its members do not train"),
    ],
)
def test_companion_that_is_none_is_said(tmp_path, changes, said):
    narrow, wide = configs(tmp_path)
    pair = load_pair(narrow).model_dump()
    pair["methods"]["Mutual"].update(changes)
    write_back(narrow, pair)
    with pytest.raises(ConfigError, match=said):
        expand(load_pair(wide), "Mutual", 0)


def test_companion_must_be_the_other_pairs_student(tmp_path):
    narrow, wide = configs(tmp_path)
    write_back(narrow, load_pair(narrow).model_dump() | dict(teacher=dict(type="ToyNet", width=5)))
    with pytest.raises(ConfigError, match="trains another 'teacher' than the student of wide"):
        expand(load_pair(wide), "Mutual", 0)


def test_best_val_cannot_choose_for_two(tmp_path):
    run = runs(tmp_path)[0]
    run = run.model_copy(update=dict(recipe=run.recipe.model_copy(update=dict(selection="best_val"))))
    with pytest.raises(ConfigError, match="best_val chooses for one"):
        execute(run, options(tmp_path))


def write_back(path: str, pair: dict[str, Any]) -> None:
    values = PairConfig.model_validate(pair).model_dump(exclude_defaults=True)
    lines = ["custom_imports = dict(imports=['tests.engine.toys'])", *(f"{k} = {v!r}" for k, v in values.items())]
    Path(path).write_text("\n".join(lines))


# --- parameter groups ---


def test_paramwise_gives_each_key_its_rate_and_decay(tmp_path):
    from limbeck.engine.distiller import Distiller
    from limbeck.engine.runner import build_optim_wrapper

    run = expand(toy_pair(), "plain", 0)
    keys = {"fc": dict(lr_mult=10.0, decay_mult=0.0), "layer": dict(lr_mult=0.5)}
    recipe = run.recipe.model_copy(update=dict(paramwise=dict(custom_keys=keys)))
    model = Distiller(**{k: v for k, v in run.model.items() if k != "type"})
    groups = build_optim_wrapper(model, model.links, recipe).optimizer.param_groups
    names = {id(p): name for name, p in model.deploy.named_parameters()}
    found = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert found == {
        **{f"layer{i}.{part}": (0.025, 1e-3) for i in (1, 2) for part in ("weight", "bias")},
        **{f"fc.{part}": (0.5, 0.0) for part in ("weight", "bias")},
    }


def test_paramwise_of_a_method_adds_to_the_recipe_of_its_runs_alone():
    pair = toy_pair()
    pair.recipe = pair.recipe.model_copy(update=dict(paramwise=dict(custom_keys={"fc": dict(lr_mult=2.0)})))
    before = expand(pair, "ToyBridge", 0, teacher_weights="w")
    pair.methods["ToyBridge"].paramwise = dict(custom_keys={"bridge": dict(lr_mult=0.1)})
    assert expand(pair, "plain", 0).recipe.paramwise == dict(custom_keys={"fc": dict(lr_mult=2.0)})
    found = expand(pair, "ToyBridge", 0, teacher_weights="w")
    assert found.recipe.paramwise == dict(custom_keys={"fc": dict(lr_mult=2.0), "bridge": dict(lr_mult=0.1)})
    assert before.recipe.paramwise == dict(custom_keys={"fc": dict(lr_mult=2.0)})
    assert pair.recipe.paramwise == dict(custom_keys={"fc": dict(lr_mult=2.0)})


@pytest.mark.parametrize(
    ("paramwise", "said"), [(dict(bias_lr_mult=2.0), "bias_lr_mult"), (dict(custom_keys=dict(fc=dict(lr=1.0))), "'lr'")]
)
def test_paramwise_option_that_is_not_known_is_named(tmp_path, paramwise, said):
    run = expand(toy_pair(), "plain", 0)
    run = run.model_copy(update=dict(recipe=run.recipe.model_copy(update=dict(paramwise=paramwise))))
    with pytest.raises(UnknownName, match=said):
        execute(run, options(tmp_path))


def test_fields_that_say_nothing_are_left_out_of_the_config(tmp_path):
    config = expand(toy_pair(), "plain", 0).model_dump(mode="json")
    assert "companions" not in config
    assert not {"optimizers", "paramwise"} & set(config["recipe"])
