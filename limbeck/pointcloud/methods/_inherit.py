"""A narrower detector's first weights, cut out of a wider one of equal depth (TGI of SparseKD, arXiv 2205.15156)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from limbeck.errors import ConfigError, ShapeMismatch, UnknownName

WAYS = ("FNAV1", "FNAV2", "BN_SCALE", "OFA")
PARTS = ("voxel_encoder", "middle_encoder", "backbone", "neck", "bbox_head")
Pair = tuple[str, str | None]  # names of a convolution or linear layer and of its norm


@torch.no_grad()
def inherited_state(
    student: nn.Module, teacher: nn.Module, *, way: str = "FNAV2", official_bev_order: bool = False
) -> dict[str, Tensor]:
    """A state dict of the student whose every tensor is a part of the teacher's; neither network is changed.

    W_S = W_T[O_l, I_l] with I_l = O_{l−1}, batch norm and bias [O_l], layer by layer: pillar or sparse encoder, the 2D
    backbone's stages, the neck's branches, their concatenation, the head's convolutions with all their outputs. Layers
    of one width on both sides keep all channels. Where branch q of c_q channels is concatenated, its part of I is
    O_q + Σ_{r<q} c_r; where a sparse encoder's D heights are stacked, channel c at height d is c · D + d.

    Args:
        student, teacher: voxel detectors of mmdetection3d, PointPillars or SECOND, of equal depth and kernels.
        way: which channels O_l are kept, in their order: 'FNAV2', the first; 'FNAV1', the first and also the first of
            concatenated inputs, so that branches do not match; 'BN_SCALE', those of the largest |batch norm weight|;
            'OFA', those of the largest L1 norm of the kernel on its chosen inputs.
        official_bev_order: stack heights as the official code assumes, d · C_T + c, which matches at full width only.
    Returns: name → tensor, of the student's names and shapes.
    Raises: UnknownName for another way; ConfigError, ShapeMismatch for networks that do not fit.
    """
    if way not in WAYS:
        raise UnknownName("way", way, WAYS, "of teacher-guided initialisation")
    for name, net in (("student", student), ("teacher", teacher)):
        for part in PARTS:
            if not hasattr(net, part):
                raise ConfigError(
                    f"teacher-guided initialisation: the {name}, a {type(net).__name__}, has no {part}; it is for "
                    "voxel detectors as PointPillars and SECOND"
                )
    cut = _Cut(student, teacher, way)
    inputs, width = _encoder(cut, _pillars(cut), official_bev_order=official_bev_order)
    chosen, widths = [], []
    for stage, branch in zip(_names(teacher, "backbone.blocks"), _names(teacher, "neck.deblocks"), strict=True):
        inputs = cut.chain(stage, inputs, width)
        width = None
        chosen.append(cut.chain(branch, inputs))
        widths.append(cut.width(branch))
    joined = cut.joined(chosen, widths)
    for conv, _ in _pairs(teacher, "bbox_head"):
        cut.layer(conv, None, joined, whole=True)
    return cut.rest()


def _pillars(cut: _Cut) -> tuple[Tensor | None, int | None]:
    """Chosen channels of the pillar encoder and their number in the teacher; None where it learns nothing."""
    inputs, width = None, None
    layers = _pairs(cut.teacher, "voxel_encoder")
    for index, (linear, norm) in enumerate(layers):
        inputs = cut.layer(linear, norm, inputs)
        width = cut.outputs(linear)
        if index + 1 < len(layers):  # each point's features beside their maximum over the pillar
            inputs = cut.joined([inputs, inputs], [width, width])
    return inputs, width


def _encoder(
    cut: _Cut, pillars: tuple[Tensor | None, int | None], *, official_bev_order: bool
) -> tuple[Tensor | None, int | None]:
    """The same of the map that the backbone gets: the pillars', or a sparse encoder's with its heights stacked."""
    layers = _pairs(cut.teacher, "middle_encoder")
    if not layers:
        return pillars
    blocks = [type(m).__name__ for m in cast(nn.Module, cut.teacher.middle_encoder).modules()]
    if cut.way in ("BN_SCALE", "OFA") and any("BasicBlock" in name for name in blocks):
        raise ConfigError(
            f"teacher-guided initialisation: way {cut.way!r} chooses other channels on either side of a residual "
            "block's sum; use 'FNAV2'"
        )
    chosen = pillars[0]
    for conv, norm in layers:
        chosen = cut.layer(conv, norm, chosen)
    chosen = cast(Tensor, chosen)
    width = cut.outputs(layers[-1][0])
    first = _pairs(cut.teacher, _names(cut.teacher, "backbone.blocks")[0])[0][0]
    depth = cut.inputs(first) // width
    heights = torch.arange(depth, device=chosen.device)
    if official_bev_order:
        return (chosen + width * heights[:, None]).flatten(), width * depth
    return (chosen[:, None] * depth + heights).flatten(), width * depth


class _Cut:
    """Collects the student's tensors, layer by layer."""

    def __init__(self, student: nn.Module, teacher: nn.Module, way: str) -> None:
        self.student, self.teacher, self.way = student, teacher, way
        self.mine, self.theirs = student.state_dict(), teacher.state_dict()
        self.state: dict[str, Tensor] = {}

    def outputs(self, conv: str) -> int:
        """Of a layer of the teacher."""
        return self.theirs[f"{conv}.weight"].shape[_axes(self.teacher.get_submodule(conv))[0]]

    def inputs(self, conv: str) -> int:
        return self.theirs[f"{conv}.weight"].shape[_axes(self.teacher.get_submodule(conv))[1]]

    def width(self, part: str) -> int:
        """Channels that a part of the teacher ends in."""
        return self.outputs(_pairs(self.teacher, part)[-1][0])

    def chain(self, part: str, inputs: Tensor | None, width: int | None = None) -> Tensor:
        """Layers one after another; the chosen outputs of the last.

        Args:
            width: channels that the first layer must have in the teacher, where known.
        """
        layers = _pairs(self.teacher, part)
        if width is not None and self.inputs(layers[0][0]) != width:
            raise ShapeMismatch(
                f"teacher-guided initialisation: {layers[0][0]} has {self.inputs(layers[0][0])} inputs, and what comes "
                f"before it {width} channels"
            )
        for conv, norm in layers:
            inputs = self.layer(conv, norm, inputs)
        return cast(Tensor, inputs)

    def layer(self, conv: str, norm: str | None, inputs: Tensor | None, *, whole: bool = False) -> Tensor:
        """Cut one layer; its chosen outputs.

        Args:
            inputs: chosen channels of the layer before; None where the inputs are the data.
            whole: all outputs are kept.
        """
        name = f"{conv}.weight"
        if name not in self.mine:
            raise ConfigError(f"teacher-guided initialisation: the student has no {conv}; it needs the teacher's depth")
        (out, into), weight, goal = _axes(self.teacher.get_submodule(conv)), self.theirs[name], self.mine[name].shape
        inputs = torch.arange(weight.shape[into], device=weight.device) if inputs is None else inputs
        kept = weight.shape[out] if whole else goal[out]
        wanted = list(weight.shape)
        wanted[out], wanted[into] = kept, len(inputs)
        if list(goal) != wanted or kept > weight.shape[out]:
            raise ShapeMismatch(
                f"teacher-guided initialisation: {name} is {tuple(goal)} in the student, and the teacher's "
                f"{tuple(weight.shape)} gives {tuple(wanted)}; kernels, inputs and outputs of the networks must agree, "
                "and no layer of the student be wider"
            )
        weight = weight.index_select(into, inputs)
        scale = None if norm is None else self.theirs[f"{norm}.weight"]
        chosen = _choose(self.way, weight.transpose(0, out), scale, kept)
        self.state[name] = weight.index_select(out, chosen)
        for key in [f"{conv}.bias", *(f"{norm}.{k}" for k in ("weight", "bias", "running_mean", "running_var"))]:
            if key in self.theirs:
                self.state[key] = self.theirs[key].index_select(0, chosen)
        return chosen

    def joined(self, chosen: Sequence[Tensor], widths: Sequence[int]) -> Tensor:
        """Chosen channels of a concatenation of blocks that have `widths` channels in the teacher."""
        if self.way == "FNAV1":
            return torch.arange(sum(len(one) for one in chosen), device=chosen[0].device)
        return torch.cat([one + sum(widths[:q]) for q, one in enumerate(chosen)])

    def rest(self) -> dict[str, Tensor]:
        """The student's whole state; what no layer has cut is copied."""
        for key, value in self.mine.items():
            if key not in self.state:
                if key not in self.theirs or self.theirs[key].shape != value.shape:
                    raise ConfigError(
                        f"teacher-guided initialisation does not know how to cut {key} out of the teacher; it is for "
                        "PointPillars and SECOND with an anchor head"
                    )
                self.state[key] = self.theirs[key]
        # In place: the dict says by its metadata that sparse kernels are in spconv 2's order, else loading moves axes.
        for key, value in self.mine.items():
            self.mine[key] = self.state[key].to(value, copy=True)
        return self.mine


