"""TGI: teacher-guided initialisation of a narrower detector (SparseKD, arXiv 2205.15156)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from limbeck.engine.method import LinkInputs, Method, Shapes
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, UnknownName
from limbeck.pointcloud.methods._inherit import WAYS, inherited_state


@METHODS.register_module()
class TGI(Method):
    """Starts the student from parts of the teacher's weights; there is no loss, and training is plain afterwards.

    Both are PointPillars or SECOND with an anchor head, of equal depth and kernels; see `inherited_state`. The official
    recipe has way='FNAV2' for voxel students, and the smallest starts from the next larger student that was trained
    alone: name that as the link's teacher.

    Args:
        way, official_bev_order: see `inherited_state`.
        weight: 0 keeps the student's own first weights; other values are all the same.
        kwargs: see `Method`; there are no taps.
    Raises: UnknownName, ConfigError for options out of range.
    """

    default_taps = (("bbox_head", "bbox_head"),)

    def __init__(
        self, *, way: str = "FNAV2", official_bev_order: bool = False, weight: float = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(weight=weight, **kwargs)
        self.taps = []  # nothing is read after the first weights
        if way not in WAYS:
            raise UnknownName("way", way, WAYS, "of TGI")
        if self.scheduled:
            raise ConfigError("TGI has no loss for a schedule to scale; leave schedule out")
        self.way, self.official_bev_order = way, official_bev_order

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        if self.weight:
            student, teacher = self.members[self.student], self.members[self.teachers[0]]
            state = inherited_state(student, teacher, way=self.way, official_bev_order=self.official_bev_order)
            student.load_state_dict(state)

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        return {}
