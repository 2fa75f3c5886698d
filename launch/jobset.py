"""The JobSet of an experiment, of `jobset.x-k8s.io/v1alpha2`, and the flags that it is made of.

It has one replicated job, `train`, with a job for each slice and a pod for each host. A pod that ends with code 75 has
saved its state (SIGTERM, spot machines, Kueue), and the JobSet starts again without that being counted; other failures
are counted up to `--restarts`. Pods are replaced together, since one process alone cannot go on.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.accelerators import Accelerator, find
from launch.mounts import Mount, mounts_of
from launch.names import dns_label, environment, object_name, port_of, quantity
from launch.words import Launch, Launcher
from specialize.errors import EXIT_PREEMPTED, ConfigError
from specialize.processes.identity import COORDINATOR, PROCESS, PROCESSES

JOB = "train"
"""Name of the replicated job and of the container."""
_INDEX = """\
export {process}=$((SPECIALIZE_JOB_INDEX * {pods} + JOB_COMPLETION_INDEX))
exec "$@"
"""
"""The index of a process is known to its pod only. `exec` makes signals arrive at the process itself."""


@dataclass(frozen=True)
class Gke(Launcher):
    """Write a JobSet for GKE that trains an experiment on TPU slices or GPU machines, or give it to the cluster."""

    accelerator: str
    """TPU slice or GPUs: v5e-256, v5p-128 or v5p-4x4x4, h100-16. Names of v4, v5p and v7x count TensorCores, two a
    chip."""
    image: str
    """Container image that has `specialize` and the experiment."""
    topology: str | None = None
    """How the chips of a slice lie, where there is a choice: 4x4x16."""
    slices: int = 1
    """Slices (multislice), or as many times the GPUs."""
    name: str | None = None
    """Name of the JobSet; default that of the run, or else of the file. It is made fit for the cluster."""
    namespace: str | None = None
    """Namespace; default kubectl's own."""
    queue: str | None = None
    """Local queue of Kueue that admits the job."""
    priority_class: str | None = None
    """PriorityClass of the pods."""
    service_account: str | None = None
    """Kubernetes service account, of which buckets are asked."""
    runs: str | None = None
    """Folder of runs for --command, a path under a --mount. It has to outlive the
    pods."""
    mount: tuple[str, ...] = ()
    """gs://BUCKET[/FOLDER]=/PATH or pvc:CLAIM=/PATH; may be given several times."""
    env: tuple[str, ...] = ()
    """NAME=VALUE for every process; may be given several times."""
    workdir: str | None = None
    """Folder in the image that the experiment's path is relative to; default the image's own."""
    cpu: str | None = None
    """CPUs that a pod asks for."""
    memory: str | None = None
    """Memory that a pod asks for, 64Gi."""
    grace: int = 120
    """Seconds between SIGTERM and SIGKILL, in which the state is saved. Spot machines may give fewer."""
    restarts: int = 3
    """How many failures the JobSet survives. Preemptions do not count."""
    spot: bool = False
    """Use spot machines."""
    reservation: str | None = None
    """Use machines of this reservation."""
    port: int = 8476
    """Port at which the first process of a GPU job is met; the next one is used too."""
    out: Path | None = None
    """Write the JobSet to this file instead of to the terminal."""
    apply: bool = False
    """Give the JobSet to `kubectl apply` instead of writing it."""
    xpk: bool = False
    """Print the `xpk workload create` command that does the same, and nothing else."""
    cluster: str | None = None
    """Cluster, for xpk."""
    zone: str | None = None
    """Zone of the cluster, for xpk."""
    project: str | None = None
    """Project of the cluster, for xpk."""


