"""Runs that train a space: what they leave, and that they go on, leave out who is in trouble, and can be looked at."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import specialize.corpus.draws as draws
import specialize.describe as describe
from specialize.base import save_base
from specialize.cli import main
from specialize.commands import load_experiment
from specialize.corpus import collate
from specialize.errors import EXIT_PREEMPTED, ConfigError, CorpusError, SpecError, StoreError
from specialize.space import CompactStore, Hypernetwork, OneHot, load_space, save_space
from specialize.submodel import SubmodelStore, inserted, load_submodel, save_submodel
from specialize.train import Experiment, SpaceRun, SpaceTraining, open_run, plan_space, train_space
from specialize.train.experiment import from_json, to_json
from specialize.train.metrics import read_metrics
from specialize.train.recorder import read_jobs
from specialize.train.state import StateFolder
from tests.bases import tiny_whisper
from tests.people import write_people

# Eleven speakers in eight slots, one to a device: three of the slots have two speakers, which take turns.
SPEAKERS = 11
EXPERIMENT = """
from pathlib import Path
from specialize import CohortConfig, CorpusConfig, HyperParameters, Linear, ResidualAdapter, SpaceTraining, Stopping

here = Path(__file__).parent
experiment = SpaceTraining(
    name="space",
    base=here / "base",
    corpus=CorpusConfig(manifest=here / "people.jsonl", cache=here / "cache"),
    submodel=ResidualAdapter(bottleneck=2),
    space=Linear(dim=3),
    hyper=HyperParameters(learning_rate=1e-2, warmup=2, dropout=0.1),
    stop=Stopping(max_steps=9, every=3),
    cohort=CohortConfig(slots=8, batch=2, rows=2, shapes=1),
    runs=here / "runs",
)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A base, a corpus, an experiment file and its finished run."""
    folder = tmp_path_factory.mktemp("joint")
    write_people(folder, SPEAKERS, 6, seconds=0.4)
    save_base(tiny_whisper(), folder / "base")
    (folder / "space.py").write_text(EXPERIMENT)
    main(["train", str(folder / "space.py")])
    return folder


@pytest.fixture(scope="module")
def whole(folder) -> SpaceRun:
    return SpaceRun(folder / "runs/space")


def experiment(folder: Path) -> SpaceTraining:
    return load_experiment(folder / "space.py", SpaceTraining)


def train(folder: Path, name: str, *words: str) -> SpaceRun:
    main(["train", str(folder / "space.py"), "--name", name, *words])
    return SpaceRun(folder / "runs" / name)


def fails(capsys, *words: object) -> str:
    """What a command that ends with exit code 1 says."""
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert ended.value.code == 1
    return capsys.readouterr().err


def measured(run: SpaceRun) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without what the clock says; NaN as text, so that lines compare."""
    lines = [record for record in read_metrics(run.folder / "metrics.jsonl") if record.pop("seconds") >= 0]
    return [{key: str(value) for key, value in record.items()} for record in lines]


def assert_same_run(one: SpaceRun, two: SpaceRun) -> None:
    """Whether two runs came out the same, bit for bit."""
    assert measured(one) == measured(two)
    assert (one.folder / "jobs.jsonl").read_bytes() == (two.folder / "jobs.jsonl").read_bytes()
    left, right = one.space(), two.space()
    assert (left.training, left.facts) == (right.training, right.facts)
    jax.tree.map(np.testing.assert_array_equal, left.shared, right.shared)
    jax.tree.map(np.testing.assert_array_equal, left.embeddings, right.embeddings)
    assert sorted(one.speakers()) == sorted(two.speakers())


def test_it_learns_and_leaves_a_space_and_a_submodel_of_each_speaker(whole):
    summary, space = whole.read("summary.json"), whole.space()
    assert summary["dev_loss"] < summary["start_dev_loss"]
    assert summary["start_dev_loss"] != summary["base_dev_loss"], "the base serves with its whole window"
    assert set(space.speakers()) == set(whole.speakers()) == {f"p{i}" for i in range(SPEAKERS)}
    assert summary["slots"] == 8
    assert summary["submodels"] == SPEAKERS
    assert not (whole.folder / "state").exists()
    assert isinstance(open_run(whole.folder), SpaceRun)
    assert len(np.unique(np.stack(list(space.embeddings.values())), axis=0)) == SPEAKERS


