"""Pretraining of a base: it learns, goes on after a stop to the same bits, and what it makes is a base."""

import dataclasses
import json
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from specialize import CorpusConfig
from specialize.base import ConformerConfig, TransducerConfig, load_base
from specialize.cli import main
from specialize.corpus import Corpus, Epochs, JoinedCorpus, Shapes, Size, Utterance, need, open_corpus
from specialize.errors import EXIT_PREEMPTED, ConfigError, CorpusError, StoreError
from specialize.serve import Recognizer
from specialize.submodel.sites import flatten
from specialize.train import Pretraining, PretrainRun, pretrain
from specialize.train.metrics import MetricsLog, read_metrics
from specialize.train.pretrain import Trainer
from tests.bases import random_batch, tiny_conformer_ctc
from tests.people import write_people
from tests.train.sittings import codes, said, sit

IMPORTS = "from pathlib import Path, PosixPath\nfrom specialize import *\n"
MODEL = ConformerConfig(
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    num_mel_bins=16,
    subsampling_factor=4,
    subsampling_conv_channels=4,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pretrain")
    write_people(folder, 3, 8)
    return folder


def experiment(folder: Path, name: str, **changes: Any) -> Pretraining:
    corpora = (CorpusConfig(manifest=folder / "people.jsonl", cache=folder / "cache"),)
    settings: dict[str, Any] = {"steps": 6, "every": 3, "seconds": 8.0, "sizes": 1, "warmup": 1}
    settings |= {"learning_rate": 3e-3, "average": 0.5, "runs": folder / "runs"}
    return Pretraining(name, corpora, MODEL, **(settings | changes))


@pytest.fixture(scope="module")
def whole(folder) -> PretrainRun:
    return pretrain(experiment(folder, "whole"))


def test_it_learns_and_makes_a_base(whole):
    base = load_base(whole.base_folder)
    summary = whole.read("summary.json")
    assert base.fingerprint == summary["fingerprint"]
    losses = [record["dev_loss"] for record in read_metrics(whole.folder / "metrics.jsonl")]
    assert len(losses) == 2
    assert summary["dev_loss"] == min(losses) == losses[-1] < losses[0]
    assert not (whole.folder / "state").exists()


def test_one_that_has_ended_is_told_to_have(folder, whole, capsys):
    before = (whole.folder / "config.json").read_bytes(), whole.read("summary.json")
    again = pretrain(experiment(folder, "whole"))
    assert "has ended already" in capsys.readouterr().err
    assert (again.folder, again.read("summary.json")) == (whole.folder, before[1])
    assert (whole.folder / "config.json").read_bytes() == before[0]
    with pytest.raises(ConfigError, match=r"has ended, and was of another configuration:\n  steps: 6 -> 9"):
        pretrain(experiment(folder, "whole", steps=9))


def assert_as_whole(run: PretrainRun, whole: PretrainRun) -> None:
    """Whether a pretraining came out, bit for bit, as the one that was never stopped."""
    ours, theirs = load_base(run.base_folder), load_base(whole.base_folder)
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
    records = [list(read_metrics(of.folder / "metrics.jsonl")) for of in (run, whole)]
    assert records[0] == records[1]
    summaries = [of.read("summary.json") | {"seconds": 0.0} for of in (run, whole)]
    assert summaries[0] == summaries[1]


@pytest.fixture(scope="module")
def killed(folder) -> Path:
    """What each sitting of a pretraining left, `after0` to `after3`: killed while a state was saved, stopped just
    before the last look, killed between its base and its summary, and ended."""
    file, runs = folder / "killed.py", folder / "runs/killed"
    file.write_text(f"{IMPORTS}experiment = {experiment(folder, 'run', runs=runs, save_seconds=1e-9)!r}\n")
    ends = [
        ("step", 3, "SIGKILL", 0.01),
        ("step", 6, "SIGTERM", 0),
        ("touch", "summary.json", "SIGKILL", 0),
        (),
    ]
    sit(folder, [("killed", index, ["pretrain", str(file)], *how) for index, how in enumerate(ends)])
    return folder / "killed"


def test_a_pretraining_that_is_killed_and_stopped_goes_on_to_the_same_bits(folder, whole, killed):
    kill = -signal.SIGKILL
    assert codes(folder, "killed") == [kill, EXIT_PREEMPTED, kill, 0]
    assert all("goes on with" in said(folder, "killed", sitting) for sitting in (1, 2, 3))
    left = [{path.name for path in (killed / f"after{sitting}/run").iterdir()} for sitting in range(4)]
    assert ["base" in names for names in left] == [False, False, True, True]
    assert ["summary.json" in names for names in left] == [False, False, False, True]
    assert not {"state", "summary.json.tmp"} & left[3]
    assert_as_whole(PretrainRun(killed / "after3/run"), whole)


def test_a_changed_configuration_is_refused_with_the_difference_and_loses_nothing(folder, killed, tmp_path):
    shutil.copytree(killed / "after0", tmp_path / "runs")
    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file() and path.name != "lock"]
    before = {path: path.read_bytes() for path in files}
    changed = experiment(folder, "run", runs=tmp_path / "runs", learning_rate=0.5, spec_augment=0.0, save_seconds=9.0)
    with pytest.raises(ConfigError, match="has begun with another configuration") as raised:
        pretrain(changed)
    message = str(raised.value)
    assert "learning_rate: 0.003 -> 0.5\n" in message
    assert "spec_augment: 0.5 -> 0.0\n" in message
    assert "save_seconds" not in message
    assert {path: path.read_bytes() for path in files} == before


