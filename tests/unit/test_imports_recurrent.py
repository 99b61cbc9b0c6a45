"""Recurrent models of joeynmt and OpenNMT-py: what an independent forward pass computes, and what is refused."""

import argparse
import dataclasses
import os

import pytest
import torch
import yaml

from nmt.checkpoint import load_checkpoint, save_checkpoint
from nmt.cli import main
from nmt.errors import UserError
from nmt.imports import joeynmt, opennmt
from nmt.imports.recurrent import read_checkpoint
from nmt.models import RNNsearchConfig, quantize
from nmt.scoring import score_ids
from nmt.search import SearchConfig
from nmt.translator import Translator
from tests.unit.peer_models import Shape, write_joeynmt, write_opennmt
from tests.unit.runs import make_config, train_quietly

LINES = [("a bc d", "g a"), ("c", "ef ef d a c"), ("bc a zz ef g", "bc"), ("e", "b zz f")]
CUT = {"bc": ["b@@", "c"], "zz": ["z@@", "z"]}
# joeynmt undoes a merge whose result is no token.
RESTRICTED = {**CUT, "ef": ["e@@", "f"]}
JOEYNMT = [
    Shape(),
    Shape(cell="lstm", layers=2, attention="general", feeding=True, bridge="last"),
    Shape(layers=2, attention="general", encoder=3, bridge="last", feeding=True),
    Shape(cell="lstm", bridge="zero", encoder=4),
    Shape(layers=2, embedding=6, tied=True),
]
OPENNMT = [
    Shape(encoder=3, bridge="layers"),
    Shape(cell="lstm", layers=2, attention="general", feeding=True, encoder=3, bridge="layers"),
    Shape(layers=2, attention="dot", directions=1, bridge="relu"),
    Shape(cell="lstm", layers=2, encoder=3, feeding=True, bridge="relu"),
    Shape(attention="general", encoder=3, bridge="layers", embedding=6, tied=True),
]


def cut(line, known):
    return [piece for word in line.split() for piece in known.get(word, [word])]


def scores(checkpoint, decoder=None):
    sources, targets = zip(*LINES, strict=True)
    ids = checkpoint.source_vocabulary.encode(sources), checkpoint.target_vocabulary.encode(targets)
    model = decoder or checkpoint.model
    return [one.log_probability for one in score_ids(model, *ids, SearchConfig(normalization="none"))]


@pytest.mark.parametrize("shape", JOEYNMT, ids=str)
def test_joeynmt(shape, tmp_path):
    peer = write_joeynmt(tmp_path / "run", shape, scale=shape.layers == 1)
    main_quietly(["import", "joeynmt", str(tmp_path / "run"), "-o", str(tmp_path / "model.safetensors")])
    checkpoint = load_checkpoint(tmp_path / "model.safetensors")
    expected = [peer.score(cut(source, RESTRICTED), cut(target, RESTRICTED)) for source, target in LINES]
    assert scores(checkpoint) == pytest.approx(expected, abs=2e-5)
    assert checkpoint.info["languages"] == {"source": "aa", "target": "bb"}
    assert checkpoint.source_vocabulary is checkpoint.target_vocabulary
    check_ties(checkpoint.model, shape.tied)


@pytest.mark.parametrize("shape", OPENNMT, ids=str)
def test_opennmt(shape, tmp_path):
    peer = write_opennmt(tmp_path / "model.pt", shape)
    main_quietly(["import", "opennmt", str(tmp_path / "model.pt"), "-o", str(tmp_path / "model.safetensors")])
    checkpoint = load_checkpoint(tmp_path / "model.safetensors")
    expected = [peer.score(cut(source, CUT), cut(target, CUT)) for source, target in LINES]
    assert scores(checkpoint) == pytest.approx(expected, abs=2e-5)
    check_ties(checkpoint.model, shape.tied)
    # What was tested differs from sentence to sentence, and the source matters.
    assert len({round(value, 3) for value in scores(checkpoint)}) == len(LINES)
    assert scores(checkpoint, quantize(checkpoint.model)) == pytest.approx(expected, abs=0.5)


def check_ties(model, tied):
    """One matrix, which training moves as one."""
    layers = model.source_embedding, model.target_embedding, model.output
    assert len({id(layer.weight) for layer in layers}) == (1 if tied else 3)


def main_quietly(words):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0


def test_an_imported_model_translates_and_spells(tmp_path):
    write_joeynmt(tmp_path / "run", JOEYNMT[1])
    checkpoint = joeynmt.load(str(tmp_path / "run"), joeynmt.Options())
    vocabulary = checkpoint.target_vocabulary
    ids = vocabulary.encode(["a bc d ef"])[0]
    assert vocabulary.pieces(ids) == ["a", "b@@", "c", "d", "e@@", "f"] and vocabulary.decode(ids) == "a bc d ef"
    assert vocabulary.unknown_pieces("a zz") == ["z@@", "z"]
    with pytest.raises(UserError, match="sampling is 0.1"):
        vocabulary.sample(["a"], 1, 0.1)
    found = Translator(checkpoint).search(["a bc d", "c"], beam_size=4, n_best=2)
    assert all(len(one) == 2 and one[0].score >= one[1].score for one in found)


