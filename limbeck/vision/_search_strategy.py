"""How a space of students is searched: regularised evolution, random draws or all of it, within a budget."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any, Generic, Literal, TypeVar, cast

from torch import Tensor, nn

from limbeck.engine.adapter import Batch
from limbeck.engine.config import PairConfig
from limbeck.engine.cost import count_flops, count_parameters
from limbeck.engine.distiller import isolated_rng
from limbeck.engine.evaluate import build_dataset
from limbeck.engine.registry import ADAPTERS
from limbeck.errors import ConfigError
from limbeck.vision._search_space import Genes, Space, build
from limbeck.vision.search import Score, Scorer

T = TypeVar("T")
Strategy = Literal["evolution", "random", "all"]
# What timm's architectures raise for an input that they cannot take; the score itself raises ConfigError.
_UNFIT = (ConfigError, AssertionError, IndexError, RuntimeError, TypeError, ValueError)
CYCLES = 20  # evolution's limit, in cycles for each evaluation: a small space has few candidates left to find


class Evolution(Generic[T]):
    """Regularised (ageing) evolution (arXiv 1802.01548): the best of a random sample has a child, the oldest dies.

    Args:
        first: the population, oldest first; its size stays.
        score: of a candidate, higher is better; None where it is beyond the budget: it never joins.
        mutate: gives a neighbour.
        sample: how many are drawn from the population in a cycle.
    Raises: ConfigError for an empty population.
    """

    def __init__(
        self,
        first: Iterable[T],
        score: Callable[[T], float | None],
        mutate: Callable[[T, Random], T],
        *,
        sample: int = 10,
        rng: Random,
    ) -> None:
        scored = [(candidate, score(candidate)) for candidate in first]
        self.population: deque[tuple[T, float]] = deque((c, s) for c, s in scored if s is not None)
        if not self.population:
            raise ConfigError("evolution needs at least one candidate within the budget to start from")
        self.score, self.mutate, self.sample, self.rng = score, mutate, sample, rng

    def cycle(self) -> T | None:
        """One child, which takes the oldest one's place; None where it is beyond the budget."""
        drawn = self.rng.sample(list(self.population), min(self.sample, len(self.population)))
        parent, _ = max(drawn, key=lambda member: member[1])
        child = self.mutate(parent, self.rng)
        value = self.score(child)
        if value is None:
            return None
        self.population.append((child, value))
        self.population.popleft()
        return child


@dataclass(frozen=True)
class Limits:
    """What a student may cost; None does not limit."""

    parameters: int | None = None
    flops: int | None = None


NO_LIMITS = Limits()


@dataclass(frozen=True)
class Candidate:
    """A scored student: its model config, its cost, and both terms of its score."""

    genes: Genes
    model: dict[str, Any]
    parameters: int
    flops: int
    score: Score

    def row(self) -> dict[str, Any]:
        """As JSON has it."""
        terms = asdict(self.score)
        cost = dict(parameters=self.parameters, flops=self.flops)
        return dict(score=self.score.total, **terms, **cost, model=self.model)


@dataclass
class Assessor:
    """Builds, prices and scores candidates, each once; remembers those beyond the budget and those that do not run.

    Args:
        task: what they are scored on.
        limits: a candidate beyond them is not scored.
        seed: of what a model draws when it is built.
        on_scored: called after each new candidate.
    """

    space: Space
    task: ScoringTask
    limits: Limits = NO_LIMITS
    seed: int = 0
    on_scored: Callable[[Candidate], None] = lambda candidate: None
    scored: dict[Genes, Candidate] = field(default_factory=dict)
    beyond: set[Genes] = field(default_factory=set)
    unfit: dict[Genes, str] = field(default_factory=dict)

    def __call__(self, genes: Genes) -> float | None:
        """The score; None for a candidate beyond the budget or that does not run on this input."""
        if genes in self.scored:
            return self.scored[genes].score.total
        if genes in self.beyond or genes in self.unfit:
            return None
        try:
            found = assess_model(self.task, self.space.model(genes), self.limits, genes=genes, seed=self.seed)
        except _UNFIT as error:
            said = (str(error).splitlines() or [""])[0]
            self.unfit[genes] = said or type(error).__name__
            return None
        if found is None:
            self.beyond.add(genes)
            return None
        self.scored[genes] = found
        self.on_scored(found)
        return found.score.total


