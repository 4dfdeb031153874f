"""The search space, the strategies and their budget, and the correlation with trained students."""

from __future__ import annotations

import tomllib
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau, spearmanr

from limbeck.engine.config import load_pair
from limbeck.engine.cost import count_flops, count_parameters
from limbeck.engine.registry import MODELS
from limbeck.errors import ConfigError, UnknownName
from limbeck.vision import _search_correlation as correlation
from limbeck.vision._search_correlation import kendall, picks, quantile_budgets, read_trained, spearman
from limbeck.vision._search_space import DepthResNet, DepthSpace, TimmSpace, draw_depths, make_space
from limbeck.vision._search_strategy import Assessor, Evolution, Limits, explore, scoring_task
from limbeck.vision.models import CIFARResNet
from tests.leaderboard.fabricate import with_values, write_all

SUITE = Path(__file__).parents[2] / "benchmarks" / "suites" / "search.toml"
STUDENT = dict(type="DepthResNet", depths=[3, 3, 3], width=4, stem_stride=2, in_chans=1, input_size=[1, 8, 8])


@pytest.fixture(scope="module")
def task():
    """The digits pair's teacher on 16 images."""
    return scoring_task(load_pair("vision/digits"), batch_size=16)


def assessor(task, limits: Limits | None = None) -> Assessor:
    return Assessor(make_space("depth-resnet", STUDENT), task, limits or Limits())


# --- the model ---


def test_depth_resnet_of_equal_depths_is_the_cifar_resnet():
    torch.manual_seed(0)
    ours = DepthResNet((3, 3, 3), width=8, in_chans=1, stem_stride=2, input_size=(1, 28, 28))
    torch.manual_seed(0)
    theirs = CIFARResNet(20, 8, in_chans=1, stem_stride=2, input_size=(1, 28, 28))
    a, b = ours.state_dict(), theirs.state_dict()
    assert list(a) == list(b)
    assert all(torch.equal(a[key], b[key]) for key in a)
    x = torch.randn(2, 1, 28, 28)
    assert torch.equal(ours(x), theirs(x))


def test_depth_resnet_is_built_by_name_with_depths_of_its_own():
    model = MODELS.make(dict(type="DepthResNet", depths=[1, 5, 3], width=4, num_classes=7))
    assert [len(model.layer1), len(model.layer2), len(model.layer3)] == [1, 5, 3]
    assert model.forward_features(torch.randn(2, 3, 32, 32)).shape == (2, 16, 8, 8)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    assert model.preact2 is model.layer2[4].preact


@pytest.mark.parametrize("depths", [(1, 1), (1, 0, 1), (1, 2.0, 1)])
def test_depth_resnet_refuses_other_depths(depths):
    with pytest.raises(ConfigError, match="three whole numbers of blocks"):
        DepthResNet(depths)


# --- spaces ---


def test_depth_space_has_64_candidates_and_mutates_one_gene():
    space, rng = DepthSpace({}), Random(0)
    assert len(set(space.candidates())) == 64
    met = set()
    for _ in range(200):
        child = space.mutate((3, 3, 3), rng)
        assert sum(a != b for a, b in zip(child, (3, 3, 3))) == 1
        assert child in space.candidates()
        met.add(child)
    assert len(met) == 9


def test_space_takes_input_classes_width_and_stem_from_the_pairs_student():
    space = make_space("depth-resnet", load_pair("vision/search").student)
    config = space.model((1, 5, 3))
    assert config["depths"] == [1, 5, 3]
    assert (config["width"], config["stem_stride"], config["in_chans"], config["num_classes"]) == (8, 2, 1, 10)
    assert config["input_size"] == [1, 28, 28]
    assert config["mean"] == [0.286]


def test_timm_space_lists_names_by_pattern_and_sets_the_image_size_where_it_is_fixed():
    space = make_space("timm:resnet1?t", STUDENT)
    assert isinstance(space, TimmSpace)
    assert space.candidates() == [("resnet10t",), ("resnet14t",)]
    assert space.mutate(("resnet10t",), Random(0)) == ("resnet14t",)
    assert "img_size" not in space.model(("resnet10t",))
    assert make_space("timm:vit_tiny_patch16_224", STUDENT).model(("vit_tiny_patch16_224",))["img_size"] == [8, 8]


