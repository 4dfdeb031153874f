"""mmcv's operators on feature maps and logits, in torch and torchvision."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import roi_align

_AVERAGE = 1


def _pool(
    maps: Tensor, rois: Tensor, size: tuple[int, int], scale: float, sampling_ratio: int, aligned: bool
) -> Tensor:
    # Box corners in half precision are whole pixels beyond 2048, so narrow types are pooled in float32.
    wide = maps.float() if maps.dtype in (torch.float16, torch.bfloat16) else maps
    return roi_align(wide, rois.to(wide.dtype), size, scale, sampling_ratio, aligned).to(maps.dtype)


def _require_average(pool_mode: int) -> None:
    if pool_mode != _AVERAGE:
        raise NotImplementedError(
            "mmcv operator 'roi_align' with pool_mode='max' has no stand-in here; the compiled package 'mmcv' has it"
        )


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """mmcv `roi_align_forward`: bilinear samples averaged in each bin, written to `output`.

    Args:
        input: (B, C, H, W).
        rois: (R, 5) as (image index, x1, y1, x2, y2) in the image's pixels.
        output: (R, C, aligned_height, aligned_width).
    Raises: NotImplementedError for max pooling (pool_mode 0).
    """
    _require_average(pool_mode)
    output.copy_(_pool(input, rois, (aligned_height, aligned_width), spatial_scale, sampling_ratio, aligned))


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """mmcv `roi_align_backward`: gradient for the maps (B, C, H, W), added to `grad_input`.

    Raises: NotImplementedError for max pooling (pool_mode 0).
    """
    _require_average(pool_mode)
    # Pooling is linear in the maps, so its gradient is the same at any of them: zeros serve.
    maps = torch.zeros_like(grad_input).requires_grad_()
    with torch.enable_grad():
        pooled = _pool(maps, rois, (aligned_height, aligned_width), spatial_scale, sampling_ratio, aligned)
    grad_input.add_(torch.autograd.grad(pooled, maps, grad_output)[0])


def _class_weight(weight: Tensor, target: Tensor) -> Tensor | float:
    return weight[target][:, None] if weight.numel() else 1.0


def _is_target(input: Tensor, target: Tensor) -> Tensor:
    return target[:, None] == torch.arange(input.shape[1], device=input.device)


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """mmcv `sigmoid_focal_loss_forward` (focal loss, arXiv 1708.02002, eq. 5): one term a class, written to `output`.

    Args:
        input: logits (N, C).
        target: class of each row (N,); C means background.
        weight: (C,) by the row's class, or empty.
        output: (N, C).
    """
    p = input.sigmoid()
    tiny = torch.finfo(torch.float32).tiny
    positive = -alpha * (1 - p).pow(gamma) * p.clamp(min=tiny).log()
    negative = -(1 - alpha) * p.pow(gamma) * (1 - p).clamp(min=tiny).log()
    output.copy_(torch.where(_is_target(input, target), positive, negative) * _class_weight(weight, target))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """mmcv `sigmoid_focal_loss_backward`: derivative of each term by its logit (N, C), written to `grad_input`."""
    p = input.sigmoid()
    tiny = torch.finfo(torch.float32).tiny
    positive = -alpha * (1 - p).pow(gamma) * (1 - p - gamma * p * p.clamp(min=tiny).log())
    negative = -(1 - alpha) * p.pow(gamma) * (gamma * (1 - p) * (1 - p).clamp(min=tiny).log() - p)
    grad_input.copy_(torch.where(_is_target(input, target), positive, negative) * _class_weight(weight, target))
