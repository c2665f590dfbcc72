"""Floor 3: the health of a trained denoiser."""

from .check import Finding as Finding
from .check import Health as Health
from .check import check as check

__all__ = ["Finding", "Health", "check"]
