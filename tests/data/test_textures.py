import numpy as np
import pytest

from workbench.data.synthetic.textures import (
    SHAPES,
    SURFACES,
    dead_leaves,
    flat,
    limb,
    natural,
    noise,
    silhouette,
    sprite,
    texture,
    white,
)


def test_silhouette_has_the_area_of_its_shape() -> None:
    box = 4.0  # the sprite spans [-1, 1] in both directions
    areas = {
        "disk": np.pi * 0.92**2,
        "ring": np.pi * (0.92**2 - 0.5**2),
        "square": 2 * 0.95**2,  # corners at radius 0.95
        "triangle": 3 * np.sqrt(3) / 4 * 0.95**2,
        "pentagon": 2.5 * np.sin(2 * np.pi / 5) * 0.95**2,
    }
    for name, area in areas.items():
        assert silhouette(name, 256).mean() * box == pytest.approx(area, rel=0.02), name


def test_silhouette_keeps_clear_of_the_rim_so_that_sampling_never_cuts_it() -> None:
    for name in SHAPES:
        cover = silhouette(name, 64)
        rim = np.concatenate([cover[0], cover[-1], cover[:, 0], cover[:, -1]])
        assert rim.max() == 0, name
        assert cover.max() == 1, name


def test_silhouette_refuses_an_unknown_shape() -> None:
    with pytest.raises(ValueError, match="unknown shape 'blob'"):
        silhouette("blob", 32)


def test_noise_falls_off_with_the_given_exponent() -> None:
    # Before clipping to two quantiles the amplitude spectrum is exact; after it, the slope is still near.
    field = noise(np.random.default_rng(0), 256, 1.0)
    amplitude = np.abs(np.fft.rfft2(field - field.mean()))
    frequency = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256)[None])
    band = (frequency > 0.02) & (frequency < 0.3)
    slope = np.polyfit(np.log(frequency[band]), np.log(amplitude[band] + 1e-9), 1)[0]
    assert slope == pytest.approx(-1.0, abs=0.15)


def test_texture_and_sprites_are_in_range_and_repeat_with_their_seed() -> None:
    for seed in range(12):
        image = texture(np.random.default_rng(seed), 48)
        assert image.shape == (3, 48, 48) and image.dtype == np.float32
        assert image.min() >= 0 and image.max() <= 1
        assert np.array_equal(image, texture(np.random.default_rng(seed), 48))
    assert sprite(np.random.default_rng(0), "star", 32).shape == (4, 32, 32)


def test_dead_leaves_are_flat_patches() -> None:
    image = dead_leaves(np.random.default_rng(0), 64)
    colors = np.unique(image.reshape(3, -1).T, axis=0)
    assert 5 < len(colors) <= 81  # eighty leaves and the ground


def test_limb_reaches_the_lower_rim_and_ends_rounded_above() -> None:
    cover = limb(np.random.default_rng(0), 64)[3]
    assert cover[-1].max() == 1
    assert cover[0].max() < 0.2  # the soft edge of the round end


def slope_of(images: list[np.ndarray]) -> float:
    """Of log amplitude against log frequency, over the brightness of square images."""
    size = images[0].shape[-1]
    amplitude = np.mean([np.abs(np.fft.rfft2(image.mean(0) - image.mean())) for image in images], axis=0)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    band = (frequency > 0.02) & (frequency < 0.3)
    return float(np.polyfit(np.log(frequency[band]), np.log(amplitude[band]), 1)[0])


def test_surfaces_have_the_amplitude_spectra_they_are_named_for() -> None:
    rng = np.random.default_rng(0)
    # White noise has a flat spectrum; that of natural images falls off about as 1/f.
    assert slope_of([SURFACES["white"](rng, 96) for _ in range(30)]) == pytest.approx(0, abs=0.1)
    assert slope_of([SURFACES["natural"](rng, 96) for _ in range(30)]) == pytest.approx(-1.2, abs=0.3)


def test_surfaces_are_images_in_range_that_repeat_with_their_seed() -> None:
    for name, surface in SURFACES.items():
        image = surface(np.random.default_rng(3), 48)
        assert image.shape == (3, 48, 48) and image.dtype == np.float32, name
        assert image.min() >= 0 and image.max() <= 1, name
        assert np.array_equal(image, surface(np.random.default_rng(3), 48)), name
        assert not np.array_equal(image, surface(np.random.default_rng(4), 48)), name
    assert len(np.unique(flat(np.random.default_rng(0), 16).reshape(3, -1).T, axis=0)) == 1


def test_natural_leaves_are_textured_inside_and_edged_between() -> None:
    # Differences of neighbours: mostly small, with rare large ones at the edges (heavy tails), unlike Gaussian noise.
    def kurtosis(image: np.ndarray) -> float:
        steps = np.diff(image.mean(0), axis=1).ravel()
        return float(np.mean((steps - steps.mean()) ** 4) / steps.var() ** 2)

    image = natural(np.random.default_rng(0), 96)
    assert kurtosis(image) > 6 > 4 > kurtosis(white(np.random.default_rng(0), 96))
    leaves = dead_leaves(np.random.default_rng(0), 96)
    assert len(np.unique(image.reshape(3, -1).T, axis=0)) > 20 * len(np.unique(leaves.reshape(3, -1).T, axis=0))


def test_sprite_and_limb_are_made_of_the_surface_given() -> None:
    for made in (
        sprite(np.random.default_rng(0), "disk", 32, flat),
        limb(np.random.default_rng(0), 32, flat),
    ):
        assert len(np.unique(made[:3].reshape(3, -1).T, axis=0)) == 1
