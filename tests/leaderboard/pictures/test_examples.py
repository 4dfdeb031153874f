"""Examples: which records a picture compares, and when the page shows it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from limbeck.engine.record import RunRecord
from limbeck.engine.weights import sha256_file, write_json
from limbeck.errors import ConfigError, OutputError, UnknownName
from limbeck.leaderboard.checks import check_apart
from limbeck.leaderboard.pictures.examples import (
    FOLDER,
    Examples,
    Sample,
    compared,
    find_examples,
    plan_examples,
)
from limbeck.leaderboard.pictures.examples import Member as Column
from limbeck.leaderboard.pictures.plans import StalePicture, picture_files
from limbeck.leaderboard.site.build import build_site
from limbeck.leaderboard.site.examples import examples_view
from limbeck.leaderboard.store import Group, load_results
from tests.leaderboard.fabricate import fabricate, write_all
from tests.leaderboard.pages import page_of, text_of
from tests.leaderboard.site.test_build import Page

TASK = "semantic-segmentation"


def run(method: str, seed: int = 0, val: float = 50.0, test: float = 50.0, **changes: Any) -> RunRecord:
    figures = dict(metrics={"mIoU": test}, val_metrics={"mIoU": val}, primary_metric="mIoU")
    return fabricate(method, seed, **{"task": TASK, **figures, **changes})


def scenes(cwd: float = 60.0, **changes: Any) -> list[RunRecord]:
    """Two methods over two seeds: CWD is better on validation, KD on the test split."""
    methods = {"plain": (50.0, 50.0), "CWD": (cwd, 51.0), "KD": (55.0, 70.0)}
    made = [run(m, s, val + s, test) for m, (val, test) in methods.items() for s in range(2)]
    return [run("teacher", 0, **changes), *made]


def group_of(folder: Path, records: Iterable[RunRecord]) -> Group:
    (group,) = load_results(write_all(folder, records)).groups
    return group


def drawn(group: Group, site: Path) -> Examples:
    """What the command leaves in a site's folder, with a made-up picture."""
    picture, beside = picture_files(site, FOLDER, group)
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_bytes(b"picture")
    records = compared(group)
    figures = {member: {"mIoU": 40.04 + place, "aAcc": 80.0} for place, member in enumerate(records)}
    plain = records["plain"]
    found = Examples(
        benchmark=group.benchmark,
        benchmark_version=group.version,
        pair=group.pair,
        task=plain.task,
        data=plain.data.name,
        content_hash=plain.data.content_hash,
        primary_metric="mIoU",
        members={
            m: Column(record=r.id, method=r.method, seed=r.seed, student_sha256=r.student_sha256)
            for m, r in records.items()
        },
        candidates=300,
        draw_seed=0,
        samples=[
            Sample(sample=17, chosen="random", metrics=figures),
            Sample(sample=3, chosen="random", metrics=figures),
            Sample(sample=8, chosen="difference", metrics=figures),
        ],
        picture_sha256=sha256_file(picture),
        size=(1600, 900),
    )
    write_json(beside, found.model_dump(mode="json"))
    return found


# --- which records ---


def test_best_is_chosen_on_validation_over_seeds(tmp_path: Path) -> None:
    found = compared(group_of(tmp_path, scenes()))
    assert {member: record.id for member, record in found.items()} == {
        "teacher": "toy/big-small/teacher/seed0",
        "plain": "toy/big-small/plain/seed0",
        "best": "toy/big-small/cwd/seed0",
    }


def test_mean_over_seeds_decides_not_seed_0(tmp_path: Path) -> None:
    records = [r for r in scenes() if r.method == "plain"]
    records += [run("A", 0, 90.0), run("A", 1, 10.0), run("B", 0, 60.0), run("B", 1, 60.0)]
    assert compared(group_of(tmp_path, records))["best"].method == "B"


def test_lower_is_better_where_the_metric_says_so(tmp_path: Path) -> None:
    records = [r.model_copy(update=dict(higher_is_better=False)) for r in scenes()]
    assert compared(group_of(tmp_path, records))["best"].method == "KD"


