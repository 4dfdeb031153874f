"""Configs: near names for every typo, one run of a pair fully resolved, and a hash that says when a config changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from limbeck.engine.config import (
    DataConfig,
    MethodConfig,
    MetricConfig,
    PairConfig,
    RecipeConfig,
    RunConfig,
    TrainedTeacher,
    config_file,
    expand,
    is_teacher,
    load_pair,
    parse,
    shipped_configs,
    teachers_of,
    with_overrides,
)
from limbeck.engine.record import config_hash
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, UnknownName
from tests.engine.toys import toy_pair

LINKED = {"teacher_weights": "run://toy/toy4-toy2/teacher/seed0", "teacher_sha256": "a" * 64, "teacher_metric": 91.5}


def pair_dict() -> dict[str, Any]:
    return toy_pair().model_dump(exclude_defaults=True)


def write_pair(folder: Path, value: dict[str, Any], extra: str = "") -> str:
    path = folder / "pair.py"
    path.write_text("\n".join([*(f"{k} = {v!r}" for k, v in value.items()), extra]), encoding="utf-8")
    return str(path)


def hash_of(run: RunConfig) -> str:
    return config_hash(run.model_dump(mode="json"))


# --- unknown keys ---


@pytest.mark.parametrize(
    ("path", "typo", "meant"),
    [
        ((), "teachr", "teacher"),
        ((), "benchmark_versoin", "benchmark_version"),
        (("recipe",), "epoch", "epochs"),
        (("recipe",), "optimiser", "optimizer"),
        (("data",), "batchsize", "batch_size"),
        (("metric",), "primry", "primary"),
        (("teacher_recipe",), "epoch", "epochs"),
        (("cache",), "dtyp", "dtype"),
        (("methods", "ToyMatch"), "link", "links"),
        (("methods", "ToyMatch"), "task_wieght", "task_weight"),
    ],
    ids=lambda part: ".".join(part) if isinstance(part, tuple) else part,
)
def test_unknown_key_is_answered_with_the_near_one_at_any_depth(path, typo, meant):
    value = pair_dict() | {"teacher_recipe": pair_dict()["recipe"], "cache": {"dtype": "float16"}}
    value = json.loads(json.dumps(value))
    node = value
    for part in path:
        node = node[part]
    node[typo] = node.pop(meant, 1)  # where the meant key is required, it is missing as well
    with pytest.raises(UnknownName) as caught:
        parse(PairConfig, value, "pair.py")
    said = str(caught.value)
    assert f"unknown config key {typo!r} in pair.py" in said
    assert f"did you mean {meant!r}" in said
    assert ".".join(path) in said


def test_missing_key_is_named():
    value = pair_dict()
    del value["recipe"]["epochs"]
    with pytest.raises(ConfigError, match=r"pair\.py: recipe\.epochs: Field required"):
        parse(PairConfig, value, "pair.py")


@pytest.mark.parametrize(
    ("part", "key", "bad"),
    [
        ("recipe", "epochs", -1),
        ("data", "steps", -1),
        ("recipe", "selection", "best"),
        ("recipe", "precision", "float8"),
        ("data", "batch_size", -1),
        ("data", "train", "digits"),
    ],
)
def test_value_that_does_not_fit_is_named(part, key, bad):
    value = pair_dict()
    value[part][key] = bad
    with pytest.raises(ConfigError, match=rf"pair\.py: {part}\.{key}: "):
        parse(PairConfig, value, "pair.py")


def test_config_that_is_no_mapping_is_refused():
    with pytest.raises(ConfigError, match=r"pair\.py: config: "):
        parse(PairConfig, ["recipe"], "pair.py")


# --- files ---


def test_unknown_config_is_answered_with_near_names():
    with pytest.raises(UnknownName, match=r"unknown config 'vision/digit'; did you mean 'vision/digits'"):
        load_pair("vision/digit")


def test_absent_file_is_an_unknown_config():
    with pytest.raises(UnknownName, match=r"'absent\.py'"):
        config_file("absent.py")


def test_every_shipped_config_loads_and_expands():
    assert "vision/digits" in shipped_configs()
    for name, path in shipped_configs().items():
        pair = load_pair(name)
        assert config_file(name) == path
        teachers = [f"teacher-{teacher}" for teacher in pair.teachers]
        runs = [expand(pair, m, 0, **LINKED) for m in ("teacher", *teachers, *pair.method_names())]
        assert all(run.id.startswith(f"{pair.benchmark}/{pair.pair}/") for run in runs)
        assert len({run.id for run in runs}) == len(runs)
        assert len({hash_of(run) for run in runs}) == len(runs)
        for run in runs:
            for link in run.model["links"]:
                assert METHODS.make(link).teachers  # its keys are those of its method


def test_file_gives_the_pair_that_it_says(tmp_path):
    assert load_pair(write_pair(tmp_path, pair_dict())) == toy_pair()


def test_file_may_compute_and_import(tmp_path):
    value = {k: v for k, v in pair_dict().items() if k != "pair"}
    pair = load_pair(write_pair(tmp_path, value, "from math import isqrt\npair = f'toy{isqrt(16)}-toy2'\n_private = 1"))
    assert pair == toy_pair()


def test_file_may_build_on_another(tmp_path):
    write_pair(tmp_path, pair_dict())
    (tmp_path / "longer.py").write_text("_base_ = ['pair.py']\nrecipe = dict(epochs=9)\n")
    pair = load_pair(str(tmp_path / "longer.py"))
    assert pair.recipe.epochs == 9
    assert pair.recipe.optimizer == toy_pair().recipe.optimizer


@pytest.mark.parametrize(
    "line",
    [
        "recipe = dict(",
        "recipe = nothing",
        "import no_such_module",
        "recipe = {}['epochs']",
        "recipe = [][0]",
        "recipe = 1 / 0",
        "recipe = int('x')",
        "recipe = dict() + 1",
        "recipe = dict().epochs",
        "raise RuntimeError('stop')",
        "assert False, 'no'",
        "open('/no/such/file')",
        "_base_ = 'absent.py'",
        "recipe = '\\x00",
    ],
)
def test_broken_file_is_named(tmp_path, line):
    with pytest.raises(ConfigError, match=r"pair\.py: the config does not run: \w+"):
        load_pair(write_pair(tmp_path, {"task": "image-classification"}, line))


def test_typo_in_a_file_names_the_file(tmp_path):
    value = pair_dict()
    value["recipe"]["epoch"] = value["recipe"].pop("epochs")
    with pytest.raises(UnknownName, match=r"'epoch' in .*pair\.py at recipe; did you mean 'epochs'"):
        load_pair(write_pair(tmp_path, value))


# --- expand ---


def test_method_links_teacher_and_student():
    run = expand(toy_pair(), "ToyMatch", 3, **LINKED)
    assert (run.method, run.seed, run.id) == ("ToyMatch", 3, "toy/toy4-toy2/toymatch/seed3")
    teacher, student = run.model["members"]["teacher"], run.model["members"]["student"]
    assert (teacher["type"], teacher["model"], teacher["weights"]) == (
        "frozen",
        {"type": "ToyNet", "width": 4},
        LINKED["teacher_weights"],
    )
    assert (teacher["sha256"], teacher["expected"], teacher["tolerance"]) == ("a" * 64, {"top1": 91.5}, 0.5)
    assert student == {"type": "trained", "model": {"type": "ToyNet", "width": 2}}
    assert run.model["deploy"] == "student"
    assert run.model["links"] == [{"type": "ToyMatch"}]
    assert run.recipe == toy_pair().recipe


def test_teacher_metric_that_is_unknown_is_not_expected():
    assert expand(toy_pair(), "ToyMatch", 0).model["members"]["teacher"]["expected"] is None


def test_method_is_found_in_any_case_and_keeps_its_name():
    assert expand(toy_pair(), "toymatch", 0) == expand(toy_pair(), "ToyMatch", 0)


def test_unknown_method_is_answered_with_near_names():
    with pytest.raises(UnknownName, match=r"unknown method 'ToyMach' in pair toy/toy4-toy2; did you mean 'ToyMatch'"):
        expand(toy_pair(), "ToyMach", 0)


def test_plain_trains_the_student_alone_by_the_same_recipe():
    plain, linked = expand(toy_pair(), "plain", 1, **LINKED), expand(toy_pair(), "ToyMatch", 1, **LINKED)
    assert plain.model["members"] == {"student": linked.model["members"]["student"]}
    assert plain.model["links"] == []
    assert plain.model["task_weight"] == 1.0
    assert (plain.recipe, plain.data, plain.metric) == (linked.recipe, linked.data, linked.metric)


def test_teacher_trains_the_teachers_model_alone():
    run = expand(toy_pair(), "teacher", 0)
    assert run.model["members"] == {"student": {"type": "trained", "model": {"type": "ToyNet", "width": 4}}}
    assert run.model["links"] == []
    assert run.recipe == toy_pair().recipe
    assert run.id == "toy/toy4-toy2/teacher/seed0"


def test_teacher_recipe_and_data_are_the_teachers_alone():
    pair = toy_pair(
        teacher_recipe={"epochs": 9}, teacher_data={"batch_size": 6, "train": {"type": "ToyData", "views": 4}}
    )
    teacher, plain, linked = (expand(pair, name, 0, **LINKED) for name in ("teacher", "plain", "ToyMatch"))
    assert teacher.recipe == RecipeConfig(epochs=9)
    assert (teacher.data.batch_size, teacher.data.train) == (6, {"type": "ToyData", "views": 4})
    assert teacher.data.val == pair.data.val
    for run in (plain, linked):
        assert run.recipe == toy_pair().recipe
        assert run.data == toy_pair().data


def test_seeds_of_partly_labelled_data_are_the_runs_or_one_for_a_cache():
    augmented = {"type": "ToyData", "augment": {"add": 1}}
    train = {"type": "PartlyLabelled", "of": augmented, "shots": 2, "shots_seed": "run"}
    value = toy_pair().data.model_dump() | {"train": train}
    for cache in (None, {"dtype": "float32"}):
        pair = toy_pair(data=value, cache=cache)
        for seed in (0, 3):
            found = expand(pair, "plain", seed).data.train
            assert found["shots_seed"] == seed
            assert found.get("seed") == (None if cache is None else 0)
    fixed = toy_pair(data=value | {"train": {**train, "shots_seed": 7}})
    assert expand(fixed, "plain", 3).data.train["shots_seed"] == 7
    assert fixed.data.train["of"] == augmented


def test_unknown_key_in_teacher_data_is_answered_with_near_names():
    with pytest.raises(UnknownName, match=r"'batchsize' in teacher_data; did you mean 'batch_size'"):
        expand(toy_pair(teacher_data={"batchsize": 6}), "teacher", 0)


def test_cache_is_kept_only_where_there_is_a_teacher():
    pair = toy_pair(cache={"dtype": "float32"})
    assert expand(pair, "ToyMatch", 0).cache.dtype == "float32"
    assert expand(pair, "plain", 0).cache is None
    assert expand(pair, "teacher", 0).cache is None
    assert expand(toy_pair(), "ToyMatch", 0).cache is None


def test_task_schedule_of_a_method_reaches_the_model_and_leaves_other_hashes_alone():
    half = {"type": "window", "start": 0.5}
    pair = toy_pair(methods={"Late": {"links": [{"type": "ToyMatch"}], "task_schedule": half}, "ToyMatch": {}})
    assert expand(pair, "Late", 0).model["task_schedule"] == half
    for method in ("plain", "teacher", "ToyMatch"):
        assert "task_schedule" not in expand(pair, method, 0).model


def test_task_weight_of_a_method_reaches_the_model():
    pair = toy_pair(methods={"Only": {"links": [{"type": "ToyMatch"}], "task_weight": 0.0}})
    assert expand(pair, "Only", 0).model["task_weight"] == 0.0
    assert expand(pair, "plain", 0).model["task_weight"] == 1.0


def test_method_names_begin_with_plain_in_the_files_order():
    assert toy_pair().method_names() == ["plain", "ToyMatch", "ToyBridge", "Zero"]
    assert toy_pair(methods={"A": {}, "plain": {}}).method_names() == ["plain", "A"]


def test_changing_a_run_leaves_the_pair_alone():
    pair = toy_pair()
    run = expand(pair, "ToyMatch", 0)
    run.model["members"]["student"]["model"]["width"] = 99
    run.model["links"][0]["weight"] = 99
    run.data.train["split"] = run.recipe.optimizer["lr"] = 99
    assert pair == toy_pair()
    assert expand(pair, "ToyMatch", 0) == expand(toy_pair(), "ToyMatch", 0)


# --- several teachers, and methods that deploy or train something else ---


def many(**changes: Any) -> PairConfig:
    teachers = {
        "wide": {"model": {"type": "ToyNet", "width": 6}},
        "Odd": {
            "model": {"type": "ToyNet", "width": 3},
            "recipe": {"epochs": 1},
            "data": {"batch_size": 18, "train": {"type": "ToyData", "size": 30}},
        },
    }
    methods = {"All": {"links": [{"type": "ToyMean", "teacher": ["wide", "teacher", "Odd"]}]}}
    return toy_pair(**{"teachers": teachers, "methods": methods, **changes})


@pytest.mark.parametrize(("method", "name"), [("teacher-wide", "wide"), ("TEACHER-odd", "Odd")])
def test_further_teacher_is_trained_alone_by_name_in_any_case(method, name):
    run = expand(many(), method, 0)
    assert run.method == f"teacher-{name}"
    assert run.id == f"toy/toy4-toy2/teacher-{name.lower()}/seed0"
    assert run.model["members"] == {"student": {"type": "trained", "model": many().teachers[name].model}}
    assert (run.model["links"], run.cache) == ([], None)


def test_further_teacher_has_the_teachers_recipe_and_data_unless_it_says_others():
    data = {"batch_size": 6, "val": {"type": "ToyData", "split": "val", "size": 9}}
    pair = many(teacher_recipe={"epochs": 9}, teacher_data=data)
    wide, odd = (expand(pair, f"teacher-{name}", 0) for name in ("wide", "Odd"))
    assert (wide.recipe.epochs, wide.data.batch_size, wide.data.train) == (9, 6, pair.data.train)
    assert (odd.recipe.epochs, odd.data.batch_size) == (1, 18)
    assert odd.data.train == {"type": "ToyData", "size": 30}
    assert wide.data.val == odd.data.val == data["val"]
    assert expand(many(), "teacher-wide", 0).recipe == toy_pair().recipe


def test_members_come_in_the_links_order_each_with_its_own_weights():
    others = {"wide": TrainedTeacher("w.safetensors", "b" * 64, 80.0), "Odd": TrainedTeacher("o.safetensors")}
    members = expand(many(), "All", 0, **LINKED, trained=others).model["members"]
    assert list(members) == ["wide", "teacher", "Odd", "student"]
    said = {n: (m["weights"], m["sha256"], m["expected"]) for n, m in members.items() if n != "student"}
    assert said == {
        "wide": ("w.safetensors", "b" * 64, {"top1": 80.0}),
        "teacher": (LINKED["teacher_weights"], "a" * 64, {"top1": 91.5}),
        "Odd": ("o.safetensors", None, None),
    }


def test_teachers_of_a_method_are_each_named_once():
    links = [{"type": "A", "teacher": ["b", "teacher"]}, {"type": "A"}, {"type": "A", "teacher": "student"}]
    assert teachers_of(MethodConfig(links=links)) == ["b", "teacher"]
    assert teachers_of(MethodConfig()) == []


def test_unknown_teachers_are_answered_with_near_names():
    with pytest.raises(UnknownName, match=r"unknown method 'teacher-wid' .*did you mean 'teacher-wide'"):
        expand(many(), "teacher-wid", 0)
    wrong = {"All": {"links": [{"type": "ToyMatch", "teacher": "wid"}]}}
    with pytest.raises(UnknownName, match="unknown teacher 'wid' in pair toy/toy4-toy2; did you mean 'wide'"):
        expand(many(methods=wrong), "All", 0)
    wrong = {"M": {"links": [{"type": "ToyMatch"}], "members": {"techer": {"type": "trained"}}}}
    with pytest.raises(UnknownName, match="unknown member 'techer' in members of method M; did you mean 'teacher'"):
        expand(toy_pair(methods=wrong), "M", 0)


def test_method_may_deploy_another_student():
    own = {"type": "ToyNet", "width": 5}
    run = expand(toy_pair(methods={"M": {"student": own, "links": [{"type": "ToyMatch"}]}}), "M", 0, **LINKED)
    assert run.model["members"]["student"] == {"type": "trained", "model": own}
    assert expand(toy_pair(methods={"M": {"student": own}}), "plain", 0).model["members"]["student"]["model"] == {
        "type": "ToyNet",
        "width": 2,
    }


def test_member_of_a_method_is_changed_key_by_key_or_trained_anew():
    links = [{"type": "ToyMatch"}]
    lower = {"M": {"links": links, "members": {"teacher": {"precision": "bfloat16", "tolerance": 2.0}}}}
    member = expand(toy_pair(methods=lower), "M", 0, **LINKED).model["members"]["teacher"]
    assert member == {
        **expand(toy_pair(), "ToyMatch", 0, **LINKED).model["members"]["teacher"],
        "precision": "bfloat16",
        "tolerance": 2.0,
    }
    online = {"M": {"links": links, "members": {"teacher": {"type": "trained"}}}}
    member = expand(toy_pair(methods=online), "M", 0, **LINKED).model["members"]["teacher"]
    assert member == {"type": "trained", "model": {"type": "ToyNet", "width": 4}}


def test_method_may_leave_the_cache_out():
    methods = {"A": {"links": [{"type": "ToyMatch"}]}, "B": {"links": [{"type": "ToyMatch"}], "cache": False}}
    pair = toy_pair(cache={"dtype": "float32"}, methods=methods)
    assert expand(pair, "A", 0).cache is not None
    assert expand(pair, "B", 0).cache is None


@pytest.mark.parametrize("member", ["teacher", "wide"])
def test_pretrained_teacher_loads_its_own_weights_only_where_none_are_named(member):
    model = {"type": "ToyNet", "width": 4, "pretrained": True}
    links = [{"type": "ToyMatch", "teacher": member}]
    pair = many(teacher=model, teachers={"wide": {"model": model}}, methods={"M": {"links": links}})
    bare = expand(pair, "M", 0).model["members"][member]
    assert (bare["model"], bare["weights"], bare["initial_weights"]) == (model, None, True)
    given = {"teacher_weights": "w"} if member == "teacher" else {"trained": {"wide": TrainedTeacher("w")}}
    named = expand(pair, "M", 0, **given).model["members"][member]
    assert (named["model"], named["weights"]) == ({**model, "pretrained": False}, "w")
    assert "initial_weights" not in named
    assert pair.teacher == model
    other = expand(toy_pair(), "ToyMatch", 0).model["members"]["teacher"]
    assert "initial_weights" not in other  # hashes of older records hold


@pytest.mark.parametrize(
    ("method", "teacher"),
    [
        ("teacher", True),
        ("Teacher", True),
        ("teacher-wide", True),
        ("plain", False),
        ("KD", False),
        ("teachers", False),
    ],
)
def test_names_of_teachers_runs(method, teacher):
    assert is_teacher(method) == teacher


@pytest.mark.parametrize("name", ["teacher", "Teacher-free", "teacher-wide", "KD@weight=2"])
def test_method_that_would_be_taken_for_a_teacher_or_variant_is_refused(name):
    with pytest.raises(ConfigError, match=rf"pair\.py: methods: .*no method is named '{name}'"):
        parse(PairConfig, pair_dict() | {"methods": {name: {}}}, "pair.py")


@pytest.mark.parametrize("name", ["teacher", "student", "a@b"])
def test_teacher_by_the_name_of_another_member_is_refused(name):
    with pytest.raises(ConfigError, match=rf"pair\.py: teachers: .*no further teacher is named '{name}'"):
        parse(PairConfig, pair_dict() | {"teachers": {name: {"model": {}}}}, "pair.py")


def test_published_values_change_no_run():
    pair = toy_pair(reported={"ToyMatch": 91.25}, reported_source="a paper")
    assert expand(pair, "ToyMatch", 0) == expand(toy_pair(), "ToyMatch", 0)


# --- the config's hash ---


def test_hash_does_not_depend_on_the_order_of_keys():
    value = expand(toy_pair(), "ToyMatch", 0, **LINKED).model_dump(mode="json")

    def turned(node: Any) -> Any:
        return {k: turned(v) for k, v in reversed(node.items())} if isinstance(node, dict) else node

    assert list(turned(value)) != list(value)
    assert config_hash(turned(value)) == config_hash(value)


def test_hash_is_the_same_after_a_json_round_trip():
    links = [{"type": "ToyMatch", "taps": (("logits", "logits"),), "extra": {10: "a", 2: "b"}}]
    run = expand(toy_pair(methods={"M": {"links": links}}), "M", 0, **LINKED)
    again = RunConfig.model_validate(json.loads(json.dumps(run.model_dump(mode="json"))))
    assert hash_of(again) == hash_of(run)


def test_hash_of_a_file_is_the_hash_of_the_same_config_in_python(tmp_path):
    assert hash_of(expand(load_pair(write_pair(tmp_path, pair_dict())), "plain", 0)) == hash_of(
        expand(toy_pair(), "plain", 0)
    )


def test_hash_tells_runs_apart():
    runs = [expand(toy_pair(), m, s, **LINKED) for m in ("teacher", "plain", "ToyMatch", "Zero") for s in (0, 1)]
    runs.append(expand(toy_pair(), "ToyMatch", 0, **{**LINKED, "teacher_sha256": "b" * 64}))
    runs.append(expand(toy_pair(benchmark_version=2), "ToyMatch", 0, **LINKED))
    runs.append(expand(toy_pair(cache={}), "ToyMatch", 0, **LINKED))
    assert len({hash_of(run) for run in runs}) == len(runs)


def test_explicit_default_does_not_change_the_hash():
    recipe = pair_dict()["recipe"] | {"selection": "last"}
    assert hash_of(expand(toy_pair(recipe=recipe), "plain", 0)) == hash_of(expand(toy_pair(), "plain", 0))


# --- overrides ---


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("recipe.epochs=3", ("recipe", "epochs"), 3),
        ("recipe.optimizer.lr=1e-3", ("recipe", "optimizer", "lr"), 1e-3),
        ("recipe.optimizer.type=Adam", ("recipe", "optimizer", "type"), "Adam"),
        ("cache=None", ("cache",), None),
        ("cache={'dtype': 'float32'}", ("cache",), {"dtype": "float32"}),
        ("title=a=b", ("title",), "a=b"),
        ("title=", ("title",), ""),
        ("title={[1]}", ("title",), "{[1]}"),
        ("recipe.channels_last=True", ("recipe", "channels_last"), True),
        ("methods.Zero.task_weight=0.5", ("methods", "Zero", "task_weight"), 0.5),
    ],
)
def test_override_sets_one_value(text, path, value):
    before = toy_pair().model_dump()
    after: Any = with_overrides(before, [text])
    assert before == toy_pair().model_dump()
    parse(PairConfig, after, "overridden config")
    for part in path:
        after = after[part]
    assert after == value
    assert type(after) is type(value)


def test_later_override_wins():
    assert with_overrides({"a": {"b": 1}}, ["a.b=2", "a.b=3"]) == {"a": {"b": 3}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("recipe.epoch=3", "unknown config key 'epoch' in override 'recipe.epoch=3'; did you mean 'epochs'"),
        ("recip.epochs=3", "unknown config key 'recip' .*did you mean 'recipe'"),
        ("methods.ToyMach.task_weight=1", "did you mean 'ToyMatch'"),
        ("recipe.epochs.x=3", "unknown config key 'x'"),
        ("teacher_recipe.epochs=3", "unknown config key 'epochs'"),
        ("=3", "unknown config key ''"),
        ("recipe.epochs", "not of the form key.path=value"),
    ],
)
def test_override_of_nothing_is_refused(text, said):
    with pytest.raises(ConfigError, match=said):
        with_overrides(toy_pair().model_dump(), [text])


def test_override_that_does_not_fit_is_refused_by_the_schema():
    with pytest.raises(ConfigError, match=r"recipe\.epochs"):
        parse(PairConfig, with_overrides(toy_pair().model_dump(), ["recipe.epochs=many"]), "overridden config")


def test_defaults_of_the_schema():
    assert RecipeConfig(epochs=1).selection == "last"
    assert MetricConfig(type="x").primary == "top1"
    assert DataConfig(train={}, val={}, test={}).num_workers == 0
