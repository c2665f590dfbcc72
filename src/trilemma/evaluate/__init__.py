"""Measures of samples against real images: features, then statistics of features, then formulas. Never a model."""

from .agreement import Proportion, class_agreement
from .estimate import Estimate, compare
from .feature_likelihood import feature_likelihood_divergence
from .features import Classifier, Reading, train_classifier
from .frechet import frechet_distance, frechet_estimates
from .inception_score import ClassSums, inception_score, inception_score_splits
from .kernel import clip_distance, kernel_distance, kernel_distance_subsets
from .manifold import density_coverage, expected_coverage, precision_recall
from .memorisation import authenticity, copied, copy_score, nearer_than_held_out, share_copied
from .moments import Moments
from .perceptual import perceptual_distance, read_channel_weights
from .pictures import psnr, ssim
from .rows import nearest
from .sliced import sliced_wasserstein
from .stamp import Stamp, require_same
from .suite import DEFAULT, METRICS, measure
from .vendi import vendi_score

__all__ = [
    "DEFAULT",
    "METRICS",
    "ClassSums",
    "Classifier",
    "Estimate",
    "Moments",
    "Proportion",
    "Reading",
    "Stamp",
    "authenticity",
    "class_agreement",
    "clip_distance",
    "compare",
    "copied",
    "copy_score",
    "density_coverage",
    "expected_coverage",
    "feature_likelihood_divergence",
    "frechet_distance",
    "frechet_estimates",
    "inception_score",
    "inception_score_splits",
    "kernel_distance",
    "kernel_distance_subsets",
    "measure",
    "nearer_than_held_out",
    "nearest",
    "perceptual_distance",
    "precision_recall",
    "psnr",
    "read_channel_weights",
    "require_same",
    "share_copied",
    "sliced_wasserstein",
    "ssim",
    "train_classifier",
    "vendi_score",
]
