"""CIRKD: cross-image relational knowledge distillation for segmentation (arXiv 2204.06986)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from mmengine.dist import all_gather
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from limbeck.engine.losses import IGNORE, check_maps, fit_labels
from limbeck.engine.method import LinkInputs, Method, Shapes
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch, UnknownName
from limbeck.segmentation.methods._memory import ClassMemory, pixel_entries, region_entries

SAMPLINGS = ("class", "code")
SIZES = ("pixel_queue", "region_queue", "pixel_contrast", "region_contrast")
COLDEST = 0.02  # exp(1 / τ) and sums of it must stay far from float32's end, exp(88)
BLOCK = 2**19  # logits at a time, 2 MB a matrix, whatever the size of batch and maps


def batch_relation_loss(
    student: Tensor, teacher: Tensor, *, temperature: float = 0.1, anchors: Tensor | None = None
) -> Tensor:
    """Mini-batch pixel-to-pixel term: similarities of positions to those of every image of the batch.

    With f_i (N, C) the features of image i, each position divided by its norm, and S_ij = f_i f_jᵀ / τ:
    L = 1/B² Σ_ij 1/N Σ_rows KL( softmax(S_ijᵀᵉᵃ) ‖ softmax(S_ijˢᵗᵘ) ), i = j included, without a factor τ². Rows can be
    sampled: their mean estimates L without bias. No second derivative.

    Args:
        student, teacher: maps (B, C_S, h, w) and (B, C_T, h, w). The teacher's gradient is stopped.
        temperature: τ ≥ 0.02.
        anchors: the rows, positions in [0, B · h · w), (A,); None is all.
    Returns: scalar ≥ 0, computed in float32.
    Raises: ShapeMismatch when batch, height or width differ.
    """
    check_maps("CIRKD", tuple(teacher.shape), tuple(student.shape))
    s, t = (F.normalize(_positions(x.float()), dim=2) for x in (student, teacher.detach()))
    rows_s, rows_t = (x.flatten(0, 1) if anchors is None else x.flatten(0, 1)[anchors] for x in (s, t))
    return _relation_loss(rows_s, s, rows_t, t, temperature)


def memory_relation_loss(student: Tensor, teacher: Tensor, memory: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Similarities of anchors to a contrast set from the memory, pixels or regions.

    L = mean over anchors of KL( softmax(t Vᵀ/τ) ‖ softmax(s Vᵀ/τ) ), s and t divided by their norm, the soft-max over
    the whole set V. Its classes play no part: similarities are distilled, nothing is contrasted. No second derivative.

    Args:
        student, teacher: anchors (A, C). The teacher's gradient is stopped.
        memory: V, unit rows (M, C), without gradient.
        temperature: τ ≥ 0.02.
    Returns: scalar ≥ 0, computed in float32; without anchors a zero that has a graph.
    Raises: ShapeMismatch when the shapes differ.
    """
    if student.shape != teacher.shape or student.dim() != 2 or memory.shape[1:] != student.shape[1:]:
        raise ShapeMismatch(
            f"CIRKD: teacher anchors {tuple(teacher.shape)}, student anchors {tuple(student.shape)} and memory "
            f"{tuple(memory.shape)} do not fit; (A, C), (A, C) and (M, C) would"
        )
    if len(student) == 0:
        return student.float().sum()
    s, t = (F.normalize(x.float(), dim=1) for x in (student, teacher.detach()))
    keys = memory.detach().float()[None]
    return _relation_loss(s, keys, t, keys, temperature)


def _relation_loss(rows_s: Tensor, keys_s: Tensor, rows_t: Tensor, keys_t: Tensor, temperature: float) -> Tensor:
    """Mean over unit rows (A, C) and sets of unit keys (J, N, C) of the KL between similarities to a set's keys."""
    with torch.autocast(rows_s.device.type, enabled=False):
        inputs = (rows_s / temperature, keys_s, rows_t / temperature, keys_t)
        return cast(Tensor, _Relations.apply(*inputs))


