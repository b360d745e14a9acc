import copy
import logging
from typing import Any

import numpy as np
import pytest
import torch
from transformers import VideoMAEForPreTraining, VideoMAEForVideoClassification, VideoMAEModel
from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil

from tests.models.conftest import MEAN, STD, save_checkpoint, tiny_config
from tests.models.test_preprocess import RECORDS
from workbench.models import backbones
from workbench.models.backbones import Tokens, load_backbone, to_pixel_values
from workbench.models.hub import preprocessing_record
from workbench.models.preprocess import Preprocessing


def hooks_of(module):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def test_to_pixel_values_equals_hugging_faces_processor(clips):
    processor = VideoMAEImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_mean=MEAN, image_std=STD
    )
    theirs = torch.cat([processor(list(clip.numpy()), return_tensors="pt").pixel_values for clip in clips])
    torch.testing.assert_close(to_pixel_values(clips, MEAN, STD), theirs, atol=2e-6, rtol=0)


def test_to_pixel_values_puts_channels_first_by_hand():
    clips = torch.zeros(1, 2, 3, 4, 3, dtype=torch.uint8)
    clips[0, 1, 2, 3] = torch.tensor([255, 51, 0])
    out = to_pixel_values(clips, [0.5, 0.1, 0.0], [0.5, 0.2, 1.0])
    assert out.shape == (1, 2, 3, 3, 4)
    assert out[0, 1, :, 2, 3].tolist() == pytest.approx([1.0, 0.5, 0.0])


@pytest.mark.parametrize("bad", [torch.zeros(1, 8, 32, 32, 3), torch.zeros(8, 32, 32, 3, dtype=torch.uint8)])
def test_to_pixel_values_refuses_floats_and_single_clips(bad):
    with pytest.raises(ValueError, match="must be uint8"):
        to_pixel_values(bad, MEAN, STD)


def test_prepare_reads_scale_and_missing_normalisation_from_the_checkpoint(tmp_path, clips):
    save_checkpoint(tmp_path, VideoMAEModel(tiny_config()), do_normalize=False, rescale_factor=0.5)
    out = load_backbone(tmp_path).prepare(clips)
    assert torch.equal(out, clips.permute(0, 1, 4, 2, 3) * 0.5)


def test_prepare_takes_numpy_clips_like_tensors(backbone, clips):
    assert torch.equal(backbone.prepare(clips.numpy()), backbone.prepare(clips))


def test_forward_equals_videomae_last_hidden_state(backbone, checkpoint, clips):
    reference = VideoMAEModel.from_pretrained(checkpoint[0]).eval()
    pixel_values = backbone.prepare(clips)
    with torch.no_grad():
        ours = backbone(pixel_values)
        assert torch.equal(ours.tokens, reference(pixel_values).last_hidden_state)
    assert ours.grid == (2, 4, 4)
    assert ours.prefix is None


def test_forward_tokens_are_time_major(backbone, clips):
    """Token n of the embedding is the Conv3d of tubelet n // 16, row n // 4 % 4, column n % 4, plus position n."""
    pixel_values = backbone.prepare(clips)
    with torch.no_grad():
        embedded = backbone.embedding(pixel_values, None)
    conv = backbone.model.embeddings.patch_embeddings.projection
    t, row, column = 1, 2, 3
    patch = pixel_values[0, 4 * t : 4 * t + 4, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8].transpose(0, 1)
    n = t * 16 + row * 4 + column
    by_hand = (conv.weight * patch).sum((1, 2, 3, 4)) + conv.bias + backbone.model.embeddings.position_embeddings[0, n]
    torch.testing.assert_close(embedded[0, n], by_hand, atol=1e-4, rtol=1e-4)


def test_embedding_output_is_what_block_0_sees(backbone, clips):
    seen: dict[str, torch.Tensor] = {}
    backbone.embedding.register_forward_hook(lambda _m, _i, out: seen.update(embedding=out))
    backbone.blocks[0].register_forward_pre_hook(lambda _m, args: seen.update(block=args[0]))
    backbone(backbone.prepare(clips))
    assert torch.equal(seen["embedding"], seen["block"])


