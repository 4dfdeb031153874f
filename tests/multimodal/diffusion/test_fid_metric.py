"""FID as a metric: the distance of the features of all images, whatever the batches; what it lacks is said early."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("diffusers", reason="needs the 'multimodal' extra")

from limbeck.engine.config import PairConfig, expand, parse
from limbeck.engine.registry import DATASETS, METRICS
from limbeck.engine.run import execute
from limbeck.errors import ConfigError, DataMissing
from limbeck.multimodal.diffusion import fid_metric
from limbeck.multimodal.diffusion.evaluation import fid
from limbeck.multimodal.diffusion.evaluation.features import to_pixels
from limbeck.multimodal.diffusion.evaluation.statistics import frechet_distance
from tests.multimodal.diffusion.toys import options, toy_pair

REAL = dict(type="Digits", split="test", limit=60)


class Stub(nn.Module):
    """Five features, in the place of Inception's 2,048."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(192, 5, generator=generator, dtype=torch.float64) / 100)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).double() @ self.weight.detach()


@pytest.fixture
def stubbed(monkeypatch, tmp_path) -> Path:
    """A file that passes for Inception's weights."""
    monkeypatch.setattr(fid, "find_spec", lambda name: object())
    monkeypatch.setattr(fid, "_inception", lambda weights: fid._custom(Stub(), torch.zeros(1, 3, 8, 8)))
    place = tmp_path / "inception" / fid.WEIGHTS
    place.parent.mkdir()
    place.write_bytes(b"")
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path))
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    return place


def made(count: int, seed: int = 0, calls: int = 4) -> list[dict[str, Any]]:
    images = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2.2 - 1.1
    return [dict(image=images, label=torch.zeros(count), calls=torch.full((count,), calls))]


@pytest.mark.parametrize("batch_size", [7, 250])
def test_it_is_the_frechet_distance_of_all_images_in_the_features(stubbed, batch_size):
    metric = METRICS.make(dict(type="FIDMetric", reference=REAL, batch_size=batch_size, device="cpu"))
    metric.update(made(30))
    metric.update(made(20, seed=1, calls=9), teacher=made(20, seed=2))
    real = DATASETS.make(REAL).__getitems__(range(60))["inputs"]
    generated = torch.cat([made(30)[0]["image"], made(20, seed=1)[0]["image"]])
    features = [Stub()(pixels.expand(-1, 3, -1, -1)).numpy() for pixels in (real, to_pixels(generated))]
    values = metric.values()
    assert values == pytest.approx({"FID": frechet_distance(*features), "calls": (30 * 4 + 20 * 9) / 50}, rel=1e-6)
    assert values["FID"] > 0.1
    assert metric.per_class() == {}
    metric.reset()
    metric.update([dict(image=image, label=0) for image in made(30)[0]["image"]])  # one by one, and no calls
    features[1] = Stub()(to_pixels(made(30)[0]["image"]).expand(-1, 3, -1, -1)).numpy()
    assert metric.values() == pytest.approx({"FID": frechet_distance(*features)}, rel=1e-6)


def test_broken_images_and_a_wrong_batch_size_are_refused(stubbed):
    metric = METRICS.make(dict(type="FIDMetric", reference=REAL))
    with pytest.raises(ConfigError, match="not finite"):
        metric.update([dict(image=torch.full((2, 1, 8, 8), torch.nan), label=torch.zeros(2))])
    with pytest.raises(ConfigError, match="got 0 generated"):
        metric.values()
    with pytest.raises(ConfigError, match="batch_size of FIDMetric is 1 or more; got 0"):
        METRICS.make(dict(type="FIDMetric", reference=REAL, batch_size=0))


def test_missing_weights_say_where_they_belong(monkeypatch, tmp_path):
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path))
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataMissing, match=rf"torch-fidelity's {fid.WEIGHTS} and put it into \$LIMBECK_DATA/inception"):
        fid_metric.inception_weights()
    with pytest.raises(ConfigError, match=r"gone\.pth is no file"):
        METRICS.make(dict(type="FIDMetric", reference=REAL, weights="gone.pth"))


@pytest.mark.skipif(find_spec("torch_fidelity") is not None, reason="torch-fidelity is installed")
def test_the_missing_package_is_named(tmp_path):
    (tmp_path / "x.pth").write_bytes(b"")
    with pytest.raises(ConfigError, match="pip install torch-fidelity"):
        METRICS.make(dict(type="FIDMetric", reference=REAL, weights=str(tmp_path / "x.pth")))


def test_a_run_that_lacks_the_weights_stops_before_it_trains(monkeypatch, tmp_path):
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path))
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    metric = dict(type="FIDMetric", primary="FID", higher_is_better=False, options=dict(reference=REAL))
    pair = parse(PairConfig, {**toy_pair().model_dump(), "metric": metric}, "toy")
    with pytest.raises(DataMissing, match="inception"):
        execute(expand(pair, "teacher", 0), options(tmp_path))
    assert not list((tmp_path / "runs").rglob("epoch*"))
    assert not list((tmp_path / "runs").rglob("log.jsonl"))
