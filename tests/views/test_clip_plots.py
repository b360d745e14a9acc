"""What is drawn, read back from the figure."""

import numpy as np
import pytest

from workbench.data.frames import Sampling
from workbench.views.clip_plots import frame_grid, timeline

TIMES = np.arange(20) / 10


def test_timeline_puts_a_dot_on_each_taken_frame() -> None:
    samplings = {
        "uniform": Sampling(num_frames=4),
        "dense": Sampling(num_frames=4, sampling="dense", sampling_rate=2, num_clips=2),
    }
    (ax,) = timeline(TIMES, samplings).axes
    dots = [np.column_stack([line.get_xdata(), line.get_ydata()]) for line in ax.lines]
    assert [d[:, 0].round(1).tolist() for d in dots] == [[0.2, 0.7, 1.2, 1.7], [0, 0.2, 0.4, 0.6], [1.3, 1.5, 1.7, 1.9]]
    assert [set(d[:, 1]) for d in dots] == [{0}, {1}, {2}]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["uniform", "dense", ""]
    colours = [line.get_color() for line in ax.lines]
    assert colours[1] == colours[2] != colours[0]


def test_timeline_says_how_often_a_frame_repeats() -> None:
    (ax,) = timeline(TIMES[:3], {"uniform": Sampling(num_frames=6)}).axes
    assert [note.get_text() for note in ax.texts] == ["×2", "×2", "×2"]
    with pytest.raises(ValueError, match="at least one"):
        timeline(TIMES, {})


def test_frame_grid_shows_the_named_rows_of_the_same_frames() -> None:
    dark, light = (np.full((16, 4, 6, 3), value, np.uint8) for value in (10, 200))
    for clip in (dark, light):
        clip[:, 0, 0] = np.arange(16)[:, None]
    figure = frame_grid({"dark": dark, "light $x$ <b>": light}, columns=4)
    shown = [np.asarray(ax.images[0].get_array()) for ax in figure.axes]
    assert [int(image[0, 0, 0]) for image in shown] == [2, 6, 10, 14] * 2
    assert [int(image[1, 1, 0]) for image in shown] == [10] * 4 + [200] * 4
    assert [t.get_text() for ax in figure.axes for t in ax.texts] == ["dark", "light $x$ <b>"]
    assert [ax.get_title() for ax in figure.axes[:4]] == ["frame 2", "frame 6", "frame 10", "frame 14"]
    assert figure._repr_png_()[:4] == b"\x89PNG"


def test_frame_grid_refuses_rows_of_different_length() -> None:
    with pytest.raises(ValueError, match="same number of frames"):
        frame_grid({"a": np.zeros((2, 4, 4, 3), np.uint8), "b": np.zeros((3, 4, 4, 3), np.uint8)})
    with pytest.raises(ValueError, match="same number of frames"):
        frame_grid({})
