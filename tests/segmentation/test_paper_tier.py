"""The paper tier: every published pair builds at full size, and every method of it does one step on a small crop."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.model import BaseModule
from PIL import Image
from torch import Tensor, nn

from limbeck.engine.adapter import Batch
from limbeck.engine.config import PairConfig, RunConfig, expand, load_pair, parse, shipped_configs
from limbeck.engine.cost import count_parameters
from limbeck.engine.distiller import Distiller
from limbeck.engine.method import TrainingSet
from limbeck.engine.registry import ADAPTERS, METHODS, MODELS
from limbeck.engine.run import RunOptions, execute
from limbeck.engine.runner import build_optim_wrapper
from limbeck.engine.taps import check_taps
from limbeck.engine.weights import hash_state

pytest.importorskip("mmseg", reason="the paper tier is of mmsegmentation's networks")

PAPER = [name for name in shipped_configs() if name.startswith("segmentation/paper_")]
COLLAB = [name for name in PAPER if "_collab_" in name]
TAUGHT = [name for name in PAPER if name not in COLLAB]
TRANSKD = "segmentation/paper_cityscapes_segformer_b2_b0"
PUBLISHED = Path(__file__).parents[2] / "limbeck" / "leaderboard" / "reported" / "tables" / "segmentation.csv"
CROP = (64, 128)
IGNORE = 255


@cache
def pair_of(name: str) -> PairConfig:
    return load_pair(name)


# --- what is in the tier, and for which figures ---


def test_the_tier_has_the_published_pairs_and_the_collaborative_ones():
    found = {(pair_of(name).title.partition(":")[0], pair_of(name).pair) for name in PAPER}
    assert {
        ("Cityscapes", "segformer_b2-segformer_b0"),
        ("Cityscapes", "deeplabv3_r101-deeplabv3_r18"),
        ("Cityscapes", "deeplabv3_r101-deeplabv3_mobilenetv2"),
        ("Cityscapes", "pspnet_r101-pspnet_r18"),
    } <= found
    for data in ("Cityscapes", "PASCAL VOC 2012", "CamVid"):
        assert {pair for title, pair in found if title == data} >= {
            "segformer_b0-deeplabv3_mobilenetv2",
            "deeplabv3_mobilenetv2-segformer_b0",
        }
    assert {"TransKD-Base", "TransKD-GL", "TransKD-EA", "ReviewKD"} == set(pair_of(TRANSKD).methods)
    for name in TAUGHT:
        if name != TRANSKD:
            assert set(pair_of(name).methods) >= {"KD", "SKD", "IFVD", "CWD", "CIRKD", "DIST"}


@pytest.mark.parametrize("name", PAPER)
def test_figures_are_of_methods_of_the_pair_and_have_a_source(name):
    pair = pair_of(name)
    assert pair.task == "semantic-segmentation"
    assert (pair.metric.type, pair.metric.primary) == ("SegmentationMetric", "mIoU")
    assert set(pair.reported) <= {"teacher", "plain", *pair.methods}
    text = Path(shipped_configs()[name]).read_text(encoding="utf-8")
    if name in COLLAB:
        assert not pair.reported
        assert "none is printed" in text
        return
    assert {"teacher", "plain"} < set(pair.reported)
    assert all(30 < value < 90 for value in pair.reported.values())
    assert pair.reported["plain"] < min(value for key, value in pair.reported.items() if key != "plain")
    assert "arXiv" in pair.reported_source
    for method in pair.reported:
        assert method in pair.reported_source
    for key in ("teacher", "plain"):
        assert f"{pair.reported[key]:.2f}" in text.split('"""')[1]


