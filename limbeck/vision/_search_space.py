"""Search spaces of student architectures: depth-mutable CIFAR ResNets, and timm families by name pattern."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from itertools import product
from random import Random
from typing import Any, Protocol, cast

from torch import Tensor, nn

from limbeck.engine.inputs import Normalization, Stat
from limbeck.engine.registry import MODELS, accepted_keys
from limbeck.errors import ConfigError, UnknownName
from limbeck.vision._cifar_models import CIFARBlock, CIFARResNet
from limbeck.vision._cifar_net import CIFARNet


@MODELS.register_module()
class DepthResNet(CIFARNet):
    """CIFAR ResNet whose three stages have depths of their own; taps are named by `CIFARNet`.

    `depths=(n, n, n)` is `CIFARResNet(depth=6n + 2)`, down to the names and the drawn weights. The depth of a stage
    changes neither the width nor the resolution of a map, so all candidates of one `width` end in maps of one shape.

    Args:
        depths: blocks in each of the three stages, each ≥ 1.
        width, in_chans, num_classes, stem_stride, mean, std, input_size: as of `CIFARResNet`.
    Raises: ConfigError where `depths` is not three positive whole numbers.
    """

    def __init__(
        self,
        depths: Sequence[int] = (3, 3, 3),
        width: int = 16,
        in_chans: int = 3,
        num_classes: int = 10,
        stem_stride: int = 1,
        mean: Stat = 0.5,
        std: Stat = 0.5,
        input_size: Sequence[int] | None = None,
    ) -> None:
        if len(depths) != 3 or not all(isinstance(n, int) and n >= 1 for n in depths):
            raise ConfigError(f"depths of DepthResNet are three whole numbers of blocks, each ≥ 1; got {depths!r}")
        super().__init__(num_classes, in_chans, mean, std, input_size)
        self.conv1 = nn.Conv2d(in_chans, width, 3, stem_stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU()
        self.layer1 = _blocks(width, width, depths[0], 1)
        self.layer2 = _blocks(width, 2 * width, depths[1], 2)
        self.layer3 = _blocks(2 * width, 4 * width, depths[2], 2)
        self.finish(4 * width)

    def before(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, width, H, W)."""
        return self.act1(self.bn1(self.conv1(x)))


def _blocks(in_chs: int, out_chs: int, count: int, stride: int) -> nn.Sequential:
    first = CIFARBlock(in_chs, out_chs, stride)
    return nn.Sequential(first, *(CIFARBlock(out_chs, out_chs, 1) for _ in range(count - 1)))


# --- spaces ---

DEPTHS = (1, 3, 5, 7)
STAGES = 3
Genes = tuple[Any, ...]


class Space(Protocol):
    """A finite set of student architectures, each a tuple of genes."""

    name: str

    def candidates(self) -> list[Genes]:
        """All of them, in a fixed order."""
        ...

    def mutate(self, genes: Genes, rng: Random) -> Genes:
        """One with exactly one gene changed."""
        ...

    def model(self, genes: Genes) -> dict[str, Any]:
        """Its model config, as a pair config takes it."""
        ...


class DepthSpace:
    """`DepthResNet`s of every combination of `depths` blocks a stage: 64 candidates.

    Args:
        base: arguments of `DepthResNet` that all share.
    """

    name = "depth-resnet"

    def __init__(self, base: Mapping[str, Any], depths: Sequence[int] = DEPTHS) -> None:
        self.base, self.depths = dict(base), tuple(depths)

    def candidates(self) -> list[Genes]:
        """All depth triples, in lexical order."""
        return list(product(self.depths, repeat=STAGES))

    def mutate(self, genes: Genes, rng: Random) -> Genes:
        """Another depth for one stage."""
        stage = rng.randrange(len(genes))
        depth = rng.choice([d for d in self.depths if d != genes[stage]])
        return (*genes[:stage], depth, *genes[stage + 1 :])

    def model(self, genes: Genes) -> dict[str, Any]:
        """The `DepthResNet` of these depths."""
        return dict(type="DepthResNet", depths=list(genes), **self.base)


class TimmSpace:
    """timm's models whose name fits a shell pattern, without weights; the one gene is the name.

    Args:
        pattern: as fnmatch takes it, 'resnet*t'.
        base: arguments of the 'timm' model that all share: in_chans, num_classes, mean, std, input_size.
    Raises: ConfigError where no name fits.
    """

    def __init__(self, pattern: str, base: Mapping[str, Any]) -> None:
        import timm

        self.name, self.base = f"timm:{pattern}", dict(base)
        self.models = sorted(fnmatch.filter(timm.list_models(), pattern))
        if not self.models:
            raise ConfigError(f"no timm model's name fits {pattern!r}; a shell pattern such as 'resnet*t' would")

    def candidates(self) -> list[Genes]:
        """One for each name, sorted."""
        return [(name,) for name in self.models]

    def mutate(self, genes: Genes, rng: Random) -> Genes:
        """Another name; the same where there is only one."""
        others = [name for name in self.models if name != genes[0]]
        return (rng.choice(others),) if others else genes

    def model(self, genes: Genes) -> dict[str, Any]:
        """The timm model of this name; models of one input size alone are built for this one."""
        import timm

        config: dict[str, Any] = dict(type="timm", model=genes[0], **self.base)
        known = timm.get_pretrained_cfg(genes[0])
        if known is not None and known.fixed_input_size:
            config["img_size"] = list(self.base["input_size"][1:])
        return config


def draw_depths(count: int, seed: int) -> list[Genes]:
    """Different depth triples of the 64, a seeded draw without replacement, sorted.

    >>> draw_depths(2, seed=0)
    [(7, 1, 3), (7, 3, 3)]
    """
    return sorted(Random(seed).sample(DepthSpace({}).candidates(), count))


def make_space(name: str, student: Mapping[str, Any]) -> Space:
    """The space 'depth-resnet' or 'timm:PATTERN' around a pair's student config.

    Candidates take the student's input, normalisation and classes; those of 'depth-resnet' also its width and stem
    stride, where it is a CIFAR ResNet.

    Raises: UnknownName; ConfigError for a pattern that no timm model fits.
    """
    kind, _, pattern = name.partition(":")
    if name != "depth-resnet" and (kind != "timm" or not pattern):
        raise UnknownName("search space", name, ["depth-resnet", "timm:PATTERN"])
    model: Any = build(student)
    normalization, size = cast(Normalization, model.normalization), cast(Sequence[int], model.input_size)
    base: dict[str, Any] = dict(
        in_chans=size[0],
        num_classes=int(model.num_classes),
        mean=list(normalization.mean),
        std=list(normalization.std),
        input_size=list(size),
    )
    if kind == "timm":
        return TimmSpace(pattern, base)
    if isinstance(model, (CIFARResNet, DepthResNet)):
        base |= {key: student[key] for key in ("width", "stem_stride") if key in student}
    return DepthSpace(base)


def build(config: Mapping[str, Any]) -> nn.Module:
    """A model by its config, without pretrained weights: nothing is downloaded to be drawn anew."""
    cfg = dict(config)
    if "pretrained" in (accepted_keys(MODELS.lookup(str(cfg.get("type")))) or ()):
        cfg["pretrained"] = False
    return MODELS.make(cfg)
