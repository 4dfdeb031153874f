"""CIFAR-10 ResNet weights by Yerlan Idelbayev (BSD 2-Clause): ResNet-20, -32, -44 and -56 on the original pixels."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from limbeck.engine.data_files import shared_data
from limbeck.engine.paths import cache_dir
from limbeck.engine.weights import check_sha256, read_weights
from limbeck.errors import ConfigError, DataMissing

# depth: sha256 of resnet<depth>.safetensors
CIFAR10_WEIGHTS = {
    20: "356684eaf54a75fde9aff6a5bd1a8d8ec681fa5297c3d52a164a5de0507763ac",
    32: "66b6c373a360916f1fc55bfa7aac2285eefb762a953eaef466ea3e5c7c1cd559",
    44: "c80fcbef1e59ad95c6d3272a3f72e58f12dacac76bb93c1eca44aa92d464a685",
    56: "9c7a5bcddfac839c26a162454f7ca8fb8611324243178f8469df2de6a050c6f9",
}


def read_cifar10_weights(depth: int) -> dict[str, Tensor]:
    """The tensors under their own names, from $LIMBECK_DATA/cifar10_weights or the cache folder.

    Raises: ConfigError for another depth; DataMissing; CorruptFile when the file is not the known one.
    """
    if depth not in CIFAR10_WEIGHTS:
        raise ConfigError(f"there are CIFAR-10 weights of ResNet {list(CIFAR10_WEIGHTS)}; got depth {depth}")
    shared = shared_data()
    roots = [*([shared] if shared else []), cache_dir() / "data"]
    paths = [Path(root) / "cifar10_weights" / f"resnet{depth}.safetensors" for root in roots]
    found = next((path for path in paths if path.is_file()), None)
    if found is None:
        raise DataMissing(
            f"the CIFAR-10 weights of ResNet-{depth} are not at {paths[-1]}; put them there, or into "
            "$LIMBECK_DATA/cifar10_weights, or set pretrained=False"
        )
    check_sha256(found, CIFAR10_WEIGHTS[depth])
    return read_weights(found)[0]
