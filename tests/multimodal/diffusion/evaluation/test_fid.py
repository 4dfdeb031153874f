"""True FID: torchmetrics' with a stub for Inception, against our distance of the same features."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from torch import Tensor, nn

from limbeck.errors import ConfigError
from limbeck.multimodal.diffusion.evaluation.features import to_pixels
from limbeck.multimodal.diffusion.evaluation.fid import inception_fid
from limbeck.multimodal.diffusion.evaluation.statistics import frechet_distance


class Stub(nn.Module):
    """uint8 (B, 3, 6, 6) to (B, 5), in float64 as it has to be."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.randn(108, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 100

    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype == torch.uint8
        assert x.shape[1:] == (3, 6, 6)
        return x.flatten(1).double() @ self.weight


def images(n: int, seed: int, channels: int = 3) -> Tensor:
    return torch.rand(n, channels, 6, 6, generator=torch.Generator().manual_seed(seed)) * 2.4 - 1.2


@pytest.mark.parametrize("channels", [1, 3])
def test_fid_with_an_extractor_is_the_frechet_distance_of_its_features(channels):
    real, generated = images(60, 0, channels), images(50, 1, channels) ** 3
    features = [Stub()(to_pixels(x).expand(-1, 3, -1, -1)).numpy() for x in (real, generated)]
    found = inception_fid(iter(real.split(16)), generated.split(7), extractor=Stub())
    assert found == pytest.approx(frechet_distance(*features), rel=1e-6)
    assert found > 0.1


def test_fid_says_what_it_lacks(tmp_path):
    real = [images(4, 0)]
    with pytest.raises(ConfigError, match=r"give weights, torch-fidelity's .* or an extractor, and not both"):
        inception_fid(real, real)
    with pytest.raises(ConfigError, match="not both"):
        inception_fid(real, real, weights="x.pth", extractor=Stub())
    with pytest.raises(ConfigError, match=r"x\.pth is no file"):
        inception_fid(real, real, weights=tmp_path / "x.pth")


@pytest.mark.skipif(find_spec("torch_fidelity") is not None, reason="torch-fidelity is installed")
def test_fid_names_the_package_that_is_missing(tmp_path):
    (tmp_path / "x.pth").write_bytes(b"")
    with pytest.raises(ConfigError, match="pip install torch-fidelity"):
        inception_fid([images(4, 0)], [images(4, 1)], weights=tmp_path / "x.pth")


def test_fid_refuses_broken_and_missing_images():
    good = images(4, 0)
    bad = good.clone()
    bad[2, 0, 0, 0] = float("nan")
    with pytest.raises(ConfigError, match="generated images have values that are not finite"):
        inception_fid([good], [bad], extractor=Stub())
    with pytest.raises(ConfigError, match="got no real ones"):
        inception_fid([], [good], extractor=Stub())
    with pytest.raises(ConfigError, match="got 1 generated"):
        inception_fid([good], [good[:1]], extractor=Stub())
