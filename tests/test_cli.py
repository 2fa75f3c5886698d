"""The commands, typed as a user types them, on made-up people and a tiny base."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import jax
import numpy as np
import pytest
import soundfile

from launch import tpu_vm
from specialize.base import save_base
from specialize.cli import COMMANDS, main
from specialize.commands import KindName
from specialize.errors import StoreError
from specialize.submodel import KINDS, LoRA, ResidualAdapter, SubmodelStore, load_submodel
from specialize.train import Run
from specialize.train.experiment import Experiment, from_json, to_json
from specialize.train.metrics import read_metrics
from specialize.train.recorder import read_jobs
from tests.base.test_folder import checkpoint, tensors
from tests.bases import tiny_whisper
from tests.people import write_people

EXPERIMENT = """
from pathlib import Path
from specialize import CohortConfig, CorpusConfig, Experiment, HyperParameters, ResidualAdapter, Stopping

here = Path(__file__).parent
experiment = Experiment(
    name="people",
    base=here / "base",
    corpus=CorpusConfig(manifest=here / "people.jsonl", cache=here / "cache"),
    submodel=ResidualAdapter(bottleneck=2),
    hyper=HyperParameters(learning_rate=1e-2),
    stop=Stopping(max_steps=6, every=3),
    cohort=CohortConfig(slots=8, shapes=1),
    runs=here / "runs",
)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A base, a corpus with one broken recording, an experiment file and its finished run."""
    folder = tmp_path_factory.mktemp("cli")
    write_people(folder, speakers=4, utterances=8)
    (folder / "p1_0.wav").write_text("broken")
    save_base(tiny_whisper(), folder / "base")
    (folder / "people.py").write_text(EXPERIMENT)
    main(["train", str(folder / "people.py")])
    return folder


def fails(capsys, *words: object) -> str:
    """What a command that ends with exit code 1 says."""
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert ended.value.code == 1
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


def test_a_run_is_all_there(folder):
    run = Run(folder / "runs/people")
    assert set(run.store.speakers()) == {"p0", "p1", "p2", "p3"}
    assert run.base == tiny_whisper().fingerprint
    summary = run.read("summary.json")
    assert summary["submodels"] == 4
    assert {job["speaker"] for job in read_jobs(run)} == {"p0", "p1", "p2", "p3"}
    assert 0 <= summary["padded_share"] < 1
    (problem,) = run.read("problems.json")
    assert (problem["line"], problem["speaker"]) == (9, "p1")
    steps = [(r["speaker"], r["step"]) for r in read_metrics(run.folder / "metrics.jsonl")]
    assert sorted(steps) == [(f"p{i}", step) for i in range(4) for step in (0, 3, 6)]
    loaded = load_submodel(run.folder / "submodels/p2", base=run.base)
    assert loaded.training["dev_loss"] <= loaded.training["looks"][0][1]
    assert run.experiment.submodel == ResidualAdapter(bottleneck=2)


def test_a_run_that_has_ended_is_no_failure_when_it_is_started_again(folder, capsys):
    """As schedulers do, of which a process was killed when the run had just ended."""
    run = Run(folder / "runs/people")
    files = [path for path in run.folder.rglob("*") if path.is_file() and path.name != "lock"]
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}
    for name in ("state", "candidates"):
        (run.folder / name / "1").mkdir(parents=True)
    main(["train", str(folder / "people.py"), "--save-seconds", "7"])
    said = capsys.readouterr()
    assert "has ended already, with this configuration: nothing is trained. --overwrite trains it anew" in said.err
    assert "4 Submodels in" in said.out
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in files} == before
    assert not {"state", "candidates"} & {path.name for path in run.folder.iterdir()}


def test_a_run_that_has_ended_is_not_taken_for_another_nor_replaced_unless_asked(folder, capsys):
    before = (folder / "runs/people/config.json").read_text()
    message = fails(capsys, "train", folder / "people.py", "--hyper.learning-rate", "0.5")
    assert "has ended, and was of another configuration:\n  hyper.learning_rate: 0.01 -> 0.5\n" in message
    assert "--overwrite" in message
    assert (folder / "runs/people/config.json").read_text() == before


def test_the_same_experiment_gives_the_same_bits_and_logs_to_tensorboard(folder):
    main(["train", str(folder / "people.py"), "--name", "again", "--tensorboard"])
    for speaker in ("p0", "p3"):
        one, two = (load_submodel(folder / f"runs/{name}/submodels/{speaker}").submodel for name in ("people", "again"))
        jax.tree.map(np.testing.assert_array_equal, one, two)
    assert list((folder / "runs/again").rglob("events.out.tfevents.*"))


def test_another_kind_and_a_start(folder, capsys):
    words = ["train", str(folder / "people.py"), "--name", "lora", "--submodel.kind", "lora", "--submodel.rank", "3"]
    main([*words, "--corpus.pool", "all", "--cohort.slots", "8"])
    pooled = load_submodel(folder / "runs/lora/submodels/all")
    assert pooled.spec == LoRA(rank=3)
    start = ["--start", str(folder / "runs/lora/submodels/all")]
    main([*words[:2], "--name", "started", *words[4:], *start, "--hyper.learning-rate", "0", "--corpus.limit", "1"])
    continued = load_submodel(folder / "runs/started/submodels/p0")
    jax.tree.map(np.testing.assert_array_equal, continued.submodel, pooled.submodel)
    message = fails(capsys, *words[:2], "--name", "mismatch", "--submodel.kind", "lora", "--submodel.rank", "4", *start)
    assert "rank=3" in message
    assert "rank=4" in message
    assert not (folder / "runs/mismatch").exists()


def test_evaluate_writes_scores_and_a_report(folder, capsys):
    main(["evaluate", str(folder / "runs/people"), "--text", "--resamples", "100", "--groups", "severity"])
    printed = capsys.readouterr().out
    assert "relative" in printed
    assert "base:" in printed
    results = json.loads((folder / "runs/people/results.json").read_text())
    assert {"base_wer", "wer", "relative_reduction", "relative_reduction_interval"} <= set(results["pooled"])
    assert set(results["base_contexts"]["wer"]) == {"full", "needed"}
    assert results["base_contexts"]["wer"][results["base_contexts"]["scored_at"]] == results["pooled"]["base_wer"]
    assert results["pooled"]["base_wer"] == min(results["base_contexts"]["wer"].values())
    lines = (folder / "runs/people/transcripts.jsonl").read_text().splitlines()
    assert len(lines) == results["pooled"]["utterances"]
    assert "p0" in (folder / "runs/people/report.html").read_text()
    main(["evaluate", str(folder / "runs/people"), "--split", "dev", "--resamples", "100", "--base-context", "needed"])
    assert json.loads((folder / "runs/people/results.dev.base-needed.json").read_text())["splits"] == ["dev"]


@pytest.fixture(scope="module")
def another(folder) -> Path:
    """A manifest of the same people, of whom p0 has only something to score, p1 has nothing, and p2 a missing file."""
    lines = [json.loads(line) for line in (folder / "people.jsonl").read_text().splitlines()]
    chosen = [line | {"split": "test", "role": "kept"} for line in (lines[0], lines[1], lines[17])]
    chosen += [lines[10] | {"split": "train", "role": "kept"}, lines[18] | {"audio": "gone.wav", "split": "test"}]
    chosen += [lines[24] | {"role": "other", "split": "test", "speaker": "[/]\x1b[2Jp7"}]
    (folder / "another.jsonl").write_text("\n".join(map(json.dumps, chosen)) + "\n")
    return folder / "another.jsonl"


def test_scoring_something_else_leaves_the_scores_of_the_run(folder, another, capsys):
    run = folder / "runs/people"
    main(["evaluate", str(run), "--resamples", "20"])
    before = {name: (run / name).read_bytes() for name in ("results.json", "transcripts.jsonl", "report.html")}
    capsys.readouterr()
    words = ["evaluate", str(run), "--manifest", str(another), "--resamples", "20"]
    main([*words, "--groups", "role", "seconds"])
    printed = capsys.readouterr().out
    results = json.loads((run / "results.manifest-another.json").read_text())
    assert set(results["speakers"]) == {"p0", "p2"}
    assert results["speakers_without_utterances"] == ["p1"]
    assert results["speakers_without_submodel"] == ["[/]\x1b[2Jp7"]
    assert set(results["groups"]) == {"role", "seconds"}
    assert results["left_out"] == len(results["problems"]) == 2
    assert [problem["line"] for problem in results["problems"]] == [5, 0]
    for told in ("1 speakers have no test utterances: p1", "1 utterances were left out", "line 5", "[2Jp7"):
        assert told in printed
    assert "\x1b" not in printed
    for name in ("results.manifest-another.json", "report.manifest-another.html"):
        assert str(run / name) in printed
    report = (run / "report.manifest-another.html").read_text()
    assert "left out of what was scored" in report
    assert "gone.wav" in report
    main([*words, "--out", str(folder / "out"), "--gate", "off", "--tokens-per-second", "4"])
    assert json.loads((folder / "out/results.json").read_text())["differs"] == [
        "manifest-another",
        "gate-off",
        "tokens-4.0",
    ]
    assert before == {name: (run / name).read_bytes() for name in before}


def test_the_corpus_of_the_run_elsewhere_is_its_own(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "moved", copy_function=shutil.copy2)
    words = ["--manifest", str(tmp_path / "moved/people.jsonl"), "--resamples", "20"]
    main(["evaluate", str(tmp_path / "moved/runs/people"), *words])
    assert (tmp_path / "moved/runs/people/results.json").is_file()
    assert not (tmp_path / "moved/runs/people/results.manifest-people.json").exists()


def test_what_cannot_be_scored_is_known_before_anything_is_decoded(folder, capsys):
    run = folder / "runs/people"
    for words, message in (
        (("--groups", "colour"), "severity"),
        (("--batch", "0"), "batch=0"),
        (("--beam", "2"), "beam of 2"),
        (("--out", "/proc/nope"), "/proc/nope"),
    ):
        told = fails(capsys, "evaluate", run, *words)
        assert message in told
        assert "decoding" not in told
    (folder / "b").mkdir()
    shutil.copytree(run, folder / "b/people")
    assert "called 'people'" in fails(capsys, "evaluate", run, folder / "b/people", "--out", folder / "out")


def test_transcribe(folder, capsys):
    clips = [str(folder / "p0_0.wav"), str(folder / "p2_1.wav")]
    main(["transcribe", str(folder / "base"), *clips, "--submodel", str(folder / "runs/people/submodels/p0")])
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert "p1_0.wav" in fails(capsys, "transcribe", folder / "base", folder / "p1_0.wav")
    soundfile.write(folder / "long.wav", np.zeros(16_000 * 6, np.float32), 16_000)
    assert "long.wav' of 6.0 s" in fails(capsys, "transcribe", folder / "base", folder / "long.wav")
    words = ["transcribe", str(folder / "base"), clips[0], "--tokens-per-second"]
    main([*words, "1"])
    short = capsys.readouterr().out
    main([*words, "20"])
    assert len(capsys.readouterr().out) > len(short)


def test_corpus_lists_what_is_wrong(folder, capsys):
    words = ["corpus", str(folder / "people.jsonl"), "--cache", str(folder / "cache")]
    main([*words, "--base", str(folder / "base")])
    printed = capsys.readouterr().out
    assert "4 speakers" in printed
    assert "line 9" in printed
    assert "line 9" in fails(capsys, *words, "--strict")


def test_inspect_knows_bases_runs_and_submodels(folder, capsys):
    main(["inspect", str(folder / "base")])
    assert tiny_whisper().fingerprint in capsys.readouterr().out
    main(["inspect", str(folder / "base"), "--kind", "lora", "--where", "encoder/**/fc1"])
    printed = capsys.readouterr().out
    assert "encoder/layers_0/fc1" in printed
    assert "decoder" not in printed
    main(["inspect", str(folder / "runs/people")])
    assert "p0, p1, p2, p3" in capsys.readouterr().out
    main(["inspect", str(folder / "runs/people/submodels/p1")])
    printed = capsys.readouterr().out
    assert "p1" in printed
    assert "down_kernel [16, 2]" in printed
    assert "not a stored Submodel" in fails(capsys, "inspect", folder)
    assert "encoder/layers_0" in fails(capsys, "inspect", folder / "base", "--kind", "lora", "--where", "nothing")


def test_errors_are_a_sentence_and_change_nothing(folder, capsys, tmp_path):
    file = folder / "people.py"
    assert "no experiment file" in fails(capsys, "train", folder / "none.py")
    assert "import-base" in fails(capsys, "train", file, "--base", "nowhere", "--name", "x")
    assert "matches no module" in fails(capsys, "train", file, "--submodel.where", "nowhere", "--name", "x")
    assert "slots" in fails(capsys, "train", file, "--cohort.slots", "0", "--name", "x")
    assert "must divide" in fails(capsys, "train", file, "--cohort.rows", "3", "--name", "x")
    assert "no such kind" in fails(capsys, "train", file, "--submodel.kind", "magic", "--name", "x")
    assert "line 9" in fails(capsys, "train", file, "--strict", "--name", "x")
    assert "not a run" in fails(capsys, "evaluate", folder / "base")
    assert not (folder / "runs/x").exists()
    (tmp_path / "broken.py").write_text("import nothing_of_this_name")
    assert "nothing_of_this_name" in fails(capsys, "train", tmp_path / "broken.py")
    (tmp_path / "empty.py").write_text("")
    assert "must expose `experiment`" in (message := fails(capsys, "train", tmp_path / "empty.py"))
    assert "it has no `experiment`." in message


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        *((f"hyper.{name}", "inf") for name in ("learning-rate", "weight-decay", "seconds", "embedding-rate")),
        ("hyper.embedding-decay", "inf"),
        ("hyper.clip", "nan"),
        ("hyper.clip", "0"),
        ("save-seconds", "-1"),
        ("save-seconds", "inf"),
        ("save-seconds", "nan"),
    ],
)
def test_numbers_that_a_run_cannot_keep_are_refused_before_it_begins(folder, capsys, flag, value):
    message = fails(capsys, "train", folder / "people.py", f"--{flag}", value, "--name", "x")
    assert f"{flag.rpartition('.')[2].replace('-', '_')}={float(value)}, but it must be" in message
    assert not (folder / "runs/x").exists()


def test_a_file_of_another_command_says_which_takes_it(folder, capsys, tmp_path):
    file = folder / "people.py"
    message = fails(capsys, "pretrain", file)
    assert "must expose `experiment`, a specialize.Pretraining; its `experiment` is a specialize.Exp" in message
    assert f"a specialize.Experiment, which `specialize train {file}` takes." in message
    (swept := tmp_path / "sweep.py").write_text(
        f"from pathlib import Path\nfrom specialize import Sweep\nsweep = Sweep(Path({str(file)!r}), ('lr=1,2',))"
    )
    message = fails(capsys, "train", swept)
    assert f"its `sweep` is a specialize.Sweep, which `specialize sweep {swept}` takes." in message
    (tmp_path / "words.py").write_text("experiment = {}")
    assert "its `experiment` is of the type dict." in fails(capsys, "sweep", tmp_path / "words.py")


def test_what_the_system_refuses_is_a_sentence_with_the_path(folder, capsys):
    file, nowhere = folder / "people.py", "/proc/nope"
    assert nowhere in fails(capsys, "train", file, "--runs", nowhere, "--name", "x")
    assert nowhere in fails(capsys, "corpus", folder / "people.jsonl", "--cache", f"{nowhere}/cache")
    assert nowhere in fails(capsys, "import-base", checkpoint(folder / "hf", tensors(tiny_whisper())), f"{nowhere}/y")
    assert nowhere in fails(capsys, "evaluate", folder / "runs/people", "--out", nowhere)
    assert "corpus.limit=-1" in fails(capsys, "train", file, "--corpus.limit", "-1", "--name", "x")


def test_a_folder_of_something_else_is_no_run(folder, capsys, tmp_path):
    for data, message in (("[]", "something else"), ("{", "damaged"), ('{"model_type": "whisper"}', "something else")):
        (tmp_path / "config.json").write_text(data)
        assert message in fails(capsys, "evaluate", tmp_path)


def test_who_reads_may_stop_reading(folder):
    command = [sys.executable, "-W", "ignore", "-m", "specialize.cli", "inspect", str(folder / "base")]
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=300)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (1, "")


def test_what_a_terminal_would_obey_is_not_printed(folder, capsys):
    hostile = "\x1b[2J\x1b]0;owned\x07"
    line = {"audio": "p0_0.wav", "text": "one", "speaker": f"{hostile}ana", "split": hostile}
    lines = [json.dumps(line), *(folder / "people.jsonl").read_text().splitlines()[1:]]
    (folder / "hostile.jsonl").write_text("\n".join(lines) + "\n")
    words = ["corpus", str(folder / "hostile.jsonl"), "--cache", str(folder / "cache")]
    main(words)
    told = fails(capsys, *words, "--strict")
    printed = capsys.readouterr().out + told + fails(capsys, *words, "--speakers", f"{hostile}ana")
    assert "owned" in printed
    assert "\x1b" not in printed
    shutil.copytree(folder / "runs/people", folder / "runs/hostile")
    store = SubmodelStore(folder / "runs/hostile/submodels")
    store.save(dataclasses.replace(store.load("p0"), speaker=f"{hostile}ana"))
    for path in (folder / "runs/hostile", store.path(f"{hostile}ana")):
        main(["inspect", str(path)])
        printed = capsys.readouterr().out
        assert "owned" in printed
        assert "\x1b" not in printed


def test_another_base_is_refused_at_evaluation(folder, capsys, tmp_path):
    save_base(tiny_whisper(seed=1), tmp_path / "other")
    message = fails(capsys, "evaluate", folder / "runs/people", "--base", tmp_path / "other")
    assert tiny_whisper().fingerprint in message
    assert tiny_whisper(seed=1).fingerprint in message


def test_a_run_can_be_moved(folder, tmp_path):
    shutil.copytree(folder / "runs/people", tmp_path / "moved")
    assert set(Run(tmp_path / "moved").store.speakers()) == {"p0", "p1", "p2", "p3"}


def helped(capsys, *words: str) -> dict[str, str]:
    """{argument: what is said of it} of a command's help, without defaults."""
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "usage:" in printed
    found: dict[str, str] = {}
    title = name = ""
    for line in printed.splitlines():
        line = line.replace("│", " ").rstrip()  # boxes are drawn where the encoding has them
        if heading := re.fullmatch(r"(?:╭─)? (\w[\w ]*\w)(?: ─*╮)?", line):
            title, name = heading.group(1), ""
        elif re.match(r"  --?\w", line) or (title == "positional arguments" and re.match(r"  [A-Z\[]", line)):
            signature, _, text = line[2:].partition("  ")  # the text may follow on the next line
            name = signature.split()[0].rstrip(",")
            assert name not in found
            found[name] = text.strip()
        elif name and line.startswith("   "):  # what begins further left is more of a long signature
            found[name] += " " + line.strip()
    return {name: re.sub(r"\((default: .*|required|optional)\)\s*$", "", text).strip() for name, text in found.items()}


