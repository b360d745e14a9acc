import copy
from typing import Any

import pytest
import torch

from tests.models.tiny import TINY, save
from workbench.data.tables import Task
from workbench.models.backbones import load_backbone
from workbench.models.strategies import apply_strategy
from workbench.models.tml import TML, DecoderBlock

ACTION = Task("action", "multiclass", ("left", "right", "up", "down", "spin"))
SAFETY = Task("safety", "binary")
QUALITY = Task("quality", "regression")
TAGS = Task("tags", "multilabel", ("run",))
# Names that torch's ModuleDict would refuse.
AWKWARD = (Task("type", "binary"), Task("v1.2", "regression"))


def copy_task(source, target, i, j):
    """Copy the parameters of task i of one query model to task j of another."""
    with torch.no_grad():
        target.head.queries[j] = source.head.queries[i]
        target.head.linears[j].load_state_dict(source.head.linears[i].state_dict())


def test_mean_head_with_copied_classifier_gives_hugging_faces_logits(backbone, checkpoint, clips):
    theirs = checkpoint[1]
    model: Any = TML(backbone, [ACTION]).eval()
    model.head.linears[0].load_state_dict(theirs.classifier.state_dict())
    pixel_values = backbone.prepare(clips)
    with torch.no_grad():
        assert torch.equal(model(pixel_values)["action"], theirs(pixel_values).logits)


@pytest.mark.parametrize("head", ["mean", "query"])
def test_forward_shapes_follow_the_kind_of_task(backbone, clips, head):
    tasks = (ACTION, SAFETY, QUALITY, TAGS, *AWKWARD)
    out = TML(backbone, tasks, head=head)(backbone.prepare(clips))
    assert {name: tuple(y.shape) for name, y in out.items()} == {
        "action": (3, 5), "safety": (3,), "quality": (3,), "tags": (3, 1), "type": (3,), "v1.2": (3,)
    }  # fmt: skip


@pytest.mark.parametrize("head", ["mean", "query"])
def test_forward_tokens_equals_forward(backbone, clips, head):
    model = TML(backbone, [ACTION, SAFETY], head=head).eval()
    pixel_values = backbone.prepare(clips)
    with torch.no_grad():
        whole, parts = model(pixel_values), model.forward_tokens(backbone(pixel_values))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize("head", ["mean", "query"])
def test_forward_works_for_one_task_and_one_clip(backbone, clips, head):
    model = TML(backbone, [SAFETY], head=head).eval()
    pixel_values = backbone.prepare(clips)
    with torch.no_grad():
        torch.testing.assert_close(model(pixel_values[:1])["safety"], model(pixel_values)["safety"][:1])


