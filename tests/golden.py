"""What every method keeps, merges, and lets a model answer, as numbers: the same before and after a change of form.

    python -m tests.golden write             golden.json anew, after a change of what is kept (CHANGELOG, Numerics)
    python -m tests.golden save A.pt         all values, on the device that is there
    python -m tests.golden compare A.pt B.pt

`golden.json` holds digests of what is kept, of what took in the rest and of the positions that the language model sees,
made by eager torch on a CPU: integers, which another machine finds too. Features and logits are rounded as each machine
does, and so are products in bf16, of which picks of `BY_MACHINE` are made: of these, only two commits on one machine
are compared, bit by bit, with `save` and `compare`.
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.engines.hf import tiny
from tests.synthetic import video_like
from tests.test_contract import BUDGETS, DIM, METHODS, PROMPT, RELEVANCES, SEGMENTERS, VIDEOS
from vidsieve import Prune, VideoTokens
from vidsieve.engines.hf import attach
from vidsieve.methods import presets
from vidsieve.methods.base import Attachable, Reducer
from vidsieve.methods.compose import Staged
from vidsieve.methods.merge import TemporalMerge
from vidsieve.methods.relevance import PromptAttention

FILE = Path(__file__).with_suffix(".json")
Values = Iterator[tuple[str, Tensor]]

PRUNERS: dict[str, Callable[[float], Reducer]] = {
    f"{segmenter} {budget} {relevance}": lambda keep, parts=(segmenter, budget, relevance): Prune(keep, *parts)
    for segmenter in SEGMENTERS
    for budget in BUDGETS
    for relevance in RELEVANCES
}
REDUCERS = {**METHODS, **PRUNERS}
MORE_VIDEOS: dict[str, tuple[int, int, Callable[[], Tensor]]] = {
    "long": (11, 197, lambda: video_like(11, 197, 64, 6, torch.float32, cuts=(3,))),
    "long, bf16": (4, 197, lambda: video_like(4, 197, 64, 6, torch.bfloat16, cuts=(3,))),
    "odd": (5, 13, lambda: video_like(5, 13, 24, 7, torch.float32, cuts=(2,))),
}
BY_MACHINE = ("long, bf16",)  # Intel's and AMD's units for bf16 round otherwise, and near ties fall as they round
ATTACHED: dict[str, Attachable] = {
    "vidsieve": presets.vidsieve(0.3),
    "cdpruner": presets.cdpruner(0.3),
    "divprune": presets.divprune(0.3),
    "merging": TemporalMerge(keep=0.4),
    "framefusion": presets.framefusion(0.9),
    "stages": Staged({0: TemporalMerge(0.8), 1: Prune(0.5), 2: Prune(0.25, relevance=PromptAttention())}),
}


def of_reducer(name: str, device: torch.device) -> Values:
    """(what it is, the tensor) of one of REDUCERS on every video."""
    for video, (frames, per_frame, make) in {**VIDEOS, **MORE_VIDEOS}.items():
        features = make().to(device)
        prompt = PROMPT.embeddings[:, : min(DIM, features.shape[1])]
        prompt = torch.nn.functional.pad(prompt, (0, features.shape[1] - prompt.shape[1])).to(device)
        for keep in (0.1, 0.37):
            tokens = VideoTokens.from_grid(features, frames, 1, per_frame)
            reduction = REDUCERS[name](keep).reduce(tokens, type(PROMPT)(prompt))
            key = f"{name} | {video} | {keep}"
            yield f"{key} | kept", reduction.kept
            yield f"{key} | source", reduction.assigned_to
            yield f"{key} | features", reduction.apply(features)


def of_model(family: str, name: str, device: torch.device) -> Values:
    """The same of one of ATTACHED on a tiny model: also the positions it sees, and the logits."""
    model = tiny.fresh(family).to(device)
    prompts = [tiny.prompt(family, seed, text) for seed, text in ((0, 6), (1, 9))]
    for rows, inputs in (("one", prompts[0]), ("two", tiny.batch(*prompts))):
        seen: list[Tensor] = []

        def look(module: Any, args: Any, kwargs: dict[str, Any], seen: list[Tensor] = seen) -> None:
            seen.append(kwargs["position_ids"])

        inputs = {key: value.to(device) for key, value in inputs.items()}
        key = f"{family} | {name} | {rows}"
        with attach(model, ATTACHED[name]) as trace, torch.no_grad():
            hook = model.get_decoder().register_forward_pre_hook(look, with_kwargs=True)
            generated = model.generate(**inputs, max_new_tokens=3, output_logits=True, return_dict_in_generate=True)
            hook.remove()
        for i, video in enumerate(trace.calls[-1].videos):
            yield f"{key} | kept {i}", torch.tensor(video.kept)
            yield f"{key} | source {i}", video.reduction.assigned_to
        for i, positions in enumerate(seen):
            yield f"{key} | positions {i}", positions
        yield f"{key} | answer", generated.sequences
        for i, logits in enumerate(generated.logits):
            yield f"{key} | logits {i}", logits


def everything(device: torch.device) -> Values:
    for name in REDUCERS:
        yield from of_reducer(name, device)
    for family in tiny.FIRST:
        for name in ATTACHED:
            yield from of_model(family, name, device)


def digests(values: Values) -> dict[str, str]:
    """Of each value that is made of integers, by its name without the last part: 16 hexadecimal digits."""
    found: dict[str, Any] = {}
    for name, value in values:
        if not value.is_floating_point() and not any(f" | {video} | " in name for video in BY_MACHINE):
            found.setdefault(name.rpartition(" | ")[0], hashlib.sha256()).update(value.to(torch.int64).cpu().numpy())
    return {name: digest.hexdigest()[:16] for name, digest in found.items()}


def compare(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """The names of the values that are not the same bits in both."""

    def same(x: Tensor | None, y: Tensor | None) -> bool:
        if x is None or y is None or x.dtype != y.dtype or x.shape != y.shape:
            return False
        return torch.equal(x.contiguous().view(torch.uint8), y.contiguous().view(torch.uint8))

    return sorted(name for name in a.keys() | b.keys() if not same(a.get(name), b.get(name)))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("do", choices=("write", "save", "compare"))
    parser.add_argument("files", nargs="*", type=Path)
    options = parser.parse_args()
    if options.do == "write":
        os.environ["VIDSIEVE_OPS"] = "eager"
        FILE.write_text(json.dumps(digests(everything(torch.device("cpu"))), indent=0) + "\n")
    elif options.do == "save":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.save({name: value.cpu() for name, value in everything(device)}, options.files[0])
    else:
        a, b = (torch.load(path) for path in options.files)
        different = compare(a, b)
        print(f"{len(different)} of {len(a)} values differ", *different[:20], sep="\n")
        sys.exit(bool(different))


if __name__ == "__main__":
    main()
