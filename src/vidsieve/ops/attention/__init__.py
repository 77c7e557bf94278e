"""The attention that tokens receive."""

from torch import Tensor

from vidsieve.ops.attention import eager
from vidsieve.ops.dispatch import choose


def received_attention(
    query: Tensor,
    key: Tensor,
    columns: Tensor,
    seen: Tensor | None = None,
    scaling: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    """The attention each of L tokens receives, averaged over H heads and M queries: float32 (L,). method.md, eq. 16.

    query: (H, L, d) and key: (G, past + L, d), rotated, the heads in G groups that share keys.  columns: int64 (M,), of
    the queries.  seen: bool (past + L,), false on padding; None where there is none.  scaling: of the scores, 1 /
    sqrt(d) if None.  softcap: s becomes softcap * tanh(s / softcap) where given. Memory: docs/method.md.
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return choose(eager.received_attention, query)(query, key, columns, seen, scaling, softcap)
