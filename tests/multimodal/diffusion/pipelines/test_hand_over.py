"""Hand-over between text-to-image pipelines: its ends, what is handed over, its cost, what it records, mistakes."""

from __future__ import annotations

import copy
import hashlib
import math
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

diffusers = pytest.importorskip("diffusers", reason="needs the 'multimodal' extra")
pytest.importorskip("transformers", reason="needs the 'multimodal' extra")

from limbeck.errors import ConfigError, UserError  # noqa: E402
from limbeck.multimodal.diffusion.pipelines._window import Plan  # noqa: E402
from limbeck.multimodal.diffusion.pipelines.hand_over import PipelineImages, hand_over_pipeline  # noqa: E402
from limbeck.multimodal.diffusion.pipelines.pairs import PAIRS  # noqa: E402
from limbeck.multimodal.diffusion.pipelines.pictures import image_grid, prediction_strip  # noqa: E402
from limbeck.multimodal.diffusion.trajectory import commitment  # noqa: E402
from tests.multimodal.diffusion.pipelines.toys import NOISE, SIDE, both, pipeline, scheduled, unet  # noqa: E402
from tests.multimodal.diffusion.toys import normal  # noqa: E402

PROMPTS, SEEDS = ["a cat", "two dogs"], [0, 7]
# α² at times 0 … 999, by the formula of the 'scaled_linear' betas.
ALPHAS = np.cumprod(1 - np.linspace(NOISE["beta_start"] ** 0.5, NOISE["beta_end"] ** 0.5, 1000) ** 2)


@pytest.fixture(scope="module")
def pipes(tmp_path_factory) -> dict[bool, Any]:
    """Base pipelines of random weights: SDXL's kind, and Stable Diffusion's."""
    folder = tmp_path_factory.mktemp("pipelines")
    return {xl: pipeline(folder, xl) for xl in (True, False)}


@pytest.fixture(scope="module")
def student() -> Any:
    """The U-Net of another SDXL."""
    return unet(True, seed=1)


def alone(pipe: Any, steps: int, guidance: float) -> Any:
    """What the pipeline gives without us."""
    pipe = copy.copy(pipe)
    pipe.scheduler = copy.deepcopy(pipe.scheduler)
    wanted = [(prompt, seed) for prompt in PROMPTS for seed in SEEDS]
    drawn = dict(prompt=[p for p, _ in wanted], num_inference_steps=steps, guidance_scale=guidance)
    with torch.no_grad():
        images, latents = (
            pipe(**drawn, generator=[torch.Generator().manual_seed(s) for _, s in wanted], output_type=kind).images
            for kind in ("pil", "latent")
        )
    return images, latents


def same(found: PipelineImages, expected: Any) -> bool:
    images, latents = expected
    assert torch.equal(found.latents, latents)
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(found.images, images, strict=True))


@contextmanager
def watched(network: torch.nn.Module):
    """(input, time, output) of every call of a network."""
    seen: list[tuple[torch.Tensor, float, torch.Tensor]] = []
    handle = network.register_forward_hook(
        lambda _m, args, out: seen.append((args[0].clone(), float(args[1]), out[0].clone()))
    )
    try:
        yield seen
    finally:
        handle.remove()


def content(network: torch.nn.Module) -> str:
    return hashlib.sha256(b"".join(v.numpy().tobytes() for v in network.state_dict().values())).hexdigest()


# --- the ends ---


