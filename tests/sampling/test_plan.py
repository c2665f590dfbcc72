"""Plans as data: JSON, files, text, pictures; what they refuse; and that the loop does what the numbers say."""

import json

import pytest
import torch

from oracles import F64, PROCESS_CASES
from trilemma.denoise import Gaussian
from trilemma.numerics.noise import Noise
from trilemma.process import PROCESSES, VP, Flow
from trilemma.process.grid import karras_grid, log_snr_grid
from trilemma.sampling import RULES, Plan, exponential, get_rule, run, sample

PLANS = [name for name in RULES if isinstance(get_rule(name)(VP(), log_snr_grid(VP(), 3)), Plan)]


@pytest.mark.parametrize("name", PLANS)
def test_json_keeps_every_digit(name, tmp_path):
    for process in (VP(), *(make() for p, make in PROCESSES.items() if p.startswith("i") or p == "edm")):
        plan = get_rule(name)(process, karras_grid(process, 7))
        again = Plan.from_json(plan.to_json())
        assert again == plan
        for field in ("ts", "a", "b", "c"):
            assert torch.equal(getattr(again, field), getattr(plan, field))
        plan.save(tmp_path / "plan.json")
        assert Plan.load(tmp_path / "plan.json") == plan
        assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


def test_a_plan_is_a_step_of_its_own():
    """Loaded from JSON and run without the rule it gives the same samples."""
    from oracles import Mixture

    model, ts = Mixture.example().torch(Flow()), log_snr_grid(Flow(), 8)
    rule = exponential(3, 0.5)
    plan = Plan.from_json(rule(Flow(), ts).to_json())
    first = sample(model, (3, 2), ts, rule, seeds=4)
    second = sample(model, (3, 2), ts, lambda process, ts: plan, seeds=4)
    assert torch.equal(first, second)
    assert plan.steps == 8


def test_a_plan_does_its_sums():
    """Two lags of states and three of denoised states, against the definition, with a denoiser that answers the time."""
    gen = torch.Generator().manual_seed(0)
    a, b, c = (torch.randn(5, k, generator=gen, dtype=F64) for k in (2, 3, 1))
    a[0, 1:] = b[0, 1:] = b[1, 2:] = 0
    ts = torch.tensor([1.0, 0.8, 0.6, 0.5, 0.1, 0.0], dtype=F64)
    noise, start = Noise(0, 2), torch.tensor([[1.0], [-2.0]], dtype=F64)
    out = run(Plan(ts, a, b, c[:, 0]), lambda x, t: Gaussian(x * t), start, 5, noise)
    xs, ds = [start], []
    for i in range(5):
        ds.append(xs[i] * ts[i])
        x = c[i, 0] * noise.at(i).normal_like(start)
        x = (
            x
            + sum(a[i, k] * xs[i - k] for k in range(2) if i >= k)
            + sum(b[i, j] * ds[i - j] for j in range(3) if i >= j)
        )
        xs.append(x)
    torch.testing.assert_close(out, xs[-1])


def test_equality_is_by_value():
    plan = exponential(2)(VP(), log_snr_grid(VP(), 4))
    assert plan == exponential(2)(VP(), log_snr_grid(VP(), 4))
    assert plan != exponential(2, 0.1)(VP(), log_snr_grid(VP(), 4))
    assert plan != "plan"


def test_text_and_picture_show_every_number():
    plan = exponential(2, 1.0)(Flow(), torch.tensor([1.0, 0.5, 0.25, 0.0], dtype=F64))
    lines = str(plan).splitlines()
    assert len(lines) == 5
    for i in range(3):
        shown = [float(word) for word in lines[i + 1].split()]
        expected = [i, float(plan.ts[i]), *plan.a[i].tolist(), *plan.b[i].tolist(), float(plan.c[i])]
        assert shown == pytest.approx(expected, abs=5.1e-7)
    axes = plan.plot().axes[0]
    drawn = {
        line.get_label(): list(line.get_ydata()) for line in axes.get_lines() if not line.get_label().startswith("_")
    }
    assert drawn["a"] == plan.a[:, 0].tolist()
    assert drawn["b[1]"] == plan.b[:, 1].tolist()
    assert drawn["c"] == plan.c.tolist()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"ts": [1.0, 0.5]}, r"\(N\+1,\)"),
        ({"c": [0.0]}, r"\(N,\)"),
        ({"a": [[1.0], [float("nan")]]}, "a of step 1"),
        ({"b": [[float("inf"), 0.0], [1.0, 0.0]]}, "b of step 0"),
        ({"b": [[1.0, 0.5], [1.0, 0.0]]}, "b looks back"),
        ({"a": [1.0, 1.0]}, "lags"),
    ],
)
def test_bad_plans_are_refused(change, word):
    good = {"ts": [1.0, 0.5, 0.0], "a": [[1.0], [0.0]], "b": [[0.5, 0.0], [0.5, 0.5]], "c": [0.0, 0.0]}
    assert Plan(**good).steps == 2
    with pytest.raises(ValueError, match=word):
        Plan(**{**good, **change})


@pytest.mark.parametrize(
    "text", ["", "[1, 2]", "{}", json.dumps({"ts": [1, 0], "a": [[1]], "b": [[1]]}), '{"ts": "x"}', "null"]
)
def test_text_that_is_no_plan_is_refused(text):
    with pytest.raises(ValueError, match="plan"):
        Plan.from_json(text)


@pytest.mark.parametrize("ts", [[0.5, 1.0], [1.0, 1.0], [1.0, float("nan")], [2.0, 0.0]])
def test_times_that_cannot_be_sampled_along_are_no_plan(ts):
    with pytest.raises(ValueError, match=r"times of a grid|ts"):
        Plan(ts, [[1.0]], [[0.0]], [0.0])


@pytest.mark.parametrize("process", PROCESS_CASES.values(), ids=PROCESS_CASES)
def test_constant_answers_are_kept(process):
    """If D is always m and x is alpha m, every rule that solves the linear part exactly keeps x at alpha m.

    Euler-Maruyama and reverse diffusion take steps in the linear part too; the angular rules are exact for another Gaussian.
    """
    ts = torch.tensor([0.95, 0.7, 0.5, 0.45, 0.1, 0.003], dtype=F64)
    for name in PLANS:
        if RULES[name].beyond or name in ("euler_maruyama", "reverse_diffusion"):
            continue
        plan = get_rule(name)(process, ts)
        alpha = process.alpha(ts)
        for i in range(plan.steps):
            lags = [j for j in range(plan.a.shape[1]) if j <= i]
            total = sum(plan.a[i, j] * alpha[i - j] for j in lags) + plan.b[i].sum()
            assert float(total) == pytest.approx(float(alpha[i + 1]), rel=1e-8, abs=1e-10), name
