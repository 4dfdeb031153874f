"""CNNViTCollab: a CNN and a transformer that learn from each other, after Zhu et al. 2023 (arXiv 2307.12574)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.bridges import mismatch, require_same_shape
from limbeck.engine.losses import check_temperature, resize_bilinear
from limbeck.engine.method import LinkInputs, Method, Shapes
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch, UnknownName
from limbeck.segmentation.methods._reliability import Selection, on_finer_grid, region_means, select

TAPS = ("low", "deep", "logits")
REGION_FORMS = ("similarity", "feature")
NORMALISERS = ("selected", "valid")
EPS = 1e-8


def hfd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Heterogeneous feature distillation: mean over samples and positions of 1 − cos along the channels.

    Args:
        student: bridged low map φ(L_S), (B, C_T, h, w).
        teacher: the peer's low map L_T, of the same shape. Its gradient is stopped.
    Returns: scalar in [0, 2], computed in float32. Positive factors on either side do not count.
    Raises: ShapeMismatch when the two differ.

    >>> x = torch.ones(2, 3, 4, 4)
    >>> hfd_loss(x, 5 * x).item() < 1e-6, round(hfd_loss(-x, x).item(), 4)
    (True, 2.0)
    """
    require_same_shape(student, teacher, "CNNViTCollab")
    return _cosine_distance(student, teacher).mean()


def region_similarity_loss(student: Tensor, teacher: Tensor, chosen: Tensor) -> Tensor:
    """Squared difference of the two sides' similarities between regions, over the regions in which the peer is better.

    L = Σ_{b,r} u(b, r) · (1/R) Σ_r' (A_S[b, r, r'] − A_T[b, r, r'])² / max(1, Σ u); A as in `region_similarity`.

    Args:
        student, teacher: maps (B, C, h, w) of one batch; widths and sizes may differ. No gradient into the teacher.
        chosen: u, (B, G, G) bool; R = G².
    Returns: scalar ≥ 0, computed in float32; 0, with a graph, where nothing is chosen.
    """
    grid = chosen.shape[-1]
    gap = region_similarity(student, grid) - region_similarity(teacher.detach(), grid)
    return _mean_where(gap.square().mean(2), chosen.flatten(1))


def region_similarity(x: Tensor, grid: int) -> Tensor:
    """Cosine similarities (B, G², G²) between the region averages of a map (B, C, h, w)."""
    # autocast would do the product in half precision
    with torch.autocast(x.device.type, enabled=False):
        f = F.normalize(F.adaptive_avg_pool2d(x.float(), grid).flatten(2), dim=1, eps=EPS)
        return f.transpose(1, 2) @ f


def region_feature_loss(student: Tensor, teacher: Tensor, chosen: Tensor) -> Tensor:
    """1 − cos along the channels, averaged over each region's positions, over the regions in which the peer is better.

    L = Σ_{b,r} u(b, r) · mean_{p ∈ r} (1 − cos(S_bp, T_bp)) / max(1, Σ u).

    Args:
        student, teacher: maps (B, C, h, w) of one shape, the student's bridged. The teacher's gradient is stopped.
        chosen: u, (B, G, G) bool.
    Returns: scalar in [0, 2], computed in float32; 0, with a graph, where nothing is chosen.
    Raises: ShapeMismatch when the maps differ.
    """
    require_same_shape(student, teacher, "CNNViTCollab")
    return _mean_where(region_means(_cosine_distance(student, teacher), chosen.shape[-1]), chosen)


def pixel_loss(
    student: Tensor, teacher: Tensor, chosen: Tensor, *, temperature: float = 1.0, over: Tensor | None = None
) -> Tensor:
    """Divergence of the student's class distribution from the peer's, over the pixels in which the peer is better.

    L = T² · Σ_{b,p} M(b, p) · KL(σ(z_T / T) ‖ σ(z_S / T)) / max(1, Σ N).

    Args:
        student, teacher: logits (B, K, h, w) of one shape. The teacher's gradient is stopped.
        chosen: M, (B, h, w) bool.
        temperature: T > 0.
        over: N, the pixels to divide by, (B, h, w) bool; None takes M.
    Returns: scalar ≥ 0, computed in float32; 0, with a graph, where nothing is chosen.
    Raises: ShapeMismatch when the logits differ.
    """
    require_same_shape(student, teacher, "CNNViTCollab")
    log_q = F.log_softmax(student.float() / temperature, dim=1)
    log_p = F.log_softmax(teacher.detach().float() / temperature, dim=1)
    divergence = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(1)
    return temperature**2 * _mean_where(divergence, chosen, over)


