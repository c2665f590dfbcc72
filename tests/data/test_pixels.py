"""Pictures against Pillow, an independent reader."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from trilemma.data.pixels import picture, png, save_picture, to_uint8


@pytest.mark.parametrize("channels", [1, 3])
def test_png_is_read_back_exactly(channels):
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (7, 5, channels), np.uint8))
    with Image.open(io.BytesIO(png(pixels))) as image:
        image.verify()
    with Image.open(io.BytesIO(png(pixels))) as image:
        read = np.asarray(image).reshape(7, 5, channels)
    assert np.array_equal(read, pixels.numpy())


def test_picture_places_every_image(tmp_path):
    images = torch.arange(5, dtype=torch.uint8).reshape(5, 1, 1, 1).expand(5, 1, 2, 3) * 10
    sheet = picture(images, columns=2, gap=1, scale=2, background=7)[::2, ::2, 0]
    assert sheet.shape == (10, 9)
    for i in range(5):
        row, column = divmod(i, 2)
        assert (sheet[1 + 3 * row : 3 + 3 * row, 1 + 4 * column : 4 + 4 * column] == 10 * i).all()
    assert (sheet[0] == 7).all()
    assert (sheet[7:, 5:] == 7).all()  # the place without an image
    save_picture(tmp_path / "p.png", images, columns=2)
    with Image.open(tmp_path / "p.png") as image:
        assert image.size == (9 * 32, 10 * 32)


def test_what_cannot_be_drawn():
    with pytest.raises(ValueError, match="NaN"):
        to_uint8(torch.tensor([float("nan")]))
    with pytest.raises(ValueError, match="1 or 3 channels"):
        picture(torch.zeros(2, 2, 4, 4))
    with pytest.raises(ValueError, match="columns=-1"):
        picture(torch.zeros(2, 1, 4, 4), columns=-1)
    with pytest.raises(ValueError, match="H, W, 1 or 3"):
        png(torch.zeros(2, 2))
