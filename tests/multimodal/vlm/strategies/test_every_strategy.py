"""What holds for every strategy: distinct ids, one seed one choice, blocks, permutations, memory, progress."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from limbeck.engine import selection
from limbeck.engine.registry import STRATEGIES
from limbeck.engine.selection import Pool
from limbeck.multimodal.vlm.strategies import _k_centre
from tests.multimodal.vlm.strategies.pools import grid_pool, permuted, random_pool

EVERY: list[dict[str, Any]] = [
    dict(type="Random"),
    dict(type="ClassBalanced"),
    dict(type="ClassBalanced", variant="activekd"),
    dict(type="Entropy"),
    dict(type="Margin"),
    dict(type="LeastConfidence"),
    dict(type="Coreset"),
    dict(type="BADGE"),
    dict(type="BADGE", first="uniform"),
    dict(type="BADGE", variant="activekd"),
    dict(type="PCoreSet"),
    dict(type="PCoreSet", metric="l1"),
    dict(type="PCoreSet", metric="hellinger"),
    dict(type="PCoreSet", metric="js"),
]
DRAWS = ("Random", "ClassBalanced", "BADGE")
RANKS = [c for c in EVERY if c["type"] not in DRAWS]  # no random numbers
every = pytest.mark.parametrize("config", EVERY, ids=lambda c: "-".join(c.values()))
ranks = pytest.mark.parametrize("config", RANKS, ids=lambda c: "-".join(c.values()))


def chosen(config: dict[str, Any], pool: Pool, budget: int = 12, seed: int = 0) -> list[int]:
    return STRATEGIES.make(config).choose(pool, budget, seed=seed).tolist()


@every
@pytest.mark.parametrize("make", [random_pool, grid_pool])
def test_never_a_labelled_image_and_never_one_twice_up_to_the_whole_pool(config: dict[str, Any], make: Any) -> None:
    pool = make(3)
    for budget in (1, 12, len(pool.unlabelled)):
        ids = chosen(config, pool, budget)
        assert len(set(ids)) == budget
        assert set(ids) <= set(pool.unlabelled.tolist())


@every
def test_a_seed_decides_the_choice_and_the_order_of_ids_does_not(config: dict[str, Any]) -> None:
    pool = random_pool(1)
    again = Pool(
        probabilities=pool.probabilities,
        features=pool.features,
        labelled=pool.labelled[::-1],
        labels=pool.labels[::-1],
        unlabelled=np.random.default_rng(9).permutation(pool.unlabelled),
    )
    state = np.random.get_state()[1].copy()  # type: ignore[index]
    assert chosen(config, pool) == chosen(config, again)
    assert np.array_equal(state, np.random.get_state()[1])  # the global generator is not touched
    if config["type"] in DRAWS and config.get("variant") != "activekd":
        assert chosen(config, pool) != chosen(config, pool, seed=1)


@every
@pytest.mark.parametrize("make", [random_pool, grid_pool])
def test_blocks_change_nothing(config: dict[str, Any], make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make(5)
    whole = chosen(config, pool, 20)
    monkeypatch.setattr(selection, "BLOCK_BYTES", 100)  # two or three rows
    monkeypatch.setattr(_k_centre, "CENTRES", 3)
    assert chosen(config, pool, 20) == whole


@every
def test_half_precision_file_chooses_as_the_same_numbers_in_memory(config: dict[str, Any], tmp_path: Path) -> None:
    pool = random_pool(7, images=90)
    assert pool.probabilities is not None
    assert pool.features is not None
    ids = dict(labelled=pool.labelled, labels=pool.labels, unlabelled=pool.unlabelled)
    halves = {name: getattr(pool, name).astype(np.float16) for name in ("probabilities", "features")}
    for name, table in halves.items():
        np.save(tmp_path / f"{name}.npy", table)
    mapped = {name: np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in halves}
    floats = {name: table.astype(np.float32) for name, table in halves.items()}
    assert chosen(config, Pool(**mapped, **ids), 30) == chosen(config, Pool(**floats, **ids), 30)


@ranks
def test_renaming_classes_changes_nothing(config: dict[str, Any]) -> None:
    for seed in range(5):
        pool = random_pool(seed)
        assert pool.probabilities is not None
        order = np.random.default_rng(seed).permutation(pool.probabilities.shape[1])
        renamed = Pool(
            probabilities=pool.probabilities[:, order],
            features=pool.features,
            labelled=pool.labelled,
            labels=np.argsort(order)[pool.labels],
            unlabelled=pool.unlabelled,
        )
        assert chosen(config, pool) == chosen(config, renamed)


@ranks
def test_reordering_images_reorders_the_choice_where_nothing_ties(config: dict[str, Any]) -> None:
    for seed in range(5):
        pool = random_pool(seed)
        other, old = permuted(pool, seed)
        assert chosen(config, pool) == old[chosen(config, other)].tolist()


@every
def test_a_loop_that_resumes_makes_the_same_later_choices(config: dict[str, Any]) -> None:
    """Ids are those of the whole set, so what was chosen before is all that a later round needs."""
    start = random_pool(11)
    truth = np.random.default_rng(0).integers(0, 7, start.images)

    def rounds(labelled: list[int], first: int, last: int) -> list[list[int]]:
        made = []
        for index in range(first, last):
            left = [i for i in range(start.images) if i not in labelled]
            pool = Pool(
                probabilities=start.probabilities,
                features=start.features,
                labelled=labelled,  # type: ignore[arg-type]
                labels=truth[labelled],
                unlabelled=left,  # type: ignore[arg-type]
            )
            made.append(STRATEGIES.make(config).choose(pool, 6, seed=(5, index)).tolist())
            labelled = labelled + made[-1]
        return made

    whole = rounds([3, 1], 0, 4)
    assert rounds([3, 1, *whole[0], *whole[1]], 2, 4) == whole[2:]


@every
def test_progress_ends_at_the_budget_and_never_goes_back(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "BLOCK_BYTES", 300)
    monkeypatch.setattr(_k_centre, "CENTRES", 3)
    seen: list[tuple[int, int, str]] = []
    STRATEGIES.make(config).choose(random_pool(0), 9, seed=0, progress=lambda *said: seen.append(said))
    picks = [done for done, total, unit in seen if unit == "picks" and total == 9]
    images = [(done, total) for done, total, unit in seen if unit == "images"]
    assert picks == sorted(picks)
    assert picks[-1] == 9
    assert images == sorted(images)
    assert all(0 < done <= total for done, total in images)
    assert {unit for _, _, unit in seen} <= {"images", "picks"}
    if config["type"] in ("Coreset", "PCoreSet", "BADGE"):
        assert picks == list(range(1, 10))


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that any operation of torch returns."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        sizes = [t.numel() * t.element_size() for t in tree_leaves(found) if isinstance(t, torch.Tensor)]
        self.bytes = max(self.bytes, *sizes, 0)
        return found


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """40,000 × 200 probabilities and a few features in files of half precision."""
    folder, rng = tmp_path_factory.mktemp("large"), np.random.default_rng(0)
    logits = rng.random((40_000, 200), np.float32)
    logits *= logits
    np.save(folder / "p.npy", (logits / logits.sum(1, keepdims=True)).astype(np.float16))
    np.save(folder / "f.npy", rng.random((40_000, 4), np.float32).astype(np.float16))
    labelled = np.arange(0, 40_000, 400)
    return Pool(
        probabilities=np.load(folder / "p.npy", mmap_mode="r"),
        features=np.load(folder / "f.npy", mmap_mode="r"),
        labelled=labelled,
        labels=labelled % 200,
        unlabelled=np.setdiff1d(np.arange(40_000), labelled),
    )


@pytest.mark.parametrize("name", ["PCoreSet", "Entropy", "Margin", "BADGE", "ClassBalanced"])
def test_a_large_file_is_never_copied_whole(name: str, large: Pool) -> None:
    config = dict(type=name)
    strategy = STRATEGIES.make(config)
    with Largest():
        strategy.choose(grid_pool(0), 4, seed=0)  # imports are done, and none of this run's memory
    tracemalloc.start()
    with Largest() as largest:
        parts = ("probabilities", "features", "labelled", "labels", "unlabelled")
        strategy.choose(Pool(**{part: getattr(large, part) for part in parts}), 4, seed=0)  # its checks count too
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    whole = 40_000 * 200 * 4  # bytes in float32
    assert peak < whole / 4, peak
    assert largest.bytes < whole / 16
