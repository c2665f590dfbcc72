import contextlib
import json
import math
import re

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from trilemma.denoise import Covariances, GaussianDenoiser, Preconditioned
from trilemma.nets import MLP, build
from trilemma.process import EDM, Flow
from trilemma.train import CorruptError, DivergedError, RunDir, TrainConfig, Trainer, load_model
from trilemma.train.checkpoint import checkpoints

DATA = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) % 10
POINTS = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))


def unet_trainer(**changes):
    torch.manual_seed(0)
    model = Preconditioned(
        build("unet-tiny", classes=10, widths=[8, 16], head_width=8, dropout=0.2), EDM(), sigma_data=0.5
    )
    settings = {"steps": 9, "batch": 8, "flip": 0.5, "warmup": 3, "decay": "cosine"}
    config = TrainConfig(**{**settings, "ema": ("power:0.1", "exponential:0.9"), **changes})
    return Trainer(model, (DATA, LABELS), config=config)


def mlp_trainer(net=None, data=POINTS, **changes):
    torch.manual_seed(0)
    model = Preconditioned(net or MLP(2, width=32, depth=2), Flow(), "velocity")
    settings = {"steps": 6, "batch": 16, "times": "low_discrepancy", "precision": "fp32"}
    return Trainer(model, data, config=TrainConfig(**{**settings, **changes}))


def tensors(trainer):
    yield from trainer.model.state_dict().values()
    for average in trainer.ema.averages:
        yield from average.values()
    for parameter in trainer.model.parameters():
        yield from (value for _, value in sorted(trainer.optimizer.state[parameter].items()))


def losses(trainer, steps=None):
    out = []
    for record in trainer.steps():
        out.append(record.loss)
        if record.step == steps:
            break
    return out


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, precision, accumulate):
    """With dropout, flips, hidden labels, two averages, warm-up and decay; cut twice."""
    changes = {"precision": precision, "accumulate": accumulate}
    whole = unet_trainer(**changes)
    expected = losses(whole)

    first = unet_trainer(**changes)
    got = losses(first, 4)
    first.save(tmp_path)
    torch.manual_seed(123)  # nothing depends on torch's own generator
    second = unet_trainer(**changes)
    assert second.resume(tmp_path).name == "step_00000004"
    got += losses(second, 7)
    second.save(tmp_path)
    third = unet_trainer(**changes)
    third.resume(tmp_path)
    got += losses(third)

    assert got == expected
    assert equal(third, whole)
    assert third.loss_by_noise().share.equal(whole.loss_by_noise().share)


def test_training_saving_and_loading_leave_torchs_generator_alone(tmp_path):
    trainer = unet_trainer(steps=2)
    before = torch.get_rng_state()
    losses(trainer)
    trainer.save(tmp_path)
    load_model(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_seed_decides_everything():
    assert losses(unet_trainer(steps=3)) == losses(unet_trainer(steps=3))
    assert losses(unet_trainer(steps=3)) != losses(unet_trainer(steps=3, seed=1))


@pytest.mark.parametrize("accumulate", [2, 4])
def test_micro_batches_add_up_to_the_batch(accumulate):
    whole, parts = mlp_trainer(), mlp_trainer(accumulate=accumulate)
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-5)
    for a, b in zip(whole.model.parameters(), parts.model.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_stopping_and_starting_the_generator_goes_on_where_it_was():
    whole, cut = mlp_trainer(), mlp_trainer()
    assert losses(cut, 2) + losses(cut) == losses(whole)


def test_a_trained_linear_denoiser_is_the_posterior_mean():
    """Its coefficient is interpolated between values at 25 noise levels; the data are Gaussian."""

    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.values = nn.Parameter(torch.zeros(25))

        def forward(self, x, c_time):
            hats = (1 - (c_time[:, None].clamp(-1.2, 1.2) - torch.linspace(-1.2, 1.2, 25)).abs() * 10).clamp(min=0)
            return (hats @ self.values)[:, None] * x

    scale = 0.5
    data = scale * torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0))
    model = Preconditioned(Linear(), Flow(), "velocity", sigma_data=1.0)
    config = TrainConfig(
        steps=400, batch=512, lr=5e-2, warmup=20, decay="cosine", times="low_discrepancy", precision="fp32"
    )
    trainer = Trainer(model, data, config=config)
    losses(trainer)
    truth = GaussianDenoiser(Flow(), torch.zeros(1), Covariances.diagonal(torch.tensor([[float(data.var())]])))
    t = torch.linspace(0.05, 0.95, 10, dtype=torch.float64)
    x_t = torch.ones(10, 1)
    with trainer.averaged() as averaged, torch.no_grad():
        torch.testing.assert_close(averaged(x_t, t).mean, truth(x_t, t).mean, rtol=0, atol=0.03)