def _cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    return 1.0 - F.cosine_similarity(student.float(), teacher.detach().float(), dim=1, eps=EPS)


def _mean_where(values: Tensor, chosen: Tensor, over: Tensor | None = None) -> Tensor:
    return values.masked_fill(~chosen, 0.0).sum() / (chosen if over is None else over).sum().clamp(min=1)


@METHODS.register_module()
class CNNViTCollab(Method):
    """One direction of an exchange between two trained members: the peer teaches where it is the more reliable.

    After Zhu et al., *A Good Student is Cooperative and Reliable* (ICCV 2023). ASSUMPTION: no official code was to be
    found and of the paper abstract and introduction alone; every formula, weight and choice of layer here is our
    reconstruction of what they say, and its figures must not stand beside the paper's.

    - "hfd": the low map, bridged, mimics the peer's at every position; see `hfd_loss`.
    - "region": of G×G regions, those in which the peer's mean cross entropy is the lower: the deep map's similarities
      between regions (`region_similarity_loss`), or the deep map itself (`region_feature_loss`).
    - "pixel": of the labelled pixels, those in which the peer's cross entropy is the lower; see `pixel_loss`.

    The peer's tensors carry no gradient. Both members are `trained`, and a config names two links, the taps mirrored:

        dict(type='CNNViTCollab', teacher='peer', student='student', taps=[(low, low'), (deep, deep'), ('logits',) * 2])
        dict(type='CNNViTCollab', teacher='student', student='peer', taps=[(low', low), (deep', deep), ('logits',) * 2])

    One link alone is the ablation of one direction. Taps, in this order: low, maps of stride 4 (B, C, h, w); deep, the
    maps before the classifiers; logits (B, K, h, w). Those of a part whose factor is 0 may be left out. The student's
    low map is resized to the peer's; deep maps and logits go to the finer grid of the two, labels to the logits'.

    Bridges, a 1×1 convolution and batch norm each, are the student's: trained with it and dropped with the link.
    All three parts rise linearly over the first 10 % of the run, as both members are unreliable at first; another
    `schedule` changes that (`dict(type='constant')`: no ramp). A step in which the peer is nowhere better has nothing
    to give: there the guard against dead terms is silent.

    Args:
        hfd, region, pixel: factors on the three terms; 0 leaves the term out, and three zeros are plain training.
        temperature: T > 0 of "pixel".
        grid: G; at least 2 for region_form='similarity', as one region has no other to be similar to.
        region_form: 'similarity' or 'feature'.
        normalise: divide "pixel" by the number of 'selected' pixels, or of 'valid' (labelled) ones.
        margin: ≥ 0, by how much the peer's cross entropy at a pixel must be lower.
        kwargs: see `Method`.
    Raises: ConfigError for an option out of range; UnknownName for another form or normaliser.
    """

    assumption = (
        "After Zhu et al. 2023, whose code and formulas were not to be found: every formula, weight and layer is ours."
    )

    def __init__(
        self,
        *,
        hfd: float = 0.1,
        region: float = 0.1,
        pixel: float = 1.0,
        temperature: float = 1.0,
        grid: int = 4,
        region_form: str = "similarity",
        normalise: str = "selected",
        margin: float = 0.0,
        weight: float = 1.0,
        schedule: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        # Three zeros: the engine never runs a link of weight 0.
        weight = weight if hfd or region or pixel else 0.0
        super().__init__(weight=weight, schedule=schedule or dict(type="warmup", end=0.1), **kwargs)
        for kind, value, known in (("region_form", region_form, REGION_FORMS), ("normalise", normalise, NORMALISERS)):
            if value not in known:
                raise UnknownName(kind, value, known, "of CNNViTCollab")
        if not all(value >= 0 for value in (hfd, region, pixel, margin)):
            raise ConfigError(
                "CNNViTCollab needs hfd, region, pixel and margin of 0 or more; "
                f"got {hfd}, {region}, {pixel} and {margin}"
            )
        least = 2 if region_form == "similarity" else 1
        if grid < least:
            raise ConfigError(f"CNNViTCollab needs grid >= {least} for region_form={region_form!r}; got {grid}")
        self.hfd, self.region, self.pixel = float(hfd), float(region), float(pixel)
        self.temperature = check_temperature("CNNViTCollab", temperature)
        self.grid, self.region_form, self.normalise, self.margin = grid, region_form, normalise, float(margin)
        self.declared_zero = self.may_be_zero
        self.tapped = self._name_taps()

    def _name_taps(self) -> tuple[str, ...]:
        used = (self.hfd, self.region, self.region or self.pixel)
        needed = tuple(name for name, factor in zip(TAPS, used) if factor)
        if len(self.taps) == len(TAPS):
            return TAPS
        if len(self.taps) != len(needed):
            raise ConfigError(
                f"CNNViTCollab: {len(self.taps)} pairs of taps do not fit; {', '.join(needed or TAPS)} would, in order"
            )
        return needed

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        pairs = dict(zip(self.tapped, zip(teacher_shapes, student_shapes, strict=True)))
        if self.hfd:
            teacher, student = _check_maps(*pairs["low"])
            self.low = _bridge(student[1], teacher[1])
        if self.region or self.pixel:
            teacher, student = _check_maps(*pairs["logits"])
            if teacher[1] != student[1] or teacher[1] < 2:
                raise ShapeMismatch(
                    f"CNNViTCollab: the peer's logits {teacher} and the student's {student} do not fit; "
                    "two heads of the same classes, two or more, would"
                )
        if self.region:
            teacher, student = _check_maps(*pairs["deep"])
            self._check_grid(pairs["deep"], pairs["logits"])
            if self.region_form == "feature":
                self.deep = _bridge(student[1], teacher[1])

    def _check_grid(self, deep: tuple[tuple[int, ...], ...], logits: tuple[tuple[int, ...], ...]) -> None:
        sizes = [shape[2:] for shape in deep] + [tuple(map(max, *(shape[2:] for shape in logits)))]
        if min(min(size) for size in sizes) < self.grid:
            raise ShapeMismatch(
                f"CNNViTCollab: maps of {' and '.join('×'.join(map(str, s)) for s in sizes)} positions have no "
                f"{self.grid}×{self.grid} regions; a smaller grid or larger maps would fit"
            )

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        taps = {name: (batch.student[i], batch.teacher[i]) for i, name in enumerate(self.tapped)}
        terms: dict[str, Tensor] = {}
        if self.hfd:
            student, teacher = taps["low"]
            size = (teacher.shape[2], teacher.shape[3])
            terms["hfd"] = self.hfd * hfd_loss(self.low(resize_bilinear(student, size)), teacher)
        if self.region or self.pixel:
            student, teacher = on_finer_grid(*taps["logits"])
            found = select(student, teacher, batch.targets, grid=self.grid, margin=self.margin)
            if self.region:
                terms["region"] = self.region * self._region_loss(*taps["deep"], found.regions)
            if self.pixel:
                over = found.valid if self.normalise == "valid" else None
                value = pixel_loss(student, teacher, found.pixels, temperature=self.temperature, over=over)
                terms["pixel"] = self.pixel * value
            self.may_be_zero = self.declared_zero or self._nothing_to_learn(found)
        return terms

    def _region_loss(self, student: Tensor, teacher: Tensor, chosen: Tensor) -> Tensor:
        if self.region_form == "similarity":
            return region_similarity_loss(student, teacher, chosen)
        student, teacher = on_finer_grid(student, teacher)
        return region_feature_loss(self.deep(student), teacher, chosen)

    def _nothing_to_learn(self, found: Selection) -> bool:
        """Whether a term of this step is zero because the peer is nowhere better, which is no mistake."""
        masks = [m for factor, m in ((self.region, found.regions), (self.pixel, found.pixels)) if factor]
        return not all(bool(mask.any()) for mask in masks)


def _bridge(student: int, teacher: int) -> nn.Sequential:
    """1×1 convolution, C_S to C_T channels, and batch norm."""
    conv = nn.Conv2d(student, teacher, 1, bias=False)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    return nn.Sequential(conv, nn.BatchNorm2d(teacher))


def _check_maps(teacher: tuple[int, ...], student: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if len(teacher) != 4 or len(student) != 4:
        raise ShapeMismatch(
            f"CNNViTCollab: the peer's tap {teacher} and the student's {student} do not fit; "
            "maps (B, C, h, w) on both sides would"
        )
    if teacher[0] != student[0]:
        raise mismatch("CNNViTCollab", teacher, student)
    return teacher, student
