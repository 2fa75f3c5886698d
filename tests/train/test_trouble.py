"""Disks that are full, processes that are stopped early, starts that change: told, and nothing is lost."""

import contextlib
import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

import specialize
import specialize.cli as cli
import specialize.train.loop as loop
from specialize.base import save_base
from specialize.commands import load_experiment
from specialize.corpus import Shapes, eval_batches
from specialize.errors import EXIT_PREEMPTED, ConfigError, StoreError
from specialize.submodel import SubmodelStore, find_sites
from specialize.submodel.bank import speaker_mesh
from specialize.train import Cohort, HyperParameters, Run, Stopping, train
from specialize.train.metrics import JsonLines
from specialize.train.state import StateFolder
from specialize.train.trainee import Plain
from tests.bases import tiny_whisper
from tests.people import write_people
from tests.train.cohorts import SPEC, cohort, one_shape, people, train_jobs, trainer
from tests.train.test_dispatch import Saving
from tests.train.test_parallel import assert_same_bits
from tests.train.test_resume import Background, state_of

STOP = Stopping(max_steps=8, every=2, patience=1)
HYPER = HyperParameters(learning_rate=0.3, warmup=0)


def of_several_sizes(slots: int, speakers: range) -> Any:
    """A trainer whose dev batches have other sizes when a job has ended and none has taken its slot."""
    made = trainer(cohort(slots, random=False), speakers, stop=STOP, hyper=HYPER)
    (largest,) = one_shape(made.corpus).sizes
    sizes = [largest._replace(samples=largest.samples * n // 16) for n in range(4, 17)]
    made.dev_shapes = Shapes(tuple(sizes))
    return made


def test_a_run_goes_on_to_the_same_bits_where_dev_batches_have_several_sizes(monkeypatch):
    """Killed at a few saves."""
    seen = set()

    def watched(*arguments: Any) -> Any:
        batches = eval_batches(*arguments)
        seen.add(max(batch.audio.shape[-1] for batch in batches))
        return batches

    monkeypatch.setattr(loop, "eval_batches", watched)
    whole = Saving()
    of_several_sizes(4, range(6)).run(whole)
    assert len(seen) > 1
    assert len({finished.steps for finished in whole.jobs}) > 1
    for kill in range(1, len(whole.saved), len(whole.saved) // 4):
        killed, later = Saving(kill), Saving()
        with pytest.raises(KeyboardInterrupt):
            of_several_sizes(4, range(6)).run(killed)
        state, progress = killed.saved[-1]
        going_on = of_several_sizes(4, range(6))
        going_on.run(later, (going_on.cohort.place(state), json.loads(progress)))
        for finished in killed.jobs + later.jobs:
            assert_same_bits(finished, whole.by_speaker()[finished.job.speaker.id])


def test_the_gate_compares_with_the_base_as_it_serves_alone():
    """A Whisper serves with its whole window, and Submodels are trained on what the audio needs."""
    base, corpus = tiny_whisper(), people()
    alone = base.alone().architecture
    assert alone != base.architecture
    sites = find_sites(SPEC, base.architecture, base.params)
    mesh = speaker_mesh(jax.devices()[:1])
    trained = Cohort(base.architecture, Plain(SPEC, sites), mesh, 8, random=False, alone=alone)
    stop = Stopping(max_steps=2, every=2)
    for name, finished in train_jobs(trained, range(8), stop=stop, hyper=HYPER).by_speaker().items():
        speaker = next(s for s in corpus.speakers if s.id == name)
        (batch,) = eval_batches(corpus, [speaker.dev], len(speaker.dev), one_shape(corpus))
        row = jax.tree.map(lambda leaf: leaf[0], batch)
        for architecture, found in ((alone, finished.base_dev_loss), (base.architecture, finished.looks[0][1])):
            losses = jax.jit(architecture.losses)(base.params, row)
            np.testing.assert_allclose(found, losses.total.sum() / losses.count.sum(), rtol=1e-5)
        assert finished.base_dev_loss != finished.looks[0][1]
        assert finished.helps == (finished.dev_loss < finished.base_dev_loss)


@contextlib.contextmanager
def small_files(size: int):
    """Files become no larger, as on a disk that is full. Not for longer: what pytest prints may go to a file too."""
    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_lines_wait_for_space_and_none_is_lost_or_torn(tmp_path):
    path = tmp_path / "log.jsonl"
    log = JsonLines(path)
    log.write({"step": 0})
    with small_files(path.stat().st_size + 5):
        for step in (1, 2):
            log.write({"step": step})
        failure, text = log.failure, path.read_text()
        with pytest.raises(StoreError, match=r"log\.jsonl.*cannot be written"):
            log.size()
    assert failure is not None
    assert text == '{"step": 0}\n'
    log.write({"step": 3})
    assert log.failure is None
    assert log.size() == path.stat().st_size
    log.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 2, 3]


def test_lines_that_never_find_space_are_told_at_the_end(tmp_path):
    log = JsonLines(tmp_path / "log.jsonl")
    with small_files(3):
        log.write({"step": 1})
        with pytest.raises(StoreError, match="last lines"):
            log.close()


EXPERIMENT = """
from pathlib import Path
from specialize import CohortConfig, CorpusConfig, Experiment, HyperParameters, ResidualAdapter, Stopping

here = Path(__file__).parent
experiment = Experiment(
    name="people",
    base=here / "base",
    corpus=CorpusConfig(manifest=here / "people.jsonl", cache=here / "cache"),
    submodel=ResidualAdapter(bottleneck=2),
    hyper=HyperParameters(learning_rate=0.3),
    stop=Stopping(max_steps=6, every=2, patience=9),
    cohort=CohortConfig(slots=8, batch=2, rows=2, shapes=1),
    save_seconds=1e-9,
    runs=here / "runs",
)
"""

# The disk is full from one look to another.
FULL = """
import resource, signal, sys
import specialize.train
from specialize.cli import main
from specialize.train.recorder import Recorder

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
before, looked, looks = resource.getrlimit(resource.RLIMIT_FSIZE), Recorder.looked, 0

def watched(self, *values):
    global looks
    looks += 1
    if looks in (12, 20):
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 if looks == 12 else before[0], before[1]))
    looked(self, *values)

Recorder.looked = watched
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A base, a corpus, an experiment file and its finished run."""
    folder = tmp_path_factory.mktemp("trouble")
    write_people(folder, 5, 6, seconds=0.3)
    save_base(tiny_whisper(), folder / "base")
    (folder / "people.py").write_text(EXPERIMENT)
    train(load_experiment(folder / "people.py"))
    return folder


def test_a_run_goes_on_while_its_disk_is_full_and_loses_nothing(folder):
    command = [sys.executable, "-W", "ignore", "-c", FULL, "train", str(folder / "people.py"), "--name", "full"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "not logged" in done.stderr
    assert "state not saved" in done.stderr
    # Orbax closes its event loop at the first write that fails; Python may tell of those that come back after it.
    assert str(Path(specialize.__file__).parent) not in done.stderr, "a traceback through our code"
    ours, theirs = (SubmodelStore(folder / "runs" / name / "submodels") for name in ("full", "people"))
    assert list(ours.speakers()) == list(theirs.speakers())
    for speaker in theirs.speakers():
        jax.tree.map(np.testing.assert_array_equal, ours.load(speaker).submodel, theirs.load(speaker).submodel)
    for log in ("jobs.jsonl", "metrics.jsonl"):
        lines = [(folder / "runs" / name / log).read_text().count("\n") for name in ("full", "people")]
        assert lines[0] == lines[1]


def test_a_state_that_nobody_needs_any_more_may_fail(tmp_path, monkeypatch):
    states = StateFolder(tmp_path / "state")
    monkeypatch.setattr(ocp.training.Checkpointer, "save_async", lambda *_, **__: Background())
    states.save(state_of(1), {"step": 1})
    states.close()


def test_a_run_is_not_gone_on_with_from_another_start(folder):
    first = dataclasses.replace(load_experiment(folder / "people.py"), name="starts")
    Run.begin(first, base="b", corpus="c", start="one")
    with pytest.raises(ConfigError, match="start: 'one' -> 'two'"):
        Run.begin(first, base="b", corpus="c", start="two")
    assert Run.begin(first, base="b", corpus="c", start="one").changed_versions == []


def test_other_packages_are_told_and_those_it_began_with_stay_on_record(folder):
    first = dataclasses.replace(load_experiment(folder / "people.py"), name="versions")
    run = Run.begin(first, base="b", corpus="c")
    config = run.config | {"versions": run.config["versions"] | {"jax": "0.1"}}
    (run.folder / "config.json").write_text(json.dumps(config))
    again = Run.begin(first, base="b", corpus="c")
    assert [change.split(" -> ")[0] for change in again.changed_versions] == ["jax 0.1"]
    assert again.config["versions"]["jax"] == "0.1"


@pytest.mark.parametrize("left", [["config.json.tmp"], ["lock"], ["config.json.tmp", "lock"]])
def test_a_folder_that_a_killed_run_left_without_its_first_file_is_begun(folder, left):
    first = dataclasses.replace(load_experiment(folder / "people.py"), name="-".join(left))
    first.folder.mkdir()
    for name in left:
        (first.folder / name).write_text("")
    assert Run.begin(first, base="b", corpus="c").base == "b"


def test_overwriting_removes_last_what_makes_a_run(folder, monkeypatch):
    first = dataclasses.replace(load_experiment(folder / "people.py"), name="overwritten")
    run = Run.begin(first, base="b", corpus="c")
    (run.folder / "state").mkdir()
    (run.folder / "metrics.jsonl").write_text("{}\n")
    removed: list[str] = []
    unlink = Path.unlink

    def noted(path: Path, *arguments: Any) -> None:
        removed.append(path.name)
        unlink(path, *arguments)

    monkeypatch.setattr(Path, "unlink", noted)
    Run.begin(first, base="other", corpus="c", overwrite=True)
    assert removed == ["metrics.jsonl", "config.json"]
    assert not (run.folder / "state").exists()


@pytest.mark.parametrize("name", ["train", "pretrain"])
def test_sigterm_before_a_run_begins_exits_as_later(name, monkeypatch, capsys):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setitem(cli.COMMANDS, name, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    try:
        with pytest.raises(SystemExit) as ended:
            cli.main([name])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == EXIT_PREEMPTED
    assert "The same command begins it" in capsys.readouterr().err
