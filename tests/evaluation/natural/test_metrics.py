"""metrics.py and bars.py: against figures worked out by hand."""

import math

import pytest
import torch

from vidsieve.evaluation.natural import metrics
from vidsieve.evaluation.natural.bars import bars

E = torch.eye(4)


def test_the_smallest_share_is_of_shots_of_two_frames_and_more() -> None:
    kept = torch.zeros(8, 4, dtype=torch.bool)
    kept[0, :3] = True  # a shot of four frames has 3 of 6,
    kept[5, :1] = True  # one of three frames 1 of 6, where its length would bring 6 * 3 / 8,
    kept[7, :2] = True  # and the single frame does not count
    assert metrics.share(kept, [(0, 4), (4, 7), (7, 8)]) == pytest.approx((1 / 6) / (3 / 8))
    assert metrics.share(kept, [(0, 4), (4, 6), (6, 7), (7, 8)]) == pytest.approx((1 / 6) / (2 / 8))
    kept[5] = False
    assert metrics.share(kept, [(0, 4), (4, 7), (7, 8)]) == 0
    assert metrics.empty(kept) == 6 / 8


def test_distances_are_to_the_nearest_kept_token() -> None:
    x = torch.stack((E[0], 2 * E[0], E[1], E[0] + E[1], -E[0], E[0]))
    kept = torch.tensor([False, True, False, False, False, True])
    distance, index = metrics.nearest(x, kept)
    torch.testing.assert_close(distance, torch.tensor([0, 0, 1, 1 - math.sqrt(0.5), 2, 0]))
    assert index[1] == 1
    assert index[5] == 5  # itself, though the other is as near
    assert metrics.coverage(distance, kept) == pytest.approx((0 + 1 + 1 - math.sqrt(0.5) + 2) / 4)
    assert metrics.coverage(distance, torch.ones(6, dtype=torch.bool)) == 0


def test_the_tail_is_the_99th_percentile_of_all_tokens() -> None:
    assert metrics.tail(torch.arange(101) / 100) == pytest.approx(0.99)


def test_reconstruction_is_what_a_ridge_leaves() -> None:
    x = torch.stack((E[0], E[1], E[2], -E[2]))
    none = torch.zeros(4, dtype=torch.bool)
    around = 4 - 4 * (2 / 16)  # the energy less that of the mean (1/4, 1/4, 0, 0)
    assert metrics.reconstruction(x, none) == 1
    two = torch.tensor([True, True, False, False])
    left = metrics.NOISE / (1 + metrics.NOISE)  # of a direction that was kept once, the mean energy being 1
    assert metrics.reconstruction(x, two) == pytest.approx((2 + 2 * left**2) / around)
    three = torch.tensor([True, True, False, True])
    assert metrics.reconstruction(x, three) == pytest.approx(4 * left**2 / around)
    assert metrics.reconstruction(torch.ones(3, 4), three[:3]) == 0  # nothing to tell


def test_classes_move_as_the_mean_of_the_nearest_does() -> None:
    x = torch.stack((E[0], E[1], E[1], E[1]))
    weight, bias = torch.zeros(2, 4), torch.tensor([0.0, 0.0])
    weight[0, 0] = 4
    p = 1 / (1 + math.exp(-1.0))  # of the first class: the mean is (1/4, 3/4, 0, 0)
    q = 1 / (1 + math.exp(-2.0))  # and (1/2, 1/2, 0, 0) where the second row stands for itself and the last
    kl = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert metrics.classes(x, torch.tensor([0, 0, 2, 3]), weight, bias) == pytest.approx(kl)
    assert metrics.classes(x, torch.arange(4), weight, bias) == 0
    zero = p * math.log(p / 0.5) + (1 - p) * math.log((1 - p) / 0.5)
    assert metrics.classes(x, None, weight, bias) == pytest.approx(zero)


def test_an_object_is_found_by_one_token() -> None:
    kept = torch.tensor([False, True, False, False])
    assert metrics.found(kept, [torch.tensor([0, 1]), torch.tensor([2, 3])]) == [True, False]


ROW = {
    "keep": 0.1,
    "least_share": 0.5,
    "cov": 0.2,
    "c99": 0.4,
    "static": [8, 9],
    "moving": [5, 6],
    "reconstruction": 0.3,
    "qkl": 0.01,
}


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("share", {"least_share": 0.5}, {"least_share": 0.499}),
        ("cov", {"cov": 0.21}, {"cov": 0.2101}),
        ("c99", {"c99": 0.34}, {"c99": 0.3401}),
        ("static", {"static": [8, 9]}, {"static": [7, 9]}),
        ("moving", {"moving": [4, 6]}, {"moving": [3, 6]}),
        ("reconstruction", {"reconstruction": 0.2999}, {"reconstruction": 0.3}),
        ("qkl", {"qkl": 0.015}, {"qkl": 0.0151}),
    ],
)
def test_bars_are_met_at_their_limit_and_missed_beyond(name: str, inside: dict, outside: dict) -> None:
    assert bars(ROW | inside, ROW)[name]["met"]
    assert not bars(ROW | outside, ROW)[name]["met"]


def test_bars_depend_on_the_keep_ratio() -> None:
    at_five = ROW | {"keep": 0.05}
    assert bars(at_five | {"cov": 0.22}, at_five)["cov"]["met"]
    assert "qkl" not in bars(at_five, at_five)
    assert bars(ROW | {"keep": 0.25}, ROW) == {}
