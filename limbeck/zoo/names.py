"""Names of students: '<architecture>.<benchmark>_<method>', made from a run's record."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from limbeck.engine.record import RunRecord

LIDAR_WIDTHS = {"PointPillarsDetector": 64, "SECONDDetector": 128}  # where a config names none


def architecture_name(config: Mapping[str, Any]) -> str:
    """A short name of a model's config; what it leaves out may differ between two students of one name.

    'resnet8w4' for a CIFARResNet of depth 8 and width 4, 'resnet20' with the usual width; timm's name for timm's;
    'segformer_w16', 'mobilenetv2_050' and 'tf_efficientnet_lite0_deeplabv3plus' for segmentors, whose head is named
    where it is not SegFormer's; 'resnetv1c18_aspp' for mmsegmentation's own configs. Detectors begin with their head:
    'gfl_resnet18w10', 'faster_rcnn_lite0', 'retinanet_mobilenetv2_050'; 'fcos_resnet50' for mmdetection's own configs.
    'pointpillars16' and 'second64' for detectors on LiDAR, with their width. A DualHead has its backbone's name, and
    'resnet8_dual' with two heads. 'unet32-64_4step' for a diffusion model, with its channels and its sampler's steps;
    'unet32-64_patch2_4step' for one on patches.
    """
    kind = str(config["type"])
    if kind == "CIFARResNet":
        width = config.get("width", 16)
        return f"resnet{config.get('depth', 20)}{'' if width == 16 else f'w{width}'}"
    if kind == "DualHead":
        return architecture_name(config["backbone"]) + ("_dual" if config.get("kd_head") else "")
    if kind == "Denoiser":
        return f"{_denoiser(config['network'])}_{(config.get('sampler') or {}).get('steps', 50)}step"
    if kind == "timm":
        return _word(str(config["model"]).rsplit("/", 1)[-1].rsplit(":", 1)[-1].split(".")[0])
    if kind == "EfficientNetLite":
        return f"efficientnet_lite{config.get('variant', 0)}"
    if kind == "SegFormer":
        return f"segformer_w{config.get('width', 32)}{_head(config)}"
    if kind == "MobileNetV2Segmentor":
        return f"mobilenetv2_{round(100 * config.get('width', 0.5)):03d}{_head(config)}"
    if kind == "TimmSegmentor":
        return f"{_word(str(config['model']).split('.')[0])}{_head(config)}"
    if kind == "mmseg":
        return _openmmlab(config["config"])
    return _detector(kind, config) or _word(kind.lower())


def _detector(kind: str, config: Mapping[str, Any]) -> str | None:
    """Head and backbone; None for what is no detector."""
    head = _word(str(config.get("head", "gfl")))
    if kind == "ResNetDetector":
        width = config.get("base_channels", 64)
        return f"{head}_resnet{config.get('depth', 18)}{'' if width == 64 else f'w{width}'}"
    if kind == "MobileNetV2Detector":
        return f"{head}_mobilenetv2_{round(100 * config.get('width', 0.5)):03d}"
    if kind == "TimmDetector":
        return f"{head}_{_word(str(config['model']).split('.')[0].removeprefix('tf_efficientnet_'))}"
    if kind in LIDAR_WIDTHS:
        return f"{kind.removesuffix('Detector').lower()}{round(config.get('width', LIDAR_WIDTHS[kind]))}"
    if kind == "mmdet":
        backbone = config["config"]["backbone"]
        return _word(f"{config['config']['type']}_{backbone['type']}{backbone.get('depth', '')}".lower())
    return None


def _denoiser(network: Mapping[str, Any]) -> str:
    """A U-Net with its channels where a config has them."""
    kind = str(network["type"]).lower()
    widths = network.get("block_out_channels") or ()
    patch = f"_patch{size}" if (size := network.get("patch_size", 1)) > 1 else ""
    return _word(f"unet{'-'.join(map(str, widths))}{patch}" if kind == "unet2dmodel" else kind)


def _head(config: Mapping[str, Any]) -> str:
    head = config.get("head", "segformer")
    return "" if head == "segformer" else f"_{_word(head)}"


def _openmmlab(config: Mapping[str, Any]) -> str:
    """Backbone with its depth, and the last decode head, in small letters."""
    backbone, head = config["backbone"], config["decode_head"]
    last = head[-1] if isinstance(head, (list, tuple)) else head
    name = f"{backbone['type']}{backbone.get('depth', '')}_{last['type'].removesuffix('Head')}"
    return _word(name.lower())


def student_name(record: RunRecord) -> str:
    """'resnet8w4.digits_kd'; '_s3' is added for seed 3, nothing for seed 0."""
    config = record.config["model"]
    architecture = architecture_name(config["members"][config["deploy"]]["model"])
    return _tagged(architecture, record.benchmark, record.method, record.seed)


def _tagged(architecture: str, benchmark: str, method: str, seed: int) -> str:
    return f"{architecture}.{_word(benchmark)}_{_word(method.lower())}{f'_s{seed}' if seed else ''}"


def teacher_name(record: RunRecord) -> str | None:
    """Name of the record's teacher, with its tag where its own record is known; None without a teacher."""
    teacher = record.config["model"]["members"].get("teacher")
    if record.teacher is None or teacher is None:
        return None
    architecture = architecture_name(teacher["model"])
    # a teacher's id is 'benchmark/pair/teacher/seedN'
    parts = re.fullmatch(r"([^/]+)/[^/]+/([^/]+)/seed(\d+)", record.teacher_record or "")
    return _tagged(architecture, parts[1], parts[2], int(parts[3])) if parts else architecture


def _word(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-")