@pytest.mark.parametrize("name", PAPER)
def test_the_steps_are_those_of_the_recipe(name):
    """Training images less those held out, in whole batches, times epochs."""
    pair = pair_of(name)
    images = {"Cityscapes": 2975 - 250, "VOC2012": 10582 - 500, "ADE20K": 20210 - 1000, "CamVid": 367}
    per_epoch = images[pair.data.train["type"]] // pair.data.batch_size
    steps = pair.recipe.epochs * per_epoch
    if name == TRANSKD:
        assert pair.recipe.epochs == 1000
    else:
        wanted = 80_000 if "pspnet_r101" in name else 40_000
        assert wanted <= steps < wanted + per_epoch
    assert (pair.recipe.param_scheduler[0]["type"], pair.recipe.selection) == ("PolyLR", "last")


@pytest.mark.parametrize("name", TAUGHT)
def test_figures_are_those_of_the_published_table(name):
    """Where the table has a row of one of the pair's methods, on the same split."""
    pair = pair_of(name)
    data, (teacher, student) = (
        pair.title.partition(": ")[0],
        map(plain_name, pair.title.partition(": ")[2].split(" → ")),
    )
    found: dict[str, set[float]] = {}
    with PUBLISHED.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            same = (plain_name(row["teacher"]), plain_name(row["student"])) == (teacher, student)
            if row["dataset"] == data and row["split"] == "val" and same and row["method"] in pair.reported:
                for key, column in ((row["method"], "distilled"), ("teacher", "teacher"), ("plain", "baseline")):
                    if row[f"{column}_value"]:
                        found.setdefault(key, set()).add(float(row[f"{column}_value"]))
    for key in found.keys() & pair.reported.keys():
        assert pair.reported[key] in found[key], key


def plain_name(text: str) -> str:
    """As the published table's sources would write it, each in its own way."""
    plain = re.sub(r"[-_ /]", "", text.lower())
    return plain.replace("resnet", "r").replace("mobilenetv2", "mbv2")


# --- loading, expanding, building ---


@pytest.mark.parametrize("name", PAPER)
def test_every_method_expands_to_a_run(name):
    pair = pair_of(name)
    for method in ("teacher", *pair.method_names()):
        run = expand(pair, method, 0)
        assert run.id.startswith(f"{pair.benchmark}/{pair.pair}/{method.lower()}")
        members = run.model["members"]
        frozen = {key for key, member in members.items() if member["type"] == "frozen"}
        assert frozen == (set() if method in ("teacher", "plain") or name in COLLAB else {"teacher"})


@pytest.mark.parametrize("name", [name for name in COLLAB if name.endswith("mobilenetv2")])
def test_a_collaborative_run_is_one_run_of_two_pairs(name):
    other = name.replace("mobilenetv2", "segformer_b0")
    cnn, vit = (expand(pair_of(n), "CNNViTCollab", 3) for n in (name, other))
    assert cnn.companion_runs() == [vit]
    assert vit.companion_runs() == [cnn]
    assert pair_of(name).student == pair_of(other).teacher
    assert pair_of(name).teacher == pair_of(other).student
    assert pair_of(name).recipe == pair_of(other).teacher_recipe
    own = cnn.recipe.optimizer["type"], cnn.recipe.optimizers["teacher"]["type"]
    assert own == (pair_of(name).recipe.optimizer["type"], pair_of(other).recipe.optimizer["type"]) == ("SGD", "AdamW")


def without_weights(config: Any) -> Any:
    """A config without downloaded weights, and with batch norm of one process."""
    dropped = ("init_cfg", "pretrained_backbone")
    if isinstance(config, dict):
        kept = {key: without_weights(value) for key, value in config.items() if key not in dropped}
        return kept | {"type": "BN"} if kept.get("type") == "SyncBN" else kept
    if isinstance(config, (list, tuple)):
        return type(config)(without_weights(value) for value in config)
    return config


@cache
def full_size(config: str) -> nn.Module:
    """A network of full size; of the CNNs the architecture alone, where the transformer's constructor reads numbers."""
    cfg = json.loads(config)
    if cfg["config"]["backbone"]["type"] == "MixVisionTransformer":
        return MODELS.make(cfg)
    with pytest.MonkeyPatch.context() as patched, torch.device("meta"):
        patched.setattr(BaseModule, "init_weights", lambda self: None)
        return MODELS.make(cfg)


