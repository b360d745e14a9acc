"""Maps that know nothing of the model: what an explanation must beat before it is worth a look."""

import numpy as np

PRIORS = ("random", "motion", "centre")


def random_map(frames: np.ndarray, grid: tuple[int, int, int], *, seed: int = 0) -> np.ndarray:
    """Even noise in [0, 1), float32 (B, T', H', W'); clip i is the same whatever other clips there are."""
    return np.stack([np.random.default_rng([seed, i]).random(grid, np.float32) for i in range(len(frames))])


def motion_map(frames: np.ndarray, grid: tuple[int, int, int]) -> np.ndarray:
    """How much each token's pixels change from frame to frame, in grey levels, float32 (B, T', H', W').

    ``frames`` uint8 (B, T, H, W, 3). A frame's change is the mean of the steps into it and out of it (the first and the
    last have one), so that a change between two tubelets counts for both.
    """
    grey = frames.mean(-1, dtype=np.float32)  # (B, T, H, W)
    if grey.shape[1] < 2:
        return np.zeros((len(frames), *grid), np.float32)
    step = np.abs(np.diff(grey, axis=1))  # (B, T - 1, H, W)
    into, out_of = np.concatenate([step[:, :1], step], 1), np.concatenate([step, step[:, -1:]], 1)
    return to_grid((into + out_of) / 2, grid)


def centre_map(frames: np.ndarray, grid: tuple[int, int, int]) -> np.ndarray:
    """A Gaussian round the middle of every frame, its deviation a quarter of the frame, float32 (B, T', H', W')."""
    t, h, w = grid
    rows, columns = ((np.arange(size) + 0.5) / size - 0.5 for size in (h, w))
    one = np.exp(-0.5 * (rows[:, None] ** 2 + columns**2) / 0.25**2).astype(np.float32)
    return np.broadcast_to(one, (len(frames), t, h, w)).copy()


def prior_maps(frames: np.ndarray, grid: tuple[int, int, int], *, seed: int = 0) -> dict[str, np.ndarray]:
    """All of :data:`PRIORS` for these clips, {name: float32 (B, T', H', W')}."""
    return {
        "random": random_map(frames, grid, seed=seed),
        "motion": motion_map(frames, grid),
        "centre": centre_map(frames, grid),
    }


def to_grid(pixels: np.ndarray, grid: tuple[int, int, int]) -> np.ndarray:
    """Means over each token's pixels: (B, T, H, W) -> float32 (B, T', H', W')."""
    b, *size = pixels.shape
    t, h, w = (big // small for big, small in zip(size, grid, strict=True))
    parts = pixels.reshape(b, grid[0], t, grid[1], h, grid[2], w)
    return parts.mean((2, 4, 6), dtype=np.float32)
