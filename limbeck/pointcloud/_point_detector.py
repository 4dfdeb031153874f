"""mmdetection3d's PointRCNN as a deployed network: points in, the raw outputs of both its stages out."""

from __future__ import annotations

from typing import Any, cast

import torch
from mmdet3d.models.detectors import PointRCNN
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.structures import InstanceData
from torch import Tensor

from limbeck.errors import ConfigError
from limbeck.pointcloud.points import PointGrid
from limbeck.pointcloud.voxels import Voxels

_NOWHERE = (1e4, 1e4, 0.0, 1.0, 1.0, 1.0, 0.0)


@MODELS.register_module()
class PointDetector(PointRCNN):
    """PointRCNN (arXiv 1812.04244) on equally many points of every cloud.

    `model(voxels)` gives the first stage's box codes (B, N, 8) and class logits (B, N, K), then the second stage's
    logit (R, 1) and box codes (R, 7) of every proposal of the batch.

    Attributes:
        grid: what the detector's points are drawn by.
        num_classes: K.
    """

    grid: PointGrid
    num_classes: int

    def features(self, inputs: Voxels) -> dict[str, Tensor]:
        """What both stages read: `fp_features` (B, C, N), `fp_points` (B, N, 3) and `raw_points` (B, N, 4).

        Raises: ConfigError where a cloud has no point in range.
        """
        if len(inputs.voxels) != len(inputs):
            raise ConfigError(f"a cloud has no point in the range {self.grid.point_cloud_range} of PointRCNN; drop it")
        return super().extract_feat(dict(points=list(inputs.voxels)))  # type: ignore[return-value]

    def extract_feat(self, batch_inputs_dict: dict[str, Tensor]) -> dict[str, Tensor]:  # type: ignore[override]
        """A copy of what `features` gave: mmdetection3d's stages take parts out of it, and put others in."""
        return dict(batch_inputs_dict)

    def losses(self, features: dict[str, Tensor], instances: list[Any]) -> dict[str, Tensor]:
        """mmdetection3d's losses of both stages; clouds may be without objects, which its own code does not allow.

        Where no point of the batch lies in a box, the first stage does not learn classes, as its loss is divided by the
        number of such points.
        """
        samples = _samples(len(instances))
        for sample, instance in zip(samples, instances, strict=True):
            sample.gt_instances_3d = instance if len(cast(Any, instance).labels_3d) else _far_away(instance)
        found: dict[str, Tensor] = self.loss(features, samples)  # type: ignore[arg-type, assignment]
        rows = features["fp_features"]
        if bool(found["rpn_semantic_loss"].isinf()) and bool(rows.isfinite().all()):
            found["rpn_semantic_loss"] = rows.sum() * 0.0
        return found

    def results(self, inputs: Voxels) -> list[InstanceData]:
        """Boxes of each cloud after suppression."""
        found = self.predict(self.features(inputs), _samples(len(inputs)))  # type: ignore[arg-type]
        return [sample.pred_instances_3d for sample in found]

    def forward(self, inputs: Voxels, data_samples: Any = None, mode: str = "tensor") -> Any:  # type: ignore[override]
        """The outputs of both stages as a flat tuple; losses and boxes are the task adapter's."""
        features = self.features(inputs)
        found: list[Tensor] = []
        handles = [part.register_forward_hook(lambda _m, _i, out: found.extend(out)) for part in self._heads()]
        try:
            self.predict(features, _samples(len(inputs)))  # type: ignore[arg-type]
        finally:
            for handle in handles:
                handle.remove()
        return tuple(found)

    def _heads(self) -> list[Any]:
        return [self.rpn_head, self.roi_head.bbox_head]


def _samples(count: int) -> list[Det3DDataSample]:
    return [Det3DDataSample(metainfo=dict(box_type_3d=LiDARInstance3DBoxes)) for _ in range(count)]


def _far_away(instance: Any) -> InstanceData:
    """One box that no point lies in and no proposal meets: targets are as without any."""
    given = cast(Any, instance)
    box = given.bboxes_3d.tensor.new_tensor([_NOWHERE])
    return InstanceData(bboxes_3d=LiDARInstance3DBoxes(box), labels_3d=torch.zeros(1).to(given.labels_3d))
