"""Train the feature nets of limbeck.multimodal.diffusion, and write weights and accuracy beside each other.

Usage: python -m benchmarks.feature_net fashion-mnist features
Then put the printed sha256 into `limbeck/multimodal/diffusion/features.py`.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Annotated, cast

import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from limbeck.engine.weights import save_weights, write_json
from limbeck.multimodal.diffusion.evaluation.features import (
    FOLDER,
    ROLES,
    FeatureNet,
    Role,
    build_net,
    from_pixels,
    net_spec,
    weight_file,
)
from limbeck.multimodal.diffusion.evaluation.reference import read_split

SEEDS: dict[Role, int] = {"features": 0, "judge": 1}
EPOCHS = {"fashion-mnist": 6, "digits": 60}
BATCH = {"fashion-mnist": 256, "digits": 64}
RATE = 5e-3  # the highest of a one-cycle schedule
FACTS = "feature_nets.json"


def train(net: FeatureNet, pixels: Tensor, labels: Tensor, *, epochs: int, batch: int, seed: int) -> None:
    """Cross entropy, AdamW, one-cycle schedule; the last smaller batch of an epoch is left out."""
    generator = torch.Generator().manual_seed(seed)
    steps = len(pixels) // batch
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATE, total_steps=epochs * steps)
    net.train()
    for epoch in range(epochs):
        order = torch.randperm(len(pixels), generator=generator)[: steps * batch]
        total = 0.0
        for rows in order.split(batch):
            loss = F.cross_entropy(net(from_pixels(pixels[rows])), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        if epochs <= 10 or not (epoch + 1) % 10:
            typer.echo(f"epoch {epoch + 1} of {epochs}: loss {total / steps:.3f}")
    net.eval()


@torch.no_grad()
def standardise(net: FeatureNet, pixels: Tensor) -> None:
    """Round the weights to half precision, as they are saved, and take mean and deviation of the features they give."""
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.half())
    found = torch.cat([net.embed(from_pixels(part)) for part in pixels.split(1000)]).double()
    net.mean.copy_(found.mean(0).half())
    net.std.copy_(found.std(0).half())
    if float(net.std.min()) <= 0:
        raise typer.BadParameter("a feature is the same for all training images; train with another seed")


@torch.no_grad()
def accuracy(net: FeatureNet, pixels: Tensor, labels: Tensor) -> float:
    """Percent."""
    right = [(net(from_pixels(p)).argmax(1) == y).sum().item() for p, y in zip(pixels.split(1000), labels.split(1000))]
    return 100.0 * sum(right) / len(labels)


def main(
    name: Annotated[str, typer.Argument(help="'fashion-mnist' or 'digits'.")],
    role: Annotated[str, typer.Argument(help="'features' or 'judge'.")],
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = FOLDER,
) -> None:
    """Train on the train split with a fixed seed and one thread, save in half precision, print the file's sha256."""
    spec = net_spec(name)
    if role not in ROLES:
        raise typer.BadParameter(f"role is one of {', '.join(ROLES)}; got {role}")
    kind = cast(Role, role)
    torch.set_num_threads(1)  # sums in another order give other weights
    torch.manual_seed(SEEDS[kind])
    net = build_net(name)
    data = read_split(dict(type=spec.dataset, split="train"))
    pixels, labels = data.pixels, data.labels
    how = dict(epochs=EPOCHS[name], batch=BATCH[name], seed=SEEDS[kind])
    train(net, pixels, labels, **how)
    standardise(net, pixels)
    facts: dict[str, object] = dict(how, rate=RATE, train_images=len(pixels), train_hash=data.content_hash)
    for split in ("val", "test"):
        held = read_split(dict(type=spec.dataset, split=split))
        facts |= {
            f"{split}_accuracy": round(accuracy(net, held.pixels, held.labels), 2),
            f"{split}_hash": held.content_hash,
        }
    path = weight_file(name, kind, out)
    metadata = dict(limbeck=json.dumps(dict(net=name, role=kind, dataset=spec.dataset, seed=SEEDS[kind])))
    sha256 = save_weights(path, net.state_dict(), metadata=metadata, dtype=torch.float16)
    facts |= dict(sha256=sha256, torch=torch.__version__, machine=platform.machine())
    record = out / FACTS
    known = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    write_json(record, {**known, name: {**known.get(name, {}), kind: facts}})
    typer.echo(f"{path.name}: {path.stat().st_size:,} bytes, test accuracy {facts['test_accuracy']} %, sha256 {sha256}")


if __name__ == "__main__":
    typer.run(main)
