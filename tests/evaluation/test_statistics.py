"""statistics: against what can be worked out by hand."""

import math

import pytest
import torch

from vidsieve.evaluation.statistics import Bootstrap, holm, sign_test


def test_the_interval_of_a_share_is_that_of_the_normal_approximation() -> None:
    right = torch.tensor([1.0] * 300 + [0.0] * 100)[:, None]
    bootstrap = Bootstrap(400)
    mean, drawn = bootstrap.means(right)
    found = bootstrap.interval(mean[0], drawn[:, 0])
    half = 1.96 * math.sqrt(0.75 * 0.25 / 400)
    assert found.mean == 0.75
    assert found.low == pytest.approx(0.75 - half, abs=0.006)
    assert found.high == pytest.approx(0.75 + half, abs=0.006)


def test_what_never_varies_has_no_width_and_what_is_missing_does_not_count() -> None:
    nan = math.nan
    values = torch.tensor([[1, 0.0, nan], [1, nan, nan], [1, 1, nan]])
    bootstrap = Bootstrap(3)
    mean, drawn = bootstrap.means(values)
    assert mean[:2].tolist() == [1, 0.5]
    always, _, never = (bootstrap.interval(mean[i], drawn[:, i]) for i in range(3))
    assert (always.low, always.high) == (1, 1)
    assert math.isnan(never.mean)
    assert math.isnan(never.low)


def test_draws_are_the_same_for_all_that_is_compared() -> None:
    one, other = torch.rand(2, 50, 1, generator=torch.Generator().manual_seed(0)).unbind()
    bootstrap = Bootstrap(50)
    apart = bootstrap.means(one)[1] - bootstrap.means(other)[1]
    torch.testing.assert_close(apart, bootstrap.means(one - other)[1], rtol=0, atol=1e-7)
    torch.testing.assert_close(Bootstrap(50).means(one)[1], bootstrap.means(one)[1])


def test_the_sign_test_is_mcnemar_s_for_one_question_a_video() -> None:
    # 9 videos better, 1 worse, 20 the same: p = 2 * (C(10, 0) + C(10, 1)) / 2**10
    difference = torch.tensor([1.0] * 9 + [-1] + [0] * 20)
    even = torch.tensor([1.0, -1] * 5 + [0] * 20)
    p = sign_test(torch.stack((difference, even), dim=1))
    assert p[0] == pytest.approx(22 / 1024, abs=0.004)
    assert p[1] == 1
    assert sign_test(torch.ones(40, 1))[0] == pytest.approx(1 / 10001)
    assert sign_test(torch.zeros(40, 1))[0] == 1


def test_holm_is_the_published_example() -> None:
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1, never falling.
    torch.testing.assert_close(holm(torch.tensor([0.03, 0.01, 0.04, 0.02])), torch.tensor([0.06, 0.04, 0.06, 0.06]))
    assert holm(torch.tensor([0.9, 0.8])).tolist() == [1, 1]
