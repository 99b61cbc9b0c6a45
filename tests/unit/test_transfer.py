"""What a run takes over of the model that it begins with: other vocabularies, other shapes, and the report of that."""

import dataclasses
import logging
from dataclasses import replace

import pytest
import torch

from nmt.checkpoint import Checkpoint, load_checkpoint
from nmt.cli import main
from nmt.config_file import given_among, write_config
from nmt.errors import UserError
from nmt.freezing import group_of
from nmt.manifest import read_manifest
from nmt.models import RNNsearchConfig, make_recurrent
from nmt.runs.data_module import cached_vocabularies, choose_vocabularies
from nmt.runs.state import read_state
from nmt.runs.transfer import shape_of, shared_ids, transfer
from nmt.text.pairs import pairs_from_files
from nmt.text.tokens import Cut, TokenList
from nmt.text.vocabulary import VocabularyConfig
from tests.unit.runs import make_config, train_quietly

SPECIAL = ["<pad>", "<unk>", "<s>", "</s>"]


def word_list(*words, special=SPECIAL):
    return TokenList.build([*special, *words], Cut("words"))


def checkpoint(source, target, seed, **shape):
    torch.manual_seed(seed)
    config = RNNsearchConfig(**{"embedding": 4, "hidden": 6, **shape})
    return Checkpoint(make_recurrent(config, len(source), len(target)), source, target, {"dev": {"bleu": 12.345}})


def weights_of(found):
    return {name: tensor.clone() for name, tensor in found.model.state_dict().items()}


def as_it_is(config):
    """A configuration whose section model is asked for by its differences from the defaults."""
    return replace(config, model=RNNsearchConfig(dropout=config.model.dropout))


@pytest.mark.parametrize("shape", [{}, {"tied_embeddings": "all"}, {"decoder": "luong", "cell": "lstm"}])
def test_an_equal_model_is_taken_whole(shape):
    words = word_list("a", "b", "c")
    found, new = checkpoint(words, words, 1, **shape), checkpoint(words, words, 2, **shape)
    done = transfer(found, new, "m")
    for name, weights in found.model.state_dict().items():
        assert torch.equal(new.model.state_dict()[name], weights)
    assert sum(done.loaded.values()) == sum(p.numel() for p in new.model.parameters())
    assert not (done.rows or done.reset or done.ignored or done.settings or list(done.warnings()))
    first, last = done.lines()
    assert first.startswith("loaded all weights and vocabularies of m (dev BLEU 12.35): ")
    assert last.endswith("ignored: data.vocabulary but for sampling and sampled")


@pytest.mark.parametrize("tied", ["none", "output", "all"])
def test_rows_of_shared_pieces_are_the_models(tied):
    old = word_list("a", "b", "c", "d", special=["<blank>", "unk", "<bos>", "<eos>"])
    renewed = word_list("x", "d", "b", "y", "z")
    found, new = checkpoint(old, old, 1, tied_embeddings=tied), checkpoint(renewed, renewed, 2, tied_embeddings=tied)
    done = transfer(found, new, "m")
    for name in ("source_embedding.weight", "target_embedding.weight", "output.weight", "output.bias"):
        theirs, ours = found.model.state_dict()[name], new.model.state_dict()[name]
        # Special ones by their meaning, words by their spelling.
        assert torch.equal(ours[:4], theirs[:4])
        assert torch.equal(ours[5], theirs[7]) and torch.equal(ours[6], theirs[5])
        mean = (theirs[7] + theirs[5]) / 2
        for row in (4, 7, 8):
            torch.testing.assert_close(ours[row], mean)
    first = {"none": 4, "output": 3, "all": 2}[tied]
    assert len(done.rows) == first and set(done.rows.values()) == {(6, 9)} and done.kept == []
    lines = "\n".join(done.lines())
    assert "loaded 6 of 9 rows of source_embedding.weight" in lines and "the others begin as the mean of these" in lines
    assert "data.vocabulary" not in lines
    # All that has no row a piece is the model's.
    assert torch.equal(new.model.readout.weight, found.model.readout.weight)


def test_one_side_may_be_renewed_and_share_no_word():
    old, renewed = word_list("a", "b"), word_list("x", "y")
    found, new = checkpoint(old, old, 1), checkpoint(old, renewed, 2)
    before = weights_of(new)
    done = transfer(found, new, "m")
    assert torch.equal(new.model.source_embedding.weight, found.model.source_embedding.weight)
    assert torch.equal(new.model.output.weight[4:], before["output.weight"][4:])
    assert done.kept == ["source"] and "they are drawn, for no piece is shared" in "\n".join(done.lines())
    assert "and source vocabulary of m" in next(done.lines())


def test_shared_ids():
    assert shared_ids(word_list("a", "b"), word_list("b", "q")).tolist() == [0, 1, 2, 3, 5, -1]


