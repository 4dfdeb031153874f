"""CRD against a naive reference: its banks, its normaliser, its negatives, and an exact resume."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck.engine.adapter import Batch
from limbeck.engine.distiller import Distiller
from limbeck.engine.method import LinkInputs, TrainingSet
from limbeck.errors import ConfigError, ShapeMismatch, UnknownName
from limbeck.vision.methods.crd import CRD, ContrastSampler, nce_loss, similarities
from tests.vision.methods import conftest as common

LABELS = torch.tensor([0, 2, 1, 0, 1, 2, 2, 0, 1, 0, 2, 1, 0, 0, 2, 1, 1, 0, 2, 0])  # 8, 6 and 6 samples
D_S, D_T = 5, 7


def no_taps() -> Iterator[tuple[list[Tensor], Tensor, Tensor]]:
    raise AssertionError("CRD needs no teacher outputs to prepare")


def training_set(labels: Tensor = LABELS, classes: int = 3) -> TrainingSet:
    return TrainingSet(labels=labels, classes=classes, teacher_taps=no_taps)


def make(seed: int = 0, labels: Tensor = LABELS, classes: int = 3, **kwargs) -> CRD:
    torch.manual_seed(seed)
    link = CRD(**{"dim": 6, "negatives": 4, **kwargs})
    link.connect([(2, D_T)], [(2, D_S)])
    link.prepare(training_set(labels, classes))
    return link


def step(ids: list[int], seed: int = 0) -> LinkInputs:
    student = common.randn(len(ids), D_S, seed=seed).requires_grad_()
    teacher = common.randn(len(ids), D_T, seed=seed + 100)
    return LinkInputs(student=[student], teacher=[teacher], targets=LABELS[ids], ids=torch.tensor(ids), draw=seed)


def naive(link: CRD, batch: LinkInputs, index: np.ndarray, z: tuple[float, float] | None) -> tuple[float, list[float]]:
    """Loss and normalisers of one step by loops over samples and slots, in float64."""
    assert batch.ids is not None
    n, total, normalisers = len(link.labels), 0.0, []
    sides = [
        (link.embed_student, batch.student[0], link.memory_teacher),
        (link.embed_teacher, batch.teacher[0], link.memory_student),
    ]
    for side, (layer, features, memory) in enumerate(sides):
        g = common.array(features) @ common.array(layer.weight).T + common.array(layer.bias)
        g /= np.linalg.norm(g, axis=1, keepdims=True)
        bank = common.array(memory)
        powers = [[math.exp(g[b] @ bank[j] / link.temperature) for j in row] for b, row in enumerate(index)]
        normaliser = z[side] if z else sum(map(sum, powers)) / (len(index) * len(index[0])) * n
        c = (len(index[0]) - 1) / n
        for row in powers:
            h = [p / normaliser for p in row]
            total -= math.log(h[0] / (h[0] + c + 1e-7)) + sum(math.log(c / (x + c + 1e-7)) for x in h[1:])
        normalisers.append(normaliser)
    return total / len(index), normalisers


# --- the loss ---


@pytest.mark.parametrize("k", [1, 8])
def test_scores_at_the_noise_level_give_log_two_a_slot(k: int) -> None:
    found = nce_loss(torch.full((3, k + 1), k / 50), population=50)
    assert found.item() == pytest.approx((k + 1) * math.log(2), rel=1e-4)


def test_negatives_are_summed_and_samples_averaged() -> None:
    scores = common.randn(4, 9).exp()
    found = nce_loss(scores, population=30)
    torch.testing.assert_close(nce_loss(scores.repeat(2, 1), population=30), found)
    order = torch.tensor([0, 8, 7, 6, 5, 4, 3, 2, 1])
    torch.testing.assert_close(nce_loss(scores[:, order], population=30), found)
    better = scores.clone()
    better[:, 0] *= 2
    assert nce_loss(better, population=30) < found


def test_both_ways_to_the_similarities_agree() -> None:
    g, index = common.randn(3, 6).requires_grad_(), torch.tensor([[0, 1], [2, 99], [99, 0]])
    memory = common.randn(100, 6, seed=1)
    few = similarities(g, memory, index)
    for b in range(3):
        for k in range(2):
            assert few[b, k].item() == pytest.approx(float(g[b].detach() @ memory[index[b, k]]), rel=1e-5)
    by_rows = torch.autograd.grad(few.square().sum(), g)[0]
    assert len(memory) > 32 * index.shape[1]  # by rows above, by one product below
    wide = torch.cat([index, index.flip(1)], dim=1)
    assert len(memory) <= 32 * wide.shape[1]
    by_product = similarities(g, memory, wide)
    torch.testing.assert_close(by_product[:, :2], few)
    torch.testing.assert_close(torch.autograd.grad(by_product[:, :2].square().sum(), g)[0], by_rows)


@pytest.mark.parametrize("mode", ["exact", "relax"])
def test_two_steps_match_the_naive_reference(mode: str) -> None:
    link, z = make(mode=mode), None
    for batch in (step([3, 1, 7, 8], seed=1), step([7, 0, 19], seed=2)):
        assert batch.ids is not None
        index = link._contrast(batch.ids, batch.generator()).numpy()
        expected, normalisers = naive(link, batch, index, z)
        z = z or (normalisers[0], normalisers[1])
        assert link(batch)["nce"].item() == pytest.approx(expected, rel=1e-4)
        assert link.z_student.item() == pytest.approx(z[0], rel=1e-5)
        assert link.z_teacher.item() == pytest.approx(z[1], rel=1e-5)


def test_gradient_matches_central_differences() -> None:
    link = make()
    link(step([0, 1, 2]))  # sets Z
    state = {k: v.clone() for k, v in link.state_dict().items()}
    batch = step([4, 9, 10], seed=3)
    found = torch.autograd.grad(link(batch)["nce"], batch.student[0])[0]
    link.load_state_dict(state)
    assert batch.ids is not None
    index, z = link._contrast(batch.ids, batch.generator()).numpy(), (link.z_student.item(), link.z_teacher.item())

    def value(x: np.ndarray) -> float:
        moved = LinkInputs(student=[torch.from_numpy(x)], teacher=batch.teacher, ids=batch.ids)
        return naive(link, moved, index, z)[0]

    slope = common.numeric_gradient(value, common.array(batch.student[0]))
    np.testing.assert_allclose(found.numpy(), slope, rtol=1e-3, atol=1e-4 * np.abs(slope).max())


# --- banks ---


def test_banks_start_uniform_and_depend_on_the_rng_alone() -> None:
    link, again, other = make(dim=128), make(dim=128), make(seed=1, dim=128)
    bound = (128 / 3) ** -0.5
    for name in ("memory_student", "memory_teacher"):
        memory = getattr(link, name)
        assert memory.shape == (20, 128)
        assert 0.95 * bound < memory.abs().max() <= bound
        assert memory.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert torch.equal(memory, getattr(again, name))
        assert not torch.equal(memory, getattr(other, name))
    assert not torch.equal(link.memory_student, link.memory_teacher)


def test_only_the_rows_of_the_batch_change_and_they_have_unit_norm() -> None:
    link, ids = make(momentum=0.25), [3, 1, 7]
    before = link.memory_student.clone(), link.memory_teacher.clone()
    batch = step(ids)
    link(batch)
    rest = [i for i in range(20) if i not in ids]
    for memory, old in zip((link.memory_student, link.memory_teacher), before):
        assert torch.equal(memory[rest], old[rest])
        torch.testing.assert_close(memory[ids].norm(dim=1), torch.ones(3))
    for row, i in enumerate(ids):
        g = common.array(link.embed_student(batch.student[0]))[row]
        new = 0.25 * common.array(before[0])[i] + 0.75 * g / np.linalg.norm(g)
        np.testing.assert_allclose(link.memory_student[i].numpy(), new / np.linalg.norm(new), rtol=1e-4, atol=1e-6)


def test_gradient_reaches_student_and_both_embeddings_and_neither_teacher_nor_banks() -> None:
    link, batch = make(), step([0, 1, 2, 3])
    batch.teacher[0].requires_grad_()
    link(batch)["nce"].backward()
    grads = [batch.student[0].grad, link.embed_student.weight.grad, link.embed_teacher.weight.grad]
    assert all(g is not None and g.abs().max() > 0 for g in grads)
    assert batch.teacher[0].grad is None
    assert not any(b.requires_grad for b in link.buffers())


def test_renaming_the_ids_only_permutes_the_banks() -> None:
    """The order of the classes' ids stays, so the same numbers draw the same negatives."""
    rename = torch.arange(20).flip(0)  # new id of an old one
    link = make(negatives=12)  # all others of the largest class: whatever the order, the same set
    renamed = make(negatives=12, labels=LABELS.flip(0))
    renamed.memory_student.copy_(link.memory_student[rename])
    renamed.memory_teacher.copy_(link.memory_teacher[rename])
    ids = [0, 3, 7]  # of the largest class
    expected = link(step(ids))["nce"]
    batch = step(ids)
    batch.ids = rename[ids]
    torch.testing.assert_close(renamed(batch)["nce"], expected)
    torch.testing.assert_close(renamed.memory_student, link.memory_student[rename])


