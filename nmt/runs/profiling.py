"""What a run's time goes into, by torch's profiler."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from nmt.lines import atomic_path

WARM_UP = 2


class Profiling(pl.Callback):
    """Looks at some batches of a run, behind those that warm it up, and leaves a table and a trace.

    Lightning's own profiler writes its table of whatever came last, which is a validation.

    Args:
        folder: of table.txt and trace.json.
        batches: how many.
    """

    def __init__(self, folder: Path, batches: int) -> None:
        self.folder = folder
        self.batches = batches
        self.seen = 0
        self.profiler: torch.profiler.profile | None = None

    def on_train_batch_start(self, *_: Any) -> None:
        if self.seen == WARM_UP:
            self.profiler = torch.profiler.profile()
            self.profiler.start()

    def on_train_batch_end(self, *_: Any) -> None:
        self.seen += 1
        if self.profiler is None or self.seen < WARM_UP + self.batches:
            return
        self.profiler.stop()
        gpu = torch.cuda.is_available()
        table = self.profiler.key_averages().table(sort_by=f"self_{'cuda' if gpu else 'cpu'}_time_total", row_limit=40)
        with atomic_path(self.folder / "table.txt") as temporary:
            temporary.write_text(table + "\n", encoding="utf-8")
        with atomic_path(self.folder / "trace.json") as temporary:
            self.profiler.export_chrome_trace(str(temporary))
        self.profiler = None