def test_unknown_spaces_and_empty_patterns_are_refused():
    for name in ("resnets", "timm:", "timm"):
        with pytest.raises(UnknownName, match="unknown search space"):
            make_space(name, STUDENT)
    with pytest.raises(ConfigError, match="no timm model's name fits 'zzz\\*'"):
        make_space("timm:zzz*", STUDENT)


def test_the_suite_trains_the_documented_draw():
    (group,) = tomllib.loads(SUITE.read_text())["groups"]
    (vary,) = group["vary"]
    assert (vary["method"], vary["option"]) == ("KD", "student.depths")
    assert [tuple(v) for v in vary["values"]] == draw_depths(20, seed=0)
    assert len({tuple(v) for v in vary["values"]}) == 20


# --- strategies ---


def synthetic(genes: tuple[int, ...]) -> float:
    """Best at (7, 1, 5), and nowhere flat."""
    return -sum((a - b) ** 2 * w for a, b, w in zip(genes, (7, 1, 5), (1.0, 1.1, 1.2)))


@pytest.mark.parametrize("seed", range(5))
def test_evolution_finds_a_known_optimum_with_a_constant_population(seed):
    space, rng = DepthSpace({}, depths=tuple(range(1, 16, 2))), Random(seed)  # 512 candidates
    met: set[tuple[int, ...]] = set()

    def watched(genes: tuple[int, ...]) -> float:
        met.add(genes)
        return synthetic(genes)

    evolution = Evolution(rng.sample(space.candidates(), 20), watched, space.mutate, sample=10, rng=rng)
    for _ in range(200):
        evolution.cycle()
        assert len(evolution.population) == 20
    assert (7, 1, 5) in met
    assert len(met) < 512 / 2


def test_evolution_drops_the_oldest_not_the_worst():
    evolution = Evolution([3, 1, 2], float, lambda parent, rng: parent + 10, sample=3, rng=Random(0))
    assert evolution.cycle() == 13
    assert [c for c, _ in evolution.population] == [1, 2, 13]
    assert evolution.cycle() == 23
    assert [c for c, _ in evolution.population] == [2, 13, 23]


def test_evolution_never_takes_a_child_beyond_the_budget():
    evolution = Evolution([1, 2, 3], lambda c: None if c > 5 else float(c), lambda c, rng: c + 1, rng=Random(0))
    for _ in range(20):
        evolution.cycle()
    assert len(evolution.population) == 3
    assert max(c for c, _ in evolution.population) == 5
    with pytest.raises(ConfigError, match="within the budget"):
        Evolution([7], lambda c: None, lambda c, rng: c, rng=Random(0))


@pytest.mark.parametrize("strategy", ["evolution", "random"])
def test_explore_scores_as_many_as_asked_within_the_budget_best_first(strategy, task):
    limits = Limits(parameters=25_000, flops=400_000)
    assess = assessor(task, limits)
    found = explore(assess, strategy, evaluations=8, seed=1, population=4, sample=2)
    assert len(found) == len({c.genes for c in found}) == 8
    assert [c.score.total for c in found] == sorted((c.score.total for c in found), reverse=True)
    for candidate in found:
        model = MODELS.make(candidate.model)
        assert candidate.parameters == count_parameters(model) <= 25_000
        assert candidate.flops == count_flops(model, torch.zeros(2, 1, 8, 8)) <= 400_000
    assert assess.beyond
    again = explore(assessor(task, limits), strategy, evaluations=8, seed=1, population=4, sample=2)
    assert again == found


def test_explore_all_ignores_the_evaluations_and_prices_before_it_scores(task):
    calls = []
    assess = assessor(task, Limits(parameters=10_000))
    assess.on_scored = calls.append
    found = explore(assess, "all", evaluations=1)
    everything = assess.space.candidates()
    inside = [g for g in everything if count_parameters(MODELS.make(assess.space.model(g))) <= 10_000]
    assert {c.genes for c in found} == set(inside)
    assert len(calls) == len(inside)
    assert assess.beyond == set(everything) - set(inside)


def test_explore_ends_where_evolution_has_nothing_new(task):
    base = {key: value for key, value in STUDENT.items() if key not in ("type", "depths")}
    assess = Assessor(DepthSpace(base, depths=(1, 3)), task)
    assert len(explore(assess, "evolution", evaluations=100, population=3, sample=2)) == 8


