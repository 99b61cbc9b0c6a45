"""What is refused instead of imported, with the reason. Nothing that is imported can run code or says what is noise."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import transformers
from safetensors.torch import load_file, save_file

from nmt.checkpoint import load_checkpoint, save_checkpoint
from nmt.errors import UserError
from nmt.huggingface import library
from nmt.imports.hf import Options, load
from nmt.text.tokenizer import TokenizerVocabulary, pack
from nmt.text.vocabulary import Special
from tests import ROOT
from tests.unit.pretrained import SIZE, make_network, make_tokenizer, save


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save("marian", tmp_path / "marian")
    return tmp_path / "marian"


def change(path: Path, **values: Any) -> None:
    """Sets keys of a JSON file; None takes them away."""
    content = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def refused(source: Path, **options: Any) -> str:
    """The message, which is one line with the name of the source."""
    with pytest.raises(UserError) as raised:
        load(str(source), Options(**options))
    message = str(raised.value)
    assert "\n" not in message and len(message) < 800
    return message


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def code(marker: Path) -> str:
    """A module that makes a file when it is imported."""
    return f"from pathlib import Path\n\nPath({str(marker)!r}).touch()\n"


def test_no_model(tmp_path: Path) -> None:
    assert "cannot be opened" in refused(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert "cannot be opened" in refused(tmp_path / "empty")


def test_a_decoder_alone(tmp_path: Path) -> None:
    config = transformers.GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=1)
    with library("a test"):
        transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    assert "is no encoder-decoder (gpt2)" in refused(tmp_path / "gpt2")


def test_a_tokenizer_with_more_pieces_than_the_model(folder: Path) -> None:
    tokenizer = make_tokenizer("marian")
    tokenizer.add_tokens([f"more{i}" for i in range(SIZE)])
    tokenizer.save_pretrained(folder)
    assert f"tokenizer has {len(tokenizer)} pieces and the model embeddings for {SIZE} alone" in refused(folder)


def test_a_tokenizer_with_other_ids(folder: Path) -> None:
    make_tokenizer("t5").save_pretrained(folder)
    assert "pad_token_id is 1 in the model and 0 in its tokenizer" in refused(folder)


def test_no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    assert "tokenizer" in refused(folder)


def test_no_end(folder: Path) -> None:
    for name in ("config.json", "generation_config.json"):
        change(folder / name, eos_token_id=None)
    assert "eos_token_id is" in refused(folder)
    change(folder / "generation_config.json", eos_token_id=[2, 5])
    assert "eos_token_id is [2, 5]; a model with one such id is needed" in refused(folder)
    change(folder / "generation_config.json", eos_token_id=[2])
    assert load(str(folder), Options()).model.eos == 2


def test_one_id_for_padding_and_end(folder: Path) -> None:
    for name in ("config.json", "generation_config.json"):
        change(folder / name, pad_token_id=2)
    assert "2 is the id of padding and of the end of a sentence" in refused(folder)


def test_languages(folder: Path) -> None:
    assert "--source_language is xx, but the tokenizer" in refused(folder, source_language="xx")
    assert "--target_language is xx, but the tokenizer" in refused(folder, target_language="xx")


def test_weights_that_are_missing_of_another_size_or_cut_off(folder: Path) -> None:
    """A weight that is missing would be a random one."""
    weights = folder / "model.safetensors"
    whole = load_file(weights)
    name = "model.decoder.layers.1.fc1.weight"
    save_file({key: one for key, one in whole.items() if key != name}, weights, {"format": "pt"})
    assert f"lacks 1 weights of a MarianMTModel, such as {name}" in refused(folder)
    save_file({**whole, name: torch.zeros(3, 3)}, weights, {"format": "pt"})
    assert "cannot be opened" in refused(folder)
    save_file(whole, weights, {"format": "pt"})
    weights.write_bytes(weights.read_bytes()[:2000])
    assert "cannot be opened" in refused(folder)
    weights.unlink()
    assert "cannot be opened" in refused(folder)


def test_a_configuration_that_is_none(folder: Path) -> None:
    change(folder / "config.json", d_model="wide")
    assert "cannot be opened" in refused(folder)
    (folder / "config.json").write_text("{")
    assert "cannot be opened" in refused(folder)


def test_vocabularies_of_their_own(folder: Path) -> None:
    config = make_network("marian").config
    config.share_encoder_decoder_embeddings, config.tie_word_embeddings = False, False
    config.decoder_vocab_size = SIZE
    with library("a test"):
        transformers.MarianMTModel(config).save_pretrained(folder)
    assert "a vocabulary each for source and target" in refused(folder)


def test_pickled_weights_are_tensors_alone(folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    expected = load(str(folder), Options())
    (folder / "model.safetensors").unlink()
    state = make_network("marian").state_dict()
    torch.save(state, folder / "pytorch_model.bin")
    found = load(str(folder), Options()).model.state_dict()
    for name, one in expected.model.state_dict().items():
        assert torch.equal(found[name], one)
    for crafted in ({**state, "more": Payload(marker)}, Payload(marker)):
        torch.save(crafted, folder / "pytorch_model.bin")
        assert "cannot be opened" in refused(folder)
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(crafted))
        assert "cannot be opened" in refused(folder)
        assert not marker.exists()
        # The payload is one.
        pickle.loads((folder / "pytorch_model.bin").read_bytes())
        assert marker.exists()
        marker.unlink()


def test_code_of_a_model_is_not_run(folder: Path, tmp_path: Path) -> None:
    """Of an architecture that transformers does not know, it is refused; of one that it knows, left alone."""
    marker = tmp_path / "ran"
    names = ("configuration_mine", "modeling_mine", "tokenization_mine")
    for name in names:
        (folder / f"{name}.py").write_text(code(marker))
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(code(marker))
    auto = {
        "AutoConfig": "configuration_mine.Config",
        "AutoModelForSeq2SeqLM": "modeling_mine.Model",
        "AutoTokenizer": ["tokenization_mine.Tokenizer", None],
    }
    change(folder / "config.json", auto_map=auto, attn_implementation="someone/attention")
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": auto["AutoTokenizer"]})
    checkpoint = load(str(folder), Options())
    save_checkpoint(tmp_path / "model.safetensors", checkpoint)
    again = load_checkpoint(tmp_path / "model.safetensors")
    assert "auto_map" not in again.model.config.network  # type: ignore[union-attr]
    change(folder / "config.json", model_type="mine")
    assert "cannot be opened" in refused(folder)
    change(folder / "config.json", model_type="marian")
    change(folder / "tokenizer_config.json", tokenizer_class="MyTokenizer")
    load_or_refuse(folder)
    assert not marker.exists()


def load_or_refuse(folder: Path) -> None:
    try:
        load(str(folder), Options())
    except UserError as error:
        assert "tokenizer" in str(error)


def test_a_crafted_model_file_holds_no_code(folder: Path, tmp_path: Path) -> None:
    """Of a tokenizer in a model file there are names without folders and no Python; a configuration runs none."""
    marker = tmp_path / "ran"
    content = json.loads(pack(make_tokenizer("marian"), "source", SIZE, Special(1, 3, 1, 2)))
    first = next(iter(content["files"].values()))
    for name in ("../escaped.json", "tokenization_mine.py", ".hidden", "", "a/b.json"):
        crafted = {**content, "files": {**content["files"], name: first}}
        with pytest.raises(UserError, match="is damaged"):
            TokenizerVocabulary(json.dumps(crafted).encode())
    assert TokenizerVocabulary(json.dumps(content).encode()).encode(["ba"]) == [[6]]
    checkpoint = load(str(folder), Options())
    config = checkpoint.model.config
    for odd in ({"attn_implementation": "someone/attention"}, {"auto_map": {"AutoConfig": "mine.Config"}}):
        config.network = {**config.network, **odd}  # type: ignore[union-attr]
        save_checkpoint(tmp_path / "crafted.safetensors", checkpoint)
        again = load_checkpoint(tmp_path / "crafted.safetensors")
        assert again.model.network.config._attn_implementation == "eager"  # type: ignore[union-attr]
    config.network = {**config.network, "model_type": "mine"}  # type: ignore[union-attr]
    save_checkpoint(tmp_path / "crafted.safetensors", checkpoint)
    with pytest.raises(UserError, match="does not fit this version"):
        load_checkpoint(tmp_path / "crafted.safetensors")
    assert not marker.exists()


PROGRAM = """
import sys
import nmt, nmt.commands.export, nmt.commands.translate, nmt.pretrained_folder
from nmt import cli