@pytest.mark.parametrize("name", PAPER)
def test_full_size_networks_build_and_have_every_tap(name):
    pair = pair_of(name)
    models: dict[str, Any] = {
        key: full_size(json.dumps(without_weights(getattr(pair, key)))) for key in ("teacher", "student")
    }
    offers = ADAPTERS.make(pair.adapter).offers
    classes = {"Cityscapes": 19, "VOC2012": 21, "ADE20K": 150, "CamVid": 11}[pair.data.train["type"]]
    for model in models.values():
        assert (model.num_classes, model.input_size[0]) == (classes, 3)
    for method, spec in pair.methods.items():
        for config in expand(pair, method, 0).model["links"] if spec.same_run_as else spec.links:
            link = METHODS.make(config)
            assert config.get("classes", classes) == classes
            swapped = spec.same_run_as is not None
            for member, side in ((link.teachers[0], 0), (link.student, 1)):
                model = models[{"teacher": "student", "student": "teacher"}[member] if swapped else member]
                taps = [pair_of_taps[side] for pair_of_taps in link.taps]
                check_taps(model, taps, offers, member)
                assert model.with_auxiliary_head or "aux_logits" not in taps


def test_sizes_are_those_that_transkd_prints():
    """3.72 and 27.36 million parameters with 20 classes, arXiv 2202.13393's code; a class is 257 or 769 of them."""
    pair = pair_of(TRANSKD)
    student, teacher = (full_size(json.dumps(without_weights(config))) for config in (pair.student, pair.teacher))
    assert (count_parameters(student) + 257) / 1e6 == pytest.approx(3.72, abs=0.0051)
    assert (count_parameters(teacher) + 769) / 1e6 == pytest.approx(27.36, abs=0.0051)


# --- one step ---


def reduced(model: dict[str, Any]) -> dict[str, Any]:
    """A model config at the crop, thinner and of less depth.

    ResNet-50 for ResNet-101, ResNets and their heads of a quarter of their width; a transformer of one layer a stage.
    """
    found = without_weights(model) | {"input_size": (3, *CROP)}
    backbone = found["config"]["backbone"]
    if backbone["type"] == "ResNetV1c":
        backbone |= dict(depth=min(50, backbone["depth"]), base_channels=16)
        for head in ("decode_head", "auxiliary_head"):
            for width in ("in_channels", "channels"):
                found["config"][head][width] //= 4
    if backbone["type"] == "MixVisionTransformer":
        backbone["num_layers"] = [1, 1, 1, 1]
    return found


SMALLER = {"CIRKD": dict(pixel_queue=32, region_queue=8, pixel_contrast=64, region_contrast=32)}
SMALLER["MasKD"] = dict(stage1_iterations=2, stage1_batch_size=2)


