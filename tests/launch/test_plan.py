"""What `specialize plan` says of a run, against the run."""

import dataclasses
import functools
import importlib
import json
import math
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.monitoring import record_event_duration_secs

from launch.accelerators import FAMILIES, find
from launch.plan import RunPlan, plan_run, where
from launch.plan.command import describe
from launch.plan.compiling import Compiling
from launch.plan.costs import Cost, Costs, Roofline
from launch.plan.counts import Copies, ScaledProgram, count, ends_by_steps, ends_like, run_like
from launch.plan.where import Question, share_of_peak
from specialize.base import load_base, save_base
from specialize.cli import main
from specialize.corpus import CorpusConfig, Size
from specialize.errors import ConfigError
from specialize.submodel import ResidualAdapter, find_sites
from specialize.submodel.bank import SPEAKER
from specialize.train import Cohort, CohortConfig, Experiment, HyperParameters, Plan, Stopping, plan, planning, train
from specialize.train.estimate import Layout, Memory, Workload, lowered, needed_memory, traced
from specialize.train.recorder import read_jobs
from specialize.train.trainee import Plain
from tests.bases import tiny_conformer_ctc, tiny_conformer_transducer
from tests.people import write_people

SPEC = ResidualAdapter(where=("*/layers_*",), bottleneck=2)
CHIP = find("v5e-4").chip


@pytest.fixture(scope="module")
def experiment(tmp_path_factory) -> Experiment:
    folder = tmp_path_factory.mktemp("plan")
    write_people(folder, 12, 7, seconds=0.4)
    save_base(tiny_conformer_ctc(), folder / "base")
    return Experiment(
        name="people",
        base=folder / "base",
        corpus=CorpusConfig(manifest=folder / "people.jsonl", cache=folder / "cache"),
        submodel=SPEC,
        hyper=HyperParameters(learning_rate=0.05),
        stop=Stopping(max_steps=8, every=2, patience=1),
        cohort=CohortConfig(slots=8, batch=2, rows=1, shapes=2, chunk=0, resident="off"),
        runs=folder / "runs",
    )


@pytest.fixture(scope="module")
def fresh(experiment) -> Plan:
    """The experiment, checked and not begun."""
    return plan(experiment)


@pytest.fixture(scope="module", autouse=True)
def counted_once():
    """The programs of all accelerators here are the same, so they are compiled once."""
    known = {}
    counting = where.count_costs

    def once(planned, program, shapes, work, platform):
        about = (program.spec, planned.experiment.cohort, planned.base.fingerprint, shapes, work)
        if about not in known:
            known[about] = counting(planned, program, shapes, work, platform)
        return known[about]

    sites = functools.cache(
        lambda spec: find_sites(spec, tiny_conformer_ctc().architecture, tiny_conformer_ctc().params)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, "count_costs", once)
        patch.setattr(planning, "find_sites", lambda spec, *_: sites(spec))
        yield


@pytest.fixture(scope="module")
def trained(experiment) -> SimpleNamespace:
    """A run, what its programs were called with, and what it added up."""
    calls = {name: Counter() for name in ("gradient", "evaluate", "evaluate_alone")}
    made = []

    def watched(planned, *arguments):
        trainer = made_by_plan(planned, *arguments)
        made.append(trainer)
        for name, of in calls.items():
            setattr(trainer.cohort, name, counted(getattr(trainer.cohort, name), of))
        return trainer

    def counted(program, of):
        def call(*arguments):
            of[arguments[-1].audio.shape[-1]] += 1
            result = program(*arguments)
            peak.append(on_a_device())
            return result

        return call

    made_by_plan, before, peak = Plan.trainer, on_a_device(), [0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Plan, "trainer", watched)
        run = train(experiment)
    return SimpleNamespace(run=run, calls=calls, totals=made[0].totals, cohort=made[0].cohort, bytes=max(peak) - before)


def on_a_device() -> int:
    """Bytes of all arrays that lie on the first device now."""
    here = [array for array in jax.live_arrays() if jax.devices()[0] in array.sharding.device_set]
    return sum(math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize for array in here)


@pytest.fixture(scope="module")
def planned(experiment, trained) -> RunPlan:
    return plan_run(experiment, Question(like=trained.run.folder))


