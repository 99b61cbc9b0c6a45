"""Models of transformers go back to it: what is exported is opened, computes and writes the same; nothing is left half
done."""

import copy
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import transformers

from nmt import cli
from nmt.checkpoint import save_checkpoint
from nmt.errors import UserError
from nmt.huggingface import library
from nmt.imports.hf import Options, load
from nmt.models import Pretrained
from nmt.pretrained_folder import export_folder
from nmt.translator import Translator
from tests.unit.pretrained import KINDS, OTHERS, Case, make_case, save

LINES = 40


@pytest.fixture(scope="module", params=(*KINDS, *OTHERS))
def case(request: Any, tmp_path_factory: Any) -> Case:
    return make_case(request.param, tmp_path_factory.mktemp("models") / request.param)


def opened(folder: Path) -> tuple[Any, Any]:
    with library("a test"):
        network = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
        return network.eval(), transformers.AutoTokenizer.from_pretrained(folder)


def generated(network: Any, tokenizer: Any, lines: list[str], **options: Any) -> list[list[int]]:
    encoded = tokenizer(lines, return_tensors="pt", padding=True, return_token_type_ids=False)
    return network.generate(**encoded, do_sample=False, **options).tolist()


def settings_of(folder: Path, name: str) -> dict[str, Any]:
    """Without the precision of the parts of a model, which transformers notes when it opens one."""
    found = json.loads((folder / name).read_text())
    for part in ("encoder", "decoder"):
        if isinstance(found.get(part), dict):
            found[part].pop("dtype", None)
    return found


def test_what_is_exported_is_the_original(case: Case, tmp_path: Path) -> None:
    export_folder(case.checkpoint, tmp_path / "back")
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert settings_of(tmp_path / "back", name) == settings_of(case.folder, name), name
    names = sorted(file.name for file in case.folder.iterdir())
    assert sorted(file.name for file in (tmp_path / "back").iterdir()) == names
    network, tokenizer = opened(tmp_path / "back")
    state = case.network.state_dict()
    assert network.state_dict().keys() == state.keys()
    for name, one in network.state_dict().items():
        assert torch.equal(one, state[name]), name
    # Tied weights are tied again, and stored once.
    assert len(list(network.parameters())) == len(list(case.network.parameters()))
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (tmp_path / "back", case.folder)]
    assert sizes[0] == sizes[1]
    lines = case.lines[:LINES]
    assert tokenizer(lines)["input_ids"] == case.tokenizer(lines)["input_ids"]
    for options in ({"num_beams": 1}, {"num_beams": 4, "length_penalty": 0.8}):
        options["max_new_tokens"] = 12
        assert generated(network, tokenizer, lines, **options) == generated(
            case.network, case.tokenizer, lines, **options
        )


def test_what_was_trained_is_exported(case: Case, tmp_path: Path) -> None:
    """Other weights than at the start, computed on by transformers as by us."""
    model = copy.deepcopy(case.checkpoint.model)
    assert isinstance(model, Pretrained)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for one in (each for each in model.parameters() if each.requires_grad):
            one.add_(torch.randn(one.shape, generator=generator), alpha=0.02)
    checkpoint = dataclasses.replace(case.checkpoint, model=model)
    export_folder(checkpoint, tmp_path / "back")
    network, tokenizer = opened(tmp_path / "back")
    lines = case.lines[:LINES]
    found = Translator(checkpoint).search(lines, beam_size=1, max_ratio=0, max_extra=12)
    start = torch.tensor(model.config.start)
    unlike = 0
    for one, line in zip(found, lines, strict=True):
        encoded = tokenizer([line], return_tensors="pt", return_token_type_ids=False)
        ids = checkpoint.target_vocabulary.ids(one[0].pieces[:-1])
        read = torch.cat([start, torch.tensor(ids, dtype=torch.long)]).unsqueeze(0)
        with torch.no_grad():
            logits = network(**encoded, decoder_input_ids=read).logits[0, len(start) - 1 :]
            before = case.network(**encoded, decoder_input_ids=read).logits[0, len(start) - 1 :]
        wanted = torch.tensor([*ids, model.eos])
        theirs = logits.log_softmax(dim=1).gather(1, wanted.unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(torch.tensor(one[0].token_scores), theirs, atol=1e-3, rtol=1e-4)
        unlike += not torch.allclose(logits, before, atol=1e-3)
    assert unlike == LINES


def test_a_target_language_is_exported(tmp_path: Path) -> None:
    """As what is forced, or where the model begins with it, as the start."""
    for kind, forced, start in (("m2m100", 4, 2), ("mbart", None, 4)):
        save(kind, tmp_path / kind)
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / kind)
        with pytest.MonkeyPatch.context() as patch:
            # A tokenizer made for one language has no setting of it.
            patch.setattr(type(tokenizer), "tgt_lang", None, raising=False)
            checkpoint = load(str(tmp_path / kind), Options(target_language="en"))
        assert checkpoint.model.config.start[-1] == 4  # type: ignore[union-attr]
        export_folder(checkpoint, tmp_path / f"{kind} back")
        network, tokenizer = opened(tmp_path / f"{kind} back")
        assert network.generation_config.forced_bos_token_id == forced
        assert network.generation_config.decoder_start_token_id == start
        lines = ["ba be", "ku"]
        ours = Translator(checkpoint).translate(lines, beam_size=1, max_ratio=0, max_extra=8)
        skipped = 1 if forced is None else 2
        theirs = [row[skipped:] for row in generated(network, tokenizer, lines, num_beams=1, max_new_tokens=8)]
        for mine, row in zip(ours, theirs, strict=True):
            assert tokenizer.decode(row, skip_special_tokens=True).startswith(mine)
    assert ours[0]


