"""What a server prunes with and what a request may ask. Needs no vLLM."""

import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch

from tests.synthetic import video_like
from vidsieve import Prompt, Reducer, Reduction, VideoTokens, registry
from vidsieve.engines.vllm import settings
from vidsieve.engines.vllm.settings import Method, RequestOptions, retained
from vidsieve.errors import UnsupportedCall
from vidsieve.methods import Pixels, RunLength, Staged, presets


def before_the_tower(keep: float) -> Staged:
    return Staged({Pixels(): RunLength(0.5), 0: presets.random(keep)})


@dataclass(frozen=True)
class Approximate(Reducer):
    """Keeps one token too many."""

    keep: float

    def reduce(self, tokens: VideoTokens, prompt: Prompt | None = None) -> Reduction:
        return Reduction.select(torch.arange(min(len(tokens), round(self.keep * len(tokens)) + 1)), len(tokens))


@pytest.mark.parametrize(
    ("total", "rate", "count"),
    [(128, 0.9, 12), (128, 0.5, 64), (128, 1e-17, 128), (128, 1e-9, 127), (27, 0.95, 1), (3, 0.99, 1), (10, 0.3, 7)],
)
def test_the_count_is_vllms(total: int, rate: float, count: int) -> None:
    assert retained(total, rate) == count


@pytest.mark.parametrize("name", registry.methods(inside=False))
def test_a_method_keeps_any_count_exactly(name: str) -> None:
    tokens = VideoTokens.from_grid(video_like(6, 12, 16, 1, torch.float32, cuts=(2,)), 6, 3, 4)
    method, prompt = Method.named(name), Prompt(tokens.features[:4])
    for count in range(1, 73, 5):
        assert len(method.reduce(tokens, count, prompt)) == count
    assert method.asks == (name == "cdpruner")


def test_ones_own_method_is_found_by_its_place() -> None:
    assert Method.named("vidsieve.methods.presets:random").build(0.5) == presets.random(0.5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vidsive", "expected one of vidsieve"),
        ("vidsieve.methods.presets:nothing", "cannot be imported"),
        ("no_such_package:method", "cannot be imported"),
        ("tests.engines.vllm.test_settings:before_the_tower", r"makes a Staged; .* no selector before the tower"),
        ("tests.engines.vllm.test_settings:Approximate", "kept 2 of 120 tokens where 1 were due"),
    ],
)
def test_what_cannot_serve_is_refused_at_the_start(name: str, message: str) -> None:
    with pytest.raises(UnsupportedCall, match=message):
        Method.named(name)


@pytest.mark.parametrize(("value", "name"), [(None, "vidsieve"), ("uniform", "uniform"), ("off", None)])
def test_one_variable_decides(monkeypatch: pytest.MonkeyPatch, value: str | None, name: str | None) -> None:
    settings.configured.cache_clear()
    monkeypatch.delenv(settings.VARIABLE, raising=False)
    if value:
        monkeypatch.setenv(settings.VARIABLE, value)
    method = settings.configured()
    assert (method and method.name) == name
    assert settings.method_is_explicit() == (value is not None)
    settings.configured.cache_clear()


def test_a_request_may_wish() -> None:
    assert RequestOptions.of({"fps": 2.0}) == RequestOptions()
    asked = RequestOptions.of({"vidsieve": {"keep": 0.2, "question": "What?"}})
    assert asked.count(128, 0.9) == 26
    assert RequestOptions().count(128, 0.9) == 12
    asked.check(Method.named("cdpruner"))


@pytest.mark.parametrize(
    "wish",
    [
        *("0.2", {"ratio": 0.2}, {"keep": "half"}, {"keep": 1.5}, {"keep": 0}, {"keep": True}),
        *({"question": " "}, {"question": "?" * 4097}),
    ],
)
def test_a_wish_that_makes_no_sense_is_refused(wish: object) -> None:
    with pytest.raises(ValueError, match=r"expected|keep is the fraction"):
        RequestOptions.of({"vidsieve": wish})


@pytest.mark.parametrize("keep", [None, 0.2, 1.0])
@pytest.mark.parametrize("key", [None, bytes(range(240, 256))])
@pytest.mark.parametrize("question", [[], [5], [151_000, 3]])
def test_an_order_says_at_one_end_what_it_was_given_at_the_other(
    keep: float | None, key: bytes | None, question: list[int]
) -> None:
    ordered = settings.order(keep, question, key)
    assert settings.ordered_question(ordered) == question
    assert settings.ordered_key(ordered) == key
    for total in (1, 128, 5824):
        assert settings.ordered_count(ordered, total, 0.75) == RequestOptions(keep).count(total, 0.75)


@pytest.mark.parametrize("name", ["vidsieve", "cdpruner"])
def test_videos_reduced_together_keep_what_each_keeps_alone(name: str) -> None:
    method = Method.named(name)
    videos = [
        VideoTokens.from_grid(video_like(frames, 12, 16, seed, torch.float32, cuts=(2,)), frames, 3, 4)
        for seed, frames in enumerate((6, 4, 6, 6))
    ]
    prompts = [Prompt(video.features[:4]) if method.asks else None for video in videos]
    counts = [18, 12, 30, 18]
    alone = [method.reduce(*one).kept for one in zip(videos, counts, prompts, strict=True)]
    together = method.reduce_each(videos, counts, prompts)
    assert all(torch.equal(mine.kept, kept) for mine, kept in zip(together, alone, strict=True))


def test_a_named_method_that_would_never_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(settings.VARIABLE, raising=False)
    assert settings.pruning_rate(("evs", 0.9)) == 0.9
    assert settings.pruning_rate(("vidcom2", 0.9)) is None
    assert settings.pruning_rate(None) is None
    monkeypatch.setenv(settings.VARIABLE, "divprune")
    assert settings.pruning_rate(("evs", 0.9)) == 0.9
    for spec, got in ((None, "no --video-pruning-rate above 0"), (("vidcom2", 0.9), "--video-pruning-method vidcom2")):
        with pytest.raises(UnsupportedCall, match=f"VIDSIEVE_VLLM=divprune names .* got {got}, expected"):
            settings.pruning_rate(spec)


def test_a_question_goes_to_methods_that_hear_it_and_only_there() -> None:
    with pytest.raises(UnsupportedCall, match="does not look at the question"):
        RequestOptions(question="What?").check(Method.named("vidsieve"))
    with pytest.raises(UnsupportedCall, match="cannot read off the prompt"):
        RequestOptions().check(Method.named("cdpruner"))


def test_importing_the_plug_in_needs_no_vllm() -> None:
    code = "import sys; sys.modules['vllm'] = None; from vidsieve.engines.vllm import register, positions, settings"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_told_to_stay_out_it_does() -> None:
    code = "import sys; sys.modules['vllm'] = None; from vidsieve.engines.vllm import register; register()"
    environment = {"VIDSIEVE_VLLM": "off", "PYTHONPATH": ":".join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
