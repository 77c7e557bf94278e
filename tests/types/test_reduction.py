"""What becomes of a reduction: composed with a later one, applied, and asked whether it saw NaN."""

from itertools import pairwise

import pytest
import torch

from tests.synthetic import independent, video_like
from vidsieve import Chain, Prompt, Prune, Reduction, VideoTokens
from vidsieve.errors import NonFiniteFeatures
from vidsieve.methods import merge, presets, prune
from vidsieve.methods.budget import Proportional
from vidsieve.methods.merge import NearestKept, TemporalMerge
from vidsieve.methods.relevance import Flat
from vidsieve.methods.segment import PerFrame, Uniform, Whole
from vidsieve.methods.selection import EvenlySpaced


def test_then_composes_and_keeps_true_counts() -> None:
    x = independent(8, 4, 0)
    first = Reduction(torch.tensor([0, 2, 5]), torch.tensor([0, 0, 1, 1, 1, 2, -1, 2]), merges=True)
    second = Reduction(torch.tensor([0, 2]), torch.tensor([0, 0, 1]), merges=True)
    both = first.then(second)
    assert both.kept.tolist() == [0, 5]
    assert both.assigned_to.tolist() == [0, 0, 0, 0, 0, 1, -1, 1]
    torch.testing.assert_close(both.apply(x)[0], x[:5].mean(0))


def test_then_keeps_the_segments_and_budgets_that_led_there() -> None:
    tokens = VideoTokens.from_grid(video_like(6, 10, 16, seed=2).float(), 6, 2, 5)
    first, second = Prune(0.5, Uniform(3)), Prune(0.2, PerFrame())
    once = first.reduce(tokens)
    later = second.reduce(tokens.reduced(once))
    both = once.then(later)
    assert both.offsets is not None
    assert both.offsets[[0, -1]].tolist() == [0, 60]
    assert both.budget is later.budget
    counts = [int(((both.kept >= a) & (both.kept < b)).sum()) for a, b in pairwise(both.offsets.tolist())]
    assert counts == both.budget.tolist()
    everything = Reduction.identity(30, torch.device("cpu"))
    assert once.then(everything).offsets is once.offsets
    assert once.then(everything).budget is once.budget
    dropped = once.then(Reduction.select(torch.arange(9), 30))  # by whom is not told
    assert dropped.offsets is None
    assert dropped.budget is None


def test_select_keeps_the_segments_it_is_given() -> None:
    offsets, budget = torch.tensor([0, 2, 4]), torch.tensor([1, 1])
    reduction = Reduction.select(torch.tensor([0, 3]), 4, offsets=offsets, budget=budget)
    assert reduction.offsets is offsets
    assert reduction.budget is budget


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ([0, 1, 0, 1, 0], None, "2 of 5"),
        (None, [0, 3], "1 of 5"),
        ([0, 1, 0, 1, 0], [0, 3], "2 of 5"),  # what merged with NaN is NaN as well, and no token more
        ([0] * 5, [1, 1], "2 of 5"),
        ([0] * 5, None, None),
        (None, [0, 0], None),
        (None, None, None),
    ],
)
def test_then_reports_what_either_found_bad(
    before: list[int] | None, after: list[int] | None, told: str | None
) -> None:
    """What an accelerator has found of each token and nobody has looked at."""
    found = [None if some is None else torch.tensor(some, dtype=torch.int32) for some in (before, after)]
    first = Reduction(torch.tensor([0, 2]), torch.tensor([0, 0, 1, 1, -1]), merges=True, nonfinite=found[0])
    both = first.then(Reduction(torch.tensor([0]), torch.tensor([0, -1]), nonfinite=found[1]))
    if told is None:
        both.check()
    else:
        with pytest.raises(NonFiniteFeatures, match=f"{told} video tokens hold NaN or inf"):
            both.check()


