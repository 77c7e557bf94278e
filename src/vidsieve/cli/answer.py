"""Answer a prompt, and measure it: time in the vision tower, to the first token and to the last; cache and memory."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from vidsieve.engines.hf.cache import layer_bytes
from vidsieve.engines.hf.contract import cache_of
from vidsieve.engines.hf.intercept import Interceptions
from vidsieve.engines.hf.vision.tower import find_tower
from vidsieve.telemetry.timing import StageTimer, timed


@dataclass(frozen=True)
class Answer:
    """What was said, and what it took.

    trace: what the attached method did; None without.  stages_ms: "vision" (unless the tower is not known), "prefill"
    (the other time to the first token, which includes the reduction) and "rest" (on to the last).
    memory: kv_bytes, of the cache once it holds the prompt; peak_bytes, of CUDA memory above what was allocated before.
    Only what could be measured.
    """

    text: str
    trace: Any
    stages_ms: dict[str, float]
    memory: dict[str, int]


def answer(
    model: Any,
    processor: Any,
    inputs: Any,
    max_new_tokens: int,
    attach: Callable[[Any], AbstractContextManager[Any]] = lambda model: nullcontext(),
) -> Answer:
    """Generate the answer to `inputs`, with what `attach` attaches to the model for as long."""
    watch, first = _Watch(model.device), _FirstToken()
    peak = _Peak(model.device)
    with Interceptions() as hooks:
        tower = find_tower(model)
        if tower is not None:
            hooks.before(tower, watch.tower_begins)
        with attach(model) as trace:
            if tower is not None:  # the last of its hooks, as the other was the first
                hooks.after(tower, watch.tower_ends)
            hooks.after(model.get_decoder(), watch.decoder_ends)
            start = time.perf_counter()
            output = model.generate(
                **inputs, do_sample=False, num_beams=1, max_new_tokens=max_new_tokens, streamer=first
            )
            end = time.perf_counter()
    text = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0].strip()
    vision = {"vision": watch.milliseconds()} if tower is not None else {}
    prefill = 1e3 * (first.at - start) - sum(vision.values())
    memory = ({"kv_bytes": watch.kv_bytes} if watch.kv_bytes else {}) | peak.bytes()
    return Answer(text, trace, {**vision, "prefill": prefill, "rest": 1e3 * (end - first.at)}, memory)


class _FirstToken:
    """A streamer that notes the time of the first new token; before it, `generate` passes the prompt."""

    def __init__(self) -> None:
        self.handed = 0
        self.at = 0.0

    def put(self, value: torch.Tensor) -> None:
        self.handed += 1
        if self.handed == 2:
            self.at = time.perf_counter()

    def end(self) -> None:
        pass


class _Watch:
    """Times the vision tower, and looks at the cache after the prompt. On CUDA the device is not made to wait."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.timers: list[StageTimer] = []
        self.running = ExitStack()
        self.kv_bytes = 0

    def tower_begins(self, *_: Any) -> None:
        self._wait()
        timer = self.running.enter_context(StageTimer(self.device))
        self.running.enter_context(timed("vision"))
        self.timers.append(timer)

    def tower_ends(self, *_: Any) -> None:
        self._wait()
        self.running.close()

    def decoder_ends(self, decoder: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        cache = cache_of(kwargs)
        if not self.kv_bytes and cache is not None:
            self.kv_bytes = sum(layer_bytes(cache))

    def milliseconds(self) -> float:
        return sum(timer.milliseconds().get("vision", 0.0) for timer in self.timers)

    def _wait(self) -> None:
        if self.device.type not in ("cpu", "cuda"):  # the timer has no events of other accelerators
            torch.accelerator.synchronize(self.device)


class _Peak:
    """Measures CUDA memory from now on."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)

    def bytes(self) -> dict[str, int]:
        if self.device.type != "cuda":
            return {}
        return {"peak_bytes": torch.cuda.max_memory_allocated(self.device) - self.before}
