"""Data sets of all packages: what is listed, where each is looked for, and that listing them imports little."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from limbeck.cli.data import app
from limbeck.engine import data_sources, registry
from limbeck.engine.data_sources import Source
from limbeck.errors import DataMissing, UnknownName
from limbeck.vision.data import fashion_mnist

FOLDERS = {
    "camvid": ("camvid", ["train/images", "val/images", "test/images"]),
    "voc2012": ("VOCdevkit/VOC2012", ["JPEGImages", "SegmentationClass", "ImageSets/Segmentation"]),
    "cityscapes": ("cityscapes", ["leftImg8bit/train", "leftImg8bit/val", "gtFine/train", "gtFine/val"]),
    "ade20k": (
        "ade/ADEChallengeData2016",
        ["images/training", "images/validation", "annotations/training", "annotations/validation"],
    ),
}


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch) -> Path:
    """No data but the test's own, in this folder."""
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "debian")
    return tmp_path / "data"


def shown() -> dict[str, str]:
    """What `limbeck data list` says: name → place."""
    result = CliRunner().invoke(app, ["list"])
    assert result.exit_code == 0
    pairs = zip(*[iter(result.output.splitlines())] * 2)
    return {line.split()[0]: place.strip() for line, place in pairs}


def test_list_shows_every_package_s_data_sets_and_where_each_was_found(data):
    (data / "flowers5" / "train").mkdir(parents=True)
    places = shown()
    assert set(places) == set(data_sources.available())
    assert {"digits", "cifar100", "imagenet", *FOLDERS, "digit-scenes"} <= set(places)
    assert places["flowers5"] == str(data / "flowers5")
    assert places["cifar100"] == "not here; limbeck data get cifar100"
    assert places["digits"] == "inside scikit-learn"
    assert places["digit-scenes"].startswith("made when asked for")


@pytest.mark.parametrize("name", FOLDERS)
def test_a_data_set_that_cannot_be_downloaded_says_where_to_put_it(data, name):
    folder, parts = FOLDERS[name]
    with pytest.raises(DataMissing, match=rf"\$LIMBECK_DATA/{folder}.*; it cannot be downloaded: ") as caught:
        data_sources.get(name)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert data_sources.located()[name] == ""
        (data / folder / part).mkdir(parents=True)
    assert data_sources.get(name) == data / folder
    assert data_sources.located()[name] == str(data / folder)


@pytest.mark.parametrize("name", ["digits", "digit-scenes"])
def test_a_data_set_without_files_needs_nothing(name):
    assert data_sources.get(name) is None
    assert CliRunner().invoke(app, ["get", name]).output == f"{name} needs no files\n"


def test_a_misspelt_data_set_is_answered_with_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'cityscapes'"):
        data_sources.get("cityscape")


def test_each_line_is_short_and_names_a_licence_or_terms():
    for name, text in data_sources.available().items():
        assert len(text) < 120, name
        assert any(word in text for word in ("licence", "CC", "terms", "research")), name


def test_of_a_name_that_two_packages_have_the_first_counts(monkeypatch):
    class Second:
        @staticmethod
        def sources() -> dict[str, Source]:
            return {"digits": Source("other digits", place="elsewhere"), "coco": Source("COCO", place="nowhere")}

    load = registry.import_module
    second = f"limbeck.{registry.TASK_PACKAGES[1]}.data.get"
    monkeypatch.setattr(registry, "import_module", lambda name: Second if name == second else load(name))
    found = data_sources.sources()
    assert (found["digits"].place, found["coco"].place) == ("inside scikit-learn", "nowhere")


@pytest.mark.parametrize("keys", [{}, {"find": Path, "place": "here"}])
def test_a_source_has_either_a_folder_or_what_it_is_made_from(keys):
    with pytest.raises(ValueError, match="either find or place"):
        Source("a data set", **keys)


def test_listing_imports_no_stack_of_a_task():
    heavy = {"mmseg", "mmdet", "mmdet3d", "mmcv", "diffusers", "open_clip"}
    code = f"import sys; from limbeck.engine.data_sources import located; located(); print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