def test_it_goes_on_from_another_base(folder, whole):
    run = pretrain(experiment(folder, "on", start=whole.base_folder, steps=3, sizes=2))
    assert load_base(run.base_folder).fingerprint != load_base(whole.base_folder).fingerprint
    first = next(iter(read_metrics(run.folder / "metrics.jsonl")))
    before = next(iter(read_metrics(whole.folder / "metrics.jsonl")))
    assert first["train_loss"] < before["train_loss"]


def test_a_pretrained_base_is_scored_on_its_corpora_or_on_another(folder, whole, capsys):
    words = ["evaluate", str(whole.folder), "--resamples", "20", "--groups", "severity", "seconds", "corpus"]
    main(words)
    results = whole.read("results.json")
    assert set(results["speakers"]) == {"p0", "p1", "p2"}
    assert set(results["groups"]) == {"severity", "seconds", "corpus"}
    assert (results["left_out"], results["differs"]) == (0, [])
    report = (whole.folder / "report.html").read_text()
    assert all(text in report for text in ("By corpus", "p2", "Dev loss of the base", str(whole.base_folder)))
    before = (whole.folder / "results.json").read_bytes()
    lines = (folder / "people.jsonl").read_text().splitlines()
    chosen = [json.dumps(json.loads(line) | {"split": "test"}) for line in lines[:2]]
    (folder / "other.jsonl").write_text("\n".join([*chosen, "{not json"]) + "\n")
    capsys.readouterr()
    main([*words, "--manifest", str(folder / "other.jsonl"), "--language", "de"])
    results = whole.read("results.manifest-other.language-de.json")
    assert set(results["speakers"]) == {"p0"}
    assert [problem["line"] for problem in results["problems"]] == [3]
    told = capsys.readouterr().out
    assert "line 3" in told
    assert "report.manifest-other.language-de.html" in told
    assert (whole.folder / "results.json").read_bytes() == before
    with pytest.raises(SystemExit):
        main(["evaluate", str(whole.folder), "--groups", "colour"])
    told = capsys.readouterr().err
    assert "severity" in told
    assert "decoding" not in told


def test_texts_that_the_alphabet_cannot_make_are_named(folder):
    with pytest.raises(ConfigError, match=r"nothing to train.*line"):
        pretrain(experiment(folder, "letters", alphabet="xyz"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("steps", 0), ("seconds", 0.0), ("average", 1.0), ("corpora", ()), ("clip", np.nan), ("save_seconds", -1.0)],
        *((name, np.inf) for name in ("seconds", "learning_rate", "weight_decay", "spec_augment", "save_seconds")),
    ],
)
def test_settings_that_cannot_be_are_refused(folder, field, value):
    with pytest.raises(ConfigError, match=field):
        experiment(folder, "wrong", **{field: value}) if field != "corpora" else Pretraining("wrong", ())


def test_every_utterance_comes_once_an_epoch_in_another_order_each(folder):
    config = CorpusConfig(manifest=folder / "people.jsonl", cache=folder / "cache")
    corpus = open_corpus(config, tiny_conformer_ctc())
    joined = JoinedCorpus([corpus, corpus], "train")
    needs = [need([u]) for u in joined.utterances]
    shapes = Shapes.choose(needs, 3, Size(max(n.samples for n in needs), max(n.labels for n in needs)))
    epochs = Epochs(joined, joined.utterances, shapes, 60_000, multiple=2)
    orders = []
    for epoch in range(2):
        rows = []
        for batch in epochs.batches(epoch * epochs.steps, epochs.steps):
            assert len(batch.samples) % 2 == 0
            assert batch.audio.size <= 60_000 or len(batch.samples) == 2
            rows += [row.tobytes() for row, n in zip(batch.audio[:, :1000], batch.samples, strict=True) if n]
        orders.append(rows)
    expected = sorted(joined.audio(u)[:1000].tobytes() for u in joined.utterances)
    assert sorted(orders[0]) == sorted(orders[1]) == expected
    assert orders[0] != orders[1]


