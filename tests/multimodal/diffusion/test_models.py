"""Diffusion models by name: the U-Net and its defaults, files of diffusers, mistakes, and a missing extra."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

diffusers = pytest.importorskip("diffusers", reason="needs the 'multimodal' extra")

from safetensors.torch import load_file, save_file  # noqa: E402

from limbeck.engine.registry import MODELS  # noqa: E402
from limbeck.engine.weights import load_into, save_weights  # noqa: E402
from limbeck.errors import ConfigError, CorruptFile, DataMissing, ExtraMissing, UnknownName  # noqa: E402
from limbeck.multimodal.diffusion.denoiser import Denoiser  # noqa: E402
from limbeck.multimodal.diffusion.schedule import NoiseSchedule  # noqa: E402
from tests.multimodal.diffusion.toys import ToyNetwork, normal  # noqa: E402

SMALL: dict[str, Any] = dict(type="UNet2DModel", block_out_channels=(8, 16))


def small(**changes: Any) -> dict[str, Any]:
    return {**dict(type="Denoiser", network=SMALL, num_classes=3, image_size=4, channels=1), **changes}


def images(side: int = 4, channels: int = 1) -> torch.Tensor:
    return normal(2, channels, side, side, dtype=torch.float32)


def test_a_short_config_is_the_benchmarks_small_network() -> None:
    config = dict(type="UNet2DModel", block_out_channels=(32, 32, 64))
    with torch.device("meta"):
        network: Any = MODELS.make(config, image_size=28, channels=1, num_classes=10)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == 0.76
    assert network.config.num_class_embeds == 11
    assert network.config.down_block_types == ("DownBlock2D",) * 3
    assert len(network.mid_block.attentions) == 1
    assert network.mid_block.attentions[0] is not None


@pytest.mark.parametrize(
    ("attention", "down", "up", "mid"),
    [
        ("none", ("DownBlock2D", "DownBlock2D"), ("UpBlock2D", "UpBlock2D"), False),
        ("mid", ("DownBlock2D", "DownBlock2D"), ("UpBlock2D", "UpBlock2D"), True),
        ("lowest", ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D"), True),
    ],
)
def test_where_attention_is(attention, down, up, mid) -> None:
    model = MODELS.make(small(network={**SMALL, "attention": attention}))
    facts = model.network.config
    assert (facts.down_block_types, facts.up_block_types) == (down, up)
    assert (model.network.mid_block.attentions[0] is not None) is mid
    assert model(images(), 5, torch.tensor([0, 3])).shape == (2, 1, 4, 4)


def test_a_denoiser_is_its_network_under_its_schedule() -> None:
    model = MODELS.make(small(schedule=dict(type="cosine", steps=64), prediction="epsilon"))
    assert isinstance(model, Denoiser)
    assert (model.schedule.steps, model.prediction, model.num_classes) == (64, "epsilon", 3)
    z, t, labels = images(), torch.tensor([5, 60]), torch.tensor([0, 2])
    with torch.no_grad():
        assert torch.equal(model(z, t, labels), model.network(z, t, class_labels=labels).sample)
        assert torch.equal(model(z, t), model.network(z, t, class_labels=torch.tensor([3, 3])).sample)
        plain = model.predict(z, t, labels)
        assert torch.equal(plain.x0, model.predict(z, t, labels, guidance=1.0).x0)
        null = model.predict(z, t)
        guided = model.predict(z, t, labels, guidance=2.0)
    torch.testing.assert_close(guided.epsilon, 2 * plain.epsilon - null.epsilon, rtol=0, atol=1e-5)


def test_defaults_and_built_parts() -> None:
    model = MODELS.make(small(num_classes=None))
    assert model.schedule.same_as(NoiseSchedule.cosine(1600))
    assert model.prediction == "v_prediction"
    assert model(images(), 5).shape == (2, 1, 4, 4)
    schedule = NoiseSchedule.cosine(8)
    made = MODELS.make(small(network=ToyNetwork(num_classes=3), schedule=schedule))
    assert made.schedule is schedule
    named = MODELS.make(small(network=dict(type="_ToyDenoisingNetwork", width=5)))
    assert named.network.label.weight.shape == (4, 5)  # told of the classes


def test_other_images_than_square_ones() -> None:
    model = MODELS.make(small(image_size=(4, 6), channels=3, network={**SMALL, "layers_per_block": 2}))
    assert model.input_size == (3, 4, 6)
    assert model(torch.zeros(1, 3, 4, 6), 5).shape == (1, 3, 4, 6)


def test_a_patched_network_is_the_network_on_patches() -> None:
    """Pixel (2i + a, 2j + b) is channel 2a + b of position (i, j), written out here by hand."""
    model = MODELS.make(small(image_size=8, network={**SMALL, "patch_size": 2}))
    inner = model.network.network
    assert (inner.config.sample_size, inner.config.in_channels, inner.config.out_channels) == (4, 4, 4)
    z, labels = images(8), torch.tensor([0, 2])
    patches = torch.stack([z[:, 0, a::2, b::2] for a in (0, 1) for b in (0, 1)], 1)
    found = inner(patches, torch.tensor([5, 5]), class_labels=labels).sample
    answer = model(z, 5, labels)
    assert answer.shape == z.shape
    for k, (a, b) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        assert torch.equal(answer[:, 0, a::2, b::2], found[:, k])


def test_a_patched_network_costs_less() -> None:
    """The same levels on patches of 2 × 2: a quarter of the positions."""
    calls: list[torch.Size] = []
    model = MODELS.make(small(image_size=8, network={**SMALL, "patch_size": 2}))
    model.network.network.mid_block.register_forward_hook(lambda _m, _i, out: calls.append(out.shape[2:]))
    model(images(8), 5, torch.tensor([0, 2]))
    assert calls == [torch.Size((2, 2))]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(image_size=8, network={**SMALL, "patch_size": 3}), "divides its image_size 8; got 3"),
        (dict(image_size=6, network={**SMALL, "patch_size": 2}), "image_size 6 in patches of 2 is no multiple"),
        (dict(image_size=7), "halves its image 1 times; image_size 7"),
        (dict(network={**SMALL, "norm_num_groups": 16}), r"norm_num_groups 16 .* got \(8, 16\)"),
        (dict(network={**SMALL, "attention": "all"}), "unknown attention 'all'"),
        (dict(network={**SMALL, "droput": 0.1}), "does not take these arguments: .*droput"),
        (dict(network={**SMALL, "down_block_types": ("NoBlock", "DownBlock2D")}), "does not take these arguments"),
        (dict(network={**SMALL, "block_out_channels": ()}), "levels"),
        (dict(schedule=dict(type="cosin")), "unknown scheduler of diffusers 'cosin'"),
        (dict(prediction="x0"), "unknown prediction 'x0'"),
        (dict(network=dict(type="UNet2D")), "did you mean 'UNet2DModel'"),
    ],
)
def test_mistakes_in_a_config_are_told(changes, said) -> None:
    with pytest.raises(ConfigError, match=said):
        MODELS.make(small(**changes))


def test_weights_are_saved_and_loaded_as_of_any_model(tmp_path) -> None:
    model, other = MODELS.make(small()), MODELS.make(small())
    save_weights(tmp_path / "model.safetensors", model.state_dict(), metadata={})
    load_into(other, tmp_path / "model.safetensors")
    with torch.no_grad():
        assert torch.equal(model(images(), 5), other(images(), 5))


def test_diffusers_is_imported_only_when_a_model_is_built() -> None:
    rooms = ("models", "samplers", "hand_over", "trajectory")
    lines = [f"import limbeck.multimodal.diffusion.{room}" for room in rooms]
    code = "; ".join([*lines, "import sys", "assert 'diffusers' not in sys.modules"])
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_extra_is_one_sentence(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ExtraMissing, match=r"pip install 'limbeck\[diffusion\]'"):
        MODELS.make(small())


# --- what diffusers saved ---

UNET: dict[str, Any] = dict(
    sample_size=4,
    in_channels=3,
    out_channels=3,
    num_class_embeds=4,
    block_out_channels=(8, 16),
    layers_per_block=1,
    norm_num_groups=8,
    down_block_types=("DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D"),
)
SCHEDULER: dict[str, Any] = dict(beta_schedule="scaled_linear", prediction_type="v_prediction", clip_sample=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A pipeline's folder: unet/ and scheduler/."""
    root = tmp_path_factory.mktemp("pipeline")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        diffusers.UNet2DModel(**UNET).save_pretrained(root / "unet")
    diffusers.DDIMScheduler(**SCHEDULER).save_pretrained(root / "scheduler")
    return root