def test_one_that_has_ended_is_told_to_have(folder, whole, capsys):
    before = (whole.folder / "config.json").read_bytes(), whole.read("summary.json")
    main(["train", str(folder / "space.py")])
    said = capsys.readouterr()
    assert "has ended already" in said.err
    assert f"space of {SPEAKERS} speakers" in said.out
    assert ((whole.folder / "config.json").read_bytes(), whole.read("summary.json")) == before


def test_every_stored_submodel_is_that_of_the_space_bit_for_bit(whole):
    space, losses = whole.space(), []
    for speaker in space.speakers():
        stored, made = whole.store.load(speaker, base=whole.base), space.submodel(speaker)
        jax.tree.map(np.testing.assert_array_equal, stored.submodel, made.submodel)
        assert stored.training == made.training
        assert stored.training["embedding"] == space.embeddings[speaker].tolist()
        assert stored.helps == (stored.training["dev_loss"] < stored.training["base_dev_loss"])
        losses.append(stored.training["dev_loss"])
    np.testing.assert_allclose(np.mean(losses), whole.read("summary.json")["dev_loss"])


def test_the_dev_losses_are_those_of_the_stored_submodels(folder, whole):
    """What is measured in training, many slots together, is what a user gets."""
    planned = plan_space(experiment(folder))
    base, corpus = planned.plan.base, planned.plan.corpus
    _, shapes = planned.plan.shapes(planned.program, 8)

    @jax.jit
    def mean_loss(submodel, batch):
        with inserted(planned.spec, submodel, base.params) as params:
            losses = base.architecture.losses(params, batch)
        return losses.total.sum() / losses.count.sum()

    for job in [planned.jobs[0], planned.jobs[10]]:
        stored = whole.submodel(job.speaker.id)
        batch = jax.tree.map(lambda leaf: leaf[0], collate(corpus, [job.speaker.dev], 2, shapes))
        np.testing.assert_allclose(mean_loss(stored.submodel, batch), stored.training["dev_loss"], rtol=1e-4)


def test_metrics_have_a_line_of_means_and_one_of_each_speaker(whole):
    records = read_metrics(whole.folder / "metrics.jsonl")
    means = [record for record in records if "speaker" not in record]
    assert [record["step"] for record in means] == [0, 3, 6, 9]
    assert all(record["speakers"] == SPEAKERS for record in means)
    for record in means:
        losses = [r["dev_loss"] for r in records if r["step"] == record["step"] and "speaker" in r]
        assert len(losses) == SPEAKERS
        np.testing.assert_allclose(np.mean(losses), record["dev_loss"])
    assert min(record["dev_loss"] for record in means) == whole.read("summary.json")["dev_loss"]
    assert {job["speaker"] for job in read_jobs(whole)} == set(whole.speakers())


def test_the_same_experiment_gives_the_same_bits(folder, whole):
    assert_same_run(train(folder, "again"), whole)


@pytest.mark.parametrize("stop", [3, 5, 11], ids=["just before a look", "between looks", "before it is stored"])
def test_a_stopped_run_goes_on_to_the_same_bits(folder, whole, stop, monkeypatch, capsys):
    saves, save, name = [], StateFolder.save, f"stopped{stop}"

    def stopping(self: StateFolder, *arguments: Any) -> None:
        save(self, *arguments)
        saves.append(arguments)
        if len(saves) == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(StateFolder, "save", stopping)
        with pytest.raises(SystemExit) as ended:
            train(folder, name, "--save-seconds", "1e-9")
    assert ended.value.code == EXIT_PREEMPTED
    assert "its state is saved" in capsys.readouterr().err
    run = train(folder, name, "--save-seconds", "1000")
    assert "goes on with" in capsys.readouterr().err
    assert_same_run(run, whole)


def test_a_run_that_dies_while_it_stores_is_finished_by_the_same_command(folder, whole, monkeypatch, capsys):
    save = SubmodelStore.save

    def full_disk(self, stored, **more):
        if stored.speaker == "p1":
            raise StoreError("no space left on device")
        save(self, stored, **more)

    with monkeypatch.context() as patched:
        patched.setattr(SubmodelStore, "save", full_disk)
        message = fails(capsys, "train", folder / "space.py", "--name", "full")
    assert "1 of 11 Submodels could not be stored" in message
    assert not (folder / "runs/full/summary.json").exists()
    assert_same_run(train(folder, "full"), whole)