def test_resumed_link_goes_on_as_the_one_that_never_stopped() -> None:
    steps = [step([0, 1, 2], seed=1), step([5, 0, 9], seed=2), step([2, 19, 4], seed=3)]
    whole = make()
    losses = [whole(batch)["nce"].item() for batch in steps]
    stopped = make()
    stopped(steps[0])
    resumed = make(seed=5)  # other initial numbers, which the state replaces
    resumed.load_state_dict(stopped.state_dict())
    assert [resumed(batch)["nce"].item() for batch in steps[1:]] == losses[1:]
    assert all(torch.equal(v, resumed.state_dict()[k]) for k, v in whole.state_dict().items())
    assert {"memory_student", "memory_teacher", "z_student", "z_teacher", "labels"} <= set(whole.state_dict())


# --- draws ---


def test_negatives_are_of_other_classes_distinct_in_a_row_and_all_reachable() -> None:
    sampler, seen = ContrastSampler(LABELS, 3, 5), torch.zeros(3, 20)
    for seed in range(400):
        labels = torch.tensor([0, 1, 2, 1])
        index = sampler.draw_negatives(labels, torch.Generator().manual_seed(seed))
        assert index.shape == (4, 5)
        assert not (LABELS[index] == labels[:, None]).any()
        assert all(len(set(row.tolist())) == 5 for row in index)
        for c, row in zip(labels[:3], index):
            seen[c, row] += 1
    for c in range(3):
        share = seen[c][c != LABELS] / 400
        np.testing.assert_allclose(share.numpy(), 5 / len(share), atol=0.1)  # 4 standard deviations


