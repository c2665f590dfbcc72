"""From model units back to pixels: 8-bit values, pictures of many images, PNG files. Needs nothing but torch."""

import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["picture", "png", "save_picture", "to_uint8"]


def to_uint8(x: Tensor) -> Tensor:
    """Round images from [-1, 1] to 8 bits; what lies outside is clipped.

    Args:
        x: any shape, in model units; uint8 passes as it is.

    Returns:
        uint8 of the same shape.

    Raises:
        ValueError: a value is not finite.

    >>> to_uint8(torch.tensor([-1.0, 0.0, 1.0, 1.5]))
    tensor([  0, 128, 255, 255], dtype=torch.uint8)
    """
    if x.dtype == torch.uint8:
        return x
    if not bool(x.isfinite().all()):
        raise ValueError("an image has a NaN or infinity and cannot be drawn")
    return x.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def picture(
    images: Tensor, *, columns: int | None = None, gap: int = 1, scale: int = 1, background: int = 128
) -> Tensor:
    """Lay images out on a grid, row by row.

    Args:
        images: ``(N, C, H, W)`` with 1 or 3 channels, in model units or uint8.
        columns: images a row; about the square root of N by default.
        gap: pixels between images and around them, before scaling.
        scale: side of the square that a pixel becomes: no interpolation.
        background: grey level of the gaps, 0 to 255.

    Returns:
        ``(rows (H + gap) + gap, columns (W + gap) + gap, C)`` times ``scale``, uint8.

    Raises:
        ValueError: not image-shaped, no image, or a number that is out of range.

    >>> picture(torch.zeros(6, 1, 8, 8), columns=3).shape
    torch.Size([19, 28, 1])
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3) or len(images) == 0:
        raise ValueError(f"images must be (N, C, H, W) with N >= 1 and 1 or 3 channels; got {tuple(images.shape)}")
    n, channels, height, width = images.shape
    columns = min(n, columns or round(n**0.5 + 0.49))
    if columns < 1 or gap < 0 or scale < 1 or not 0 <= background <= 255:
        raise ValueError(f"columns={columns}, gap={gap}, scale={scale}, background={background}: out of range")
    rows = -(-n // columns)
    canvas = torch.full((rows * columns, channels, height + gap, width + gap), background, dtype=torch.uint8)
    canvas[:n, :, gap:, gap:] = to_uint8(images.detach().cpu())
    tiles = canvas.reshape(rows, columns, channels, height + gap, width + gap)
    sheet = tiles.permute(0, 3, 1, 4, 2).reshape(rows * (height + gap), columns * (width + gap), channels)
    framed = torch.full((sheet.shape[0] + gap, sheet.shape[1] + gap, channels), background, dtype=torch.uint8)
    framed[: sheet.shape[0], : sheet.shape[1]] = sheet
    return framed.repeat_interleave(scale, 0).repeat_interleave(scale, 1)


def png(pixels: Tensor) -> bytes:
    """Encode a picture as PNG.

    Args:
        pixels: ``(H, W, 1)`` grey or ``(H, W, 3)`` colour, uint8.

    Returns:
        The bytes of the file.

    Raises:
        ValueError: another shape or type.

    Source: W3C, "Portable Network Graphics (PNG) Specification", sections 5 and 11.
    """
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or pixels.dtype != torch.uint8 or pixels.numel() == 0:
        raise ValueError(f"pixels must be (H, W, 1 or 3) uint8; got {tuple(pixels.shape)}, {pixels.dtype}")
    height, width, channels = pixels.shape
    rows = torch.zeros(height, 1 + width * channels, dtype=torch.uint8)  # each row starts with its filter: 0, none
    rows[:, 1:] = pixels.reshape(height, -1)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    body = zlib.compress(rows.numpy().tobytes(), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def save_picture(path: str | Path, images: Tensor, *, columns: int | None = None, scale: int | None = None) -> None:
    """Write images as one PNG, enlarged so that small ones can be seen.

    Args:
        path: the file to write.
        images: see `picture`.
        columns: see `picture`.
        scale: see `picture`; by default images become about 64 pixels high.
    """
    scale = scale or max(1, 64 // images.shape[-2])
    Path(path).write_bytes(png(picture(images, columns=columns, scale=scale)))
