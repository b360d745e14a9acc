"""Runs of every strategy: what their folders hold, that they resume, and that they leave as plain checkpoints."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForVideoClassification

from tests.training.test_finetune import QUIET, setup_for
from workbench.cli import main
from workbench.models.backbones import load_backbone
from workbench.models.strategies import STRATEGIES, Strategy, parse_strategy
from workbench.training import loop
from workbench.training.export import export
from workbench.training.finetune import fine_tune
from workbench.training.predict import predict_table
from workbench.training.runs import Run, build_model, load_run
from workbench.training.setup import Setup

SPELLED = ("scratch", "linear", "attentive", "bitfit", "lora:2", "adapter:6", "partial:1", "llrd:0.5", "full")
NEW = ("bitfit", "lora:2", "adapter:6", "partial:1", "llrd:0.5")


@pytest.fixture(scope="module")
def runs(tiny_checkpoint, tiny_table, tmp_path_factory) -> Any:
    """A run of a strategy on one task (or all), made once."""
    folder, made = tmp_path_factory.mktemp("runs"), {}

    def run(spelled: str, tasks: tuple[str, ...] = ("direction",)) -> Run:
        if (spelled, tasks) not in made:
            lr = None if spelled == "linear" else 3e-3
            # Not seed 0: fresh weights of that seed are the checkpoint's own.
            setup = setup_for(tiny_checkpoint, strategy=spelled, tasks=tasks, lr=lr, seed=1)
            made[spelled, tasks] = fine_tune(setup, tiny_table, runs_dir=folder, **QUIET)
        return made[spelled, tasks]

    return run


@pytest.fixture
def noise() -> torch.Tensor:
    return torch.randn(2, 8, 3, 32, 32, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("spelled", SPELLED)
def test_a_run_holds_only_what_trained_and_predicts_the_same_again(runs, tiny_table, spelled):
    run = load_run(runs(spelled).folder)
    assert not set(run.folder.name) & set('<>:"/\\|?*'), "a folder name that Windows refuses"
    weights = load_file(run.folder / "weights.safetensors")
    untrained = build_model(run.setup, run.tasks)
    assert set(weights) == {n for n, p in untrained.named_parameters() if p.requires_grad}
    if spelled in ("lora:2", "adapter:6"):
        assert not any(".base_layer." in n or n.startswith("backbone.model.embeddings") for n in weights)
    # Training moved what is stored, and what is read back is what predicted.
    at_first = dict(untrained.named_parameters())
    assert any(not torch.equal(value, at_first[name]) for name, value in weights.items())
    said = predict_table(run, tiny_table, split="test", device="cpu").reset_index(drop=True)
    stored = run.predictions.query("split == 'test'").reset_index(drop=True)
    # What was recorded comes from stored tokens, in float16, where there are any; else it is what the clips give.
    rounding = 1e-4 if spelled == "attentive" else 0.0
    np.testing.assert_allclose(np.stack(said.probabilities), np.stack(stored.probabilities), rtol=0, atol=rounding)


@pytest.mark.parametrize("spelled", NEW)
def test_an_interrupted_run_ends_with_the_same_weights(runs, tiny_table, runs_dir, monkeypatch, spelled):
    reference = runs(spelled)
    monkeypatch.setattr(loop, "_CHECKPOINT_SECONDS", 0.0)
    original, seen = loop.task_losses, [0]

    def interrupted(*args: Any, **options: Any) -> Any:
        seen[0] += 1
        if seen[0] == 3:  # the last batch of the first epoch
            raise KeyboardInterrupt
        return original(*args, **options)

    monkeypatch.setattr(loop, "task_losses", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fine_tune(reference.setup, tiny_table, runs_dir=runs_dir, **QUIET)
    again = fine_tune(reference.setup, tiny_table, runs_dir=runs_dir, **QUIET)
    ours, theirs = (load_file(r.folder / "weights.safetensors") for r in (again, reference))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("spelled", ["lora:2", "partial:1"])
def test_a_run_refuses_another_backbone_than_it_was_trained_on(runs, tmp_path, spelled):
    run = runs(spelled)
    record = json.loads((run.folder / "run.json").read_text())
    other = load_backbone(run.setup.backbone, weights="random", seed=5).save_pretrained(tmp_path / "other")
    record["setup"]["backbone"] = str(other)
    for name in ("weights.safetensors", "history.parquet", "predictions.parquet"):
        (tmp_path / name).write_bytes((run.folder / name).read_bytes())
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="was trained on backbone .* but that backbone is now"):
        load_run(tmp_path).model()


@pytest.mark.parametrize("spelled", SPELLED)
def test_parameter_groups_hold_each_trainable_parameter_once_at_its_rate(tiny_checkpoint, tiny_table, spelled):
    setup = setup_for(tiny_checkpoint, strategy=spelled, lr=0.8, head_lr=3.0)
    model = build_model(setup, tiny_table.tasks)
    names = {id(p): n for n, p in model.named_parameters()}
    found: dict[str, tuple[float, float]] = {}
    for group in loop.parameter_groups(model, setup):
        assert group["lr"] == group["peak"]
        for parameter in group["params"]:
            assert names[id(parameter)] not in found
            found[names[id(parameter)]] = (group["lr"], group["weight_decay"])
    assert set(found) == {n for n, p in model.named_parameters() if p.requires_grad}
    for name, (lr, decay) in found.items():
        part = next((s for s in ("head.", "embeddings.", "layer.0.", "layer.1.") if s in name), "")
        scale = {"embeddings.": 0.125, "layer.0.": 0.25, "layer.1.": 0.5}.get(part, 1) if spelled == "llrd:0.5" else 1
        assert lr == pytest.approx(3.0 if part == "head." else 0.8 * scale), name
        assert decay == (0.05 if dict(model.named_parameters())[name].ndim > 1 else 0.0), name


@pytest.mark.parametrize("spelled", ["linear", "bitfit", "lora:2", "partial:1", "llrd:0.5", "full", "scratch"])
def test_export_gives_a_classifier_that_plain_transformers_reads_to_the_same_logits(runs, tmp_path, noise, spelled):
    run = runs(spelled)
    folder = export(run, tmp_path / "out" / "plain")
    assert {p.name for p in folder.iterdir()} == {"config.json", "model.safetensors", "preprocessor_config.json"}
    plain, info = AutoModelForVideoClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), "weights missing, unexpected or of another shape"
    assert plain.config.id2label == {0: "left", 1: "right"}
    with torch.no_grad():
        theirs, ours = plain.eval()(noise).logits, run.model()(noise)["direction"]
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)
    # It is a backbone to transfer from as well, with the preprocessing it was trained under.
    clip = torch.randint(0, 256, (1, 8, 40, 56, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(load_backbone(folder).prepare(clip), run.model().backbone.prepare(clip))


@pytest.mark.parametrize("spelled", ["linear", "attentive", "lora:2", "bitfit", "full"])
def test_export_encoder_is_the_trained_backbone_of_any_tasks(runs, tmp_path, noise, spelled):
    run = runs(spelled, ("direction", "bright", "speed"))
    folder = export(run, tmp_path / "encoder", encoder=True)
    model, backbone = run.model(), load_backbone(folder)
    backbone.requires_grad_(False)
    model.requires_grad_(False)
    tokens = backbone(noise)
    torch.testing.assert_close(tokens.tokens, model.backbone(noise).tokens, atol=1e-5, rtol=1e-5)
    # Under the run's own head it says the same.
    for name, logits in model.forward_tokens(tokens).items():
        torch.testing.assert_close(logits, model(noise)[name], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(backbone.pool(tokens.tokens), model.backbone.pool(tokens.tokens), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("spelled", "tasks", "why"),
    [
        ("linear", ("direction", "bright", "speed"), "it has 3 tasks, and a plain one has one"),
        ("linear", ("speed",), "task 'speed' is regression, not multiclass"),
        ("attentive", ("direction",), "its head is 'query'"),
        ("adapter:6", ("direction",), "has adapters, new layers"),
    ],
)
def test_export_says_what_a_plain_checkpoint_cannot_hold(runs, tmp_path, spelled, tasks, why):
    with pytest.raises(ValueError, match=why):
        export(runs(spelled, tasks), tmp_path / "plain")
    assert list(tmp_path.iterdir()) == []


def test_export_notices_a_classifier_that_pools_otherwise(tiny_checkpoint, tiny_table, tmp_path):
    """Without use_mean_pooling the library's classifier reads the first token only."""
    backbone = load_backbone(tiny_checkpoint)
    backbone.model.config.use_mean_pooling = False
    from transformers import VideoMAEForVideoClassification

    VideoMAEForVideoClassification(backbone.config).save_pretrained(tmp_path / "first")
    record = (Path(tiny_checkpoint) / "preprocessor_config.json").read_text()
    (tmp_path / "first" / "preprocessor_config.json").write_text(record)
    setup = setup_for(str(tmp_path / "first"), strategy="linear", tasks=("direction",), epochs=1)
    run = fine_tune(setup, tiny_table, runs_dir=tmp_path / "runs", **QUIET)
    with pytest.raises(ValueError, match="does not pool the tokens by their mean; export its encoder"):
        export(run, tmp_path / "plain")
    assert not (tmp_path / "plain").exists()
    assert (export(run, tmp_path / "plain", encoder=True) / "model.safetensors").exists()


