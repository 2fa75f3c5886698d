"""The commands, typed as a user types them, on made-up people and a tiny base."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from specialize.base import save_base
from specialize.cli import COMMANDS, main
from specialize.errors import StoreError
from specialize.submodel import LoRA, ResidualAdapter, SubmodelStore, load_submodel
from specialize.train import Run
from specialize.train.experiment import Experiment, from_json, to_json
from specialize.train.metrics import read_metrics
from specialize.train.recorder import read_jobs
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
    assert loaded.training["dev_loss"] <= loaded.training["base_dev_loss"]
    assert run.experiment.submodel == ResidualAdapter(bottleneck=2)


def test_a_run_is_not_replaced_unless_asked(folder, capsys):
    before = (folder / "runs/people/config.json").read_text()
    assert "--overwrite" in fails(capsys, "train", folder / "people.py")
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
    assert "must expose `experiment`" in fails(capsys, "train", tmp_path / "empty.py")


def test_another_base_is_refused_at_evaluation(folder, capsys, tmp_path):
    save_base(tiny_whisper(seed=1), tmp_path / "other")
    message = fails(capsys, "evaluate", folder / "runs/people", "--base", tmp_path / "other")
    assert tiny_whisper().fingerprint in message
    assert tiny_whisper(seed=1).fingerprint in message


def test_a_run_can_be_moved(folder, tmp_path):
    shutil.copytree(folder / "runs/people", tmp_path / "moved")
    assert set(Run(tmp_path / "moved").store.speakers()) == {"p0", "p1", "p2", "p3"}


def test_every_command_explains_every_flag(capsys, folder):
    for name in COMMANDS:
        with pytest.raises(SystemExit) as ended:
            main([name, *([str(folder / "people.py")] if name == "train" else []), "--help"])
        assert ended.value.code == 0
        assert "usage:" in capsys.readouterr().out
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