@pytest.mark.parametrize("name", PAIRS)
def test_every_known_pair_hands_over_and_its_ends_are_the_two_pipelines_bit_for_bit(name, pipes) -> None:
    pair = PAIRS[name]
    base, distilled = both(pipes[pair.pipeline == "StableDiffusionXLPipeline"], pair)
    options = dict(steps=pair.steps, guidance=pair.base_guidance, distilled_guidance=pair.guidance)
    first = hand_over_pipeline(base, distilled, PROMPTS, SEEDS, at=0, **options)
    assert same(first, alone(distilled, pair.steps, pair.guidance))
    assert (first.base_calls, first.distilled_calls) == (0, pair.steps)
    last = hand_over_pipeline(base, distilled, PROMPTS, SEEDS, at=pair.steps, **options)
    assert same(last, alone(base, pair.steps, pair.base_guidance))
    assert (last.base_calls, last.distilled_calls) == (2 * pair.steps, 0)
    assert tuple(int(t) for _, t in first.steps) == pair.times
    middle = hand_over_pipeline(base, distilled, PROMPTS, SEEDS, **options)
    assert middle.steps == [("base", 999.0), *(("distilled", float(t)) for t in pair.times[1:])]
    assert middle.calls == 2 + pair.steps - 1
    assert not torch.allclose(middle.latents, first.latents)
    assert middle.images[0].size == (SIDE, SIDE)
    assert (middle.prompts, middle.seeds) == ([p for p in PROMPTS for _ in SEEDS], SEEDS * 2)


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_with_other_base_steps_the_ends_are_still_the_two_pipelines(scheduler, pipes, student) -> None:
    base = scheduled(pipes[True], scheduler)
    distilled = scheduled(pipes[True], "LCMScheduler", student)
    found = hand_over_pipeline(base, distilled, PROMPTS, SEEDS, at=4, base_steps=6, guidance=3.0)
    assert same(found, alone(base, 6, 3.0))
    assert found.calls == 12
    found = hand_over_pipeline(base, distilled, PROMPTS, SEEDS, at=0, base_steps=6, guidance=3.0)
    assert same(found, alone(distilled, 4, 0.0))


