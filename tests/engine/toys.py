"""A ten-line model, data set, adapter, metric and methods: what the engine's tests distil."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from mmengine.model import BaseDataPreprocessor
from torch import Tensor, nn

from limbeck.engine.adapter import Batch, Forward, TaskAdapter
from limbeck.engine.config import PairConfig, RunConfig, expand
from limbeck.engine.method import LinkInputs, Method
from limbeck.engine.registry import ADAPTERS, DATASETS, METHODS, METRICS, MODELS
from limbeck.engine.suite import Suite, load_suite
from limbeck.engine.weights import save_weights


@MODELS.register_module()
class ToyNet(nn.Module):
    def __init__(self, width: int = 4, dropout: float = 0.0, norm: bool = False, shift: float = 0.0) -> None:
        super().__init__()
        self.shift = shift
        self.layer1 = nn.Conv2d(1, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width) if norm else nn.Identity()
        self.act = nn.ReLU(inplace=True)
        self.layer2 = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(width, 3)
        self.unused = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.layer1(x)))
        return self.fc(self.drop(self.layer2(x).mean((2, 3))))


@DATASETS.register_module()
class ToyData(torch.utils.data.Dataset):
    """Three classes of 6×6 noise, told apart by their mean; a view flips, `augment=dict(add=…)` adds to the image."""

    def __init__(
        self,
        split: str = "train",
        size: int = 48,
        variant: int = 0,
        views: int = 0,
        nan_at: int | None = None,
        augment: dict[str, float] | None = None,
    ) -> None:
        generator = torch.Generator().manual_seed(variant + {"train": 0, "val": 1, "test": 2}[split])
        self.labels = torch.arange(size) % 3
        self.images = torch.randn(size, 1, 6, 6, generator=generator) + self.labels.view(-1, 1, 1, 1).float()
        if nan_at is not None:
            self.images[nan_at] = float("nan")
        self.classes = ["a", "b", "c"]
        self.name, self.content_hash, self.split = "toy", f"{variant:08d}", split
        self.views, self.epoch, self.augment = views, 0, augment

    def __len__(self) -> int:
        return len(self.labels)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def pipeline(self) -> dict[str, Any]:
        return dict(
            name=self.name,
            hash=self.content_hash,
            split=self.split,
            size=len(self),
            views=self.views,
            augment=self.augment,
        )

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        ids = torch.tensor(indices)
        view = self.epoch % self.views if self.views else self.epoch
        images = self.images[ids]
        if view % 2:
            images = images.flip(-1)
        if self.augment is not None:
            images = images + self.augment["add"]
        samples = dict(labels=self.labels[ids], ids=ids, views=torch.full_like(ids, view if self.views else 0))
        return dict(inputs=images, data_samples=samples)


@ADAPTERS.register_module()
class ToyAdapter(TaskAdapter):
    def preprocessor(self, deploy: nn.Module) -> nn.Module:
        return BaseDataPreprocessor()

    def batch(self, inputs: Any, data_samples: Any) -> Batch:
        return Batch(inputs, data_samples["labels"], data_samples["ids"], data_samples["views"])

    def member_inputs(self, batch: Batch, deploy: nn.Module, member: nn.Module) -> Any:
        return batch.inputs if member.shift == deploy.shift else batch.inputs + member.shift

    def forward(self, model: nn.Module, inputs: Any, batch: Batch, *, with_loss: bool) -> Forward:
        logits = model(inputs)
        losses = {"loss_ce": F.cross_entropy(logits, batch.targets)} if with_loss else {}
        return Forward(losses, {"logits": logits})

    def predict(self, model: nn.Module, inputs: Any, batch: Batch) -> list[Any]:
        return [dict(logits=model(inputs), labels=batch.targets)]

    def example(self, deploy: nn.Module) -> Batch:
        return Batch(torch.zeros(2, 1, 6, 6), torch.zeros(2, dtype=torch.long))


@METRICS.register_module()
class ToyMetric:
    def __init__(self) -> None:
        self.rows: list[tuple[int, int]] = []

    def reset(self) -> None:
        self.rows = []

    def update(self, predictions: list[Any], teacher: list[Any] | None = None) -> None:
        for p in predictions:
            self.rows += list(zip(p["logits"].argmax(1).tolist(), p["labels"].tolist()))

    def values(self) -> dict[str, float]:
        return {"top1": 100.0 * sum(a == b for a, b in self.rows) / len(self.rows)}

    def per_class(self) -> dict[str, list[float]]:
        return {}


@METHODS.register_module()
class ToyMatch(Method):
    """Mean squared difference of the tapped tensors."""

    default_taps: ClassVar[Any] = (("logits", "logits"),)

    def __init__(self, *, mode: str = "match", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mode = mode

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        pairs = zip(batch.student, batch.teacher)
        value = sum(((s - t) ** 2).mean() for s, t in pairs)
        if self.mode == "zero":
            value = value * 0.0
        elif self.mode == "detached":
            value = sum(((s.detach() - t) ** 2).mean() for s, t in zip(batch.student, batch.teacher))
        elif self.mode == "blowup" and batch.progress >= 0.5:
            value = value / torch.zeros(())
        return {"match": value}


@METHODS.register_module()
class ToyBridge(Method):
    """A learnable 1×1 bridge to the teacher's width."""

    default_taps: ClassVar[Any] = (("layer2", "layer2"),)

    def connect(self, teacher_shapes: Any, student_shapes: Any) -> None:
        self.bridge = nn.Conv2d(student_shapes[0][1], teacher_shapes[0][1], 1)
        self.register_buffer("bank", torch.zeros(3))

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        self.bank += 1
        return {"hint": F.mse_loss(self.bridge(batch.student[0]), batch.teacher[0])}


