"""mmengine's Runner with what distillation needs changed: device, wrapping, quiet start."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from mmengine.device import is_cuda_available
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OneCycleLR, OptimWrapper, OptimWrapperDict
from mmengine.registry import LOOPS, OPTIM_WRAPPERS, PARAM_SCHEDULERS
from mmengine.runner import BaseLoop, Runner
from torch import nn
from torch.utils.data import DataLoader

from limbeck.errors import DeviceError, UnknownName


@OPTIM_WRAPPERS.register_module()
class CPUAutocastWrapper(OptimWrapper):
    """A step in bfloat16 on a CPU: autocast without a gradient scaler, which bfloat16's range does not need.

    mmengine's `AmpOptimWrapper` refuses a CPU. Faster where the processor multiplies in bfloat16 (AMX, AVX-512 BF16).
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """mmengine's context of a step, under autocast."""
        with super().optim_context(model), torch.autocast("cpu", dtype=torch.bfloat16):
            yield


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


@PARAM_SCHEDULERS.register_module(name="OneCycleLR", force=True)
class ResumableOneCycleLR(OneCycleLR):
    """mmengine's, whose state holds a function that torch refuses to read back; a new one has that function anyway."""

    def state_dict(self) -> dict[str, Any]:
        """Without the function."""
        return {name: value for name, value in super().state_dict().items() if name != "anneal_func"}


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
    Raises: DeviceError for float16 without a GPU.
    """
    base = _wrapper_config(recipe.precision)
    optimizers = {"main": (recipe.optimizer, recipe.paramwise)}
    optimizers |= {name: (optimizer, recipe.paramwise) for name, optimizer in recipe.optimizers.items()}
    optimizers |= {f"link{index}": (link.optimizer, None) for index, link in enumerate(links) if link.optimizer}

    def wrapper(params: list[tuple[str, nn.Parameter]], optimizer: dict[str, Any], paramwise: Any) -> Any:
        from mmengine.registry import OPTIMIZERS

        given = [p for _, p in params] if paramwise is None else _paramwise(params, optimizer, paramwise)
        built = OPTIMIZERS.build({**optimizer, "params": given})
        clip = None if recipe.clip_grad is None else dict(recipe.clip_grad)  # mmengine takes its 'type' out
        return OPTIM_WRAPPERS.build({**base, "optimizer": built, "clip_grad": clip})

    groups = _groups(model, links, recipe.optimizers)
    wrappers = {name: wrapper(params, *optimizers[name]) for name, params in groups.items()}
    return wrappers["main"] if len(wrappers) == 1 else JointOptimWrapper(**wrappers)


def _wrapper_config(precision: str) -> dict[str, Any]:
    if precision == "float32":
        return dict(type="OptimWrapper")
    if is_cuda_available():
        return dict(type="AmpOptimWrapper", dtype=precision)
    if precision == "bfloat16":
        return dict(type="CPUAutocastWrapper")
    raise DeviceError(
        f"recipe.precision={precision!r} needs a GPU, which this machine lacks; use 'bfloat16' or 'float32'"
    )


def _groups(model: nn.Module, links: Any, members: Mapping[str, Any]) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Named parameters by optimiser: 'main', each further member of `members`, and each link with its own.

    A link without its own optimiser goes with the member that it trains.

    Raises: UnknownName for a member that is not trained.
    """
    inner = cast(Any, getattr(model, "module", model))
    for name in members:
        if name not in inner.members:
            raise UnknownName("trained member", name, inner.members, "in recipe.optimizers")
    owner: dict[int, str] = {}
    for name in members:
        owner |= {id(p): name for p in inner.members[name].parameters()}
    for index, link in enumerate(links):
        home = f"link{index}" if link.optimizer else link.student if link.student in members else "main"
        owner |= {id(p): home for p in link.parameters()}
    groups: dict[str, list[tuple[str, nn.Parameter]]] = {"main": []}
    for name, parameter in inner.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(owner.get(id(parameter), "main"), []).append((name, parameter))
    return groups


def _paramwise(
    params: list[tuple[str, nn.Parameter]], optimizer: Mapping[str, Any], config: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Parameter groups by `custom_keys`, with mmengine's meaning: the longest key that a name contains decides.

    Raises: UnknownName for an option other than custom_keys, or a key's option other than lr_mult and decay_mult.
    """
    for option in config:
        if option != "custom_keys":
            raise UnknownName("option", option, ["custom_keys"], "of recipe.paramwise")
    keys = sorted(sorted(config.get("custom_keys", {})), key=len, reverse=True)
    found: dict[str | None, dict[str, Any]] = {}
    for name, parameter in params:
        key = next((k for k in keys if k in name), None)
        spec = config["custom_keys"][key] if key is not None else {}
        for option in spec:
            if option not in ("lr_mult", "decay_mult"):
                raise UnknownName("option", option, ["lr_mult", "decay_mult"], f"of recipe.paramwise key {key!r}")
        group = found.setdefault(key, dict(params=[], lr=optimizer["lr"] * spec.get("lr_mult", 1.0)))
        if "decay_mult" in spec:
            group["weight_decay"] = optimizer.get("weight_decay", 0.0) * spec["decay_mult"]
        group["params"].append(parameter)
    return list(found.values())
