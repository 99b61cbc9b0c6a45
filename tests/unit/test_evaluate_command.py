"""`nmt evaluate`: tables, JSON, scores by sentence, warnings, several models, and what does not go together."""

import csv
import json
import statistics
import subprocess
import sys

import pytest

import nmt
from nmt import cli
from nmt.checkpoint import save_checkpoint
from nmt.evaluation import evaluate
from nmt.evaluation.report import mean_and_deviation
from nmt.evaluation.significance import compare
from nmt.lines import read_lines
from tests import ROOT

REFERENCE = ["The cat sat on the mat.", "There is a house in the garden.", "It rains, and we stay at home."]
SYSTEMS = {
    "seed1": ["The cat sat on a mat.", "There is a house in the garden.", "It rains and we stay home."],
    "seed2": ["A cat sat on the mat.", "There is a tree in the garden.", "It rains, and we stay at home."],
    "[b]seed3": ["The dog lay on the mat.", "There is one house in a garden.", "We stay at home."],
    "base1": ["The cat is on the mat.", "There is a home in the garden.", "It rains, we stay at home."],
    "base2": ["Cats sat on mats.", "There was a house in the garden.", "We stay at home as it rains."],
    "base3": ["The dog.", "There is one house in a garden.", "We stay at home."],
}
SEEDS, BASES = list(SYSTEMS)[:3], list(SYSTEMS)[3:]


@pytest.fixture
def texts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, lines in {"ref": REFERENCE, "src": ["x y", "", "z"], **SYSTEMS}.items():
        (tmp_path / name).write_text("".join(line + "\n" for line in lines))
    return tmp_path


@pytest.fixture
def run(capsys):
    """A function that runs `nmt evaluate WORDS`; returns exit code, output and errors."""

    def call(*words):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main(["evaluate", *map(str, words)])
        return ended.value.code or 0, *capsys.readouterr()

    return call


def cells(line):
    return [cell for cell in line.strip().split("  ") if cell.strip()]


def test_a_table_of_seeds(texts, run):
    code, out, _ = run("--hypotheses", *SEEDS, "--reference", "ref", "--metrics", "bleu", "chrf++", "ter")
    assert code == 0
    lines = [line for line in out.splitlines() if line.strip()]
    assert [cell.strip() for cell in cells(lines[0])] == ["System", "BLEU", "chrF2++", "TER"]
    scores = [evaluate(SYSTEMS[name], [REFERENCE], metrics=["bleu", "chrf++", "ter"]) for name in SEEDS]
    for line, name, row in zip(lines[2:5], SEEDS, scores, strict=True):
        assert line.split() == [name, *(f"{score.value:.2f}" for score in row)]
    columns = [[row[number].value for row in scores] for number in range(3)]
    last = [f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}" for values in columns]
    assert [cell.strip() for cell in cells(lines[5])] == ["mean ± deviation", *last]
    assert lines[6:] == [f"{score.name}  signature: {score.signature}" for score in scores[0]]
    assert "nw:2" in lines[7] and "tok:tercom" in lines[8]


def test_the_deviation_is_of_the_sample():
    assert mean_and_deviation([1.0, 2.0, 6.0]) == (3.0, pytest.approx((14 / 2) ** 0.5))


