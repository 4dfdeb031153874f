"""PointDistiller: structured distillation of local graphs for 3D detectors (arXiv 2205.11098)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.engine.bridges import LinearBridge
from limbeck.engine.losses import check_temperature
from limbeck.engine.method import LinkInputs, Method, Shapes
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, UnknownName
from limbeck.pointcloud.methods._graphs import (
    FUSIONS,
    POOLS,
    SAMPLINGS,
    EdgeLayer,
    Graphs,
    check_counts,
    effective_centres,
    graph_loss,
    nearest_rows,
    sample_centres,
    softmax_weights,
    weighted_error,
)
from limbeck.pointcloud.methods._rows import Kind, Rows, matching_rows, tap_kind

Reweight = bool | Literal["official"]
SCOPES = ("cloud", "batch")
ALIGNS = ("index", "coors")
COLLAPSED = 1e-3  # standard deviation of the teacher's graph features below which the loss compares nothing
WITHIN = "Centres and neighbours stay within a cloud of the batch, where the official code mixes clouds."
WEIGHTED = "Map cells and points are weighted by the soft-max over centres; in the official code they are not."


@dataclass(frozen=True, slots=True)
class Settings:
    """Options of one kind of tap; see `PointDistiller`. channels None is the student's width."""

    num_voxels: int
    kneighbours: int
    channels: int | None
    temperature: float
    pool: str = "none"
    scope: str = "cloud"
    reweight: Reweight = True


PRESETS: dict[str, dict[Kind, Settings]] = {
    "desk": {
        "rows": Settings(1024, 32, 16, 10.0),
        "maps": Settings(256, 32, 16, 1.0),
        "points": Settings(256, 32, 16, 1.0, "max"),
    },
    "official": {
        "rows": Settings(6000, 128, None, 1e-2, scope="batch"),
        "maps": Settings(256, 128, 32, 1e-4, reweight="official"),
        "points": Settings(6000, 128, None, 1e-3, "max", reweight="official"),
    },
}


def build_graphs(rows: Rows, settings: Settings, *, sampling: str, generator: torch.Generator | None = None) -> Graphs:
    """Centres, neighbours and weights of a batch, from teacher and data alone; a cloud without rows has no centres.

    Args:
        rows: see `matching_rows`.
        settings: `num_voxels` is here the number of centres of a cloud, or of the batch with scope='batch'.
        sampling: see `sample_centres`.
    """
    whole = torch.arange(len(rows.scores), device=rows.scores.device)
    groups = [whole] if settings.scope == "batch" else [whole[rows.cloud == b] for b in range(rows.clouds)]
    graphs = Graphs([], [], None if settings.reweight is False else [])
    for group in groups:
        scores, features = rows.scores[group], rows.teacher[group]
        centres = sample_centres(scores, settings.num_voxels, sampling=sampling, generator=generator)
        graphs.centres.append(group[centres])
        graphs.neighbours.append(group[nearest_rows(features, centres, settings.kneighbours)])
        if graphs.weights is not None:
            uniform = settings.reweight == "official"
            chosen = scores[centres]
            graphs.weights.append(torch.ones_like(chosen) if uniform else softmax_weights(chosen, settings.temperature))
    return graphs