def jobset(job: Launch[Gke]) -> dict[str, Any]:
    """The JobSet as Kubernetes is given it.

    Raises:
        ConfigError: the flags contradict each other, or what GKE has.
    """
    options, accelerator = job.options, checked(job.options)
    name = _name(job, accelerator)
    annotations: dict[str, str] = {}
    if accelerator.kind == "tpu" and accelerator.hosts > 1:
        # The hosts of a slice are one node pool; two jobs must not be dealt out over the same one.
        annotations["alpha.jobset.sigs.k8s.io/exclusive-topology"] = "cloud.google.com/gke-nodepool"
    labels = {"app.kubernetes.io/name": "specialize"}
    if options.queue is not None:
        labels["kueue.x-k8s.io/queue-name"] = object_name("--queue", options.queue)
    replicated = {
        "name": JOB,
        "replicas": options.slices,
        "template": {
            "spec": {
                "completionMode": "Indexed",
                "completions": accelerator.hosts,
                "parallelism": accelerator.hosts,
                "backoffLimit": 0,
                "podFailurePolicy": {
                    "rules": [
                        _fails(onExitCodes={"containerName": JOB, "operator": "In", "values": [EXIT_PREEMPTED]}),
                        _fails(onPodConditions=[{"type": "DisruptionTarget", "status": "True"}]),
                    ]
                },
                "template": _pod(job, accelerator, name),
            }
        },
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": _set(name=name, namespace=options.namespace, labels=labels, annotations=annotations),
        "spec": {
            "network": {"enableDNSHostnames": True, "subdomain": name},
            "failurePolicy": {
                "maxRestarts": options.restarts,
                # The only job failures of this reason are those of the two rules below: code 75, and disruption.
                "rules": [
                    {
                        "name": "preempted",
                        "action": "RestartJobSetAndIgnoreMaxRestarts",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [replicated],
        },
    }


def checked(options: Gke) -> Accelerator:
    """The accelerator that flags ask for.

    Raises:
        ConfigError: they contradict each other, or what GKE has.
    """
    accelerator = find(options.accelerator, options.topology)
    for flag, number, least in (
        ("--slices", options.slices, 1),
        ("--grace", options.grace, 1),
        ("--restarts", options.restarts, 0),
    ):
        if number < least:
            raise ConfigError(f"{flag} {number}: it must be {least} or more.")
    port_of("--port", options.port)
    if accelerator.kind == "tpu" and accelerator.hosts == 1 and options.slices > 1:
        raise ConfigError(
            f"--slices {options.slices}: GKE joins slices of several hosts only, and {accelerator.name} is one host. "
            "Choose a larger slice, or launch several jobs."
        )
    if options.spot and options.reservation is not None:
        raise ConfigError("--spot and --reservation are two ways to get machines. Choose one.")
    if not options.image or any(character.isspace() for character in options.image):
        raise ConfigError(f"--image '{options.image}': name a container image, REGISTRY/NAME:TAG.")
    return accelerator


def _name(job: Launch[Gke], accelerator: Accelerator) -> str:
    """Name of the JobSet, short enough for the names of its pods."""
    ending = f"-{JOB}-{job.options.slices - 1}-{accelerator.hosts - 1}-abcde"
    return dns_label(job.options.name or job.run_name, 63 - len(ending))


def environment_of(job: Launch[Gke], accelerator: Accelerator) -> dict[str, str]:
    """Variables that are the same in every pod, but for where GPU processes find each other."""
    made = {"PYTHONUNBUFFERED": "1"} | environment(job.options.env)
    if accelerator.hosts * job.options.slices == 1:
        made[PROCESSES] = "1"  # a pod of an Indexed Job does not know that it is alone
    elif accelerator.kind == "tpu" and accelerator.hosts > 1:
        made[PROCESSES] = "auto"
    return made


def _pod(job: Launch[Gke], accelerator: Accelerator, name: str) -> dict[str, Any]:
    """Template of the pods."""
    options = job.options
    mounts = mounts_of(options.mount)
    command, env = (
        ["specialize", *job.words(options.runs)],
        [_set(name=key, value=_literal(v)) for key, v in environment_of(job, accelerator).items()],
    )
    pods = accelerator.hosts * options.slices
    ports = None
    if accelerator.kind == "gpu" and pods > 1:
        command = ["/bin/sh", "-c", _INDEX.format(process=PROCESS, pods=accelerator.hosts), "sh", *command]
        job_index = {"fieldRef": {"fieldPath": "metadata.labels['jobset.sigs.k8s.io/job-index']"}}
        env += [
            {"name": COORDINATOR, "value": f"{name}-{JOB}-0-0.{name}:{options.port}"},
            {"name": PROCESSES, "value": str(pods)},
            {"name": "SPECIALIZE_JOB_INDEX", "valueFrom": job_index},
        ]
        ports = [{"containerPort": options.port + more, "name": f"processes-{more}"} for more in range(2)]
    asked = _set(
        cpu=options.cpu and quantity("--cpu", options.cpu),
        memory=options.memory and quantity("--memory", options.memory),
    )
    chips = {accelerator.resource: str(accelerator.chips_per_host)}
    container = _set(
        name=JOB,
        image=options.image,
        workingDir=options.workdir,
        command=[_literal(word) for word in command],
        env=env,
        ports=ports,
        resources={"requests": asked | chips, "limits": chips},
        volumeMounts=[mount.in_container for mount in mounts],
    )
    selector, tolerations = dict(accelerator.node_selector), None
    if options.spot:
        selector["cloud.google.com/gke-spot"] = "true"
        taint = {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
        tolerations = [taint]
    if options.reservation is not None:
        selector["cloud.google.com/reservation-name"] = object_name("--reservation", options.reservation)
    spec = _set(
        restartPolicy="Never",
        terminationGracePeriodSeconds=options.grace,
        serviceAccountName=options.service_account and object_name("--service-account", options.service_account),
        priorityClassName=options.priority_class and object_name("--priority-class", options.priority_class),
        nodeSelector=selector,
        tolerations=tolerations,
        containers=[container],
        volumes=[mount.volume for mount in mounts],
    )
    return _set(metadata=_set(annotations=Mount.annotations(mounts)), spec=spec)


def _fails(**when: Any) -> dict[str, Any]:
    """A rule by which the whole job fails, and not the pod alone."""
    return {"action": "FailJob", **when}


def _set(**fields: Any) -> dict[str, Any]:
    """Fields that are said: neither None nor empty."""
    return {name: value for name, value in fields.items() if value not in (None, {}, [], "")}


def _literal(text: str) -> str:
    """Text that Kubernetes takes as it is: `$(NAME)` would be a variable to it, and `$$` is a dollar sign."""
    return text.replace("$", "$$")
