"""What a prefill costs, and that a stage's keep meets the cost asked for."""

from typing import Any

import pytest
import torch
import transformers

from tests.engines.hf import configs, tiny
from tests.engines.hf.reducers import LouderThanMean, Loudest
from vidsieve import Prune, Staged
from vidsieve.engines.hf import attach
from vidsieve.engines.hf.contract import CACHE
from vidsieve.errors import BudgetError
from vidsieve.methods.merge import TemporalMerge
from vidsieve.methods.segment import Whole
from vidsieve.telemetry.flops import LayerCost, affordable, layer_costs, total


def deep(layers: int) -> Any:
    """The tiny Qwen2.5-VL with another number of layers."""
    config = configs.CONFIGS["qwen2_5_vl"]()
    text = config.text_config
    text.num_hidden_layers, text.layer_types = layers, ["full_attention"] * layers
    made = transformers.AutoModelForImageTextToText.from_config(config).eval()
    made.generation_config.eos_token_id = None
    return made


def test_a_layer_of_qwen2_5_vl_7b() -> None:
    with torch.device("meta"):
        text = transformers.Qwen2_5_VLTextConfig(
            hidden_size=3584,
            intermediate_size=18944,
            num_hidden_layers=2,
            num_attention_heads=28,
            num_key_value_heads=4,
            rope_parameters=configs.mrope(16, 24, 24),
        )
        cost = layer_costs(transformers.AutoModel.from_config(text))[1]
    attention = 2 * 3584 * 3584 + 2 * 3584 * 4 * 128  # q and o, k and v
    assert cost.linear == 2 * (attention + 3 * 3584 * 18944)
    assert cost.pair == 2 * 2 * 3584
    assert cost.flops(3) == 3 * cost.linear + (1 + 2 + 3) * cost.pair
    assert cost.flops(2, past=5) == 2 * cost.linear + (6 + 7) * cost.pair


def test_of_a_mixture_of_experts_only_those_a_token_sees() -> None:
    cost = layer_costs(tiny.model("qwen3_vl_moe").get_decoder())[0]
    attention = 2 * 64 * 64 + 2 * 64 * 32
    experts = 2 * 3 * 64 * 32  # two of four
    assert cost.linear == 2 * (attention + 4 * 64 + experts)


def test_linear_attention_has_no_pairs() -> None:
    costs = layer_costs(tiny.model("qwen3_5").get_decoder())
    assert [cost.pair > 0 for cost in costs] == [False, True, True]


def test_the_affordable_number_is_the_closest() -> None:
    costs = layer_costs(tiny.model("qwen2_5_vl").get_decoder())
    past = [0, 0, 0]
    for n in (1, 17, 50):
        exact = total(costs, n, past)
        for budget in (exact, exact * 1.0001, exact * 0.9999):
            assert affordable(costs, budget, past, 100) == n
    assert affordable(costs, 1e18, past, 100) == 100
    assert affordable(costs, 0.0, past, 100) == 0


STAGED = {
    "prunes": {0.25: Prune(0.6), 0.5: Prune(1.0)},
    "merge at 0": {0: TemporalMerge(0.2, Whole()), 0.25: Loudest(0.6), 0.5: Loudest(1.0)},
    "unpredictable": {0.25: LouderThanMean(), 0.5: Prune(1.0)},
}


@pytest.mark.parametrize("name", STAGED)
@pytest.mark.parametrize("layers", [4, 28, 36])
def test_the_cost_spent_is_the_cost_asked_for(layers: int, name: str) -> None:
    model = deep(layers)
    inputs = tiny.batch(*[tiny.prompt("qwen2_5_vl", seed=n, frames=48, text=6 + 5 * n) for n in range(2)])
    with attach(model, Staged(STAGED[name], cost=0.45)) as trace, torch.no_grad():
        cache = model(**inputs, use_cache=True)[CACHE]
    assert trace.cost == pytest.approx(0.45, rel=0.01)
    one = [cost.flops for cost in layer_costs(model.get_decoder())]
    held = [layer.keys.shape[2] for layer in cache.layers]
    assert trace.flops is not None
    assert len(set(held)) >= 3
    # By hand, from what the cache holds; it is padded, so rather more than was counted.
    padded = 2 * sum(flops(n) for flops, n in zip(one, held, strict=True))
    assert trace.flops[1] <= padded <= 1.1 * trace.flops[1]


