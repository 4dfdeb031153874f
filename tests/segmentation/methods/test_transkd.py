"""TransKD whole: Base, GL and EA against numpy, options, gradients, bad input, and taps of real transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from limbeck.engine.distiller import Distiller
from limbeck.engine.method import LinkInputs
from limbeck.engine.registry import METHODS
from limbeck.engine.taps import tapped
from limbeck.errors import ConfigError, ShapeMismatch, UnknownName
from limbeck.segmentation.methods.transkd import (
    EMBED_WEIGHTS,
    TransKD,
    channel_kl_loss,
    embedding_loss,
    hcl_loss,
    pixel_kl_loss,
)
from tests.segmentation.methods import test_transkd_parts as parts
from tests.vision.methods import conftest as common

IMAGE = (3, 3, 42, 58)
CONFIGURATIONS = {
    "base": {},
    "gl": dict(mixer=True, mixer_heads=2),
    "gl-residual": dict(mixer=True, mixer_heads=4, residual=True),
    "ea": dict(assistant=True),
}
CONFIGURATION = pytest.mark.parametrize("options", CONFIGURATIONS.values(), ids=CONFIGURATIONS.keys())


def shapes(widths: tuple[int, ...], sizes=parts.SIZES, batch: int = 3) -> list[tuple[int, ...]]:
    pairs = list(zip(widths, sizes))
    return [(batch, c, *s) for c, s in pairs] + [(batch, s[0] * s[1], c) for c, s in pairs]


def connected(teachers=parts.WIDE, students=parts.NARROW, sizes=parts.SIZES, **kwargs: Any) -> TransKD:
    torch.manual_seed(0)
    link = TransKD(**kwargs)
    link.connect(shapes(teachers, sizes), shapes(students, sizes))
    return link


def step(batch: int = 3, teachers=parts.WIDE, students=parts.NARROW, sizes=parts.SIZES, image=IMAGE) -> LinkInputs:
    def both(widths: tuple[int, ...], seed: int) -> list[Tensor]:
        values = parts.maps(batch, widths, sizes, seed) + parts.tokens(batch, widths, sizes, seed + 50)
        return [v.float() for v in values]

    inputs = {"student": common.randn(batch, *image[1:], seed=7)}
    return LinkInputs(teacher=both(teachers, 100), student=both(students, 0), inputs=inputs)


def count(link: TransKD) -> int:
    return sum(p.numel() for p in link.parameters())


# --- the losses ---


def pool(x: np.ndarray, size: int) -> np.ndarray:
    out = np.zeros((*x.shape[:2], size, size))
    for i in range(size):
        for j in range(size):
            rows = slice(i * x.shape[2] // size, -(-(i + 1) * x.shape[2] // size))
            columns = slice(j * x.shape[3] // size, -(-(j + 1) * x.shape[3] // size))
            out[:, :, i, j] = x[:, :, rows, columns].mean((2, 3))
    return out


def hcl_reference(student: np.ndarray, teacher: np.ndarray) -> float:
    total, norm, power = ((student - teacher) ** 2).mean(), 1.0, 1.0
    for size in (4, 2, 1):
        if size < student.shape[2]:
            power /= 2
            norm += power
            total += power * ((pool(student, size) - pool(teacher, size)) ** 2).mean()
    return float(total / norm)


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * (np.log(a) - np.log(b)) for a, b in zip(p, q))


def channel_reference(student: np.ndarray, teacher: np.ndarray) -> float:
    batch, channels = student.shape[:2]
    rows = [
        (common.softmax(t.ravel()), common.softmax(s.ravel()))
        for i in range(batch)
        for t, s in zip(teacher[i], student[i])
    ]
    return sum(kl(p, q) for p, q in rows) / (batch * channels)


def pixel_reference(student: np.ndarray, teacher: np.ndarray) -> float:
    batch, _, h, w = student.shape
    places = [(b, slice(None), i, j) for b in range(batch) for i in range(h) for j in range(w)]
    return sum(kl(common.softmax(teacher[at]), common.softmax(student[at])) for at in places) / len(places)


FEATURE = pytest.mark.parametrize(
    ("loss", "reference"),
    [(hcl_loss, hcl_reference), (channel_kl_loss, channel_reference), (pixel_kl_loss, pixel_reference)],
)


@FEATURE
def test_feature_losses_match_naive_references_on_odd_sizes(loss, reference) -> None:
    common.check_reference(loss, reference, common.randn(2, 3, 5, 6, seed=0), common.randn(2, 3, 5, 6, seed=1))


@FEATURE
def test_feature_losses_are_one_sided_float32_and_refuse_unequal_shapes(loss, reference) -> None:
    student, teacher = common.randn(2, 4, 5, 6, seed=0, scale=3), common.randn(2, 4, 5, 6, seed=1, scale=3)
    common.check_one_sided(loss, student, teacher)
    for dtype in common.HALVES:
        common.check_half(loss, student, teacher, dtype)
    assert loss(teacher.clone(), teacher).item() == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(ShapeMismatch, match="do not fit"):
        loss(student[:, :3], teacher)


def test_kl_losses_ignore_what_their_softmax_ignores() -> None:
    student, teacher = common.randn(2, 4, 5, 6, seed=0), common.randn(2, 4, 5, 6, seed=1)
    shift = common.randn(2, 4, 1, 1, seed=2)
    torch.testing.assert_close(channel_kl_loss(student + shift, teacher), channel_kl_loss(student, teacher))
    shift = common.randn(2, 1, 5, 6, seed=2)
    torch.testing.assert_close(pixel_kl_loss(student + shift, teacher), pixel_kl_loss(student, teacher))


def test_hcl_of_a_constant_offset_and_of_a_checkerboard() -> None:
    for size in [(1, 1), (2, 3), (3, 2), (4, 4), *parts.CAMVID]:
        teacher = common.randn(2, 3, *size)
        assert hcl_loss(teacher + 1.5, teacher).item() == pytest.approx(2.25, rel=1e-4)
    i, j = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    board = (1.0 - 2.0 * ((i + j) % 2)).expand(2, 3, 8, 8)
    assert hcl_loss(1.5 * board, torch.zeros(2, 3, 8, 8)).item() == pytest.approx(2.25 / 1.875)


def test_embedding_loss_is_the_mean_over_all_entries() -> None:
    def reference(s: np.ndarray, t: np.ndarray) -> float:
        return float(((s - t) ** 2).sum() / s.size)

    student, teacher = common.randn(2, 6, 4, seed=0), common.randn(2, 6, 4, seed=1)
    common.check_reference(embedding_loss, reference, student, teacher)
    common.check_one_sided(embedding_loss, student, teacher)
    for dtype in common.HALVES:
        common.check_half(embedding_loss, student, teacher, dtype)
    with pytest.raises(ShapeMismatch, match=r"TransKD's embedding loss: .* do not fit"):
        embedding_loss(student[:, :5], teacher)


# --- the whole link ---


def reference(link: TransKD, batch: LinkInputs, lam=(0.1, 0.1, 0.5, 1.0)) -> dict[str, float]:
    n = link.depth
    students, teachers = parts.arrays(batch.student), parts.arrays(batch.teacher)
    aligned = parts.fusion_reference(link.fusion, students[:n])
    tokens = students[n:]
    if link.mixer is not None:
        tokens[-1] = parts.mixer_reference(link.mixer, tokens[-1])
    z = parts.alignment_reference(link.alignment, tokens)
    if link.assistant is not None:
        image = common.array(batch.inputs["student"])
        z = parts.assistant_reference(link.assistant, z, image, students[:n])
    return dict(
        feature=sum(hcl_reference(p, t) for p, t in zip(aligned, teachers)),
        embedding=sum(w * ((a - t) ** 2).mean() for w, a, t in zip(lam, z, teachers[n:])),
    )


@CONFIGURATION
@pytest.mark.parametrize("batch", [1, 3])
def test_both_terms_match_numpy(options, batch: int) -> None:
    link, inputs = connected(**options), step(batch)
    found = link(inputs)
    expected = reference(link, inputs)
    assert list(found) == ["feature", "embedding"]
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize(
    ("students", "teachers", "base", "gl", "ea"),
    [
        (parts.B0, parts.B2, 843_840, 656_130, 970_952),
        ((64, 64, 160, 256), parts.B2, 847_936, 656_130, None),  # LVT, Base alone
        ((16, 32, 80, 128), parts.B0, 386_624, 164_226, 245_864),
    ],
)
def test_extra_parameters_of_the_three_configurations(students, teachers, base, gl, ea) -> None:
    assert count(connected(teachers, students)) == base
    assert count(connected(teachers, students, mixer=True)) == base + gl
    if ea is not None:
        assert count(connected(teachers, students, assistant=True)) == base + ea


@CONFIGURATION
def test_gradient_reaches_every_stage_and_every_part_in_use_and_not_the_teacher(options) -> None:
    for size, unused in ((3, "squeeze_single"), (1, "squeeze.")):
        link, batch = connected(**options), step(size)
        for value in (*batch.student, *batch.teacher):
            value.requires_grad_()
        torch.stack(list(link(batch).values())).sum().backward()
        assert all(s.grad is not None and s.grad.abs().max() > 0 for s in batch.student)
        assert all(t.grad is None for t in batch.teacher)
        for name, p in link.named_parameters():
            reached = p.grad is not None and bool(p.grad.abs().max() > 0)
            assert reached == (unused not in name), name


def test_terms_reach_only_what_they_read() -> None:
    for options, term, reached in (
        ({}, "feature", [True] * 4 + [False] * 4),
        ({}, "embedding", [False] * 4 + [True] * 4),
        (dict(mixer=True, mixer_heads=2), "embedding", [False] * 4 + [True] * 4),
        (dict(assistant=True), "embedding", [True] * 3 + [False] + [True] * 4),  # A_i reads the map of stage i − 1
    ):
        link, batch = connected(**options), step()
        for value in batch.student:
            value.requires_grad_()
        link(batch)[term].backward()
        assert [s.grad is not None and bool(s.grad.abs().max() > 0) for s in batch.student] == reached


@pytest.mark.parametrize("dtype", common.HALVES)
@CONFIGURATION
def test_half_precision_taps_are_computed_in_float32(options, dtype: torch.dtype) -> None:
    link, batch = connected(**options), step()
    half = LinkInputs(
        student=[s.to(dtype) for s in batch.student],
        teacher=[t.to(dtype) for t in batch.teacher],
        inputs={"student": batch.inputs["student"].to(dtype)},
    )
    back = LinkInputs(
        student=[s.float() for s in half.student],
        teacher=[t.float() for t in half.teacher],
        inputs={"student": half.inputs["student"].float()},
    )
    expected = link(back)
    with torch.autocast("cpu", dtype=dtype):
        found = link(half)
    for name in expected:
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)


@CONFIGURATION
def test_repeated_batch_and_joint_order_change_nothing(options) -> None:
    link, batch = connected(**options), step()
    expected = link(batch)
    for rows in ([0, 1, 2, 0, 1, 2], [2, 0, 1]):
        other = LinkInputs(
            student=[s[rows] for s in batch.student],
            teacher=[t[rows] for t in batch.teacher],
            inputs={"student": batch.inputs["student"][rows]},
        )
        found = link(other)
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)


def test_equal_nets_with_identity_layers_have_no_embedding_loss() -> None:
    link, batch = connected(students=parts.WIDE), step()
    batch.student = [t.clone() for t in batch.teacher]
    for linear in link.alignment.linears:
        nn.init.eye_(linear.weight)
        nn.init.zeros_(linear.bias)
    found = link(batch)
    assert found["embedding"].item() == pytest.approx(0.0, abs=1e-12)
    assert found["feature"] > 0.1  # the fusion is no identity


def test_assistant_that_adds_nothing_and_mixer_that_adds_nothing_are_base() -> None:
    base, batch = connected(), step()
    expected = base(batch)
    ea, gl = connected(assistant=True), connected(mixer=True, mixer_heads=2, residual=True)
    nn.init.ones_(ea.assistant.u)
    nn.init.zeros_(ea.assistant.v)
    nn.init.zeros_(gl.mixer.w_global)
    nn.init.zeros_(gl.mixer.w_local)
    for link in (ea, gl):
        assert set(link.load_state_dict(base.state_dict(), strict=False).unexpected_keys) == set()
        found = link(batch)
        for name in expected:
            torch.testing.assert_close(found[name], expected[name])


def test_mixer_and_assistant_together_add_to_the_mixed_embedding() -> None:
    link, batch = connected(mixer=True, mixer_heads=2, assistant=True), step()
    assert link(batch)["embedding"].item() == pytest.approx(reference(link, batch)["embedding"], rel=1e-4)


def test_odd_sizes_of_a_180_by_240_image_fit() -> None:
    for options in (dict(assistant=True), dict(mixer=True, mixer_heads=2)):
        link = connected(sizes=parts.CAMVID, **options)
        batch = step(2, sizes=parts.CAMVID, image=(2, 3, 180, 240))
        maps = link.fusion(batch.student[:4])
        assert [p.shape for p in maps] == [t.shape for t in batch.teacher[:4]]
        found = link.embeddings(batch.student[:4], batch.student[4:], batch.inputs["student"])
        assert [z.shape for z in found] == [t.shape for t in batch.teacher[4:]]
        assert all(v.requires_grad for v in link(batch).values())


# --- options ---


@pytest.mark.parametrize(("name", "loss"), [("channel_kl", channel_kl_loss), ("pixel_kl", pixel_kl_loss)])
def test_other_feature_losses_add_up_over_the_stages(name: str, loss) -> None:
    link, batch = connected(feature_loss=name), step()
    maps = link.fusion(batch.student[:4])
    expected = sum(loss(p, t) for p, t in zip(maps, batch.teacher))
    torch.testing.assert_close(link(batch)["feature"], expected)


@pytest.mark.parametrize("options", [{}, dict(assistant=True), dict(mixer=True, mixer_heads=2)])
def test_one_stage_alone_counts_once(options) -> None:
    link, batch = connected(embed_stages=[4], **options), step()
    assert link.embed_weights == (1.0,)
    found = link.embeddings(batch.student[:4], batch.student[4:], batch.inputs["student"])
    assert len(found) == 1
    torch.testing.assert_close(link(batch)["embedding"], embedding_loss(found[0], batch.teacher[7]))


def test_several_stages_keep_their_weights_and_given_ones_replace_them() -> None:
    link, batch = connected(embed_stages=[3, 1]), step()
    first, third = link.alignment([batch.student[4], batch.student[6]])
    expected = 0.1 * embedding_loss(first, batch.teacher[4]) + 0.5 * embedding_loss(third, batch.teacher[6])
    torch.testing.assert_close(link(batch)["embedding"], expected)
    link.embed_weights = (0.2, 1.0)
    torch.testing.assert_close(link(batch)["embedding"], 2 * expected)
    assert TransKD(embed_weights=[1, 2, 3, 4], embed_stages=[3, 1]).embed_weights == (1.0, 3.0)
    assert TransKD(embed_weights=[1, 2, 3, 4], embed_stages=[2]).embed_weights == (2.0,)
    assert TransKD().embed_weights == EMBED_WEIGHTS == (0.1, 0.1, 0.5, 1.0)


def test_parts_can_be_left_out() -> None:
    batch = step()
    expected = connected()(batch)
    maps = LinkInputs(student=batch.student[:4], teacher=batch.teacher[:4])
    fusion = TransKD(embed_stages=[])
    assert fusion.taps == [(f"backbone[{i}]", f"backbone[{i}]") for i in range(4)]
    torch.manual_seed(0)
    fusion.connect(shapes(parts.WIDE)[:4], shapes(parts.NARROW)[:4])
    found = fusion(maps)
    assert list(found) == ["feature"]
    torch.testing.assert_close(found["feature"], expected["feature"])
    alone = connected(feature_loss=None)
    assert list(alone(batch)) == ["embedding"]
    assert count(alone) == sum(s * t + t for s, t in zip(parts.NARROW, parts.WIDE))


def test_maps_alone_may_be_any_number_of_any_network() -> None:
    link = TransKD(embed_stages=[], taps=[("a", "b")] * 3)
    link.connect(shapes(parts.WIDE)[:3], shapes(parts.NARROW)[:3])
    assert len(link.fusion.blocks) == 3


def test_embeddings_may_be_channels_last_maps() -> None:
    batch = step()
    expected = connected(assistant=True)(batch)
    folded = [(3, *s, c) for c, s in zip(parts.NARROW, parts.SIZES)]
    torch.manual_seed(0)
    link = TransKD(assistant=True)
    link.connect(shapes(parts.WIDE), shapes(parts.NARROW)[:4] + folded)
    batch.student[4:] = [e.reshape(shape) for e, shape in zip(batch.student[4:], folded)]
    for name, value in link(batch).items():
        torch.testing.assert_close(value, expected[name])


def test_grey_images_feed_the_assistant() -> None:
    link = connected(assistant=True, image_channels=1)
    assert link(step(image=(3, 1, 42, 58)))["embedding"] > 0
    with pytest.raises(ConfigError, match=r"images of 1 channels; got \(3, 3, 42, 58\); set image_channels"):
        link(step())
    batch = step()
    batch.inputs = {}
    with pytest.raises(ConfigError, match="images of 1 channels; got None"):
        link(batch)


# --- bad input ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(taps=[("a", "a")] * 3), "got 3 pairs of taps, an odd number"),
        (dict(embed_stages=[5]), r"distinct numbers from 1 to 4; got \[5\]"),
        (dict(embed_stages=[0, 1]), "distinct numbers from 1 to 4"),
        (dict(embed_stages=[2, 2]), "distinct numbers from 1 to 4"),
        (dict(embed_weights=[1.0]), "embed_weights, 4 positive numbers for 4 stages"),
        (dict(embed_weights=[1.0, 0.0, 1.0, 1.0]), "4 positive numbers"),
        (dict(taps=[("a", "a")] * 6), "embed_weights, 3 positive numbers for 3 stages"),
        (dict(width=0), "width, mixer_heads and image_channels of 1 or more"),
        (dict(feature_loss=None, embed_stages=[]), "nothing to learn"),
        (dict(mixer=True, embed_stages=[1]), "add stage 4 to embed_stages"),
        (dict(residual=True), "set mixer=True"),
        (dict(assistant=True, embed_stages=[]), "embed_stages has none"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(options, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TransKD(**options)


def test_taps_that_do_not_fit_are_named() -> None:
    students, teachers = shapes(parts.NARROW), shapes(parts.WIDE)
    link = TransKD()
    for at, wrong in ((0, (3, 3, 11, 14)), (0, (2, 3, 11, 15)), (2, (3, 12, 5))):
        with pytest.raises(ShapeMismatch, match=r"maps \(B, C, H, W\) of one batch and size") as error:
            link.connect(teachers, [*students[:at], wrong, *students[at + 1 :]])
        assert str(wrong) in str(error.value)
    for wrong in ((3, 47, 4), (2, 48, 4), (3, 4, 6, 8), (3, 4)):
        with pytest.raises(ShapeMismatch, match=r"stage 2, whose map is 6×8; \(B, 48, C\) or \(B, 6, 8, C\)") as error:
            link.connect(teachers, [*students[:5], wrong, *students[6:]])
        assert str(wrong) in str(error.value)
    order = [3, 2, 1, 0, 7, 6, 5, 4]
    with pytest.raises(ConfigError, match="grow from one to the next"):
        link.connect([teachers[i] for i in order], [students[i] for i in order])


def test_registry_builds_it_and_refuses_typos() -> None:
    link = METHODS.make({"type": "TransKD"})
    assert type(link) is TransKD
    assert (link.weight, link.name, link.width) == (1.0, "transkd", 64)
    assert METHODS.make({"type": "TransKD", "weight": 0.25, "width": 32}).width == 32
    with pytest.raises(UnknownName, match=r"'assistent'.*did you mean.*'assistant'"):
        METHODS.make({"type": "TransKD", "assistent": True})
    with pytest.raises(UnknownName, match="unknown feature_loss 'hlc' of TransKD; did you mean 'hcl'"):
        TransKD(feature_loss="hlc")
    names = [*(f"backbone[{i}]" for i in range(4)), *(f"backbone.layers.{i}.0[0]" for i in range(4))]
    assert link.taps == [(name, name) for name in names]


# --- real transformers ---


def mmseg_adapters():
    """The engine's tests of mmseg, which need the extra."""
    pytest.importorskip("mmcv", reason="needs the 'segmentation' extra")
    from limbeck.engine.mmcv_ops import install

    install()
    pytest.importorskip("mmseg", reason="needs the 'segmentation' extra")
    from tests.engine import mm_adapters

    return mm_adapters