@pytest.mark.parametrize("xl", [True, False])
@pytest.mark.parametrize(
    "scheduler",
    ["DDIMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "LCMScheduler"],
)
@pytest.mark.parametrize("at", [1, 3])
def test_a_student_that_is_the_base_changes_nothing(at, scheduler, xl, pipes) -> None:
    base = scheduled(pipes[xl], scheduler)
    found = hand_over_pipeline(base, base, PROMPTS, SEEDS, at=at, guidance=3.0, distilled_guidance=3.0)
    assert same(found, alone(base, 4, 3.0))


# --- what is handed over ---


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_euler_and_ddim_are_at_the_same_z_once_converted(kind) -> None:
    """One DDIM trajectory, stepped by both schedulers: their latents differ, their z do not."""
    plans = {
        name: Plan.of(getattr(diffusers, name).from_config({**NOISE, **extra}), 5, "base")
        for name, extra in {
            "DDIMScheduler": dict(timestep_spacing="trailing", clip_sample=False, prediction_type=kind),
            "EulerDiscreteScheduler": dict(timestep_spacing="trailing", prediction_type=kind),
        }.items()
    }
    ddim, euler = plans.values()
    latent = z = normal(1, 4, 2, 2)
    latent = latent / euler.to_z(0)
    apart = []
    for index, (a, b) in enumerate(zip(ddim.scheduler.timesteps, euler.scheduler.timesteps, strict=True)):
        assert float(a) == float(b) == ddim.whole_time(index) == euler.whole_time(index)
        assert ddim.to_z(index) == 1.0
        assert euler.to_z(index) == pytest.approx(math.sqrt(ALPHAS[int(a)]), rel=1e-5)
        converted = latent * euler.to_z(index)
        assert torch.allclose(converted, z, rtol=1e-4, atol=1e-5)
        apart.append(float((latent / z).mean()))
        euler.scheduler.scale_model_input(latent, b)  # it wants to be asked
        output = torch.tanh(z) * (0.2 + float(a) / 1000)  # any network of z and t
        z = ddim.scheduler.step(output, a, z).prev_sample
        latent = euler.scheduler.step(output, b, latent).prev_sample
    assert apart[0] > 10
    assert apart == sorted(apart, reverse=True)


@pytest.mark.parametrize("after", ["DDIMScheduler", "EulerDiscreteScheduler", "LCMScheduler"])
@pytest.mark.parametrize(
    ("before", "base_steps"),
    [
        ("DDIMScheduler", None),
        ("DDIMScheduler", 7),  # no step ends at the hand-over's time
        ("EulerDiscreteScheduler", 8),
        ("EulerDiscreteScheduler", 7),
        ("EulerAncestralDiscreteScheduler", 7),  # adds noise on the way, not in a shortened last step
    ],
)
def test_the_student_gets_the_bases_z_at_its_own_time_whatever_the_schedulers(
    before, after, base_steps, pipes, student
) -> None:
    """By hand, from what the base's network saw and said at its last step."""
    base, distilled = scheduled(pipes[True], before), scheduled(pipes[True], after, student)
    with watched(base.unet) as old, watched(student) as new:
        found = hand_over_pipeline(
            base, distilled, "a cat", SEEDS, at=2, base_steps=base_steps, guidance=3.0, distilled_guidance=0.0
        )
    assert [t for _, t, _ in old] + [t for _, t, _ in new] == [t for _, t in found.steps]
    z, time, output = old[-1]
    z, time = z[:2].double(), int(time)
    free, bound = output.double().chunk(2)
    noise = free + 3.0 * (bound - free)
    target = int(new[0][1])
    a, s = np.sqrt(ALPHAS), np.sqrt(1 - ALPHAS)
    clean = (z - s[time] * noise) / a[time]
    expected = a[target] * clean + s[target] * noise
    assert target == 499
    assert torch.allclose(new[0][0].double(), expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("before", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_a_last_step_is_shortened_to_end_where_the_student_goes_on(before, pipes, student) -> None:
    """LCM's second time is 759, which no grid of the base has."""
    base, distilled = scheduled(pipes[True], before), scheduled(pipes[True], "LCMScheduler", student)
    with watched(base.unet) as old, watched(student) as new:
        hand_over_pipeline(base, distilled, "a cat", 0, at=1, base_steps=10, guidance=1.0)
    assert [t for _, t, _ in old] == [999.0, 899.0, 799.0]
    z, noise = old[-1][0].double(), old[-1][2].double()
    a, s = np.sqrt(ALPHAS), np.sqrt(1 - ALPHAS)
    expected = a[759] * (z - s[799] * noise) / a[799] + s[759] * noise
    assert new[0][1] == 759.0
    assert torch.allclose(new[0][0].double(), expected, rtol=2e-4, atol=2e-4)


def test_meeting_at_the_nearest_time_hands_over_the_latent_as_it_is(pipes, student) -> None:
    base = scheduled(pipes[True], "DDIMScheduler")
    distilled = scheduled(pipes[True], "LCMScheduler", student)
    options = dict(base_steps=10, guidance=1.0, meet="nearest")
    with watched(base.unet) as old, watched(student) as new:
        found = hand_over_pipeline(base, distilled, "a cat", 0, **options)
    assert [t for _, t, _ in old] == [999.0, 899.0, 799.0][: found.base_calls]
    assert found.base_calls == 2  # 799 is nearer to 759 than 699 is
    z, noise = old[-1][0].double(), old[-1][2].double()
    a, s = np.sqrt(ALPHAS), np.sqrt(1 - ALPHAS)
    at_799 = a[799] * (z - s[899] * noise) / a[899] + s[799] * noise
    assert new[0][1] == 759.0
    assert torch.allclose(new[0][0].double(), at_799, rtol=2e-4, atol=2e-4)


def test_a_ddim_scheduler_that_lands_beside_its_next_time_is_shortened_too(pipes, student) -> None:
    """Of 3 steps DDIM's times are 999, 666, 332, but its second step ends at 333."""
    base, distilled = scheduled(pipes[True], "DDIMScheduler"), scheduled(pipes[True], "DDIMScheduler", student)
    with watched(base.unet) as old, watched(student) as new:
        hand_over_pipeline(base, distilled, "a cat", 0, at=2, steps=3, guidance=1.0)
    z, time, noise = old[-1][0].double(), int(old[-1][1]), old[-1][2].double()
    target = int(new[0][1])
    assert (time, target) == (666, 332)
    a, s = np.sqrt(ALPHAS), np.sqrt(1 - ALPHAS)
    expected = a[target] * (z - s[time] * noise) / a[time] + s[target] * noise
    assert torch.allclose(new[0][0].double(), expected, rtol=2e-4, atol=2e-4)


# --- what it costs, and leaves behind ---


@pytest.mark.parametrize(("base_steps", "at"), [(None, 1), (None, 3), (8, 1), (10, 1), (6, 3)])
@pytest.mark.parametrize("guidance", [(1.0, 0.0), (5.0, 0.0), (5.0, 2.0)])
def test_calls_are_those_of_the_networks(guidance, base_steps, at, pipes, student) -> None:
    base, distilled = scheduled(pipes[True], "DDIMScheduler"), scheduled(pipes[True], "EulerDiscreteScheduler", student)
    said: list[tuple[str, int, int]] = []
    with watched(base.unet) as old, watched(student) as new:
        found = hand_over_pipeline(
            base,
            distilled,
            "a cat",
            SEEDS,
            at=at,
            base_steps=base_steps,
            guidance=guidance[0],
            distilled_guidance=guidance[1],
            report=lambda *args: said.append(args),
        )
    made = math.ceil(at * (base_steps or 4) / 4)
    assert (len(old), len(new)) == (made, 4 - at)
    assert found.base_calls == made * (2 if guidance[0] > 1 else 1) == sum(len(z) for z, _, _ in old) // 2
    assert found.distilled_calls == (4 - at) * (2 if guidance[1] > 1 else 1) == sum(len(z) for z, _, _ in new) // 2
    assert found.calls == found.base_calls + found.distilled_calls
    assert said == [("sample", n + 1, len(found.steps)) for n in range(len(found.steps))]


def test_nothing_of_the_pipelines_is_changed(pipes, student) -> None:
    base, distilled = scheduled(pipes[True], "EulerDiscreteScheduler"), scheduled(pipes[True], "LCMScheduler", student)
    base.set_progress_bar_config(leave=False)
    before = [content(base.unet), content(student), content(base.vae)]
    kept = base.scheduler, distilled.scheduler, dict(base.config)
    hand_over_pipeline(base, distilled, "a cat", 0, record=True)
    assert [content(base.unet), content(student), content(base.vae)] == before
    assert (base.scheduler, distilled.scheduler, dict(base.config)) == kept
    assert base.scheduler.step_index is None
    assert base.scheduler.num_inference_steps is None
    assert base._progress_bar_config == {"leave": False}
    assert not base.unet._forward_pre_hooks
    assert all(p.grad is None for p in student.parameters())


@pytest.mark.parametrize("scheduler", ["LCMScheduler", "EulerAncestralDiscreteScheduler"])
def test_an_image_does_not_depend_on_its_batch(scheduler, pipes, student) -> None:
    base, distilled = scheduled(pipes[True], "DDIMScheduler"), scheduled(pipes[True], scheduler, student)
    whole = hand_over_pipeline(base, distilled, PROMPTS, SEEDS, record=True)
    parts = hand_over_pipeline(base, distilled, PROMPTS, SEEDS, record=True, batch_size=3)
    again = hand_over_pipeline(base, distilled, PROMPTS[1], SEEDS[1])
    assert torch.allclose(parts.latents, whole.latents, rtol=1e-3, atol=1e-3)
    assert torch.allclose(again.latents[0], whole.latents[3], rtol=1e-3, atol=1e-3)
    assert parts.x0s is not None
    assert parts.x0s.shape == (4, 4, 4, 8, 8)
    assert (parts.calls, [len(row) for row in parts.predicted]) == (whole.calls, [4] * 4)
    assert not torch.allclose(whole.latents[0], whole.latents[1])
    assert not torch.allclose(whole.latents[0], whole.latents[2])


def test_a_negative_prompt_is_heard_where_there_is_guidance(pipes) -> None:
    for xl in (True, False):
        base = scheduled(pipes[xl], "DDIMScheduler")
        plain, negative, free = (
            hand_over_pipeline(base, base, PROMPTS, 0, guidance=w, negative_prompt=text).latents
            for w, text in ((3.0, None), (3.0, "dull"), (1.0, "dull"))
        )
        assert not torch.allclose(plain, negative)
        assert torch.equal(free, hand_over_pipeline(base, base, PROMPTS, 0, guidance=1.0).latents)


# --- DT-Visualization ---


@pytest.mark.parametrize("after", ["EulerDiscreteScheduler", "LCMScheduler"])
def test_predictions_are_the_clean_latents_of_each_step_and_the_last_is_the_image(after, pipes, student) -> None:
    base, distilled = scheduled(pipes[True], "DDIMScheduler"), scheduled(pipes[True], after, student)
    with watched(base.unet) as old, watched(student) as new:
        found = hand_over_pipeline(base, distilled, "a cat", SEEDS, at=2, guidance=3.0, record=True)
    assert found.x0s is not None
    for index, (z, time, output) in enumerate([*old, *new]):
        z, output = z[:2].double(), output.double()
        if len(output) == 4:
            free, bound = output.chunk(2)
            output = free + 3.0 * (bound - free)
        alpha, sigma = math.sqrt(ALPHAS[int(time)]), math.sqrt(1 - ALPHAS[int(time)])
        assert torch.allclose(found.x0s[index].double(), (z - sigma * output) / alpha, rtol=1e-3, atol=1e-3)
    assert torch.allclose(found.x0s[-1], found.latents, atol=1e-5)
    assert [len(row) for row in found.predicted] == [2] * 4
    difference = np.asarray(found.predicted[-1][0], dtype=int) - np.asarray(found.images[0], dtype=int)
    assert np.abs(difference).max() <= 1
    assert np.abs(np.asarray(found.predicted[0][0], dtype=int) - np.asarray(found.images[0], dtype=int)).max() > 1
    decided = commitment(found.x0s, relative_to="first")
    assert (float(decided[0]), float(decided[-1])) == (1.0, 0.0)


def test_grid_and_strip_hold_every_image_where_it_belongs(pipes, student) -> None:
    base, distilled = scheduled(pipes[True], "DDIMScheduler"), scheduled(pipes[True], "LCMScheduler", student)
    found = hand_over_pipeline(base, distilled, [*PROMPTS, "a"], SEEDS, record=True)
    assert len(found.images) == 6

    def cells(page: Any, columns: int, rows: int) -> list[np.ndarray]:
        pixels = np.asarray(page, dtype=int)
        column = (page.width - 4) // columns
        return [
            pixels[16 + y * (SIDE + 4) : 16 + y * (SIDE + 4) + SIDE, 4 + x * column : 4 + x * column + SIDE]
            for y in range(rows)
            for x in range(columns)
        ]

    for cell, image in zip(cells(image_grid(found), 2, 3), found.images, strict=True):
        assert np.array_equal(cell, np.asarray(image))
    expected = [found.predicted[step][row] for row in range(6) for step in range(4)]
    for cell, image in zip(cells(prediction_strip(found), 4, 6), expected, strict=True):
        assert np.array_equal(cell, np.asarray(image))
    assert image_grid(found, side=8).height == 16 + 3 * (8 + 4)
    found.predicted = []
    with pytest.raises(ConfigError, match="record=True"):
        prediction_strip(found)


# --- mistakes ---


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(at=5), r"step 0 … 4 .*; got at=5"),
        (dict(at=-1), "got at=-1"),
        (dict(at=True), "got at=True"),
        (dict(at=1.0), r"got at=1\.0"),
        (dict(steps=0, at=0), "steps of a hand-over is 1 or more; got 0"),
        (dict(base_steps=0), "base_steps of a hand-over is 1 or more; got 0"),
        (dict(steps=51), "LCMScheduler of the distilled pipeline does not make 51 steps"),
        (dict(prompts=[]), "needs a prompt and a seed"),
        (dict(seeds=[]), "needs a prompt and a seed"),
        (dict(seeds=[0.5]), "seeds whole numbers"),
        (dict(seeds=-1), "from 0 on"),
        (dict(prompts=[3]), "prompts are texts"),
        (dict(batch_size=0), "batch_size of 1 or more"),
        (dict(guidance=math.nan), "finite"),
        (dict(meet="nearst"), "unknown meet 'nearst' of a hand-over; did you mean 'nearest'"),
        (dict(height=20), "multiples of 8"),
    ],
    ids=str,
)
def test_bad_arguments_are_said_before_anything_is_computed(options, said, pipes, student) -> None:
    base, distilled = scheduled(pipes[True], "DDIMScheduler"), scheduled(pipes[True], "LCMScheduler", student)
    given = dict(prompts="a cat", seeds=0, **options) if not options.keys() & {"prompts", "seeds"} else options
    with watched(base.unet) as old, watched(student) as new, pytest.raises(ConfigError, match=said):
        hand_over_pipeline(base, distilled, given.pop("prompts", "a cat"), given.pop("seeds", 0), **given)
    assert not old
    assert not new