@METHODS.register_module()
class ToyMean(ToyMatch):
    """Match the mean of several teachers."""

    many_teachers = True
    assumption = "The mean is ours."

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        taps = [torch.stack(of_all).mean(0) for of_all in zip(*batch.teachers)]
        return {"mean": sum((((s - t) ** 2).mean() for s, t in zip(batch.student, taps)), torch.zeros(()))}


@METHODS.register_module()
class ToyMix(ToyMatch):
    """Mixes every image and label with another's, and adds noise to the logits that it matches."""

    alters_batch = True

    def alter(self, batch: Batch, generator: torch.Generator) -> Batch:
        order = torch.randperm(len(batch.inputs), generator=generator)
        labels = F.one_hot(batch.targets, 3).float()
        inputs, targets = (0.6 * x + 0.4 * x[order] for x in (batch.inputs, labels))
        return Batch(inputs, targets)


def teacher_file(folder: Path, width: int = 4, **kwargs: Any) -> str:
    """Random teacher weights on disk."""
    torch.manual_seed(7)
    tag = "".join(f"-{k}{v}" for k, v in kwargs.items())
    path = folder / f"teacher{width}{tag}.safetensors"
    save_weights(path, ToyNet(width=width, **kwargs).state_dict(), metadata={})
    return str(path)


def toy_pair(**changes: Any) -> PairConfig:
    """A pair config over the toys."""
    value: dict[str, Any] = dict(
        task="image-classification",
        benchmark="toy",
        pair="toy4-toy2",
        data=dict(
            train=dict(type="ToyData", split="train"),
            val=dict(type="ToyData", split="val"),
            test=dict(type="ToyData", split="test"),
            batch_size=12,
        ),
        adapter=dict(type="ToyAdapter"),
        metric=dict(type="ToyMetric"),
        teacher=dict(type="ToyNet", width=4),
        student=dict(type="ToyNet", width=2),
        recipe=dict(
            epochs=4,
            optimizer=dict(type="SGD", lr=0.05, momentum=0.9, weight_decay=1e-3),
            param_scheduler=[dict(type="CosineAnnealingLR")],
        ),
        methods=dict(
            ToyMatch=dict(links=[dict(type="ToyMatch")]),
            ToyBridge=dict(links=[dict(type="ToyBridge")]),
            Zero=dict(links=[dict(type="ToyMatch", weight=0.0)]),
        ),
    )
    value.update(changes)
    return PairConfig.model_validate(value)


def toy_run(folder: Path, method: str = "ToyMatch", seed: int = 0, **changes: Any) -> RunConfig:
    """One run of the toy pair, with a teacher on disk."""
    return expand(toy_pair(**changes), method, seed, teacher_weights=teacher_file(folder))


def toy_suite(
    folder: Path, *, seeds: Sequence[int] = (0, 1), chosen: Sequence[str] = ("ToyMatch", "ToyBridge"), **changes: Any
) -> Suite:
    """A suite of the toy pair, so changed, with the chosen methods; its files are written into the folder."""
    lines = ["custom_imports = dict(imports=['tests.engine.toys'])"]
    lines += [f"{key} = {value!r}" for key, value in toy_pair(**changes).model_dump(exclude_defaults=True).items()]
    (folder / "toy.py").write_text("\n".join(lines))
    text = f'name = "toys"\ntitle = "Toys"\nseeds = {json.dumps(seeds)}\n[[groups]]\n'
    text += f'config = "{folder / "toy.py"}"\nmethods = {json.dumps(chosen)}\n'
    (folder / "toys.toml").write_text(text)
    return load_suite(str(folder / "toys.toml"))
