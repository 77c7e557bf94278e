"""A server whose layers are in two processes: the second has to know where the kept tokens of a video stand."""

import importlib.util
from collections.abc import Callable

import pytest

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed; `make test-vllm` sets it up beside this environment", allow_module_level=True)

from tests.engines.vllm import engine
from tests.engines.vllm.engine import ids, mixed, request

pytestmark = pytest.mark.vllm


def test_later_stages_place_kept_tokens_as_the_first_does(
    start: Callable[..., engine.Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [request("qwen3_vl"), mixed("qwen3_vl")]
    expected = [ids(out) for out in start("qwen3_vl", 0.75).ask(asked, 8)]
    monkeypatch.setenv("VLLM_WORKER_MULTIPROCESSING_METHOD", "spawn")
    staged = start(
        "qwen3_vl",
        0.75,
        pipeline_parallel_size=2,
        distributed_executor_backend="mp",
        enforce_eager=False,  # with it, vLLM's runner for CPUs makes no room for what stages send
        compilation_config={"mode": 1},
        skip_mm_profiling=True,
    )
    assert [ids(out) for out in staged.ask(asked, 8)] == expected
