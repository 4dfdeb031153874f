"""CIRKD against loops over pairs and anchors in float64, its queues through steps, processes and an exact resume."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.engine.adapter import Batch
from limbeck.engine.distiller import Distiller
from limbeck.engine.losses import IGNORE
from limbeck.engine.method import LinkInputs
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch, UnknownName
from limbeck.segmentation.methods import cirkd
from limbeck.segmentation.methods.cirkd import CIRKD, batch_relation_loss, memory_relation_loss, pool_positions
from tests.segmentation.methods.test_cwd import CLASSES, Adapter, Net

TAPS = [["a", "b"]]
C_S, C_T, K, SIZE = 3, 5, 4, (3, 4)
LABELS = torch.tensor([[0, 0, 3, 3], [0, 0, 3, IGNORE], [0, 3, 3, IGNORE]])
Loss = Callable[[Tensor, Tensor], Tensor]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def array(x: Tensor) -> np.ndarray:
    return x.detach().double().numpy().copy()


def softmax(row: np.ndarray) -> np.ndarray:
    powers = np.exp(row - row.max())
    return powers / powers.sum()


def divergence(teacher: np.ndarray, student: np.ndarray) -> float:
    """KL of two rows of logits."""
    p, q = softmax(teacher), softmax(student)
    return float((p * (np.log(p) - np.log(q))).sum())


def unit_rows(x: np.ndarray) -> np.ndarray:
    """Maps (B, C, h, w) as vectors (B, h · w, C) of length 1."""
    rows = x.reshape(*x.shape[:2], -1).transpose(0, 2, 1)
    return rows / np.linalg.norm(rows, axis=2, keepdims=True)


def naive_batch(
    student: np.ndarray, teacher: np.ndarray, temperature: float = 0.1, anchors: list[int] | None = None
) -> float:
    s, t = unit_rows(student), unit_rows(teacher)
    images, positions, _ = s.shape
    found = []
    for row in range(images * positions) if anchors is None else anchors:
        i, p = divmod(row, positions)
        for j in range(images):
            of_teacher = np.array([t[i, p] @ t[j, q] for q in range(positions)])
            of_student = np.array([s[i, p] @ s[j, q] for q in range(positions)])
            found.append(divergence(of_teacher / temperature, of_student / temperature))
    return sum(found) / len(found)


def naive_memory(student: np.ndarray, teacher: np.ndarray, memory: np.ndarray, temperature: float = 0.1) -> float:
    found = []
    for s, t in zip(student, teacher):
        s, t = (x / max(np.linalg.norm(x), 1e-12) for x in (s, t))  # the projector may give exact zeros
        of_teacher, of_student = (np.array([x @ v for v in memory]) for x in (t, s))
        found.append(divergence(of_teacher / temperature, of_student / temperature))
    return sum(found) / len(found)


def check_gradient(found: Tensor, reference: Callable[[np.ndarray], float], student: Tensor) -> None:
    """By central differences of a float64 reference."""
    x, slope = array(student), np.zeros(student.shape)
    for i in np.ndindex(*x.shape):
        plus, minus = x.copy(), x.copy()
        plus[i] += 1e-5
        minus[i] -= 1e-5
        slope[i] = (reference(plus) - reference(minus)) / 2e-5
    np.testing.assert_allclose(found.double().numpy(), slope, rtol=1e-3, atol=1e-4 * np.abs(slope).max())


def check_loss(
    loss: Loss, reference: Callable[[np.ndarray, np.ndarray], float], student: Tensor, teacher: Tensor
) -> None:
    """Value and gradient by the reference, none to the teacher, half-precision input as float32 of the same numbers."""
    expected = reference(array(student), array(teacher))
    assert expected > 0
    student, teacher = student.clone().requires_grad_(), teacher.clone().requires_grad_()
    value = loss(student, teacher)
    assert value.item() == pytest.approx(expected, rel=1e-4)
    (3.0 * value).backward()
    assert student.grad is not None
    assert teacher.grad is None
    check_gradient(student.grad / 3.0, lambda x: reference(x, array(teacher)), student)
    for dtype in (torch.bfloat16, torch.float16):
        s, t = student.detach().to(dtype), teacher.detach().to(dtype)
        full = loss(s.float(), t.float())
        with torch.autocast("cpu", dtype=dtype):
            half = loss(s, t)
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, full, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(loss(s, t), full, rtol=1e-5, atol=1e-7)


def make(seed: int = 0, **options: Any) -> CIRKD:
    torch.manual_seed(seed)
    sizes = dict(pixel_queue=12, region_queue=6, pixel_contrast=16, region_contrast=8, pixels_per_class=2)
    link = CIRKD(**{"taps": TAPS, "classes": K, **sizes, **options})
    link.connect([(2, C_T, *SIZE)], [(2, C_S, *SIZE)])
    return link


def step(seed: int = 0, labels: Tensor | None = None, images: int = 2) -> LinkInputs:
    if labels is None:
        labels = torch.stack([torch.roll(LABELS, b, 0).masked_fill(LABELS == 3, b % K) for b in range(images)])
    student = randn(len(labels), C_S, *SIZE, seed=seed).requires_grad_()
    teacher = randn(len(labels), C_T, *SIZE, seed=seed + 100)
    return LinkInputs(student=[student], teacher=[teacher], targets=labels, draw=seed)


# --- mini-batch pixel-to-pixel ---


def test_batch_term_matches_loops_over_pairs() -> None:
    check_loss(batch_relation_loss, naive_batch, randn(3, C_S, 2, 2), randn(3, C_T, 2, 2, seed=1))


def test_batch_term_of_some_rows_matches_loops_over_them() -> None:
    rows = [17, 3, 4]
    check_loss(
        lambda s, t: batch_relation_loss(s, t, anchors=torch.tensor(rows)),
        lambda s, t: naive_batch(s, t, anchors=rows),
        randn(3, C_S, 2, 3),
        randn(3, C_T, 2, 3, seed=1),
    )


def test_sampled_rows_have_the_mean_of_all() -> None:
    student, teacher = randn(2, C_S, 3, 4), randn(2, C_T, 3, 4, seed=1)
    parts = [batch_relation_loss(student, teacher, anchors=rows) for rows in torch.randperm(24).chunk(4)]
    torch.testing.assert_close(torch.stack(parts).mean(), batch_relation_loss(student, teacher))


def test_blocks_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, teacher = randn(2, C_S, 3, 4).requires_grad_(), randn(2, C_T, 3, 4, seed=1)
    loss = batch_relation_loss(x, teacher)
    slope = torch.autograd.grad(loss, x)[0]
    for block in (1, 36, 12 * 24):  # one row, three, and all at a time
        monkeypatch.setattr(cirkd, "BLOCK", block)
        again = batch_relation_loss(x, teacher)
        torch.testing.assert_close(again, loss)
        torch.testing.assert_close(torch.autograd.grad(again, x)[0], slope)


@pytest.mark.parametrize("temperature", [0.02, 1.0])
def test_batch_term_at_other_temperatures(temperature: float) -> None:
    student, teacher = randn(2, C_S, 2, 3), randn(2, C_T, 2, 3, seed=1)
    expected = naive_batch(array(student), array(teacher), temperature)
    found = batch_relation_loss(student, teacher, temperature=temperature)
    assert found.item() == pytest.approx(expected, rel=1e-3)


def test_batch_term_is_zero_for_equal_maps_of_any_width() -> None:
    x = randn(3, C_S, 4, 5).requires_grad_()
    assert batch_relation_loss(x, x.detach()).item() == 0.0
    wider = torch.cat([x.detach(), torch.zeros(3, 2, 4, 5)], dim=1)  # the same similarities
    loss = batch_relation_loss(x, wider)
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert torch.autograd.grad(loss, x)[0].abs().max() < 1e-6


def test_batch_term_sees_directions_alone_and_no_order() -> None:
    student, teacher = randn(4, C_S, 3, 4), randn(4, C_T, 3, 4, seed=1)
    expected = batch_relation_loss(student, teacher)
    rotation = torch.linalg.qr(randn(C_S, C_S, seed=2))[0]
    images, positions = torch.tensor([2, 0, 3, 1]), torch.randperm(12, generator=torch.Generator().manual_seed(0))
    moved = [x.flatten(2)[:, :, positions].reshape(x.shape) for x in (student, teacher)]
    for s, t in (
        (torch.einsum("dc,bchw->bdhw", rotation, student), teacher),
        (student * randn(4, 1, 3, 4, seed=3).exp(), teacher * randn(4, 1, 3, 4, seed=4).exp()),
        (student[images], teacher[images]),
        (moved[0], moved[1]),
    ):
        torch.testing.assert_close(batch_relation_loss(s, t), expected, rtol=1e-4, atol=1e-6)
    assert not torch.isclose(batch_relation_loss(student[images], teacher), expected, rtol=1e-2)


def test_batch_term_refuses_maps_of_other_sizes() -> None:
    for teacher, student in (((2, 3, 4, 4), (2, 3, 4, 5)), ((2, 3, 4, 4), (3, 3, 4, 4)), ((2, 3), (2, 3))):
        with pytest.raises(ShapeMismatch, match=r"do not fit; maps \(B, C, h, w\) of one batch and one size"):
            batch_relation_loss(torch.ones(student), torch.ones(teacher))


def test_pooling_takes_the_least_factor_and_averages_what_is_inside() -> None:
    assert pool_positions(torch.ones(1, 1, 45, 60), 1024).shape == (1, 1, 23, 30)
    assert pool_positions(torch.ones(1, 1, 45, 60), 690).shape == (1, 1, 23, 30)
    assert pool_positions(torch.ones(1, 1, 45, 60), 689).shape == (1, 1, 15, 20)
    assert pool_positions(torch.ones(1, 1, 3, 50), 1).shape == (1, 1, 1, 1)
    x = randn(2, 3, 3, 5)
    assert pool_positions(x, None) is x
    assert pool_positions(x, 15) is x
    pooled = pool_positions(x, 6)
    assert pooled.shape == (2, 3, 2, 3)
    torch.testing.assert_close(pooled[:, :, 0, 1], x[:, :, 0:2, 2:4].mean((2, 3)))
    torch.testing.assert_close(pooled[:, :, 1, 2], x[:, :, 2, 4])


# --- memory terms ---


def test_memory_term_matches_loops_over_anchors() -> None:
    memory = F.normalize(randn(11, C_T, seed=2), dim=1)
    check_loss(
        lambda s, t: memory_relation_loss(s, t, memory),
        lambda s, t: naive_memory(s, t, array(memory)),
        randn(6, C_T),
        randn(6, C_T, seed=1),
    )


def test_memory_term_is_zero_for_equal_anchors_and_sends_nothing_to_the_memory() -> None:
    memory = F.normalize(randn(11, C_T, seed=2), dim=1).requires_grad_()
    x = randn(6, C_T).requires_grad_()
    assert memory_relation_loss(x, 2.0 * x.detach(), memory).item() == pytest.approx(0.0, abs=1e-6)
    memory_relation_loss(x, randn(6, C_T, seed=1), memory).backward()
    assert memory.grad is None


def test_memory_term_without_anchors_is_a_zero_with_a_graph() -> None:
    x = randn(6, C_T).requires_grad_()
    loss = memory_relation_loss(x[:0], torch.ones(0, C_T), randn(11, C_T))
    loss.backward()
    assert loss.item() == 0.0
    assert x.grad is not None
    assert torch.equal(x.grad, torch.zeros(6, C_T))


def test_memory_term_refuses_other_widths() -> None:
    for student, teacher, memory in (((6, 4), (6, 5), (9, 5)), ((6, 5), (7, 5), (9, 5)), ((6, 5), (6, 5), (9, 4))):
        with pytest.raises(ShapeMismatch, match=r"\(A, C\), \(A, C\) and \(M, C\) would"):
            memory_relation_loss(torch.ones(student), torch.ones(teacher), torch.ones(memory))


# --- a step ---


def naive_step(link: CIRKD, batch: LinkInputs, student: np.ndarray) -> dict[str, float]:
    """The terms of one step whose keys are already in the queues; the draws are replayed."""
    teacher, labels = array(batch.teacher[0]), batch.targets.flatten().numpy()
    generator = batch.generator()
    torch.randperm(labels.size, generator=generator)  # of `pixel_entries`
    sets = []
    for memory, size in ((link.pixels, link.pixel_contrast), (link.regions, link.region_contrast)):
        rows = array(memory.rows)
        slots = torch.randperm(rows.shape[1], generator=generator)[: size // K + 1].numpy()
        sets.append(np.array([rows[k, slot] for k in range(K) for slot in slots]))
    anchors = np.array([p for p, label in enumerate(labels) if label != IGNORE])
    if link.max_anchors is not None and len(anchors) > link.max_anchors:
        anchors = anchors[torch.randperm(len(anchors), generator=generator).numpy()[: link.max_anchors]]
    first, second = (array(link.projector[i].weight) for i in (0, 3))
    hidden = np.einsum("dc,bchw->bdhw", first, student)
    spread = hidden.var(axis=(0, 2, 3), keepdims=True)
    hidden = (hidden - hidden.mean(axis=(0, 2, 3), keepdims=True)) / np.sqrt(spread + 1e-5)
    s = np.einsum("dc,bchw->bdhw", second, hidden.clip(0)).transpose(0, 2, 3, 1).reshape(-1, C_T)[anchors]
    t = teacher.transpose(0, 2, 3, 1).reshape(-1, C_T)[anchors]
    names = ("memory_pixel", "memory_region")
    found = {name: 0.1 * naive_memory(s, t, memory) for name, memory in zip(names, sets)}
    rows = None
    if link.max_anchors is not None:
        rows = torch.randperm(labels.size, generator=generator)[: link.max_anchors].tolist()
    return {**found, "batch": naive_batch(student, teacher, anchors=rows)}


@pytest.mark.parametrize("max_anchors", [None, 7])
def test_two_steps_match_the_naive_reference(max_anchors: int | None) -> None:
    link = make(max_anchors=max_anchors)
    for seed in (1, 2):
        batch = step(seed)
        terms = link(batch)
        student = batch.student[0]
        expected = naive_step(link, batch, array(student))  # the queues hold this step's keys, as the loss saw them
        assert set(terms) == set(expected)
        for name, value in expected.items():
            assert value > 0
            assert terms[name].item() == pytest.approx(value, rel=1e-4)
    for name in terms:
        found = torch.autograd.grad(terms[name], student, retain_graph=True)[0]
        check_gradient(found, lambda x, name=name: naive_step(link, batch, x)[name], student)


def test_labels_come_to_the_map_by_nearest() -> None:
    batch, large = step(1), step(1)
    large.targets = batch.targets.repeat_interleave(4, 1).repeat_interleave(4, 2)
    a, b = make(), make()
    small, same = a(batch), b(large)
    assert all(torch.equal(same[name], value) for name, value in small.items())
    assert b.pixels.pointer.tolist() == a.pixels.pointer.tolist()
    assert torch.equal(b.pixels.rows, a.pixels.rows)


def test_maps_of_the_batch_term_are_pooled_and_of_no_other() -> None:
    batch = step()
    student, teacher = batch.student[0], batch.teacher[0]
    whole, pooled = make()(batch), make(max_positions=4)(batch)
    expected = naive_batch(
        array(F.avg_pool2d(student, 2, ceil_mode=True)), array(F.avg_pool2d(teacher, 2, ceil_mode=True))
    )
    assert pooled["batch"].item() == pytest.approx(expected, rel=1e-4)
    assert torch.equal(whole["memory_pixel"], pooled["memory_pixel"])


def test_terms_have_their_own_weights_and_zero_leaves_one_out() -> None:
    whole = make()(step())
    changed = make(batch_weight=2.0, pixel_weight=0.01, region_weight=0.3)(step())
    for name, factor in (("batch", 2.0), ("memory_pixel", 0.1), ("memory_region", 3.0)):
        torch.testing.assert_close(changed[name], factor * whole[name])
    assert set(make(pixel_weight=0.0)(step())) == {"batch", "memory_region"}
    assert set(make(batch_weight=0.0)(step())) == {"memory_pixel", "memory_region"}
    alone = make(pixel_weight=0.0, region_weight=0.0, classes=None)
    assert set(alone(step())) == {"batch"}
    assert not alone.state_dict()


def test_gradient_reaches_student_and_projector_and_neither_teacher_nor_queues() -> None:
    for name in ("batch", "memory_pixel", "memory_region"):
        link, batch = make(), step()
        batch.teacher[0].requires_grad_()
        link(batch)[name].backward()
        grads = [batch.student[0].grad] + [p.grad for p in link.projector.parameters() if name != "batch"]
        assert len(grads) == (1 if name == "batch" else 5)
        assert all(g is not None and g.abs().max() > 0 for g in grads)
        assert batch.teacher[0].grad is None
        assert not any(b.requires_grad for b in link.buffers())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_maps_are_computed_in_float32(dtype: torch.dtype) -> None:
    full, half, batch = make(), make(), step()
    student, teacher = batch.student[0].detach().to(dtype), batch.teacher[0].to(dtype)
    expected = full(LinkInputs(student=[student.float()], teacher=[teacher.float()], targets=batch.targets))
    with torch.autocast("cpu", dtype=dtype):
        found = half(LinkInputs(student=[student], teacher=[teacher], targets=batch.targets))
    for name, value in expected.items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
    assert torch.equal(half.pixels.rows, full.pixels.rows)


# --- queues ---


def test_a_step_writes_the_classes_it_has_and_no_others() -> None:
    link, batch = make(), step(labels=LABELS[None])  # classes 0 and 3, five positions each, and two ignored
    before = link.pixels.rows.clone(), link.regions.rows.clone()
    link(batch)
    assert link.regions.pointer.tolist() == [1, 0, 0, 1]
    assert link.pixels.pointer.tolist() == [2, 0, 0, 2]
    for memory, old in zip((link.pixels, link.regions), before):
        assert torch.equal(memory.rows[1:3], old[1:3])
        torch.testing.assert_close(memory.rows.norm(dim=2), torch.ones(memory.rows.shape[:2]))
    keys = unit_rows(array(batch.teacher[0]))[0]
    for k in (0, 3):
        own = keys[LABELS.flatten().numpy() == k]
        assert len(own) == 5
        mean = own.mean(axis=0) / np.linalg.norm(own.mean(axis=0))
        np.testing.assert_allclose(link.regions.rows[k, 0].numpy(), mean, rtol=1e-4, atol=1e-6)
        for row in link.pixels.rows[k, :2].double().numpy():
            assert np.abs(own - row).max(axis=1).min() < 1e-6


def test_official_sampling_is_an_option_that_changes_the_pixel_queue_alone() -> None:
    links = make(), make(pixel_sampling="code")
    batch = step(labels=LABELS.flip(0)[None])
    for link in links:
        link(batch)
    assert torch.equal(links[0].regions.rows, links[1].regions.rows)
    keys = torch.from_numpy(unit_rows(array(batch.teacher[0]))[0]).float()
    for row in links[1].pixels.rows[3, :2]:  # 5 positions of class 3, so one of the image's first five
        assert (keys[:5] - row).abs().amax(dim=1).min() < 1e-6
    assert links[1].pixels.pointer.tolist() == links[0].pixels.pointer.tolist()


def test_a_batch_of_ignored_pixels_gives_zeros_with_a_graph_and_leaves_the_queues() -> None:
    link, batch = make(), step(labels=torch.full((2, *SIZE), IGNORE))
    before = {k: v.clone() for k, v in link.state_dict().items() if "projector" not in k}
    terms = link(batch)
    assert terms["memory_pixel"].item() == terms["memory_region"].item() == 0.0
    assert terms["batch"].item() > 0
    (terms["memory_pixel"] + terms["memory_region"]).backward()
    assert batch.student[0].grad is not None
    assert torch.equal(batch.student[0].grad, torch.zeros(2, C_S, *SIZE))
    assert all(torch.equal(v, link.state_dict()[k]) for k, v in before.items())


def test_resumed_link_goes_on_bit_for_bit() -> None:
    def train(link: CIRKD, seeds: range) -> list[float]:
        optimizer, losses = torch.optim.SGD(link.parameters(), lr=0.1), []
        for seed in seeds:
            loss = torch.stack(list(link(step(seed)).values())).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    whole, stopped, resumed = make(max_anchors=9), make(max_anchors=9), make(seed=5, max_anchors=9)
    losses = train(whole, range(8))
    train(stopped, range(3))
    resumed.load_state_dict(stopped.state_dict())
    assert train(resumed, range(3, 8)) == losses[3:]
    assert all(torch.equal(v, resumed.state_dict()[k]) for k, v in whole.state_dict().items())
    assert {"pixels.rows", "pixels.pointer", "regions.rows", "regions.pointer"} <= set(whole.state_dict())
    assert whole.pixels.pointer.tolist() != [0] * K


def test_another_step_draws_other_pixels_slots_and_anchors() -> None:
    batch, other = step(1), step(1)
    other.draw = 2
    a, b, again = make(max_anchors=9), make(max_anchors=9), make(max_anchors=9)
    first, second = a(batch), b(other)
    assert not torch.equal(a.pixels.rows, b.pixels.rows)
    assert torch.equal(a.regions.rows, b.regions.rows)
    assert first["memory_region"] != second["memory_region"]
    assert torch.equal(again(batch)["memory_pixel"], first["memory_pixel"])


def test_processes_share_what_they_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks with half a batch each hold, bit for bit, the queues of one process with the whole batch."""
    whole, one = step(3, images=4), make()
    one(whole)
    halves = [
        LinkInputs([whole.teacher[0][r]], [whole.student[0][r]], targets=whole.targets[r], draw=whole.draw)
        for r in (slice(0, 2), slice(2, 4))
    ]
    keys = F.normalize(whole.teacher[0].flatten(2).transpose(1, 2).contiguous(), dim=2)
    for half in halves:

        def gathered(x: Tensor) -> list[Tensor]:
            parts = keys if x.is_floating_point() else whole.targets.flatten(1)
            assert x.is_contiguous()
            assert any(torch.equal(x, part) for part in parts.chunk(2))
            return list(parts.chunk(2))

        monkeypatch.setattr(cirkd, "all_gather", gathered)
        rank = make()
        rank(half)
        for name in ("pixels.rows", "pixels.pointer", "regions.rows", "regions.pointer"):
            assert torch.equal(rank.state_dict()[name], one.state_dict()[name])


