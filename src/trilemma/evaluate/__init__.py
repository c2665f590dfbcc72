"""Measures of samples against real images: features, then statistics of features, then formulas. Never a model."""

from .agreement import Proportion, class_agreement
from .features import Classifier, Reading, train_classifier
from .frechet import frechet_distance
from .moments import Moments

__all__ = [
    "Classifier",
    "Moments",
    "Proportion",
    "Reading",
    "class_agreement",
    "frechet_distance",
    "train_classifier",
]
