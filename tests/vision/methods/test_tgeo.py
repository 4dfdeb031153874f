"""TGeoKD: the mix, the geometry, the held-out split, and the bilevel gradient against finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from limbeck.engine.adapter import Batch
from limbeck.engine.config import RecipeConfig
from limbeck.engine.distiller import Distiller
from limbeck.engine.method import LinkInputs, TrainingSet
from limbeck.engine.runner import JointOptimWrapper, build_optim_wrapper
from limbeck.errors import ConfigError, ShapeMismatch, UnknownName
from limbeck.vision.methods.kd import kd_loss
from limbeck.vision.methods.tgeo import TGeoKD, fused_losses, geometry, held_out_rows, masked_mean
from tests.vision.methods import conftest as common

B, C, D = 12, 4, 5
STUDENT, TEACHER = common.randn(B, C, seed=0, scale=2), common.randn(B, C, seed=1, scale=2)
LABELS = torch.arange(B) % C
IDS = torch.arange(B) + 100


class Linear(nn.Module):
    """A linear student: its feature is its input."""

    def __init__(self, bias: bool = True, classes: int = C, width: int = D) -> None:
        super().__init__()
        self.fc = nn.Linear(width, classes, bias=bias)


def training_set(
    logits: Tensor = TEACHER, labels: Tensor = LABELS, classes: int = C, others: dict[str, Tensor] | None = None
) -> TrainingSet:
    """Every teacher has `logits` but those named in `others`."""

    def taps(name: str | None = None) -> Iterator[tuple[list[Tensor], Tensor, Tensor]]:
        mine = (others or {}).get(name or "", logits)
        for rows in torch.arange(len(labels)).split(5):
            yield [mine[rows], mine[rows]], labels[rows], rows

    return TrainingSet(labels=labels, classes=classes, teacher_taps=taps)


def make(student: nn.Module | None = None, *, data: TrainingSet | None = None, width: int = D, **kwargs: Any) -> TGeoKD:
    torch.manual_seed(0)
    data = data or training_set()
    link = TGeoKD(**kwargs)
    link.members = {"student": student or Linear(classes=data.classes)}
    link.connect([(2, data.classes)] * 2, [(2, data.classes), (2, width)])
    link.prepare(data)
    return link


def step(student: nn.Module, feature: Tensor | None = None, *, ids: Tensor | None = IDS) -> LinkInputs:
    feature = (common.randn(B, D, seed=3) if feature is None else feature).requires_grad_()
    logits = student.fc(feature)
    return LinkInputs(student=[logits, feature], teacher=[TEACHER, TEACHER], targets=LABELS, ids=ids)


# --- the mix of both losses ---


@pytest.mark.parametrize("temperature", [1.0, 1.5, 4.0])
def test_value_and_gradient_match_naive_reference(temperature: float) -> None:
    alpha = torch.linspace(0.05, 0.95, B)

    def reference(student: np.ndarray, teacher: np.ndarray) -> float:
        total = 0.0
        for i in range(B):
            p, q = common.softmax(teacher[i] / temperature), common.softmax(student[i] / temperature)
            kl = sum(a * math.log(a / b) for a, b in zip(p, q))
            ce = -math.log(common.softmax(student[i])[int(LABELS[i])])
            total += float(alpha[i]) * temperature**2 * kl + (1 - float(alpha[i])) * ce
        return total / B

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        return fused_losses(student, [teacher], LABELS, alpha, temperature=temperature).mean()

    common.check_reference(loss, reference, STUDENT, TEACHER)
    common.check_one_sided(loss, STUDENT, TEACHER)
    for dtype in common.HALVES:
        common.check_half(loss, STUDENT, TEACHER, dtype)


@pytest.mark.parametrize("alpha", [0.0, 0.9, 1.0])
def test_constant_ratio_is_kd_and_cross_entropy_at_fixed_weights(alpha: float) -> None:
    link = make(mode="constant", alpha=alpha)
    batch = LinkInputs(student=[STUDENT], teacher=[TEACHER], targets=LABELS)  # neither ids nor feature is needed
    terms = link(batch)
    ce = nn.functional.cross_entropy(STUDENT, LABELS)
    torch.testing.assert_close(terms["fused"], alpha * kd_loss(STUDENT, TEACHER) + (1 - alpha) * ce)
    assert list(terms) == ["fused"]
    assert not list(link.parameters())


# --- geometry ---


def points(seed: int = 0) -> list[Tensor]:
    s, t, average = (common.randn(B, C, seed=seed + i, scale=2).softmax(1) for i in range(3))
    return [s, t, nn.functional.one_hot(LABELS, C).float(), average]


def test_geometry_matches_naive_reference() -> None:
    s, t, g, o = map(common.array, points())
    found = {f: geometry(*points(), features=f).numpy() for f in ("official", "norms", "angles")}
    assert {k: v.shape for k, v in found.items()} == {"official": (B, 9 * C), "norms": (B, 9), "angles": (B, 7)}
    for i in range(B):
        edges = [[x - y for x, y in zip(a[i], b[i])] for a, b in ((o, s), (g, s), (t, s), (t, g), (o, g))]
        squares = [[x * x for x in edge] for edge in edges]
        lengths = [math.sqrt(sum(square)) for square in squares]
        y = int(LABELS[i])
        np.testing.assert_allclose(found["official"][i], np.concatenate([s[i], t[i], g[i], o[i], *squares]), atol=1e-6)
        expected = [*map(sum, squares), s[i, y], t[i, y], 1.0, o[i, y]]
        np.testing.assert_allclose(found["norms"][i], expected, rtol=1e-5, atol=1e-6)
        cosines = [
            sum(a * b for a, b in zip(edges[k], edges[1])) / (lengths[k] * lengths[1]) for k in (0, 2)
        ]  # at S, of T̄ and G, and of T and G
        np.testing.assert_allclose(found["angles"][i], [*lengths, *cosines], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("features", "edges"), [("official", slice(4 * C, 9 * C)), ("norms", slice(5)), ("angles", slice(7))]
)
def test_one_point_for_all_has_no_edges_and_no_angles(features: str, edges: slice) -> None:
    g = points()[2]
    assert torch.equal(geometry(g, g, g, g, features=features)[:, edges].abs().sum(), torch.tensor(0.0))


@pytest.mark.parametrize("features", ["official", "norms", "angles"])
def test_ratios_are_in_the_unit_interval_and_follow_the_samples(features: str) -> None:
    link = make(features=features)
    alpha = link.ratios(STUDENT, [TEACHER], LABELS)
    assert alpha.shape == (B,)
    assert ((alpha > 0) & (alpha < 1)).all()
    assert alpha.std() > 0
    order = torch.randperm(B, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(link.ratios(STUDENT[order], [TEACHER[order]], LABELS[order]), alpha[order])
    torch.testing.assert_close(link.ratios(STUDENT, [TEACHER] * 3, LABELS), alpha)  # copies equal one


@pytest.mark.parametrize(("classes", "features"), [(2, "official"), (10, "official"), (11, "norms"), (100, "norms")])
def test_features_by_default_follow_the_number_of_classes(classes: int, features: str) -> None:
    labels = torch.arange(classes)
    link = make(data=training_set(torch.zeros(classes, classes), labels, classes))
    assert link.features == features


def test_class_means_are_the_mean_distribution_of_each_group() -> None:
    link = make()
    p = [common.softmax(row) for row in common.array(TEACHER)]
    for c in range(C):
        rows = [p[i] for i in range(B) if int(LABELS[i]) == c]
        np.testing.assert_allclose(link.average[c].numpy(), [sum(x) / len(rows) for x in zip(*rows)], rtol=1e-5)


def test_class_means_of_several_teachers_are_the_mean_of_theirs() -> None:
    logits = {name: common.randn(B, C, seed=seed, scale=2) for name, seed in (("b", 7), ("c", 8))}
    link = make(data=training_set(others=logits), teacher=["a", "b", "c"])
    p = [[common.softmax(row) for row in common.array(z)] for z in (TEACHER, *logits.values())]
    for c in range(C):
        rows = [i for i in range(B) if int(LABELS[i]) == c]
        means = [[sum(one[i][k] for i in rows) / len(rows) for k in range(C)] for one in p]
        np.testing.assert_allclose(link.average[c].numpy(), [sum(x) / 3 for x in zip(*means)], rtol=1e-5)


# --- the held-out split ---


def test_held_out_share_is_kept_and_depends_on_the_id_alone() -> None:
    ids = torch.arange(20000)
    for share in (0.05, 0.1, 0.5):
        assert held_out_rows(ids, share).float().mean().item() == pytest.approx(share, rel=0.1)
    held = held_out_rows(ids, 0.1)
    assert torch.equal(held_out_rows(ids.flip(0), 0.1), held.flip(0))
    assert torch.equal(held_out_rows(ids[:1000], 0.1), held[:1000])
    for start in range(10):  # no trace of a period, such as of sorted labels
        assert held[start::10].float().mean().item() == pytest.approx(0.1, abs=0.03)


def test_held_out_samples_never_enter_the_inner_loss() -> None:
    student = Linear()
    link = make(student, held_out=0.4)
    held = held_out_rows(IDS, 0.4)
    assert 0 < held.sum() < B
    batch = step(student)
    slope = torch.autograd.grad(link(batch)["fused"], batch.student[0])[0]
    assert torch.equal(slope.abs().sum(1) > 0, ~held)


@pytest.mark.parametrize("ids", [[7], None])
def test_batch_on_one_side_of_the_split_has_a_zero_term_with_a_graph(ids: list[int] | None) -> None:
    student = Linear()
    link = make(student, held_out=0.3)
    pool = torch.arange(1000)
    held = ids is not None
    chosen = pool[held_out_rows(pool, 0.3) == held][:B]
    batch = step(student, ids=chosen)
    terms = link(batch)
    empty, full = ("fused", "outer") if held else ("outer", "fused")
    assert terms[empty].item() == 0.0
    assert terms[full].item() > 0.0
    assert link.may_be_zero
    torch.stack(list(terms.values())).sum().backward()  # no parameter is left without a gradient under DDP
    assert all(p.grad is not None for p in link.parameters())
    link(step(student, ids=pool[:B]))
    assert not link.may_be_zero


# --- the bilevel step ---


def naive_outer(
    vector: np.ndarray, link: TGeoKD, feature: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, held: np.ndarray
) -> float:
    """Outer loss of MLP parameters given as one vector, in float64 with the inner gradient written out."""
    shapes = [tuple(p.shape) for p in link.ratio.parameters()]
    tensors, start = [], 0
    for shape in shapes:
        size = int(np.prod(shape))
        tensors.append(vector[start : start + size].reshape(shape))
        start += size
    b = 0.0 if bias is None else bias
    z, temperature = feature @ weight.T + b, link.temperature
    p_s, p_t = (np.array([common.softmax(r) for r in x]) for x in (z, common.array(TEACHER)))
    g, o = np.eye(C)[LABELS.numpy()], common.array(link.average)[LABELS.numpy()]
    state = np.concatenate(
        [p_s, p_t, g, o, *((x - y) ** 2 for x, y in ((o, p_s), (g, p_s), (p_t, p_s), (p_t, g), (o, g)))], 1
    )
    for i in (0, 2, 4):
        state = state @ tensors[i].T + tensors[i + 1]
        state = np.where(state > 0, state, 0.01 * state) if i < 4 else state
    alpha = 1 / (1 + np.exp(-state[:, 0]))
    soft_s, soft_t = (np.array([common.softmax(r / temperature) for r in x]) for x in (z, common.array(TEACHER)))
    d_z = alpha[:, None] * temperature * (soft_s - soft_t) + (1 - alpha[:, None]) * (p_s - g)
    d_z = d_z * ~held[:, None] / (~held).sum()
    moved = feature @ (weight - link.rate * d_z.T @ feature).T + (
        0.0 if bias is None else bias - link.rate * d_z.sum(0)
    )
    return float(np.mean([-math.log(common.softmax(moved[i])[int(LABELS[i])]) for i in range(B) if held[i]]))


@pytest.mark.parametrize("bias", [True, False])
def test_outer_loss_and_its_gradient_match_finite_differences_on_a_linear_student(bias: bool) -> None:
    student = Linear(bias)
    link = make(student, held_out=0.4, rate=0.7)
    batch = step(student)
    outer = link(batch)["outer"]
    params = list(link.ratio.parameters())
    found = torch.cat([g.flatten() for g in torch.autograd.grad(outer, params)]).double().numpy()
    vector = np.concatenate([common.array(p).ravel() for p in params])
    arguments = (
        link,
        common.array(batch.student[1]),
        common.array(student.fc.weight),
        common.array(student.fc.bias) if bias else None,
        held_out_rows(IDS, 0.4).numpy(),
    )
    assert outer.item() == pytest.approx(naive_outer(vector, *arguments), rel=1e-5)
    picked = np.random.default_rng(0).choice(len(vector), 150, replace=False)

    def value(x: np.ndarray) -> float:
        moved = vector.copy()
        moved[picked] = x
        return naive_outer(moved, *arguments)

    slope = common.numeric_gradient(value, vector[picked], step=1e-4)
    assert np.abs(slope).max() > 0
    np.testing.assert_allclose(found[picked], slope, rtol=1e-2, atol=1e-3 * np.abs(slope).max())


def test_each_term_trains_its_own_side_only() -> None:
    student = Linear()
    link = make(student, held_out=0.4)
    batch = step(student)
    batch.teacher[0] = TEACHER.clone().requires_grad_()
    terms = link(batch)
    own, others = list(link.parameters()), [*student.parameters(), batch.student[1], batch.teacher[0]]
    outer = torch.autograd.grad(terms["outer"], [*own, *others], allow_unused=True, retain_graph=True)
    assert all(g is not None and g.abs().max() > 0 for g in outer[: len(own)])
    assert all(g is None for g in outer[len(own) :])
    fused = torch.autograd.grad(terms["fused"], [*own, *others], allow_unused=True)
    assert all(g is None for g in fused[: len(own)])
    assert all(g is not None for g in fused[len(own) : -1])
    assert fused[-1] is None


def test_code_mode_sends_no_gradient_into_the_mlp_and_has_no_optimiser() -> None:
    student = Linear()
    link = make(student, mode="code", held_out=0.4)
    terms = link(step(student))
    assert list(terms) == ["fused"]
    assert not any(p.requires_grad for p in link.parameters())
    assert link.optimizer is None
    torch.testing.assert_close(terms["fused"], make(student, held_out=0.4)(step(student))["fused"])


def train(link: TGeoKD, student: Linear, batches: Callable[[int], LinkInputs], steps: int) -> None:
    own = torch.optim.Adam(link.parameters(), lr=1e-2)
    main = torch.optim.SGD(student.parameters(), lr=0.05)
    for number in range(steps):
        loss = torch.stack(list(link(batches(number)).values())).sum()
        own.zero_grad()
        main.zero_grad()
        loss.backward()
        own.step()
        main.step()


def toy(
    teach: Callable[[Tensor], Tensor], noise: float = 0.0, n: int = 400, width: int = 8
) -> tuple[TGeoKD, float, float]:
    """Mean ratio before and after training on Gaussian clusters, by a teacher that sees the true classes."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(3, (n,), generator=generator)
    centres = 1.5 * torch.randn(3, width, generator=generator)
    x = centres[truth] + torch.randn(n, width, generator=generator)
    flipped = torch.rand(n, generator=generator) < noise
    labels = torch.where(flipped, torch.randint(3, (n,), generator=generator), truth)
    logits = teach(truth)
    torch.manual_seed(1)
    student = Linear(classes=3, width=width)
    data = training_set(logits, labels, 3)
    link = make(student, data=data, width=width, temperature=1.0, rate=0.5, held_out=0.2)

    def batch(number: int) -> LinkInputs:
        ids = torch.randperm(n, generator=torch.Generator().manual_seed(number))[:64]
        feature = x[ids]
        return LinkInputs([logits[ids]] * 2, [student.fc(feature), feature], targets=labels[ids], ids=ids)

    def mean_ratio() -> float:
        with torch.no_grad():
            return link.ratios(student.fc(x), [logits], labels).mean().item()

    before = mean_ratio()
    train(link, student, batch, 300)
    return link, before, mean_ratio()


