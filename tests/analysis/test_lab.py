import numpy as np
import pytest

from tests.analysis.toys import held_out, trained
from workbench.analysis.explain import explain
from workbench.analysis.faithfulness import clip_maps
from workbench.analysis.trust.lab import CONFIGS, planted_accuracy, tiny_backbone
from workbench.analysis.trust.masks import mass_in_mask, pointing_hit, temporal_mass

CLIPS = 12


def maps_of(run, method):
    clips = held_out()[:CLIPS]
    target = [run.tasks[0].classes[i] for i in clips.labels["stripes"]]
    maps = explain(run, clips.frames, method=method, target=target, device="cpu", progress=False)
    return clip_maps(maps), clips.token_mask("stripes", run.tml.backbone.grid)


SLOW = ("timesformer", "vjepa2")


@pytest.mark.parametrize("family", [pytest.param(f, marks=pytest.mark.slow) if f in SLOW else f for f in CONFIGS])
def test_attnlrp_finds_planted_evidence_in_every_family(family):
    run = trained(family, head="query")
    assert run.accuracy["stripes"] >= 0.99
    values, mask = maps_of(run, "attnlrp")
    assert pointing_hit(values, mask).mean() >= 0.9
    assert mass_in_mask(values, mask).mean() >= 0.8
    assert temporal_mass(values, mask).mean() >= 0.85


def test_planted_accuracy_is_chance_before_training():
    from workbench.models.tml import TML

    model = TML(tiny_backbone("videomae", seed=3), held_out().tasks)
    assert planted_accuracy(model, held_out())["stripes"] < 0.5
    assert np.isclose(planted_accuracy(trained().tml, held_out())["stripes"], trained().accuracy["stripes"])


def test_tiny_backbone_names_the_families_it_has():
    with pytest.raises(ValueError, match="videomae, vivit, timesformer, vjepa2"):
        tiny_backbone("resnet")
    assert all(tiny_backbone(family).family == family for family in CONFIGS)