def by_samples(counted) -> dict[int, float]:
    """What was counted, by the samples that it is padded to."""
    return {size.samples: n for size, n in counted.items()}


def test_what_a_run_does_is_foreseen_to_the_last_sample(trained, planned):
    counts, totals = planned.programs[0].counts, trained.totals
    steps = {job["steps"] for job in read_jobs(trained.run)}
    assert len(steps) > 1, "jobs that all end alike would show little"
    assert counts.exact
    assert by_samples(counts.parts) == trained.calls["gradient"]
    assert by_samples(counts.looks) == trained.calls["evaluate"]
    assert by_samples(counts.starts) == trained.calls["evaluate_alone"]
    assert counts.job_steps == totals.busy_slot_steps
    assert counts.real_samples == totals.real_samples
    assert counts.computed_samples == totals.computed_samples
    summary = trained.run.read("summary.json")
    assert round(counts.busy_share, 4) == summary["slots_busy"]
    assert round(counts.padded_share, 4) == summary["padded_share"]


def test_memory_and_storage_are_those_of_the_run(experiment, trained, planned):
    (program,) = planned.programs
    state = jax.eval_shape(trained.cohort.empty_state)
    assert program.state_bytes == sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    memory = program.memory
    assert memory.base == sum(leaf.nbytes for leaf in jax.tree.leaves(load_base(experiment.base).params))
    # Whatever the compiler plans for its own use is no array. While no state is saved, there is no copy of it, and of
    # two parts of a step each has a gradient.
    assert memory.base + program.state_bytes // 8 + memory.dev < trained.bytes < memory.total - memory.working
    summary = trained.run.read("summary.json")
    assert (program.parameters_each, program.counts.slots) == (summary["parameters_each"], summary["slots"])
    folders = [Path(str(trained.run.store.path(speaker))) for speaker in trained.run.speakers()]
    files = [[path.stat().st_size for path in folder.rglob("*") if path.is_file()] for folder in folders]
    # Orbax writes the nodes of its index as often as it comes to it, which is most of Submodels as small as these.
    assert planned.stored_bytes == pytest.approx(sum(map(sum, files)), rel=0.4)
    assert planned.stored_files == pytest.approx(sum(map(len, files)), rel=0.4)


def test_a_run_here_is_measured_and_says_so(planned):
    (program,) = planned.programs
    assert planned.pace == "measured here"
    assert program.share_of_peak is None
    assert planned.between == (planned.seconds, planned.seconds)
    taken = program.seconds
    assert min(taken.steps, taken.looks, taken.starts, taken.refills, taken.storing, taken.feeding) > 0
    assert taken.total >= taken.compiling + taken.devices
    said = "\n".join(describe(planned, Question()))
    assert "MODELLED" not in said
    assert f"--cohort.slots {program.counts.slots}" in said
    assert "dev sets" in said


@pytest.fixture(scope="module")
def costs(fresh) -> tuple[Plan, Workload, Costs]:
    (program,) = fresh.programs
    shapes = fresh.shapes(program, 8)
    work = Workload(2, 1, shapes[0].sizes[-1], dev=fresh.dev_samples(program, 8))
    return fresh, work, where.count_costs(fresh, program, shapes, work, "tpu")


def test_costs_and_memory_of_many_slots_are_a_line_through_those_of_few(costs):
    fresh, work, found = costs
    one = dataclasses.replace(fresh, mesh=jax.sharding.Mesh(jax.devices()[:1], fresh.mesh.axis_names))
    cohort = one.cohort(fresh.programs[0], Layout(6, 0))
    compiled = lowered(cohort, fresh.base.params, work).compile()
    expected = Cost.of(traced(cohort, fresh.base.params, work), compiled)
    foreseen = found.shared + found.part[work.longest.samples] * 6
    assert foreseen.flops == pytest.approx(expected.flops, rel=0.02)
    assert foreseen.bytes == pytest.approx(expected.bytes, rel=0.05)
    needed = needed_memory(cohort, fresh.base.params, work, compiled, "tpu")
    assert found.memory_of(6).total == pytest.approx(needed.total, rel=0.05)
    assert (found.memory_of(6).slots, found.memory_of(6).dev) == (needed.slots, needed.dev)
    for slots in (1, 6, 50):
        assert found.slots_in(found.memory_of(slots).total + 1000) == slots