def test_teacher_wrong_everywhere_drives_the_ratio_down() -> None:
    _, before, after = toy(lambda y: 4.0 * nn.functional.one_hot((y + 1) % 3, 3).float())
    assert after < 0.3 < before


def test_true_teacher_under_label_noise_drives_the_ratio_up() -> None:
    # Three of five labels are drawn at random; the teacher's softened truth predicts the held-out ones better.
    _, before, after = toy(lambda y: nn.functional.one_hot(y, 3).float(), noise=0.6, n=300, width=40)
    assert after > 0.7 > before


# --- several teachers, bad input, the engine ---


def test_several_teachers_are_averaged_as_distributions() -> None:
    other, alpha = common.randn(B, C, seed=7), torch.full((B,), 1.0)
    found = fused_losses(STUDENT, [TEACHER, other], LABELS, alpha, temperature=2.0).mean()
    mean = ((TEACHER / 2).softmax(1) + (other / 2).softmax(1)) / 2
    torch.testing.assert_close(found, kd_loss(STUDENT, 2 * mean.log(), temperature=2.0))
    link = make(mode="constant", alpha=1.0, temperature=2.0, teacher=["a", "b"])
    batch = LinkInputs([TEACHER] * 2, [STUDENT], targets=LABELS, teachers=[[TEACHER] * 2, [other] * 2])
    torch.testing.assert_close(link(batch)["fused"], found)


