"""Feature nets: small classifiers that we trained, whose features and labels the metrics of generated images use.

For each data set there are two of one architecture, trained from other seeds: 'features', which gives the features, and
'judge', which says what class an image shows, so that no net is both. `benchmarks/feature_net.py` trains and writes
them; `weights/feature_nets.json` has their accuracy. Figures are comparable under the same net alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.weights import load_into
from limbeck.errors import ConfigError, UnknownName

Role = Literal["features", "judge"]
ROLES: tuple[Role, ...] = ("features", "judge")
LEVELS = 255  # grey levels from 0
FOLDER = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class NetSpec:
    """One architecture and the data set that it is trained on.

    dataset: registered name. image: (C, H, W). channels, strides: of the three convolutions. dim: d of the features.
    sha256: of the weight file of each role.
    """

    dataset: str
    image: tuple[int, int, int]
    channels: tuple[int, int, int]
    strides: tuple[int, int, int]
    dim: int
    sha256: dict[Role, str]
    num_classes: int = 10


NETS = {
    "fashion-mnist": NetSpec(
        dataset="FashionMNIST",
        image=(1, 28, 28),
        channels=(32, 64, 128),
        strides=(2, 2, 1),
        dim=64,
        sha256={
            "features": "f405e61dd00a8758246d14d815d212e31d0e9da81396250006a806fff1070041",
            "judge": "d3186b314dfd4e749b13acd846f6385b302f97309c36a61f037a884a645a6213",
        },
    ),
    # ASSUMPTION: d = 16. The 450 test digits are to be at least 20 d, and metrics.md has 64 for thousands of images.
    "digits": NetSpec(
        dataset="Digits",
        image=(1, 8, 8),
        channels=(32, 64, 64),
        strides=(1, 2, 1),
        dim=16,
        sha256={
            "features": "d0a7adeefe0e17cc32de7ec665638dddf18a3858ad766678495dc2a28c2b01f4",
            "judge": "fdde994bf0ceb1e1ab9478462d97ed3461db1d34cf30554d97480c5487318f35",
        },
    ),
}


def to_pixels(images: Tensor) -> Tensor:
    """Images in [−1, 1] to uint8 of the same shape: clipped, then rounded to 256 grey levels, as real images are."""
    return ((images.clamp(-1.0, 1.0) + 1.0) * (LEVELS / 2)).round().to(torch.uint8)


def from_pixels(pixels: Tensor) -> Tensor:
    """Pixels uint8 to float32 images in [−1, 1]."""
    return pixels.float() / (LEVELS / 2) - 1.0


class FeatureNet(nn.Module):
    """Three 3 × 3 convolutions with batch norm and ReLU, global average pool, linear to d features, ReLU, linear.

    Takes float images (B, C, H, W) in [−1, 1], which are brought to 256 grey levels first. Features are before the
    ReLU, and standardised by the mean and deviation of the training split, which are buffers.

    Args:
        image: (C, H, W). channels, strides: of the convolutions. dim: d. num_classes: K.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        image: tuple[int, int, int] = (1, 28, 28),
        channels: Sequence[int] = (32, 64, 128),
        strides: Sequence[int] = (2, 2, 1),
        dim: int = 64,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        self.image = image
        layers: list[nn.Module] = []
        for before, after, stride in zip((image[0], *channels), channels, strides, strict=False):
            layers += [nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.convolutions = nn.Sequential(*layers)
        self.embedding = nn.Linear(channels[-1], dim)
        self.classifier = nn.Linear(dim, num_classes)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    def embed(self, x: Tensor) -> Tensor:
        """Features (B, d) that are not standardised yet. Raises: ConfigError for images of another size."""
        if tuple(x.shape[1:]) != self.image:
            raise ConfigError(
                f"this feature net takes images (B, {', '.join(map(str, self.image))}); got {tuple(x.shape)}: "
                "choose the features of this data set"
            )
        return self.embedding(self.convolutions(from_pixels(to_pixels(x))).mean((2, 3)))

    def features(self, x: Tensor) -> Tensor:
        """Standardised features (B, d)."""
        return (self.embed(x) - self.mean) / self.std

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K)."""
        return self.classifier(F.relu(self.embed(x)))


def net_spec(name: str) -> NetSpec:
    """The entry of `NETS`. Raises: UnknownName."""
    if name not in NETS:
        raise UnknownName("feature net", name, NETS)
    return NETS[name]


def build_net(name: str) -> FeatureNet:
    """A net with new weights. Raises: UnknownName."""
    spec = net_spec(name)
    return FeatureNet(spec.image, spec.channels, spec.strides, spec.dim, spec.num_classes)


def weight_file(name: str, role: Role, folder: Path = FOLDER) -> Path:
    """Where the weights of a net lie."""
    return folder / f"{name}-{role}.safetensors"


@cache
def load_features(name: str, role: Role = "features") -> FeatureNet:
    """A shipped net on the CPU, frozen, in evaluation mode; the same object every time.

    Args:
        name: 'fashion-mnist' or 'digits'. role: 'features' or 'judge'.
    Raises: UnknownName; CorruptFile when the file is not the one that was shipped.
    """
    spec = net_spec(name)
    if role not in ROLES:
        raise UnknownName("role of a feature net", role, ROLES)
    net = build_net(name)
    load_into(net, weight_file(name, role), sha256=spec.sha256[role])
    return net.eval().requires_grad_(False)


@torch.no_grad()
def extract(net: FeatureNet, pixels: Tensor, *, batch: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """Standardised features float64 (N, d) and the likeliest classes int64 (N,) of pixels uint8 (N, C, H, W).

    Raises: ConfigError for images of another size.
    """
    features, predicted = [], []
    for part in pixels.split(batch):
        embedded = net.embed(from_pixels(part))
        features.append((embedded - net.mean) / net.std)
        predicted.append(net.classifier(F.relu(embedded)).argmax(1))
    return torch.cat(features).double().numpy(), torch.cat(predicted).numpy()
