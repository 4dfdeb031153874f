"""Steps that the ratios are made of: the engine's own loop, and hand-written floors for the same work."""

from __future__ import annotations

import time
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.subset import first
from limbeck.engine import hooks
from limbeck.engine.adapter import Batch
from limbeck.engine.config import MethodConfig, PairConfig, TeacherConfig, TrainedTeacher, expand, load_pair
from limbeck.engine.distiller import Distiller
from limbeck.engine.prepare import prepare_links
from limbeck.engine.registry import ADAPTERS, DATASETS, MODELS
from limbeck.engine.run import RunOptions, execute, train_loader
from limbeck.engine.runner import build_optim_wrapper
from limbeck.engine.weights import save_weights
from limbeck.vision.data.base import ArrayDataset
from limbeck.vision.methods.kd import kd_loss

hooks.REPORT_SECONDS = 0.0  # every step
WARMUP = 5


@DATASETS.register_module()
class RandomImages(ArrayDataset):
    """Noise with random labels, cropped and flipped: what a step costs does not depend on what is seen."""

    name = "random"

    def __init__(self, split: str = "train", *, samples: int, size: int, views: int = 0, seed: int = 0) -> None:
        generator = np.random.default_rng(0)
        pixels = generator.integers(0, 256, (samples, 3, size, size), dtype=np.uint8)
        labels = generator.permutation(samples) % 100  # every class, where there are samples enough
        self.classes = [str(n) for n in range(100)]
        super().__init__(split, pixels, labels, augment=dict(pad=4, flip=True), views=views, seed=seed, limit=None)


def pair(
    *, batch: int = 64, size: int = 64, views: int = 0, cache: bool = False, samples: int = 1600, epochs: int = 1
) -> PairConfig:
    """A ResNet pair on random images: the work of a KD step, without a data set to fetch."""
    shape = dict(in_chans=3, num_classes=100, input_size=(3, size, size))
    data = dict(type="RandomImages", samples=samples, size=size, views=views)
    return PairConfig.model_validate(
        dict(
            task="image-classification",
            benchmark="perf",
            pair="resnet20-resnet8",
            data=dict(train=data, val=dict(data, samples=batch), test=dict(data, samples=batch), batch_size=batch),
            adapter=dict(type="VisionAdapter"),
            metric=dict(type="ClassificationMetric"),
            teacher=dict(type="CIFARResNet", depth=20, width=16, **shape),
            student=dict(type="CIFARResNet", depth=8, width=16, **shape),
            recipe=dict(epochs=epochs, optimizer=dict(type="SGD", lr=0.01, momentum=0.9)),
            cache=dict(dtype="float16") if cache else None,
            methods=dict(KD=dict(task_weight=0.1, links=[dict(type="KD", weight=0.9)])),
        )
    )


def every_method(config: PairConfig) -> PairConfig:
    """The pair with every method that the package has, each with the links that the suites give it."""
    small = load_pair("vision/fashion_mnist").methods
    methods = {name: spec.model_copy(deep=True) for name, spec in small.items()}
    methods["SimKD"].student = dict(type="SimKDStudent", student=config.student, teacher_channels=64, num_classes=100)
    two = ["teacher", "second"]
    links = dict(
        EnsembleKD=dict(type="EnsembleKD", teacher=two),
        MEALV2=dict(type="MEALV2", teacher=two),
        ScaleKD=dict(type="ScaleKD", taps=[("layer3", "layer2"), ("layer3", "layer3")], teacher_last=["layer3"]),
    )
    methods |= {name: MethodConfig(links=[link], task_weight=0.5) for name, link in links.items()}
    return config.model_copy(
        update=dict(methods=methods, teachers=dict(second=TeacherConfig(model=config.teacher, recipe=None)))
    )


def shipped_pair(name: str, samples: int) -> PairConfig:
    """A shipped config's pair, on so many of its own training images: one epoch, nothing cached, no second student."""
    config = load_pair(name)
    counts = dict(train=samples, val=config.data.batch_size, test=config.data.batch_size)
    few: dict[str, Any] = {split: first(getattr(config.data, split), count) for split, count in counts.items()}
    methods = {n: m for n, m in config.methods.items() if not m.companions and m.same_run_as is None}
    return config.model_copy(
        update=dict(
            data=config.data.model_copy(update={**few, "also": {}}),
            recipe=config.recipe.model_copy(update=dict(epochs=1, param_scheduler=[])),
            cache=None,
            teacher_of=None,
            methods=methods,
        )
    )


