"""Floor 3: the health of a trained denoiser."""

from .check import Health as Health
from .check import check as check
from .rules import Finding as Finding

__all__ = ["Finding", "Health", "check"]