def test_a_pipe_gets_the_whole_table(texts):
    """Also with names that are far longer than any terminal is wide."""
    name = "a" * 150
    (texts / name).write_text((texts / "seed1").read_text())
    words = ["--hypotheses", name, "seed2", "--reference", "ref", "--baseline", "base1", "--samples", "20"]
    done = subprocess.run(
        [sys.executable, "-m", "nmt", "evaluate", *words, "--metrics", "bleu", "chrf", "chrf++", "ter"],
        capture_output=True, text=True, cwd=texts, env={"PYTHONPATH": str(ROOT), "COLUMNS": "60"}, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(name) == 5 and "…" not in done.stdout and "\x1b" not in done.stdout


def test_several_systems_and_one_baseline_as_json(texts, run):
    words = ["--hypotheses", *SEEDS[:2], "--reference", "ref", "--baseline", "base1", "--samples", "50", "--json"]
    code, out, _ = run(*words)
    assert code == 0
    found = json.loads(out)
    compared = compare([SYSTEMS[name] for name in SEEDS[:2]], [SYSTEMS["base1"]], [REFERENCE], samples=50)
    for row, name, comparisons in zip(found["systems"], SEEDS, compared, strict=False):
        scores = evaluate(SYSTEMS[name], [REFERENCE])
        assert (row["system"], row["baseline"]) == (name, "base1")
        assert row["scores"] == [{"name": s.name, "score": s.value, "signature": s.signature} for s in scores]
        for told, c in zip(row["comparisons"], comparisons, strict=True):
            assert told == {
                "name": c.name, "score": c.value, "baseline_score": c.baseline, "difference": c.difference,
                "p": c.p, "score_interval": list(c.interval), "signatures": c.signatures,
            }  # fmt: skip
    values = [row["scores"][0]["score"] for row in found["systems"]]
    assert found["mean"][0]["mean"] == pytest.approx(statistics.mean(values))
    assert found["mean"][0]["deviation"] == pytest.approx(statistics.stdev(values))
    assert found["mean"][0]["name"] == "BLEU" and "nrefs:1" in found["mean"][0]["signature"]
    differences = [row["comparisons"][0]["difference"] for row in found["systems"]]
    assert found["mean"][0]["difference_mean"] == pytest.approx(statistics.mean(differences))
    assert found["mean"][0]["difference_deviation"] == pytest.approx(statistics.stdev(differences))


def test_baselines_in_pairs_are_named_beside_their_systems(texts, run):
    words = ["--hypotheses", *SEEDS, "--reference", "ref", "--baseline", *BASES, "--samples", "30", "--metrics", "chrf"]
    code, out, _ = run(*words, "--test", "randomization")
    assert code == 0 and "bootstrap" not in out and "95%" not in out
    pairs = zip(SEEDS, BASES, strict=True)
    rows = compare([SYSTEMS[s] for s in SEEDS], [SYSTEMS[b] for b in BASES], [REFERENCE], metrics=["chrf"],
                   tests=["randomization"], samples=30)  # fmt: skip
    for (system, base), (c,) in zip(pairs, rows, strict=True):
        wanted = [system, base, "chrF2", f"{c.value:.2f}", f"{c.baseline:.2f}", f"{c.difference:+.2f}"]
        assert [*wanted, f"{c.p['randomization']:.4f}"] in [line.split() for line in out.splitlines()]
    values = [c.difference for (c,) in rows]
    assert f"{statistics.mean(values):+.2f} ± {statistics.stdev(values):.2f}" in out


def test_one_system_beside_a_baseline(texts, run):
    code, out, _ = run("--hypotheses", "seed1", "--reference", "ref", "--baseline", "base1", "--samples", "30")
    assert code == 0 and out.startswith("BLEU = ") and "mean" not in out
    assert out.count("seed1 ") == 2 and "Difference" in out and "ar:30|seed:" in out and "two-sided" in out
    code, out, _ = run(
        "--hypotheses", "seed1", "--reference", "ref", "--baseline", "base1", "--samples", "30", "--json"
    )
    assert code == 0 and len(json.loads(out)["systems"]) == 1 and "mean" not in json.loads(out)


def test_scores_of_sentences(texts, run):
    words = ["--reference", "ref", "--metrics", "bleu", "ter", "--sentence_scores"]
    assert run("--hypotheses", "seed2", *words, "one/scores.tsv")[0] == 0
    with open("one/scores.tsv", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    assert [list(row) for row in rows] == [["line", "BLEU", "TER"]] * 3
    assert [row["line"] for row in rows] == ["1", "2", "3"]
    assert float(rows[2]["BLEU"]) == pytest.approx(100) and float(rows[2]["TER"]) == 0 < float(rows[0]["TER"])
    assert run("--hypotheses", "seed1", "[b]seed3", *words, "scores.jsonl")[0] == 0
    found = [json.loads(line) for line in read_lines("scores.jsonl")]
    assert [(row["system"], row["line"]) for row in found] == [(s, n) for s in ("seed1", "[b]seed3") for n in (1, 2, 3)]
    from sacrebleu.metrics.bleu import BLEU

    for row in found:
        sentence, reference = SYSTEMS[row["system"]][row["line"] - 1], REFERENCE[row["line"] - 1]
        assert row["BLEU"] == BLEU(effective_order=True).sentence_score(sentence, [reference]).score


def test_sentences_shorter_than_four_words_have_a_bleu(texts, run):
    """Effective order: without it a right line of two words would have next to none."""
    (texts / "short").write_text("Good morning\n")
    assert run("--hypotheses", "short", "--reference", "short", "--sentence_scores", "s.tsv")[0] == 0
    assert read_lines("s.tsv") == ["line\tBLEU\tchrF2", "1\t100.0000\t100.0000"]
    code, out, _ = run("--hypotheses", "short", "--reference", "short")
    assert code == 0 and "eff:no" in out, "the corpus keeps sacreBLEU's default"


def test_warnings_do_not_fail(texts, run, caplog):
    (texts / "odd").write_text("the cat sat on the mat .\nthere is a house .\nit rains , and we stay .\n")
    code, out, _ = run("--hypotheses", "odd", "--reference", "ref")
    assert code == 0 and out.startswith("BLEU = ")
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == 2 and all(text.startswith("warning: odd: they look ") for text in warned)
    caplog.clear()
    assert run("--hypotheses", "odd", "--reference", "ref", "--lowercase")[0] == 0
    assert "lower-cased" not in caplog.text and "tokenised" in caplog.text
    caplog.clear()
    assert run("--hypotheses", "seed1", "--reference", "ref", "--baseline", "odd", "--samples", "5")[0] == 0
    assert "warning: odd: they look tokenised" in caplog.text
    caplog.clear()
    assert run("--hypotheses", *SEEDS, "--reference", "ref")[0] == 0
    assert not caplog.records


def test_comet_takes_the_source(texts, run):
    from tests.unit.test_comet import STAND_IN

    (texts / "comet").write_text(STAND_IN.format(python=sys.executable))
    (texts / "comet").chmod(0o755)
    words = ["--hypotheses", "seed1", "seed2", "--reference", "ref", "--metrics", "comet", "bleu"]
    words += ["--source", "src", "--comet_command", texts / "comet", "--comet_model", "some/model"]
    code, out, _ = run(*words)
    assert code == 0 and out.index("COMET") < out.index("BLEU")
    assert "COMET  signature: model:some/model|nrefs:1" in out
    code, out, _ = run(*words[:2], *words[3:], "--baseline", "base1", "--samples", "20", "--json")
    (system,) = json.loads(out)["systems"]
    assert [row["name"] for row in system["scores"]] == ["COMET", "BLEU"]
    assert [row["name"] for row in system["comparisons"]] == ["BLEU"]


def test_several_models(small_corpus, finished_run, tmp_path, run):
    """Each model's translations land in a file of its own; scores and files are those of one model at a time."""
    for parent in ("a", "b"):
        (tmp_path / parent).mkdir()
    (tmp_path / "a/seed1").symlink_to(finished_run)
    (tmp_path / "b/seed1").mkdir()
    model = (finished_run / "model.safetensors").read_bytes()
    (tmp_path / "b/seed1/model.safetensors").write_bytes(model)
    models = [finished_run, tmp_path / "b/seed1"]
    texts = ["--source", small_corpus / "test.source", "--reference", small_corpus / "test.target"]
    code, out, err = run(*models, *texts, "--output", tmp_path / "out", "--beam_size", "2", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [row["system"] for row in found["systems"]] == [str(path) for path in models]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{finished_run.name}.txt", "seed1.txt"]
    code, out, _ = run(models[0], *texts, "--output", tmp_path / "one", "--beam_size", "2", "--json")
    assert code == 0 and json.loads(out) == found["systems"][0]["scores"]
    assert read_lines(tmp_path / "one") == read_lines(tmp_path / "out" / f"{finished_run.name}.txt")
    # A card instead of the two files.
    (tmp_path / "card.yaml").write_text(
        "languages: {source: xx, target: yy}\nsplits:\n  test: {source: test.source, target: test.target}\n"
    )
    card = ["--corpus", tmp_path / "card.yaml", "--corpus_dir", small_corpus]
    code, again, err = run(models[0], *card, "--beam_size", "2", "--json")
    assert code == 0 and again == out, err
    # Names are lengthened where the last part does not tell them apart.
    (tmp_path / "c/seed1").mkdir(parents=True)
    (tmp_path / "c/seed1/model.safetensors").write_bytes(model)
    assert (
        run(tmp_path / "b/seed1", tmp_path / "c/seed1", *texts, "--output", tmp_path / "two", "--beam_size", "1")[0]
        == 0
    )
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["b_seed1.txt", "c_seed1.txt"]
    for words, message in [
        ([*models, "--output", tmp_path / "one"], "is no folder; give --output a folder for several models"),
        ([models[0], "--output", tmp_path / "out"], "is a folder; give --output a file"),
        ([*models, tmp_path / "none"], "none does not exist; give a model file"),
        ([models[0], finished_run, "--output", tmp_path / "x"], "is given twice"),
        ([tmp_path / "a/seed1", finished_run, "--output", tmp_path / "x"], "two of the models are the same"),
    ]:
        code, _, err = run(*words, *texts)
        assert code == 2 and message in err and err.count("\n") == 1, err


def test_an_ensemble_is_one_system(tiny_checkpoint, tmp_path, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    for name, options in {"a": {}, "b": {"seed": 1}}.items():
        save_checkpoint(f"{name}.safetensors", tiny_checkpoint(**options))
    lines = ["the cat", "", "my red two", "blue one a", "two two the", "red my"]
    for name in ("src", "ref"):
        (tmp_path / name).write_text("".join(line + "\n" for line in lines))
    words = ["--source", "src", "--reference", "ref", "--max_ratio", "0", "--device", "cpu", "--output", "out"]
    tested = ["--baseline", "ref", "--samples", "5", "--json"]
    code, out, err = run("a.safetensors", *words, "--ensemble", "b.safetensors", *tested)
    assert code == 0, err
    one, both = (nmt.load("a.safetensors", "cpu", ensemble=others) for others in ([], ["b.safetensors"]))
    assert read_lines("out") == both.translate(lines, max_ratio=0) != one.translate(lines, max_ratio=0)
    assert [row["system"] for row in json.loads(out)["systems"]] == ["a.safetensors + b.safetensors"]
    code, _, err = run("a.safetensors", *words, "--ensemble", "none")
    assert code == 2 and err == "nmt: none does not exist; give a model file, or the folder of a run\n"


def test_a_card_gives_source_and_reference(texts, run):
    (texts / "mine").mkdir()
    (texts / "mine/test.xx").write_text((texts / "src").read_text())
    (texts / "mine/test.en").write_text((texts / "ref").read_text())
    (texts / "mine.yaml").write_text(
        "languages: {source: xx, target: en}\nsplits:\n  test: {source: test.xx, target: test.en}\n"
    )
    code, out, _ = run("--hypotheses", "seed1", "--corpus", "mine.yaml", "--json")
    assert code == 0 and json.loads(out)[0]["score"] == evaluate(SYSTEMS["seed1"], [REFERENCE])[0].value


@pytest.mark.parametrize(
    ("languages", "pair", "told"),
    [
        ("{source: aa, target: bb}", "", []),
        ("{source: aa_XX, target: bb_Latn}", "", []),
        ("{source: aaa, target: bbb}", "", []),  # three letters may be another code of the same language
        ("{source: aa, target: cc}", "", ["bb as its target language; mine/test has cc"]),
        ("{source: aa, target: bb}", "bb-aa", ["aa as its source language", "bb as its target language"]),
    ],
)
def test_a_card_in_other_languages_is_told(tiny_checkpoint, texts, run, caplog, languages, pair, told):
    save_checkpoint("a.safetensors", tiny_checkpoint())
    (texts / "mine").mkdir()
    (texts / "mine/one").write_text("the cat\nmy red two\n")
    (texts / "mine.yaml").write_text(f"languages: {languages}\nsplits:\n  test: {{source: one, target: one}}\n")
    code, _, err = run(
        "a.safetensors", "--corpus", "mine.yaml", "--device", "cpu", *["--language_pair", pair][: 2 * bool(pair)]
    )
    assert code == 0, err
    found = [record.getMessage() for record in caplog.records if "was trained with" in record.getMessage()]
    assert len(found) == len(told) and all(part in line for part, line in zip(told, found, strict=True))


BAD = [
    (["--hypotheses", "seed1", "seed2"], "missing: reference; give --reference, --test_set"),
    (["--hypotheses", "seed1", "--reference", "ref", "--corpus", "x"], "give --reference or --corpus, not both"),
    (["x", "--source", "src", "--corpus", "reverse"], "--corpus has its own source text; leave out --source"),
    (["--hypotheses", "seed1", "seed1", "--reference", "ref"], "seed1 is given twice"),
    (["--hypotheses", "-", "--reference", "-"], "standard input (-) can be read once"),
    (["--hypotheses", "seed1", "--source", "src", "--reference", "ref"], "leave out the model, --ensemble, --source"),
    (["--hypotheses", "seed1", "--ensemble", "b", "--reference", "ref"], "leave out the model, --ensemble, --source"),
    (["a", "b", "--ensemble", "c", "--source", "src", "--reference", "ref"], "and others, and 2 models are given"),
    (["--hypotheses", "seed1", "--reference", "ref", "--baseline", "base1", "base2"], "2 baselines for 1 systems"),
    (["--hypotheses", "seed1", "--reference", "ref", "--baseline", "none"], "none does not exist"),
    (["--hypotheses", "seed1", "--reference", "ref", "--baseline", "ref", "--test", "t"], "Unknown test 't'"),
    (["--hypotheses", "seed1", "--reference", "ref", "--baseline", "ref", "--samples", "-1"], "samples is -1"),
    (["--hypotheses", "seed1", "--reference", "ref", "--metrics", "blue"], "Did you mean 'bleu'"),
    (["--hypotheses", "seed1", "--reference", "ref", "--metrics", "comet"], "give --source, or leave out the metric"),
    (
        [
            "--hypotheses",
            "seed1",
            "--reference",
            "ref",
            "--metrics",
            "comet",
            "--source",
            "src",
            "--comet_command",
            "nix",
        ],
        "there is no command 'nix'; COMET needs an environment of its own: pipx install unbabel-comet",
    ),
    (["--hypotheses", "seed1", "--test_set", "wmt14-full"], "Did you mean 'wmt14/full'"),
    (["--hypotheses", "seed1", "--test_set", "wmt14", "--language_pair", "fr-de"], "cs-en, de-en, en-cs"),
    (["--hypotheses", "seed1", "--corpus", "revers"], "Did you mean 'reverse'"),
    (["--hypotheses", "seed1", "--reference", "ref", "--sentence_scores", "."], "cannot be written"),
]


@pytest.mark.parametrize(
    ("words", "message"), BAD, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_what_does_not_go_together_is_told_in_one_line(texts, run, words, message):
    code, out, err = run(*words)
    assert code == 2 and out == "" and err.startswith("nmt: ") and err.count("\n") == 1, err
    assert message in err


def test_scoring_and_testing_import_nothing_heavy(texts):
    script = "import sys; from nmt import cli\ntry: cli.main(sys.argv[1:])\nexcept SystemExit as e: code = e.code\n"
    script += "heavy = {'torch', 'pytorch_lightning', 'datasets', 'pyarrow', 'matplotlib'} & set(sys.modules)\n"
    script += "sys.exit(str(heavy) if heavy else code)"
    words = ["evaluate", "--hypotheses", "seed1", "seed2", "--reference", "ref", "--baseline", "base1"]
    words += ["--samples", "5", "--sentence_scores", "s.tsv", "--metrics", "bleu", "chrf++", "ter"]
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, cwd=texts,
                          env={"PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.returncode == 0, done.stderr
