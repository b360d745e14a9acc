"""The curve through which the quality literature reads its linear correlation: four-parameter logistic, least squares.

A quality model need not speak in the viewers' scale, so predictions are mapped to it by

    f(x) = (b1 - b2) / (1 + exp(-(x - b3) / |b4|)) + b2

before Pearson's correlation is taken. The no-reference video literature fits it with SciPy's Levenberg-Marquardt, from
b1, b2, b3, b4 = largest y, smallest y, mean x, a quarter of x's standard deviation; so does this.
"""

import numpy as np
from scipy.optimize import leastsq
from scipy.special import expit

_CALLS = 5000


def logistic(x: np.ndarray, parameters: np.ndarray) -> np.ndarray:
    """f(x) at x (n,) for the parameters b1 to b4."""
    top, bottom, centre, width = parameters
    return (top - bottom) * expit((x - centre) / abs(width)) + bottom


def fit_logistic(x: np.ndarray, y: np.ndarray) -> np.ndarray | None:
    """The least-squares b1 to b4 of y (n,) over x (n,), (4,); None where either has no spread.

    b1 below b2 is a falling curve: the predictions run against y. Where the relation is straight or exponential the
    best curve lies at infinity; the search then ends after 5000 calls with large parameters that mean nothing, and a
    curve that is as good as the best but for some 1e-5 of the correlation. Where there is hardly a relation the best
    curve may be a step between two predictions: there are many such, and this search, like SciPy's from the same start,
    may end at another than the best.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    spread = x.std() if len(x) else 0.0
    if spread <= 1e-12 * np.abs(x).max(initial=0.0) or np.ptp(y) == 0:
        return None

    def residuals(parameters: np.ndarray) -> np.ndarray:
        return logistic(x, parameters) - y

    def slopes(parameters: np.ndarray) -> np.ndarray:
        top, bottom, centre, width = parameters
        rise = expit((x - centre) / abs(width))
        bend = (top - bottom) * rise * (1 - rise) / abs(width)
        return np.stack([rise, 1 - rise, -bend, -bend * (x - centre) / width])

    start = np.array([y.max(), y.min(), x.mean(), spread / 4])
    # full_output: what the search says is returned, not warned of.
    found = leastsq(
        residuals, start, Dfun=slopes, col_deriv=True, ftol=1e-12, xtol=1e-12, maxfev=_CALLS, full_output=True
    )
    return found[0] if np.isfinite(found[0]).all() else None