def test_an_imported_model_is_trained_through_the_soft_beam(tmp_path):
    write_joeynmt(tmp_path / "run", JOEYNMT[1])
    start = tmp_path / "model.safetensors"
    save_checkpoint(start, joeynmt.load(str(tmp_path / "run"), joeynmt.Options()))
    for split in ("train", "dev"):
        for side, lines in zip(("source", "target"), (["a bc d", "c g"], ["g a", "d bc"]), strict=True):
            (tmp_path / f"{split}.{side}").write_text("\n".join(lines * 4) + "\n")
    config = make_config(tmp_path / "mine", tmp_path, {"objective": "soft_beam", "trainer.max_steps": 2})
    trained = train_quietly(dataclasses.replace(config, model=RNNsearchConfig()), start=start)
    before = load_checkpoint(start)
    assert trained.model.config == dataclasses.replace(before.model.config, dropout=RNNsearchConfig().dropout)
    assert trained.source_vocabulary.model == before.source_vocabulary.model
    changed = [
        name
        for name, one in trained.model.state_dict().items()
        if not torch.equal(one, before.model.state_dict()[name])
    ]
    assert set(changed) == set(before.model.state_dict())


def test_words_and_lower_case(tmp_path):
    write_joeynmt(tmp_path / "run", JOEYNMT[0], level="word", lowercase=True)
    vocabulary = joeynmt.load(str(tmp_path / "run"), joeynmt.Options()).source_vocabulary
    assert vocabulary.pieces(vocabulary.encode(["A bc  D"])[0]) == ["a", "<unk>", "d"]


@pytest.fixture(scope="module")
def sentencepiece(small_corpus, tmp_path_factory):
    """A SentencePiece model's file."""
    from nmt.text.pairs import pairs_from_files
    from nmt.text.vocabulary import VocabularyConfig, train_vocabularies

    pairs = pairs_from_files(small_corpus / "train.source", small_corpus / "train.target")
    path = tmp_path_factory.mktemp("pieces") / "pieces.model"
    path.write_bytes(train_vocabularies(pairs, VocabularyConfig(size=60))[0].model)
    return path, pairs.source[:20]


def test_sentencepiece_comes_along(sentencepiece, tmp_path):
    path, lines = sentencepiece
    write_opennmt(tmp_path / "model.pt", OPENNMT[0], transforms=["sentencepiece"], src_subword_model="gone.model")
    with pytest.raises(UserError, match="gone.model cannot be read"):
        opennmt.load(str(tmp_path / "model.pt"), opennmt.Options())
    options = opennmt.Options(source_subwords=str(path), target_subwords=str(path))
    vocabulary = opennmt.load(str(tmp_path / "model.pt"), options).source_vocabulary
    import sentencepiece as library

    processor = library.SentencePieceProcessor(model_proto=path.read_bytes())
    assert [vocabulary.surfaces(line) for line in lines] == processor.encode(list(lines), out_type=str)


def test_joeynmt_makes_no_piece_that_is_no_token(sentencepiece, tmp_path):
    path, lines = sentencepiece
    settings = {"tokenizer_type": "sentencepiece", "tokenizer_cfg": {"model_file": str(path)}}
    write_joeynmt(tmp_path / "run", JOEYNMT[0], **settings)
    vocabulary = joeynmt.load(str(tmp_path / "run"), joeynmt.Options()).source_vocabulary
    for line in lines:
        pieces = vocabulary.surfaces(line)
        assert all(len(piece) == 1 for piece in pieces)
        assert "".join(pieces).replace("▁", " ").strip() == " ".join(line.split())


REFUSED = [
    ("encoder", {"type": "transformer"}, "its encoder is a transformer"),
    ("decoder", {"attention": "multihead"}, "its attention is 'multihead'; bahdanau and luong"),
    ("decoder", {"activation": "relu"}, "its activation is 'relu'"),
    ("decoder", {"init_hidden": "mean"}, "its init_hidden is 'mean'"),
    ("decoder", {"rnn_type": "lstm"}, "its cells are gru and lstm"),
    ("decoder", {"hidden_size": 7}, "does not fit"),
    ("encoder", {"hidden_size": "many"}, "settings or weights that make no sense"),
    ("decoder", {"input_feeding": True}, "does not fit"),
]


@pytest.mark.parametrize(("part", "changed", "reason"), REFUSED, ids=lambda value: str(value)[:30])
def test_what_joeynmt_has_and_we_have_not(part, changed, reason, tmp_path):
    write_joeynmt(tmp_path / "run", JOEYNMT[0])
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    settings["model"][part] |= changed
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(UserError, match=reason):
        joeynmt.load(str(tmp_path / "run"), joeynmt.Options())


