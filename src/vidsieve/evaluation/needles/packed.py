"""All questions about a video in one forward pass, as fast as a GPU allows, through the unmodified Hugging Face model.

The video is read once. Behind it stand its questions, side by side, each at the positions it would have alone and each
seeing the video and itself: what comes out for a question is what `model(**inputs)` gives for that question alone.

What the stock forward does slowly for many small videos is handed to it ready-made: positions, window indices, and two
attention functions (registered with transformers): one for all frames at once, where the stock function is called frame
by frame, and one that uses the causal kernel for the video and a small mask for the questions.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vidsieve.engines.hf.intercept import Interceptions
from vidsieve.evaluation.needles.layout import GRID, Size
from vidsieve.evaluation.needles.questions import PLANS, TEMPLATES, WORDS
from vidsieve.evaluation.needles.tiny import MERGE

FRAMES, TAIL = "vidsieve_frames", "vidsieve_tail"  # names of the attention functions


def _attend_frames(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    scaling: float,
    patches: int,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention within each frame of `patches` patches. query, key, value: (1, heads, frames * patches, d)."""
    heads, d = query.shape[1], query.shape[3]
    query, key, value = (x.to(value.dtype).view(heads, -1, patches, d).transpose(0, 1) for x in (query, key, value))
    out = F.scaled_dot_product_attention(query, key, value, scale=scaling)  # (frames, heads, patches, d)
    return out.transpose(1, 2).reshape(1, -1, heads, d), None