class _Relations(torch.autograd.Function):
    """`_relation_loss` in blocks of logits whose gradient is computed along with their value: none of them is kept."""

    @staticmethod
    def forward(ctx: Any, rows_s: Tensor, keys_s: Tensor, rows_t: Tensor, keys_t: Tensor) -> Tensor:
        sets, size, _ = keys_s.shape
        slope_rows = torch.zeros_like(rows_s)
        slope_keys = torch.zeros_like(keys_s) if ctx.needs_input_grad[1] else None
        total = torch.zeros((), dtype=torch.float64, device=rows_s.device)
        step = max(1, BLOCK // size)
        for part in (slice(start, start + step) for start in range(0, len(rows_s), step)):
            for j in range(sets):
                value, slope = _divergence(rows_s[part] @ keys_s[j].T, rows_t[part] @ keys_t[j].T)
                total += value
                slope_rows[part].addmm_(slope, keys_s[j])
                if slope_keys is not None:
                    slope_keys[j].addmm_(slope.T, rows_s[part])
        count = len(rows_s) * sets
        ctx.save_for_backward(slope_rows.div_(count), None if slope_keys is None else slope_keys.div_(count))
        return (total / count).float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        rows, keys = ctx.saved_tensors
        return grads[0] * rows, None if keys is None else grads[0] * keys, None, None


def _divergence(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Summed KL(teacher ‖ student) of rows of logits, and its derivative by the student's; overwrites both.

    Logits are within ±1/τ, so exponentials need no shift.
    """
    gap = teacher - student
    p_s, p_t = student.exp_(), teacher.exp_()
    z_s, z_t = p_s.sum(1, keepdim=True), p_t.sum(1, keepdim=True)
    p_t.div_(z_t)
    value = gap.mul_(p_t).sum() + (z_s / z_t).log().sum()
    return value, p_s.div_(z_s).sub_(p_t)


def pool_positions(x: Tensor, limit: int | None) -> Tensor:
    """Average-pool a map (B, C, H, W) by the least whole factor that leaves `limit` positions or fewer; None does not.

    Stride and kernel are the factor; windows that cross the end average what is inside.
    """
    height, width = x.shape[2:]
    if limit is None or height * width <= limit:
        return x
    factor = next(k for k in range(2, max(height, width) + 1) if -(-height // k) * -(-width // k) <= limit)
    return F.avg_pool2d(x, factor, ceil_mode=True)


@METHODS.register_module()
class CIRKD(Method):
    """Cross-image relations: taps the map before the classifier of each side, (B, C_T, h, w) and (B, C_S, h, w).

    Three terms, each times its own weight: "batch", `batch_relation_loss` between the images of the batch, and
    "memory_pixel" and "memory_region", `memory_relation_loss` to teacher features of earlier images. For these a
    projector on the student (linear to C_T, batch norm, ReLU, linear to C_T, position by position; trained with the
    student, dropped with the link) gives the anchors: positions whose label, brought to the map by nearest, is a class.

    Each class of each image writes to its queues before the loss: the mean of its teacher vectors to the region queue,
    up to 16 of them to the pixel queue. Rows not yet written are random directions and take part, as in the official
    code. A full queue goes on at its start; the official code overwrites the last rows and then goes on at the start.

    In several processes all write the vectors of all, so that queues stay equal: maps must be of one shape. The batch
    term and the batch norm see a process's own images (official: synchronised batch norm).

    There are no default taps, as they depend on the heads: 'decode_head.sep_bottleneck' of DeepLabV3+,
    'decode_head.fusion_conv' of SegFormer, 'decode_head.bottleneck' of DeepLabV3 and PSPNet, all before drop-out (the
    official student's map is after it). The official objective adds pixel KD at temperature 1 and weight 1, a link of
    its own. On VOC the official memory weights are 0.01. CIRKDV2's channel terms are not here.

    Args:
        classes: K of the label maps; needed unless both memory weights are 0.
        taps: one pair.
        batch_weight, pixel_weight, region_weight: factors on the three terms; 0 leaves a term out.
        temperature: τ ≥ 0.02.
        max_positions: the batch term pools both maps until h · w is no more; None never does (official, for CNNs).
        max_anchors: every term is a mean over so many random anchors a step; None takes all (official).
        pixel_queue, region_queue: rows a class, officially 20000 (SegFormer: 2000) and 2000. Checkpoints hold them:
            11 classes of 20000 rows of 128 numbers are 113 MB.
        pixel_contrast, region_contrast: size of the contrast sets, see `ClassMemory.draw`.
        pixels_per_class: most vectors of a class that one image adds to the pixel queue.
        pixel_sampling: 'class' adds vectors of its own positions; 'code' as the official code: see `pixel_entries`.
        weight: factor on all terms.
        kwargs: see `Method`.
    Raises: ConfigError for an option out of range or missing taps or classes; UnknownName for another sampling.
    """

    assumption = "The batch term pools maps to 1024 positions; every term takes 512 random anchors a step."
    projector: nn.Sequential
    pixels: ClassMemory
    regions: ClassMemory

    def __init__(
        self,
        *,
        classes: int | None = None,
        taps: Sequence[Sequence[str]] | None = None,
        batch_weight: float = 1.0,
        pixel_weight: float = 0.1,
        region_weight: float = 0.1,
        temperature: float = 0.1,
        max_positions: int | None = 1024,
        max_anchors: int | None = 512,
        pixel_queue: int = 20000,
        region_queue: int = 2000,
        pixel_contrast: int = 4096,
        region_contrast: int = 1024,
        pixels_per_class: int = 16,
        pixel_sampling: str = "class",
        **kwargs: Any,
    ) -> None:
        if taps is None or len(taps) != 1:
            raise ConfigError(
                f"CIRKD needs one pair of taps, the maps before both classifiers, and has no default; got {taps!r}; "
                "DeepLabV3+ to SegFormer: taps=[['decode_head.sep_bottleneck', 'decode_head.fusion_conv']]"
            )
        super().__init__(taps=taps, **kwargs)
        self.classes, self.temperature, self.pixel_sampling = classes or 0, float(temperature), pixel_sampling
        self.batch_weight, self.pixel_weight, self.region_weight = batch_weight, pixel_weight, region_weight
        self.max_positions, self.max_anchors, self.pixels_per_class = max_positions, max_anchors, pixels_per_class
        if max_positions is None and max_anchors is None:
            self.assumption = ""  # type: ignore[misc]  # as the official code
        self.pixel_queue, self.region_queue = pixel_queue, region_queue
        self.pixel_contrast, self.region_contrast = pixel_contrast, region_contrast
        self.remembers = pixel_weight != 0 or region_weight != 0
        self._check()

    def _check(self) -> None:
        for name in ("max_positions", "max_anchors", "pixels_per_class", *SIZES):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"CIRKD needs {name} >= 1; got {value}")
        weights = (self.batch_weight, self.pixel_weight, self.region_weight)
        if min(weights) < 0 or max(weights) == 0:
            raise ConfigError(f"CIRKD needs batch, pixel and region weights >= 0, not all of them 0; got {weights}")
        if self.remembers and self.classes < 2:
            raise ConfigError(f"CIRKD needs classes, the number in the label maps, 2 or more; got {self.classes}")
        if not self.temperature >= COLDEST:
            raise ConfigError(f"CIRKD needs temperature >= {COLDEST}; got {self.temperature}")
        if self.pixel_sampling not in SAMPLINGS:
            raise UnknownName("pixel_sampling", self.pixel_sampling, SAMPLINGS, "of CIRKD")

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        teacher, student = teacher_shapes[0], student_shapes[0]
        check_maps("CIRKD", teacher, student)
        if not self.remembers:
            return
        width = teacher[1]
        first, second = nn.Linear(student[1], width, bias=False), nn.Linear(width, width, bias=False)
        self.projector = nn.Sequential(first, nn.BatchNorm1d(width), nn.ReLU(), second)
        self.pixels = ClassMemory(self.classes, self.pixel_queue, width)
        self.regions = ClassMemory(self.classes, self.region_queue, width)

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        student, teacher = batch.student[0].float(), batch.teacher[0].detach().float()
        check_maps("CIRKD", tuple(teacher.shape), tuple(student.shape))
        generator = batch.generator()
        with torch.autocast(student.device.type, enabled=False):
            terms = self._memory_terms(student, teacher, batch.targets, generator) if self.remembers else {}
            if self.batch_weight:
                s, t = (pool_positions(x, self.max_positions) for x in (student, teacher))
                anchors = self._some(torch.arange(s[:, 0].numel(), device=s.device), generator)
                loss = batch_relation_loss(s, t, temperature=self.temperature, anchors=anchors)
                terms["batch"] = self.batch_weight * loss
        return terms

    def _memory_terms(
        self, student: Tensor, teacher: Tensor, targets: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        labels = _labels(targets, tuple(student.shape), self.classes)
        keys = F.normalize(_positions(teacher), dim=2)
        self._remember(keys, labels, generator)
        drawn = {}
        if self.pixel_weight:
            drawn["memory_pixel"] = self.pixel_weight, self.pixels.draw(self.pixel_contrast, generator)
        if self.region_weight:
            drawn["memory_region"] = self.region_weight, self.regions.draw(self.region_contrast, generator)
        anchors = self._some((labels != IGNORE).flatten().nonzero().squeeze(1), generator)
        # Batch statistics of every position; the rest of the projector for the anchors alone.
        hidden = self.projector[:2](_positions(student).flatten(0, 1))[anchors]
        projected = self.projector[2:](hidden)
        target = keys.flatten(0, 1)[anchors]
        return {
            name: weight * memory_relation_loss(projected, target, contrast, temperature=self.temperature)
            for name, (weight, contrast) in drawn.items()
        }

    def _remember(self, keys: Tensor, labels: Tensor, generator: torch.Generator) -> None:
        """Write teacher vectors (B, N, C) of all processes, with labels (B, N), to the queues."""
        keys, labels = (torch.cat(all_gather(x)) for x in (keys, labels))
        self.regions.write(*region_entries(keys, labels, self.classes))
        own = self.pixel_sampling == "class"
        position, label = pixel_entries(labels, self.classes, self.pixels_per_class, generator, own=own)
        self.pixels.write(keys.flatten(0, 1)[position], label)

    def _some(self, positions: Tensor, generator: torch.Generator) -> Tensor:
        """`max_anchors` of the positions, or all."""
        if self.max_anchors is None or len(positions) <= self.max_anchors:
            return positions
        chosen = torch.randperm(len(positions), generator=generator)[: self.max_anchors]
        return positions[chosen.to(positions.device)]


def _positions(x: Tensor) -> Tensor:
    """A map (B, C, h, w) as (B, h · w, C), contiguous."""
    return x.flatten(2).transpose(1, 2).contiguous()


def _labels(targets: Tensor, shape: tuple[int, ...], classes: int) -> Tensor:
    """Label maps (B, H, W), by nearest, at the size of a map (B, C, h, w): (B, h · w)."""
    labels = fit_labels("CIRKD", targets, shape).flatten(1)
    wrong = (labels != IGNORE) & ((labels < 0) | (labels >= classes))
    if bool(wrong.any()):
        raise ConfigError(
            f"CIRKD: label {int(labels[wrong][0])} is not in 0 to {classes - 1}, nor {IGNORE}; "
            "set classes to the number of classes of the data set"
        )
    return labels
