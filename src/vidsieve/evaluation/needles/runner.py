"""A model that was trained on the suite, and the ways of asking it: with all tokens, a method's few, small frames.

The frames are seen once, by the model's own vision tower, for all methods. Then:

    packed          a reducer that does not look at the question decides once a video, and all questions share a forward
                    pass (packed.py). On some videos what comes out is compared with the model to which the method is
                    attached; an answer that differs is refused.
    attached        whatever else can be attached: `with method(model):`, question by question.
    smaller frames  no reducer: the same video at a lower resolution.

However it ran, hooks on the layers of the language model count the video tokens that came there. If the last layer saw
all of them, or another number than the method says, the answers are refused: the method did nothing, or something else
than it reports.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vidsieve.engines.hf.attach import attach
from vidsieve.engines.hf.intercept import Interceptions
from vidsieve.errors import VidsieveError
from vidsieve.evaluation.needles import Batch
from vidsieve.evaluation.needles.layout import GRID, Size
from vidsieve.evaluation.needles.packed import Packed, fast, noted, patchify
from vidsieve.evaluation.needles.questions import PLANS, WORDS, Questions
from vidsieve.methods.base import Reducer, kept_count
from vidsieve.methods.compose import Pixels, Staged
from vidsieve.methods.pixels import PixelSelector
from vidsieve.types.reduction import Reduction
from vidsieve.types.statistics import TokenStatistics
from vidsieve.types.tokens import Prompt, VideoTokens

SAME = 1e-2  # how far a log-probability of the packed pass may be from that of the attached model,
LIKELY = 1e-3  # where the probability is at least this: those below are mostly rounding


@dataclass(frozen=True, eq=False, repr=False)
class TowerAttention:
    """The attention that each token received in the last layer of the vision tower, of the videos that were encoded.

    For methods whose papers want it, as a `Relevance`.  features: (B, N, D), by which a video is known.
    received: (B, N).
    """

    features: Tensor
    received: Tensor

    def __call__(self, tokens: VideoTokens, stats: TokenStatistics, prompt: Prompt | None) -> Tensor:
        same = (self.features == tokens.features).flatten(1).all(1).nonzero()[:, 0]
        if not len(same):
            raise ValueError("these are not the tokens of a video that was shown to the suite's vision tower")
        return self.received[same[0]]

    def __repr__(self) -> str:
        return "TowerAttention()"


class Refused(VidsieveError, RuntimeError):
    """A row that would report something else than its method."""


@dataclass(frozen=True)
class Smaller:
    """The video at a lower resolution, with at least as many tokens as `keep` pays for: the floor is not handicapped.

    No reducer: the vision tower sees the small frames, and the language model all that comes of them.
    """

    keep: float

    def grid(self, size: Size) -> tuple[int, int]:
        """Rows and columns of tokens of a frame: the fewest that are enough, nearly square."""
        wanted = kept_count(self.keep, size.tokens) / size.steps
        grids = [(rows, columns) for rows in range(1, GRID + 1) for columns in (rows, rows + 1)]
        return min((grid for grid in grids if math.prod(grid) >= wanted), key=math.prod)


@dataclass(frozen=True, eq=False)
class EncodedBatch:
    """B videos as the language model is shown them: visual tokens (B, N, D), and what is asked about them.

    received: the attention of the vision tower, (B, N).
    """

    batch: Batch
    features: Tensor
    received: Tensor

    @property
    def questions(self) -> Questions:
        return self.batch.questions


@dataclass(frozen=True, eq=False)
class Answers:
    """To Q questions about B videos.

    log_probs: log-probabilities (B, Q, vocabulary).  kept: bool (B, Q, N) or None where it makes no sense.
    tokens: kept of each video and question (B, Q).  layers: video tokens that each layer saw at most.
    """

    log_probs: Tensor
    kept: Tensor | None
    tokens: Tensor
    layers: tuple[int, ...]
    path: str
    checked: dict[str, Any] | None = None
    reducer: str = ""


class Suite:
    """A model, and the ways of asking it."""

    def __init__(self, processor: Any, model: Any, size: Size = Size()) -> None:
        """size: of the videos; how large a token is, the model says."""
        tokenizer = processor.tokenizer
        ids = tokenizer.convert_tokens_to_ids(list(WORDS))
        unknown = [word for word, number in zip(WORDS, ids, strict=True) if number in (None, tokenizer.unk_token_id)]
        if unknown or model.config.model_type != "qwen2_5_vl":
            what = f"it knows no word {unknown[0]!r}" if unknown else f"it is a {model.config.model_type}"
            raise VidsieveError(
                f"this model cannot answer the synthetic needle suite: {what}. Expected a checkpoint that "
                "`python -m benchmarks.train_tiny` made; for other models and real benchmarks see docs/reproduce.md"
            )
        video = processor.video_processor
        self.processor, self.model, self.device = processor, model, model.device
        self.size = replace(size, token=video.patch_size * video.merge_size)
        self.plan = PLANS[size.suite]
        self.packed = Packed(processor, self.size, self.device)
        self.step = torch.ones(1, device=self.device)  # seconds a step lasts, as the processor says
        self.merge: int = video.merge_size

    def show(self, batch: Batch) -> EncodedBatch:
        with fast(self.model), noted(self.model) as received:
            features = self.packed.features(self.model, batch.frames)
        patches = received[-1].view(*features.shape[:2], self.merge**2)  # those of a token follow one another
        return EncodedBatch(batch, features, patches.mean(2))

    def unreduced(self, encoded: EncodedBatch) -> Answers:
        every = torch.ones_like(encoded.features[:, :1, 0], dtype=torch.bool).expand(-1, len(self.plan))
        log_probs, layers = self._pass(encoded, encoded.features, None)
        kept = every[..., None].expand(-1, -1, self.size.tokens)
        return Answers(log_probs, kept, every * self.size.tokens, layers, "packed")

    def answer(self, method: Any, encoded: EncodedBatch, check: int = 0) -> Answers:
        """All questions, by `method`; where they are packed, those about the first `check` videos are compared.

        Raises `Refused` where the method did not engage, or not as it says.
        """
        if isinstance(method, Smaller):
            return self._smaller(method, encoded)
        if isinstance(method, Staged) and method.pixels is not None:
            found = self.answer(method.after_pixels, self._computed(method.pixels, encoded), check)
            return replace(found, reducer=repr(method))
        method = self._equipped(method, encoded)
        if isinstance(method, Reducer) and not self._reads_the_question(method, encoded):
            found = self._reduced(method, encoded)
            if check:
                few = slice(0, check)
                attached = self._attached(method, _some(encoded, few))
                apart = difference(attached.log_probs, found.log_probs[few])
                if apart > SAME:
                    raise Refused(f"packed and attached answers differ by {apart:.1e} in a log-probability")
                found = replace(found, checked={"videos": len(attached.log_probs), "difference": apart})
        else:
            found = self._attached(method, encoded)
        seen, most = found.layers[-1], int(found.tokens.max())
        if seen >= self.size.tokens:
            raise Refused(f"the last layer saw all {seen} video tokens of {self.size.tokens}: nothing was reduced")
        if seen != most:
            raise Refused(f"the method says it kept {most} video tokens, and the last layer saw {seen}")
        return replace(found, reducer=repr(method))

    def _computed(self, pixels: PixelSelector, encoded: EncodedBatch) -> EncodedBatch:
        """What the tower makes of the same videos where `pixels` chooses what it computes."""
        frames = encoded.batch.frames
        sides = (self.size.steps, *(self.merge * side for side in (GRID, GRID)))
        grid = torch.tensor([sides], device=self.device).expand(len(frames), -1)
        with attach(self.model, Staged({Pixels(): pixels})):
            found = self.model.model.get_video_features(patchify(frames, self.size), grid)
        return replace(encoded, features=torch.stack(list(found.pooler_output)))

    def _equipped(self, method: Any, encoded: EncodedBatch) -> Any:
        """The method with what its paper takes from the vision tower, where it can use it."""
        if not hasattr(method, "attention"):
            return method
        return replace(method, attention=TowerAttention(encoded.features, encoded.received))

    def _reads_the_question(self, method: Reducer, encoded: EncodedBatch) -> bool:
        probe = _Probe(encoded.features[0, :1])
        method.reduce(self._tokens(encoded.features[0]), probe)
        return probe.read

    def _tokens(self, features: Tensor) -> VideoTokens:
        return VideoTokens.from_grid(features, self.size.steps, GRID, GRID)

    def _reduced(self, method: Reducer, encoded: EncodedBatch) -> Answers:
        """One reduction a video, all questions behind it."""
        features = encoded.features.clone()
        reductions = method.reduce_each([self._tokens(video) for video in features])  # as an attached model does
        for video, reduction in zip(features, reductions, strict=True):
            reduction.check()
            video[reduction.kept] = reduction.apply(video)  # what was merged stands where it was kept
        counts = torch.tensor([len(reduction) for reduction in reductions], device=self.device)
        parts, where = [], []  # log-probabilities of the videos that kept as many tokens, and which those are
        layers: tuple[int, ...] = ()
        for count in sorted({len(reduction) for reduction in reductions}):
            rows = (counts == count).nonzero()[:, 0]
            kept = torch.stack([reductions[row].kept for row in rows.tolist()])
            some, seen = self._pass(_some(encoded, rows), features[rows], kept)
            parts.append(some)
            where.append(rows)
            layers = larger(layers, seen)
        log_probs = torch.cat(parts)[torch.cat(where).argsort()]
        mask = _masks(reductions, self.size.tokens)[:, None].expand(-1, len(self.plan), -1)
        return Answers(log_probs, mask, counts[:, None].expand(-1, len(self.plan)), layers, "packed")

    def _pass(self, encoded: EncodedBatch, features: Tensor, kept: Tensor | None) -> tuple[Tensor, tuple[int, ...]]:
        """Log-probabilities (B, Q, vocabulary) of one packed forward, and the video tokens in each layer."""
        packed, asked = self.packed, encoded.questions
        with fast(self.model), self._watch() as seen:
            log_probs, _ = packed.logits(self.model, features, asked.words, asked.answer, kept)
        text = len(packed.before) + len(packed.between) + len(packed.questions)
        return log_probs.float().log_softmax(2), tuple(length - text for length in seen)

    def _attached(self, method: Any, encoded: EncodedBatch) -> Answers:
        """Question by question, through the model to which `method` is attached."""
        log_probs, kept = [], []
        layers: tuple[int, ...] = ()
        for question in range(len(self.plan)):
            with method(self.model) as trace:
                some, seen = self._ask(encoded, question, encoded.features, (GRID, GRID))
            log_probs.append(some)
            videos = sorted(trace.calls[-1].videos, key=lambda video: video.row) if trace.calls else []
            if len(videos) != len(some):
                raise Refused(f"of {len(some)} videos the method was shown {len(videos)}: it did not engage")
            kept.append(_masks([video.reduction for video in videos], self.size.tokens))
            layers = larger(layers, seen)
        mask = torch.stack(kept, dim=1)
        return Answers(torch.stack(log_probs, 1), mask, mask.sum(2), layers, "attached")

    def _smaller(self, method: Smaller, encoded: EncodedBatch) -> Answers:
        grid = method.grid(self.size)
        features = self._look(encoded.batch.frames, grid)
        asked = [self._ask(encoded, question, features, grid) for question in range(len(self.plan))]
        log_probs = torch.stack([log_probs for log_probs, _ in asked], dim=1)
        tokens = torch.full(log_probs.shape[:2], features.shape[1], device=self.device)
        return Answers(log_probs, None, tokens, asked[0][1], "smaller frames", reducer=f"{grid[0]} x {grid[1]} tokens")

    def _look(self, frames: Tensor, grid: tuple[int, int]) -> Tensor:
        """Visual tokens (B, n, D) of frames (B, F, 3, H, W) that are resized to `grid` tokens: the stock forward."""
        batch = len(frames)
        small = F.interpolate(
            frames.flatten(0, 1).float(), [side * self.size.token for side in grid], mode="bilinear", antialias=True
        )
        small = small.round().clamp(0, 255).to(torch.uint8).view(batch, -1, *small.shape[1:]).cpu()
        inputs = self.processor.video_processor(
            videos=list(small), do_resize=False, do_sample_frames=False, return_tensors="pt"
        ).to(self.device)
        found = self.model.model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"])
        return torch.stack(list(found.pooler_output))

    def _ask(
        self, encoded: EncodedBatch, question: int, features: Tensor, grid: tuple[int, int]
    ) -> tuple[Tensor, tuple[int, ...]]:
        """Log-probabilities (B, vocabulary) of the model's own forward, given what its vision tower saw."""
        ids = self.packed.prompts(encoded.questions.words, question, features.shape[1])
        sides = (self.size.steps, *(self.merge * side for side in grid))
        with self._watch() as seen, self._seen_before(features):
            out = self.model(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                mm_token_type_ids=2 * (ids == self.packed.video),
                pixel_values_videos=features.new_zeros(0),
                video_grid_thw=torch.tensor([sides], device=self.device).expand(len(ids), -1),
                second_per_grid_ts=self.step.expand(len(ids)),
                use_cache=False,
                logits_to_keep=1,
            )
        text = ids.shape[1] - features.shape[1]
        return out.logits[:, -1].float().log_softmax(1), tuple(length - text for length in seen)

    @contextmanager
    def _seen_before(self, features: Tensor) -> Iterator[None]:
        """The vision tower answers with these tokens (B, n, D), without looking again."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        def features_seen(*args: Any, **kwargs: Any) -> Any:
            return BaseModelOutputWithPooling(pooler_output=features.flatten(0, 1))

        with Interceptions() as hooks:
            hooks.put(self.model.model.visual, "forward", features_seen)
            yield

    @contextmanager
    def _watch(self) -> Iterator[list[int]]:
        """The longest sequence that each layer of the language model was given."""
        layers = self.model.model.language_model.layers
        seen = [0] * len(layers)

        def look(which: int) -> Callable[..., None]:
            def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                hidden = args[0] if args else kwargs["hidden_states"]
                seen[which] = max(seen[which], hidden.shape[1])

            return hook

        with Interceptions() as hooks:
            for which, layer in enumerate(layers):
                hooks.before(layer, look(which))
            yield seen

    def cost(self, method: Any, encoded: EncodedBatch, turns: int) -> dict[str, float | int | None]:
        """Of one prompt with one video, from visual tokens to logits: medians of milliseconds, and bytes on a GPU."""
        if isinstance(method, Staged) and method.pixels is not None:  # from visual tokens on, whichever were computed
            return self.cost(method.after_pixels, encoded, turns)
        grid, features = (GRID, GRID), encoded.features
        if isinstance(method, Smaller):
            grid = method.grid(self.size)
            features = self._look(encoded.batch.frames[:turns], grid)
            method = None
        method = self._equipped(method, encoded)
        cuda = self.device.type == "cuda"
        prefill, selection, peak = [], [], None
        for turn in range(-2, min(turns, len(features))):  # the first two are warm-up
            one = slice(max(turn, 0), max(turn, 0) + 1)
            some = _some(encoded, one)
            if cuda:
                torch.cuda.synchronize(self.device)
                torch.cuda.reset_peak_memory_stats(self.device)
                held = torch.cuda.memory_allocated(self.device)
            with nullcontext() if method is None else method(self.model) as trace:
                start = time.perf_counter()
                self._ask(some, 0, features[one], grid)
                if cuda:
                    torch.cuda.synchronize(self.device)
                spent = 1e3 * (time.perf_counter() - start)
            if turn >= 0:
                prefill.append(spent)
                selection.append(0.0 if trace is None else sum(trace.stages_ms.values()))
                if cuda:
                    peak = max(peak or 0, torch.cuda.max_memory_allocated(self.device) - held)
        return {
            "prefill_ms": round(statistics.median(prefill), 3),
            "selection_ms": round(statistics.median(selection), 3),
            "peak_bytes": peak,
        }


class _Probe(Prompt):
    """A prompt that notes whether anybody looked at it."""

    def __init__(self, embeddings: Tensor) -> None:
        super().__init__(embeddings)
        object.__setattr__(self, "read", False)

    read: bool

    def __getattribute__(self, name: str) -> Any:
        if name == "embeddings":
            object.__setattr__(self, "read", True)
        return super().__getattribute__(name)


def larger(some: tuple[int, ...], others: tuple[int, ...]) -> tuple[int, ...]:
    """The larger of two counts of each layer; () is less than any."""
    return tuple(map(max, some, others)) if some else others


def difference(log_probs: Tensor, other: Tensor) -> float:
    """The largest between two tensors of log-probabilities, where one of the two is likely."""
    likely = torch.maximum(log_probs, other) >= math.log(LIKELY)
    return float((log_probs - other).abs()[likely].max())


def _masks(reductions: Sequence[Reduction], tokens: int) -> Tensor:
    """What was kept of each video: bool (B, N)."""
    kept = torch.zeros(len(reductions), tokens, dtype=torch.bool, device=reductions[0].kept.device)
    for row, reduction in zip(kept, reductions, strict=True):
        row[reduction.kept] = True
    return kept


def _some(encoded: EncodedBatch, rows: slice | Tensor) -> EncodedBatch:
    asked = encoded.questions
    questions = replace(asked, words=asked.words[rows], answer=asked.answer[rows], evidence=asked.evidence[rows])
    batch = Batch(encoded.batch.frames[rows], questions, encoded.batch.layout)
    return EncodedBatch(batch, encoded.features[rows], encoded.received[rows])