def test_a_folder_of_joeynmt_in_which_something_is_missing(tmp_path):
    folder = tmp_path / "run"
    write_joeynmt(folder, JOEYNMT[0])
    content = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "trg_vocab.txt").rename(tmp_path / "kept")
    with pytest.raises(UserError, match=r"trg_vocab\.txt is not beside it; copy it"):
        joeynmt.load(str(folder), joeynmt.Options())
    (tmp_path / "kept").rename(folder / "trg_vocab.txt")
    (folder / "codes").unlink()
    with pytest.raises(UserError, match="subword model elsewhere/codes cannot be read"):
        joeynmt.load(str(folder), joeynmt.Options())
    # joeynmt 1 names a language where 2 has settings.
    content["data"]["src"] = "de"
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match="no configuration of joeynmt 2"):
        joeynmt.load(str(folder), joeynmt.Options())
    (folder / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"config\.yaml cannot be read"):
        joeynmt.load(str(folder), joeynmt.Options())
    (folder / "best.ckpt").unlink()
    with pytest.raises(UserError, match=r"neither best\.ckpt nor latest\.ckpt"):
        joeynmt.load(str(folder), joeynmt.Options())


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"encoder_type": "transformer"}, "its encoder_type is transformer; only rnn or brnn"),
        ({"global_attention": "none"}, "its global_attention is none"),
        ({"global_attention_function": "sparsemax"}, "sparsemax"),
        ({"generator_function": "sparsemax"}, "its generator_function is sparsemax"),
        ({"copy_attn": True}, "its copy_attn is True"),
        ({"transforms": ["onmt_tokenize"]}, "its transforms onmt_tokenize"),
        ({"src_vocab_threshold": 5}, "src_vocab_threshold is 5"),
        ({"src_subword_model": ""}, "--source_subwords"),
    ],
    ids=str,
)
def test_what_opennmt_has_and_we_have_not(changed, reason, tmp_path):
    write_opennmt(tmp_path / "model.pt", OPENNMT[0], **changed)
    with pytest.raises(UserError, match=reason):
        opennmt.load(str(tmp_path / "model.pt"), opennmt.Options())


def test_weights_that_no_model_of_ours_has(tmp_path):
    write_opennmt(tmp_path / "model.pt", OPENNMT[0])
    found = read_checkpoint(tmp_path / "model.pt", [argparse.Namespace])
    found["model"]["decoder.gate.weight"] = torch.zeros(2, 2)
    torch.save(found, tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"holds 1 weights that no recurrent model of ours has: decoder\.gate\.weight"):
        opennmt.load(str(tmp_path / "model.pt"), opennmt.Options())


@pytest.mark.parametrize("name", ["decoder.attn.linear_out.weight", "encoder.rnn.weight_hh_l0"])
def test_weights_of_other_shapes(name, tmp_path):
    write_opennmt(tmp_path / "model.pt", OPENNMT[0])
    found = read_checkpoint(tmp_path / "model.pt", [argparse.Namespace])
    found["model"][name] = found["model"][name].flatten()
    torch.save(found, tmp_path / "model.pt")
    with pytest.raises(UserError, match="settings or weights that make no sense|model.bridge is layers"):
        opennmt.load(str(tmp_path / "model.pt"), opennmt.Options())


class Payload:
    """Unpickling it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("toolkit", ["joeynmt", "opennmt"])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_that_would_run_code_is_refused_and_does_not_run_it(toolkit, legacy, tmp_path, capsys):
    trap = tmp_path / "ran"
    write_joeynmt(tmp_path / "run", JOEYNMT[0])
    file = tmp_path / "run" / "best.ckpt"
    content = {"model_state": {}, "model": {}, "generator": {}, "vocab": {}, "opt": Payload(trap)}
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(SystemExit) as ended:
        main(["import", toolkit, str(file), "-o", str(tmp_path / "model.safetensors")])
    assert ended.value.code == 2
    assert "mkdir" in capsys.readouterr().err
    assert not trap.exists() and not (tmp_path / "model.safetensors").exists()
    # The trap works: what does not refuse it, runs it.
    torch.load(file, weights_only=False)
    assert trap.exists()


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", b"PK\x03\x04 cut off"])
def test_damaged_files_are_refused(content, tmp_path):
    write_joeynmt(tmp_path / "run", JOEYNMT[0])
    (tmp_path / "run" / "best.ckpt").write_bytes(content)
    with pytest.raises(UserError, match=r"best\.ckpt"):
        joeynmt.load(str(tmp_path / "run"), joeynmt.Options())
    with pytest.raises(UserError, match=r"best\.ckpt"):
        opennmt.load(str(tmp_path / "run" / "best.ckpt"), opennmt.Options())
    with pytest.raises(UserError, match="does not exist"):
        joeynmt.load(str(tmp_path / "nowhere"), joeynmt.Options())


def test_a_model_that_is_there_survives_an_import_that_ends_early(tmp_path, monkeypatch):
    write_joeynmt(tmp_path / "run", JOEYNMT[0])
    checkpoint = joeynmt.load(str(tmp_path / "run"), joeynmt.Options())
    target = tmp_path / "new" / "model.safetensors"
    target.parent.mkdir()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(target, checkpoint)
    assert list(target.parent.iterdir()) == []
