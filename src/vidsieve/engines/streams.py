"""Streams beside the one that a model runs on, each always the same: memory is used again on its own stream alone.

torch has 32 of each priority and hands them out in turn, so others may be given the same one. What others launched on
the stream of a capture would be captured with it: so that one is of the priority that hardly anyone asks for.
"""

from functools import cache
from typing import Any, Literal

import torch


@cache
def stream_for(purpose: Literal["capture", "look"], device: torch.device) -> Any:
    """The stream of `device` that serves this."""
    return torch.cuda.Stream(device, priority=-1 if purpose == "capture" else 0)  # type: ignore[no-untyped-call]
