"""Suites: what they plan, in which order, and which runs are done, stale, failed or missing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from limbeck.engine.config import RunConfig, expand, is_teacher, load_pair
from limbeck.engine.record import FailureRecord, RunRecord, config_hash, record_path, write_failure, write_record
from limbeck.engine.suite import Job, Suite, Vary, load_suite, plan, resolve, state, suites
from limbeck.errors import ConfigError, CorruptFile, UnknownName
from tests.engine.test_record import record_dict
from tests.engine.toys import toy_pair


def write_pair(folder: Path, name: str = "pair", **changes: Any) -> str:
    value = toy_pair(**changes).model_dump(exclude_defaults=True)
    path = folder / f"{name}.py"
    path.write_text("\n".join(f"{k} = {v!r}" for k, v in value.items()), encoding="utf-8")
    return str(path)


def suite_of(config: str, **changes: Any) -> Suite:
    value = {"name": "toys", "title": "Toys", "seeds": [0, 1, 2], "groups": [{"config": config}]}
    return Suite.model_validate(value | changes)


def write_suite(folder: Path, text: str) -> str:
    path = folder / "toys.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def done(job: Job, records: Path, **changes: Any) -> RunRecord:
    """Write the record that the job would."""
    run: RunConfig = resolve(job, records)
    config = run.model_dump(mode="json")
    identity = {k: config[k] for k in ("task", "benchmark", "benchmark_version", "pair", "method", "seed")}
    value = record_dict(**identity, config=config, config_hash=config_hash(config), teacher_record=job.teacher_id)
    record = RunRecord.model_validate(value | changes)
    write_record(records, record)
    return record


def states(jobs: list[Job], records: Path) -> dict[str, str]:
    return {f"{job.method}{job.seed}": state(job, records)[0] for job in jobs}


@pytest.fixture
def suite(tmp_path) -> Suite:
    return suite_of(
        write_pair(tmp_path), seeds=[0, 1], groups=[{"config": str(tmp_path / "pair.py"), "methods": ["ToyMatch"]}]
    )


# --- plan ---


def test_plan_has_the_teacher_first_then_whole_seeds_with_plain_first(tmp_path):
    jobs = plan(suite_of(write_pair(tmp_path)))
    assert [(j.method, j.seed) for j in jobs] == [
        ("teacher", 0),
        *((m, s) for s in (0, 1, 2) for m in ("plain", "ToyMatch", "ToyBridge", "Zero")),
    ]
    assert len({j.id for j in jobs}) == len(jobs)


def test_linked_jobs_name_their_teacher_and_others_none(tmp_path):
    for job in plan(suite_of(write_pair(tmp_path), seeds=[4, 5])):
        linked = job.method not in ("teacher", "plain")
        assert job.teacher_id == ("toy/toy4-toy2/teacher/seed4" if linked else None)


def test_method_without_links_needs_no_teacher(tmp_path):
    jobs = plan(suite_of(write_pair(tmp_path, methods={"Alone": {"task_weight": 0.5}})))
    assert all(not j.trainers for j in jobs)


def test_every_seed_has_a_teacher_of_its_own_where_the_pair_says_so(tmp_path):
    jobs = plan(suite_of(write_pair(tmp_path, teacher_seeds="run"), seeds=[4, 5]))
    assert [j.id for j in jobs[:2]] == ["toy/toy4-toy2/teacher/seed4", "toy/toy4-toy2/teacher/seed5"]
    assert not any(is_teacher(j.method) for j in jobs[2:])
    for job in jobs[2:]:
        assert job.teacher_id in (None, f"toy/toy4-toy2/teacher/seed{job.seed}")
    assert {j.seed for j in jobs if j.teacher_id} == {4, 5}
    once = plan(suite_of(write_pair(tmp_path), seeds=[4, 5]))
    assert [j for j in jobs if j.seed == 4] == [j for j in once if j.seed == 4]


def test_seeds_takes_the_first(tmp_path):
    jobs = plan(suite_of(write_pair(tmp_path), seeds=[3, 1, 2]), seeds=2)
    assert list(dict.fromkeys(j.seed for j in jobs)) == [3, 1]
    assert plan(suite_of(write_pair(tmp_path)), seeds=99) == plan(suite_of(write_pair(tmp_path)))


@pytest.mark.parametrize("seeds", [0, -1])
def test_fewer_seeds_than_one_are_refused(tmp_path, seeds):
    with pytest.raises(ConfigError, match=f"at least 1 seed; got {seeds}"):
        plan(suite_of(write_pair(tmp_path)), seeds=seeds)


def test_only_keeps_plain_and_the_teacher(tmp_path):
    jobs = plan(suite_of(write_pair(tmp_path)), only=["toymatch"], seeds=1)
    assert [j.method for j in jobs] == ["teacher", "plain", "ToyMatch"]


def test_only_plain(tmp_path):
    assert [j.method for j in plan(suite_of(write_pair(tmp_path)), only=["plain"], seeds=1)] == ["teacher", "plain"]


def test_only_of_an_unknown_method_is_answered_with_near_names(tmp_path):
    with pytest.raises(UnknownName, match=r"unknown method 'ToyBrige' in suite 'toys'; did you mean 'ToyBridge'"):
        plan(suite_of(write_pair(tmp_path)), only=["ToyMatch", "ToyBrige"])


def test_group_chooses_methods_in_its_order_and_seeds(tmp_path):
    group = {"config": write_pair(tmp_path), "methods": ["Zero", "toymatch"], "seeds": [7]}
    jobs = plan(suite_of("", groups=[group]))
    assert [(j.method.lower(), j.seed) for j in jobs] == [("teacher", 7), ("plain", 7), ("zero", 7), ("toymatch", 7)]


def test_group_with_an_unknown_method_is_refused(tmp_path):
    group = {"config": write_pair(tmp_path), "methods": ["ToyMach"]}
    with pytest.raises(UnknownName, match=r"'ToyMach' in pair toy/toy4-toy2; did you mean 'ToyMatch'"):
        plan(suite_of("", groups=[group]))


def test_groups_follow_one_another_each_with_its_own_teacher(tmp_path):
    other = write_pair(tmp_path, "other", pair="other")
    jobs = plan(
        suite_of("", seeds=[0], groups=[{"config": write_pair(tmp_path)}, {"config": other, "methods": ["Zero"]}])
    )
    assert [(j.pair, j.method) for j in jobs[-3:]] == [("other", "teacher"), ("other", "plain"), ("other", "Zero")]
    assert jobs[-1].teacher_id == "toy/other/teacher/seed0"


def test_run_that_is_named_twice_is_planned_once(tmp_path):
    config = write_pair(tmp_path)
    groups = [{"config": config, "methods": ["Zero", "zero"]}, {"config": config, "methods": ["ToyMatch"]}]
    jobs = plan(suite_of("", seeds=[0, 0], groups=groups))
    assert [j.method for j in jobs] == ["teacher", "plain", "Zero", "ToyMatch"]


# --- ablations ---


def varied(folder: Path, *vary: dict[str, Any], **group: Any) -> Suite:
    return suite_of("", groups=[{"config": write_pair(folder), "vary": list(vary), **group}], seeds=[0, 1])


def test_variants_follow_the_methods_of_each_seed_with_their_teachers(tmp_path):
    vary = {"method": "ToyMatch", "option": "weight", "values": [0.5, 2]}
    jobs = plan(varied(tmp_path, vary, methods=["Zero"]))
    names = ["plain", "Zero", "ToyMatch@weight=0.5", "ToyMatch@weight=2"]
    assert [(j.method, j.seed) for j in jobs] == [("teacher", 0), *((m, s) for s in (0, 1) for m in names)]
    assert all(bool(j.trainers) == (j.method not in ("plain", "teacher")) for j in jobs)
    run = resolve(jobs[1], tmp_path)
    assert run.method == "plain"


def test_variant_names_are_those_that_a_run_takes(tmp_path):
    vary = Vary(method="toymatch", option="taps", values=[[["layer2", "layer2"]], "x"])
    assert vary.names() == ["toymatch@taps=[['layer2', 'layer2']]", "toymatch@taps='x'"]
    pair = load_pair(write_pair(tmp_path))
    assert [expand(pair, name, 0).model["links"][0]["taps"] for name in vary.names()] == vary.values


def test_only_takes_a_methods_variants_or_a_single_one(tmp_path):
    match = {"method": "ToyMatch", "option": "weight", "values": [0.5, 2]}
    suite = varied(tmp_path, match, {"method": "ToyBridge", "option": "weight", "values": [3]}, methods=["Zero"])
    assert chosen(suite, ["toymatch"]) == ["ToyMatch@weight=0.5", "ToyMatch@weight=2"]
    assert chosen(suite, ["ToyMatch@weight=2", "zero"]) == ["Zero", "ToyMatch@weight=2"]
    with pytest.raises(UnknownName, match=r"unknown method 'ToyMach' in suite 'toys'; did you mean 'ToyMatch'"):
        plan(suite, only=["ToyMach"])


def chosen(suite: Suite, only: list[str]) -> list[str]:
    return [j.method for j in plan(suite, only=only, seeds=1)][2:]


def test_variant_of_an_unknown_method_or_a_value_without_literal_is_refused(tmp_path):
    with pytest.raises(UnknownName, match="'ToyMach' in pair toy/toy4-toy2; did you mean 'ToyMatch'"):
        plan(varied(tmp_path, {"method": "ToyMach", "option": "weight", "values": [1]}))
    with pytest.raises(ConfigError, match="'inf' is not a Python literal"):
        plan(varied(tmp_path, {"method": "ToyMatch", "option": "weight", "values": [float("inf")]}))


@pytest.mark.parametrize("values", [[[[1, 2], [3]], [[1], [2, 3]]], ["A", "a"], ["a b", "a-b"]])
def test_variants_that_would_share_a_record_are_refused(tmp_path, values):
    suite = varied(tmp_path, {"method": "ToyMatch", "option": "mode", "values": values})
    with pytest.raises(ConfigError, match=r"differ, but their records would both be toy/toy4-toy2/toymatch@mode="):
        plan(suite)


def test_two_pairs_of_one_name_are_refused(tmp_path):
    groups = [{"config": write_pair(tmp_path)}, {"config": write_pair(tmp_path, "other", recipe={"epochs": 2})}]
    with pytest.raises(ConfigError, match=r"pair\.py and .* of .*other\.py differ, but their records would both be"):
        plan(suite_of("", groups=groups))


def test_variant_named_twice_is_planned_once(tmp_path):
    vary = {"method": "ToyMatch", "option": "weight", "values": [2, 2]}
    jobs = plan(varied(tmp_path, vary, {**vary, "method": "toymatch"}, methods=["Zero"], seeds=[0]))
    assert [j.method for j in jobs] == ["teacher", "plain", "Zero", "ToyMatch@weight=2"]


# --- files ---


def test_unknown_suite_is_answered_with_near_names():
    with pytest.raises(UnknownName, match=r"unknown suite 'demoo'; did you mean 'demo'"):
        load_suite("demoo")


def test_absent_suite_file_is_an_unknown_suite():
    with pytest.raises(UnknownName, match="unknown suite"):
        load_suite("absent.toml")


def test_every_shipped_suite_loads_and_plans():
    assert "demo" in suites()
    for name in suites():
        suite = load_suite(name)
        assert suite.name == name
        jobs = plan(suite)
        assert jobs[0].method == "teacher"
        asked = [(group, len(group.seeds or suite.seeds)) for group in suite.groups]
        methods = [len(g.methods) or len(load_pair(g.config).method_names()) - 1 for g, _ in asked]
        variants = [sum(len(vary.values) for vary in g.vary) for g, _ in asked]
        students = [job for job in jobs if not is_teacher(job.method)]
        assert len(students) == sum((1 + m + v) * seeds for m, v, (_, seeds) in zip(methods, variants, asked))
        ids = [job.id for job in jobs]
        assert len({identity.lower() for identity in ids}) == len(ids)
        for job in jobs:
            assert all(re.fullmatch(r"[A-Za-z0-9.@=+_-]+", part) for part in job.id.split("/"))
            assert not any(part.startswith(".") or len(part) > 120 for part in job.id.split("/"))
            assert all(trainer.id in ids[: ids.index(job.id)] for trainer in job.trainers.values())
            assert bool(job.trainers) <= (job.method != "plain" and not is_teacher(job.method))


def test_suite_file_gives_what_it_says(tmp_path):
    config = write_pair(tmp_path)
    path = write_suite(
        tmp_path, f'name = "toys"\ntitle = "Toys"\nseeds = [0, 1, 2]\n[[groups]]\nconfig = {json.dumps(config)}\n'
    )
    assert load_suite(path) == suite_of(config)


@pytest.mark.parametrize("content", [b"name = ", b"[[groups]\n", b'name = "\xff"', b"seeds = [0,\n"])
def test_bad_toml_is_named(tmp_path, content):
    (tmp_path / "toys.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"toys\.toml: not valid TOML"):
        load_suite(str(tmp_path / "toys.toml"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            'name="t"\ntitle="T"\nseed=[0]\ngroups=[]',
            r"unknown config key 'seed' in .*toys\.toml; did you mean 'seeds'",
        ),
        (
            'name="t"\ntitle="T"\nseeds=[0]\n[[groups]]\nconfig="x"\nmethod=["KD"]',
            "'method' .*at groups.0; did you mean 'methods'",
        ),
        ('name="t"\ntitle="T"\nseeds=[0]\n[[groups]]\nconf="x"', "'conf' .*did you mean 'config'"),
        ('name="t"\ntitle="T"\ngroups=[]', r"toys\.toml: seeds: Field required"),
        ('name="t"\ntitle="T"\nseeds=[]\ngroups=[]', r"toys\.toml: seeds: .*at least 1"),
        ('name="t"\ntitle="T"\nseeds=["a"]\ngroups=[]', r"toys\.toml: seeds\.0: "),
    ],
)
def test_suite_that_does_not_fit_is_named(tmp_path, text, said):
    with pytest.raises(ConfigError, match=said):
        load_suite(write_suite(tmp_path, text))


# --- extras ---


def test_groups_whose_extra_is_missing_are_left_out_and_told(tmp_path, monkeypatch):
    config = write_pair(tmp_path)
    groups = [{"config": config}, {"config": "segmentation/digit_demo", "extra": "segmentation"}]
    suite = suite_of("", groups=groups)
    monkeypatch.setattr("limbeck.engine.suite.find_spec", lambda name: None if name == "mmseg" else object())
    left, missing = suite.installed()
    assert [group.config for group in left.groups] == [config]
    assert left.model_copy(update={"groups": suite.groups}) == suite
    assert [str(error) for error in missing] == [
        "segmentation/digit_demo needs the 'segmentation' extra; install it with: pip install 'limbeck[segmentation]'"
    ]


def test_groups_whose_extra_is_installed_stay(tmp_path, monkeypatch):
    suite = suite_of("", groups=[{"config": write_pair(tmp_path), "extra": "segmentation"}])
    monkeypatch.setattr("limbeck.engine.suite.find_spec", lambda name: object())
    assert suite.installed() == (suite, [])


def test_extra_that_there_is_none_of_is_refused(tmp_path):
    text = 'name="t"\ntitle="T"\nseeds=[0]\n[[groups]]\nconfig="x"\nextra="segmentaton"'
    with pytest.raises(ConfigError, match=r"toys\.toml: groups\.0\.extra: .*'segmentation'"):
        load_suite(write_suite(tmp_path, text))


def test_every_group_on_openmmlab_s_networks_names_its_extra():
    groups = {g.config: g for g in load_suite("demo").groups}
    assert groups["vision/digits"].extra is None
    assert groups["segmentation/digit_demo"].extra == "segmentation"
    assert groups["detection/digit_demo"].extra == "detection"
    assert groups["pointcloud/lidar_demo"].extra == "pointcloud"
    assert groups["multimodal/diffusion/digits_demo"].extra == "diffusion"


# --- resolve ---


def test_resolve_takes_weights_hash_and_metric_from_the_teachers_record(tmp_path, suite):
    jobs, records = plan(suite), tmp_path / "records"
    teacher = done(jobs[0], records, student_sha256="d" * 64, val_metrics={"top1": 88.0})
    member = resolve(jobs[2], records).model["members"]["teacher"]
    assert member["weights"] == f"run://{teacher.id}"
    assert (member["sha256"], member["expected"]) == ("d" * 64, {"top1": 88.0})


def test_resolve_before_the_teacher_says_so(tmp_path, suite):
    with pytest.raises(ConfigError, match=r"toymatch/seed0 needs the teacher's record .*run the teacher first"):
        resolve(plan(suite)[2], tmp_path)


def test_resolve_of_teacher_and_plain_needs_no_record(tmp_path, suite):
    teacher, plain, _, _, _ = plan(suite)
    assert resolve(teacher, tmp_path).model["members"]["student"]["model"]["width"] == 4
    assert resolve(plain, tmp_path).model["members"]["student"]["model"]["width"] == 2


# --- state ---


def test_state_goes_from_missing_to_done(tmp_path, suite):
    jobs, records = plan(suite), tmp_path / "records"
    assert set(states(jobs, records).values()) == {"missing"}
    for job in jobs:
        record = done(job, records)
        assert state(job, records) == ("done", record)
    assert set(states(jobs, records).values()) == {"done"}


def test_state_is_failed_where_a_guard_stopped_the_run(tmp_path, suite):
    job, records = plan(suite)[1], tmp_path / "records"
    stopped = {
        "error": "NonFiniteLoss",
        "message": "m",
        "config_hash": "a" * 64,
        "finished": "2026-01-01T00:00:00+00:00",
    }
    write_failure(
        records, FailureRecord(benchmark=job.benchmark, pair=job.pair, method=job.method, seed=job.seed, **stopped)
    )
    assert state(job, records) == ("failed", None)
    done(job, records)
    assert state(job, records)[0] == "done"


def test_changed_config_makes_every_run_stale(tmp_path, suite):
    jobs, records = plan(suite), tmp_path / "records"
    for job in jobs:
        done(job, records)
    write_pair(tmp_path, recipe={"epochs": 5})
    assert set(states(jobs, records).values()) == {"stale"}


def test_changed_method_makes_only_its_runs_stale(tmp_path):
    config, records = write_pair(tmp_path), tmp_path / "records"
    jobs = plan(suite_of(config, seeds=[0]))
    for job in jobs:
        done(job, records)
    methods = {k: v.model_dump() for k, v in load_pair(config).methods.items()}
    methods["Zero"]["links"][0]["weight"] = 0.5
    write_pair(tmp_path, methods=methods)
    found = states(jobs, records)
    assert found.pop("Zero0") == "stale"
    assert set(found.values()) == {"done"}


def test_other_teacher_weights_make_its_students_stale(tmp_path, suite):
    jobs, records = plan(suite), tmp_path / "records"
    for job in jobs:
        done(job, records)
    done(jobs[0], records, student_sha256="e" * 64)
    assert states(jobs, records) == {
        "teacher0": "done",
        "plain0": "done",
        "ToyMatch0": "stale",
        "plain1": "done",
        "ToyMatch1": "stale",
    }


def test_student_of_a_missing_teacher_is_stale(tmp_path, suite):
    jobs, records = plan(suite), tmp_path / "records"
    for job in jobs:
        done(job, records)
    record_path(records, jobs[0].id).unlink()
    found = states(jobs, records)
    assert (found["teacher0"], found["plain0"], found["ToyMatch0"]) == ("missing", "done", "stale")


def test_student_of_a_stale_teacher_is_stale(tmp_path, suite):
    """The teacher will be trained anew, so its students must be as well, in the same go."""
    jobs, records = plan(suite), tmp_path / "records"
    for job in jobs:
        done(job, records)
    write_pair(tmp_path, teacher_recipe={"epochs": 9})
    found = states(jobs, records)
    assert (found["teacher0"], found["plain0"], found["ToyMatch0"]) == ("stale", "done", "stale")


def test_damaged_record_is_said_and_not_taken_for_missing(tmp_path, suite):
    job, records = plan(suite)[1], tmp_path / "records"
    done(job, records)
    record_path(records, job.id).write_text('{"status": "ok"', encoding="utf-8")
    with pytest.raises(CorruptFile, match=r"seed0\.json"):
        state(job, records)


def test_benchmarks_of_a_suite_are_its_groups_and_other_names_stay():
    from limbeck.engine.suite import benchmarks_of

    found = ["digits", "digit-scenes-demo", "digit-scenes-boxes-demo", "lidar-scenes-demo", "dho-digits-demo"]
    found.append("diffusion-digits-demo")
    assert benchmarks_of(["demo"]) == found
    assert benchmarks_of(["demo", "digits", "elsewhere"]) == [*found, "elsewhere"]
    assert benchmarks_of(None) is None