def test_candidates_that_cannot_take_the_input_are_named_not_fatal(task):
    space = make_space("timm:resnet10t", STUDENT)
    assert isinstance(space, TimmSpace)
    space.models = ["resnet10t", "vit_tiny_patch16_224"]  # patches of 16 pixels in images of 8
    assess = Assessor(space, task)
    assert [c.genes for c in explore(assess, "all")] == [("resnet10t",)]
    assert list(assess.unfit) == [("vit_tiny_patch16_224",)]
    space.models = ["vit_tiny_patch16_224"]
    with pytest.raises(ConfigError, match="none of 1 takes this input"):
        explore(Assessor(space, task), "all")


def test_scoring_task_refuses_batches_that_there_are_not():
    with pytest.raises(ConfigError, match="training images; got 5000"):
        scoring_task(load_pair("vision/digits"), batch_size=5000)


# --- correlation ---


def test_coefficients_are_scipys_and_the_bootstrap_agrees_with_them(monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 8, 20).astype(float)  # with ties
    y = x + rng.normal(0, 3, 20)
    rho, tau = spearman(x, y), kendall(x, y)
    assert (rho.value, rho.p) == tuple(spearmanr(x, y))
    assert (tau.value, tau.p) == tuple(kendalltau(x, y))
    rows = np.random.default_rng(0).integers(20, size=(correlation.RESAMPLES, 20))
    for ours, scipys in ((rho, spearmanr), (tau, kendalltau)):
        values = [scipys(x[r], y[r])[0] for r in rows]
        assert np.allclose([ours.low, ours.high], np.quantile(values, [0.025, 0.975]))
        assert ours.low < ours.value < ours.high


def test_correlation_of_constants_is_refused():
    with pytest.raises(ConfigError, match="that differ"):
        spearman([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])


def test_picks_under_a_budget_by_hand():
    criteria = {"score": [3.0, 1.0, 2.0, 9.0], "parameters": [10.0, 20.0, 20.0, 40.0]}
    metric = [70.0, 90.0, 80.0, 60.0]
    small, large = picks(criteria, metric, [10, 20, 20, 40], [5, 20, 40])
    assert (small.budget, small.count, small.best) == (20, 3, 90.0)
    assert small.values == {"random": 80.0, "score": 70.0, "parameters": 85.0}  # two have 20: their mean
    assert small.regret("score") == 20.0
    assert large.values == {"random": 75.0, "score": 60.0, "parameters": 60.0}
    assert picks(criteria, metric, [10, 20, 20, 40], [20], higher_is_better=False)[0].best == 70.0
    assert quantile_budgets([40, 10, 20, 30]) == [10, 20, 30, 40]


def trained(depths: list[int], values: list[float]) -> list:
    config = dict(model=dict(deploy="student", members=dict(student=dict(model=dict(STUDENT, depths=depths)))))
    place = dict(benchmark="search", pair="resnet20-depthresnet")
    return with_values(f"KD@student.depths={depths}", values, config=config, **place)


def test_read_trained_takes_the_model_from_the_config_and_the_mean_over_seeds(tmp_path):
    pair = load_pair("vision/search")
    records = trained([1, 3, 5], [80.0, 82.0]) + trained([3, 3, 3], [85.0, 84.0]) + trained([7, 1, 1], [83.0])
    place = dict(benchmark="search", pair="resnet20-depthresnet")
    records += with_values("plain", [70.0, 71.0], **place) + with_values("KD@temperature=2", [70.0, 71.0], **place)
    write_all(tmp_path, records)
    found = read_trained(tmp_path, pair, minimum=2)
    assert {tuple(t.model["depths"]): t.value for t in found.candidates} == {(1, 3, 5): 81.0, (3, 3, 3): 84.5}
    assert found.seeds == (0, 1)
    assert found.incomplete == ["KD@student.depths=[7, 1, 1]"]
    assert found.candidates[0].model["type"] == "DepthResNet"
    with pytest.raises(ConfigError, match=r"has 2 students trained by KD .* wants 16"):
        read_trained(tmp_path, pair)
    with pytest.raises(ConfigError, match="no students trained by DKD"):
        read_trained(tmp_path, pair, method="DKD")
