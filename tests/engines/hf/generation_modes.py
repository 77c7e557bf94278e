"""Every mode of `generate`, on a tiny model: as it is, with every token kept, and with half of those of the video.

The modes are those of transformers' own tests of generation. What comes of one:

identity   with keep=1: the "same" values and shapes, the "same error", "refused: ..." or "different: ..."
reduced    with keep=0.5: "by hand", what the model says without hooks and cache when the dropped tokens are removed by
           hand; the "same error" as without; "refused: ..."; "wrong in stock: ...", where the answer of the model as it
           is is not its own without a cache; or "different: ..."
"""

import copy
import functools
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, CompileConfig, DynamicCache

from tests.engines.hf import newer, tiny
from vidsieve.engines.hf import attach
from vidsieve.engines.hf.contract import CACHE
from vidsieve.engines.hf.verification import _by_hand, _watch
from vidsieve.errors import VidsieveError
from vidsieve.telemetry.trace import Trace

STEPS = 5
BEAMS = 3
GOING_ON = [40, 41, 42, 43]  # what is said after the first answer
DICT = {"return_dict_in_generate": True, "output_logits": True, "output_scores": True}


@dataclass(frozen=True, eq=False)
class Answer:
    """What a mode returned.

    output: all of it.  tokens: int64 (R, n), what follows the prompt in each row that is returned.  prompts: the prompt
    of each.  logits: (R, s, V) of the last s tokens, None where they are not returned.  scores: (R,) of beams.
    """

    output: Any
    tokens: Tensor
    prompts: list[int]
    logits: Tensor | None = None
    scores: Tensor | None = None


