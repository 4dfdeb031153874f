"""Diversity distillation on text-to-image pipelines of diffusers: the base makes the first steps, its student the rest.

arXiv 2503.10637; `hand_over` is the same for a `Denoiser`. The pipelines' own loops do the sampling.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from limbeck.errors import ConfigError, UserError
from limbeck.multimodal.diffusion.pipelines._checks import check_guidance, check_pair, check_request, image_sides
from limbeck.multimodal.diffusion.pipelines._window import Done, Plan, SchedulerWindow

if TYPE_CHECKING:
    from PIL.Image import Image

Report = Callable[[str, int, int], None]


@dataclass(eq=False)
class PipelineImages:
    """What a hand-over made: B = prompts × seeds images, all seeds of the first prompt first.

    images: B. prompts, seeds: of each image. latents: (B, C, h, w), decoded to the images.
    steps: N steps as ('base' or 'distilled', time).
    base_calls, distilled_calls: U-Net calls for one image; a guided step is two.
    x0s: (N, B, C, h, w), latents that the scheduler predicted as final at each step, where recorded; `commitment` and
        `pairwise_diversity` take them.
    predicted: N lists of B images, those decoded: DT-Visualization.
    """

    images: list[Image]
    prompts: list[str]
    seeds: list[int]
    latents: Tensor
    steps: list[tuple[str, float]]
    base_calls: int = 0
    distilled_calls: int = 0
    x0s: Tensor | None = None
    predicted: list[list[Image]] = field(default_factory=list)

    @property
    def calls(self) -> int:
        """U-Net calls for one image, both models' together."""
        return self.base_calls + self.distilled_calls