def test_masked_mean_is_the_mean_of_the_rows() -> None:
    x, mask = torch.tensor([1.0, 5.0, 9.0]), torch.tensor([True, False, True])
    assert masked_mean(x, mask).item() == 5.0
    assert masked_mean(x, ~mask & mask).item() == 0.0


def test_ids_labels_and_preparation_must_be_there() -> None:
    student = Linear()
    link = make(student)
    with pytest.raises(ConfigError, match="needs the id of every sample"):
        link(step(student, ids=None))
    batch = step(student)
    batch.targets = torch.full((B,), C)
    with pytest.raises(ShapeMismatch, match="TGeoKD: label 4 is not in 0 to 3"):
        link(batch)
    batch.targets = torch.rand(B, C)
    with pytest.raises(ShapeMismatch, match=r"mixed or smoothed targets"):
        link(batch)
    bare = TGeoKD()
    bare.members = {"student": student}
    bare.connect([(2, C)] * 2, [(2, C), (2, D)])
    with pytest.raises(ConfigError, match=r"call prepare\(data\)"):
        bare(step(student))


def test_data_set_of_other_classes_or_labels_is_refused() -> None:
    with pytest.raises(ShapeMismatch, match=r"teacher logits \(5, 4\) do not fit a data set of 7 classes"):
        make(Linear(classes=7), data=training_set(classes=7))
    with pytest.raises(ShapeMismatch, match="TGeoKD: label 9 is not in 0 to 3"):
        make(data=training_set(labels=torch.full((B,), 9)))


