"""Make the prompts of encoded videos: the processor's own, less the placeholders of dropped tokens."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from vidsieve.encoded import written
from vidsieve.engines.hf import adapter_for
from vidsieve.engines.hf.arguments import unwrap_model
from vidsieve.engines.hf.intercept import Interceptions
from vidsieve.engines.hf.loading import prepare_turns
from vidsieve.engines.hf.processing import resizing_to
from vidsieve.errors import UnsupportedCall
from vidsieve.types.frames import Frames

Inputs = dict[str, Tensor]


class Prompts:
    """Makes the prompts of videos that are shown together. What comes before a question is made once.

    videos: on meta, as the processor has them all before the first question.  stays: bool (N,), which visual tokens of
    the unreduced prompt are left.  grids: rows and columns of the tokens of a frame, of each video, None where they
    form none.  size: the height and width that the processor gives their frames; None where it chooses.
    """

    def __init__(
        self, videos: Sequence[Frames], stays: Tensor, grids: written.Grids, size: tuple[int, int] | None = None
    ) -> None:
        self._videos, self._stays, self._grids, self._size = videos, stays, grids, size
        self._short = written.ends(videos)
        self._head: _Head | None = None

    def __call__(self, model: Any, processor: Any, conversations: Sequence[Sequence[str]]) -> Inputs:
        """Make `input_ids`, `attention_mask` (B, M) and `position_ids` (B, M) or (R, B, M), padded on the left.

        conversations: B, of question, answer, question, ..., question each.
        Raises `UnsupportedCall` if the processor makes another number of visual tokens of the videos than N.
        """
        model = unwrap_model(model)
        rows = [self._row(model, processor, turns) for turns in conversations]
        longest = max(row["input_ids"].shape[-1] for row in rows)
        fill = {"input_ids": _padding(model, processor)}

        def padded(name: str, row: Inputs) -> Tensor:
            return pad(row[name], (longest - row[name].shape[-1], 0), value=fill.get(name, 0))

        return {name: torch.cat([padded(name, row) for row in rows], -2).to(model.device) for name in rows[0]}

    def _row(self, model: Any, processor: Any, turns: Sequence[str]) -> Inputs:
        """Make the arguments of one prompt, (1, M) or (R, 1, M), on the CPU.

        After the first question the processor's prompt of the end of each video is asked for the words alone.
        """
        head = self._head
        if head is not None and head.of(model, processor):
            before, words = self._ends(model, processor, turns)
            if torch.equal(before, head.short):
                return head.followed_by(words)
        given = written.write(model, self._sized(processor), self._videos, self._grids, len(self._stays), turns)
        row = self._reduced(model, processor, given)
        self._head = _Head.read(model, processor, row, *self._ends(model, processor, turns))
        return row

    def _ends(self, model: Any, processor: Any, turns: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The prompt of the ends of the videos, up to the last visual token, and the words after it: int64 (S,), (W,).

        The former differs where a template has changed, or writes something else before the video.
        """
        ids: Tensor = prepare_turns(self._sized(processor), self._short, turns)["input_ids"][0]
        after = int((ids == _token(model)).nonzero()[-1]) + 1
        return ids[:after], ids[after:]

    @torch.no_grad()
    def _reduced(self, model: Any, processor: Any, given: dict[str, Any]) -> Inputs:
        """Leave out the placeholders of dropped tokens, and keep the positions that the others had."""
        ids = given.pop("input_ids")  # (1, L)
        visual, stays = (ids[0] == _token(model)).nonzero().flatten(), self._stays
        if len(visual) != len(stays):
            raise UnsupportedCall(
                f"{type(processor).__name__} makes {len(visual)} visual tokens of {_named(self._videos)}, which was "
                f"encoded as {len(stays)}; use the processor, and its settings, that it was encoded with, or encode it "
                "again"
            )
        left = torch.ones(ids.shape[1], dtype=torch.bool)
        left[visual] = stays
        mask = given.setdefault("attention_mask", torch.ones_like(ids))
        positions = _positions(model, ids, given)[..., left]
        if positions.ndim == 3 and len(positions) == 4:  # row 0 counts tokens: a gap in it would begin another sequence
            positions = torch.cat([torch.arange(positions.shape[-1]).expand_as(positions[:1]), positions[1:]])
        return {"input_ids": ids[:, left], "attention_mask": mask[:, left], "position_ids": positions}

    def _sized(self, processor: Any) -> Any:
        return processor if self._size is None else resizing_to(processor, *self._size)


@dataclass(frozen=True)
class _Head:
    """A prompt up to where the last visual token is or was, and where the positions of what follows begin.

    made_by: the processor and the class of the model.  short: what is in its place in the prompt of the ends alone.
    """

    made_by: tuple[Any, type]
    short: Tensor
    ids: Tensor
    positions: Tensor
    following: Tensor

    @classmethod
    def read(cls, model: Any, processor: Any, row: Inputs, short: Tensor, words: Tensor) -> "_Head | None":
        """Take it from a prompt that ends in `words`; None if it does not, or their positions do not count on."""
        ids, positions = row["input_ids"], row["position_ids"]
        end = ids.shape[1] - len(words)  # the last frame may have no token left
        counted = torch.arange(ids.shape[1] - end)
        following = positions[..., end : end + 1]
        same = torch.equal(ids[0, end:], words) and torch.equal(positions[..., end:], following + counted)
        made_by = weakref.ref(processor), type(model)
        return cls(made_by, short, ids[:, :end], positions[..., :end], following) if same else None

    def of(self, model: Any, processor: Any) -> bool:
        return self.made_by[0]() is processor and self.made_by[1] is type(model)

    def followed_by(self, words: Tensor) -> Inputs:
        ids = torch.cat([self.ids, words[None]], -1)
        positions = torch.cat([self.positions, self.following + torch.arange(len(words))], -1)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": positions}


def _token(model: Any) -> int:
    token: int = getattr(model.config, adapter_for(model).token)
    return token


def _positions(model: Any, ids: Tensor, given: dict[str, Any]) -> Tensor:
    """Ask the model for the positions of an unreduced prompt, (1, L) or (R, 1, L), and leave it as it was."""
    body = model.base_model
    with Interceptions() as before:
        if "rope_deltas" in body.__dict__:
            before.put(body, "rope_deltas", body.rope_deltas)
        # Of the class: the instance may be hooked, to refuse prompts without positions.
        positions: Tensor = type(model)._prepare_position_ids_for_generation(model, ids, given)
    return positions


def _padding(model: Any, processor: Any) -> int:
    """Choose the id to pad with: any will do that is no placeholder."""
    for owner in (processor.tokenizer, model.generation_config):
        for name in ("pad_token_id", "eos_token_id"):
            if isinstance(found := getattr(owner, name, None), int):
                return found
    return 0


def _named(videos: Sequence[Frames]) -> str:
    return " and ".join(frames.source or "the video" for frames in videos)
