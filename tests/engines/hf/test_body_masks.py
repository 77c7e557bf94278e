"""Models whose body makes the masks of the decoder: against masks that are written down here, token by token.

Nothing here but the features is of the body: embeddings, inputs of each layer, kinds, positions and masks are made by
hand, the dropped tokens are left out of all of them, and each step of the answer is one pass of the decoder over the
whole sequence, without hooks and cache.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from tests.engines.hf import newer, tiny
from tests.engines.hf.reducers import LouderThanMean, MergeIntoLoudest
from vidsieve.engines.hf import attach
from vidsieve.engines.hf.contract import CACHE
from vidsieve.errors import UnsupportedCall, UnsupportedVersion
from vidsieve.methods.base import Reducer
from vidsieve.types.tokens import VideoTokens

STEPS = 4
_ALONG = ("input_ids", "attention_mask", "mm_token_type_ids")  # what follows the tokens
WINDOW = 4  # fewer than a frame has tokens
LARGE = {"use_bidirectional_attention": "vision", "sliding_window": WINDOW}
CONFIGS: dict[str, Callable[[], Any]] = {
    "small": lambda: newer.gemma4(**newer.GEMMA_SMALL),
    "large": lambda: newer.gemma4(**LARGE),
    "unified": lambda: newer.gemma4_unified(**LARGE),
    "unified, without blocks": lambda: newer.gemma4_unified(use_bidirectional_attention=None),
    **({"molmo2": newer.molmo2} if newer.exists("molmo2") else {}),
}
PROMPTS = {
    "a video": {},
    "two videos": {"videos": 2},
    "an image and a video": {"images": 1, "seed": 2},
    "a longer question": {"seed": 4, "text": 11},
}


def family(variant: str) -> str:
    return "molmo2" if variant == "molmo2" else "gemma4_unified" if variant.startswith("unified") else "gemma4"


@functools.cache
def model(variant: str, attention: str = "sdpa") -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(newer.NEWER, family(variant), CONFIGS[variant])
        return tiny.fresh(family(variant), attention)


def masks(variant: str, kinds: list[int], static: bool = False, apart: bool = False) -> Any:
    """What each token sees, as transformers has it.

    static: as `generate` makes it for a static cache.  apart: where a video was seen before the next one came.
    """
    if static and newer.STACKED:  # older releases then tell no frame from text
        kinds = [0] * len(kinds)
    frame: list[int] = []  # the run of visual tokens that each is of, -1 for text
    for at, kind in enumerate(kinds):
        new = kind and not (at and kinds[at - 1])
        frame.append((max(frame, default=-1) + 1 if new else frame[-1]) if kind else -1)
    config, of = model(variant).config.text_config, torch.tensor(frame)
    query, key, least = torch.arange(len(kinds))[:, None], torch.arange(len(kinds)), torch.finfo(torch.float32).min
    causal = key <= query
    if variant == "molmo2":  # all of a video sees all of it
        video = of // 4 if apart else torch.zeros_like(of)
        sees = causal | ((of[:, None] >= 0) & (of >= 0) & (video[:, None] == video))
        return torch.zeros(sees.shape).masked_fill(~sees, least)[None, None]
    near = key > query - config.sliding_window
    together = (of[:, None] == of) & (of >= 0) & (config.use_bidirectional_attention == "vision")
    seen = {"full_attention": causal, "sliding_attention": near & (causal | together)}
    if variant.startswith("unified") and not static:  # its body lets a frame see all of itself, in every layer
        seen = {"full_attention": causal | together, "sliding_attention": (causal & near) | together}
    return {name: torch.zeros(sees.shape).masked_fill(~sees, least)[None, None] for name, sees in seen.items()}


@torch.no_grad()
def features(variant: str, inputs: tiny.Inputs) -> Iterator[tuple[int, Tensor]]:
    """The placeholder and the features of images and of videos."""
    body = model(variant).base_model
    if "pixel_values" in inputs:
        seen = body.get_image_features(inputs["pixel_values"], inputs["image_position_ids"], return_dict=True)
        yield tiny.IMAGE, seen.pooler_output
    if variant == "molmo2":
        described = (inputs["video_token_pooling"], inputs["video_grids"])
        yield tiny.VIDEO, body.get_video_features(inputs["pixel_values_videos"], *described).pooler_output
        return
    counts = {} if newer.STACKED else {"num_frames_per_video": inputs["num_frames_per_video"]}
    seen = body.get_video_features(
        inputs["pixel_values_videos"], inputs["video_position_ids"], return_dict=True, **counts
    )
    yield tiny.VIDEO, seen.pooler_output


@torch.no_grad()
def by_hand(
    variant: str,
    inputs: tiny.Inputs,
    reducer: Reducer,
    tokens: list[int],
    attention: str = "sdpa",
    static: bool = False,
    apart: bool = False,
) -> Tensor:
    """The logits (steps, V) by which each of the answer's `tokens` follows one prompt, reduced."""
    lm, ids = model(variant, attention), inputs["input_ids"][0]
    decoder, config = lm.get_decoder(), lm.config.text_config
    plain, added = ids, variant == "molmo2"  # which adds features to the embeddings of placeholders
    if not added:
        plain = ids.masked_fill((ids == tiny.IMAGE) | (ids == tiny.VIDEO), config.pad_token_id)
    embeddings = lm.get_input_embeddings()(plain).clone()
    for token, seen in features(variant, inputs) if "pixel_values_videos" in inputs else ():
        seen = seen if isinstance(seen, Tensor) else torch.cat(list(seen))
        embeddings[ids == token] = seen + embeddings[ids == token] * added
    stays = torch.ones_like(ids, dtype=torch.bool)
    at = (ids == tiny.VIDEO).nonzero().flatten()
    for video in at.split(24) if len(at) else ():
        reduction = reducer.reduce(VideoTokens(embeddings[video], (6,) * 4))
        old = embeddings[video].clone()
        for row, kept in enumerate(reduction.kept.tolist()):
            embeddings[video[kept]] = old[reduction.assigned_to == row].mean(0)
        stays[video] = False
        stays[video[reduction.kept]] = True
    kinds = inputs["mm_token_type_ids"][0][stays].tolist()
    embeddings, plain, positions = embeddings[stays], plain[stays], torch.arange(len(ids))[stays]
    rows = []
    for step, token in enumerate(tokens):
        extra = {}
        if getattr(config, "hidden_size_per_layer_input", 0):
            extra["per_layer_inputs"] = decoder.get_per_layer_inputs(plain[None], None)
        hidden = decoder(
            inputs_embeds=embeddings[None],
            position_ids=positions[None],
            attention_mask=masks(variant, kinds, static, apart),
            use_cache=False,
            **extra,
        ).last_hidden_state
        rows.append(lm.lm_head(hidden[0, -1]))
        said = torch.tensor([token])
        embeddings = torch.cat([embeddings, lm.get_input_embeddings()(said)])
        plain, kinds = torch.cat([plain, said]), [*kinds, 0]
        positions = torch.cat([positions, torch.tensor([len(ids) + step])])
    return torch.stack(rows)


