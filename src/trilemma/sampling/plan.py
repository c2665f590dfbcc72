"""Linear multistep samplers as data: a row of numbers for every step.

    x_{i+1} = sum_k a_ik x_{i-k} + sum_j b_ij D_{i-j} + c_i xi_i,     D_i = E[x | x_i],                      (1)

with xi_i standard normal. The numbers depend on the process and the grid only, so a plan can be printed, drawn, saved, compared
and tested without a network.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._optional import require
from ..numerics.noise import Noise
from ..process.gaussian import GaussianProcess
from .loop import Carry, Denoise, check_grid

__all__ = ["Plan"]


@dataclass(frozen=True, eq=False)
class Plan:
    """The numbers of (1); it is itself a step for the loop.

    Args:
        ts: times, shape ``(N+1,)``.
        a: weights of this and earlier states, shape ``(N, lags)``.
        b: weights of this and earlier denoised states, shape ``(N, order)``.
        c: standard deviations of the noise, shape ``(N,)``.

    Raises:
        ValueError: the shapes disagree, the times do not decrease in [0, 1], an entry is not finite, or a step looks back
            beyond the first.

    Cost:
        One call a step.

    >>> plan = Plan([1.0, 0.0], [[0.0]], [[1.0]], [0.0])         # one jump to the denoised state
    >>> Plan.from_json(plan.to_json()) == plan
    True
    """

    ts: Tensor
    a: Tensor
    b: Tensor
    c: Tensor

    def __post_init__(self) -> None:
        for name in ("ts", "a", "b", "c"):
            object.__setattr__(self, name, torch.as_tensor(getattr(self, name), dtype=torch.float64).cpu())
        n = len(self.c)
        if self.ts.shape != (n + 1,) or self.a.ndim != 2 or self.b.ndim != 2 or len(self.a) != n or len(self.b) != n:
            shapes = {name: tuple(getattr(self, name).shape) for name in ("ts", "a", "b", "c")}
            raise ValueError(f"a plan of N steps has ts (N+1,), a (N, lags), b (N, order) and c (N,); got {shapes}")
        check_grid(self.ts)
        for name, table in (("a", self.a), ("b", self.b), ("c", self.c)):
            if not bool(torch.isfinite(table).all()):
                row = int((~torch.isfinite(table.reshape(n, -1))).any(1).long().argmax())
                raise ValueError(
                    f"{name} of step {row} is {table[row].tolist()}; every number of a plan must be finite"
                )
            if table.ndim == 2 and any(bool(table[i, i + 1 :].any()) for i in range(min(n, table.shape[1]))):
                raise ValueError(f"{name} looks back beyond the first state in one of the first {table.shape[1]} steps")
        rows = [
            (self._terms(self.a[i]), self._terms(self.b[i]), float(self.c[i])) for i in range(n)
        ]  # python floats: the loop does no arithmetic on tensors of one element
        object.__setattr__(self, "_rows", rows)
        object.__setattr__(self, "_times", list(self.ts.unbind()))

    @staticmethod
    def _terms(row: Tensor) -> list[tuple[int, float]]:
        return [(k, w) for k, w in enumerate(row.tolist()) if w != 0]

    @property
    def steps(self) -> int:
        """Number N of steps, and of calls."""
        return len(self.c)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and all(
            torch.equal(getattr(self, name), getattr(other, name)) for name in ("ts", "a", "b", "c")
        )

    def __call__(self, denoise: Denoise, x: Tensor, i: int, carry: Carry, noise: Noise) -> tuple[Tensor, Carry]:
        """Equation (1)."""
        a, b, c = self._rows[i]  # type: ignore[attr-defined]
        mean = denoise(x, self._times[i]).mean  # type: ignore[attr-defined]
        xs, ds = ((), ()) if carry is None else carry
        xs, ds = (x, *xs)[: self.a.shape[1]], (mean, *ds)[: self.b.shape[1]]
        out: Tensor | None = None
        for history, terms in ((xs, a), (ds, b)):
            for k, weight in terms:
                out = history[k] * weight if out is None else out.add_(history[k], alpha=weight)
        out = torch.zeros_like(x) if out is None else out
        if c:
            out.add_(noise.normal_like(x), alpha=c)
        return out, (xs, ds)

    def rule(self, process: GaussianProcess, ts: Tensor) -> Plan:
        """This plan as a rule for its own times: ``sample(model, shape, plan.ts, plan.rule)``.

        Raises:
            ValueError: the times are others.
        """
        if not torch.equal(ts, self.ts):
            raise ValueError(
                f"this plan belongs to {self.steps} steps of its own; give its times, plan.ts, as the grid"
            )
        return self

    def __str__(self) -> str:
        def join(row: Tensor) -> str:
            return " ".join(f"{w:10.6f}" for w in row.tolist())

        wide_a, wide_b = 11 * self.a.shape[1] - 1, 11 * self.b.shape[1] - 1
        lines = [f"{'step':>4} {'t':>10}  {'a: states':<{wide_a}}  {'b: denoised':<{wide_b}}  {'c: noise':>10}"]
        for i in range(self.steps):
            t = float(self.ts[i])
            lines.append(f"{i:4d} {t:10.6f}  {join(self.a[i])}  {join(self.b[i])}  {float(self.c[i]):10.6f}")
        return "\n".join([*lines, f"{self.steps:4d} {float(self.ts[-1]):10.6f}"])

    def to_json(self) -> str:
        """The plan as JSON; numbers keep all their digits."""
        return json.dumps({name: getattr(self, name).tolist() for name in ("ts", "a", "b", "c")})

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that :meth:`to_json` wrote.

        Raises:
            ValueError: the text is not the JSON of a plan.
        """
        try:
            data: dict[str, Any] = json.loads(text)
            return cls(**{name: torch.tensor(data[name], dtype=torch.float64) for name in ("ts", "a", "b", "c")})
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"this is not the JSON of a plan: {error!r}; it needs ts, a, b and c") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON to a file, all or nothing."""
        path = Path(path)
        part = path.with_name(path.name + ".part")
        part.write_text(self.to_json())
        os.replace(part, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """The plan that :meth:`save` wrote."""
        return cls.from_json(Path(path).read_text())

    def plot(self) -> Any:
        """Draw the weights against the step; returns a matplotlib figure (needs the extra ``train``)."""
        figure = require("matplotlib.figure", extra="train").Figure(figsize=(8, 3.2), layout="constrained")
        axes = figure.subplots()
        for name, table in (("a", self.a), ("b", self.b), ("c", self.c[:, None])):
            for k in range(table.shape[1]):
                label = name if table.shape[1] == 1 else f"{name}[{k}]"
                axes.plot(range(self.steps), table[:, k].tolist(), marker=".", label=label)
        axes.axhline(0, color="grey", linewidth=0.5)
        axes.set(xlabel="step", ylabel="weight", title=f"{self.steps} steps")
        axes.legend()
        return figure
