"""A model spread over two GPUs by `device_map="auto"` reduces and answers as it does on one.

Without two GPUs nothing here runs: a device map of one device moves no tensor, so it would prove nothing.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models import tiny
from tests.models.truth import STEPS, each_family
from vidsieve import presets
from vidsieve.models import attach
from vidsieve.reducer import Reducer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="two GPUs of one host are needed, here are fewer"),
]


def spread(family: str, share: float, folder: Path) -> Any:
    """The tiny model of a family, at most a `share` of its bytes on GPU 0 and the others on GPU 1."""
    model = tiny.fresh(family)
    model.save_pretrained(folder)
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    spread = type(model).from_pretrained(folder, device_map="auto", max_memory={0: int(share * size), 1: 10 * size})
    assert set(spread.hf_device_map.values()) == {0, 1}, spread.hf_device_map
    return spread.eval()


def generate(model: Any, inputs: tiny.Inputs, reducer: Reducer) -> tuple[torch.Tensor, torch.Tensor, list[list[int]]]:
    """Tokens (steps,), logits (steps, V) and what was kept."""
    with attach(model, reducer) as trace:
        out = model.generate(
            **{name: value.to("cuda:0") for name, value in inputs.items()},
            max_new_tokens=STEPS,
            min_new_tokens=STEPS,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
    return out.sequences[0, -STEPS:].cpu(), torch.cat(out.logits).cpu(), [video.kept for video in trace.videos]


@each_family
@pytest.mark.parametrize("method", ["vidsieve", "cdpruner"])
@pytest.mark.parametrize("share", [0.5, 0.85], ids=["decoder on the second", "decoder on both"])
def test_two_gpus_answer_as_one(family: str, method: str, share: float, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    inputs, reducer = tiny.prompt(family), presets.METHODS[method](0.25)
    tokens, logits, kept = generate(tiny.fresh(family).to("cuda:0"), inputs, reducer)
    found = generate(spread(family, share, tmp_path), inputs, reducer)
    assert found[2] == kept
    assert kept[0]
    assert found[0].tolist() == tokens.tolist()
    torch.testing.assert_close(found[1], logits, atol=1e-4, rtol=0)
