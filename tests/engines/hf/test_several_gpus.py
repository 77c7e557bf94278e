"""A model that accelerate spreads, `device_map="auto"` over two GPUs, reduces and answers as it does in one piece.

Without two GPUs the spreading itself is skipped: a device map of one device moves no tensor, so it would prove nothing.
What runs anywhere is a decoder that accelerate keeps on disk: its hooks around the forward methods are the same.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engines.hf import tiny
from tests.engines.hf.truth import STEPS, each_family
from vidsieve import registry
from vidsieve.engines.hf import attach
from vidsieve.methods.base import Reducer

pytest.importorskip("accelerate")


def spread(family: str, share: float, folder: Path) -> Any:
    """The tiny model of a family, at most a `share` of its bytes on GPU 0 and the others on GPU 1."""
    model = tiny.fresh(family)
    model.save_pretrained(folder)
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    spread = type(model).from_pretrained(folder, device_map="auto", max_memory={0: int(share * size), 1: 10 * size})
    assert set(spread.hf_device_map.values()) == {0, 1}, spread.hf_device_map
    return spread.eval()


def offloaded(family: str, folder: Path) -> Any:
    """The tiny model of a family, its language model on disk until it is called."""
    model = tiny.fresh(family)
    model.save_pretrained(folder)
    parts = [f"model.{name}" for name, _ in model.model.named_children()]
    where = {name: "disk" if "language_model" in name else "cpu" for name in parts} | {"lm_head": "disk"}
    if list(model.model.parameters(recurse=False)):  # LLaVA-OneVision's image_newline belongs to no part
        where["model.image_newline"] = "cpu"
    offloaded = type(model).from_pretrained(folder, device_map=where, offload_folder=folder / "offloaded")
    assert {parameter.device.type for parameter in offloaded.get_decoder().parameters()} == {"meta"}
    return offloaded.eval()


def generate(
    model: Any, inputs: tiny.Inputs, reducer: Reducer, device: str
) -> tuple[torch.Tensor, torch.Tensor, list[list[int]]]:
    """Tokens (steps,), logits (steps, V) and what was kept."""
    with attach(model, reducer) as trace:
        out = model.generate(
            **{name: value.to(device) for name, value in inputs.items()},
            max_new_tokens=STEPS,
            min_new_tokens=STEPS,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
    return out.sequences[0, -STEPS:].cpu(), torch.cat(out.logits).cpu(), [video.kept for video in trace.videos]


def check_answers_as_in_one_piece(apart: Any, family: str, method: str, device: str) -> None:
    inputs, reducer = tiny.prompt(family), registry.method(method)(0.25)
    tokens, logits, kept = generate(tiny.fresh(family).to(device), inputs, reducer, device)
    found = generate(apart, inputs, reducer, device)
    assert found[2] == kept
    assert kept[0]
    assert found[0].tolist() == tokens.tolist()
    torch.testing.assert_close(found[1], logits, atol=1e-4, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="two GPUs of one host are needed, here are fewer")
@each_family
@pytest.mark.parametrize("method", ["vidsieve", "cdpruner"])
@pytest.mark.parametrize("share", [0.5, 0.85])  # where it cuts, in tower or decoder, accelerate decides
def test_two_gpus_answer_as_one(family: str, method: str, share: float, tmp_path: Path) -> None:
    check_answers_as_in_one_piece(spread(family, share, tmp_path), family, method, "cuda:0")


@pytest.mark.filterwarnings("ignore:The following device_map keys do not match any submodules")  # image_newline
@each_family
@pytest.mark.parametrize("method", ["vidsieve", "cdpruner"])
def test_a_decoder_kept_on_disk_answers_as_one_in_memory(family: str, method: str, tmp_path: Path) -> None:
    check_answers_as_in_one_piece(offloaded(family, tmp_path), family, method, "cpu")
