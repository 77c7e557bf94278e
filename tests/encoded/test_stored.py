"""Files of `vidsieve batch` of before it stored encoded videos, as data/ has them, can still be read and asked.

Each was written by what is gone since, at this commit's parent, on transformers 5.24.0:

    tensors, found = stored.encode(processor_of(family), tiny.model(family), Loudest(), frames(), QUESTION)
    row = {"clip": "0.mp4", "question": QUESTION, "file": file.name, **found}
    write_whole(file, safetensors.torch.save(tensors, {"vidsieve": json.dumps(row)}))
"""

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("torchvision", reason="transformers' video processors need torchvision")

from tests.encoded.worlds import QUESTIONS, World, frames, processor_of
from tests.engines.hf import tiny
from tests.engines.hf.reducers import Loudest
from vidsieve.encoded import stored
from vidsieve.engines.hf import adapter_for, attach
from vidsieve.engines.hf.loading import prepare
from vidsieve.errors import VidsieveError

QUESTION, OTHER = QUESTIONS[0], QUESTIONS[2]
DATA = Path(__file__).parent / "data"
FILES = sorted(DATA.glob("*.safetensors"))
every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def test_there_is_a_file_of_each_kind_of_decoder() -> None:
    assert [file.stem for file in FILES] == ["llava_onevision-0", "qwen2_5_vl-0", "qwen3_vl-0"]


def first_logits(model: Any, arguments: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return model.get_output_embeddings()(model.get_decoder()(**arguments).last_hidden_state[:, -1])


def expected_logits(family: str, question: str) -> torch.Tensor:
    model = tiny.model(family)
    with torch.no_grad(), attach(model, Loudest()):
        return model(**prepare(processor_of(family), frames(), question)).logits[:, -1]


@every_file
def test_it_gives_the_decoder_what_the_model_gives_it_of_the_video(file: Path) -> None:
    model, family = tiny.model(file.stem[:-2]), file.stem[:-2]
    tensors, row = stored.read(file)
    assert stored.read_row(file) == row
    assert (row["clip"], row["question"], row["file"]) == ("0.mp4", QUESTION, file.name)
    assert row["kept"] == tensors["kept"].tolist()
    assert (row["frames"], sum(row["tokens"])) == ([*range(8)], row["tokens_before"])
    found = first_logits(model, stored.restore(model, tensors))
    torch.testing.assert_close(found, expected_logits(family, QUESTION), atol=1e-4, rtol=0)


@every_file
def test_another_question_is_answered_without_the_video(file: Path) -> None:
    model, family = tiny.model(file.stem[:-2]), file.stem[:-2]
    tensors, _ = stored.read(file)
    another = prepare(processor_of(family), frames(), OTHER)["input_ids"][0]
    last = (another == getattr(model.config, adapter_for(model).token)).nonzero().flatten()[-1]
    tail = another[last + 1 :]
    found = first_logits(model, stored.restore(model, tensors, tail))
    torch.testing.assert_close(found, expected_logits(family, OTHER), atol=1e-4, rtol=0)
    assert (first_logits(model, stored.restore(model, tensors)) - found).abs().max() > 1e-3


def test_what_generate_makes_of_it_is_the_answer() -> None:
    model, processor = tiny.model("qwen2_5_vl"), processor_of("qwen2_5_vl")
    tensors, _ = stored.read(DATA / "qwen2_5_vl-0.safetensors")
    out = model.generate(**stored.restore(model, tensors), do_sample=False, max_new_tokens=6)
    assert processor.batch_decode(out, skip_special_tokens=True)[0].strip() == World("qwen2_5_vl").hooked(QUESTION)[0]


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-1], lambda data: b"x" * len(data)])
def test_a_damaged_file_is_told_in_a_line(tmp_path: Path, damage: Any) -> None:
    file = tmp_path / "clip.safetensors"
    file.write_bytes(damage(FILES[0].read_bytes()))
    for read in (stored.read, stored.read_row):
        with pytest.raises(VidsieveError, match=r"clip\.safetensors: is damaged.*encode its clip again") as caught:
            read(file)
        assert "\n" not in str(caught.value)
