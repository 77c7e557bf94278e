"""A method of one's own: a new selector beside the ready-made parts, attached like any other.

    python examples/own_method.py [CLIP [MODEL]]

The defaults are what `make demo` leaves in out/demo.
"""

import sys
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vidsieve import ops
from vidsieve.engines.hf import load, prepare
from vidsieve.methods import MarginalGain, NearestKept, Prune, SceneCuts, SelectionProblem
from vidsieve.video import read_video


@dataclass(frozen=True)
class Newest:
    """The tokens that resemble their place in the previous frame least: what moves, and what just appeared.

    The idea behind EVS (arXiv 2510.14624), here with a budget a segment.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"persistence"})  # measured in the one pass over the features

    def __call__(self, problem: SelectionProblem) -> Tensor:
        novelty = 1 - problem.tokens.from_original(problem.stats.required("persistence"))  # (N,)
        return ops.top(ops.TopProblem(problem.relevance * novelty, problem.segments.offsets, problem.budget))


def main(clip: str = "out/demo/clip.mp4", checkpoint: str = "out/demo/model") -> None:
    method = Prune(keep=0.1, segmenter=SceneCuts(), budget=MarginalGain(), selector=Newest(), merger=NearestKept())
    print(method)

    processor, model = load(checkpoint)
    inputs = prepare(processor, read_video(clip, num_frames=32), "Which digit is on the yellow card?").to(
        model.device, model.dtype
    )
    with method(model) as trace:
        model.generate(**inputs, max_new_tokens=8)
    print(trace)

    video = trace.videos[0]
    frame = torch.arange(len(video.frames)).repeat_interleave(torch.tensor(video.frames))  # (N,)
    print("kept per frame:", torch.bincount(frame[video.kept], minlength=len(video.frames)).tolist())


if __name__ == "__main__":
    main(*sys.argv[1:])
