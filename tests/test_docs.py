"""The pages: their commands have the options of the program, references are plain code, and each page is listed."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import typer
import yaml

from hssl.cli import STAGES, app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
COMMAND = re.compile(r"\bhssl (?:--(?:quiet|verbose) )?([a-z]+)((?: [^`#\n|]*)?)")


def commands(path: Path) -> list[tuple[str, str]]:
    """Each command of a page and what follows it on its line, or on the lines that it goes on over."""
    return COMMAND.findall(path.read_text(encoding="utf-8").replace("\\\n", " "))


def test_references_of_docstrings_become_plain_code() -> None:
    hook = runpy.run_path(str(ROOT / "tools" / "docs_hooks.py"))["on_page_content"]
    page = "<p>See :func:<code>hssl.pretrain</code>, :class:<code>~hssl.store.Store</code> and a: <code>b.c</code></p>"
    assert hook(page) == "<p>See <code>hssl.pretrain</code>, <code>Store</code> and a: <code>b.c</code></p>"


def test_each_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"([\w/-]+\.md)$", text, re.MULTILINE)
    assert sorted(listed) == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
    assert yaml.safe_load(text)["docs_dir"] == "docs"


@pytest.mark.parametrize("path", PAGES, ids=[path.name for path in PAGES])
def test_commands_have_the_options_that_the_page_gives_them(path: Path) -> None:
    known = typer.main.get_command(app).commands
    for name, rest in commands(path):
        if name not in known:
            continue  # prose, such as: hssl takes
        flags = {flag for parameter in known[name].params for flag in (*parameter.opts, *parameter.secondary_opts)}
        assert set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", rest)) <= flags | {"--help"}, (name, rest)
        fields = STAGES[name].model_fields if name in STAGES else {}
        assert set(re.findall(r"--set '?(\w+)=", rest)) <= set(fields), (name, rest)


def test_commands_are_found() -> None:
    found = commands(ROOT / "README.md")
    assert {"aggregate", "inspect", "pretrain", "finetune", "evaluate", "predict"} <= {name for name, _ in found}
    assert any("--no-validation" in rest for name, rest in found if name == "finetune")


def test_each_picture_is_on_a_page() -> None:
    pages = "".join(path.read_text(encoding="utf-8") for path in PAGES)
    assert [path.name for path in (DOCS / "images").iterdir() if f"images/{path.name}" not in pages] == []


def test_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    missing = [link for link in links if not link.startswith("http") and not (ROOT / link).exists()]
    assert links
    assert missing == []