def test_same_generator_draws_the_same_and_another_step_others() -> None:
    link = make()
    draws = [link._contrast(torch.arange(8), step(list(range(8)), seed=s).generator()) for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_positive_is_the_sample_or_in_relax_any_of_its_class() -> None:
    ids = torch.tensor([0, 1, 2])
    assert torch.equal(make()._contrast(ids, torch.Generator().manual_seed(0))[:, 0], ids)
    link = make(mode="relax")
    drawn = {int(i) for s in range(200) for i in link._contrast(ids, torch.Generator().manual_seed(s))[:1, 0]}
    assert drawn == set(torch.nonzero(LABELS == 0).flatten().tolist())


def test_negatives_are_clipped_to_the_fewest_others() -> None:
    assert make(negatives=16384).sampler.negatives == 12  # the largest class has 8 of 20
    assert make(negatives=3).sampler.negatives == 3
    assert CRD().negatives == 16384


def test_drawing_is_fast() -> None:
    sampler = ContrastSampler(torch.arange(1500) % 10, 10, 1024)
    labels, generator, best = torch.arange(64) % 10, torch.Generator().manual_seed(0), math.inf
    for _ in range(20):
        start = time.perf_counter()
        sampler.draw_negatives(labels, generator)
        best = min(best, time.perf_counter() - start)
    assert best < 0.01  # about 0.001 on one core; a loop over samples takes 0.06


# --- bad input, precision, the engine ---


def test_one_class_or_bad_labels_are_refused() -> None:
    with pytest.raises(ConfigError, match="all 5 training samples are of class 1, so there are no negatives"):
        make(labels=torch.ones(5, dtype=torch.int64), classes=2)
    for labels in (torch.tensor([0, 3]), torch.tensor([-1, 0]), torch.tensor([], dtype=torch.int64)):
        with pytest.raises(ConfigError, match=r"labels are not \(N,\) classes in \[0, 3\)"):
            make(labels=labels, classes=3)


def test_ids_must_be_there_and_in_range() -> None:
    link = make()
    for ids in ([0, 1, 20], [0, -1, 2]):
        batch = step([0, 1, 2])
        batch.ids = torch.tensor(ids)
        with pytest.raises(ConfigError, match="do not name 3 of the 20 training samples"):
            link(batch)
    batch.ids = None
    with pytest.raises(ConfigError, match="needs sample ids"):
        link(batch)


def test_step_before_prepare_is_refused() -> None:
    link = CRD()
    link.connect([(2, D_T)], [(2, D_S)])
    with pytest.raises(ConfigError, match=r"call prepare\(data\)"):
        link(step([0, 1]))


@pytest.mark.parametrize(
    ("teacher", "student"), [([(2, 4, 8, 8)], [(2, 4)]), ([(2, 4)], [(3, 4)]), ([(2, 4)] * 2, [(2, 4)] * 2)]
)
def test_taps_that_do_not_fit_are_named(teacher: list, student: list) -> None:
    link = CRD(taps=[("a", "b")] * len(teacher))
    with pytest.raises(ShapeMismatch, match="one pooled feature a side"):
        link.connect(teacher, student)


@pytest.mark.parametrize("options", [{"negatives": 0}, {"dim": 0}, {"momentum": 1.0}, {"temperature": 0.0}])
def test_options_out_of_range_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError, match="CRD needs"):
        CRD(**options)