def test_forward_sdpa_and_eager_agree(checkpoint, clips):
    sdpa, eager = load_backbone(checkpoint[0], attn="sdpa"), load_backbone(checkpoint[0], attn="eager")
    assert (sdpa.config._attn_implementation, eager.config._attn_implementation) == ("sdpa", "eager")
    pixel_values = sdpa.prepare(clips)
    with torch.no_grad():
        a, b = sdpa.pool(sdpa(pixel_values).tokens), eager.pool(eager(pixel_values).tokens)
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(1, 16, 3, 32, 32), (1, 8, 3, 64, 64), (8, 3, 32, 32)])
def test_forward_names_what_it_takes_and_what_it_got(backbone, shape):
    with pytest.raises(ValueError) as error:
        backbone(torch.zeros(shape))
    assert "num_frames=8" in str(error.value) and "size_px=32" in str(error.value) and str(shape) in str(error.value)


def test_prepare_refuses_another_number_of_frames(backbone):
    with pytest.raises(ValueError, match=r"num_frames=8.*not \(1, 6, 3, 32, 32\)"):
        backbone.prepare(torch.zeros(1, 6, 40, 40, 3, dtype=torch.uint8))


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_forward_with_attention_gives_the_softmax_of_every_layer(checkpoint, clips, attn):
    backbone: Any = load_backbone(checkpoint[0], attn=attn)
    pixel_values = backbone.prepare(clips)
    with torch.no_grad():
        tokens, attentions = backbone.forward_with_attention(pixel_values)
        torch.testing.assert_close(tokens.tokens, backbone(pixel_values).tokens, atol=1e-5, rtol=0)
        # By hand for block 0: softmax(q k^T / sqrt(8)) of the normed embedding.
        block: Any = backbone.blocks[0]
        x = block.layernorm_before(backbone.embedding(pixel_values, None))
        q, k = block.attention.attention.query(x), block.attention.attention.key(x)
        q, k = (v.reshape(3, 32, 3, 8).transpose(1, 2) for v in (q, k))
        by_hand = torch.softmax(q @ k.transpose(2, 3) / 8**0.5, -1)
    assert len(attentions) == 2
    torch.testing.assert_close(attentions[0], by_hand, atol=1e-5, rtol=0)
    for layer in attentions:
        torch.testing.assert_close(layer.sum(-1), torch.ones(3, 3, 32), atol=1e-5, rtol=0)
    assert backbone.config._attn_implementation == attn
    assert hooks_of(backbone) == 0


def test_forward_with_attention_restores_everything_after_an_error(backbone):
    with pytest.raises(ValueError, match="num_frames"):
        backbone.forward_with_attention(torch.zeros(1, 4, 3, 32, 32))
    assert backbone.config._attn_implementation == "sdpa"
    assert hooks_of(backbone) == 0


