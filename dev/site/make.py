"""Write the sources of the site: python dev/site/make.py out/docs

They are the files of docs/ and the pages that pages.py makes, with links that lead to other files of the repository,
and formulas as MathML, which needs no script. mkdocs.yml then builds them (`make docs`).
"""

import os
import re
import shutil
import sys
from pathlib import Path, PurePosixPath

from latex2mathml.converter import convert
from pages import pages

ROOT = Path(__file__).parents[2]
REPOSITORY = os.environ.get("REPOSITORY_URL", "https://github.com/vidsieve/vidsieve")
FROM_ROOT = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}  # and how the site calls them
LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?\)")
CODE = re.compile(r"^```.*?^```$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+)\$", re.DOTALL)
# What GitHub's formulas have and the converter lacks.
SPELLED = {r"\arg\max": r"\operatorname{arg\,max}", r"\arg\min": r"\operatorname{arg\,min}"}


def make(out: Path) -> None:
    """Write everything to the folder `out`, which is emptied first."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(ROOT / "docs" / "images", out / "images")
    sources = {path.relative_to(ROOT).as_posix(): path.name for path in (ROOT / "docs").glob("*.md")} | FROM_ROOT
    texts = {source: (ROOT / source).read_text("utf-8") for source in sources}
    generated = pages()
    sources |= {f"docs/{page}": page for page in generated}
    texts |= {f"docs/{page}": text for page, text in generated.items()}
    for source, page in sources.items():
        path = out / page
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_page(texts[source], source, sources), encoding="utf-8")


def _page(text: str, source: str, site: dict[str, str]) -> str:
    """Make a page of the text of a file, without touching its code.  site: pages by the files they are made of."""
    parts, end = [], 0
    for code in CODE.finditer(text):
        parts += [_formulas(_links(text[end : code.start()], source, site)), code[0]]
        end = code.end()
    return "".join((*parts, _formulas(_links(text[end:], source, site))))


def _links(text: str, source: str, site: dict[str, str]) -> str:
    """Let relative links lead to a page of the site, or else to a file of the repository."""

    def lead(match: re.Match[str]) -> str:
        opened, target, anchor = match.groups(default="")
        path = os.path.normpath(PurePosixPath(source).parent / target)
        if path in site or path.startswith("docs/images/"):
            found = site.get(path, path.removeprefix("docs/"))
            return f"{opened}{os.path.relpath(found, PurePosixPath(site[source]).parent)}{anchor})"
        if not (ROOT / path).exists():
            raise SystemExit(f"{source}: the link to {target} leads nowhere")
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"{opened}{REPOSITORY}/{kind}/main/{path}{anchor})"

    return LINK.sub(lead, text)


def _formulas(text: str) -> str:
    return FORMULA.sub(lambda match: _mathml(match[1] or match[2], match[1] is not None), text)


def _mathml(tex: str, block: bool) -> str:
    for old, new in SPELLED.items():
        tex = tex.replace(old, new)
    tex = re.sub(r"(\\text\{[^{}]*)\\texttt\{([^{}]*)\}", r"\1\2", tex)
    tex = re.sub(r"\\tag\{(.+?)\}", r"\\qquad \\text{(\1)}", tex)
    return str(convert(tex, display="block" if block else "inline"))


if __name__ == "__main__":
    make(Path(sys.argv[1]))
