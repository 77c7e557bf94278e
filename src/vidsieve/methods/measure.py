"""Measure the tokens of a video once: what the segmenter requires before the cuts, everything else after them.

The segments and the persistence of a reduced video are those of the original video. After a merge, a still scene
contains mainly the tokens that changed, and on these alone every frame would look like a cut.
"""

from collections.abc import Set
from dataclasses import replace

import torch

from vidsieve import ops
from vidsieve.methods.base import pending_nonfinite, raise_if_nonfinite, requires_of
from vidsieve.methods.segment import Segmenter
from vidsieve.types.reduction import Reduction
from vidsieve.types.segments import Segments
from vidsieve.types.statistics import UNMEASURED, OriginalStatistics, TokenStatistics
from vidsieve.types.tokens import Prompt, Provenance, VideoTokens


def measure(
    tokens: VideoTokens,
    requires: Set[str] = frozenset(),
    prompt: Prompt | None = None,
    segments: Segments | None = None,
    before: TokenStatistics = UNMEASURED,
) -> TokenStatistics:
    """Measure what is required of `tokens`, in one pass over their features.

    requires: of "norm", "persistence", "similarity" (to `prompt`) and "products" (within `segments`).
    before: measured by `measure_before_cut`; for an unreduced video it is returned if it measured anything.
    """
    provenance = tokens.provenance
    if provenance is None and before.norm is not None:
        return before
    persistence = before.persistence
    if provenance is not None and persistence is None and "persistence" in requires:
        persistence = _measure_original(provenance, {"persistence"}).persistence
    lengths: tuple[int, ...] = ()
    embeddings = None
    if "similarity" in requires and prompt is not None and prompt.embeddings.shape[1] == tokens.features.shape[1]:
        embeddings, lengths = prompt.embeddings, prompt.lengths
    within = (segments.offsets, segments.longest) if "products" in requires and segments is not None else None
    persists = provenance is None and "persistence" in requires
    frames = tuple(tokens.frames) if persists else (tokens.tokens_per_video,)  # on which nothing else depends
    problem = ops.MeasureProblem(tokens.features, frames, embeddings, persists, within, lengths)
    norm, nonfinite, own, similarity, products = ops.measure(problem)
    return TokenStatistics(norm, nonfinite, own if provenance is None else persistence, similarity, products)


def measure_before_cut(
    tokens: VideoTokens, segmenter: Segmenter, requires: Set[str], prompt: Prompt | None = None
) -> TokenStatistics:
    """Measure what `segmenter` requires of the original video, and what the same pass can measure for other parts.

    requires: what all parts require. Nothing is measured if the segmenter requires nothing of the features, nor what an
    earlier reduction of the video measured.
    """
    needed = requires_of(segmenter)
    if tokens.provenance is None:
        return measure(tokens, requires, prompt) if needed else UNMEASURED
    if tokens.provenance.statistics.segments_by(segmenter) is not None:
        needed = frozenset()
    return _measure_original(tokens.provenance, needed | (requires & {"persistence"}))


def _measure_original(provenance: Provenance, needed: Set[str]) -> TokenStatistics:
    """Measure what is needed of the original video, less what an earlier reduction measured."""
    persistence = provenance.statistics.persistence
    if persistence is None:
        return measure(provenance.original, needed) if needed else UNMEASURED
    stats = measure(provenance.original, needed - {"persistence"}) if needed - {"persistence"} else UNMEASURED
    return replace(stats, persistence=persistence)


def cut(
    tokens: VideoTokens, segmenter: Segmenter, before: TokenStatistics = UNMEASURED
) -> tuple[Segments, OriginalStatistics]:
    """Cut `tokens` into segments; a reduced video is cut where the original video is.

    before: measured by `measure_before_cut`.  Returned with the statistics for later reductions of the same video.
    """
    known = OriginalStatistics() if tokens.provenance is None else tokens.provenance.statistics
    segments = known.segments_by(segmenter)
    if segments is None:  # a later reduction reuses them
        segments = segmenter(tokens.original, before)
        known = OriginalStatistics(known.persistence, (*known.segments, (segmenter, segments)))
    if tokens.original_index is None:
        return segments, known
    return Segments(
        torch.searchsorted(tokens.original_index, segments.offsets), min(len(tokens), segments.longest)
    ), known


def identity(tokens: VideoTokens) -> Reduction:
    """Keep all of `tokens`. Raises `NonFiniteFeatures` as `Reducer.reduce` does."""
    stats = measure(tokens)
    raise_if_nonfinite(stats)
    return Reduction.identity(len(tokens), tokens.features.device, pending_nonfinite(stats.required("nonfinite")))
