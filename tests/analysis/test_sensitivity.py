import numpy as np
import pytest

from tests.analysis.toys import GRID, tube_sum
from workbench.analysis.trust.sensitivity import TubeInfidelity, largest_sensitivity


def test_infidelity_of_exact_attributions_is_zero_whatever_their_scale():
    output, fill, exact = tube_sum()
    measure = TubeInfidelity(output, fill, GRID)
    np.testing.assert_allclose(measure(exact), 0, atol=1e-4)
    np.testing.assert_allclose(measure(1e-12 * exact), 0, atol=1e-4)


def test_infidelity_equals_the_share_of_change_that_the_best_multiple_misses():
    output, fill, exact = tube_sum()
    other = np.random.default_rng(7).normal(size=exact.shape)
    measure = TubeInfidelity(output, fill, GRID, perturbations=15)
    found = measure(other)
    assert len(measure._known) <= 3 * 16  # 15 draws and the whole clip, each asked once for all maps
    kept = {i: [np.frombuffer(key[1], bool) for key in measure._known if key[0] == i] for i in range(3)}
    for i in range(3):
        gone = 1.0 - np.array([k for k in kept[i] if not k.all()])  # (15, 18)
        change, told = gone @ exact[i].ravel(), gone @ other[i].ravel()
        best = (told @ change) / (told @ told)
        assert found[i] == pytest.approx(((change - best * told) ** 2).sum() / (change**2).sum(), rel=1e-3)


def test_infidelity_asks_the_model_once_for_all_maps(monkeypatch):
    output, fill, exact = tube_sum()
    measure = TubeInfidelity(output, fill, GRID)
    measure(exact)
    monkeypatch.setattr(output, "logits", lambda *_: pytest.fail("asked again"))
    assert (measure(np.random.default_rng(0).random(exact.shape)) > 0.01).all()


def test_infidelity_is_undefined_where_nothing_changes():
    output, _, exact = tube_sum()
    assert np.isnan(TubeInfidelity(output, output.pixel_values, GRID)(exact)).all()
    with pytest.raises(ValueError, match="at least 2"):
        TubeInfidelity(output, output.pixel_values, GRID, perturbations=1)


def test_largest_sensitivity_of_the_clip_itself_is_the_largest_jitter():
    """A map that is the frames: moved by at most 5 levels of 100, and by nearly that much."""
    frames = np.full((2, 4, 6, 6, 3), 100, np.uint8)
    found = largest_sensitivity(lambda x: x[..., 0].astype(np.float32), frames, levels=5, samples=4)
    # Uniform in [-5, 5], rounded: a root mean square of 2.92 levels against 100.
    np.testing.assert_allclose(found, 0.03, atol=0.003)


def test_largest_sensitivity_of_a_map_that_never_looks_is_zero():
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 6, 3), np.uint8)
    found = largest_sensitivity(lambda x: np.ones((len(x), 2, 3, 3)), frames)
    np.testing.assert_array_equal(found, 0)
    with pytest.raises(ValueError, match="levels=0"):
        largest_sensitivity(lambda x: x, frames, levels=0)
