"""Oracles: labels come only for what was chosen; label files say file and line of everything that is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from limbeck.errors import ConfigError, CorruptFile, DataMissing, UserError
from limbeck.multimodal.vlm.oracle import KnownLabels, LabelFile, Oracle

CLASSES = ["cat", "dog", "night owl", "2"]
NAMES = ["a.png", "b.png", "c.png", "twin.png", "twin.png"]


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "labels.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def revealed(path: Path, ids: list[int], **options: object) -> list[int]:
    return LabelFile(path, CLASSES, **options).reveal(np.array(ids)).tolist()  # type: ignore[arg-type]


def test_both_are_oracles(tmp_path: Path) -> None:
    assert isinstance(KnownLabels([0]), Oracle)
    assert isinstance(LabelFile(tmp_path / "x.csv", CLASSES), Oracle)


def test_known_labels_come_for_chosen_ids_alone_and_are_remembered() -> None:
    oracle = KnownLabels([4, 3, 2, 1, 0], chosen=[0])
    with pytest.raises(ConfigError, match="id 2 was not chosen, so its label stays hidden"):
        oracle.reveal(np.array([0, 2]))
    assert oracle.revealed.tolist() == []
    oracle.choose(np.array([4, 2]))
    assert oracle.reveal(np.array([2, 0])).tolist() == [2, 4]
    assert oracle.revealed.tolist() == [0, 2]
    assert oracle.reveal(np.array([2])).tolist() == [2]


def test_what_is_not_revealed_decides_nothing() -> None:
    """Labels of other images may be anything: the answers are the same, and so is all that the oracle shows."""
    one, other = KnownLabels([1, 2, 3], chosen=[1]), KnownLabels([9, 2, -7], chosen=[1])
    assert one.reveal(np.array([1])).tolist() == other.reveal(np.array([1])).tolist()
    assert repr(one) == repr(other) == "KnownLabels(images=3, revealed=1)"


def test_known_labels_copy_what_they_are_given_and_refuse_other_ids() -> None:
    labels = np.array([1, 2])
    oracle = KnownLabels(labels, chosen=[0])
    labels[:] = 0
    assert oracle.reveal(np.array([0])).tolist() == [1]
    for wrong in (-1, 2):
        with pytest.raises(ConfigError, match=f"id {wrong} is not in 0 to 1"):
            oracle.choose(np.array([wrong]))


@pytest.mark.parametrize(
    "text",
    [
        "id,file,label\n7,x.png,dog\n3,y.png,cat\n",
        "id;label\n3;cat\n7;dog\n",
        "label\tid\ncat\t3\ndog\t7\n",
        '\ufeffID, Label ,note\r\n3,0,\r\n7, dog ,"a, b"\r\n,,\r\n',
        "id,label\n3,cat\n7,dog\n7,1\n3,\n",
        "id,label\n3,\n7,dog\n3,cat\n",
    ],
)
def test_label_files_of_several_kinds_say_the_same(tmp_path: Path, text: str) -> None:
    assert revealed(written(tmp_path, text), [7, 3]) == [1, 0]


def test_a_class_named_like_a_number_goes_before_the_index(tmp_path: Path) -> None:
    assert revealed(written(tmp_path, "id,label\n0,2\n1,3\n2,night owl\n"), [0, 1, 2]) == [3, 3, 2]


def test_images_are_found_by_file_name(tmp_path: Path) -> None:
    assert revealed(written(tmp_path, "file,label\nc.png,dog\na.png,cat\n"), [0, 2], names=NAMES) == [0, 1]


def test_the_file_is_read_when_it_is_asked(tmp_path: Path) -> None:
    oracle = LabelFile(tmp_path / "labels.csv", CLASSES)
    written(tmp_path, "id,label\n0,cat\n")
    assert oracle.reveal(np.array([0])).tolist() == [0]
    written(tmp_path, "id,label\n0,dog\n")
    assert oracle.reveal(np.array([0])).tolist() == [1]


def test_rows_of_other_images_pass_only_where_that_is_allowed(tmp_path: Path) -> None:
    path = written(tmp_path, "id,label\n0,cat\n5,\n9,dog\n")
    assert revealed(path, [9], exact=False) == [1]
    with pytest.raises(ConfigError, match=r"labels\.csv, line 2: id 0 is none of the 1 images asked for"):
        revealed(path, [9])
    with pytest.raises(ConfigError, match="line 2: id 0 is none of the 0 images"):
        revealed(path, [])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,label\n0,cat\n1,dgo\n", "unknown class 'dgo' in .*, line 3; did you mean 'dog'"),
        ("id,label\n0,4\n", r"line 2: class 4 is not in 0 to 3"),
        ("id,label\n0,-1\n", r"line 2: class -1 is not in 0 to 3"),
        ("id,label\n0,cat\n", r"lines 2 to 2 have no row for id 1; 2 labels are asked for, 1 of them have no row"),
        ("id,label\n0,cat\n1,\n", r"line 3: id 1 has no label"),
        ("id,label\n0,cat\n1,dog\n2,cat\n", r"line 4: id 2 is none of the 2 images asked for"),
        ("id,label\n0,cat\n1,dog\n0,dog\n", r"line 4: id 0 is 'dog' here and 'cat' in line 2"),
        ("id,label\n0,cat,dog\n", r"line 2: 3 cells where the header has 2"),
        ("id,label\none,cat\n", r"line 2: id 'one' is no whole number"),
        ("id,label\n-1,cat\n", r"line 2: there is no image with id -1"),
        ("id,class\n0,cat\n", r"line 1: columns have to be 'label' and 'id' or 'file'; got \['id', 'class'\]"),
        ("label\ncat\n", r"line 1: columns have to be"),
        ("file,label\na.png,cat\n", r"line 1: there is no column 'id', and no list of file names"),
        ('id,label\n0,cat\n\n1,"dog\n', r"line 4: no CSV \(unexpected end of data\)"),
        (b"id,label\n0,cat\n1,\xff\xfe\n", r"line 3: not UTF-8 text"),
        (b"id,label\n0,cat\n1,\0\n", r"line 3: has a zero byte"),
        ("", r"line 1: the file is empty"),
        ("\n \n", r"line 1: the file is empty"),
    ],
)
def test_label_files_name_file_and_line_of_what_is_wrong(tmp_path: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        revealed(written(tmp_path, text), [0, 1])
    assert str(tmp_path / "labels.csv") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file,label\nd.png,cat\n", "unknown image 'd.png' in .*, line 2"),
        ("file,label\ntwin.png,cat\n", "line 2: 2 images are called 'twin.png'; add a column 'id'"),
        ("id,file,label\n0,b.png,cat\n", "line 2: id 0 is file 'a.png', not 'b.png'"),
        ("id,file,label\n5,b.png,cat\n", "line 2: there is no image with id 5"),
        ("id,file,label\n0,a.png,\n", r"line 2: id 0 \(a\.png\) has no label"),
    ],
)
def test_label_files_are_compared_with_file_names(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        revealed(written(tmp_path, text), [0], names=NAMES)


def test_a_file_that_is_not_there_or_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=r"labels\.csv: there is no such file of labels"):
        revealed(tmp_path / "labels.csv", [0])
    os.mkdir(tmp_path / "labels.csv")
    with pytest.raises(CorruptFile, match=r"labels\.csv: cannot be read"):
        revealed(tmp_path / "labels.csv", [0])