def test_a_row_of_a_batch_gets_the_keep_it_gets_alone() -> None:
    model, stages = deep(4), Staged({1: Prune(1.0)}, cost=0.7)
    singles = [tiny.prompt("qwen2_5_vl", seed=n, frames=12, text=6 + 30 * n) for n in range(2)]
    alone = []
    with torch.no_grad(), attach(model, stages) as trace:
        for single in singles:
            model(**single)
            alone.append(trace.videos[-1].kept)
        model(**tiny.batch(*singles))
    assert [video.kept for video in trace.videos[-2:]] == alone
    assert len(alone[0]) != len(alone[1])


def test_two_videos_share_the_budget() -> None:
    model = deep(4)
    with torch.no_grad(), attach(model, Staged({1: Prune(1.0)}, cost=0.6)) as trace:
        model(**tiny.prompt("qwen2_5_vl", frames=40, videos=2))
    assert trace.cost == pytest.approx(0.6, rel=0.01)
    assert trace.videos[0].after == trace.videos[1].after


def test_a_cost_out_of_reach_is_told() -> None:
    model, message = deep(4), r"cost=0.3 cannot be met: all before layer 2.*take 0\.[5-9]\d* of the full"
    with attach(model, Staged({2: Prune(0.5)}, cost=0.3)), pytest.raises(BudgetError, match=message):
        model(**tiny.prompt("qwen2_5_vl"))
    longer = tiny.batch(*[tiny.prompt("qwen2_5_vl", text=6 + 40 * row) for row in range(2)])
    with attach(model, Staged({2: Prune(0.5)}, cost=0.75)), pytest.raises(BudgetError, match="cannot be met for row 1"):
        model(**longer)


def test_the_last_stage_keeps_at_most_its_own_keep() -> None:
    model = deep(4)
    with torch.no_grad(), attach(model, Staged({1: Prune(0.25)}, cost=0.9)) as trace:
        model(**tiny.prompt("qwen2_5_vl"))
    assert trace.videos[0].after == 6
    assert trace.cost is not None
    assert trace.cost < 0.9


def test_what_reduction_before_the_model_costs() -> None:
    model = deep(4)
    costs = layer_costs(model.get_decoder())
    with torch.no_grad(), attach(model, Loudest(0.25)) as trace:
        model(**tiny.prompt("qwen2_5_vl"))
    assert trace.flops == (total(costs, 40, [0] * 4), total(costs, 22, [0] * 4))


def test_cost_is_a_share_and_needs_a_keep_to_set() -> None:
    with pytest.raises(ValueError, match="cost is the share"):
        Staged({1: Prune(0.5)}, cost=1.5)
    with pytest.raises(ValueError, match="cost sets the keep of the last stage"):
        attach(deep(4), Staged({1: LouderThanMean()}, cost=0.5))
    with pytest.raises(ValueError, match="at layer 1 or later"):
        attach(deep(4), Staged({0: Prune(0.5)}, cost=0.5))


def test_the_cost_of_a_second_video_is_that_of_attending_to_the_first_too() -> None:
    model = deep(4)
    first, second = (tiny.prompt("qwen2_5_vl", seed=3 * turn, frames=24) for turn in range(2))
    begin, length = first["input_ids"].shape[1], second["input_ids"].shape[1]
    positions = torch.arange(begin, begin + length).expand(4, 1, -1)
    second["attention_mask"] = torch.ones(1, begin + length, dtype=torch.long)
    with torch.no_grad(), attach(model, Staged({1: Prune(1.0)}, cost=0.6)) as trace:
        cache = model(**first, use_cache=True)[CACHE]
        held = [layer.keys.shape[2] for layer in cache.layers]
        model(**second, position_ids=positions, **{CACHE: cache}, use_cache=True)
    costs = layer_costs(model.get_decoder())
    now = [layer.keys.shape[2] for layer in cache.layers]
    full, spent = trace.calls[1].flops
    assert spent / full == pytest.approx(0.6, rel=0.01)
    assert full == pytest.approx(total(costs, length, [begin] * 4))
    assert spent == pytest.approx(sum(cost.flops(b - a, a) for cost, a, b in zip(costs, held, now, strict=True)))


def test_heads_may_be_wider_than_the_hidden_size_allows() -> None:
    config = configs.CONFIGS["qwen3_vl"]()
    config.text_config.head_dim = 32  # of four heads, where there are 64 features
    config.text_config.rope_parameters["mrope_section"] = [8, 4, 4]
    with torch.device("meta"):
        cost = layer_costs(transformers.AutoModelForImageTextToText.from_config(config).get_decoder())[0]
    assert cost.pair == 2 * 2 * 4 * 32


def test_a_query_sees_no_more_keys_than_its_window() -> None:
    cost = LayerCost(0.0, 1.0, window=4)
    for tokens, past in ((3, 0), (9, 0), (5, 2), (5, 7)):
        assert cost.flops(tokens, past) == sum(min(past + n + 1, 4) for n in range(tokens))