def segformer(width: int, classes: int, size: int) -> dict[str, Any]:
    norm = dict(type="BN", requires_grad=True)
    config = dict(
        type="EncoderDecoder",
        data_preprocessor=dict(
            type="SegDataPreProcessor", mean=[0.0] * 3, std=[255.0] * 3, size=(size, size), seg_pad_val=255
        ),
        backbone=dict(
            type="MixVisionTransformer",
            embed_dims=width,
            num_layers=[1, 1, 1, 1],
            num_heads=[1, 2, 5, 8],
            patch_sizes=[7, 3, 3, 3],
            mlp_ratio=2,
        ),
        decode_head=dict(
            type="SegformerHead",
            in_channels=[width * n for n in (1, 2, 5, 8)],
            in_index=[0, 1, 2, 3],
            channels=8,
            num_classes=classes,
            norm_cfg=norm,
            align_corners=False,
            loss_decode=dict(type="CrossEntropyLoss", avg_non_ignore=True),
        ),
        train_cfg=dict(),
        test_cfg=dict(mode="whole"),
    )
    return dict(type="ContractModel", scope="mmseg", config=config)


@pytest.mark.parametrize("options", [{}, dict(mixer=True), dict(assistant=True)], ids=["base", "gl", "ea"])
def test_default_taps_are_those_of_mit_and_a_step_trains_through_them(options) -> None:
    mm = mmseg_adapters()
    models = [segformer(width, mm.CLASSES, mm.SIZE) for width in (16, 8)]
    members = dict(
        teacher=dict(type="frozen", model=models[0], initial_weights=True),
        student=dict(type="trained", model=models[1]),
    )
    adapter = dict(type="ContractAdapter", head="decode_head.conv_seg")
    model = Distiller(members=members, links=[dict(type="TransKD", **options)], adapter=adapter).train()
    sizes = [(16, 16), (8, 8), (4, 4), (2, 2)]
    for name, width in (("teacher", 16), ("student", 8)):
        found = list(model.tap_shapes[name].values())
        assert found == shapes(tuple(width * n for n in (1, 2, 5, 8)), sizes, batch=2)
    keys = model.deploy.state_dict().keys()
    data = mm.ContractData("mmseg").__getitems__([0, 1])
    terms = model(**model.data_preprocessor(data, True), mode="loss")
    assert {"transkd.loss_feature", "transkd.loss_embedding"} < set(terms)
    (terms["transkd.loss_feature"] + terms["transkd.loss_embedding"]).backward()
    for i in range(4):
        assert model.deploy.backbone.layers[i][0].projection.weight.grad.abs().max() > 0
    assert all(p.grad is None for p in model.frozen["teacher"].parameters())
    assert model.deploy.state_dict().keys() == keys  # the link leaves a plain student
    assert not any("transkd" in key or "fusion.blocks" in key for key in keys)


