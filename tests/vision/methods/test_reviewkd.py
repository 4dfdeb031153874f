"""ReviewKD: the hierarchical loss and the fusion against naive numpy, and which way gradients flow between levels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch, TapError
from limbeck.vision.methods.reviewkd import ABF, ReviewKD, hcl_loss
from tests.vision.methods import conftest as common
from tests.vision.methods.test_rkd import distilled, images

# Three maps and a pooled vector; the second level differs from the teacher in size.
STUDENTS = [(3, 4, 16, 16), (3, 5, 8, 8), (3, 6, 4, 4), (3, 6)]
TEACHERS = [(3, 7, 16, 16), (3, 8, 4, 4), (3, 9, 4, 4), (3, 9)]


def connected(teachers=TEACHERS, students=STUDENTS, **kwargs) -> ReviewKD:
    torch.manual_seed(0)
    link = METHODS.make({"type": "ReviewKD", "taps": [["a", "a"]] * len(teachers), **kwargs})
    link.connect(list(teachers), list(students))
    return link


def taps(shapes, seed: int = 0) -> list[Tensor]:
    return [common.randn(*shape, seed=seed + i) for i, shape in enumerate(shapes)]


def as_maps(values: list[Tensor]) -> list[Tensor]:
    return [v.reshape(*v.shape, 1, 1) if v.dim() == 2 else v for v in values]


# --- the loss ---


def pool(x: np.ndarray, size: int) -> np.ndarray:
    """Adaptive average pooling: cell i covers floor(i n / size) to ceil((i + 1) n / size)."""
    b, c, h, w = x.shape
    out = np.zeros((b, c, size, size))
    for i in range(size):
        for j in range(size):
            rows = slice(i * h // size, -(-(i + 1) * h // size))
            columns = slice(j * w // size, -(-(j + 1) * w // size))
            out[:, :, i, j] = x[:, :, rows, columns].mean((2, 3))
    return out


def hcl_reference(student: np.ndarray, teacher: np.ndarray) -> float:
    used = [size for size in (4, 2, 1) if size < student.shape[2]]
    total, norm = ((student - teacher) ** 2).mean(), 1.0
    for i, size in enumerate(used, 1):
        total += 2.0**-i * ((pool(student, size) - pool(teacher, size)) ** 2).mean()
        norm += 2.0**-i
    return float(total / norm)


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 3), (4, 4), (5, 7), (8, 8)])
def test_value_and_gradient_match_naive_reference(size: tuple[int, int]) -> None:
    common.check_reference(
        hcl_loss, hcl_reference, common.randn(2, 2, *size, seed=0), common.randn(2, 2, *size, seed=1)
    )


def test_a_single_pixel_is_plain_squared_error() -> None:
    s, t = common.randn(4, 3, 1, 1, seed=0), common.randn(4, 3, 1, 1, seed=1)
    torch.testing.assert_close(hcl_loss(s, t), (s - t).square().mean())


@pytest.mark.parametrize(("side", "norm"), [(2, 1 + 1 / 2), (4, 1 + 1 / 2 + 1 / 4)])
def test_a_pattern_without_mean_is_seen_at_full_size_alone(side: int, norm: float) -> None:
    # ±1 in turn vanishes when pooled. h = 2 uses l = 1 with 1/2; h = 4 uses l = 2, 1 with 1/2, 1/4.
    pattern = torch.ones(side, side)
    pattern[:, 1::2] = -1
    pattern = pattern.expand(1, 1, side, side)
    assert hcl_loss(pattern, torch.zeros_like(pattern)).item() == pytest.approx(1 / norm)


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 8, 32])
def test_constant_difference_counts_squared_whatever_the_size(side: int) -> None:
    teacher = common.randn(2, 3, side, side)
    assert hcl_loss(teacher.clone(), teacher).item() == 0.0
    assert hcl_loss(teacher - 1.5, teacher).item() == pytest.approx(2.25, rel=1e-5)


def test_a_first_call_in_inference_mode_leaves_nothing_that_training_cannot_use() -> None:
    student, teacher = common.randn(1, 2, 11, 13), common.randn(1, 2, 11, 13, seed=1)
    with torch.inference_mode():
        seen = hcl_loss(student, teacher).item()
    loss = hcl_loss(student.requires_grad_(), teacher)
    loss.backward()
    assert loss.item() == seen
    assert student.grad.abs().max() > 0


def test_gradient_reaches_student_only() -> None:
    common.check_one_sided(hcl_loss, common.randn(2, 3, 8, 8, seed=0), common.randn(2, 3, 8, 8, seed=1))


@pytest.mark.parametrize("dtype", common.HALVES)
def test_autocast_keeps_float32_inside(dtype: torch.dtype) -> None:
    common.check_half(hcl_loss, common.randn(2, 3, 8, 8, scale=300), common.randn(2, 3, 8, 8, seed=1, scale=300), dtype)


@pytest.mark.parametrize(
    ("student", "hint"), [((2, 4, 8, 8), "do not fit"), ((2, 3, 4, 4), "do not fit"), ((2, 3, 8), "do not fit")]
)
def test_loss_refuses_unequal_shapes(student: tuple[int, ...], hint: str) -> None:
    with pytest.raises(ShapeMismatch, match=hint):
        hcl_loss(torch.zeros(student), torch.zeros(2, 3, 8, 8))
    with pytest.raises(ShapeMismatch, match=r"compares maps \(B, C, H, W\); got \(2, 3\)"):
        hcl_loss(torch.zeros(2, 3), torch.zeros(2, 3))


# --- the fusion ---


def conv(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Convolution with zero padding that keeps the size, one tap of the kernel at a time."""
    k = weight.shape[-1]
    padded = np.pad(x, ((0, 0), (0, 0), (k // 2, k // 2), (k // 2, k // 2)))
    out = np.zeros((x.shape[0], weight.shape[0], *x.shape[2:]))
    for i in range(k):
        for j in range(k):
            window = padded[:, :, i : i + x.shape[2], j : j + x.shape[3]]
            out += np.einsum("bchw,oc->bohw", window, weight[:, :, i, j])
    return out


def norm(x: np.ndarray) -> np.ndarray:
    """Batch norm as it begins: weight 1, bias 0."""
    return (x - x.mean((0, 2, 3), keepdims=True)) / np.sqrt(x.var((0, 2, 3), keepdims=True) + 1e-5)


def nearest(x: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    rows = [i * x.shape[2] // size[0] for i in range(size[0])]
    columns = [j * x.shape[3] // size[1] for j in range(size[1])]
    return x[:, :, rows][:, :, :, columns]


def weight(module: nn.Module) -> np.ndarray:
    return common.array(next(module.parameters()))


def review_reference(link: ReviewKD, students: list[Tensor], teachers: list[Tensor]) -> tuple[float, list[np.ndarray]]:
    total, residual, outputs = 0.0, None, []
    for level, s, t in reversed(list(zip(link.levels, students, teachers))):
        s, t = (common.array(v) for v in (s, t))
        s, t = (v.reshape(*v.shape, 1, 1) if v.ndim == 2 else v for v in (s, t))
        x = norm(conv(s, weight(level.reduce)))
        if residual is not None:
            y = nearest(residual, x.shape[2:])
            z = conv(np.concatenate([x, y], 1), weight(level.gate)) + common.array(level.gate.bias).reshape(1, 2, 1, 1)
            z = 1 / (1 + np.exp(-z))
            x = z[:, 0:1] * x + z[:, 1:2] * y
        residual = nearest(x, t.shape[2:])
        outputs.append(norm(conv(residual, weight(level.out))))
        total += hcl_reference(outputs[-1], t)
    return total, outputs[::-1]


def test_whole_link_matches_naive_reference() -> None:
    link, students, teachers = connected(), taps(STUDENTS), taps(TEACHERS, seed=10)
    expected, maps = review_reference(link, students, teachers)
    assert link(common.link_inputs(students, teachers))["review"].item() == pytest.approx(expected, rel=1e-4)
    found = link.review(as_maps(students), [m.shape[2:] for m in maps])
    for f, m in zip(found, maps):
        np.testing.assert_allclose(common.array(f), m, rtol=1e-3, atol=1e-4)


def test_every_output_has_the_teachers_shape_and_the_deepest_no_gate() -> None:
    link = connected()
    assert [level.gate is None for level in link.levels] == [False, False, False, True]
    outputs = link.review(as_maps(taps(STUDENTS)), [(16, 16), (4, 4), (4, 4), (1, 1)])
    assert [tuple(o.shape) for o in outputs] == [(3, 7, 16, 16), (3, 8, 4, 4), (3, 9, 4, 4), (3, 9, 1, 1)]


def test_odd_sizes_of_dense_prediction_fit() -> None:
    students = [(2, 3, 45, 60), (2, 4, 23, 30), (2, 5, 12, 15), (2, 6, 6, 8)]
    teachers = [(2, 4, 45, 60), (2, 5, 23, 30), (2, 6, 12, 15), (2, 7, 6, 8)]
    link = connected(teachers, students, width=8)
    outputs = link.review(taps(students), [shape[2:] for shape in teachers])
    assert [tuple(o.shape) for o in outputs] == teachers


def test_parameter_count_of_segmentation() -> None:
    widths = zip((64, 128, 320, 512), (32, 64, 160, 256))
    link = connected(*zip(*(((2, t, 8, 8), (2, s, 8, 8)) for t, s in widths)), width=64)
    assert sum(p.numel() for p in link.parameters()) == 625_926


@pytest.mark.parametrize(("last", "width"), [(6, 6), (600, 512)])
def test_width_is_the_last_students_up_to_512(last: int, width: int) -> None:
    link = connected([(2, 3, 4, 4), (2, 3, 2, 2)], [(2, 4, 4, 4), (2, last, 2, 2)])
    assert [level.reduce[0].weight.shape[0] for level in link.levels] == [width, width]


def test_initial_weights_are_kaiming_uniform_of_slope_one() -> None:
    torch.manual_seed(0)
    level = ABF(64, 48, 32, fuse=True)
    for convolution, fan_in in ((level.reduce[0], 64), (level.out[0], 48 * 9)):
        bound = (3 / fan_in) ** 0.5
        assert convolution.bias is None
        assert 0.98 * bound < convolution.weight.abs().max() <= bound


def test_gates_of_zero_average_and_sure_gates_choose() -> None:
    level = ABF(4, 6, 5, fuse=True)
    x, deeper = common.randn(2, 4, 4, 4, seed=0), common.randn(2, 6, 2, 2, seed=1)
    nn.init.zeros_(level.gate.weight)
    own, up = level.reduce(x), deeper.repeat_interleave(2, 2).repeat_interleave(2, 3)
    for bias, expected in (((0.0, 0.0), (own + up) / 2), ((30.0, -30.0), own), ((-30.0, 30.0), up)):
        level.gate.bias.data = torch.tensor(bias)
        torch.testing.assert_close(level(x, deeper, (4, 4))[1], expected, rtol=1e-5, atol=1e-5)


def test_joint_order_of_positions_permutes_the_fused_map() -> None:
    level = ABF(4, 6, 5, fuse=True)
    x, deeper = common.randn(2, 4, 4, 4, seed=0), common.randn(2, 6, 4, 4, seed=1)
    torch.testing.assert_close(level(x.flip(2), deeper.flip(2), (4, 4))[1], level(x, deeper, (4, 4))[1].flip(2))


def gradients(level: int) -> list[bool]:
    """Which student taps the loss of one level reaches."""
    link, students = connected(), [s.requires_grad_() for s in taps(STUDENTS)]
    sizes = [(*shape, 1, 1)[2:4] for shape in TEACHERS]
    target = taps(TEACHERS, seed=10)[level]
    output = link.review(as_maps(students), sizes)[level]
    hcl_loss(output, target.reshape(output.shape)).backward()
    return [s.grad is not None and bool(s.grad.abs().max() > 0) for s in students]


def test_shallow_losses_reach_deep_features_and_not_the_other_way_round() -> None:
    for level in range(4):
        assert gradients(level) == [i >= level for i in range(4)]


def test_gradient_reaches_every_parameter_and_not_the_teacher() -> None:
    link = connected()
    students = [x.requires_grad_() for x in taps(STUDENTS)]
    teachers = [x.requires_grad_() for x in taps(TEACHERS, seed=10)]
    link(common.link_inputs(students, teachers))["review"].backward()
    assert all(t.grad is None for t in teachers)
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in link.parameters())


def test_repeated_batch_and_joint_order_change_nothing() -> None:
    link, students, teachers = connected(), taps(STUDENTS), taps(TEACHERS, seed=10)
    expected = link(common.link_inputs(students, teachers))["review"]
    for rows in ([0, 1, 2, 0, 1, 2], [2, 0, 1]):
        found = link(common.link_inputs([s[rows] for s in students], [t[rows] for t in teachers]))["review"]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", common.HALVES)
def test_link_takes_half_precision_taps(dtype: torch.dtype) -> None:
    link = connected()
    s, t = ([x.to(dtype) for x in taps(shapes)] for shapes in (STUDENTS, TEACHERS))
    expected = link(common.link_inputs([x.float() for x in s], [x.float() for x in t]))["review"]
    torch.testing.assert_close(link(common.link_inputs(s, t))["review"], expected)


# --- bad input ---


def test_one_sample_with_a_pooled_tap_is_refused_and_without_it_is_not() -> None:
    one = connected()
    with pytest.raises(ShapeMismatch, match="one sample of 1×1 pixels; a batch_size of 2 or more, or no pooled tap"):
        one(common.link_inputs([s[:1] for s in taps(STUDENTS)], [t[:1] for t in taps(TEACHERS)]))
    maps = connected(TEACHERS[:3], STUDENTS[:3])
    s, t = ([x[:1] for x in taps(shapes)] for shapes in (STUDENTS[:3], TEACHERS[:3]))
    expected, _ = review_reference(maps, s, t)
    assert maps(common.link_inputs(s, t))["review"].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("teacher", "student"),
    [((2, 6, 8, 8), (3, 4, 8, 8)), ((2, 6), (2, 4, 8, 8)), ((2, 6, 8), (2, 4, 8)), ((2, 6, 1, 1), (2, 4))],
)
def test_pairs_that_do_not_fit_are_named(teacher: tuple[int, ...], student: tuple[int, ...]) -> None:
    with pytest.raises(ShapeMismatch, match=r"two maps \(B, C, H, W\) or two pooled vectors") as error:
        connected([teacher], [student])
    assert str(teacher) in str(error.value)
    assert str(student) in str(error.value)


def test_taps_from_deep_to_shallow_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"sizes \[\(1, 1\), \(4, 4\).*from the shallowest to the deepest"):
        connected(TEACHERS[::-1], STUDENTS[::-1])


def test_registry_builds_it_and_refuses_typos() -> None:
    common.check_registered("ReviewKD", ReviewKD, weight=1.0, typo="widht", meant="width", width=64)
    assert [s for _, s in ReviewKD().taps] == ["layer1", "layer2", "layer3", "global_pool"]
    assert [t for t, _ in ReviewKD().taps] == ["preact1", "preact2", "preact3", "global_pool"]


def test_width_without_channels_is_refused() -> None:
    with pytest.raises(ConfigError, match="ReviewKD needs a width of 1 channel or more; got 0"):
        ReviewKD(width=0)


def test_a_step_through_the_distiller_reads_the_teacher_before_its_relu() -> None:
    model = distilled(dict(type="ReviewKD", weight=0.6))
    before = {k: v.clone() for k, v in model.deploy.state_dict().items()}
    seen = {}
    handle = model.links[0].register_forward_hook(lambda m, args, out: seen.update(taps=args[0]))
    terms = model.loss(images())
    handle.remove()
    assert [bool(t.min() < 0) for t in seen["taps"].teacher] == [True, True, True, False]
    assert all(bool(s.min() >= 0) for s in seen["taps"].student)
    expected, _ = review_reference(model.links[0], seen["taps"].student, seen["taps"].teacher)
    assert terms["reviewkd.loss_review"].item() == pytest.approx(0.6 * expected, rel=1e-3)
    terms["reviewkd.loss_review"].backward()
    assert model.deploy.conv1.weight.grad.abs().max() > 0
    assert before.keys() == model.deploy.state_dict().keys()  # the link leaves a plain student


def test_a_teacher_without_such_taps_is_told_the_near_ones() -> None:
    with pytest.raises(TapError, match=r"no tap 'preact4'; did you mean.*'preact3'"):
        distilled(dict(type="ReviewKD", taps=[["preact4", "layer3"]]))
