import copy
from functools import partial

import numpy as np
import pytest
import torch

from tests.analysis.toys import held_out, trained
from workbench.analysis.explain import explain
from workbench.analysis.faithfulness import clip_maps
from workbench.analysis.trust.priors import motion_map
from workbench.analysis.trust.randomisation import cascade, randomisation_cascade, rank_correlation, shuffle_weights


def test_shuffle_weights_keeps_every_tensors_values_and_moves_them():
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.LayerNorm(5))
    before = copy.deepcopy(model)
    shuffle_weights(model, torch.Generator().manual_seed(0))
    for one, two in zip(model.parameters(), before.parameters(), strict=True):
        assert torch.equal(one.flatten().sort().values, two.flatten().sort().values)
    assert not torch.equal(model[0].weight, before[0].weight)


def test_cascade_reaches_every_parameter_once():
    tml = trained().tml
    found = [id(p) for _, parts in cascade(tml) for part in parts for p in part.parameters()]
    names = {id(p): name for name, p in tml.named_parameters()}
    assert len(found) == len(set(found))
    assert [stage for stage, _ in cascade(tml)] == ["head", "block 1", "block 0", "embedding"]
    # What is left: a norm between the encoder's last block and the head, where a family has one.
    assert all("norm" in name for key, name in names.items() if key not in set(found))


def test_randomisation_cascade_changes_a_map_that_depends_on_the_model_and_not_one_that_does_not():
    run, clips = trained(), held_out()[:6]
    before = copy.deepcopy(run.tml.state_dict())
    target = [run.tasks[0].classes[i] for i in clips.labels["stripes"]]

    def gradients(one):
        return clip_maps(explain(one, clips.frames, method="integrated_gradients", target=target, device="cpu",
                                 progress=False))  # fmt: skip

    found = randomisation_cascade(gradients, run, progress=False).groupby("stage", sort=False).spearman.mean()
    assert found["none"] == pytest.approx(1)
    assert found[["block 0", "embedding"]].abs().max() < 0.5
    fixed = partial(motion_map, clips.frames, (4, 4, 4))
    table = randomisation_cascade(lambda _run: fixed(), run, progress=False)
    assert table.spearman.to_numpy() == pytest.approx(1) and len(table) == 5 * 6
    assert all(torch.equal(value, before[name]) for name, value in run.tml.state_dict().items())


def test_rank_correlation_of_an_even_map_is_undefined():
    x = np.arange(8.0).reshape(2, 2, 2)
    assert rank_correlation(x, x**3) == pytest.approx(1)
    assert rank_correlation(x, -x) == pytest.approx(-1)
    assert np.isnan(rank_correlation(x, np.ones_like(x)))
