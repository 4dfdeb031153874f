"""The class-wise memory against a ring buffer of plain lists, and what a labelled batch adds to it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.engine.losses import IGNORE
from limbeck.segmentation.methods._memory import ClassMemory, pixel_entries, place_in_group, region_entries


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(classes: int = 3, length: int = 5, width: int = 4, seed: int = 0) -> ClassMemory:
    torch.manual_seed(seed)
    return ClassMemory(classes, length, width)


LABELS = torch.tensor([[0, 0, 3, 3, 0, IGNORE, 0, 3], [3, IGNORE, 1, 1, 1, 1, 1, 3]])


# --- the ring buffer ---


def test_it_starts_with_unit_rows_of_every_direction_that_depend_on_the_rng_alone() -> None:
    memory, again, other = make(4, 500, 6), make(4, 500, 6), make(4, 500, 6, seed=1)
    torch.testing.assert_close(memory.rows.norm(dim=2), torch.ones(4, 500))
    assert memory.rows.mean(dim=(0, 1)).abs().max() < 0.05
    assert torch.equal(memory.rows, again.rows)
    assert not torch.equal(memory.rows, other.rows)
    assert memory.pointer.tolist() == [0] * 4


def test_writes_equal_lists_that_forget_their_oldest() -> None:
    """Slots fill in turn, go on at the start, and the last 5 of a class are what remains."""
    memory = make()
    expected = [[row.tolist() for row in memory.rows[k]] for k in range(3)]
    pointer = [0, 0, 0]
    for seed, labels in enumerate([[0, 0, 2], [2, 0, 0, 0], [0, 1, 0], [], [1] * 5, [2] * 13 + [0]]):
        rows = 3.0 * randn(len(labels), 4, seed=seed)
        memory.write(rows, torch.tensor(labels, dtype=torch.int64))
        for row, k in zip(rows.double().numpy(), labels):
            expected[k][pointer[k]] = list(row / np.linalg.norm(row))
            pointer[k] = (pointer[k] + 1) % 5
        np.testing.assert_allclose(memory.rows.numpy(), np.array(expected), rtol=1e-5, atol=1e-6)
        assert memory.pointer.tolist() == pointer


def test_only_the_classes_written_advance_and_rows_keep_unit_norm() -> None:
    memory = make()
    before = memory.rows.clone()
    memory.write(100.0 * randn(3, 4), torch.tensor([2, 0, 2]))
    assert memory.pointer.tolist() == [1, 0, 2]
    assert torch.equal(memory.rows[1], before[1])
    assert torch.equal(memory.rows[0, 1:], before[0, 1:])
    torch.testing.assert_close(memory.rows.norm(dim=2), torch.ones(3, 5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rows_are_normalised_in_float32(dtype: torch.dtype) -> None:
    memory, rows = make(), randn(2, 4).to(dtype)
    memory.write(rows, torch.tensor([0, 0]))
    torch.testing.assert_close(memory.rows[0, :2], F.normalize(rows.float(), dim=1))


def test_writes_keep_no_graph() -> None:
    memory, rows = make(), randn(2, 4).requires_grad_()
    memory.write(rows, torch.tensor([0, 1]))
    assert not memory.rows.requires_grad


def test_a_state_dict_restores_rows_and_pointers() -> None:
    memory, other = make(), make(seed=1)
    memory.write(randn(4, 4), torch.tensor([0, 0, 1, 0]))
    other.load_state_dict(memory.state_dict())
    assert torch.equal(other.rows, memory.rows)
    assert other.pointer.tolist() == [3, 1, 0]


@pytest.mark.parametrize(
    ("classes", "size", "rows"), [(19, 4096, 4104), (19, 1024, 1026), (11, 4096, 4103), (11, 1024, 1034)]
)
def test_contrast_sets_have_the_official_sizes(classes: int, size: int, rows: int) -> None:
    memory = make(classes, 400, 2)
    assert memory.draw(size, generator()).shape == (rows, 2)


def test_a_draw_takes_the_same_slots_of_every_class_none_twice() -> None:
    memory = make(3, 20, 1)
    memory.rows.copy_(torch.arange(60.0).reshape(3, 20, 1))
    drawn = memory.draw(20, generator(4)).reshape(3, 7)
    assert torch.equal(drawn - drawn[:1], torch.tensor([[0.0], [20.0], [40.0]]).expand(3, 7))
    assert len(set(drawn[0].tolist())) == 7
    assert torch.equal(memory.draw(20, generator(4)).reshape(3, 7), drawn)
    assert not torch.equal(memory.draw(20, generator(5)).reshape(3, 7), drawn)
    seen = {v for s in range(60) for v in memory.draw(20, generator(s))[:7, 0].tolist()}
    assert seen == set(range(20))


def test_a_draw_is_a_copy_and_at_most_the_whole_queue() -> None:
    memory = make()
    drawn = memory.draw(1000, generator())
    assert drawn.shape == (15, 4)
    kept = drawn.clone()
    memory.write(randn(5, 4), torch.zeros(5, dtype=torch.int64))
    assert torch.equal(drawn, kept)


# --- entries ---


def test_place_in_group_counts_earlier_members() -> None:
    group = torch.randint(0, 6, (200,), generator=generator())
    seen: dict[int, int] = {}
    for g, found in zip(group.tolist(), place_in_group(group, 6).tolist()):
        assert found == seen.get(g, 0)
        seen[g] = found + 1


def test_region_entries_are_the_means_of_each_class_of_each_image() -> None:
    features = randn(2, 8, 4)
    means, classes = region_entries(features, LABELS, 4)
    assert classes.tolist() == [0, 3, 1, 3]
    expected = [features[b][LABELS[b] == k].double().mean(dim=0) for b, k in ((0, 0), (0, 3), (1, 1), (1, 3))]
    torch.testing.assert_close(means.double(), torch.stack(expected), rtol=1e-5, atol=1e-6)


def test_pixel_entries_are_own_positions_up_to_the_limit_an_image() -> None:
    position, classes = pixel_entries(LABELS, 4, 3, generator())
    assert LABELS.flatten()[position].tolist() == classes.tolist()
    assert len(set(position.tolist())) == len(position)
    found = sorted(zip((position // 8).tolist(), classes.tolist()))
    assert found == [(0, 0)] * 3 + [(0, 3)] * 3 + [(1, 1)] * 3 + [(1, 3)] * 2


def test_every_position_of_a_class_is_equally_likely() -> None:
    seen = torch.zeros(16)
    for seed in range(600):
        seen[pixel_entries(LABELS, 4, 2, generator(seed))[0]] += 1 / 600
    share = [2 / 4] * 2 + [2 / 3] * 2 + [2 / 4, 0, 2 / 4, 2 / 3] + [1, 0] + [2 / 5] * 5 + [1]
    np.testing.assert_allclose(seen.numpy(), share, atol=0.09)  # 4 standard deviations


def test_official_sampling_takes_the_first_positions_of_the_image_instead() -> None:
    """Of n positions of a class, numbers below n, each once, as positions of the whole image."""
    seen: dict[tuple[int, int], set[int]] = {}
    for seed in range(80):
        position, classes = pixel_entries(LABELS, 4, 2, generator(seed), own=False)
        groups: dict[tuple[int, int], list[int]] = {}
        for p, k in zip(position.tolist(), classes.tolist()):
            groups.setdefault((p // 8, k), []).append(p % 8)
        assert all(len(set(p)) == len(p) == 2 for p in groups.values())
        for key, found in groups.items():
            seen.setdefault(key, set()).update(found)
    assert seen == {(0, 0): set(range(4)), (0, 3): set(range(3)), (1, 1): set(range(5)), (1, 3): {0, 1}}


def test_ignored_labels_add_nothing() -> None:
    labels = torch.full((2, 8), IGNORE)
    means, classes = region_entries(randn(2, 8, 4), labels, 4)
    position, stands_for = pixel_entries(labels, 4, 16, generator())
    assert means.shape == (0, 4)
    assert len(classes) == len(position) == len(stands_for) == 0
    memory = make(4)
    before = memory.rows.clone()
    memory.write(means, classes)
    assert torch.equal(memory.rows, before)
    assert memory.pointer.tolist() == [0] * 4
