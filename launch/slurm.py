"""`specialize launch slurm`: an experiment as a job of a SLURM cluster, which goes on by itself after every interruption."""

import dataclasses
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from launch.slurm_script import SLURM_IS_EARLY, script
from specialize.errors import ConfigError
from specialize.printable import printable

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<rest>\d+(?::\d+){0,2})")
_MEMORY = re.compile(r"\d+[KMGT]?")
_NAME = re.compile(r"[\w.+-]+", re.ASCII)
_WORD = re.compile(r"[^\s'\"\\\x00-\x1f]+")


@dataclass(frozen=True)
class Slurm:
    """Submit an experiment to a SLURM cluster. Flags of `specialize train` come after the experiment's file."""

    nodes: int = 1
    """Nodes of the job."""
    tasks_per_node: int = 1
    """Processes on each node: one for all of its devices, or as many as it has devices, one each."""
    gpus_per_task: int | None = None
    """GPUs of each process; None asks for none, as on clusters that give them by partition or --constraint."""
    cpus_per_task: int | None = None
    """Processor cores of each process; None is the cluster's default, mostly one, which reads audio slowly."""
    partition: str | None = None
    """Partition, as `sinfo` lists them; None is the cluster's default."""
    account: str | None = None
    """Account that pays."""
    qos: str | None = None
    """Quality of service."""
    time: str | None = None
    """Longest time of one sitting: `90` (minutes), `12:00:00`, `2-12` (days-hours) and so on. A run that is not done by
    then is saved and goes on in another; None is the partition's own limit."""
    mem: str | None = None
    """Memory of each node, `64G`; `0` is all of it."""
    constraint: str | None = None
    """Features that the nodes must have, `a100|h100`."""
    signal_seconds: int = 120
    """Seconds before the end of --time at which the run is told to save. SLURM may tell it a minute before that."""
    requeue: bool = True
    """Whether a run that was preempted, or came to the end of its time, goes back into the queue and on from there."""
    name: str | None = None
    """Name of the job; None is that of the experiment's file."""
    log: Path = Path("logs")
    """Folder of the log, NAME-JOB.log, to which every sitting of the job adds."""
    setup: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A line of shell before the run, such as `module load cuda`; may be given several times. One that fails ends the
    job."""
    python: str | None = None
    """Interpreter on the nodes; None is this one, or with --setup the `python` that its lines leave on the PATH."""
    out: Path | None = None
    """File to write the script to, besides."""
    dry_run: bool = False
    """Print the script, and submit nothing."""
    wait: bool = False
    """Wait until the job has ended, and exit with its code."""

    def __post_init__(self) -> None:
        for name in ("nodes", "tasks_per_node", "gpus_per_task", "cpus_per_task", "signal_seconds"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise _refused(name, value, "it must be at least 1")
        if self.signal_seconds > 65535:
            raise _refused("signal_seconds", self.signal_seconds, "SLURM takes 65535 at most")
        if self.time is not None:
            seconds = _seconds(self.time)
            # Told to stop before its first step, a run would go round for ever between queue and save.
            if seconds <= self.signal_seconds + SLURM_IS_EARLY:
                raise _refused(
                    "time",
                    self.time,
                    f"the run is told to save up to {self.signal_seconds + SLURM_IS_EARLY} s before the end "
                    "(--signal-seconds, and a minute by which SLURM may be early), so that nothing would be left. Ask "
                    "for more --time, or fewer --signal-seconds",
                )
        if self.mem is not None and not _MEMORY.fullmatch(self.mem):
            raise _refused("mem", self.mem, "write a number and K, M, G or T, `64G`, or 0 for all of a node's memory")
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise _refused("name", self.name, "letters, digits and . _ + - only: the log is called after it")
        for name in ("partition", "account", "qos", "constraint"):
            value = getattr(self, name)
            if value is not None and not _WORD.fullmatch(value):
                raise _refused(name, value, "write it without spaces, quotes and backslashes")
        if any("\n" in line for line in self.setup):
            raise _refused("setup", next(line for line in self.setup if "\n" in line), "give each line its own --setup")
        if "\n" in str(self.log):
            raise _refused("log", self.log, "SLURM takes no folder with a line break in its name")


def slurm(words: list[str]) -> None:
    """Submit an experiment to a SLURM cluster: `specialize launch slurm [flags] EXPERIMENT.py [flags of train]`.

    Args:
        words: flags of `Slurm`, then the experiment's file, then flags that `specialize train` gets unchanged.

    Raises:
        ConfigError: a value that SLURM would not take, no experiment, no SLURM, or a job that SLURM refuses.
        SystemExit: with `--help`, wrong flags, or the job's exit code after `--wait`.
    """
    own, rest = _split(words)
    options = tyro.cli(
        Slurm,
        args=own,
        prog="specialize launch slurm",
        usage="specialize launch slurm [OPTIONS] EXPERIMENT.py [FLAGS …]",
    )
    if not rest:
        raise ConfigError("Name the experiment's file: specialize launch slurm [flags] EXPERIMENT.py [flags of train].")
    file = Path(rest[0])
    if not file.is_file():
        raise ConfigError(
            f"There is no experiment file '{file}'. Flags of the launcher come before it, of train after it."
        )
    if options.name is None:
        options = dataclasses.replace(options, name=re.sub(r"[^\w.+-]", "-", file.stem, flags=re.ASCII))
    python = options.python or ("python" if options.setup else sys.executable)
    text = script([python, "-m", "specialize.cli", "train", *rest], options)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text)
    if options.dry_run:
        print(text, end="")
        return
    _submit(text, options)


def _submit(text: str, options: Slurm) -> None:
    """Gives a script to `sbatch`, and says what to type next."""
    if shutil.which("sbatch") is None:
        raise ConfigError(
            "There is no `sbatch` on this machine's PATH. Type this on a login node of the cluster (some need `module load "
            "slurm` first), or use --dry-run, and give the script to sbatch there."
        )
    # SLURM makes no folders, and a job whose log cannot be opened fails without a word.
    options.log.mkdir(parents=True, exist_ok=True)
    words = ["sbatch", "--parsable", *(["--wait"] if options.wait else [])]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as sbatch:
        assert sbatch.stdin is not None
        assert sbatch.stdout is not None
        assert sbatch.stderr is not None
        sbatch.stdin.write(text)
        sbatch.stdin.close()
        job = sbatch.stdout.readline().strip().partition(";")[0]
        if not job:
            said = " ".join(sbatch.stderr.read().split()).removeprefix("sbatch: error: ")
            raise ConfigError(
                f"sbatch refused the job: {printable(said)}. `sinfo` lists partitions, limits and nodes; change the flags, "
                "and submit again."
            )
        log = shlex.quote(str(options.log / f"{options.name}-{job}.log"))
        print(f"job {job} ({options.name}) is submitted. What to type next:")
        for command, why in (
            (f"squeue --job {job}", "where it is in the queue, and why it waits"),
            (f"tail -F {log}", "what it says; each line begins with the number of its process"),
            (f"scancel --signal=TERM {job}", "save, and go on in another sitting"),
            (f"scancel {job}", "end it; submitted again, it goes on from the last state that was saved"),
        ):
            print(f"  {command:<36}  {why}")
        sys.stdout.flush()
        if options.wait and (code := sbatch.wait()) != 0:
            sys.exit(code)


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """The launcher's own words, and those from the experiment's file on."""
    alone = {name for f in dataclasses.fields(Slurm) if f.type is bool for name in (f.name, f"no_{f.name}")} | {"help"}
    at = 0
    while at < len(words) and words[at].startswith("-"):
        flag, has_value, _ = words[at].partition("=")
        at += 1 if has_value or flag == "-h" or flag.lstrip("-").replace("-", "_") in alone else 2
    return words[:at], words[at:]


def _seconds(time: str) -> int:
    """What a time of SLURM is in seconds.

    Raises:
        ConfigError: it is not one.
    """
    found = _TIME.fullmatch(time)
    if found is None or (int(found["days"] or 0) == 0 and not any(map(int, found["rest"].split(":")))):
        raise _refused("time", time, "write minutes, `90`, or hours:minutes:seconds, `12:00:00`, or days-hours, `2-12`")
    parts = [int(part) for part in found["rest"].split(":")]
    if found["days"] is not None:  # hours[:minutes[:seconds]]
        hours, minutes, seconds = (*parts, 0, 0)[:3]
        return ((int(found["days"]) * 24 + hours) * 60 + minutes) * 60 + seconds
    if len(parts) == 3:
        return (parts[0] * 60 + parts[1]) * 60 + parts[2]
    minutes, seconds = (*parts, 0)[:2]
    return minutes * 60 + seconds


def _refused(field: str, value: object, why: str) -> ConfigError:
    return ConfigError(f"--{field.replace('_', '-')} {str(value)!r}: {why}.")