def test_every_command_explains_every_flag(capsys, folder):
    assert get_args(KindName) == tuple(KINDS)
    kinds = [["train", str(folder / "people.py"), "--submodel.kind", kind] for kind in KINDS]
    keys = [["keys", name] for name in ("add", "list", "revoke")]
    launchers = [["launch", name] for name in ("local", "slurm", "gke", "sky")]
    vms = [["launch", "tpu-vm", name] for name in tpu_vm.COMMANDS]
    others = [[name] for name in COMMANDS if name not in ("keys", "launch")]
    for words in (*kinds, *keys, *launchers, *vms, *others):
        found = helped(capsys, *words)
        assert len(found) > 1
        for argument, text in found.items():
            assert re.search(r"\w", text), f"`specialize {' '.join(words)} --help` says nothing of {argument}"
    options = helped(capsys, "train")
    assert {"--submodel.kind", "--corpus.manifest", "--hyper.learning-rate", "--stop.every"} <= options.keys()
    assert options.keys() == helped(capsys, "train", str(folder / "people.py")).keys()
    assert {"--submodel.kind", "--submodel.rank"} <= helped(capsys, *kinds[1]).keys()
    assert {"--model.hidden-size", "--steps"} <= helped(capsys, "pretrain").keys()
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in COMMANDS)


