"""mmengine's Runner with what distillation needs changed: device, wrapping, quiet start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from mmengine.device import is_cuda_available
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapperDict
from mmengine.registry import LOOPS, OPTIM_WRAPPERS
from mmengine.runner import BaseLoop, Runner
from torch import nn
from torch.utils.data import DataLoader

from limbeck.errors import DeviceError


class JointOptimWrapper(OptimWrapperDict):
    """Several optimisers fed by one loss: the students' and those of links that bring their own.

    Under AMP they share one gradient scaler: one loss has one scale.
    """

    def __init__(self, **wrappers: Any) -> None:
        super().__init__(**wrappers)
        first, *others = cast(list[Any], list(self.optim_wrappers.values()))
        for wrapper in others:
            if hasattr(first, "loss_scaler"):
                wrapper.loss_scaler = first.loss_scaler

    def optim_context(self, model: nn.Module) -> Any:
        """The first optimiser's context: one precision for the whole step."""
        return next(iter(self.optim_wrappers.values())).optim_context(model)

    def update_params(self, loss: torch.Tensor, step_kwargs: Any = None, zero_kwargs: Any = None) -> None:
        """One backward pass, then a step of every optimiser, and one update of the scale that all of them used."""
        wrappers: list[Any] = list(self.optim_wrappers.values())
        wrappers[0].backward(loss)
        scaler = getattr(wrappers[0], "loss_scaler", None)
        for wrapper in wrappers:
            if scaler is None:
                wrapper.step()
            elif _has_gradient(wrapper):  # a scaler refuses the optimiser of a link that its schedule leaves out
                _scaled_step(wrapper, scaler)
        if scaler is not None:
            scaler.update(wrappers[0]._scale_update_param)
        for wrapper in wrappers:
            wrapper.zero_grad()


def _has_gradient(wrapper: Any) -> bool:
    return any(p.grad is not None for group in wrapper.param_groups for p in group["params"])


def _scaled_step(wrapper: Any, scaler: Any) -> None:
    """mmengine's `AmpOptimWrapper.step` without its update of the scale, which the next optimiser still needs."""
    if wrapper.clip_grad_kwargs:
        scaler.unscale_(wrapper.optimizer)
        wrapper._clip_grad()
    scaler.step(wrapper.optimizer)


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
    Raises: DeviceError for half precision without a GPU.
    """
    amp = recipe.precision != "float32"
    if amp and not is_cuda_available():
        raise DeviceError(f"recipe.precision={recipe.precision!r} needs a GPU, which this machine lacks; use 'float32'")
    base = dict(type="AmpOptimWrapper", dtype=recipe.precision) if amp else dict(type="OptimWrapper")
    own = {id(p): index for index, link in enumerate(links) if link.optimizer for p in link.parameters()}
    main = [p for p in model.parameters() if p.requires_grad and id(p) not in own]

    def wrapper(params: list[nn.Parameter], optimizer: dict[str, Any]) -> Any:
        from mmengine.registry import OPTIMIZERS

        built = OPTIMIZERS.build({**optimizer, "params": params})
        clip = None if recipe.clip_grad is None else dict(recipe.clip_grad)  # mmengine takes its 'type' out
        return OPTIM_WRAPPERS.build({**base, "optimizer": built, "clip_grad": clip})

    wrappers = {"main": wrapper(main, recipe.optimizer)}
    for index, link in enumerate(links):
        if link.optimizer and any(own.get(id(p)) == index for p in link.parameters()):
            wrappers[f"link{index}"] = wrapper(list(link.parameters()), link.optimizer)
    return wrappers["main"] if len(wrappers) == 1 else JointOptimWrapper(**wrappers)
