"""Every mode of `generate`: with every token kept as without a reducer, with half of them as by hand, or refused."""

import functools
import re

import pytest
from benchmarks.generation_modes import meaning

from tests.engines.hf.generation_modes import FAMILIES, MODES, Case

QUICK = ("glm4v", "llava_onevision", "internvl")
IDENTITY = {"same", "same error", "refused", "not installed", "different in stock itself"}
REDUCED = {"by hand", "same error", "refused", "not installed", "wrong in stock"}
# Why a mode is refused: where nothing was dropped too, and only where something was.
ALWAYS = "prefill_chunk_size shows|expected input_ids, in which"
DROPPED = f"{ALWAYS}|expected moe_mm_token_type_ids of all|some layers of this static cache record their past"

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
