"""Models that joeynmt and OpenNMT-py have really trained are imported and compared, where both are installed: NMT_PEERS
names the python of their environment (see recipes/benchmarks/peers.py). Takes some minutes."""

import os
import subprocess
import sys

import pytest

from tests import ROOT

PEERS = os.environ.get("NMT_PEERS", "")


@pytest.mark.skipif(not PEERS, reason="needs NMT_PEERS, the python of an environment with joeynmt and OpenNMT-py")
def test_imported_models_are_those_of_their_toolkits(corpora, tmp_path):
    recipe = ROOT / "recipes" / "benchmarks" / "import_peers.py"
    sizes = ["--pairs", "2000", "--hidden", "48", "--embedding", "32", "--vocabulary", "800", "--updates", "80"]
    words = [sys.executable, str(recipe), str(tmp_path), "--peers", PEERS, *sizes]
    found = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=1800)
    assert found.returncode == 0, found.stdout
    assert found.stdout.count("lines alike") == 4
