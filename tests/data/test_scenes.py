import numpy as np
import pytest
import torch

from workbench.data.synthetic.motions import Track
from workbench.data.synthetic.scenes import Scenes, layer_matrices, optical_flow, render, screen_points

SIZE = 40  # half-widths and steps below are whole pixels at this size


def still(T: int, scale: float = 1.0, center: tuple[float, float] = (0.0, 0.0)) -> Track:
    return Track(np.tile(np.array(center, float), (T, 1)), np.full(T, scale), np.zeros(T))


def moving(T: int, step: tuple[float, float], scale: float) -> Track:
    return Track(np.arange(T)[:, None] * np.array(step), np.full(T, scale), np.zeros(T))


def scene(objects: list[Track], view: Track, background: float = 0.0) -> Scenes:
    """White opaque squares over a flat ground."""
    sprite = torch.ones(1, len(objects), 4, 64, 64)  # its rim fades over one texel, 1/64 of it
    return Scenes(
        torch.full((1, 3, 16, 16), background),
        sprite,
        torch.from_numpy(layer_matrices(still(len(view.angle), 2.0), view))[None],
        torch.from_numpy(np.stack([layer_matrices(o, view) for o in objects]))[None],
        torch.ones(1, len(objects), dtype=torch.bool),
    )


def centroid(mask: torch.Tensor) -> np.ndarray:
    points = screen_points(*mask.shape)[:, :2]
    return ((points * mask.reshape(-1, 1)).sum(0) / mask.sum()).numpy()


def test_render_puts_a_square_where_its_track_says() -> None:
    T = 5
    path = moving(T, (0.1, -0.05), 0.3)
    frames, cover = render(scene([path], still(T)), SIZE)
    for t in range(T):
        assert centroid(cover[0, 0, t]) == pytest.approx(path.center[t], abs=0.01)
        # A square of half-width 0.3 covers 0.09 of the frame of half-width 1.
        assert cover[0, 0, t].mean().item() == pytest.approx(0.09, rel=0.08)
    # White on black: away from the rim (which these sprites, unlike real ones, reach) the picture is the coverage.
    sure = (cover[0, 0] > 0.999) | (cover[0, 0] == 0)
    assert torch.equal(frames[0, :, 0][sure].round(), cover[0, 0][sure].round())


def test_render_follows_the_camera() -> None:
    T = 2
    view = Track(np.array([[0.0, 0.0], [0.2, 0.0]]), np.array([1.0, 0.5]), np.zeros(T))
    _, cover = render(scene([still(T, 0.2)], view), 80)
    # Looking 0.2 to the right at double magnification: the object goes to -0.2 / 0.5 and doubles in width.
    assert centroid(cover[0, 0, 1]) == pytest.approx([-0.4, 0.0], abs=0.01)
    assert (cover[0, 0, 1].sum() / cover[0, 0, 0].sum()).item() == pytest.approx(4, rel=0.1)


def test_render_paints_later_slots_over_earlier_ones() -> None:
    T = 1
    _, cover = render(scene([still(T, 0.5), still(T, 0.25)], still(T)), 64)
    assert cover[0, 1].mean().item() == pytest.approx(0.0625, rel=0.05)
    assert cover[0, 0].mean().item() == pytest.approx(0.25 - 0.0625, rel=0.05)
    assert cover.sum(1).max().item() <= 1 + 1e-6


def test_render_turns_clockwise_with_growing_angle() -> None:
    # A quarter turn clockwise takes a bar stretched along x to one along y; an eighth takes it down to the right.
    own = Track(np.zeros((1, 2)), np.ones(1), np.array([np.pi / 4]))
    maps = layer_matrices(own, still(1), stretch=(0.8, 0.1))
    one = scene([still(1)], still(1))
    one.sprite_maps = torch.from_numpy(maps)[None, None]
    _, cover = render(one, 64)
    assert cover[0, 0, 0, 45, 45] > 0.9  # lower right
    assert cover[0, 0, 0, 45, 18] < 0.1  # lower left


def test_optical_flow_is_the_displacement_of_what_is_seen() -> None:
    T = 4
    scenes = scene([moving(T, (0.1, -0.05), 0.3)], still(T))
    _, cover = render(scenes, SIZE)
    flow = optical_flow(scenes, cover)[0]
    inside, outside = cover[0, 0, 0] > 0.999, cover[0, 0, 0] < 0.001
    assert flow[0, 0][inside].numpy() == pytest.approx(0.1, abs=1e-5)
    assert flow[0, 1][inside].numpy() == pytest.approx(-0.05, abs=1e-5)
    assert flow[0][:, outside].abs().max() < 1e-6
    # The last frame has no next one: what moves is taken to move on.
    assert flow[-1, 0][cover[0, 0, -1] > 0.999].numpy() == pytest.approx(0.1, abs=1e-5)


