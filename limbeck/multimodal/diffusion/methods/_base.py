"""What methods of step distillation share: a student that starts as the teacher, and members that are asked."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from mmengine.dist import get_rank
from torch import Tensor

from limbeck.engine.method import LinkInputs, Method, Shapes
from limbeck.errors import ConfigError, ShapeMismatch
from limbeck.multimodal.diffusion.adapter import denoiser
from limbeck.multimodal.diffusion.denoiser import Denoiser
from limbeck.multimodal.diffusion.generator import Noisy
from limbeck.multimodal.diffusion.schedule import NoiseSchedule


class StepDistillation(Method):
    """A link that runs teacher and student itself, on noisy images that it makes.

    Images are float (B, C, H, W) in [-1, 1]; times are integers, -1 the clean image; see `NoiseSchedule`.

    Args:
        guidance: of the teacher, w in null + w (conditional - null); the student learns the guided answer without.
        drop_labels: share of labels that are replaced by the null class, so that the student keeps it; only without
            guidance, which has no meaning for the null class.
        start: 'teacher' copies the teacher's weights into the student before the first step, as all official codes do;
            'own' leaves the student's.
        weight, kwargs: see `Method`.
    Raises: ConfigError.
    """

    default_taps = (("x0", "x0"),)
    wants_inputs = True
    runs_members = True
    reads_images: ClassVar[bool] = True
    clip_targets = False  # a method that offers it sets its own

    def __init__(
        self,
        *,
        guidance: float = 1.0,
        drop_labels: float = 0.0,
        start: str = "teacher",
        weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(weight=weight, **kwargs)
        if start not in ("teacher", "own"):
            raise ConfigError(f"start of {type(self).__name__} is 'teacher' or 'own'; got {start!r}")
        if not 0.0 <= drop_labels < 1.0 or (drop_labels and guidance != 1.0):
            raise ConfigError(
                f"drop_labels of {type(self).__name__} is a share in [0, 1), and 0 with guidance; got {drop_labels}"
            )
        self.guidance, self.drop_labels, self.start = guidance, drop_labels, start

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        """The student gets the teacher's weights; that schedules and shapes are the same, the adapter has checked."""
        teacher, student = denoiser(self.members[self.teachers[0]]), self.learner
        if self.weight and self.start == "teacher":
            if teacher.prediction != student.prediction:
                raise ConfigError(
                    f"{type(self).__name__}: the student predicts {student.prediction!r} and cannot start with the "
                    f"weights of a teacher that predicts {teacher.prediction!r}; set start='own', or predict the same"
                )
            try:
                student.load_state_dict(teacher.state_dict())
            except RuntimeError as error:
                raise ShapeMismatch(
                    f"{type(self).__name__}: the student cannot start with the teacher's weights, for it is another "
                    "network; set start='own'"
                ) from error

    @property
    def learner(self) -> Denoiser:
        """The student."""
        return denoiser(self.members[self.student])

    @property
    def noise_schedule(self) -> NoiseSchedule:
        """Of all members; `schedule` is that of the link's weight."""
        return self.learner.schedule

    # --- what a step begins with; everything is drawn on the CPU ---

    def generator(self, batch: LinkInputs) -> torch.Generator:
        """The link's own for this step; the processes of one run draw different noise for their parts of a batch."""
        return torch.Generator().manual_seed(batch.draw + get_rank())

    def images(self, batch: LinkInputs) -> Tensor:
        """The batch's clean images (B, C, H, W)."""
        found: Tensor = batch.inputs[self.student]
        if found.shape[1:] == (0,):
            raise ConfigError(f"{type(self).__name__} reads images, and the training data has none; use the pair's own")
        return found

    def count(self, batch: LinkInputs) -> int:
        """B, of a batch with or without images."""
        return len(batch.inputs[self.student])

    def noise(self, batch: LinkInputs, generator: torch.Generator, count: int | None = None) -> Tensor:
        """(B, C, H, W), standard normal."""
        size = self.count(batch) if count is None else count
        like = next(self.learner.parameters())
        return torch.randn(size, *self.learner.image_shape, generator=generator).to(like.device)

    def labels(self, batch: LinkInputs, generator: torch.Generator) -> Tensor | None:
        """The batch's labels (B,), some dropped; None for unconditional networks."""
        return self.learner.without_some(cast(Tensor, batch.targets), self.drop_labels, generator)

    # --- asking members ---

    def ask(self, batch: LinkInputs, member: str, z: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """x0 (B, C, H, W) of a member; of the teacher with guidance; without graph but for the student's."""
        assert batch.second_forward is not None
        guidance = self.guidance if member == self.teachers[0] else 1.0
        (found,) = batch.second_forward(member, Noisy(z, t, labels, guidance=guidance))
        return found.float()

    def of_teacher(self, batch: LinkInputs, z: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """The teacher's x0 (B, C, H, W), guided, and clamped where `clip_targets`."""
        x0 = self.ask(batch, self.teachers[0], z, t, labels)
        return x0.clamp(-1, 1) if self.clip_targets else x0


def per_image(error: Tensor) -> Tensor:
    """(B,): the mean over everything but the batch axis."""
    return error.flatten(1).mean(1)
