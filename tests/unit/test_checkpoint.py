"""The model file and last.ckpt: round trips, damage, strangers, a full disk, and pickles that must not run."""

import json
import os
import pickle
import random
import subprocess
import sys
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from nmt.checkpoint import NAME, find_model, load_checkpoint, save_checkpoint
from nmt.errors import UserError
from nmt.runs.state import AtomicCheckpointIO, read_state
from nmt.translator import Translator


class Payload:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize(
    ("joint", "config"),
    [
        (True, {}),
        (False, {}),
        (True, {"tied_embeddings": "output"}),
        (False, {"tied_embeddings": "output", "cell": "lstm", "decoder_layers": 2}),
        (True, {"tied_embeddings": "all", "readout": "tanh", "encoder_layers": 2}),
    ],
)
def test_round_trip(tiny_checkpoint, tmp_path, joint, config):
    before = tiny_checkpoint(joint, **config)
    save_checkpoint(tmp_path / NAME, before)
    after = load_checkpoint(tmp_path)
    assert after.model.config == before.model.config and after.info == before.info
    assert not after.model.training
    weights, loaded = before.model.state_dict(), after.model.state_dict()
    assert list(weights) == list(loaded)
    assert all(torch.equal(weights[name], loaded[name]) for name in weights)
    assert (after.source_vocabulary is after.target_vocabulary) == joint
    assert after.source_vocabulary.model == before.source_vocabulary.model
    assert after.target_vocabulary.model == before.target_vocabulary.model
    assert len({p.data_ptr() for p in after.model.parameters()}) == len(list(after.model.parameters()))
    lines = ["the cat one", "a my two red blue", "green"]
    assert Translator(after).translate(lines) == Translator(before).translate(lines)
    # Equal content, equal bytes; and nothing temporary beside the file.
    save_checkpoint(tmp_path / "again.safetensors", after)
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / NAME).read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["again.safetensors", NAME]
    # Whoever may read other new files may read the model.
    (tmp_path / "other").touch()
    assert (tmp_path / NAME).stat().st_mode == (tmp_path / "other").stat().st_mode


def rewrite(source, target, **changes):
    """The same tensors under a changed header, without a checksum, as earlier versions wrote them."""
    with open(source, "rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(json.loads(stream.read(size))["__metadata__"]["nmt"])
    del header["checksum"]
    save_file(load_file(source), target, metadata={"nmt": json.dumps({**header, **changes})})


@pytest.fixture
def saved(tiny_checkpoint, tmp_path):
    save_checkpoint(tmp_path / NAME, tiny_checkpoint())
    return tmp_path / NAME


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, -1])
def test_a_truncated_model_is_refused(saved, kept):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(UserError, match=r"is damaged or not a model file .*; copy it again"):
        load_checkpoint(saved)


def test_a_changed_bit_is_told(saved):
    """Wherever it is: amid weights, vocabulary or header; a model that loads all the same is the same model."""
    content, before = saved.read_bytes(), load_checkpoint(saved)
    start = 8 + int.from_bytes(content[:8], "little")
    chance = random.Random(1)
    told = 0
    for number in range(300):
        place = chance.randrange(start) if number % 2 else chance.randrange(start, len(content))
        changed = bytearray(content)
        changed[place] ^= 1 << chance.randrange(8)
        saved.write_bytes(changed)
        try:
            after = load_checkpoint(saved)
        except UserError as error:
            assert "\n" not in str(error)
            # A bit of the length or of a name can make it look like another thing.
            told += place >= start and "is damaged or not a model file (its checksum is wrong" in str(error)
            continue
        assert place < start
        weights, loaded = before.model.state_dict(), after.model.state_dict()
        assert all(torch.equal(weights[name], loaded[name]) for name in weights)
        assert after.model.config == before.model.config and after.info == before.info
        assert after.target_vocabulary.checksum() == before.target_vocabulary.checksum()
    assert told == 150


def test_a_model_without_a_checksum_loads(saved, tmp_path):
    """One of an earlier version, or whose checksum is of a kind that is not known here."""
    rewrite(saved, tmp_path / "old.safetensors")
    rewrite(saved, tmp_path / "new.safetensors", checksum="sha3:00")
    rewrite(saved, tmp_path / "wrong.safetensors", checksum="crc32:00000000")
    for name in ("old", "new"):
        load_checkpoint(tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError, match="its checksum is wrong: something in it has changed since it was written"):
        load_checkpoint(tmp_path / "wrong.safetensors")


def test_info_of_any_kind_has_a_checksum(tiny_checkpoint, tmp_path):
    checkpoint = tiny_checkpoint()
    checkpoint.info |= {"é": [1.5, None, float("inf")], "steps": {2: "b", 10: "a"}}
    checkpoint.model.bfloat16()
    save_checkpoint(tmp_path / NAME, checkpoint)
    assert load_checkpoint(tmp_path).info["steps"] == {"2": "b", "10": "a"}