# --- options and bad input ---


def test_defaults_are_the_official_weights_and_sizes() -> None:
    link = METHODS.make({"type": "CIRKD", "taps": TAPS, "classes": 11})
    assert type(link) is CIRKD
    assert (link.weight, link.batch_weight, link.pixel_weight, link.region_weight) == (1.0, 1.0, 0.1, 0.1)
    assert (link.temperature, link.pixel_queue, link.region_queue, link.pixels_per_class) == (0.1, 20000, 2000, 16)
    assert (link.pixel_contrast, link.region_contrast) == (4096, 1024)
    with pytest.raises(UnknownName, match=r"'pixel_que'.*did you mean.*'pixel_queue'"):
        METHODS.make({"type": "CIRKD", "pixel_que": 5})


@pytest.mark.parametrize("taps", [None, [], [["a", "b"], ["c", "d"]]])
def test_taps_must_be_one_pair(taps: Any) -> None:
    with pytest.raises(ConfigError, match=r"CIRKD needs one pair of taps.*sep_bottleneck"):
        CIRKD(taps=taps, classes=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": None}, "needs classes, the number in the label maps"),
        ({"classes": 1}, "2 or more; got 1"),
        ({"temperature": 0.01}, "temperature >= 0.02; got 0.01"),
        ({"max_positions": 0}, "max_positions >= 1; got 0"),
        ({"pixel_queue": 0}, "pixel_queue >= 1; got 0"),
        ({"region_contrast": -1}, "region_contrast >= 1; got -1"),
        ({"pixel_weight": -0.1}, "weights >= 0, not all of them 0"),
        ({"batch_weight": 0, "pixel_weight": 0, "region_weight": 0}, "weights >= 0, not all of them 0"),
        ({"pixel_sampling": "clas"}, "unknown pixel_sampling 'clas' of CIRKD; did you mean 'class'"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CIRKD(**{"taps": TAPS, "classes": 4, **options})


def test_maps_that_do_not_fit_are_refused_before_the_first_step() -> None:
    for teacher, student in (((2, 5, 3, 4), (2, 3, 6, 8)), ((2, 5, 3, 4), (2, 12, 3))):
        with pytest.raises(ShapeMismatch, match="tap layers of the same stride"):
            CIRKD(taps=TAPS, classes=4).connect([teacher], [student])


def test_labels_must_be_maps_of_known_classes() -> None:
    with pytest.raises(ConfigError, match="label 4 is not in 0 to 3, nor 255; set classes"):
        make()(step(labels=LABELS[None].masked_fill(LABELS == 3, 4)))
    for labels in (torch.zeros(2, dtype=torch.int64), torch.zeros(2, *SIZE), torch.zeros(3, *SIZE, dtype=torch.int64)):
        batch = step()
        batch.targets = labels
        with pytest.raises(ShapeMismatch, match=r"integers \(B, H, W\) with a map"):
            make()(batch)


# --- the engine ---


def test_distiller_trains_it_and_keeps_the_queues_out_of_the_student() -> None:
    torch.manual_seed(0)
    link = dict(type="CIRKD", taps=[["features", "features"]], classes=CLASSES, pixel_queue=50, region_queue=20)
    model = Distiller(
        members={
            "teacher": dict(type="frozen", model=Net(6), initial_weights=True),
            "student": dict(type="trained", model=Net(4)),
        },
        links=[link],
        adapter=Adapter(),
    )
    model.train()
    images, labels = randn(4, 3, 8, 8), torch.randint(0, CLASSES, (4, 8, 8), generator=torch.Generator().manual_seed(1))
    labels[:, :2] = IGNORE
    optimizer, history = torch.optim.Adam(model.parameters(), lr=0.02), []
    for _ in range(25):
        terms = model.loss(Batch(images, labels))
        history.append({name: value.item() for name, value in terms.items()})
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
        model.iteration += 1
    for name in ("batch", "memory_pixel", "memory_region"):
        assert history[-1][f"cirkd.loss_{name}"] < 0.7 * history[0][f"cirkd.loss_{name}"]
    assert {"links.0.pixels.rows", "links.0.regions.pointer"} <= set(model.state_dict())
    assert not any("pixels" in key or "projector" in key for key in model.deploy.state_dict())
