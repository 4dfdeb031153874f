"""A pillar detector as a function of tensors, for export: voxels of one cloud in, the raw maps of the head out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from limbeck.engine.registry import DATASETS
from limbeck.errors import ConfigError, DataMissing
from limbeck.pointcloud.voxels import Grid, Voxels, voxelize
from limbeck.zoo.card import Card
from limbeck.zoo.export_formats import Form

INPUTS = ("voxels", "num_points", "coors")
OUTPUTS = ("cls_logits", "box_outputs", "dir_logits")
CLOUDS = 8  # of the check
RANDOM_POINTS = 4000


class PillarMaps(nn.Module):
    """From the pillars of one cloud to the head's maps; pillars without points are padding.

    Takes voxels float32 (n, M, 4), num_points int64 (n,) and coors int64 (n, 4), as `Voxels` has them; gives class
    logits (1, A · K, H, W), box codes (1, A · 7, H, W) and direction logits (1, A · 2, H, W).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        net = cast(Any, model)
        self.rows, self.columns = net.grid.shape[1:]

    def forward(self, voxels: Tensor, num_points: Tensor, coors: Tensor) -> tuple[Tensor, ...]:
        net = cast(Any, self.model)
        rows = net.voxel_encoder(voxels.clone(), num_points.clamp(min=1), coors)
        # mmdetection3d's scatter loops over clouds; padding goes to a cell behind the map's last one.
        cells = self.rows * self.columns
        place = torch.where(
            num_points > 0, coors[:, 2] * self.columns + coors[:, 3], torch.full_like(num_points, cells)
        )
        canvas = rows.new_zeros(cells + 1, rows.shape[1]).index_copy(0, place, rows)
        canvas = canvas[:cells].T.reshape(1, -1, self.rows, self.columns)
        return tuple(level for part in net.bbox_head(net.neck(net.backbone(canvas))) for level in part)


def pillar_maps(model: nn.Module, card: Card) -> PillarMaps:
    """The part of a student that can be exported.

    Raises: ConfigError for a detector with sparse convolutions.
    """
    encoder = type(cast(Any, model).middle_encoder).__name__
    if encoder != "PointPillarsScatter":
        raise ConfigError(
            f"{card.name} has sparse convolutions ({encoder}), which neither ONNX nor torch's formats have; export a "
            "PointPillars student, or run this one by limbeck.Predictor"
        )
    return PillarMaps(model).eval()


def cloud_form(model: nn.Module, card: Card, metadata: dict[str, str]) -> Form:
    """A student's part that can be exported; it is checked against the whole student.

    Raises: ConfigError for a detector with sparse convolutions.
    """
    part = pillar_maps(model, card)
    origin, clouds = check_clouds(card, cast(Any, model).grid)
    calls = [(one.voxels, one.num_points.long(), one.coors.long()) for one in clouds]
    with torch.inference_mode():
        expected = [model(one) for one in clouds]
    return Form(
        model=part,
        inputs=INPUTS,
        outputs=OUTPUTS,
        example=calls[0],
        calls=calls,
        expected=expected,
        origin=origin,
        count=len(clouds),
        what="clouds",
        metadata=metadata | cloud_metadata(card, model),
    )


def check_clouds(card: Card, grid: Grid) -> tuple[Literal["real", "random"], list[Voxels]]:
    """The student's first test clouds; seeded random ones where its data is absent."""
    try:
        dataset = DATASETS.make(card.dataset.test, where=f"in the card of {card.name}")
    except DataMissing:
        low, high = (torch.tensor(side) for side in (grid.point_cloud_range[:3], grid.point_cloud_range[3:]))
        dice = torch.rand(CLOUDS, RANDOM_POINTS, 4, generator=torch.Generator().manual_seed(0))
        dice[..., :3] = low + dice[..., :3] * (high - low)
        return "random", [voxelize([cloud], grid) for cloud in dice]
    clouds: Sequence[Tensor] = dataset.__getitems__(range(min(CLOUDS, len(dataset))))["inputs"]
    return "real", [voxelize([cloud], grid) for cloud in clouds]


def cloud_metadata(card: Card, model: nn.Module) -> dict[str, str]:
    """What making voxels and decoding boxes takes: grid, anchors, the coder's and the head's numbers, test settings."""
    net = cast(Any, model)
    head, grid = net.bbox_head, net.grid
    anchors = head.prior_generator
    decoding = {
        "outputs": OUTPUTS,
        "anchor_ranges": anchors.ranges,
        "anchor_sizes": anchors.sizes,
        "anchor_rotations": anchors.rotations,
        "dir_offset": head.dir_offset,
        "dir_limit_offset": head.dir_limit_offset,
        "test_cfg": dict(net.test_cfg),
    }
    return {
        "limbeck.point_cloud_range": json.dumps(grid.point_cloud_range),
        "limbeck.voxel_size": json.dumps(grid.voxel_size),
        "limbeck.max_points": str(grid.max_points),
        "limbeck.max_voxels": str(grid.max_voxels[1]),
        "limbeck.points": cast(Any, card.voxels).note,
        "limbeck.head": type(head).__name__,
        "limbeck.box_coder": type(head.bbox_coder).__name__,
    } | {f"limbeck.{key}": json.dumps(value) for key, value in decoding.items()}
