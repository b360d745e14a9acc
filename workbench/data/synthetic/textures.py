"""Procedural surfaces: what the generated scenes and objects are made of. NumPy only; everything from one ``rng``."""

from collections.abc import Callable

import numpy as np

Surface = Callable[[np.random.Generator, int], np.ndarray]
"""Makes one image, float32 (3, size, size) in [0, 1]."""

SHAPES = ("disk", "triangle", "square", "pentagon", "star", "flower", "ring", "cross")


def noise(rng: np.random.Generator, size_px: int, exponent: float) -> np.ndarray:
    """A (size, size) field in [0, 1] with amplitude spectrum 1 / f**exponent (natural images: about 1)."""
    frequency = np.hypot(np.fft.fftfreq(size_px)[:, None], np.fft.rfftfreq(size_px)[None])
    frequency[0, 0] = np.inf
    phase = rng.uniform(0, 2 * np.pi, frequency.shape)
    field = np.fft.irfft2(frequency**-exponent * np.exp(1j * phase), s=(size_px, size_px))
    low, high = np.quantile(field, [0.02, 0.98])
    return np.clip((field - low) / (high - low + 1e-12), 0, 1)


def palette(rng: np.random.Generator, field: np.ndarray, colors: int = 3) -> np.ndarray:
    """A scalar field in [0, 1] through a gradient of random colours: (3, H, W) in [0, 1]."""
    stops = rng.uniform(0, 1, (colors, 3)) * rng.uniform(0.5, 1)
    places = np.linspace(0, 1, colors)
    return np.stack([np.interp(field, places, stops[:, c]) for c in range(3)])


def dead_leaves(rng: np.random.Generator, size_px: int, leaves: int = 80) -> np.ndarray:
    """Overlapping disks of random colour, radii from a power law: edges and occlusion as in natural images.

    Source: the dead-leaves model, Lee, Mumford and Huang, IJCV 2001.
    """
    image = np.broadcast_to(rng.uniform(0, 1, (3, 1, 1)), (3, size_px, size_px)).copy()
    radii = np.sort(0.04 * (1 - rng.uniform(0, 0.985, leaves)) ** -0.5)[::-1] * size_px
    ys, xs = np.mgrid[:size_px, :size_px]
    for radius, (y, x), color in zip(
        radii, rng.uniform(0, size_px, (leaves, 2)), rng.uniform(0, 1, (leaves, 3)), strict=True
    ):
        inside = (xs - x) ** 2 + (ys - y) ** 2 < radius**2
        image[:, inside] = color[:, None]
    return image


def texture(rng: np.random.Generator, size_px: int) -> np.ndarray:
    """One random surface, float32 (3, size, size) in [0, 1]: 1/f noise, dead leaves, stripes, checks or a gradient."""
    kind = rng.choice(["noise", "leaves", "stripes", "checks", "plain"], p=[0.4, 0.2, 0.12, 0.08, 0.2])
    ys, xs = np.mgrid[:size_px, :size_px] / size_px
    if kind == "noise":
        image = palette(rng, noise(rng, size_px, rng.uniform(0.8, 1.8)), int(rng.integers(2, 5)))
    elif kind == "leaves":
        image = dead_leaves(rng, size_px)
    else:
        turn, count = rng.uniform(0, np.pi), rng.uniform(1.5, 7)
        u, v = xs * np.cos(turn) + ys * np.sin(turn), ys * np.cos(turn) - xs * np.sin(turn)
        if kind == "stripes":
            field = 0.5 + 0.5 * np.tanh(3 * np.sin(2 * np.pi * count * u))
        elif kind == "checks":
            field = 0.5 + 0.5 * np.sign(np.sin(2 * np.pi * count * u) * np.sin(2 * np.pi * count * v))
        else:
            field = np.clip(0.5 + rng.uniform(-1, 1) * (u - 0.3), 0, 1)
        image = palette(rng, field, 2)
    grain = 1 + rng.uniform(0, 0.25) * (noise(rng, size_px, 0.6) - 0.5)
    return np.clip(image * grain, 0, 1).astype(np.float32)