def alternating_steps(config: PairConfig, method: str, weights: str) -> list[float]:
    """A method's step ÷ (plain step + frozen members' forwards), batch by batch, after each other in one process.

    What slows the machine for a while slows all three, so that a step's ratio is steadier than one of two runs.
    Loading of the batch, equal for all, is left out.
    """
    others = {name: TrainedTeacher(weights) for name in config.teachers}
    runs = [expand(config, "plain", 0), expand(config, method, 0, teacher_weights=weights, trained=others)]
    sides = []
    for run in runs:
        model = Distiller(**{k: v for k, v in run.model.items() if k != "type"}, seed=0)
        prepare_links(model, run)
        model.train()
        sides.append((model, build_optim_wrapper(model, model.methods(), run.recipe)))
    distilling = sides[1][0]

    def step(side: int, data: dict) -> float:
        model, wrapper = sides[side]
        begun = time.perf_counter()
        model.train_step(data, wrapper)
        return time.perf_counter() - begun

    def forward(data: dict) -> float:
        seen = distilling.data_preprocessor(data, training=True)
        batch = distilling.adapter.batch(seen["inputs"], seen["data_samples"])
        begun = time.perf_counter()
        with torch.no_grad():
            for member in distilling.frozen.values():
                inputs = distilling.adapter.member_inputs(batch, distilling.deploy, member)
                distilling.adapter.forward(member, inputs, batch, with_loss=False)
        return time.perf_counter() - begun

    ratios = []
    for index, data in enumerate(train_loader(runs[1])):
        for model, _ in sides:
            model.iteration, model.progress = index, 0.5
        seconds = {}
        for part in ("plain", "teacher", "method") if index % 2 else ("method", "teacher", "plain"):
            copy = deepcopy(data)
            seconds[part] = forward(copy) if part == "teacher" else step(("plain", "method").index(part), copy)
        ratios.append(seconds["method"] / (seconds["plain"] + seconds["teacher"]))
    return ratios


def teacher_weights(config: PairConfig, folder: Path) -> str:
    """Random weights on disk: what a step costs does not depend on what they are."""
    torch.manual_seed(0)
    path = folder / "teacher.safetensors"
    save_weights(path, MODELS.make(config.teacher).state_dict(), metadata={})
    return str(path)


def engine_steps(config: PairConfig, method: str, weights: str, out: Path, cache: Path | None = None) -> list[float]:
    """Seconds of every step of one run through the engine, whole loop included: data, hooks, checks."""
    others = {name: TrainedTeacher(weights) for name in config.teachers}
    run = expand(config, method, 0, teacher_weights=None if method == "plain" else weights, trained=others)
    times: list[float] = []
    execute(
        run,
        RunOptions(
            out=out,
            cache=cache,
            threads=torch.get_num_threads(),
            latency_ms=0.0,
            progress=lambda stage, done, total: times.append(time.perf_counter()),
        ),
    )
    return [b - a for a, b in pairwise(times)]


def bare_steps(config: PairConfig, method: str, weights: str) -> list[float]:
    """The same work in the shortest loop one would write by hand: no runner, no hooks, no checks."""
    run = expand(config, method, 0, teacher_weights=None if method == "plain" else weights)
    loader = train_loader(run)
    student = MODELS.make(config.student).train()
    teacher = MODELS.make(config.teacher).eval().requires_grad_(False)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9)
    mean = torch.tensor(student.normalization.mean).view(-1, 1, 1)
    std = torch.tensor(student.normalization.std).view(-1, 1, 1)
    times = [time.perf_counter()]
    for data in loader:
        images = (data["inputs"].float() / 255 - mean) / std
        with torch.no_grad():
            soft = teacher(images) if method != "plain" else None
        logits = student(images)
        loss = F.cross_entropy(logits, data["data_samples"]["labels"])
        if soft is not None:
            loss = 0.1 * loss + 0.9 * kd_loss(logits, soft, temperature=4.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(time.perf_counter())
    return [b - a for a, b in pairwise(times)]


def teacher_steps(config: PairConfig, count: int) -> list[float]:
    """Seconds of the teacher's forward alone, without gradient."""
    model = MODELS.make(config.teacher).eval().requires_grad_(False)
    adapter = ADAPTERS.make(config.adapter)
    images = torch.randn(config.data.batch_size, *config.teacher["input_size"])
    times = [time.perf_counter()]
    for _ in range(count):
        with torch.no_grad():
            adapter.forward(model, images, Batch(images), with_loss=False)
        times.append(time.perf_counter())
    return [b - a for a, b in pairwise(times)]
