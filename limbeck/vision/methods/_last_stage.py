"""A frozen teacher's last layers, run on a student's projected feature: ScaleKD's teacher parameter perception."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from limbeck.engine.bridges_tokens import Layout, map_to_tokens, tap_form
from limbeck.engine.cost import evaluating
from limbeck.engine.pixels import input_of
from limbeck.errors import ConfigError, UnknownName


class LastStage:
    """Some modules of a teacher in sequence, which gradient passes through and leaves unchanged.

    Not a module: a link owns none of its teacher's layers. One forward of the teacher on noise finds the form of what
    enters and leaves them, and proves that the modules in sequence are all that the teacher does there.

    Args:
        teacher: a frozen member that says its `input_size`.
        names: module names, first to last; None finds a timm transformer's last block, or stage, and its norm.
        layout: of the modules' inputs and outputs with four axes.
        prefix: number of prefix tokens; inferred as 0 or 1.
    Raises: UnknownName; ConfigError when a module is trained, is not reached, or the sequence is not what the teacher
        does; ShapeMismatch when what enters or leaves has no grid.
    """

    def __init__(
        self, teacher: nn.Module, names: Sequence[str] | None, *, layout: Layout = "nchw", prefix: int | None = None
    ) -> None:
        self.names = list(names) if names is not None else _last_of(teacher)
        self.modules = [_named(teacher, name) for name in self.names]
        if any(p.requires_grad for module in self.modules for p in module.parameters()):
            raise ConfigError(f"ScaleKD: teacher_last {self.names} are trained; the teacher must be a frozen member")
        entered, left = self._probe(teacher)
        options: dict[str, Any] = dict(layout=layout, prefix=prefix)
        self.enters = tap_form(tuple(entered.shape), what=f"ScaleKD: input of {self.names[0]!r}", **options)
        self.leaves = tap_form(tuple(left.shape), what=f"ScaleKD: output of {self.names[-1]!r}", **options)
        self.shape = tuple(left.shape[1:])
        if "vector" in (self.enters.kind, self.leaves.kind):
            raise ConfigError(
                f"ScaleKD: teacher_last {self.names} take or give a vector (B, D); name modules that keep the positions"
            )

    def _probe(self, teacher: nn.Module) -> tuple[Tensor, Tensor]:
        """What enters the first module and leaves the last in one forward of the teacher."""
        seen: dict[str, Any] = {}

        def keep(key: str, value: Any) -> None:
            seen[key] = value

        handles = [
            self.modules[0].register_forward_pre_hook(lambda _, args: keep("entered", args[0])),
            self.modules[-1].register_forward_hook(lambda _, __, output: keep("left", output)),
        ]
        weight = next(teacher.parameters())
        noise = torch.randn(2, *input_of(teacher)[1], generator=torch.Generator().manual_seed(0)).to(weight)
        with evaluating(teacher), torch.no_grad():
            try:
                teacher(noise)
            finally:
                for handle in handles:
                    handle.remove()
            if not all(isinstance(seen.get(key), Tensor) for key in ("entered", "left")):
                raise ConfigError(f"ScaleKD: teacher_last {self.names} are not reached, or give no single tensor")
            self._check_sequence(seen["entered"], seen["left"])
        return seen["entered"], seen["left"]

    def _check_sequence(self, entered: Tensor, left: Tensor) -> None:
        try:
            again = self(entered)
        except (RuntimeError, TypeError, ValueError) as error:
            raise ConfigError(
                f"ScaleKD: teacher_last {self.names} do not run in sequence ({error}); name every module from the "
                "projected feature to the final tap"
            ) from error
        if again.shape != left.shape or not torch.allclose(again, left, rtol=1e-3, atol=1e-4):
            raise ConfigError(
                f"ScaleKD: teacher_last {self.names} in sequence are not what the teacher computes; name every module "
                "from the projected feature to the final tap"
            )

    def __call__(self, x: Tensor) -> Tensor:
        """What the teacher makes of `x`; gradient flows to `x`."""
        for module in self.modules:
            x = module(x)
        return x

    def read(self, tokens: Tensor) -> Tensor:
        """`tokens` (B, prefix + h·w, D) as they enter, to tokens (B, prefix + h'·w', D') as they leave."""
        form = self.enters
        if form.kind == "map":
            tokens = form.from_map(tokens.transpose(1, 2).unflatten(2, form.size))
        out = self(tokens)
        return map_to_tokens(out, layout=self.leaves.layout) if self.leaves.kind == "map" else out


def _named(teacher: nn.Module, name: str) -> nn.Module:
    known = dict(teacher.named_modules(remove_duplicate=False))
    if not name or name not in known:
        raise UnknownName("module", name, [k for k in known if k], "in teacher_last of ScaleKD")
    return known[name]


def _last_of(teacher: nn.Module) -> list[str]:
    """timm's ViT and Mixer: the last of `blocks`, and `norm`; Swin: the last of `layers`, and `norm`."""
    for name in ("blocks", "layers"):
        group = getattr(teacher, name, None)
        if isinstance(group, (nn.Sequential, nn.ModuleList)) and len(group) and hasattr(teacher, "norm"):
            return [f"{name}.{len(cast(nn.Sequential, group)) - 1}", "norm"]
    raise ConfigError(
        f"ScaleKD: {type(teacher).__name__} is no transformer of timm's form; name the teacher's last modules in "
        "teacher_last, first to last"
    )
