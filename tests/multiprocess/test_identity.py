"""Which process this is: flags first, then what launchers, SLURM and TPU slices say; half of it is refused."""

import pytest

from specialize.errors import ConfigError
from specialize.processes import Identity, ProcessConfig, identify
from specialize.processes.identity import first_node
from specialize.processes.kubernetes import pod_of

ALONE = Identity(1, 0, "localhost", 0)
SLURM = {
    "SLURM_JOB_ID": "4242",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_SRUN_COMM_HOST": "10.0.0.9",
}


def test_without_a_word_a_process_is_alone():
    assert identify(ProcessConfig(), {}) == ALONE


def test_a_batch_script_of_slurm_is_alone_but_a_step_of_several_tasks_is_not():
    alone = {"SLURM_JOB_ID": "4242", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}
    assert identify(ProcessConfig(), alone) == ALONE
    found = identify(ProcessConfig(), SLURM)
    assert found is not None
    assert (found.count, found.index, found.host) == (8, 5, "localhost")
    assert 61_000 <= found.port < 65_535
    assert identify(ProcessConfig(), SLURM | {"SLURM_PROCID": "0"}) == Identity(8, 0, "localhost", found.port)


def test_a_node_whose_name_is_slurms_own_is_reached_by_the_address_of_srun():
    found = identify(ProcessConfig(), SLURM | {"SLURM_STEP_NODELIST": "no-such-node-of-tests[1-2]"})
    assert found is not None
    assert found.host == "10.0.0.9"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n1", "n1"), ("n[1-2]", "n1"), ("gpu[03-05,9],b1", "gpu03"), ("a,b", "a"), ("r[2,4]c", "r2c"), ("", "")],
)
def test_the_first_of_the_nodes_that_slurm_lists(nodes, first):
    assert first_node(nodes) == first


def test_a_tpu_slice_of_several_hosts_is_left_to_jax():
    assert identify(ProcessConfig(), {"TPU_WORKER_HOSTNAMES": "a,b,c,d"}) is None
    assert identify(ProcessConfig(), {"TPU_WORKER_HOSTNAMES": "localhost"}) == ALONE
    assert identify(ProcessConfig(), {"MEGASCALE_COORDINATOR_ADDRESS": "x:8080"}) is None
    assert identify(ProcessConfig(), {"SPECIALIZE_PROCESSES": "auto"}) is None


JOBSET = {"JOBSET_NAME": "js", "REPLICATED_JOB_NAME": "workers", "JOB_COMPLETION_INDEX": "3"}


def test_a_jobset_that_says_how_many_is_recognised():
    """As that of xpk for GPUs does."""
    assert identify(ProcessConfig(), JOBSET | {"NNODES": "4"}) == Identity(4, 3, "js-workers-0-0.js", 61_000)
    of_jax = {"JAX_COORDINATOR_ADDRESS": "leader.js", "JAX_COORDINATOR_PORT": "1234", "JOB_INDEX": "0"}
    assert identify(ProcessConfig(), JOBSET | {"NNODES": "4"} | of_jax) == Identity(4, 3, "leader.js", 1234)
    said = JOBSET | {"NNODES": "4", "JAX_COORDINATOR_ADDRESS": "leader:1"}
    assert identify(ProcessConfig(), said) == Identity(4, 3, "leader", 1)
    assert identify(ProcessConfig(), JOBSET | {"NNODES": "1", "JOB_COMPLETION_INDEX": "0"}) == ALONE


def test_a_jobset_adds_what_it_knows_to_what_is_said():
    assert identify(ProcessConfig(count=4), JOBSET) == Identity(4, 3, "js-workers-0-0.js", 61_000)
    assert identify(ProcessConfig(count=4, index=1, coordinator="h:1"), JOBSET) == Identity(4, 1, "h", 1)
    assert identify(ProcessConfig(count=1), JOBSET) == ALONE
    assert identify(ProcessConfig(), JOBSET | SLURM | {"SLURM_PROCID": "5"}) == identify(ProcessConfig(), SLURM)
    assert identify(ProcessConfig(), JOBSET | {"TPU_WORKER_HOSTNAMES": "a,b"}) is None
    assert identify(ProcessConfig(), JOBSET | {"TPU_WORKER_HOSTNAMES": "localhost"}) == ALONE


