import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from workbench.analysis.trust.masks import MASK_METRICS, mask_auroc, mass_in_mask, pointing_hit, temporal_mass

VALUES = np.zeros((1, 2, 2, 2))
VALUES[0, 0] = [[3, 1], [-5, 0]]
VALUES[0, 1] = [[2, 0], [2, -1]]
MASK = np.zeros((1, 2, 2, 2), bool)
MASK[0, 0, 0] = True  # the first row of the first time step


def test_mask_metrics_by_hand():
    assert pointing_hit(VALUES, MASK) == [1.0]
    assert mass_in_mask(VALUES, MASK) == pytest.approx([4 / 8])
    assert temporal_mass(VALUES, MASK) == pytest.approx([4 / 8])
    later = np.roll(MASK, 1, axis=1)
    assert pointing_hit(VALUES, later) == [0.0]
    assert mass_in_mask(VALUES, later) == pytest.approx([2 / 8])
    assert temporal_mass(VALUES, later) == pytest.approx([4 / 8])


def test_pointing_hit_shares_ties():
    even = np.ones((1, 2, 2, 2))
    assert pointing_hit(even, MASK) == [2 / 8]


def test_mask_auroc_equals_scikit_learn():
    rng = np.random.default_rng(0)
    values, mask = rng.integers(0, 5, (6, 2, 3, 3)).astype(float), rng.random((6, 2, 3, 3)) < 0.3
    expected = [roc_auc_score(m.ravel(), v.ravel()) for v, m in zip(values, mask, strict=True)]
    np.testing.assert_allclose(mask_auroc(values, mask), expected)
    assert np.isnan(mask_auroc(values[:1], np.ones_like(mask[:1]))).all()


def test_mass_of_a_map_that_speaks_against_the_target_everywhere_is_the_masks_share():
    assert mass_in_mask(-np.ones((1, 2, 2, 2)), MASK) == [2 / 8]


@pytest.mark.parametrize("metric", list(MASK_METRICS))
def test_mask_metrics_refuse_another_shape_and_soft_masks(metric):
    for mask in (MASK[:, :1], MASK.astype(float)):
        with pytest.raises(ValueError, match="the mask bool"):
            MASK_METRICS[metric](VALUES, mask)
