"""Low-rank adapters (LoRA, arXiv 2106.09685) of a denoiser's linear and convolution layers, switched on in a block.

Each is a parametrization of torch.nn.utils.parametrize: the layer's weight is W + s (α/r) B A while the block lasts.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from limbeck.engine.weights import read_weights, save_weights
from limbeck.errors import ConfigError, CorruptFile, near
from limbeck.multimodal.diffusion.denoiser import Denoiser

KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
LAYERS = r"^(?!.*(time_emb|class_emb|attn2))"  # of diffusers' U-Nets: all but embeddings and cross-attention
FORMAT = "limbeck-low-rank-adapter"


@dataclass
class Switch:
    """The scale s of an adapter that is on; may be set while it is."""

    scale: float


class LowRankAdapter:
    """Low-rank changes of a network's layers, by their names: they fit every network of that architecture.

    A layer of weight (out, in, …) gets A (r, in, …) and B (out, r, 1, …), and s (α/r) B A is added to its weight. For a
    convolution that is a convolution by A with the layer's own kernel size, stride and padding, followed by a 1×1 one
    by B. `KINDS` are the layers that can be adapted; transposed convolutions are not.

    `down` and `up` are A and B by layer name, float32 parameters; the scale is no part of the adapter.

    ASSUMPTION: r is min(rank, in, out) for both kinds of layer, and α is divided by that r, as the official code does
    for convolutions; layers of groups get a B A of all groups in common.

    Args:
        down, up: as above. rank: before it is limited by a layer's width. alpha: α. layers: pattern of the names.
    """

    def __init__(
        self,
        down: Mapping[str, Tensor],
        up: Mapping[str, Tensor],
        rank: int,
        alpha: float,
        layers: str,
    ) -> None:
        _check_rank(rank, alpha)
        self.rank, self.alpha, self.layers = rank, float(alpha), layers
        self.down = {name: nn.Parameter(value.detach().clone()) for name, value in down.items()}
        self.up = {name: nn.Parameter(value.detach().clone()) for name, value in up.items()}

    @classmethod
    def of(
        cls, model: nn.Module, *, rank: int = 4, alpha: float = 1.0, layers: str = LAYERS, seed: int = 0
    ) -> LowRankAdapter:
        """A new adapter, which changes nothing yet: A is Kaiming-uniform (a = 1), drawn on the CPU, and B is 0.

        Args:
            model: a `Denoiser`, whose network is meant, or a network itself.
            rank: r, 1 or more. alpha: α > 0.
            layers: a regular expression, searched for in the names of the network's linear and convolution layers.
                ASSUMPTION: the default takes attention and convolutions but no embeddings of time and class, nor
                cross-attention, after the sliders' 'noxattn'.
        Raises: ConfigError for rank, alpha or a pattern that matches no layer.
        """
        _check_rank(rank, alpha)
        generator = torch.Generator().manual_seed(seed)
        down, up = {}, {}
        for name, layer in _select(model, layers).items():
            shapes, device = _shapes(layer, rank), layer.weight.device
            drawn = nn.init.kaiming_uniform_(torch.empty(shapes["down"]), a=1, generator=generator)
            down[name], up[name] = drawn.to(device), torch.zeros(shapes["up"], device=device)
        return cls(down, up, rank, alpha, layers)

    def parameters(self) -> list[nn.Parameter]:
        """Every A and B, to be trained."""
        return [*self.down.values(), *self.up.values()]

    def state_dict(self) -> dict[str, Tensor]:
        """'LAYER.down' is A and 'LAYER.up' B; the tensors themselves, detached."""
        pairs = ((f"{name}.{part}", factors[name]) for name in self.down for part, factors in self._parts())
        return {key: value.detach() for key, value in pairs}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over the values of an adapter of the same architecture, layers and rank.

        Raises: ConfigError for keys that are missing or unexpected, or other shapes.
        """
        own = self.state_dict()
        _compare(own, state, "this state is of another adapter: it", "load one of the same architecture and rank")
        for key, value in own.items():
            value.copy_(state[key])

    def check(self, model: nn.Module) -> None:
        """Whether the adapter fits: its layers are those that its pattern selects in the model, of the same shapes.

        Raises: ConfigError.
        """
        network = network_of(model)
        wanted = {
            f"{name}.{part}": torch.empty(shape, device="meta")
            for name, layer in _select(model, self.layers).items()
            for part, shape in _shapes(layer, self.rank).items()
        }
        said = f"this adapter does not fit {type(network).__name__}: it"
        _compare(wanted, self.state_dict(), said, "use it on models of the architecture that it was trained on")

    @contextmanager
    def on(self, model: nn.Module, scale: float = 1.0) -> Iterator[Switch]:
        """Add the adapter, times `scale`, to a model inside the `with` block; nothing is left of it afterwards.

        At scale 0 the model computes what it does without, bit for bit. Gradients reach A and B. Blocks may be nested,
        of several adapters on one model. Copy or save the model outside: inside, its parameters have other names.

        Args:
            model: a `Denoiser`, whose network is meant, or a network itself; the base or its student.
            scale: s, any finite number; −1 is the other direction.
        Yields: the switch, whose `scale` may be changed within the block.
        Raises: ConfigError for a scale that is not finite or an adapter that does not fit, the model being as it was.
        """
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not math.isfinite(scale):
            raise ConfigError(f"scale of an adapter is a finite number; got {scale!r}")
        self.check(model)
        switch = Switch(float(scale))
        modules = dict(network_of(model).named_modules())
        added: list[tuple[nn.Module, nn.Module]] = []
        try:
            for name in self.down:
                term = _Term(self.down[name], self.up[name], self.alpha, switch)
                parametrize.register_parametrization(modules[name], "weight", term, unsafe=True)  # shapes are checked
                added.append((modules[name], term))
            yield switch
        finally:
            for layer, term in reversed(added):
                _remove(layer, term)

    def save(self, path: str | Path, *, metadata: Mapping[str, str] | None = None) -> str:
        """Write a safetensors file; returns its sha256.

        Args:
            metadata: further text to keep with it, such as what it was trained on.
        Raises: OutputError.
        """
        own = dict(rank=str(self.rank), alpha=json.dumps(self.alpha), layers=self.layers)
        return save_weights(path, self.state_dict(), metadata={**(metadata or {}), "format": FORMAT, **own})

    @classmethod
    def load(cls, path: str | Path, *, sha256: str | None = None) -> LowRankAdapter:
        """Read what `save` wrote, onto the CPU.

        Raises: CorruptFile for a file that is absent, damaged or no adapter, or of another hash.
        """
        state, metadata = read_weights(path, sha256=sha256)
        parts: dict[str, dict[str, Tensor]] = {"down": {}, "up": {}}
        if metadata.get("format") == FORMAT:
            for key, value in state.items():
                name, _, part = key.rpartition(".")
                parts.setdefault(part, {})[name] = value
        if not parts["down"] or parts["down"].keys() != parts["up"].keys() or len(parts) > 2:
            raise CorruptFile(f"{path} holds no low-rank adapter of limbeck; name a file that an adapter was saved to")
        try:
            return cls(**parts, rank=int(metadata["rank"]), alpha=float(metadata["alpha"]), layers=metadata["layers"])
        except (KeyError, ValueError, ConfigError) as error:
            raise CorruptFile(f"{path}: rank, alpha or layers of the adapter are damaged ({error})") from error

    def _parts(self) -> Sequence[tuple[str, dict[str, nn.Parameter]]]:
        return ("down", self.down), ("up", self.up)


