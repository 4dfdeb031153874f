"""Example images by the command, on digit scenes with random networks: choice, figures and files, derived again."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from limbeck.cli import leaderboard
from limbeck.engine.config import RunConfig, parse
from limbeck.engine.record import RunRecord
from limbeck.engine.registry import DATASETS, MODELS
from limbeck.engine.weights import save_weights, sha256_file
from limbeck.errors import ConfigError, CorruptFile, OutputError
from limbeck.leaderboard.pictures.example_images import choose
from tests.leaderboard.fabricate import fabricate, write_all
from tests.leaderboard.pages import text_of

pytest.importorskip("mmseg", reason="the students are mmsegmentation's networks")

COUNT = 6
SMALL = dict(
    type="SegFormer",
    width=8,
    num_layers=[1, 1, 1, 1],
    channels=16,
    drop_path_rate=0.0,
    num_classes=11,
    input_size=[3, 64, 64],
    mean=0.5,
    std=0.5,
)
BIG = SMALL | dict(channels=24, mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.4])
VALIDATION = dict(teacher=90.0, plain=10.0, KD=20.0, CWD=30.0)


def config(method: str) -> dict[str, Any]:
    scenes = {split: dict(type="DigitScenes", split=split, count=COUNT) for split in ("train", "val", "test")}
    member = dict(type="trained", model=BIG if method == "teacher" else SMALL)
    model = dict(members=dict(student=member), deploy="student", adapter=dict(type="SegmentationAdapter"), links=[])
    value = dict(
        task="semantic-segmentation",
        benchmark="toy",
        pair="big-small",
        method=method,
        model=dict(type="Distiller", task_weight=1.0, **model),
        data=dict(scenes, batch_size=4, eval_batch_size=4),
        metric=dict(type="SegmentationMetric", primary="mIoU"),
        recipe=dict(epochs=1),
    )
    return parse(RunConfig, value, "made-up run").model_dump(mode="json")


def network(method: str) -> torch.nn.Module:
    """A random network that tells classes apart by a classifier with large weights."""
    torch.manual_seed(list(VALIDATION).index(method))
    made = MODELS.make(BIG if method == "teacher" else SMALL)
    torch.nn.init.normal_(made.decode_head.conv_seg.weight, std=1.0)
    return made.eval()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Records with the real config of made-up runs, and the runs' folder with their weights."""
    folder = tmp_path_factory.mktemp("examples")
    content = DATASETS.make(dict(type="DigitScenes", split="test", count=COUNT)).content_hash
    records: list[RunRecord] = []
    for method, mean in VALIDATION.items():
        file = folder / "runs" / "toy" / "big-small" / method.lower() / "seed0" / "student.safetensors"
        digest = save_weights(file, network(method).state_dict(), metadata={})
        records.append(
            fabricate(
                method,
                task="semantic-segmentation",
                config=config(method),
                student_sha256=digest,
                data__name="digit-scenes",
                data__content_hash=content,
                metrics={"mIoU": 50.0},
                val_metrics={"mIoU": mean},
                primary_metric="mIoU",
            )
        )
    return SimpleNamespace(runs=folder / "runs", results=write_all(folder / "results", records), records=records)


@pytest.fixture
def call(made: SimpleNamespace) -> Any:
    def run(command: str, *args: object, results: Path = made.results) -> str:
        words = [command, *args, "--results", results]
        done = CliRunner().invoke(leaderboard.app, [str(word) for word in words])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.output

    return run


