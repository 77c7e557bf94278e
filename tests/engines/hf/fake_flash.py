"""A torch stand-in for the kernels of flash-attn 2, so that transformers' own path to them runs without a GPU.

That path (unpadding, packed sequences, key lengths taken from positions) is where a reduced prompt can go wrong.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import transformers.modeling_flash_attention_utils as flash
from torch import Tensor


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float | None, causal: bool) -> Tensor:
    """One sequence: q (Lq, H, D), k and v (Lk, G, D)."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        seen = torch.ones(scores.shape[1:], dtype=torch.bool).tril(k.shape[0] - q.shape[0])
        scores = scores.masked_fill(~seen, float("-inf"))
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1).nan_to_num(0), v)


@contextmanager
def used_by(model: Any) -> Iterator[list[str]]:
    """Let the decoder of `model` take transformers' flash path; yields the names of the kernels it calls."""
    calls: list[str] = []

    def dense(
        q: Tensor, k: Tensor, v: Tensor, softmax_scale: float | None = None, causal: bool = False, **_: Any
    ) -> Tensor:
        calls.append("dense")
        return torch.stack([_attend(*row, softmax_scale, causal) for row in zip(q, k, v, strict=True)])

    def varlen(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
        softcap: float = 0.0,
        deterministic: bool = False,
        **_: Any,
    ) -> Tensor:
        calls.append("varlen")
        q_ends, k_ends = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
        # A slice forgives lengths that are not those of the tensors; a kernel reads past their end.
        assert (q_ends[-1], k_ends[-1]) == (len(q), len(k))
        parts = zip(q_ends, q_ends[1:], k_ends, k_ends[1:], strict=False)
        return torch.cat([_attend(q[a:b], k[c:d], v[c:d], softmax_scale, causal) for a, b, c, d in parts])

    decoder = model.get_decoder()
    configs = {id(module.config): module.config for module in decoder.modules() if hasattr(module, "config")}.values()
    kernels = {
        "_loaded_implementation": "flash_attention_2",
        "_flash_fn": dense,
        "_flash_varlen_fn": varlen,
        "_flash_with_kvcache_fn": None,
        "_pad_fn": flash._pad_input,
        "_unpad_fn": flash._unpad_input,
        "_process_flash_kwargs_fn": flash._lazy_define_process_function(varlen),
    }
    before = {id(config): config._attn_implementation_internal for config in configs}
    with mock.patch.multiple(flash, **kernels):
        for config in configs:
            config._attn_implementation_internal = "flash_attention_2"
        try:
            yield calls
        finally:
            for config in configs:
                config._attn_implementation_internal = before[id(config)]
