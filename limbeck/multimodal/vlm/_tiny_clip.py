"""A tiny CLIP that is trained in place, in seconds, on part of the digits: for tests and the demo.

It is meant to be an imperfect, biased teacher: a share of its captions is wrong, most of them in the same way.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.digits import read_digits
from limbeck.engine.paths import cache_dir
from limbeck.engine.weights import load_state, read_weights, save_weights, sha256_json
from limbeck.errors import ConfigError, CorruptFile, UnknownName

DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TINY_TEMPLATES = ("a photo of the digit {}", "a scan of a handwritten {}", "the number {}", "{}")
TINY_SAMPLES = 297  # the last ones of the train split; the first 781 are left for a student
TINY_MEAN, TINY_STD, TINY_SIZE = (0.3,), (0.38,), (1, 8, 8)
TINY_DIM = 64
_SYSTEMATIC = 0.7  # share of the wrong captions that name the next digit
_VERSION = 1
_WORDS = ["a", "photo", "of", "the", "digit", "scan", "handwritten", "number", *DIGIT_WORDS]
_IDS = {word: index for index, word in enumerate(_WORDS, 1)}
_IDS |= {str(digit): _IDS[word] for digit, word in enumerate(DIGIT_WORDS)}


class TinyCLIP(nn.Module):
    """Image tower of two convolutions, text tower of one transformer layer; open_clip's interface; 123 k parameters.

    Images are (B, 1, 8, 8), normalised by mean 0.3 and deviation 0.38; both embeddings are (B, 64).
    """

    def __init__(self) -> None:
        super().__init__()
        self.visual = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(1024, TINY_DIM),
        )
        self.token_embedding = nn.Embedding(len(_WORDS) + 1, 64, padding_idx=0)
        self.transformer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
        self.text_projection = nn.Linear(64, TINY_DIM)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @staticmethod
    def tokenizer(prompts: list[str]) -> Tensor:
        """Prompts to word ids (B, L), padded with 0; digits may be words or figures.

        Raises: UnknownName for a word that it has never seen; ConfigError for a prompt without words.
        """
        rows = [[_word(word) for word in prompt.lower().replace(".", " ").split()] for prompt in prompts]
        if not all(rows):
            raise ConfigError("the tiny CLIP got a prompt without words; give the class a name")
        return nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """Images (B, 1, 8, 8) to embeddings (B, 64)."""
        found = self.visual(image)
        return F.normalize(found, dim=-1) if normalize else found

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """Word ids (B, L) to embeddings (B, 64)."""
        padded = text == 0
        hidden = self.transformer(self.token_embedding(text), src_key_padding_mask=padded)
        mean = hidden.masked_fill(padded[..., None], 0.0).sum(1) / (~padded).sum(1, keepdim=True)
        found = self.text_projection(mean)
        return F.normalize(found, dim=-1) if normalize else found


def _word(word: str) -> int:
    if word not in _IDS:
        raise UnknownName("word", word, _IDS, "for the tiny CLIP, which knows the digits alone")
    return _IDS[word]


def caption_classes(labels: np.ndarray, caption_noise: float, rng: np.random.Generator) -> np.ndarray:
    """The digit that each image's caption names (N,): exactly round(N · caption_noise) of them are wrong.

    Of the wrong ones 70 % name the next digit, 9 the 0; the others any of the eight that are left.

    Raises: ConfigError for a noise that is not in [0, 1].
    """
    if not 0.0 <= caption_noise <= 1.0:
        raise ConfigError(f"caption_noise is a share in [0, 1]; got {caption_noise}")
    named = labels.copy()
    wrong = rng.permutation(len(labels))[: round(len(labels) * caption_noise)]
    systematic, random = np.split(wrong, [round(len(wrong) * _SYSTEMATIC)])
    named[systematic] = (labels[systematic] + 1) % 10
    named[random] = (labels[random] + rng.integers(2, 10, len(random))) % 10
    return named


def contrastive_loss(image: Tensor, text: Tensor, classes: Tensor, scale: Tensor) -> Tensor:
    """Symmetric contrastive loss in which every caption of an image's class is its match.

    L = ½ [CE(s V Uᵀ, Y) + CE(s U Vᵀ, Y)], Y the mask of equal classes with rows that sum to 1.

    Args:
        image, text: V and U (B, d), normalised. classes: (B,) that the captions name. scale: ().
    """
    logits = scale * image @ text.T
    same = (classes[:, None] == classes[None]).to(logits.dtype)
    targets = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def train_tiny_clip(caption_noise: float = 0.4, seed: int = 0, steps: int = 250) -> TinyCLIP:
    """Train on its own 297 digits, the same weights for the same arguments: AdamW, lr 1e-3, batches of 96.

    The caption of an image names one digit throughout; its template is drawn anew in every step.

    Args:
        caption_noise: share of wrong captions. seed: of weights, captions and batches.
    Raises: ConfigError.
    """
    pixels, labels = read_digits("train")
    rng = np.random.default_rng(seed)
    named = caption_classes(labels[-TINY_SAMPLES:], caption_noise, rng)
    images = (torch.from_numpy(pixels[-TINY_SAMPLES:, None]).float() / 255 - TINY_MEAN[0]) / TINY_STD[0]
    prompts = [t.replace("{}", w) for w in DIGIT_WORDS for t in TINY_TEMPLATES]
    tokens = TinyCLIP.tokenizer(prompts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TinyCLIP()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with torch.enable_grad():
        for _ in range(steps):
            chosen = rng.choice(TINY_SAMPLES, 96, replace=False)
            drawn = named[chosen] * len(TINY_TEMPLATES) + rng.integers(0, len(TINY_TEMPLATES), len(chosen))
            image = model.encode_image(images[chosen], normalize=True)
            text = model.encode_text(tokens[drawn], normalize=True)
            loss = contrastive_loss(image, text, torch.from_numpy(named[chosen]), model.logit_scale.exp())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def tiny_clip(caption_noise: float = 0.4, seed: int = 0) -> TinyCLIP:
    """`train_tiny_clip`, kept in the cache folder under its options and torch's version.

    Raises: ConfigError; OutputError when the cache folder cannot be written.
    """
    options = dict(version=_VERSION, caption_noise=float(caption_noise), seed=seed, torch=torch.__version__)
    key = sha256_json(options)
    path = cache_dir() / "tiny_clip" / f"{key[:32]}.safetensors"
    if path.is_file():
        model = TinyCLIP()
        try:
            state, metadata = read_weights(path)
        except CorruptFile:
            metadata, state = {}, {}
        if metadata.get("key") == key:
            load_state(model, state)
            return model.eval()
    model = train_tiny_clip(caption_noise, seed)
    save_weights(path, model.state_dict(), metadata={"key": key})
    return model
