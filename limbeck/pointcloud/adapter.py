"""The task adapter of 3D detection on LiDAR: one voxelisation for all members, mmdetection3d's losses and boxes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from mmengine.model import BaseDataPreprocessor
from torch import Tensor, nn

from limbeck.engine.adapter import Batch, Forward, TaskAdapter, class_mismatch, once
from limbeck.engine.registry import ADAPTERS
from limbeck.errors import ConfigError
from limbeck.pointcloud._head import decoded_boxes, padded_boxes
from limbeck.pointcloud.samples import check_points, read_targets, sample_name
from limbeck.pointcloud.targets import Targets3D
from limbeck.pointcloud.voxels import Grid, Voxels, voxelize

EXAMPLE_POINTS = 3000  # a cloud; about 2,700 pillars on the desk's grid


class VoxelPreprocessor(BaseDataPreprocessor):
    """Clouds (P, F) on their way into one detector: moved to its device and voxelised by its grid."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, data: Any, training: bool = False) -> dict[str, Any]:
        """`dict(inputs, data_samples)` with `Voxels`; `data['inputs']` has one tensor a cloud."""
        moved = cast(dict[str, Any], self.cast_data(data))
        points, samples = moved["inputs"], moved.get("data_samples")
        check_points(points, (samples or {}).get("ids"))
        return {"inputs": voxelize(points, self.grid, training=training), "data_samples": samples}


@ADAPTERS.register_module()
class PointCloudAdapter(TaskAdapter):
    """mmdetection3d's voxel detectors with an anchor head, and PointRCNN, as `limbeck.pointcloud.models` builds them.

    A batch is voxelised once; every member with the deployed one's grid gets the very same `Voxels`, so that row i of
    their voxel encoders is the same voxel. One with another grid gets the same points, voxelised by its own.

    Offered taps: the head's maps `cls_logits` (B, A · K, H, W), `box_outputs` (B, A · 7, H, W) and `dir_logits` (B,
    A · 2, H, W), A anchors a cell, class by class; and `decoded_boxes` (B, 256, 9), the boxes of the highest scores
    before any suppression, best first: x, y, z of the bottom centre, length, width, height, yaw, score, label; label −1
    is padding. Of PointRCNN, which has points of a cloud in the place of voxels, instead `fp_features` (B, C, N), a
    column a point. Of a member without losses only what is tapped runs: for a tap on `voxel_encoder` nothing behind it.
    """

    offers = ("cls_logits", "box_outputs", "dir_logits", "decoded_boxes", "fp_features")

    def preprocessor(self, deploy: nn.Module) -> VoxelPreprocessor:
        """Voxelises by the deployed member's grid."""
        return VoxelPreprocessor(grid_of(deploy))

    def batch(self, inputs: Any, data_samples: Any) -> Batch:
        """Targets are `Targets3D`, without the boxes whose centre is out of range; None where samples have no boxes.

        Raises: ShapeMismatch; ConfigError, naming the sample, for a box that is not finite or has no size.
        """
        samples = data_samples or {}
        extra = {"truth": samples.get("truth") or {}, "voxels": {}}
        return Batch(
            inputs,
            targets=read_targets(inputs, samples),
            ids=samples.get("ids"),
            views=samples.get("views"),
            extra=extra,
        )

    def member_inputs(self, batch: Batch, deploy: nn.Module, member: nn.Module) -> Voxels:
        """The very same voxels where the grids agree, else those of the same points by the member's own grid."""
        inputs, grid = cast(Voxels, batch.inputs), grid_of(member)
        if grid == inputs.grid:
            return inputs
        kept = batch.extra.setdefault("voxels", {})
        if grid not in kept:
            kept[grid] = voxelize(inputs.points, grid, training=inputs.training)
        return kept[grid]

    def forward(self, model: nn.Module, inputs: Any, batch: Batch, *, with_loss: bool) -> Forward:
        """Losses are mmdetection3d's: `bbox_head.loss_cls`, `.loss_bbox`, `.loss_dir`; of PointRCNN, those of both
        stages, `rpn_head.…` and `roi_head.…`. Clouds may be without objects.

        Raises: ConfigError for labels that are no class of the model, and for a batch without a point in range.
        """
        net, device = cast(Any, model), inputs.voxels.device.type
        if hasattr(net, "roi_head"):
            return self._two_stages(net, inputs, batch, with_loss=with_loss)
        head = net.bbox_head
        if with_loss:
            instances = self._instances(net, inputs, batch)
            outputs = head(net.extract_feat(inputs))
            losses = head.loss_by_feat(*outputs, instances, [{}] * len(inputs))
            summed = {f"bbox_head.{name}": _total(value) for name, value in losses.items()}
            return Forward(summed, _offers(head, lambda: outputs))
        rows = net.encode(inputs)
        features = once(lambda: net.maps(rows, inputs), device)
        outputs = once(lambda: head(features()), device)
        # A tap is a hook, which is gone when an offer is asked for.
        if _tapped(head):
            outputs()
        elif _tapped(net.middle_encoder, net.backbone, net.neck):
            features()
        return Forward({}, _offers(head, outputs))

    def _two_stages(self, net: Any, inputs: Voxels, batch: Batch, *, with_loss: bool) -> Forward:
        """PointRCNN's losses are `rpn_head.<loss>` and `roi_head.<loss>`."""
        features = once(lambda: net.features(inputs), inputs.voxels.device.type)
        losses = {}
        if with_loss:
            found = net.losses(features(), self._instances(net, inputs, batch))
            losses = {
                name.replace("rpn_", "rpn_head.") if "rpn" in name else f"roi_head.{name}": _total(value)
                for name, value in found.items()
            }
        elif _tapped(net.rpn_head):
            net.rpn_head(dict(features()))
        elif _tapped(net.backbone, net.neck):
            features()
        return Forward(losses, {"fp_features": lambda: features()["fp_features"]})

    def predict(self, model: nn.Module, inputs: Any, batch: Batch) -> list[dict[str, Tensor]]:
        """One dict for the batch, on the CPU; mmdetection3d's boxes after suppression, best first.

        `boxes` (B, P, 7) float32 in the LiDAR frame, `scores` (B, P), `pred` (B, P) int64, −1 for padding; P is the
        most of one cloud, at least 1. Also ids (B,), `classes` (the number) and the labelled frames, where known: see
        `limbeck.pointcloud.metrics.truth_tensors`.
        """
        net = cast(Any, model)
        found = padded_boxes(net.results(inputs), inputs.voxels.device) | {"classes": torch.tensor(_classes(net))}
        found |= {} if batch.ids is None else {"ids": batch.ids}
        found |= batch.extra.get("truth") or {}
        return [{name: value.detach().cpu() for name, value in found.items()}]

    def example(self, deploy: nn.Module) -> Batch:
        """Two clouds of 3,000 points each, evenly spread over the range, with a box of class 0 in the middle."""
        grid, device = grid_of(deploy), next(deploy.parameters()).device
        low, high = (torch.tensor(side) for side in (grid.point_cloud_range[:3], grid.point_cloud_range[3:]))
        dice = torch.rand(2, EXAMPLE_POINTS, 4, generator=torch.Generator().manual_seed(0))
        dice[..., :3] = low + dice[..., :3] * (high - low)
        middle = torch.cat([(low + high)[:2] / 2, torch.tensor([-1.6, 0.8, 0.6, 1.7, 0.0])])
        samples = dict(
            boxes=[middle[None].to(device)] * 2,
            labels=[torch.zeros(1, dtype=torch.int64, device=device)] * 2,
            ids=torch.arange(2, device=device),
            views=torch.zeros(2, dtype=torch.int64, device=device),
        )
        return self.batch(voxelize(list(dice.to(device)), grid), samples)

    def check_data(self, deploy: nn.Module, dataset: Any) -> None:
        """Raises: ConfigError when the model has another number of classes than the data set."""
        found = _classes(deploy)
        if found != len(dataset.classes):
            raise class_mismatch(deploy, dataset, found)

    def describe(self, deploy: nn.Module, member: nn.Module) -> dict[str, Any]:
        """Both members' grids."""
        return super().describe(deploy, member) | {"deploy": _facts(deploy), "member": _facts(member)}

    def _instances(self, net: Any, inputs: Voxels, batch: Batch) -> list[Any]:
        """Ground truth as mmdetection3d reads it."""
        from mmdet3d.structures import LiDARInstance3DBoxes
        from mmengine.structures import InstanceData

        kind, targets = type(net).__name__, batch.targets
        if not isinstance(targets, Targets3D):
            raise ConfigError(f"{kind} cannot be trained on a batch without boxes; use a data set that has them")
        if not len(inputs.voxels):
            names = ", ".join(sample_name(batch.ids, row) for row in range(len(inputs)))
            raise ConfigError(
                f"{names}: no point lies in the range {grid_of(net).point_cloud_range} of {kind}; leave such clouds out"
            )
        known = _classes(net)
        for row, labels in enumerate(targets.labels):
            if bool((labels >= known).any()):
                name, label = sample_name(batch.ids, row), int(labels.max())
                raise ConfigError(f"{name} has label {label}, and {kind} has {known} classes; build it for the data")
        return [
            InstanceData(bboxes_3d=LiDARInstance3DBoxes(boxes), labels_3d=labels)
            for boxes, labels in zip(targets.boxes, targets.labels, strict=True)
        ]