def test_foreign_files_are_refused(saved, tmp_path):
    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(3)}, foreign)
    with pytest.raises(UserError, match="not a model of nmt"):
        load_checkpoint(foreign)
    save_file({"weight": torch.zeros(3)}, foreign, metadata={"nmt": "[1]"})
    with pytest.raises(UserError, match="not a model of nmt"):
        load_checkpoint(foreign)
    save_file({"weight": torch.zeros(3)}, foreign, metadata={"nmt": "{"})
    with pytest.raises(UserError, match="is damaged"):
        load_checkpoint(foreign)
    foreign.write_text("just a text\n" * 20)
    with pytest.raises(UserError, match="is damaged or not a model file"):
        load_checkpoint(foreign)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 99}, "has format 99, this version reads format 1"),
        ({"format": None}, "has format None"),
        ({"architecture": "transformer"}, "architecture 'transformer'; this version knows rnnsearch"),
        ({"architecture": None}, "architecture 'None'"),
        ({"config": {"embeding": 8}}, "does not fit this version .*embeding"),
        ({"config": {"embedding": 9, "hidden": 10}}, "does not fit this version .*size mismatch"),
        ({"config": {"embedding": 0}}, "does not fit this version .*embedding is 0"),
        ({"config": None}, "does not fit this version"),
        ({"aliases": {"output.weight": "nowhere"}}, "does not fit this version .*nowhere"),
        ({"info": 3}, "does not fit this version"),
    ],
)
def test_a_header_of_another_version_is_refused(saved, tmp_path, changes, words):
    rewrite(saved, tmp_path / "other.safetensors", **changes)
    with pytest.raises(UserError, match=words):
        load_checkpoint(tmp_path / "other.safetensors")
    rewrite(saved, tmp_path / "same.safetensors")
    load_checkpoint(tmp_path / "same.safetensors")


@pytest.mark.parametrize("write", ["pickle", "torch"])
def test_a_pickle_named_like_a_model_does_not_run(tmp_path, write):
    payload = {"nmt": Payload(tmp_path / "ran")}
    if write == "torch":
        torch.save(payload, tmp_path / NAME)
    else:
        (tmp_path / NAME).write_bytes(pickle.dumps(payload))
    with pytest.raises(UserError, match="is damaged or not a model file"):
        load_checkpoint(tmp_path / NAME)
    assert not (tmp_path / "ran").exists()
    # The payload is a real one (torch goes by the name of the file).
    (tmp_path / NAME).rename(tmp_path / "model.pt")
    if write == "torch":
        torch.load(tmp_path / "model.pt", weights_only=False)
    else:
        pickle.loads((tmp_path / "model.pt").read_bytes())
    assert (tmp_path / "ran").is_dir()


@pytest.mark.parametrize("write", ["pickle", "torch"])
def test_a_pickle_in_last_ckpt_does_not_run(tmp_path, write):
    path = tmp_path / "last.ckpt"
    payload = {"state_dict": {}, "vocabularies": [], "run": Payload(tmp_path / "ran")}
    if write == "torch":
        torch.save(payload, path)
    else:
        path.write_bytes(pickle.dumps(payload))
    for read in (read_state, AtomicCheckpointIO().load_checkpoint):
        with pytest.raises(UserError, match="is damaged or not the checkpoint of a run"):
            read(path)
    assert not (tmp_path / "ran").exists()


def test_a_foreign_or_truncated_last_ckpt_is_refused(tmp_path, finished_run):
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": {}}, path)
    with pytest.raises(UserError, match="lacks the state of a run"):
        read_state(path)
    content = (finished_run / "last.ckpt").read_bytes()
    assert zipfile.is_zipfile(finished_run / "last.ckpt")
    for kept in (0, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:kept])
        for mmap in (False, True):
            with pytest.raises(UserError, match=r"model.safetensors beside it; begin a new run --from it"):
                read_state(path, mmap=mmap)


def test_missing_models_are_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere does not exist; give a model file"):
        find_model(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no model.safetensors; give"):
        find_model(tmp_path)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UserError, match="has not reached a validation yet"):
        find_model(tmp_path)


FULL_DISK = """
import resource, sys
from pathlib import Path
from nmt import cli
from nmt.checkpoint import load_checkpoint, save_checkpoint
from nmt.runs.state import AtomicCheckpointIO, read_state

folder, kind = Path(sys.argv[1]), sys.argv[2]
model = load_checkpoint(folder / "model.safetensors")
state = read_state(folder / "last.ckpt")
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

def fail(words):
    if kind == "model":
        save_checkpoint(folder / "model.safetensors", model)
    else:
        AtomicCheckpointIO().save_checkpoint(state, folder / "last.ckpt")

cli._run = fail
cli.main([])
"""


@pytest.mark.parametrize("kind", ["model", "state"])
def test_a_full_disk_leaves_the_old_file(finished_run, tmp_path, kind):
    for name in (NAME, "last.ckpt"):
        (tmp_path / name).write_bytes((finished_run / name).read_bytes())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert all(len(content) > 20_000 for content in before.values())
    done = subprocess.run([sys.executable, "-c", FULL_DISK, tmp_path, kind], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and "cannot be written" in done.stderr, done.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
