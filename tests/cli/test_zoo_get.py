"""`limbeck zoo download`, `verify`, `profile`, `predict -` and `limbeck cache`: what they print, and exit statuses."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from limbeck.cli import main
from limbeck.cli.app import app
from limbeck.errors import ConfigError
from limbeck.zoo import list_students
from limbeck.zoo.index import SHIPPED
from tests.cli.test_zoo import scans
from tests.zoo.conftest import cache, shipped, web  # noqa: F401 - fixtures

NAME = "resnet8w4.digits_kd"
HELPED = [("zoo", "download"), ("zoo", "verify"), ("zoo", "profile"), ("cache", "list"), ("cache", "prune")]


def call(*args, status=0, given=None) -> str:
    result = CliRunner().invoke(app, [str(a) for a in args], input=given, catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result.stdout


@pytest.fixture
def address(web, shipped):  # noqa: F811
    web.files[f"/a/{NAME}.json"], web.files[f"/a/{shipped[2].file}"] = shipped[0], shipped[1]
    return f"{web.address}/a/{NAME}.json"


@pytest.mark.parametrize("command", HELPED, ids=" ".join)
def test_help_ends_with_an_example(command):
    text = call(*command, "--help")
    assert f"Example: limbeck {' '.join(command)}" in re.sub(r"\s+", " ", text)


def test_download_list_and_prune(address, shipped, cache, tmp_path):  # noqa: F811
    card = shipped[2]
    line = call("zoo", "download", address, "--to", tmp_path / "mine")
    assert line.split("\t")[0] == NAME
    assert card.sha256 in line
    assert (tmp_path / "mine" / "cards" / f"{NAME}.json").is_file()
    (row,) = json.loads(call("cache", "list", "--json"))
    assert (row["name"], row["source"], row["size"]) == (NAME, address, card.file_bytes)
    assert NAME in call("cache", "list")
    assert "weights" in call("cache", "prune", "--all", "--dry-run")
    assert call("cache", "prune") == ""
    assert len(json.loads(call("cache", "prune", "--older-than", 0, "--json"))) == 2
    assert "no students in" in call("cache", "list")


def test_bad_download_is_one_sentence_and_status_2(address, web, shipped, cache, capsys):  # noqa: F811
    web.faults[f"/a/{shipped[2].file}"] = ["corrupt!"]
    with pytest.raises(SystemExit) as stop:
        main(["zoo", "download", address])
    assert stop.value.code == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ")
    assert said.count("\n") == 0
    assert shipped[2].sha256[:12] in said
    assert not list((cache / "weights").glob("*"))


def test_verify_says_what_holds_and_exits_1_for_what_does_not(shipped, cache, tmp_path):  # noqa: F811
    assert call("zoo", "verify", NAME).startswith(f"{NAME}\tholds")
    broken = tmp_path / "zoo"
    (broken / "cards").mkdir(parents=True)
    (broken / "cards" / f"{NAME}.json").write_bytes(shipped[0])
    (broken / "weights").mkdir()
    (broken / "weights" / shipped[2].file).write_bytes(shipped[1][:-1])
    assert "FAILED: " in call("zoo", "verify", broken, status=1)
    (check,) = json.loads(call("zoo", "verify", broken, "--json", status=1))
    assert not check["holds"]


def test_profile_prints_json(cache):  # noqa: F811
    found = json.loads(call("zoo", "profile", NAME, "--runs", 3, "--warmup", 1, "--json"))
    assert found["name"] == NAME
    assert found["runs"] == 3
    assert 0 < found["p50_ms"] <= found["p95_ms"]
    assert "p95" in call("zoo", "profile", NAME, "--runs", 2)


def test_predict_reads_paths_from_standard_input(tmp_path, cache):  # noqa: F811
    folder = scans(tmp_path / "scans", 3)
    given = f"{folder / '001.png'}\n\n{folder / '000.png'}\n"
    lines = call("zoo", "predict", NAME, "-", given=given).splitlines()
    assert [line.split("\t")[0] for line in lines] == [str(folder / "001.png"), str(folder / "000.png")]
    with pytest.raises(ConfigError, match="standard input, one a line, and there are none"):
        call("zoo", "predict", NAME, "-", given="\n")


def test_list_by_size_and_metric(cache):  # noqa: F811
    few = json.loads(call("zoo", "list", "--max-params", 5000, "--min-metric", 96, "--json"))
    expected = [c for c in list_students() if c.parameters <= 5000 and c.value >= 96]
    assert [c["name"] for c in few] == [c.name for c in expected] != []
    named = json.loads(call("zoo", "list", "--min-metric", "mIoU=38", "--json"))
    assert {c["task"] for c in named} == {"semantic-segmentation"}
    assert all(c["metrics"]["mIoU"] >= 38 for c in named)
    for wrong, said in (("high", "a number"), ("miou=3", "did you mean 'mIoU'")):
        result = CliRunner().invoke(app, ["zoo", "list", "--min-metric", wrong])
        assert said in str(result.exception)


def test_list_is_fast_and_loads_nothing_heavy():
    """Half a second is for an idle machine; processor time counts here, with room for a busy one."""
    code = (
        "import sys\nfrom limbeck.cli import main\n"
        "try: main(['zoo', 'list'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'mmengine', 'PIL', 'huggingface_hub', 'fsspec', 'filelock'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert len(done.stdout.splitlines()) == len(list_students(zoo_dir=SHIPPED)) + 1
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5
