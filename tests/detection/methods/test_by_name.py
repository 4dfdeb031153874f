"""Methods of other packages on detectors, by name: FitNet and CWD on a pyramid, DIST on sigmoids; steps of a run."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck.engine.distiller import Distiller
from limbeck.engine.method import LinkInputs, Method
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch, UnknownName
from limbeck.vision.methods.dist import dist_loss
from tests.vision.methods import conftest as common

PYRAMID = [(2, 6, 4, 5), (2, 6, 2, 3), (2, 6, 1, 2)]
LOGITS = [(2, 4, 4, 5), (2, 4, 2, 3), (2, 4, 1, 2)]  # A · K = 4


def make(
    name: str, shapes: list[tuple[int, ...]], tap: str, student_width: int | None = None, **options: Any
) -> Method:
    """A link on every level of a tap, such as 'neck[0]', 'neck[1]', …"""
    taps = [[f"{tap}[{i}]", f"{tap}[{i}]"] for i in range(len(shapes))]
    torch.manual_seed(0)
    link = METHODS.make({"type": name, "taps": taps, **options})
    link.connect(shapes, [(s[0], student_width or s[1], *s[2:]) for s in shapes])
    return link


def inputs(shapes: list[tuple[int, ...]], student_width: int | None = None, scale: float = 1.0) -> LinkInputs:
    return LinkInputs(
        student=[
            common.randn(s[0], student_width or s[1], *s[2:], seed=i, scale=scale).requires_grad_()
            for i, s in enumerate(shapes)
        ],
        teacher=[common.randn(*s, seed=20 + i, scale=scale).requires_grad_() for i, s in enumerate(shapes)],
    )


def check_gradients(link: Method, batch: LinkInputs) -> None:
    """Into every level of the student and every parameter of the link, and none into the teacher."""
    torch.stack(list(link(batch).values())).sum().backward()
    assert all(x.grad is not None and x.grad.abs().max() > 0 for x in batch.student)
    assert all(p.grad is not None for p in link.parameters())
    assert all(x.grad is None for x in batch.teacher)


def pairs(batch: LinkInputs) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(common.array(s), common.array(t)) for s, t in zip(batch.student, batch.teacher)]


# --- FitNet ---


def regressed(bridge: Any, x: np.ndarray) -> np.ndarray:
    """1×1 convolution with a bias, in float64, and nothing after it: maps of a pyramid have both signs."""
    (conv,) = bridge
    weight, bias = common.array(conv.weight)[:, :, 0, 0], common.array(conv.bias)
    return np.einsum("oc,bchw->bohw", weight, x) + bias[:, None, None]


@pytest.mark.parametrize("student_width", [6, 5])
def test_fitnet_adds_the_mean_squared_error_of_every_level(student_width: int) -> None:
    link = make("FitNet", PYRAMID, "neck", student_width, bridge=dict(norm_act=False))
    batch = inputs(PYRAMID, student_width)
    found = link(batch)
    bridges = cast(Any, link.bridges)
    assert [tuple(b[0].weight.shape) for b in bridges] == [(6, student_width, 1, 1)] * 3
    expected = sum(((regressed(b, s) - t) ** 2).mean() for b, (s, t) in zip(bridges, pairs(batch)))
    assert {n: v.item() for n, v in found.items()} == {"hint": pytest.approx(float(expected), rel=1e-4)}
    check_gradients(link, batch)


# --- CWD ---


def naive_cwd(student: np.ndarray, teacher: np.ndarray) -> float:
    total = 0.0
    for b, c in np.ndindex(*student.shape[:2]):
        q, p = common.softmax(student[b, c].ravel()), common.softmax(teacher[b, c].ravel())
        total += sum(x * (math.log(x) - math.log(y)) for x, y in zip(p, q))
    return total / (student.shape[0] * student.shape[1])


@pytest.mark.parametrize(("tap", "shapes"), [("neck", PYRAMID), ("cls_logits", LOGITS)])
def test_cwd_adds_the_divergence_of_channels_of_every_level(tap: str, shapes: list[tuple[int, ...]]) -> None:
    link, batch = make("CWD", shapes, tap, temperature=1.0, weight=10.0), inputs(shapes, scale=2.0)
    expected = sum(naive_cwd(s, t) for s, t in pairs(batch))
    assert link.factor(0.5) == 10.0
    assert link(batch)["channel"].item() == pytest.approx(expected, rel=1e-4)
    assert not list(link.parameters())
    check_gradients(link, batch)


# --- DIST ---


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (math.sqrt((a * a).sum() * (b * b).sum()) + 1e-8))


def naive_dist(student: np.ndarray, teacher: np.ndarray, temperature: float = 1.0) -> tuple[float, float]:
    """Rows are positions of the batch, columns all outputs of a cell; of sigmoids."""
    rows = [np.moveaxis(1 / (1 + np.exp(-z / temperature)), 1, -1).reshape(-1, z.shape[1]) for z in (student, teacher)]
    inter = np.mean([1 - correlation(a, b) for a, b in zip(*rows)])
    intra = np.mean([1 - correlation(a, b) for a, b in zip(rows[0].T, rows[1].T)])
    return temperature**2 * float(inter), temperature**2 * float(intra)


def sigmoid_dist(**options: Any) -> Method:
    return make("DIST", LOGITS, "cls_logits", **{"activation": "sigmoid", "temperature": 1.0, "weight": 1.0, **options})


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_dist_adds_both_relations_of_sigmoids_of_every_level(temperature: float) -> None:
    link, batch = sigmoid_dist(temperature=temperature), inputs(LOGITS, scale=2.0)
    levels = [naive_dist(s, t, temperature) for s, t in pairs(batch)]
    expected = dict(zip(("inter", "intra"), (sum(parts) for parts in zip(*levels))))
    assert {n: v.item() for n, v in link(batch).items()} == {n: pytest.approx(v, rel=1e-4) for n, v in expected.items()}
    check_gradients(link, batch)


def test_dist_of_sigmoids_is_not_that_of_the_softmax_and_equal_logits_cost_nothing() -> None:
    batch = inputs(LOGITS, scale=2.0)
    found, softmax = sigmoid_dist()(batch), sigmoid_dist(activation="softmax")(batch)
    assert all(not torch.isclose(found[name], softmax[name], rtol=1e-3) for name in found)
    batch.teacher = [x.detach().clone() for x in batch.student]
    assert all(abs(value.item()) < 1e-4 for value in sigmoid_dist()(batch).values())


def test_dist_of_sigmoids_sees_a_constant_on_all_classes() -> None:
    # The soft-max does not: it is what says whether there is an object at all.
    batch = inputs(LOGITS, scale=2.0)
    moved = LinkInputs(student=[x + 2.0 for x in batch.student], teacher=batch.teacher)
    for activation, sees in (("sigmoid", True), ("softmax", False)):
        link = sigmoid_dist(activation=activation)
        assert torch.isclose(link(moved)["inter"], link(batch)["inter"], rtol=1e-4).item() is not sees


def test_dist_with_constant_rows_is_finite_and_the_teachers_have_no_gradient() -> None:
    batch = inputs(LOGITS[:1], scale=2.0)
    student, teacher = batch.student[0].detach().clone(), batch.teacher[0].detach().clone()
    student[1, :, 2, 3], teacher[0, :, 1, 2] = 0.3, -4.0
    batch.student, batch.teacher = [student.requires_grad_()], [teacher]
    link = make("DIST", LOGITS[:1], "cls_logits", activation="sigmoid", temperature=1.0, gamma=0.0)
    found = link(batch)["inter"]
    assert found.isfinite()
    found.backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert not student.grad[0, :, 1, 2].any()
    assert student.grad[0, :, 0, 0].any()


@pytest.mark.parametrize("dtype", common.HALVES)
def test_dist_of_sigmoids_is_computed_in_float32(dtype: torch.dtype) -> None:
    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        return dist_loss(student, teacher, temperature=1.0, activation="sigmoid")

    pair = common.randn(2, 4, 3, 3, scale=2), common.randn(2, 4, 3, 3, seed=1, scale=2)
    common.check_half(loss, *pair, dtype)
    common.check_one_sided(loss, *pair)


def test_dist_refuses_other_activations_and_standardised_sigmoids() -> None:
    with pytest.raises(UnknownName, match="'tanh'"):
        METHODS.make({"type": "DIST", "activation": "tanh"})
    with pytest.raises(ConfigError, match="standardise"):
        METHODS.make({"type": "DIST", "activation": "sigmoid", "standardise": True})
    with pytest.raises(ShapeMismatch, match="DIST"):
        sigmoid_dist().connect([(2, 4, 4, 5)], [(2, 6, 4, 5)])


# --- steps of a run ---

HEIGHT, WIDTH = 64, 96
LEVELS = 4


def level_taps(*names: str, levels: int = LEVELS) -> list[tuple[str, str]]:
    return [(f"{name}[{i}]", f"{name}[{i}]") for name in names for i in range(levels)]


NECK = level_taps("neck")
LINKS: dict[str, dict[str, Any]] = {
    "PKD": dict(type="PKD", taps=NECK),
    "LD": dict(type="LD", taps=level_taps("cls_logits", "box_outputs")),
    "CrossKD": dict(type="CrossKD", taps=NECK),
    "FitNet": dict(type="FitNet", weight=1.0, taps=NECK),
    "CWD": dict(type="CWD", temperature=1.0, weight=10.0, taps=NECK),
    "DIST": dict(type="DIST", activation="sigmoid", temperature=1.0, weight=1.0, taps=level_taps("cls_logits")),
}
TERMS = {
    "PKD": {"feature"},
    "LD": {"ld", "vlr", "kd"},
    "CrossKD": {"class", "box"},
    "FitNet": {"hint"},
    "CWD": {"channel"},
    "DIST": {"inter", "intra"},
}


def detector(base_channels: int, head: str, channels: int) -> dict[str, Any]:
    options = dict(channels=channels, num_classes=3, input_size=(3, HEIGHT, WIDTH), octave_base_scale=4.0)
    return dict(type="ResNetDetector", base_channels=base_channels, head=head, **options)


def distiller(link: dict[str, Any], head: str, channels: int = 8) -> Distiller:
    return Distiller(
        members={
            "teacher": dict(type="frozen", model=detector(16, head, 8), initial_weights=True),
            "student": dict(type="trained", model=detector(8, head, channels)),
        },
        links=[link],
        adapter=dict(type="DetectionAdapter"),
    ).train()


def loader_batch() -> dict[str, Any]:
    boxes = torch.tensor([[[4.0, 8, 40, 44], [50, 10, 90, 60]], [[10.0, 6, 60, 40], [0, 0, 0, 0]]])
    samples = dict(ids=torch.arange(2), views=torch.zeros(2, dtype=torch.int64), boxes=boxes)
    samples |= dict(labels=torch.tensor([[0, 2], [1, -1]]), shapes=torch.tensor([[HEIGHT, WIDTH], [HEIGHT, 80]]))
    images = torch.randint(0, 256, (2, 3, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(0))
    return dict(inputs=images.to(torch.uint8), data_samples=samples)


@pytest.mark.parametrize(
    ("name", "head", "channels"),
    [(name, "gfl", 8) for name in LINKS]
    + [("CrossKD", "retinanet", 8), ("DIST", "retinanet", 8), ("CrossKD", "gfl", 4), ("PKD", "gfl", 4)],
)
def test_steps_of_a_run_lower_the_terms(name: str, head: str, channels: int) -> None:
    pytest.importorskip("mmdet", reason="needs the 'detection' extra")
    model = distiller(LINKS[name], head, channels)
    plain = set(model.deploy.state_dict())
    parameters = [p for p in model.parameters() if p.requires_grad]
    frozen = {key: value.clone() for key, value in model.frozen["teacher"].state_dict().items()}
    optimizer, history = torch.optim.Adam(parameters, lr=2e-3), []
    for _ in range(6):
        found = model.data_preprocessor(loader_batch(), True)
        losses = model(**found, mode="loss")
        prefix = f"{name.lower()}.loss_"
        terms = {key.removeprefix(prefix): value for key, value in losses.items() if key.startswith(prefix)}
        assert set(terms) == TERMS[name]
        history.append(sum(value.item() for value in terms.values()))
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    assert history[-1] < history[0], history
    # Bridges stay with the link, and the teacher as it was.
    assert set(model.deploy.state_dict()) == plain
    assert all(torch.equal(value, frozen[key]) for key, value in model.frozen["teacher"].state_dict().items())


def test_only_methods_that_read_logits_run_the_teachers_head(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mmdet", reason="needs the 'detection' extra")
    for name, runs in (("PKD", 0), ("DIST", 1)):
        model, calls = distiller(LINKS[name], "gfl"), []
        head = cast(Any, model.frozen["teacher"]).bbox_head
        monkeypatch.setattr(head, "forward", lambda x, own=head.forward, calls=calls: calls.append(1) or own(x))
        model(**model.data_preprocessor(loader_batch(), True), mode="loss")
        assert len(calls) == runs
