"""Load a student: architecture from the card, weights checked before they are read, preprocessing attached."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from limbeck.engine.weights import load_into
from limbeck.errors import CorruptFile
from limbeck.zoo.sources import locate, weights

if TYPE_CHECKING:
    from torch import nn

    from limbeck.zoo.card import Card, Preprocessing


def load_student(
    name: str, *, revision: str | None = None, device: str = "cpu", zoo_dir: str | Path | None = None
) -> nn.Module:
    """A student of the zoo in eval mode, with its `card`, and `preprocess`: an image to its input (1, C, H, W).

    A 3D detector has `preprocess`, a LiDAR cloud to its `Voxels`, and `detect`, a cloud to its boxes. Another detector
    gives the raw outputs of its head, as `limbeck.detection.models` says; `Predictor` makes boxes of them. A diffusion
    model has `generate`, classes to images in [−1, 1]; see `limbeck.multimodal.diffusion.generator.ImageGenerator`.

    Args:
        name: of a student of the zoo; or 'hf://owner/name[@revision][/student]', the address of a card,
            'https://…/NAME.json', or a path: see `limbeck.zoo.sources`.
        revision: of a Hugging Face repository; else the first digits of the sha256 that the weights must have.
        device: 'cpu', 'cuda', 'cuda:N' or 'auto'; `preprocess` gives tensors on the CPU.
        zoo_dir: a folder with cards/ and weights/ instead of $LIMBECK_ZOO and the shipped zoo.
    Raises: UnknownName with near names; CorruptFile with both hashes when the weights are not those of the card, or
        a 3D detector's voxels are not; NotFetched for an address that cannot be reached.

    >>> import limbeck
    >>> student = limbeck.load_student("resnet8w4.digits_kd")  # doctest: +SKIP
    >>> student(student.preprocess("seven.png")).argmax()  # doctest: +SKIP
    >>> student = limbeck.load_student("pointpillars16.lidar-scenes_pointdistiller")  # doctest: +SKIP
    >>> student.detect("000008.bin").boxes  # doctest: +SKIP
    >>> student = limbeck.load_student("unet32-64_1step.diffusion-digits_pd")  # doctest: +SKIP
    >>> student.generate([0, 1, 2], seed=0).images  # doctest: +SKIP
    """
    from limbeck.engine.output import pick_device
    from limbeck.engine.registry import MODELS

    target = pick_device(device)
    found = locate(name, revision=revision, zoo_dir=zoo_dir)
    card, path = found.card, weights(found)
    model = cast("nn.Module", MODELS.make(card.model, where=f"in the card of {name}"))
    load_into(model, path, sha256=card.sha256)
    model = model.to(target).eval()
    model.card = card  # type: ignore[assignment]  # nn.Module types attributes as tensors or modules
    if card.detects_3d:
        _attach_detector(model, card)
    else:
        from limbeck.zoo.images import Preprocess

        model.preprocess = Preprocess(cast("Preprocessing", card.preprocessing))  # type: ignore[assignment]
    return model


def _attach_detector(model: nn.Module, card: Card) -> None:
    from limbeck.pointcloud.adapter import grid_of
    from limbeck.zoo.lidar import CloudDetector

    detect = CloudDetector(model, card)
    if detect.preprocess.grid != grid_of(model):
        raise CorruptFile(
            f"the card of {card.name} has other voxels, {detect.preprocess.grid}, than its model, {grid_of(model)}; "
            "get the card again"
        )
    model.detect = detect  # type: ignore[assignment]
    model.preprocess = detect.preprocess  # type: ignore[assignment]
