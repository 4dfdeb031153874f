"""Model cards: huggingface_hub reads them back, and every figure is the card's and its record's."""

from __future__ import annotations

import json
import re
from urllib.parse import unquote

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from limbeck.engine.record import RunRecord, config_hash, read_record
from limbeck.errors import ConfigError, CorruptFile
from limbeck.zoo.card import Card
from limbeck.zoo.index import SHIPPED, list_students
from limbeck.zoo.markdown import one_line
from limbeck.zoo.metafile import TASKS
from limbeck.zoo.model_card import PIPELINES, eval_results_yaml, reference, render_model_card
from limbeck.zoo.rerun import method_papers, rerun_command
from tests.zoo.fabricate import fabricate, make_zoo, run_config

RESULTS = SHIPPED.parents[1] / "results"
SAMPLES = {card.task: card for card in list_students()}  # the last of each task
MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Card, RunRecord]:
    card = make_zoo(tmp_path_factory.mktemp("made"))[1]
    return card, fabricate(card.sha256)


def shown(text: str) -> list[list[str]]:
    """The rows of a README's last table with a header of metrics."""
    rows, inside = [], False
    for token in MARKDOWN.parse(text.split("---\n", 2)[2]):
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "th_open" or token.type == "td_open":
            inside = True
        elif token.type == "inline" and inside:
            rows[-1].append("".join(child.content for child in token.children))
            inside = False
    start = max(i for i, row in enumerate(rows) if row == ["metric", "value"])
    return rows[start + 1 :]


def check_figures(text: str, card: Card, record: RunRecord) -> None:
    data = ModelCard(text).data
    results = {r.metric_name: r for r in data.eval_results}
    assert {name: r.metric_value for name, r in results.items()} == card.metrics == record.metrics
    assert data.eval_results[0].metric_name == card.primary_metric
    for result in results.values():
        assert (result.dataset_name, result.dataset_split) == (record.data.name, record.data.split)
        assert result.task_type == (PIPELINES[card.task] or card.task)
    table = dict(shown(text))
    assert table.keys() == card.metrics.keys()
    for name, value in card.metrics.items():
        assert float(table[name]) == pytest.approx(value, rel=5e-5)


@pytest.mark.skipif(not RESULTS.is_dir(), reason="the records are in a checkout alone")
@pytest.mark.parametrize("task", sorted(SAMPLES))
def test_shipped_student_of_each_task(task, tmp_path):
    card = SAMPLES[task]
    record = read_record(RESULTS / f"{card.record}.json")
    path = tmp_path / "README.md"
    render_model_card(card, record, repo="owner/name").save(path)
    loaded = ModelCard.load(path)
    check_figures(str(loaded), card, record)
    assert loaded.data.model_name == card.name
    assert loaded.data.library_name == "limbeck"
    assert loaded.data.license == "apache-2.0"
    assert loaded.data.pipeline_tag == PIPELINES[task]
    assert unquote(loaded.data.eval_results[0].source_url).endswith(f"owner/name/blob/main/results/{card.record}.json")
    text = loaded.text
    for part in (card.sha256, card.record, f"{card.parameters:,}", f"{record.data.test_samples:,} samples"):
        assert part in text
    assert 'limbeck.load_student("hf://owner/name")' in text


def test_every_task_has_its_words():
    assert PIPELINES.keys() == TASKS.keys() == set(Card.model_fields["task"].annotation.__args__)


def test_made_student(made):
    card, record = made
    found = render_model_card(card, record)
    check_figures(str(found), card, record)
    assert f'student = limbeck.load_student("{card.name}")' in found.text
    assert found.data.eval_results[0].source_url is None
    assert found.data.datasets is None
    assert found.data.base_model is None
    assert found.data.teacher == "resnet20.toy_teacher"
    assert "# no suite has this pair" in found.text
    assert "Latency" not in found.text


