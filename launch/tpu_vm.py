"""`specialize launch tpu-vm`: Cloud TPU VMs from the queue to their end, by `gcloud`.

    create   ask for a slice in the queue, wait until it is there, install this checkout on all workers
    install  copy this checkout to the workers, and install it (again)
    run      train an experiment on all workers; again, it shows a run that goes on, or resumes one that ended
    stop     ask the run to save and stop
    status   the slice, and what its workers do
    delete   give the slice back

Every command takes --dry-run, which prints the calls of gcloud and makes none.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from launch.accelerators import find
from launch.gcloud import Gcloud
from launch.names import environment
from launch.tpu_vm_flags import Create, Delete, Installation, Run, Status, Stop, Vm, WithLog
from launch.words import parse, parse_flags
from launch.workers import ARCHIVE, install_script, look_script, run_script, stop_script
from specialize.errors import ConfigError, LaunchError
from specialize.processes.identity import PROCESSES

_LEFT_OUT = ("./runs", "./.venv", "./build", "__pycache__", "*.egg-info")
"""Not copied to the workers, beside what version control keeps: it is large, or of this machine."""
_DEAD = {
    "FAILED": "gcloud says why with `queued-resources describe`.",
    "SUSPENDED": "It was preempted, or its time is over.",
    "SUSPENDING": "It is being preempted, or its time is over.",
}


def tpu_vm(words: list[str]) -> None:
    """Does one of the commands above.

    Raises:
        ConfigError: there is no such command, its flags contradict each other, or gcloud is missing.
        LaunchError: gcloud, or a worker, failed.
        Preempted: the run was asked to stop, and saved.
    """
    if not words or words[0] in ("-h", "--help"):
        print(f"usage: specialize launch tpu-vm COMMAND --name NAME --zone ZONE …\n\n{__doc__}", end="")
        sys.exit(0 if words else 2)
    if words[0] not in COMMANDS:
        raise ConfigError(f"`specialize launch tpu-vm` has no '{words[0]}'. Choose from {', '.join(COMMANDS)}.")
    COMMANDS[words[0]](words[1:])


def create(words: list[str]) -> None:
    """`tpu-vm create`."""
    options = parse_flags(Create, words, "specialize launch tpu-vm create")
    accelerator = find(options.accelerator)
    kind = accelerator.cloud_type
    if options.spot and options.reserved:
        raise ConfigError("--spot and --reserved are two ways to get a slice. Choose one.")
    runtime = options.runtime or accelerator.family.runtime
    assert runtime is not None, kind
    if options.install:
        _check_source(options.source)
    gcloud = options.gcloud()
    if options.dry_run or _state(gcloud, options.name) is None:
        said = {
            "network": options.network,
            "subnetwork": options.subnetwork,
            "service-account": options.service_account,
            "valid-until-duration": options.valid_until,
        }
        on = {"spot": options.spot, "reserved": options.reserved, "internal-ips": options.internal_ips}
        gcloud.call(
            *("queued-resources", "create", options.name, f"--node-id={options.name}"),
            *(f"--accelerator-type={kind}", f"--runtime-version={runtime}"),
            *(f"--{flag}={value}" for flag, value in said.items() if value is not None),
            *(f"--{flag}" for flag, asked in on.items() if asked),
        )
    _wait(gcloud, options)
    if options.install:
        _install(gcloud, options)
    _next(options, f"run --name {options.name} --zone {options.zone} --runs FOLDER experiments/FILE.py")


def install(words: list[str]) -> None:
    """`tpu-vm install`."""
    options = parse_flags(Installation, words, "specialize launch tpu-vm install")
    _check_source(options.source)
    _install(options.gcloud(), options)


def run(words: list[str]) -> None:
    """`tpu-vm run`."""
    job = parse(Run, words, "specialize launch tpu-vm run")
    options = job.options
    env = {"PYTHONUNBUFFERED": "1", PROCESSES: "auto"} | environment(options.env)
    if Path(job.experiment).is_absolute() or ".." in Path(job.experiment).parts:
        raise ConfigError(f"'{job.experiment}': name the experiment file relative to the checkout that was installed.")
    script = run_script(job.words(options.runs), env)
    if options.copy and not Path(job.experiment).is_file():
        raise ConfigError(
            f"There is no experiment file '{job.experiment}' here. Go to the checkout, or use that of the workers: "
            "--no-copy."
        )
    gcloud = options.gcloud()
    if options.copy:
        gcloud.call("tpu-vm", "scp", job.experiment, f"{options.name}:specialize/{job.experiment}", "--worker=all")
    try:
        gcloud.on_workers(options.name, script, f"'{job.experiment}'", _log(options))
    except KeyboardInterrupt:
        print(
            f"specialize launch: the run on '{options.name}' goes on without this command. The same command shows it "
            "again; `specialize launch tpu-vm stop` ends it.",
            file=sys.stderr,
        )
        raise


def stop(words: list[str]) -> None:
    """`tpu-vm stop`."""
    options = parse_flags(Stop, words, "specialize launch tpu-vm stop")
    options.gcloud().on_workers(options.name, stop_script(), "stopping", _log(options))


def status(words: list[str]) -> None:
    """`tpu-vm status`."""
    options = parse_flags(Status, words, "specialize launch tpu-vm status")
    gcloud = options.gcloud()
    gcloud.call("queued-resources", "describe", options.name, "--format=value(state.state)")
    gcloud.call("tpu-vm", "describe", options.name, "--format=value(state,health)")
    gcloud.on_workers(options.name, look_script(), "looking", _log(options))


def delete(words: list[str]) -> None:
    """`tpu-vm delete`."""
    options = parse_flags(Delete, words, "specialize launch tpu-vm delete")
    options.gcloud().call("queued-resources", "delete", options.name, "--force", "--quiet")


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "create": create,
    "install": install,
    "run": run,
    "stop": stop,
    "status": status,
    "delete": delete,
}


def _wait(gcloud: Gcloud, options: Create) -> None:
    """Waits until the slice is there."""
    if options.dry_run:
        print("# until this says ACTIVE:")
        gcloud.call("queued-resources", "describe", options.name, "--format=value(state.state)")
        return
    ends, before = time.monotonic() + 3600 * options.hours, ""
    while (state := _state(gcloud, options.name) or "unknown") != "ACTIVE":
        if state != before:
            print(f"specialize launch: '{options.name}' is {state}", file=sys.stderr, flush=True)
            before = state
        if state in _DEAD:
            raise LaunchError(
                f"'{options.name}' is {state}. {_DEAD[state]} Delete it (`specialize launch tpu-vm delete --name "
                f"{options.name} --zone {options.zone}`), and create it again."
            )
        if time.monotonic() > ends:
            raise LaunchError(
                f"'{options.name}' is {state} after {options.hours:g} hours. It stays in the queue: the same command "
                "waits on, and `specialize launch tpu-vm delete` gives it up."
            )
        time.sleep(options.poll)


def _state(gcloud: Gcloud, name: str) -> str | None:
    """State of the slice in the queue, None where the queue has none of that name."""
    return gcloud.ask("queued-resources", "describe", name, "--format=value(state.state)")


def _check_source(source: Path) -> None:
    if not (source / "setup.py").is_file():
        raise ConfigError(f"--source {source}: that is no checkout of specialize, for it has no setup.py.")


def _install(gcloud: Gcloud, options: Installation) -> None:
    """Copies the checkout to all workers, and installs it."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Path("/tmp" if options.dry_run else folder) / ARCHIVE
        left_out = [f"--exclude={pattern}" for pattern in _LEFT_OUT]
        gcloud.shell(
            [
                "tar",
                "--create",
                "--gzip",
                f"--file={archive}",
                "--exclude-vcs",
                *left_out,
                "-C",
                str(options.source),
                ".",
            ]
        )
        gcloud.call("tpu-vm", "scp", str(archive), f"{options.name}:{ARCHIVE}", "--worker=all")
    gcloud.on_workers(options.name, install_script(options.extras, options.python), "installing", _log(options))


def _log(options: WithLog) -> Path:
    return options.log or Path(f"{options.name}.log")


def _next(options: Vm, what: str) -> None:
    if not options.dry_run:
        print(f"next: specialize launch tpu-vm {what}")
