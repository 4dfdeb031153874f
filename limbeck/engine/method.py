"""The base of every distillation method: what it is given, and what it may ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from limbeck.engine.adapter import Batch
from limbeck.engine.schedule import build_schedule
from limbeck.errors import ConfigError

TapPair = tuple[str, str]
Shapes = list[tuple[int, ...]]


@dataclass(slots=True)
class LinkInputs:
    """What one link sees of one training step.

    teacher, student: tapped tensors in the order of the link's `taps`; the teacher's carry no graph.
    targets: the task adapter's targets; labels (B,) in classification.
    progress: share of the run that is done, in [0, 1].
    ids: sample ids (B,), where the data set has them.
    teachers: one list of taps for each teacher, where the link names several; `teacher` is the first.
    inputs: each member's network input, as normalised for it.
    second_forward: runs a member again on other inputs and returns its taps: `second_forward(member, inputs)`.
    draw: decides the random numbers of this link in this step; see `generator`.
    """

    teacher: list[Tensor]
    student: list[Tensor]
    targets: Any = None
    progress: float = 0.0
    ids: Tensor | None = None
    teachers: list[list[Tensor]] = field(default_factory=list)
    inputs: dict[str, Any] = field(default_factory=dict)
    second_forward: Callable[..., list[Tensor]] | None = None
    draw: int = 0

    def generator(self) -> torch.Generator:
        """A CPU generator that depends on run seed, link and step alone: a resumed run draws the same numbers."""
        return torch.Generator().manual_seed(self.draw)


@dataclass(slots=True)
class TrainingSet:
    """What a link may learn of the training split before the first step; see `Method.prepare`.

    labels: (N,) int64 by sample id, -1 where it is hidden; empty where samples have no single label, as in the dense
        tasks.
    classes: how many there are.
    teacher_taps: `teacher_taps(name=None)` runs a teacher of the link over the split, not augmented, in order of ids;
        yields the link's taps, labels (B,) and ids (B,), batch by batch. None is the link's first teacher.
    """

    labels: Tensor
    classes: int
    teacher_taps: Callable[..., Iterator[tuple[list[Tensor], Tensor, Tensor]]]


class Method(nn.Module):
    """A link of a distillation run: reads taps, returns named loss terms.

    Subclasses implement `forward(batch) -> dict[str, Tensor]`; each value is a scalar. The engine multiplies every term
    by `weight` and the schedule, adds them to the loss, and never runs a link whose weight is 0. A method never touches
    optimiser, loop or data. What else it may need has a place here:

    - learnable bridges: build them in `connect(teacher_shapes, student_shapes)`; they are trained with the student;
    - a memory bank: `register_buffer` in `connect`; buffers are saved for resume, never with the student;
    - parameters with their own optimiser: set the class attribute `optimizer` to an mmengine optimizer config;
    - a second forward: `batch.second_forward`, and `wants_inputs = True` for the members' inputs;
    - members that see other inputs than the batch's: `runs_members = True`. The engine then does not run them for this
      link, whose `batch.teacher` and `batch.student` are empty: it runs them itself by `batch.second_forward`;
    - several teachers: `many_teachers = True`, then `batch.teachers`;
    - a member's own layers (its classifier, its last stage): `self.members[name]`, set before `connect`;
    - facts of the whole training split (labels, class means of the teacher): `wants_data = True` and `prepare(data)`;
    - random numbers: `batch.generator()`;
    - other images than the loader's: `alters_batch = True` and `alter(batch, generator)`;
    - other targets of the student's own loss: `alters_targets = True` and `retarget(batch)`; then `forward` may be {};
    - a term that trains only the link's own parameters: name it in `own_terms`;
    - parameters that some steps leave out: `unused_parameters = True`, for distributed training.

    Args:
        teacher: member read as teacher; several names for an ensemble.
        student: member that is trained.
        taps: pairs (teacher tap, student tap); None takes `default_taps`.
        weight: factor on every term; 0 is plain training, bit for bit.
        schedule: how the factor changes with progress; see `limbeck.engine.schedule`.
        may_be_zero: declare that a term may be exactly zero in the first step.
    """

    default_taps: ClassVar[Sequence[TapPair]] = ()
    optimizer: ClassVar[dict[str, Any] | None] = None
    wants_inputs: ClassVar[bool] = False
    runs_members: ClassVar[bool] = False
    wants_data: ClassVar[bool] = False
    alters_batch: ClassVar[bool] = False
    alters_targets: ClassVar[bool] = False
    many_teachers: ClassVar[bool] = False
    own_terms: ClassVar[frozenset[str]] = frozenset()
    unused_parameters: ClassVar[bool] = False
    assumption: ClassVar[str] = ""  # one sentence on what is ours, not the paper's; records hold it

    def __init__(
        self,
        *,
        teacher: str | Sequence[str] = "teacher",
        student: str = "student",
        taps: Sequence[Sequence[str]] | None = None,
        weight: float = 1.0,
        schedule: dict[str, Any] | None = None,
        may_be_zero: bool = False,
    ) -> None:
        super().__init__()
        self.teachers = (teacher,) if isinstance(teacher, str) else tuple(teacher)
        if len(self.teachers) > 1 and not self.many_teachers:
            raise ConfigError(f"{type(self).__name__} reads one teacher; got {list(self.teachers)}")
        self.student = student
        pairs = [tuple(pair) for pair in (taps if taps is not None else self.default_taps)]
        if not pairs or any(len(pair) != 2 for pair in pairs):
            raise ConfigError(
                f"{type(self).__name__} needs taps as pairs [(teacher tap, student tap), …]; got {taps!r}"
            )
        self.taps: list[TapPair] = [(str(t), str(s)) for t, s in pairs]
        self.weight = float(weight)
        self.schedule = build_schedule(schedule)
        self.scheduled = schedule is not None
        self.may_be_zero = may_be_zero
        self.members: dict[str, nn.Module] = {}  # a plain dict: a link owns no member's parameters
        self.shapes: dict[str, Shapes] = {}  # of every teacher's taps, by member

    @property
    def name(self) -> str:
        """Prefix of this link's terms in logs and errors."""
        return type(self).__name__.lower()

    def factor(self, progress: float) -> float:
        """Weight times schedule at `progress` in [0, 1]."""
        return self.weight * self.schedule(progress) if self.weight else 0.0

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        """Build what depends on the tapped shapes (with batch axis), once, before the optimiser is made.

        Raises: ShapeMismatch when the shapes cannot be linked.
        """

    def prepare(self, data: TrainingSet) -> None:
        """Read the training split once, after `connect` and before the first step; where `wants_data`."""

    def alter(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The batch that every member sees instead; where `alters_batch`. Its targets may become (B, C) shares."""
        return batch

    def retarget(self, batch: LinkInputs) -> Any:
        """Targets of the student's own loss instead of `batch.targets`, which stay as they are; where `alters_targets`.

        Called when the teachers have run and the student has not: `batch.student` is empty. Other links, and other
        trained members, see the loader's targets; of two such links of one student the second gets what the first made.
        """
        return batch.targets

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        """Named scalar loss terms of one step."""
        raise NotImplementedError(f"{type(self).__name__} does not implement forward")