def saved(folder: Path, **changes: Any) -> dict[str, Any]:
    base = dict(type="DiffusersDenoiser", model=str(folder), subfolder="unet", scheduler_subfolder="scheduler")
    return {**base, **changes}


@torch.no_grad()
def test_a_saved_model_is_loaded_with_its_scheduler(folder) -> None:
    model = MODELS.make(saved(folder))
    reference: Any = diffusers.UNet2DModel.from_pretrained(folder / "unet")
    z, labels = images(channels=3), torch.tensor([0, 2])
    assert torch.equal(model(z, 700, labels), reference(z, 700, class_labels=labels).sample)
    assert (model.num_classes, model.null_label, model.prediction, model.clip) == (3, 3, "v_prediction", False)
    assert model.input_size == (3, 4, 4)
    expected = diffusers.DDIMScheduler(**SCHEDULER).alphas_cumprod.double()
    assert torch.equal(model.schedule.alphas_cumprod, expected)


def test_what_the_files_say_can_be_overruled(folder) -> None:
    model = MODELS.make(saved(folder, null_class=False, prediction="epsilon", clip=True))
    assert (model.num_classes, model.has_null, model.prediction, model.clip) == (4, False, "epsilon", True)
    own = MODELS.make(saved(folder, scheduler=dict(beta_schedule="linear")))
    assert (own.prediction, own.clip) == ("epsilon", True)  # diffusers' own defaults
    assert own.schedule.same_as(NoiseSchedule.of_scheduler(dict(beta_schedule="linear")))


