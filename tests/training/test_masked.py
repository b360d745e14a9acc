import numpy as np
import pytest
import torch
from transformers import VideoMAEConfig, VideoMAEForPreTraining
from transformers.models.videomae.modeling_videomae import get_sinusoid_encoding_table

from workbench.training.masked import MaskedDecoder, masked_loss, patch_targets, sinusoid, tube_mask


def test_tube_mask_hides_the_same_places_at_every_time_step_and_the_share_asked_for() -> None:
    mask = tube_mask(5, (3, 4, 4), 0.75, torch.Generator().manual_seed(0)).view(5, 3, 16)
    assert (mask.sum(2) == 12).all()
    assert torch.equal(mask[:, 0], mask[:, 1]) and torch.equal(mask[:, 0], mask[:, 2])
    assert len(mask[:, 0].unique(dim=0)) == 5  # each clip its own
    again = tube_mask(5, (3, 4, 4), 0.75, torch.Generator().manual_seed(0))
    assert torch.equal(again.view(5, 3, 16), mask)


@pytest.mark.parametrize(("ratio", "hidden"), [(0.01, 1), (0.5, 2), (0.99, 3)])
def test_tube_mask_always_hides_and_shows_a_place(ratio: float, hidden: int) -> None:
    mask = tube_mask(2, (1, 2, 2), ratio, torch.Generator().manual_seed(1))
    assert mask.sum(1).tolist() == [hidden, hidden]


def test_patch_targets_of_one_token_by_hand() -> None:
    clips = np.random.default_rng(0).normal(size=(1, 4, 3, 6, 6)).astype(np.float32)
    targets = patch_targets(torch.from_numpy(clips), 2, 3)
    assert targets.shape == (1, 2 * 2 * 2, 2 * 3 * 3 * 3)
    # Token 6 of the grid (2, 2, 2) is time step 1, row 1, column 0.
    own = clips[0, 2:4, :, 3:6, 0:3].transpose(0, 2, 3, 1).reshape(18, 3)
    by_hand = (own - own.mean(0)) / (own.std(0, ddof=1) + 1e-6)
    assert targets[0, 6].numpy() == pytest.approx(by_hand.ravel(), abs=1e-5)


def test_patch_targets_and_loss_are_those_of_hugging_face() -> None:
    torch.manual_seed(0)
    config = VideoMAEConfig(
        image_size=16, patch_size=8, num_frames=4, tubelet_size=2, hidden_size=24, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=24, decoder_num_hidden_layers=1, decoder_hidden_size=24,
        decoder_num_attention_heads=2, decoder_intermediate_size=24,
    )  # fmt: skip
    model = VideoMAEForPreTraining(config).eval()
    pixels = torch.randn(3, 4, 3, 16, 16)
    mask = tube_mask(3, (2, 2, 2), 0.75, torch.Generator().manual_seed(2))
    with torch.no_grad():
        theirs = model(pixels, bool_masked_pos=mask)
    # Normalising per channel undoes the mean and deviation that Hugging Face applies first.
    ours = masked_loss(theirs.logits, patch_targets(pixels, 2, 8), mask)
    assert ours.item() == pytest.approx(theirs.loss.item(), rel=1e-4)


def test_sinusoid_is_the_encoders_own() -> None:
    assert torch.allclose(sinusoid(20, 12), get_sinusoid_encoding_table(20, 12)[0], atol=1e-6)


def test_masked_decoder_puts_each_shown_token_back_at_its_place() -> None:
    torch.manual_seed(0)
    decoder = MaskedDecoder(8, 6, 5, width=32, layers=0).eval()
    for name in ("norm", "predict"):
        setattr(decoder, name, torch.nn.Identity())
    seen: list[torch.Tensor] = []
    decoder.blocks.append(Recorder(seen))
    mask = torch.tensor([[True, False, True, False, True, True], [False, True, True, True, True, False]])
    shown = torch.randn(2, 2, 8)
    out = decoder(shown, mask)
    placed, embedded = seen[0] - decoder.positions, decoder.embed(shown)
    for row, places in enumerate(([1, 3], [0, 5])):
        assert torch.allclose(placed[row, places], embedded[row], atol=1e-6)
        hidden = mask[row].nonzero()[:, 0]
        assert torch.allclose(placed[row, hidden], decoder.mask_token.expand(len(hidden), -1), atol=1e-6)
        assert torch.equal(out[row], seen[0][row, hidden])  # the hidden ones come back, in order


class Recorder(torch.nn.Module):
    """Keeps what passes through it."""

    def __init__(self, seen: list[torch.Tensor]) -> None:
        super().__init__()
        self.seen = seen

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        self.seen.append(tokens)
        return tokens


def test_masked_loss_looks_at_hidden_tokens_only() -> None:
    mask = torch.tensor([[True, False], [False, True]])
    targets = torch.tensor([[[1.0, 2.0], [100.0, 100.0]], [[100.0, 100.0], [3.0, 5.0]]])
    predicted = torch.tensor([[[1.0, 0.0]], [[3.0, 1.0]]])
    assert masked_loss(predicted, targets, mask).item() == pytest.approx((0 + 4 + 0 + 16) / 4)
