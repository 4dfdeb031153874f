"""KD against a naive reference, its analytic gradient, and its invariances."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from limbeck.engine.losses import RESIZED, check_labels, fit_labels, fit_logits
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch
from limbeck.vision.methods.kd import KD, kd_loss
from tests.vision.methods import conftest as common

LOGITS = hnp.arrays(np.float32, (3, 4), elements=st.floats(-20, 20, width=32))


def reference(student: np.ndarray, teacher: np.ndarray, temperature: float = 4.0) -> float:
    total = 0.0
    for z_s, z_t in zip(student, teacher):
        q, p = common.softmax(z_s / temperature), common.softmax(z_t / temperature)
        for p_c, q_c in zip(p, q):
            total += p_c * (math.log(p_c) - math.log(q_c))
    return temperature**2 * total / len(student)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_value_and_gradient_match_naive_reference(temperature: float) -> None:
    common.check_reference(
        lambda s, t: kd_loss(s, t, temperature=temperature),
        lambda s, t: reference(s, t, temperature),
        common.randn(5, 7, seed=0, scale=3),
        common.randn(5, 7, seed=1, scale=3),
    )


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_gradient_is_temperature_over_batch_times_difference_of_probabilities(temperature: float) -> None:
    student, teacher = common.randn(6, 9, seed=0, scale=3), common.randn(6, 9, seed=1, scale=3)
    found = common.gradient_of(lambda s, t: kd_loss(s, t, temperature=temperature), student, teacher)
    for i in range(6):
        q, p = (common.softmax(z[i] / temperature) for z in (common.array(student), common.array(teacher)))
        expected = [temperature / 6 * (a - b) for a, b in zip(q, p)]
        np.testing.assert_allclose(found[i].numpy(), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.sum(dim=1), torch.zeros(6), rtol=0, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(LOGITS, LOGITS)
def test_never_negative_and_zero_at_equality(student: np.ndarray, teacher: np.ndarray) -> None:
    s, t = torch.from_numpy(student), torch.from_numpy(teacher)
    assert kd_loss(s, t).item() >= -1e-5
    assert abs(kd_loss(t.clone(), t).item()) < 1e-6


@settings(max_examples=25, deadline=None)
@given(LOGITS, LOGITS, hnp.arrays(np.float32, (3, 1), elements=st.floats(-50, 50, width=32)))
def test_shift_of_a_sample_changes_nothing(student: np.ndarray, teacher: np.ndarray, shift: np.ndarray) -> None:
    s, t, d = (torch.from_numpy(x) for x in (student, teacher, shift))
    expected = kd_loss(s, t)
    torch.testing.assert_close(kd_loss(s + d, t), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(kd_loss(s, t + d), expected, rtol=1e-3, atol=1e-3)


def test_joint_order_of_classes_or_samples_changes_nothing() -> None:
    student, teacher = common.randn(5, 7, seed=0), common.randn(5, 7, seed=1)
    classes, samples = torch.tensor([3, 0, 6, 1, 5, 2, 4]), torch.tensor([4, 2, 0, 1, 3])
    expected = kd_loss(student, teacher)
    torch.testing.assert_close(kd_loss(student[:, classes], teacher[:, classes]), expected)
    torch.testing.assert_close(kd_loss(student[samples], teacher[samples]), expected)
    assert not torch.isclose(kd_loss(student[samples], teacher), expected)


def test_repeated_batch_keeps_the_loss_and_classes_are_summed() -> None:
    student, teacher = common.randn(5, 7, seed=0), common.randn(5, 7, seed=1)
    expected = kd_loss(student, teacher, temperature=1.0)
    torch.testing.assert_close(kd_loss(student.repeat(2, 1), teacher.repeat(2, 1), temperature=1.0), expected)
    # The mean over all elements, a common mistake, is smaller by the number of classes.
    log_p, log_q = teacher.log_softmax(1), student.log_softmax(1)
    torch.testing.assert_close(expected, 7 * (log_p.exp() * (log_p - log_q)).mean())


def test_high_temperature_limit_is_matching_of_centred_logits() -> None:
    student, teacher = common.randn(6, 10, seed=0), common.randn(6, 10, seed=1)
    total = 0.0
    for row in common.array(student) - common.array(teacher):
        total += sum((d - row.mean()) ** 2 for d in row) / (2 * 10)
    assert kd_loss(student, teacher, temperature=100.0).item() == pytest.approx(total / 6, rel=0.02)


def test_gradient_reaches_student_only() -> None:
    common.check_one_sided(kd_loss, common.randn(4, 5, seed=0), common.randn(4, 5, seed=1))


@pytest.mark.parametrize("dtype", common.HALVES)
def test_autocast_keeps_float32_inside(dtype: torch.dtype) -> None:
    common.check_half(kd_loss, common.randn(4, 100, seed=0, scale=5), common.randn(4, 100, seed=1, scale=5), dtype)


def test_certain_logits_stay_finite() -> None:
    student, teacher = torch.tensor([[1000.0, 0.0]]), torch.tensor([[0.0, 1000.0]])
    # The divergence of two opposite certainties is their log ratio.
    assert kd_loss(student, teacher, temperature=1.0).item() == pytest.approx(1000.0)


@pytest.mark.parametrize(
    ("teacher", "student", "hint"),
    [
        ((4, 100), (4, 10), "a student head of 100 classes"),
        ((4, 10), (5, 10), "the same batch"),
        ((4, 10, 8, 8), (4, 10), r"tap logits \(B, C\) or \(B, C, H, W\)"),
        ((4, 10, 8), (4, 10, 8), r"tap logits \(B, C\) or \(B, C, H, W\)"),
        ((4, 10, 8, 8), (4, 12, 4, 4), "a student head of 10 classes"),
        ((4, 10, 8, 8), (5, 10, 4, 4), "the same batch"),
        ((4, 1), (4, 1), "two or more would fit"),
    ],
)
def test_shapes_that_do_not_fit_are_named(teacher: tuple[int, ...], student: tuple[int, ...], hint: str) -> None:
    pattern = rf"KD: teacher logits \({', '.join(map(str, teacher))}\) and student logits .*; .*{hint}"
    with pytest.raises(ShapeMismatch, match=pattern):
        kd_loss(torch.zeros(student), torch.zeros(teacher))
    with pytest.raises(ShapeMismatch, match=pattern):
        KD().connect([teacher], [student])


def test_link_gives_the_pure_loss_with_its_temperature() -> None:
    student, teacher = common.randn(4, 5, seed=0), common.randn(4, 5, seed=1)
    link = METHODS.make({"type": "KD", "temperature": 2.0})
    link.connect([(4, 5)], [(4, 5)])
    terms = link(common.link_inputs(student, teacher))
    assert list(terms) == ["kl"]
    torch.testing.assert_close(terms["kl"], kd_loss(student, teacher, temperature=2.0))
    assert not list(link.parameters())


def test_link_adds_the_losses_of_several_heads() -> None:
    pairs = [(common.randn(4, 5, seed=i), common.randn(4, 5, seed=9 + i)) for i in range(2)]
    link = KD(taps=[("logits", "logits"), ("logits", "aux")])
    terms = link(common.link_inputs([s for s, _ in pairs], [t for _, t in pairs]))
    torch.testing.assert_close(terms["kl"], kd_loss(*pairs[0]) + kd_loss(*pairs[1]))


def test_registry_builds_it_and_refuses_typos() -> None:
    common.check_registered("KD", KD, weight=0.9, typo="temprature", meant="temperature", temperature=1.0)
    assert KD().temperature == 4.0
    assert KD().standardise is False
    assert METHODS.make({"type": "KD", "standardise": True}).standardise is True
    assert KD().taps == [("logits", "logits")]


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperature_must_be_positive(temperature: float) -> None:
    with pytest.raises(ConfigError, match=f"KD needs temperature > 0; got {temperature}"):
        KD(temperature=temperature)


def test_standardised_link_is_the_loss_of_standardised_logits() -> None:
    student, teacher = common.randn(4, 5, seed=0, scale=3), common.randn(4, 5, seed=1, scale=3)
    z_s, z_t = (
        (z - z.mean(1, keepdims=True)) / z.std(1, ddof=1, keepdims=True) for z in map(common.array, (student, teacher))
    )
    found = KD(standardise=True, temperature=2.0)(common.link_inputs(student, teacher))["kl"]
    assert found.item() == pytest.approx(reference(z_s, z_t, 2.0), rel=1e-5)
    assert not torch.isclose(found, kd_loss(student, teacher, temperature=2.0))


def test_standardised_link_sees_neither_scale_nor_shift() -> None:
    link = KD(standardise=True, temperature=2.0)
    student, teacher = common.randn(4, 5, seed=0), common.randn(4, 5, seed=1)
    scale, shift = torch.tensor([[0.2], [1.0], [3.0], [9.0]]), torch.tensor([[5.0], [-2.0], [0.0], [1.0]])
    expected = link(common.link_inputs(student, teacher))["kl"]
    for s, t in ((scale * student + shift, teacher), (student, scale * teacher + shift)):
        torch.testing.assert_close(link(common.link_inputs(s, t))["kl"], expected, rtol=1e-4, atol=1e-6)
    equal = link(common.link_inputs(scale * teacher + shift, teacher))["kl"]
    assert abs(equal.item()) < 1e-5
    assert kd_loss(scale * teacher + shift, teacher, temperature=2.0) > 0.1


def test_default_link_is_the_unstandardised_loss_bit_for_bit() -> None:
    student, teacher = common.randn(4, 5, seed=0, scale=3), common.randn(4, 5, seed=1, scale=3)
    assert torch.equal(KD()(common.link_inputs(student, teacher))["kl"], kd_loss(student, teacher))


def test_labels_are_in_range() -> None:
    check_labels("KD", torch.tensor([0, 4, 2]), batch=3, classes=5)
    for wrong in (-1, 5):
        with pytest.raises(ShapeMismatch, match=f"KD: label {wrong} is not in 0 to 4"):
            check_labels("KD", torch.tensor([0, wrong, 2]), batch=3, classes=5)


# --- dense logits ---


def dense(*, seed: int = 0, size: tuple[int, int] = (3, 4)) -> tuple[Tensor, Tensor]:
    return common.randn(2, 5, *size, seed=seed, scale=3), common.randn(2, 5, *size, seed=seed + 1, scale=3)


def pixel_rows(z: np.ndarray) -> np.ndarray:
    batch, _, height, width = z.shape
    return np.array([z[b, :, i, j] for b in range(batch) for i in range(height) for j in range(width)])


def bilinear(z: np.ndarray, height: int, width: int) -> np.ndarray:
    """Every output position from its four neighbours, positions at pixel centres, edges repeated."""
    found = np.zeros((*z.shape[:2], height, width))
    for i in range(height):
        for j in range(width):
            y, x = (
                min(max((k + 0.5) * n / m - 0.5, 0.0), n - 1)
                for k, n, m in ((i, z.shape[2], height), (j, z.shape[3], width))
            )
            top, left = int(y), int(x)
            below, right = min(top + 1, z.shape[2] - 1), min(left + 1, z.shape[3] - 1)
            a, b = y - top, x - left
            found[:, :, i, j] = (1 - a) * ((1 - b) * z[:, :, top, left] + b * z[:, :, top, right])
            found[:, :, i, j] += a * ((1 - b) * z[:, :, below, left] + b * z[:, :, below, right])
    return found


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dense_value_and_gradient_are_those_of_rows_of_pixels(temperature: float) -> None:
    common.check_reference(
        lambda s, t: kd_loss(s, t, temperature=temperature),
        lambda s, t: reference(pixel_rows(s), pixel_rows(t), temperature),
        *dense(),
    )


def test_one_pixel_an_image_is_classification_kd() -> None:
    student, teacher = common.randn(5, 7, seed=0, scale=3), common.randn(5, 7, seed=1, scale=3)
    torch.testing.assert_close(kd_loss(student[..., None, None], teacher[..., None, None]), kd_loss(student, teacher))


def test_dense_loss_sees_no_shift_of_a_pixel_no_joint_order_and_no_repetition() -> None:
    student, teacher = dense()
    expected = kd_loss(student, teacher)
    shift = common.randn(2, 1, 3, 4, seed=7, scale=20)
    torch.testing.assert_close(kd_loss(student + shift, teacher - shift), expected, rtol=1e-4, atol=1e-4)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    mixed = [z.flatten(2)[:, :, order].view_as(z) for z in (student, teacher)]
    torch.testing.assert_close(kd_loss(*mixed), expected)
    assert not torch.isclose(kd_loss(mixed[0], teacher), expected)
    torch.testing.assert_close(kd_loss(student.repeat(2, 1, 1, 1), teacher.repeat(2, 1, 1, 1)), expected)
    assert abs(kd_loss(teacher.clone(), teacher).item()) < 1e-6


@pytest.mark.parametrize("size", [(2, 3), (5, 7), (3, 6)])
def test_student_of_another_size_is_resized_to_the_teachers(size: tuple[int, int]) -> None:
    student, (_, teacher) = dense(size=size)[0], dense()
    common.check_reference(
        lambda s, t: kd_loss(s, t),
        lambda s, t: reference(pixel_rows(bilinear(s, 3, 4)), pixel_rows(t)),
        student,
        teacher,
    )
    link = KD()
    link.connect([tuple(teacher.shape)], [tuple(student.shape)])
    assert link.assumption == RESIZED
    torch.testing.assert_close(link(common.link_inputs(student, teacher))["kl"], kd_loss(student, teacher))
    assert KD.assumption == ""  # of that link alone


def test_nothing_is_resized_or_copied_where_sizes_agree() -> None:
    for shape in ((4, 5), (4, 5, 3, 2)):
        student = common.randn(*shape)
        assert fit_logits(student, common.randn(*shape, seed=1)) is student


def test_masked_pixels_leave_value_and_gradient() -> None:
    student, teacher = dense()
    labels = torch.randint(0, 5, (2, 6, 8), generator=torch.Generator().manual_seed(0))
    labels[0, :4, :3] = labels[1, 5] = 255
    # By nearest, pixel (i, j) of 3×4 has the label at (2i, 2j) of 6×8.
    kept = [(b, i, j) for b in range(2) for i in range(3) for j in range(4) if labels[b, 2 * i, 2 * j] != 255]
    assert 0 < len(kept) < 24

    def masked(s: np.ndarray, t: np.ndarray) -> float:
        return reference(*(np.array([z[b, :, i, j] for b, i, j in kept]) for z in (s, t)))

    common.check_reference(lambda s, t: kd_loss(s, t, labels=labels), masked, student, teacher)
    link = KD(mask_ignore=True)
    link.connect([(2, 5, 3, 4)], [(2, 5, 3, 4)])
    found = link(common.link_inputs(student, teacher, labels))["kl"]
    assert found.item() == pytest.approx(masked(common.array(student), common.array(teacher)), rel=1e-5)
    assert not torch.isclose(KD()(common.link_inputs(student, teacher, labels))["kl"], found)


def test_mask_without_ignored_pixels_changes_nothing_and_with_all_gives_zero() -> None:
    student, teacher = dense()
    labels = torch.zeros(2, 3, 4, dtype=torch.int64)
    torch.testing.assert_close(kd_loss(student, teacher, labels=labels), kd_loss(student, teacher))
    student.requires_grad_()
    nothing = kd_loss(student, teacher, labels=labels + 255)
    assert nothing.item() == 0.0
    nothing.backward()
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_mask_needs_dense_logits_and_integer_label_maps() -> None:
    with pytest.raises(ConfigError, match=r"KD: logits \(4, 10\) have no pixels for mask_ignore=True"):
        KD(mask_ignore=True).connect([(4, 10)], [(4, 10)])
    student, teacher = dense()
    for labels in (torch.zeros(2, dtype=torch.int64), torch.zeros(2, 3, 4), torch.zeros(3, 3, 4, dtype=torch.int64)):
        with pytest.raises(ShapeMismatch, match=r"KD: label maps .* do not fit a map \(2, 5, 3, 4\)"):
            kd_loss(student, teacher, labels=labels)


def test_labels_are_brought_to_a_map_by_nearest_and_stay_integers() -> None:
    labels = torch.tensor([[[0, 9, 255, 9], [9, 9, 9, 9], [7, 9, 3, 9], [9, 9, 9, 9]]])
    found = fit_labels("KD", labels, (1, 6, 2, 2))
    assert found.dtype == torch.int64
    assert found.tolist() == [[[0, 255], [7, 3]]]
    assert fit_labels("KD", labels, (1, 6, 4, 4)).tolist() == labels.tolist()


@pytest.mark.parametrize("size", [(3, 4), (2, 5)])
@pytest.mark.parametrize("dtype", common.HALVES)
def test_dense_loss_is_computed_in_float32_and_reaches_the_student_only(
    size: tuple[int, int], dtype: torch.dtype
) -> None:
    student, teacher = dense(size=size)[0], dense(seed=3)[1]
    common.check_half(kd_loss, student, teacher, dtype)
    common.check_one_sided(kd_loss, student, teacher)


def test_dense_standardised_link_is_the_loss_of_standardised_pixels() -> None:
    student, teacher = dense()
    rows = []
    for z in (student, teacher):
        z = pixel_rows(common.array(z))
        rows.append((z - z.mean(1, keepdims=True)) / z.std(1, ddof=1, keepdims=True))
    found = KD(standardise=True, temperature=2.0)(common.link_inputs(student, teacher))["kl"]
    assert found.item() == pytest.approx(reference(*rows, 2.0), rel=1e-5)
    # A student of another size is resized first: what is compared has deviation 1 at every pixel.
    small = common.randn(2, 5, 2, 2, seed=5, scale=3)
    z = pixel_rows(bilinear(common.array(small), 3, 4))
    rows[0] = (z - z.mean(1, keepdims=True)) / z.std(1, ddof=1, keepdims=True)
    found = KD(standardise=True, temperature=2.0)(common.link_inputs(small, teacher))["kl"]
    assert found.item() == pytest.approx(reference(*rows, 2.0), rel=1e-5)
