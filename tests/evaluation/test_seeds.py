"""All draws of the synthetic suites together: which kinds of questions a method answers worse, worked out by hand."""

import math

import pytest
from benchmarks.eval_seeds import below_in_all, sign_p


def test_p_is_that_of_as_many_coins() -> None:
    assert sign_p(0, 0) == sign_p(3, 3) == 1
    assert sign_p(0, 4) == sign_p(4, 0) == 2 / 16
    assert sign_p(1, 9) == 2 * (1 + 10) / 1024
    assert sign_p(0, 3000) == 0
    assert sign_p(180, 220) == pytest.approx(math.erfc(39 / math.sqrt(2 * 400)), rel=0.02)


def test_kinds_that_are_below_in_all_draws_together_are_told_as_holm_adjusts_them() -> None:
    def draw(scene: tuple[int, int], order: tuple[int, int], cuts: tuple[int, int]) -> dict[str, dict[str, int]]:
        found = {"all": (0, 99), "scene": scene, "order": order, "cuts": cuts}
        return {kind: {"better": better, "worse": worse} for kind, (better, worse) in found.items()}

    # p: scene 2 / 2^10, the second of three; order the first, and above; cuts 2 / 2^5.
    found = below_in_all([draw((0, 5), (40, 0), (0, 2)), draw((0, 5), (20, 0), (0, 3))])
    assert found == {"scene": {"better": 0, "worse": 10, "p": round(2 * 2 / 1024, 6)}}
    assert below_in_all([{}, {}]) == {}
