"""Unit tests are fast, system tests train to a threshold, recipe tests run what is shipped."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORPORA = ROOT.parent / "shared" / "corpora"
