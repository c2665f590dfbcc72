"""Where images come from, and how they go back to pixels: everything inside is in model units, [-1, 1]."""

from .dataset import DataSet
from .load import FORMATS, load

__all__ = ["FORMATS", "DataSet", "load"]
