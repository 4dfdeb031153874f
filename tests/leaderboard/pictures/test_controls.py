"""Controls that carry over by the command, of tiny diffusion models; figures derived again from the JSON and models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from limbeck.engine.weights import sha256_file
from limbeck.errors import ConfigError, CorruptFile, UnknownName
from limbeck.leaderboard.pictures.controls import (
    ATTRIBUTES,
    Controls,
    check_attribute,
    controlled,
    find_controls,
    first_seeds,
)
from limbeck.leaderboard.pictures.generator_run import load_generator, requests_of, train_images
from limbeck.leaderboard.pictures.generators import deployed_of
from limbeck.leaderboard.pictures.plans import StalePicture
from limbeck.leaderboard.site.controls import COLUMNS, controls_markdown, controls_rows
from limbeck.multimodal.diffusion.controls import attributes
from limbeck.multimodal.diffusion.controls.sliders import SCALES
from tests.leaderboard.fabricate import fabricate, write_all
from tests.leaderboard.pages import text_of
from tests.leaderboard.pictures.test_generated import BENCHMARK, PAIR, generator_record, weights_of
from tests.leaderboard.pictures.test_masks import call, group_of

ASKED = ("--steps", 20, "--images", 12, "--rank", 2)
SHOWN = f"controls/{BENCHMARK}/{PAIR}.v1"


@pytest.fixture(scope="module")
def drawn(generator_runs: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A site with the picture, and what lies beside it."""
    site = tmp_path_factory.mktemp("site")
    words = (BENCHMARK, "--results", generator_runs.results, "--runs", generator_runs.runs, "--out", site)
    said = call("controls", *words, *ASKED)
    raw = json.loads((site / f"{SHOWN}.json").read_text())
    return SimpleNamespace(site=site, words=words, said=said, raw=raw, found=Controls.model_validate(raw))


@pytest.fixture
def tampered(drawn: SimpleNamespace, tmp_path: Path) -> SimpleNamespace:
    """A copy of the site to tamper with."""
    shutil.copytree(drawn.site / "controls", tmp_path / "controls")
    file = tmp_path / f"{SHOWN}.json"
    return SimpleNamespace(site=tmp_path, file=file, raw=json.loads(file.read_text()))


# --- figures ---