def test_a_changed_one_is_refused(folder, whole, capsys):
    changed = json.loads((whole.folder / "config.json").read_text())
    (folder / "runs/begun").mkdir()
    (folder / "runs/begun/config.json").write_text(json.dumps(changed))
    message = fails(
        capsys, "train", folder / "space.py", "--name", "begun", "--space.dim", "4", "--embedding-decay", "0.5"
    )
    assert "space.dim: 3 -> 4" in message
    assert "embedding_decay: 0.0 -> 0.5" in message


def test_a_speaker_in_trouble_is_left_out_with_a_reason_and_the_others_train(folder, monkeypatch, capsys):
    """The audio of p2's training utterances breaks after the corpus was built."""
    made = draws.dispatch_of

    def broken(corpus: Any, *more: Any) -> Any:
        class Recordings:
            def audio(self, utterance: Any) -> np.ndarray:
                if utterance.id.startswith("p2/"):
                    raise CorpusError("the record is damaged")
                return corpus.audio(utterance)

        return made(Recordings(), *more)

    monkeypatch.setattr(draws, "dispatch_of", broken)
    run = train(folder, "damaged", "--stop.max-skipped", "1", "--stop.patience", "9")
    reasons = run.read("summary.json")["quarantined"]
    assert set(reasons) == {"p2"}
    assert "not finite" in reasons["p2"]
    assert "the record is damaged" in reasons["p2"]
    assert "p2 is left out from here on" in " ".join(capsys.readouterr().err.split())
    others = {f"p{i}" for i in range(SPEAKERS)} - {"p2"}
    assert set(run.speakers()) == set(run.space().speakers()) == others
    assert run.read("summary.json")["dev_loss"] < run.read("summary.json")["start_dev_loss"]
    assert {job["speaker"]: bool(job["quarantined"]) for job in read_jobs(run)}["p2"]
    for speaker in others:
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run.submodel(speaker).submodel))


def test_where_nobody_is_left_the_run_ends_in_a_sentence(folder, monkeypatch, capsys):
    made = draws.dispatch_of

    def broken(*arguments: Any) -> Any:
        dispatch = made(*arguments)
        parts = tuple(part._replace(audio=np.full_like(part.audio, np.nan)) for part in dispatch.parts)
        return dispatch._replace(parts=parts)

    monkeypatch.setattr(draws, "dispatch_of", broken)
    assert "Nobody is left" in fails(
        capsys, "train", folder / "space.py", "--name", "nobody", "--stop.max-skipped", "1"
    )


@pytest.mark.parametrize("kind", ["one-hot", "hypernetwork"])
def test_other_generators(folder, kind):
    run = train(folder, kind, "--space.kind", kind, "--stop.max-steps", "3", "--hyper.learning-rate", "0.003")
    assert isinstance(run.experiment.space, OneHot | Hypernetwork)
    assert run.read("summary.json")["dev_loss"] < run.read("summary.json")["start_dev_loss"]
    for speaker in ("p0", "p7"):
        made, stored = run.space().submodel(speaker).submodel, run.submodel(speaker).submodel
        jax.tree.map(np.testing.assert_array_equal, made, stored)


def test_everything_starts_at_the_start_and_the_space_alone_can_be_kept(folder, whole, capsys):
    start = whole.submodel("p3")
    save_submodel(folder / "start", start, overwrite=(folder / "start").exists())
    rates = ["--hyper.learning-rate", "0", "--embedding-rate", "0", "--stop.max-steps", "3"]
    run = train(folder, "started", "--start", str(folder / "start"), "--no-store", *rates)
    assert not (run.folder / "submodels").exists()
    summary = run.read("summary.json")
    assert summary["start_dev_loss"] == summary["dev_loss"] != summary["base_dev_loss"]
    assert sorted(run.speakers()) == sorted(whole.speakers())
    for speaker in ("p0", "p9"):
        jax.tree.map(np.testing.assert_array_equal, run.submodel(speaker).submodel, start.submodel)
    main(["evaluate", str(run.folder), "--resamples", "50", "--base-context", "needed"])
    assert json.loads((run.folder / "results.base-needed.json").read_text())["pooled"]["speakers"] == SPEAKERS
    assert "--submodel" not in capsys.readouterr().out
    assert "spec" in fails(
        capsys, "train", folder / "space.py", "--name", "x", "--start", folder / "start", "--submodel.bottleneck", "3"
    )


