"""Advice: by the stated rules, checked against scipy's tests; and what stands around it on the site's pages."""

from __future__ import annotations

from pathlib import Path

import pytest
import scipy.stats

from limbeck.engine.shipped import find_source
from limbeck.leaderboard.advice import advise_methods, advise_pair, never_helped
from limbeck.leaderboard.checks import teacher_ids
from limbeck.leaderboard.site.addresses import addresses_of, shown_cards
from limbeck.leaderboard.site.commands import Run, commands_of
from limbeck.leaderboard.site.method import linked_text
from limbeck.leaderboard.site.task import task_view
from limbeck.leaderboard.store import load_results
from limbeck.leaderboard.table import Table, build_tables
from tests.leaderboard.fabricate import fabricate, with_values, write_all

PLAIN = [90.0, 90.4, 89.8, 90.2]
BEST = [95.0, 95.6, 94.6, 95.3]  # the most, at ten times the time
ALIKE = [94.8, 95.1, 95.0, 94.9]  # not told apart from the best, cheapest
SURE = [92.0, 92.5, 91.7, 92.2]  # helped, but less than the best
NOISE = [91.5, 88.0, 93.0, 89.0]
HURT = [85.0, 85.5, 84.7, 85.3]


def tables_of(folder: Path, **changes: object) -> list[Table]:
    made = with_values("plain", PLAIN, **changes)
    for method, values, seconds in (
        ("Best", BEST, 100.0),
        ("Alike", ALIKE, 10.0),
        ("Sure", SURE, 1.0),
        ("Noise", NOISE, 0.5),
        ("Hurt", HURT, 0.1),
    ):
        made += with_values(method, values, cost__train_seconds=seconds, **changes)
    return build_tables(load_results(write_all(folder, made)))


def test_best_and_cheapest_follow_the_rules(tmp_path: Path) -> None:
    def p(a: list[float], b: list[float]) -> float:
        return float(scipy.stats.ttest_rel(a, b).pvalue)

    assert max(p(m, PLAIN) for m in (BEST, ALIKE, SURE, HURT)) * 5 < 0.05 < p(NOISE, PLAIN)
    assert 2 * p(BEST, SURE) < 0.05 < p(BEST, ALIKE)  # what the made-up values are there for
    (table,) = tables_of(tmp_path)
    found = advise_pair(table)
    assert found.best is not None
    assert found.cheapest is not None
    assert (found.best.method, found.cheapest.method) == ("Best", "Alike")
    assert [r.method for r in found.alike] == ["Alike"]
    assert found.tested == 5


def test_nothing_is_advised_where_nothing_is_told_apart(tmp_path: Path) -> None:
    made = with_values("plain", PLAIN) + with_values("Noise", NOISE) + with_values("Hurt", HURT)
    (table,) = build_tables(load_results(write_all(tmp_path, made)))
    found = advise_pair(table)
    assert (found.best, found.cheapest, found.alike, found.tested) == (None, None, (), 2)
    view = task_view(table.task, [table], ["slug"], addresses_of([table], []))
    assert view["pair_rows"][0][1]["text"] == "none of 2 told apart from plain"


def test_one_seed_is_no_test(tmp_path: Path) -> None:
    made = with_values("plain", PLAIN[:1]) + with_values("Best", BEST[:1])
    (table,) = build_tables(load_results(write_all(tmp_path, made)))
    assert advise_pair(table).tested == 0
    assert advise_methods([table]) == []


def test_methods_are_counted_over_pairs(tmp_path: Path) -> None:
    tables = [*tables_of(tmp_path / "a"), *tables_of(tmp_path / "b", pair="other-pair")]
    found = {m.method: (m.pairs, m.helped, m.hurt) for m in advise_methods(tables)}
    assert found == {"Best": (2, 2, 0), "Alike": (2, 2, 0), "Sure": (2, 2, 0), "Noise": (2, 0, 0), "Hurt": (2, 0, 2)}
    assert [m.method for m in never_helped(advise_methods(tables))] == ["Noise", "Hurt"]


def test_cards_of_other_runs_have_no_page() -> None:
    record = fabricate("KD", 0)
    card = dict(record=record.id, sha256=record.student_sha256, name="a.b")
    known = {record.id: record}
    assert shown_cards([card], known) == [card]
    assert shown_cards([card | dict(sha256="0" * 64)], known) == []
    assert shown_cards([card], {}) == []


def test_a_run_is_made_again_after_its_teacher() -> None:
    place = dict(benchmark="digits", pair="resnet20-resnet8")
    teacher, kd = (fabricate(m, 0, **place) for m in ("teacher", "KD@student.depths=[1, 3]"))
    runs = {r.id: Run(r.benchmark, r.pair, r.method, r.seed, tuple(teacher_ids(r))) for r in (teacher, kd)}
    assert commands_of(runs[kd.id], runs) == [
        "limbeck bench reproduce digits/resnet20-resnet8 --cells 'KD@student.depths=[1, 3]/0'",
        "# or by hand:",
        "limbeck train vision/digits --method teacher --seed 0 --out out/again",
        "limbeck train vision/digits --method 'KD@student.depths=[1, 3]' --seed 0 --out out/again",
    ]
    assert commands_of(Run("toy", "big-small", "KD", 0), {}) == []  # no shipped config has the pair
    based = Run("camvid", "efficientnet_lite0-mobilenetv2", "plain", 3)
    assert commands_of(based, {})[2:] == [
        "limbeck train segmentation/camvid_cnn --method plain --seed 3 --out out/again"
    ]


def test_a_methods_source_is_its_docstring() -> None:
    found = find_source("DKD")
    assert found is not None
    assert (found.path, found.module) == (
        "limbeck/vision/methods/dkd.py",
        "DKD: decoupled knowledge distillation (arXiv 2203.08679).",
    )
    assert find_source("NoSuchMethod") is None


@pytest.mark.parametrize(
    "text", ["", "no paper", "arXiv 2203.08679", "a (arXiv 1503.02531, eq. 4) and arXiv:2203.08679."]
)
def test_papers_are_linked_and_no_word_is_lost(text: str) -> None:
    parts = linked_text(text)
    assert "".join(said for said, _ in parts) == text
    assert [link for _, link in parts if link] == [
        f"https://arxiv.org/abs/{number}" for number in ("1503.02531", "2203.08679") if number in text
    ]