def test_other_shapes_begin_anew_and_are_told():
    words = word_list("a", "b", "c")
    found = checkpoint(words, words, 1, decoder_layers=2)
    new, drawn = (checkpoint(words, words, 2, encoder_layers=2) for _ in range(2))
    done = transfer(found, new, "m")
    theirs, ours, fresh = (each.model.state_dict() for each in (found, new, drawn))
    assert set(done.reset) == {name for name in ours if "_l1" in name} | {"initial.weight", "initial.bias"}
    for name, tensor in ours.items():
        assert torch.equal(tensor, (fresh if name in done.reset else theirs)[name]), name
    assert set(done.ignored) == {name for name in theirs if name.startswith("upper.")}
    assert done.settings == {"encoder_layers": (1, 2), "decoder_layers": (2, 1)}
    (warning,) = done.warnings()
    assert warning.startswith(
        "begin anew (10 tensors, 762 parameters): encoder (new: weight_ih_l1; weight_hh_l1; 6 more"
    )
    assert "initial (weight 6 by 6, was 12 by 6; bias 6, was 12)" in warning
    lines = "\n".join(done.lines())
    assert "model.encoder_layers is 2; the loaded model has 1" in lines
    assert "ignored of the loaded model (4 tensors): upper (not here" in lines and "all weights" not in lines


def test_embeddings_that_are_now_tied():
    words = word_list("a", "b", "c")
    found, new = checkpoint(words, words, 1), checkpoint(words, words, 2, tied_embeddings="output")
    done = transfer(found, new, "m")
    assert torch.equal(new.model.output.weight, found.model.target_embedding.weight)
    assert done.ignored == {"output.weight": "tied to target_embedding.weight"}


def test_a_model_of_which_nothing_fits_is_refused():
    found, new = (checkpoint(word_list("a", "b"), word_list("a", "b"), seed) for seed in (1, 2))
    new.model.state_dict = lambda: {name: torch.zeros(1, 2, 3) for name in ("output.weight", "other")}
    with pytest.raises(UserError, match="nothing of m fits the model that is asked for; leave the keys of section"):
        transfer(found, new, "m")


def test_the_shape_is_the_models_but_for_what_is_asked_for():
    words = word_list("a", "b")
    found = checkpoint(words, words, 1, cell="lstm", dropout=0.4, hidden=16, decoder="luong", bridge="last")
    have = found.model.config
    # As ever: nothing asked for, and the dropout of the configuration.
    assert shape_of(found, RNNsearchConfig()) == replace(have, dropout=0.2)
    assert shape_of(found, RNNsearchConfig(cell="lstm", encoder_layers=3)) == replace(
        have, dropout=0.2, encoder_layers=3
    )
    # A default that was given is asked for, too.
    assert shape_of(found, RNNsearchConfig(dropout=0.1), {"cell"}) == replace(have, dropout=0.1, cell="gru")
    with pytest.raises(UserError, match=r"bridge is last, .*; the other settings are those of the loaded model"):
        shape_of(found, RNNsearchConfig(decoder="luong", encoder_hidden=7))


def test_keys_that_are_given_are_told_from_defaults(tmp_path):
    (tmp_path / "c.yaml").write_text("model: {hidden: 512}\nseed: 3\n")
    words = ["--config", str(tmp_path / "c.yaml"), "--from", "m", "--model.cell=gru", "--trainer.clip", "2"]
    assert given_among(words, "model") == {"hidden", "cell"}
    assert given_among(["--from", "m"], "model") == set()


@pytest.mark.parametrize(
    "name", ["encoder.weight_ih_l0", "upper.0.weight_ih", "network.model.encoder.layers.3.fc.bias"]
)
def test_groups_are_modules(name):
    assert group_of(name) == {"e": "encoder", "u": "upper", "n": "network.model.encoder"}[name[0]]


# Runs


def state_after(folder):
    state = read_state(folder / "last.ckpt")
    return state["state_dict"], state["optimizer_states"], state["vocabularies"], (folder / "model.safetensors")


RUNS = {
    "target": {"data.vocabulary.renew": "target", "data.vocabulary.size": 50},
    "layers": {"model.encoder_layers": 2, "model.decoder_layers": 3},
}


