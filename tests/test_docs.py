"""The pages: references of docstrings are plain code, and each page and picture of the site is there and used."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def test_references_of_docstrings_become_plain_code() -> None:
    hook = runpy.run_path(str(ROOT / "tools" / "docs_hooks.py"))["on_page_content"]
    page = "<p>See :func:<code>hssl.pretrain</code>, :class:<code>~hssl.store.Store</code> and a: <code>b.c</code></p>"
    assert hook(page) == "<p>See <code>hssl.pretrain</code>, <code>Store</code> and a: <code>b.c</code></p>"


def test_each_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"([\w/-]+\.md)$", text, re.MULTILINE)
    assert sorted(listed) == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
    assert yaml.safe_load(text)["docs_dir"] == "docs"


def test_each_picture_is_on_a_page() -> None:
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *DOCS.rglob("*.md")))
    assert [path.name for path in (DOCS / "images").iterdir() if f"images/{path.name}" not in pages] == []


def test_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    missing = [link for link in links if not link.startswith("http") and not (ROOT / link).exists()]
    assert links
    assert missing == []
