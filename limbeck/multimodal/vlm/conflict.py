"""How much labels and teacher disagree: the angle between their gradients on what both train."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from torch import Tensor

from limbeck.engine.adapter import Batch
from limbeck.engine.distiller import Distiller
from limbeck.engine.hooks import distiller_of
from limbeck.errors import ConfigError

PARTS = {"backbone": "backbone.", "head": "ce_head."}


def gradient_conflict(model: Distiller, batch: Batch) -> dict[str, float]:
    """Cosine between the task loss's gradient and the links', on the deployed member's backbone and on its CE head.

    The model is as before afterwards: its buffers, random numbers and counts of teacher forwards.

    Returns: 'backbone' and 'head' → cosine in [−1, 1]; a part that one of the two does not reach is left out, as the
        head of DHO is.
    """
    named = dict(model.deploy.named_parameters())
    parts = {
        part: [p for name, p in named.items() if name.startswith(prefix) and p.requires_grad]
        for part, prefix in PARTS.items()
    }
    params = [p for part in parts.values() for p in part]
    with _untouched(model), torch.enable_grad():
        terms = {name: value for name, value in model.loss(batch).items() if "loss" in name}
        own = f"{model.deploy_name}."
        sides = [[v for n, v in terms.items() if n.startswith(own) is mine] for mine in (True, False)]
        if not params or not all(sides):
            return {}
        grads = [_gradients(sum(side[1:], side[0]), params) for side in sides]
    found, start = {}, 0
    for name, group in parts.items():
        task, links = ([g for g in side[start : start + len(group)] if g is not None] for side in grads)
        start += len(group)
        if len(task) == len(links) == len(group) and group:
            a, b = (torch.cat([g.flatten() for g in side]).double() for side in (task, links))
            if (norm := float(a.norm() * b.norm())) > 0:
                found[name] = float(a @ b) / norm
    return found


def _gradients(loss: Tensor, params: Sequence[Tensor]) -> list[Tensor | None]:
    return list(torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True))


@contextmanager
def _untouched(model: Distiller) -> Iterator[None]:
    """A step inside leaves batch norm statistics, memory banks, random numbers and counts as they were."""
    kept = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    forwards = model.teacher_forwards
    with torch.random.fork_rng():
        try:
            yield
        finally:
            model.teacher_forwards = forwards
            with torch.no_grad():
                for buffer, value in kept:
                    buffer.copy_(value)


class GradientConflictHook(Hook):
    """Writes `gradient_conflict` of every n-th step into the run's log.jsonl: dict(iter=…, gradient_cosine={…}).

    For `RunOptions.hooks`; changes no figure but the training time.

    Args:
        every: steps between two; each costs a step's forward and two backward passes.
    """

    def __init__(self, every: int = 50) -> None:
        if every < 1:
            raise ConfigError(f"every of GradientConflictHook is at least 1; got {every}")
        self.every = every

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if runner.iter % self.every or runner.rank:
            return
        model = distiller_of(runner)
        ready = model.data_preprocessor(data_batch, True)
        found = gradient_conflict(model, model.adapter.batch(ready["inputs"], ready["data_samples"]))
        with open(Path(runner.work_dir) / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(dict(iter=runner.iter, gradient_cosine=found)) + "\n")
