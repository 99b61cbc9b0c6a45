"""The pages: a link inside the project leads to a file and a heading that are there."""

import re

import pytest

from tests import ROOT

FOLDERS = ("data", "nmt", "recipes")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])


def anchors(page):
    """Of the headings, as GitHub makes them: lower case, no punctuation, hyphens for blanks."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_are_there(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert target.startswith("https://") or linked.exists(), target
        assert not anchor or target.startswith("https://") or anchor in anchors(linked), target


def test_anchors(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Does it pay?\n\n```sh\n# no heading\n```\n\n### What --from takes over\n")
    assert anchors(page) == {"does-it-pay", "what---from-takes-over"}