@torch.no_grad()
def hand_over_pipeline(
    base: Any,
    distilled: Any,
    prompts: str | Sequence[str],
    seeds: int | Sequence[int],
    *,
    at: int = 1,
    steps: int = 4,
    base_steps: int | None = None,
    guidance: float = 7.0,
    distilled_guidance: float = 0.0,
    negative_prompt: str | None = None,
    height: int | None = None,
    width: int | None = None,
    meet: Literal["exact", "nearest"] = "exact",
    record: bool = False,
    batch_size: int | None = None,
    report: Report | None = None,
) -> PipelineImages:
    """Sample with the base pipeline down to the student's step `at`, then with the student's pipeline from there.

    `at` = 0 is the student's pipeline alone and `at` = `steps` the base's, both bit for bit what they give for
    `generator=[torch.Generator().manual_seed(seed), …]`. Each samples with the scheduler that it has. Where the two
    scale latents differently, as Euler's z/α, the latent is converted by z = α x + σ ε, which they have in common.

    The paper's "first step" is `at` = 1 with `base_steps` None: the base makes one step of the student's length.
    With 20 to 50 base steps it makes as many as reach that time.

    ASSUMPTION: with meet='exact', where the base's times skip the hand-over time, its last step is a DDIM step that
    ends exactly there. 'nearest' is the official code: the base stops at its time that is nearest, and the student
    takes the latent for one of its own time.

    Args:
        base, distilled: StableDiffusionPipeline or StableDiffusionXLPipeline; never changed, and they may share parts.
        prompts, seeds: every prompt is drawn with every seed. An image has a generator of its own, so that it does not
            depend on the batch; the student goes on with the base's.
        at: k in 0 … steps, the student's steps that the base makes instead.
        steps: n, the student's number of steps. base_steps: the base's from noise to image; None is n.
        guidance: w of the base; distilled_guidance: of the student. 0 and 1 are none, and one call a step.
        negative_prompt: of both, where they are guided.
        height, width: in pixels; the student's own size if not given.
        meet: see above.
        record: keep and decode what the scheduler predicts at every step.
        batch_size: images at a time; all if not given.
        report: told after each step, as (stage, done, total).
    Raises: ConfigError, UnknownName; UserError where a latent is NaN or infinite.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    seeds = [seeds] if isinstance(seeds, int) else list(seeds)
    wanted = [(prompt, seed) for prompt in prompts for seed in seeds]
    size = len(wanted) if batch_size is None else batch_size
    check_request(wanted, size, at, steps, base_steps, meet)
    check_guidance(guidance, distilled_guidance)
    check_pair(base, distilled)
    sides = image_sides(distilled, height, width)
    first = Plan.of(base.scheduler, steps if base_steps is None else base_steps, "base pipeline")
    second = Plan.of(distilled.scheduler, steps, "distilled pipeline")
    reach = _reach(first, second, at, meet)
    short = 0 < at < steps and meet == "exact" and not _meets(first, second, reach, at)
    total = (reach + steps - at) * math.ceil(len(wanted) / size)
    run_options = (sides, negative_prompt, _counter(report, total))
    parts = []
    for start in range(0, len(wanted), size):
        chunk = wanted[start : start + size]
        run = _Run(chunk, *run_options)
        latents = None
        if at:
            latents = run.steps(base, "base", first, (0, reach), guidance, None, record or short)
        if short:
            latents = _shortened(run, first, second, reach, at)
        elif latents is not None and at < steps:
            latents = latents * (first.to_z(reach) / second.to_z(at))
        if at < steps:
            latents = run.steps(distilled, "distilled", second, (at, steps), distilled_guidance, latents, record)
        assert latents is not None
        parts.append(run.finish(base if at == steps else distilled, latents, record))
    return _joined(parts, wanted)


class _Run:
    """One batch on its way through both pipelines."""

    def __init__(
        self, wanted: Sequence[tuple[str, int]], sides: dict[str, int], negative_prompt: str | None, done: Done
    ) -> None:
        self.prompts = [prompt for prompt, _ in wanted]
        self.generators = [torch.Generator().manual_seed(seed) for _, seed in wanted]
        self.options: dict[str, Any] = dict(sides)
        if negative_prompt is not None:
            self.options["negative_prompt"] = [negative_prompt] * len(wanted)
        self.done = done
        self.said: list[tuple[str, float]] = []
        self.calls = {"base": 0, "distilled": 0}
        self.windows: list[tuple[Any, SchedulerWindow]] = []  # with their pipelines, which decode what they recorded

    def steps(
        self,
        pipeline: Any,
        whose: str,
        plan: Plan,
        between: tuple[int, int],
        guidance: float,
        latents: Tensor | None,
        record: bool,
    ) -> Tensor:
        """Latents (B, C, h, w) after some steps of a pipeline, in its scheduler's own scaling."""
        first, last = between
        given = latents is not None
        window = SchedulerWindow(pipeline.scheduler, first, last, given=given, record=record, done=self.done)
        with _counted(pipeline.unet, len(self.prompts)) as calls:
            made = self._call(pipeline, window, len(plan.times), guidance, latents, "latent")
        if not bool(torch.isfinite(made).all()):
            raise UserError(
                f"the {whose} pipeline gave NaN or infinity by time {plan.times[last - 1]:g}; try dtype float32 or "
                "bfloat16, or check its weights"
            )
        self.calls[whose] += calls[0]
        self.said += [(whose, time) for time in plan.times[first:last]]
        self.windows.append((pipeline, window))
        return made

    def finish(self, pipeline: Any, latents: Tensor, record: bool) -> PipelineImages:
        """Decode."""
        images = self._decode(pipeline, latents)
        made = PipelineImages(images, [], [], latents, self.said, self.calls["base"], self.calls["distilled"])
        if record:
            kept = [(by, x0) for by, window in self.windows for x0 in window.x0s]
            made.x0s = torch.stack([x0.to(latents) for _, x0 in kept])
            made.predicted = [self._decode(by, x0) for by, x0 in kept]
        return made

    def _decode(self, pipeline: Any, latents: Tensor) -> list[Image]:
        """By the pipeline itself, with no step left to make: it knows about precision and scaling of its VAE."""
        window = SchedulerWindow(pipeline.scheduler, 0, 0, given=True)
        return self._call(pipeline, window, 1, 0.0, latents, "pil")

    def _call(
        self, pipeline: Any, window: SchedulerWindow, steps: int, guidance: float, latents: Tensor | None, kind: str
    ) -> Any:
        view = copy.copy(pipeline)
        view.__dict__["scheduler"] = window  # not by assignment, which would put it into the pipeline's config
        view.set_progress_bar_config(disable=True)
        made = view(
            prompt=self.prompts,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=self.generators,
            latents=latents,
            output_type=kind,
            **self.options,
        )
        return made.images