def test_export_never_writes_over_something(runs, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty; name a new folder"):
        export(runs("linear"), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    assert export(runs("linear"), tmp_path / "empty") == tmp_path / "empty"


def test_export_from_the_shell(runs, tmp_path, capsys):
    assert main(["export", str(runs("lora:2").folder), str(tmp_path / "a")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "a")
    assert main(["export", str(runs("adapter:6").folder), str(tmp_path / "b"), "--encoder"]) == 2
    assert "has adapters" in capsys.readouterr().err


def test_the_shells_list_of_strategies_is_whole():
    from workbench.cli import options

    assert options.STRATEGIES.split(", ") == [str(s) for s in STRATEGIES.values()]


def test_setup_records_the_value_and_takes_a_strategy_object():
    assert Setup(strategy="lora").strategy == "lora:8" == Setup(strategy=parse_strategy("lora")).strategy
    assert Setup(strategy="lora").fingerprint() == Setup(strategy="lora:8").fingerprint()
    assert Setup(strategy="lora:4").fingerprint() != Setup(strategy="lora:8").fingerprint()
    assert Setup.from_json(json.loads(json.dumps(Setup(strategy="llrd").to_json()))).strategy == "llrd:0.75"
    own = Strategy("lora", pretrained=True, head="query", frozen=False, method="lora", value=8)
    with pytest.raises(ValueError, match="differs from the known 'lora:8'"):
        Setup(strategy=own)


@pytest.mark.parametrize("spelled", SPELLED)
def test_setup_has_rates_for_every_strategy(spelled):
    backbone, heads = Setup(strategy=spelled).rates
    assert (backbone == 0) is parse_strategy(spelled).frozen and heads > 0