def test_hub_data_teacher_and_branch(made):
    card, record = made
    found = render_model_card(card, record, repo="me/x", revision="v1", dataset="uci/digits", teacher_repo="me/big")
    assert found.data.datasets == ["uci/digits"]
    assert found.data.base_model == "me/big"
    assert found.data.eval_results[0].dataset_type == "uci/digits"
    assert 'limbeck.load_student("hf://me/x@v1")' in found.text
    assert "/blob/v1/results/" in found.data.eval_results[0].source_url


def test_latency_and_assumption_are_the_records(made):
    card, record = made
    cost = record.cost.model_copy(update=dict(student_latency_ms=1.25))
    text = render_model_card(
        card, record.model_copy(update=dict(cost=cost, assumption="the weight is ours | *all* of it"))
    ).text
    assert "Latency: 1.25 ms, median of one sample's forward on made-up CPU, 1 thread" in text
    assert "the weight is ours \\| \\*all\\* of it" in text


def test_licence_that_the_hub_does_not_know(made):
    card, record = made
    data = render_model_card(card.model_copy(update=dict(licence="Mine: all\nrights")), record).data
    assert (data.license, data.license_name) == ("other", "Mine: all rights")


def test_teacher_is_no_distilled_model(tmp_path):
    card = make_zoo(tmp_path, "teacher")[1]
    found = render_model_card(card, fabricate(card.sha256, "teacher"))
    assert found.data.tags == ["limbeck"]
    assert "Trained with labels alone." in found.text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(metrics=dict(top1=99.0, nll=2.0)), r"metrics is .*12\.5.*, the record's .*99\.0"),
        (dict(student_sha256="1" * 64), "sha256 of the weights"),
        (dict(pair="other-pair"), "its id is toy/big-small/kd/seed0, the record's toy/other-pair/kd/seed0"),
    ],
)
def test_record_of_another_run_is_refused(made, change, said):
    card, _ = made
    record = RunRecord.model_validate(fabricate(card.sha256).model_dump() | change)
    with pytest.raises(CorruptFile, match=said):
        render_model_card(card, record)
    with pytest.raises(CorruptFile, match=said):
        eval_results_yaml(card, record, dataset="a/b")


def test_eval_results_form(made):
    """The keys that the hub documents: dataset.id, dataset.task_id and value are required."""
    card, record = made
    assert eval_results_yaml(card, record) is None
    (entry,) = yaml.safe_load(eval_results_yaml(card, record, repo="me/x", dataset="uci/digits", task_id="test"))
    assert entry.keys() == {"dataset", "value", "date", "source", "notes"}
    assert entry["dataset"] == dict(id="uci/digits", task_id="test")
    assert entry["value"] == card.value == record.value
    assert entry["date"] == record.finished
    assert entry["source"]["url"] == "https://huggingface.co/me/x/blob/main/results/toy/big-small/kd/seed0.json"
    (plain,) = yaml.safe_load(eval_results_yaml(card, record, dataset="uci/digits"))
    assert "source" not in plain
    assert plain["dataset"]["task_id"] == "image-classification"


def test_huggingface_hub_parses_eval_results(made):
    hub = pytest.importorskip("huggingface_hub")
    if not hasattr(hub, "parse_eval_result_entries"):
        pytest.skip("this huggingface_hub is older than .eval_results")
    card, record = made
    text = eval_results_yaml(card, record, repo="me/x", dataset="uci/digits")
    (entry,) = hub.parse_eval_result_entries(yaml.safe_load(text))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("uci/digits", "image-classification", 12.5)
    assert hub.eval_result_entries_to_yaml([entry]) == yaml.safe_load(text)