def test_averaged_weights_are_lent_and_given_back():
    trainer = unet_trainer(steps=3)
    losses(trainer)
    before = [p.clone() for p in trainer.model.parameters()]
    average = [a.clone() for a in trainer.ema.averages[1].values()]
    with contextlib.suppress(KeyError), trainer.averaged(1) as model:
        assert not model.training
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), average))
        raise KeyError
    assert trainer.model.training
    assert all(torch.equal(a, b) for a, b in zip(trainer.model.parameters(), before))


def test_hidden_labels_and_flips_come_at_their_rates_and_by_item():
    seen = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x, c_time, label=None):
            seen.append(label.clone())
            return self.weight * x

    def labels(**changes):
        seen.clear()
        model = Preconditioned(Spy(), EDM(), sigma_data=1e9)
        config = TrainConfig(steps=5, batch=400, label_dropout=0.3, precision="fp32", **changes)
        losses(Trainer(model, (torch.zeros(400, 1), torch.ones(400, dtype=torch.int64)), config=config))
        return torch.cat(seen)

    whole = labels()
    assert set(whole.tolist()) == {1, -1}
    # false alarm: 2000 draws, 5 standard deviations: 6e-7
    assert abs(float((whole == -1).double().mean()) - 0.3) < 5 * math.sqrt(0.3 * 0.7 / 2000)
    assert torch.equal(labels(accumulate=4), whole)


def test_flips_mirror_whole_items():
    seen = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x, c_time):
            seen.append(x.detach().clone())
            return self.weight * x

    ramp = torch.tensor([-1.0, 1.0]).expand(300, 1, 3, 2).contiguous()
    model = Preconditioned(Spy(), EDM(), sigma_data=1.0)
    losses(Trainer(model, ramp, config=TrainConfig(steps=1, batch=300, flip=0.5, times="log_normal_sigma:-8,0.1")))
    slope = (seen[0][..., 1] - seen[0][..., 0]).flatten(1).sign()
    assert bool((slope == slope[:, :1]).all())
    assert abs(int((slope[:, 0] > 0).sum()) - 150) < 5 * math.sqrt(75)  # false alarm 6e-7


def test_settings_that_do_not_fit_are_refused_and_needless_labels_ignored():
    assert len(losses(mlp_trainer(data=(POINTS, torch.zeros(64, dtype=torch.int64))))) == 6
    for shape in ((2,), (1, 8), (8, 8), (1, 4, 8, 8)):  # sound and video among them, which have other axes
        with pytest.raises(ValueError, match=rf"{re.escape(str(shape))} is none; set flip=0"):
            mlp_trainer(data=torch.zeros(64, *shape), flip=0.5)
    with pytest.raises(ValueError, match="uniform times"):
        mlp_trainer(weighting="sigmoid:-1", times="logit_normal:0,1")
    with pytest.raises(ValueError, match="takes 2 arguments"):
        mlp_trainer(times="logit_normal:0,1,2")
    with pytest.raises(ValueError, match="accumulate=3"):
        mlp_trainer(batch=16, accumulate=3)


def test_nan_stops_before_it_touches_the_weights(tmp_path):
    class Fragile(MLP):
        def forward(self, x, c_time, label=None):
            out = super().forward(x, c_time, label)
            return out * (math.nan if self.training and trainer.step == 4 else 1.0)

    trainer = mlp_trainer(Fragile(2, width=8, depth=1))
    good = losses(trainer, 4)
    path = trainer.save(tmp_path)
    before = [t.clone() for t in tensors(trainer)]
    with pytest.raises(DivergedError, match=rf"step 5: loss nan.*likely cause.*{path}") as caught:
        losses(trainer)
    assert caught.value.step == 5
    assert len(good) == 4
    assert all(torch.equal(a, b) for a, b in zip(tensors(trainer), before, strict=True))


def test_a_learning_rate_that_is_too_high_is_named():
    with pytest.raises(DivergedError, match=r"learning rate 100 is too high.*none was saved"):
        losses(mlp_trainer(steps=500, lr=100.0, warmup=0, clip=0.0))