def test_who_is_measured_and_how_is_said(generator_runs: SimpleNamespace, drawn: SimpleNamespace) -> None:
    raw, records = drawn.raw, generator_runs.records
    ids = {method: record.id for method, record in records.items()}
    assert [t["record"] for t in raw["teachers"]] == [ids["teacher"]]
    assert [(m["method"], m["teacher"]) for m in raw["members"]] == [  # the plain student has its own start
        ("CD", ids["teacher"]),
        ("FromTeacher", ids["teacher"]),
    ]
    for one in (*raw["teachers"], *raw["members"]):
        assert one["student_sha256"] == records[one["method"]].student_sha256
    said = {name: raw[name] for name in ("attribute", "steps", "images", "rank", "slider_seed", "scales", "drawn")}
    assert said == dict(
        attribute="ink_mass", steps=20, images=12, rank=2, slider_seed=0, scales=list(SCALES), drawn=["0", "1", "2"]
    )
    assert raw["train_hash"] == records["teacher"].data.train_hash
    assert raw["content_hash"] == records["CD"].data.content_hash
    # students are asked at their own two times alone, and learn there
    last = load_generator(records["CD"], weights_of(generator_runs, "CD")).schedule.steps - 1
    assert [(s["trained_on"], s["times"]) for s in raw["sliders"]] == [
        (ids["teacher"], None),
        (ids["CD"], [last, last // 2]),
        (ids["FromTeacher"], [last, last // 2]),
    ]
    pairs = [(c["slider"], c["model"]) for c in raw["curves"]]
    teacher, cd, again = ids["teacher"], ids["CD"], ids["FromTeacher"]
    wanted = [(teacher, teacher), (teacher, cd), (teacher, again)]
    assert pairs == [*wanted, (cd, cd), (cd, teacher), (again, again), (again, teacher)]


def test_slopes_and_ratios_follow_from_the_numbers(drawn: SimpleNamespace) -> None:
    curves = {(c["slider"], c["model"]): c for c in drawn.raw["curves"]}
    rows = np.random.default_rng([0, 0]).integers(12, size=(200, 12))
    told = 0
    for (slider, model), curve in curves.items():
        slopes = np.array(curve["image_slopes"])
        assert slopes.shape == (12,)
        for wanted in (np.polyfit(drawn.raw["scales"], curve["means"], 1)[0], slopes.mean()):
            assert curve["slope"]["value"] == pytest.approx(wanted)
        drawn_again = slopes[rows].mean(1)
        bounds = slopes.mean() + np.quantile(drawn_again, [0.025, 0.975]) - drawn_again.mean()
        assert [curve["slope"]["low"], curve["slope"]["high"]] == pytest.approx(bounds.tolist())
        own = np.array(curves[slider, slider]["image_slopes"])
        if slider == model or np.ptp(np.sign(own[rows].mean(1))):
            assert curve["ratio"] is None
            continue
        told += 1
        assert curve["ratio"]["value"] == pytest.approx(slopes.mean() / own.mean())
        ratios = slopes[rows].mean(1) / own[rows].mean(1)
        bounds = slopes.mean() / own.mean() + np.quantile(ratios, [0.025, 0.975]) - ratios.mean()
        assert [curve["ratio"]["low"], curve["ratio"]["high"]] == pytest.approx(bounds.tolist())
    assert told >= 2


def test_at_scale_0_images_are_those_of_the_records(generator_runs: SimpleNamespace, drawn: SimpleNamespace) -> None:
    for curve in drawn.found.curves:
        method = next(m for m, r in generator_runs.records.items() if r.id == curve.model)
        record = generator_runs.records[method]
        model, asked = load_generator(record, weights_of(generator_runs, method)), requests_of(record, 12)
        pixels = model.generate(asked.labels, seed=asked.seed).images.double().numpy()
        assert curve.means[SCALES.index(0.0)] == pytest.approx(((pixels + 1) / 2).mean(), rel=1e-5)


def test_training_images_are_the_teachers(generator_runs: SimpleNamespace) -> None:
    record = generator_runs.records["teacher"]
    model = load_generator(record, weights_of(generator_runs, "teacher"))
    images, labels = train_images(record, model)
    assert (images.shape, labels.shape) == ((100, 1, 8, 8), (100,))
    assert (float(images.min()), float(images.max())) == (-1.0, 1.0)
    other = record.model_copy(update=dict(data=record.data.model_copy(update=dict(train_hash="e" * 64))))
    with pytest.raises(CorruptFile, match="the train split of digits found here has hash"):
        train_images(other, model)


def test_again_is_the_same(drawn: SimpleNamespace, tmp_path: Path) -> None:
    call("controls", *drawn.words[:-1], tmp_path, *ASKED)
    assert json.loads((tmp_path / f"{SHOWN}.json").read_text()) == drawn.raw


# --- the page ---


def test_table_is_made_of_the_file_over_seeds(drawn: SimpleNamespace) -> None:
    raw = json.loads(json.dumps(drawn.raw))
    cd = raw["members"][0]
    again = cd | dict(seed=1, record=cd["record"].replace("seed0", "seed1"))
    raw["members"].insert(0, again)
    curves = {(c["slider"], c["model"]): c for c in raw["curves"]}
    teacher = raw["teachers"][0]["record"]
    own, one = curves[teacher, teacher], curves[teacher, cd["record"]]
    two = json.loads(json.dumps(one)) | dict(model=again["record"])
    two["means"] = [m + s for m, s in zip(two["means"], raw["scales"])]
    two["image_slopes"] = [s + 1.0 for s in two["image_slopes"]]
    two["slope"]["value"] += 1.0
    for curve in (one, two):
        if curve["ratio"] is not None:
            curve["ratio"]["value"] = curve["slope"]["value"] / own["slope"]["value"]
    raw["curves"].append(two)
    found = Controls.model_validate(raw)
    assert [(m.method, m.seed) for m in first_seeds(found.members)] == [("CD", 0), ("FromTeacher", 0)]
    rows = controls_rows(found)
    assert [row[:3] for row in rows] == [
        ["teacher", "teacher", "1"],
        ["teacher", "CD", "2"],
        ["teacher", "FromTeacher", "1"],
        ["CD", "CD", "1"],
        ["CD", "teacher", "1"],
        ["FromTeacher", "FromTeacher", "1"],
        ["FromTeacher", "teacher", "1"],
    ]
    mean = one["slope"]["value"] + 0.5
    assert rows[1][3] == f"{mean:.3f} ± {12.7062 * 0.5:.3f}"  # t(1) · (1 / √2) / √2
    assert rows[0][5:] == ["–", "–"]
    assert "±" not in rows[2][5]
    assert all(len(row) == len(COLUMNS) for row in rows)


def test_page_and_terminal_show_it(generator_runs: SimpleNamespace, drawn: SimpleNamespace) -> None:
    assert controls_markdown(drawn.found) in drawn.said
    call("build", "--results", generator_runs.results, "--out", drawn.site)
    text = text_of(drawn.site / "index.html", BENCHMARK)
    assert f'src="../{SHOWN}.png"' in text
    assert "Controls that carry over" in text
    assert "a transfer ratio of 1 means that it has the same effect there as on its own model" in text
    assert '<th scope="row">teacher</th><td>FromTeacher</td><td>1</td>' in text
    picture = drawn.site / f"{SHOWN}.png"
    assert sha256_file(picture) == drawn.raw["picture_sha256"]
    with Image.open(picture) as opened:
        assert list(opened.size) == drawn.raw["size"]


def test_help_has_an_example() -> None:
    assert "Example: limbeck leaderboard controls" in " ".join(call("controls", "--help").split())


# --- what is refused ---


def test_tampered_files_are_not_shown(generator_runs: SimpleNamespace, tampered: SimpleNamespace) -> None:
    group = group_of(generator_runs.results)
    assert find_controls(group, tampered.site) is not None

    def refused(**changes: Any) -> None:
        raw = json.loads(json.dumps(tampered.raw))
        raw["curves"][1] |= changes
        tampered.file.write_text(json.dumps(raw))
        with pytest.raises(StalePicture, match=r"not a whole description .* limbeck leaderboard controls"):
            find_controls(group, tampered.site)

    curve = tampered.raw["curves"][1]
    refused(means=[m + 0.01 * s for m, s in zip(curve["means"], SCALES)])
    refused(image_slopes=[s + 0.01 for s in curve["image_slopes"]])
    refused(image_slopes=curve["image_slopes"][1:])
    refused(slope=curve["slope"] | dict(value=curve["slope"]["value"] + 0.01))
    refused(ratio=dict(value=1e3, low=1e3, high=1e3))
    refused(slider=tampered.raw["curves"][1]["model"] + "0")
    tampered.file.write_text(json.dumps(tampered.raw))
    with open(tampered.file.with_suffix(".png"), "ab") as file:
        file.write(b"0")
    with pytest.raises(StalePicture, match="not the picture that its JSON describes"):
        find_controls(group, tampered.site)


def test_other_runs_or_weights_make_it_stale(
    generator_runs: SimpleNamespace, drawn: SimpleNamespace, tmp_path: Path
) -> None:
    records = generator_runs.records
    changed = records["CD"].model_copy(update=dict(student_sha256="f" * 64))
    for name, made in dict(
        changed=records | {"CD": changed},
        more=records | {"PD": records["CD"].model_copy(update=dict(method="PD"))},
        less={method: record for method, record in records.items() if method != "CD"},
    ).items():
        with pytest.raises(StalePicture, match=r"drawn without .* draw it again with: limbeck leaderboard controls"):
            find_controls(group_of(tmp_path / name, made.values()), drawn.site)
    assert find_controls(group_of(generator_runs.results), drawn.site) == drawn.found
    assert find_controls(group_of(generator_runs.results), tmp_path) is None


def test_tampered_or_missing_weights_and_unknown_attributes(
    generator_runs: SimpleNamespace, drawn: SimpleNamespace, tmp_path: Path
) -> None:
    with pytest.raises(UnknownName, match="unknown attribute 'widht'; did you mean 'width'"):
        call("controls", *drawn.words, "--attribute", "widht")
    with pytest.raises(ConfigError, match="the zoo has no weights of"):
        call("controls", BENCHMARK, "--results", generator_runs.results, "--out", tmp_path / "site")
    shutil.copytree(generator_runs.runs, tmp_path / "runs")
    words = (*drawn.words[:3], "--runs", tmp_path / "runs", "--out", tmp_path / "site")
    file = tmp_path / "runs" / generator_runs.records["CD"].id / "student.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CorruptFile, match="sha256"):
        call("controls", *words, *ASKED)
    (tmp_path / "runs" / generator_runs.records["teacher"].id / "student.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"has the weights of .*teacher"):
        call("controls", *words, *ASKED)
    write_all(tmp_path / "other", [fabricate("plain", 0)])
    with pytest.raises(ConfigError, match="toy is image classification"):
        call("controls", "toy", "--results", tmp_path / "other", "--runs", tmp_path)
    assert not (tmp_path / "site").exists()


def test_students_that_no_slider_fits_are_left_out(tmp_path: Path) -> None:
    made = [generator_record("teacher", 50, guidance=1.5), generator_record("plain", 1), generator_record("BOOT", 1)]
    made[-1].config["model"]["members"]["student"]["model"]["boot_t_min"] = 31
    made[-1] = fabricate("BOOT", 0, task="image-generation", config=made[-1].config, **figures())
    assert deployed_of(made[-1])["boot_t_min"] == 31
    with pytest.raises(ConfigError, match="no student left that its teacher's slider could fit"):
        controlled(group_of(tmp_path / "none", made))
    made += [generator_record("PD", 1, seed) for seed in (0, 1)] + [generator_record("CD", 1, kind="consistency")]
    made += [generator_record("plain", 1, 1)]
    found = controlled(group_of(tmp_path / "some", made))
    assert [(r.method, r.seed) for r in found] == [("teacher", 0), ("CD", 0), ("PD", 0), ("PD", 1)]


def figures() -> dict[str, Any]:
    return dict(metrics={"FD-digits": 5.0}, val_metrics={}, primary_metric="FD-digits", higher_is_better=False)


def test_attributes_are_those_of_the_library() -> None:
    assert list(ATTRIBUTES) == list(attributes.ATTRIBUTES)
    for name in ATTRIBUTES:
        check_attribute(name)
