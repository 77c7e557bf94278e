"""`vidsieve models` and docs/models.md say what the library does, since they are made of what it reads."""

import json
from pathlib import Path

import pytest

from vidsieve.cli import main, models
from vidsieve.engines.hf import contract, families, model_types

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def test_the_page_is_of_the_table() -> None:
    assert PAGE.read_text() == models.page(), f"python -m vidsieve.cli.models > {PAGE.relative_to(PAGE.parents[1])}"


def test_every_type_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["models", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["type"] for row in found["models"]] == list(model_types())
    assert found["refused"] == families.REFUSED
    assert all(row["tested"][-1] == contract.TESTED[-1] for row in found["models"])
    assert main.main(["models"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in (*model_types(), *families.REFUSED))
