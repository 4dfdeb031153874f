"""The paper tier: every published pair builds at full size, and every method of it does one step on a fake sample."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.engine.adapter import Batch
from limbeck.engine.config import PairConfig, expand, load_pair, shipped_configs
from limbeck.engine.distiller import Distiller
from limbeck.engine.method import TrainingSet
from limbeck.engine.registry import METHODS, MODELS
from limbeck.engine.runner import build_optim_wrapper
from limbeck.engine.taps import check_taps
from limbeck.engine.weights import hash_state

PAPER = [name for name in shipped_configs() if name.startswith("vision/paper_")]
CIFAR = [name for name in PAPER if "_cifar100_" in name]
IMAGENET = [name for name in PAPER if "_imagenet_" in name]
SMALL = "vision/paper_cifar100_resnet56_resnet20"
PUBLISHED = Path(__file__).parents[2] / "limbeck" / "leaderboard" / "reported" / "tables" / "vision.csv"
FIELD = {
    "resnet56-resnet20",
    "resnet110-resnet32",
    "wrn40-2-wrn16-2",
    "wrn40-2-wrn40-1",
    "resnet32x4-resnet8x4",
    "vgg13-vgg8",
    "resnet50-mobilenetv2",
    "vgg13-mobilenetv2",
    "resnet32x4-shufflenetv1",
    "resnet32x4-shufflenetv2",
    "wrn40-2-shufflenetv1",
}


@cache
def pair_of(name: str) -> PairConfig:
    return load_pair(name)


# --- what is in the tier, and for which figures ---


def names_of(pair: PairConfig) -> tuple[str, str]:
    """('ResNet-56', 'ResNet-20') of the title 'CIFAR-100: ResNet-56 → ResNet-20'."""
    teacher, student = pair.title.partition(": ")[2].split(" → ")
    return teacher, student


def plain_name(text: str) -> str:
    """As the published table's sources would write it, each in its own way."""
    return re.sub(r"[-_ /]", "", text.lower()).replace("shnv2", "shufflenetv2").replace("mnv2", "mobilenetv2")


def test_the_tier_has_the_pairs_of_the_fields_common_table_and_the_imagenet_pairs():
    assert {pair_of(name).pair for name in CIFAR} == FIELD
    assert {pair_of(name).pair for name in IMAGENET} >= {"resnet34-resnet18", "resnet50-mobilenetv1"}
    for family in ("OFAKD", "ScaleKD", "MEALV2"):
        assert any(family in pair_of(name).methods for name in IMAGENET)


@pytest.mark.parametrize("name", PAPER)
def test_figures_are_of_methods_of_the_pair_and_have_a_source(name):
    pair = pair_of(name)
    assert set(pair.reported) <= {"teacher", "plain", *pair.methods}
    assert all(50 < value < 90 for value in pair.reported.values())
    assert bool(pair.reported) == bool(pair.reported_source)
    if pair.reported:
        for method in pair.reported:
            assert method in pair.reported_source or len(pair.reported) < 3
        assert "arXiv" in pair.reported_source
    else:
        assert "none is printed" in Path(shipped_configs()[name]).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", CIFAR)
def test_cifar_pairs_follow_the_tables_recipe(name):
    pair = pair_of(name)
    mobile = "CIFARMobile" in pair.student["type"] or "Shuffle" in pair.student["type"]
    assert pair.recipe.optimizer == dict(type="SGD", lr=0.01 if mobile else 0.05, momentum=0.9, weight_decay=5e-4)
    assert pair.teacher_recipe is not None
    assert pair.teacher_recipe.optimizer["lr"] == 0.05
    assert (pair.recipe.epochs, pair.data.batch_size) == (240, 64)
    assert pair.recipe.param_scheduler == [dict(type="MultiStepLR", milestones=[150, 180, 210], gamma=0.1)]
    assert {"teacher", "plain", "KD", "DKD", "CRD"} <= set(pair.reported)


@pytest.mark.parametrize("name", [name for name in PAPER if pair_of(name).reported])
def test_figures_are_those_of_the_published_table(name):
    pair = pair_of(name)
    dataset, (teacher, student) = pair.title.partition(": ")[0], map(plain_name, names_of(pair))
    found = set()
    with PUBLISHED.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            same_teacher = plain_name(row["teacher"]) == teacher or pair.teachers  # an ensemble has no one name
            if row["dataset"].startswith(dataset) and plain_name(row["student"]) == student and same_teacher:
                method = {"SP": "SPKD", "MEAL V2": "MEALV2"}.get(row["method"], row["method"])
                found |= {(method, row["distilled_value"]), ("teacher", row["teacher_value"])}
                found.add(("plain", row["baseline_value"]))
    assert set(pair.reported.items()) <= {(method, float(value)) for method, value in found if value}


# --- at full size ---


def not_pretrained(model: dict[str, Any]) -> dict[str, Any]:
    """A model config without downloaded weights."""
    return {key: value for key, value in model.items() if key != "pretrained"}


