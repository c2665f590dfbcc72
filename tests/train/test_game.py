"""Several players in one trainer: who moves when and on what, and the trainer's promises for a game as for a denoiser."""

import json
import math

import pytest
import torch
from test_distributed import on_ranks
from torch import nn

from trilemma.baselines import load_game
from trilemma.baselines.gan import GAN
from trilemma.train import DivergedError, RunDir, TrainConfig, Trainer, load_model
from trilemma.train.game import Adam, Game, Minibatch

IMAGES = torch.randint(0, 256, (24, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(24) % 3
SETTINGS = {"steps": 6, "batch": 8, "lr": 1e-3, "warmup": 2, "decay": "cosine", "clip": 0.0, "precision": "fp32"}


class Tug(Game):
    """Two numbers: the first follows twice the second, the second follows the first and the mean of the items."""

    def __init__(self):
        super().__init__((1,), 0, {})
        self.a, self.b = nn.Parameter(torch.tensor([0.5])), nn.Parameter(torch.tensor([-1.0]))

    def players(self):
        return {"first": [self.a], "second": [self.b]}

    def loss(self, player, batch: Minibatch):
        if player == "first":
            assert not self.b.requires_grad
            return (self.a - 2 * self.b).square().mean(), {"mean": batch.x.mean()}
        assert not self.a.requires_grad
        return (self.b - self.a - batch.x).square().mean(), {}

    def adam(self, player, step, usual):
        return Adam(2 * usual.lr, (0.5, 0.9)) if player == "first" else usual

    def draw(self, noise, label):
        return noise.normal((noise.n, 1)) + self.b


def gan_trainer(world=None, data=(IMAGES, LABELS), **changes):
    torch.manual_seed(0 if world is None else world.rank)
    game = GAN((1, 8, 8), classes=3, widths=(4, 8), latents=8, anneal=4)
    config = TrainConfig(**{**SETTINGS, "ema": ("power:0.1", "exponential:0.9"), "flip": 0.5, **changes})
    return Trainer(game, data, config=config, world=world)


def tensors(trainer):
    yield from trainer.model.state_dict().values()
    for average in trainer.ema.averages:
        yield from average.values()
    for parameter in trainer.model.parameters():
        yield from (value for _, value in sorted(trainer.optimizer.state[parameter].items()))


def rows(trainer, last=None):
    out = []
    for record in trainer.steps():
        out.append([record.loss, record.grad_norm, *record.figures.values()])
        if record.step == last:
            break
    return out


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True))


def test_players_move_in_turn_and_the_second_sees_what_the_first_did():
    """Against two optimisers of torch, by hand."""
    data = torch.linspace(-1, 1, 12)[:, None]
    trainer = Trainer(Tug(), data, config=TrainConfig(**{**SETTINGS, "lr": 0.1, "batch": 12, "weight_decay": 0.1}))
    a, b = torch.tensor([0.5], requires_grad=True), torch.tensor([-1.0], requires_grad=True)
    of_a = torch.optim.AdamW([a], betas=(0.5, 0.9), weight_decay=0.1)
    of_b = torch.optim.AdamW([b], betas=(0.9, 0.99), weight_decay=0.1)
    for record in trainer.steps():
        losses = []
        for optimizer, factor, loss in (
            (of_a, 2, lambda: (a - 2 * b.detach()).square().mean()),
            (of_b, 1, lambda: (b - a.detach() - data).square().mean()),
        ):
            optimizer.zero_grad()
            losses.append(loss())
            losses[-1].backward()
            optimizer.param_groups[0]["lr"] = factor * trainer.config.learning_rate(record.step - 1)
            optimizer.step()
        assert record.figures["loss_first"] == pytest.approx(losses[0].item(), rel=1e-5)
        assert record.loss == record.figures["loss_second"] == pytest.approx(losses[1].item(), rel=1e-5)
        assert record.figures["mean"] == pytest.approx(0, abs=1e-7)
        torch.testing.assert_close(trainer.model.a, a, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(trainer.model.b, b, rtol=1e-5, atol=1e-6)
    assert trainer.model.a.requires_grad
    assert trainer.model.b.requires_grad


def test_every_move_has_noise_of_its_own():
    seen = []

    class Spy(Tug):
        def loss(self, player, batch):
            seen.extend(round(float(n.normal((n.n, 1))[0]), 9) for n in (batch.noise, batch.noise.at(1), batch.whole))
            return super().loss(player, batch)

    rows(Trainer(Spy(), torch.zeros(8, 1), config=TrainConfig(**{**SETTINGS, "steps": 2})))
    assert len(seen) == len(set(seen)) == 12


def test_parameters_that_were_frozen_stay_so():
    game = Tug()
    game.a.requires_grad_(False)
    with pytest.raises(RuntimeError, match="does not require grad"):  # the first player has nothing to move
        rows(Trainer(game, torch.zeros(8, 1), config=TrainConfig(**SETTINGS)))
    assert not game.a.requires_grad


@pytest.mark.parametrize("accumulate", [1, 2])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, accumulate):
    whole = gan_trainer(accumulate=accumulate)
    expected = rows(whole)
    first = gan_trainer(accumulate=accumulate)
    got = rows(first, 2)
    first.save(tmp_path)
    torch.manual_seed(5)
    second = gan_trainer(accumulate=accumulate)
    assert second.resume(tmp_path).name == "step_00000002"
    got += rows(second)
    assert got == expected
    assert equal(second, whole)


