"""Sheets of chosen images: what the files hold, that they are whole or absent, and that nobody's labels are lost."""

from __future__ import annotations

import base64
import csv
import io
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from limbeck.errors import ConfigError, CorruptFile, DataMissing, OutputError
from limbeck.multimodal.vlm import sheet as module
from limbeck.multimodal.vlm._images import as_image
from limbeck.multimodal.vlm.oracle import LabelFile
from limbeck.multimodal.vlm.sheet import contact_sheet, duplicates, write_sheet

CLASSES = ["cat", "Straßenbahn", "a <b> & 'c'"]
GUESSES = np.array([[0.1, 0.7, 0.2], [0.2, 0.3, 0.5]])


def photos(folder: Path) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / "ä <x>.png", folder / "b.jpg"]
    for index, path in enumerate(paths):
        Image.new("RGB", (400, 200 + index), (200, 10 * index, 0)).save(path)
    return paths


def pixels(count: int = 3, side: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 3, side, side)).astype(np.uint8)


class Page(HTMLParser):
    """Every start tag with its attributes, and the text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def test_table_has_suggestions_and_an_empty_label_and_reads_back(tmp_path: Path) -> None:
    paths = photos(tmp_path / "in")
    made = write_sheet(tmp_path / "out", [9, 4], paths, CLASSES, GUESSES, names=["ä <x>.png", "b.jpg"])
    with open(made.labels, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [list(row.values()) for row in rows] == [
        ["9", "ä <x>.png", "Straßenbahn", "0.7000", ""],
        ["4", "b.jpg", "a <b> & 'c'", "0.5000", ""],
    ]
    filled = made.labels.read_text(encoding="utf-8-sig").replace("0.7000,", "0.7000,Straßenbahn")
    made.labels.write_text(filled.replace("0.5000,", "0.5000,0"), encoding="utf-8")
    assert LabelFile(made.labels, CLASSES).reveal(np.array([4, 9])).tolist() == [0, 1]


def test_page_shows_every_image_and_needs_no_other_file(tmp_path: Path) -> None:
    made = write_sheet(tmp_path / "out", [9, 4], photos(tmp_path / "in"), CLASSES, GUESSES, ["ä <x>.png", "b.jpg"])
    page = Page(made.page)
    images = page.all("img")
    assert [image["alt"] for image in images] == ["image with id 9", "image with id 4"]
    for image in images:
        head, _, body = str(image["src"]).partition(",")
        assert head == "data:image/jpeg;base64"
        shown = Image.open(io.BytesIO(base64.b64decode(body)))
        assert shown.size == (int(str(image["width"])), int(str(image["height"])))
        assert max(shown.size) == 192
    for text in ("id 9", "ä <x>.png", "Straßenbahn, 0.7000", "a <b> & 'c', 0.5000", "0\xa0cat"):
        assert text in page.text
    assert not page.all("x")
    assert not page.all("script")
    assert page.all("html")[0]["lang"] == "en"
    links = [attrs.get(key) for _, attrs in page.tags for key in ("src", "href") if attrs.get(key)]
    assert all(str(link).startswith("data:") for link in links)
    assert "prefers-color-scheme: dark" in page.text


def test_tiny_images_are_kept_pixel_by_pixel_and_names_are_optional(tmp_path: Path) -> None:
    images = pixels()
    made = write_sheet(tmp_path, [0, 1, 2], images, CLASSES)
    for image, expected in zip(Page(made.page).all("img"), images, strict=True):
        body = base64.b64decode(str(image["src"]).partition(",")[2])
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(body))), expected.transpose(1, 2, 0))
        assert image["class"] == "tiny"
    assert made.labels.read_text(encoding="utf-8-sig").splitlines()[1] == "0,,,,"


def test_equal_images_are_reported_by_id_in_result_and_page(tmp_path: Path) -> None:
    images = pixels()[[0, 1, 0, 2, 1, 0]]
    made = write_sheet(tmp_path, [8, 7, 6, 5, 4, 3], images, CLASSES)
    assert made.duplicates == [[8, 6, 3], [7, 4]]
    text = Page(made.page).text
    assert "ids 8, 6, 3; ids 7, 4." in text
    assert "same as id 8, 3" in text


def test_duplicates_compare_bytes_of_files_and_pixels_of_arrays(tmp_path: Path) -> None:
    one, two = photos(tmp_path)
    copy = tmp_path / "copy.png"
    copy.write_bytes(one.read_bytes())
    assert duplicates([one, two, str(copy)]) == [[0, 2]]
    array = np.zeros((1, 2, 8), np.uint8)
    assert duplicates([array, array.reshape(1, 4, 4), array.copy()]) == [[0, 2]]  # the shape counts
    image = Image.new("L", (4, 4))
    assert duplicates([image, image.convert("RGB"), image.copy()]) == [[0, 2]]
    with pytest.raises(DataMissing, match=r"gone\.png: there is no such image"):
        duplicates([one, tmp_path / "gone.png"])


def test_an_unreadable_image_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(photos(tmp_path)[1].read_bytes()[:400])
    for bad, error in ((broken, CorruptFile), (tmp_path / "gone.jpg", DataMissing)):
        with pytest.raises(error, match=bad.name) as caught:
            write_sheet(tmp_path / "out", [0, 1], [tmp_path / "b.jpg", bad], CLASSES)
        assert "\n" not in str(caught.value)
    text = tmp_path / "notes.png"
    text.write_text("no image")
    with pytest.raises(CorruptFile, match=r"notes\.png: cannot be read as an image"):
        write_sheet(tmp_path / "out", [0], [text], CLASSES)
    assert not list((tmp_path / "out").glob("*"))


def test_an_interrupted_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sheet(tmp_path, [0], pixels(1), CLASSES)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def stop(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module.csv, "writer", stop)
    monkeypatch.setattr(module, "_render", lambda *args: "half")
    with pytest.raises(KeyboardInterrupt):
        write_sheet(tmp_path, [5], pixels(1), CLASSES)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before  # and no temporary file


def test_labels_that_somebody_has_filled_in_are_never_overwritten(tmp_path: Path) -> None:
    made = write_sheet(tmp_path, [0, 1], pixels(2), CLASSES)
    write_sheet(tmp_path, [0, 2], pixels(2), CLASSES)  # nothing filled in yet
    for text in ("id,label\n0,\n1,cat\n", "id;label\n0;\n1;cat\n"):
        made.labels.write_text(text)
        with pytest.raises(OutputError, match=r"labels\.csv: has 1 labels already"):
            write_sheet(tmp_path, [0], pixels(1), CLASSES)
    made.labels.write_text("my shopping list")
    with pytest.raises(OutputError, match="is there and is no sheet of labels"):
        write_sheet(tmp_path, [0], pixels(1), CLASSES)
    assert made.labels.read_text() == "my shopping list"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(ids=[], images=[]), "one at least; got 0, 0 and 0"),
        (dict(ids=[1]), "got 1, 2 and 2"),
        (dict(names=["a"]), "got 2, 2 and 1"),
        (dict(ids=[1, 1]), "an id comes twice"),
        (dict(suggestions=GUESSES[:1]), r"suggestions have to be \(2, 3\), .*; got \(1, 3\)"),
        (dict(images=np.zeros((2, 4, 8, 8), np.uint8)), r"of id 0: pixels have to be uint8 .*; got uint8 \(4, 8, 8\)"),
        (dict(images=np.zeros((2, 3, 8, 8))), "got float64"),
    ],
)
def test_sheets_say_what_does_not_fit(tmp_path: Path, changes: dict, said: str) -> None:
    given = dict(ids=[0, 1], images=pixels(2), classes=CLASSES) | changes
    with pytest.raises(ConfigError, match=said):
        write_sheet(tmp_path, **given)
    assert not list(tmp_path.iterdir())


def test_images_are_turned_flattened_and_grey_ones_kept(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert as_image(clear).getpixel((0, 0)) == (255, 255, 255)
    grey = as_image(np.full((1, 2, 2), 7, np.uint8))
    assert (grey.mode, grey.getpixel((1, 1))) == ("RGB", (7, 7, 7))
    turned = Image.new("RGB", (4, 2))
    exif = turned.getexif()
    exif[0x0112] = 6  # a quarter turn
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert as_image(tmp_path / "turned.jpg").size == (2, 4)


def test_contact_sheet_puts_every_image_in_its_cell() -> None:
    images = np.stack([np.full((3, 8, 8), 10 * i, np.uint8) for i in range(7)])
    made = contact_sheet(images, columns=3, gap=2, background="white")
    assert made.size == (3 * 10 + 2, 3 * 10 + 2)
    found = np.asarray(made)
    for i in range(7):
        row, column = divmod(i, 3)
        cell = found[2 + 10 * row : 10 + 10 * row, 2 + 10 * column : 10 + 10 * column]
        assert (cell == 10 * i).all()
    rest = found[22:, 12:]
    assert (rest == 255).all()
    assert (found == 255).sum() == 3 * (32 * 32 - 7 * 64)


def test_contact_sheet_fits_photos_into_cells_without_stretching() -> None:
    wide = Image.new("RGB", (400, 100), "red")
    made = contact_sheet([wide, Image.new("RGB", (10, 10), "blue")], columns=10, cell=40, gap=0)
    found = np.asarray(made)
    assert made.size == (80, 40)  # no more columns than images
    red = (found[:, :40] == (255, 0, 0)).all(2)
    assert (red.any(1).sum(), red.any(0).sum()) == (10, 40)
    assert red[15:25].all()
    assert ((found[:, 40:] == (0, 0, 255)).all(2)).sum() == 100  # small ones are not enlarged
    assert contact_sheet([wide]).size == (132, 132)


@pytest.mark.parametrize("options", [dict(columns=0), dict(cell=0), dict(gap=-1)])
def test_contact_sheet_refuses(options: dict) -> None:
    with pytest.raises(ConfigError, match="contact sheet: needs an image"):
        contact_sheet(pixels(1), **options)
    with pytest.raises(ConfigError, match="got 0 images"):
        contact_sheet([])
