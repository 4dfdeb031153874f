"""The OpenMMLab metafile: what openmim's loader and its table of models take, and figures that are the cards'."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from limbeck.cli.app import app
from limbeck.engine.record import write_record
from limbeck.zoo.card import Card
from limbeck.zoo.index import SHIPPED, list_students
from limbeck.zoo.metafile import METRICS, TASKS, render_metafile, write_metafile
from tests.zoo.fabricate import fabricate, make_zoo


def check_form(index: dict[str, Any]) -> None:
    """What model-index 0.1.11 checks on loading, and what openmim 0.3.9 does with each model afterwards."""
    assert index.keys() == {"Collections", "Models"}
    names = [c["Name"] for c in index["Collections"]]
    assert all(names)
    assert len(set(names)) == len(names)
    for entry in (*index["Collections"], *index["Models"]):
        assert isinstance(entry["Name"], str)
        assert entry["Name"]
        assert isinstance(entry["Metadata"], dict)
        for value in entry["Metadata"].values():  # openmim joins lists, and looks at their first element
            assert not isinstance(value, list) or (value and all(isinstance(v, str) for v in value))
            assert not isinstance(value, dict)
        assert isinstance(entry.get("Paper", ""), str)
    for model in index["Models"]:
        assert model["In Collection"] in names
        assert isinstance(model["Config"], str)
        assert isinstance(model["Weights"], str)
        assert model["Results"]
        for result in model["Results"]:
            assert result.keys() == {"Task", "Dataset", "Metrics"}
            assert isinstance(result["Task"], str)
            assert isinstance(result["Dataset"], str)
            assert all(isinstance(v, float | int) for v in result["Metrics"].values())
    assert len({m["Name"] for m in index["Models"]}) == len(index["Models"])


def check_figures(index: dict[str, Any], cards: list[Card]) -> None:
    models = {model["Name"]: model for model in index["Models"]}
    assert models.keys() == {card.name for card in cards}
    for card in cards:
        model = models[card.name]
        (result,) = model["Results"]
        assert result["Metrics"] == {METRICS.get(name, name): value for name, value in card.metrics.items()}
        assert (result["Task"], result["Dataset"]) == (TASKS[card.task], card.dataset.name)
        assert model["Metadata"]["Parameters"] == card.parameters
        assert model["Metadata"].get("FLOPs") == card.flops
        assert model["Metadata"]["SHA256"] == card.sha256
        assert model["In Collection"].lower() == card.method.lower()


def test_index_of_all_shipped_students():
    cards = list_students(zoo_dir=SHIPPED)
    index = yaml.safe_load(render_metafile(cards))
    check_form(index)
    check_figures(index, cards)
    for model in index["Models"]:
        assert (SHIPPED.parent / model["Config"]).is_file()
        assert (SHIPPED.parent / model["Weights"]).is_file()


def test_model_index_loads_it(tmp_path):
    load = pytest.importorskip("modelindex.load_model_index", reason="model-index is not installed").load
    cards = list_students(zoo_dir=SHIPPED)
    write_metafile(tmp_path / "model-index.yml", render_metafile(cards))
    index = load(str(tmp_path / "model-index.yml"))
    index.check(silent=False)
    names = {c.name for c in index.collections}
    found = {model.name: model for model in index.models}
    assert found.keys() == {card.name for card in cards}
    for card in cards:
        model = found[card.name]
        assert model.in_collection in names
        assert dict(model.results[0].metrics) == {METRICS.get(k, k): v for k, v in card.metrics.items()}
        assert model.metadata.data["Parameters"] == card.parameters


def test_pushed_students_have_addresses_and_recipes(tmp_path):
    card = make_zoo(tmp_path)[1]
    record = fabricate(card.sha256)
    (model,) = yaml.safe_load(render_metafile([card], records={record.id: record}, repo="me/x", revision="v 1"))[
        "Models"
    ]
    assert model["Weights"] == f"https://huggingface.co/me/x/resolve/v%201/weights/{card.file}"
    assert model["Config"] == f"cards/{card.name}.json"
    assert (model["Metadata"]["Epochs"], model["Metadata"]["Batch Size"]) == (1, 64)
    assert model["Metadata"]["Teacher"] == "resnet20.toy_teacher"


def test_paper_of_a_method_is_told_where_its_record_is_there(tmp_path):
    card = make_zoo(tmp_path)[1]
    record = fabricate(card.sha256)
    config = dict(record.config, model=dict(record.config["model"], links=[dict(type="KD")]))
    known = {record.id: record.model_copy(update=dict(config=config))}
    assert yaml.safe_load(render_metafile([card], records=known))["Collections"] == [
        dict(
            Name="KD",
            Metadata={"Training Techniques": ["knowledge distillation"]},
            Paper="https://arxiv.org/abs/1503.02531",
        )
    ]
    assert "Paper" not in yaml.safe_load(render_metafile([card]))["Collections"][0]


def test_hostile_text_is_one_line_of_yaml(tmp_path):
    card = make_zoo(tmp_path)[1]
    terms = "a: b\n- c # d\u202e\x07 'e' \"f\" {g} [h] & * ! %"
    hostile = card.model_copy(
        update=dict(licence=terms, teacher=terms, dataset=card.dataset.model_copy(update=dict(licence=terms)))
    )
    index = yaml.safe_load(render_metafile([hostile]))
    check_form(index)
    plain = "a: b - c # d 'e' \"f\" {g} [h] & * ! %"
    told = index["Models"][0]["Metadata"]
    assert (told["License"], told["Teacher"], told["Training Data License"]) == (plain, plain, plain)


def test_command_writes_all_or_the_named_ones(tmp_path, monkeypatch):
    _, card = make_zoo(tmp_path)
    monkeypatch.setenv("LIMBECK_ZOO", str(tmp_path / "zoo"))
    write_record(tmp_path / "records", fabricate(card.sha256))
    out = tmp_path / "there" / "model-index.yml"
    given = ["zoo", "metafile", "--out", str(out), "--results", str(tmp_path / "records")]
    done = CliRunner().invoke(app, [*given[:2], card.name, *given[2:]], catch_exceptions=False)
    assert done.exit_code == 0
    assert "1 students, 1 with their records" in done.output
    check_figures(yaml.safe_load(out.read_text(encoding="utf-8")), [card])
    CliRunner().invoke(app, given, catch_exceptions=False)
    check_figures(yaml.safe_load(out.read_text(encoding="utf-8")), list_students())
    assert [p.name for p in out.parent.iterdir()] == [out.name]
