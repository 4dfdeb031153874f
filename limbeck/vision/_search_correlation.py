"""Does a score rank students as training does? Rank correlations and choices against records of trained candidates."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from limbeck.engine.config import PairConfig
from limbeck.engine.record import RunRecord, iter_records
from limbeck.errors import ConfigError
from limbeck.vision._search_strategy import Candidate

MIN_CANDIDATES = 16
RESAMPLES = 2000
CONFIDENCE = 0.95
BUDGETS = (0.25, 0.5, 0.75, 1.0)  # quantiles of the candidates' parameters


@dataclass(frozen=True)
class Trained:
    """A candidate that was trained: its model config and its metric, the mean over `seeds`."""

    model: dict[str, Any]
    value: float


@dataclass(frozen=True)
class TrainedSet:
    """The trained candidates of one method; all have the same seeds."""

    method: str
    metric: str
    higher_is_better: bool
    seeds: tuple[int, ...]
    candidates: list[Trained]
    incomplete: list[str] = field(default_factory=list)  # methods that lack a seed, and are left out


def read_trained(results: Path, pair: PairConfig, *, method: str = "KD", minimum: int = MIN_CANDIDATES) -> TrainedSet:
    """The students that `method` trained, one for each student model among the pair's records.

    Records of the method and of its variants 'METHOD@student.KEY=VALUE' count; the model is the record's config's.

    Raises: ConfigError where fewer than `minimum` have all seeds; CorruptFile.
    """
    folder = results / pair.benchmark / pair.pair
    runs: dict[str, dict[int, RunRecord]] = {}
    for _, record in iter_records(folder):
        if record.status == "ok" and _counts(record.method, method):
            members = record.config["model"]["members"]
            key = json.dumps(members[record.config["model"]["deploy"]]["model"], sort_keys=True)
            runs.setdefault(key, {})[record.seed] = record
    if not runs:
        raise ConfigError(f"{folder} has no students trained by {method}; run: limbeck bench run search")
    seeds = tuple(sorted({seed for found in runs.values() for seed in found}))
    whole = {key: found for key, found in runs.items() if len(found) == len(seeds)}
    if len(whole) < minimum:
        raise ConfigError(
            f"{folder} has {len(whole)} students trained by {method} with each of the seeds {list(seeds)}, and a rank "
            f"correlation wants {minimum}; train more (limbeck bench run search), or lower --min-candidates"
        )
    one = next(iter(next(iter(whole.values())).values()))
    return TrainedSet(
        method=method,
        metric=one.primary_metric,
        higher_is_better=one.higher_is_better,
        seeds=seeds,
        candidates=[
            Trained(json.loads(key), fmean(record.value for record in found.values()))
            for key, found in sorted(whole.items())
        ],
        incomplete=sorted({r.method for key, found in runs.items() if key not in whole for r in found.values()}),
    )


def _counts(name: str, method: str) -> bool:
    base, _, option = name.partition("@")
    return base.lower() == method.lower() and (not option or option.startswith("student."))


@dataclass(frozen=True)
class RankCorrelation:
    """A coefficient, its two-sided p-value, and a percentile bootstrap interval over the candidates."""

    value: float
    p: float
    low: float
    high: float


def spearman(x: Sequence[float], y: Sequence[float], *, seed: int = 0) -> RankCorrelation:
    """Spearman's ρ, the correlation of average ranks.

    Raises: ConfigError for values that do not vary.
    """
    from scipy.stats import rankdata, spearmanr

    def resampled(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        a, b = (rankdata(v, axis=1) - (v.shape[1] + 1) / 2 for v in (a, b))
        return _ratio((a * b).sum(1), np.sqrt((a * a).sum(1) * (b * b).sum(1)))

    _check_varies(x, y)
    found: Any = spearmanr(x, y)
    return RankCorrelation(float(found.statistic), float(found.pvalue), *_interval(x, y, resampled, seed))


def kendall(x: Sequence[float], y: Sequence[float], *, seed: int = 0) -> RankCorrelation:
    """Kendall's τ_b: pairs ranked alike less those ranked against each other, over those that neither side ties.

    Raises: ConfigError for values that do not vary.
    """
    from scipy.stats import kendalltau

    def resampled(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        a, b = (np.sign(v[:, :, None] - v[:, None, :]).reshape(len(v), -1) for v in (a, b))
        return _ratio((a * b).sum(1), np.sqrt((a * a).sum(1) * (b * b).sum(1)))

    _check_varies(x, y)
    found: Any = kendalltau(x, y)
    return RankCorrelation(float(found.statistic), float(found.pvalue), *_interval(x, y, resampled, seed))


def _check_varies(x: Sequence[float], y: Sequence[float]) -> None:
    if len(set(x)) < 2 or len(set(y)) < 2:
        raise ConfigError("a rank correlation needs candidates that differ; all have the same score or metric")


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full_like(above, np.nan, dtype=float), where=below > 0)


def _interval(x: Sequence[float], y: Sequence[float], statistic: Any, seed: int) -> tuple[float, float]:
    rows = np.random.default_rng(seed).integers(len(x), size=(RESAMPLES, len(x)))
    values = statistic(np.asarray(x, float)[rows], np.asarray(y, float)[rows])
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(values, [tail, 1 - tail])  # a resample of one candidate alone has no correlation
    return float(low), float(high)


@dataclass(frozen=True)
class Pick:
    """What each criterion would choose among the candidates of at most `budget` parameters.

    values: metric of the choice by criterion, and 'random': the expectation of a uniform draw; the mean over ties.
    best: of the metric within the budget.
    """

    budget: int
    count: int
    best: float
    values: dict[str, float]

    def regret(self, criterion: str) -> float:
        """How far the choice is from the best, ≥ 0."""
        return abs(self.best - self.values[criterion])


def picks(
    criteria: Mapping[str, Sequence[float]],
    metric: Sequence[float],
    parameters: Sequence[int],
    budgets: Sequence[int],
    *,
    higher_is_better: bool = True,
) -> list[Pick]:
    """The choices under each budget on parameters; budgets that no candidate meets are left out.

    Args:
        criteria: name → a value for each candidate, of which the highest is chosen.
    """
    best = max if higher_is_better else min
    made = []
    for budget in budgets:
        inside = [i for i, n in enumerate(parameters) if n <= budget]
        if not inside:
            continue
        values = {"random": fmean(metric[i] for i in inside)}
        for name, scores in criteria.items():
            top = max(scores[i] for i in inside)
            values[name] = fmean(metric[i] for i in inside if scores[i] == top)
        made.append(Pick(budget, len(inside), best(metric[i] for i in inside), values))
    return made


def quantile_budgets(parameters: Sequence[int]) -> list[int]:
    """Budgets that a quarter, half, three quarters and all of the candidates meet, without repetition."""
    ordered = sorted(parameters)
    chosen = (ordered[max(0, round(q * len(ordered)) - 1)] for q in BUDGETS)
    return list(dict.fromkeys(chosen))


@dataclass(frozen=True)
class Report:
    """How well each criterion ranks the trained candidates: correlations by criterion, and choices under budgets."""

    trained: TrainedSet
    candidates: list[Candidate]
    spearman: dict[str, RankCorrelation]
    kendall: dict[str, RankCorrelation]
    picks: list[Pick]

    def to_json(self) -> dict[str, Any]:
        """Everything, with one row for each candidate."""
        rows = [c.row() | {self.trained.metric: t.value} for c, t in zip(self.candidates, self.trained.candidates)]
        names = ("method", "metric", "higher_is_better", "seeds", "incomplete")
        facts = {name: getattr(self.trained, name) for name in names}
        return dict(
            **facts,
            correlations={
                name: dict(spearman=asdict(found), kendall=asdict(self.kendall[name]))
                for name, found in self.spearman.items()
            },
            picks=[asdict(p) | dict(regret={name: p.regret(name) for name in p.values}) for p in self.picks],
            candidates=rows,
        )


def criteria_of(candidates: Sequence[Candidate]) -> dict[str, list[float]]:
    """The score, its two terms, and the two baselines that cost nothing either: more parameters, more FLOPs."""
    return {
        "DisWOT": [c.score.total for c in candidates],
        "relation": [c.score.relation for c in candidates],
        "semantic": [c.score.semantic for c in candidates],
        "parameters": [float(c.parameters) for c in candidates],
        "FLOPs": [float(c.flops) for c in candidates],
    }


def correlate(trained: TrainedSet, candidates: Sequence[Candidate], *, max_parameters: int | None = None) -> Report:
    """Compare what the criteria say of candidates with what training made of them.

    Args:
        candidates: `trained.candidates`, scored, in the same order.
        max_parameters: the budget of the choices; quartiles of the candidates' parameters where not given.
    Raises: ConfigError where all scores or metrics are equal, or no candidate meets the budget.
    """
    metric = [t.value for t in trained.candidates]
    quality = metric if trained.higher_is_better else [-v for v in metric]
    criteria = criteria_of(candidates)
    parameters = [c.parameters for c in candidates]
    budgets = quantile_budgets(parameters) if max_parameters is None else [max_parameters]
    made = picks(criteria, metric, parameters, budgets, higher_is_better=trained.higher_is_better)
    if not made:
        raise ConfigError(
            f"no trained candidate has at most {max_parameters:,} parameters; the smallest has {min(parameters):,}"
        )
    return Report(
        trained,
        list(candidates),
        {name: spearman(values, quality) for name, values in criteria.items()},
        {name: kendall(values, quality) for name, values in criteria.items()},
        made,
    )