def test_a_forward_pass_costs_less_than_a_gradient(costs):
    """Of the same utterances: a batch of a dev set has two rows, a part of a step one."""
    _, work, found = costs
    look = found.look[max(found.look)].flops / max(found.look) / 2
    part = found.part[work.longest.samples].flops / work.longest.samples
    assert 0.2 < look / part < 1.0


def roofline(flops: float, bandwidth: float) -> Roofline:
    memory = Memory(0, 0, 0, 0, 0, 0)
    each = {100: Cost(10.0, 100.0), 300: Cost(30.0, 100.0)}
    costs = Costs(Cost(0.0, 60.0), each, Cost(4.0, 8.0), each, each, Cost(0.0, 5.0), (1, memory, memory), 0.0)
    return Roofline(costs, slots=7, parts=2, flops=flops, bandwidth=bandwidth)


def test_the_roofline_is_what_takes_longer():
    size = Size(200, 1)
    assert roofline(2.0, 1e9).part(size) == pytest.approx(7 * (20 + 4 / 2) / 2.0)
    assert roofline(1e9, 4.0).part(size) == pytest.approx((60 + 7 * (100 + 8 / 2)) / 4.0)
    assert roofline(2.0, 1e9).part(size) == 2 * roofline(4.0, 1e9).part(size)
    assert roofline(1e9, 5.0).refill == pytest.approx(7 * 5 / 5.0)


def test_a_sample_stands_for_a_long_queue(experiment, fresh, monkeypatch):
    (program,) = fresh.programs
    jobs = type(program.jobs)(Copies(program.jobs.speakers, 190), program.jobs.points, 8)
    scaled = ScaledProgram(program.spec, jobs, program.jobs.speakers)
    shapes, stop = fresh.shapes(program, 8), experiment.stop

    def counted():
        sample = scaled.foreseen(8)
        ends = ends_by_steps(sample[0], stop, 6)
        return count(scaled, sample, ends, 8, stop, (fresh.cut, "continuous"), shapes)

    whole = counted()
    monkeypatch.setattr("specialize.train.planning._FORESEEN", 48)
    sampled = counted()
    assert (whole.exact, sampled.exact, sampled.sampled) == (True, False, 48)
    for name in ("job_steps", "real_samples", "computed_samples", "steps", "rounds"):
        assert getattr(sampled, name) == pytest.approx(getattr(whole, name), rel=0.1), name
    assert sum(sampled.starts.values()) == pytest.approx(sum(whole.starts.values()), rel=0.1)


