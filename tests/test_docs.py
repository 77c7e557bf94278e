"""What README and docs promise: their blocks run, and their links, anchors and pictures are there.

Blocks of a page run one after another, after those of docs/index.md that load the demo's model, in a folder in which
`vidsieve demo` has left its files and in which the names that pages use (lecture.mp4, Qwen/Qwen2.5-VL-7B-Instruct) are
the demo's clip and model. A block that cannot run here says why in a comment before it: <!-- needs: ray, a GPU -->.
"""

import ast
import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.markdown import ROOT, Block, anchors, blocks, commands, links, pages
from vidsieve import registry
from vidsieve.cli import demo, main
from vidsieve.cli.parser import parser
from vidsieve.engines.hf import families

CHINESE, START = ROOT / "README.zh-CN.md", ROOT / "docs" / "index.md"
# What no test has, beside modules that are not installed.
LACKING = {"a GPU", "a camera", "weights of the Hub", "files of your own", "minutes"}
# Pages whose commands run; those of others parse.
FOLLOWED = (START, ROOT / "docs" / "choose.md", ROOT / "docs" / "long.md")
OTHERS = {"make", "pip", "python", "source", "export", "vllm", "accelerate", "for", "done"}
RUNNING = [page for page in pages() if page != CHINESE and blocks(page, "python")]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def lacks(block: Block) -> bool:
    return any(need in LACKING or importlib.util.find_spec(need) is None for need in block.needs)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the demo has left its files, under the names of the pages too."""
    clip = demo.render_clip(tmp_path / "lecture.mp4")
    (tmp_path / "out" / "demo").mkdir(parents=True)
    (tmp_path / "out" / "demo" / "clip.mp4").symlink_to(clip)
    model = demo.copy_model(tmp_path / "Qwen" / "Qwen2.5-VL-7B-Instruct")
    (tmp_path / "out" / "demo" / "model").symlink_to(model)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "REGISTERED", dict(registry.REGISTERED))
    monkeypatch.setattr(families, "_ADAPTERS", dict(families._ADAPTERS))
    return tmp_path


@pytest.fixture
def begun(workplace: Path) -> dict[str, Any]:
    """What the first block of docs/index.md leaves: processor, model, frames, inputs."""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(blocks(START, "python")[0].code.partition("\nwith ")[0], names)
    return names


def promised(code: str) -> Iterator[str]:
    """What a comment behind a `print` says that it prints: one that begins with a number."""
    for said in re.findall(r"^ *print\(.+\)  # (\d.*)$", code, re.MULTILINE):
        yield said.partition(";")[0]


@pytest.mark.parametrize("page", RUNNING, ids=name)
def test_python_blocks_run(page: Path, begun: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    for block in blocks(page, "python"):
        code = block.code.replace('.to("cuda")', '.to("cpu")')
        compiled = compile(code, str(page), "exec")
        if lacks(block):
            continue
        exec(compiled, begun)
        printed = capsys.readouterr().out
        for said in promised(code):
            assert re.search(".*".join(map(re.escape, said.split("..."))), printed), f"not printed: {said}\n{printed}"


@pytest.mark.parametrize("page", [page for page in pages() if blocks(page, "python")], ids=name)
def test_python_blocks_import_what_is_there(page: Path) -> None:
    """Also of those that do not run here."""
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block.code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vidsieve"):
                module = importlib.import_module(node.module or "")
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


@pytest.mark.parametrize("page", pages(), ids=name)
def test_commands_are_there(page: Path) -> None:
    """Every `vidsieve` command parses; of others, targets, extras, modules and scripts exist."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    for block in blocks(page, "bash"):
        for command in commands(block.code):
            words = [word for word in shlex.split(command) if not re.match(r"[A-Z_]+=", word)]
            if not words:
                continue
            if words[0] == "vidsieve":
                arguments = words[1 : next((i for i, word in enumerate(words) if word in (">", "&&", "|")), None)]
                if arguments != ["--version"]:
                    parser(main.COMMANDS).parse_args(arguments)
                continue
            assert words[0] in OTHERS, command
            if words[0] == "make":
                assert words[1] in targets
            if words[0] == "pip" and (named := re.search(r"(?:\.|vidsieve)\[(.+?)\]", command)):
                assert set(named[1].split(",")) <= set(extras)
            if words[:2] == ["python", "-m"] and words[2].startswith("benchmarks."):
                assert importlib.util.find_spec(words[2])
            if words[0] == "python" and words[1].endswith(".py"):
                assert (ROOT / words[1]).exists()


@pytest.mark.parametrize("page", FOLLOWED, ids=name)
def test_commands_of_the_first_hour_run(page: Path, workplace: Path) -> None:
    followed = [command for block in blocks(page, "bash") for command in commands(block.code)]
    ours = [shlex.split(command)[1:] for command in followed if command.startswith("vidsieve ")]
    assert ours
    for arguments in ours:
        if arguments == ["--version"]:
            continue
        found = [sorted(map(str, Path().glob(word))) if "*" in word else [word] for word in arguments]
        assert main.main([word for words in found for word in words]) == 0, shlex.join(arguments)


@pytest.mark.parametrize("page", pages(), ids=name)
def test_needs_are_known(page: Path) -> None:
    """A need that is neither a module nor a word of ours would silence a block for ever."""
    for block in blocks(page):
        assert all(need in LACKING or re.fullmatch(r"[a-z_]+", need) for need in block.needs), block.needs
        assert block.language in ("python", "bash") or not block.needs


@pytest.mark.parametrize("page", pages(), ids=name)
def test_links_and_anchors_lead_somewhere(page: Path) -> None:
    for link in links(page):
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), link
        assert not anchor or anchor in anchors(path), link
