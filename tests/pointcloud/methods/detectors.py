"""Small PointPillars, heads and SECOND-like networks for the tests of the methods; built on mmdetection3d's parts."""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.pointcloud.methods.clouds import RANGE, VOXEL

NORM = dict(eps=1e-3, momentum=0.01)
ANCHORS = ((0.8, 0.6, 1.73), (1.76, 0.6, 1.73), (3.9, 1.6, 1.56))


def build(config: dict[str, Any]) -> Any:
    from mmdet3d.registry import MODELS
    from mmengine.config import ConfigDict
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope("mmdet3d"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return MODELS.build(ConfigDict(config))


def anchor_head(width: int = 12) -> Any:
    """A head of three classes with two anchors each."""
    assigner = dict(
        type="Max3DIoUAssigner",
        iou_calculator=dict(type="BboxOverlapsNearest3D"),
        pos_iou_thr=0.5,
        neg_iou_thr=0.35,
        min_pos_iou=0.35,
        ignore_iof_thr=-1,
    )
    low, high = RANGE[:2], RANGE[3:5]
    return build(
        dict(
            type="Anchor3DHead",
            num_classes=3,
            in_channels=width,
            feat_channels=width,
            assign_per_class=True,
            anchor_generator=dict(
                type="AlignedAnchor3DRangeGenerator",
                ranges=[[*low, -1.6, *high, -1.6]] * 3,
                sizes=[list(size) for size in ANCHORS],
                rotations=[0, 1.57],
                reshape_out=False,
            ),
            loss_cls=dict(type="mmdet.FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
            train_cfg=dict(assigner=[assigner] * 3, allowed_border=0, pos_weight=-1, debug=False),
        )
    )


class Pillars(nn.Module):
    """PointPillars as voxel detectors of mmdetection3d are built: voxels in, the head's outputs out.

    Args:
        pillars: widths of the pillar encoder's layers.
        stages: of SECOND, two; the branches of the neck have twice the first.
    """

    def __init__(self, pillars: tuple[int, ...] = (8,), stages: tuple[int, int] = (8, 12), seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        rows, columns = (round((RANGE[i + 3] - RANGE[i]) / VOXEL[i]) for i in (1, 0))
        self.voxel_encoder = build(
            dict(
                type="PillarFeatureNet",
                feat_channels=list(pillars),
                voxel_size=list(VOXEL),
                point_cloud_range=list(RANGE),
                legacy=False,
            )
        )
        self.middle_encoder = build(
            dict(type="PointPillarsScatter", in_channels=pillars[-1], output_shape=[rows, columns])
        )
        self._add_2d(pillars[-1], stages)

    def _add_2d(self, width: int, stages: tuple[int, int]) -> None:
        branch = 2 * stages[0]
        self.backbone = build(
            dict(
                type="SECOND",
                in_channels=width,
                out_channels=list(stages),
                layer_nums=[1, 1],
                layer_strides=[2, 2],
                norm_cfg=dict(type="BN", **NORM),
            )
        )
        self.neck = build(
            dict(
                type="SECONDFPN",
                in_channels=list(stages),
                out_channels=[branch, branch],
                upsample_strides=[1, 2],
                norm_cfg=dict(type="BN", **NORM),
            )
        )
        self.bbox_head = anchor_head(2 * branch)

    def forward(self, voxels: Tensor, num_points: Tensor, coors: Tensor) -> list[Tensor]:
        rows = self.voxel_encoder(voxels, num_points, coors)
        return self.head_of(self.middle_encoder(rows, coors, int(coors[-1, 0]) + 1))

    def head_of(self, x: Tensor) -> list[Tensor]:
        return [part[0] for part in self.bbox_head(self.neck(self.backbone(x)))]


class SparseLayer(nn.Module):
    """A 3×3×3 convolution whose kernel is stored as spconv 2 has it, (out, k, k, k, in)."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.2 * torch.randn(out, 3, 3, 3, into))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv3d(x, self.weight.permute(0, 4, 1, 2, 3), padding=1)


class HeightStacked(Pillars):
    """A network in SECOND's form with dense 3D convolutions: an encoder of volumes, stacked as channel · D + height."""

    def __init__(self, widths: tuple[int, int] = (4, 6), stages: tuple[int, int] = (8, 12), seed: int = 0) -> None:
        nn.Module.__init__(self)
        torch.manual_seed(seed)
        self.voxel_encoder = nn.Identity()
        sizes = (4, *widths)
        self.middle_encoder = nn.Sequential(
            *(nn.Sequential(SparseLayer(i, o), nn.BatchNorm3d(o), nn.ReLU()) for i, o in pairwise(sizes))
        )
        self._add_2d(2 * widths[-1], stages)

    def forward(self, volume: Tensor) -> list[Tensor]:  # type: ignore[override]  # (B, 4, 2, H, W)
        return self.head_of(self.middle_encoder(volume).flatten(1, 2))


def randomised(net: nn.Module, seed: int = 1) -> nn.Module:
    """The same network in eval mode, with every batch norm's numbers and biases drawn."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.weight.data, module.running_var):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            for tensor in (module.bias.data, module.running_mean):
                tensor.copy_(0.2 * torch.randn(tensor.shape, generator=generator))
    for name in ("conv_cls", "conv_reg", "conv_dir_cls"):
        layer = getattr(net.bbox_head, name)
        layer.weight.data.copy_(0.1 * torch.randn(layer.weight.shape, generator=generator))
        layer.bias.data.copy_(0.1 * torch.randn(layer.bias.shape, generator=generator))
    return net.eval()
