"""MixupKD: its losses against a loop, which rows are mixed and how, and fraction 0 as KD bit for bit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck.engine.adapter import Batch
from limbeck.engine.distiller import Distiller
from limbeck.engine.method import LinkInputs
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch
from limbeck.vision.methods.kd import kd_loss
from limbeck.vision.methods.mixupkd import MixupKD, draw_beta, mix, mixed_rows, mixup_terms
from limbeck.vision.models import CIFARResNet
from tests.vision.methods import conftest as common

SHARES = common.randn(5, 7, seed=5).softmax(1)
LABELS = torch.tensor([3, 0, 6, 3, 1, 2, 5, 4, 0, 6])
TEMPERATURES = pytest.mark.parametrize("temperature", ["std", 4.0])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def example(batch: int = 5, classes: int = 7) -> tuple[Tensor, Tensor]:
    return common.randn(batch, classes, seed=0, scale=3), common.randn(batch, classes, seed=1, scale=3)


def connected(**options) -> MixupKD:
    link = METHODS.make({"type": "MixupKD", **options})
    assert isinstance(link, MixupKD)
    link.connect([(10, 7)], [(10, 7)])
    return link


def images() -> Batch:
    return Batch(common.randn(10, 3, 4, 4, seed=2), LABELS, ids=torch.arange(10), views=torch.zeros(10))


# --- the losses ---


def scaled(row: np.ndarray) -> np.ndarray:
    mean = sum(row) / len(row)
    return row / (math.sqrt(sum((v - mean) ** 2 for v in row) / (len(row) - 1)) + 1e-7)


def reference(
    student: np.ndarray, teacher: np.ndarray, targets: np.ndarray, temperature: str | float
) -> tuple[float, float]:
    ce = kl = 0.0
    for z_s, z_t, y in zip(student, teacher, targets):
        if temperature == "std":
            hard, q, p, factor = scaled(z_s), common.softmax(scaled(z_s)), common.softmax(scaled(z_t)), 1.0
        else:
            t = float(temperature)
            hard, q, p, factor = z_s, common.softmax(z_s / t), common.softmax(z_t / t), t**2
        ce -= sum(a * math.log(b) for a, b in zip(y, common.softmax(hard)))
        kl += factor * sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q))
    return ce / len(student), kl / len(student)


@TEMPERATURES
@pytest.mark.parametrize("term", ["ce", "kl"])
def test_value_and_gradient_match_naive_reference(temperature: str | float, term: str) -> None:
    common.check_reference(
        lambda s, t: mixup_terms(s, t, targets=SHARES, temperature=temperature)[term],
        lambda s, t: reference(s, t, common.array(SHARES), temperature)[term == "kl"],
        *example(),
    )


def test_labels_are_shares_of_one() -> None:
    student, teacher = example()
    one_hot = torch.eye(7)[LABELS[:5]]
    for temperature in ("std", 4.0):
        hard = mixup_terms(student, teacher, targets=LABELS[:5], temperature=temperature)
        torch.testing.assert_close(hard, mixup_terms(student, teacher, targets=one_hot, temperature=temperature))


def test_std_sees_neither_scale_nor_shift() -> None:
    student, teacher = example()
    expected = mixup_terms(student, teacher, targets=SHARES)
    for s, t in ((4.0 * student - 2.0, teacher), (student, 0.3 * teacher + 1.0)):
        torch.testing.assert_close(mixup_terms(s, t, targets=SHARES), expected, rtol=1e-4, atol=1e-5)
    assert abs(mixup_terms(4.0 * teacher - 2.0, teacher, targets=SHARES)["kl"].item()) < 1e-6


@pytest.mark.parametrize("term", ["ce", "kl"])
def test_std_gradient_is_orthogonal_to_the_logits(term: str) -> None:
    student, teacher = example()
    slope = common.gradient_of(lambda s, t: mixup_terms(s, t, targets=SHARES)[term], student, teacher)
    assert slope.abs().max() > 1e-2
    torch.testing.assert_close(slope.sum(1), torch.zeros(5), rtol=0, atol=1e-6)
    torch.testing.assert_close((slope * student).sum(1), torch.zeros(5), rtol=0, atol=1e-6)


def test_constant_logits_stay_finite() -> None:
    student = torch.full((5, 7), 3.3, requires_grad=True)
    terms = mixup_terms(student, example()[1], targets=SHARES)
    assert terms["ce"].item() == pytest.approx(math.log(7))
    (terms["ce"] + terms["kl"]).backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


@TEMPERATURES
def test_gradient_reaches_student_only(temperature: str | float) -> None:
    def loss(s: Tensor, t: Tensor) -> Tensor:
        return sum(mixup_terms(s, t, targets=SHARES, temperature=temperature).values())  # type: ignore[return-value]

    common.check_one_sided(loss, *example())


@TEMPERATURES
@pytest.mark.parametrize("term", ["ce", "kl"])
@pytest.mark.parametrize("dtype", common.HALVES)
def test_autocast_keeps_float32_inside(temperature: str | float, term: str, dtype: torch.dtype) -> None:
    targets = common.randn(5, 100, seed=5).softmax(1)
    common.check_half(
        lambda s, t: mixup_terms(s, t, targets=targets, temperature=temperature)[term], *example(classes=100), dtype
    )


@TEMPERATURES
def test_batch_order_and_repetition_change_nothing(temperature: str | float) -> None:
    student, teacher = example()
    expected = mixup_terms(student, teacher, targets=SHARES, temperature=temperature)
    for rows in (torch.tensor([4, 2, 0, 1, 3]), torch.arange(5).repeat(2)):
        found = mixup_terms(student[rows], teacher[rows], targets=SHARES[rows], temperature=temperature)
        torch.testing.assert_close(found, expected)


# --- the mixing ---


@pytest.mark.parametrize(
    ("batch", "fraction", "count"), [(64, 0.1, 7), (10, 0.9, 9), (10, 0.0, 0), (10, 1.0, 10), (10, 0.3, 3), (1, 0.5, 1)]
)
def test_exact_share_of_rows(batch: int, fraction: float, count: int) -> None:
    found = mixed_rows(batch, fraction, generator())
    assert len(found) == count
    assert sorted(set(found.tolist())) == found.tolist()


def test_every_row_is_as_likely() -> None:
    draws = generator()
    counts = torch.stack([torch.bincount(mixed_rows(8, 0.5, draws), minlength=8) for _ in range(1000)]).sum(0)
    assert counts.sum() == 4000
    assert (counts - 500).abs().max() < 5 * math.sqrt(1000 / 4)


@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_drawing_with_replacement_mixes_more(fraction: float) -> None:
    draws = generator()
    counts = [len(mixed_rows(64, fraction, draws, with_replacement=True)) for _ in range(1000)]
    expected = 64 * (1 - 1 / 64) ** math.floor(64 * (1 - fraction))
    assert np.mean(counts) == pytest.approx(expected, abs=0.5)
    assert np.std(counts) > 1


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_shares_follow_the_beta_distribution(alpha: float) -> None:
    shares = draw_beta(20_000, alpha, generator())
    assert shares.dtype == torch.float32
    assert shares.min() >= 0
    assert shares.max() <= 1
    assert shares.mean().item() == pytest.approx(0.5, abs=0.01)
    assert shares.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)
    assert torch.equal(shares, draw_beta(20_000, alpha, generator()))
    assert not torch.equal(shares, draw_beta(20_000, alpha, generator(1)))


def test_mixing_is_a_convex_combination_row_by_row() -> None:
    x, y = common.randn(4, 2, 3, seed=0), torch.eye(4)
    rows, partners, shares = torch.tensor([0, 2]), torch.tensor([3, 1]), torch.tensor([0.25, 1.0])
    inputs, targets = mix(x, y, rows, partners, shares)
    torch.testing.assert_close(inputs[0] - x[3], 0.25 * (x[0] - x[3]))
    assert torch.equal(inputs[1:], x[1:])  # rows 1 and 3 are untouched, row 2 has a share of 1
    assert targets.tolist() == [[0.25, 0, 0, 0.75], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize("options", [{}, {"mixup_alpha": 0.2}, {"fraction": 1.0}, {"with_replacement": True}])
def test_altered_batch_lies_between_two_of_its_images(options: dict) -> None:
    link, batch = connected(**{"fraction": 0.4, **options}), images()
    inputs, labels = batch.inputs.clone(), batch.targets.clone()
    new = link.alter(batch, generator(3))
    assert torch.equal(batch.inputs, inputs)
    assert torch.equal(batch.targets, labels)
    assert new.targets.shape == (10, 7)
    assert new.targets.dtype == torch.float32
    torch.testing.assert_close(new.targets.sum(1), torch.ones(10))
    assert new.ids is None
    assert new.views is None
    if not options:
        assert sum(not torch.equal(a, b) for a, b in zip(new.inputs, inputs)) >= 3  # 4 rows, one may meet itself
    for i in range(10):
        if torch.equal(new.inputs[i], inputs[i]):
            assert torch.equal(new.targets[i], torch.eye(7)[labels[i]])
            continue
        fits = []
        for j in range(10):
            a = float((new.inputs[i] - inputs[j]).flatten() @ (inputs[i] - inputs[j]).flatten())
            a /= max(float((inputs[i] - inputs[j]).square().sum()), 1e-12)
            on_line = torch.allclose(new.inputs[i], a * inputs[i] + (1 - a) * inputs[j], atol=1e-5)
            target = a * torch.eye(7)[labels[i]] + (1 - a) * torch.eye(7)[labels[j]]
            fits.append(on_line and -1e-5 <= a <= 1 + 1e-5 and torch.allclose(new.targets[i], target, atol=1e-5))
        assert any(fits)


def test_mix_depends_on_the_generator_alone() -> None:
    link = connected(fraction=0.5)
    first, second, other = (link.alter(images(), generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.inputs, second.inputs)
    assert torch.equal(first.targets, second.targets)
    assert not torch.equal(first.inputs, other.inputs)
    state = torch.get_rng_state()
    link.alter(images(), generator(1))
    assert torch.equal(torch.get_rng_state(), state)


def test_no_mixed_row_leaves_the_batch_as_it_is() -> None:
    batch = images()
    assert connected(fraction=0.0).alter(batch, generator()) is batch


def test_fraction_zero_is_kd_bit_for_bit() -> None:
    student, teacher = common.randn(10, 7, seed=0), common.randn(10, 7, seed=1)
    link = connected(fraction=0.0, temperature=4.0)
    batch = link.alter(images(), generator())
    terms = link(LinkInputs(student=[student], teacher=[teacher], targets=batch.targets))
    assert torch.equal(terms["kl"], 0.9 * kd_loss(student, teacher))
    assert torch.equal(terms["ce"], 0.1 * torch.nn.functional.cross_entropy(student, LABELS))


# --- refusals and the link ---


@pytest.mark.parametrize("label", [-1, 7])
def test_labels_out_of_range_are_named(label: int) -> None:
    batch = images()
    batch.targets = torch.where(torch.arange(10) == 4, label, LABELS)
    for call in (
        lambda: connected().alter(batch, generator()),
        lambda: mixup_terms(*example(batch=10), targets=batch.targets),
    ):
        with pytest.raises(ShapeMismatch, match=f"MixupKD: label {label} is not in 0 to 6"):
            call()


def test_batches_that_cannot_be_mixed_are_named() -> None:
    with pytest.raises(ShapeMismatch, match=r"MixupKD: labels .* integer classes"):
        connected().alter(Batch(torch.zeros(10, 3, 4, 4), torch.full((10, 7), 1 / 7)), generator())
    with pytest.raises(ShapeMismatch, match=r"MixupKD: targets \(5, 6\) and logits \(5, 7\) do not fit"):
        mixup_terms(*example(), targets=SHARES[:, :6])
    with pytest.raises(ConfigError, match=r"the batch holds torch\.uint8"):
        connected().alter(Batch(torch.zeros(10, 3, 4, 4, dtype=torch.uint8), LABELS), generator())
    with pytest.raises(ConfigError, match="the batch holds dict"):
        connected().alter(Batch({"images": torch.zeros(10, 3, 4, 4)}, LABELS), generator())


@pytest.mark.parametrize(
    ("teacher", "student", "hint"),
    [
        ((5, 100), (5, 7), "a student head of 100 classes"),
        ((6, 7), (5, 7), "the same batch"),
        ((5, 7, 2, 2), (5, 7, 2, 2), r"tap logits \(B, C\)"),
        ((5, 1), (5, 1), "two or more would fit"),
    ],
)
def test_shapes_that_do_not_fit_are_named(teacher: tuple[int, ...], student: tuple[int, ...], hint: str) -> None:
    pattern = rf"MixupKD: teacher logits \({', '.join(map(str, teacher))}\) and student logits .*; .*{hint}"
    with pytest.raises(ShapeMismatch, match=pattern):
        mixup_terms(torch.zeros(student), torch.zeros(teacher), targets=SHARES)
    with pytest.raises(ShapeMismatch, match=pattern):
        MixupKD().connect([teacher], [student])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 1.5}, r"fraction of MixupKD is in \[0, 1\]; got 1.5"),
        ({"fraction": float("nan")}, "fraction of MixupKD"),
        ({"mixup_alpha": 0.0}, "MixupKD needs mixup_alpha > 0; got 0"),
        ({"temperature": 0.0}, "MixupKD needs temperature > 0; got 0"),
        ({"temperature": "mad"}, "temperature of MixupKD is 'std' or a number; got 'mad'"),
        ({"gamma": 0.0, "alpha": 0.0}, "both 0"),
        ({"taps": [("a", "b"), ("c", "d")]}, "MixupKD reads one pair of taps"),
    ],
)
def test_bad_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MixupKD(**options)


def test_terms_carry_their_factors_and_a_factor_of_zero_leaves_one_out() -> None:
    student, teacher = example()
    inputs = LinkInputs(student=[student], teacher=[teacher], targets=SHARES)
    pure = mixup_terms(student, teacher, targets=SHARES)
    torch.testing.assert_close(MixupKD()(inputs), {"ce": 0.1 * pure["ce"], "kl": 0.9 * pure["kl"]})
    assert list(MixupKD(gamma=0.0)(inputs)) == ["kl"]
    assert list(MixupKD(alpha=0.0)(inputs)) == ["ce"]


def test_registry_builds_it_and_refuses_typos() -> None:
    common.check_registered(
        "MixupKD", MixupKD, weight=1.0, typo="fracton", meant="fraction", fraction=0.3, temperature=2.0
    )
    link = MixupKD()
    assert (link.fraction, link.with_replacement, link.mixup_alpha, link.temperature) == (0.1, False, 1.0, "std")
    assert link.alters_batch
    assert link.assumption


# --- through the Distiller ---


def distiller(links: list[dict], task_weight: float) -> Distiller:
    torch.manual_seed(0)
    members = {
        "teacher": dict(type="frozen", model=CIFARResNet(8, 4), initial_weights=True),
        "student": dict(type="trained", model=CIFARResNet(8, 2)),
    }
    return Distiller(members=members, links=links, adapter=dict(type="VisionAdapter"), task_weight=task_weight).train()


def step(model: Distiller) -> tuple[dict[str, Tensor], list[Tensor], dict[str, Tensor]]:
    """Terms, the student's gradients, and what each member was fed."""
    seen: dict[str, Tensor] = {}
    for name in ("teacher", "student"):
        model.member(name).register_forward_pre_hook(lambda _m, args, name=name: seen.update({name: args[0]}))
    terms = model.loss(Batch(common.randn(8, 3, 32, 32), torch.arange(8), torch.arange(8)))
    sum(terms.values()).backward()  # type: ignore[union-attr]
    return terms, [p.grad for p in model.members.parameters() if p.grad is not None], seen


