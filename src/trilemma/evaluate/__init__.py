"""Measures of samples against real images: features, then statistics of features, then formulas. Never a model."""

from trilemma.evaluate.agreement import Proportion, class_agreement
from trilemma.evaluate.features import Classifier, Reading, train_classifier
from trilemma.evaluate.frechet import frechet_distance
from trilemma.evaluate.moments import Moments

__all__ = [
    "Classifier",
    "Moments",
    "Proportion",
    "Reading",
    "class_agreement",
    "frechet_distance",
    "train_classifier",
]