@pytest.mark.parametrize("wanted", [7, 12, 13, 57, 1_000_000])
def test_copies_are_as_many_as_were_asked_for_and_in_the_order_of_the_queue(fresh, wanted):
    originals = fresh.programs[0].jobs.speakers
    copies = Copies(originals, wanted)
    assert len(copies) == wanted
    seen = [copies[i] for i in range(0, wanted, max(1, wanted // 200))]
    assert len({speaker.id for speaker in seen}) == len(seen)
    order = [originals.index(next(o for o in originals if o.train == speaker.train)) for speaker in seen]
    assert order == sorted(order)
    if wanted == len(originals):
        assert list(copies) == list(originals)


def test_steps_on_average_are_met_by_jobs_that_end_at_looks(fresh):
    jobs, stop = fresh.programs[0].jobs[:], Stopping(max_steps=30, every=12)
    for steps in (12, 15, 18, 26.5, 30):
        ends = ends_by_steps([*jobs] * 20, stop, steps)
        assert set(ends) <= {12, 24, 30}
        assert sum(ends) / len(ends) == pytest.approx(steps, abs=0.2)
    with pytest.raises(ConfigError, match="at least 12"):
        ends_by_steps(jobs, stop, 3)


@pytest.fixture(scope="module")
def modelled(experiment) -> RunPlan:
    return plan_run(experiment, Question(speakers=1_000_000, accelerator="v5e-256"))


def test_a_pod_is_modelled_and_says_so(modelled):
    (program,) = modelled.programs
    assert modelled.pace == "modelled"
    assert (modelled.chips, modelled.machines, modelled.speakers) == (256, 64, 1_000_000)
    assert program.counts.jobs == 1_000_000
    assert program.counts.slots % 256 == 0
    assert program.memory.total <= 0.9 * CHIP.hbm_bytes
    assert program.fits is not None
    assert program.counts.slots // 256 <= program.fits
    assert program.fast.devices < program.seconds.devices < program.slow.devices
    assert program.written == 1_000_000
    # Sixty-four machines write, each what it has trained.
    assert program.seconds.storing == pytest.approx(1_000_000 * program.stored.seconds / 64)
    assert modelled.chip_hours == pytest.approx(256 * modelled.seconds / 3600)


@pytest.fixture(scope="module")
def step(experiment) -> dict:
    """What step.py writes of a step on a v5e."""
    return {
        "fingerprint": load_base(experiment.base).fingerprint,
        "spec": str(SPEC),
        "context": "needed",
        "random": False,
        "platform": "tpu",
        "device_kind": "TPU v5 lite",
        "devices": 1,
        "seconds": 0.5,
        "labels": 8,
        "rows": [{"slots": 4, "batch": 2, "rows": 1, "step_seconds_per_submodel": 1e-4}],
    }


def test_a_measured_step_takes_the_place_of_the_assumption(experiment, fresh, step, tmp_path, monkeypatch):
    (row,), file, people = step["rows"], tmp_path / "step.json", Path("people.py")
    whole = where.step_cost(fresh, fresh.programs[0], 2, 1, Size(8_000, 8), 1)
    monkeypatch.setattr(where, "step_cost", lambda *arguments: whole * arguments[-1])

    def share(there: str = "v5e-256", **changes: Any) -> float:
        file.write_text(json.dumps(step | changes))
        return share_of_peak(file, fresh, fresh.programs[0], find(there), people)

    assert share(rows=[row | {"step_seconds_per_submodel": 2e-4}]) == pytest.approx(share() / 2)
    # The largest number of slots counts, and its seconds are those of all devices at once.
    assert share(rows=[row | {"step_seconds_per_submodel": 1.0, "slots": 2}, row]) == share()
    assert share(devices=2) == pytest.approx(share() / 2)
    # A device of a TPU7x is half a chip.
    v7x = share("v7x-8", device_kind="TPU7x")
    assert v7x == pytest.approx(share() * 197 / (2307 / 2))
    command = "python experiments/benchmarks/step.py --experiment people.py --json"
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"fingerprint": "other"}, f"measured the base other.*{command}"),
        ({"spec": "LoRA()"}, "measured the spec"),
        ({"context": "full"}, "measured the context full, but the experiment has needed"),
        ({"random": True}, "dropout or SpecAugment True"),
        ({"platform": "cpu", "device_kind": "cpu"}, f"on cpu 'cpu', but v5e-256 is of tpu 'TPU v5 lite.*{command}"),
        ({"device_kind": "TPU v4"}, "on tpu 'TPU v4', but v5e-256"),
        ({"rows": [row | {"step_seconds_per_submodel": 1e-12}]}, "times the peak of a TPU v5e"),
        ({"rows": [{"slots": 4}]}, r"does not say batch, .*older version"),
        ({"rows": []}, f"is not what.*{command}"),
    ]
    for changes, message in wrong:
        with pytest.raises(ConfigError, match=message):
            share(**changes)
    expected = share()
    scaled = plan_run(experiment, Question(1_000_000, "v5e-256", measured=file))
    assert scaled.pace == "measured on such a chip"
    assert scaled.programs[0].share_of_peak == expected
    assert scaled.between == (scaled.seconds, scaled.seconds)


def test_every_chip_says_what_jax_calls_it_and_no_two_families_of_chips_share_a_name():
    chips = {family.chip.name: family.chip for family in FAMILIES}.values()
    kinds = [kind for chip in chips for kind in chip.kinds]
    assert all(chip.kinds for chip in chips)
    assert len(set(kinds)) == len(kinds)
    for family in FAMILIES:
        assert (family.chip.float32_flops is None) == (family.kind == "tpu")