def grid_of(model: nn.Module) -> Grid:
    """The grid of a detector. Raises: ConfigError when it was built elsewhere and has none."""
    found = getattr(model, "grid", None)
    if not isinstance(found, Grid):
        raise ConfigError(f"{type(model).__name__} has no grid; build it through a model of the registry")
    return found


def _classes(model: nn.Module) -> int:
    return int(cast(Any, model).num_classes)


def _facts(model: nn.Module) -> dict[str, Any]:
    grid = grid_of(model)
    return {
        "point_cloud_range": list(grid.point_cloud_range),
        "voxel_size": list(grid.voxel_size),
        "max_points": grid.max_points,
        "max_voxels": list(grid.max_voxels),
    }


def _tapped(*parts: nn.Module) -> bool:
    return any(module._forward_hooks for part in parts for module in part.modules())


def _total(value: Any) -> Tensor:
    levels = value if isinstance(value, (list, tuple)) else [value]
    return cast(Tensor, sum(level.mean() for level in levels))  # as mmengine adds them


def _offers(head: Any, outputs: Callable[[], Any]) -> dict[str, Any]:
    """Of one map: the head's outputs have a list with one level each."""
    names = ("cls_logits", "box_outputs", "dir_logits")
    found: dict[str, Any] = {name: (lambda part=part: outputs()[part][0]) for part, name in enumerate(names)}
    return found | {"decoded_boxes": lambda: decoded_boxes(head, outputs())}