@pytest.mark.parametrize("name", PAPER)
def test_full_size_networks_build_and_have_every_tap(name):
    pair = pair_of(name)
    with torch.device("meta"):
        teachers = {"teacher": MODELS.make(not_pretrained(pair.teacher))}
        teachers |= {key: MODELS.make(not_pretrained(t.model)) for key, t in pair.teachers.items()}
        student = MODELS.make(not_pretrained(pair.student))
    classes = 100 if name in CIFAR else 1000
    for model in (*teachers.values(), student):
        assert (model.num_classes, model.input_size[0]) == (classes, 3)
    for spec in pair.methods.values():
        for config in spec.links:
            link = METHODS.make(config)
            for member in link.teachers:
                check_taps(teachers[member], [tap for tap, _ in link.taps], ("logits",), member)
            if config["type"] == "ScaleKD":
                width = teachers["teacher"].num_features
                assert (width // 2 % config["heads"][0], width % config["heads"][1]) == (0, 0)
            if spec.student is None:
                check_taps(student, [tap for _, tap in link.taps], ("logits",), "student")


# --- one step ---


def untrained(model: dict[str, Any]) -> dict[str, Any]:
    """A model config without downloaded weights, cheaper where that changes no tap.

    Of the 18 equal blocks of Swin's third stage 2 are left, and Swin-L has half its width, which ScaleKD's heads divide
    too; nets with 60 to 115 million weights see 96 pixels.
    """
    found = not_pretrained(model)
    name = str(found.get("model", "")).split(".")[0]
    if name.startswith("swin"):
        found["depths"] = (2, 2, 2, 2)
    if name.startswith("swin_large"):
        found |= dict(embed_dim=96, num_heads=(3, 6, 12, 24))
    if name in ("senet154", "resnet152s"):
        found["input_size"] = (3, 96, 96)
    return found


@lru_cache(maxsize=2)
def frozen_model(config: str) -> nn.Module:
    """A teacher whose logits are neither equal nor beyond soft-max; never changed, so the tests of a pair share it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS.make(json.loads(config))
        for parameter in model.parameters():
            if parameter.ndim > 1 and not parameter.count_nonzero():
                nn.init.normal_(parameter, std=0.02)  # a mixer's head starts at zero
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0
        if norms:  # a hundred layers that do not normalise overflow
            with torch.no_grad():
                model.train()(torch.randn(4, 3, 64, 64))
    return model


def distiller(name: str, methods: Sequence[str]) -> tuple[Distiller, Any]:
    """The links of several methods that share their members, in one model; task weight as of the first."""
    runs = [expand(pair_of(name), method, 0) for method in methods]
    config = {key: value for key, value in runs[0].model.items() if key != "type"}
    config["links"] = [link for run in runs for link in run.model["links"]]
    for member in config["members"].values():
        member["model"] = untrained(member["model"])
        if member["type"] == "frozen":
            member.update(model=frozen_model(json.dumps(member["model"])), initial_weights=True)
    return Distiller(**config), runs[0].recipe


def prepare(model: Distiller, classes: int) -> None:
    """What the engine reads of the training split: here two samples a class with random teacher taps."""
    labels = torch.arange(classes).repeat(2)
    for link in model.methods():
        if link.wants_data:
            taps = [torch.randn(len(labels), *shape[1:]) for shape in link.shapes[link.teachers[0]]]
            link.prepare(
                TrainingSet(labels, classes, lambda taps=taps: iter([(taps, labels, torch.arange(len(labels)))]))
            )


def one_step(name: str, methods: Sequence[str], images: int) -> None:
    torch.manual_seed(0)
    model, recipe = distiller(name, methods)
    prepare(model, 1000 if name in IMAGENET else 100)
    wrapper = build_optim_wrapper(model, model.links, recipe)
    before = {member: hash_state(module.state_dict()) for member, module in model.members.items()}
    ids = torch.arange(images)
    model.train()
    terms = model.loss(Batch(torch.randn(images, *model.deploy.input_size), targets=ids, ids=ids, views=ids))
    for index, link in enumerate(model.methods()):
        assert any(key.startswith(f"{link.name}{index or ''}.loss_") for key in terms), (link.name, list(terms))
    wrapper.update_params(model.parse_losses(terms)[0])
    for member, module in model.members.items():
        assert hash_state(module.state_dict()) != before[member]
        assert all(torch.isfinite(p).all() for p in module.parameters())
    for member, teacher in model.frozen.items():
        assert hash_state(teacher.state_dict()) == model.frozen_hashes[member]
        assert all(p.grad is None for p in teacher.parameters())


def together(name: str) -> list[list[str]]:
    """A pair's methods, those in one list that train the plain student by the images as they are."""
    shared, alone = [], []
    for method, spec in pair_of(name).methods.items():
        own = spec.student or spec.members or any(METHODS.lookup(link["type"]).alters_batch for link in spec.links)
        alone.append([method]) if own else shared.append(method)
    return [shared, *alone] if shared else alone


@pytest.mark.parametrize("method", list(pair_of(SMALL).methods))
def test_every_method_of_a_small_pair_does_one_step(method):
    one_step(SMALL, [method], images=4)


@pytest.mark.parametrize("name", CIFAR)
def test_all_methods_of_a_cifar_pair_do_one_step(name):
    for methods in together(name):
        one_step(name, methods, images=4)


@pytest.mark.parametrize("name", IMAGENET)
def test_all_methods_of_an_imagenet_pair_do_one_step(name):
    for methods in together(name):
        one_step(name, methods, images=2)