@pytest.mark.parametrize(
    "changes", [dict(status="unreliable"), dict(status="partial"), dict(val_metrics={"aAcc": 99.0})]
)
def test_method_with_a_flagged_run_or_without_validation_is_no_candidate(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    records = [r.model_copy(update=changes) if (r.method, r.seed) == ("CWD", 1) else r for r in scenes()]
    assert compared(group_of(tmp_path, records))["best"].method == "KD"


def test_seed_is_the_lowest_that_both_students_have(tmp_path: Path) -> None:
    records = [r for r in scenes() if (r.method, r.seed) != ("CWD", 0)]
    found = compared(group_of(tmp_path, records))
    assert (found["plain"].seed, found["best"].id) == (1, "toy/big-small/cwd/seed1")


def test_teacher_is_the_one_that_the_best_student_names(tmp_path: Path) -> None:
    records = [run("CWD", 0, 60.0, teacher_record="toy/big-small/teacher-vit/seed0"), run("plain"), run("KD", 0, 50.0)]
    records += [run("teacher"), run("teacher-vit")]
    assert compared(group_of(tmp_path, records))["teacher"].method == "teacher-vit"


def test_pair_without_a_teacher_has_no_such_column(tmp_path: Path) -> None:
    assert list(compared(group_of(tmp_path, scenes()[1:]))) == ["plain", "best"]


def test_pair_without_a_method_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"toy/big-small: no ranked method has a mIoU on validation.*run a method"):
        compared(group_of(tmp_path, [run("teacher"), run("plain")]))


# --- what can be drawn ---


def test_other_tasks_are_refused_by_name(tmp_path: Path) -> None:
    results = load_results(write_all(tmp_path, [fabricate("plain"), fabricate("KD")]))
    with pytest.raises(ConfigError, match=r"drawn for semantic segmentation, .*; toy is image classification; name a"):
        plan_examples(results, ["toy"], weights={})


def test_weights_come_from_the_zoo_or_from_the_runs(tmp_path: Path) -> None:
    results = load_results(write_all(tmp_path / "r", scenes()))
    by_member = compared(results.groups[0])
    zoo = {record.student_sha256: tmp_path / f"{member}.safetensors" for member, record in by_member.items()}
    (plan,) = plan_examples(results, ["toy"], weights=zoo)
    assert plan.weights == {member: tmp_path / f"{member}.safetensors" for member in by_member}
    missing = {k: v for k, v in zoo.items() if k != by_member["best"].student_sha256}
    with pytest.raises(ConfigError, match=r"the zoo has no weights of toy/big-small/cwd/seed0; .*--runs.*out/toy/runs"):
        plan_examples(results, ["toy"], weights=missing)
    with pytest.raises(ConfigError, match=r"neither the zoo nor .*cwd/seed0/student\.safetensors has the weights"):
        plan_examples(results, ["toy"], weights=missing, runs=tmp_path / "runs")
    file = tmp_path / "runs" / by_member["best"].id / "student.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"")
    (plan,) = plan_examples(results, ["toy"], weights=missing, runs=tmp_path / "runs", pair="big-small")
    assert plan.weights["best"] == file


def test_unknown_pair_and_benchmark_are_named(tmp_path: Path) -> None:
    results = load_results(write_all(tmp_path, scenes()))
    with pytest.raises(UnknownName, match=r"unknown pair 'big-smal' of toy; .*big-small"):
        plan_examples(results, ["toy"], weights={}, pair="big-smal")
    with pytest.raises(UnknownName, match="unknown benchmark 'toys'"):
        plan_examples(results, ["toys"], weights={})


def test_site_inside_the_records_is_refused(tmp_path: Path) -> None:
    check_apart(tmp_path / "site", tmp_path / "records")
    for inside in (tmp_path / "records", tmp_path / "records" / "site", tmp_path / "x" / ".." / "records"):
        with pytest.raises(OutputError, match="lies in the folder of records"):
            check_apart(inside, tmp_path / "records")


# --- the page ---


