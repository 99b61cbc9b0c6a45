"""Recurrent models of fairseq and Marian: what an independent forward pass computes, and what is refused."""

import dataclasses
import io
import random
import sys
import types
import zipfile

import numpy as np
import pytest
import torch

from nmt.checkpoint import load_checkpoint
from nmt.cli import main
from nmt.errors import UserError
from nmt.imports import fairseq, marian
from nmt.models import RNNsearchConfig, quantize
from nmt.objectives.objective import shifted
from nmt.scoring import score_ids
from nmt.search import SearchConfig, beam_search
from nmt.text.batching import pad
from nmt.translator import Translator
from tests.unit.numpy_peers import CODES, FairseqShape, MarianShape, write_fairseq, write_marian
from tests.unit.runs import make_config, train_quietly
from tests.unit.test_imports_recurrent import CUT, Payload, cut, main_quietly

FAIRSEQ = [
    FairseqShape(),
    FairseqShape(layers=2, encoder=4, directions=2, settings="cfg"),
    FairseqShape(layers=2, encoder=3, directions=2, target=4, out=4, shared="output", settings="omegaconf"),
    FairseqShape(encoder=3, source=6, shared="all"),
]
MARIAN = [
    MarianShape(),
    MarianShape(layers=2, upper=2, direction="alternating", tied="all"),
    MarianShape(kind="amun", tied="output"),
    MarianShape(cell="lstm", layers=2, upper=3, attention=4),
    MarianShape(kind="nematus", cell="gru-nematus", upper=3, skip=True),
    MarianShape(kind="amun", normed=True, tied="output"),
    MarianShape(cell="lstm", layers=2, upper=2, direction="alternating", normed=True, tied="all", seed=5),
]
LONGEST = 8
SEARCH = SearchConfig(5, max_ratio=0, max_extra=LONGEST)


def random_lines(count, seed):
    """Words that are one token, two, or none."""
    chosen = random.Random(seed)
    words = ["a", "bc", "c", "d", "ef", "g", "h", "i", "zz"]
    return [" ".join(chosen.choices(words, k=chosen.randint(1, 7))) for _ in range(count)]


def check_peer(peer, checkpoint, count=200):
    """Log-probabilities and the best of a beam of 5, of as many sentences; in float64, then in float32."""
    sources, targets = random_lines(count, 1), random_lines(count, 2)
    ids = checkpoint.source_vocabulary.encode(sources), checkpoint.target_vocabulary.encode(targets)
    scores = [peer.score(cut(one, CUT), cut(other, CUT)) for one, other in zip(sources, targets, strict=True)]
    # The source matters, and so does the target.
    assert len({round(value, 3) for value in scores}) > 0.9 * count
    own = dataclasses.replace(SEARCH, refill=peer.refills, stop="full" if peer.refills else "exact")
    found = [peer.search(cut(source, CUT), 5, LONGEST) for source in sources]
    assert len({tuple(tokens) for _, tokens in found}) > count / 20
    ours = [one.log_probability for one in score_ids(checkpoint.model, *ids, SEARCH)]
    assert ours == pytest.approx(scores, abs=1e-4)
    translated = Translator(checkpoint).search(sources, **dataclasses.asdict(own))
    assert (
        sum([*tokens, "</s>"] == one[0].pieces for (_, tokens), one in zip(found, translated, strict=True))
        >= 0.99 * count
    )
    model = checkpoint.model.double()
    assert exact_scores(model, *ids) == pytest.approx(scores, abs=1e-10)
    best = [one[0] for one in beam_search(model, *pad(ids[0], model.padding, model.eos), own)]
    assert [checkpoint.target_vocabulary.pieces(one.tokens) for one in best] == [tokens for _, tokens in found]
    assert [one.score for one in best] == pytest.approx([value for value, _ in found], abs=1e-5)


def exact_scores(model, sources, targets):
    """In the model's precision, where `score_ids` has sums in float32."""
    memory, (target, _) = model.encode(*pad(sources, model.padding, model.eos)), pad(targets, model.padding, model.eos)
    with torch.no_grad():
        logits = model.project(model.teacher_force(shifted(model, target), memory))
    found = logits.log_softmax(dim=2).gather(2, target.unsqueeze(2)).squeeze(2)
    return found.masked_fill(target == model.padding, 0.0).sum(dim=1).tolist()


def import_peer(toolkit, source, folder, *flags):
    """The checkpoint, with the same BPE codes for both sides."""
    (folder / "codes").write_text(CODES)
    subwords = [word for side in ("source", "target") for word in (f"--{side}_subwords", str(folder / "codes"))]
    main_quietly(["import", toolkit, str(source), "-o", str(folder / "own.safetensors"), *subwords, *flags])
    return load_checkpoint(folder / "own.safetensors")


