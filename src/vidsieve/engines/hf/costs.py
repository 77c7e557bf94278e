"""Count the FLOPs of a reduced prefill, and set the `keep` of the last stage to meet a share of the full prefill."""

from collections.abc import Sequence
from dataclasses import replace

from vidsieve.engines.hf.forward import SequenceState
from vidsieve.errors import BudgetError
from vidsieve.methods.base import Reducer
from vidsieve.telemetry import flops


def full(costs: Sequence[flops.LayerCost], sequence: SequenceState, row: int) -> float:
    """Count the FLOPs of `row` of a prompt without any reduction, also of one before an encoded video was stored."""
    dropped = sum(len(video.tokens) - len(video.span.at) for video in sequence.videos if video.span.row == row)
    return flops.total(costs, sequence.prompt.counts[row] + dropped, [sequence.start] * len(costs))


def spent(costs: Sequence[flops.LayerCost], sequence: SequenceState, row: int, layers: int) -> float:
    """Count the FLOPs that the first `layers` took for `row`, as reduced."""
    return sum(_took(costs[i], sequence, row, i) for i in range(layers))


def totals(costs: Sequence[flops.LayerCost], sequence: SequenceState) -> tuple[float, float] | None:
    """Count the FLOPs of all rows, unreduced and as reduced; None if the costs of the layers are not known."""
    if not costs:
        return None
    rows = range(len(sequence.counts))
    took = (_took(cost, sequence, row, i) for i, cost in enumerate(costs) for row in rows)
    return sum(full(costs, sequence, row) for row in rows), sum(took)


def affordable(
    reducer: Reducer,
    share: float,
    costs: Sequence[flops.LayerCost],
    sequence: SequenceState,
    layer: int,
    row: int,
    count: int,
) -> Reducer:
    """Give `reducer`, the last stage, at `layer`, the keep that meets `share` of the full prefill of `row`.

    count: tokens of the row that enter the stage.  Raises `BudgetError` if the layers before it and the text take more.
    """
    budget = share * full(costs, sequence, row)
    before = spent(costs, sequence, row, layer)
    mine = [video for video in sequence.videos if video.span.row == row]
    text = count - sum(video.after for video in mine)
    left = flops.affordable(costs[layer:], budget - before, sequence.past[layer:], count) - text
    if left < len(mine):
        least = before + flops.total(costs[layer:], text + len(mine), sequence.past[layer:])
        of = f" for row {row}" if len(sequence.counts) > 1 else ""
        raise BudgetError(
            f"cost={share} cannot be met{of}: all before layer {layer}, where the last stage is, and the text "
            f"alone take {share * least / budget:.3f} of the full prefill; raise cost, reduce more before, "
            "or stage earlier"
        )
    own: float = reducer.keep  # type: ignore[attr-defined]  # Staged has seen to it
    keep = left / sum(video.tokens.original_count for video in mine)
    return replace(reducer, keep=min(keep, own))  # type: ignore[type-var]


def _took(cost: flops.LayerCost, sequence: SequenceState, row: int, layer: int) -> float:
    update = sequence.update_at(layer)
    return cost.flops(update.counts[row] if update else sequence.counts[row], sequence.past[layer])
