"""needles.tiny and needles.packed: files that load as any checkpoint, and a fast forward with the stock numbers."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

pytest.importorskip("transformers")

import vidsieve
from tests.evaluation.needles.small import LONG, SIZE, TEXT, VISION
from vidsieve import Reduction
from vidsieve.engines.hf.loading import load, prepare
from vidsieve.evaluation.needles import PLAN, Batch, generate
from vidsieve.evaluation.needles.clip import as_frames, write_clip
from vidsieve.evaluation.needles.packed import FRAMES, TAIL, Packed, _attend_frames, fast, noted, patchify
from vidsieve.evaluation.needles.questions import TEMPLATES, WORDS
from vidsieve.evaluation.needles.tiny import BUNDLED, UNKNOWN, build, build_tokenizer
from vidsieve.types.tokens import Prompt, VideoTokens
from vidsieve.video.decode import read_video


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any]:
    processor, model = build(SIZE, 0, TEXT, VISION)
    return processor, model.eval()


@pytest.fixture(scope="module")
def batch() -> Batch:
    return generate("dev", range(2), SIZE)


class Only(vidsieve.Reducer):
    """Keeps what it is told to keep."""

    def __init__(self, kept: torch.Tensor) -> None:
        self.kept = kept

    def reduce(self, tokens: VideoTokens, prompt: Prompt | None = None) -> Reduction:
        return Reduction.select(self.kept, len(tokens))


@torch.no_grad()
@pytest.mark.parametrize("keep", [1.0, 0.25])
def test_packed_logits_are_those_of_each_question_alone(tiny: tuple[Any, Any], batch: Batch, keep: float) -> None:
    processor, model = tiny
    packed, questions = Packed(processor, SIZE, "cpu"), batch.questions
    kept = None
    if keep < 1:
        score = torch.rand(2, SIZE.tokens, generator=torch.Generator().manual_seed(0))
        kept = score.topk(round(keep * SIZE.tokens), dim=1).indices.sort(dim=1).values
    with fast(model):
        features = packed.features(model, batch.frames)
        log_probs, _ = packed.logits(model, features, questions.words, questions.answer, kept)
    for video in range(2):
        for question in range(len(PLAN)):
            inputs = prepare(processor, as_frames(batch.frames[video]), questions.text(video, question))
            if kept is None:
                alone = model(**inputs).logits[0, -1]
            else:
                with Only(kept[video])(model):
                    alone = model(**inputs).logits[0, -1]
            torch.testing.assert_close(log_probs[video, question], alone, rtol=0, atol=5e-6)


@torch.no_grad()
def test_questions_of_the_other_suite_are_packed_as_well(tiny: tuple[Any, Any]) -> None:
    processor, model = tiny
    batch = generate("dev", [0], LONG)
    packed, questions = Packed(processor, LONG, "cpu"), batch.questions
    with fast(model):
        features = packed.features(model, batch.frames)
        log_probs, _ = packed.logits(model, features, questions.words, questions.answer)
    for kind in ("some", "across", "order", "when"):
        question = questions.plan.index(kind)
        inputs = prepare(processor, as_frames(batch.frames[0]), questions.text(0, question))
        torch.testing.assert_close(log_probs[0, question], model(**inputs).logits[0, -1], rtol=0, atol=5e-6)


def test_the_bundled_model_knows_every_word_of_both_suites() -> None:
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(str(BUNDLED)).get_vocab() == build_tokenizer().get_vocab()


@torch.no_grad()
def test_packed_ends_the_answer_as_generation_does(tiny: tuple[Any, Any], batch: Batch) -> None:
    processor, model = tiny
    packed, questions = Packed(processor, SIZE, "cpu"), batch.questions
    with fast(model):
        _, after = packed.logits(model, packed.features(model, batch.frames), questions.words, questions.answer)
    inputs = prepare(processor, as_frames(batch.frames[1]), questions.text(1, 7))
    answer = torch.tensor([[processor.tokenizer.convert_tokens_to_ids(questions.reply(1, 7))]])
    inputs["input_ids"] = torch.cat((inputs["input_ids"], answer), dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, 1))
    torch.testing.assert_close(after[1, 7], model(**inputs).logits[0, -1], rtol=0, atol=5e-6)


def test_frames_attend_bit_for_bit_as_one_by_one() -> None:
    query, key, value = torch.randn(3, 1, 2, 5 * 16, 8, generator=torch.Generator().manual_seed(0))
    together, _ = _attend_frames(torch.nn.Identity(), query, key, value, None, scaling=0.3, patches=16)
    frames = zip(*(x.split(16, dim=2) for x in (query, key, value)), strict=True)
    alone = [torch.nn.functional.scaled_dot_product_attention(*frame, scale=0.3) for frame in frames]
    assert torch.equal(together, torch.cat(alone, dim=2).transpose(1, 2))


def test_patches_are_those_of_the_processor(tiny: tuple[Any, Any], batch: Batch) -> None:
    processor, _ = tiny
    inputs = prepare(processor, as_frames(batch.frames[0]), "?")
    torch.testing.assert_close(patchify(batch.frames[:1], SIZE), inputs["pixel_values_videos"], rtol=0, atol=1e-6)
    assert float(inputs["second_per_grid_ts"][0]) == 1  # transformers rounds it down to whole seconds


def test_fast_leaves_the_model_as_it_was(tiny: tuple[Any, Any]) -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    _, model = tiny
    configs = model.model.visual.config, model.model.language_model.config
    before = [config._attn_implementation for config in configs]
    with pytest.raises(KeyboardInterrupt), fast(model):
        raise KeyboardInterrupt
    assert not {FRAMES, TAIL} & set(ALL_ATTENTION_FUNCTIONS.valid_keys())
    assert [config._attn_implementation for config in configs] == before
    assert "forward" not in vars(model.model.visual.patch_embed)


def test_attention_is_noted_only_while_it_is_asked_for(tiny: tuple[Any, Any]) -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    with fast(tiny[1]):
        with noted(tiny[1]):
            assert ALL_ATTENTION_FUNCTIONS[FRAMES] is not _attend_frames
        assert ALL_ATTENTION_FUNCTIONS[FRAMES] is _attend_frames


def test_every_word_of_the_suite_is_one_token(tiny: tuple[Any, Any], batch: Batch) -> None:
    tokenizer = tiny[0].tokenizer
    unknown = tokenizer.convert_tokens_to_ids(UNKNOWN)
    for word in WORDS:
        assert len(tokenizer(word)["input_ids"]) == 1
        assert tokenizer.decode(tokenizer(word)["input_ids"]) == word
    for kind, text in TEMPLATES.items():
        assert unknown not in tokenizer(text.replace("{}", "ring"))["input_ids"], kind
    assert tokenizer("Which zebra?")["input_ids"][1] == unknown


def test_a_saved_checkpoint_answers_through_the_plain_api(tiny: tuple[Any, Any], batch: Batch, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor, model = tiny
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert not any("vidsieve" in path.read_text() for path in tmp_path.glob("*.json"))
    loaded, again = AutoProcessor.from_pretrained(tmp_path), AutoModelForImageTextToText.from_pretrained(tmp_path)
    frames, question = as_frames(batch.frames[0]), batch.questions.text(0, 0)
    inputs = prepare(loaded, frames, question)
    assert torch.equal(inputs["input_ids"], prepare(processor, frames, question)["input_ids"])
    output = again.generate(**inputs, max_new_tokens=2)
    assert torch.equal(output, model.generate(**inputs, max_new_tokens=2))
    assert load(str(tmp_path))[1].config.model_type == "qwen2_5_vl"


PLAIN = """
import sys
from vidsieve.engines.torchvision import make_importable
make_importable()
for name in [name for name in sys.modules if name.partition(".")[0] == "vidsieve"]:
    del sys.modules[name]