def test_settings_that_transformers_reads_and_would_not_save(tmp_path: Path) -> None:
    save("bart", tmp_path / "bart")
    name = tmp_path / "bart" / "generation_config.json"
    odd = {**json.loads(name.read_text()), "early_stopping": True, "num_beams": 1, "temperature": 0.5}
    name.write_text(json.dumps(odd))
    export_folder(load(str(tmp_path / "bart"), Options()), tmp_path / "back")
    assert settings_of(tmp_path / "back", "generation_config.json") == odd
    opened(tmp_path / "back")


def test_an_interrupted_export_leaves_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    save("marian", tmp_path / "marian")
    checkpoint = load(str(tmp_path / "marian"), Options())
    there, whole = sorted(tmp_path.iterdir()), transformers.GenerationConfig.to_json_file
    for kind, error in ((KeyboardInterrupt, KeyboardInterrupt()), (UserError, OSError(28, "No space left on device"))):
        seen: list[list[str]] = []

        def broken(self: Any, path: Any, error: BaseException = error, seen: Any = seen, **options: Any) -> None:
            if options:  # of save_pretrained
                return whole(self, path, **options)
            seen.append(sorted(file.name for file in Path(path).parent.iterdir()))
            raise error

        # The last file that is written.
        with monkeypatch.context() as patch, pytest.raises(kind):
            patch.setattr(transformers.GenerationConfig, "to_json_file", broken)
            export_folder(checkpoint, tmp_path / "back")
        assert "model.safetensors" in seen[0] and "tokenizer.json" in seen[0]
        assert sorted(tmp_path.iterdir()) == there
    export_folder(checkpoint, tmp_path / "back")
    assert len(list((tmp_path / "back").iterdir())) == 5


def test_an_interrupted_import_leaves_nothing(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    save("marian", tmp_path / "marian")
    words = ["import", "hf", str(tmp_path / "marian"), "-o", str(tmp_path / "model.safetensors")]

    def run() -> tuple[Any, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        return ended.value.code, capsys.readouterr().err

    there, whole = sorted(tmp_path.iterdir()), Path.write_bytes
    for code, error in ((130, KeyboardInterrupt()), (2, OSError(28, "No space left on device"))):

        def broken(self: Path, content: bytes, error: BaseException = error) -> int:
            if "safetensors" not in self.name:
                return whole(self, content)
            whole(self, content[: len(content) // 2])
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", broken)
            found, said = run()
        assert (found, said.count("\n")) == (code, 1), said
        assert sorted(tmp_path.iterdir()) == there
    assert run()[0] == 0
    before = (tmp_path / "model.safetensors").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", broken)
        assert run()[0] == 2
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_what_is_not_of_transformers_is_refused(tmp_path: Path, tiny_checkpoint: Any, capsys: Any) -> None:
    save_checkpoint(tmp_path / "ours.safetensors", tiny_checkpoint())
    save("marian", tmp_path / "marian")
    save_checkpoint(tmp_path / "theirs.safetensors", load(str(tmp_path / "marian"), Options()))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    shutil.rmtree(tmp_path / "marian")
    there = sorted(tmp_path.iterdir())
    for model, words, message in (
        ("ours", ["-o", "new", "--format", "hf"], "transformers has no model like this RNNsearch"),
        ("theirs", ["-o", "new"], "--format hf writes it for transformers"),
        ("theirs", ["-o", "full", "--format", "hf"], "holds something"),
        ("theirs", ["-o", "new", "--format", "hf", "--alpha", "0.5"], "alpha is a setting of the runner"),
        ("theirs", ["-o", "new", "--format", "tf"], "choose onnx or hf"),
    ):
        words[1] = str(tmp_path / words[1])
        with pytest.raises(SystemExit) as ended:
            cli.main(["export", str(tmp_path / f"{model}.safetensors"), *words])
        said = capsys.readouterr().err
        assert ended.value.code == 2 and message in said and said.count("\n") == 1, said
        assert sorted(tmp_path.iterdir()) == there
    with pytest.raises(SystemExit) as ended:
        words = ["-o", str(tmp_path / "new"), "--format", "hf"]
        cli.main(["export", str(tmp_path / "theirs.safetensors"), *words])
    assert ended.value.code == 0 and (tmp_path / "new" / "config.json").exists()
