"""needles: the same video from the same number, evidence where the pixels are, answers that cannot be guessed."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.evaluation.needles.small import LONG
from tests.evaluation.needles.small import SIZE as SMALL
from vidsieve import VideoTokens
from vidsieve.evaluation.needles import KINDS, PLAN, SPLITS, Questions, Size, describe, generate, recall
from vidsieve.evaluation.needles.draws import Draws
from vidsieve.evaluation.needles.glyphs import glyphs, textures
from vidsieve.evaluation.needles.layout import BALLS, CARDS, GRID, MOST, REPEATED, SHORTEST, Layout
from vidsieve.evaluation.needles.questions import WORDS
from vidsieve.evaluation.needles.render import owners, render
from vidsieve.methods import presets

SIZES = (SMALL, Size(frames=16, token=8), Size(frames=32), Size(frames=8, token=16, plain=True), LONG)


@pytest.fixture(scope="module")
def many() -> tuple[Layout, Questions]:
    """Enough videos to count answers in."""
    return describe("train", range(3000), SMALL)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_video_depends_on_its_number_alone(size: Size) -> None:
    together, alone = generate("test", range(4), size), generate("test", [2], size)
    assert together.frames.shape == (4, size.frames, 3, size.side, size.side)
    assert torch.equal(together.frames[2], alone.frames[0])
    _, questions = describe("test", [2], size)
    for name in ("words", "answer", "evidence"):
        assert torch.equal(getattr(together.questions, name)[2], getattr(alone.questions, name)[0])
        assert torch.equal(getattr(questions, name), getattr(alone.questions, name))
    assert not torch.equal(together.frames[2], together.frames[3])


def test_videos_never_change() -> None:
    """The suite is its code: a change of what number 0 shows is a new suite, and every result is void."""
    batch = generate("test", range(3))
    assert int(batch.frames.long().sum()) == 152_290_874
    assert batch.questions.text(0, 7) == "Which came first, the comb or the hourglass?"
    replies = "blue purple red 8 0 3 3 comb ladder diamond yes blue 3 right up east first"
    assert [batch.questions.reply(0, question) for question in range(len(PLAN))] == replies.split()


def test_splits_share_nothing() -> None:
    frames = [generate(split, [0], SMALL).frames for split in SPLITS]
    assert not torch.equal(frames[0], frames[1])
    tiles = torch.cat([textures(split, torch.device("cpu")) for split in SPLITS]).flatten(1)
    assert len(tiles.unique(dim=0)) == len(tiles)
    with pytest.raises(ValueError, match="split among train, dev, test"):
        generate("validation", [0])


def test_sizes_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 8 frames"):
        Size(frames=12)
    with pytest.raises(ValueError, match="multiple of 8 pixels"):
        Size(token=12)
    with pytest.raises(ValueError, match="at least 32 frames in the suite long, got 24"):
        Size(frames=24, suite="long")
    with pytest.raises(ValueError, match="a suite among needles, long, got 'hard'"):
        Size(suite="hard")


def without(layout: Layout, hide: Callable[[Layout], Layout], split: str, numbers: Tensor) -> Tensor:
    """Where the picture changes when something is not shown: bool (B, N)."""
    key = Draws(numbers, SPLITS.index(split)).key
    size = layout.size
    with_it = render(layout, owners(layout), split, key)
    other = hide(layout)
    without = render(other, owners(other), split, key)
    change = (with_it != without).view(-1, size.steps, 2, 3, GRID, size.token, GRID, size.token)
    return change.any(dim=(2, 3, 5, 7)).flatten(1)


def hide_needles(index: Tensor) -> Callable[[Layout], Layout]:
    """index: bool (B, I)."""

    def hide(layout: Layout) -> Layout:
        return replace(layout, needles=replace(layout.needles, shown=layout.needles.shown * ~index))

    return hide


@pytest.mark.parametrize("size", SIZES[1:3], ids=str)
def test_evidence_is_exactly_where_the_needle_is_drawn(size: Size) -> None:
    numbers = torch.arange(6)
    batch = generate("train", numbers, size)
    layout, questions = batch.layout, batch.questions
    items = layout.needles.step.shape[1]
    shapes = torch.arange(items) < size.unique

    def change(index: Tensor) -> Tensor:
        return without(layout, hide_needles(index), "train", numbers)

    for question, kind in enumerate(PLAN):
        evidence = questions.evidence[:, question] > 0
        asked = questions.words[:, question] - WORDS.index("ring")
        if kind in ("colour", "where", "when", "appear", "order"):
            index = (layout.needles.glyph == asked[:, :1]) & shapes
            if kind == "order":
                index |= (layout.needles.glyph == asked[:, 1:]) & shapes
        elif kind == "digit":
            card = PLAN[:question].count("digit") + size.unique + REPEATED * MOST
            index = (torch.arange(items) == card).expand(6, -1)
        elif kind == "count":
            index = (layout.needles.glyph == asked[:, :1]) & ~shapes
        else:
            continue
        assert torch.equal(change(index), evidence), kind


def test_evidence_of_what_stays_and_what_moves() -> None:
    numbers = torch.arange(12)
    batch = generate("train", numbers)
    layout, evidence = batch.layout, batch.questions.evidence > 0

    def hide_lasting(layout: Layout) -> Layout:
        scene = torch.full_like(layout.lasting[:, :1], -1)
        return replace(layout, lasting=torch.cat((scene, layout.lasting[:, 1:]), dim=1))

    def hide_balls(layout: Layout) -> Layout:
        last = layout.movers.last.clone()
        last[:, :BALLS] = -1
        return replace(layout, movers=replace(layout.movers, last=last))

    change = without(layout, hide_lasting, "train", numbers)
    lasting = evidence[:, PLAN.index("lasting")]
    assert not (change & ~lasting).any()
    assert (change & lasting).sum() > 0.9 * lasting.sum()  # a ball may pass before it
    change = without(layout, hide_balls, "train", numbers)
    direction = evidence[:, PLAN.index("direction")]
    assert not (direction & ~change).any()
    assert direction.any(1).all()


def test_scenes_are_evidence_up_to_the_one_asked_about(many: tuple[Layout, Questions]) -> None:
    layout, questions = many
    cuts, scene = questions.evidence[:, PLAN.index("cuts")], questions.evidence[:, PLAN.index("scene")]
    assert torch.equal(cuts.amax(1).long(), layout.scenes)
    which = questions.words[:, PLAN.index("scene"), 0] - WORDS.index("first")
    assert torch.equal(scene.amax(1).long(), which + 1)
    lengths = torch.stack([(layout.scene == number).sum(1) for number in range(SMALL.steps)], dim=1)
    assert (lengths[lengths > 0] >= SHORTEST).all()


def test_every_kind_but_counting_and_appearing_has_evidence(many: tuple[Layout, Questions]) -> None:
    there = (many[1].evidence > 0).any(2)
    for question, kind in enumerate(PLAN):
        if kind == "count":
            assert torch.equal(there[:, question], many[1].answer[:, question] > WORDS.index("0"))
        elif kind == "appear":
            assert torch.equal(there[:, question], many[1].answer[:, question] == WORDS.index("yes"))
        else:
            assert there[:, question].all(), kind


def test_answers_are_uniform(many: tuple[Layout, Questions]) -> None:
    """Chi-squared per degree of freedom, over the words that a kind of question admits."""
    expected = {
        "colour": 8, "lasting": 8, "digit": 10, "count": MOST + 1, "order": 12, "appear": 2, "scene": 8,
        "cuts": SMALL.steps // SHORTEST, "direction": 4, "where": 9, "when": 4,
    }  # fmt: skip
    for kind in KINDS:
        columns = [question for question, other in enumerate(PLAN) if other == kind]
        counts = torch.bincount(many[1].answer[:, columns].flatten())
        counts = counts[counts > 0].double()
        assert len(counts) == expected[kind], kind
        mean = counts.mean()
        assert ((counts - mean) ** 2 / mean).sum() / (len(counts) - 1) < 3.5, kind


def test_the_words_do_not_give_the_answer_away(many: tuple[Layout, Questions]) -> None:
    """Of two shapes, the one named first comes first in half the videos; the same for yes and no, shape by shape."""
    words, answer = many[1].words, many[1].answer
    columns = [question for question, kind in enumerate(PLAN) if kind == "order"]
    first = (words[:, columns, 0] == answer[:, columns]).double().mean()
    assert abs(first - 0.5) < 0.02
    column = PLAN.index("appear")
    for shape in words[:, column, 0].unique():
        yes = answer[words[:, column, 0] == shape, column] == WORDS.index("yes")
        assert abs(yes.double().mean() - 0.5) < 0.13


def test_needles_do_not_overlap_and_are_counted_right() -> None:
    layout, _ = describe("dev", range(64))
    needles, owner = layout.needles, owners(layout)
    for item in range(needles.step.shape[1]):
        tokens = (owner == item).flatten(1).sum(1)
        size = needles.height[:, item] * needles.width[:, item] * (needles.shown[:, item] > 0)
        assert torch.equal(tokens, size)
    unique = needles.step[:, : layout.size.unique]
    assert all(len(steps.unique()) == layout.size.unique for steps in unique)
    cards = needles.colour[:, layout.size.unique + REPEATED * MOST :][:, :CARDS]
    assert (cards[:, 0] != cards[:, 1]).all()


def test_recall_needs_one_token_of_each_group() -> None:
    evidence = torch.tensor([[[0, 1, 1, 2], [0, 0, 0, 0]]], dtype=torch.int8)
    kept = torch.tensor([[True, False, True, False]])
    found = recall(evidence, kept)
    assert found[0, 0] == 0.5
    assert found[0, 1].isnan()


def test_diversity_finds_more_evidence_than_chance() -> None:
    """On the pixels themselves, a quarter of the tokens."""
    size = Size(frames=16, token=8)
    batch = generate("dev", range(6), size)
    pixels = batch.frames.view(6, size.steps, 2, 3, GRID, 8, GRID, 8).permute(0, 1, 4, 6, 2, 3, 5, 7)
    found = []
    for method in (presets.vidsieve(0.25), presets.random(0.25)):
        kept = torch.zeros(6, size.tokens, dtype=torch.bool)
        for video in range(6):
            features = pixels[video].reshape(size.tokens, -1).float()
            tokens = VideoTokens.from_grid(features, size.steps, GRID, GRID)
            kept[video, method.reduce(tokens).kept] = True
        found.append(float(recall(batch.questions.evidence, kept).nanmean()))
    diverse, chance = found
    assert diverse > chance + 0.2


def test_glyphs_can_be_told_apart() -> None:
    """At least 6 of 64 dots differ between any two, digits 3."""
    shapes, digits = glyphs(torch.device("cpu")).flatten(1).int().split((12, 10))
    for group, least in ((shapes, 6), (digits, 3)):
        distance = (group[:, None] != group[None]).sum(2) + 64 * torch.eye(len(group), dtype=torch.int64)
        assert int(distance.min()) >= least


@pytest.mark.gpu
@pytest.mark.parametrize("size", [Size(), Size(frames=96, suite="long")], ids=str)
def test_a_gpu_draws_the_same_videos(size: Size) -> None:
    here, there = generate("test", range(8), size), generate("test", range(8), size, device="cuda")
    assert torch.equal(here.frames, there.frames.cpu())
    assert torch.equal(here.questions.answer, there.questions.answer.cpu())
    assert torch.equal(here.questions.evidence, there.questions.evidence.cpu())