def network_of(model: nn.Module) -> nn.Module:
    """The network of a `Denoiser`; any other module is one."""
    return model.network if isinstance(model, Denoiser) else model


class _Term(nn.Module):
    """W + s (α/r) B A; W itself at s = 0."""

    def __init__(self, down: nn.Parameter, up: nn.Parameter, alpha: float, switch: Switch) -> None:
        super().__init__()
        self.down, self.up = down, up
        self.alpha, self.switch = alpha, switch

    def forward(self, weight: Tensor) -> Tensor:
        scale = self.switch.scale * self.alpha / len(self.down)
        if scale == 0:
            return weight
        change = (self.up.flatten(1) @ self.down.flatten(1)).reshape(weight.shape)
        return weight + scale * change.to(weight)


def _remove(layer: nn.Module, term: nn.Module) -> None:
    terms: Any = layer.parametrizations
    if len(terms.weight) > 1:
        del terms.weight[[one is term for one in terms.weight].index(True)]
        return
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    # The weight comes back behind the bias, and optimisers know parameters by their order: put the rest behind it.
    for name, value in list(layer.named_parameters(recurse=False)):
        if name != "weight":
            delattr(layer, name)
            layer.register_parameter(name, value)


def _select(model: nn.Module, layers: str) -> dict[str, Any]:
    """The layers that a pattern matches, by name."""
    try:
        pattern = re.compile(layers)
    except re.error as error:
        raise ConfigError(f"layers of an adapter is no regular expression: {layers!r} ({error})") from error
    network = network_of(model)
    fit = {name: module for name, module in network.named_modules() if name and isinstance(module, KINDS)}
    found = {name: module for name, module in fit.items() if pattern.search(name)}
    if not found:
        raise ConfigError(
            f"layers={layers!r} matches no linear or convolution layer of {type(network).__name__}; {near(layers, fit)}"
        )
    return found


def _shapes(layer: Any, rank: int) -> dict[str, tuple[int, ...]]:
    """Of A and B."""
    out, fan, *kernel = layer.weight.shape
    rank = min(rank, out, fan)
    return {"down": (rank, fan, *kernel), "up": (out, rank, *(1 for _ in kernel))}


def _check_rank(rank: int, alpha: float) -> None:
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise ConfigError(f"rank of an adapter is an integer of 1 or more; got {rank!r}")
    if not math.isfinite(alpha) or alpha <= 0:
        raise ConfigError(f"alpha of an adapter is a positive number; got {alpha}")


def _compare(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], said: str, then: str) -> None:
    shapes = sorted(k for k in wanted.keys() & found.keys() if wanted[k].shape != found[k].shape)
    kinds = [
        ("lacks", sorted(wanted.keys() - found.keys())),
        ("has unknown", sorted(found.keys() - wanted.keys())),
        ("has other shapes for", shapes),
    ]
    wrong = [f"{verb} {', '.join(keys[:3])}{' …' if len(keys) > 3 else ''}" for verb, keys in kinds if keys]
    if wrong:
        raise ConfigError(f"{said} {'; '.join(wrong)}; {then}")