def _attend_tail(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    *,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention, except that the last M queries see what the mask (1, 1, M, L) allows."""
    query, key = query.to(value.dtype), key.to(value.dtype)
    head = query.shape[2] - attention_mask.shape[2]
    first = F.scaled_dot_product_attention(
        query[:, :, :head], key[:, :, :head], value[:, :, :head], is_causal=True, scale=scaling
    )
    last = F.scaled_dot_product_attention(query[:, :, head:], key, value, attn_mask=attention_mask, scale=scaling)
    return torch.cat((first, last), dim=2).transpose(1, 2).contiguous(), None


@contextmanager
def fast(model: Any) -> Iterator[None]:
    """Attend with the two functions, and embed patches by one matrix product, for as long as the context lasts."""
    visual, language = model.model.visual, model.model.language_model
    embed = visual.patch_embed

    def product(patches: Tensor) -> Tensor:
        # The convolution's windows do not overlap; as a convolution it is many times slower on a GPU.
        return F.linear(patches.to(embed.proj.weight.dtype), embed.proj.weight.flatten(1))

    with Interceptions() as hooks:
        hooks.attention(FRAMES, _attend_frames)
        hooks.attention(TAIL, _attend_tail)
        hooks.put(visual.config, "_attn_implementation_internal", FRAMES)
        hooks.put(language.config, "_attn_implementation_internal", TAIL)
        hooks.put(embed, "forward", product)
        yield


@contextmanager
def noted(model: Any) -> Iterator[list[Tensor]]:
    """Inside `fast`: the attention that each patch receives in its frame, (frames, patches), layer after layer."""
    received: list[Tensor] = []

    def attend(module: torch.nn.Module, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        heads, d = query.shape[1], query.shape[3]
        q, k = (x.view(heads, -1, kwargs["patches"], d).transpose(0, 1).float() for x in (query, key))
        received.append(torch.softmax(kwargs["scaling"] * (q @ k.mT), dim=3).mean(dim=(1, 2)))
        return _attend_frames(module, query, key, *args, **kwargs)

    with Interceptions() as hooks:
        hooks.attention(FRAMES, attend)
        yield received


class Packed:
    """The questions of `PLAN` behind videos of one size: token ids, positions and masks, the same for all videos.

    The text of each is what the processor's chat template makes of it, followed by its answer. M tokens in all.
    """

    def __init__(self, processor: Any, size: Size, device: torch.device | str) -> None:
        tokenizer, self.size, self.device = processor.tokenizer, size, torch.device(device)
        unknown, video = tokenizer.unk_token, tokenizer.convert_tokens_to_ids("<|video_pad|>")
        hole = tokenizer.convert_tokens_to_ids(unknown)
        ids = []
        plan = PLANS[size.suite]
        for kind in plan:
            content = [{"type": "video"}, {"type": "text", "text": TEMPLATES[kind].replace("{}", unknown)}]
            text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
            ids.append(tokenizer(text)["input_ids"])
        start = ids[0].index(video)
        self.video = video
        self.before = self._there(ids[0][:start])
        self.between = self._there(ids[0][start + 1 : start + 2])  # <|vision_end|>
        questions = [[*row[start + 2 :], hole] for row in ids]  # the last hole is for the answer
        lengths = torch.tensor([len(row) for row in questions])
        flat = torch.tensor([token for row in questions for token in row])
        self.questions = self._there(flat)  # (M,)
        self.bounds = [0, *lengths.cumsum(0).tolist()]  # of each question among the M
        self.last = self._there(lengths.cumsum(0) - 2)  # (Q,), the token that predicts the answer
        # What goes into each hole, as an index into a question's first word, second word and answer, times 3.
        word = [[*range(row.count(hole) - 1), 2] for row in questions]
        self.holes = self._there((flat == hole).nonzero()[:, 0])
        self.word = self._there([3 * question + which for question, row in enumerate(word) for which in row])
        self.token = self._there(tokenizer.convert_tokens_to_ids(list(WORDS)))  # of each word
        self.end = tokenizer.eos_token_id

        # Positions as `get_rope_index` has them: after the video they go on from its larger side.
        steps, rows, columns = (torch.arange(n) for n in (size.steps, GRID, GRID))
        place = torch.stack(torch.meshgrid(steps, rows, columns, indexing="ij")).flatten(1) + start
        inside = torch.cat([torch.arange(length) for length in lengths.tolist()])
        tail = start + GRID + torch.cat((torch.zeros(1, dtype=torch.int64), 1 + inside))
        self.place = tuple(
            self._there(each).expand(3, -1)[:, None] for each in (torch.arange(start), place, tail)
        )  # (3, 1, n) each
        slot = torch.arange(len(plan)).repeat_interleave(lengths)
        self.mask = self._there((slot[:, None] == slot) & torch.ones(len(flat), len(flat), dtype=torch.bool).tril())
        side = torch.arange(MERGE * GRID)
        self.patch_place = self._there(
            torch.stack(
                [
                    each.reshape(GRID, MERGE, GRID, MERGE).transpose(1, 2).flatten()
                    for each in torch.meshgrid(side, side, indexing="ij")
                ],
                dim=1,
            )
        )  # (patches of a frame, 2)

    def _there(self, value: Any) -> Tensor:
        return torch.as_tensor(value).to(self.device)

    def _filled(self, words: Tensor, answer: Tensor) -> Tensor:
        """All questions and answers, with their words in the holes: int64 (B, M)."""
        ids = self.questions.repeat(len(words), 1)
        ids[:, self.holes] = self.token[torch.cat((words, answer[..., None]), dim=2).flatten(1)[:, self.word]]
        return ids

    def prompts(self, words: Tensor, question: int, video: int) -> Tensor:
        """One of the questions about each video, as the processor writes it: token ids, int64 (B, L).

        words: of `Questions`.  video: how many placeholders stand for the video.
        """
        begin, end = self.bounds[question : question + 2]
        ids = self._filled(words, torch.zeros_like(words[..., 0]))[:, begin : end - 1]
        head = torch.cat((self.before, self.before.new_full((video,), self.video), self.between))
        return torch.cat((head.expand(len(ids), -1), ids), dim=1)

    def features(self, model: Any, frames: Tensor) -> Tensor:
        """The visual tokens of frames uint8 (B, F, 3, H, W), by the model's own vision tower: (B, N, D)."""
        total, patches = len(frames) * self.size.steps, len(self.patch_place)
        bounds = torch.tensor([0, total * patches], dtype=torch.int32)  # all frames as one piece; read on the host
        out = model.model.visual(
            patchify(frames, self.size),
            grid_thw=torch.tensor([[total, MERGE * GRID, MERGE * GRID]]),
            position_ids=self.patch_place.repeat(total, 1),
            cu_seqlens=bounds,
            cu_window_seqlens=bounds,
            window_index=torch.arange(total * GRID * GRID, device=frames.device),
            patches=patches,
        )
        tokens: Tensor = out.pooler_output
        return tokens.view(len(frames), self.size.tokens, -1)

    def logits(
        self, model: Any, features: Tensor, words: Tensor, answer: Tensor, kept: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What the model says to each question, and what after the right answer: (B, Q, vocabulary) each.

        features: (B, N, D).  words, answer: of `Questions`.  kept: int64 (B, K), the tokens that stay, sorted.
        """
        batch, language = len(features), model.model.language_model
        before, place, tail = (each.expand(-1, batch, -1) for each in self.place)
        if kept is not None:
            features = features.gather(1, kept[..., None].expand(-1, -1, features.shape[2]))
            place = place.gather(2, kept.expand(3, -1, -1))
        ids = self._filled(words, answer)
        embed = language.embed_tokens
        start, end = (embed(each).expand(batch, -1, -1) for each in (self.before, self.between))
        embeddings = torch.cat((start, features.to(start.dtype), end, embed(ids)), dim=1)
        context = embeddings.shape[1] - len(self.questions)
        hidden = language(
            inputs_embeds=embeddings,
            position_ids=torch.cat((before, place, tail), dim=2),
            attention_mask={"full_attention": F.pad(self.mask, (context, 0), value=True)[None, None]},
            use_cache=False,
        ).last_hidden_state[:, context:]
        return model.lm_head(hidden[:, self.last]), model.lm_head(hidden[:, self.last + 1])


def patchify(frames: Tensor, size: Size) -> Tensor:
    """Frames uint8 (B, F, 3, H, W) as the video processor hands them over: float32 (B * T * patches, 6 * p * p)."""
    batch, p = len(frames), size.token // MERGE
    x = frames.view(batch, size.steps, 2, 3, GRID, MERGE, p, GRID, MERGE, p)
    x = x.permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9)  # B, T, row, column, row and column in the token, channel, frame, y, x
    return x.reshape(-1, 6 * p * p).float().mul_(2 / 255).sub_(1)