def test_optical_flow_brings_the_next_frame_back() -> None:
    # Independent of the formula: a smooth ground under a turning, zooming camera, warped back by the flow.
    T, size = 2, 64
    view = Track(np.array([[0.0, 0.0], [0.06, -0.04]]), np.array([1.0, 0.95]), np.array([0.0, 0.08]))
    axis = torch.linspace(-3, 3, 64)
    smooth = torch.stack([torch.sin(axis[:, None] + k * axis[None]) for k in range(3)])[None] / 2 + 0.5
    scenes = scene([still(T, 0.01)], view)
    scenes.background, scenes.present = smooth, torch.zeros(1, 1, dtype=torch.bool)
    frames, cover = render(scenes, size)
    flow = optical_flow(scenes, cover)[0, 0]
    grid = screen_points(size, size)[:, :2].view(1, size, size, 2) + flow.permute(1, 2, 0)[None]
    back = torch.nn.functional.grid_sample(frames[:, 1], grid, align_corners=False)
    inner = (slice(None), slice(None), slice(8, -8), slice(8, -8))
    moved = (frames[:, 1] - frames[:, 0])[inner].abs().mean()
    assert (back - frames[:, 0])[inner].abs().mean() < 0.05 * moved


def painted_everywhere(scenes: Scenes, size_px: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same picture the plain way: every sprite is sampled at every pixel of every frame."""
    B, T = scenes.background_maps.shape[:2]
    K = scenes.present.shape[1]

    def seen(image: torch.Tensor, maps: torch.Tensor, padding: str) -> torch.Tensor:
        points = screen_points(size_px, size_px)
        grid = torch.einsum("tij,pj->tpi", maps[:, :2].float(), points).reshape(1, T * size_px, size_px, 2)
        found = torch.nn.functional.grid_sample(image[None], grid, padding_mode=padding, align_corners=False)
        return found[0].reshape(-1, T, size_px, size_px)

    frames, cover = torch.zeros(B, T, 3, size_px, size_px), torch.zeros(B, K, T, size_px, size_px)
    for b in range(B):
        picture = seen(scenes.background[b], scenes.background_maps[b], "reflection")
        for k in range(K):
            if scenes.present[b, k]:
                layer = seen(scenes.sprites[b, k], scenes.sprite_maps[b, k], "zeros")
                picture = picture.lerp(layer[:3], layer[3:])
                cover[b] *= 1 - layer[3]
                cover[b, k] = layer[3]
        frames[b] = picture.transpose(0, 1).clamp(0, 1)
    return frames, cover


def test_render_equals_painting_every_sprite_on_every_pixel() -> None:
    rng = np.random.default_rng(0)
    B, K, T = 3, 4, 5

    def tracks() -> Track:
        return Track(rng.uniform(-1.2, 1.2, (T, 2)), rng.uniform(0.1, 0.6, T), rng.uniform(0, 6, T))

    view = Track(rng.uniform(-0.2, 0.2, (T, 2)), rng.uniform(0.8, 1.2, T), rng.uniform(-0.1, 0.1, T))
    generator = torch.Generator().manual_seed(0)
    scenes = Scenes(
        torch.rand(B, 3, 16, 16, generator=generator),
        torch.rand(B, K, 4, 12, 12, generator=generator),  # opaque up to the rim, which is where points could be missed
        torch.from_numpy(np.stack([layer_matrices(still(T, 1.5), view) for _ in range(B)])),
        torch.from_numpy(np.stack([[layer_matrices(tracks(), view) for _ in range(K)] for _ in range(B)])),
        torch.tensor([[True, True, True, True], [False, True, False, True], [False, False, False, False]]),
    )
    for got, expected in zip(render(scenes, 32), painted_everywhere(scenes, 32), strict=True):
        assert torch.equal(got, expected)


def test_render_of_a_sprite_out_of_the_frame_shows_the_ground_alone() -> None:
    frames, cover = render(scene([still(2, 0.1, (5.0, 5.0))], still(2), background=0.25), 16)
    assert torch.equal(frames, torch.full_like(frames, 0.25)) and not cover.any()