def test_unknown_commands_are_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["trane"])
    assert ended.value.code == 2
    assert "no command 'trane'" in capsys.readouterr().err


def test_experiments_survive_json(folder):
    experiment = Run(folder / "runs/people").experiment
    assert from_json(Experiment, json.loads(json.dumps(to_json(experiment)))) == experiment
    for field in dataclasses.fields(experiment):
        assert field.name in to_json(experiment)
    with pytest.raises(Exception, match="no field colour"):
        from_json(Experiment, to_json(experiment) | {"colour": 1})


def test_relative_folders_work(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    main(["train", "people.py", "--name", "relative", "--runs", "runs", "--corpus.limit", "1", "--base", "base"])
    assert "p0" in Run(Path("runs/relative")).store
    main(["inspect", "runs/relative/submodels/p0"])
    assert "p0" in capsys.readouterr().out


def test_a_submodel_that_cannot_be_stored_is_named_and_the_others_are_there(folder, monkeypatch, capsys):
    save = SubmodelStore.save

    def full_disk(self, stored, **more):
        if stored.speaker == "p1":
            raise StoreError("no space left on device")
        save(self, stored, **more)

    monkeypatch.setattr(SubmodelStore, "save", full_disk)
    message = fails(capsys, "train", folder / "people.py", "--name", "full")
    assert "1 of 4 Submodels could not be stored" in message
    assert "no space left" in message
    run = Run(folder / "runs/full")
    assert set(run.store.speakers()) == {"p0", "p2", "p3"}
    monkeypatch.undo()
    main(["train", str(folder / "people.py"), "--name", "full"])
    for speaker in ("p0", "p1", "p2", "p3"):
        one, two = (load_submodel(folder / f"runs/{name}/submodels/{speaker}").submodel for name in ("people", "full"))
        jax.tree.map(np.testing.assert_array_equal, one, two)
