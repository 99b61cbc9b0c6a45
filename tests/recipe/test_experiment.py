"""The general recipe runs from card to pictures; those of the corpora hand it cards and configurations that load."""

import re
import shlex

import pytest

from nmt.config_file import parse_run
from nmt.corpus import load_card
from tests import ROOT
from tests.recipe.test_recipes import shell, small_card

pytestmark = pytest.mark.recipe
EXPERIMENT = str(ROOT / "recipes" / "experiment.sh")
OWN = str(ROOT / "recipes" / "own_bitext.sh")
SCRIPTS = sorted(
    path
    for path in (ROOT / "recipes").glob("*.sh")
    if "experiment.sh" in path.read_text() and path.stem != "experiment"
)
CONFIGS = "recipes/configs/quickstart_reverse.yaml"
SOFT = f"{CONFIGS} recipes/configs/quickstart_reverse_soft_beam.yaml"
# Says what it is called with, and leaves the files that the recipe looks for. Bash takes it from the environment.
STUB = """() {
    printf '%s ' "$@" >>"$CALLS"; echo >>"$CALLS"
    case $1 in
    train)
        while [ $# -gt 0 ]; do case $1 in --run | --resume) run=$2 ;; esac; shift; done
        mkdir -p "$run"; touch "$run/last.ckpt" "$run/model.safetensors"
        [ "$run" != "${BREAKS:-}" ] ;;
    average) touch "$4" ;;
    translate) while [ "$1" != -o ]; do shift; done; echo "$2" >"$2" ;;
    evaluate) echo "BLEU of $3" ;;
    esac
}"""
SYSTEMS = ("cross_entropy", "locked_dropout", "soft_beam")
SPLIT = '() { if [ "$1" = recipes/split.py ]; then echo "a b" >"$4"; echo "c d" >"$5"; echo fr >"$5.language"; fi; }'


@pytest.fixture
def stubbed(tmp_path, monkeypatch):
    """A function that runs the recipe with stand-ins for nmt and python; tells the stages, and how nmt was called."""
    calls = tmp_path / "calls"
    monkeypatch.setenv("BASH_FUNC_nmt%%", STUB)
    monkeypatch.setenv("BASH_FUNC_python%%", SPLIT)
    monkeypatch.setenv("CALLS", str(calls))
    out = tmp_path / "out"
    out.mkdir()
    (out / "stage0.done").write_text("\n")

    def run(*words, code=0):
        calls.write_text("")
        done = shell([EXPERIMENT, "--corpus", "reverse", "--dir", str(out), *words], ROOT, tmp_path)
        assert done.returncode == code, done.stderr
        done.calls = [line.strip().replace(f"{out}/", "") for line in calls.read_text().splitlines()]
        done.stages = re.findall(r"== stage (\d):", done.stdout)
        return done

    run.out = out
    return run


