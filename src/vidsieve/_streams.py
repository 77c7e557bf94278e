"""Streams beside the one that a model runs on, each always the same: memory is used again on its own stream alone.

torch has 32 of them and hands them out in turn, so others may be given the same one.
"""

from functools import cache
from typing import Any, Literal

import torch


@cache
def stream_for(purpose: Literal["capture", "look"], device: torch.device) -> Any:
    """The stream of `device` that serves this."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
