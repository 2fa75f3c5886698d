"""The text of a job of SLURM: what it asks for, and a shell that starts it again when it was stopped and not when it ended.

What SLURM does to a job was measured on one (tests/launch/test_slurm.py), and the script stands on it:

- Before the time limit (`--signal`) and when a preempted job has a grace, SIGTERM goes to the processes that `srun` has
  started and not to this shell; the job stays RUNNING. Ranks save and exit with 75, and nobody but this shell starts it again.
- When a job is cancelled, preempted without a grace, or over its time, everything gets SIGTERM, shell and `srun` too, and the
  job is COMPLETING by then. SLURM has decided by itself whether it goes back into the queue: to requeue it here would bring
  back what somebody has cancelled.
- `srun` kills its ranks when SIGTERM comes to itself, so the shell never sends it there, and `--signal=B:` would be of no use.
- `--kill-on-bad-exit` ends all ranks as soon as one has exited with another code than 0, also one that has just saved.
"""

import shlex
from typing import TYPE_CHECKING

from specialize.errors import EXIT_PREEMPTED, ConfigError

if TYPE_CHECKING:
    from launch.slurm import Slurm

SLURM_IS_EARLY = 60
"""Seconds by which `--signal` may come early: SLURM looks at its jobs twice a minute."""

_SIGTERM = 128 + 15
"""Exit code of a process that SIGTERM has ended: a rank that was told to stop before it could listen."""

_RANK = """\
# bash ends at SIGTERM and leaves its child behind, unless it has something to do then.
trap : TERM
"$@"
code=$?
[ "$code" = {saved} ] || exit "$code"
# With another code than 0, the first rank that has saved would be the end of those that still do.
[ "$SLURM_PROCID" != 0 ] || : > "$0"
exit 0
"""

_BATCH = """\
# Rank 0 runs on this node, and leaves word here when it was stopped and has saved.
word=$(mktemp -d) || exit 1
trap 'rm -rf "$word"' EXIT

# SIGTERM comes here when SLURM ends the job, and to the ranks as well: what is left to do is to wait for them.
told=
trap 'told=yes' TERM
echo "=== job $SLURM_JOB_ID, sitting $((${{SLURM_RESTART_COUNT:-0}} + 1)), $SLURM_JOB_NODELIST, $(date '+%F %T')"
srun {srun} \\
    bash -c "$rank" "$word/saved" "${{command[@]}}" &
step=$!
while
    told=
    wait "$step"
    code=$?
    [ -n "$told" ]
do :; done
[ "$code" != 0 ] || [ ! -e "$word/saved" ] || code={saved}
"""

_REQUEUE = """\
[ "$code" = {saved} ] || [ "$code" = {sigterm} ] || exit "$code"

# Who is busy does not answer at once.
for try in 1 2 3 4 5 6; do
    state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T) && break
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
[ "$code" != {saved} ] || echo "=== stopped and saved; submitted again, it goes on from there"
exit "$code"
"""


def script(command: list[str], options: "Slurm") -> str:
    """The script that `sbatch` gets.

    Args:
        command: what each rank runs, word for word. It saves at SIGTERM and exits with 75, and the same command goes on.
        options: what to ask SLURM for; its `name` is set.

    Raises:
        ConfigError: a word that no shell can pass on.
    """
    if any("\0" in word for word in command):
        raise ConfigError("A word of the command has a zero byte in it; leave it out.")
    asked = {
        "job-name": options.name,
        "nodes": options.nodes,
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
