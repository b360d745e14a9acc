"""Where one token looks: rows of the attention that Hugging Face itself returns, for every family."""

import gc
import weakref

import numpy as np
import pytest
import torch

from tests.analysis.family_runs import FAMILIES, family_run, hooks_of, random_clips
from workbench.analysis.explaining.looking import token_attention
from workbench.models.tokens import dense_attentions


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("looking")


@pytest.mark.parametrize("family", FAMILIES)
def test_look_is_a_row_of_the_layers_attention(folder, family):
    run = family_run(family, folder)
    model, clips = run.tml, random_clips(2)
    found = token_attention(run, clips, device="cpu", progress=False)
    with torch.no_grad():
        softmaxes = model.backbone.forward_recording(model.backbone.prepare(torch.from_numpy(clips)))[1]
    assert (found.num_layers, found.num_heads) == (len(softmaxes), softmaxes[0].q.shape[1])
    for token in ((0, 0, 0), tuple(size - 1 for size in found.grid), (found.grid[0] // 2, 1, 0)):
        for layer, softmax in enumerate(softmaxes):
            prefix = softmax.layout.prefix
            whole = softmax.look(prefix + int(np.ravel_multi_index(token, found.grid)))[1, :, prefix:]  # second clip
            for head in range(found.num_heads):
                seen = found.look(1, token, layer=layer, head=head)
                np.testing.assert_allclose(seen.ravel(), whole[head], rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(found.look(1, token, layer=layer).ravel(), whole.mean(0), rtol=1e-4, atol=1e-6)
    assert hooks_of(model) == 0


def test_look_equals_the_dense_attention_matrix(folder):
    run = family_run("videomae", folder)
    backbone = run.tml.backbone
    with torch.no_grad():
        x = backbone.prepare(torch.from_numpy(random_clips(1)))
        dense = dense_attentions(backbone.forward_with_attention(x)[1])[1]  # (1, A, N, N)
    found = token_attention(run, random_clips(1), device="cpu", progress=False)
    token = (1, 2, 3)
    number = int(np.ravel_multi_index(token, found.grid))
    seen = found.look(0, token, layer=1, head=0)
    np.testing.assert_allclose(seen.ravel(), dense[0, 0, number], rtol=1e-4, atol=1e-6)
    assert seen.sum() == pytest.approx(1, abs=1e-5)
    np.testing.assert_array_equal(found.look(0, token), found.look(0, token, layer=found.num_layers - 1))


def test_looking_keeps_one_clip_and_nothing_once_it_is_gone(folder, monkeypatch):
    passes = []
    run = family_run("videomae", folder)
    found = token_attention(run, random_clips(3), device="cpu", progress=False)
    kept = found.model.backbone.forward_recording

    def counted(x):
        passes.append(kept(x)[1])
        return [None, passes[-1]]

    monkeypatch.setattr(found.model.backbone, "forward_recording", counted)
    for clip in (0, 0, 1, 1, 2):
        found.look(clip, (0, 0, 0))
    assert len(passes) == 2  # the first clip was run when it was made
    queries = [weakref.ref(one[0].q) for one in passes]
    passes.clear()
    gc.collect()
    assert [q() is None for q in queries] == [True, False]
    del found
    gc.collect()
    assert queries[1]() is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip": 2}, "clip=2 is not one of the 2"),
        ({"layer": 9}, "layer=9"),
        ({"head": -1}, "head=-1"),
        ({"token": (0, 0)}, "does not lie on the grid"),
        ({"token": (0, 0, 99)}, "does not lie on the grid"),
    ],
)
def test_look_refuses_what_is_not_there(folder, options, message):
    found = token_attention(family_run("videomae", folder), random_clips(2), device="cpu", progress=False)
    clip, token = options.pop("clip", 0), options.pop("token", (0, 0, 0))
    with pytest.raises(ValueError, match=message):
        found.look(clip, token, **options)