def text() -> tiny.Inputs:
    ids = torch.tensor([[7, 8, 9, 10]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": torch.zeros_like(ids)}


def check(variant: str, prompts: list[tiny.Inputs], reducer: Reducer, attention: str = "sdpa", **options: Any) -> None:
    inputs, static = tiny.batch(*prompts), "cache_implementation" in options
    with attach(model(variant, attention), reducer) as trace:
        answer = model(variant, attention).generate(
            **inputs,
            **options,
            max_new_tokens=STEPS,
            min_new_tokens=STEPS,
            return_dict_in_generate=True,
            output_logits=True,
        )
    assert all(0 < video.after < video.before for video in trace.videos)
    assert len(trace.calls[0].videos) == sum(int((one["input_ids"] == tiny.VIDEO).sum()) // 24 for one in prompts)
    for row, one in enumerate(prompts):
        tokens = answer.sequences[row, -STEPS:].tolist()
        expected = by_hand(variant, one, reducer, tokens, attention, static)
        found = torch.stack(answer.logits, 1)[row]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        expected[:, [tiny.IMAGE, tiny.VIDEO, tiny.SPARE]] = -torch.inf
        assert expected.argmax(-1).tolist() == tokens


def has(variant: str, kind: str) -> bool:
    return family(variant) not in newer.NO_IMAGE_BESIDE or "image" not in kind


@pytest.mark.parametrize(
    ("reducer", "attention"), [(LouderThanMean(), "sdpa"), (MergeIntoLoudest(0.5), "eager")], ids=repr
)
@pytest.mark.parametrize(
    ("variant", "kind"), [(variant, kind) for variant in CONFIGS for kind in PROMPTS if has(variant, kind)]
)
def test_one_prompt(variant: str, kind: str, reducer: Reducer, attention: str) -> None:
    check(variant, [tiny.prompt(family(variant), **PROMPTS[kind])], reducer, attention)


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}, {"use_cache": False}], ids=repr)
@pytest.mark.parametrize("variant", CONFIGS)
def test_rows_of_different_lengths_and_one_of_text(variant: str, options: dict[str, Any]) -> None:
    kinds = ("an image and a video", "two videos", "a video", "a longer question")
    prompts = [tiny.prompt(family(variant), **PROMPTS[kind]) for kind in kinds if has(variant, kind)]
    check(variant, [*prompts, text()], LouderThanMean(), **options)