@pytest.mark.parametrize(
    ("student", "shapes", "message"),
    [
        (Linear(), [(2, C)], r"then the feature \(B, D\)"),
        (Linear(), [(2, C), (2, D, 8, 8)], r"then the feature \(B, D\)"),
        (Linear(), [(2, C), (2, D + 1)], "tap what enters the classifier"),
        (nn.Identity(), [(2, C), (2, D)], r"get_classifier\(\) or fc of 'student' is no nn.Linear"),
    ],
)
def test_student_taps_and_classifier_must_fit(student: nn.Module, shapes: Sequence, message: str) -> None:
    link = TGeoKD(taps=[("logits", f"tap{i}") for i in range(len(shapes))])
    link.members = {"student": student}
    with pytest.raises((ConfigError, ShapeMismatch), match=message):
        link.connect([(2, C)] * len(shapes), list(shapes))


def test_feature_that_is_not_what_the_classifier_sees_is_refused_in_the_first_step() -> None:
    student = Linear()
    link = make(student)
    batch = step(student)
    batch.student[1] = batch.student[1].roll(1, 0)
    with pytest.raises(ConfigError, match="classifier of the tapped feature is not its logits"):
        link(batch)


def test_classifier_is_found_by_name_or_by_timms_method() -> None:
    named = nn.ModuleDict({"last": nn.Linear(D, C)})
    link = TGeoKD(classifier="last")
    link.members = {"student": named}
    assert link._head() is named["last"]

    class Timm(nn.Module):
        head = nn.Linear(D, C)

        def get_classifier(self) -> nn.Module:
            return self.head

    link = TGeoKD()
    link.members = {"student": Timm()}
    assert link._head() is Timm.head


