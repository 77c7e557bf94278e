"""Stages that overlap on a GPU keep what they keep one after another, and their streams hold on to no more memory."""

from typing import Any

import pytest
import torch

pytest.importorskip("torchvision", reason="transformers' video processors need torchvision")

from tests.encoded.worlds import frames, processor_of
from tests.engines.hf import tiny
from vidsieve.encoded.chunks import encode_chunks
from vidsieve.encoded.encode import chunkwise, select
from vidsieve.methods.chunked import ChunkedPrune

FRAMES, SIZE = 60, 6


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "llava_onevision"])
def test_overlapping_stages_keep_what_they_keep_in_turn(family: str) -> None:
    model, processor, video = tiny.fresh(family).cuda(), processor_of(family), frames(count=FRAMES)
    method = chunkwise("vidsieve", 0.25)

    def chunks() -> Any:
        return encode_chunks(model, processor, video, SIZE)

    in_turn: ChunkedPrune | None = None
    for chunk in chunks():
        torch.cuda.synchronize()
        in_turn = in_turn or ChunkedPrune(method, chunk.total, held_on="cpu")
        in_turn.add(chunk.features, chunk.tokens, chunk.others)
        torch.cuda.synchronize()
    assert in_turn is not None
    expected = in_turn.finish()
    reserved = []
    for _ in range(6):
        found = select(model, processor, video, chunks(), method).selection
        reserved.append(torch.cuda.memory_reserved())
        assert found.kept.tolist() == expected.kept.tolist()
        assert torch.equal(found.features, expected.features)
    assert reserved[-1] == reserved[1]
