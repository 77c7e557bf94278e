"""Which tokens of each segment are picked, one after another.

All return the *order* of the picks, int32 (N,): the step at which a token was picked in its segment, -1 where it was
not.
"""

from torch import Tensor

from vidsieve.ops.definitions import GreedyProblem, HybridProblem, MMRProblem, TopProblem
from vidsieve.ops.dispatch import choose, plain
from vidsieve.ops.greedy import eager


def conditional_dpp(problem: GreedyProblem) -> Tensor:
    """Greedy MAP of the DPP with kernel L = diag(r) S diag(r) in every segment: order int32 (N,).

    Chen, Zhang & Zhou 2018, algorithm 1; method.md eq. 5-8. The first picks of a segment weigh by `head`, eq. 7b.
    """
    head = problem.head
    if head is not None:
        problem = problem._replace(head=plain(head, "relevance"))
    return choose(eager.conditional_dpp, problem.x)(_plain(problem))


def mmr(problem: MMRProblem) -> Tensor:
    """Maximal marginal relevance in every segment, `trade` on relevance, the rest on novelty: order int32 (N,).

    Carbonell & Goldstein 1998; method.md eq. 9.
    """
    return choose(eager.mmr, problem.greedy.x)(problem._replace(greedy=_plain(problem.greedy)))


def hybrid(problem: HybridProblem) -> Tensor:
    """`conditional_dpp` in segments of up to `threshold` tokens, `mmr` in longer ones: order int32 (N,)."""
    return choose(eager.hybrid, problem.greedy.x)(problem._replace(greedy=_plain(problem.greedy)))


def max_min(problem: GreedyProblem) -> Tensor:
    """Farthest-first selection by cosine distance in every segment (DivPrune): order int32 (N,). method.md eq. 10."""
    return choose(eager.max_min, problem.x)(_plain(problem))


def top(problem: TopProblem) -> Tensor:
    """The `budget` highest scores of every segment, earlier tokens first among equals: order int32 (N,)."""
    return choose(eager.top, problem.offsets)(plain(problem, "score"))


def _plain(problem: GreedyProblem) -> GreedyProblem:
    return plain(problem, "x", "relevance")
