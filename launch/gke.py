"""`specialize launch gke`: a Kubernetes JobSet for TPU slices or GPU machines of GKE, or the same as an xpk command."""

import dataclasses
import shlex
import shutil
import subprocess
import sys

from launch.jobset import Gke, checked, environment_of, jobset
from launch.names import dns_label
from launch.words import Launch, parse
from launch.xpk import xpk_command
from launch.yaml_text import yaml_text
from specialize.errors import ConfigError, LaunchError
from specialize.printable import printable


def gke(words: list[str]) -> None:
    """Writes, or applies, the JobSet of an experiment.

    Raises:
        ConfigError: the flags contradict each other or what GKE has, or kubectl is missing.
        LaunchError: kubectl refused.
    """
    job = parse(Gke, words, "specialize launch gke")
    options = job.options
    if sum((options.xpk, options.apply, options.out is not None)) > 1:
        raise ConfigError("--xpk, --apply and --out are three things to do with the job. Choose one.")
    manifest = jobset(job)
    if options.xpk:
        print(xpk_of(job))
        return
    text = _comments(job, words) + yaml_text(manifest)
    name = manifest["metadata"]["name"]
    if options.apply:
        _apply(text)
        where = f" --namespace {options.namespace}" if options.namespace else ""
        print(
            f"next: kubectl get jobset {name}{where}; kubectl logs -f{where} -l jobset.sigs.k8s.io/jobset-name={name}"
        )
    elif options.out is not None:
        options.out.write_text(text)
        print(f"{options.out}: JobSet {name}. next: kubectl apply -f {shlex.quote(str(options.out))}")
    else:
        sys.stdout.write(text)


def xpk_of(job: Launch[Gke]) -> str:
    """The xpk command of the same job, quoted for a shell.

    Raises:
        ConfigError: xpk cannot do it, or lacks something to know.
    """
    options, accelerator = job.options, checked(job.options)
    if options.cluster is None:
        raise ConfigError("--xpk needs the name of the cluster: --cluster NAME.")
    beyond = {
        "--mount": options.mount,
        "--service-account": options.service_account,
        "--queue": options.queue,
        "--priority-class": options.priority_class,
        "--namespace": options.namespace,
        "--workdir": options.workdir,
        "--cpu": options.cpu,
        "--memory": options.memory,
    }
    named = [flag for flag, value in beyond.items() if value]
    if named:
        raise ConfigError(
            f"`xpk workload create` has nothing for {', '.join(named)}. Leave that out, or use the JobSet."
        )
    return xpk_command(
        accelerator,
        slices=options.slices,
        name=dns_label(options.name or job.run_name, 40),
        cluster=options.cluster,
        image=options.image,
        command=["specialize", *job.words(options.runs)],
        env=environment_of(job, accelerator),
        restarts=options.restarts,
        grace=options.grace,
        spot=options.spot,
        reservation=options.reservation,
        zone=options.zone,
        project=options.project,
    )


def _comments(job: Launch[Gke], words: list[str]) -> str:
    accelerator = checked(job.options)
    options, hosts = job.options, f"{accelerator.hosts} x {accelerator.machine}"
    try:
        xpk = xpk_of(
            dataclasses.replace(job, options=dataclasses.replace(options, cluster=options.cluster or "CLUSTER"))
        )
    except ConfigError as error:
        xpk = f"not to be had. {error}"
    lines = [
        f"specialize launch gke {shlex.join(words)}",
        f"{options.slices} x {accelerator.name}: {accelerator.chips} x {accelerator.chip.name} on {hosts} each.",
        f"The same with xpk: {xpk}",
    ]
    return "".join(f"# {printable(line)}\n" for line in lines)


def _apply(text: str) -> None:
    if shutil.which("kubectl") is None:
        raise ConfigError(
            "kubectl is not installed here, or not on PATH. Install it (`gcloud components install kubectl`), or write "
            "the JobSet with --out FILE and apply it where kubectl is."
        )
    ended = subprocess.run(["kubectl", "apply", "-f", "-"], input=text, text=True, check=False)
    if ended.returncode:
        raise LaunchError(
            f"kubectl ended with code {ended.returncode}, and says why above. `kubectl config current-context` tells "
            "which cluster it asks; a cluster that knows no JobSet needs the JobSet controller."
        )
