"""Where the data sets of image classification come from; what has a public home is checked before it is kept."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from limbeck.engine.data_files import temporary_inside
from limbeck.engine.data_sources import Source
from limbeck.engine.paths import cache_dir
from limbeck.errors import CorruptFile, DataMissing

# sha256 of images and labels as decoded, whatever the files that held them
FASHION_MNIST_CONTENT = {
    "train": "b5b4748e19c792cac53c79c4634b3674928698be27a56da6245e20927c7cc72e",
    "test": "4a53d31cc3c4fe2ab5102ab2246f169242434233b91a7eee4d9b15a8a8f5478a",
}


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
        "digits": Source(
            "Digits, 1,797 handwritten digits 8 × 8 in 10 classes, CC-BY-4.0", place="inside scikit-learn"
        ),
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

    from limbeck.engine.data import content_hash
    from limbeck.engine.weights import atomic_path

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