def test_evaluate_inspect_and_compact_know_a_run_of_a_space(folder, whole, capsys, tmp_path):
    main(["evaluate", str(whole.folder), "--resamples", "50", "--base-context", "needed"])
    results = json.loads((whole.folder / "results.base-needed.json").read_text())
    assert results["pooled"]["speakers"] == SPEAKERS
    report = (whole.folder / "report.base-needed.html").read_text()
    assert "Speakers as points" in report
    assert "Nearest speakers" in report
    capsys.readouterr()
    for path in (whole.folder, whole.space_folder):
        main(["inspect", str(path)])
        printed = capsys.readouterr().out
        for words in ("linear", "dim=3", "11 plain Submodels", "nearest speakers", "by dimension"):
            assert words in printed
    main(["compact", str(whole.folder), str(tmp_path / "all.safetensors"), "--dtype", "float32"])
    assert "11 speakers" in capsys.readouterr().out
    store = CompactStore(tmp_path / "all.safetensors")
    for speaker in whole.speakers():
        stored, compact = whole.submodel(speaker), store.load(speaker, base=whole.base)
        jax.tree.map(np.testing.assert_array_equal, stored.submodel, compact.submodel)
        assert stored.helps == compact.helps


def test_compact_takes_principal_components_of_other_runs(folder, whole, capsys, tmp_path):
    space = whole.space()
    other = Hypernetwork(dim=3, code=2, hidden=4)
    shared = other.init(jax.random.key(0), space.shared["mean"])
    path = tmp_path / "space"
    save_space(path, type(space)(other, space.spec, space.base, jax.device_get(shared), space.embeddings))
    assert "--dim" in fails(capsys, "compact", path, tmp_path / "x")
    main(["compact", str(path), str(tmp_path / "x"), "--dim", "2"])
    assert len(CompactStore(tmp_path / "x")) == SPEAKERS
    assert "not a stored space" in fails(capsys, "compact", folder / "cache", tmp_path / "y")
    assert load_space(path).generator == other


def test_a_dry_run_says_what_a_space_needs(folder, capsys, monkeypatch):
    monkeypatch.setattr(describe, "describe_plan", lambda plan, turns: [f"in {turns} turns"])  # it measures for long
    main(["train", str(folder / "space.py"), "--name", "dry", "--dry-run"])
    printed = capsys.readouterr().out
    assert "in 2 turns" in printed
    assert "2 speakers to a slot" in printed
    assert "11 of 3 numbers" in printed
    assert not (folder / "runs/dry").exists()


def test_settings_that_cannot_be_are_refused(folder, capsys):
    file = folder / "space.py"
    assert "embedding_decay=-1.0" in fails(capsys, "train", file, "--name", "x", "--embedding-decay", "-1")
    assert "sampling=-1.0" in fails(capsys, "train", file, "--name", "x", "--sampling", "-1")
    assert "save_seconds=-1.0" in fails(capsys, "train", file, "--name", "x", "--save-seconds", "-1")
    assert "embedding_rate=inf" in fails(capsys, "train", file, "--name", "x", "--embedding-rate", "inf")
    assert "halving" in fails(capsys, "train", file, "--name", "x", "--stop.halving", "2")
    assert "refill" in fails(capsys, "train", file, "--name", "x", "--cohort.refill", "waves")
    assert "no such kind" in fails(capsys, "train", file, "--name", "x", "--space.kind", "sphere")
    assert "dim=0" in fails(capsys, "train", file, "--name", "x", "--space.dim", "0")
    assert not (folder / "runs/x").exists()
    with pytest.raises((ConfigError, SpecError)):
        train_space(from_json(SpaceTraining, to_json(experiment(folder)) | {"embedding_decay": -1.0}))


def test_experiments_survive_json_and_are_told_apart(folder, whole):
    assert from_json(SpaceTraining, json.loads(json.dumps(to_json(whole.experiment)))) == whole.experiment
    message = r"must expose `experiment`, a specialize\.Experiment; .*SpaceTraining, which `specialize train .*takes"
    with pytest.raises(ConfigError, match=message):
        load_experiment(folder / "space.py", Experiment)
    assert load_submodel(whole.folder / "submodels/p1").speaker == "p1"
