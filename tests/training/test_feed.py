"""What training reads, and how several views become one answer."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import SequentialSampler

from workbench.data.tables import Task
from workbench.models.backbones import load_backbone
from workbench.training.feed import TRAIN_WINDOWS, ClipSet, EpochOrder, feed, loader, protocol_of, targets_of
from workbench.training.predict import merge_views
from workbench.training.setup import Setup


def test_merge_views_is_the_mean_probability() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(6, 3, generator=generator, dtype=torch.float64)  # 2 clips of 3 views
    merged = merge_views(Task("a", "multiclass", ("x", "y", "z")), logits, 3)
    assert torch.allclose(merged.softmax(-1), logits.softmax(-1).view(2, 3, 3).mean(1))
    merged = merge_views(Task("b", "binary"), logits[:, 0], 3)
    assert torch.allclose(merged.sigmoid(), logits[:, 0].sigmoid().view(2, 3).mean(1))
    merged = merge_views(Task("c", "regression"), logits[:, 0], 3)
    assert torch.allclose(merged, logits[:, 0].view(2, 3).mean(1))


def test_merge_views_stays_finite_where_probabilities_underflow() -> None:
    sure = torch.tensor([-200.0, -180.0])
    assert torch.isfinite(merge_views(Task("b", "binary"), sure, 2)).all()
    assert torch.isfinite(merge_views(Task("b", "binary"), -sure, 2)).all()


def test_epoch_order_visits_each_clip_once_by_a_random_window() -> None:
    order = EpochOrder(50, seed=3, windows=4)
    first = list(order)
    assert sorted(i // 4 for i in first) == list(range(50))
    assert {i % 4 for i in first} == {0, 1, 2, 3}
    assert list(order) == first
    order.epoch = 1
    assert list(order) != first
    assert sorted(i // 4 for i in order) == list(range(50))


def test_epoch_order_without_windows_is_the_plain_permutation() -> None:
    order = EpochOrder(9, seed=5)
    order.epoch = 2
    assert list(order) == np.random.default_rng([5, 2]).permutation(9).tolist()


@pytest.fixture
def data(tiny_checkpoint, tiny_table):
    backbone = load_backbone(tiny_checkpoint)

    def made(**changes):
        setup = Setup(backbone=tiny_checkpoint, **changes)
        return feed(tiny_table, setup, backbone, workers=1, progress=False)

    return made


def test_feed_dense_stores_windows_for_training_and_views_for_scoring(data, tiny_table) -> None:
    # Clips have 8 frames and the backbone wants 8: with step 1 there is one window, the whole clip.
    d = data(sampling="dense", test_clips=2, test_crops=3)
    assert d.train.clips.shape == (16, TRAIN_WINDOWS, 8, 36, 36, 3)
    assert d.val.clips.shape == (8, 8, 32, 32, 3)
    assert d.val_views.clips.shape == d.test.clips.shape == (8, 6, 8, 32, 32, 3)
    assert d.protocol.level == "video"
    assert (d.protocol.num_clips, d.protocol.num_crops, d.protocol.sampling) == (2, 3, "dense")
    assert d.protocol.decoder in ("decord", "pyav")  # what decoded, not "auto"
    # The files are square, so the three crops are one; and the two windows are the whole clip.
    views = np.asarray(d.test.clips[:])
    assert (views == views[:, :1]).all()
    assert (np.asarray(d.val.clips[:]) == np.asarray(d.val_views.clips[:])[:, 0]).all()


def test_feed_uniform_one_view_is_scored_as_it_is_watched(data) -> None:
    d = data()
    assert d.val_views is d.val
    assert d.train.clips.shape == (16, 24, 36, 36, 3)
    assert data(augment=False).train.clips.shape == (16, 8, 32, 32, 3)


def test_clip_set_finds_the_window_of_an_item(data) -> None:
    clips = ClipSet(data(sampling="dense").train)
    assert len(clips) == 16 * TRAIN_WINDOWS
    whole = np.asarray(clips.clips[:])
    for item in SequentialSampler(clips):
        clip, targets = clips[item]
        i, window = item // TRAIN_WINDOWS, item % TRAIN_WINDOWS
        assert (clip.numpy() == whole[i, window]).all()
        assert torch.equal(torch.nan_to_num(targets), torch.nan_to_num(clips.targets[i]))
    items = [9, 0, 33, 9]
    for item, (clip, targets) in zip(items, clips.__getitems__(items), strict=True):
        assert torch.equal(clip, clips[item][0])
        assert torch.equal(torch.nan_to_num(targets), torch.nan_to_num(clips[item][1]))


def test_clip_set_reads_a_batch_in_one_go(data, monkeypatch) -> None:
    clips = ClipSet(data().train)
    asked: list[list[int]] = []
    read_into = type(clips.clips).read_into

    def counted(array, out, rows):
        asked.append(list(rows))
        return read_into(array, out, rows)

    monkeypatch.setattr(type(clips.clips), "read_into", counted)
    batches, _ = loader(data().train, seed=0, batch_size=6)
    sizes = [len(clip) for clip, _ in batches]
    assert sizes == [6, 6, 4]
    assert [len(rows) for rows in asked] == sizes


def test_protocol_of_follows_the_setup(tiny_checkpoint) -> None:
    backbone = load_backbone(tiny_checkpoint)
    plain = protocol_of(Setup(backbone=tiny_checkpoint), backbone)
    assert (plain.level, plain.num_frames, plain.size_px, plain.resize_px) == ("clip", 8, 32, None)
    setup = Setup(backbone=tiny_checkpoint, sampling="fps", fps=6.0, short="wrap", test_clips=4, fit="pad")
    assert protocol_of(setup, backbone) == replace(
        plain, sampling="fps", fps=6.0, short="wrap", num_clips=4, level="video", fit="pad"
    )


def test_targets_of_a_table_without_clips_keep_their_columns(tiny_table) -> None:
    columns = sum(task.num_targets for task in tiny_table.tasks)
    assert targets_of(tiny_table.head(0)).shape == (0, columns)
