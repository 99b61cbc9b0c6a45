"""The page of the top-k operators says what is so: its code runs and prints what it shows, its table is OPERATORS."""

import re
import subprocess
import sys

import pytest

from nmt.topk.rivals import OPERATORS
from tests import ROOT

PAGE = ROOT / "nmt" / "topk" / "README.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
PROPERTIES = ("ranked", "sums", "bounded", "exact", "equivariant", "deterministic")


def guarantees() -> str:
    """`OPERATORS` as the page's table."""
    lines = [f"| operator | {' | '.join(PROPERTIES)} | time | memory |", "|---" * (len(PROPERTIES) + 3) + "|"]
    for name, row in OPERATORS.items():
        marks = ["yes" if getattr(row, field) else "no" for field in PROPERTIES]
        lines.append("| " + " | ".join([f"`{name}`", *marks, row.cost, row.memory]) + " |")
    return "\n".join(lines)


def test_the_table_is_that_of_the_operators():
    found = re.search(r"<!-- guarantees -->\n(.*?)\n?<!-- /guarantees -->", TEXT, re.DOTALL)
    assert found and found[1] == guarantees(), f"the table is to be\n\n{guarantees()}"


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_a_block_prints_what_it_shows(block, capsys):
    """Comments that fill a line below code are what the code has printed by then."""
    exec(compile(block, str(PAGE), "exec"), {})
    shown = [line[2:] for line in block.splitlines() if line.startswith("# ")]
    assert shown and capsys.readouterr().out.splitlines() == shown


def test_markers_of_the_speed_table():
    for kind in ("speed", "speed cuda"):
        assert re.search(rf"^<!-- {kind} -->\n.*\n<!-- /{kind} -->$", TEXT, re.DOTALL | re.MULTILINE)


def test_torch_alone():
    """Nothing of the toolkit's own requirements, and none of its modules, is imported with the operators."""
    code = "import sys, nmt.topk, nmt.topk.rivals; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = done.stdout.split()
    others = {"pytorch_lightning", "sentencepiece", "sacrebleu", "datasets", "rich", "matplotlib", "numba", "triton"}
    assert not others & set(loaded)
    assert [name for name in loaded if name.startswith("nmt.") and not name.startswith("nmt.topk")] == []
