"""Images to network inputs: files, PIL images, arrays and tensors, as a card's preprocessing says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

    from limbeck.zoo.card import Preprocessing

LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow turns colours to grey
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".pgm", ".ppm"})


@dataclass(frozen=True)
class Preprocess:
    """Callable from an image to the float input (1, C, H, W) of one student, normalised.

    Takes a path, a PIL image, a numpy array (H, W) or (H, W, C), or a tensor (H, W), (C, H, W) or (B, C, H, W). Pixels
    are uint8, or floats on a [0, 1] scale. Colours become grey and grey becomes colours as the student wants; opacity
    is left out.

    Args:
        spec: the card's preprocessing.
        invert: swap black and white first, for dark strokes on paper where the student knows light ones on black.
    Raises: UserError, naming the file where there is one, for what is not an image of such a kind.
    """

    spec: Preprocessing
    invert: bool = False

    def __call__(self, image: Any) -> Tensor:
        pixels, top = to_pixels(image)
        channels = self.spec.input_size[0]
        pixels = match_channels(pixels.float(), channels)
        if self.invert:
            pixels = top - pixels
        # as the evaluation's preprocessor does it, so that a test image gives the very input that was evaluated
        mean = torch.tensor(self.spec.mean, dtype=torch.float64).reshape(-1, 1, 1)
        std = torch.tensor(self.spec.std, dtype=torch.float64).reshape(-1, 1, 1)
        return self._fit(pixels * ((1.0 / std) / top).float() + (-mean / std).float())

    def _fit(self, x: Tensor) -> Tensor:
        height, width = self.spec.input_size[1:]
        if self.spec.crop_pct is None:
            return _resized(x, (height, width), self.spec.interpolation)
        scale = max(height / x.shape[-2], width / x.shape[-1]) / self.spec.crop_pct
        size = (max(height, round(x.shape[-2] * scale)), max(width, round(x.shape[-1] * scale)))
        x = _resized(x, size, self.spec.interpolation)
        top, left = (size[0] - height) // 2, (size[1] - width) // 2
        return x[..., top : top + height, left : left + width]


def _resized(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    if x.shape[-2:] == size:
        return x
    shrinks = x.shape[-2] > size[0] or x.shape[-1] > size[1]
    return F.interpolate(x, size=size, mode=mode, align_corners=False, antialias=shrinks)


def to_pixels(image: Any) -> tuple[Tensor, float]:
    """An image as (B, C, H, W) and its white: 255 for uint8, 1 for floats.

    Raises: UserError.
    """
    if isinstance(image, (str, Path)):
        return read_image(Path(image))
    if isinstance(image, np.ndarray):
        pixels = _from_array(image)
    elif isinstance(image, Tensor):
        pixels = _from_tensor(image)
    elif callable(getattr(image, "convert", None)):  # a PIL image, without importing PIL for arrays
        with _reading("the image"):
            return _from_pil(image)
    else:
        raise UserError(f"an image is a path, a PIL image, an array or a tensor; got {type(image).__name__}")
    return pixels, _white(pixels)


def read_image(path: Path) -> tuple[Tensor, float]:
    """A file's pixels (1, C, H, W), upright.

    Raises: UserError naming the file.
    """
    from PIL import Image, ImageOps

    if not path.is_file():
        raise UserError(f"{path}: no such image file")
    if path.suffix.lower() == ".bin":
        raise UserError(f"{path}: looks like a LiDAR cloud, and this student reads images; name a 3D detector for it")
    with _reading(str(path)), Image.open(path) as opened:
        return _from_pil(ImageOps.exif_transpose(opened))


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Turn what Pillow says of a broken image into one sentence that names it."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except UserError as error:
        raise UserError(f"{what}: {error}") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{what}: not an image in a format that Pillow knows") from error
    # Pillow reports broken files by any of these, according to the format
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"{what}: not a whole image ({error})") from error


def _from_pil(image: Image) -> tuple[Tensor, float]:
    if image.mode.startswith("I"):  # 16 bits a pixel; Pillow's own conversion would cut off all but the darkest
        pixels = _from_array(np.array(image).astype(np.float32) / 65535)
    elif image.mode in ("1", "L", "LA", "La"):
        pixels = _from_array(np.array(image.convert("L")))
    elif image.mode == "F":
        pixels = _from_array(np.array(image))
    else:
        pixels = _from_array(np.array(image.convert("RGB")))
    return pixels, _white(pixels)


def _from_array(array: np.ndarray) -> Tensor:
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 2, 3, 4) or 0 in array.shape:
        raise UserError(f"an image array is (H, W) or (H, W, C) with 1 to 4 channels; got {array.shape}")
    if array.dtype == bool:
        array = array.astype(np.float32)
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise UserError(f"image arrays are uint8, or floats on a [0, 1] scale; got {array.dtype}")
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(np.ascontiguousarray(native)).permute(2, 0, 1)[None]


def _from_tensor(image: Tensor) -> Tensor:
    if image.ndim not in (2, 3, 4) or 0 in image.shape:
        raise UserError(f"an image tensor is (H, W), (C, H, W) or (B, C, H, W); got {tuple(image.shape)}")
    pixels = image.detach().cpu().reshape((1,) * (4 - image.ndim) + tuple(image.shape))
    if pixels.shape[1] not in (1, 2, 3, 4):
        raise UserError(f"an image tensor has 1 to 4 channels, before height and width; got {tuple(image.shape)}")
    if pixels.dtype == torch.bool:
        return pixels.float()
    if pixels.dtype != torch.uint8 and not pixels.is_floating_point():
        raise UserError(f"image tensors are uint8, or floats on a [0, 1] scale; got {pixels.dtype}")
    return pixels


def _white(pixels: Tensor) -> float:
    if pixels.dtype == torch.uint8:
        return 255.0
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # written so that NaN fails
        raise UserError(f"float images are on a [0, 1] scale; found {low:g} to {high:g}: divide by the value of white")
    return 1.0


def match_channels(pixels: Tensor, channels: int) -> Tensor:
    """(B, C, H, W) in 1 or 3 channels as wanted: luma of colours, or grey three times; opacity is left out.

    Raises: UserError where neither fits.
    """
    if pixels.shape[1] in (2, 4) and channels != pixels.shape[1]:
        pixels = pixels[:, :-1]
    have = pixels.shape[1]
    if have == channels:
        return pixels
    if have == 3 and channels == 1:
        return (pixels * torch.tensor(LUMA, dtype=pixels.dtype).reshape(3, 1, 1)).sum(1, keepdim=True)
    if have == 1:
        return pixels.expand(-1, channels, -1, -1)
    raise UserError(f"an image of {have} channels cannot feed a student of {channels}")


def image_files(folder: str | Path) -> list[Path]:
    """Image files in a folder and below it, by path.

    Raises: UserError when there is none.
    """
    return files_in(folder, SUFFIXES, "image")


def files_in(folder: str | Path, suffixes: frozenset[str], what: str) -> list[Path]:
    """Files of some suffixes in a folder and below it, by path.

    Args:
        what: such a file is called in errors.
    Raises: UserError when there is none.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder of {what}s")
    found = sorted(p for p in root.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
    if not found:
        raise UserError(f"{root}: no {what} in it ({', '.join(sorted(suffixes))})")
    return found
