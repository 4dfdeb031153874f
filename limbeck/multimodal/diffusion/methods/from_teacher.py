"""The few-step baseline: the teacher itself, trained on, sampled in as few steps as the student."""

from __future__ import annotations

from torch import Tensor

from limbeck.engine.method import LinkInputs
from limbeck.engine.registry import METHODS
from limbeck.multimodal.diffusion.methods._base import StepDistillation


@METHODS.register_module()
class FromTeacher(StepDistillation):
    """Starts the student from the teacher's weights; there is no loss, and training is plain afterwards.

    What every method of step distillation has to beat: their start, their budget, and a sampler of as few steps.

    Args:
        kwargs: see `StepDistillation`; weight 0 keeps the student's own first weights.
    """

    runs_members = False

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.taps = []  # nothing is read after the first weights

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        return {}
