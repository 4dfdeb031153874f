"""Cost: parameters, floating-point operations, latency, peak memory, and what machine this is."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from limbeck import __version__
from limbeck.engine.record import Environment


@runtime_checkable
class Example(Protocol):
    """A batch that a network can be measured on: a tensor, or what has its length, slices and place as one has."""

    @property
    def is_cuda(self) -> bool: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice, /) -> Any: ...


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, trained or not."""
    return sum(p.numel() for p in model.parameters())


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode; every module gets its own mode back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def count_flops(model: nn.Module, example: Example) -> int:
    """Floating-point operations of one sample's forward, two per multiply-add, as torch's counter has them.

    Args:
        example: a batch; the count is divided by its length.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the counter does not see into the fused attention layer
    try:
        with evaluating(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(example)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return counter.get_total_flops() // len(example)


def measure_latency(model: nn.Module, example: Example, *, runs: int = 50, warmup: int = 10) -> list[float]:
    """Milliseconds of single-sample forwards, one per run, after a warm-up."""
    one, times = example[:1], []
    with evaluating(model), torch.inference_mode():
        for index in range(warmup + runs):
            start = time.perf_counter()
            model(one)
            if one.is_cuda:
                torch.cuda.synchronize()
            if index >= warmup:
                times.append((time.perf_counter() - start) * 1e3)
    return times


def median_latency(model: nn.Module, example: Example, *, blocks: int = 5) -> float:
    """Median milliseconds of a single-sample forward, in the quietest of several blocks: other work only adds time."""
    return min(statistics.median(measure_latency(model, example, runs=30)) for _ in range(blocks))


class PeakMemory:
    """Peak resident memory since construction: of the GPU where one is used, else of this process."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._reset = False
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")  # Linux: start the high-water mark anew
            self._reset = True
        except OSError:
            pass

    def megabytes(self) -> float:
        """The peak so far."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e6
        if self._reset:
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024 / 1e6
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


@cache
def cpu_name() -> str:
    """The processor's model."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@cache
def git_state() -> tuple[str | None, bool | None]:
    """Commit of the checkout that this code runs from and whether it is dirty; None outside one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None, None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit, bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return None, None


def _git(root: Path, *args: str) -> str:
    return subprocess.run(["git", "-C", str(root), *args], check=True, capture_output=True, text=True).stdout.strip()


def environment(device: torch.device, *, concurrent_jobs: int = 1, world_size: int = 1) -> Environment:
    """Where this process runs."""
    commit, dirty = git_state()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return Environment(
        device=name,
        cpu=cpu_name(),
        threads=torch.get_num_threads(),
        concurrent_jobs=concurrent_jobs,
        world_size=world_size,
        platform=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        torch=torch.__version__,
        limbeck=__version__,
        git_commit=commit,
        git_dirty=dirty,
    )


def set_threads(threads: int | None) -> None:
    """Bound torch's threads, and those of libraries that read the environment later."""
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)
