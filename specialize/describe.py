"""What a folder is: a base, a run, a space or a stored Submodel, in lines of plain text."""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from specialize.base import Base, load_base
from specialize.corpus import Shapes
from specialize.errors import ConfigError, StoreError
from specialize.space import load_space
from specialize.space.generators import generator_name
from specialize.space.look import describe_space
from specialize.submodel import KINDS, StoredSubmodel, find_sites, init_submodel, load_submodel, sites, size
from specialize.submodel.kinds import kind_name
from specialize.submodel.sites import summarise
from specialize.train import Plan, PretrainRun, Run, SpacePlan, SpaceRun, open_run
from specialize.train.estimate import gigabytes
from specialize.train.run import SpeakersRun
from specialize.train.runs import CURVE, fitted_space, is_run

_LISTED = 12


def describe(path: Path, *, kind: str | None = None, where: tuple[str, ...] | None = None) -> Iterator[str]:
    """Lines that say what a folder is.

    Args:
        path: of a base, a run, a space or a Submodel.
        kind: with a base, also where a Submodel of this kind would go, and how large it would be.
        where: with `kind`, patterns of module paths instead of the kind's default.

    Raises:
        ConfigError: the folder is none of these, or `kind` was given for another thing than a base.
        SpecError: `where` matches nothing that fits.
    """
    path = Path(path)
    if where is not None and kind is None:
        raise ConfigError("--where needs --kind: the kind of Submodel that would go there.")
    if not path.exists():
        raise ConfigError(f"There is nothing at '{path}'.")
    if (path / "base.json").is_file():
        base = load_base(path)
        return _insertion(base, kind, where) if kind is not None else _base(path, base)
    if kind is not None:
        raise ConfigError(f"--kind shows where a Submodel would go in a base, but '{path}' is not a base folder.")
    if is_run(path):
        run = open_run(path)
        if isinstance(run, PretrainRun):
            return _pretraining(run)
        assert isinstance(run, Run | SpaceRun)
        return _run(run)
    if (path / "config.json").is_file():
        raise ConfigError(
            f"'{path}' has a config.json, but no base.json and no submodels. If it is a Hugging Face checkpoint, make "
            f"a base from it with `specialize import-base {path} bases/{path.name}`."
        )
    try:
        space = load_space(path)
    except StoreError:
        return _submodel(path, load_submodel(path))
    return itertools.chain((f"space {path}", f"  base           {space.base}"), describe_space(space))


def _base(path: Path, base: Base) -> Iterator[str]:
    architecture = base.architecture
    parameters = size(base.params)
    yield f"base {path}"
    yield f"  architecture   {type(architecture).__name__}"
    yield f"  parameters     {parameters:,} ({_bytes(4 * parameters)} as float32)"
    yield f"  fingerprint    {base.fingerprint}"
    longest = architecture.max_samples / architecture.sample_rate
    yield f"  audio          {architecture.sample_rate} Hz, at most {longest:g} s"
    yield f"  labels         at most {architecture.max_labels} tokens"
    if hasattr(architecture, "prompt"):
        yield f"  language       {base.language}"
    for name, value in _config(architecture):
        yield f"  {name:<14} {value}"
    available = sites(architecture, base.params)
    yield f"modules ({len(available)}), as a `where` names them:"
    for line in summarise(available):
        yield f"  {line}"
    yield "default Submodels:"
    for name, cls in KINDS.items():
        spec = cls()
        count = _count(base, spec)
        yield f"  {name:<17} {count:>12,} parameters ({count / parameters:.2%})  where={' '.join(spec.where)}"


def _config(architecture: Any) -> Iterator[tuple[str, Any]]:
    config = getattr(architecture, "config", None)
    if dataclasses.is_dataclass(config):
        for field in dataclasses.fields(config):
            yield field.name, getattr(config, field.name)


def _insertion(base: Base, kind: str, where: tuple[str, ...] | None) -> Iterator[str]:
    spec = KINDS[kind]() if where is None else KINDS[kind](where=where)
    chosen = find_sites(spec, base.architecture, base.params)
    count = _count(base, spec)
    yield f"{spec}"
    yield f"  {count:,} parameters, {count / size(base.params):.2%} of the base, {_bytes(4 * count)}"
    yield f"  goes to {len(chosen)} modules:"
    for line in summarise(site.path for site in chosen):
        yield f"    {line}"