@pytest.mark.parametrize(
    "options", [{"held_out": 0.0}, {"held_out": 1.0}, {"rate": 0.0}, {"alpha": 1.5}, {"temperature": 0.0}]
)
def test_options_out_of_range_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError, match="TGeoKD needs"):
        TGeoKD(**options)


def test_registry_builds_it_and_refuses_typos() -> None:
    common.check_registered("TGeoKD", TGeoKD, weight=1.0, typo="hold_out", meant="held_out", held_out=0.2)
    for options, message in (
        ({"mode": "bilevl"}, "unknown mode 'bilevl' of TGeoKD; did you mean 'bilevel'"),
        ({"features": "norm"}, "unknown features 'norm' of TGeoKD; did you mean 'norms'"),
        ({"unroll": "all"}, "unknown unroll 'all' of TGeoKD"),
    ):
        with pytest.raises(UnknownName, match=message):
            TGeoKD(**options)


@pytest.mark.parametrize("dtype", common.HALVES)
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    student = Linear()
    link = make(student, held_out=0.4)
    feature = common.randn(B, D, seed=3).to(dtype).float()
    batch = step(student, feature)
    logits = batch.student[0].to(dtype)
    half = LinkInputs([TEACHER.to(dtype)] * 2, [logits, feature.to(dtype)], targets=LABELS, ids=IDS)
    full = LinkInputs([TEACHER.to(dtype).float()] * 2, [logits.float(), feature], targets=LABELS, ids=IDS)
    with torch.autocast("cpu", dtype=dtype):
        found = link(half)
    for name, value in link(full).items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["bilevel", "code", "constant"])
