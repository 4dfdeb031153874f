"""ScaleKD: the link through a teacher's frozen last stage, what it refuses, and pairs of two families."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from limbeck.engine.adapter import Batch
from limbeck.engine.distiller import Distiller
from limbeck.engine.registry import METHODS, MODELS
from limbeck.engine.weights import hash_state
from limbeck.errors import ConfigError, ShapeMismatch, UnknownName
from limbeck.vision.methods.scalekd import ScaleKD
from tests.vision.methods import conftest as common
from tests.vision.methods.test_ofakd import CNN, MIXER, VIT
from tests.vision.methods.test_scalekd_parts import frequency_reference, spatial_reference

SWIN = dict(
    type="timm",
    model="swin_tiny_patch4_window7_224",
    img_size=64,
    embed_dim=16,
    depths=(1, 1, 1, 1),
    num_heads=(1, 1, 2, 2),
    window_size=2,
)
TERMS = {"spatial3", "frequency3", "spatial4", "frequency4"}
LAYER3 = [("layer3", "layer2"), ("layer3", "layer3")]


# --- the link ---


def frozen(cfg: Any) -> nn.Module:
    torch.manual_seed(0)
    return MODELS.make(cfg).eval().requires_grad_(False)


def connected(
    teacher: nn.Module,
    shape: tuple[int, ...],
    students: tuple[tuple[int, ...], ...] = ((2, 4, 8, 8), (2, 8, 4, 4)),
    **options: Any,
) -> ScaleKD:
    torch.manual_seed(0)
    link = METHODS.make({"type": "ScaleKD", **options})
    link.members = {"teacher": teacher}
    link.connect([shape, shape], list(students))
    return link


def test_vit_teacher_reads_both_stages_class_token_and_all() -> None:
    teacher = frozen(VIT)
    link = connected(teacher, (2, 65, 96))
    assert link.last.names == ["blocks.3", "norm"]
    assert link.rereads
    assert {c.queries.shape for c in link.projectors3.values()} == {(65, 96)}
    students = [common.randn(2, 4, 8, 8).requires_grad_(), common.randn(2, 8, 4, 4, seed=1).requires_grad_()]
    final = common.randn(2, 65, 96, seed=2)
    link.eval()
    terms = link(common.link_inputs(students, [final, final]))
    assert set(terms) == TERMS
    target = common.array(final[:, 1:].transpose(1, 2).reshape(2, 96, 8, 8))
    for view, reference in (("spatial", spatial_reference), ("frequency", frequency_reference)):
        third = teacher.norm(teacher.blocks[3](link.projectors3[view](students[0])))
        fourth = teacher.norm(teacher.blocks[3](link.projectors4[view](students[1], third)))
        for name, tokens in ((f"{view}3", third), (f"{view}4", fourth)):
            found = common.array(tokens[:, 1:].transpose(1, 2).reshape(2, 96, 8, 8))
            assert terms[name].item() == pytest.approx(reference(found, target), rel=1e-4)


def test_gradient_passes_the_frozen_stage_and_the_queries() -> None:
    teacher = frozen(VIT)
    link = connected(teacher, (2, 65, 96))
    before = hash_state(teacher.state_dict())
    students = [common.randn(2, 4, 8, 8).requires_grad_(), common.randn(2, 8, 4, 4, seed=1).requires_grad_()]
    final = common.randn(2, 65, 96, seed=2)
    terms = link(common.link_inputs(students, [final, final]))
    for term in TERMS:
        third, fourth = torch.autograd.grad(terms[term], students, retain_graph=True, allow_unused=True)
        # Stage 4 is read by what stage 3 became, undetached.
        assert third.abs().max() > 0
        assert (fourth is not None) == term.endswith("4")
    sum(terms.values()).backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert hash_state(teacher.state_dict()) == before
    assert not any(p is q for p in link.parameters() for q in teacher.parameters())


def test_swin_teacher_merges_patches_on_the_way() -> None:
    teacher = frozen(SWIN)
    link = connected(teacher, (2, 2, 2, 128), teacher_layout="nhwc")
    assert link.last.names == ["layers.3", "norm"]
    assert not link.rereads
    assert link.projectors3["spatial"].queries.shape == (16, 64)
    assert link.projectors3["spatial"].heads == 1
    assert link.projectors4["spatial"].heads == 2
    link.eval()
    students = [common.randn(2, 4, 8, 8), common.randn(2, 8, 4, 4, seed=1)]
    final = common.randn(2, 2, 2, 128, seed=2)
    terms = link(common.link_inputs(students, [final, final]))
    third = teacher.norm(teacher.layers[3](link.projectors3["spatial"](students[0]).reshape(2, 4, 4, 64)))
    fourth = link.projectors4["spatial"](students[1], third.reshape(2, 4, 128)).reshape(2, 2, 2, 128)
    for name, found in (("spatial3", third), ("spatial4", fourth)):
        maps = [common.array(x.permute(0, 3, 1, 2)) for x in (found, final)]
        assert terms[name].item() == pytest.approx(spatial_reference(*maps), rel=1e-4)


def test_alphas_of_zero_leave_terms_out_and_keep_the_queries() -> None:
    data = common.link_inputs([common.randn(2, 4, 8, 8), common.randn(2, 8, 4, 4)], [common.randn(2, 64, 64)] * 2)
    teacher = frozen(MIXER)
    link = connected(teacher, (2, 64, 64), alphas=((0.08, 0.06), (0.08, 0.0)))
    assert set(link(data)) == TERMS - {"frequency4"}
    assert list(link.projectors4) == ["spatial"]
    link = connected(teacher, (2, 64, 64), alphas=((0.0, 0.0), (0.0, 0.06)))
    assert set(link(data)) == {"frequency4"}
    assert list(link.projectors3) == ["frequency"]
    doubled = connected(teacher, (2, 64, 64), alphas=((0.0, 0.0), (0.0, 0.12)))
    torch.testing.assert_close(doubled(data)["frequency4"], 2 * link(data)["frequency4"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"taps": [("norm", "layer3")]}, r"ScaleKD needs two taps, \(final, last but one stage\)"),
        ({"teacher_last": "norm"}, "teacher_last is a list of module names; got 'norm'"),
        ({"teacher_last": []}, r"teacher_last is a list of module names; got \[\]"),
        ({"alphas": ((0.08, 0.06),)}, "alphas are"),
        ({"alphas": ((0.08, -0.06), (0.08, 0.06))}, "alphas are"),
        ({"heads": (1, 2, 3)}, r"heads is one number, or one for each of two stages; got \(1, 2, 3\)"),
        ({"heads": 7}, "heads of stage 3 must divide the teacher's width 96; got 7"),
        ({"heads": (3, 0)}, "heads of stage 4 must divide the teacher's width 96; got 0"),
        ({"teacher_last": ["blocks.9", "norm"]}, "unknown module 'blocks.9' in teacher_last of ScaleKD"),
        ({"teacher_last": ["blocks.2", "norm"]}, r"in sequence are not what the teacher computes; name every module"),
        ({"teacher_last": ["patch_embed.proj", "blocks.3"]}, r"do not run in sequence \("),
        ({"teacher_last": ["blocks.3"]}, r"teacher tap 'norm' .* is not what teacher_last gives.*; tap 'blocks.3'"),
        ({"teacher_last": ["fc_norm"]}, r"\['fc_norm'\] take or give a vector"),
        ({"teacher_prefix": 2}, r"input of 'blocks.3': 65 tokens .* make no square grid after 2 prefix tokens"),
    ],
)
def test_bad_options_are_said_in_one_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, ShapeMismatch, UnknownName), match=message):
        connected(frozen(VIT), (2, 65, 96), **options)


@pytest.mark.parametrize(
    ("shape", "students", "message"),
    [
        ((2, 96), ((2, 4, 8, 8), (2, 8, 4, 4)), r"teacher tap 'norm' \(2, 96\) is not what .*\(65, 96\).*; tap 'norm'"),
        ((2, 65, 96), ((2, 4, 8, 8), (2, 8)), "student maps or tokens of the same batch are needed"),
        ((2, 65, 96), ((3, 4, 8, 8), (3, 8, 4, 4)), "both sides must see the same batch"),
        ((2, 65, 96), ((2, 6, 8), (2, 6, 8)), r"ScaleKD: student tap 'layer2': 6 tokens"),
    ],
)
def test_bad_taps_are_said_in_one_sentence(
    shape: tuple[int, ...], students: tuple[tuple[int, ...], ...], message: str
) -> None:
    with pytest.raises(ShapeMismatch, match=message):
        connected(frozen(VIT), shape, students)


def test_teachers_that_cannot_read_a_student_are_refused() -> None:
    shape = (2, 32, 8, 8)
    with pytest.raises(ConfigError, match=r"CIFARResNet is no transformer of timm's form; name the teacher's last"):
        connected(frozen(CNN), shape)
    with pytest.raises(ConfigError, match=r"\['layer3', 'global_pool'\] take or give a vector"):
        connected(frozen(CNN), (2, 32), teacher_last=["layer3", "global_pool"])
    with pytest.raises(ConfigError, match=r"\['layer3'\] are trained; the teacher must be a frozen member"):
        connected(MODELS.make(CNN), shape, teacher_last=["layer3"])
    one = frozen(dict(**CNN, input_size=(3, 4, 4)))
    with pytest.raises(ShapeMismatch, match="one position, so its frequency view is zero"):
        connected(one, (2, 32, 1, 1), teacher_last=["layer3"], taps=LAYER3)
    link = connected(one, (2, 32, 1, 1), teacher_last=["layer3"], taps=LAYER3, alphas=((1, 0), (1, 0)))
    assert list(link.projectors4) == ["spatial"]


def test_registry_builds_it_and_refuses_typos() -> None:
    pairs = [("norm", "a"), ("norm", "b")]
    link = METHODS.make({"type": "ScaleKD", "taps": pairs, "weight": 0.5, "schedule": {"type": "decay"}})
    assert (link.taps, link.factor(0.5)) == (pairs, 0.25)
    assert ScaleKD().taps == [("norm", "layer2"), ("norm", "layer3")]
    assert ScaleKD().alphas == {"spatial3": 0.08, "frequency3": 0.06, "spatial4": 0.08, "frequency4": 0.06}
    with pytest.raises(UnknownName, match=r"'teacher_lats'.*did you mean.*'teacher_last'"):
        METHODS.make({"type": "ScaleKD", "teacher_lats": ["norm"]})


# --- pairs of two families ---


@pytest.mark.parametrize(
    ("teacher", "student", "options"),
    [
        (VIT, CNN, {}),
        (MIXER, CNN, {}),
        (SWIN, CNN, dict(teacher_layout="nhwc")),
        (VIT, MIXER, dict(taps=[("norm", "blocks.0"), ("norm", "blocks.1")])),
        (CNN, VIT, dict(teacher_last=["layer3"], taps=[("layer3", "blocks.2"), ("layer3", "blocks.3")])),
        (VIT, SWIN, dict(student_layout="nhwc", taps=[("norm", "layers.1"), ("norm", "layers.2")])),
    ],
    ids=["vit-cnn", "mixer-cnn", "swin-cnn", "vit-mixer", "cnn-vit", "vit-swin"],
)
def test_families_pair_in_the_engine(teacher: Any, student: Any, options: dict[str, Any]) -> None:
    model = Distiller(
        members=dict(
            teacher=dict(type="frozen", model=teacher, initial_weights=True),
            student=dict(type="trained", model=student),
        ),
        links=[{"type": "ScaleKD", **options}],
        adapter=dict(type="VisionAdapter"),
    ).train()
    side = model.deploy.input_size[-1]
    labels = torch.arange(4)
    terms = model.loss(Batch(common.randn(4, 3, side, side), targets=labels, ids=labels, views=torch.zeros(4)))
    assert set(terms) == {"student.loss_ce", *(f"scalekd.loss_{t}" for t in TERMS)}
    sum(terms.values()).backward()
    assert all(p.grad is not None and p.grad.count_nonzero() for p in model.links.parameters() if p.dim() > 1)
    assert all(p.grad is None for p in model.frozen["teacher"].parameters())
    assert hash_state(model.frozen["teacher"].state_dict()) == model.frozen_hashes["teacher"]
    assert not any("projector" in key for key in model.deploy.state_dict())


def test_the_students_own_feature_can_reach_the_teachers() -> None:
    """A few steps on fixed features bring every view down: the projectors learn through the frozen stage."""
    link = connected(frozen(MIXER), (4, 64, 64), ((4, 4, 8, 8), (4, 8, 4, 4)))
    data = common.link_inputs([common.randn(4, 4, 8, 8), common.randn(4, 8, 4, 4)], [common.randn(4, 64, 64)] * 2)
    optimizer = torch.optim.Adam(link.parameters(), lr=3e-3)
    first = {name: term.item() for name, term in link(data).items()}
    for _ in range(30):
        optimizer.zero_grad()
        sum(link(data).values()).backward()
        optimizer.step()
    assert all(term.item() < 0.9 * first[name] for name, term in link(data).items())