def _choose(way: str, weight: Tensor, scale: Tensor | None, count: int) -> Tensor:
    """Which `count` rows of a kernel are kept, in their order; ties by order."""
    if count == len(weight) or way.startswith("FNA") or (way == "BN_SCALE" and scale is None):
        return torch.arange(count, device=weight.device)
    value = cast(Tensor, scale).abs() if way == "BN_SCALE" else weight.abs().flatten(1).sum(1)
    return value.argsort(descending=True, stable=True)[:count].sort().values


def _axes(layer: nn.Module) -> tuple[int, int]:
    """Axes of a kernel that are its outputs and its inputs; sparse convolutions have the inputs last (spconv 2)."""
    weight = cast(Tensor, layer.weight)
    if getattr(layer, "groups", 1) != 1:
        raise ConfigError("teacher-guided initialisation cuts no grouped convolutions; use a detector without them")
    if isinstance(layer, nn.ConvTranspose2d):
        return 1, 0
    return (0, 4) if weight.dim() == 5 and not isinstance(layer, nn.Conv3d) else (0, 1)


def _names(model: nn.Module, path: str) -> list[str]:
    """Names of the parts of a list of modules."""
    return [f"{path}.{name}" for name, _ in model.get_submodule(path).named_children()]


def _pairs(model: nn.Module, path: str) -> list[Pair]:
    """Layers with a kernel below a module, in order, each with the norm beside it."""
    return list(_walk(model.get_submodule(path), path))


def _walk(module: nn.Module, path: str) -> Iterator[Pair]:
    if _has_kernel(module):
        yield path, None
        return
    children = list(module.named_children())
    norms = [name for name, child in children if isinstance(child, _BatchNorm)]
    for name, child in children:
        if _has_kernel(child):
            yield f"{path}.{name}", f"{path}.{norms.pop(0)}" if norms else None
        else:
            yield from _walk(child, f"{path}.{name}")


def _has_kernel(module: Any) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() > 1