@pytest.mark.parametrize("variant", CONFIGS)
def test_beams(variant: str) -> None:
    videos = 1 if newer.STACKED else 2  # of several, older releases hand beams each other's
    inputs = tiny.prompt(family(variant), videos=videos)
    with attach(model(variant), LouderThanMean()):
        answer = model(variant).generate(
            **inputs,
            max_new_tokens=STEPS,
            num_beams=3,
            num_return_sequences=3,
            length_penalty=0.0,
            return_dict_in_generate=True,
            output_scores=True,
        )
    for tokens, score in zip(answer.sequences[:, -STEPS:].tolist(), answer.sequences_scores, strict=True):
        logits = by_hand(variant, inputs, LouderThanMean(), tokens)
        expected = logits.log_softmax(-1)[range(STEPS), tokens].sum()
        torch.testing.assert_close(score, expected, atol=1e-4, rtol=1e-4)


def forgets(variant: str) -> bool:
    """Whether transformers itself fails to make masks for a cache of which layers with a window hold the end."""
    return variant == "large" and transformers.__version__.startswith("5.14.")


@pytest.mark.parametrize("whole", [True, False], ids=["kinds of all", "kinds of the turn"])
@pytest.mark.parametrize("variant", [variant for variant in CONFIGS if not forgets(variant)])
def test_a_second_video_after_an_answer(variant: str, whole: bool) -> None:
    """Its tokens see one another by their place in a cache that lacks some of the first."""
    first, second = tiny.prompt(family(variant)), tiny.prompt(family(variant), seed=4)
    both = {name: torch.cat([first[name], second[name]], int(name in _ALONG)) for name in first}
    if "video_token_pooling" in both:
        both["video_token_pooling"] = newer.pooled(8)
    lm, reducer = model(variant), LouderThanMean()
    with attach(lm, reducer), torch.no_grad():
        cache = lm(**first)[CACHE]
        of = both if whole else second
        more = {"attention_mask": both["attention_mask"], "mm_token_type_ids": of["mm_token_type_ids"], CACHE: cache}
        logits = lm(**{**second, **more}).logits[0, -1]
    expected = by_hand(variant, both, reducer, [0], apart=True)[0]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("variant", [variant for variant in CONFIGS if not forgets(variant)])
def test_text_after_an_answer_is_not_taken_for_the_video_that_stood_in_its_place(variant: str) -> None:
    first, more = tiny.prompt(family(variant)), text()
    both = {**first, **{name: torch.cat([first[name], more[name]], 1) for name in _ALONG}}
    lm, reducer = model(variant), LouderThanMean()
    with attach(lm, reducer), torch.no_grad():
        given = {name: both[name] for name in _ALONG[1:]}
        logits = lm(**{"input_ids": more["input_ids"], **given, CACHE: lm(**first)[CACHE]}).logits[0, -1]
    torch.testing.assert_close(logits, by_hand(variant, both, reducer, [0])[0], atol=1e-4, rtol=1e-4)