def test_page_shows_the_picture_of_those_very_records(tmp_path: Path) -> None:
    group = group_of(tmp_path / "r", scenes())
    said: list[str] = []
    site = tmp_path / "site"
    before = text_of(build_site(tmp_path / "r", site, note=said.append))
    assert "Examples" not in before
    drawn(group, site)
    index = build_site(tmp_path / "r", site, note=said.append)
    text = text_of(index)
    (tag,) = re.findall(r"<img [^>]*>", text)
    assert 'src="../examples/toy/big-small.v1.png" width="1600" height="900"' in tag
    assert "sample 17: teacher 40.0, plain student 41.0, CWD 42.0" in tag
    for phrase in (
        "Of 300 test samples 17 and 3 are drawn at random with a fixed seed; 8 is, among the others",
        "CWD has the best mean mIoU on validation; both students are of seed 0.",
        "green where CWD is right and the plain student wrong",
    ):
        assert phrase in text
    for link in Page(page_of(index)).links:
        place = page_of(index).parent / unquote(link.partition("#")[0])
        assert link.startswith(("#", "data:")) or place.is_file(), link
    assert said == []


def test_examples_that_were_drawn_before_the_first_build_stay(tmp_path: Path) -> None:
    group = group_of(tmp_path / "r", scenes())
    drawn(group, tmp_path / "site")
    assert "<img" in text_of(build_site(tmp_path / "r", tmp_path / "site"))
    assert "<img" in text_of(build_site(tmp_path / "r", tmp_path / "site"))


@pytest.mark.parametrize(
    ("later", "member"),
    [
        ([run("CWD", 0, 60.0, student_sha256="f" * 64)], "best"),
        ([run("plain", 0, student_sha256="f" * 64)], "plain"),
        ([run("teacher", 0, student_sha256="f" * 64)], "teacher"),
        ([run("DIST", 0, 99.0)], "best"),
    ],
    ids=["best trained again", "plain trained again", "teacher trained again", "a better method"],
)
def test_stale_picture_is_not_shown_and_said(tmp_path: Path, later: list[RunRecord], member: str) -> None:
    drawn(group_of(tmp_path / "r", scenes()), tmp_path / "site")
    write_all(tmp_path / "r", later)
    said: list[str] = []
    assert "<img" not in text_of(build_site(tmp_path / "r", tmp_path / "site", note=said.append))
    (line,) = said
    assert f"other weights of its {member} member" in line
    assert "limbeck leaderboard examples toy --pair big-small" in line
    assert "\n" not in line


def test_worse_method_and_other_test_figures_leave_the_picture(tmp_path: Path) -> None:
    found = drawn(group_of(tmp_path / "r", scenes()), tmp_path / "site")
    later = group_of(tmp_path / "r", [run("DIST", 0, 1.0, 99.0)])
    assert find_examples(later, tmp_path / "site") == found


def test_picture_of_a_method_that_left_is_stale(tmp_path: Path) -> None:
    drawn(group_of(tmp_path / "r", scenes()), tmp_path / "site")
    later = group_of(tmp_path / "s", [run("teacher"), run("plain")])
    with pytest.raises(StalePicture, match="not shown"):
        find_examples(later, tmp_path / "site")


def test_files_that_are_not_whole_are_not_shown(tmp_path: Path) -> None:
    group = group_of(tmp_path / "r", scenes())
    picture, beside = picture_files(tmp_path / "site", FOLDER, group)
    assert find_examples(group, tmp_path / "site") is None
    drawn(group, tmp_path / "site")
    picture.write_bytes(b"another picture")
    with pytest.raises(StalePicture, match=r"v1\.png: not the picture that its JSON describes"):
        find_examples(group, tmp_path / "site")
    picture.unlink()
    with pytest.raises(StalePicture, match=r"v1\.png"):
        find_examples(group, tmp_path / "site")
    for text in ("{", "[]", '{"examples_version": 2}'):
        beside.write_text(text)
        with pytest.raises(StalePicture, match=r"v1\.json: not a whole description"):
            find_examples(group, tmp_path / "site")


def test_names_are_text_and_addresses_are_quoted(tmp_path: Path) -> None:
    evil = "<i>K&D"
    records = [run("plain", pair="a b#1"), run(evil, pair="a b#1")]
    group = group_of(tmp_path / "r", records)
    found = drawn(group, tmp_path / "site")
    view = examples_view(found)
    assert unquote(view["picture"]) == "examples/toy/a b#1.v1.png"
    assert "teacher" not in view["alt"]
    text = text_of(build_site(tmp_path / "r", tmp_path / "site"))
    assert evil not in text
    assert 'src="../examples/toy/a%20b%231.v1.png"' in text
