"""Distances between pairs of pictures: PSNR and SSIM.

(1)  PSNR = 10 log10(range^2 / mean squared difference)
(2)  SSIM = (2 m_a m_b + c1)(2 s_ab + c2) / ((m_a^2 + m_b^2 + c1)(s_a^2 + s_b^2 + c2)), with local means, variances and
     covariance under a Gaussian window of 11 x 11 pixels, standard deviation 1.5, c1 = (0.01 range)^2, c2 = (0.03 range)^2,
     averaged over all places where the window fits, and over channels
"""

import torch
from torch import Tensor
from torch.nn import functional

from .rows import finite

__all__ = ["psnr", "ssim"]

_WINDOW, _DEVIATION = 11, 1.5
_VALUES = 1 << 16  # of a block: it stays in a processor's cache


def psnr(a: Tensor, b: Tensor, *, data_range: float = 2.0) -> Tensor:
    """Peak signal-to-noise ratio of each pair, (1).

    Args:
        a: ``(N, C, H, W)`` in the units of ``data_range``.
        b: the same shape.
        data_range: largest less smallest possible value; 2 in model units.

    Returns:
        ``(N,)`` float64 in decibels, infinite for equal pictures; `of_mean` makes an `Estimate` of finite ones.

    Raises:
        ValueError: shapes differ or are not those of pictures, or a value is not finite.

    Error: float32 pictures are subtracted and summed in float32, by pairs: below 1e-5 decibels; others in float64.

    >>> psnr(torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), 0.25), data_range=2.5).tolist()
    [20.0]
    """
    _check(a, b, data_range)
    x, y = (z.detach().cpu().flatten(1) for z in (a, b))
    if not x.dtype == y.dtype == torch.float32:
        x, y = x.double(), y.double()
    size = x.shape[1]
    some = max(1, _VALUES // size)
    squares = [functional.mse_loss(p, q, reduction="none").sum(1) for p, q in zip(x.split(some), y.split(some))]
    error = torch.cat(squares).double() / size
    if not finite(error):
        raise ValueError("pictures have a NaN or infinity")
    return 10 * (data_range**2 / error).log10()


def ssim(a: Tensor, b: Tensor, *, data_range: float = 2.0) -> Tensor:
    """Structural similarity of each pair, (2), with the published window and constants.

    Args:
        a: ``(N, C, H, W)`` in the units of ``data_range``, H and W at least 11.
        b: the same shape.
        data_range: largest less smallest possible value; 2 in model units.

    Returns:
        ``(N,)`` float64 in [-1, 1], 1 for equal pictures.

    Raises:
        ValueError: see `psnr`; or pictures are smaller than the window.

    Source: Wang et al. 2004, IEEE Trans. Image Process. 13, 600, equation (13); variances are those of the window's weights.

    >>> x = torch.linspace(-1, 1, 256).reshape(1, 1, 16, 16)
    >>> ssim(x, x).tolist()
    [1.0]
    """
    _check(a, b, data_range)
    if not (finite(a) and finite(b)):
        raise ValueError("pictures have a NaN or infinity")
    x, y = a.detach().cpu().double(), b.detach().cpu().double()
    n, channels, height, width = x.shape
    if min(height, width) < _WINDOW:
        raise ValueError(f"SSIM's window is {_WINDOW} x {_WINDOW} pixels; pictures of {height} x {width} are too small")
    place = torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2
    weight = torch.exp(-0.5 * (place / _DEVIATION) ** 2)
    weight = weight / weight.sum()

    def local(z: Tensor) -> Tensor:
        flat = z.reshape(n * channels, 1, height, width)
        rows = functional.conv2d(flat, weight[None, None, :, None])
        return functional.conv2d(rows, weight[None, None, None, :])

    mean_x, mean_y = local(x), local(y)
    both, own = mean_x * mean_y, mean_x.square() + mean_y.square()
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    spread = local(x.square() + y.square()) - own
    similar = (2 * both + c1) * (2 * (local(x * y) - both) + c2) / ((own + c1) * (spread + c2))  # (2)
    return similar.reshape(n, -1).mean(1)


def _check(a: Tensor, b: Tensor, data_range: float) -> None:
    if a.shape != b.shape or a.ndim != 4 or a.numel() == 0:
        raise ValueError(f"need two equal shapes (N, C, H, W), none 0; got {tuple(a.shape)} and {tuple(b.shape)}")
    if not data_range > 0:
        raise ValueError(f"data_range is the span of possible values and positive; got {data_range}")
