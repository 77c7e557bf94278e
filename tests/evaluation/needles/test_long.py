"""needles, the suite `long`: what lasts, what it is asked about, and that each answer can be had from its evidence."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.evaluation.needles.small import LONG as SMALL
from tests.evaluation.needles.test_suite import hide_needles, without
from vidsieve import VideoTokens
from vidsieve.evaluation import needles
from vidsieve.evaluation.needles import CHANCES, PLANS, Questions, Size, describe, generate, recall
from vidsieve.evaluation.needles.glyphs import DIGIT, SHAPES
from vidsieve.evaluation.needles.layout import BALLS, CARDS, GRID, MOST, Layout
from vidsieve.evaluation.needles.long_layout import BRIEF, CARD, COPIES, CROWD, LASTING, MEDIUM, SHOTS, SIGN, THROUGHOUT
from vidsieve.evaluation.needles.questions import WORDS
from vidsieve.evaluation.needles.render import owners
from vidsieve.methods.segment import Within

PLAN = PLANS["long"]
KINDS = tuple(CHANCES["long"])


@pytest.fixture(scope="module")
def many() -> tuple[Layout, Questions]:
    """Enough videos to count answers in."""
    return describe("train", range(2000), SMALL)


@pytest.fixture(scope="module")
def full() -> tuple[Layout, Questions]:
    """As they are evaluated."""
    return describe("dev", range(64), needles.LONG)


def _columns(kind: str) -> list[int]:
    return [question for question, other in enumerate(PLAN) if other == kind]


def _shown(layout: Layout, shape: Tensor) -> Tensor:
    """Where a shape is seen, an index into SHAPES for each video: bool (B, T, GRID, GRID)."""
    owner = owners(layout)
    glyph = torch.nn.functional.pad(layout.needles.glyph, (0, 2), value=-1)  # flicker and background show none
    thing = owner.flatten(1) % glyph.shape[1]
    return glyph.gather(1, thing).view_as(owner) == shape[:, None, None, None]


def test_videos_never_change() -> None:
    batch = generate("test", range(2), needles.LONG)
    assert int(batch.frames.long().sum()) == 365_220_899
    assert batch.questions.text(0, 9) == "In how many scenes is the bolt shown?"
    replies = "red blue blue yellow green yellow 5 2 2 1 moon moon no yellow cyan 6 left down south first"
    assert [batch.questions.reply(0, question) for question in range(len(PLAN))] == replies.split()


def test_the_suites_share_no_video() -> None:
    size = replace(SMALL, suite="needles")
    some, others = (describe("test", range(20), each)[0].scene_colour for each in (size, SMALL))
    assert (some != others).any(1).sum() > 15


def test_a_video_is_several_segments_of_the_default() -> None:
    features = torch.zeros(needles.LONG.tokens, 1)
    assert len(Within()(VideoTokens.from_grid(features, needles.LONG.steps, GRID, GRID))) > 1


def test_shots_are_of_very_unequal_lengths(full: tuple[Layout, Questions], many: tuple[Layout, Questions]) -> None:
    for layout in (full[0], many[0]):
        lengths = torch.stack([(layout.scene == number).sum(1) for number in range(6)], dim=1)
        assert torch.equal((lengths > 0).sum(1), layout.scenes)
        assert (layout.scene.diff(dim=1) >= 0).all()
        longest, shortest = lengths.amax(1), lengths.masked_fill(lengths == 0, 99).amin(1)
        assert (longest >= 4 * shortest).float().mean() > 0.5
        assert set(layout.scenes.tolist()) == {3, 4, 5, 6}


def test_needles_last_from_a_step_to_the_whole_video(full: tuple[Layout, Questions]) -> None:
    layout, _ = full
    steps = layout.needles.steps
    shot = layout.scene.gather(1, layout.needles.step[:, [LASTING, SIGN]])  # (B, 2)
    whole = (layout.scene[:, None] == shot[..., None]).sum(2)
    assert torch.equal(steps[:, [LASTING, SIGN]], whole)
    assert whole.float().mean() > layout.size.steps / 4
    assert (steps[:, THROUGHOUT] == layout.size.steps).all()
    assert (steps[:, [BRIEF, BRIEF + 1, CARD]] == 1).all()
    some = steps[:, [MEDIUM, MEDIUM + 1]]
    assert set(range(1, 13)) >= set(some.flatten().tolist()) > {2, 6, 10}


def test_every_needle_has_a_place_of_its_own(full: tuple[Layout, Questions], many: tuple[Layout, Questions]) -> None:
    for layout, _ in (full, many):
        shown, owner = layout.needles.shown > 0, owners(layout).flatten(1)
        always = [*range(COPIES), SHOTS, SIGN, CARD]
        assert shown[:, always].all()
        assert torch.equal(shown[:, COPIES : COPIES + MOST].sum(1), layout.copies[:, 0])
        for item in range(shown.shape[1]):
            size = layout.needles.height[:, item] * layout.needles.width[:, item] * layout.needles.steps[:, item]
            assert torch.equal((owner == item).sum(1), size * shown[:, item]), item


@pytest.mark.parametrize("size", [SMALL, Size(frames=48, token=8, suite="long")], ids=str)
def test_evidence_is_exactly_where_the_needle_is_drawn(size: Size) -> None:
    numbers = torch.arange(3)
    batch = generate("train", numbers, size)
    layout, questions = batch.layout, batch.questions
    items = torch.arange(layout.needles.step.shape[1])
    for question, kind in enumerate(PLAN):
        evidence = questions.evidence[:, question] > 0
        if kind in ("digit", "sign"):
            index = (items == (CARD if kind == "digit" else SIGN)).expand(len(numbers), -1)
        elif kind in ("scene", "cuts", "direction"):
            continue
        else:
            asked = questions.words[:, question] - WORDS.index(SHAPES[0])
            index = layout.needles.glyph == asked[:, :1]
            if kind == "order":
                index |= layout.needles.glyph == asked[:, 1:]
        assert torch.equal(without(layout, hide_needles(index), "train", numbers), evidence), kind


def test_evidence_of_what_moves() -> None:
    numbers = torch.arange(4)
    batch = generate("train", numbers, Size(frames=48, suite="long"))
    movers = batch.layout.movers
    last = movers.last.clone()
    last[:, :BALLS] = -1
    gone = replace(batch.layout, movers=replace(movers, last=last))
    change = without(batch.layout, lambda layout: gone, "train", numbers)
    for question in _columns("direction"):
        evidence = batch.questions.evidence[:, question] > 0
        assert not (evidence & ~change).any()


def test_a_group_is_one_part_of_a_needle_at_all_its_steps(full: tuple[Layout, Questions]) -> None:
    layout, questions = full
    for kind, item in (("lasting", LASTING), ("throughout", THROUGHOUT), ("sign", SIGN), ("where", LASTING)):
        evidence = questions.evidence[:, _columns(kind)[0]].unflatten(1, (-1, GRID * GRID))  # (B, T, tokens)
        sizes = torch.stack([(evidence == group).sum((1, 2)) for group in range(1, 5)], dim=1)
        parts = layout.needles.height[:, item] * layout.needles.width[:, item]
        assert torch.equal((sizes > 0).sum(1), parts), kind
        assert ((sizes == 0) | (sizes == layout.needles.steps[:, item, None])).all(), kind
        for group in range(1, 5):  # always in the same place
            assert ((evidence == group).any(1).sum(1) <= 1).all(), kind
    one_step = torch.zeros_like(layout.scene, dtype=torch.bool)
    one_step[:, 10] = True
    kept = one_step.repeat_interleave(GRID * GRID, dim=1)
    assert (recall(questions.evidence, kept)[:, _columns("throughout")[0]] == 1).all()


def test_answers_follow_from_what_is_seen(many: tuple[Layout, Questions]) -> None:
    """From where each shape is seen, without the numbers that the layout was made from."""
    layout, questions = many
    size, scene = layout.size, layout.scene

    def asked(kind: str, which: int = 0) -> tuple[Tensor, Tensor]:
        """Where the shape in the question is seen, (B, T, GRID, GRID), and the answer (B,)."""
        question = _columns(kind)[which]
        return _shown(layout, questions.words[:, question, 0] - WORDS.index(SHAPES[0])), questions.answer[:, question]

    seen, answer = asked("count")
    during = seen.flatten(2).any(2).int()
    begins = (torch.nn.functional.pad(during, (1, 0)).diff(dim=1) > 0).sum(1)  # any two are apart
    assert torch.equal(begins, answer - WORDS.index("0"))

    seen, answer = asked("across")
    during = seen.flatten(2).any(2)
    shots = torch.stack([(during & (scene == number)).any(1) for number in range(6)], dim=1).sum(1)
    assert torch.equal(shots, answer - WORDS.index("0"))
    assert not (_shown(layout, torch.full_like(layout.scenes, SHAPES.index("square"))) & seen).any()

    for which in range(2):
        question = _columns("order")[which]
        times, shots_of = [], []
        for word in range(2):
            there = _shown(layout, questions.words[:, question, word] - WORDS.index(SHAPES[0])).flatten(2).any(2)
            times.append(there.int().argmax(1))
            shots_of.append(scene.gather(1, times[-1][:, None])[:, 0])
        assert (shots_of[0] != shots_of[1]).all()
        earlier = (times[1] < times[0]).long()[:, None]
        assert torch.equal(questions.words[:, question].gather(1, earlier)[:, 0], questions.answer[:, question])

    seen, answer = asked("where")
    row, column = seen.any(1).any(2).int().argmax(1) // 2, seen.any(1).any(1).int().argmax(1) // 2
    assert torch.equal(row * 3 + column, answer - WORDS.index("northwest"))
    seen, answer = asked("when")
    assert torch.equal(seen.flatten(2).any(2).int().argmax(1) * 4 // size.steps, answer - WORDS.index("first"))
    seen, answer = asked("appear")
    assert torch.equal(seen.flatten(1).any(1), answer == WORDS.index("yes"))
    cuts = (scene.diff(dim=1) > 0).sum(1) + 1
    assert torch.equal(cuts, questions.answer[:, _columns("cuts")[0]] - WORDS.index("0"))


def test_only_what_is_not_shown_has_no_evidence(many: tuple[Layout, Questions]) -> None:
    there = (many[1].evidence > 0).any(2)
    for question, kind in enumerate(PLAN):
        answer = many[1].answer[:, question]
        shown = {"count": answer > WORDS.index("0"), "appear": answer == WORDS.index("yes")}
        assert torch.equal(there[:, question], shown.get(kind, torch.ones_like(there[:, 0]))), kind


def test_the_static_evidence_is_not_what_moves(full: tuple[Layout, Questions]) -> None:
    """Beside the lasting shape something moves in every video, and no ball passes over it."""
    layout, questions = full
    shot = layout.scene.gather(1, layout.needles.step[:, LASTING, None])
    begin = 2 * (layout.scene == shot).int().argmax(1)
    beside = (layout.movers.first[:, BALLS:] == begin[:, None]) & (layout.movers.last[:, BALLS:] > 0)
    assert (beside.sum(1) >= 3).all()
    for still in ("lasting", "throughout", "sign"):
        for question in _columns("direction"):
            both = questions.evidence[:, _columns(still)[0]] * questions.evidence[:, question]
            assert not both.any()


def test_answers_are_uniform(many: tuple[Layout, Questions]) -> None:
    """Chi-squared per degree of freedom, over the words that a kind of question admits."""
    for kind in KINDS:
        counts = torch.bincount(many[1].answer[:, _columns(kind)].flatten())
        counts = counts[counts > 0].double()
        assert len(counts) == (len(SHAPES) if kind == "order" else round(1 / CHANCES["long"][kind])), kind
        mean = counts.mean()
        assert ((counts - mean) ** 2 / mean).sum() / (len(counts) - 1) < 3.5, kind


def test_the_words_do_not_give_the_answer_away(many: tuple[Layout, Questions]) -> None:
    words, answer = many[1].words, many[1].answer
    columns = _columns("order")
    first = (words[:, columns, 0] == answer[:, columns]).double().mean()
    assert abs(first - 0.5) < 0.03
    column = _columns("appear")[0]
    for shape in words[:, column, 0].unique():
        yes = answer[words[:, column, 0] == shape, column] == WORDS.index("yes")
        assert abs(yes.double().mean() - 0.5) < 0.15


def test_the_crowd_is_in_busy_shots_and_in_colours_of_its_own(full: tuple[Layout, Questions]) -> None:
    layout, _ = full
    needles_, cards = layout.needles, slice(SIGN, SIGN + CARDS)
    assert SIGN + 1 == CARD
    colour, there = needles_.colour, needles_.shown > 0
    assert (colour[:, SIGN] != colour[:, CARD]).all()
    crowd = slice(cards.stop, cards.stop + CROWD * layout.size.steps // 2)
    assert (needles_.glyph[:, crowd] >= DIGIT).all()
    assert (colour[:, crowd, None] != colour[:, None, cards]).all()
    shot = layout.scene.gather(1, needles_.step[:, crowd])
    crowded = torch.zeros(len(shot), 6, dtype=torch.int64).scatter_add_(1, shot, there[:, crowd].long())
    here = torch.stack([(layout.scene == number).any(1) for number in range(6)], dim=1)
    assert 0.3 < (crowded[here] > 0).double().mean() < 0.7  # half of the shots
    assert (crowded.sum(1) == crowd.stop - crowd.start).double().mean() > 0.7
