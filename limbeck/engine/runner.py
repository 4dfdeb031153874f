"""mmengine's Runner with what distillation needs changed: device, wrapping, quiet start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapperDict
from mmengine.registry import LOOPS, OPTIM_WRAPPERS
from mmengine.runner import BaseLoop, Runner
from torch import nn
from torch.utils.data import DataLoader


class JointOptimWrapper(OptimWrapperDict):
    """Several optimisers fed by one loss: the students' and those of links that bring their own."""

    def optim_context(self, model: nn.Module) -> Any:
        """The first optimiser's context: one precision for the whole step."""
        return next(iter(self.optim_wrappers.values())).optim_context(model)

    def update_params(self, loss: torch.Tensor, step_kwargs: Any = None, zero_kwargs: Any = None) -> None:
        """One backward pass, then a step of every optimiser."""
        wrappers = list(self.optim_wrappers.values())
        wrappers[0].backward(loss)
        for wrapper in wrappers:
            wrapper.step()
        for wrapper in wrappers:
            wrapper.zero_grad()


@LOOPS.register_module()
class EvaluateLoop(BaseLoop):
    """mmengine's validation loop over the engine's one way of evaluating.

    Args:
        evaluator: gives the deployed member's metric values on the validation split.
    """

    def __init__(self, runner: Any, dataloader: DataLoader, evaluator: Callable[[], dict[str, float]]) -> None:
        super().__init__(runner, dataloader)
        self.evaluator = evaluator

    def run(self) -> dict[str, float]:
        """Evaluate once and tell the hooks."""
        self.runner.call_hook("before_val")
        self.runner.call_hook("before_val_epoch")
        values = self.evaluator()
        self.runner.call_hook("after_val_epoch", metrics=values)
        self.runner.call_hook("after_val")
        return values


class DistillRunner(Runner):
    """Builds nothing by itself: model, loaders and hooks come ready-made from `limbeck.engine.run`."""

    device: torch.device = torch.device("cpu")
    find_unused_parameters: bool = False

    def _log_env(self, env_cfg: dict) -> None:
        """Skip mmengine's survey of compilers: it costs a second a run, and the record has what matters."""

    def build_logger(self, log_level: Any = "ERROR", log_file: str | None = None, **kwargs: Any) -> MMLogger:
        """A logger without a file: the run's log is `log.jsonl`."""
        return MMLogger.get_instance(self.experiment_name, log_level=log_level)

    def dump_config(self) -> None:
        """Write no second copy of the config: the record holds it."""

    def _init_model_weights(self) -> None:
        """Members are initialised once, when they are built; doing it again would undo pretrained weights."""

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:  # type: ignore[override]
        """Move to the run's device; wrap for DDP only what is trained."""
        model = model.to(self.device)
        if not self.distributed:
            return model
        return MMDistributedDataParallel(
            module=model,
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            broadcast_buffers=False,
            find_unused_parameters=self.find_unused_parameters,
        )


def build_optim_wrapper(model: nn.Module, links: Any, recipe: Any) -> Any:
    """The optimiser over trained members and bridges; a link with `optimizer` gets one of its own.

    Args:
        model: the Distiller (unwrapped or wrapped).
        recipe: a RecipeConfig.
    """
    amp = recipe.precision != "float32"
    base = dict(type="AmpOptimWrapper", dtype=recipe.precision) if amp else dict(type="OptimWrapper")
    own = {id(p): index for index, link in enumerate(links) if link.optimizer for p in link.parameters()}
    main = [p for p in model.parameters() if p.requires_grad and id(p) not in own]

    def wrapper(params: list[nn.Parameter], optimizer: dict[str, Any]) -> Any:
        from mmengine.registry import OPTIMIZERS

        built = OPTIMIZERS.build({**optimizer, "params": params})
        return OPTIM_WRAPPERS.build({**base, "optimizer": built, "clip_grad": recipe.clip_grad})

    wrappers = {"main": wrapper(main, recipe.optimizer)}
    for index, link in enumerate(links):
        if link.optimizer and any(own.get(id(p)) == index for p in link.parameters()):
            wrappers[f"link{index}"] = wrapper(list(link.parameters()), link.optimizer)
    return wrappers["main"] if len(wrappers) == 1 else JointOptimWrapper(**wrappers)
