"""Find data sets, and download those with a public home into the cache folder, checked before they are kept."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.engine.paths import cache_dir
from limbeck.errors import CorruptFile, DataMissing, UnknownName
from limbeck.vision.data._files import temporary_inside

# sha256 of images and labels as decoded, whatever the files that held them
FASHION_MNIST_CONTENT = {
    "train": "b5b4748e19c792cac53c79c4634b3674928698be27a56da6245e20927c7cc72e",
    "test": "4a53d31cc3c4fe2ab5102ab2246f169242434233b91a7eee4d9b15a8a8f5478a",
}


@dataclass(frozen=True)
class Source:
    """Where a data set comes from.

    Args:
        text: one line about it. find: gives its folder, or raises DataMissing.
        fetch: downloads it, with or without progress, and gives its folder; None where that cannot be done from here.
        why: it cannot be downloaded.
    """

    text: str
    find: Callable[[], Path]
    fetch: Callable[[bool], Path] | None = None
    why: str = "no public home has this very copy"


def sources() -> dict[str, Source]:
    """Name of a data set → where it comes from."""
    from limbeck.vision.data._cifar_files import find_published
    from limbeck.vision.data._cifar_get import get_cifar
    from limbeck.vision.data.cifar import find_jpeg_copy
    from limbeck.vision.data.fashion_mnist import find_files
    from limbeck.vision.data.imagenet import ImageNet, TinyImageNet
    from limbeck.vision.data.small_photos import find_small

    terms = "each user has to agree to ImageNet's terms"
    return {
        "fashion-mnist": Source(
            "Fashion-MNIST, 70,000 grey images 28 × 28 in 10 classes, 31 MB, MIT licence",
            lambda: find_files("train")[0].parent,
            _get_fashion_mnist,
        ),
        "cifar10": Source(
            "CIFAR-10, 60,000 images 32 × 32 in 10 classes, 170 MB, no licence stated",
            lambda: find_published("cifar10"),
            lambda progress: get_cifar("cifar10", progress),
        ),
        "cifar100": Source(
            "CIFAR-100, 60,000 images 32 × 32 in 100 classes, 169 MB, no licence stated",
            lambda: find_published("cifar100"),
            lambda progress: get_cifar("cifar100", progress),
        ),
        "cifar10-jpeg": Source("CIFAR-10 as JPEG files of quality about 75, no licence stated", find_jpeg_copy),
        "flowers5": Source(
            "4,307 photographs 128 × 128 of 5 kinds of flowers, Flickr CC", lambda: find_small("flowers5")
        ),
        "dtd10": Source("1,200 photographs of 10 textures of DTD, for research", lambda: find_small("dtd10")),
        "tiny-imagenet": Source(
            "Tiny ImageNet, 110,000 labelled images 64 × 64 in 200 classes, ImageNet terms",
            TinyImageNet.find,
            why=terms,
        ),
        "imagenet": Source(
            "ImageNet-1k, 1.33 million photographs in 1,000 classes, ImageNet terms", ImageNet.find, why=terms
        ),
    }


def available() -> dict[str, str]:
    """Data sets that `get` knows: name → one line about each."""
    return {name: source.text for name, source in sources().items()}


def located() -> dict[str, str]:
    """Data set → where its files are on this machine; 'inside scikit-learn' for digits, empty where there are none."""
    found = {"digits": "inside scikit-learn"}
    for name, source in sources().items():
        try:
            found[name] = str(source.find())
        except DataMissing:
            found[name] = ""
    return found


def get(name: str, progress: bool = True) -> Path:
    """Download a data set from its public home and return its folder; nothing is done where the cache has it already.

    A data set without such a home is only looked for.

    Raises: UnknownName; DataMissing when it cannot be downloaded, saying where to put it; CorruptFile when something
        else arrives; OutputError.
    """
    known = sources()
    if name not in known:
        raise UnknownName("data set", name, known)
    source = known[name]
    if source.fetch is not None:
        return source.fetch(progress)
    try:
        return source.find()
    except DataMissing as error:
        raise DataMissing(f"{error}; it cannot be downloaded: {source.why}") from error


def _get_fashion_mnist(progress: bool) -> Path:
    folder = cache_dir() / "data" / "fashion_mnist"
    if all((folder / f"{part}.npz").is_file() for part in FASHION_MNIST_CONTENT):
        return folder
    with temporary_inside(folder) as temporary:
        for part in FASHION_MNIST_CONTENT:
            _store(part, _download(temporary, part == "train", progress), folder)
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