@dataclass(frozen=True)
class Mode:
    """A way to generate.

    options: of `generate`.  run: what is called, if it is not that alone.  prompts: "one", "two", the second padded on
    the left, or one that is "repeating".  greedy: whether the likeliest token is taken.  more: options made of model
    and case.  package: what it needs.  copied: whether it changes the model.  steps: tokens.  like: a mode of the same
    values, which stands for this one without a reducer, where that takes long.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    run: "Callable[[Any, Case, Mode], Answer]" = field(default_factory=lambda: generated)
    prompts: str = "one"
    attention: str = "sdpa"
    greedy: bool = True
    more: "Callable[[Any, Case], dict[str, Any]]" = lambda model, case: {}
    package: str = ""
    copied: bool = False
    steps: int = STEPS
    like: str = ""


class Case:
    """A model type: its models, prompts, and what it says by hand."""

    def __init__(self, family: str, device: str = "cpu") -> None:
        self.family = family
        repeating = tiny.prompt(family, text=8)
        repeating["input_ids"][0, -8:] = torch.tensor([11, 12, 13, 14, 15, 16, 11, 12])
        one = tiny.prompt(family)
        two = tiny.batch(one, tiny.prompt(family, seed=4, text=11))
        prompts = {"one": one, "two": two, "repeating": repeating}
        self.prompts = {kind: {name: x.to(device) for name, x in inputs.items()} for kind, inputs in prompts.items()}
        self.model = functools.cache(lambda attention: tiny.fresh(family, attention).to(device))
        self.hand = functools.cache(lambda prompts, keep: Hand(self, prompts, keep))
        self._stock: dict[str, Answer | str] = {}

    @functools.cached_property
    def same(self) -> Any:
        """The same model once more."""
        return drafting(copy.deepcopy(self.model("sdpa")))

    @functools.cached_property
    def draft(self) -> Any:
        """Another model, whose proposals are mostly not what this one says."""
        draft, generator = copy.deepcopy(self.model("sdpa")), torch.Generator().manual_seed(1)
        with torch.no_grad():
            for _, weight in sorted(draft.named_parameters()):
                if weight.ndim >= 2:
                    weight.add_((torch.randn(weight.shape, generator=generator) * 0.5).to(weight) * weight.std())
        return drafting(draft)

    def attempt(self, name: str, keep: float | None, seed: int = 0) -> tuple[Answer | str, Trace | None]:
        """Generate in the mode of this name. Returns the answer, or the error, as type and message, and the trace."""
        mode, trace = MODES[name], None
        model = self.model(mode.attention)
        model = copy.deepcopy(model) if mode.copied else model
        handle = None if keep is None else attach(model, "vidsieve", keep=keep)
        try:
            with warnings.catch_warnings(), torch.random.fork_rng():
                warnings.simplefilter("ignore")
                torch.manual_seed(seed)
                return mode.run(model, self, mode), None if handle is None else handle.trace
        except VidsieveError as error:
            return f"refused: {error}", trace
        except Exception as error:  # whatever transformers raises without a reducer, it has to raise with one
            return re.sub(r"0x[0-9a-f]+", "0x", f"{type(error).__name__}: {error}"), trace
        finally:
            if handle is not None:
                handle.remove()
            if mode.copied:
                torch._dynamo.reset()

    def stock(self, name: str) -> Answer | str:
        name = MODES[name].like or name
        if name not in self._stock:
            self._stock[name] = self.attempt(name, None)[0]
        return self._stock[name]

    def identity(self, name: str) -> str:
        """Compare a mode with every token kept with the same without a reducer."""
        if MODES[name].package and not find_spec(MODES[name].package):
            return "not installed"
        stock, (found, trace) = self.stock(name), self.attempt(name, 1.0)
        if difference := self._difference(stock, found):
            again = self.attempt(name, None)[0]
            if self._difference(again, found):
                return "different in stock itself" if self._difference(stock, again) else difference
        if trace is not None and not all(len(video.kept) == video.before for video in trace.videos or [None]):
            return "different: no video was found, or not all of it kept"
        return "same error" if isinstance(found, str) else "same"

    def _difference(self, stock: Answer | str, found: Answer | str) -> str:
        if isinstance(found, str):
            if found == stock:
                return ""
            return found if found.startswith("refused: ") else f"different: {found}"
        if isinstance(stock, str):
            return f"different: no {stock}"
        expected, values = dict(leaves(stock.output)), dict(leaves(found.output))
        if expected.keys() != values.keys():
            return f"different: {sorted(expected.keys() ^ values.keys())[0]} in one of them alone"
        for path, value in expected.items():
            if not equal(value, values[path], newer.TOLERANCE.get(self.family, 1e-4)):
                return f"different: {path}"
        return ""

    def reduced(self, name: str) -> str:
        """Compare a mode with half of the video dropped with the same by hand."""
        mode, stock = MODES[name], self.stock(name)
        if mode.package and not find_spec(mode.package):
            return "not installed"
        found, trace = self.attempt(name, 0.5)
        if isinstance(found, str):
            if found.startswith("refused: "):
                return found
            # What is drawn decides whether some fail, as drafts do that leave a window in transformers 5.17.
            draws = range(1 if mode.greedy else 12)
            alike = found == stock or any(found == self.attempt(name, None, seed)[0] for seed in draws)
            return "same error" if alike else f"different: {found}"
        hand = self.hand(mode.prompts, 0.5)
        wrong = hand.judge(mode, found) or hand.kept_alike(trace) or self._shapes(stock, found, hand)
        if wrong and not isinstance(stock, str) and (stock_wrong := self.hand(mode.prompts, None).judge(mode, stock)):
            return f"wrong in stock: {stock_wrong}"
        return f"different: {wrong}" if wrong else "by hand"

    def _shapes(self, stock: Answer | str, found: Answer, hand: "Hand") -> str:
        """Compare the shapes of hidden states and attentions, which are of the tokens that are left."""
        if isinstance(stock, str):
            return ""
        expected, values = dict(leaves(stock.output)), dict(leaves(found.output))
        for path, value in expected.items():
            if not path.startswith((".hidden_states", ".attentions")):
                continue
            counting = (1,) if path.startswith(".hidden_states") else (2, 3)
            shape = [n - hand.dropped * (at in counting and n >= hand.length) for at, n in enumerate(value.shape)]
            if path not in values or list(values[path].shape) != shape:
                return f"{path} has not the shape {shape}"
        return ""


class Hand:
    """What the model of a case says to its prompts without hooks and cache, half of each video removed by hand."""

    def __init__(self, case: Case, prompts: str, keep: float | None) -> None:
        self._model, self._inputs = case.model("sdpa"), case.prompts[prompts]
        self._tolerance = newer.TOLERANCE.get(case.family, 1e-4)
        self._videos: list[Any] = []
        if keep is not None:
            with attach(self._model, "vidsieve", keep=keep) as trace:
                self._model.generate(**self._inputs, max_new_tokens=1)
            self._videos = list(trace.calls[0].videos)
        self.length = self._inputs["input_ids"].shape[1]
        self.dropped = sum(v.before - len(v.kept) for v in self._videos if v.row == 0)
        with torch.no_grad():
            self._given, self._merged = _watch(self._model, self._inputs, None)
        self.logits = functools.cache(self._logits)

    @torch.no_grad()
    def _logits(self, row: int, tokens: tuple[int, ...]) -> Tensor:
        """Compute the logits (n, V) that each of the tokens after the prompt is chosen by."""
        mask, videos = self._inputs["attention_mask"][row], [v for v in self._videos if v.row == row]
        return _by_hand(
            self._model, self._given, self._merged, mask, row, videos, torch.tensor(tokens, device=mask.device)
        )

    def _allowed(self, logits: Tensor) -> Tensor:
        logits = logits.clone()
        logits[..., self._model.generation_config.suppress_tokens or []] = -torch.inf
        return logits

    def judge(self, mode: Mode, answer: Answer) -> str:
        """Say what is wrong with an answer; nothing if nothing is."""
        for row, (prompt, tokens) in enumerate(zip(answer.prompts, answer.tokens, strict=True)):
            logits = self.logits(prompt, tuple(tokens.tolist()))
            if answer.scores is not None:
                score = logits.log_softmax(-1).gather(1, tokens[:, None]).mean()
                if not equal(score, answer.scores[row], self._tolerance):
                    return f"row {row} has the score {answer.scores[row]:.4f}, by hand {score:.4f}"
                continue
            logits = logits[-mode.steps :]
            if answer.logits is not None and not equal(logits, answer.logits[row], self._tolerance):
                return f"logits of row {row} are off by {(logits - answer.logits[row]).abs().max():.1e}"
            if mode.greedy and self._allowed(logits).argmax(-1).tolist() != tokens[-mode.steps :].tolist():
                return f"row {row} says other tokens"
        if mode.greedy and answer.scores is not None and answer.tokens.tolist() != self._beams(len(answer.tokens)):
            return "other beams"
        return ""

    def _beams(self, count: int) -> list[list[int]]:
        """Search by hand for the beams of the first prompt."""
        beams: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
        for _ in range(STEPS):
            longer = []
            for score, said in beams:
                rates = self._allowed(self.logits(0, (*said, 0))[-1].log_softmax(-1))
                longer += [(score + float(rates[token]), (*said, int(token))) for token in rates.topk(BEAMS).indices]
            beams = sorted(longer, reverse=True)[:BEAMS]
        return [list(said) for _, said in beams[:count]]

    def kept_alike(self, trace: Trace | None) -> str:
        """Say whether any pass kept other tokens than the first pass of greedy decoding."""
        expected = [video.kept for video in self._videos]
        calls = [] if trace is None else trace.calls
        found = [[video.kept for video in call.videos] for call in calls if call.videos]
        if not found:
            return "no video was found"
        # Rows that share a prompt are reduced each.
        return "" if all(kept in expected for call in found for kept in call) else "other tokens were kept"


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """List the tensors and numbers in `value`, by where they are."""
    if isinstance(value, Cache):
        value = [vars(layer) for layer in value.layers]
    if isinstance(value, Mapping):
        for name, one in value.items():
            yield from leaves(one, f"{path}.{name}")
    elif isinstance(value, list | tuple):
        for place, one in enumerate(value):
            yield from leaves(one, f"{path}[{place}]")
    elif isinstance(value, Tensor | int | float | None):
        yield path, value


def equal(expected: Any, found: Any, tolerance: float) -> bool:
    """Whether two values are the same, of the same shape and type."""
    if not isinstance(expected, Tensor) or not isinstance(found, Tensor):
        return bool(type(expected) is type(found) and expected == found)
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return False
    if not expected.is_floating_point():
        return torch.equal(expected, found)
    return torch.allclose(expected, found, atol=tolerance, rtol=tolerance, equal_nan=True)


def drafting(model: Any) -> Any:
    """Let `model` propose two tokens at a time."""
    model.generation_config.num_assistant_tokens = 2
    model.generation_config.num_assistant_tokens_schedule = "constant"
    return model


def answer_of(output: Any, count: int, after: int, before: Tensor | None = None) -> Answer:
    """Make the answer of what `generate` returned for `count` prompts, which fill `after` columns of its sequences.

    before: int64 (1, n), what of the conversation is no part of the first prompt, but comes before the sequences.
    """
    sequences = output if isinstance(output, Tensor) else output.sequences
    tokens = sequences[:, after:]
    tokens = tokens if before is None else torch.cat([before, tokens], 1)
    prompts = [row // (len(tokens) // count) for row in range(len(tokens))]
    scores = getattr(output, "sequences_scores", None)
    logits = getattr(output, "logits", None) if scores is None else None
    return Answer(output, tokens, prompts, None if logits is None else torch.stack(logits, 1), scores)


def generated(model: Any, case: Case, mode: Mode) -> Answer:
    inputs = case.prompts[mode.prompts]
    output = model.generate(
        **inputs, **{"max_new_tokens": mode.steps, **DICT, **mode.options, **mode.more(model, case)}
    )
    return answer_of(output, len(inputs["input_ids"]), inputs["input_ids"].shape[1])


def from_embeddings(model: Any, case: Case, mode: Mode, with_ids: bool = False) -> Answer:
    inputs = dict(case.prompts[mode.prompts])
    ids = inputs.pop("input_ids")
    inputs |= {"inputs_embeds": model.get_input_embeddings()(ids)} | ({"input_ids": ids} if with_ids else {})
    output = model.generate(**inputs, **{"max_new_tokens": mode.steps, **DICT, **mode.options})
    return answer_of(output, len(ids), ids.shape[1] if with_ids else 0)


def going_on(model: Any, case: Case, mode: Mode, shown_again: bool = False) -> Answer:
    inputs = case.prompts[mode.prompts]
    options = {"max_new_tokens": mode.steps, **DICT, **mode.options}
    first = model.generate(**inputs, **{**options, "max_new_tokens": 3})
    ids, length = first.sequences, inputs["input_ids"].shape[1]
    if not shown_again:
        ids = torch.cat([ids, torch.tensor([GOING_ON]).to(ids).expand(len(ids), -1)], 1)
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, ids.shape[1] - length), value=1)
    more = {**(inputs if shown_again else {}), "input_ids": ids, "attention_mask": mask, CACHE: first[CACHE]}
    second = model.generate(**more, **options)
    answer = answer_of(second, len(ids), length)
    return Answer([first, second], answer.tokens, answer.prompts, answer.logits)


def compiling(model: Any, case: Case) -> dict[str, Any]:
    config = CompileConfig(backend="eager", fullgraph=True, mode="default")
    config._compile_all_devices = True
    return {"compile_config": config}


SAMPLING = {"do_sample": True, "temperature": 0.8, "top_k": 20}
STATIC = {"cache_implementation": "static"}
MODES: dict[str, Mode] = {
    "greedy": Mode({"return_dict_in_generate": False}),
    "scores and logits": Mode(),
    "attentions": Mode({"output_attentions": True}, attention="eager"),
    "hidden states": Mode({"output_hidden_states": True}),
    "sampling": Mode(SAMPLING, greedy=False),
    "several samples": Mode({**SAMPLING, "num_return_sequences": 2}, greedy=False),
    "beam search": Mode({"num_beams": BEAMS, "num_return_sequences": 2}),
    "beam search, static cache": Mode({"num_beams": BEAMS, "num_return_sequences": 2, **STATIC}),
    "beam sampling": Mode({"num_beams": BEAMS, "do_sample": True}, greedy=False),
    "assisted by itself": Mode(more=lambda model, case: {"assistant_model": drafting(model)}, copied=True),
    "assisted by the same": Mode(more=lambda model, case: {"assistant_model": case.same}),
    "assisted by another": Mode(more=lambda model, case: {"assistant_model": case.draft}),
    "assisted sampling": Mode(SAMPLING, more=lambda model, case: {"assistant_model": case.draft}, greedy=False),
    "assisted, static cache": Mode(STATIC, more=lambda model, case: {"assistant_model": case.draft}),
    "assisted, early exit": Mode({"assistant_early_exit": 1}),
    "prompt lookup": Mode({"prompt_lookup_num_tokens": 3}, prompts="repeating"),
    "prompt lookup, static cache": Mode({"prompt_lookup_num_tokens": 3, **STATIC}, prompts="repeating"),
    "guidance": Mode({"guidance_scale": 1.5}, greedy=False),
    "padded on the left": Mode(prompts="two"),
    "padded on the left, beams": Mode({"num_beams": BEAMS}, prompts="two", greedy=False),
    "padded on the left, static cache": Mode(STATIC, prompts="two"),
    "static cache": Mode(STATIC),
    "offloaded cache": Mode({"cache_implementation": "offloaded"}),
    "offloaded static cache": Mode({"cache_implementation": "offloaded_static"}),
    "quantized cache, quanto": Mode(
        {"cache_implementation": "quantized", "cache_config": {"backend": "quanto", "nbits": 4, "q_group_size": 8}},
        package="optimum",
    ),
    "quantized cache, hqq": Mode(
        {"cache_implementation": "quantized", "cache_config": {"backend": "hqq", "nbits": 4, "q_group_size": 8}},
        package="hqq",
    ),
    "cache of one's own": Mode(more=lambda model, case: {CACHE: DynamicCache(config=model.config.get_text_config())}),
    "no cache": Mode({"use_cache": False}),
    "going on from a cache": Mode(run=going_on),
    "going on from a cache, padded": Mode(run=going_on, prompts="two"),
    "going on from a cache, pixels again": Mode(run=functools.partial(going_on, shown_again=True)),
    "inputs_embeds": Mode(run=from_embeddings),
    "inputs_embeds and input_ids": Mode(run=functools.partial(from_embeddings, with_ids=True)),
    "inputs_embeds, static cache": Mode(STATIC, run=from_embeddings),
    "logits of all columns": Mode({"logits_to_keep": 0}),
    "logits_to_keep": Mode({"logits_to_keep": 2}),
    "prefill in chunks": Mode({"prefill_chunk_size": 16}),
    "decoding compiled, static cache": Mode(STATIC, more=compiling, copied=True, like="static cache"),
}
FAMILIES = [family for family in (*tiny.FIRST, *newer.NEWER) if newer.exists(family)]