def test_both_members_see_the_same_mixed_images() -> None:
    terms, _, seen = step(distiller([dict(type="MixupKD", fraction=0.5)], task_weight=0.0))
    clean = common.randn(8, 3, 32, 32)
    assert torch.equal(seen["teacher"], seen["student"])
    same = [torch.equal(a, b) for a, b in zip(seen["student"], clean)]
    assert sum(same) in (4, 5)  # a row may meet itself
    assert terms["student.loss_ce"].item() == 0.0
    assert terms["mixupkd.loss_ce"] > 0
    assert terms["mixupkd.loss_kl"] > 0
    repeated, _, _ = step(distiller([dict(type="MixupKD", fraction=0.5)], task_weight=0.0))
    assert repeated == terms


def test_step_with_fraction_zero_is_a_step_of_kd() -> None:
    link = dict(type="MixupKD", fraction=0.0, temperature=4.0)
    _, mixed, _ = step(distiller([link], task_weight=0.0))
    _, plain, _ = step(distiller([dict(type="KD", weight=0.9, temperature=4.0)], task_weight=0.1))
    assert len(mixed) == len(plain) > 0
    assert all(torch.equal(a, b) for a, b in zip(mixed, plain))


def test_weight_zero_leaves_the_batch_alone() -> None:
    terms, slopes, seen = step(distiller([dict(type="MixupKD", weight=0.0)], task_weight=1.0))
    assert list(terms) == ["student.loss_ce"]
    assert torch.equal(seen["student"], common.randn(8, 3, 32, 32))
    _, plain, _ = step(distiller([], task_weight=1.0))
    assert all(torch.equal(a, b) for a, b in zip(slopes, plain))