def test_pool_uses_the_checkpoints_fc_norm(backbone, checkpoint, clips):
    model = checkpoint[1]
    tokens = torch.randn(2, 32, 24, generator=torch.Generator().manual_seed(0))
    mean = tokens.mean(1)
    centred = mean - mean.mean(-1, keepdim=True)
    by_hand = centred / (mean.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    by_hand = by_hand * model.fc_norm.weight + model.fc_norm.bias
    torch.testing.assert_close(backbone.pool(tokens), by_hand)


def test_pool_is_the_plain_mean_where_the_encoder_ends_in_its_norm(tmp_path):
    save_checkpoint(tmp_path, VideoMAEForVideoClassification(tiny_config(use_mean_pooling=False)))
    backbone = load_backbone(tmp_path)
    tokens = torch.randn(2, 32, 24)
    assert torch.equal(backbone.pool(tokens), tokens.mean(1))


@pytest.mark.parametrize("kind", [VideoMAEModel, VideoMAEForPreTraining])
def test_load_backbone_starts_a_fresh_norm_where_none_was_saved(tmp_path, caplog, kind):
    config = tiny_config(decoder_hidden_size=12, decoder_num_hidden_layers=1, decoder_num_attention_heads=2)
    model = save_checkpoint(tmp_path, kind(config))
    with caplog.at_level(logging.WARNING, logger="workbench"):
        backbone: Any = load_backbone(tmp_path)
    assert "no fc_norm" in caplog.text
    assert torch.equal(backbone.norm.weight, torch.ones(24)) and torch.equal(backbone.norm.bias, torch.zeros(24))
    encoder = model if kind is VideoMAEModel else model.videomae
    for name, value in encoder.state_dict().items():
        assert torch.equal(backbone.model.state_dict()[name], value), name


def test_load_backbone_random_depends_on_the_seed_alone(checkpoint):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    a, b, c = (load_backbone(checkpoint[0], weights="random", seed=s) for s in (0, 0, 1))
    trained = load_backbone(checkpoint[0])
    assert torch.equal(torch.get_rng_state(), before)
    assert a.fingerprint() == b.fingerprint()
    assert len({a.fingerprint(), c.fingerprint(), trained.fingerprint()}) == 3
    assert a.grid == trained.grid and not a.training


def test_fingerprint_changes_with_any_weight(backbone):
    other = copy.deepcopy(backbone)
    assert other.fingerprint() == backbone.fingerprint()
    with torch.no_grad():
        other.norm.bias[3] += 1e-6
    assert other.fingerprint() != backbone.fingerprint()


def test_load_backbone_refuses_a_checkpoint_with_lost_weights(tmp_path):
    from safetensors.torch import load_file, save_file

    save_checkpoint(tmp_path, VideoMAEModel(tiny_config()))
    weights = load_file(tmp_path / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 encoder weights.*layer\.1\.output\.dense"):
        load_backbone(tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"not safetensors at all"])
def test_load_backbone_without_readable_safetensors_says_so(tmp_path, content):
    save_checkpoint(tmp_path, VideoMAEModel(tiny_config()))
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    if content is not None:
        (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(OSError, match="cannot load backbone") as error:
        load_backbone(tmp_path)
    assert "model.safetensors" in str(error.value) and len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["nope", "./nowhere/at/all", ""])
def test_load_backbone_unknown_name_lists_what_is_accepted(name):
    with pytest.raises(FileNotFoundError, match="accepted are 'nano', a local folder"):
        load_backbone(name)


def test_load_backbone_folder_without_config_is_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        load_backbone(tmp_path)


def test_load_backbone_without_preprocessor_file_asks_for_it(tmp_path):
    save_checkpoint(tmp_path, VideoMAEModel(tiny_config()))
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="image_mean, image_std"):
        load_backbone(tmp_path)


def test_load_backbone_hub_failure_is_one_readable_line(monkeypatch):
    def offline(_name):
        raise OSError("We couldn't connect to the hub.\nCheck your connection.\nMore lines.")

    monkeypatch.setattr(backbones.PreTrainedConfig, "get_config_dict", offline)
    with pytest.raises(OSError, match="needs a network.*couldn't connect") as error:
        load_backbone("owner/name")
    assert len(str(error.value).splitlines()) == 1


def test_load_backbone_other_family_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "swin"}')
    with pytest.raises(ValueError, match="'swin'.*videomae.*vivit"):
        load_backbone(tmp_path)


def test_load_backbone_refuses_an_unknown_kind_of_weights(checkpoint):
    with pytest.raises(ValueError, match="pretrained, random"):
        load_backbone(checkpoint[0], weights="half")


def test_tokens_refuses_a_grid_that_does_not_fit():
    with pytest.raises(ValueError, match=r"\(B, 24, D\)"):
        Tokens(torch.zeros(1, 25, 4), (2, 3, 4))


def test_prepare_stays_close_to_the_clip_range(backbone):
    white = np.full((1, 8, 32, 32, 3), 255, np.uint8)
    expected = [(1 - m) / s for m, s in zip(MEAN, STD, strict=True)]
    assert backbone.prepare(white)[0, 0, :, 0, 0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("name", RECORDS)
def test_preprocessing_record_reads_back_the_same(name):
    """Also where one is subtracted after scaling, where a size stretches, and where nothing is cut."""
    for changes in ({}, {"size": {"height": 40, "width": 48}}, {"do_resize": False}, {"do_center_crop": False}):
        steps = Preprocessing.from_record(RECORDS[name] | changes).for_model(32)
        again = Preprocessing.from_record(preprocessing_record(steps))
        frames = torch.randint(0, 256, (1, 1, 61, 83, 3), dtype=torch.uint8)
        assert torch.equal(again.pixel_values(frames), steps.pixel_values(frames))
        assert again.short_side(32) == steps.short_side(32)
