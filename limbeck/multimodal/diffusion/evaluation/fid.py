"""True FID, for users who have Inception's weights: torchmetrics does it all."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import ConfigError
from limbeck.multimodal.diffusion.evaluation.features import to_pixels

INCEPTION_DIM = 2048
WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"  # torch-fidelity's name of the file


@torch.no_grad()
def inception_fid(
    real: Iterable[Tensor],
    generated: Iterable[Tensor],
    *,
    weights: str | Path | None = None,
    extractor: nn.Module | None = None,
    device: str = "cpu",
) -> float:
    """Fréchet Inception distance (arXiv 1706.08500) by torchmetrics; nothing is downloaded.

    Args:
        real, generated: batches of float images (B, C, H, W) in [−1, 1]; one grey channel is repeated to three.
        weights: file with the Inception weights of the package torch-fidelity, which has to be installed.
        extractor: instead of it, a module that takes uint8 images (B, 3, H, W) to features (B, d). The distance is a
            FID only if that is the Inception network.
        device: torch's name of where the features are computed.
    Raises: ConfigError unless one of the two is given; without torch-fidelity or the file; for images that are not
        finite, or fewer than two on a side.
    """
    if (weights is None) == (extractor is None):
        raise ConfigError(
            f"FID needs Inception's features: give weights, torch-fidelity's {WEIGHTS}, or an extractor, and not both"
        )
    batches = iter(real)
    first = next(batches, None)
    if first is None:
        raise ConfigError("FID needs at least two images on each side; got no real ones")
    metric = _inception(Path(weights)) if weights is not None else _custom(extractor, first)
    metric.to(device)
    for name, part in (("real", chain([first], batches)), ("generated", generated)):
        count = 0
        for images in part:
            if not images.isfinite().all():
                raise ConfigError(
                    f"FID: {name} images have values that are not finite; look for NaN in the model's weights"
                )
            pixels = to_pixels(images).to(device)
            metric.update(pixels.repeat(1, 3, 1, 1) if pixels.shape[1] == 1 else pixels, real=name == "real")
            count += len(images)
        if count < 2:
            raise ConfigError(f"FID needs at least two images on each side; got {count} {name}")
    return float(metric.compute())


def _custom(extractor: Any, images: Tensor) -> Any:
    from torchmetrics.image.fid import FrechetInceptionDistance

    # The size of the image by which torchmetrics finds d, where the module has no num_features.
    return FrechetInceptionDistance(extractor, input_img_size=(3, images.shape[-2], images.shape[-1]))


def check_inception(weights: Path) -> None:
    """Raises: ConfigError without the file, or the package that reads it."""
    if not weights.is_file():
        raise ConfigError(f"FID: {weights} is no file; download torch-fidelity's Inception weights and name them")
    if find_spec("torch_fidelity") is None:
        raise ConfigError(
            "FID with Inception weights needs the package torch-fidelity; install it with: pip install torch-fidelity"
        )


def _inception(weights: Path) -> Any:
    from torchmetrics.image.fid import FrechetInceptionDistance

    check_inception(weights)
    return FrechetInceptionDistance(INCEPTION_DIM, feature_extractor_weights_path=str(weights))
