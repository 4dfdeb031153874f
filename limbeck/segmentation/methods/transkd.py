"""TransKD: transformer knowledge distillation for efficient semantic segmentation (arXiv 2202.13393)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.engine.bridges import require_same_shape
from limbeck.engine.losses import hcl_loss
from limbeck.engine.method import LinkInputs, Method, Shapes
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch, UnknownName
from limbeck.segmentation.methods._transkd_parts import (
    CrossSelectiveFusion,
    EmbeddingAssistant,
    GLMixer,
    PatchEmbeddingAlignment,
)

EMBED_WEIGHTS = (0.1, 0.1, 0.5, 1.0)  # λ of the official code
MAPS = tuple((f"backbone[{i}]", f"backbone[{i}]") for i in range(4))
EMBEDDINGS = tuple((f"backbone.layers.{i}.0[0]", f"backbone.layers.{i}.0[0]") for i in range(4))


def channel_kl_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Divergence between the spatial distributions of matching channels, at temperature 1 (CWD, arXiv 2011.13256).

    L = mean over B and C of KL(σ_space(T) ‖ σ_space(S)).

    Args:
        student, teacher: maps (B, C, H, W) of one shape. The teacher's gradient is stopped.
    Returns: scalar ≥ 0, computed in float32.
    Raises: ShapeMismatch when they differ.
    """
    require_same_shape(student, teacher, "TransKD's channel_kl")
    return _divergence(student.flatten(2), teacher.flatten(2))


