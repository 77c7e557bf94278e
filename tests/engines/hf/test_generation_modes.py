"""Every mode of `generate`: with every token kept as without a reducer, with half of them as by hand, or refused."""

import functools
import re
from pathlib import Path

import pytest
from benchmarks.generation_modes import RESULTS, meaning, read, table

from tests.engines.hf.generation_modes import FAMILIES, MODES, Case
from vidsieve.engines.hf import families
from vidsieve.engines.hf.contract import TESTED

QUICK = ("glm4v", "llava_onevision", "internvl")
IDENTITY = {"same", "same error", "refused", "not installed", "different in stock itself"}
REDUCED = {"by hand", "same error", "refused", "not installed", "wrong in stock"}
# Why a mode is refused: where nothing was dropped too, and only where something was.
ALWAYS = "prefill_chunk_size shows|expected input_ids, in which|transformers 5.1[4-6].* has no static cache"
DROPPED = f"{ALWAYS}|expected (moe_)?mm_token_type_ids of|some layers of this static cache record their past"

case = functools.lru_cache(1)(Case)


@pytest.mark.parametrize(
    "mode", [pytest.param(mode, marks=(pytest.mark.matrix,) if MODES[mode].copied else ()) for mode in MODES]
)
@pytest.mark.parametrize(
    "family", [pytest.param(family, marks=() if family in QUICK else (pytest.mark.matrix,)) for family in FAMILIES]
)
def test_a_mode_of_generate(family: str, mode: str) -> None:
    kept, reduced = case(family).identity(mode), case(family).reduced(mode)
    assert meaning(kept) in IDENTITY, kept
    assert meaning(reduced) in REDUCED, reduced
    for said, reasons in ((kept, ALWAYS), (reduced, DROPPED)):
        assert not said.startswith("refused") or re.match(f"refused: ({reasons})", said), said


def test_the_results_are_of_every_mode_and_in_the_documents() -> None:
    rows = read([RESULTS / f"generation_modes_{release}.json" for release in TESTED])
    found = [(row["release"], row["type"], row["mode"]) for row in rows]
    tested = {row["type"]: row["tested"] for row in families.table()}
    assert all(release in tested[of] for release, of, _ in found)
    expected = {(release, of, mode) for release, of, _ in found for mode in MODES}
    assert len(found) == len(set(found))
    assert {mode for _, _, mode in expected - set(found)} <= {"decoding compiled, static cache"}  # takes a minute each
    assert {(release, mode) for release, _, mode in found} == {(release, mode) for release, _, mode in expected}
    assert {meaning(row["identity"]) for row in rows} <= IDENTITY
    assert {meaning(row["reduced"]) for row in rows} <= REDUCED
    assert table(rows) in (Path(__file__).parents[3] / "docs/attached.md").read_text()