def refused(base: Any, distilled: Any, said: str, **options: Any) -> None:
    with pytest.raises(ConfigError, match=said):
        hand_over_pipeline(base, distilled, "a cat", 0, **options)


def test_models_of_different_latents_are_refused(pipes, student) -> None:
    base = scheduled(pipes[True], "DDIMScheduler")
    channels = scheduled(pipes[True], "DDIMScheduler", unet(True, 1, in_channels=6, out_channels=6))
    refused(base, channels, "latent channels 4 and 6")
    other = scheduled(pipes[True], "DDIMScheduler", student)
    other.vae = copy.deepcopy(base.vae)
    other.vae.register_to_config(scaling_factor=0.18215)
    refused(base, other, "VAE scaling_factor 0.13025 and 0.18215")
    refused(base, object(), "object has no U-Net, VAE and scheduler")


def test_schedulers_that_cannot_meet_are_refused(pipes, student) -> None:
    base, distilled = scheduled(pipes[True], "DDIMScheduler"), scheduled(pipes[True], "LCMScheduler", student)
    # Stable Diffusion XL as it is saved: of four steps the first is at 751, and LCM's second at 759.
    refused(pipes[True], distilled, r"starts at time 751 and makes no step before the hand-over at 759; .*trailing")
    refused(base, scheduled(base, "LCMScheduler", beta_end=0.02), "different noise schedules")
    refused(base, scheduled(base, "HeunDiscreteScheduler"), "makes 4 steps by 7 network calls")
    refused(base, scheduled(base, "EDMEulerScheduler"), "not variance preserving")
    linspace = scheduled(base, "EulerDiscreteScheduler", timestep_spacing="linspace")
    refused(linspace, distilled, r"at time 799\.2 at step 1, between two of its noise", base_steps=6)
    karras = scheduled(base, "DPMSolverMultistepScheduler", use_karras_sigmas=True)
    refused(karras, distilled, "has noise", base_steps=8)
    # It does not say what it predicts, which a shortened last step and a record need.
    silent = scheduled(base, "DPMSolverMultistepScheduler")
    refused(silent, distilled, "does not say which image it predicts")
    refused(silent, silent, "does not say which image it predicts", record=True)
    assert hand_over_pipeline(silent, silent, "a cat", 0).calls == 5


def test_a_network_of_nan_weights_stops_it(pipes, student) -> None:
    broken = copy.deepcopy(student)
    torch.nn.init.constant_(broken.conv_in.weight, math.nan)
    base, distilled = scheduled(pipes[True], "DDIMScheduler"), scheduled(pipes[True], "LCMScheduler", broken)
    with pytest.raises(UserError, match="distilled pipeline gave NaN or infinity by time 259"):
        hand_over_pipeline(base, distilled, "a cat", 0)
