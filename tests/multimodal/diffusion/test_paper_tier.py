"""The paper tier, ImageNet 64×64: settings, the network at full size, and one step of every method at a small one."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

pytest.importorskip("diffusers", reason="needs the 'multimodal' extra")

from limbeck.engine.adapter import Batch
from limbeck.engine.config import PairConfig, RunConfig, expand, load_pair, shipped_configs
from limbeck.engine.distiller import Distiller
from limbeck.engine.registry import DATASETS, LOOPS, METHODS, MODELS
from limbeck.engine.run import _schedulers
from limbeck.engine.runner import build_optim_wrapper
from limbeck.engine.weights import hash_state
from limbeck.errors import DataMissing
from limbeck.multimodal.diffusion.generator import ImageGenerator
from limbeck.multimodal.diffusion.loops import Halving

PAPER = [name for name in shipped_configs() if name.startswith("multimodal/diffusion/paper_")]
FIRST = "multimodal/diffusion/paper_imagenet64_pd_1step"
TERMS = {"PD": {"x0"}, "CD": {"consistency"}, "DMD": {"fake", "dm"}, "BOOT": {"bootstrap", "boundary"}}
TRAINING_IMAGES = 1_281_167 - 50 * 1000  # of ILSVRC 2012, with 50 of each class held out


def method_of(pair: PairConfig) -> str:
    """The one beside plain."""
    (name,) = set(pair.method_names()) - {"plain"}
    return name


# --- settings ---


def test_the_tier_has_progressive_distillation_to_three_numbers_of_steps_and_three_methods_of_one():
    found = {(method_of(load_pair(name)), load_pair(name).student["sampler"]["steps"]) for name in PAPER}
    assert found == {("PD", 1), ("PD", 2), ("PD", 4), ("CD", 1), ("DMD", 1), ("BOOT", 1)}


@pytest.mark.parametrize("name", PAPER)
def test_all_share_one_teacher_data_and_metric(name):
    pair, first = load_pair(name), load_pair(FIRST)
    assert pair.teacher == first.teacher
    assert (pair.teacher_of is None) == (name == FIRST)
    assert pair.teacher_of in (None, FIRST)
    assert (pair.metric.type, pair.metric.primary, pair.metric.higher_is_better) == ("FIDMetric", "FID", False)
    assert pair.data.train == first.data.train
    assert pair.data.test["count"] == 50_000
    run = expand(pair, method_of(pair), 0)
    for link in run.model["links"]:
        made = cast(Any, METHODS.make(link))
        assert (made.guidance, made.drop_labels, made.start) == (1.0, 0.0, "teacher")
        assert (run.data.train["type"] == "ImageNet") == made.reads_images


def updates(run: RunConfig) -> int:
    """All of a run."""
    images = run.data.train.get("count", TRAINING_IMAGES)
    return run.recipe.epochs * (images // run.data.batch_size)


def test_the_teacher_follows_the_official_base_config():
    run = expand(load_pair(FIRST), "teacher", 0)
    assert (run.recipe.optimizer, run.data.batch_size) == (dict(type="Adam", lr=3e-4), 2048)
    assert run.recipe.clip_grad == dict(max_norm=1.0)
    assert updates(run) == pytest.approx(500_000, rel=1e-3)
    (warm,) = _schedulers(run.recipe.param_scheduler, run.recipe.epochs) or []
    assert (warm["by_epoch"], warm["end"]) == (False, 1000)  # updates, and the full rate afterwards
    assert "convert_to_iter_based" not in warm
    assert run.deployed["sampler"] == dict(steps=1024)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_progressive_distillation_follows_the_official_distill_config(steps):
    run = expand(load_pair(f"multimodal/diffusion/paper_imagenet64_pd_{steps}step"), "PD", 0)
    rounds = cast(Halving, LOOPS.make(run.loop)).rounds(run)
    assert rounds == [2**k for k in range(9, -1, -1) if 2**k >= steps]  # 512 … steps
    assert run.recipe.epochs % len(rounds) == 0
    assert updates(run) / len(rounds) == pytest.approx(50_000, rel=3e-3)
    assert (run.recipe.optimizer, run.data.batch_size) == (dict(type="Adam", lr=1e-4), 2048)
    assert run.recipe.param_scheduler == [dict(type="LinearLR", start_factor=1.0, end_factor=0.0)]
    assert run.model["links"][0]["loss_weight"] == "snr_trunc"
    assert run.deployed["network"]["dropout"] == 0.0


def test_consistency_and_distribution_matching_follow_their_launch_scripts():
    cd = expand(load_pair("multimodal/diffusion/paper_imagenet64_cd_1step"), "CD", 0)
    (link,) = cd.model["links"]
    assert (link["intervals"], link["distance"], cd.model["members"]["target"]["momentum"]) == (40, "l2", 0.95)
    assert (cd.recipe.optimizer["type"], cd.recipe.optimizer["lr"], cd.data.batch_size) == ("RAdam", 8e-6, 2048)
    assert updates(cd) == pytest.approx(600_000, rel=1e-3)
    dmd = expand(load_pair("multimodal/diffusion/paper_imagenet64_dmd_1step"), "DMD", 0)
    (link,) = dmd.model["links"]
    assert (link["ratio"], link["fake_lr"], dmd.recipe.optimizer["lr"]) == (5, 2e-6, 2e-6)
    assert (dmd.data.batch_size, updates(dmd)) == (7 * 40, 410_000)
    boot = expand(load_pair("multimodal/diffusion/paper_imagenet64_boot_1step"), "BOOT", 0)
    assert updates(boot) == 500_000


@pytest.mark.parametrize("name", PAPER)
def test_figures_have_a_source(name):
    pair = load_pair(name)
    assert bool(pair.reported) == bool(pair.reported_source)
    assert set(pair.reported) <= set(pair.method_names())
    assert all(method in pair.reported_source for method in pair.reported)


# --- data ---


def test_images_are_the_middle_square_at_64_pixels_and_half_of_them_flipped(tmp_path):
    """A picture twice as wide as high, black, white, white, black in quarters: the white middle is what is left."""
    wide = np.zeros((100, 200, 3), np.uint8)
    wide[:, 50:100], wide[:, 100:150] = 255, 128
    for wnid in ("n01", "n02"):
        for index in range(12):
            place = tmp_path / "train" / wnid / f"{index}.JPEG"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(wide).save(place, quality=95)
    config = load_pair(FIRST).data.train
    data = DATASETS.make({**config, "root": str(tmp_path), "val_per_class": 1})
    images = data.__getitems__(range(len(data)))["inputs"].float()
    assert images.shape == (22, 3, 64, 64)
    bright_left = images[..., 8:24].mean((1, 2, 3)) > 200
    assert 0 < int(bright_left.sum()) < 22
    for image, plain in zip(images, bright_left):
        left, right = image[..., 2:30].mean(), image[..., 34:62].mean()
        assert float(left if plain else right) == pytest.approx(255, abs=3)
        assert float(right if plain else left) == pytest.approx(128, abs=3)
    real = load_pair(FIRST).metric.options["reference"]
    reference = DATASETS.make({**real, "root": str(tmp_path), "val_per_class": 1, "limit": 4})
    assert len(reference) == 4
    assert reference.augment is None


def test_missing_images_say_where_they_belong(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path))
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataMissing, match=r"imagenet is not in .*put its train and val into \$LIMBECK_DATA/imagenet"):
        DATASETS.make(dict(load_pair(FIRST).data.train))


# --- at full size ---


def weights_of_adm(width: int, multipliers: tuple[int, ...], blocks: int, classes: int) -> int:
    """Counted by hand: ADM's U-Net with scale-shift blocks that also change the size, attention below the top level."""
    emb = 4 * width

    def residual(before: int, after: int) -> int:
        convolutions = 9 * before * after + after + 9 * after * after + after
        skip = before * after + after if before != after else 0
        return 2 * before + 2 * after + convolutions + emb * 2 * after + 2 * after + skip

    def attention(channels: int) -> int:
        return 2 * channels + 4 * (channels * channels + channels)

    levels = [width * m for m in multipliers]
    total = width * emb + emb + emb * emb + emb + classes * emb + 9 * 3 * width + width
    now, skips = width, [width]
    for index, channels in enumerate(levels):
        for _ in range(blocks):
            total += residual(now, channels) + (attention(channels) if index else 0)
            now = channels
            skips.append(now)
        if index < len(levels) - 1:
            total += residual(now, now)
            skips.append(now)
    total += 2 * residual(now, now) + attention(now)
    for index, channels in reversed(list(enumerate(levels))):
        for _ in range(blocks + 1):
            total += residual(now + skips.pop(), channels) + (attention(channels) if index else 0)
            now = channels
        total += residual(now, now) if index else 0
    assert not skips
    return total + 2 * width + 9 * 3 * width + 3