sys.modules["vidsieve"] = None  # an import of it fails from here on
import numpy, torch
from transformers import AutoModelForImageTextToText, AutoProcessor
folder, frames, *questions = sys.argv[1:]
processor, model = AutoProcessor.from_pretrained(folder), AutoModelForImageTextToText.from_pretrained(folder)
video = torch.from_numpy(numpy.load(frames))
metadata = {"total_num_frames": 32, "fps": 2.0, "duration": 16.0, "frames_indices": list(range(32))}
for question in questions:
    content = [{"type": "video"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(
        text=[text], videos=[video], video_metadata=[metadata], do_sample_frames=False, return_tensors="pt"
    )
    out = model.generate(**inputs, max_new_tokens=4)[0, inputs["input_ids"].shape[1]:]
    print(processor.tokenizer.decode(out, skip_special_tokens=True).strip())
"""


def test_the_bundled_model_answers_where_this_library_is_not(tmp_path: Path) -> None:
    encoded = generate("test", [11])
    numpy.save(tmp_path / "frames.npy", encoded.frames[0].numpy())
    command = [sys.executable, "-c", PLAIN, str(BUNDLED), str(tmp_path / "frames.npy")]
    asked = [encoded.questions.text(0, number) for number in range(2)]
    run = subprocess.run([*command, *asked], capture_output=True, text=True, check=False)
    assert run.stdout.splitlines() == [encoded.questions.reply(0, number) for number in range(2)], run.stderr[-1000:]


def test_a_reducer_finds_the_suite_s_tokens(tiny: tuple[Any, Any], batch: Batch) -> None:
    processor, model = tiny
    inputs = prepare(processor, as_frames(batch.frames[0]), batch.questions.text(0, 0))
    with vidsieve.presets.uniform(0.25)(model) as trace:
        model.generate(**inputs, max_new_tokens=1)
    assert trace.videos[0].before == SIZE.tokens == batch.questions.evidence.shape[2]


def test_the_shipped_size_is_within_bounds() -> None:
    _, model = build()
    assert sum(p.numel() for p in model.parameters()) <= 12_500_000  # 25 MB in bf16
    _, same = build()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))


def test_a_clip_comes_back_from_its_file(tmp_path: Path) -> None:
    pytest.importorskip("av")
    frames = generate("test", [3]).frames[0]
    read = read_video(write_clip(frames, tmp_path / "clip.mp4"), size=None)
    assert len(read) == 32
    assert read.fps == 2
    error = (read.pixels.permute(0, 3, 1, 2).int() - frames.int()).abs().float()
    assert error.mean() < 2
    assert error.max() < 40
    assert write_clip(frames, tmp_path / "again.mp4").read_bytes() == (tmp_path / "clip.mp4").read_bytes()
    with pytest.raises(ValueError, match=r"\(F, 3, H, W\) of one video"):
        write_clip(frames[None], tmp_path / "no.mp4")