def _count(base: Base, spec: Any) -> int:
    chosen = find_sites(spec, base.architecture, base.params)
    return size(jax.eval_shape(lambda: init_submodel(spec, chosen, jax.random.key(0))))


def _submodel(path: Path, stored: StoredSubmodel) -> Iterator[str]:
    count = size(stored.submodel)
    yield f"Submodel {path}"
    yield f"  speaker        {stored.speaker}"
    yield f"  spec           {stored.spec}"
    yield f"  parameters     {count:,} ({_bytes(4 * count)})"
    yield f"  base           {stored.base}"
    for name in ("steps", "best_step", "base_dev_loss", "dev_loss", "beats_base_on_dev", "skipped_steps"):
        if name in stored.training:
            yield f"  {name:<14} {_round(stored.training[name])}"
    yield "parameters by module:"
    for line, shapes in _by_module(stored).items():
        yield f"  {line}: {shapes}"


def _by_module(stored: StoredSubmodel) -> dict[str, str]:
    by_shapes: dict[str, list[str]] = {}
    for module, weights in stored.submodel.items():
        shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in weights.items())
        by_shapes.setdefault(shapes, []).append(module)
    return {line: shapes for shapes, modules in by_shapes.items() for line in summarise(modules)}


def _pretraining(run: PretrainRun) -> Iterator[str]:
    experiment, summary, results = run.experiment, run.read("summary.json"), run.read("results.json")
    yield f"pretraining {run.folder}"
    yield f"  corpora        {', '.join(str(corpus.manifest) for corpus in experiment.corpora)}"
    yield f"  start          {experiment.start or 'random parameters'}"
    if experiment.start is None:
        yield f"  model          {experiment.head} on {experiment.model}"
    if summary is None:
        yield "  state          not finished: it has no summary.json"
        return
    yield f"  base           {run.base_folder} ({summary['fingerprint']}), {summary['parameters']:,} parameters"
    yield f"  dev loss       {summary['dev_loss']:.4f} at step {summary['best_step']} of {summary['steps']}"
    yield (
        f"  took           {summary['seconds']:.0f} s for {summary['epochs']} epochs of {summary['hours']} h "
        f"on {', '.join(summary['devices'])}"
    )
    wer = f"{results['pooled']['wer']:.1%} WER" if results else f"none yet: specialize evaluate {run.folder}"
    yield f"  scores         {wer}"


def _run(run: SpeakersRun) -> Iterator[str]:
    experiment, summary, results = run.experiment, run.read("summary.json"), run.read("results.json")
    speakers = [] if summary is None and isinstance(run, SpaceRun) else list(run.speakers())
    yield f"run {run.folder}"
    yield f"  base           {experiment.base} ({run.base})"
    yield f"  corpus         {experiment.corpus.manifest}"
    yield f"  spec           {kind_name(experiment.submodel)}: {experiment.submodel}"
    yield f"  hyper          {experiment.hyper}"
    yield f"  stop           {experiment.stop}"
    yield f"  cohort         {experiment.cohort}"
    if experiment.start is not None:
        yield f"  start          {experiment.start}"
    if isinstance(run, Run) and experiment.space is not None:
        yield f"  space          {experiment.space}, {experiment.fitted}"
    if isinstance(run, SpaceRun):
        yield f"  rates          embeddings {experiment.rate_of_embeddings}, decay {experiment.embedding_decay}"
        yield f"  sampling       by utterances to the power of {experiment.sampling}"
    yield f"  Submodels      {len(speakers)}: {', '.join(speakers[:_LISTED])}{' …' if len(speakers) > _LISTED else ''}"
    if summary is None:
        yield "  state          not finished: it has no summary.json"
    else:
        each, whole = summary["parameters_each"], summary["base_parameters"]
        yield f"  parameters     {each:,} each ({each / whole:.2%} of the base)"
        yield (
            f"  took           {summary['seconds']:.0f} s, {summary['submodels_per_hour']:.0f} Submodels an hour in "
            f"{summary['slots']} slots on {', '.join(summary['devices'])}"
        )
        yield f"  padding        {summary['padded_share']:.1%} of the audio; slots busy {summary['slots_busy']:.1%}"
    yield f"  left out       {len(run.read('problems.json') or [])} (problems.json)"
    if results is None:
        yield f"  scores         none yet: specialize evaluate {run.folder}"
    else:
        pooled = results["pooled"]
        if pooled["base_wer"] is not None:
            yield f"  test WER       {pooled['base_wer']:.1%} -> {pooled['wer']:.1%} over {pooled['speakers']} speakers"
    if isinstance(run, SpaceRun) and summary is not None:
        yield from describe_space(run.space())
    if isinstance(run, Run) and summary is not None and (fitted := fitted_space(run)) is not None:
        yield from describe_space(fitted)
    if (run.folder / CURVE).is_file():
        yield f"  learning curve {run.folder / CURVE}"


