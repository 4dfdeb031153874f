"""mmcv's deformable convolution (DCNv1, arXiv 1703.06211), in torchvision."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import deform_conv2d

Pair = tuple[int, int]


def _convolve(
    input: Tensor, offset: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair, result: torch.dtype
) -> Tensor:
    """Groups follow from the shapes of weight and offset; offsets are y, x of each cell of the kernel in both."""
    # Offsets in half precision lose their fractions, so narrow types are convolved in float32.
    wide = torch.float32 if result in (torch.float16, torch.bfloat16) else result
    maps, moved, kernel = (x.to(wide) for x in (input, offset, weight))
    return deform_conv2d(maps, moved, kernel, stride=stride, padding=padding, dilation=dilation).to(result)


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,  # noqa: N803 (mmcv passes them by these names)
    kH: int,  # noqa: N803
    dW: int,  # noqa: N803
    dH: int,  # noqa: N803
    padW: int,  # noqa: N803
    padH: int,  # noqa: N803
    dilationW: int,  # noqa: N803
    dilationH: int,  # noqa: N803
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """mmcv `deform_conv_forward`: convolution whose kernel cells are moved by offsets, written to `output`.

    Args:
        input: (B, C, H, W); 0 outside, bilinear between pixels.
        weight: (O, C / group, kH, kW).
        offset: (B, 2 · deformable_group · kH · kW, h, w), y then x of each cell.
        output: (B, O, h, w).
        columns, ones, im2col_step: ignored; the compiled operator's working memory.
    """
    output.copy_(_convolve(input, offset, weight, (dH, dW), (padH, padW), (dilationH, dilationW), output.dtype))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,  # noqa: N803
    gradInput: Tensor,  # noqa: N803
    gradOffset: Tensor,  # noqa: N803
    weight: Tensor,
    columns: Tensor,
    kW: int,  # noqa: N803
    kH: int,  # noqa: N803
    dW: int,  # noqa: N803
    dH: int,  # noqa: N803
    padW: int,  # noqa: N803
    padH: int,  # noqa: N803
    dilationW: int,  # noqa: N803
    dilationH: int,  # noqa: N803
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """mmcv `deform_conv_backward_input`: gradient added to `gradInput`, and written to `gradOffset`."""
    maps, moved = (x.detach().requires_grad_() for x in (input, offset))
    shape = (dH, dW), (padH, padW), (dilationH, dilationW)
    with torch.enable_grad():
        found = _convolve(maps, moved, weight.detach(), *shape, gradOutput.dtype)
    for_maps, for_offset = torch.autograd.grad(found, (maps, moved), gradOutput)
    gradInput.add_(for_maps)
    gradOffset.copy_(for_offset)


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,  # noqa: N803
    gradWeight: Tensor,  # noqa: N803
    columns: Tensor,
    ones: Tensor,
    kW: int,  # noqa: N803
    kH: int,  # noqa: N803
    dW: int,  # noqa: N803
    dH: int,  # noqa: N803
    padW: int,  # noqa: N803
    padH: int,  # noqa: N803
    dilationW: int,  # noqa: N803
    dilationH: int,  # noqa: N803
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """mmcv `deform_conv_backward_parameters`: `scale` times the gradient, added to `gradWeight`."""
    # The convolution is linear in its weight, so the gradient is the same at any: zeros serve.
    weight = torch.zeros_like(gradWeight).requires_grad_()
    shape = (dH, dW), (padH, padW), (dilationH, dilationW)
    with torch.enable_grad():
        found = _convolve(input.detach(), offset.detach(), weight, *shape, gradOutput.dtype)
    gradWeight.add_(torch.autograd.grad(found, weight, gradOutput)[0], alpha=scale)
