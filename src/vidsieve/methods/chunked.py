"""Selection over a video that comes chunk after chunk, in bounded memory, with an exact count.

Greedy picks are nested: the first b picks of a segment are the same whatever its budget. So each segment keeps its
first picks, in their order, and when the lengths and gains of all are known their budgets cut these lists: the tokens
that `Prune` keeps of the whole video, with the same parts and the same centre. What is not known before the end is the
centre of eq. 1, the mean of the video. Unless it is given, frame t is compared with the frame before it about the mean
of frames 0 to t.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import NamedTuple, cast

import torch
from torch import Tensor

from vidsieve import ops
from vidsieve.checks import check_number, describe, show
from vidsieve.errors import BudgetError, WrongArgument
from vidsieve.methods.base import Reducer, declares, kept_count
from vidsieve.methods.budget import MarginalGain, Proportional
from vidsieve.methods.prune import Prune
from vidsieve.methods.segment import SceneCuts, SceneRuns, Segmenter, Uniform, Within
from vidsieve.methods.selection import SelectionProblem
from vidsieve.types.segments import Segments
from vidsieve.types.selection import Rows, Selection, shared
from vidsieve.types.statistics import TokenStatistics
from vidsieve.types.tokens import VideoTokens

PART = 4 << 20  # bytes of features that are held as one on a CPU, at least
PARTS = {
    "segmenter": "SceneRuns, PerFrame, Uniform or Within",
    "budget": "MarginalGain or Proportional",
    "relevance": "Contrast, Novelty or Flat",
    "selector": "ConditionalDPP, MMR, MaxMin, TopRelevance or Hybrid",
}


def in_chunks(method: Reducer) -> Prune:
    """The method as it can select chunk after chunk: `SceneRuns` in place of `SceneCuts`, else unchanged.

    Raises `WrongArgument`, naming the part, for what needs to see the whole video or a prompt.
    """
    can = "; expected Prune(keep, " + ", ".join(PARTS.values()) + ")"
    if type(method) is not Prune:
        raise WrongArgument(f"{describe(method)} selects of a whole video, not chunk after chunk{can}")
    if type(method.segmenter) is SceneCuts:
        bounds = {name: getattr(method.segmenter, name) for name in ("threshold", "max_frames", "max_tokens")}
        method = replace(method, segmenter=SceneRuns(**bounds))
    for name in PARTS:
        part = getattr(method, name)
        if not declares(part, "chunks") and type(part) is not Within:
            raise WrongArgument(f"{describe(part)} needs the whole video or a prompt, not chunk after chunk{can}")
    if method.merger is not None:
        raise WrongArgument(f"{describe(method.merger)} merges within a whole video; expected no merger")
    return method


def check_chunks(method: Prune) -> None:
    """Raise `WrongArgument` unless the method is as `in_chunks` makes or leaves it."""
    if in_chunks(method) != method:
        raise WrongArgument(
            f"{describe(method.segmenter)} splits a long scene evenly, which needs its end; expected SceneRuns, as "
            "in_chunks(method) has it"
        )


class Ended(NamedTuple):
    """S segments that have ended, of n tokens; none is empty.

    tokens, stats: of those n.  relevance: (n,), of them as part of what is there, the frame after them included.
    others: (layers, n, D) each.  lengths, gains: int64 and float32 (S,), on the CPU; None where lengths alone weigh.
    tokens_before, segments_before: of the video.
    """

    tokens: VideoTokens
    stats: TokenStatistics
    relevance: Tensor
    others: Mapping[str, Tensor]
    lengths: Tensor
    gains: Tensor | None
    tokens_before: int
    segments_before: int


class Chunks:
    """The frames of a video as they come, until their segments end. What selections over chunks share.

    The last segment ends when a frame of the next one is there, which also is the look ahead that a relevance needs: so
    neither depends on how the video was cut. Holds one segment and one chunk, twice while they are joined.
    """

    def __init__(self, method: Prune, centre: Tensor | None = None, total: int | None = None) -> None:
        """method: from `in_chunks`.  centre: (D,), None for the mean so far.  total: N, None where nobody knows it."""
        self.method, self.segmenter, self.centre, self.total = method, method.segmenter, centre, total
        self.count = 0
        self._sum: Tensor | None = None  # (D,) float64, of all tokens so far
        self._tokens: VideoTokens | None = None  # those that wait,
        self._stats = TokenStatistics()
        self._others: dict[str, Tensor] = {}
        self._before = (0, 0)  # and the tokens and segments before them

    def add(self, features: Tensor, frames: Sequence[int], others: Mapping[str, Tensor]) -> None:
        """Add features (n, D) of more frames. Raises for what does not fit or is not finite, and then adds nothing."""
        chunk, old = VideoTokens(features.detach(), tuple(frames)), self._tokens
        segmenter = self._fitting(chunk, others)
        if old is None:
            tokens = VideoTokens(chunk.features.clone(), chunk.frames)
            stacked = {name: more.clone() for name, more in others.items()}
        else:
            x, sizes = torch.cat([old.features, chunk.features]), (*old.frames, *chunk.frames)
            tokens = VideoTokens(x, sizes, first_frame=old.first_frame)
            stacked = {name: torch.cat([self._others[name], more], 1) for name, more in others.items()}
        sums, centres = self._centres(chunk)
        stats = self._measured(tokens, len(chunk.frames), centres)
        ops.raise_if_nonfinite(stats.required("nonfinite"))
        self.segmenter, self._sum, self.count = segmenter, sums, self.count + len(chunk)
        self._tokens, self._others, self._stats = tokens, stacked, _joined(self._stats, stats)

    def _fitting(self, chunk: VideoTokens, others: Mapping[str, Tensor]) -> Segmenter:
        """The segmenter for these frames too; raises where they do not fit those before."""
        old, n = self._tokens, len(chunk)
        if old is not None:
            same = [(x.dtype, x.device, x.shape[1]) for x in (old.features, chunk.features)]
            if same[0] != same[1]:
                raise WrongArgument(
                    f"expected features like the {show(old.features)} before, got {show(chunk.features)}"
                )
            if {*others} != {*self._others}:
                raise WrongArgument(
                    f"expected {sorted(self._others)} beside the features as before, got {sorted(others)}"
                )
        for name, stacked in others.items():
            if stacked.ndim != 3 or stacked.shape[1] != n:
                raise WrongArgument(f"expected {name} (layers, {n}, D), got {show(stacked)}")
        if self.centre is not None and self.centre.shape != chunk.features.shape[1:]:
            raise WrongArgument(f"expected a centre ({chunk.features.shape[1]},), got {show(self.centre)}")
        if self.total is not None and self.count + n > self.total:
            raise BudgetError(f"expected {self.total} tokens, got {self.count + n}; say how many the whole video has")
        if not isinstance(self.method.segmenter, Within):
            return self.segmenter
        size = chunk.frames[0] if old is None else old.frames[0]
        if self.total is None or not chunk.regular or chunk.frames[0] != size or self.total % size:
            raise WrongArgument("Within needs the number of frames, of equal size; expected SceneRuns or Uniform here")
        count = self.total // size
        return Uniform(-(-count // -(-count // max(1, self.method.segmenter.tokens // size))))

    def _centres(self, chunk: VideoTokens) -> tuple[Tensor | None, Tensor | None]:
        """The sum of all tokens so far, and the centre of each frame, (T, D); None for what nobody requires."""
        if "persistence" not in self.method.requires:
            return None, None
        x = chunk.features
        if self.centre is not None:
            return None, self.centre.to(x.device).expand(len(chunk.frames), -1)
        sums = x.new_zeros(x.shape[1], dtype=torch.float64) if self._sum is None else self._sum
        count, centres = self.count, []
        for frame in torch.split(x, list(chunk.frames)):  # in the same order however the video was cut
            sums, count = sums + frame.double().sum(0), count + len(frame)
            centres.append(sums / count)
        return sums, torch.stack(centres)

    def _measured(self, tokens: VideoTokens, new: int, centres: Tensor | None) -> TokenStatistics:
        """Measure the last `new` frames of `tokens`."""
        frames, x = tuple(tokens.frames), tokens.features
        more = sum(frames[-new:])
        if centres is None:
            norm, nonfinite, *_ = ops.measure(ops.MeasureProblem(x[-more:], (more,)))
            return TokenStatistics(norm, nonfinite)
        last = len(frames) > new  # the frame before them
        within = frames[-new - last :]
        centres = centres if not last else torch.cat([centres[:1], centres])
        measures = ops.measure(ops.MeasureProblem(x[-sum(within) :], within, persistence=True, centre=centres))
        norm, nonfinite, persistence = (y[-more:] for y in measures[:3] if y is not None)
        return TokenStatistics(norm, nonfinite, persistence)

    def ended(self, everything: bool = False) -> Ended | None:
        """The segments that have ended, all of them at the end of the video; None if none has."""
        tokens, stats = self._tokens, self._stats
        if tokens is None:
            return None
        bounds = sorted({*self.segmenter(tokens, stats).offsets.tolist()})
        if not everything:
            bounds.pop()
        if len(bounds) < 2:
            return None
        n, x = bounds[-1], tokens.features
        frames = tokens.frames[: [0, *accumulate(tokens.frames)].index(n)]
        before = VideoTokens(x[:n], frames, first_frame=tokens.first_frame)
        stats, lengths = _part(stats, slice(n)), torch.tensor([b - a for a, b in pairwise(bounds)])
        segments = Segments(torch.tensor(bounds, device=x.device), int(lengths.max()))
        gains = budget_of(self.method).gains(before, stats, segments)
        relevance = self.method.relevance(tokens, self._stats, None)[:n]
        others = {name: stacked[:, :n] for name, stacked in self._others.items()}
        return Ended(before, stats, relevance, others, lengths, None if gains is None else gains.cpu(), *self._before)

    def drop(self, ended: Ended) -> None:
        """Wait no longer for these; what is left is copied, so that their memory can be freed."""
        tokens, n, count = self._tokens, len(ended.tokens), len(ended.tokens.frames)
        if tokens is None or n == len(tokens):
            self._tokens, self._stats, self._others = None, TokenStatistics(), {}
            return
        frames, first = tuple(tokens.frames[count:]), tokens.first_frame + count
        self._tokens = VideoTokens(tokens.features[n:].clone(), frames, first_frame=first)
        self._stats = _part(self._stats, slice(n, None))
        self._others = {name: stacked[:, n:].clone() for name, stacked in self._others.items()}
        self._before = (self._before[0] + n, self._before[1] + len(ended.lengths))

    def pick(self, ended: Ended, budget: Tensor) -> Rows:
        """The first picks of each segment, budget (S,) of them: one call for all."""
        x, total = ended.tokens.features, int(budget.sum())
        offsets = torch.cat([budget.new_zeros(1), ended.lengths.cumsum(0)]).to(x.device)
        segments, there = Segments(offsets, int(ended.lengths.max())), budget.to(x.device)
        order = self.method.selector(
            SelectionProblem(ended.tokens, ended.stats, segments, there, ended.relevance, total)
        )
        kept, _ = ops.compact(ops.CompactProblem(order, offsets, there, segments.longest, total))
        others = {name: stacked[:, kept] for name, stacked in ended.others.items()}
        segment = torch.arange(len(budget)).repeat_interleave(budget) + ended.segments_before
        return Rows(kept + ended.tokens_before, x[kept], others, order[kept], segment.int().to(x.device))


def budget_of(method: Prune) -> MarginalGain | Proportional:
    """The budget of a method from `in_chunks`."""
    return cast(MarginalGain | Proportional, method.budget)


def _part(stats: TokenStatistics, rows: slice) -> TokenStatistics:
    norm, nonfinite, persistence = (
        None if y is None else y[rows].clone() for y in (stats.norm, stats.nonfinite, stats.persistence)
    )
    return TokenStatistics(norm, nonfinite, persistence)


def _joined(old: TokenStatistics, new: TokenStatistics) -> TokenStatistics:
    pairs = ((getattr(old, name), getattr(new, name)) for name in ("norm", "nonfinite", "persistence"))
    return TokenStatistics(*(b if a is None else torch.cat([a, b]) for a, b in pairs))


def within_held(total: int, lengths: Tensor, gains: Tensor | None, floor: float, held: Tensor) -> tuple[Tensor, int]:
    """Share `total` picks where `held` (S,) bounds them: budgets (S,), and how many of eq. 3's picks are not held.

    A segment that would get more than is held of it gets that, and the others share the rest by eq. 3.
    """
    budget = shared(total, lengths, gains, floor)
    missing = int((budget - held).clamp(min=0).sum())
    if missing and total < len(held):  # eq. 3 without floors, whose bounds are what is held: one step
        return shared(total, held, lengths.float() if gains is None else gains, 0.0), missing
    full = torch.zeros_like(held, dtype=torch.bool)
    while (over := (budget > held) & ~full).any():
        full |= over
        budget, rest = held.clone(), total - int(held[full].sum())
        budget[~full] = shared(rest, lengths[~full], None if gains is None else gains[~full], floor)
    return budget, missing


def at_most(
    total: int, original_count: int, lengths: Tensor, gains: Tensor | None, floor: float, held: Tensor
) -> Tensor:
    """Bound the picks that `within_held` gives each of the first segments of a video, whatever follows: int64 (S,).

    total, original_count: K and N of the whole; the others of these segments, whose gains are at most 2 a token.
    What follows takes picks away from them: so at most the level of eq. 3 at which they alone would take all, or the
    floor, and one for what is rounded up.
    """
    w = (lengths if gains is None else gains).double()
    some = w > 0
    level, by = (held[some] / w[some]).sort()  # at which each is full
    full, weights = held[some][by].double(), w[some][by]
    others = weights.flip(0).cumsum(0).flip(0) - weights  # of those that are full later
    at = int(torch.searchsorted(full.cumsum(0) + level * others, float(total)))
    if at == len(full):
        return held
    reached = (total - full[:at].sum()) / (weights[at] + others[at])
    least = (floor * total / original_count * lengths.double()).clamp(min=1)
    most = w.clamp(min=2e-9 * original_count)  # eq. 3 weighs none less than 1e-9 of the largest
    return torch.minimum(held.double(), torch.maximum(reached * most, least).ceil() + 1).long()


class ChunkedPrune:
    """`Prune` of a video of N tokens that comes chunk after chunk, of any sizes: the same tokens however it is cut.

        chunked = ChunkedPrune(in_chunks(vidsieve.presets.vidsieve(0.1)), total=72_000)
        for features, frames in chunks:
            chunked.add(features, frames)
        selection = chunked.finish()                    # exactly round(keep * N) tokens

    Where the centre is the true one and nothing was `capped`, this keeps the tokens that `method.reduce` keeps of the
    whole. Memory: at most hold * K + 2 S tokens, S the segments so far, and one unfinished segment and a chunk, twice
    while they are joined. On a CPU picks are dropped as soon as nothing that may follow can leave them their place,
    which leaves little more than K. `finish` frees them as it gathers the K that stay. On a GPU a chunk waits for the
    device a few times, whatever it holds.
    """

    def __init__(
        self,
        method: Prune,
        total: int,
        hold: float = 2.0,
        centre: Tensor | None = None,
        held_on: torch.device | str | None = None,
    ) -> None:
        """
        method: as `in_chunks` makes or leaves it.  total: N.  centre: (D,), the mean of the video where it is known;
        None for the mean of the frames so far.
        hold: each segment holds so many times its share by length, at least 1. A larger share than that is cut to it,
        and `Selection.capped` counts the picks that others got instead.
        held_on: where what is picked is held, and the selection will be; None for where the features are.
        Raises `WrongArgument` for a method that cannot select in chunks, `ValueError` for other numbers.
        """
        check_chunks(method)
        check_number("total is the number of tokens of the whole video, at least 1", total, 1, integer=True)
        check_number("hold is how many times its share by length a segment holds, at least 1", hold, 1)
        self._chunks, self._total, self._hold = Chunks(method, centre, total), total, hold
        self._kept, self._held_on = kept_count(method.keep, total), held_on
        self._rows: list[Rows] = []
        self._lengths: list[Tensor] = []
        self._gains: list[Tensor] = []
        self._finished = False

    def add(self, features: Tensor, frames: Sequence[int], others: Mapping[str, Tensor] | None = None) -> None:
        """Add the next frames of the video.

        features: (n, D), floating point, copied.  frames: the tokens of each frame, which sum to n.
        others: (layers, n, D) by name, carried along for the tokens that stay; the same names every time.
        Raises `NonFiniteFeatures` as `Reducer.reduce` does, here on every device, `BudgetError` for more tokens than
        `total`, and `WrongArgument` for what does not fit what came before. Then nothing is added.
        """
        self._check_open()
        self._chunks.add(features, frames, others or {})
        self._hold_ended(everything=False)

    def finish(self) -> Selection:
        """The selection of the whole video. Raises `BudgetError` unless `total` tokens came."""
        self._check_open()
        if self._chunks.count != self._total:
            raise BudgetError(f"expected {self._total} tokens, got {self._chunks.count}; add the rest before the end")
        self._finished = True
        self._hold_ended(everything=True)
        lengths, gains = torch.cat(self._lengths), torch.cat(self._gains) if self._gains else None
        floor = budget_of(self._chunks.method).floor
        budget, capped = within_held(self._kept, lengths, gains, floor, self._held(lengths))
        return Selection.of(self._rows, budget, lengths, gains, floor, self._total, capped)

    def _check_open(self) -> None:
        if self._finished:
            raise WrongArgument("the selection is finished; make another ChunkedPrune for another video")

    def _hold_ended(self, everything: bool) -> None:
        ended = self._chunks.ended(everything)
        if ended is None:
            return
        rows = self._chunks.pick(ended, self._held(ended.lengths))
        self._store(rows if self._held_on is None else rows.to(self._held_on))
        self._lengths.append(ended.lengths)
        if ended.gains is not None:
            self._gains.append(ended.gains)
        self._chunks.drop(ended)

    def _store(self, rows: Rows) -> None:
        if rows.kept.device.type == "cpu":
            if self._rows and self._rows[-1].features.nbytes < PART:  # many small ones would be as many maps
                rows = Rows.join([self._rows.pop(), rows])
            else:
                self._drop_surplus()
            rows = rows.in_pages()
        self._rows.append(rows)

    def _drop_surplus(self) -> None:
        """Drop picks that no selection can have any more, and which are not the next after its last either."""
        if not self._rows:
            return
        lengths, gains = torch.cat(self._lengths), torch.cat(self._gains) if self._gains else None
        floor = budget_of(self._chunks.method).floor
        bound = at_most(self._kept, self._total, lengths, gains, floor, self._held(lengths)) + 1
        for i, rows in enumerate(self._rows):
            stays = rows.step < bound[rows.segment]
            if int(stays.sum()) < 7 / 8 * len(stays):  # or it is not worth copying the others
                self._rows[i] = rows.take(stays).in_pages()

    def _held(self, lengths: Tensor) -> Tensor:
        """How many picks each segment holds: one above its part, for shares that round up: int64 (S,)."""
        share = (self._hold * self._kept / self._total * lengths.double()).ceil().long() + 1
        return torch.minimum(share, lengths)
