"""``trilemma train --learned-variance``: a run with whose own variance ancestral sampling draws."""

import torch

from trilemma.cli.main import main
from trilemma.data import load
from trilemma.denoise import Denoiser, Gaussian, LearnedVariance
from trilemma.process.grid import GRIDS
from trilemma.sampling import get_rule, sample
from trilemma.train import load_model

TINY = ["--net", "unet", "--net-options", "widths=[8,8]", "blocks=1", "attention=[]", "--batch", "8"]


class Doubled(Denoiser):
    """The same mean, with a variance multiplied by a number: what the second head says must show in the draws."""

    def __init__(self, model, factor):
        super().__init__()
        self.model, self.factor, self.process, self.cond_keys = model, factor, model.process, model.cond_keys

    def forward(self, x_t, t, **cond):
        law = self.model(x_t, t, **cond)
        return Gaussian(law.mean, law.var * self.factor)


def test_the_learned_variance_is_what_ancestral_sampling_draws_with(tmp_path, fails):
    run = tmp_path / "run"
    words = ["--process", "vp", "--learned-variance", "--steps", "12", "--lr", "3e-3", "--warmup", "0"]
    assert main(["train", "--out", str(run), *TINY, *words, "--sample-every", "0"]) == 0
    model, _ = load_model(run)
    assert isinstance(model, LearnedVariance)
    assert float(model.net.out.weight[1:].detach().abs().max()) > 1e-3  # the second head has learned something

    def drawn(rule):
        out = tmp_path / rule
        words = [
            "--rule",
            rule,
            "--steps",
            "4",
            "--grid",
            "log_snr",
            "--n",
            "4",
            "--precision",
            "fp32",
            "--out",
            str(out),
        ]
        assert main(["sample", str(run), *words]) == 0
        return load(str(out / "samples.npz")).model_units()

    grid, cond = GRIDS["log_snr"](model.process, 4), {"label": torch.arange(4)}
    mine, plain = drawn("ancestral_learned"), drawn("ddpm")
    learned = get_rule("ancestral_learned")
    ours, none, twice = (
        sample(Doubled(model, factor), (4, 1, 8, 8), grid, learned, seeds=0, cond=cond).clamp(-1, 1)
        for factor in (1, 0, 2)
    )
    assert float((mine - ours).abs().max()) < 0.01  # 8 bits
    assert float((plain - none).abs().max()) < 0.01  # no variance of x is DDPM's smaller one
    assert min(float((mine - other).abs().mean()) for other in (none, twice)) > 0.02
    gan = ["train", "--out", str(tmp_path / "gan"), "--model", "gan", "--learned-variance"]
    assert "learned_variance is for diffusion" in fails(*gan)
