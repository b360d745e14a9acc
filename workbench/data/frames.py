"""Which positions in time, and how a frame becomes a square. No files, no decoder."""

import numpy as np

FITS = ("crop", "pad", "stretch")


def uniform_indices(total_frames: int, num_frames: int) -> np.ndarray:
    """Centres of ``num_frames`` equal stretches of ``total_frames``: ``floor((i + 0.5) * total / num)``, int64 (T,).

    >>> uniform_indices(100, 4).tolist()
    [12, 37, 62, 87]
    >>> uniform_indices(3, 6).tolist()  # a clip shorter than asked: frames repeat
    [0, 0, 1, 1, 2, 2]
    """
    if total_frames < 1 or num_frames < 1:
        raise ValueError(f"total_frames={total_frames} and num_frames={num_frames} must both be at least 1")
    # (2i + 1) * total // (2 * num) is the floor in whole numbers, free of rounding.
    return (2 * np.arange(num_frames, dtype=np.int64) + 1) * total_frames // (2 * num_frames)


def resize_frame(frame: np.ndarray, size_px: int, fit: str = "crop") -> np.ndarray:
    """One uint8 frame (H, W, 3) as a square (size_px, size_px, 3); PIL's bilinear filter, widened when it shrinks."""
    from PIL import Image

    height, width = frame.shape[:2]
    if height == width == size_px:
        return frame
    image, bilinear = Image.fromarray(np.ascontiguousarray(frame)), Image.Resampling.BILINEAR
    if fit == "stretch":
        return np.asarray(image.resize((size_px, size_px), bilinear))
    if fit == "crop":
        side = min(height, width)
        left, top = (width - side) / 2, (height - side) / 2
        return np.asarray(image.resize((size_px, size_px), bilinear, box=(left, top, left + side, top + side)))
    scale = size_px / max(height, width)
    new_width, new_height = max(1, round(width * scale)), max(1, round(height * scale))
    square = np.zeros((size_px, size_px, 3), np.uint8)
    top, left = (size_px - new_height) // 2, (size_px - new_width) // 2
    square[top : top + new_height, left : left + new_width] = np.asarray(
        image.resize((new_width, new_height), bilinear)
    )
    return square
