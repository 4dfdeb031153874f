"""The published binary files of CIFAR-10 and CIFAR-100: their layout, names and hashes, and reading them.

Only the binary version is read: the Python version is pickles, and a pickle from outside runs what it likes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from limbeck.engine.data_files import (
    check_labels,
    damaged,
    find_folder,
    read_manifest,
    remembered_sha256,
    usual_folders,
)

SIZE = 32
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_FINE = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow_tree wolf woman worm
"""
CIFAR100_CLASSES = tuple(_FINE.split())


@dataclass(frozen=True)
class Published:
    """One data set's binary version.

    Args:
        title: as people name it. folder: below $LIMBECK_DATA and the cache folder. inner: the archive's own folder.
        url, md5, sha256: of the archive on its authors' page; that page states the md5.
        train, test: file name → images in it, in order. label_bytes: before each image; the last is the label.
        classes: in the order of labels.
    """

    title: str
    folder: str
    inner: str
    url: str
    md5: str
    sha256: str
    train: dict[str, int]
    test: dict[str, int]
    label_bytes: int
    classes: Sequence[str]


PUBLISHED = {
    "cifar10": Published(
        title="CIFAR-10",
        folder="cifar10_original",
        inner="cifar-10-batches-bin",
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        md5="c32a1d4ab5d03f1284b67883e8d87530",
        sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        train={f"data_batch_{i}.bin": 10_000 for i in range(1, 6)},
        test={"test_batch.bin": 10_000},
        label_bytes=1,
        classes=CIFAR10_CLASSES,
    ),
    "cifar100": Published(
        title="CIFAR-100",
        folder="cifar100",
        inner="cifar-100-binary",
        url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        md5="03b5dce01913d631647c71ecec9e9cb8",
        sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        train={"train.bin": 50_000},
        test={"test.bin": 10_000},
        label_bytes=2,
        classes=CIFAR100_CLASSES,
    ),
}


def find_published(name: str, split: str = "train", root: str | Path | None = None) -> Path:
    """The folder with the files of 'cifar10' or 'cifar100' for 'train' or 'test'; also the archive's own inside it.

    Raises: DataMissing naming where it looked and the command that gets the data.
    """
    data = PUBLISHED[name]
    places = usual_folders(data.folder, root)
    command = f"limbeck data get {name}"
    advice = f"get it with: {command}"
    pickled = [p / python for p in places for python in ("cifar-10-batches-py", "cifar-100-python")]
    found = next((p for p in pickled if p.is_dir()), None)
    if found is not None:
        advice = f"{found} is the Python version, whose pickles are not loaded; get the binary one with: {command}"
    wanted = data.test if split == "test" else data.train
    return find_folder(data.title, [inner for p in places for inner in (p, p / data.inner)], wanted, advice)


def read_published(name: str, split: str, root: str | Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 3, 32, 32) and labels (N,), both uint8, of the published 'train' or 'test'.

    Raises: DataMissing; CorruptFile for a file of another length, hash or label.
    """
    data = PUBLISHED[name]
    folder = find_published(name, split, root)
    manifest = read_manifest(folder)
    parts = []
    for file, count in (data.test if split == "test" else data.train).items():
        path, expected = folder / file, manifest.get(file)
        record = data.label_bytes + 3 * SIZE * SIZE
        if path.stat().st_size != count * record:
            raise damaged(path, f"{path.stat().st_size} bytes are not {count} images of {record} bytes", expected)
        if expected is not None and remembered_sha256(path) != expected:
            raise damaged(path, "not the file that MANIFEST.sha256 lists", expected)
        parts.append(np.fromfile(path, np.uint8).reshape(count, record))
        check_labels(path, parts[-1][:, data.label_bytes - 1], len(data.classes))
    records = np.concatenate(parts)
    pixels = records[:, data.label_bytes :].reshape(-1, 3, SIZE, SIZE)
    return pixels, records[:, data.label_bytes - 1]