def test_from_the_card_to_pictures(tmp_path):
    """As a user runs it, with stage 0 left out and hardly any training."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "stage0.done").touch()
    command = [
        EXPERIMENT,
        "--corpus",
        str(small_card(tmp_path)),
        "--config",
        CONFIGS,
        "--soft-config",
        SOFT,
        "--dir",
        str(out),
    ]
    command += ["--threads", "1", "--tokenized", "none", "--train-flags", "--trainer.max_steps 2 --data.dev_lines 4"]
    done = shell(command, ROOT, tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"== stage (\d):", done.stdout) == list("1234689"), (
        "neither locked dropout nor an average is asked for"
    )
    result = (out / "result.txt").read_text()
    assert len(re.findall(r"nrefs:1\|case:mixed\|eff:no\|tok:13a\|smooth:exp\|version:", result)) >= 3
    assert len(re.findall(r"nrefs:1\|case:mixed\|eff:no\|tok:none\|smooth:exp\|version:", result)) >= 3
    assert "soft_beam against cross_entropy" in result and "p " in result and result in done.stdout
    for name in ("attention.png", "beam.png", "curves.png", "seed1/soft_beam/model.safetensors"):
        assert (out / name).stat().st_size > 1000
    lines = (out / "seed1" / "soft_beam.beam5.txt").read_text().count("\n")
    assert lines == (out / "test.source").read_text().count("\n") == 20
    # What stage 3 made is what stages 4 and 6 have found: a vocabulary, train, and dev.
    assert len(list((tmp_path / "nmt").iterdir())) == 3
    assert '"made": true' in (out / "seed1" / "prepared.json").read_text()
    again = shell(command, ROOT, tmp_path)
    assert again.returncode == 0 and "== stage" not in again.stdout and result in again.stdout


def test_seeds_are_gathered_and_added(stubbed):
    done = stubbed(
        "--average", "3", "--threads", "1", "--train-flags", "--trainer.log_every 9", "--soft-flags", "--x 1"
    )
    assert done.stages == list("123456789")
    trains = [call for call in done.calls if call.startswith("train")]
    assert trains[0].startswith(
        "train --run seed1/cross_entropy --seed 1 --trainer.threads 1 --config recipes/configs/"
    )
    assert all("--trainer.keep 3" in call and call.endswith("--trainer.log_every 9") for call in trains)
    assert [re.search(r"--run (\S+)", call)[1] for call in trains] == [f"seed1/{name}" for name in SYSTEMS]
    assert "--from" not in trains[0] and "--from seed1/cross_entropy" in trains[1]
    assert "locked_dropout.yaml" in trains[1] and "--from seed1/locked_dropout" in trains[2]
    assert ["--x 1" in call for call in trains] == [False, False, True]
    averages = [call for call in done.calls if call.startswith("average")]
    assert averages[2] == "average seed1/soft_beam -o seed1/soft_beam.average.safetensors"
    assert "translate seed1/soft_beam.average.safetensors test.source --beam_size 5 --threads 1" in " | ".join(
        done.calls
    )
    done = stubbed("--average", "3", "--seeds", "1 2")
    assert done.stages == list("3456789")
    assert [re.search(r"--run (\S+)", call)[1] for call in done.calls if call.startswith("train")] == [
        f"seed2/{name}" for name in SYSTEMS
    ]
    assert [call.split()[1] for call in done.calls if call.startswith("translate")] == [
        f"seed2/{name}{kind}.safetensors" for kind in ("/model", ".average") for name in SYSTEMS
    ]
    two = "--hypotheses seed1/soft_beam.beam5.txt seed2/soft_beam.beam5.txt"
    baselines = "--baseline seed1/locked_dropout.beam5.txt seed2/locked_dropout.beam5.txt"
    assert f"evaluate {two} {baselines} --reference test.reference" in done.calls
    assert stubbed("--average", "3", "--seeds", "1 2").stages == []
    wider = stubbed("--average", "3", "--seeds", "1 2", "--beam", "10")
    assert wider.stages == ["8"] and "seed2/soft_beam.beam10.txt" in " | ".join(wider.calls)


def test_what_broke_off_goes_on(stubbed, monkeypatch):
    monkeypatch.setenv("BREAKS", str(stubbed.out / "seed2" / "cross_entropy"))
    assert stubbed("--seeds", "1 2", code=1).stages == ["1", "2", "3", "4"]
    monkeypatch.delenv("BREAKS")
    done = stubbed("--seeds", "1 2")
    assert done.stages == ["4", "5", "6", "8", "9"]
    assert done.calls[0] == "train --resume seed2/cross_entropy"
    assert [call for call in done.calls if "cross_entropy" in call and call.startswith("train --run seed1/c")] == []
    # A stage that is named runs again, from the beginning.
    done = stubbed("--seeds", "1 2", "--stage", "4", "--stop-stage", "4")
    assert done.stages == ["4"] and all("--resume" not in call for call in done.calls)


def test_a_direction_and_no_soft_beam(stubbed):
    done = stubbed("--direction", "backward-forward", "--soft-config", "none", "--tokenized", "moses")
    assert done.stages == ["1", "2", "3", "4", "5", "8", "9"]
    turned = "--data.source_language backward --data.target_language forward"
    assert all(turned in call for call in done.calls if call.startswith(("train", "corpus prepare")))
    assert not any("soft_beam" in call for call in done.calls)
    assert any("cross_entropy.beam5.tok.txt" in call and "--tokenize none" in call for call in done.calls)
    for words in (["--setting", "paper"], ["--direction", ""]):
        refused = stubbed(*words, code=2)
        assert "holds a run on reverse" in refused.stderr and "give another --dir" in refused.stderr
        assert not refused.calls


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--corpsu x", "experiment: unknown option --corpsu"),
        ("reverse", "unknown option reverse"),
        ("--corpus", "--corpus needs a value"),
        ("", "--corpus is missing"),
        ("--corpus reverse --seeds '1 x'", "'x' is not a number"),
        ("--corpus reverse --seeds ''", "--seeds is empty"),
        ("--corpus reverse --size huge", "--size is 'huge'; choose small"),
        ("--corpus reverse --setting theirs", "--setting is 'theirs'; choose ours or paper"),
        ("--corpus reverse --tokenized mosses", "--tokenized is 'mosses'; choose none or moses"),
    ],
)
def test_a_wrong_flag_is_explained(flags, words, tmp_path):
    done = shell(f"{EXPERIMENT} {flags}", tmp_path, tmp_path)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1


def test_every_card_has_its_recipe():
    cards = {path.stem for path in (ROOT / "data").glob("*.yaml")} - {"libreoffice_help", "reverse"}  # the quickstart's
    assert {path.stem for path in SCRIPTS} == cards | {"own_bitext"}


@pytest.mark.parametrize("setting", ["ours", "paper"])
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_recipes_name_a_card_and_configurations_that_load(script, setting, tmp_path):
    words = [str(script), "--setting", setting, "--plan", "yes"]
    if script.stem == "own_bitext":
        for name in ("train.aa", "train.bb", "dev.aa", "dev.bb", "test.aa", "test.bb"):
            (tmp_path / name).write_text("one\n")
        # The recipe writes a card beside its runs.
        (tmp_path / "recipes").mkdir()
        for path in (ROOT / "recipes").glob("*.sh"):
            (tmp_path / "recipes" / path.name).symlink_to(path)
        words[0] = str(tmp_path / "recipes" / script.name)
        words += ["--source", "aa", "--target", "bb"]
        words += [part for split in ("train", "dev", "test") for part in (f"--{split}", split)]
    done = shell(words, tmp_path, tmp_path)
    assert done.returncode == 0, done.stderr
    plan = {line[:15].strip(): line[15:].strip() for line in done.stdout.splitlines()}
    card = load_card(plan["corpus"])
    assert script.stem == "own_bitext" or card.name == script.stem
    assert {"train", "dev", "test"} <= set(card.splits)
    # Of larger models, and of the paper's, the second phase of cross-entropy is not tried.
    is_small = "study_cross_entropy" in plan["cross_entropy"]
    assert bool(plan["locked_dropout"]) == (setting == "ours" and is_small)
    for phase in SYSTEMS:
        if not plan[phase]:
            continue
        files = [part for name in shlex.split(plan[phase]) for part in ("--config", str(ROOT / name))]
        config = parse_run(files)[1]
        assert config.search.beam_size == 5 and config.data.vocabulary.kind == "bpe"
        assert (config.objective == "soft_beam") == (phase == "soft_beam")
        assert config.model.locked == (phase == "locked_dropout")
        if setting == "paper" and phase == "cross_entropy":
            assert (config.model.embedding, config.model.hidden, config.model.readout) == (620, 1000, "maxout")
            assert {config.scheduled_sampling.probability(update) for update in (0, 1, 10**6)} == {0.8}
            assert config.objective == "scheduled_sampling" and config.optimizer.name == "adam"
        if setting == "paper" and phase == "soft_beam":
            assert config.soft_beam.restart == 0.8 and config.soft_beam.search.beam_size == 5


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_help_states_score_and_cost(script, tmp_path):
    done = shell([str(script), "--help"], tmp_path, tmp_path)
    assert done.returncode == 0 and not done.stderr
    for words in ("Expected score: ", "Cost:", "--setting ours", "--seeds", "--stop-stage"):
        assert words in done.stdout
    wrong = shell([str(script), "--setings", "x"], tmp_path, tmp_path)
    if script.stem != "own_bitext":
        assert wrong.returncode == 2 and wrong.stderr == f"{script.stem}: unknown option --setings; see --help\n"


def test_own_bitext_reads_a_text_of_ones_own(tmp_path):
    for words, message in (
        ("--source aa", "own_bitext: --target is missing"),
        ("--source aa --target bb --train none --dev d --test t", "own_bitext: there is no none.aa"),
        ("--source", "own_bitext: --source needs a value"),
    ):
        done = shell(f"{OWN} {words}", tmp_path, tmp_path)
        assert done.returncode == 2 and message in done.stderr


def test_a_tokenizer_that_is_missing_is_told_before_the_training(stubbed, monkeypatch):
    missing = '() { if [ "$1" = recipes/moses.py ]; then echo "run: pip install sacremoses" >&2; return 1; fi; }'
    monkeypatch.setenv("BASH_FUNC_python%%", missing)
    done = stubbed("--tokenized", "moses", code=1)
    assert done.stderr == "run: pip install sacremoses\n" and not done.calls
    assert stubbed("--tokenized", "moses", "--stop-stage", "7").stages == list("123456")


def test_moses_tokenises(tmp_path):
    done = shell("echo \"C'est l'ami, n'est-ce pas ?\" | python recipes/moses.py fr", ROOT, tmp_path)
    try:
        import sacremoses  # noqa: F401
    except ImportError:
        assert done.returncode == 1 and "pip install sacremoses" in done.stderr
    else:
        assert done.stdout == "C' est l' ami , n' est-ce pas ?\n"
