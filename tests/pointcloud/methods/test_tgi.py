"""Teacher-guided initialisation: whole at equal width, exact where the dropped channels are silent, and its errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from limbeck.engine.method import LinkInputs
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch, UnknownName
from limbeck.pointcloud.methods._inherit import WAYS, inherited_state
from limbeck.pointcloud.methods.tgi import TGI
from tests.pointcloud.methods.clouds import voxels
from tests.pointcloud.methods.detectors import HeightStacked, Pillars, build, randomised
from tests.vision.methods import conftest as common

pytest.importorskip("mmdet3d")


def pillars() -> tuple[Tensor, Tensor, Tensor]:
    coors, _ = voxels((20, 15))
    counts = torch.randint(1, 6, (35,), generator=torch.Generator().manual_seed(0))
    return common.randn(35, 6, 4, scale=3.0), counts, coors


def outputs(net: Any) -> list[Tensor]:
    with torch.no_grad():
        return net(common.randn(2, 4, 2, 32, 32)) if isinstance(net, HeightStacked) else net(*pillars())


def guided(student: Any, teacher: Any, **options: Any) -> Any:
    student.load_state_dict(inherited_state(student, teacher, **options))
    return student.eval()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["pillars", "two layers", "heights"])
def test_equal_widths_give_the_teachers_outputs(way: str, kind: str) -> None:
    make = dict(
        pillars=lambda s: Pillars(seed=s),
        heights=lambda s: HeightStacked(seed=s),
    ) | {"two layers": lambda s: Pillars((6, 8), seed=s)}
    teacher = randomised(make[kind](0))
    student = guided(make[kind](1), teacher, way=way)
    for found, expected in zip(outputs(student), outputs(teacher), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def silence(net: nn.Module, width: dict[int, int], *, way: str) -> None:
    """Zero weight and bias of batch norms but for as many channels as the student has: the first ones, or any.

    Args:
        width: channels of the teacher → channels of the student.
    """
    generator = torch.Generator().manual_seed(5)
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            count = module.num_features
            order = torch.arange(count) if way == "FNAV2" else torch.randperm(count, generator=generator)
            dropped = order[width[count] :]
            module.weight.data[dropped] = 0.0
            module.bias.data[dropped] = 0.0


@pytest.mark.parametrize("way", ["FNAV2", "BN_SCALE"])
@pytest.mark.parametrize("kind", ["pillars", "two layers", "heights"])
def test_silent_channels_are_dropped_without_a_trace(way: str, kind: str) -> None:
    """Wrong offsets of concatenations, transposed convolutions or heights would show in the outputs."""
    if kind == "heights":
        teacher, student = HeightStacked((4, 6), (8, 12)), HeightStacked((3, 4), (5, 7), seed=1)
        width = {4: 3, 6: 4, 8: 5, 12: 7, 16: 10}
    else:
        sizes = dict(pillars=((9,), (6,)))
        wide, narrow = sizes.get(kind, ((18, 9), (12, 6)))
        teacher, student = Pillars(wide, (8, 12)), Pillars(narrow, (5, 7), seed=1)
        width = {9: 6, 8: 5, 12: 7, 16: 10}
    randomised(teacher)
    silence(teacher, width, way=way)
    guided(student, teacher, way=way)
    for found, expected in zip(outputs(student), outputs(teacher), strict=True):
        assert expected.std() > 0.01
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_first_channels_of_a_concatenation_do_not_match_its_branches() -> None:
    teacher, student = Pillars((9,), (8, 12)), Pillars((6,), (5, 7), seed=1)
    randomised(teacher)
    silence(teacher, {9: 6, 8: 5, 12: 7, 16: 10}, way="FNAV2")
    guided(student, teacher, way="FNAV1")
    whole = teacher.state_dict()["bbox_head.conv_cls.weight"]
    torch.testing.assert_close(student.state_dict()["bbox_head.conv_cls.weight"], whole[:, :20], rtol=0, atol=0)
    assert not torch.allclose(outputs(student)[0], outputs(teacher)[0], atol=1e-3)


def test_heights_are_stacked_as_the_map_has_them_or_as_the_official_code_assumes() -> None:
    teacher = randomised(HeightStacked((4, 6), (8, 12)))
    student = HeightStacked((3, 4), (5, 7), seed=1)
    state = inherited_state(student, teacher, official_bev_order=True)
    first = teacher.state_dict()["backbone.blocks.0.0.weight"]
    wanted = [0, 1, 2, 3, 6, 7, 8, 9]  # of 2 heights of 6 channels, the first 4
    torch.testing.assert_close(state["backbone.blocks.0.0.weight"], first[:5, wanted], rtol=0, atol=0)
    ours = inherited_state(student, teacher)["backbone.blocks.0.0.weight"]
    torch.testing.assert_close(ours, first[:5, :8], rtol=0, atol=0)


@pytest.mark.parametrize("way", WAYS)
def test_every_tensor_is_a_part_of_the_teachers(way: str) -> None:
    teacher, student = randomised(Pillars((9,), (8, 12))), Pillars((6,), (5, 7), seed=1)
    state, whole = inherited_state(student, teacher, way=way), teacher.state_dict()
    assert state.keys() == student.state_dict().keys()
    for name, value in state.items():
        assert value.shape == student.state_dict()[name].shape
        assert np.isin(value.numpy(), whole[name].numpy()).all()
        assert value.data_ptr() != whole[name].data_ptr()


def test_once_for_all_keeps_the_kernels_of_largest_norm_whatever_their_order() -> None:
    """A teacher whose pillar channels are shuffled gives a student of the same outputs."""
    teacher = randomised(Pillars((9,), (8, 12)))
    order = torch.randperm(9, generator=torch.Generator().manual_seed(2))
    shuffled = Pillars((9,), (8, 12))
    state = {name: value.clone() for name, value in teacher.state_dict().items()}
    for name in state:
        if name.startswith("voxel_encoder") and state[name].dim():
            state[name] = state[name][order]
    state["backbone.blocks.0.0.weight"] = state["backbone.blocks.0.0.weight"][:, order]
    shuffled.load_state_dict(state)
    students = [guided(Pillars((6,), (5, 7), seed=1), net, way="OFA") for net in (teacher, shuffled.eval())]
    for found, expected in zip(*(outputs(net) for net in students), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    linear = teacher.state_dict()["voxel_encoder.pfn_layers.0.linear.weight"]
    kept = linear.abs().sum(1).argsort(descending=True)[:6].sort().values
    torch.testing.assert_close(
        students[0].state_dict()["voxel_encoder.pfn_layers.0.linear.weight"], linear[kept], rtol=0, atol=0
    )


def sparse(base: int, out: int, stages: tuple[int, int]) -> HeightStacked:
    """With mmdetection3d's sparse encoder in the place of the dense one; its forward is not run here."""
    net = HeightStacked((base, out), stages)
    channels = ((base,), (2 * base,))
    layers = dict(base_channels=base, output_channels=out, encoder_channels=channels, encoder_paddings=((1,), (1,)))
    net.middle_encoder = build(dict(type="SparseEncoder", in_channels=4, sparse_shape=[9, 32, 32], **layers))
    return net