@pytest.mark.parametrize("member", ["teacher", "student"])
def test_the_full_network_has_the_published_number_of_weights(member):
    config = deepcopy(getattr(load_pair(FIRST), member))
    sizes = {name: config[name] for name in ("num_classes", "image_size", "channels")}
    with torch.device("meta"):
        network = MODELS.make(config["network"], **sizes)
    model = cast(ImageGenerator, MODELS.make({**config, "network": network}))
    count = sum(p.numel() for p in model.parameters())
    assert count == weights_of_adm(192, (1, 2, 3, 4), 3, 1000 + 1)
    assert round(count / 1e6, 1) == 295.9
    assert {p.device.type for p in model.parameters()} == {"meta"}
    z, t = torch.empty(2, 3, 64, 64, device="meta"), torch.zeros(2, dtype=torch.int64, device="meta")
    assert network(z, t, class_labels=t).sample.shape == (2, 3, 64, 64)
    drops = {m.p for m in model.modules() if isinstance(m, nn.Dropout) and m.p}
    assert drops == ({0.1} if member == "teacher" else set())


# --- one step of every method, at a small size ---


def small(value: Any) -> Any:
    """A config with few channels."""
    if isinstance(value, dict):
        found = {key: small(part) for key, part in value.items()}
        if value.get("type") == "UNet2DModel":
            found |= dict(block_out_channels=(16, 32, 48, 64), layers_per_block=1, attention_head_dim=16)
            found |= dict(norm_num_groups=8, attn_norm_num_groups=8)
        return found
    return [small(part) for part in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", PAPER)
def test_every_pair_does_one_step_with_random_weights(name):
    pair = load_pair(name)
    method = method_of(pair)
    run = expand(pair, method, 0)
    if run.loop:  # its last round, whose teacher has twice the steps
        loop = cast(Halving, LOOPS.make(run.loop))
        run = loop.inner(run, 0, loop.rounds(run)[-1], [], 1)
    parts = {key: small(value) for key, value in run.model.items() if key != "type"}
    parts["members"]["teacher"]["initial_weights"] = True
    torch.manual_seed(0)
    model = Distiller(**parts, seed=0).train()
    wrapper = build_optim_wrapper(model, model.links, run.recipe.model_copy(update=dict(precision="float32")))
    for key, value in model.frozen["teacher"].state_dict().items():
        assert torch.equal(model.deploy.state_dict()[key], value), key
    learner = model.links[0].fake if method == "DMD" else model.deploy  # the two scores of DMD are one at the start
    before = hash_state(learner.state_dict())
    images = torch.rand(2, 3, 64, 64) * 2 - 1 if model.links[0].reads_images else torch.zeros(2, 0)
    losses = model.loss(Batch(images, torch.tensor([1, 999]), torch.arange(2), torch.zeros(2, dtype=torch.int64)))
    assert {key.rpartition("loss_")[2] for key in losses} == TERMS[method]
    total = model.parse_losses(losses)[0]
    assert bool(torch.isfinite(total))
    assert total > 0
    wrapper.update_params(total)
    assert hash_state(learner.state_dict()) != before
    assert hash_state(model.frozen["teacher"].state_dict()) == model.frozen_hashes["teacher"]
    made = cast(ImageGenerator, model.deploy).generate([0, 999], seed=0)
    assert made.images.shape == (2, 3, 64, 64)
    assert made.calls == pair.student["sampler"]["steps"]