def _reach(base: Plan, distilled: Plan, at: int, meet: str) -> int:
    """How many steps the base makes."""
    steps = len(distilled.times)
    if at in (0, steps):
        return len(base.times) if at else 0
    if not base.schedule.same_as(distilled.schedule):
        raise ConfigError(
            "base and distilled pipeline have different noise schedules: what one makes is no input of the other's"
        )
    target = distilled.times[at]
    if meet == "nearest":
        reach = min(range(len(base.times)), key=lambda j: abs(base.times[j] - target))
    else:
        reach = sum(time > target for time in base.times)
    if not reach:
        raise ConfigError(
            f"the base pipeline starts at time {base.times[0]:g} and makes no step before the hand-over at {target:g}; "
            "give it more base_steps, or a scheduler with timestep_spacing='trailing'"
        )
    return reach


def _meets(base: Plan, distilled: Plan, reach: int, at: int) -> bool:
    """Whether the base's step `reach` is at the time of the hand-over. Raises: ConfigError for times in between."""
    target = distilled.whole_time(at)
    if reach < len(base.times) and base.times[reach] == target == _lands_at(base, reach - 1):
        base.whole_time(reach)
        return True
    base.whole_time(reach - 1)
    return False


def _shortened(run: _Run, base: Plan, distilled: Plan, reach: int, at: int) -> Tensor:
    """The student's latent at its step `at`, by a DDIM step in place of the base's last one."""
    _, window = run.windows[-1]
    assert window.before is not None
    z = window.before.float() * base.to_z(reach - 1)
    times = base.whole_time(reach - 1), distilled.whole_time(at)
    made = base.schedule.ddim(z, window.x0s[-1].float(), *times)
    return (made / distilled.to_z(at)).to(window.before.dtype)


def _lands_at(plan: Plan, index: int) -> float:
    """The time where a step ends, which for DDIM's scheduler is not always that of the next one."""
    if type(plan.scheduler).__name__ != "DDIMScheduler":
        return plan.times[index + 1]
    return plan.times[index] - plan.schedule.steps // len(plan.times)


@contextmanager
def _counted(unet: torch.nn.Module, images: int) -> Iterator[list[int]]:
    """Calls of a network for one image, while the block runs."""
    calls = [0]

    def count(_module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        calls[0] += len(args[0]) // images

    handle = unet.register_forward_pre_hook(count)
    try:
        yield calls
    finally:
        handle.remove()


def _counter(report: Report | None, total: int) -> Done:
    count = 0

    def done() -> None:
        nonlocal count
        count += 1
        if report is not None:
            report("sample", count, total)

    return done


def _joined(parts: list[PipelineImages], wanted: list[tuple[str, int]]) -> PipelineImages:
    first = parts[0]
    return PipelineImages(
        [image for part in parts for image in part.images],
        [prompt for prompt, _ in wanted],
        [seed for _, seed in wanted],
        torch.cat([part.latents for part in parts]),
        first.steps,
        first.base_calls,
        first.distilled_calls,
        None if first.x0s is None else torch.cat([p.x0s for p in parts if p.x0s is not None], dim=1),
        [[image for part in parts for image in part.predicted[n]] for n in range(len(first.predicted))],
    )
