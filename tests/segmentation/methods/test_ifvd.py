"""IFVD against loops over pixels and classes in float64, what it cannot see, ignored pixels, a run of the engine."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck.engine.losses import IGNORE
from limbeck.errors import ConfigError, ShapeMismatch
from limbeck.segmentation.methods.ifvd import IFVD, ifvd_loss
from tests.segmentation.methods.test_cwd import check_learns
from tests.vision.methods import conftest as common

C_S, C_T, SIZE = 3, 5, (3, 4)
TAPS = [("a", "b")]
LABELS = torch.tensor(
    [
        [[0, 0, 3, 3], [0, 0, 3, IGNORE], [0, 3, 3, IGNORE]],
        [[1, 1, 1, 3], [7, 1, 3, 3], [7, 7, IGNORE, 0]],
    ]
)


def example(seed: int = 0) -> tuple[Tensor, Tensor]:
    return common.randn(2, C_S, *SIZE, seed=seed), common.randn(2, C_T, *SIZE, seed=seed + 50)


def loss_of(labels: Tensor = LABELS, *, mask_ignore: bool = False) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda s, t: ifvd_loss(s, t, labels, mask_ignore=mask_ignore)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (max(np.linalg.norm(a), 1e-8) * max(np.linalg.norm(b), 1e-8)))


def similarities(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """As the official code: the means are written into a copy of the features, class by class."""
    centres = features.copy()
    for b in range(len(features)):
        for k in range(IGNORE):
            where = [(i, j) for i, j in np.ndindex(*labels.shape[1:]) if labels[b, i, j] == k]
            if where:
                mean = sum(features[b, :, i, j] for i, j in where) / (len(where) + 1e-6)
                for i, j in where:
                    centres[b, :, i, j] = mean
    found = np.zeros(labels.shape)
    for b, i, j in np.ndindex(*labels.shape):
        found[b, i, j] = cosine(features[b, :, i, j], centres[b, :, i, j])
    return found


def reference(student: np.ndarray, teacher: np.ndarray, labels: Tensor = LABELS, *, mask_ignore: bool = False) -> float:
    y = labels.numpy()
    gap = (similarities(student, y) - similarities(teacher, y)) ** 2
    return float(gap.sum() / ((y != IGNORE).sum() if mask_ignore else y.size))


@pytest.mark.parametrize("mask_ignore", [False, True])
def test_value_and_gradient_match_loops(mask_ignore: bool) -> None:
    common.check_reference(
        loss_of(mask_ignore=mask_ignore), lambda s, t: reference(s, t, mask_ignore=mask_ignore), *example()
    )


def test_ignored_pixels_count_in_the_denominator_unless_masked() -> None:
    student, teacher = example()
    every, labelled = (ifvd_loss(student, teacher, LABELS, mask_ignore=m) for m in (False, True))
    torch.testing.assert_close(every * 24, labelled * 21)


def test_features_that_are_constant_in_each_class_have_no_variation() -> None:
    classes = common.randn(2, 8, C_S, seed=3), common.randn(2, 8, C_T, seed=4)
    y = LABELS.masked_fill(LABELS == IGNORE, 5)
    student, teacher = (torch.stack([c[b][y[b]] for b in range(2)]).movedim(-1, 1) for c in classes)
    assert ifvd_loss(student, teacher, LABELS).item() < 1e-10
    assert ifvd_loss(student, example()[1], LABELS).item() > 1e-3


@pytest.mark.parametrize("side", [0, 1])
def test_scale_and_rotation_of_a_side_are_free_and_scale_of_one_position_is_not(side: int) -> None:
    maps = list(example())
    expected = ifvd_loss(*maps, LABELS)
    width = maps[side].shape[1]
    rotation = torch.linalg.qr(common.randn(width, width, seed=9))[0]
    moved = [*maps]
    moved[side] = 7.0 * torch.einsum("ij,bjhw->bihw", rotation, maps[side])
    torch.testing.assert_close(ifvd_loss(*moved, LABELS), expected, rtol=1e-4, atol=1e-6)
    moved = [x.clone() for x in maps]
    moved[side][0, :, 0, 0] *= 5.0  # its own direction stays, its class's mean moves
    assert not torch.isclose(ifvd_loss(*moved, LABELS), expected, rtol=1e-3)


def test_equal_features_cost_nothing_and_range_is_four() -> None:
    _, teacher = example()
    assert ifvd_loss(teacher.clone(), teacher, LABELS).item() < 1e-12
    for seed in range(20):
        assert 0 <= ifvd_loss(*example(seed), LABELS).item() <= 4


def test_prototypes_are_of_an_image_not_of_the_batch() -> None:
    student, teacher = example()
    alone = [ifvd_loss(student[b : b + 1], teacher[b : b + 1], LABELS[b : b + 1]) for b in range(2)]
    torch.testing.assert_close((alone[0] + alone[1]) / 2, ifvd_loss(student, teacher, LABELS))


def test_gradient_passes_through_the_students_means() -> None:
    student, teacher = example()
    labels = torch.full((2, *SIZE), IGNORE)
    labels[:, 0, :2] = 2
    # Position (0, 1) is compared with the mean of two: it moves the similarity of (0, 0).
    leaf = student.clone().requires_grad_()
    ifvd_loss(leaf, teacher, labels).backward()
    assert (leaf.grad[:, :, 0, :2].abs().amax((1, 2)) > 0).all()
    assert leaf.grad[:, :, 1:].abs().max() == 0
    assert leaf.grad[:, :, 0, 2:].abs().max() == 0  # ignored: similarity 1 whatever the feature


@pytest.mark.parametrize("mask_ignore", [False, True])
def test_nothing_labelled_gives_zero_with_a_graph(mask_ignore: bool) -> None:
    student, teacher = example()
    student.requires_grad_()
    loss = ifvd_loss(student, teacher, torch.full_like(LABELS, IGNORE), mask_ignore=mask_ignore)
    assert loss.item() == 0.0
    loss.backward()
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_an_unlabelled_image_and_absent_classes_add_nothing() -> None:
    student, teacher = example()
    labels = LABELS.clone()
    labels[1] = IGNORE
    alone = ifvd_loss(student[:1], teacher[:1], labels[:1])
    torch.testing.assert_close(ifvd_loss(student, teacher, labels), alone / 2)
    # Which numbers classes have, and how many are absent, says nothing.
    renamed = torch.where(labels == 3, 200, labels)
    torch.testing.assert_close(ifvd_loss(student, teacher, renamed), alone / 2)


def test_labels_are_brought_to_the_map_by_nearest() -> None:
    student, teacher = example()
    large = torch.full((2, 6, 8), 99)
    large[:, ::2, ::2] = LABELS  # what lies between is not seen
    torch.testing.assert_close(ifvd_loss(student, teacher, large), ifvd_loss(student, teacher, LABELS))


def test_zero_features_give_no_nan() -> None:
    student, teacher = example()
    student[0] = 0.0
    student.requires_grad_()
    labels = LABELS.masked_fill(LABELS == IGNORE, 2)
    loss = ifvd_loss(student, teacher, labels)
    assert loss.item() == pytest.approx(reference(common.array(student), common.array(teacher), labels), rel=1e-4)
    loss.backward()
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("dtype", common.HALVES)
def test_computed_in_float32_and_reaches_the_student_only(dtype: torch.dtype) -> None:
    common.check_half(loss_of(), *example(), dtype)
    common.check_one_sided(loss_of(), *example())


# --- the link ---


def test_link_gives_the_pure_loss_and_adds_pairs() -> None:
    pairs = [example(0), example(1)]
    link = IFVD(taps=[("a", "b"), ("c", "d")], mask_ignore=True)
    link.connect([tuple(t.shape) for _, t in pairs], [tuple(s.shape) for s, _ in pairs])
    terms = link(common.link_inputs([s for s, _ in pairs], [t for _, t in pairs], LABELS))
    assert list(terms) == ["variation"]
    expected = sum(ifvd_loss(s, t, LABELS, mask_ignore=True) for s, t in pairs)
    torch.testing.assert_close(terms["variation"], expected)
    assert not list(link.parameters())


def test_defaults_and_taps_are_asked_for() -> None:
    link = IFVD(taps=TAPS)
    assert (link.weight, link.mask_ignore) == (20.0, False)
    with pytest.raises(ConfigError, match="IFVD needs taps as pairs"):
        IFVD()


@pytest.mark.parametrize(
    ("teacher", "student"),
    [((2, 5, 3, 4), (3, 5, 3, 4)), ((2, 5, 3, 4), (2, 5, 6, 8)), ((2, 5), (2, 5)), ((2, 9, 5), (2, 9, 5))],
)
def test_maps_that_do_not_fit_are_named(teacher: tuple[int, ...], student: tuple[int, ...]) -> None:
    pattern = rf"IFVD: teacher map \({', '.join(map(str, teacher))}\) and student map .* do not fit; .*the same stride"
    with pytest.raises(ShapeMismatch, match=pattern):
        ifvd_loss(torch.zeros(student), torch.zeros(teacher), LABELS)
    with pytest.raises(ShapeMismatch, match=pattern):
        IFVD(taps=TAPS).connect([teacher], [student])


def test_labels_that_do_not_fit_are_named() -> None:
    for labels in (torch.zeros(2, dtype=torch.int64), torch.zeros(2, *SIZE), torch.zeros(3, *SIZE, dtype=torch.int64)):
        with pytest.raises(ShapeMismatch, match=r"IFVD: label maps .* integers \(B, H, W\)"):
            ifvd_loss(*example(), labels)


def test_distiller_trains_it() -> None:
    check_learns("ifvd.loss_variation", dict(type="IFVD", taps=[("features", "features")]))