def describe_space_plan(planned: SpacePlan) -> Iterator[str]:
    """As `describe_plan`, of a space."""
    layout, devices = planned.plan.layout(planned.program), planned.plan.mesh.devices.size
    rows, generator = planned.turns(layout.slots).rows, planned.experiment.space
    yield from describe_plan(planned.plan, turns=rows)
    template = planned.template()
    shared = size(jax.eval_shape(generator.init, jax.random.key(0), template))
    k = generator.embedding_size(template)
    yield f"  space          {generator_name(generator)}: {generator}"
    yield f"    turns        {rows} speaker{'' if rows == 1 else 's'} to a slot"
    yield f"    embeddings   {len(planned.jobs)} of {k:,} numbers"
    # Beside what is trained: two moments, the best, what decay pulls to, a gradient, and a copy while it is saved.
    memory = 7 * 4 * shared + 6 * 4 * rows * k * layout.slots // devices
    yield f"    generator    {shared:,} parameters; with embeddings, {gigabytes(memory)} more of each device"


def describe_plan(planned: Plan, turns: int = 1) -> Iterator[str]:
    """What a run would need: memory, parameters, slots that fit, time. Measures, but trains nothing.

    Args:
        planned: the run.
        turns: jobs of a slot that share its steps; 1 where each has its own.
    """
    experiment, devices, memory = planned.experiment, planned.mesh.devices, planned.memory
    one = devices.flat[0]
    whole = size(planned.base.params)
    has = "does not say its memory" if memory is None else f"{gigabytes(memory)} each"
    yield f"{experiment.name}: {sum(len(program.jobs) for program in planned.programs)} jobs, nothing of it run"
    yield f"  devices        {devices.size} x {one.platform} {one.device_kind}, {has}"
    yield f"  base           {experiment.base}: {whole:,} parameters, {gigabytes(4 * whole)} on each device"
    yield f"  left out       {len(planned.corpus.problems)} (`specialize corpus` lists them)"
    for program in planned.programs:
        yield f"  {program.spec}"
        layout = planned.layout(program, measure=True)
        each, trained = planned.cohort(program, layout).parameters_each()
        yield f"    jobs         {len(program.jobs)}, of at most {experiment.stop.max_steps} steps"
        yield f"    parameters   {each:,} each ({each / whole:.2%} of the base), {gigabytes(4 * each)}"
        if planned.space is not None:
            yield f"    trained      {trained:,} each ({experiment.fitted} of the space '{experiment.space}')"
        together = "all" if layout.chunk == 0 else str(layout.chunk)
        yield f"    slots        {layout.slots}; of those of a device, {together} are computed together"
        work = planned.work(program, layout.slots)
        if work.together > 1:
            yield f"    dispatch     {work.together} steps in one call of the devices"
        if work.resident:
            yield f"    audio        {gigabytes(work.resident)} of it, which each device keeps"
        dev = 4 * work.dev * layout.slots // devices.size
        heard = f"{gigabytes(dev)} of it audio of dev sets"
        yield f"    memory       {gigabytes(layout.needed or 0)} of each device, {heard}"
        if memory is not None:
            local = layout.slots // devices.size
            yield f"    fits         {planned.fitting(program, local) * devices.size} slots"
        of_training, of_dev = planned.shapes(program, layout.slots)
        rate = planned.corpus.sample_rate
        yield f"    sizes        training parts of {_seconds(of_training, rate)}"
        yield f"                 dev batches of {_seconds(of_dev, rate)}"
        computed, real = planned.foreseen(program, layout.slots)
        yield f"    padding      {1 - real / computed:.1%} of the audio"
        seconds = computed / turns * planned.seconds_of_sample(program, layout)
        yield f"    time         about {_duration(seconds)} of steps if no job stops early, then compiling and dev sets"


def _seconds(shapes: Shapes, rate: int) -> str:
    return ", ".join(f"{size.samples / rate:.1f}" for size in shapes.sizes) + " s"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _round(value: Any) -> Any:
    return f"{value:.4f}" if isinstance(value, float) else value


def _bytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
