"""A small site for tests in a browser: two tasks, a curve, ablations, a student; markup in every text."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from limbeck.leaderboard.site.build import build_site
from limbeck.zoo.card import Card
from tests.leaderboard.fabricate import fabricate, linked, suite, vary, write_all
from tests.leaderboard.test_curves import few_shot

# What would set window.hacked in any of the places where text may land.
EVIL = '</script><script>window.hacked=1</script><img src=x onerror="window.hacked=1"><b>\'";--></b>'


def build_small_site(folder: Path) -> SimpleNamespace:
    """Write records and a card of hostile texts, and build the site of them."""
    results = folder / "results"
    kd = linked(dict(type="KD", temperature=4.0, note=EVIL))
    curves = dict(
        epochs=list(range(1, 21)),
        learning_rate=[0.05] * 20,
        losses={
            "loss": [3.0 / n for n in range(1, 21)],
            EVIL: [1.0 / n for n in range(1, 21)],
            "<i>": [None, 0.1] * 10,
        },
        val_epochs=[5, 10, 15, 20],
        val_metrics={"top1": [70.0, 90.0, 95.0, 96.0], EVIL: [1.0] * 4},
    )
    made = suite(("DKD", "DIST", "FitNet"), range(3))
    made += [fabricate("KD", s, model=kd, history=curves) for s in range(3)]
    made += vary("KD", "temperature", [1.0, 16.0]) + vary("KD", "<i>", ["<u>", EVIL])
    hostile = dict(
        benchmark="evil <i>bench</i>",
        pair="a&b #1?",
        task="semantic-segmentation",
        data__name=EVIL,
        data__classes=[EVIL, "other"],
        student__name=EVIL,
        recipe__optimizer=EVIL,
        environment__cpu=EVIL,
        environment__platform=EVIL,
        environment__python=EVIL,
        environment__torch=EVIL,
        environment__limbeck=EVIL,
        environment__git_commit=EVIL,
        finished=EVIL,
        per_class={EVIL: {EVIL: 1.0}},
        metrics={EVIL: 1.0, "top1": 2.0},
        val_metrics={EVIL: 1.0},
    )
    made += [fabricate(m, s, assumption=EVIL, **hostile) for m in ("plain", EVIL) for s in range(2)]
    made += few_shot()
    write_all(results, made)
    record = next(r for r in made if r.id == "toy/big-small/kd/seed0")
    card = small_card(record.id, record.student_sha256)
    index = build_site(results, folder / "site", title=EVIL, cards=[card])
    return SimpleNamespace(index=index, results=results, card=card)


def small_card(record: str, sha256: str) -> dict[str, Any]:
    """A valid card, as JSON values, whose every free text is hostile."""
    return Card.model_validate(
        dict(
            name="smallnet.toy_kd",
            task="image-classification",
            benchmark="toy",
            pair="big-small",
            method="KD",
            seed=0,
            model=dict(type=EVIL),
            teacher=EVIL,
            dataset=dict(name=EVIL, content_hash="d" * 64, licence=EVIL, source=EVIL, test=dict(type=EVIL)),
            classes=[EVIL, "b"],
            preprocessing=dict(input_size=(1, 8, 8), mean=(0.5,), std=(0.5,), note=EVIL),
            metrics={"top1": 96.0, EVIL: 1.0},
            primary_metric="top1",
            record=record,
            parameters=78_000,
            flops=12_400_000,
            file="smallnet.toy_kd-00000000.safetensors",
            file_bytes=160_000,
            sha256=sha256,
            licence=EVIL,
            intended_use=EVIL,
            limits=EVIL,
            code_version=EVIL,
        )
    ).model_dump(mode="json")
