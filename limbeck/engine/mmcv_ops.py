"""mmcv's operators without a compiler: plain torch stand-ins for `mmcv._ext` where the installed mmcv has none.

`mmcv-lite` ships the Python side of mmcv's operators and not the compiled module behind them. `install` puts a module
of the same name in its place, before mmdet, mmseg or mmdet3d are imported. The stand-ins follow mmcv 2.1's conventions
(argument names and order, results written into the tensors handed in) on whatever device the tensors are; mmcv's
wrappers that ask for a CUDA device regardless are replaced with them.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Literal, NoReturn

from limbeck.errors import ConfigError, ExtraMissing

_EXT = "mmcv._ext"
_SPCONV_OPS = "spconv.pytorch.ops"

# The helper files import torch, so they are named here and loaded by `install`.
_OPS_BY_FILE = {
    "_mmcv_boxes": ("bbox_overlaps", "nms", "softnms"),
    "_mmcv_deform": ("deform_conv_backward_input", "deform_conv_backward_parameters", "deform_conv_forward"),
    "_mmcv_maps": (
        "roi_align_backward",
        "roi_align_forward",
        "sigmoid_focal_loss_backward",
        "sigmoid_focal_loss_forward",
    ),
    "_mmcv_pointnet": (
        "ball_query_forward",
        "furthest_point_sampling_forward",
        "furthest_point_sampling_with_dist_forward",
        "gather_points_backward",
        "gather_points_forward",
        "group_points_backward",
        "group_points_forward",
        "knn_forward",
        "roipoint_pool3d_forward",
        "three_interpolate_backward",
        "three_interpolate_forward",
        "three_nn_forward",
    ),
    "_mmcv_points": (
        "dynamic_point_to_voxel_backward",
        "dynamic_point_to_voxel_forward",
        "dynamic_voxelize_forward",
        "hard_voxelize_forward",
        "points_in_boxes_all_forward",
        "points_in_boxes_cpu_forward",
        "points_in_boxes_part_forward",
    ),
    "_mmcv_rotated": (
        "box_iou_rotated",
        "iou3d_boxes_overlap_bev_forward",
        "iou3d_nms3d_forward",
        "iou3d_nms3d_normal_forward",
        "nms_rotated",
    ),
}

FALLBACK_OPS: tuple[str, ...] = tuple(sorted(name for names in _OPS_BY_FILE.values() for name in names))
"""Names of the mmcv operators that the stand-in implements."""


class _FallbackOps(ModuleType):
    """Stands in for the compiled module `mmcv._ext`; an operator it lacks is a callable that raises."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):  # import machinery and inspect probe these
            raise AttributeError(name)

        def missing(*args: Any, **kwargs: Any) -> NoReturn:
            raise NotImplementedError(
                f"mmcv operator {name!r} has no stand-in in limbeck; the compiled package 'mmcv' has it: "
                "install 'mmcv' built for this torch in place of 'mmcv-lite'"
            )

        missing.__name__ = missing.__qualname__ = name
        return missing


def install() -> Literal["compiled", "fallback"]:
    """Make mmcv's operators usable and say which serve them: mmcv's compiled ones, or stand-ins in plain torch.

    Call it before mmdet, mmseg or mmdet3d are imported; calling it again changes nothing. It also arranges that spconv,
    if it is ever imported, works without CUDA (see `patch_spconv`).

    Raises: ExtraMissing without any mmcv; ConfigError when mmcv's compiled operators are there and do not load.
    """
    found = _existing_ext()
    if found is None:
        found = _build_fallback()
        sys.modules[_EXT] = found
        importlib.import_module("mmcv").__dict__["_ext"] = found
        importlib.import_module("limbeck.engine._mmcv_wrappers").replace_wrappers()
    _patch_spconv_when_imported()
    return "fallback" if isinstance(found, _FallbackOps) else "compiled"


def patch_spconv() -> bool:
    """Import spconv and let its backward run on machines without CUDA; returns whether anything was replaced.

    spconv 2.3 asks torch for the current CUDA stream even with every tensor on the CPU, where the answer goes unused.
    """
    if importlib.util.find_spec("spconv") is None:
        return False
    return _replace_stream(importlib.import_module(_SPCONV_OPS))


def _existing_ext() -> ModuleType | None:
    try:
        importlib.import_module("mmcv")
    except ModuleNotFoundError as error:
        if error.name != "mmcv":
            raise
        raise ExtraMissing("mmcv", "detection") from error
    loaded = sys.modules.get(_EXT)
    if loaded is not None:
        return loaded
    if importlib.util.find_spec(_EXT) is None:
        return None
    try:
        return importlib.import_module(_EXT)
    except ImportError as error:
        raise ConfigError(
            f"mmcv's compiled operators do not load ({error}); install an 'mmcv' built for this torch, or 'mmcv-lite'"
        ) from error


def _build_fallback() -> _FallbackOps:
    import torch

    module = _FallbackOps(_EXT, "mmcv operators in plain torch, put here by limbeck.engine.mmcv_ops.")
    # mmengine asks importlib for this spec; no loader makes it answer, rightly, that mmcv's compiled part is absent.
    module.__spec__ = ModuleSpec(_EXT, loader=None, origin=__name__)
    for file, names in _OPS_BY_FILE.items():
        helpers = importlib.import_module(f"limbeck.engine.{file}")
        for name in names:
            # Compiled operators record no graph; without this, an in-place copy would tie one to the caller's tensor.
            setattr(module, name, torch.no_grad()(getattr(helpers, name)))
    for name in ("get_compiler_version", "get_compiling_cuda_version"):
        setattr(module, name, lambda: "n/a (plain torch, limbeck)")
    return module


def _no_stream() -> int:
    return 0


def _replace_stream(ops: ModuleType) -> bool:
    import torch

    if torch.cuda.is_available():
        return False
    ops.__dict__["get_current_stream"] = _no_stream
    return True


class _SpconvLoader(Loader):
    """Runs a module's own loader, then replaces the stream look-up in it."""

    def __init__(self, inner: Loader) -> None:
        self.inner = inner

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.inner.exec_module(module)
        _replace_stream(module)


class _SpconvFinder(MetaPathFinder):
    """Waits for the first import of spconv's operators, so that runs that need no spconv do not load it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _SPCONV_OPS:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _SpconvLoader(spec.loader)
        return spec


def _patch_spconv_when_imported() -> None:
    loaded = sys.modules.get(_SPCONV_OPS)
    if loaded is not None:
        _replace_stream(loaded)
    elif not any(isinstance(finder, _SpconvFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _SpconvFinder())
