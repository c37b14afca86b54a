"""README.zh-CN.md says what README.md says."""

from __future__ import annotations

import re

from tests.docs.blocks import ROOT, blocks

PAGES = ("README.md", "README.zh-CN.md")


def words_before_remarks(text: str) -> list[str]:
    """The commands of a block, without what is said about them."""
    return [line.split("#")[0].split(" -p ")[0].strip() for line in text.splitlines()]


def test_both_have_the_same_sections_and_links() -> None:
    english, chinese = ((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    assert len(re.findall("^## ", english, re.MULTILINE)) == len(
        re.findall("^## ", chinese, re.MULTILINE)
    )
    linked = [set(re.findall(r"\]\(([^)#]+)", text)) for text in (english, chinese)]
    assert linked[0] - {"README.zh-CN.md"} <= linked[1]


def test_both_show_the_same_commands_and_options() -> None:
    english, chinese = (
        [words_before_remarks(block.text) for block in blocks(page) if not block.language]
        for page in PAGES
    )
    assert english[1:] == chinese[1:]
    options = [
        set(re.findall(r"`(--[\w-]+)", (ROOT / page).read_text(encoding="utf-8"))) for page in PAGES
    ]
    assert options[0] == options[1]