@METHODS.register_module()
class PointDistiller(Method):
    """Graph features of the most important voxels or points, weighted by importance; taps any number of pairs.

    The N most important rows are centres, each joined with its K nearest rows in the teacher's feature space. A learned
    layer a side encodes every edge, `EdgeLayer`, and L = 2 · mean of φ (G_T − G_S)², `graph_loss`; taps are added. The
    layers are trained with the student and dropped with the link. Choice and weights read data and teacher alone.

    Taps: the pillar encoder's rows (n, C) (the default), weighted by their numbers of points, which come with the
    targets `Targets3D`; SECOND's 'backbone[0]', 'backbone[1]', maps whose every cell is a row; or features of points
    (B, C, P). A width may differ from side to side, the places may not.

    Presets by kind of tap, (N, K, C', τ): 'official' has voxel rows (6000, 128, C_S, 1e-2), maps (256, 128, 32, 1e-4),
    points (6000, 128, C_S, 1e-3) with max-pooling; as in the official code, neighbours cross clouds for voxel rows, and
    maps and points are not reweighted. 'desk', the default, is ours (ASSUMPTION): (1024, 32, 16, 10), for maps and
    points (256, 32, 16, 1). At τ = 1e-2 counts of points weight the fullest voxels alone.

    Ablations: reweight='official' (all φ = 1), graph=False, sampling='random'.

    Args:
        preset: 'desk' or 'official'; options that are given come before it.
        num_voxels: N, of the batch for voxel rows, N / B of each of B clouds with scope='cloud'; of a cloud elsewhere.
            Fewer rows are all taken.
        kneighbours: K, at most all rows.
        channels: C'.
        temperature: τ > 0 of the weights φ = N softmax(s / τ).
        sampling: 'top', 'bottom', 'both' or 'random'; see `sample_centres`.
        fuse: 'concat' or 'sub'; see `EdgeLayer`.
        pool: 'none' compares edges, 'max' the largest value over the neighbours.
        reweight: True weights by φ; 'official' by 1, which is what the official code comes to on maps and points; False
            is its unweighted loss 5e-4 · ‖G_T − G_S‖₂, on a scale of its own.
        scope: 'cloud' keeps graphs and soft-max within a cloud (ASSUMPTION for voxel rows), 'batch' does not.
        align: 'index' requires equal voxels on both sides; 'coors' matches voxels by coordinates and leaves out the
            others (ASSUMPTION).
        freeze_teacher_edge: keep the teacher's layer as it was drawn, so that both cannot agree on zero (ASSUMPTION).
        graph: False compares the centres' rows themselves, the student's through a linear bridge where widths differ.
        weight: factor on the term "graph".
        kwargs: see `Method`.
    Raises: ConfigError, UnknownName for options out of range.
    """

    default_taps = (("voxel_encoder", "voxel_encoder"),)
    wants_inputs = True
    student_layers: nn.ModuleList
    teacher_layers: nn.ModuleList

    def __init__(
        self,
        *,
        preset: str = "desk",
        num_voxels: int | None = None,
        kneighbours: int | None = None,
        channels: int | None = None,
        temperature: float | None = None,
        sampling: str = "top",
        fuse: str = "concat",
        pool: str | None = None,
        reweight: Reweight | None = None,
        scope: str | None = None,
        align: str = "index",
        freeze_teacher_edge: bool = False,
        graph: bool = True,
        weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(weight=weight, **kwargs)
        check_counts("PointDistiller", num_voxels=num_voxels, kneighbours=kneighbours, channels=channels)
        if temperature is not None:
            check_temperature("PointDistiller", temperature)
        choices = dict(preset=PRESETS, sampling=SAMPLINGS, fuse=FUSIONS, align=ALIGNS, pool=POOLS, scope=SCOPES)
        given = dict(preset=preset, sampling=sampling, fuse=fuse, align=align, pool=pool, scope=scope)
        for name, value in given.items():
            if value is not None and value not in choices[name]:
                raise UnknownName(name, value, choices[name], "of PointDistiller")
        if reweight not in (None, True, False, "official"):
            raise ConfigError(f"PointDistiller's reweight is True, False or 'official'; got {reweight!r}")
        options = dict(num_voxels=num_voxels, kneighbours=kneighbours, channels=channels, temperature=temperature)
        options |= dict(pool=pool, scope=scope, reweight=reweight)
        self.options = {name: value for name, value in options.items() if value is not None}
        self.preset, self.sampling, self.fuse, self.graph = preset, sampling, fuse, graph
        self.join, self.freeze_teacher_edge = align == "coors", freeze_teacher_edge
        self.settings: list[tuple[Kind, Settings]] = []
        self.logged: dict[str, Tensor] = {}
        self._warned = False

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        self.student_layers, self.teacher_layers, self.settings = nn.ModuleList(), nn.ModuleList(), []
        for pair, teacher, student in zip(self.taps, teacher_shapes, student_shapes, strict=True):
            kind = tap_kind("PointDistiller", pair, teacher, student, join=self.join)
            settings = replace(PRESETS[self.preset][kind], **self.options)
            self.settings.append((kind, settings))
            if not self.graph:
                same = teacher[1] == student[1]
                self.student_layers.append(nn.Identity() if same else LinearBridge(student[1], teacher[1]))
                self.teacher_layers.append(nn.Identity())
                continue
            channels = settings.channels or student[1]
            self.teacher_layers.append(EdgeLayer(teacher[1], channels, fuse=self.fuse))
            self.student_layers.append(EdgeLayer(student[1], channels, fuse=self.fuse))
        if self.freeze_teacher_edge:
            self.teacher_layers.requires_grad_(False)
        self.assumption = self._assumptions()  # type: ignore[misc]  # of these taps alone

    def _assumptions(self) -> str:
        said = {WITHIN: False, WEIGHTED: False}
        for kind, settings in self.settings:
            said[WITHIN] |= kind == "rows" and settings.scope == "cloud"
            said[WEIGHTED] |= kind != "rows" and settings.reweight is True
        return " ".join(text for text, holds in said.items() if holds)

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        members = (self.teachers[0], self.student)
        generator = batch.generator()
        self.logged, losses = {}, []
        for index, pair in enumerate(self.taps):
            with torch.autocast(batch.student[index].device.type, enabled=False):
                rows = matching_rows("PointDistiller", pair, members, index, batch, join=self.join)
                losses.append(self._loss(index, rows, generator))
        self._warn_of_collapse()
        return {"graph": torch.stack(losses).sum()}

    def graphs(self, index: int, rows: Rows, generator: torch.Generator | None = None) -> Graphs:
        """Centres, neighbours and weights of a batch, as one of the taps compares them.

        Args:
            index: of the tap.
            rows: of the batch, see `matching_rows`.
        """
        kind, settings = self.settings[index]
        total = settings.num_voxels * (1 if kind == "rows" else rows.clouds)
        share = total if settings.scope == "batch" else max(total // max(rows.clouds, 1), 1)
        near = settings.kneighbours if self.graph else 1
        sized = replace(settings, num_voxels=share, kneighbours=near)
        return build_graphs(rows, sized, sampling=self.sampling, generator=generator)

    def _loss(self, index: int, rows: Rows, generator: torch.Generator) -> Tensor:
        graphs = self.graphs(index, rows, generator)
        teacher, student = self.teacher_layers[index], self.student_layers[index]
        if not self.graph:
            self._log(graphs)
            mine, theirs = student(rows.student), teacher(rows.teacher)
            pairs = [(mine[i][:, None], theirs[i][:, None]) for i in graphs.centres]
            return weighted_error([s for s, _ in pairs], [t for _, t in pairs], graphs.weights)
        ends = graphs.edges
        if len(ends[0]) < 2:  # batch norm has no statistics of one edge
            return rows.student.sum() * 0.0
        encoded = teacher(rows.teacher, *ends)
        self._log(graphs, encoded.detach())
        return graph_loss(student(rows.student, *ends), encoded, graphs, pool=self.settings[index][1].pool)

    @torch.no_grad()
    def _log(self, graphs: Graphs, encoded: Tensor | None = None) -> None:
        """Facts of this step, a value a tap: effective number of centres, mean and deviation of the teacher's G."""
        found: dict[str, Tensor] = {}
        if graphs.weights is not None:
            found["effective_centres"] = effective_centres(torch.cat(graphs.weights))
        if encoded is not None:
            found |= dict(teacher_mean=encoded.mean(), teacher_std=encoded.std())
        for name, value in found.items():
            self.logged[name] = torch.cat([self.logged[name], value[None]]) if name in self.logged else value[None]

    def _warn_of_collapse(self) -> None:
        if self._warned or "teacher_std" not in self.logged:
            return
        least = float(self.logged["teacher_std"].min())
        if least < COLLAPSED:
            self._warned = True
            warnings.warn(
                f"PointDistiller: the teacher's graph features have standard deviation {least:.1e}, so that its loss "
                "compares next to nothing; freeze_teacher_edge=True keeps their layer from shrinking",
                stacklevel=2,
            )
