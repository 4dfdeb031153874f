"""Profile: what a student costs on this machine."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from limbeck.engine.cost import PeakMemory, count_flops, count_parameters, cpu_name, measure_latency, set_threads
from limbeck.errors import ConfigError
from limbeck.zoo.load import load_student
from limbeck.zoo.verify import ready

RUNS, WARMUP = 100, 10


@dataclass(frozen=True, slots=True)
class Profile:
    """A student's cost.

    p50_ms, p95_ms: of single-sample forwards, after a warm-up; of a diffusion model of making one image.
    peak_memory_mb: peak of the process while it ran, or of the GPU where one is used; in MB of 10⁶ bytes.
    flops: 2 per multiply-add, one sample; None where they cannot be counted.
    sample: 'real', 'random' where the test data is absent, or 'noise'.
    card_ms, card_device: what the card states, measured where its record was made; None where it does not.
    """

    name: str
    p50_ms: float
    p95_ms: float
    runs: int
    peak_memory_mb: float
    parameters: int
    flops: int | None
    device: str
    threads: int
    torch: str
    sample: str
    card_ms: float | None
    card_device: str | None

    def to_dict(self) -> dict[str, Any]:
        """The profile as JSON values."""
        return asdict(self)


def profile_student(
    name: str,
    *,
    runs: int = RUNS,
    warmup: int = WARMUP,
    device: str = "cpu",
    threads: int | None = None,
    zoo_dir: str | Path | None = None,
) -> Profile:
    """Measure a student on one of its test samples.

    Args:
        threads: that torch uses; as it is set where not given.
    Raises: ConfigError for numbers out of range; what `load_student` raises.
    """
    if runs < 2 or warmup < 0 or (threads is not None and threads < 1):
        raise ConfigError(f"runs is 2 or more, warmup 0 or more, threads 1 or more; got {runs}, {warmup}, {threads}")
    before = torch.get_num_threads()
    set_threads(threads)
    try:
        model = load_student(name, device=device, zoo_dir=zoo_dir)
        place = next(model.parameters()).device
        function, inputs, origin = ready(model)
        example = _on(inputs[0][:1], place)
        peak = PeakMemory(place)
        times = measure_latency(function, example, runs=runs, warmup=warmup)
        memory = peak.megabytes()
        return Profile(
            name=model.card.name,  # type: ignore[union-attr]  # nn.Module types attributes as tensors or modules
            p50_ms=float(np.percentile(times, 50)),
            p95_ms=float(np.percentile(times, 95)),
            runs=runs,
            peak_memory_mb=memory,
            parameters=count_parameters(model),
            flops=_flops(function, example),
            device=torch.cuda.get_device_name(place) if place.type == "cuda" else cpu_name(),
            threads=torch.get_num_threads(),
            torch=torch.__version__,
            sample=origin,
            card_ms=model.card.latency_ms,  # type: ignore[union-attr]
            card_device=model.card.latency_device,  # type: ignore[union-attr]
        )
    finally:
        torch.set_num_threads(before)


def _on(example: Any, place: torch.device) -> Any:
    """A batch of images, or a cloud's voxels, on a device."""
    if isinstance(example, torch.Tensor):
        return example.to(place)
    from limbeck.pointcloud.voxels import voxelize

    return voxelize([points.to(place) for points in example.points], example.grid)


def _flops(function: torch.nn.Module, example: Any) -> int | None:
    """None where torch's counter finds none, as of sparse convolutions."""
    try:
        return count_flops(function, example) or None
    except NotImplementedError:
        return None