@pytest.mark.parametrize("dtype", common.HALVES)
def test_half_precision_taps_are_computed_in_float32(dtype: torch.dtype) -> None:
    full, half = make(), make()
    batch = step([0, 1, 2, 3])
    rounded = LinkInputs(student=[batch.student[0].to(dtype)], teacher=[batch.teacher[0].to(dtype)], ids=batch.ids)
    back = LinkInputs(student=[rounded.student[0].float()], teacher=[rounded.teacher[0].float()], ids=batch.ids)
    with torch.autocast("cpu", dtype=dtype):
        found = half(rounded)["nce"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, full(back)["nce"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(half.memory_student, full.memory_student, rtol=1e-5, atol=1e-6)


def test_registry_builds_it_and_refuses_typos() -> None:
    common.check_registered("CRD", CRD, weight=0.8, typo="negative", meant="negatives", negatives=256)
    with pytest.raises(UnknownName, match="unknown mode 'exakt' of CRD; did you mean 'exact'"):
        CRD(mode="exakt")
    assert (CRD().taps, CRD().temperature, CRD().dim) == ([("global_pool", "global_pool")], 0.07, 128)


def test_distiller_trains_it_and_keeps_the_banks_out_of_the_student() -> None:
    net = dict(type="CIFARResNet", depth=8, in_chans=1, num_classes=3, input_size=(1, 8, 8))
    members = {
        "teacher": dict(type="frozen", model={**net, "width": 4}, initial_weights=True),
        "student": dict(type="trained", model={**net, "width": 2}),
    }
    model = Distiller(members=members, links=[dict(type="CRD", negatives=6)], adapter=dict(type="VisionAdapter"))
    link = model.links[0]
    assert isinstance(link, CRD)
    link.prepare(training_set())
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    ids, losses = torch.arange(8), []
    images = common.randn(8, 1, 8, 8)
    for _ in range(30):
        terms = model.loss(Batch(images, targets=LABELS[:8], ids=ids))
        losses.append(terms["crd.loss_nce"].item())
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
        model.iteration += 1
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert not any("memory" in key or "embed" in key for key in model.deploy.state_dict())
    assert {"links.0.memory_student", "links.0.z_teacher"} <= set(model.state_dict())
