"""What is kept, merged and where it stands is what it was: tests/golden.py says what of, and how the file is made."""

import json

import pytest
import torch

from tests import golden
from tests.engines.hf import tiny

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def known() -> dict[str, str]:
    return json.loads(golden.FILE.read_text())  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDSIEVE_OPS", "eager")


def test_the_file_is_of_all_there_is(known: dict[str, str]) -> None:
    beginnings = {" | ".join(name.split(" | ")[:2]) for name in known}
    reducers = {f"{name} | {video}" for name in golden.REDUCERS for video in (*golden.VIDEOS, *golden.MORE_VIDEOS)}
    reducers -= {f"{name} | {video}" for name in golden.REDUCERS for video in golden.BY_MACHINE}
    assert beginnings == reducers | {f"{family} | {name}" for family in tiny.FIRST for name in golden.ATTACHED}


@pytest.mark.parametrize("name", golden.REDUCERS)
def test_a_reducer_keeps_what_it_kept(known: dict[str, str], name: str) -> None:
    found = golden.digests(golden.of_reducer(name, CPU))
    assert found == {key: known[key] for key in found}


@pytest.mark.parametrize("name", golden.ATTACHED)
@pytest.mark.parametrize("family", tiny.FIRST)
def test_a_model_sees_what_it_saw(known: dict[str, str], family: str, name: str) -> None:
    found = golden.digests(golden.of_model(family, name, CPU))
    assert found == {key: known[key] for key in found}


def test_a_bit_that_differs_is_found() -> None:
    a = {"x": torch.zeros(3), "y": torch.arange(4)}
    assert golden.compare(a, dict(a)) == []
    assert golden.compare(a, {"x": -torch.zeros(3), "y": torch.arange(4)}) == ["x"]
    assert golden.compare(a, {"x": torch.zeros(3)}) == ["y"]
