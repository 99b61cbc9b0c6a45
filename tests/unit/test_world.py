"""Who a process is, and the gradient of an update beside a slow reference in float64."""

import threading

import pytest
import torch

from nmt.config import TrainerConfig
from nmt.errors import ToldError, UserError
from nmt.manifest import update_manifest
from nmt.objectives import BSO, CrossEntropy, CrossEntropyConfig, MinRisk, ScheduledSampling, SoftBeam
from nmt.objectives.bso import BSOConfig
from nmt.objectives.min_risk import MinRiskConfig
from nmt.objectives.scheduled_sampling import ScheduledSamplingConfig
from nmt.objectives.soft_beam import SoftBeamConfig
from nmt.runs.gradient import UpdateGradient
from nmt.runs.run import RunFolder
from nmt.runs.training import check_alike, device_of, prepare
from nmt.runs.world import World, _meeting_point, read_world
from tests.conftest import random_batch
from tests.unit.runs import make_config

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
# A job of two hosts with 3 and 2 processes; this is the second of the second host.
SRUN = {
    **{"SLURM_JOB_ID": "123456", "SLURM_NTASKS": "5", "SLURM_PROCID": "4", "SLURM_LOCALID": "1", "SLURM_NODEID": "1"},
    **{"SLURM_STEP_NUM_TASKS": "5", "SLURM_STEP_TASKS_PER_NODE": "3,2", "SLURM_STEP_NODELIST": "node[07-08]"},
}


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, (0, 1, 0, 1)),
        (TORCHRUN, (5, 8, 1, 4)),
        (SRUN, (4, 5, 1, 2)),
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "2(x2),1", "SLURM_NODEID": "2"}, (4, 5, 1, 1)),
        ({**SRUN, **TORCHRUN}, (5, 8, 1, 4)),
        # A batch script is one process, whatever the job has; so is a shell that srun has opened.
        ({"SLURM_NTASKS": "5", "SLURM_PROCID": "0", "SLURM_JOB_ID": "1"}, (0, 1, 0, 1)),
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "1"}, (0, 1, 0, 1)),
    ],
)
def test_the_place_is_read_from_the_launcher(environment, place):
    world = read_world(environment)
    assert (world.rank, world.size, world.local_rank, world.local_size) == place


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "not LOCAL_RANK and LOCAL_WORLD_SIZE; start the processes by torchrun"),
        ({**TORCHRUN, "RANK": "x"}, "RANK=x, .*not the numbers of a process"),
        ({**SRUN, "SLURM_NODEID": "2"}, "not the numbers of a process"),
    ],
)
def test_a_half_set_environment_is_told(environment, words):
    with pytest.raises(UserError, match=words):
        read_world(environment)


def test_the_meeting_point():
    assert _meeting_point({"MASTER_ADDR": "a", "MASTER_PORT": "7"}) == ("a", 7)
    assert _meeting_point(SRUN) == ("node07", 15_000 + 3456)
    with pytest.raises(UserError, match="MASTER_ADDR is None and MASTER_PORT is 7"):
        _meeting_point({"MASTER_PORT": "7"})


def test_other_processes_than_asked_for_are_refused(monkeypatch):
    def device(local_size, **settings):
        world = World(rank=1, size=8, local_rank=1, local_size=local_size)
        return device_of(TrainerConfig(**settings), world)

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert device(4, devices=4) == device(4, devices=1) == torch.device("cpu")
    with pytest.raises(UserError, match="trainer.devices is 2, but 4 of 8 processes run here; start by nmt train"):
        device(4, devices=2)
    with pytest.raises(UserError, match="trainer.devices is 2, but this is one process"):
        device_of(TrainerConfig(devices=2), World())
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert device(4) == torch.device("cuda", 1)
    with pytest.raises(UserError, match="8 processes of this host want a GPU each, but it has 4"):
        device(8)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setenv("SLURM_STEP_GPUS", "1")
    assert device(4) == torch.device("cuda", 0)


def test_a_mistake_that_all_see_is_told_by_one():
    assert type(World(rank=0, size=2).error("x")) is UserError
    assert type(World(rank=1, size=2).error("x")) is ToldError


def test_hosts_that_read_other_texts_are_told(small_corpus, tmp_path):
    class Other(World):
        def gather(self, value):
            texts = value[1]
            return [value, ("elsewhere", {**texts, "train": "0", "seed": 7})]

    config = make_config(tmp_path / "run", small_corpus)
    _, module = prepare(config, RunFolder(config.run), World(), None, False)
    check_alike(config, module, World())
    with pytest.raises(
        UserError, match="process 1, on elsewhere, differs from process 0, on .*, in seed and train; give"
    ):
        check_alike(config, module, Other())


@pytest.mark.parametrize(
    ("processes", "asked", "found"),
    [(1, 4, 4), (2, 4, 2), (4, 4, 1), (4, 1, 1), (2, 2, 2), (3, 4, 4), (2, 1, None), (1, 2, None)],
)
def test_a_resumed_run_keeps_its_updates(tmp_path, monkeypatch, processes, asked, found):
    """It had 4 batches an update in one process."""
    monkeypatch.setattr("nmt.runs.run.read_state", lambda *_, **__: {"run": {"batches": 4}})
    folder = RunFolder(tmp_path)
    for path in (folder.config, folder.last):
        path.touch()
    update_manifest(folder.manifest, config={"trainer": {"accumulate": 4}})
    if found is None:
        with pytest.raises(UserError, match=rf"trainer.accumulate is {asked} in {processes} .*instead of 4"):
            folder.same_updates(TrainerConfig(accumulate=asked), processes)
    else:
        assert folder.same_updates(TrainerConfig(accumulate=asked), processes).accumulate == found


