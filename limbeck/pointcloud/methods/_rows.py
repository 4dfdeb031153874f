"""Taps of 3D detectors as rows, one a voxel, map cell or point, that are the same place on both sides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from limbeck.engine.method import LinkInputs, TapPair
from limbeck.errors import ShapeMismatch
from limbeck.pointcloud.targets import check_targets

Kind = Literal["rows", "maps", "points"]
KINDS: dict[int, Kind] = {2: "rows", 3: "points", 4: "maps"}
FORMS = "voxel rows (n, C), points (B, C, P) or maps (B, C, H, W)"


@dataclass(slots=True)
class Rows:
    """Matching rows of one tap.

    teacher, student: (R, C_T) and (R, C_S).
    scores: importance (R,), of the data or the teacher; without a gradient.
    cloud: (R,) int64, which cloud of the batch.
    clouds: how many there are.
    """

    teacher: Tensor
    student: Tensor
    scores: Tensor
    cloud: Tensor
    clouds: int


def tap_kind(what: str, pair: TapPair, teacher: tuple[int, ...], student: tuple[int, ...], *, join: bool) -> Kind:
    """What a pair of taps is, by its axes; all but the channels must agree.

    Args:
        what: the method, for the error.
        join: voxel rows are matched by their coordinates, so that their numbers may differ.
    Raises: ShapeMismatch naming both taps.
    """
    kind, named = KINDS.get(len(teacher)), f"{what}, taps {pair[0]!r} and {pair[1]!r}"
    if kind is None or len(student) != len(teacher):
        raise ShapeMismatch(f"{named}: teacher {teacher} and student {student} do not fit; tap {FORMS} on both sides")
    places = [shape[:1] + shape[2:] for shape in (teacher, student)]
    if places[0] != places[1] and not (kind == "rows" and join):
        if kind == "maps" and teacher[0] == student[0]:
            raise ShapeMismatch(
                f"{named}: maps of {teacher[2]}×{teacher[3]} and {student[2]}×{student[3]} cells have other strides; "
                "tap maps of one stride, as nothing is interpolated"
            )
        hint = "; align='coors' would match voxels by their coordinates" if kind == "rows" else ""
        raise ShapeMismatch(
            f"{named}: teacher {teacher} and student {student} are not of the same places; give both members one "
            f"voxelisation of one cloud{hint}"
        )
    return kind


def matching_rows(what: str, pair: TapPair, members: TapPair, index: int, batch: LinkInputs, *, join: bool) -> Rows:
    """One tap of both sides as rows, in float32, the teacher's without a gradient.

    Importance is the number of points of a voxel, and of map cells and points the teacher's largest value, signed.

    Args:
        what: the method, for errors.
        pair: names of the taps.
        members: names of teacher and student, whose voxels are read from their inputs, else from the targets.
        index: of the tap.
        join: match voxels by (cloud, z, y, x) and leave out those of one side alone; else rows must agree one by one.
    Raises: ShapeMismatch when rows, coordinates or sizes differ; ConfigError when the batch has no voxels.
    """
    teacher, student = batch.teacher[index].detach().float(), batch.student[index].float()
    kind = tap_kind(what, pair, tuple(teacher.shape), tuple(student.shape), join=join)
    if kind == "rows":
        return _voxel_rows(what, pair, members, batch, teacher, student, join=join)
    flat = [side.flatten(2).transpose(1, 2) for side in (teacher, student)]
    clouds, count = flat[0].shape[:2]
    t, s = (side.reshape(clouds * count, -1) for side in flat)
    return Rows(t, s, t.amax(1), torch.arange(clouds, device=t.device).repeat_interleave(count), clouds)


def _voxel_rows(
    what: str, pair: TapPair, members: TapPair, batch: LinkInputs, teacher: Tensor, student: Tensor, *, join: bool
) -> Rows:
    voxels = [_voxels_of(what, batch, name) for name in members]
    for tap, side, (coors, _) in zip(pair, (teacher, student), voxels):
        if len(side) != len(coors):
            raise ShapeMismatch(
                f"{what}: tap {tap!r} has {len(side)} rows for {len(coors)} voxels; tap one row a voxel, as "
                "'voxel_encoder' gives"
            )
    (coors, counts), (other, _) = voxels
    if join:
        mine, theirs = common_rows(coors, other)
        teacher, student = teacher.index_select(0, mine), student.index_select(0, theirs)
        coors, counts = coors[mine], counts[mine]
    elif not torch.equal(coors, other):
        raise ShapeMismatch(
            f"{what}, taps {pair[0]!r} and {pair[1]!r}: the members' voxels have other coordinates, so that equal rows "
            "are other places; give both one voxelisation, or set align='coors'"
        )
    return Rows(teacher, student, counts.detach().float(), coors[:, 0].long(), len(batch.targets))


def _voxels_of(what: str, batch: LinkInputs, member: str) -> tuple[Tensor, Tensor]:
    """Coordinates (n, 4) and numbers of points (n,) of the voxels that a member was given."""
    targets = check_targets(what, batch.targets)
    given = batch.inputs.get(member, targets)
    return given.coors, given.num_points


def common_rows(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of two lists of voxels that have the same coordinates, in the order of the first.

    Args:
        first, second: (n, 4) and (m, 4) integers, each without repetitions.
    Returns: rows of either, int64 (c,) each.

    >>> common_rows(torch.tensor([[0, 0, 1, 2], [0, 0, 3, 3]]), torch.tensor([[0, 0, 3, 3]]))
    (tensor([1]), tensor([0]))
    """
    if not len(first) or not len(second):
        none = first.new_zeros(0, dtype=torch.int64)
        return none, none
    spans = torch.cat([first, second]).amax(0).long() + 1
    keys = []
    for coors in (first.long(), second.long()):
        key = coors[:, 0]
        for axis in (1, 2, 3):
            key = key * spans[axis] + coors[:, axis]
        keys.append(key)
    order = keys[1].argsort()
    ranked = keys[1][order]
    place = torch.searchsorted(ranked, keys[0]).clamp(max=len(ranked) - 1)
    hit = ranked[place] == keys[0]
    return hit.nonzero()[:, 0], order[place[hit]]
