"""The base of the nets of the CIFAR tables: one head, one naming of taps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from limbeck.engine.inputs import Stat, describe
from limbeck.errors import ConfigError


class GlobalPool(nn.Module):
    """Mean over the positions: (B, C, H, W) to (B, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class CIFARNet(nn.Module):
    """What the nets share: the head, the description of the input, the names of taps, the convolutions' first weights.

    One list of taps serves every pair: `layer1`, `layer2`, … are the stages; `preact1`, `preact2`, … the same before
    the last ReLU; `features` is the last map before pooling, `global_pool` its mean over the positions, `fc` the
    classifier.

    A subclass builds its layers between `__init__` and `finish`, and overrides `before` and `after` where it has layers
    around the stages.
    """

    num_features: int
    features: nn.Identity
    global_pool: GlobalPool
    fc: nn.Linear

    def __init__(
        self, num_classes: int, in_chans: int, mean: Stat, std: Stat, input_size: Sequence[int] | None
    ) -> None:
        super().__init__()
        size = tuple(input_size) if input_size is not None else (in_chans, 32, 32)
        if size[0] != in_chans:
            raise ConfigError(f"input_size {size} has {size[0]} channels, in_chans is {in_chans}")
        describe(self, mean, std, size)
        self.num_classes = num_classes

    def finish(self, num_features: int) -> None:
        """Add the head; draw the convolutions' weights as He et al. do (normal, fan out)."""
        self.num_features = num_features
        self.features = nn.Identity()
        self.global_pool = GlobalPool()
        # As in timm, no classes leave the pooled feature.
        self.fc = nn.Linear(num_features, self.num_classes) if self.num_classes else cast(nn.Linear, nn.Identity())
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.name_preacts()

    def stages(self) -> list[nn.Sequential]:
        """`layer1`, `layer2`, …"""
        names = [f"layer{n}" for n in range(1, 6) if hasattr(self, f"layer{n}")]
        return [cast(nn.Sequential, getattr(self, name)) for name in names]

    def name_preacts(self) -> None:
        """Give the last `preact` of every stage a second name, `preactN`; to be called again when a stage has grown."""
        for number, stage in enumerate(self.stages(), 1):
            setattr(self, f"preact{number}", stage[-1].preact)

    def before(self, x: Tensor) -> Tensor:
        """The stem: (B, C, H, W) to the first stage's input."""
        raise NotImplementedError(f"{type(self).__name__} has no stem")

    def after(self, x: Tensor) -> Tensor:
        """What follows the last stage: nothing, unless a subclass says otherwise."""
        return x

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the last map before pooling."""
        x = self.before(x)
        for stage in self.stages():
            x = stage(x)
        return self.features(self.after(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last map to logits (B, classes), or to the pooled feature (B, num_features)."""
        pooled = self.global_pool(x)
        return pooled if pre_logits else self.fc(pooled)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to logits (B, classes)."""
        return self.forward_head(self.forward_features(x))