def test_micro_batches_add_up_to_the_batch():
    whole, parts = gan_trainer(), gan_trainer(accumulate=4)
    for a, b in zip(rows(whole), rows(parts), strict=True):
        assert b == pytest.approx(a, rel=1e-4, abs=1e-6)


def play(world, folder, changes):
    trainer = gan_trainer(world, **changes)
    got = rows(trainer)
    trainer.save(folder)
    return got


@pytest.mark.timeout(120)
@pytest.mark.parametrize("changes", [{}, {"accumulate": 2}], ids=str)
def test_two_processes_play_as_one(tmp_path, changes):
    one = gan_trainer()
    expected = rows(one)
    for a, b in zip(on_ranks(2, tmp_path, play, changes), expected, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)
    game, _ = load_game(tmp_path)
    with one.averaged() as averaged:
        for a, b in zip(game.generator.parameters(), averaged.generator.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_a_run_of_a_game_is_loaded_as_a_game_only(tmp_path):
    run = RunDir(tmp_path / "run", config={}, command=["x"])
    trainer = gan_trainer(steps=3)
    for record in trainer.steps():
        run.log(record)
    run.save(trainer)
    row = run.rows()[-1]
    assert {"loss", "loss_generator", "loss_discriminator", "grad_norm_generator", "r1", "r2", "step"} <= set(row)
    assert row["loss"] == row["loss_generator"]
    game, info = load_game(run.path)
    assert info["ema"] == ["power:0.1", "exponential:0.9"]
    label = torch.tensor([0, 1, 2, -1])
    with trainer.averaged() as averaged:
        expected = averaged.sample(4, seeds=3, label=label)
    assert torch.equal(game.sample(4, seeds=3, label=label), expected)
    assert not torch.equal(trainer.model.sample(4, seeds=3, label=label), expected)
    for ema in (True, False):  # the discriminator is never averaged
        for a, b in zip(
            load_game(run.path, ema=ema)[0].discriminator.parameters(), trainer.model.discriminator.parameters()
        ):
            assert torch.equal(a, b)
    with pytest.raises(ValueError, match="family 'gan', not a denoiser"):
        load_model(run.path)
    assert json.loads((run.path / "checkpoints/step_00000003/config.json").read_text())["game"]["name"] == "gan"


def test_an_item_is_drawn_from_its_own_seed_and_label():
    game = gan_trainer().model
    seeds, label = [5, 6, 7], torch.tensor([0, 1, 2])
    together = game.sample(3, seeds=seeds, label=label)
    for i in range(3):
        torch.testing.assert_close(game.sample(1, seeds=seeds[i : i + 1], label=label[i : i + 1]), together[i : i + 1])
    free = game.sample(600, seeds=1)
    assert free.shape == (600, 1, 8, 8)
    for wrong in (torch.tensor([0, 1, 3]), torch.tensor([0, 1, -2]), torch.tensor([0])):
        with pytest.raises(ValueError, match="3 classes in"):
            game.sample(3, label=wrong)
    with pytest.raises(ValueError, match="knows no classes"):
        Tug().sample(3, label=label)


def test_what_a_game_cannot_have_is_refused():
    for changes in ({"compile": True}, {"strategy": "fsdp2"}):
        with pytest.raises(ValueError, match="are for denoisers, not for GAN"):
            gan_trainer(**changes)
    with pytest.raises(ValueError, match="no error by noise level"):
        gan_trainer().loss_by_noise()


def test_the_player_that_diverges_is_named(tmp_path):
    class Broken(Tug):
        def loss(self, player, batch):
            loss, figures = super().loss(player, batch)
            return (loss * math.nan if player == "second" and batch.step == 2 else loss), figures

    trainer = Trainer(Broken(), torch.ones(8, 1), config=TrainConfig(**SETTINGS))
    rows(trainer, 2)
    b = trainer.model.b.clone()
    with pytest.raises(DivergedError, match=r"step 3: second, loss nan"):
        rows(trainer)
    assert torch.equal(trainer.model.b, b)


def test_a_loss_that_rises_is_no_divergence_unless_it_is_an_error():
    class Rising(Tug):
        def loss(self, player, batch):
            loss, figures = super().loss(player, batch)
            loss = loss * (1 + batch.step) ** 2
            return loss, {"error": loss.detach()} if watched and player == "second" else figures

    settings = {**SETTINGS, "steps": 120, "lr": 0.0}
    watched = False
    rows(Trainer(Rising(), torch.ones(8, 1), config=TrainConfig(**settings)))
    watched = True
    with pytest.raises(DivergedError, match="step 50"):
        rows(Trainer(Rising(), torch.ones(8, 1), config=TrainConfig(**settings)))