def test_sparse_kernels_stay_in_their_order_when_loaded() -> None:
    pytest.importorskip("spconv")
    teacher, student, twin = sparse(8, 12, (8, 12)), sparse(4, 6, (5, 7)), sparse(8, 12, (8, 12))
    for net in (student, twin):
        net.load_state_dict(inherited_state(net, teacher))
    whole, cut = teacher.state_dict(), student.state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in twin.state_dict().items())
    name = "middle_encoder.encoder_layers.encoder_layer2.0.0.weight"
    torch.testing.assert_close(cut[name], whole[name][:8, ..., :4], rtol=0, atol=0)


def test_networks_that_do_not_fit_are_named() -> None:
    teacher = Pillars((6,), (8, 12))
    with pytest.raises(ShapeMismatch, match=r"voxel_encoder.pfn_layers.0.linear.weight.*wider"):
        inherited_state(Pillars((8,), (8, 12)), teacher)
    with pytest.raises(ConfigError, match=r"has no pfn_layers|student has no voxel_encoder"):
        inherited_state(HeightStacked(), teacher)
    with pytest.raises(ConfigError, match="a Linear, has no voxel_encoder"):
        inherited_state(nn.Linear(2, 2), teacher)
    with pytest.raises(UnknownName, match="'FNAV3'"):
        inherited_state(teacher, teacher, way="FNAV3")
    other = Pillars((6,), (8, 12))
    other.bbox_head.extra = nn.Parameter(torch.zeros(3))
    with pytest.raises(ConfigError, match=r"how to cut bbox_head.extra"):
        inherited_state(other, teacher)


def test_link_sets_the_first_weights_and_has_no_loss() -> None:
    teacher, student = randomised(Pillars((9,), (8, 12))), Pillars((6,), (5, 7), seed=1)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    idle, link = TGI(weight=0.0), METHODS.make(dict(type="TGI", way="BN_SCALE"))
    for one in (idle, link):
        one.members = dict(teacher=teacher, student=student)
        assert one.taps == []
    idle.connect([], [])
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    link.connect([], [])
    expected = inherited_state(student, teacher, way="BN_SCALE")
    assert all(torch.equal(value, expected[name]) for name, value in student.state_dict().items())
    assert link(LinkInputs(teacher=[], student=[])) == {}
    assert not list(link.parameters())
    with pytest.raises(UnknownName, match="'first'"):
        TGI(way="first")
    with pytest.raises(ConfigError, match="schedule"):
        TGI(schedule=dict(type="decay"))
