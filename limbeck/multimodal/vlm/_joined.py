"""A zero-shot teacher without a hub: EfficientNet-Lite2 and MiniLM, joined by a ridge map between class spaces.

In the manner of DeViSE (Frome et al. 2013), without training. Both towers know the 1,000 classes of ImageNet: the image
tower as rows of its classifier W (1000, 1280), the text tower as embeddings t (1000, 384) of "a photo of a {class}".
With their means W̄ and T̄,

    M = argmin_M ‖(W − W̄) M − (t − T̄)‖² + λ ‖M‖²,   λ = 10,

an image with pooled feature f is embedded as f M and a text as t − T̄, and both are compared by cosine.
"""

from __future__ import annotations

import math
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.lite_weights import read_lite_weights
from limbeck.engine.weights import read_weights
from limbeck.errors import ExtraMissing
from limbeck.multimodal.vlm._minilm import MINILM_DIM, MINILM_SHA256, MiniLM
from limbeck.multimodal.vlm.text import TextEncoder

VARIANT = 2  # of EfficientNet-Lite
LITE_DIM = 1280
RIDGE = 10.0
TEMPLATE = "a photo of a {}."
JOINED_DIM = MINILM_DIM
# The logit scale. ASSUMPTION: 10, between what the rules of `limbeck.multimodal.vlm.logit_scale` give on the first 300
# training images of cifar10-jpeg at 160 pixels: 9.5 by the NLL of their labels, 11.2 by the entropy, without labels.
JOINED_SCALE = 10.0
MAP_FILE = Path(__file__).parent / "weights" / "lite2-minilm-ridge10.safetensors"
MAP_SHA256 = "b7c0ff6c43468242ea7b9404d9f05dfbaecd0070216e0797c13c530f5ab10d8c"


def fit_map(classifier: np.ndarray, texts: np.ndarray, ridge: float = RIDGE) -> np.ndarray:
    """M (D, d) of the module's equation, in float64, from W (C, D) and t (C, d); both are centred here.

    >>> fit_map(np.array([[1.0], [-1.0]]), np.array([[2.0], [-2.0]]), ridge=2.0).item()
    1.0
    """
    from sklearn.linear_model import Ridge

    return Ridge(alpha=ridge, solver="cholesky").fit(classifier.astype(np.float64), texts.astype(np.float64)).coef_.T


def fit_joined(names: list[str], ridge: float = RIDGE) -> dict[str, Tensor]:
    """What the map file holds, from the two packages: `map` (1280, 384) and `text_mean` T̄ (384,).

    Args:
        names: of ImageNet's 1,000 classes, in the order of labels.
    Raises: ExtraMissing, CorruptFile.
    """
    minilm = MiniLM()
    with torch.no_grad():
        prompts = [TEMPLATE.replace("{}", name) for name in names]
        parts = [minilm(minilm.tokenizer(prompts[i : i + 250])) for i in range(0, len(prompts), 250)]
    texts = torch.cat(parts).double().numpy()
    found = fit_map(read_lite_weights(VARIANT)["classifier.weight"].numpy(), texts, ridge)
    return {"map": torch.from_numpy(found.copy()), "text_mean": torch.from_numpy(texts.mean(0))}


def read_map() -> dict[str, Tensor]:
    """The shipped map. Raises: CorruptFile when it is not the known file."""
    state, _ = read_weights(MAP_FILE, sha256=MAP_SHA256)
    return state


class LiteTower(nn.Module):
    """Images (B, 3, H, W) to embeddings f M (B, 384): timm's EfficientNet-Lite2 up to its pooled feature, then M."""

    def __init__(self) -> None:
        super().__init__()
        import timm

        self.trunk = timm.create_model(f"tf_efficientnet_lite{VARIANT}", num_classes=0)
        self.map = nn.Linear(LITE_DIM, MINILM_DIM, bias=False)

    def load(self, mapped: Tensor) -> None:
        """Read the trunk's ImageNet weights, and take M (1280, 384). Raises: ExtraMissing, CorruptFile."""
        state = {k: v for k, v in read_lite_weights(VARIANT).items() if not k.startswith("classifier.")}
        self.trunk.load_state_dict(state)
        with torch.no_grad():
            self.map.weight.copy_(mapped.T)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) to embeddings (B, 384)."""
        return self.map(self.trunk(x))


class JoinedCLIP(nn.Module):
    """Both towers behind open_clip's interface: `encode_image`, `encode_text`, `logit_scale`, `tokenizer`.

    open_clip's own CustomTextCLIP is not used: it has no place for the mean that is subtracted from a normalised text.

    Args:
        scale: the factor s; `logit_scale` is its logarithm, as in open_clip.
    Raises: ExtraMissing, CorruptFile.
    """

    text_mean: Tensor

    def __init__(self, scale: float) -> None:
        super().__init__()
        known = read_map()
        self.visual = LiteTower()
        self.visual.load(known["map"])
        self.text = MiniLM()
        self.register_buffer("text_mean", known["text_mean"])
        self.logit_scale = nn.Parameter(torch.tensor(math.log(scale)))

    def tokenizer(self, prompts: list[str]) -> Tensor:
        """Prompts to token ids (B, L)."""
        return self.text.tokenizer(prompts)

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """Images (B, 3, H, W) to embeddings (B, 384)."""
        found = self.visual(image)
        return F.normalize(found, dim=-1) if normalize else found

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """Token ids (B, L) to embeddings t − T̄ (B, 384)."""
        found = self.text(text) - self.text_mean
        return F.normalize(found, dim=-1) if normalize else found


def joined_encoder() -> TextEncoder:
    """The text side alone; MiniLM is read when something is encoded, not where the cache has it.

    Raises: ExtraMissing; CorruptFile when the map file is not the known one.
    """
    mean = read_map()["text_mean"]
    loaded: list[MiniLM] = []

    def encode(prompts: list[str]) -> Tensor:
        if not loaded:
            loaded.append(MiniLM())
        return loaded[0](loaded[0].tokenizer(prompts)) - mean

    return TextEncoder(
        encode,
        dict(library=f"transformers {_transformers()}", weights=MINILM_SHA256, map=MAP_SHA256),
    )


def _transformers() -> str:
    """Its version, without the seconds that importing it takes. Raises: ExtraMissing."""
    try:
        return version("transformers")
    except PackageNotFoundError as error:
        raise ExtraMissing("the MiniLM text tower", "multimodal") from error
