"""Runs a model that `nmt export` wrote, with numpy, sentencepiece and onnxruntime alone: no torch, no training side.

python -m nmt.runner FOLDER < in > out

from nmt.runner import load
load("FOLDER").translate(["The file is open."], beam_size=5)
"""

from nmt.runner.runner import Runner, Translation, load
from nmt.runner.settings import Settings

__all__ = ["Runner", "Settings", "Translation", "load"]