def test_distiller_trains_student_and_mlp_by_their_own_optimisers(mode: str) -> None:
    net = dict(type="CIFARResNet", depth=8, in_chans=1, num_classes=3, input_size=(1, 8, 8))
    members = {
        "teacher": dict(type="frozen", model={**net, "width": 4}, initial_weights=True),
        "student": dict(type="trained", model={**net, "width": 2}),
    }
    links = [dict(type="TGeoKD", mode=mode, held_out=0.3)]
    model = Distiller(members=members, links=links, adapter=dict(type="VisionAdapter"), task_weight=0.0)
    link = model.links[0]
    assert isinstance(link, TGeoKD)
    labels = torch.arange(24) % 3
    link.prepare(training_set(common.randn(24, 3), labels, 3))
    recipe = RecipeConfig(epochs=1, optimizer=dict(type="SGD", lr=0.05))
    wrapper = build_optim_wrapper(model.train(), model.links, recipe)
    assert isinstance(wrapper, JointOptimWrapper) == (mode == "bilevel")
    before = [p.detach().clone() for p in link.parameters()]
    student = [p.detach().clone() for p in model.members["student"].parameters()]
    for number in range(2):
        terms = model.loss(Batch(common.randn(24, 1, 8, 8, seed=number), targets=labels, ids=torch.arange(24)))
        wrapper.update_params(torch.stack(list(terms.values())).sum())
    assert ("tgeokd.loss_outer" in terms) == (mode == "bilevel")
    assert any(not torch.equal(a, b) for a, b in zip(before, link.parameters())) == (mode == "bilevel")
    assert any(not torch.equal(a, b) for a, b in zip(student, model.members["student"].parameters()))
    assert not any("ratio" in key for key in model.deploy.state_dict())