def test_a_chip_of_two_devices_has_slots_memory_and_pace_for_each(experiment, modelled):
    planned = plan_run(experiment, Question(speakers=1_000_000, accelerator="v7x-8", slots_per_chip=6))
    (program,) = planned.programs
    assert (planned.chips, planned.devices, planned.memory_of_device) == (4, 8, 96 * 2**30)
    assert program.counts.slots == 24
    (of_v5e,) = modelled.programs
    assert program.memory.total < of_v5e.memory.total
    assert program.memory.base == of_v5e.memory.base
    with pytest.raises(ConfigError, match="multiple of 2"):
        plan_run(experiment, Question(speakers=1_000_000, accelerator="v7x-8", slots_per_chip=7))


def flops(program, *arguments) -> float:
    return Cost.of(jax.jit(program).trace(*arguments)).flops


def test_the_operations_of_a_loop_are_those_of_its_rounds():
    x, xs = jnp.ones((8, 8)), jnp.ones((5, 8, 8))

    def twice(carry, each):
        return jax.lax.scan(lambda c, _: (c @ each, None), carry, None, length=2)[0], None

    def unrolled(x, xs):
        for each in xs:
            x = x @ each @ each
        return x

    assert flops(lambda x, xs: jax.lax.scan(twice, x, xs)[0], x, xs) == pytest.approx(flops(unrolled, x, xs), rel=0.1)
    with pytest.raises(ConfigError, match="loop whose rounds"):
        flops(lambda x: jax.lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ x, x), x)


def test_the_operations_of_a_transducer_are_those_of_its_whole_lattice(monkeypatch):
    """Also where it computes a frame at a time, in a loop."""
    monkeypatch.setattr(importlib.import_module("specialize.base.conformer"), "_LOGITS", 1)
    base = tiny_conformer_transducer()
    mesh = jax.sharding.Mesh(jax.devices()[:1], (SPEAKER,))
    spec = ResidualAdapter(where=("encoder/layers_*",), bottleneck=2)
    trainee = Plain(spec, find_sites(spec, base.architecture, base.params))
    cohort = Cohort(base.architecture, trainee, mesh, 1, random=False)

    def of(labels: int) -> float:
        return Cost.of(traced(cohort, base.params, Workload(1, 1, Size(32_000, labels)))).flops

    # Of a corner of the lattice, forward and backward.
    frames, joint = 32_000 / 640, 2 * 16 * 28 * 2
    assert of(40) - of(10) > 30 * frames * joint


def test_of_a_grid_all_that_is_written_counts(experiment, tmp_path):
    """Where one point is chosen for all, every job; where each speaker has their own, those better than before."""

    def written(**changes) -> RunPlan:
        asked = Question(speakers=1_000_000, accelerator="v5e-256")
        return plan_run(dataclasses.replace(experiment, grid=("lr=1e-3,1e-2,1e-1",), **changes), asked)

    own, pooled = written(), written(select="pooled")
    assert own.programs[0].written == pytest.approx(1_000_000 * (1 + 1 / 2 + 1 / 3))
    assert own.peak_bytes == own.stored_bytes
    assert pooled.programs[0].written == 3_000_000
    assert pooled.peak_bytes == 4 * pooled.stored_bytes
    assert pooled.peak_files == 4 * pooled.stored_files
    for planned, peak in ((own, False), (pooled, True)):
        said = describe(planned, Question(speakers=1_000_000, accelerator="v5e-256"))
        assert any("at its peak" in line for line in said) == peak