def test_what_is_bad_is_told_by_kind() -> None:
    for bad, told in (
        ([4, 4, 4], "some prompt tokens hold NaN or inf"),
        ([5, 4, 4], "1 of 3 video tokens hold NaN or inf"),
        ([0, 2, 1], "1 of 3 video tokens hold NaN or inf"),
        ([0, 2, 2], "2 of 3 video tokens have a length"),
    ):
        reduction = Reduction(
            torch.tensor([0]), torch.tensor([0, -1, -1]), nonfinite=torch.tensor(bad, dtype=torch.int32)
        )
        with pytest.raises(NonFiniteFeatures, match=told):
            reduction.check()


def test_a_chain_whose_parts_do_not_look_reports_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an accelerator, where a look would be a wait."""
    for module in (prune, merge):
        monkeypatch.setattr(module, "raise_if_nonfinite", lambda *measured: None)
        monkeypatch.setattr(module, "pending_nonfinite", lambda nonfinite: nonfinite)
    tokens = VideoTokens.from_grid(independent(60, 16, 0, torch.float32), 6, 2, 5)
    tokens.features[3, 2] = float("nan")
    last = Prune(0.5, PerFrame(), Proportional(), Flat(), EvenlySpaced())
    chain = Chain(TemporalMerge(keep=0.9, segmenter=Whole()), last)
    with pytest.raises(NonFiniteFeatures, match="1 of 60 video tokens"):
        chain.reduce(tokens).check()


@pytest.mark.gpu
def test_a_chain_on_an_accelerator_reports_nan_when_it_is_asked() -> None:
    x = independent(60, 16, 0, torch.float32)
    x[3, 2] = float("nan")
    reduction = Chain(TemporalMerge(keep=0.9), Prune(0.5)).reduce(VideoTokens.from_grid(x.cuda(), 6, 2, 5))
    with pytest.raises(NonFiniteFeatures, match="1 of 60 video tokens"):
        reduction.check()


@pytest.mark.gpu
def test_a_prompt_on_an_accelerator_is_called_the_prompt() -> None:
    x, y = independent(60, 16, 0, torch.float32).cuda(), independent(3, 16, 1, torch.float32).cuda()
    for scale in (float("nan"), 1e-30, 1e25):
        tokens = VideoTokens.from_grid(x, 6, 2, 5)
        with pytest.raises(NonFiniteFeatures, match="some prompt tokens"):
            presets.cdpruner(0.5).reduce(tokens, Prompt(y * scale)).check()
        presets.cdpruner(0.5).reduce(tokens, Prompt(y)).check()
        with pytest.raises(NonFiniteFeatures, match="60 of 60 video tokens"):
            presets.cdpruner(0.5).reduce(VideoTokens.from_grid(x * scale, 6, 2, 5), Prompt(y)).check()


@pytest.mark.parametrize("merges", [False, True])
@pytest.mark.parametrize("n", [3, 5])
def test_a_reduction_is_applied_to_its_own_tokens_only(n: int, merges: bool) -> None:
    reduction = Reduction(torch.tensor([0, 2]), torch.tensor([0, -1, 1, -1]), merges)
    x = torch.zeros(n, 2)
    for apply in (reduction.apply, reduction.gather, lambda x: reduction.apply(torch.zeros(4, 2), x[:, 0])):
        with pytest.raises(ValueError, match=rf"of the 4 tokens that were reduced, got float32\({n},"):
            apply(x)


def test_tokens_that_are_folded_anew_are_averaged_by_who_folds_them_now() -> None:
    """A merge along time knows its runs as links, which kernels follow; after `NearestKept` they are others."""
    tokens = VideoTokens(independent(12, 4, 0, torch.float32), (4,) * 3)
    merged = TemporalMerge(keep=0.5, segmenter=Whole()).reduce(tokens)
    assert merged.next_member is not None
    assert NearestKept()(tokens, Whole()(tokens), merged).next_member is None
