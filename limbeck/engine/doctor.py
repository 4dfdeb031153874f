"""What is installed and usable on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Literal

PACKAGES = {
    "torch": "base",
    "torchvision": "base",
    "timm": "base",
    "mmengine": "base",
    "mmdet": "detection",
    "mmsegmentation": "segmentation",
    "mmdet3d": "pointcloud",
    "spconv": "pointcloud",
    "open_clip_torch": "multimodal",
    "diffusers": "diffusion",
    "ray": "bench",
    "onnx": "export",
}


@dataclass(frozen=True)
class Check:
    """One line of the diagnosis."""

    what: str
    state: Literal["ok", "absent", "broken"]
    detail: str


def diagnose() -> list[Check]:
    """Packages, accelerator, and which mmcv ops are in use."""
    checks = []
    for package, extra in PACKAGES.items():
        try:
            checks.append(Check(package, "ok", version(package)))
        except PackageNotFoundError:
            checks.append(
                Check(package, "absent", f"pip install 'limbeck[{extra}]'" if extra != "base" else "reinstall limbeck")
            )
    checks.append(_accelerator())
    if find_spec("mmcv") is not None:
        from limbeck.engine.mmcv_ops import install

        used = install()
        detail = "mmcv's compiled ops" if used == "compiled" else "torch fallback for the ops that our models reach"
        checks.append(Check("mmcv ops", "ok", detail))
    return checks


def _accelerator() -> Check:
    if find_spec("torch") is None:
        return Check("GPU", "absent", "torch is not installed")
    import torch

    if torch.cuda.is_available():
        return Check("GPU", "ok", torch.cuda.get_device_name(0))
    return Check("GPU", "absent", f"torch sees none; runs use the CPU with {torch.get_num_threads()} threads")
