"""Encoding: against the closed form for Gaussian data, DDIM's formula, and the way back."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from oracles import F64, PROCESS_CASES, Mixture, f64, flow_truth, log_snr_times, scalar
from trilemma.denoise import Covariances, Denoiser, Gaussian, GaussianDenoiser
from trilemma.numerics.tableau import EULER, HEUN, RK4
from trilemma.process import EDM, VP, Flow
from trilemma.process.grid import log_snr_grid
from trilemma.sampling import ddim, dpmpp_2m, runge_kutta, sample
from trilemma.sampling.invert import invert

processes = pytest.mark.parametrize("process", PROCESS_CASES.values(), ids=PROCESS_CASES)


@processes
def test_gaussian_data_become_the_noise_of_the_closed_form(process):
    """x_1 = alpha m + (x - m) sqrt(alpha^2 + sigma^2 / s^2), from exactly 0 to exactly 1, where alpha may be 0."""
    m, s = 0.7, 0.5
    model = GaussianDenoiser(process, torch.tensor([m]), Covariances.diagonal(torch.tensor([[s**2]])))
    x = torch.linspace(-1, 2, 5, dtype=F64)[:, None]
    alpha, sigma = process.alpha(scalar(1.0)), process.sigma(scalar(1.0))
    exact = alpha * m + (x - m) * (alpha**2 + sigma**2 / s**2).sqrt()
    up = log_snr_grid(process, 100).flip(0)
    errors = [float((invert(model, x, up, runge_kutta(table)) - exact).abs().max() / sigma) for table in (EULER, HEUN)]
    assert errors[0] < 0.1
    assert errors[1] < 5e-3


@pytest.mark.parametrize(("table", "order"), [(EULER, 1), (HEUN, 2), (RK4, 4)])
def test_the_way_up_has_the_order_of_the_rule(table, order):
    """Back to the starts of a SciPy solution, from its ends."""
    mixture, start, end = flow_truth(-2.0, 3.0)
    model, errors = mixture.torch(EDM()), []
    for n in (64, 128):
        up = log_snr_times(EDM(), -2.0, 3.0, n).flip(0)
        errors.append(float((invert(model, end, up, runge_kutta(table)) - start).norm()))
    assert math.log2(errors[0] / errors[1]) >= order - 0.25


def test_the_default_is_ddim_inversion():
    """Equation (2), as it stands, with D at the start of each step."""
    process, up = VP(), f64(0.02, 0.1, 0.3, 0.6, 1.0)
    model, x = (
        Mixture.example().torch(process),
        torch.randn(4, 2, generator=torch.Generator().manual_seed(1), dtype=F64),
    )
    ours = invert(model, x, up)
    for t, s in pairwise(up):
        d = model(x, t).mean
        x = process.alpha(s) * d + process.sigma(s) * (x - process.alpha(t) * d) / process.sigma(t)
    torch.testing.assert_close(ours, x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("process", [VP(), Flow(), EDM()], ids=["vp", "flow", "edm"])
def test_there_and_back(process):
    """Clean items of a mixture come back; closer with more steps; and the noise has the size of noise."""
    model, mixture = Mixture.example().torch(process), Mixture.example()
    rng = torch.Generator().manual_seed(0)
    which = torch.randint(4, (64,), generator=rng)
    roots = torch.linalg.cholesky(torch.tensor(mixture.covs))[which]
    x = torch.tensor(mixture.means)[which] + (roots @ torch.randn(64, 2, 1, generator=rng, dtype=F64))[..., 0]
    worst = []
    for steps in (40, 80):
        grid = log_snr_grid(process, steps)
        noise = invert(model, x, grid.flip(0), runge_kutta(HEUN))
        worst.append(float((sample(model, x.shape, grid, runge_kutta(HEUN), x=noise) - x).abs().max()))
        assert 0.7 < float(noise.std() / process.sigma(scalar(1.0))) < 1.3
    assert worst[1] < 0.02
    assert worst[1] < 0.6 * worst[0]


class Labelled(Denoiser):
    """Takes a label, and drops units."""

    cond_keys = frozenset({"label"})

    def __init__(self):
        super().__init__()
        self.process, self.drop = VP(), nn.Dropout(0.5)

    def forward(self, x_t, t, label):
        return Gaussian(self.drop(x_t) + label[:, None])


def test_it_checks_what_sample_checks():
    """Labels of another number of items, of none, and a network that was left in training mode."""
    model, x, up = Labelled(), torch.ones(3, 2), torch.tensor([0.2, 0.6])
    with pytest.raises(ValueError, match=r"training mode .* \.eval\(\)"):
        invert(model, x, up, cond={"label": torch.zeros(3)})
    for label in (torch.zeros(1), torch.zeros(4), torch.tensor(0.0)):
        with pytest.raises(ValueError, match="'label' needs one entry for each of 3 items"):
            invert(model.eval(), x, up, cond={"label": label})
    assert invert(model.eval(), x, up, cond={"label": [0.0, 1.0, 2.0]}).shape == (3, 2)


def test_what_it_refuses():
    model = Mixture.example().torch(VP())
    x = torch.zeros(2, 2)
    with pytest.raises(ValueError, match="times of a grid"):
        invert(model, x, torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="takes no conditions"):
        invert(model, x, torch.tensor([0.0, 1.0]), cond={"label": torch.zeros(2)})
    with pytest.raises(ValueError, match="finite"):
        invert(model, x / 0, torch.tensor([0.0, 1.0]))
    for rule in (ddim(), dpmpp_2m):
        with pytest.raises(ValueError, match="Runge-Kutta"):
            invert(model, x, torch.tensor([0.1, 0.5, 1.0]), rule)
    assert torch.equal(invert(model, x, torch.tensor([0.0, 1.0])), x)
