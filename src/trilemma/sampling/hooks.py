"""Hooks for the sampling loop: progress with an estimate of the time left, trajectories, several hooks at once."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

from torch import Tensor
from tqdm.auto import tqdm

from .loop import Hook, Progress

__all__ = ["Preview", "ProgressBar", "Trajectory", "together"]


class ProgressBar:
    """A progress bar with the time left; a context manager, or closed by the last step.

    Args:
        label: text before the bar.
        disable: show nothing.
    """

    def __init__(self, label: str = "sampling", *, disable: bool = False) -> None:
        self.label, self.disable = label, disable
        self._bar: Any = None

    def __call__(self, progress: Progress) -> None:
        """Move the bar."""
        if self._bar is None:
            self._bar = tqdm(total=progress.n, desc=self.label, disable=self.disable, leave=False)
        self._bar.update(progress.i - self._bar.n)
        if progress.i == progress.n:
            self.close()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Trajectory:
    """Keeps copies of states along the way.

    Args:
        every: keep every so many steps; the last one always.

    Attributes:
        t: times of the kept states.
        x: the states, each ``(B, ...)``.
        x0: the denoised states at the steps that led to them.
    """

    def __init__(self, every: int = 1) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.every = every
        self.t: list[float] = []
        self.x: list[Tensor] = []
        self.x0: list[Tensor] = []

    def __call__(self, progress: Progress) -> None:
        """Keep this state if it is its turn."""
        if progress.i % self.every == 0 or progress.i == progress.n:
            self.t.append(progress.t)
            self.x.append(progress.x.clone())
            if progress.x0 is not None:
                self.x0.append(progress.x0.clone())


class Preview:
    """Shows the denoiser's guess at the clean items along the way.

    Args:
        show: called with E[x | x_t], shape ``(B, ...)``, and the time; it may draw, write a file or update a page.
        every: call it every so many steps, and at the last one.
    """

    def __init__(self, show: Callable[[Tensor, float], object], every: int = 1) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.show, self.every = show, every

    def __call__(self, progress: Progress) -> None:
        """Show this guess if it is its turn."""
        if progress.x0 is not None and (progress.i % self.every == 0 or progress.i == progress.n):
            self.show(progress.x0, progress.t)


def together(*hooks: Hook) -> Hook:
    """One hook from several; stops if any of them wants to.

    >>> together(lambda p: False, lambda p: True)(None)
    True
    """

    def call(progress: Progress) -> bool:
        return any([bool(hook(progress)) for hook in hooks])  # a list: every hook is called

    return call