@dataclass
class ScoringTask:
    """The batch that candidates are scored on, the teacher, and the scorer that has its statistics."""

    adapter: Any
    batch: Batch
    teacher: nn.Module
    scorer: Scorer

    def images_for(self, model: nn.Module) -> Tensor:
        """The batch's images as a candidate wants them."""
        return cast(Tensor, self.adapter.member_inputs(self.batch, self.teacher, model))


def scoring_task(pair: PairConfig, *, batch_size: int = 64, seed: int = 0, repeats: int = 1) -> ScoringTask:
    """A pair's teacher on one batch drawn from its training images; no weights are read.

    Raises: ConfigError for a pair that does not classify images, or a batch larger than the training split.
    """
    if pair.task != "image-classification":
        raise ConfigError(f"DisWOT scores image classifiers; {pair.benchmark}/{pair.pair} is of task {pair.task}")
    adapter: Any = ADAPTERS.make(pair.adapter)
    with isolated_rng(seed, "candidate"):
        teacher = build(pair.teacher)
    dataset = build_dataset(pair.data, "train", seed=seed)
    if not 2 <= batch_size <= len(dataset):
        raise ConfigError(f"--batch-size is between 2 and the {len(dataset)} training images; got {batch_size}")
    data = dataset.__getitems__(Random(seed).sample(range(len(dataset)), batch_size))
    ready = adapter.preprocessor(teacher)(data, False)
    batch = adapter.batch(ready["inputs"], ready["data_samples"])
    return ScoringTask(
        adapter, batch, teacher, Scorer(teacher, batch.inputs, batch.targets, seed=seed, repeats=repeats)
    )


def assess_model(
    task: ScoringTask, config: dict[str, Any], limits: Limits = NO_LIMITS, *, genes: Genes = (), seed: int = 0
) -> Candidate | None:
    """Build, price and score one student; None for one beyond the limits, which is not scored."""
    with isolated_rng(seed, "candidate"):
        model = build(config)
    parameters = count_parameters(model)
    if limits.parameters is not None and parameters > limits.parameters:
        return None
    images = task.images_for(model)
    flops = count_flops(model, images[:1])
    if limits.flops is not None and flops > limits.flops:
        return None
    return Candidate(genes, config, parameters, flops, task.scorer(model, images))


def explore(
    assess: Assessor,
    strategy: Strategy = "evolution",
    *,
    evaluations: int = 100,
    seed: int = 0,
    population: int = 20,
    sample: int = 10,
) -> list[Candidate]:
    """Search a space; candidates best first.

    Args:
        strategy: 'evolution', 'random' (draws without replacement) or 'all', which takes no `evaluations`.
        evaluations: distinct candidates to score; those beyond the budget or met again do not count. Evolution ends
            earlier where it meets nothing new for long.
        population, sample: of the evolution (ASSUMPTION: 20 and 10).
    Raises: ConfigError where no candidate is within the budget or runs.
    """
    rng = Random(seed)
    order = assess.space.candidates()
    if strategy != "all":
        rng.shuffle(order)
    wanted = {"all": len(order), "random": evaluations, "evolution": min(population, evaluations)}[strategy]
    first = list(_take(order, assess, wanted))
    if not first:
        raise ConfigError(_nothing(assess))
    if strategy == "evolution":
        evolution = Evolution(first, assess, assess.space.mutate, sample=sample, rng=rng)
        for _ in range(CYCLES * evaluations):
            if len(assess.scored) >= min(evaluations, len(order)):
                break
            evolution.cycle()
    return sorted(assess.scored.values(), key=lambda c: (-c.score.total, c.parameters, c.genes))


def _take(order: list[Genes], assess: Assessor, count: int) -> Iterator[Genes]:
    taken = 0
    for genes in order:
        if taken == count:
            return
        if assess(genes) is not None:
            taken += 1
            yield genes


def _nothing(assess: Assessor) -> str:
    limits = [
        f"{value:,} {what}"
        for value, what in ((assess.limits.parameters, "parameters"), (assess.limits.flops, "FLOPs"))
        if value is not None
    ]
    if assess.unfit:
        genes, reason = next(iter(assess.unfit.items()))
        said = f"none of {len(assess.unfit)} takes this input; {assess.space.model(genes)}: {reason}"
    else:
        said = f"all {len(assess.beyond)} exceed {' or '.join(limits)}"
    return f"no candidate of {assess.space.name} can be scored: {said}"