def flat(rng: np.random.Generator, size_px: int) -> np.ndarray:
    """One random colour, float32 (3, size, size)."""
    return np.broadcast_to(rng.uniform(0, 1, (3, 1, 1)), (3, size_px, size_px)).astype(np.float32)


def white(rng: np.random.Generator, size_px: int) -> np.ndarray:
    """Noise whose pixels know nothing of each other, in one random palette, float32 (3, size, size)."""
    return palette(rng, noise(rng, size_px, 0.0), int(rng.integers(2, 5))).astype(np.float32)


def natural(rng: np.random.Generator, size_px: int, leaves: int = 80) -> np.ndarray:
    """Dead leaves that each show a piece of 1/f noise, float32 (3, size, size): edges, occlusion at all scales and
    the amplitude spectrum of natural images, about 1/f.

    Images from simple random processes to learn from: Baradad et al. 2021, https://arxiv.org/abs/2106.05963.
    """
    image = dead_leaves(rng, size_px, leaves)
    # A leaf's own piece of the noise: the same field, shifted by an amount that its colour decides.
    field, shift = noise(rng, size_px, 1.0), (image[0] * 977 + image[1] * 491).astype(int)
    ys, xs = np.mgrid[:size_px, :size_px]
    pieces = field[(ys + shift) % size_px, (xs + 31 * shift) % size_px]
    return np.clip(image + rng.uniform(0.2, 0.6) * (pieces - 0.5), 0, 1).astype(np.float32)


SURFACES: dict[str, Surface] = {"flat": flat, "white": white, "mixed": texture, "natural": natural}
"""Ever closer to natural images: one colour; noise without structure; a mixture of noise, dead leaves, stripes, checks
and gradients; textured dead leaves alone."""


def silhouette(name: str, size_px: int, *, aspect: float = 1.0) -> np.ndarray:
    """Coverage (size, size) in [0, 1] of a shape that fills about [-0.95, 0.95]; edges antialiased over two pixels."""
    if name not in SHAPES:
        raise ValueError(f"unknown shape {name!r}; known: {', '.join(SHAPES)}")
    axis = (np.arange(size_px) + 0.5) / size_px * 2 - 1
    x, y = np.meshgrid(axis, axis)
    y = y * aspect
    radius, theta = np.hypot(x, y), np.arctan2(y, x)
    if name in ("triangle", "square", "pentagon"):
        sector = 2 * np.pi / {"triangle": 3, "square": 4, "pentagon": 5}[name]
        edge = 0.95 * np.cos(sector / 2) / np.cos((theta + np.pi / 2) % sector - sector / 2)
    elif name == "star":
        edge = 0.62 + 0.33 * np.cos(5 * theta)
    elif name == "flower":
        edge = 0.8 + 0.15 * np.cos(6 * theta)
    elif name == "cross":
        edge = np.minimum(0.95, 0.32 / np.maximum(np.minimum(np.abs(np.cos(theta)), np.abs(np.sin(theta))), 1e-6))
    else:
        edge = np.full_like(radius, 0.92)
    soft = 2 / (size_px / 2)
    cover = np.clip((edge - radius) / soft + 0.5, 0, 1)
    if name == "ring":
        cover = cover * np.clip((radius - 0.5) / soft + 0.5, 0, 1)
    return cover.astype(np.float32)


def sprite(rng: np.random.Generator, shape: str, size_px: int, surface: Surface = texture) -> np.ndarray:
    """One textured object, float32 (4, size, size): RGB and coverage."""
    cover = silhouette(shape, size_px, aspect=rng.uniform(1.0, 1.4))
    return np.concatenate([surface(rng, size_px), cover[None]])


def limb(rng: np.random.Generator, size_px: int, surface: Surface = texture) -> np.ndarray:
    """A long rounded bar, float32 (4, size, size), its tip at the top: something that holds the object (an arm)."""
    axis = (np.arange(size_px) + 0.5) / size_px * 2 - 1
    x, y = np.meshgrid(axis, axis)
    outside = np.hypot(x, np.minimum(y + 0.8, 0) * 5)
    cover = np.clip((0.9 - outside) / (4 / size_px) + 0.5, 0, 1)
    return np.concatenate([surface(rng, size_px), cover[None]]).astype(np.float32)
