"""The voxels that a recorded run's PointDistiller link chooses in frames of the validation split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import Subset

from limbeck.engine.distiller import Distiller
from limbeck.engine.evaluate import eval_loader
from limbeck.engine.method import LinkInputs
from limbeck.engine.record import RunRecord
from limbeck.errors import ConfigError
from limbeck.leaderboard.pictures.val_samples import val_samples
from limbeck.leaderboard.pictures.voxels import BINS, LINK, ChosenVoxels


@dataclass(frozen=True)
class Choice:
    """A frame and what was chosen in it.

    boxes, labels: ground truth, (M, 7) and (M,).
    places, counts: middle, x and y, and number of points of each of n pillars, (n, 2) and (n,).
    centres, weights: rows of those that became centres and their φ, (N,) each.
    """

    sample: int
    boxes: np.ndarray
    labels: np.ndarray
    places: np.ndarray
    counts: np.ndarray
    centres: np.ndarray
    weights: np.ndarray

    def described(self, largest_weight: float) -> ChosenVoxels:
        """The figures of this frame; `largest_weight` is where its histogram ends."""
        inside = middles_inside(self.places, self.boxes)
        at = inside[self.centres]
        total = float(self.weights.sum())
        squares = float(np.square(self.weights).sum())
        counts, _ = np.histogram(self.weights, BINS, (0.0, largest_weight))
        return ChosenVoxels(
            sample=self.sample,
            objects=len(self.boxes),
            pillars=len(self.places),
            centres=len(self.centres),
            pillars_inside=_mean(inside),
            centres_inside=_mean(at),
            weight_inside=float(self.weights[at].sum()) / total if total else 0.0,
            effective_centres=total**2 / squares if squares else 0.0,
            histogram=counts.tolist(),
        )


@dataclass(frozen=True)
class Seen:
    """What a run's link chose.

    extent, pillar: of the grid, in metres: lowest, then highest corner; size along x and y.
    classes, palette: of the data.
    """

    frames: list[Choice]
    tap: str
    options: dict[str, Any]
    batch_size: int
    content_hash: str
    extent: tuple[float, ...]
    pillar: tuple[float, float]
    classes: Sequence[str]
    palette: Sequence[tuple[int, int, int]]

    @property
    def largest_weight(self) -> float:
        """Of all frames."""
        return max((float(frame.weights.max()) for frame in self.frames if len(frame.weights)), default=1.0)


def middles_inside(places: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Which places (n, 2) lie in any of the boxes (M, 7) as seen from above, bool (n,)."""
    from limbeck.pointcloud.data.frames import points_in_boxes

    flat = np.concatenate([places, np.zeros((len(places), 1))], 1)
    tall = np.array(boxes, float).reshape(-1, 7)
    tall[:, 2], tall[:, 5] = -1.0, 2.0
    return np.asarray(points_in_boxes(flat, tall).any(0))


def choose_again(record: RunRecord, teachers: Mapping[str, Path], count: int) -> Seen:
    """Run a record's teacher over frames of the validation split and let its link choose, on the CPU.

    Frames are voxelised as in training but not augmented, and looked at in batches of the training's size, since a
    batch's frames share the number of centres.

    Args:
        teachers: files of weights by record id; the engine checks each against the sha256 in the config.
        count: frames, drawn at random with a fixed seed.
    Raises: ConfigError for a count that the split does not have, and for taps that are not of pillars; CorruptFile when
        it is not the record's, or weights are not; DataMissing, ExtraMissing.
    """
    size = int(record.config["data"]["batch_size"])
    run, dataset, samples = val_samples(record, count, spare=-count % size)
    model = Distiller(**_with_files(run.model, teachers), seed=record.seed)
    index = next(i for i, link in enumerate(model.methods()) if type(link).__name__ == LINK)
    link = cast(Any, model.methods()[index])
    tap = next((i for i, (kind, _) in enumerate(link.settings) if kind == "rows"), None)
    if tap is None or link.join:
        raise ConfigError(
            f"{record.id} compares {link.taps} with align={'coors' if link.join else 'index'!r}; only rows of "
            "pillars that both members share are drawn, such as those of 'voxel_encoder'"
        )
    together = run.data.model_copy(update=dict(eval_batch_size=size))
    frames: list[Choice] = []
    for data in eval_loader(together, "val", Subset(dataset, samples)):
        frames += _choices(model, link, tap, data)
    grid = cast(Any, model.deploy).grid
    return Seen(
        frames=frames[:count],
        tap=link.taps[tap][0],
        options=asdict(link.settings[tap][1]) | dict(sampling=link.sampling, graph=link.graph),
        batch_size=size,
        content_hash=dataset.content_hash,
        extent=grid.point_cloud_range,
        pillar=grid.voxel_size[:2],
        classes=dataset.classes,
        palette=dataset.palette,
    )


def _with_files(model: Mapping[str, Any], teachers: Mapping[str, Path]) -> dict[str, Any]:
    """A run's model with paths in the place of 'run://' weights."""
    members = {}
    for name, member in model["members"].items():
        identity = (member.get("weights") or "").removeprefix("run://")
        members[name] = {**member, "weights": str(teachers[identity])} if identity in teachers else member
    return {**{k: v for k, v in model.items() if k != "type"}, "members": members}


@torch.no_grad()
def _choices(model: Distiller, link: Any, tap: int, data: Mapping[str, Any]) -> list[Choice]:
    """What the link chooses in a batch of the loader, a frame at a time."""
    from limbeck.pointcloud.methods._rows import matching_rows

    ready = cast(dict[str, Any], model.data_preprocessor(dict(data), True))
    batch = model.adapter.batch(ready["inputs"], ready["data_samples"])
    names = (link.teachers[0], link.student)
    pair = link.taps[tap]
    sides = [model.member_taps(name, batch, [side])[side] for name, side in zip(names, pair)]
    inputs = {name: model.adapter.member_inputs(batch, model.deploy, model.member(name)) for name in names}
    given = LinkInputs(teacher=[sides[0]], student=[sides[1]], targets=batch.targets, ids=batch.ids, inputs=inputs)
    rows = matching_rows(LINK, pair, names, 0, given, join=False)
    graphs = link.graphs(tap, rows, torch.Generator().manual_seed(0))
    centres = torch.cat(graphs.centres)
    weights = torch.ones(len(centres)) if graphs.weights is None else torch.cat(graphs.weights)
    voxels = cast(Any, batch.inputs)
    low = torch.tensor(voxels.grid.point_cloud_range[:2])
    places = (voxels.coors[:, [3, 2]] + 0.5) * torch.tensor(voxels.grid.voxel_size[:2]) + low
    found = []
    for cloud, sample in enumerate(cast(Any, batch.ids).tolist()):
        own = (rows.cloud == cloud).nonzero()[:, 0]
        mine = rows.cloud[centres] == cloud
        found.append(
            Choice(
                sample=sample,
                boxes=batch.targets.boxes[cloud].double().numpy(),
                labels=batch.targets.labels[cloud].numpy(),
                places=places[own].double().numpy(),
                counts=voxels.num_points[own].numpy(),
                centres=torch.searchsorted(own, centres[mine]).numpy(),
                weights=weights[mine].double().numpy(),
            )
        )
    return found


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0