def matrices(model):
    """How many matrices embeddings and output layer are."""
    return len({id(layer.weight) for layer in (model.source_embedding, model.target_embedding, model.output)})


@pytest.mark.parametrize("shape", FAIRSEQ, ids=str)
def test_an_imported_fairseq_model_is_the_peers(shape, tmp_path):
    peer = write_fairseq(tmp_path / "checkpoint_best.pt", shape)
    checkpoint = import_peer("fairseq", tmp_path / "checkpoint_best.pt", tmp_path)
    assert matrices(checkpoint.model) == {"none": 3, "output": 2, "all": 1}[shape.shared]
    check_peer(peer, checkpoint)
    assert checkpoint.info["languages"] == {"source": "aa", "target": "bb"}
    assert "@@" not in Translator(load_checkpoint(tmp_path / "own.safetensors")).search(["a bc d"])[0][0].text


@pytest.mark.parametrize("shape", MARIAN, ids=str)
def test_an_imported_marian_model_is_the_peers(shape, tmp_path):
    peer = write_marian(tmp_path / "model.npz", shape)
    checkpoint = import_peer("marian", tmp_path, tmp_path)
    assert matrices(checkpoint.model) == {"none": 3, "output": 2, "all": 1}[shape.tied]
    check_peer(peer, checkpoint)
    model = load_checkpoint(tmp_path / "own.safetensors").model
    ids = [[5, 6, 7], [8]]
    plain, rounded = (score_ids(one, ids, ids, SEARCH) for one in (model, quantize(model)))
    assert [one.score for one in rounded] == pytest.approx([one.score for one in plain], abs=0.5)
    vocabulary = checkpoint.target_vocabulary
    # A token that YAML takes for a number or nothing is one.
    assert vocabulary.ids(["null", "1.0"]) == [15, 16]
    assert vocabulary.pieces(range(4)) == ["<pad>", "<unk>", "<s>", "</s>"]


def test_a_model_that_nematus_wrote(tmp_path):
    peer = write_marian(tmp_path / "model.npz", MarianShape(kind="nematus", cell="gru-nematus"), old=True)
    checkpoint = import_peer("marian", tmp_path / "model.npz", tmp_path)
    check_peer(peer, checkpoint, 40)
    # The names of its special tokens may be words of a text.
    assert checkpoint.source_vocabulary.pieces(range(4)) == ["<pad>", "<unk>", "<s>", "</s>"]


@pytest.mark.parametrize("write", [write_fairseq, write_marian])
def test_an_imported_model_is_trained_through_the_soft_beam(write, tmp_path):
    shapes = {write_fairseq: FairseqShape(encoder=3, out=4, target=4, shared="output"), write_marian: MARIAN[5]}
    name = {write_fairseq: "fairseq", write_marian: "marian"}[write]
    write(tmp_path / "model.npz", shapes[write])
    import_peer(name, tmp_path / "model.npz", tmp_path)
    for split in ("train", "dev"):
        for side, lines in zip(("source", "target"), (["a bc d", "c g"], ["g a", "d bc"]), strict=True):
            (tmp_path / f"{split}.{side}").write_text("\n".join(lines * 4) + "\n")
    start = tmp_path / "own.safetensors"
    config = make_config(tmp_path / "mine", tmp_path, {"objective": "soft_beam", "trainer.max_steps": 2})
    trained = train_quietly(dataclasses.replace(config, model=RNNsearchConfig()), start=start)
    before = load_checkpoint(start).model.state_dict()
    still = {name for name, one in trained.model.state_dict().items() if torch.equal(one, before[name])}
    assert not still


FAIRSEQ_REFUSED = [
    ({"arch": "transformer"}, "its arch is transformer; only lstm"),
    ({"arch": "lstm_lm"}, "its arch is lstm_lm"),
    ({"task": "multilingual_translation"}, "its task is multilingual_translation"),
    ({"criterion": "adaptive_loss"}, "an adaptive softmax"),
    ({"share_decoder_input_output_embed": True}, "holds 2 weights that no recurrent model of ours has: decoder.fc_out"),
    ({"source_lang": "cc"}, r"needs dict.cc.txt, which is not beside it; give --source_dictionary FILE"),
]


@pytest.mark.parametrize(("changed", "reason"), FAIRSEQ_REFUSED, ids=str)
@pytest.mark.parametrize("settings", ["args", "omegaconf"])
def test_what_fairseq_has_and_we_have_not(changed, reason, settings, tmp_path):
    path = tmp_path / "model.pt"
    write_fairseq(path, FairseqShape(settings=settings), **changed)
    with pytest.raises(UserError, match=reason):
        fairseq.load(str(path), fairseq.Options())


