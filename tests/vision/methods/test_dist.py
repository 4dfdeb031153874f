"""DIST against a naive reference, the invariances of correlation, dense logits, and one-row batches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from limbeck.engine.losses import RESIZED
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch
from limbeck.vision.methods.dist import DIST, dist_loss, dist_terms, inter_distance, intra_distance
from tests.vision.methods import conftest as common


def example(*shape: int, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    return common.randn(*shape, seed=0, scale=scale), common.randn(*shape, seed=1, scale=scale)


def probabilities(rows: int, classes: int, seed: int) -> Tensor:
    return common.randn(rows, classes, seed=seed).softmax(1)


def pearson(a: list[float], b: list[float]) -> float:
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    dot = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b))
    norm_a, norm_b = (math.sqrt(sum((x - m) ** 2 for x in v)) for v, m in ((a, mean_a), (b, mean_b)))
    return dot / (norm_a * norm_b + 1e-8)


def reference(
    student: np.ndarray, teacher: np.ndarray, beta: float = 1.0, gamma: float = 1.0, temperature: float = 4.0
) -> float:
    s, t = ([common.softmax(row / temperature) for row in z] for z in (student, teacher))
    inter = sum(1 - pearson(a, b) for a, b in zip(s, t)) / len(s)
    columns = range(len(s[0]))
    intra = sum(1 - pearson([r[c] for r in s], [r[c] for r in t]) for c in columns) / len(columns)
    return temperature**2 * (beta * inter + gamma * intra)


@pytest.mark.parametrize(
    ("beta", "gamma", "temperature"), [(1.0, 1.0, 4.0), (1.0, 1.0, 1.0), (2.0, 0.5, 4.0), (0.0, 1.0, 4.0)]
)
def test_value_and_gradient_match_naive_reference(beta: float, gamma: float, temperature: float) -> None:
    common.check_reference(
        lambda s, t: dist_loss(s, t, beta=beta, gamma=gamma, temperature=temperature),
        lambda s, t: reference(s, t, beta, gamma, temperature),
        *example(6, 5),
    )


def test_dense_logits_are_rows_of_pixels() -> None:
    student, teacher = example(2, 5, 3, 4)
    rows = [
        np.array([z[b, :, i, j] for b in range(2) for i in range(3) for j in range(4)])
        for z in (common.array(student), common.array(teacher))
    ]
    assert dist_loss(student, teacher).item() == pytest.approx(reference(*rows), rel=1e-4)


def test_dense_gradient_matches_naive_reference() -> None:
    def rows(z: np.ndarray) -> np.ndarray:
        return np.moveaxis(z, 1, -1).reshape(-1, 4)

    common.check_reference(dist_loss, lambda s, t: reference(rows(s), rows(t)), *example(2, 4, 2, 3))


def test_joint_shuffle_of_all_pixels_of_the_batch_changes_nothing() -> None:
    student, teacher = example(2, 5, 3, 4)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))

    def shuffled(z: Tensor) -> Tensor:
        return z.movedim(1, -1).reshape(24, 5)[order].reshape(2, 3, 4, 5).movedim(-1, 1)

    expected = dist_terms(student, teacher)
    torch.testing.assert_close(dist_terms(shuffled(student), shuffled(teacher)), expected)
    assert not torch.isclose(dist_loss(shuffled(student), teacher), sum(expected.values()))
    # Columns run over the whole batch: images one by one have other columns, and the same rows.
    alone = [dist_terms(student[b : b + 1], teacher[b : b + 1]) for b in range(2)]
    torch.testing.assert_close((alone[0]["inter"] + alone[1]["inter"]) / 2, expected["inter"])
    assert not torch.isclose((alone[0]["intra"] + alone[1]["intra"]) / 2, expected["intra"], rtol=1e-3)


def test_one_pixel_an_image_is_classification() -> None:
    student, teacher = example(6, 5)
    dense = dist_loss(student[..., None, None], teacher[..., None, None])
    torch.testing.assert_close(dense, dist_loss(student, teacher))


@pytest.mark.parametrize("size", [(2, 3), (6, 9)])
def test_student_of_another_size_is_resized_to_the_teachers(size: tuple[int, int]) -> None:
    student, teacher = common.randn(2, 5, *size, seed=0, scale=3), common.randn(2, 5, 3, 4, seed=1, scale=3)
    resized = F.interpolate(student, (3, 4), mode="bilinear", align_corners=False)
    link = DIST()
    link.connect([tuple(teacher.shape)], [tuple(student.shape)])
    assert (link.assumption, DIST.assumption) == (RESIZED, "")
    expected = dist_terms(resized, teacher)
    torch.testing.assert_close(dist_terms(student, teacher), expected)
    torch.testing.assert_close(link(common.link_inputs(student, teacher)), expected)
    common.check_one_sided(dist_loss, student, teacher)
    for dtype in common.HALVES:
        common.check_half(dist_loss, student, teacher, dtype)


def test_one_dense_image_keeps_both_relations() -> None:
    assert sorted(dist_terms(*example(1, 5, 3, 4))) == ["inter", "intra"]


@pytest.mark.parametrize("shape", [(1, 5), (1, 5, 1, 1)])
def test_one_row_has_no_intra_relation(shape: tuple[int, ...]) -> None:
    student, teacher = example(*shape)
    terms = dist_terms(student, teacher)
    assert list(terms) == ["inter"]
    z_s, z_t = (common.array(x).reshape(1, 5) for x in (student, teacher))
    assert terms["inter"].item() == pytest.approx(reference(z_s, z_t, gamma=0.0), rel=1e-4)
    torch.testing.assert_close(dist_loss(student, teacher), terms["inter"])
    assert list(DIST()(common.link_inputs(student, teacher))) == ["inter"]


def test_equal_logits_cost_almost_nothing() -> None:
    student, _ = example(8, 10)
    assert abs(dist_loss(student.clone(), student, temperature=1.0).item()) < 1e-4
    assert abs(dist_loss(student.clone(), student, temperature=4.0).item()) < 1e-3


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1.0, 4.0]), st.floats(0, 3), st.floats(0, 3))
def test_range(seed: int, temperature: float, beta: float, gamma: float) -> None:
    student, teacher = common.randn(4, 5, seed=seed, scale=5), common.randn(4, 5, seed=seed + 1, scale=5)
    loss = dist_loss(student, teacher, beta=beta, gamma=gamma, temperature=temperature).item()
    assert -1e-4 <= loss <= 2 * temperature**2 * (beta + gamma) + 1e-4


def test_opposite_predictions_reach_the_upper_end() -> None:
    # With two classes, negated logits swap the probabilities: every row and column correlates at −1.
    student = torch.tensor([[2.0, -2.0], [-1.0, 1.0], [0.5, -0.5]])
    assert dist_loss(student, -student, temperature=1.0).item() == pytest.approx(4.0, abs=1e-4)


@pytest.mark.parametrize("side", [0, 1])
def test_shift_of_a_sample_changes_nothing(side: int) -> None:
    logits = list(example(4, 6))
    expected = dist_loss(*logits)
    logits[side] = logits[side] + torch.tensor([[5.0], [-7.0], [0.3], [12.0]])
    torch.testing.assert_close(dist_loss(*logits), expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(3, 6))
def test_affine_maps_of_rows_and_columns_are_free(seed: int, rows: int, classes: int) -> None:
    y_s, y_t = probabilities(rows, classes, seed), probabilities(rows, classes, seed + 1)
    generator = torch.Generator().manual_seed(seed)
    for distance, shape in ((inter_distance, (rows, 1)), (intra_distance, (1, classes))):
        a, b = 0.5 + torch.rand(shape, generator=generator), 0.1 * torch.randn(shape, generator=generator)
        torch.testing.assert_close(distance(a * y_s + b, y_t), distance(y_s, y_t), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(distance(-a * y_s + b, y_t), 2 - distance(y_s, y_t), rtol=1e-3, atol=1e-4)


def test_row_maps_are_not_free_for_columns() -> None:
    y_s, y_t = probabilities(5, 6, 0), probabilities(5, 6, 1)
    stretched = torch.tensor([[1.0], [3.0], [0.2], [2.0], [5.0]]) * y_s
    assert not torch.isclose(intra_distance(stretched, y_t), intra_distance(y_s, y_t), atol=1e-3)


def test_one_relation_is_the_other_on_the_transpose() -> None:
    y_s, y_t = probabilities(5, 6, 0), probabilities(5, 6, 1)
    torch.testing.assert_close(inter_distance(y_s, y_t), intra_distance(y_s.T, y_t.T))
    assert not torch.isclose(inter_distance(y_s, y_t), intra_distance(y_s, y_t), atol=1e-3)


def test_joint_order_of_samples_or_classes_changes_nothing() -> None:
    student, teacher = example(5, 7)
    expected = dist_loss(student, teacher)
    samples, classes = torch.tensor([4, 2, 0, 1, 3]), torch.tensor([3, 0, 6, 1, 5, 2, 4])
    torch.testing.assert_close(dist_loss(student[samples], teacher[samples]), expected)
    torch.testing.assert_close(dist_loss(student[:, classes], teacher[:, classes]), expected)
    assert not torch.isclose(dist_loss(student[samples], teacher), expected)


def test_repeated_batch_keeps_both_terms() -> None:
    student, teacher = example(5, 7)
    once, twice = dist_terms(student, teacher), dist_terms(student.repeat(2, 1), teacher.repeat(2, 1))
    for name in ("inter", "intra"):
        torch.testing.assert_close(twice[name], once[name], rtol=1e-4, atol=1e-5)


def test_constant_probabilities_give_no_nan() -> None:
    # Uniform rows and columns have no direction: correlation 0, and a gradient of 0 rather than NaN.
    student = torch.zeros(3, 4, requires_grad=True)
    loss = dist_loss(student, common.randn(3, 4, seed=1), temperature=1.0)
    assert loss.item() == pytest.approx(2.0, abs=1e-4)
    loss.backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_gradient_reaches_student_only() -> None:
    common.check_one_sided(dist_loss, *example(4, 5))
    common.check_one_sided(dist_loss, *example(1, 5))


@pytest.mark.parametrize("dtype", common.HALVES)
def test_autocast_keeps_float32_inside(dtype: torch.dtype) -> None:
    common.check_half(dist_loss, *example(8, 100, scale=5.0), dtype)


@pytest.mark.parametrize(
    ("teacher", "student", "hint"),
    [
        ((5, 100), (5, 7), "a student head of 100 classes"),
        ((6, 7), (5, 7), "the same batch"),
        ((5, 7, 4, 8), (5, 9, 2, 4), "a student head of 7 classes"),
        ((5, 7, 4, 8), (5, 7), r"tap logits \(B, C\) or \(B, C, H, W\)"),
        ((5, 9, 7), (5, 9, 7), r"tap logits \(B, C\) or \(B, C, H, W\)"),
        ((5, 1), (5, 1), "two or more would fit"),
        ((5, 1, 4, 8), (5, 1, 4, 8), "two or more would fit"),
    ],
)
def test_shapes_that_do_not_fit_are_named(teacher: tuple[int, ...], student: tuple[int, ...], hint: str) -> None:
    pattern = rf"DIST: teacher logits \({', '.join(map(str, teacher))}\) and student logits .*; .*{hint}"
    with pytest.raises(ShapeMismatch, match=pattern):
        dist_loss(torch.zeros(student), torch.zeros(teacher))
    with pytest.raises(ShapeMismatch, match=pattern):
        DIST().connect([teacher], [student])


def test_link_gives_the_pure_terms_with_its_options() -> None:
    student, teacher = example(5, 7)
    link = METHODS.make({"type": "DIST", "beta": 0.5, "gamma": 3.0, "temperature": 2.0})
    link.connect([(5, 7)], [(5, 7)])
    terms = link(common.link_inputs(student, teacher))
    expected = dist_terms(student, teacher, beta=0.5, gamma=3.0, temperature=2.0)
    assert sorted(terms) == ["inter", "intra"]
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value)


def test_link_adds_the_terms_of_several_heads() -> None:
    pairs = [example(5, 7), example(1, 7)]
    link = DIST(taps=[("logits", "logits"), ("logits", "aux")])
    terms = link(common.link_inputs([s for s, _ in pairs], [t for _, t in pairs]))
    first, second = (dist_terms(*pair) for pair in pairs)
    torch.testing.assert_close(terms["inter"], first["inter"] + second["inter"])
    torch.testing.assert_close(terms["intra"], first["intra"])


def test_registry_builds_it_and_refuses_typos() -> None:
    common.check_registered("DIST", DIST, weight=2.0, typo="gama", meant="gamma", beta=0.5, gamma=2.0, temperature=1.0)
    link = DIST()
    assert (link.beta, link.gamma, link.temperature, link.taps) == (1.0, 1.0, 4.0, [("logits", "logits")])


def test_temperature_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="DIST needs temperature > 0; got -4"):
        DIST(temperature=-4.0)


@pytest.mark.parametrize("shape", [(5, 7), (2, 7, 3, 2)])
def test_standardised_link_is_the_loss_of_standardised_logits(shape: tuple[int, ...]) -> None:
    student, teacher = example(*shape)
    z_s, z_t = (
        (z - z.mean(1, keepdims=True)) / z.std(1, ddof=1, keepdims=True) for z in map(common.array, (student, teacher))
    )
    rows = [np.moveaxis(z, 1, -1).reshape(-1, 7) for z in (z_s, z_t)]
    link = METHODS.make({"type": "DIST", "standardise": True, "temperature": 1.0})
    terms = link(common.link_inputs(student, teacher))
    assert sum(terms.values()).item() == pytest.approx(reference(*rows, temperature=1.0), rel=1e-4)
    moved = link(common.link_inputs(3.0 * student - 1.0, 0.5 * teacher + 2.0))
    torch.testing.assert_close(moved, terms, rtol=1e-4, atol=1e-5)


def test_default_link_is_the_unstandardised_loss_bit_for_bit() -> None:
    student, teacher = example(5, 7)
    assert DIST()(common.link_inputs(student, teacher)) == dist_terms(student, teacher)