@pytest.mark.parametrize("decoder_layers", [1, 2])
def test_query_head_permuting_tasks_permutes_outputs(backbone, clips, decoder_layers):
    options = {"head": "query", "decoder_layers": decoder_layers}
    model: Any = TML(backbone, [ACTION, SAFETY, QUALITY], **options).eval()
    other: Any = TML(backbone, [QUALITY, ACTION, SAFETY], **options).eval()
    other.head.blocks.load_state_dict(model.head.blocks.state_dict())
    for i, j in ((0, 1), (1, 2), (2, 0)):
        copy_task(model, other, i, j)
    pixel_values = backbone.prepare(clips)
    with torch.no_grad():
        (a, attention_a), (b, attention_b) = (m(pixel_values, return_attention=True) for m in (model, other))
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(attention_a[name], attention_b[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("task_attention", [True, False])
def test_query_head_task_attention_decides_whether_tasks_see_each_other(backbone, clips, task_attention):
    model: Any = TML(backbone, [ACTION, SAFETY], head="query", task_attention=task_attention).eval()
    pixel_values = backbone.prepare(clips)
    with torch.no_grad():
        before = model(pixel_values)["action"].clone()
        # Not a constant shift: the norm before the attention would take it out.
        model.head.queries[1] = torch.linspace(-1, 1, 24)
        moved = (model(pixel_values)["action"] - before).abs().max().item()
    assert (moved > 1e-4) == task_attention


def test_query_head_cross_attention_rows_sum_to_one_and_do_not_change_the_outputs(backbone, clips):
    model = TML(backbone, [ACTION, SAFETY], head="query", decoder_layers=2).eval()
    pixel_values = backbone.prepare(clips)
    with torch.no_grad():
        outputs, attention = model(pixel_values, return_attention=True)
        plain = model(pixel_values)
    assert list(attention) == ["action", "safety"]
    for name, weights in attention.items():
        torch.testing.assert_close(weights.sum(-1), torch.ones(3), atol=1e-5, rtol=0)
        torch.testing.assert_close(outputs[name], plain[name], atol=1e-5, rtol=1e-5)


def test_decoder_block_equals_the_formula_by_hand():
    torch.manual_seed(0)
    block = DecoderBlock(8, 2, self_attention=False).eval()
    q, memory = torch.randn(2, 1, 8), torch.randn(2, 5, 8)
    attention = block.cross_attention
    wq, wk, wv = attention.in_proj_weight.chunk(3)
    with torch.no_grad():
        x = block.cross_norm(q)
        heads = [(x @ wq.T), (memory @ wk.T), (memory @ wv.T)]  # in_proj_bias starts at zero
        a, b, c = (h.reshape(2, -1, 2, 4).transpose(1, 2) for h in heads)
        weights = torch.softmax(a @ b.transpose(2, 3) / 2, -1)  # sqrt(4)
        seen = (weights @ c).transpose(1, 2).reshape(2, 1, 8) @ attention.out_proj.weight.T + attention.out_proj.bias
        by_hand = q + seen
        by_hand = by_hand + block.mlp(by_hand)
        ours, averaged = block(q, memory, need_weights=True)
    torch.testing.assert_close(ours, by_hand)
    torch.testing.assert_close(averaged, weights.mean(1))


def test_mean_head_has_no_cross_attention_and_says_so(backbone, clips):
    with pytest.raises(ValueError, match="head='query'"):
        TML(backbone, [ACTION])(backbone.prepare(clips), return_attention=True)


def test_heads_start_near_chance(backbone, clips):
    torch.manual_seed(0)
    for head in ("mean", "query"):
        outputs = TML(backbone, [ACTION], head=head).eval()(backbone.prepare(clips))["action"]
        assert torch.softmax(outputs, -1).max() < 0.5


def test_train_keeps_a_frozen_backbone_in_eval_and_lets_the_head_train(backbone):
    model = TML(backbone, [ACTION], head="query")
    model.backbone.requires_grad_(False)
    model.train()
    assert model.training and model.head.training
    assert not any(m.training for m in model.backbone.modules())
    model.backbone.requires_grad_(True)
    model.train()
    assert all(m.training for m in model.modules())
    assert not any(m.training for m in model.eval().modules())


def test_state_dict_round_trip_gives_the_same_outputs(backbone, clips):
    tasks = (ACTION, *AWKWARD)
    model, other = (TML(copy.deepcopy(backbone), tasks, head="query").eval() for _ in range(2))
    pixel_values = backbone.prepare(clips)
    with torch.no_grad():
        assert not torch.equal(model(pixel_values)["action"], other(pixel_values)["action"])
        other.load_state_dict(model.state_dict())
        assert all(torch.equal(model(pixel_values)[t.name], other(pixel_values)[t.name]) for t in tasks)


@pytest.mark.parametrize(
    ("tasks", "options", "message"),
    [
        ([], {}, "at least one task"),
        ([SAFETY, SAFETY], {}, "no name twice"),
        ([SAFETY], {"head": "median"}, "mean, query"),
        ([SAFETY], {"head": "query", "decoder_layers": 0}, "at least 1"),
    ],
)
def test_tml_refuses_what_it_cannot_build(backbone, tasks, options, message):
    with pytest.raises(ValueError, match=message):
        TML(backbone, tasks, **options)


def test_task_finds_by_name_and_lists_the_others(backbone):
    model = TML(backbone, [ACTION, SAFETY])
    assert model.task("safety") is SAFETY
    assert TML(backbone, [QUALITY]).task() is QUALITY
    for name in (None, "nope"):
        with pytest.raises(ValueError, match="'action', 'safety'"):
            model.task(name)


def test_task_maps_give_every_block_and_head_and_average_to_the_plain_attention(backbone, clips):
    model = TML(backbone, [ACTION, SAFETY], head="query", decoder_layers=2).eval()
    with torch.no_grad():
        tokens = backbone(backbone.prepare(clips))
        outputs, maps = model.task_maps(tokens)
        plain, attention = model.forward_tokens_with_attention(tokens)
    for name in ("action", "safety"):
        assert maps[name].shape == (3, 2, 3, 32)  # clips, blocks, heads, tokens
        torch.testing.assert_close(maps[name].sum(-1), torch.ones(3, 2, 3), atol=1e-5, rtol=0)
        torch.testing.assert_close(maps[name][:, -1].mean(1), attention[name], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(outputs[name], plain[name], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(maps["action"][:, 0], maps["action"][:, 1], atol=1e-4)
    with pytest.raises(ValueError, match="head='query'"):
        TML(backbone, [ACTION]).task_maps(tokens)


def gradients_of(model, clips, name):
    """Output of one task, and the gradient of its sum by parameter."""
    output = model(model.backbone.prepare(clips))[name]
    model.zero_grad()
    output.sum().backward()
    return output.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_one_task_of_a_frozen_model_without_task_attention_is_the_attentive_probe(backbone, clips):
    """What the probe gives and learns, the task does among others: outputs and gradients, for each task."""
    tasks = (ACTION, SAFETY, QUALITY)
    many: Any = TML(backbone, tasks, head="query", task_attention=False)
    apply_strategy(many, "attentive")
    for i, task in enumerate(tasks):
        probe: Any = TML(backbone, [task], head="query")
        apply_strategy(probe, "attentive")
        for part in ("blocks", "memory_norm", "norm"):
            getattr(probe.head, part).load_state_dict(getattr(many.head, part).state_dict())
        copy_task(many, probe, i, 0)
        (a, grads), (b, of_probe) = (gradients_of(m.train(), clips, task.name) for m in (many, probe))
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
        assert not any(n.startswith("backbone") for n in grads)
        torch.testing.assert_close(grads["head.queries"][i], of_probe["head.queries"][0], atol=1e-5, rtol=1e-4)
        assert not grads["head.queries"][[j for j in range(3) if j != i]].any()
        name = "head.blocks.0.cross_attention.in_proj_weight"
        torch.testing.assert_close(grads[name], of_probe[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("options", [{"head": "mean"}, {"head": "query", "task_attention": False}])
def test_add_task_leaves_the_others_and_trains_its_own_parts_alone(backbone, clips, options):
    model: Any = TML(backbone, [ACTION, SAFETY], **options).eval()
    pixel_values = backbone.prepare(clips)
    with torch.no_grad():
        before = model(pixel_values)
    model.add_task(QUALITY, freeze_rest=True, seed=3)
    trains = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trains == {"head.linears.2.weight", "head.linears.2.bias"} | (
        {"head.added.0"} if options["head"] == "query" else set()
    )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.5)
    with torch.no_grad():
        first = model(pixel_values)
    for _ in range(2):
        optimizer.zero_grad()
        model(pixel_values)["quality"].square().sum().backward()
        optimizer.step()
    with torch.no_grad():
        after = model(pixel_values)
    for name in before:  # one query more makes other sums of the same numbers; training it, nothing at all
        torch.testing.assert_close(before[name], first[name], atol=1e-6, rtol=1e-5)
        assert torch.equal(first[name], after[name])
    assert not torch.equal(after["quality"], first["quality"])
    assert [t.name for t in model.tasks] == ["action", "safety", "quality"]


def test_add_task_is_drawn_from_its_seed_and_leaves_the_random_state(backbone):
    drawn = []
    for seed in (1, 1, 2):
        model: Any = TML(backbone, [ACTION], head="query")
        state = torch.get_rng_state()
        model.add_task(SAFETY, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        drawn.append(torch.cat([model.head.added[0][0], model.head.linears[1].weight[0]]))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_add_task_to_queries_that_see_each_other_warns_and_names_cannot_repeat(backbone, clips, caplog):
    model: Any = TML(backbone, [ACTION, SAFETY], head="query").eval()
    pixel_values = backbone.prepare(clips)
    with torch.no_grad():
        before = model(pixel_values)["action"]
        model.add_task(QUALITY, freeze_rest=True)
        model.head.added[0].copy_(torch.linspace(-1, 1, 24)[None])
        assert not torch.allclose(model(pixel_values)["action"], before, atol=1e-4)
    assert "task 'quality' moves the outputs of the others" in caplog.text
    with pytest.raises(ValueError, match="has a task 'quality' already"):
        model.add_task(QUALITY)


def test_merge_added_gives_the_parameters_of_a_model_built_with_all_tasks(backbone, clips):
    model: Any = TML(backbone, [ACTION, SAFETY], head="query", task_attention=False).eval()
    for task in (QUALITY, TAGS):
        model.add_task(task)
    pixel_values = backbone.prepare(clips)
    with torch.no_grad():
        before = model(pixel_values)
        model.merge_added()
        whole = TML(backbone, model.tasks, head="query", task_attention=False).eval()
        whole.load_state_dict(model.state_dict())
        for other in (model(pixel_values), whole(pixel_values)):
            assert all(torch.equal(before[t.name], other[t.name]) for t in model.tasks)
    assert model.head.queries.requires_grad


@pytest.mark.parametrize("family", ["bert", "roberta", "vivit", "dinov2"])
def test_query_head_works_on_every_kind_of_encoder(family, tmp_path, clips):
    backbone = load_backbone(save(family, tmp_path), **TINY[family].options)
    model: Any = TML(backbone, [ACTION, SAFETY], head="query").train()
    model.add_task(QUALITY)
    outputs, maps = model.task_maps(backbone(backbone.prepare(clips)))
    cells = backbone.grid[0] * backbone.grid[1] * backbone.grid[2]
    assert {n: m.shape for n, m in maps.items()} == {n: (3, 1, 3, cells) for n in ("action", "safety", "quality")}
    for name, output in outputs.items():
        model.zero_grad()
        output.square().sum().backward(retain_graph=True)
        grads = [p.grad for p in backbone.blocks[0].parameters() if p.grad is not None]
        assert grads and all(torch.isfinite(g).all() for g in grads) and any(g.any() for g in grads), name