def test_a_pod_of_several_jobs_does_not_guess_its_index():
    second = JOBSET | {"JOB_INDEX": "1", "NNODES": "8"}
    with pytest.raises(ConfigError, match=r"'js' and its job 1, .* Give --processes\.index \(or SPECIALIZE_PROCESS\)"):
        identify(ProcessConfig(), second)
    assert identify(ProcessConfig(index=7), second) == Identity(8, 7, "js-workers-0-0.js", 61_000)


@pytest.mark.parametrize(
    ("name", "coordinator"),
    [
        ("job-3.svc.ns.svc.cluster.local", "job-0.svc.ns.svc.cluster.local:61000"),
        ("js-w-0-3.js.ns.svc.cluster.local", "js-w-0-0.js.ns.svc.cluster.local:61000"),
        ("job-3", None),  # no headless service: nobody finds it by name
        ("node17.example", None),  # the network of the host
        ("job-13.svc", None),
    ],
)
def test_the_first_pod_is_known_by_the_name_of_another(name, coordinator):
    pod = pod_of({"JOB_COMPLETION_INDEX": "3"}, lambda: name)
    assert pod is not None
    assert (pod.index, pod.count, pod.coordinator) == (3, None, coordinator)


def test_a_pod_without_an_index_is_alone():
    assert identify(ProcessConfig(), {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "NNODES": "4"}) == ALONE


def test_flags_win_over_the_environment_and_a_launcher_over_slurm():
    said = {"SPECIALIZE_PROCESSES": "2", "SPECIALIZE_PROCESS": "1", "SPECIALIZE_COORDINATOR": "h:5000"} | SLURM
    assert identify(ProcessConfig(), said) == Identity(2, 1, "h", 5000)
    assert identify(ProcessConfig(count=3, index=2), said) == Identity(3, 2, "h", 5000)
    assert identify(ProcessConfig(count=1), said) == ALONE


def test_an_address_may_be_of_version_6():
    config = ProcessConfig(count=2, index=0, coordinator="[fd00::1]:61000")
    assert identify(config, {}) == Identity(2, 0, "fd00::1", 61000)


@pytest.mark.parametrize(
    ("config", "environment", "match"),
    [
        (ProcessConfig(count=2), {}, r"also needs --processes\.index and --processes\.coordinator"),
        (ProcessConfig(index=0), {}, r"also needs --processes\.count and --processes\.coordinator"),
        (ProcessConfig(2, 2, "h:1"), {}, "process 2 of 2; they are numbered 0 to 1"),
        (ProcessConfig(2, 0, "h"), {}, "write it as HOST:PORT"),
        (ProcessConfig(2, 0, "h:70000"), {}, "write it as HOST:PORT"),
        (ProcessConfig(0, 0, "h:1"), {}, "0 processes"),
        (ProcessConfig(), JOBSET, r"pod 3 of an Indexed Job.*JobSet 'js', .*Give --processes\.count.*1 where each pod"),
        (
            ProcessConfig(),
            {"JOB_COMPLETION_INDEX": "0"},
            r"pod 0 of an Indexed Job of Kubernetes, .*--processes\.count",
        ),
        (ProcessConfig(), JOBSET | {"NNODES": "2"}, "process 3 of 2"),
        (ProcessConfig(), JOBSET | {"NNODES": "-2"}, "NNODES is '-2', but it must be a whole number"),
        (ProcessConfig(), {"SPECIALIZE_PROCESSES": "two"}, "'two', but it must be a whole number"),
        (ProcessConfig(), SLURM | {"SLURM_PROCID": "x"}, "SLURM_PROCID is 'x'"),
    ],
)
def test_half_a_word_is_refused(config, environment, match):
    with pytest.raises(ConfigError, match=match):
        identify(config, environment)


def test_patience_is_positive():
    with pytest.raises(ConfigError, match=r"processes\.patience=0"):
        ProcessConfig(patience=0)