def test_parts_of_a_fairseq_model_that_are_missing_or_damaged(tmp_path, caplog):
    path = tmp_path / "model.pt"
    write_fairseq(path, FairseqShape())
    whole = torch.load(path, weights_only=False)

    def load(**flags):
        return fairseq.load(str(path), fairseq.Options(**flags))

    assert load().source_vocabulary.surfaces("a bc") == ["a", "bc"]
    assert "holds pieces of words, but lines are cut at spaces; give --source_subwords" in caplog.text
    weights = {name: value for name, value in whole["model"].items() if "attention" not in name}
    cases = [
        ({"model": weights}, "its decoder has no attention"),
        ({"model": {**whole["model"], "decoder.gate": torch.zeros(2)}}, "holds 1 weights that no recurrent model"),
        ({"model": {**whole["model"], "decoder.fc_out.bias": torch.zeros(3)}}, "3 rows in output.bias, but 16 tokens"),
        ({"args": None}, "is no checkpoint of fairseq"),
        ({"args": None, "cfg": {"model": None}}, "settings without a task and a model"),
    ]
    for changed, reason in cases:
        torch.save({**whole, **changed}, path)
        with pytest.raises(UserError, match=reason):
            load()
    torch.save(whole, path)
    for content, reason in (("a\n", "line 1 is no token and its count"), ("a 3\na 2\n", "a token stands twice")):
        (tmp_path / "other").write_text(content)
        with pytest.raises(UserError, match=reason):
            load(target_dictionary=str(tmp_path / "other"))
    (tmp_path / "other").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="neither a SentencePiece model nor BPE codes"):
        load(target_subwords=str(tmp_path / "other"))


MARIAN_REFUSED = [
    ({"type": "transformer"}, "its type is transformer; only s2s or amun or nematus"),
    ({"layer-normalization": True, "enc-cell": "gru-nematus"}, "its layer-normalization is that of gru-nematus"),
    ({"layer-normalization": True}, "has no weight encoder_bi_gamma1"),
    ({"enc-type": "bi-unidirectional"}, "its enc-type is bi-unidirectional"),
    ({"enc-cell": "ssru"}, "its enc-cell is ssru"),
    ({"enc-cell": "lstm"}, "its enc-cell and dec-cell are of two kinds"),
    ({"enc-cell-depth": 2}, "its enc-cell-depth is 2; only 1"),
    ({"dec-cell-base-depth": 4}, "its dec-cell-base-depth is 4; only 2"),
    ({"enc-depth": 2, "skip": True}, "skip connections in its encoder"),
    ({"enc-depth": 2}, "no weight encoder_bi_l2_cell1_W"),
    ({"right-left": True}, "its right-left is True"),
    ({"dim-emb": "x", "dec-depth": "many"}, "settings or weights that make no sense"),
]


@pytest.mark.parametrize(("changed", "reason"), MARIAN_REFUSED, ids=str)
def test_what_marian_has_and_we_have_not(changed, reason, tmp_path):
    write_marian(tmp_path / "model.npz", MarianShape(), settings=changed)
    with pytest.raises(UserError, match=reason):
        marian.load(str(tmp_path / "model.npz"), marian.Options())


def test_vocabularies_of_marian(tmp_path):
    path = tmp_path / "model.npz"
    write_marian(path, MarianShape())

    def load(**flags):
        return marian.load(str(path), marian.Options(**flags))

    own = tmp_path / "vocab.yml"
    kept = own.read_text()
    assert load().source_vocabulary.encode(["a h zz"]) == [[4, 11, 1]]
    # Rows without a token; tokens without a row.
    own.write_text(kept.replace('"<unk>": 1\na: 2\n', '"<unk>": 1\n').replace("1.0: 14", "l: 15"))
    vocabulary = load().source_vocabulary
    assert vocabulary.pieces([4, 16]) == ["<unused2>", "<unused14>"] and vocabulary.encode(["a l h"]) == [[1, 1, 11]]
    for text, reason in (
        ("[", "vocab.yml cannot be read as YML"),
        ("- a", "holds no tokens with their numbers"),
        ("a: 0\nb: 1\n", "has no token </s>"),
        ("a: b\n", "make no sense"),
    ):
        own.write_text(text)
        with pytest.raises(UserError, match=reason):
            load()
    own.unlink()
    with pytest.raises(UserError, match=r"names the vocabulary gone/vocab.yml, which is not there; give --source_voc"):
        load()
    (tmp_path / "model.npz.decoder.yml").unlink()
    with pytest.raises(UserError, match=r"does not say where its vocabularies are; give --source_vocabulary FILE"):
        load()
    (tmp_path / "lines").write_text("</s>\n<unk>\n" + "\n".join("abcdefghijklm") + "\n")
    flags = {f"{side}_vocabulary": str(tmp_path / "lines") for side in ("source", "target")}
    assert load(**flags).source_vocabulary.encode(["a zz c"]) == [[4, 1, 6]]


