"""A real SLURM on this machine's loopback, all of it in one folder: `python -m tests.launch.slurm_cluster [COMMAND]`.

It runs as whoever starts it, with a munge key, ports and sockets of its own, and needs nothing in /etc. The COMMAND, or
else a shell, runs with SLURM_CONF set to this cluster, which ends when it does.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
CLIENTS = ("sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
NODES = 3
PATIENCE = 30.0
"""Seconds for the daemons to find one another."""

CONFIGURATION = """\
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=100000
# The nodes are not as large as they say: nothing here depends on what the machine has.
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
KillWait={kill_wait}
GresTypes=gpu
NodeName=n[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{ports}] CPUs={cpus} RealMemory=4000 Gres=gpu:2 \
    Feature=fast,large
PartitionName=low Nodes=n[1-2] Default=YES PriorityTier=1 GraceTime={grace} MaxTime=INFINITE
PartitionName=hasty Nodes=n[1-2] PriorityTier=1 MaxTime=INFINITE
PartitionName=high Nodes=n[1-2] PriorityTier=9 MaxTime=INFINITE
PartitionName=apart Nodes=n3 PriorityTier=1 MaxTime=INFINITE
"""


class CannotStart(Exception):
    """Why there is no cluster here, as a sentence."""


@dataclass(frozen=True)
class Cluster:
    """A SLURM that runs.

    Jobs of the partition `high` preempt those of `low`, after a grace, and of `hasty`, at once; these three share n1
    and n2, and `apart` has n3.
    """

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """With which every command of SLURM, and `specialize launch slurm`, reaches this cluster and no other."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        return clean | {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def run(self, *words: str) -> str:
        """What a command of SLURM prints.

        Raises:
            AssertionError: it failed; with what it said.
        """
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """What `squeue` calls the state of a job, RUNNING or COMPLETING and so on, also of one that ended lately."""
        return self.run("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T")

    def facts(self, job: str) -> dict[str, str]:
        """What `scontrol` knows of a job."""
        words = self.run("scontrol", "--oneliner", "show", "job", job).split(" ")
        return {name: value for name, _, value in (word.partition("=") for word in words)}

    def hurry(self, job: str) -> None:
        """Spares a requeued job most of the two minutes for which SLURM lets it wait."""
        # What a node says late of the sitting before would be taken for the next one's, which then has a node too few.
        assert _comes(lambda: not self._steps(job)), f"job {job} does not end:\n{self.logs()}"
        # A slurmd refuses a start that may be older than the end it has seen, and compares whole seconds.
        time.sleep(2.0)
        self.run("scontrol", "update", f"JobId={job}", "StartTime=now")

    def clear(self) -> None:
        """Ends the jobs that share n1 and n2, and waits until nothing is left of them."""
        for partition in ("low", "hasty", "high"):
            self.run("scancel", f"--partition={partition}")
        gone = _comes(lambda: not self.run("squeue", "--noheader", "--partition=low,hasty,high"))
        assert gone, f"jobs do not end:\n{self.logs()}"

    def _steps(self, job: str) -> list[Path]:
        """Sockets of what looks after the steps of a job, on all nodes; gone when it is."""
        return list(self.folder.glob(f"spool.*/n?_{job}.*"))

    def logs(self) -> str:
        """The ends of what the daemons have written."""
        files = sorted(self.folder.glob("*.log"))
        return "\n".join(f"--- {file.name}\n" + "\n".join(file.read_text().splitlines()[-15:]) for file in files)


