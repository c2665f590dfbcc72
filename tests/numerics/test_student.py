"""Student's quantiles against SciPy's, on both sides of the change of method."""

import math

import pytest
from scipy.stats import norm, t

from trilemma.numerics.student import quantile


@pytest.mark.parametrize("confidence", [0.5, 0.683, 0.95, 0.999])
@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 15, 59, 60, 400])
def test_quantiles_are_those_of_student(confidence, degrees):
    assert quantile(confidence, degrees) == pytest.approx(t.ppf((1 + confidence) / 2, degrees), rel=1e-7)


def test_ever_more_degrees_are_the_normal_law():
    assert quantile(0.95) == pytest.approx(norm.ppf(0.975), rel=1e-12)
    assert quantile(0.95, 2.5) == pytest.approx(t.ppf(0.975, 2.5), rel=1e-5)


@pytest.mark.parametrize(("confidence", "degrees"), [(1.0, 5), (0.0, 5), (95.0, 5), (0.95, 0), (0.95, math.nan)])
def test_mistakes_are_named(confidence, degrees):
    with pytest.raises(ValueError, match=r"confidence must lie|at least 1 degree"):
        quantile(confidence, degrees)
