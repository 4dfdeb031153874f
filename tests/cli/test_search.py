"""`limbeck search`: tables and JSON on the digits, correlation with records, and one sentence for bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from limbeck.cli import main
from limbeck.vision._search_space import draw_depths
from tests.leaderboard.fabricate import with_values, write_all

STUDENT = dict(type="DepthResNet", width=4, in_chans=1, mean=[0.3], std=[0.38], input_size=[1, 8, 8])
QUICK = ("--batch-size", 16, "--threads", 1)


def run(*args: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["search", *(str(a) for a in args)])
    return int(stop.value.code or 0)


def refused(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    assert run(*args) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ")
    assert "Traceback" not in said
    return said


def records(folder: Path, count: int) -> Path:
    """Students of the digits pair, better by a point for every block."""
    for depths in draw_depths(count, seed=0):
        model = STUDENT | {"depths": list(depths)}
        config = dict(model=dict(deploy="student", members=dict(student=dict(model=model))))
        top1 = 60.0 + sum(depths)
        method = f"KD@student.depths={list(depths)}"
        place = dict(benchmark="digits", pair="resnet20-resnet8", config=config)
        write_all(folder, with_values(method, [top1 - 1, top1 + 1], **place))
    return folder


def test_search_prints_the_best_and_writes_everything(tmp_path, capsys):
    out = tmp_path / "found.json"
    assert run("vision/digits", "--evaluations", 6, "--top", 2, "--max-params", 20000, "--out", out, *QUICK) == 0
    said = capsys.readouterr().out
    found = json.loads(out.read_text())
    assert len(found["candidates"]) == 6
    scores = [c["score"] for c in found["candidates"]]
    assert scores == sorted(scores, reverse=True)
    assert all(c["score"] == pytest.approx(c["relation"] + c["semantic"]) for c in found["candidates"])
    assert all(c["parameters"] <= 20000 for c in found["candidates"])
    best = found["candidates"][0]["model"]
    assert f"student = dict(type='DepthResNet', depths={best['depths']}" in said
    assert sum(line.startswith((" 1 ", " 2 ", " 3 ")) for line in said.splitlines()) == 2
    assert found["seed"] == 0
    assert found["max_params"] == 20000


def test_search_is_the_same_twice_and_another_seed_differs(tmp_path):
    made = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        out = tmp_path / name
        assert (
            run("vision/digits", "--strategy", "random", "--evaluations", 3, "--seed", seed, "--out", out, *QUICK) == 0
        )
        made.append(json.loads(out.read_text())["candidates"])
    assert made[0] == made[1] != made[2]


def test_against_records_correlates_and_picks(tmp_path, capsys):
    out = tmp_path / "correlation.json"
    folder = records(tmp_path / "records", 16)
    assert run("vision/digits", "--against", folder, "--out", out, *QUICK) == 0
    said = capsys.readouterr().out
    assert "16 students trained by KD" in said
    found = json.loads(out.read_text())
    assert list(found["correlations"]) == ["DisWOT", "relation", "semantic", "parameters", "FLOPs"]
    # two FLOPs per multiply-add and a block costs the same in every stage: FLOPs rank as the number of blocks does
    assert found["correlations"]["FLOPs"]["spearman"]["value"] == pytest.approx(1.0, abs=0.02)
    for both in found["correlations"].values():
        for one in both.values():
            assert -1 <= one["low"] <= one["value"] + 1e-9
            assert one["value"] - 1e-9 <= one["high"] <= 1
    accuracies = [c["top1"] for c in found["candidates"]]
    last = found["picks"][-1]
    assert last["count"] == 16
    assert last["best"] == max(accuracies)
    assert last["values"]["random"] == pytest.approx(sum(accuracies) / 16)
    assert last["regret"]["DisWOT"] == pytest.approx(last["best"] - last["values"]["DisWOT"])


def test_against_with_a_budget_picks_within_it(tmp_path):
    out = tmp_path / "correlation.json"
    folder = records(tmp_path / "records", 16)
    assert run("vision/digits", "--against", folder, "--max-params", 15000, "--out", out, *QUICK) == 0
    found = json.loads(out.read_text())
    (pick,) = found["picks"]
    inside = [c["top1"] for c in found["candidates"] if c["parameters"] <= 15000]
    assert (pick["budget"], pick["count"], pick["best"]) == (15000, len(inside), max(inside))


def test_too_few_trained_students_are_refused_until_the_minimum_is_lowered(tmp_path, capsys):
    folder = records(tmp_path, 6)
    said = refused(capsys, "vision/digits", "--against", folder, *QUICK)
    assert "6 students trained by KD" in said
    assert "wants 16" in said
    assert "--min-candidates" in said
    assert run("vision/digits", "--against", folder, "--min-candidates", 6, *QUICK) == 0
    assert "no trained candidate has at most 10 parameters" in refused(
        capsys, "vision/digits", "--against", folder, "--min-candidates", 6, "--max-params", 10, *QUICK
    )


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["vision/digit"], "unknown config 'vision/digit'; did you mean 'vision/digits'"),
        (["vision/digits", "--space", "depth-resnets"], "unknown search space 'depth-resnets'"),
        (["vision/digits", "--space", "timm:no-such*"], "no timm model's name fits 'no-such*'"),
        (["vision/digits", "--strategy", "grid"], "unknown strategy 'grid'"),
        (["vision/digits", "--max-params", "10"], "all 64 exceed 10 parameters"),
        (["vision/digits", "--max-flops", "10"], "all 64 exceed 10 FLOPs"),
        (["vision/digits", "--batch-size", "5000"], "training images; got 5000"),
        (["vision/digits", "--against", "no/such/folder"], "has no students trained by KD"),
    ],
)
def test_bad_input_is_one_sentence(args, expected, capsys, tmp_path):
    out = tmp_path / "out.json"
    assert expected in refused(capsys, *args, "--out", out)
    assert not out.exists()