def taps_and_shapes(backbone: nn.Module, taps: list[str]) -> list[tuple[int, ...]]:
    holder = nn.ModuleDict({"backbone": backbone}).eval()
    with tapped(holder, taps) as store, torch.no_grad():
        backbone(torch.zeros(2, 3, 64, 96))
    return [tuple(store[tap].shape) for tap in taps]


PVT_SIZES = [(16, 24), (8, 12), (4, 6), (2, 3)]


def test_taps_of_timms_pvt_v2_are_channels_last_embeddings() -> None:
    mmseg_adapters()
    from mmseg.models.backbones import TIMMBackbone

    inside = ["patch_embed", *(f"stages_{i}.downsample" for i in (1, 2, 3))]
    taps = [*(f"backbone[{i}]" for i in range(4)), *(f"backbone.timm_model.{name}" for name in inside)]
    found = taps_and_shapes(TIMMBackbone("pvt_v2_b0", pretrained=False, out_indices=(0, 1, 2, 3)), taps)
    assert found[:4] == shapes(parts.B0, PVT_SIZES, batch=2)[:4]
    assert found[4:] == [(2, *s, c) for c, s in zip(parts.B0, PVT_SIZES)]
    link = TransKD(taps=[(tap, tap) for tap in taps])
    link.connect(shapes(parts.B2, PVT_SIZES, batch=2), found)
    assert count(link) == 843_840


def test_default_taps_are_those_of_mmdets_pvt_v2() -> None:
    mmseg_adapters()
    pytest.importorskip("mmdet", reason="needs the 'detection' extra")
    from mmdet.models.backbones import PyramidVisionTransformerV2

    backbone = PyramidVisionTransformerV2(embed_dims=8, num_layers=[1, 1, 1, 1], num_heads=[1, 2, 5, 8])
    found = taps_and_shapes(backbone, [s for _, s in TransKD().taps])
    assert found == shapes((8, 16, 40, 64), PVT_SIZES, batch=2)