nmt.load("ours.safetensors").translate(["the cat"])
print("transformers" in sys.modules)
for words in (
    "import hf marian -o model.safetensors",
    "translate model.safetensors text -o out",
    "translate model.safetensors text --beam_size 1 --int8 -o out",
    "score model.safetensors --source text --target text -o out",
    "export model.safetensors --format hf -o back",
):
    try:
        cli.main(words.split())
    except SystemExit as ended:
        print(ended.code)
"""


def test_nothing_is_said_but_by_us(folder: Path, tiny_checkpoint: Any) -> None:
    """And transformers, which takes seconds to import, is not imported for other models."""
    where = folder.parent
    (where / "text").write_text("ba be\n" + "ku " * 60 + "\n")
    save_checkpoint(where / "ours.safetensors", tiny_checkpoint())
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("TRANSFORMERS_VERBOSITY", None)
    options: dict[str, Any] = {"cwd": where, "env": environment, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", PROGRAM], **options)
    assert done.stdout == "False\n" + "0\n" * 5, done.stderr
    expected = ["parameters", "beam 5", "beam 1", "score log p", "perplexity", "from_pretrained"]
    said = done.stderr.splitlines()
    assert len(said) == len(expected) and all(word in line for word, line in zip(expected, said, strict=True)), said


def test_what_transformers_says_to_others_stays(folder: Path) -> None:
    from transformers.utils import logging

    try:
        for said, bars in ((logging.INFO, True), (logging.WARNING, False)):
            logging.set_verbosity(said)
            (logging.enable_progress_bar if bars else logging.disable_progress_bar)()
            load(str(folder), Options())
            assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (said, bars)
    finally:
        logging.set_verbosity_warning()
        logging.enable_progress_bar()