def test_the_rows_that_each_process_reads_make_the_batch_of_one(folder):
    corpus = open_corpus(CorpusConfig(manifest=folder / "people.jsonl", cache=folder / "cache"), tiny_conformer_ctc())
    joined = JoinedCorpus([corpus], "train")
    needs = [need([u]) for u in joined.utterances]
    shapes = Shapes.choose(needs, 2, Size(max(n.samples for n in needs), max(n.labels for n in needs)))
    of = partial(Epochs, joined, joined.utterances, shapes, 60_000, multiple=4)
    whole = of()
    parts = [of(own=lambda rows, i=i: range(i * rows // 2, (i + 1) * rows // 2)) for i in range(2)]
    for step in range(whole.steps):
        jax.tree.map(
            lambda a, *b: np.testing.assert_array_equal(a, np.concatenate(b)), whole[step], *(p[step] for p in parts)
        )


@pytest.fixture(scope="module")
def transducer(folder) -> PretrainRun:
    """A transducer in the form of the imported ones, with durations and batch norms."""
    model = dataclasses.replace(MODEL, conv_norm="batch")
    sizes = TransducerConfig(16, 1, durations=(0, 1, 2))
    of = experiment(folder, "transducer", head="transducer", transducer=sizes, steps=3)
    return pretrain(dataclasses.replace(of, model=model))


def test_a_transducer_is_trained_and_its_folder_loads_and_transcribes(folder, transducer):
    base = load_base(transducer.base_folder)
    assert base.fingerprint == transducer.read("summary.json")["fingerprint"]
    assert isinstance(Recognizer(base, batch=1).transcribe(folder / "p0_0.wav"), str)


def test_the_statistics_of_batch_norms_are_not_trained(folder, transducer):
    flat = flatten(load_base(transducer.base_folder).params)
    statistics = {path: leaf for path, leaf in flat.items() if path.endswith(("/norm/mean", "/norm/var"))}
    assert len(statistics) == 2
    for path, leaf in statistics.items():
        assert np.unique(leaf).tolist() == [0.0 if path.endswith("mean") else 1.0], path
    changed = load_base(pretrain(experiment(folder, "more", start=transducer.base_folder, steps=3)).base_folder)
    moved = [path for path, leaf in flatten(changed.params).items() if not np.array_equal(leaf, flat[path])]
    assert moved
    assert not set(moved) & set(statistics)


def test_corpora_without_a_split_add_what_they_have(folder):
    lines = [json.loads(line) for line in (folder / "people.jsonl").read_text().splitlines()]
    corpora = []
    for name, part in (("train", lines[:8]), ("dev", lines[8:12])):
        manifest = folder / f"only_{name}.jsonl"
        manifest.write_text("".join(json.dumps(line | {"split": name}) + "\n" for line in part))
        corpora.append(CorpusConfig(manifest=manifest, cache=folder / "cache", strict=True))
    made = pretrain(dataclasses.replace(experiment(folder, "parts", steps=3), corpora=tuple(corpora)))
    assert made.read("problems.json") == []
    with pytest.raises(ConfigError, match="nothing to choose the best step by"):
        pretrain(dataclasses.replace(experiment(folder, "no_dev", steps=3), corpora=tuple(corpora[:1])))


def test_recordings_and_disks_in_trouble_are_told_and_cost_neither_a_step_nor_a_look(folder, monkeypatch, capsys):
    broken, read, size, sizes = set(), Corpus.audio, MetricsLog.size, []

    def audio(self: Corpus, utterance: Utterance) -> np.ndarray:
        if utterance.id in broken:
            raise CorpusError(f"'{utterance.id}' is gone")
        return read(self, utterance)

    corpus = open_corpus(dataclasses.replace(experiment(folder, "x").corpora[0], pool="all"), tiny_conformer_ctc())
    broken |= {corpus.speakers[0].train[0].id, corpus.speakers[0].dev[0].id}

    def full_at_first(self: MetricsLog) -> int:
        sizes.append(size(self))
        if len(sizes) == 1:
            raise StoreError("no space left on device")
        return sizes[-1]

    monkeypatch.setattr(Corpus, "audio", audio)
    monkeypatch.setattr(MetricsLog, "size", full_at_first)
    run = pretrain(experiment(folder, "broken", save_seconds=1e-9))
    records = list(read_metrics(run.folder / "metrics.jsonl"))
    assert [record["step"] for record in records] == [3, 6]
    assert all(np.isfinite(record["dev_loss"]) and np.isfinite(record["train_loss"]) for record in records)
    told = capsys.readouterr().err
    assert all(f"'{name}' is gone" in told for name in broken)
    assert told.count("state not saved: no space left on device. The run goes on") == 1


def test_eight_devices_equal_one(folder):
    of = experiment(folder, "devices", spec_augment=0.0)
    base = load_base(pretrain(dataclasses.replace(of, name="begun", steps=3)).base_folder)
    batch = random_batch(tiny_conformer_ctc(), rows=8)
    states = []
    for devices in (jax.devices()[:1], jax.devices()):
        trainer = Trainer(base.architecture, of.recipe, devices)
        state, loss = trainer.begin(base.params), np.nan
        for _ in range(3):
            state, loss = trainer.step(state, trainer.place_rows(batch))
        states.append((jax.device_get(state.moments.mu), float(loss)))
    (one, loss), (eight, other) = states
    np.testing.assert_allclose(loss, other, rtol=1e-4)
    # Gradients, for Adam makes whole steps of the noise where there is none.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(a).max() + 1e-6), one, eight
    )
