"""Measure a video's tokens, once. What a segmenter requires comes before the cuts, everything else after them.

A video that was reduced before is cut, and its persistence taken, as it came: what a merge leaves of a still scene is
what changed in it, which by itself would look like a cut in every frame.
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
    before: what `measure_before_cut` measured; it is all that is required, unless the video was reduced before.
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
    """Measure what `segmenter` requires of the video as it came, and with it whatever the same pass can give.

    requires: what all parts require. Nothing is measured where the segmenter requires nothing of the features, nor what
    an earlier reduction of the video handed on.
    """
    needed = requires_of(segmenter)
    if tokens.provenance is None:
        return measure(tokens, requires, prompt) if needed else UNMEASURED
    if tokens.provenance.statistics.segments_by(segmenter) is not None:
        needed = frozenset()
    return _measure_original(tokens.provenance, needed | (requires & {"persistence"}))


def _measure_original(provenance: Provenance, needed: Set[str]) -> TokenStatistics:
    """What is needed of the video as it came, of which some may be known."""
    persistence = provenance.statistics.persistence
    if persistence is None:
        return measure(provenance.original, needed) if needed else UNMEASURED
    stats = measure(provenance.original, needed - {"persistence"}) if needed - {"persistence"} else UNMEASURED
    return replace(stats, persistence=persistence)


def cut(
    tokens: VideoTokens, segmenter: Segmenter, before: TokenStatistics = UNMEASURED
) -> tuple[Segments, OriginalStatistics]:
    """Cut `tokens` into segments, those of a reduced video where the video as it came is cut.

    before: what `measure_before_cut` measured.  Returned with what later reductions of the same video go by.
    """
    known = OriginalStatistics() if tokens.provenance is None else tokens.provenance.statistics
    segments = known.segments_by(segmenter)
    if segments is None:  # one reduction after another asks for the same
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
