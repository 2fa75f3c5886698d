"""The text of a job of SLURM: what it asks for, and a shell that starts it again if it was stopped, not if it ended.

What SLURM does to a job is what it was seen to do (tests/launch/test_slurm.py), and the script stands on it:

- Before the time limit (`--signal`), and when a preempted job has a grace, SIGTERM goes to the processes that `srun`
  has started and not to this shell, and the job stays RUNNING. Ranks save and exit with 75, and nobody but this shell
  puts the job back into the queue.
- When a job is cancelled, preempted without a grace, or over its time, everything gets SIGTERM, the shell and `srun`
  too, and the job is COMPLETING by then. SLURM has decided whether it goes back into the queue: this shell would bring
  back what somebody has cancelled.
- `srun` kills its ranks when it gets SIGTERM itself. The shell must not pass the signal on to it, and `--signal=B:`,
  which is for the shell alone, would be of no use.
- `--kill-on-bad-exit` ends all ranks as soon as one exits with another code than 0, also one that has just saved. The
  code of the step is the highest of its ranks, and a rank that is ended before it can listen has 143: one that was
  ended because another failed must not hide why, and bring back a job that fails each time.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from launch.words import Launcher
from specialize.errors import EXIT_PREEMPTED, ConfigError

SLURM_IS_EARLY = 60
"""Seconds by which `--signal` may come early: SLURM looks at its jobs twice a minute."""

_SIGTERM = 128 + 15
"""Exit code of a process that SIGTERM has ended: a rank that was stopped before it could listen."""

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<rest>\d+(?::\d+){0,2})")
_MEMORY = re.compile(r"\d+[KMGT]?")
_NAME = re.compile(r"[\w.+-]+", re.ASCII)
_WORD = re.compile(r"[^\s'\"\\\x00-\x1f]+")


@dataclass(frozen=True)
class Slurm(Launcher):
    """Submit an experiment to a SLURM cluster: `specialize launch slurm [flags] EXPERIMENT.py [flags of --command]`.

    What comes after the experiment's file is for `specialize train`, or --command, on every process of the job.
    """

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
        if {"\n", "\\"} & set(str(self.log)):
            raise _refused("log", self.log, "SLURM takes no folder with a backslash or a line break in its name")


_RANK = """\
# bash ends at SIGTERM and leaves its child behind, unless it has something to do then.
trap : TERM
"$@"
code=$?
[ "$code" = {saved} ] || [ "$code" = {sigterm} ] || exit "$code"
# With another code than 0, the first rank that has saved would be the end of those that still do, and one that was
# ended with those that failed would be taken for the reason.
[ "$SLURM_PROCID" != 0 ] || : > "$0"
exit 0
"""

_BATCH = """\
# Rank 0 runs on this node, and leaves word here when it was stopped.
word=$(mktemp -d /tmp/specialize.XXXXXXXX) || exit 1

# SIGTERM comes here when SLURM ends the job, and to the ranks as well: what is left to do is to wait for them.
told=
trap 'told=yes' TERM
echo "=== job $SLURM_JOB_ID, sitting $((${{SLURM_RESTART_COUNT:-0}} + 1)), $SLURM_JOB_NODELIST, $(date '+%F %T')"
srun {srun} \\
    bash -c "$rank" "$word/stopped" "${{command[@]}}" &
step=$!
while
    told=
    wait "$step"
    code=$?
    [ -n "$told" ]
do :; done
[ "$code" != 0 ] || [ ! -e "$word/stopped" ] || code={saved}
rm -r "$word"
"""

_REQUEUE = """\
[ "$code" = {saved} ] || exit "$code"

# Who is busy does not answer at once.
for try in 1 2 3 4 5 6; do
    state=$(squeue --noheader --states=all --jobs="$SLURM_JOB_ID" --format=%T) && break
    sleep 10
done
if [ "$state" = RUNNING ]; then
    echo "=== stopped; job $SLURM_JOB_ID goes back into the queue, and on from what is saved"
    scontrol requeue "$SLURM_JOB_ID" || echo "=== it cannot go back into the queue: submit it again" >&2
else
    echo "=== stopped; SLURM ends job $SLURM_JOB_ID by itself, which is ${{state:-not known to it}}"
fi
exit "$code"
"""

_NO_REQUEUE = """\
[ "$code" != {saved} ] || echo "=== stopped; submitted again, it goes on from what is saved"
exit "$code"
"""


def script(command: list[str], options: Slurm) -> str:
    """The script that `sbatch` gets.

    Args:
        command: what each rank runs, word for word. It saves at SIGTERM, exits with 75, and goes on the next time.
        options: what to ask SLURM for; its `name` is set.

    Raises:
        ConfigError: a word that no shell can pass on.
    """
    if any("\0" in word for word in command):
        raise ConfigError("A word of the command has a zero byte in it; leave it out.")
    asked = {
        "job-name": options.name,
        "nodes": options.nodes,
        # --gpus-per-task wants it, though it follows from the other two.
        "ntasks": options.nodes * options.tasks_per_node,
        "ntasks-per-node": options.tasks_per_node,
        "cpus-per-task": options.cpus_per_task,
        "gpus-per-task": options.gpus_per_task,
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "time": options.time,
        "mem": options.mem,
        "constraint": options.constraint,
        "signal": f"TERM@{options.signal_seconds}",
        # A sign that SLURM would replace is doubled in it.
        "output": f"{str(options.log).replace('%', '%%')}/%x-%j.log",
        "open-mode": "append",
    }
    lines = [f"#SBATCH --{name}={shlex.quote(str(value))}" for name, value in asked.items() if value is not None]
    lines.append("#SBATCH --requeue" if options.requeue else "#SBATCH --no-requeue")
    # From SLURM 22.05 on, srun does not take this over from the job.
    cpus = "" if options.cpus_per_task is None else f" --cpus-per-task={options.cpus_per_task}"
    codes = {"saved": EXIT_PREEMPTED, "sigterm": _SIGTERM, "srun": f"--label --kill-on-bad-exit=1{cpus}"}
    parts = ["\n".join(["#!/bin/bash", "# Made by `specialize launch slurm`.", *lines])]
    if options.setup:
        parts.append("\n".join(["set -e", *options.setup, "set +e"]))
    parts.append("\n    ".join(["command=(", *map(shlex.quote, command)]) + "\n)")
    parts.append(f"rank={shlex.quote(_RANK.format(**codes))}")
    parts.append(_BATCH.format(**codes) + (_REQUEUE if options.requeue else _NO_REQUEUE).format(**codes))
    return "\n\n".join(parts)


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
