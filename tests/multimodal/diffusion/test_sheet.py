"""Sheets of generated images, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from limbeck.errors import ConfigError
from limbeck.multimodal.diffusion.sheet import image_sheet


def test_every_pixel_is_a_square_in_its_cell() -> None:
    images = torch.rand(5, 1, 4, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    sheet = np.asarray(image_sheet(images, 3, cell=8, gap=1))
    assert sheet.shape == (2 * (8 + 1) + 1, 3 * (6 + 1) + 1, 3)
    for index, image in enumerate(images):
        top, left = 1 + index // 3 * 9, 1 + index % 3 * 7
        grey = np.round((image[0].numpy() + 1) * 127.5).repeat(2, 0).repeat(2, 1)
        assert np.array_equal(sheet[top : top + 8, left : left + 6], np.repeat(grey[..., None], 3, 2).astype(np.uint8))
    assert (sheet[:, 0] == 255).all()
    assert (sheet[10:, 15:] == 255).all()  # the sixth cell


def test_places_leave_cells_white_and_colours_stay() -> None:
    pixels = torch.zeros(2, 3, 2, 2, dtype=torch.uint8)
    pixels[:, 1] = 200
    sheet = np.asarray(image_sheet(pixels, 4, places=[0, 3], cell=2, gap=0))
    assert sheet.shape == (2, 8, 3)
    assert (sheet[:, [0, 1, 6, 7]] == (0, 200, 0)).all()
    assert (sheet[:, 2:6] == 255).all()


def test_large_images_keep_their_size_and_values_are_clipped() -> None:
    sheet = np.asarray(image_sheet(torch.full((1, 1, 100, 90), 3.0), 1, gap=0))
    assert sheet.shape == (100, 90, 3)
    assert (sheet == 255).all()


@pytest.mark.parametrize(
    ("shape", "options"),
    [((0, 1, 2, 2), {}), ((1, 2, 2, 2), {}), ((1, 2, 2), {}), ((2, 1, 2, 2), dict(places=[0]))],
)
def test_what_is_no_sheet_is_refused(shape: tuple[int, ...], options: dict) -> None:
    with pytest.raises(ConfigError, match="a sheet"):
        image_sheet(torch.zeros(shape), 2, **options)
    with pytest.raises(ConfigError, match="a sheet"):
        image_sheet(torch.zeros(1, 1, 2, 2), 0)
