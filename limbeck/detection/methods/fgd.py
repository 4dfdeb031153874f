"""FGD: focal and global knowledge distillation for detectors (arXiv 2111.11837)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from limbeck.detection.methods._box_masks import BOX_SCALES, target_masks
from limbeck.detection.targets import DetectionTargets
from limbeck.engine.bridges import require_same_shape
from limbeck.engine.losses import check_maps, check_temperature
from limbeck.engine.method import LinkInputs, Method, Shapes
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, UnknownName

LEVELS = tuple((f"neck.fpn_convs.{i}.conv", f"neck.fpn_convs.{i}.conv") for i in range(5))


def spatial_attention(features: Tensor, *, temperature: float = 0.5) -> Tensor:
    """A^S = H W · softmax over positions of mean_c |F| / t: (B, H, W), adds up to H W (equation 4).

    Args:
        features: F (B, C, H, W), float32.
        temperature: t > 0.

    >>> spatial_attention(torch.full((1, 3, 1, 2), -4.0)).tolist()
    [[[1.0, 1.0]]]
    """
    strength = features.abs().mean(1)
    return strength[0].numel() * (strength.flatten(1) / temperature).softmax(1).view_as(strength)


def channel_attention(features: Tensor, *, temperature: float = 0.5) -> Tensor:
    """A^C = C · softmax over channels of mean_p |F| / t: (B, C), adds up to C (equation 5)."""
    strength = features.abs().mean((2, 3))
    return strength.shape[1] * (strength / temperature).softmax(1)


def focal_losses(
    student: Tensor, teacher: Tensor, foreground: Tensor, background: Tensor, *, temperature: float = 0.5
) -> dict[str, Tensor]:
    """Squared error by the teacher's attention in both masks, and the difference of both sides' attention.

    L_fg = 1 / B · Σ M^fg_p A^S(T)_p A^C(T)_c (S − T)²_{c,p}, L_bg with M^bg (equation 7);
    L_attn = 1 / B · (Σ_c |A^C(S) − A^C(T)| + Σ_p |A^S(S) − A^S(T)|) (equation 8).

    Args:
        student, teacher: S, T (B, C, H, W), same shape. The teacher's gradient is stopped.
        foreground, background: M^fg, M^bg (B, H, W); see `limbeck.detection.methods._box_masks`.
        temperature: t > 0.
    Returns: "foreground", "background" and "attention", scalars ≥ 0, computed in float32.
    Raises: ShapeMismatch when the maps differ.
    """
    require_same_shape(student, teacher, "FGD")
    with torch.autocast(student.device.type, enabled=False):
        s, t = student.float(), teacher.detach().float()
        spatial, channel = (f(t, temperature=temperature) for f in (spatial_attention, channel_attention))
        error = torch.einsum("bc,bchw->bhw", channel, (s - t).square()) * spatial
        apart = (channel_attention(s, temperature=temperature) - channel).abs().sum()
        apart = apart + (spatial_attention(s, temperature=temperature) - spatial).abs().sum()
    found = dict(foreground=(foreground * error).sum(), background=(background * error).sum(), attention=apart)
    return {name: value / len(s) for name, value in found.items()}


def global_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """L = 1 / B · ‖R_S − R_T‖² of two maps (B, C, H, W) of global relations; both are trained (equation 9)."""
    require_same_shape(student, teacher, "FGD's global term")
    return (student.float() - teacher.float()).square().sum() / len(student)


class GlobalContext(nn.Module):
    """R(F) = F + block(Σ_p F_p softmax_p(context(F))), a GCNet block (arXiv 1904.11492); the identity at first.

    context is a 1×1 convolution to one channel, Kaiming normal; block is 1×1 convolution to ⌊C / 2⌋, layer norm, ReLU,
    and a 1×1 convolution to C that starts from zero.

    Args:
        width: C.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.context = nn.Conv2d(width, 1, 1)
        nn.init.kaiming_normal_(self.context.weight, mode="fan_in")
        nn.init.zeros_(self.context.bias)  # type: ignore[arg-type]
        narrow = max(width // 2, 1)
        last = nn.Conv2d(narrow, width, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.block = nn.Sequential(nn.Conv2d(width, narrow, 1), nn.LayerNorm([narrow, 1, 1]), nn.ReLU(), last)

    def forward(self, x: Tensor) -> Tensor:
        """R (B, C, H, W) of a map F of that shape, in float32."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            share = self.context(x).flatten(2).softmax(2)  # (B, 1, N)
            pooled = x.flatten(2) @ share.transpose(1, 2)
            return x + self.block(pooled[..., None])


@METHODS.register_module()
class FGD(Method):
    """Error inside and outside boxes by the teacher's attention, and global relations; taps maps of one size a level.

    L = Σ_levels α L_fg + β L_bg + γ L_attn + λ L_glob of the student's map, which a 1×1 convolution with a bias takes
    to the teacher's width where widths differ; see `focal_losses`, `global_loss`. Each side has a `GlobalContext` of
    its own a level (the paper draws one); both are trained with the student and dropped with the link. The targets need
    boxes.
    The taps are the convolutions of the pyramid without norm or activation, as in the official code, all five of a
    one-stage detector (the default taps) or the first four, 'neck.fpn_convs.0.conv' …, of a two-stage one.

    Official temperatures and factors, from the first step to the last:

    - RetinaNet, GFL, SOLO: t = 0.5, α, β, γ, λ = 1e-3, 5e-4, 5e-4, 5e-6, the defaults here;
    - Faster and Mask R-CNN: t = 0.5, 5e-5, 2.5e-5, 5e-5, 5e-7; RepPoints: t = 0.5, 1.6e-3, 8e-4, 8e-4, 8e-6;
    - FCOS: t = 0.8, the factors of RepPoints.

    They are of images of 800×1333 with 256 channels: as the losses are sums, smaller maps want larger factors.

    Args:
        temperature: t > 0.
        foreground, background, attention, relation: α, β, γ, λ ≥ 0, on the terms "foreground", "background",
            "attention" and "global"; a term of factor 0 is left out.
        box_scale: what a map stands for, 'img_shape' (the image without padding, as the official code) or 'pad_shape'.
        weight: on all terms.
        kwargs: see `Method`.
    Raises: ConfigError, UnknownName for options out of range.
    """

    default_taps = LEVELS
    bridges: nn.ModuleList
    student_relations: nn.ModuleList
    teacher_relations: nn.ModuleList

    def __init__(
        self,
        *,
        temperature: float = 0.5,
        foreground: float = 1e-3,
        background: float = 5e-4,
        attention: float = 5e-4,
        relation: float = 5e-6,
        box_scale: str = "img_shape",
        weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(weight=weight, **kwargs)
        self.temperature = check_temperature("FGD", temperature)
        self.factors = {
            "foreground": foreground, "background": background, "attention": attention, "global": relation
        }  # fmt: skip
        if not all(f >= 0 for f in self.factors.values()) or not any(self.factors.values()):
            raise ConfigError(
                f"FGD needs foreground, background, attention and relation >= 0, one of them > 0; got {foreground}, "
                f"{background}, {attention} and {relation}"
            )
        if box_scale not in BOX_SCALES:
            raise UnknownName("box_scale", box_scale, BOX_SCALES, "of FGD")
        self.box_scale = box_scale

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        pairs = list(zip(teacher_shapes, student_shapes, strict=True))
        for teacher, student in pairs:
            check_maps("FGD", teacher, student)
        self.bridges = nn.ModuleList(nn.Identity() if t[1] == s[1] else nn.Conv2d(s[1], t[1], 1) for t, s in pairs)
        widths = [t[1] for t, _ in pairs] if self.factors["global"] else []
        self.student_relations, self.teacher_relations = (
            nn.ModuleList(GlobalContext(width) for width in widths) for _ in range(2)
        )

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        if not isinstance(batch.targets, DetectionTargets):
            raise ConfigError(
                f"FGD masks by ground-truth boxes; got targets {type(batch.targets).__name__}: use a data set for "
                "detection"
            )
        levels = [self._level(i, s, t, batch.targets) for i, (s, t) in enumerate(zip(batch.student, batch.teacher))]
        return {
            name: factor * torch.stack([level[name] for level in levels]).sum()
            for name, factor in self.factors.items()
            if factor
        }

    def _level(self, index: int, student: Tensor, teacher: Tensor, targets: DetectionTargets) -> dict[str, Tensor]:
        size = (teacher.shape[2], teacher.shape[3])
        masks = target_masks(targets, size, box_scale=self.box_scale)
        with torch.autocast(student.device.type, enabled=False):
            student, teacher = self.bridges[index](student.float()), teacher.detach().float()
        terms = focal_losses(student, teacher, *masks, temperature=self.temperature)
        if self.factors["global"]:
            related = self.student_relations[index](student), self.teacher_relations[index](teacher)
            terms["global"] = global_loss(*related)
        return terms
