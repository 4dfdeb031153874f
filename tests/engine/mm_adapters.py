"""The smallest adapter over OpenMMLab models: proves that the engine carries dense tasks, and is no task package."""

from __future__ import annotations

from copy import deepcopy
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from limbeck.engine.adapter import Batch, Forward, TaskAdapter
from limbeck.engine.method import LinkInputs, Method
from limbeck.engine.mmcv_ops import install
from limbeck.engine.registry import ADAPTERS, DATASETS, METHODS, METRICS, MODELS

SIZE = 64
CLASSES = 3


@MODELS.register_module()
def ContractModel(scope: str, config: dict[str, Any]) -> nn.Module:  # noqa: N802 - a type in configs
    """A model of mmseg, mmdet or mmdet3d with the weights that its own `init_weights` draws."""
    install()
    import_module(f"{scope}.utils").register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope(scope):
        model = import_module(f"{scope}.registry").MODELS.build(ConfigDict(config))
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel("ERROR")  # it writes three lines a parameter
    model.init_weights()
    logger.setLevel(level)
    return model


@ADAPTERS.register_module()
class ContractAdapter(TaskAdapter):
    """Any mmengine model whose forward has the modes 'loss', 'predict' and 'tensor'.

    Args:
        head: module that gives the logits: a tensor, a list with one tensor a level, or a tuple that starts with one.
        example: a raw batch for tap shapes; None takes two black images.
    """

    offers = ("logits",)

    def __init__(self, head: str, example: dict[str, Any] | None = None) -> None:
        self.head, self.raw = head, example

    def preprocessor(self, deploy: nn.Module) -> nn.Module:
        return deploy.data_preprocessor

    def batch(self, inputs: Any, data_samples: Any) -> Batch:
        return Batch(inputs, data_samples, torch.tensor([s.metainfo["img_id"] for s in data_samples]))

    def member_inputs(self, batch: Batch, deploy: nn.Module, member: nn.Module) -> Any:
        if member is deploy or not isinstance(batch.inputs, Tensor):
            return batch.inputs
        own, other = deploy.data_preprocessor, member.data_preprocessor
        return (batch.inputs * own.std + own.mean - other.mean) / other.std

    def forward(self, model: nn.Module, inputs: Any, batch: Batch, *, with_loss: bool) -> Forward:
        seen: list[Any] = []
        handle = model.get_submodule(self.head).register_forward_hook(lambda _m, _a, out: seen.append(out))
        try:
            losses = model.loss(inputs, batch.targets) if with_loss else {}
            if not with_loss:
                seen.append(model(inputs, batch.targets, mode="tensor"))
        finally:
            handle.remove()
        return Forward(losses, {"logits": seen[-1][0] if isinstance(seen[-1], tuple) else seen[-1]})

    def predict(self, model: nn.Module, inputs: Any, batch: Batch) -> list[Any]:
        return model.predict(inputs, deepcopy(batch.targets))  # mm models write into the samples that they are given

    def example(self, deploy: nn.Module) -> Batch:
        if self.raw is None:
            return Batch(torch.zeros(2, 3, SIZE, SIZE))
        ready = deploy.data_preprocessor(self.raw, False)
        return self.batch(ready["inputs"], ready["data_samples"])


@METHODS.register_module()
class ContractHint(Method):
    """Mean squared difference after a 1×1 convolution to the teacher's width, for any number of maps."""

    def connect(self, teacher_shapes: Any, student_shapes: Any) -> None:
        self.shapes = teacher_shapes, student_shapes
        pairs = zip(teacher_shapes, student_shapes)
        self.bridges = nn.ModuleList(nn.Conv2d(s[1], t[1], 1) for t, s in pairs)

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        self.batch = batch
        parts = zip(self.bridges, batch.student, batch.teacher)
        return {"hint": sum(F.mse_loss(bridge(s), t) for bridge, s, t in parts)}