def test_kinds_of_other_tokens_are_refused() -> None:
    inputs, lm = tiny.prompt("gemma4"), model("large")
    with attach(lm, LouderThanMean()):
        more = {**inputs, "mm_token_type_ids": torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, 1))}
        with pytest.raises(UnsupportedCall, match=r"expected mm_token_type_ids of 63 tokens.*got 64"):
            lm(**more)
        cache = lm(**inputs)[CACHE]
        mask = {"attention_mask": torch.ones(1, 126, dtype=torch.long), CACHE: cache}
        kinds = {"mm_token_type_ids": torch.zeros(1, 100, dtype=torch.long)}
        with pytest.raises(UnsupportedCall, match="of 63 tokens, or of all 126 of the conversation, got 100"):
            lm(**{**inputs, **mask, **kinds})


def test_masks_of_ones_own_are_refused() -> None:
    inputs, lm = tiny.prompt("gemma4"), model("large")
    own = {"attention_mask": masks("large", inputs["mm_token_type_ids"][0].tolist())}
    with attach(lm, LouderThanMean()), pytest.raises(UnsupportedCall, match="needs a 2D attention_mask"):
        lm(**{**inputs, **own})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"attention_mask": {"full_attention": None, "sliding_attention": None}}, "hands no mask through"),
        (None, "does not call its decoder"),
    ],
)
def test_a_body_that_makes_masks_in_another_way_is_refused(
    change: dict[str, Any] | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, lm = tiny.prompt("gemma4"), model("large")
    kind = type(lm.base_model)
    plain = kind.forward

    @functools.wraps(plain)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if change is None and kwargs.get("pixel_values_videos") is None:
            return None
        return plain(self, *args, **{**kwargs, **(change or {})})

    monkeypatch.setattr(kind, "forward", forward)
    with attach(lm, LouderThanMean()) as trace:
        with pytest.raises(UnsupportedVersion, match=said):
            lm(**inputs)
        monkeypatch.undo()
        lm(**inputs)  # the call that failed left nothing behind
    assert len(trace.calls) == 1


@pytest.mark.parametrize("variant", ["small", "large"])
def test_rows_that_are_asked_for(variant: str) -> None:
    """Layers that share keys compute no other rows, in newer releases; they must be the ones that are asked for."""
    inputs, lm = tiny.prompt("gemma4", text=8), model(variant)
    with attach(lm, LouderThanMean()) as trace, torch.no_grad():
        every = lm(**inputs).logits[0]
        for count in (1, 3, 8):
            asked = lm(**inputs, logits_to_keep=count).logits
            assert asked.shape == (1, count, tiny.VOCABULARY)
            torch.testing.assert_close(asked[0], every[-count:], atol=1e-4, rtol=1e-4)
        with pytest.raises(UnsupportedCall, match="logits_to_keep counts the columns"):
            lm(**inputs, logits_to_keep=40)
    left = len(every)
    with attach(lm, LouderThanMean(), outputs="prompt"), torch.no_grad():
        spread = lm(**inputs, logits_to_keep=40).logits[0]
    assert spread.shape == (40, tiny.VOCABULARY)
    assert left == 65 - trace.videos[0].before + trace.videos[0].after
    torch.testing.assert_close(spread[-9:], every[-9:], atol=1e-4, rtol=1e-4)


def test_a_training_step_has_the_loss_of_the_tokens_that_are_left() -> None:
    inputs, lm = tiny.prompt("gemma4"), model("small")
    labels = inputs["input_ids"].where(inputs["mm_token_type_ids"] == 0, -100)
    labels[:, :-4] = -100
    with attach(lm, LouderThanMean()):
        loss = lm(**inputs, labels=labels).loss
    tokens = inputs["input_ids"][0, -4:].tolist()
    expected = []
    for at in range(-4, 0):
        short = {name: x[:, :at] if name in _ALONG else x for name, x in inputs.items()}
        expected.append(by_hand("small", short, LouderThanMean(), [0])[0].log_softmax(-1)[tokens[at]])
    torch.testing.assert_close(loss, -torch.stack(expected).mean(), atol=1e-4, rtol=1e-4)