@pytest.mark.parametrize("case", ["target", "layers"])
def test_such_a_run_is_resumed_exactly(case, finished_run, small_corpus, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    options = {**RUNS[case], "trainer.validate_every": 2}
    shape = {name: value for name, value in RUNS[case].items() if name.startswith("model.")}

    def make(name, steps):
        config = as_it_is(make_config(tmp_path / name, small_corpus, {**options, "trainer.max_steps": steps}))
        for key, value in shape.items():
            setattr(config.model, key.partition(".")[2], value)
        return config

    train_quietly(make("whole", 4), start=finished_run)
    # What the run takes over is that before its first update.
    manifest = read_manifest(tmp_path / "whole" / "manifest.json")["transfer"]
    assert manifest["source"].endswith("finished/model.safetensors")
    if shape:
        assert manifest["settings"]["encoder_layers"] == [1, 2] and "upper.1.weight_ih" in manifest["reset"]
        assert "WARNING" in caplog.text and "begin anew" in caplog.text
    else:
        # Pieces of a smaller vocabulary of the same text, most of them in the larger one.
        for name, (copied, count) in manifest["rows"].items():
            assert 4 < copied <= count == options["data.vocabulary.size"], name
        assert manifest["kept"] == ["source"] and len(manifest["rows"]) == 3
        assert "WARNING" not in caplog.text
    half = make("half", 2)
    train_quietly(half, start=finished_run)
    from nmt.config_file import read_config

    again = read_config(tmp_path / "half" / "config.yaml")
    again.trainer.max_steps = 4
    train_quietly(again, resume=True)
    (weights, optimizer, vocabularies, model), (weights2, optimizer2, vocabularies2, model2) = (
        state_after(tmp_path / name) for name in ("whole", "half")
    )
    assert all(torch.equal(weights[name], weights2[name]) for name in weights)
    assert all(torch.equal(*pair) for pair in zip(vocabularies, vocabularies2, strict=True))
    assert str(optimizer) == str(optimizer2) and model.read_bytes() == model2.read_bytes()
    assert torch.isfinite(load_checkpoint(model).model.output.weight).all()


def test_the_first_state_of_a_run_is_the_model(finished_run, small_corpus, tmp_path, monkeypatch):
    from nmt.runs.run import Saver

    monkeypatch.setattr(Saver, "on_validation_end", lambda *_: None)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "model.safetensors").write_bytes(b"")
    monkeypatch.setattr("nmt.runs.run.RunFolder.check_free", lambda _: None)
    monkeypatch.setattr("nmt.runs.training.load_checkpoint", lambda path: load_checkpoint(finished_run))
    train_quietly(as_it_is(make_config(tmp_path / "new", small_corpus, {"trainer.max_steps": 1})), start=finished_run)
    state, model = read_state(tmp_path / "new" / "last.ckpt"), load_checkpoint(finished_run).model
    assert state["global_step"] == 0
    for name, weights in model.state_dict().items():
        assert torch.equal(state["state_dict"][f"model.{name}"], weights)


def test_what_is_given_on_the_command_line_changes_the_shape(finished_run, small_corpus, tmp_path):
    config = as_it_is(make_config(tmp_path / "run", small_corpus, {"trainer.max_steps": 1}))
    values = tmp_path / "c.yaml"
    write_config(values, config)
    # Without section model: the file gives all of its keys.
    text = values.read_text()
    values.write_text(text[: text.index("model:")] + text[text.index("objective:") :])
    with pytest.raises(SystemExit) as ended:
        main(["train", "--config", str(values), "--from", str(finished_run), "--model.decoder_layers", "2"])
    assert ended.value.code == 0
    shape = load_checkpoint(tmp_path / "run").model.config
    assert (shape.decoder_layers, shape.hidden, shape.embedding) == (2, 12, 8)


def test_renewing_keeps_vocabularies_that_it_does_not_name(small_corpus, tmp_path):
    pairs = pairs_from_files(small_corpus / "train.source", small_corpus / "train.target")
    known = cached_vocabularies(pairs, VocabularyConfig(size=60), 1, tmp_path)
    found = {
        renew: choose_vocabularies(pairs, VocabularyConfig(size=50, renew=renew), 1, tmp_path, known)
        for renew in ("none", "source", "target", "both")
    }
    assert found["none"] == known and found["source"][1] is known[1] and found["target"][0] is known[0]
    assert len(found["source"][0]) == len(found["target"][1]) == len(found["both"][0]) == 50
    assert found["both"][0] is found["both"][1]
    # The key of the cache knows nothing of it.
    joint = cached_vocabularies(pairs, VocabularyConfig(size=50), 1, tmp_path)[0]
    assert joint.model == found["both"][0].model
    assert len(list(tmp_path.glob("*.spm"))) == 4


def test_vocabularies_that_cannot_be_renewed_are_told(finished_run, small_corpus, tmp_path):
    config = make_config(tmp_path / "run", small_corpus, {"data.vocabulary.renew": "both"})
    with pytest.raises(
        UserError, match=r"renew is both, but there is no model that has a vocabulary; give it by --from"
    ):
        train_quietly(config)
    tied = {"model.tied_embeddings": "all", "data.vocabulary.renew": "target", "data.vocabulary.size": 60}
    with pytest.raises(UserError, match=r"renew is target, but source and target of the loaded model share their emb"):
        train_quietly(make_config(tmp_path / "run", small_corpus, tied), start=finished_run)
    assert not (tmp_path / "run").exists()


def test_corpus_prepare_makes_what_such_a_run_reads(finished_run, small_corpus, tmp_path, capsys):
    config = as_it_is(make_config(tmp_path / "run", small_corpus, RUNS["target"]))
    config.data = dataclasses.replace(config.data, cache=str(tmp_path / "cache"))
    write_config(tmp_path / "c.yaml", config)
    with pytest.raises(SystemExit):
        main(["corpus", "prepare", "--config", str(tmp_path / "c.yaml"), "--from", str(finished_run)])
    told = capsys.readouterr().out
    assert "vocabulary of source: 80 pieces" in told and "vocabulary of target: 50 pieces" in told
    made = sorted(path.name for path in (tmp_path / "cache").iterdir())
    train_quietly(config, start=finished_run)
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == made