@DATASETS.register_module()
class ContractData(torch.utils.data.Dataset):
    """Four images of noise with one rectangle each, as a class map or as a box."""

    def __init__(self, scope: str, split: str = "train", nan_at: int | None = None) -> None:
        draw = torch.Generator().manual_seed({"train": 0, "val": 1, "test": 2}[split])
        self.scope, self.nan_at = scope, nan_at
        self.images = torch.randint(0, 256, (4, 3, SIZE, SIZE), generator=draw, dtype=torch.uint8)
        self.name, self.content_hash, self.split = "contract", f"{scope}-{split}-hash", split
        self.classes = [f"c{i}" for i in range(CLASSES)]

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        images = [self.images[i].float() if i == self.nan_at else self.images[i] for i in indices]
        for index, image in zip(indices, images):
            if index == self.nan_at:
                image[:, 0, 0] = float("nan")
        return dict(inputs=images, data_samples=[self.sample(i) for i in indices])

    def sample(self, index: int) -> Any:
        shape, low, label = (SIZE, SIZE), 4 + 4 * index, index % CLASSES
        meta = dict(img_id=index, img_shape=shape, ori_shape=shape, pad_shape=shape, scale_factor=(1.0, 1.0))
        if self.scope == "mmseg":
            from mmengine.structures import PixelData
            from mmseg.structures import SegDataSample

            truth = torch.zeros(1, *shape, dtype=torch.long)
            truth[:, low : low + 32, low : low + 32] = label
            return SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=truth))
        from mmdet.structures import DetDataSample
        from mmengine.structures import InstanceData

        box = torch.tensor([[low, low, low + 32.0, low + 40.0]])
        return DetDataSample(metainfo=meta, gt_instances=InstanceData(bboxes=box, labels=torch.tensor([label])))


@METRICS.register_module()
class ContractMetric:
    """How much two lists of samples differ: enough to see whose predictions arrived."""

    def reset(self) -> None:
        self.found: list[tuple[Any, Any]] = []

    def update(self, predictions: list[Any], teacher: list[Any] | None = None) -> None:
        self.found += list(zip(predictions, teacher or [None] * len(predictions)))

    def values(self) -> dict[str, float]:
        return {"samples": float(len(self.found)), "same": float(sum(a is b for a, b in self.found))}

    def per_class(self) -> dict[str, list[float]]:
        return {}


def segmentor(width: int, mean: float = 0.0, std: float = 255.0) -> dict[str, Any]:
    """ResNetV1c-18 with an FCN head and an auxiliary one."""
    norm = dict(type="BN", requires_grad=True)
    head = dict(type="FCNHead", num_convs=1, num_classes=CLASSES, norm_cfg=norm, align_corners=False)
    loss = dict(type="CrossEntropyLoss", loss_weight=1.0)
    config = dict(
        type="EncoderDecoder",
        data_preprocessor=dict(
            type="SegDataPreProcessor", mean=[mean] * 3, std=[std] * 3, size=(SIZE, SIZE), seg_pad_val=255
        ),
        backbone=dict(
            type="ResNetV1c", depth=18, stem_channels=width, base_channels=width, norm_cfg=norm, norm_eval=False
        ),
        decode_head=dict(**head, in_channels=8 * width, in_index=3, channels=width, loss_decode=loss),
        auxiliary_head=dict(
            **head, in_channels=4 * width, in_index=2, channels=width, loss_decode={**loss, "loss_weight": 0.4}
        ),
        train_cfg=dict(),
        test_cfg=dict(mode="whole"),
    )
    return dict(type="ContractModel", scope="mmseg", config=config)


def detector(width: int, mean: float = 0.0, std: float = 255.0) -> dict[str, Any]:
    """GFL on ResNet-18 and an FPN with as many channels as the stem."""
    config = dict(
        type="GFL",
        data_preprocessor=dict(type="DetDataPreprocessor", mean=[mean] * 3, std=[std] * 3, pad_size_divisor=32),
        backbone=dict(type="ResNet", depth=18, base_channels=width, frozen_stages=-1, norm_eval=False),
        neck=dict(
            type="FPN",
            in_channels=[width * n for n in (1, 2, 4, 8)],
            out_channels=width,
            start_level=1,
            num_outs=4,
            add_extra_convs="on_output",
        ),
        bbox_head=dict(
            type="GFLHead",
            num_classes=CLASSES,
            in_channels=width,
            feat_channels=width,
            stacked_convs=1,
            norm_cfg=dict(type="GN", num_groups=4),
            anchor_generator=dict(
                type="AnchorGenerator",
                ratios=[1.0],
                octave_base_scale=8,
                scales_per_octave=1,
                strides=[8, 16, 32, 64],
            ),
            loss_cls=dict(type="QualityFocalLoss", use_sigmoid=True, beta=2.0, loss_weight=1.0),
            loss_dfl=dict(type="DistributionFocalLoss", loss_weight=0.25),
            loss_bbox=dict(type="GIoULoss", loss_weight=2.0),
        ),
        train_cfg=dict(assigner=dict(type="ATSSAssigner", topk=9), allowed_border=-1, pos_weight=-1),
        test_cfg=dict(
            nms_pre=50, min_bbox_size=0, score_thr=0.0, nms=dict(type="nms", iou_threshold=0.6), max_per_img=10
        ),
    )
    return dict(type="ContractModel", scope="mmdet", config=config)
