"""Read Markdown: the blocks of code in it, what they need, its links and its anchors."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^(?:<!-- needs: (?P<needs>.+?) -->\n)?```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+)$", re.M)
CODE = re.compile(r"^```.*?^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """needs: what has to be there for it to run, beside what the tests have."""

    language: str
    code: str
    needs: tuple[str, ...] = ()


def pages() -> list[Path]:
    """Every Markdown file that a user reads."""
    return sorted((*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "benchmarks" / "README.md"))


def blocks(path: Path, language: str | None = None) -> list[Block]:
    found = [
        Block(match["language"], match["code"], tuple(match["needs"].split(", ")) if match["needs"] else ())
        for match in BLOCK.finditer(path.read_text("utf-8"))
    ]
    return [block for block in found if language in (None, block.language)]


def commands(code: str) -> list[str]:
    """The commands of a block for a shell: one a line, joined where a line goes on, without comments."""
    lines = code.replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"(^|\s)#.*", "", line).strip() for line in lines) if line]


def links(path: Path) -> list[str]:
    return LINK.findall(CODE.sub("", path.read_text("utf-8")))


def anchors(path: Path) -> set[str]:
    """What the headings of a page are called in links: lower case, without punctuation, with hyphens for spaces."""
    headings = HEADING.findall(CODE.sub("", path.read_text("utf-8")))
    return {re.sub(r"[^\w\- ]", "", heading.lower().replace("`", "")).replace(" ", "-") for heading in headings}
