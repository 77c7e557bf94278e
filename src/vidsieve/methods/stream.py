"""EXPERIMENTAL. Selection over a stream: at most B tokens of a video without an end, at any time.

Greedy picks are nested and held in their order, so to forget is to cut these lists: when a segment ends, eq. 3 shares
the B tokens among all segments that are still remembered, none of which gets back what it lost. A segment that is left
with nothing is forgotten, so there are never more than B, and one costs as much time after a year as after an hour.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor

from vidsieve.checks import check_number
from vidsieve.errors import WrongArgument
from vidsieve.methods.budget import MarginalGain
from vidsieve.methods.chunked import Chunks, Ended, budget_of, check_chunks, within_held
from vidsieve.methods.prune import Prune
from vidsieve.methods.relevance import Contrast
from vidsieve.methods.segment import SceneRuns, Within
from vidsieve.methods.selection import ConditionalDPP
from vidsieve.types.selection import Rows, Selection, shared


class _Memory(NamedTuple):
    """What is remembered of S segments: int64 (S,) each, but gains float32, None where lengths alone weigh.

    rows: their picks, segment the number in the stream.  numbers: of the segments, ascending.  held: the picks of each.
    """

    rows: Rows | None
    numbers: Tensor
    lengths: Tensor
    gains: Tensor | None
    held: Tensor


class StreamMemory:
    """At most `tokens` tokens of a stream, the same however it is cut into calls.

        memory = StreamMemory(tokens=4096)
        memory.add(features, frames)                    # any number of times
        selection = memory.selection()                  # at any time

    Holds besides one unfinished segment, and the chunk and what is remembered twice while they are joined.
    """

    def __init__(self, tokens: int, method: Prune | None = None, centre: Tensor | None = None) -> None:
        """
        tokens: B.  method: as `in_chunks` makes or leaves it, whose `keep` is not read; None for the default's parts.
        centre: (D,), as in `ChunkedPrune`.
        Raises `WrongArgument` for a method that cannot select in chunks, or needs to know the length of the video.
        """
        check_number("tokens is how many the memory holds, at least 1", tokens, 1, integer=True)
        method = method or Prune(1.0, SceneRuns(), MarginalGain(), Contrast(), ConditionalDPP())
        check_chunks(method)
        if isinstance(method.segmenter, Within):
            raise WrongArgument("Within needs the length of the video; expected SceneRuns, PerFrame or Uniform")
        self._chunks, self._tokens = Chunks(method, centre), tokens
        none = torch.zeros(0, dtype=torch.int64)
        gains = torch.zeros(0) if isinstance(method.budget, MarginalGain) else None
        self._memory = _Memory(None, none, none, gains, none)

    @property
    def original_count(self) -> int:
        """Tokens that came so far."""
        return self._chunks.count

    def __len__(self) -> int:
        """Tokens remembered of the segments that have ended."""
        return int(self._memory.held.sum())

    def copy(self) -> Self:
        """The same memory, which goes on apart from this one. They share tensors, which neither writes to."""
        made = copy.copy(self)
        made._chunks = copy.copy(self._chunks)
        return made

    def add(self, features: Tensor, frames: Sequence[int], others: Mapping[str, Tensor] | None = None) -> None:
        """Add the next frames; arguments and errors as in `ChunkedPrune.add`."""
        self._chunks.add(features, frames, others or {})
        ended = self._chunks.ended()
        if ended is not None:
            self._memory = self._after(ended)
            self._chunks.drop(ended)

    def selection(self) -> Selection:
        """The selection of what came so far, as if it ended here: min(B, N) tokens; changes nothing.

        `original_count` is N and the lengths are those of the segments that are remembered. `capped` counts what they
        would hold more had nothing of them been forgotten. Raises `WrongArgument` before anything came.
        """
        ended = self._chunks.ended(everything=True)
        memory = self._memory if ended is None else self._after(ended)
        _, numbers, lengths, gains, held = memory
        if memory.rows is None:
            raise WrongArgument("nothing was added to this memory yet; add features first")
        floor = budget_of(self._chunks.method).floor
        wanted = shared(int(held.sum()), lengths, gains, floor)
        rows = memory.rows._replace(segment=_places(numbers, memory.rows)[0].int())
        capped = int((wanted - held).clamp(min=0).sum())
        return Selection.of([rows], held, lengths, gains, floor, self._chunks.count, capped)

    def _after(self, ended: Ended) -> _Memory:
        """What is remembered when these segments have ended, one after another."""
        rows, numbers, lengths, gains, held = self._memory
        floor = budget_of(self._chunks.method).floor
        new = torch.arange(len(ended.lengths)) + ended.segments_before
        for i, n in enumerate(torch.split(ended.lengths, 1)):
            numbers, lengths, held = (torch.cat(pair) for pair in ((numbers, new[i : i + 1]), (lengths, n), (held, n)))
            if gains is not None and ended.gains is not None:
                gains = torch.cat([gains, ended.gains[i : i + 1]])
            if held.sum() > self._tokens:
                held, _ = within_held(self._tokens, lengths, gains, floor, held)
                alive = held > 0
                numbers, lengths, held = numbers[alive], lengths[alive], held[alive]
                gains = None if gains is None else gains[alive]
        first = int(torch.searchsorted(numbers, ended.segments_before))
        budget = torch.zeros_like(ended.lengths)
        budget[numbers[first:] - ended.segments_before] = held[first:]
        picked = self._chunks.pick(ended, budget)
        if rows is not None:
            at, there = _places(numbers, rows)
            rows = rows.take(there & (rows.step < held.to(at.device)[at]))
        return _Memory(picked if rows is None else Rows.join([rows, picked]), numbers, lengths, gains, held)


def _places(numbers: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    """Where among `numbers` (S,) the segment of each row is, and whether it is: int64 and bool (n,)."""
    numbers = numbers.to(rows.segment.device)
    at = torch.searchsorted(numbers, rows.segment.long()).clamp(max=len(numbers) - 1)
    return at, numbers[at] == rows.segment