class Pixels(Dataset):
    """Points as float pixels and their labels, drawing on the way."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        return (POINTS[index] + torch.rand(2)).clamp(0, 1) * 255, 0


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_set_on_another_scale_is_refused_before_any_work(workers):
    model = Preconditioned(MLP(2, width=8, depth=1), Flow(), "velocity")
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=r"run from 0 to 255, .*\[-1, 1\].*rescale them"):
        Trainer(model, Pixels(), config=TrainConfig(batch=16, workers=workers))
    assert torch.equal(torch.get_rng_state(), state)


def test_items_on_another_scale_are_refused_and_latents_are_not():
    for data, low in (
        (POINTS * 1000, "-"),
        (-255 * POINTS.abs().clamp(max=1), "-255 to -"),
        (POINTS + 2e20, "2e\\+20"),
    ):
        with pytest.raises(ValueError, match=f"training items run from {low}.*rescale them"):
            mlp_trainer(data=data)
    mlp_trainer(data=(255 * POINTS.abs().clamp(max=1)).byte())
    mlp_trainer(data=torch.cat([POINTS, 30 * torch.eye(2), -30 * torch.eye(2)]), batch=68)


def test_items_out_of_range_are_named():
    data = POINTS.clone()
    data[mlp_trainer()._batches.indices(16, 17)] = 2e20  # after the first batch
    with pytest.raises(DivergedError, match=r"step 2: .*items of this batch reach 2.*e\+20"):
        losses(mlp_trainer(data=data))


def test_another_run_is_not_resumed(tmp_path):
    trainer = mlp_trainer()
    losses(trainer, 2)
    trainer.save(tmp_path)
    for changes, word in (({"seed": 1}, "seed=0"), ({"batch": 32}, "batch=16"), ({"ema": ()}, "ema")):
        with pytest.raises(ValueError, match=word):
            mlp_trainer(**changes).resume(tmp_path)
    with pytest.raises(ValueError, match="items=64"):
        mlp_trainer(data=POINTS[:50]).resume(tmp_path)


def test_resume_begins_at_the_beginning_and_passes_over_damage(tmp_path):
    trainer = mlp_trainer()
    assert trainer.resume(tmp_path / "nothing") is None
    whole = losses(mlp_trainer())
    for stop in (2, 4):
        losses(trainer, stop)
        trainer.save(tmp_path)
    weights = checkpoints(tmp_path)[0] / "optimizer.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    again = mlp_trainer()
    with pytest.warns(UserWarning, match="step_00000004"):
        again.resume(tmp_path)
    assert [path.name for path in checkpoints(tmp_path)] == ["step_00000002"]  # no damaged one counts as one to keep
    assert losses(again, 4) == whole[2:4]
    again.save(tmp_path, keep=1)
    last = mlp_trainer()
    assert last.resume(tmp_path).name == "step_00000004"
    assert losses(last) == whole[4:]


def test_a_run_folder_tells_what_was_done_and_is_a_model(tmp_path):
    path = tmp_path / "run"
    run = RunDir(path, config={"lr": 5e-4}, command=["trilemma", "train", "two words"])
    trainer = unet_trainer(steps=4)
    for record in trainer.steps():
        run.log(record)
        if record.step == 2:
            run.save(trainer)
    with pytest.raises(ValueError, match="already holds a run"):
        RunDir(path, config={})
    again = RunDir(path, config={"lr": 5e-4}, resume=True)
    trainer = unet_trainer(steps=4)
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # what a killed process left of a line
    again.resume(trainer)
    assert [row["step"] for row in again.rows()] == [1, 2]
    for record in trainer.steps():
        again.log(record, extra=1.0)
    again.save(trainer)
    assert [row["step"] for row in again.rows()] == [1, 2, 3, 4]
    starts = json.loads((path / "command.json").read_text())
    assert starts[0]["command"] == "trilemma train 'two words'"
    assert len(starts) == 2
    assert starts[0]["versions"]["torch"] == torch.__version__

    x, t, label = torch.randn(2, 1, 8, 8), torch.tensor(0.01), torch.tensor([1, -1])
    model, info = load_model(path)
    with trainer.averaged() as averaged:
        assert torch.equal(model(x, t, label=label).mean, averaged(x, t, label=label).mean)
    with trainer.averaged(1) as averaged:
        assert torch.equal(load_model(path, ema=1)[0](x, t, label=label).mean, averaged(x, t, label=label).mean)
    trainer.model.eval()
    assert torch.equal(load_model(path, ema=False)[0](x, t, label=label).mean, trainer.model(x, t, label=label).mean)
    with pytest.raises(ValueError, match=r"no ema\.2\.safetensors"):
        load_model(path, ema=2)
    assert info["ema"] == ["power:0.1", "exponential:0.9"]
    for folder in checkpoints(path / "checkpoints"):
        (folder / "ema.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(CorruptError):
        load_model(path)
