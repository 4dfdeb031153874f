"""Schedules: values at their corners, their shape in between, and what a config may not say."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.engine.schedule import SCHEDULES, build_schedule
from limbeck.errors import ConfigError, UnknownName

PROGRESS = st.floats(0, 1)
# start < end with room in between, on a grid of hundredths
SPANS = (
    st.tuples(st.integers(0, 99), st.integers(1, 100))
    .filter(lambda x: x[0] < x[1])
    .map(lambda x: (x[0] / 100, x[1] / 100))
)
EXAMPLES: dict[str, dict[str, Any]] = {
    "constant": {},
    "warmup": {"start": 0.1, "end": 0.4},
    "decay": {"start": 0.1, "end": 0.4},
    "cosine": {},
    "window": {"start": 0.1, "end": 0.4},
    "epochs": {"warmup_epochs": 20, "total_epochs": 240},
}


def test_every_schedule_has_an_example_here() -> None:
    assert sorted(EXAMPLES) == sorted(SCHEDULES)


@pytest.mark.parametrize("name", sorted(EXAMPLES))
@given(progress=PROGRESS)
def test_every_schedule_stays_between_zero_and_one(name: str, progress: float) -> None:
    assert 0.0 <= build_schedule({"type": name, **EXAMPLES[name]})(progress) <= 1.0


@pytest.mark.parametrize(
    ("name", "sign"), [("warmup", 1), ("epochs", 1), ("decay", -1), ("cosine", -1), ("constant", 1)]
)
@given(a=PROGRESS, b=PROGRESS)
def test_every_ramp_goes_one_way(name: str, sign: int, a: float, b: float) -> None:
    schedule = build_schedule({"type": name, **EXAMPLES[name]})
    assert sign * schedule(max(a, b)) >= sign * schedule(min(a, b)) - 1e-12


@pytest.mark.parametrize("cfg", [None, {}, {"type": "constant"}])
@given(progress=PROGRESS)
def test_constant_is_one_and_the_default(cfg: dict[str, Any] | None, progress: float) -> None:
    assert build_schedule(cfg)(progress) == 1.0


@given(SPANS, PROGRESS)
def test_warmup_is_the_line_between_its_ends(span: tuple[float, float], share: float) -> None:
    start, end = span
    schedule = build_schedule({"type": "warmup", "start": start, "end": end})
    assert (schedule(start), schedule(end), schedule(1.0)) == (0.0, 1.0, 1.0)
    assert schedule(start / 2) == 0.0
    assert schedule(start + share * (end - start)) == pytest.approx(share, abs=1e-9)


def test_warmup_defaults_to_the_first_tenth() -> None:
    schedule = build_schedule({"type": "warmup"})
    assert [schedule(p) for p in (0.0, 0.05, 0.1, 0.5)] == pytest.approx([0.0, 0.5, 1.0, 1.0])


@given(SPANS, PROGRESS)
def test_decay_and_warmup_add_up_to_one(span: tuple[float, float], progress: float) -> None:
    ends = {"start": span[0], "end": span[1]}
    total = build_schedule({"type": "decay", **ends})(progress) + build_schedule({"type": "warmup", **ends})(progress)
    assert total == pytest.approx(1.0)


def test_decay_defaults_to_the_whole_run() -> None:
    schedule = build_schedule({"type": "decay"})
    assert [schedule(p) for p in (0.0, 0.25, 1.0)] == [1.0, 0.75, 0.0]


@given(PROGRESS)
def test_cosine_is_half_a_wave(progress: float) -> None:
    schedule = build_schedule({"type": "cosine"})
    assert schedule(progress) == pytest.approx(math.cos(math.pi * progress / 2) ** 2, abs=1e-12)
    assert schedule(progress) + schedule(1 - progress) == pytest.approx(1.0)


@given(SPANS, PROGRESS)
def test_window_is_open_from_start_until_before_end(span: tuple[float, float], progress: float) -> None:
    start, end = span
    schedule = build_schedule({"type": "window", "start": start, "end": end})
    assert schedule(progress) == (1.0 if start <= progress < end else 0.0)
    assert (schedule(start), schedule(end)) == (1.0, 0.0)


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 3000))
def test_epochs_count_from_one_at_every_step(warmup: int, total: int, steps: int) -> None:
    schedule = build_schedule({"type": "epochs", "warmup_epochs": warmup, "total_epochs": total})
    for epoch in {0, total // 2, total - 1}:
        for step in {0, steps // 2, steps - 1}:
            progress = (epoch * steps + step) / (total * steps)
            assert schedule(progress) == min((epoch + 1) / warmup, 1.0)


@pytest.mark.parametrize(("epoch", "total"), [(15, 22), (29, 100), (123, 240)])
def test_epochs_turn_at_their_first_step_although_floats_round_down(epoch: int, total: int) -> None:
    assert epoch / total * total < epoch
    schedule = build_schedule({"type": "epochs", "warmup_epochs": total, "total_epochs": total})
    assert schedule(epoch / total) == (epoch + 1) / total


def test_epochs_of_the_dkd_trainer() -> None:
    schedule = build_schedule({"type": "epochs", "warmup_epochs": 20, "total_epochs": 240})
    assert schedule(0.0) == 1 / 20
    assert schedule(0.999 / 240) == 1 / 20
    assert schedule(18 / 240) == 19 / 20
    assert [schedule(epoch / 240) for epoch in range(19, 241)] == [1.0] * 222


@pytest.mark.parametrize(("name", "meant"), [("warm_up", "warmup"), ("Cosine", "cosine"), ("epoch", "epochs")])
def test_unknown_schedule_names_a_near_one(name: str, meant: str) -> None:
    with pytest.raises(UnknownName, match=f"unknown schedule '{name}'; did you mean '{meant}'"):
        build_schedule({"type": name})


def test_unknown_schedule_without_a_near_one_lists_all() -> None:
    with pytest.raises(UnknownName, match="there are: constant, cosine, decay, epochs, warmup, window"):
        build_schedule({"type": "zzz"})


@pytest.mark.parametrize("name", ["warmup", "decay"])
@pytest.mark.parametrize(("start", "end"), [(0.5, 0.5), (0.6, 0.5), (-0.1, 0.5), (0.5, 1.1)])
def test_ends_out_of_order_are_refused(name: str, start: float, end: float) -> None:
    with pytest.raises(ConfigError, match=f"0 <= start < end <= 1; got start={start}, end={end}"):
        build_schedule({"type": name, "start": start, "end": end})


@pytest.mark.parametrize(("warmup", "total"), [(0, 10), (10, 0), (-1, 10)])
def test_epoch_counts_must_be_positive(warmup: int, total: int) -> None:
    with pytest.raises(ConfigError, match=f"positive counts; got {warmup} of {total}"):
        build_schedule({"type": "epochs", "warmup_epochs": warmup, "total_epochs": total})


@pytest.mark.parametrize("cfg", [{"type": "warmup", "stop": 0.5}, {"type": "epochs", "warmup_epochs": 20}])
def test_arguments_that_do_not_fit_name_the_schedule(cfg: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"schedule '{cfg['type']}': .*(stop|total_epochs)"):
        build_schedule(cfg)


def test_config_is_not_changed() -> None:
    cfg = {"type": "warmup", "end": 0.5}
    build_schedule(cfg)
    assert cfg == {"type": "warmup", "end": 0.5}