HOSTILE = st.text(
    st.one_of(st.characters(), st.sampled_from("\\`*_[]{}()#|~!<>&^$:@/.-+=1%? \n\t'\"")), min_size=1, max_size=30
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(HOSTILE, min_size=8, max_size=8))
def test_hostile_text_stays_text(made, texts):
    """Neither the front matter nor the page's structure depends on what the texts are."""
    card, record = made
    source, licence, terms, use, limits, note, teacher, code_version = texts
    data = card.dataset.model_copy(update=dict(source=source, licence=licence))
    changes = dict(
        dataset=data,
        licence=terms,
        intended_use=use,
        limits=limits,
        preprocessing=card.preprocessing.model_copy(update=dict(note=note)),
        teacher=teacher,
        code_version=code_version,
        classes=tuple(texts),
    )
    hostile = card.model_copy(update=changes)
    text = str(render_model_card(hostile, record))
    text.encode()
    loaded = ModelCard(text)
    assert loaded.data.teacher == one_line(teacher)
    assert loaded.data.license_name == one_line(terms)
    check_figures(text, hostile, record)
    plain = MARKDOWN.parse(ModelCard(str(render_model_card(card, record))).text)
    blocks = [(t.type, t.level) for t in MARKDOWN.parse(loaded.text)]
    kinds = {child.type for t in MARKDOWN.parse(loaded.text) for child in t.children or []}
    assert kinds <= {"text", "text_special", "code_inline", "softbreak", "link_open", "link_close"}
    links = [c.attrs["href"] for t in MARKDOWN.parse(loaded.text) for c in t.children or [] if c.type == "link_open"]
    assert all(link.startswith("https://arxiv.org/abs/") for link in links)
    if all(one_line(t) for t in texts):
        assert blocks == [(t.type, t.level) for t in plain]


def test_record_of_hostile_names_renders(made):
    card, record = made
    name = "a'b\"\n---\n<x>|`y`"
    hostile = dict(benchmark=name, pair=name)
    other = RunRecord.model_validate(record.model_dump() | hostile)
    text = str(render_model_card(card.model_copy(update=dict(hostile, record=other.id)), other, repo="me/x"))
    check_figures(text, card, record)
    assert "<x>" not in text.split("---\n", 2)[2]


def test_reference_is_owner_and_name():
    assert reference("me/x") == "hf://me/x"
    assert reference("me/x.y-z_1", "v1") == "hf://me/x.y-z_1@v1"
    for wrong in ("x", "me/x/y", "/x", "me/", "me/x y", "hf://me/x", "me/../x", "https://huggingface.co/me/x"):
        with pytest.raises(ConfigError, match="OWNER/NAME"):
            reference(wrong)


def test_method_papers_are_those_of_the_files():
    config = run_config("KD", 0, dict(type="CIFARResNet"))
    config["model"]["links"] = [dict(type="KD"), dict(type="FitNet"), dict(type="KD"), dict(type="MyOwn")]
    papers = method_papers(fabricate("0" * 64, config=config, config_hash=config_hash(config)))
    assert [(p.name, p.arxiv) for p in papers] == [("KD", "1503.02531"), ("FitNet", "1412.6550"), ("MyOwn", None)]
    assert all(re.search("[a-z]", p.title) for p in papers[:2])
    assert "arXiv" not in papers[0].title
    assert papers[2].title == ""


@pytest.mark.skipif(not RESULTS.is_dir(), reason="the records are in a checkout alone")
@pytest.mark.parametrize(
    ("identity", "command"),
    [
        ("digits/resnet20-resnet8/kd/seed0", "limbeck bench reproduce digits/resnet20-resnet8 --cells KD/0"),
        ("digits/resnet20-resnet8/plain/seed0", "limbeck bench reproduce digits/resnet20-resnet8 --cells plain/0"),
        ("digits/resnet20-resnet8/teacher/seed0", "limbeck bench reproduce digits/resnet20-resnet8 --cells teacher/0"),
    ],
)
def test_rerun_command(identity, command):
    record = read_record(RESULTS / f"{identity}.json")
    assert rerun_command(record) == command


def test_rerun_of_a_pair_that_is_not_shipped(made):
    assert rerun_command(made[1]) is None


def test_card_file_and_record_round_trip(made):
    """What is pushed as JSON reads back as the same card."""
    card, _ = made
    assert Card.model_validate(json.loads(json.dumps(card.model_dump(mode="json")))) == card
