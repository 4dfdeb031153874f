"""CNNViTCollab against naive references: its losses, which member is to be believed, and the link."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.engine.losses import IGNORE
from limbeck.engine.method import LinkInputs
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch, UnknownName
from limbeck.segmentation.methods._reliability import labels_on_grid, on_finer_grid, region_means, region_sums, select
from limbeck.segmentation.methods.collab import (
    CNNViTCollab,
    hfd_loss,
    pixel_loss,
    region_feature_loss,
    region_similarity,
    region_similarity_loss,
)
from tests.vision.methods import conftest as common

K = 3
TAPS = [("low", "low"), ("deep", "deep"), ("logits", "logits")]


def label_map(*shape: int, seed: int = 0, ignored: float = 0.2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(K, shape, generator=generator)
    return labels.masked_fill(torch.rand(shape, generator=generator) < ignored, IGNORE)


def mask(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.5


# --- naive references, float64 ---


def positions(x: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """(b, i, j) of a map (B, C, h, w)."""
    return product(range(x.shape[0]), range(x.shape[2]), range(x.shape[3]))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b) / (math.sqrt(float(a @ a)) * math.sqrt(float(b @ b)))


def naive_hfd(student: np.ndarray, teacher: np.ndarray) -> float:
    found = [1 - cosine(student[b, :, i, j], teacher[b, :, i, j]) for b, i, j in positions(student)]
    return sum(found) / len(found)


def naive_region_similarity(student: np.ndarray, teacher: np.ndarray, chosen: np.ndarray) -> float:
    grid, total = chosen.shape[1], 0.0
    cells = list(product(range(grid), repeat=2))

    def average(x: np.ndarray, u: int, v: int) -> np.ndarray:
        (h, w), up = x.shape[1:], math.ceil
        return x[:, u * h // grid : up((u + 1) * h / grid), v * w // grid : up((v + 1) * w / grid)].mean((1, 2))

    for b, (u, v) in product(range(len(chosen)), cells):
        if chosen[b, u, v]:
            gaps = [
                (cosine(average(student[b], u, v), average(student[b], *r)))
                - (cosine(average(teacher[b], u, v), average(teacher[b], *r)))
                for r in cells
            ]
            total += sum(g * g for g in gaps) / len(cells)
    return total / max(1, chosen.sum())


def naive_region_feature(student: np.ndarray, teacher: np.ndarray, chosen: np.ndarray) -> float:
    grid, (h, w) = chosen.shape[1], student.shape[2:]
    cells: dict[tuple[int, int, int], list[float]] = {}
    for b, i, j in positions(student):
        distance = 1 - cosine(student[b, :, i, j], teacher[b, :, i, j])
        cells.setdefault((b, i * grid // h, j * grid // w), []).append(distance)
    return sum(sum(v) / len(v) for r, v in cells.items() if chosen[r]) / max(1, chosen.sum())


def naive_pixel(student: np.ndarray, teacher: np.ndarray, chosen: np.ndarray, t: float, over: np.ndarray) -> float:
    total = 0.0
    for b, i, j in positions(student):
        if chosen[b, i, j]:
            q, p = (common.softmax(z[b, :, i, j] / t) for z in (student, teacher))
            total += sum(p_k * (math.log(p_k) - math.log(q_k)) for p_k, q_k in zip(p, q))
    return t * t * total / max(1, over.sum())


def naive_resize(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear, corners not aligned."""

    def weights(n: int, m: int) -> np.ndarray:
        found = np.zeros((m, n))
        for i in range(m):
            place = max((i + 0.5) * n / m - 0.5, 0.0)
            low = min(int(place), n - 1)
            found[i, low] += 1 - (place - low)
            found[i, min(low + 1, n - 1)] += place - low
        return found

    return np.einsum("ui,bcij,vj->bcuv", weights(x.shape[2], size[0]), x, weights(x.shape[3], size[1]))