@contextmanager
def cluster(cpus: int = 2, grace: int = 60, kill_wait: int = 3) -> Iterator[Cluster]:
    """Starts a SLURM and ends it, with everything that runs in it.

    Args:
        cpus: of each node, as SLURM counts; the machine may have fewer.
        grace: seconds between SIGTERM and the end, of a job in `low` that is preempted.
        kill_wait: seconds between SIGTERM and SIGKILL of a job that is ended.

    Raises:
        CannotStart: something is missing, or is not allowed here.
    """
    missing = [name for name in (*DAEMONS, *CLIENTS) if shutil.which(name, path=_path()) is None]
    if missing:
        raise CannotStart(f"{', '.join(missing)} not found; on Debian: apt-get install slurm-wlm munge")
    # Paths of sockets have room for a hundred characters, which pytest's own folders may not leave.
    with ExitStack() as ending:
        folder = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True)))
        folder.chmod(0o755)  # munge wants to be reached by everybody
        ports = _free_ports(NODES)
        (folder / "state").mkdir()
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o600)
        # SLURM believes in them without looking.
        (folder / "gres.conf").write_text("Name=gpu File=/dev/null,/dev/zero\n")
        (folder / "slurm.conf").write_text(
            CONFIGURATION.format(
                host=socket.gethostname().partition(".")[0],
                port=_free_ports(1)[0],
                user=_user(),
                folder=folder,
                kill_wait=kill_wait,
                nodes=NODES,
                ports=",".join(map(str, ports)),
                cpus=cpus,
                grace=grace,
            )
        )
        of = Cluster(folder)

        def daemon(name: str, *words: str) -> None:
            _daemon(ending, of, name, *words)

        files = (f"--{what}={folder}/munge.{what[:4]}" for what in ("seed-file", "pid-file", "log-file"))
        daemon("munged", "--foreground", f"--socket={folder}/munge.socket", f"--key-file={folder}/munge.key", *files)
        _until(lambda: (folder / "munge.socket").exists(), of, "munged made no socket")
        daemon("slurmctld", "-D", "-f", f"{folder}/slurm.conf")
        for node in range(1, NODES + 1):
            (folder / f"spool.n{node}").mkdir()
            daemon("slurmd", "-D", "-N", f"n{node}", "-f", f"{folder}/slurm.conf")
        _until(lambda: _idle(of) == NODES, of, "the nodes did not come up")
        ending.callback(_end_jobs, of)
        yield of


def _path() -> str:
    """Daemons are where only root looks."""
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin:/sbin"


def _user() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


def _free_ports(number: int) -> list[int]:
    with ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _daemon(ending: ExitStack, of: Cluster, name: str, *words: str) -> None:
    """Starts a daemon in the foreground, as a child that ends with the cluster."""
    log = ending.enter_context((of.folder / f"{name}.out.log").open("a"))
    program = shutil.which(name, path=_path())
    assert program is not None
    child = subprocess.Popen([program, *words], env=of.environment, stdout=log, stderr=log, start_new_session=True)

    def end() -> None:
        child.terminate()
        try:
            child.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()

    ending.callback(end)


def _idle(of: Cluster) -> int:
    """How many nodes are ready."""
    done = subprocess.run(
        ["sinfo", "--noheader", "--Node", "--states=idle", "--format=%N"],
        env=of.environment,
        capture_output=True,
        text=True,
        timeout=30,
    )
    return len(set(done.stdout.split())) if done.returncode == 0 else 0


def _until(happened: Callable[[], bool], of: Cluster, otherwise: str) -> None:
    if not _comes(happened):
        raise CannotStart(f"{otherwise} in {PATIENCE:.0f} s:\n{of.logs()}")


def _comes(happened: Callable[[], bool]) -> bool:
    """Waits for something; whether it has happened in time."""
    until = time.monotonic() + PATIENCE
    while not (done := happened()) and time.monotonic() < until:
        time.sleep(0.1)
    return done


def _end_jobs(of: Cluster) -> None:
    """Kills what is left, so that no step outlives its daemons."""
    subprocess.run(["scancel", "--user", _user()], env=of.environment, capture_output=True, timeout=30)
    _comes(lambda: _idle(of) == NODES)


def main() -> None:
    """Runs a command, or a shell, beside a cluster."""
    try:
        with cluster() as of:
            words = sys.argv[1:] or [os.environ.get("SHELL", "/bin/sh")]
            sys.exit(subprocess.run(words, env=of.environment).returncode)
    except CannotStart as error:
        sys.exit(f"slurm_cluster: {error}")


if __name__ == "__main__":
    main()
