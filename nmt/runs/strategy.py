"""What Lightning has to know of the other processes: who writes checkpoints, and where all wait."""

from typing import Any

import torch
from pytorch_lightning.strategies import SingleDeviceStrategy

from nmt.runs.world import World


class WorldStrategy(SingleDeviceStrategy):
    """One device for this process, one process of several.

    Of Lightning's own strategy for this, DDP, nothing would be left: batches are dealt out by the stream, gradients
    summed up by `nmt.runs.gradient`, hypotheses gathered by the module, and the processes started by
    `nmt.runs.launcher`. Its signal handler and its look at every batch whether a signal has come are meetings of their
    own, which can hang when a process is gone; so Lightning is told that the world is one, and asks here where it must
    not be.

    A strategy that shards the model, Lightning's FSDP, could stand in the same place: the group of processes is joined
    before. Untried; it sums up gradients itself, and has to be told of the methods of a model that objectives call
    (`torch.distributed.fsdp.register_fsdp_forward_method`).

    Args:
        device: of this process.
        world: the processes.
    """

    def __init__(self, device: torch.device, world: World) -> None:
        super().__init__(device)
        self.world = world
        self.global_rank, self.local_rank = world.rank, world.local_rank

    @property
    def is_global_zero(self) -> bool:
        return self.world.is_first

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        self.world.barrier()

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        return self.world.gather(obj)[src]

    def model_to_device(self) -> None:
        super().model_to_device()
        assert self.model is not None
        # Drawn from one seed, they are equal already, unless the hosts' processors round differently.
        self.world.copy_from_first(self.model)
