"""The paper tier: every published pair loads with the papers' settings, builds, and does one step."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

pytest.importorskip("open_clip", reason="needs the 'multimodal' extra")

from limbeck.engine.adapter import Batch
from limbeck.engine.config import PairConfig, expand, load_pair, parse, shipped_configs
from limbeck.engine.distiller import Distiller
from limbeck.engine.registry import DATASETS, LOOPS, MODELS, STRATEGIES
from limbeck.engine.runner import build_optim_wrapper

PAPER = [name for name in shipped_configs() if name.startswith("multimodal/vlm/paper_")]
CLASSES = {
    **dict(Caltech101=100, DTD=47, EuroSAT=10, FGVCAircraft=100, Food101=101, Flowers102=102, OxfordPets=37),
    **dict(StanfordCars=196, SUN397=397, UCF101=101, ImageNet=1000),
}


def test_the_tier_has_the_eleven_sets_of_both_papers_and_the_semi_supervised_pairs():
    for kind in ("few_shot", "active"):
        named = {load_pair(n).data.test["type"] for n in PAPER if kind in n}
        assert named == set(CLASSES)
    semi = {load_pair(n).pair: load_pair(n) for n in PAPER if "pct" in n and "1pct" in n}
    assert {p.rpartition("_")[2] for p in semi} == {"vitb16", "vitl14"}


@pytest.mark.parametrize("name", PAPER)
def test_settings_are_the_papers(name):
    pair = load_pair(name)
    images = pair.data.train["of"]["type"]
    assert pair.student["num_classes"] == CLASSES[images]
    assert pair.data.train["type"] == "PartlyLabelled"
    assert pair.teacher["type"] == "ZeroShot"
    assert pair.teacher_recipe is not None
    assert pair.teacher_recipe.epochs == 0
    dho = next(m for n, m in pair.methods.items() if n in ("DHO", "DHO+Random"))
    small = "pct" not in name
    assert dho.links[0]["weight"] == (0.5 if small else 1.0)
    assert dho.task_weight == (0.5 if small else 1.0)
    assert pair.recipe.optimizer["lr"] == (1e-3 if small else 5e-5)
    if "active" in name:
        assert pair.data.train["shots"] == 1
        assert (pair.loop["rounds"], pair.loop["passes"]) == ((8, 0) if images == "ImageNet" else (15, 200))
        for method in pair.method_names():
            LOOPS.make(expand(pair, method, 0).loop)
        kinds = {expand(pair, m, 0).loop["strategy"]["type"] for m in pair.method_names()}
        assert kinds == {name for name in STRATEGIES.names() if not name.startswith("_")}  # a test's own are left out
    elif not small:
        assert dho.student is not None
        assert (dho.student["init"], dho.student["kd_head"]) == ("text", "cosine")
        assert 80 < pair.reported["DHO"] < 90
    else:
        assert pair.recipe.epochs == (20 if images == "ImageNet" else 200)


def without_weights(pair: PairConfig) -> PairConfig:
    """Nothing is fetched; names of classes are made up, and a teacher of billions of operations is a smaller one."""
    value = deepcopy(pair.model_dump())
    names = [f"class {i}" for i in range(value["student"]["num_classes"])]
    value["teacher"] |= dict(classes=names, pretrained=False, model="RN50", tag="openai")
    students = [value["student"], *(m["student"] for m in value["methods"].values() if m["student"])]
    for student in students:
        student["backbone"]["pretrained"] = False
        if student["backbone"]["type"] == "CLIPTower":
            student["backbone"]["classes"] = names
    return parse(PairConfig, value, "test")


@pytest.mark.parametrize("name", ["paper_few_shot_eurosat", "paper_active_dtd", "paper_imagenet_1pct_vitb16"])
def test_pair_builds_at_full_size_and_does_one_step(name):
    pair = without_weights(load_pair(f"multimodal/vlm/{name}"))
    method = "DHO+PCoreSet" if "active" in name else "DHO"
    run = expand(pair, method, 0)
    config = {k: v for k, v in run.model.items() if k != "type"}
    config["members"]["teacher"]["initial_weights"] = True
    torch.manual_seed(0)
    model = Distiller(**deepcopy(config)).train()
    teacher = model.frozen["teacher"]
    teacher.set_text(torch.randn(teacher.text.shape), teacher.text_norms, 10.0)  # nothing was encoded
    optimizer = build_optim_wrapper(model, model.links, run.recipe)
    before = {k: v.clone() for k, v in model.members["student"].state_dict().items() if "head" in k}
    labels = torch.tensor([1, 3, -1, -1])
    images = torch.rand(4, 3, *model.deploy.input_size[1:]) * 2 - 1
    losses = model.loss(Batch(images, targets=labels, ids=torch.arange(4), views=torch.zeros(4, dtype=torch.int64)))
    assert {"student.loss_ce", "dho.loss_labelled", "dho.loss_unlabelled"} == set(losses)
    optimizer.update_params(torch.stack(list(losses.values())).sum())
    after = model.members["student"].state_dict()
    assert all(not torch.equal(before[k], after[k]) for k in before if k.endswith("weight"))


def test_shipped_data_sets_of_the_tier_are_registered():
    assert set(CLASSES) <= set(DATASETS.names())
    assert "CLIPTower" in MODELS.names()