def test_the_same_network_without_weights(folder) -> None:
    read, made = MODELS.make(saved(folder)), MODELS.make(saved(folder, pretrained=False))
    assert {k: v.shape for k, v in read.state_dict().items()} == {k: v.shape for k, v in made.state_dict().items()}
    assert not torch.equal(read.network.conv_in.weight, made.network.conv_in.weight)
    alone = MODELS.make(dict(type="DiffusersDenoiser", pretrained=False, config=UNET, scheduler=SCHEDULER))
    assert alone.schedule.same_as(read.schedule)
    assert {k: v.shape for k, v in alone.state_dict().items()} == {k: v.shape for k, v in read.state_dict().items()}
    load_keys = alone.load_state_dict(read.state_dict())
    assert not load_keys.missing_keys


def test_files_that_are_missing_or_do_not_fit_are_told(folder, tmp_path) -> None:
    with pytest.raises(DataMissing, match="scheduler: its DDPMScheduler config cannot be read"):
        MODELS.make(saved(tmp_path))
    with pytest.raises(DataMissing, match="weights cannot be read"):
        MODELS.make(saved(tmp_path, scheduler=SCHEDULER))
    broken = tmp_path / "unet"
    broken.mkdir()
    config = json.loads((folder / "unet" / "config.json").read_text())
    state = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    (broken / "config.json").write_text(json.dumps(config))
    save_file({k: v for k, v in state.items() if k != "conv_in.bias"}, broken / "diffusion_pytorch_model.safetensors")
    with pytest.raises(CorruptFile, match=r"as in conv_in\.bias"):
        MODELS.make(saved(tmp_path, scheduler=SCHEDULER))
    save_file({**state, "conv_in.bias": torch.zeros(3)}, broken / "diffusion_pytorch_model.safetensors")
    with pytest.raises(CorruptFile, match="weights do not fit"):
        MODELS.make(saved(tmp_path, scheduler=SCHEDULER))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(config=UNET), "set pretrained=False"),
        (dict(model=None), "needs a model, or both config and scheduler"),
        (dict(model=None, config=UNET, pretrained=False), "needs a model, or both config and scheduler"),
        (dict(config={**UNET, "out_channels": 6}, scheduler=SCHEDULER, pretrained=False), "3 input and 6 output"),
        (
            dict(config=UNET, scheduler=dict(_class_name="CMStochasticIterativeScheduler"), pretrained=False),
            "has no alph",
        ),
        (
            dict(config=UNET, scheduler={**SCHEDULER, "prediction_type": "flow_prediction"}, pretrained=False),
            "flow_pred",
        ),
    ],
)
def test_mistakes_about_saved_models_are_told(folder, changes, said) -> None:
    with pytest.raises((ConfigError, UnknownName), match=said):
        MODELS.make(saved(folder, **changes))


def test_a_loaded_u_net_can_teach_with_a_sampler_of_its_own():
    config = dict(sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), norm_num_groups=8)
    config |= dict(down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, layers_per_block=1)
    given = dict(type="DiffusersDenoiser", config=config, pretrained=False, scheduler=dict(num_train_timesteps=100))
    made = MODELS.make(dict(given, sampler=dict(steps=4)))
    assert made.generate(count=2).calls == 4
    with pytest.raises(ConfigError, match="7 sampling steps do not divide the schedule's 100"):
        MODELS.make(dict(given, sampler=dict(steps=7)))
