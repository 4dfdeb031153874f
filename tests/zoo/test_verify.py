"""Verify and profile: what holds, what each kind of damage is called, and what the figures are of."""

from __future__ import annotations

import json

import pytest
import torch

from limbeck.engine.cost import count_parameters
from limbeck.engine.record import write_record
from limbeck.engine.weights import save_weights, sha256_file
from limbeck.errors import ConfigError, UnknownName
from limbeck.leaderboard.verify import card_judge
from limbeck.zoo import find, load_student, weights_path
from limbeck.zoo.profile import profile_student
from limbeck.zoo.verify import verify_student
from tests.zoo.fabricate import NAME, digits, fabricate, flip_bit, make_zoo, trained


@pytest.fixture
def zoo(tmp_path):
    return make_zoo(tmp_path)[0]


def rewrite(zoo, **changes):
    path = zoo / "cards" / f"{NAME}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_student_holds_on_its_test_images(zoo):
    check = verify_student(NAME, zoo_dir=zoo)
    assert (check.name, check.holds, check.samples) == (NAME, True, "real")
    assert check.to_dict()["text"].startswith("holds")


def test_damaged_file_is_named_with_both_hashes(zoo):
    path = weights_path(NAME, zoo_dir=zoo)
    expected = sha256_file(path)
    flip_bit(path)
    check = verify_student(NAME, zoo_dir=zoo)
    assert not check.holds
    for part in (str(path), expected[:12], sha256_file(path)[:12]):
        assert part in check.text


def test_other_architecture_is_named(zoo):
    rewrite(zoo, model=find(NAME, zoo_dir=zoo).model | {"width": 8})
    check = verify_student(NAME, zoo_dir=zoo)
    assert not check.holds
    assert "does not fit the model" in check.text


def test_output_that_is_not_finite_is_named(zoo):
    path = weights_path(NAME, zoo_dir=zoo)
    state = dict(trained().state_dict())
    first = next(iter(state))
    state[first] = state[first] * float("nan")
    sha256 = save_weights(path, state, metadata={})
    rewrite(zoo, sha256=sha256, file_bytes=path.stat().st_size)
    check = verify_student(NAME, zoo_dir=zoo)
    assert not check.holds
    assert "not finite" in check.text


def test_unknown_student_is_raised(zoo):
    with pytest.raises(UnknownName, match=f"did you mean '{NAME}'"):
        verify_student("resnet8w4.toy_kdd", zoo_dir=zoo)


def true_top1(model):
    images, labels = digits()
    with torch.inference_mode():
        return 100 * float((model(model.preprocess(images)).argmax(1) == labels).float().mean())


def test_evaluate_says_whether_the_figures_hold(zoo, tmp_path):
    """The fabricated record says 12.5; the student is far better, so it is off; with the true figure it holds."""
    card, results = find(NAME, zoo_dir=zoo), tmp_path / "results"
    judge = card_judge(results)
    assert "the record toy/big-small/kd/seed0 is not in" in verify_student(NAME, zoo_dir=zoo, judge=judge).text
    write_record(results, fabricate(card.sha256))
    check = verify_student(NAME, zoo_dir=zoo, judge=judge)
    value = true_top1(load_student(NAME, zoo_dir=zoo))
    assert not check.holds
    assert f"off by {value - 12.5:+.4g} top1" in check.text
    write_record(results, fabricate(card.sha256, metrics=dict(top1=value)))
    assert "not those of its record" in verify_student(NAME, zoo_dir=zoo, judge=judge).text
    rewrite(zoo, metrics=dict(top1=value))
    assert verify_student(NAME, zoo_dir=zoo, judge=judge).holds


def test_profile_measures_one_sample(zoo, monkeypatch):
    times = iter(range(1000))
    monkeypatch.setattr(
        "limbeck.zoo.profile.measure_latency", lambda *a, runs, warmup: [next(times) for _ in range(runs)]
    )
    found = profile_student(NAME, runs=101, threads=1, zoo_dir=zoo)
    assert (found.p50_ms, found.p95_ms) == (50, 95)
    model = load_student(NAME, zoo_dir=zoo)
    assert found.parameters == count_parameters(model)
    assert (found.threads, found.sample, found.card_ms) == (1, "real", None)
    # convolutions of an 8 × 8 image: stem 1 → 4, then three blocks of two 3 × 3 ones, with 1 × 1 shortcuts or none
    stem, first = 9 * 1 * 4 * 64, 2 * 9 * 4 * 4 * 64
    second, third = 9 * (4 * 8 + 8 * 8) * 16, 9 * (8 * 16 + 16 * 16) * 4
    least = 2 * (stem + first + second + third + 16 * 10)
    assert least <= found.flops <= least + 2 * (4 * 8 * 16 + 8 * 16 * 4)
    assert found.peak_memory_mb > 10


def test_profile_gives_threads_back_and_refuses_nonsense(zoo):
    before = torch.get_num_threads()
    found = profile_student(NAME, runs=3, warmup=0, threads=1, zoo_dir=zoo)
    assert 0 < found.p50_ms <= found.p95_ms
    assert torch.get_num_threads() == before
    for wrong in (dict(runs=1), dict(warmup=-1), dict(threads=0)):
        with pytest.raises(ConfigError, match="runs is 2 or more"):
            profile_student(NAME, zoo_dir=zoo, **wrong)