@lru_cache(maxsize=2)
def frozen_model(config: str) -> nn.Module:
    """A teacher whose logits are neither equal nor beyond soft-max; never changed, so the tests of a pair share it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS.make(json.loads(config))
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0
        with torch.no_grad():
            model.train()(torch.randn(2, 3, *CROP))
    return model


def distiller(name: str, methods: Sequence[str]) -> tuple[Distiller, Any]:
    """The links of several methods that share their members, in one model; the recipe is that of the first."""
    runs = [expand(pair_of(name), method, 0) for method in methods]
    config = {key: value for key, value in runs[0].model.items() if key != "type"}
    config["links"] = [link | SMALLER.get(link["type"], {}) for run in runs for link in run.model["links"]]
    for member in config["members"].values():
        member["model"] = reduced(member["model"])
        if member["type"] == "frozen":
            member.update(model=frozen_model(json.dumps(member["model"])), initial_weights=True)
    return Distiller(**config), runs[0].recipe


def label_maps(classes: int, images: int = 2) -> Tensor:
    """Blocks of 16×16 pixels of one class each, with some to ignore."""
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(classes, (images, CROP[0] // 16, CROP[1] // 16), generator=generator)
    blocks[:, 0, 0] = IGNORE
    return blocks.repeat_interleave(16, 1).repeat_interleave(16, 2)


def prepare(model: Distiller, labels: Tensor, classes: int) -> None:
    """What the engine reads of the training split: here one batch with random teacher taps."""
    ids = torch.arange(len(labels))
    for link in model.methods():
        if link.wants_data:
            taps = [torch.randn(len(labels), *shape[1:]) for shape in link.shapes[link.teachers[0]]]
            link.prepare(TrainingSet(labels, classes, lambda taps=taps: iter([(taps, labels, ids)])))


def one_step(name: str, methods: Sequence[str]) -> None:
    torch.manual_seed(0)
    model, recipe = distiller(name, methods)
    classes = len(model.deploy(torch.zeros(2, 3, *CROP))[0])
    labels, ids = label_maps(classes), torch.arange(2)
    prepare(model, labels, classes)
    wrapper = build_optim_wrapper(model, model.links, recipe)
    before = {member: hash_state(module.state_dict()) for member, module in model.members.items()}
    model.train()
    model.progress = 1.0  # past every warm-up
    terms = model.loss(Batch(torch.randn(2, 3, *CROP), targets=labels, ids=ids, views=ids))
    for index, link in enumerate(model.methods()):
        assert any(key.startswith(f"{link.name}{index or ''}.loss_") for key in terms), (link.name, list(terms))
    assert {key.partition(".")[0] for key in terms} >= set(model.members)
    wrapper.update_params(model.parse_losses(terms)[0])
    for member, module in model.members.items():
        assert hash_state(module.state_dict()) != before[member]
        assert all(torch.isfinite(p).all() for p in module.parameters())
    for member, teacher in model.frozen.items():
        assert hash_state(teacher.state_dict()) == model.frozen_hashes[member]
        assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("name", PAPER)
def test_all_methods_of_a_pair_do_one_step(name):
    one_step(name, list(pair_of(name).methods))


@pytest.mark.parametrize("method", list(pair_of(TRANSKD).methods))
def test_every_method_of_the_smallest_pair_does_one_step_alone(method):
    one_step(TRANSKD, [method])


# --- from files to a record ---


def write_cityscapes(root: Path) -> None:
    """Eight training images and two to test, 128×64 pixels."""
    maps = label_maps(19, 10).numpy().astype(np.uint8)
    for i, labels in enumerate(maps):
        folder = f"{'train' if i < 8 else 'val'}/a"
        for part in ("leftImg8bit", "gtFine"):
            (root / part / folder).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (*labels.shape, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "leftImg8bit" / folder / f"a_{i:06d}_000019_leftImg8bit.png")
        Image.fromarray(labels).save(root / "gtFine" / folder / f"a_{i:06d}_000019_gtFine_labelTrainIds.png")


def test_a_small_tree_of_cityscapes_gives_a_record(tmp_path):
    write_cityscapes(tmp_path / "cityscapes")
    run = expand(pair_of("segmentation/paper_cityscapes_deeplabv3_r101_r18"), "plain", 0).model_dump()
    where = dict(root=str(tmp_path / "cityscapes"), val_size=2)
    run["data"]["train"] |= where | dict(scale=(128, 64), augment=dict(crop=CROP, cat_max_ratio=1.0, distort=False))
    run["data"]["val"] |= where
    run["data"]["test"] |= where
    run["data"] |= dict(batch_size=3, num_workers=0)
    run["recipe"] |= dict(epochs=1)
    run["model"]["members"]["student"]["model"] = reduced(run["model"]["members"]["student"]["model"])
    record = execute(parse(RunConfig, run, "test"), RunOptions(out=tmp_path / "out", latency_ms=1.0))
    assert record is not None
    assert set(record.metrics) == set(record.val_metrics) == {"mIoU", "mAcc", "aAcc"}
    assert 0 < record.metrics["aAcc"] < 100
    assert (
        list(record.per_class["IoU"]) == json.loads(json.dumps(record.data.model_dump()))["classes"]
        or len(record.per_class["IoU"]) == 19
    )