def reference(method: str, sample: int) -> tuple[float, float]:
    """mIoU over the classes that occur, and pixel accuracy, of one test image: numpy, and the network's own call."""
    data = DATASETS.make(dict(type="DigitScenes", split="test", count=COUNT))[sample]
    spec = BIG if method == "teacher" else SMALL
    mean, std = (torch.tensor(spec[key]).reshape(-1, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        logits = network(method)(((data["inputs"] / 255.0 - mean) / std)[None])
    predicted, truth = logits[0].argmax(0).numpy(), data["data_samples"]["labels"].numpy()
    shares = [
        100 * np.mean((predicted == k)[(predicted == k) | (truth == k)] & (truth == k)[(predicted == k) | (truth == k)])
        for k in range(11)
        if ((predicted == k) | (truth == k)).any()
    ]
    return float(np.mean(shares)), 100 * float(np.mean(predicted == truth))


def test_command_draws_what_the_weights_say_and_build_shows_it(
    made: SimpleNamespace, tmp_path: Path, call: Any
) -> None:
    site = tmp_path / "site"
    text = call("examples", "toy", "--runs", made.runs, "--out", site)
    picture = site / "examples" / "toy" / "big-small.v1.png"
    assert str(picture) in text.replace("\n", "")
    assert "limbeck leaderboard build --results" in text
    assert sorted(p.name for p in picture.parent.iterdir()) == ["big-small.v1.json", "big-small.v1.png"]
    found = json.loads(picture.with_suffix(".json").read_text())
    hashes = {r.method: r.student_sha256 for r in made.records}
    assert {m: (v["record"].split("/")[2], v["student_sha256"]) for m, v in found["members"].items()} == {
        "teacher": ("teacher", hashes["teacher"]),
        "plain": ("plain", hashes["plain"]),
        "best": ("cwd", hashes["CWD"]),
    }
    assert found["picture_sha256"] == sha256_file(picture)
    with Image.open(picture) as opened:
        assert list(opened.size) == found["size"]
        assert opened.mode == "RGB"

    figures = {m: [reference(m, i) for i in range(COUNT)] for m in ("teacher", "plain", "CWD")}
    random = np.random.default_rng(0).permutation(COUNT)[:2].tolist()
    rest = [i for i in range(COUNT) if i not in random]
    largest = sorted(rest, key=lambda i: -abs(figures["CWD"][i][0] - figures["plain"][i][0]))[:2]
    assert [(s["sample"], s["chosen"]) for s in found["samples"]] == [
        *((i, "random") for i in random),
        *((i, "difference") for i in largest),
    ]
    for sample in found["samples"]:
        for member, name in (("teacher", "teacher"), ("plain", "plain"), ("best", "CWD")):
            values = sample["metrics"][member]
            assert [values["mIoU"], values["aAcc"]] == pytest.approx(figures[name][sample["sample"]], abs=0.05)

    before = picture.read_bytes()
    call("build", "--out", site)
    assert '<img src="../examples/toy/big-small.v1.png"' in text_of(site / "index.html")
    call("examples", "toy", "--runs", made.runs, "--out", site, "--count", 4)
    assert picture.read_bytes() == before  # the same records and data give the same bytes


def test_build_says_that_a_picture_is_stale(made: SimpleNamespace, tmp_path: Path, call: Any) -> None:
    results, site = tmp_path / "results", tmp_path / "site"
    write_all(results, made.records)
    call("examples", "toy", "--runs", made.runs, "--out", site, "--count", 1, results=results)
    write_all(results, [made.records[1].model_copy(update=dict(student_sha256="f" * 64))])
    assert "other weights of its plain member, and not shown" in call("build", "--out", site, results=results)


def test_weights_that_are_not_the_record_s_are_refused(made: SimpleNamespace, tmp_path: Path, call: Any) -> None:
    results = tmp_path / "results"
    write_all(results, made.records)
    write_all(results, [made.records[-1].model_copy(update=dict(student_sha256="f" * 64))])
    with pytest.raises(CorruptFile, match=r"cwd/seed0/student\.safetensors: sha256 is .*, expected ffff"):
        call("examples", "toy", "--runs", made.runs, "--out", tmp_path / "site", results=results)
    assert not (tmp_path / "site").exists()


def test_other_test_images_are_refused(made: SimpleNamespace, tmp_path: Path, call: Any) -> None:
    data = made.records[0].data.model_copy(update=dict(content_hash="e" * 64))
    results = write_all(tmp_path / "results", [r.model_copy(update=dict(data=data)) for r in made.records])
    with pytest.raises(
        CorruptFile, match=r"test split of digit-scenes found here .* toy/big-small/plain/seed0 has eeee"
    ):
        call("examples", "toy", "--runs", made.runs, "--out", tmp_path / "site", results=results)


def test_count_and_place_are_checked(made: SimpleNamespace, tmp_path: Path, call: Any) -> None:
    with pytest.raises(ConfigError, match="--count 7: the test split has 6 images"):
        call("examples", "toy", "--runs", made.runs, "--out", tmp_path / "site", "--count", 7)
    with pytest.raises(OutputError, match="lies in the folder of records"):
        call("examples", "toy", "--runs", made.runs, "--out", made.results / "site")
    assert not (tmp_path / "site").exists()
    assert not (made.results / "site").exists()


@pytest.mark.parametrize("count", range(1, 8))
def test_at_least_as_many_are_random_as_chosen(count: int) -> None:
    differences = {10 * i: float(-i if i % 2 else i) for i in range(20)}
    found = choose(differences, count)
    assert len(found) == count
    random = [s for s, why in found.items() if why == "random"]
    assert len(random) == count - count // 2
    others = sorted((abs(differences[s]) for s in differences.keys() - set(random)), reverse=True)
    assert [abs(differences[s]) for s, why in found.items() if why == "difference"] == others[: count // 2]


def test_random_draw_does_not_depend_on_the_predictions() -> None:
    one = choose({i: float(i) for i in range(50)}, 8)
    other = choose({i: float(-i) ** 2 % 7 for i in range(50)}, 8)
    assert [s for s, why in one.items() if why == "random"] == [s for s, why in other.items() if why == "random"]


def test_equal_differences_are_taken_in_order() -> None:
    found = choose(dict.fromkeys(range(9), 1.0), 4)
    largest = [s for s, why in found.items() if why == "difference"]
    assert largest == sorted(set(range(9)) - {s for s, why in found.items() if why == "random"})[:2]


@pytest.mark.parametrize("count", [0, 4])
def test_count_that_the_split_does_not_have_is_refused(count: int) -> None:
    with pytest.raises(ConfigError, match=f"--count {count}: the test split has 3 images"):
        choose({0: 1.0, 1: 2.0, 2: 3.0}, count)
