"""Vocabularies whose special ids are not ours: what counts, leaves out or passes over special ids takes theirs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from nmt import cli
from nmt.config import DataConfig
from nmt.models import Narrowed, Pretrained
from nmt.runs.preparation import prepare
from nmt.search import SearchConfig, beam_search
from nmt.shortlist import Shortlist
from nmt.text.encoding import encode_pairs
from nmt.text.tokenizer import TokenizerVocabulary, pack
from nmt.text.vocabulary import Special
from nmt.translator import Translator
from tests.unit.pretrained import SIZE, WORDS, Case, make_case, make_tokenizer, model_of, sources


@pytest.fixture(scope="module", params=("marian", "t5", "bart", "bert2bert"))
def case(request: Any, tmp_path_factory: Any) -> Case:
    return make_case(request.param, tmp_path_factory.mktemp("models") / request.param)


def pairs_of(case: Case) -> list[tuple[str, str]]:
    return list(zip(case.lines, case.lines[::-1], strict=True))


def test_a_shortlist_has_the_special_ids_of_the_model(case: Case) -> None:
    vocabulary = case.checkpoint.target_vocabulary
    shortlist = Shortlist.learn(pairs_of(case), vocabulary, vocabulary, best=4, frequent=6)
    special = set(vocabulary.special)
    assert special <= set(shortlist.frequent.tolist()) and len(shortlist.frequent) == 6 + len(special)
    assert shortlist.frequent.tolist() == sorted(shortlist.frequent.tolist())
    assert not np.isin(shortlist.best, list(special)).any() and (shortlist.best >= 0).any()


def test_the_search_over_candidates_is_that_over_a_masked_vocabulary(case: Case) -> None:
    model = model_of(case)
    vocabulary = case.checkpoint.target_vocabulary
    shortlist = Shortlist.learn(pairs_of(case), vocabulary, vocabulary, best=4, frequent=6)
    rows = vocabulary.encode(case.lines[:6])
    every, allowed = shortlist.candidates(rows)
    assert len(every) < SIZE - 4
    source, lengths = sources(case, 6)
    config = SearchConfig(4, n_best=2, max_ratio=0, max_extra=8)
    outside = torch.ones(6, SIZE, dtype=torch.bool)
    outside[:, every] = ~allowed

    class Masked(Pretrained):
        """All logits, those outside at -inf."""

        def project(self, features: torch.Tensor) -> torch.Tensor:
            return super().project(features).masked_fill(self.outside.unsqueeze(1), -torch.inf)

    slow = Masked(model.config, SIZE, SIZE).eval()
    slow.load_state_dict(model.state_dict())
    narrowed = beam_search(Narrowed(model, every, allowed), source, lengths, config)
    for row, found in enumerate(narrowed):
        slow.outside = outside[row : row + 1]
        alone = beam_search(slow, source[row : row + 1, : int(lengths[row])], lengths[row : row + 1], config)[0]
        assert [every[one.tokens].tolist() for one in found] == [one.tokens for one in alone]
        torch.testing.assert_close([one.score for one in found], [one.score for one in alone], atol=1e-3, rtol=1e-4)


def test_translations_with_a_shortlist_from_the_command_line(case: Case, tmp_path: Path, capsys: Any) -> None:
    source, target, found = (str(tmp_path / name) for name in ("source", "target", "shortlist.safetensors"))
    Path(source).write_text("\n".join(case.lines) + "\n")
    Path(target).write_text("\n".join(case.lines[::-1]) + "\n")
    model = str(case.folder.parent / f"{case.folder.name}.safetensors")
    for words in (
        ["shortlist", model, "--source", source, "--target", target, "-o", found, "--best", "60", "--frequent", "60"],
        ["translate", model, source, "--shortlist", found, "-o", str(tmp_path / "out")],
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        assert ended.value.code == 0, capsys.readouterr().err
    lines = (tmp_path / "out").read_text().split("\n")[:-1]
    vocabulary = case.checkpoint.target_vocabulary
    shortlist = Shortlist.load(found, vocabulary, vocabulary, case.checkpoint.model)
    assert shortlist.remainder is not None
    # What no line holds is no candidate; all others are, and with the remainder they have nearly the same scores.
    alike = []
    for line, (whole, *_) in zip(lines, Translator(case.checkpoint).search(case.lines), strict=True):
        if set(vocabulary.ids(whole.pieces[:-1])) <= set(shortlist.frequent.tolist()):
            alike.append(line == whole.text)
    assert len(alike) > 20 and np.mean(alike) > 0.5


def test_unknown_pieces_are_counted_as_such(case: Case, tmp_path: Path) -> None:
    vocabulary = case.checkpoint.target_vocabulary
    for name in ("train", "dev"):
        (tmp_path / f"{name}.en").write_text("\n".join([*case.lines, "ba zzz"]) + "\n")
        (tmp_path / f"{name}.fr").write_text("\n".join([*case.lines, "ba be"]) + "\n")
    paths = {f"{name}_{side}": str(tmp_path / f"{name}.{end}") for name in ("train", "dev")
             for side, end in (("source", "en"), ("target", "fr"))}  # fmt: skip
    config = DataConfig(**paths, cache=str(tmp_path / "cache"))
    splits = prepare(config, 1, (vocabulary, vocabulary)).splits
    assert [split.unknown for split in splits] == [(1, 0), (1, 0)]


def test_an_interrupted_encoding_goes_on(case: Case, tmp_path: Path, monkeypatch: Any) -> None:
    from nmt.text import encoding
    from nmt.text.pairs import pairs_from_files

    monkeypatch.setattr(encoding, "_CHUNK", 50)
    for side in ("source", "target"):
        (tmp_path / side).write_text("\n".join(case.lines) + "\n")
    pairs = pairs_from_files(tmp_path / "source", tmp_path / "target")
    vocabulary = case.checkpoint.target_vocabulary
    whole = encode_pairs(pairs, vocabulary, vocabulary, tmp_path / "whole")
    content = whole.path.read_bytes()
    (tmp_path / "half").mkdir()
    part = tmp_path / "half" / f"{whole.path.name}.part"
    part.write_bytes(content[: len(content) * 2 // 3])
    asked: list[int] = []
    encode = TokenizerVocabulary.encode

    def counted(self: Any, lines: Any) -> Any:
        asked.append(len(lines))
        return encode(self, lines)

    monkeypatch.setattr(TokenizerVocabulary, "encode", counted)
    again = encode_pairs(pairs, vocabulary, vocabulary, tmp_path / "half")
    assert again.path.read_bytes() == content and sum(asked) < 2 * len(pairs)


def test_a_special_token_in_a_text_is_no_end() -> None:
    for unknown, expected in ((3, [6, 3, 7]), (SIZE, [6, 7])):
        packed = pack(make_tokenizer("marian"), "source", SIZE, Special(1, unknown, 1, 2))
        vocabulary = TokenizerVocabulary(packed)
        assert vocabulary.encode([f"{WORDS[0]} </s> {WORDS[1]}"]) == [expected]
