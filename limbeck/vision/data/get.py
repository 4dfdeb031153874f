"""Download data sets into the cache folder, checked before they are kept."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any

from limbeck.engine.paths import cache_dir
from limbeck.errors import CorruptFile, DataMissing, OutputError, UnknownName

# sha256 of images and labels as decoded, whatever the files that held them
FASHION_MNIST_CONTENT = {
    "train": "b5b4748e19c792cac53c79c4634b3674928698be27a56da6245e20927c7cc72e",
    "test": "4a53d31cc3c4fe2ab5102ab2246f169242434233b91a7eee4d9b15a8a8f5478a",
}


def available() -> dict[str, str]:
    """Data sets that `get` knows: name → one line about each."""
    return {"fashion-mnist": "Fashion-MNIST, 70,000 grey images 28 × 28 in 10 classes, 31 MB, MIT licence"}


def located() -> dict[str, str]:
    """Data set → where its files are on this machine; 'inside scikit-learn' for digits, empty where there are none."""
    from limbeck.vision.data.fashion_mnist import find_files

    try:
        folder = str(find_files("train")[0].parent)
    except DataMissing:
        folder = ""
    return {"digits": "inside scikit-learn", "fashion-mnist": folder}


def get(name: str, progress: bool = True) -> Path:
    """Download a data set from its public home and return its folder; nothing is done where it is there already.

    Raises: UnknownName; DataMissing when it cannot be downloaded; CorruptFile when something else arrives.
    """
    known = available()
    if name not in known:
        raise UnknownName("data set", name, known)
    folder = cache_dir() / "data" / "fashion_mnist"
    if all((folder / f"{part}.npz").is_file() for part in FASHION_MNIST_CONTENT):
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror}; set LIMBECK_CACHE to another folder") from error
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        for part in FASHION_MNIST_CONTENT:
            _store(part, _download(Path(temporary), part == "train", progress), folder)
    return folder


def _download(folder: Path, train: bool, progress: bool) -> Any:
    from torchvision.datasets import FashionMNIST

    with contextlib.ExitStack() as stack:
        if not progress:
            stack.enter_context(contextlib.redirect_stderr(stack.enter_context(open(os.devnull, "w"))))
        try:
            return FashionMNIST(str(folder), train=train, download=True)
        except (RuntimeError, OSError) as error:  # torchvision reports unreachable mirrors as RuntimeError
            raise DataMissing(
                f"Fashion-MNIST could not be downloaded ({error}); on Debian: apt-get install dataset-fashion-mnist"
            ) from error


def _store(part: str, found: Any, folder: Path) -> None:
    import numpy as np

    from limbeck.engine.weights import atomic_path
    from limbeck.vision.data.base import content_hash

    images = found.data.numpy()
    labels = found.targets.numpy().astype(np.uint8)
    have, expected = content_hash("fashion-mnist", part, images, labels), FASHION_MNIST_CONTENT[part]
    if have != expected:
        raise CorruptFile(
            f"Fashion-MNIST ({part}) as downloaded: sha256 is {have[:12]}…, expected {expected[:12]}…; try again"
        )
    target = folder / f"{part}.npz"
    with atomic_path(target) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, images=images, labels=labels)