def naive_labels(labels: np.ndarray, h: int, w: int) -> np.ndarray:
    rows, columns = ([i * n // m for i in range(m)] for n, m in ((labels.shape[1], h), (labels.shape[2], w)))
    return labels[:, rows][:, :, columns]


def naive_selection(
    student: np.ndarray, teacher: np.ndarray, y: np.ndarray, grid: int, margin: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and regions in which the teacher is better; y (B, h, w) on the logits' grid."""
    pixels, (h, w) = np.zeros(y.shape, bool), y.shape[1:]
    errors: dict[tuple[int, int, int], list[tuple[float, float]]] = {}
    for b, i, j in positions(student):
        if y[b, i, j] != IGNORE:
            ours, theirs = (-math.log(common.softmax(z[b, :, i, j])[y[b, i, j]]) for z in (student, teacher))
            pixels[b, i, j] = theirs < ours - margin
            errors.setdefault((b, i * grid // h, j * grid // w), []).append((ours, theirs))
    regions = np.zeros((len(y), grid, grid), bool)
    for r, pairs in errors.items():
        ours, theirs = np.mean(pairs, axis=0)
        regions[r] = theirs < ours
    return pixels, regions


# --- the losses ---


def test_hfd_matches_naive_reference() -> None:
    common.check_reference(hfd_loss, naive_hfd, common.randn(2, 3, 3, 4, seed=0), common.randn(2, 3, 3, 4, seed=1))


def test_region_similarity_matches_naive_reference_for_other_widths_and_sizes() -> None:
    chosen = mask(2, 2, 2)
    common.check_reference(
        lambda s, t: region_similarity_loss(s, t, chosen),
        lambda s, t: naive_region_similarity(s, t, chosen.numpy()),
        common.randn(2, 3, 3, 5, seed=0),
        common.randn(2, 4, 6, 2, seed=1),
    )


def test_region_feature_matches_naive_reference() -> None:
    chosen = mask(2, 2, 2)
    common.check_reference(
        lambda s, t: region_feature_loss(s, t, chosen),
        lambda s, t: naive_region_feature(s, t, chosen.numpy()),
        common.randn(2, 3, 3, 5, seed=0),
        common.randn(2, 3, 3, 5, seed=1),
    )


@pytest.mark.parametrize(("temperature", "divided"), [(1.0, False), (3.0, False), (1.0, True)])
def test_pixel_matches_naive_reference(temperature: float, divided: bool) -> None:
    chosen = mask(2, 3, 4)
    over = chosen | mask(2, 3, 4, seed=1) if divided else None
    common.check_reference(
        lambda s, t: pixel_loss(s, t, chosen, temperature=temperature, over=over),
        lambda s, t: naive_pixel(s, t, chosen.numpy(), temperature, (chosen if over is None else over).numpy()),
        common.randn(2, K, 3, 4, seed=0, scale=2),
        common.randn(2, K, 3, 4, seed=1, scale=2),
    )


LOSSES = {
    "hfd": hfd_loss,
    "similarity": lambda s, t: region_similarity_loss(s, t, mask(2, 2, 2)),
    "feature": lambda s, t: region_feature_loss(s, t, mask(2, 2, 2)),
    "pixel": lambda s, t: pixel_loss(s, t, mask(2, 4, 4)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_reaches_student_only(name: str) -> None:
    common.check_one_sided(LOSSES[name], common.randn(2, K, 4, 4, seed=0), common.randn(2, K, 4, 4, seed=1))


@pytest.mark.parametrize("dtype", common.HALVES)
@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    common.check_half(LOSSES[name], common.randn(2, K, 4, 4, seed=0), common.randn(2, K, 4, 4, seed=1), dtype)


def test_positive_factors_count_neither_in_hfd_nor_in_similarities() -> None:
    s, t, chosen = common.randn(2, 5, 6, 6, seed=0), common.randn(2, 5, 6, 6, seed=1), mask(2, 2, 2)
    torch.testing.assert_close(hfd_loss(s, 7.0 * t), hfd_loss(s, t))
    torch.testing.assert_close(region_similarity(7.0 * s, 2), region_similarity(s, 2))
    expected = region_similarity_loss(s, t, chosen)
    assert expected > 0
    torch.testing.assert_close(region_similarity_loss(7.0 * s, 0.1 * t, chosen), expected)


def test_maps_that_differ_are_refused() -> None:
    s, t = torch.zeros(2, 4, 3, 3), torch.zeros(2, 5, 3, 3)
    for loss in (
        lambda: hfd_loss(s, t),
        lambda: region_feature_loss(s, t, mask(2, 2, 2)),
        lambda: pixel_loss(s, t, mask(2, 3, 3)),
    ):
        with pytest.raises(ShapeMismatch, match=r"CNNViTCollab: teacher tap \(2, 5, 3, 3\) and student tap"):
            loss()


# --- reliability ---


@pytest.mark.parametrize("margin", [0.0, 0.7])
def test_selection_matches_naive_reference_where_nothing_divides(margin: float) -> None:
    s, t = common.randn(2, K, 5, 7, seed=0), common.randn(2, K, 5, 7, seed=1)
    labels = label_map(2, 13, 16)
    found = select(s, t, labels, grid=3, margin=margin)
    y = naive_labels(labels.numpy(), 5, 7)
    pixels, regions = naive_selection(common.array(s), common.array(t), y, 3, margin)
    np.testing.assert_array_equal(found.pixels.numpy(), pixels)
    np.testing.assert_array_equal(found.regions.numpy(), regions)
    np.testing.assert_array_equal(found.valid.numpy(), y != IGNORE)
    assert 0 < pixels.sum() < (y != IGNORE).sum()
    assert 0 < regions.sum() < regions.size


def test_directions_share_no_pixel_or_region_and_leave_out_ties_and_what_has_no_label() -> None:
    s, t = common.randn(2, K, 8, 8, seed=0), common.randn(2, K, 8, 8, seed=1)
    t[:, :, :2, :2] = s[:, :, :2, :2]  # a region of ties
    labels = label_map(2, 8, 8)
    labels[:, 2:4, :2] = IGNORE  # a region without a label
    there, back = select(s, t, labels, grid=4), select(t, s, labels, grid=4)
    assert not (there.pixels & back.pixels).any()
    assert not (there.regions & back.regions).any()
    untied = labels != IGNORE
    untied[:, :2, :2] = False
    assert torch.equal(there.pixels | back.pixels, untied)
    regions = torch.ones(2, 4, 4, dtype=torch.bool)
    regions[:, :2, 0] = False
    assert torch.equal(there.regions | back.regions, regions)


def test_region_sums_and_means_of_regions_with_and_without_pixels() -> None:
    x = common.randn(2, 3, 5)
    torch.testing.assert_close(region_sums(x, 1).flatten(), x.sum((1, 2)))
    torch.testing.assert_close(region_means(x, 1).flatten(), x.mean((1, 2)))
    assert torch.equal(region_means(x, 5)[:, [0, 1, 3]], x)  # ⌊5 i / 3⌋ is 0, 1, 3: one row each
    assert not region_means(x, 5)[:, [2, 4]].any()


def test_common_grid_is_the_finer_one_and_the_same_numbers_where_nothing_changes() -> None:
    a, b = common.randn(2, K, 4, 8, seed=0), common.randn(2, K + 1, 6, 3, seed=1)
    for found, x in zip(on_finer_grid(a, b), (a, b)):
        np.testing.assert_allclose(found.numpy(), naive_resize(common.array(x), (6, 8)), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(f, a) for f in on_finer_grid(a, a.clone()))


@pytest.mark.parametrize("labels", [torch.zeros(2, 8), torch.zeros(3, 8, 8).long(), torch.zeros(2, 8, 8)])
def test_labels_that_are_no_integer_maps_of_the_batch_are_refused(labels: Tensor) -> None:
    with pytest.raises(
        ShapeMismatch, match=r"labels .* do not fit logits \(2, 3, 4, 4\); integer label maps \(2, H, W\)"
    ):
        labels_on_grid(labels, (2, K, 4, 4))


# --- the link ---


def make(teacher: list[Tensor], student: list[Tensor], **options: Any) -> CNNViTCollab:
    torch.manual_seed(0)
    link = CNNViTCollab(**{"taps": TAPS, "grid": 2, **options})
    link.connect([tuple(x.shape) for x in teacher], [tuple(x.shape) for x in student])
    return link


def sides(seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    """Taps of a transformer and of a CNN: other widths, and a deep map and logits of other sizes."""
    vit = [(2, 5, 8, 8), (2, 7, 8, 8), (2, K, 8, 8)]
    cnn = [(2, 6, 7, 7), (2, 4, 4, 4), (2, K, 4, 4)]
    return tuple(
        [common.randn(*s, seed=seed + 9 * n + i) for i, s in enumerate(side)] for n, side in enumerate((vit, cnn))
    )  # type: ignore[return-value]


@pytest.mark.parametrize("options", [{}, {"region_form": "feature"}, {"normalise": "valid", "margin": 0.3}])
def test_link_matches_the_naive_references(options: dict[str, Any]) -> None:
    teacher, student = sides()
    link = make(teacher, student, hfd=0.3, region=0.4, pixel=0.5, temperature=2.0, **options)
    labels = label_map(2, 32, 32)
    terms = link(LinkInputs(teacher=teacher, student=student, targets=labels))
    low = naive_resize(common.array(student[0]), (8, 8))
    bridged = common.array(link.low(torch.from_numpy(low).float()))
    z_s, z_t, y = (
        naive_resize(common.array(student[2]), (8, 8)),
        common.array(teacher[2]),
        naive_labels(labels.numpy(), 8, 8),
    )
    pixels, regions = naive_selection(z_s, z_t, y, 2, options.get("margin", 0.0))
    deep_s, deep_t = common.array(student[1]), common.array(teacher[1])
    if options.get("region_form") == "feature":
        deep_s = common.array(link.deep(torch.from_numpy(naive_resize(deep_s, (8, 8))).float()))
        region = naive_region_feature(deep_s, deep_t, regions)
    else:
        region = naive_region_similarity(deep_s, deep_t, regions)
    over = y != IGNORE if "normalise" in options else pixels
    expected = [
        0.3 * naive_hfd(bridged, common.array(teacher[0])),
        0.4 * region,
        0.5 * naive_pixel(z_s, z_t, pixels, 2.0, over),
    ]
    assert list(terms) == ["hfd", "region", "pixel"]
    assert min(expected) > 0
    np.testing.assert_allclose([t.item() for t in terms.values()], expected, rtol=1e-4)


def test_equal_members_give_nothing_but_a_graph() -> None:
    _, student = sides()
    leaves = [x.requires_grad_() for x in student]
    link = make(student, student)
    terms = link(LinkInputs(teacher=[x.detach() for x in student], student=leaves, targets=label_map(2, 32, 32)))
    assert (terms["region"].item(), terms["pixel"].item()) == (0.0, 0.0)
    (terms["region"] + terms["pixel"]).backward()
    assert leaves[1].grad is not None
    assert not leaves[1].grad.any()
    assert leaves[2].grad is not None
    assert not leaves[2].grad.any()


@pytest.mark.parametrize("form", ["similarity", "feature"])
def test_batch_without_labels_exchanges_nothing(form: str) -> None:
    teacher, student = sides()
    leaves = [x.requires_grad_() for x in student]
    terms = make(teacher, student, region_form=form)(
        LinkInputs(teacher=teacher, student=leaves, targets=torch.full((2, 32, 32), IGNORE))
    )
    assert (terms["region"].item(), terms["pixel"].item()) == (0.0, 0.0)
    assert 0 < terms["hfd"].item() < 0.2  # 0.1 times a value in [0, 2]: the low maps need no labels
    sum(terms.values()).backward()
    assert all(bool(torch.isfinite(x.grad).all()) for x in leaves if x.grad is not None)


def test_perfect_peer_teaches_everywhere_and_receives_nothing() -> None:
    teacher, student = sides()
    labels = label_map(2, 8, 8)
    perfect = 50.0 * F.one_hot(labels.masked_fill(labels == IGNORE, 0), K).permute(0, 3, 1, 2).float()
    uniform = torch.zeros_like(perfect)
    found = select(uniform, perfect, labels, grid=2)
    assert torch.equal(found.pixels, labels != IGNORE)
    assert found.regions.all()
    taught = make(teacher, student)(
        LinkInputs(teacher=[*teacher[:2], perfect], student=[*student[:2], uniform], targets=labels)
    )
    assert taught["pixel"].item() == pytest.approx(math.log(K), abs=1e-3)
    other = make(student, teacher)(
        LinkInputs(teacher=[*student[:2], uniform], student=[*teacher[:2], perfect], targets=labels)
    )
    assert (other["pixel"].item(), other["region"].item()) == (0.0, 0.0)


def test_parts_that_are_off_need_no_taps_and_no_bridge() -> None:
    teacher, student = sides()
    labels = label_map(2, 32, 32)
    whole = make(teacher, student)(LinkInputs(teacher=teacher, student=student, targets=labels))
    for options, kept in [
        (dict(hfd=0.0), ["region", "pixel"]),
        (dict(hfd=0.0, region=0.0), ["pixel"]),
        (dict(region=0.0, pixel=0.0), ["hfd"]),
        (dict(region=0.0), ["hfd", "pixel"]),
    ]:
        needed = [i for i, name in enumerate(("hfd", "region")) if name in kept]
        needed += [2] if {"region", "pixel"} & {*kept} else []
        for taken in (needed, [0, 1, 2]):
            t, s = [teacher[i] for i in taken], [student[i] for i in taken]
            link = make(t, s, taps=[TAPS[i] for i in taken], **options)
            terms = link(LinkInputs(teacher=t, student=s, targets=labels))
            assert list(terms) == kept
            assert all(torch.equal(terms[name], whole[name]) for name in kept)
            assert hasattr(link, "low") == ("hfd" in kept)
    with pytest.raises(ConfigError, match="2 pairs of taps do not fit; low, deep, logits would"):
        CNNViTCollab(taps=TAPS[:2])


def test_registry_builds_it_with_its_ramp_and_refuses_typos() -> None:
    link = METHODS.make({"type": "CNNViTCollab", "taps": TAPS})
    assert type(link) is CNNViTCollab
    assert (link.hfd, link.region, link.pixel, link.temperature, link.grid) == (0.1, 0.1, 1.0, 1.0, 4)
    assert [link.factor(p) for p in (0.0, 0.05, 0.1, 1.0)] == [0.0, 0.5, 1.0, 1.0]
    assert link.scheduled
    assert METHODS.make({"type": "CNNViTCollab", "taps": TAPS, "schedule": {"type": "constant"}}).factor(0.0) == 1.0
    assert "Zhu et al. 2023" in link.assumption
    with pytest.raises(UnknownName, match=r"'marginn'.*did you mean.*'margin'"):
        METHODS.make({"type": "CNNViTCollab", "taps": TAPS, "marginn": 0.1})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(hfd=-0.1), "hfd, region, pixel and margin of 0 or more; got -0.1"),
        (dict(margin=float("nan")), "margin of 0 or more"),
        (dict(grid=1), "grid >= 2 for region_form='similarity'; got 1"),
        (dict(grid=0, region_form="feature"), "grid >= 1 for region_form='feature'; got 0"),
        (dict(temperature=0.0), "temperature > 0; got 0.0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CNNViTCollab(taps=TAPS, **options)


def test_unknown_forms_are_refused_with_near_names() -> None:
    with pytest.raises(UnknownName, match="'features' of CNNViTCollab; did you mean 'feature'"):
        CNNViTCollab(taps=TAPS, region_form="features")
    with pytest.raises(UnknownName, match="'valdi' of CNNViTCollab; did you mean 'valid'"):
        CNNViTCollab(taps=TAPS, normalise="valdi")


@pytest.mark.parametrize(
    ("index", "teacher", "student", "message"),
    [
        (0, (2, 49, 5), (2, 6, 7, 7), r"maps \(B, C, h, w\) on both sides would"),
        (1, (3, 7, 8, 8), (2, 4, 4, 4), "the same batch"),
        (1, (2, 7, 1, 8), (2, 4, 4, 4), "1×8 and 4×4 and 8×8 positions have no 2×2 regions; a smaller grid"),
        (2, (2, K), (2, K), r"maps \(B, C, h, w\) on both sides would"),
        (2, (2, K, 8, 8), (2, 4, 4, 4), "two heads of the same classes"),
        (2, (2, 1, 8, 8), (2, 1, 4, 4), "two or more, would"),
    ],
)
def test_taps_that_do_not_fit_are_named(index: int, teacher: tuple, student: tuple, message: str) -> None:
    theirs, ours = ([tuple(x.shape) for x in side] for side in sides())
    theirs[index], ours[index] = teacher, student
    with pytest.raises(ShapeMismatch, match=message):
        CNNViTCollab(taps=TAPS, grid=2).connect(theirs, ours)