def pixel_kl_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Divergence between the channel distributions of matching positions, at temperature 1.

    L = mean over B, H and W of KL(σ_channels(T) ‖ σ_channels(S)).

    Args:
        student, teacher: maps (B, C, H, W) of one shape. The teacher's gradient is stopped.
    Returns: scalar ≥ 0, computed in float32.
    Raises: ShapeMismatch when they differ.
    """
    require_same_shape(student, teacher, "TransKD's pixel_kl")
    return _divergence(student.flatten(2).transpose(1, 2), teacher.flatten(2).transpose(1, 2))


def embedding_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of two patch embeddings.

    Args:
        student, teacher: tokens (B, N, C) of one shape. The teacher's gradient is stopped.
    Returns: scalar ≥ 0, computed in float32.
    Raises: ShapeMismatch when they differ.
    """
    require_same_shape(student, teacher, "TransKD's embedding loss")
    return F.mse_loss(student.float(), teacher.detach().float())


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL along the last axis, averaged over the others."""
    log_q, log_p = student.float().log_softmax(-1), teacher.detach().float().log_softmax(-1)
    return F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1).mean()


FEATURE_LOSSES = {"hcl": hcl_loss, "channel_kl": channel_kl_loss, "pixel_kl": pixel_kl_loss}


@METHODS.register_module()
class TransKD(Method):
    """Stage maps and patch embeddings of a hierarchical transformer: taps all maps, then as many embeddings.

    TransKD-Base: the student's maps pass a `CrossSelectiveFusion` to the teacher's widths, the term "feature" adds up
    their `hcl_loss`; each embedding passes a linear layer, the term "embedding" is Σ λ_i · MSE, λ = 0.1, 0.1, 0.5, 1.
    TransKD-GL (`mixer=True`) puts a `GLMixer` before the last embedding's linear layer, TransKD-EA (`assistant=True`)
    adds an `EmbeddingAssistant` to all embeddings. Both at once are not the paper's: the assistant then adds to the
    mixed embedding. All parts are trained by the student's optimiser, as officially, and dropped with the link.

    Taps: maps (B, C, H, W), shallow to deep, then the embeddings of the same stages, (B, N, C) or (B, H, W, C), after
    their norm; the student's as large as the teacher's. The default names fit MiT (SegFormer) in mmsegmentation and
    MMDetection's PVTv2. timm's PVTv2 has its embeddings at 'backbone.timm_model.patch_embed' and
    'backbone.timm_model.stages_1.downsample' to 'stages_3.downsample'. With `embed_stages=[]` all taps are maps, the
    default four alone, of any network.

    Officially without logit distillation, for a student without ImageNet weights, and CE + feature + embedding. Pixels
    of no class count in both terms.

    Args:
        feature_loss: 'hcl'; 'channel_kl' or 'pixel_kl', see the functions; None for no fusion and no such term.
        width: M, channels in the fusion.
        embed_stages: stages whose embeddings are matched, from 1; None for all.
        embed_weights: λ of every stage of the taps; None takes the official four, or 1 where one
            stage alone is matched.
        mixer: TransKD-GL. `mixer_heads`, `mixer_init` (both scalars) and `residual` belong to it; see `GLMixer`.
        assistant: TransKD-EA.
        image_channels: of the student's input, for the assistant.
        weight: factor on both terms.
        kwargs: see `Method`.
    Raises: ConfigError for options that do not fit together; UnknownName for another feature loss.
    """

    default_taps = (*MAPS, *EMBEDDINGS)
    unused_parameters = True  # of the two squeezes a step uses one
    assumption = "The GL-Mixer's two scalars start at 0.5: the official code leaves them unset."
    wants_inputs = True
    fusion: CrossSelectiveFusion | None
    alignment: PatchEmbeddingAlignment | None
    mixer: GLMixer | None
    assistant: EmbeddingAssistant | None

    def __init__(
        self,
        *,
        feature_loss: str | None = "hcl",
        width: int = 64,
        embed_stages: Sequence[int] | None = None,
        embed_weights: Sequence[float] | None = None,
        mixer: bool = False,
        mixer_heads: int = 8,
        mixer_init: float = 0.5,
        residual: bool = False,
        assistant: bool = False,
        image_channels: int = 3,
        taps: Sequence[Sequence[str]] | None = None,
        weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        maps_only = embed_stages is not None and not len(embed_stages)
        super().__init__(taps=MAPS if taps is None and maps_only else taps, weight=weight, **kwargs)
        if feature_loss is not None and feature_loss not in FEATURE_LOSSES:
            raise UnknownName("feature_loss", feature_loss, FEATURE_LOSSES, "of TransKD")
        self.depth = _depth(len(self.taps), maps_only=maps_only)
        self.embedded = _stages(embed_stages, self.depth)
        self.embed_weights = _weights(embed_weights, self.embedded, self.depth)
        self.feature_loss, self.width, self.image_channels = feature_loss, width, image_channels
        self.with_mixer, self.mixer_heads, self.mixer_init = mixer, mixer_heads, float(mixer_init)
        self.residual, self.with_assistant = residual, assistant
        self.fusion = self.alignment = self.mixer = self.assistant = None
        if not mixer:
            self.assumption = ""  # type: ignore[misc]  # Base and EA leave nothing open
        self._check()

    def _check(self) -> None:
        """Raises: ConfigError for parts that would do nothing, and sizes below 1."""
        sizes = self.width, self.mixer_heads, self.image_channels
        if min(sizes) < 1:
            raise ConfigError(f"TransKD needs width, mixer_heads and image_channels of 1 or more; got {sizes}")
        if not self.embedded and self.feature_loss is None:
            raise ConfigError("TransKD without feature_loss and embed_stages has nothing to learn; name one of them")
        if self.with_mixer and self.depth - 1 not in self.embedded:
            raise ConfigError(f"TransKD's mixer works on the last embedding; add stage {self.depth} to embed_stages")
        if self.residual and not self.with_mixer:
            raise ConfigError("TransKD's residual belongs to the mixer; set mixer=True as well")
        if self.with_assistant and not self.embedded:
            raise ConfigError("TransKD's assistant adds to embeddings, and embed_stages has none; name some")

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        n = self.depth
        pairs = list(zip(teacher_shapes, student_shapes, strict=True))
        _check_maps(pairs[:n], [s for _, s in self.taps[:n]])
        for i in self.embedded:
            _check_embedding(i + 1, *pairs[n + i], size=pairs[i][1][2:])
        channels = [s[1] for s in student_shapes[:n]]
        if self.feature_loss is not None:
            self.fusion = CrossSelectiveFusion(channels, [t[1] for t in teacher_shapes[:n]], self.width)
        if not self.embedded:
            return
        teachers, students = ([shape[-1] for shape in shapes[n:]] for shapes in (teacher_shapes, student_shapes))
        self.alignment = PatchEmbeddingAlignment(
            [students[i] for i in self.embedded], [teachers[i] for i in self.embedded]
        )
        if self.with_mixer:
            self.mixer = GLMixer(students[-1], heads=self.mixer_heads, init=self.mixer_init, residual=self.residual)
        if self.with_assistant:
            self.assistant = EmbeddingAssistant([self.image_channels, *channels[:-1]], teachers, self.embedded)

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        n = self.depth
        terms: dict[str, Tensor] = {}
        with torch.autocast(batch.student[0].device.type, enabled=False):
            students = [s.float() for s in batch.student]
            if self.fusion is not None and self.feature_loss is not None:
                loss = FEATURE_LOSSES[self.feature_loss]
                aligned = self.fusion(students[:n])
                terms["feature"] = torch.stack([loss(p, t) for p, t in zip(aligned, batch.teacher[:n])]).sum()
            if self.embedded:
                found = self.embeddings(students[:n], students[n:], batch.inputs.get(self.student))
                targets = [as_tokens(batch.teacher[n + i]) for i in self.embedded]
                triples = zip(self.embed_weights, found, targets, strict=True)
                terms["embedding"] = torch.stack([w * embedding_loss(z, t) for w, z, t in triples]).sum()
        return terms

    def embeddings(self, maps: Sequence[Tensor], embeddings: Sequence[Tensor], image: Tensor | None) -> list[Tensor]:
        """The student's side of the embedding loss, (B, N, C_T) for each matched stage.

        Args:
            maps, embeddings: the student's, float32, of all stages.
            image: its input (B, C, H, W), for the assistant.
        Raises: ConfigError when the assistant gets no such image; ShapeMismatch when its tokens do not fit.
        """
        assert self.alignment is not None  # `connect` came first
        tokens = [as_tokens(embeddings[i]) for i in self.embedded]
        if self.mixer is not None:
            tokens[-1] = self.mixer(tokens[-1])
        aligned = self.alignment(tokens)
        if self.assistant is None:
            return aligned
        if image is None or image.dim() != 4 or image.shape[1] != self.image_channels:
            raise ConfigError(
                f"TransKD's assistant reads the student's images of {self.image_channels} channels; got "
                f"{None if image is None else tuple(image.shape)}; set image_channels, or assistant=False"
            )
        return self.assistant(aligned, image.float(), maps)


def as_tokens(x: Tensor) -> Tensor:
    """A patch embedding (B, N, C), or (B, H, W, C), as tokens (B, N, C)."""
    return x.flatten(1, 2) if x.dim() == 4 else x


def _depth(taps: int, *, maps_only: bool) -> int:
    """Number of stages."""
    if not maps_only and taps % 2:
        raise ConfigError(
            f"TransKD taps the maps of all stages and then as many patch embeddings; got {taps} pairs of taps, an odd "
            "number (embed_stages=[] takes maps alone)"
        )
    return taps if maps_only else taps // 2


def _stages(wanted: Sequence[int] | None, depth: int) -> tuple[int, ...]:
    """Stages whose embeddings are matched, from 0, in order."""
    if wanted is None:
        return tuple(range(depth))
    if len(set(wanted)) != len(wanted) or any(not 1 <= i <= depth for i in wanted):
        raise ConfigError(f"TransKD: embed_stages are distinct numbers from 1 to {depth}; got {list(wanted)}")
    return tuple(sorted(i - 1 for i in wanted))


def _weights(given: Sequence[float] | None, stages: tuple[int, ...], depth: int) -> tuple[float, ...]:
    """λ of the matched stages."""
    if given is None and len(stages) == 1:
        return (1.0,)
    weights = EMBED_WEIGHTS if given is None else tuple(given)
    if stages and (len(weights) != depth or not all(0 < w < math.inf for w in weights)):
        raise ConfigError(f"TransKD needs embed_weights, {depth} positive numbers for {depth} stages; got {weights}")
    return tuple(float(weights[i]) for i in stages)


def _check_maps(pairs: list[tuple[tuple[int, ...], tuple[int, ...]]], names: list[str]) -> None:
    for teacher, student in pairs:
        if len(teacher) != 4 or len(student) != 4 or teacher[0] != student[0] or teacher[2:] != student[2:]:
            raise ShapeMismatch(
                f"TransKD: teacher map {teacher} and student map {student} do not fit; maps (B, C, H, W) of one batch "
                "and size would, whatever their widths"
            )
    sizes = [student[2:] for _, student in pairs]
    if any(deep[0] > shallow[0] or deep[1] > shallow[1] for shallow, deep in pairwise(sizes)):
        raise ConfigError(
            f"TransKD: student maps {names} of sizes {sizes} grow from one to the next; list them from the shallowest "
            "to the deepest stage"
        )


def _check_embedding(stage: int, teacher: tuple[int, ...], student: tuple[int, ...], size: tuple[int, ...]) -> None:
    fits = (size[0] * size[1],), tuple(size)
    if student[0] != teacher[0] or student[1:-1] not in fits or teacher[1:-1] not in fits:
        raise ShapeMismatch(
            f"TransKD: teacher embedding {teacher} and student embedding {student} do not fit stage {stage}, whose map "
            f"is {size[0]}×{size[1]}; (B, {size[0] * size[1]}, C) or (B, {size[0]}, {size[1]}, C) of one batch would"
        )
