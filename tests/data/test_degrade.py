import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio

from workbench.data.synthetic.degrade import DEGRADATIONS, PRISTINE_CRF, degrade
from workbench.data.synthetic.textures import texture


@pytest.fixture
def frames() -> np.ndarray:
    image = (texture(np.random.default_rng(1), 48).transpose(1, 2, 0) * 255).astype(np.uint8)
    return np.stack([np.roll(image, 2 * t, axis=1) for t in range(16)])


@pytest.mark.parametrize("kind", ["blur", "noise", "scaling"])
def test_degrade_damages_more_with_each_step(kind: str, frames: np.ndarray) -> None:
    scores = [
        peak_signal_noise_ratio(frames, degrade(frames, kind, s, np.random.default_rng(0))[0]) for s in range(1, 6)
    ]
    assert all(a > b for a, b in zip(scores, scores[1:], strict=False)), scores


def test_degrade_drops_repeat_the_last_frame_that_arrived(frames: np.ndarray) -> None:
    damaged, _ = degrade(frames, "frame_drops", 4, np.random.default_rng(0))
    assert np.array_equal(damaged[0], frames[0])
    fresh = 0
    for t in range(1, len(frames)):
        arrived = np.array_equal(damaged[t], frames[t])
        fresh += arrived
        assert arrived or np.array_equal(damaged[t], damaged[t - 1])
    assert 2 <= fresh <= 11  # 60 % of fifteen are lost on average


def test_degrade_by_compression_leaves_the_frames_to_the_encoder(frames: np.ndarray) -> None:
    factors = [degrade(frames, "compression", s, np.random.default_rng(0))[1] for s in range(6)]
    assert factors == sorted(factors) and factors[0] == PRISTINE_CRF and factors[5] <= 51
    assert degrade(frames, "compression", 5, np.random.default_rng(0))[0] is frames


def test_degrade_at_severity_zero_changes_nothing(frames: np.ndarray) -> None:
    for kind in DEGRADATIONS:
        damaged, crf = degrade(frames, kind, 0, np.random.default_rng(0))
        assert np.array_equal(damaged, frames) and crf == PRISTINE_CRF


def test_degrade_names_what_it_does_not_know(frames: np.ndarray) -> None:
    with pytest.raises(ValueError, match="unknown degradation 'rain'; known: compression"):
        degrade(frames, "rain", 1, np.random.default_rng(0))
    with pytest.raises(ValueError, match="severity=6"):
        degrade(frames, "blur", 6, np.random.default_rng(0))