def test_a_sentencepiece_vocabulary_of_marian(tmp_path):
    import io

    import sentencepiece

    model = io.BytesIO()
    lines = ["a bad cab", "dab a cad", "abba baba", "a cab"] * 5
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=15, model_type="bpe", bos_id=-1, eos_id=0,
        unk_id=1, minloglevel=2,
    )  # fmt: skip
    (tmp_path / "vocab.spm").write_bytes(model.getvalue())
    peer = write_marian(tmp_path / "model.npz", MarianShape())
    flags = {f"{side}_vocabulary": str(tmp_path / "vocab.spm") for side in ("source", "target")}
    checkpoint = marian.load(str(tmp_path / "model.npz"), marian.Options(**flags))
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    peer.tokens = [processor.id_to_piece(number) for number in range(15)]
    for line in lines[:4]:
        pieces = processor.encode(line, out_type=str)
        ids = checkpoint.source_vocabulary.encode([line])
        assert checkpoint.source_vocabulary.pieces(ids[0]) == pieces
        assert checkpoint.target_vocabulary.decode(ids[0]) == line
        found = score_ids(checkpoint.model, ids, ids, SEARCH)[0].log_probability
        assert found == pytest.approx(peer.score(pieces, pieces), abs=1e-4)


class Disguised(Payload):
    """Asks for a function of a module whose names are stand-ins."""

    def __reduce__(self):
        return sys.modules["fairseq"].run, (str(self.path),)


@pytest.mark.parametrize("kind", [Payload, Disguised])
def test_a_fairseq_checkpoint_that_would_run_code_does_not_run_it(kind, tmp_path, monkeypatch, capsys):
    module = types.ModuleType("fairseq")
    exec("import os\ndef run(path):\n    os.mkdir(path)", module.__dict__)
    monkeypatch.setitem(sys.modules, "fairseq", module)
    trap, file = tmp_path / "ran", tmp_path / "model.pt"
    write_fairseq(file, FairseqShape())
    whole = torch.load(file, weights_only=False)
    torch.save({**whole, "args": kind(trap)}, file)
    with pytest.raises(SystemExit) as ended:
        main(["import", "fairseq", str(file), "-o", str(tmp_path / "own.safetensors")])
    assert ended.value.code == 2
    told = "mkdir, and only tensors and plain values" if kind is Payload else "is no checkpoint of fairseq"
    assert told in capsys.readouterr().err
    assert not trap.exists() and not (tmp_path / "own.safetensors").exists()
    # The trap works: what does not refuse it, runs it.
    torch.load(file, weights_only=False)
    assert trap.exists()


def test_a_marian_file_that_would_run_code_does_not_run_it(tmp_path, capsys):
    trap, file = tmp_path / "ran", tmp_path / "model.npz"
    np.savez(file, decoder_b_att=np.array([Payload(trap)], dtype=object))
    with pytest.raises(SystemExit) as ended:
        main(["import", "marian", str(file), "-o", str(tmp_path / "own.safetensors")])
    assert ended.value.code == 2
    assert "decoder_b_att.npy holds Python objects" in capsys.readouterr().err
    assert not trap.exists() and not (tmp_path / "own.safetensors").exists()
    np.load(file, allow_pickle=True)["decoder_b_att"]
    assert trap.exists()


def test_damaged_and_compressed_files_of_marian(tmp_path):
    path = tmp_path / "model.npz"
    write_marian(path, MarianShape())
    whole = path.read_bytes()

    def refused(content, reason):
        path.write_bytes(content)
        with pytest.raises(UserError, match=reason):
            marian.load(str(path), marian.Options())

    refused(b"", "is no whole npz file")
    refused(whole[: len(whole) // 2], "is no whole npz file")
    # Shapes that are others than the arrays'.
    header = b"'shape': (10, 5)"
    assert header in whole
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as archive, zipfile.ZipFile(io.BytesIO(whole)) as source:
        for name in source.namelist():
            archive.writestr(name, source.read(name).replace(header, b"'shape': (9, 10)"))
    refused((tmp_path / "other.npz").read_bytes(), "is no whole npz file")
    with np.load(io.BytesIO(whole)) as arrays:
        np.savez_compressed(tmp_path / "packed.npz", **arrays)
    refused((tmp_path / "packed.npz").read_bytes(), "is compressed; write it again by numpy.savez")
    with pytest.raises(UserError, match="is no npz file; give Marian's model.npz"):
        marian.load(str(tmp_path / "model.bin"), marian.Options())
    with pytest.raises(UserError, match="cannot be read"):
        marian.load(str(tmp_path / "none.npz"), marian.Options())
    np.savez(path, a=np.zeros(2))
    with pytest.raises(UserError, match=r"holds no special:model.yml of Marian, and model.npz.json of Nematus is not"):
        marian.load(str(path), marian.Options())
