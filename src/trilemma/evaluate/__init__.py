"""Measures of samples against real images: features, then statistics of features, then formulas. Never a model."""

from .agreement import Proportion, class_agreement
from .estimate import Estimate, compare
from .features import Classifier, Reading, train_classifier
from .frechet import frechet_distance
from .moments import Moments
from .stamp import Stamp, require_same
from .suite import DEFAULT, METRICS, measure

__all__ = [
    "DEFAULT",
    "METRICS",
    "Classifier",
    "Estimate",
    "Moments",
    "Proportion",
    "Reading",
    "Stamp",
    "class_agreement",
    "compare",
    "frechet_distance",
    "measure",
    "require_same",
    "train_classifier",
]
