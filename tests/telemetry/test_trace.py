"""Did it engage? What a trace tells, and that it does not grow."""

import json
from dataclasses import dataclass, replace

import pytest
import torch

from tests.engines.hf import tiny
from tests.engines.hf.reducers import Loudest
from tests.engines.hf.staged import STAGES
from vidsieve import Staged
from vidsieve.engines.hf import attach
from vidsieve.engines.hf.contract import CACHE
from vidsieve.methods.base import Reducer
from vidsieve.telemetry.timing import StageTimer, timed
from vidsieve.telemetry.trace import CallRecord, StageRecord, Trace, VideoRecord
from vidsieve.types.reduction import Reduction
from vidsieve.types.tokens import Prompt, VideoTokens


@dataclass(frozen=True)
class Segmented(Reducer):
    """Keeps the first token of each of two segments, a third of which is empty."""

    def reduce(self, tokens: VideoTokens, prompt: Prompt | None = None) -> Reduction:
        with timed("select"):
            half = len(tokens) // 2
            offsets = torch.tensor([0, half, half, len(tokens)])
            budget = torch.tensor([1, 0, 1])
            return replace(Reduction.select(torch.tensor([0, half]), len(tokens)), offsets=offsets, budget=budget)


def record(row: int = 0) -> VideoRecord:
    reduction = Reduction.select(torch.tensor([0, 2]), 8)
    stages = (StageRecord(0, 8, len(reduction), reduction),)
    return VideoRecord(row, torch.arange(8), (4, 4), (2, 2), StageTimer(), stages)


def test_what_a_trace_tells_of_one_video() -> None:
    model = tiny.model("qwen2_5_vl")
    with attach(model, Segmented()) as trace:
        model.generate(**tiny.prompt("qwen2_5_vl"), max_new_tokens=2)
    [video] = trace.videos
    assert (video.row, video.before, video.after) == (0, 24, 2)
    assert (video.kept, video.segments, video.budgets) == ([0, 12], [(0, 12), (12, 24)], [1, 1])
    assert set(trace.stages_ms) == {"select", "gather"}
    assert str(trace).startswith("24 video tokens -> 2 kept (8.3 %) in 2 segments, ")
    assert str(trace).endswith(f" ms, {100 * trace.cost:.1f} % of the prefill FLOPs")
    assert json.loads(json.dumps(trace.to_dict()))["remembered_calls"][0]["videos"][0]["kept"] == [0, 12]


def test_it_says_when_the_kept_tokens_are_shown() -> None:
    video = record()  # tokens 0 and 2, of the first of two frames
    assert video.seconds((3.0, 4.0)) == [3.0, 3.0]
    assert video.spans((3.0, 4.0)) == ((3.0, 3.0, 1.0),)


def test_a_line_for_each_of_several_videos() -> None:
    model = tiny.model("qwen2_5_vl")
    with attach(model, Segmented()) as trace:
        model.generate(**tiny.batch(*[tiny.prompt("qwen2_5_vl", seed=n) for n in range(2)]), max_new_tokens=2)
    head, *lines = str(trace).splitlines()
    assert head == f"48 video tokens -> 4 kept (8.3 %), 2 videos, {100 * trace.cost:.1f} % of the prefill FLOPs"
    assert [line.split(":")[0].strip() for line in lines] == ["prompt 0", "prompt 1"]


def test_no_video_seen() -> None:
    trace = Trace()
    assert str(trace) == "no video tokens seen"
    assert (trace.kv_length, trace.videos, trace.stages_ms) == (None, [], {})


def test_it_remembers_the_last_calls_and_counts_all() -> None:
    trace = Trace(remembered=3)
    for call in range(10):
        trace.add(CallRecord((record(call),), (20, 14), 14, StageTimer()))
    assert [video.row for video in trace.videos] == [7, 8, 9]
    assert trace.totals == {"calls": 10, "videos": 10, "tokens_before": 80, "tokens_after": 20}
    assert "10 videos in 10 calls" in str(trace)
    assert "7 earlier videos" in str(trace)


def test_a_reducer_that_removes_nothing_is_warned_of() -> None:
    @dataclass(frozen=True)
    class Idle(Reducer):
        keep: float = 0.5

        def reduce(self, tokens: VideoTokens, prompt: Prompt | None = None) -> Reduction:
            return Reduction.identity(len(tokens), tokens.features.device)

    model = tiny.model("qwen2_5_vl")
    with attach(model, Idle()), pytest.warns(UserWarning, match="removed none of 24 video tokens"):
        model.generate(**tiny.prompt("qwen2_5_vl"), max_new_tokens=1)


def test_a_handle_for_servers() -> None:
    model = tiny.model("qwen2_5_vl")
    handle = attach(model, Loudest())
    for _ in range(2):
        model.generate(**tiny.prompt("qwen2_5_vl"), max_new_tokens=1)
    handle.remove()
    model.generate(**tiny.prompt("qwen2_5_vl"), max_new_tokens=1)
    assert handle.trace.totals["calls"] == 2
    assert "Loudest" in repr(handle)


def test_a_layer_of_linear_attention_holds_its_states() -> None:
    model = tiny.model("qwen3_5")
    with attach(model, Loudest()) as trace, torch.no_grad():
        cache = model(**tiny.prompt("qwen3_5"), use_cache=True)[CACHE]
    linear, full, _ = cache.layers
    assert trace.kv_bytes[0] == linear.conv_states[0].nbytes + linear.recurrent_states[0].nbytes > 0
    assert trace.kv_bytes[1] == full.keys.nbytes + full.values.nbytes


def test_what_a_trace_tells_of_stages() -> None:
    model, inputs = tiny.model("qwen2_5_vl"), tiny.prompt("qwen2_5_vl")
    with attach(model, Staged(STAGES["two layers"])) as trace:
        out = model.generate(**inputs, max_new_tokens=1, return_dict_in_generate=True)
    [video] = trace.videos
    assert [(s.layer, s.before, s.after) for s in video.stages] == [(1, 24, 12), (2, 12, 6)]
    assert (video.before, video.after, len(video.kept)) == (24, 6, 6)
    assert video.kept == sorted(set(video.kept))
    held = [40, 28, 22]  # 16 tokens of text
    assert trace.kv_bytes == tuple(2 * 2 * 16 * 4 * n for n in held)  # keys and values, heads, width, float32
    assert trace.kv_bytes == tuple(2 * layer.keys.nbytes for layer in out[CACHE].layers)
    assert "(12 from layer 1, 6 from layer 2), " in str(trace)
    assert str(trace).endswith(" % of the prefill FLOPs")
    assert json.loads(json.dumps(trace.to_dict()))["remembered_calls"][0]["kv_bytes"] == list(trace.kv_bytes)
    assert {"gather"} <= set(trace.stages_ms)
