"""What the hooks of the vision tower cost the host: benchmarks/results/tower_host_<device>.json.

    python -m benchmarks.tower_host                        Qwen2.5-VL, Qwen3-VL, LLaVA-OneVision; wants a GPU
    python -m benchmarks.tower_host --device cpu --rounds 3

Towers as deep as the real ones (32, 27 and 26 layers), so narrow that the device waits for the host. `host_ms` is the
time until a call for 64 frames returns, before the device is done. `profiled_ms` is what vidsieve's own functions take
of it by Python's profiler, without the operations of torch and the launches that they call. The profiler makes each
call slower: `hooks_ms` is without that, which is what it adds to the whole, by the number of calls, half of it in the
function that calls and half in the one that is called.
"""

import argparse
import cProfile
import json
import pstats
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from benchmarks.first_token import MODELS, _Body, features, inputs, make, synchronize

import vidsieve
from vidsieve.evaluation.card import commit, processor, quantiles

RESULTS = Path(__file__).parent / "results"
PACKAGE = str(Path(vidsieve.__file__).parent)
DEPTH = {"qwen2_5_vl": 32, "qwen3_vl": 27, "llava_onevision": 26}
CALLS = 10  # under the profiler


def narrow(name: str, dtype: torch.dtype, device: torch.device) -> Any:
    """The shrunk model, with as many layers in its tower as the real one has."""
    config = MODELS[name](True)
    depth = "depth" if name != "llava_onevision" else "num_hidden_layers"
    setattr(config.vision_config, depth, DEPTH[name])
    if name == "qwen2_5_vl":
        config.vision_config.fullatt_block_indexes = [7, 15, 23, 31]
    return make(name, True, dtype, device, config=config)


def measure(name: str, vision: str, options: argparse.Namespace) -> dict[str, Any]:
    """A row: the tower of one model, stock or as it is attached."""
    device = torch.device(options.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = narrow(name, dtype, device)
    given = inputs(model.config, options.frames, 28 if name != "llava_onevision" else 8, dtype, device)
    body = _Body(model.base_model)
    times = []
    with torch.no_grad(), vidsieve.attach(model, vision=vision) as trace:
        for turn in range(options.rounds + 3):
            synchronize(device)
            begin = time.perf_counter()
            features(body, given)
            if turn >= 3:
                times.append(1e3 * (time.perf_counter() - begin))
        profile = cProfile.Profile()
        spent = []
        for _ in range(CALLS):
            synchronize(device)
            begin = time.perf_counter()
            profile.enable()
            features(body, given)
            profile.disable()
            spent.append(1e3 * (time.perf_counter() - begin))
    low, middle, high = quantiles(times)
    row = {"model": name, "vision": vision, "tower": trace.tower}
    row |= own_time(pstats.Stats(profile).stats, statistics.mean(spent) - middle)  # type: ignore[attr-defined]
    return row | {"host_ms": middle, "q20_ms": low, "q80_ms": high}


def own_time(stats: dict[Any, Any], added: float) -> dict[str, float]:
    """Get the milliseconds of a call in functions of vidsieve. added: what the profiler adds to a call."""
    own, calls, touched = 0.0, 0, 0
    for (file, *_), (_, count, spent, _, callers) in stats.items():
        calls += count
        touched += sum(of[1] for (caller, *_), of in callers.items() if caller.startswith(PACKAGE))
        if file.startswith(PACKAGE):
            own, touched = own + 1e3 * spent, touched + count
    return {
        "profiled_ms": round(own / CALLS, 3),
        "hooks_ms": round((own - added * CALLS / calls * touched / 2) / CALLS, 3),
        "calls": calls // CALLS,
        "own_calls": touched // CALLS,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--frames", type=int, default=64, help="(64)")
    parser.add_argument("--rounds", type=int, default=30, help="(30)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="(results/tower_host_<device>.json)")
    options = parser.parse_args()
    rows = [
        measure(name, vision, options)
        for name in MODELS
        for vision in ("stock", "packed", "auto")
        if vision != "packed" or name != "llava_onevision"
    ]
    device = torch.cuda.get_device_name() if options.device == "cuda" else processor()
    card = {
        "command": f"python -m benchmarks.tower_host --frames {options.frames} --rounds {options.rounds}",
        "commit": commit(),
        "device": device,
        "processor": processor(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }
    out = options.out or RESULTS / f"tower_host_{device.split()[-1].lower()}.json"
    out.write_text(json.dumps({"card": card, "rows": rows}, indent=1) + "\n")
    for row in rows:
        print(f"{row['model']:16} {row['vision']:7} {row['host_ms']:8.1f} ms of host, {row['hooks_ms']:.2f} of hooks")


if __name__ == "__main__":
    main()
