"""Actors of a Ray cluster that translate blocks of one text side by side, each with a model of its own."""

import dataclasses
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from nmt.cluster import Cluster
from nmt.errors import UserError
from nmt.files.blocks import Block, Blocks, SourceText
from nmt.files.job import Job
from nmt.models.kernels import keep_few_kernels
from nmt.translator import Translator


class Place(NamedTuple):
    """Where a block ends; see `nmt.files.blocks.Block`."""

    last: int
    position: int
    digest: str


@dataclass(frozen=True)
class Reading:
    """A text that another process reads, block by block; the files are named so that it finds them."""

    text: SourceText
    buffer: int
    skip: int
    digest: str | None

    def __call__(self) -> Blocks:
        return self.text.blocks(self.buffer, skip=self.skip, digest=self.digest)


class Rendering:
    """Translates blocks; the model is loaded with the first, in the actor."""

    def __init__(self, job: Job, threads: int) -> None:
        """Makes the paths absolute, for an actor works in another folder.

        Args:
            job: what is done; its models and shortlist lie at the same paths on every machine.
            threads: of torch.

        Raises:
            UserError: there is no model.
        """
        shortlist = None if job.shortlist is None else os.path.abspath(job.shortlist)
        ensemble = tuple(map(os.path.abspath, job.ensemble))
        self._job = dataclasses.replace(job, model=os.path.abspath(job.model), ensemble=ensemble, shortlist=shortlist)
        self._threads = threads
        self._checksums = self._job.checksums()
        self._translator: Translator | None = None

    def __call__(self, block: Block) -> tuple[Place, bytes]:
        """What a block becomes.

        Raises:
            UserError: the models are not those of the machine that gives the work; or as `Translator.search`.
        """
        if self._translator is None:
            self._translator = self._load()
        return Place(block.last, block.position, block.digest), self._job.render(self._translator, block)

    def _load(self) -> Translator:
        import torch

        torch.set_num_threads(self._threads)
        if self._job.int8:
            keep_few_kernels()
        try:
            found = self._job.checksums()
            for path, checksum in self._checksums.items():
                if found[path] != checksum:
                    raise UserError(
                        f"{path} is another file than where the text is; give a path that all machines share"
                    )
            return self._job.load()
        except UserError as error:
            raise UserError(f"on {socket.gethostname()}: {error}") from None


def results(
    cluster: Cluster, job: Job, threads: int, text: SourceText, buffer: int, skip: int, digest: str | None
) -> Iterator[tuple[Place, bytes]]:
    """The place of each block with what it becomes, in order.

    Args:
        cluster: where.
        job: what is done.
        threads: of each actor.
        text, buffer, skip, digest: see `SourceText.blocks`.

    Raises:
        UserError: of the text, of an actor, or actors die; the blocks before it have come.
    """
    named = {name: os.path.abspath(path) for name, path in text.paths.items() if name != "input"}
    reading = Reading(SourceText(os.path.abspath(text.source), **named), buffer, skip, digest)
    return cluster.map_source(Rendering(job, threads), reading)
