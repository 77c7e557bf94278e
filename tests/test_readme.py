"""README: the first screen, its numbers, and its Chinese twin. What its code and links do is tested in test_docs.py."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.markdown import ROOT, blocks
from vidsieve import registry

ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"
BOTH = pytest.mark.parametrize("path", [ENGLISH, CHINESE], ids=lambda path: path.name)


def screen(path: Path) -> str:
    return "\n".join(path.read_text("utf-8").splitlines()[:48])


def results(file: str) -> Any:
    return json.loads((ROOT / "benchmarks" / "results" / file).read_text("utf-8"))


def test_both_languages_show_the_same_code() -> None:
    assert blocks(ENGLISH), "README.md shows no code"
    assert blocks(ENGLISH) == blocks(CHINESE)


@BOTH
def test_first_screen_shows_what_it_is_and_how_to_start(path: Path) -> None:
    for wanted in (r"!\[.+\]\(docs/images/natural_kept\.jpg\)", "make demo", "make test", "189", "docs/long.md"):
        assert re.search(wanted, screen(path)), wanted


@BOTH
def test_numbers_are_those_of_the_files(path: Path) -> None:
    first = {(row["model"], row["variant"]): row for row in results("first_token_h200.json")["rows"]}
    table = re.findall(r"^\|[^|]+\| (.+?) \| \**(.+?)\** \| (.+?)[:\uff1a].+\|$", screen(path), re.MULTILINE)
    expected = []
    for model, field, scale, unit in (
        ("qwen2_5_vl", "median_ms", 1, "ms"),
        ("qwen3_vl", "median_ms", 1, "ms"),
        ("qwen2_5_vl", "peak_bytes", 2**20, "MiB"),
    ):
        rows = [first[model, name] for name in ("stock, every token", "10 %, fused tower", "fused, every token")]
        expected.append(tuple(f"{row[field] / scale:,.0f} {unit}".replace(",", " ") for row in rows))
    long = {(row["method"], row["keep"]): row for row in results("seeds_h200.json")["long"]}
    rows = [long["unreduced", 1.0], long["vidsieve", 0.1], long["uniform", 0.1]]
    expected.append(tuple(f"{100 * row['accuracy']['mean']:.1f} %" for row in rows))
    whole, tenth, tower = (float(value.split(" ms")[0].replace(" ", "")) for value in expected[0])
    assert f"{whole / tower:.1f}" in screen(path)
    assert f"{tower / tenth:.1f}" in screen(path)
    assert table == expected


@BOTH
def test_every_number_of_the_second_paragraph_is_in_the_table(path: Path) -> None:
    paragraph, table = screen(path).split("\n\n")[2], screen(path).partition("\n| |")[2]
    numbers = re.findall(r"\d+(?: \d{3})*(?= *(?:ms|毫秒|MiB|\*\*))", paragraph)
    assert numbers
    assert all(number in table for number in numbers), numbers


def test_chinese_has_full_width_punctuation() -> None:
    prose = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", "", CHINESE.read_text("utf-8"), flags=re.DOTALL)
    assert not re.findall(r"[\u4e00-\u9fff][,;:!?()]|[,;!?(][\u4e00-\u9fff]", prose)


@BOTH
def test_every_method_is_named(path: Path) -> None:
    assert all(f"`{name}`" in path.read_text("utf-8") for name in registry.methods())


def test_the_site_lists_every_page_and_method() -> None:
    site = (ROOT / "mkdocs.yml").read_text("utf-8")
    assert sorted(re.findall(r"methods/(\w+)\.md", site)) == sorted(["index", *registry.methods()])
    assert {path.name for path in (ROOT / "docs").glob("*.md")} <= set(re.findall(r"\w+\.md", site))


def test_the_version_stands_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert re.search(rf"^version: {re.escape(project['version'])}$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    source = project["urls"]["Source"]
    for file in ("mkdocs.yml", "dev/site/make.py", "examples/tour.ipynb"):
        assert source in (ROOT / file).read_text("utf-8"), file


def test_python_versions_agree() -> None:
    """The classifiers, and the versions that CI runs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    named = {text.rpartition(" ")[2] for text in project["classifiers"] if re.search(r":: 3\.\d+$", text)}
    ci = (ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8")
    assert set(re.findall(r'python: "(3\.\d+)"', ci)) == named
    assert min(named, key=lambda text: int(text.split(".")[1])) == project["requires-python"].removeprefix(">=")
