"""mmdetection3d's voxel detectors as deployed networks: voxels in, the raw outputs of their head out."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from mmdet3d.models.detectors import VoxelNet
from mmdet3d.registry import MODELS
from mmdet3d.utils import register_all_modules
from mmengine.config import ConfigDict
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from torch import Tensor

from limbeck.pointcloud.voxels import Grid, Voxels

# What mmdetection3d's anchor head makes mmdetection and torch say in every run, which a user can do nothing about.
NOISE = ("DeprecationWarning: pos_bboxes is deprecated", "torch.meshgrid: in an upcoming release")


@MODELS.register_module()
class VoxelDetector(VoxelNet):
    """VoxelNet (arXiv 1711.06396) in mmdetection3d's sense: voxel and middle encoder, 2D backbone, neck, anchor head.

    `model(voxels)` gives class logits (B, A · K, H, W), box codes (B, A · 7, H, W) and direction logits (B, A · 2, H,
    W), A anchors a cell. A cloud may have no voxel at all.

    Attributes:
        grid: what the detector's input is voxelised by.
        num_classes: K.
    """

    grid: Grid
    num_classes: int

    def encode(self, inputs: Voxels) -> Tensor:
        """One row a voxel, (n, C)."""
        # mmdetection3d's pillar encoder moves the points that it is given, which other members still read.
        return self.voxel_encoder(inputs.voxels.clone(), inputs.num_points, inputs.coors)

    def maps(self, rows: Tensor, inputs: Voxels) -> Any:
        """The bird's-eye-view maps that the head looks at, from what `encode` gave."""
        canvas = self.middle_encoder(rows, inputs.coors, len(inputs))
        return self.neck(self.backbone(canvas))

    def extract_feat(self, batch_inputs_dict: Voxels) -> Any:  # type: ignore[override]
        """Maps of the neck, a list of one (B, C, H, W)."""
        return self.maps(self.encode(batch_inputs_dict), batch_inputs_dict)

    def forward(self, inputs: Voxels, data_samples: Any = None, mode: str = "tensor") -> Any:  # type: ignore[override]
        """The head's outputs as a flat tuple; losses and boxes are the task adapter's."""
        return tuple(level for part in self.bbox_head(self.extract_feat(inputs)) for level in part)


def build_detector(config: Mapping[str, Any], grid: Grid, num_classes: int) -> VoxelDetector:
    """A detector with the weights that mmdetection3d's own `init_weights` draws.

    Args:
        config: arguments of mmdetection3d's VoxelNet.
    """
    register_all_modules(init_default_scope=False)
    for said in NOISE:
        warnings.filterwarnings("ignore", message=said, category=UserWarning)
    args = {key: ConfigDict(value) if isinstance(value, dict) else value for key, value in config.items()}
    with DefaultScope.overwrite_default_scope("mmdet3d"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its head warns of options that it deprecates
        model = VoxelDetector(**args)
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel("ERROR")  # it writes three lines a parameter
    model.init_weights()
    logger.setLevel(level)
    model.grid = grid
    model.num_classes = num_classes
    return model