def test_a_run_that_jobs_are_to_end_like_has_ended_and_is_of_the_same(experiment, fresh, trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained.run.folder, folder)
    planned, (program,) = fresh, fresh.programs
    jobs, known = program.jobs[:], {job["speaker"]: job["steps"] for job in read_jobs(trained.run)}
    ends = ends_like(jobs, run_like(folder, planned), program)
    assert ends == [known[job.speaker.id] for job in jobs]
    # A quarantined job says nothing of others, and one that is not known ends like its neighbours of the queue.
    lines = [json.loads(line) for line in (folder / "jobs.jsonl").read_text().splitlines()]
    for line in lines:
        place = [job.speaker.id for job in jobs].index(line["speaker"])
        line |= {"steps": place + 1, "quarantined": "trouble" if place == 3 else None}
    (folder / "jobs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    ends = ends_like(jobs, run_like(folder, planned), program)
    assert ends[:3] + ends[4:] == [1, 2, 3, *range(5, 13)]
    assert ends[3] in (3, 5)
    strangers = [dataclasses.replace(job, speaker=dataclasses.replace(job.speaker, id="other")) for job in jobs]
    assert ends_like(strangers, run_like(folder, planned), program) == sorted(
        ends_like(strangers, run_like(folder, planned), program)
    )
    other = dataclasses.replace(planned, experiment=dataclasses.replace(experiment, stop=Stopping(max_steps=9)))
    with pytest.raises(ConfigError, match="end by Stopping"):
        run_like(folder, other)
    base = dataclasses.replace(planned.base, fingerprint="other")
    with pytest.raises(ConfigError, match="not other"):
        run_like(folder, dataclasses.replace(planned, base=base))
    (folder / "summary.json").unlink()
    with pytest.raises(ConfigError, match="has not ended"):
        run_like(folder, planned)


def test_what_a_cache_spared_counts_as_compiling():
    with Compiling() as compiling:
        record_event_duration_secs("/jax/compilation_cache/compile_time_saved_sec", 50.0)
    assert 50.0 < compiling.seconds < 60.0
    record_event_duration_secs("/jax/compilation_cache/compile_time_saved_sec", 50.0)
    assert compiling.seconds < 60.0


def test_the_command_prints_and_writes_what_was_found(experiment, tmp_path, capsys):
    file = tmp_path / "people.py"
    file.write_text(
        "from specialize.train.experiment import Experiment, from_json\nimport json\n"
        f"experiment = from_json(Experiment, json.loads({json.dumps(json.dumps(as_json(experiment)))}))\n"
    )
    out = tmp_path / "plan.json"
    words = ["plan", str(file), "--name", "other", "--speakers", "1_000_000", "--accelerator", "h100-8"]
    main([*words, "--utilisation", "0.2", "--json", str(out)])
    said = capsys.readouterr().out
    for part in (
        "1,000,000 speakers on h100-8",
        "MODELLED, not measured: 20%",
        "an hour",
        "MODELLED by",
        "--cohort.slots",
    ):
        assert part in said, part
    written = json.loads(out.read_text())
    assert written["speakers"] == 1_000_000
    assert written["programs"][0]["counts"]["job_steps"] == pytest.approx(8_000_000)
    assert written["stored_bytes"] == 1_000_000 * written["programs"][0]["stored"]["bytes"]
    assert not (experiment.runs / "other").exists()


def as_json(experiment: Experiment) -> dict:
    from specialize.train.experiment import to_json

    return to_json(experiment)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accelerator": "abacus"}, "Choose from"),
        ({"accelerator": "v5e-4", "slots_per_chip": 10**9}, r"slots need .* fit: give --slots-per-chip"),
        ({"speakers": 0}, "--speakers 0"),
        ({"utilisation": 1.5, "accelerator": "v5e-4"}, "share of the peak"),
        ({"utilisation": 0.2}, "Leave it out"),
        ({"utilisation": 0.2, "accelerator": "v5e-4", "measured": Path("step.json")}, "Leave it out"),
        ({"writers": 0}, "--writers 0"),
        ({"steps": 4.0, "like": Path("run")}, "Give one of them"),
        ({"measured": Path("step.json")}, "Name the --accelerator"),
        ({"slots_per_chip": 4}, "--cohort.slots"),
        ({"accelerator": "v5e-4", "measured": Path("nothing.json")}, "no file 'nothing.json'"),
        ({"like": Path("nothing")}, "is not a run"),
    ],
)
def test_questions_without_an_answer_say_what_to_change(experiment, changes, message):
    with pytest.raises(ConfigError, match=message):
        plan_run(experiment, Question(**changes))


def test_a_space_is_refused_with_what_to_ask_instead(capsys):
    file = Path(__file__).parents[2] / "experiments/synthetic_space.py"
    with pytest.raises(SystemExit):
        main(["plan", str(file)])
    assert "--dry-run" in capsys.readouterr().err