# The gradient of an update


class Threads(World):
    """A world whose processes are threads."""

    def __init__(self, rank, size, shared):
        super().__init__(rank, size)
        self.shared = shared

    def sum(self, tensor):
        barrier, parts = self.shared
        parts[self.rank] = tensor.clone()
        barrier.wait(20)
        total = torch.stack(parts).sum(0)
        barrier.wait(20)
        tensor.copy_(total)


def in_threads(size, work):
    """work(world) in each of `size` threads; returns what they return."""
    shared, results = (threading.Barrier(size), [None] * size), [None] * size

    def one(rank):
        results[rank] = work(Threads(rank, size, shared))

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


OBJECTIVES = {
    "cross_entropy": (CrossEntropy(CrossEntropyConfig()), "tokens"),
    "scheduled_sampling": (ScheduledSampling(ScheduledSamplingConfig()), "tokens"),
    "bso": (BSO(BSOConfig(beam_size=2)), "tokens"),
    "min_risk": (MinRisk(MinRiskConfig(beam_size=2)), "sentences"),
    "token": (SoftBeam(SoftBeamConfig(loss="token")), "tokens"),
    "gold_in_beam": (SoftBeam(SoftBeamConfig(loss="gold_in_beam")), "tokens"),
    "expected_bleu": (SoftBeam(SoftBeamConfig(loss="expected_bleu")), "sentences"),
    "reachable_bleu": (SoftBeam(SoftBeamConfig(loss="reachable_bleu")), "sentences"),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_tells_what_it_is_a_mean_over(name, tiny_model):
    objective, unit = OBJECTIVES[name]
    batch = random_batch(3, 12, 6)
    found = objective(tiny_model(), batch)
    assert float(found.normaliser) == (batch.target_tokens if unit == "tokens" else len(batch))


def test_cross_entropy_is_that_of_all_tokens(tiny_model):
    """Six batches of unlike size in 1, 2, 3 and 6 processes, beside the gradient of one sum in float64."""
    batches = [random_batch(rows, 12, longest, seed) for seed, (rows, longest) in enumerate([(1, 9), (5, 3)] * 3)]
    objective = CrossEntropy(CrossEntropyConfig(label_smoothing=0.0))
    model = tiny_model().double()
    total = sum(-batch_log_likelihood(model, batch) for batch in batches)
    count = sum(batch.target_tokens for batch in batches)
    wanted = torch.autograd.grad(total / count, list(model.parameters()))
    plain = torch.autograd.grad(
        sum(objective(model, batch).value for batch in batches) / len(batches), list(model.parameters())
    )
    apart = max(float((a - b).norm() / a.norm()) for a, b in zip(wanted, plain, strict=True))
    assert apart > 0.05, "a mean of means would do as well: the test shows nothing"

    for size in (1, 2, 3, 6):
        # Not in the threads, whose random numbers are one generator's.
        models = [tiny_model() for _ in range(size)]

        def work(world, size=size, models=models):
            model = models[world.rank]
            gradient = UpdateGradient(world, len(batches) // size, unit=400)
            for place, batch in enumerate(batches[world.rank :: size]):
                found = objective(model, batch)
                # Lightning divides by the number of batches.
                loss = gradient.weigh(found.value, found.normaliser, place == 0) / gradient.accumulate
                loss.backward()
            assert gradient.finish(list(model.parameters()))
            return [parameter.grad for parameter in model.parameters()]

        for found in in_threads(size, work):
            for ours, exact in zip(found, wanted, strict=True):
                torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-7)


def batch_log_likelihood(model, batch):
    """log p of the references, a token at a time."""
    memory = model.encode(batch.source, batch.source_lengths)
    begins = torch.full_like(batch.target[:, :1], model.bos)
    features = model.teacher_force(torch.cat([begins, batch.target[:, :-1]], dim=1), memory)
    log_p = model.project(features).log_softmax(dim=2)
    return sum(
        log_p[row, place, batch.target[row, place]]
        for row in range(len(batch))
        for place in range(int(batch.target_lengths[row]))
    )


def test_parameters_without_a_gradient():
    """One that a process did not use gets the others' gradient; one that none used keeps none."""

    def work(world):
        both, some, none = (torch.nn.Parameter(torch.ones(2)) for _ in range(3))
        gradient = UpdateGradient(world, 1)
        value = both.sum() * (world.rank + 1) + (some.sum() if world.rank == 1 else 0)
        gradient.weigh(value, 1.0 + 2 * world.rank, True).backward()
        assert gradient.finish([both, some, none])
        return both.grad, some.grad, none.grad

    for both, some, none in in_threads(2, work):
        # Weighed 1 and 3.
        torch.testing.assert_close(both, torch.full((2,), (1 * 1 + 3 * 2) / 4))
        torch.testing.assert_close(some, torch.full((2,), 3 / 4))
        assert none is None


def test_a_loss_that_is_no_number_is_seen_by_all():
    def work(world):
        weight = torch.nn.Parameter(torch.ones(2))
        gradient = UpdateGradient(world, 2)
        for place in range(2):
            bad = world.rank == 1 and place == 0
            gradient.weigh(weight.sum() * (torch.inf if bad else 1.0), 1.0, place == 0).backward()
        return bool(gradient.finish([weight]))

    assert in_threads(2, work) == [False, False]


def test_one_batch_in_one_process_is_left_as_it_is():
    weight = torch.nn.Parameter(torch.ones(3))
    gradient = UpdateGradient(World(), 1, unit=400)
    value = weight.sum() / 3
    assert gradient.weigh(value, 3.0, True) is value
    value.backward()
    before = weight.grad
    assert gradient.finish([weight]) and weight.grad is before
