"""The table of accelerators: every entry holds together, and names mean one thing."""

import math

import pytest

from launch.accelerators import FAMILIES, GIB, chips_of, every_name, find
from specialize.errors import ConfigError


@pytest.mark.parametrize("name", every_name())
def test_chips_are_those_of_hosts_and_topology(name):
    found = find(name)
    assert found.name == name
    assert found.hosts * found.chips_per_host == found.chips
    assert found.chips_per_host <= found.chips
    if found.topology is not None:
        assert chips_of(found.topology) == found.chips
        assert found.node_selector["cloud.google.com/gke-tpu-topology"] == found.topology
        assert find(f"{found.family.name}-{found.topology}") == found
        assert find(found.name, found.topology) == found
    assert all(found.node_selector.values())


def test_names_differ():
    assert len(set(every_name())) == len(every_name())
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_figures_are_of_the_right_size(family):
    assert 16 * GIB <= family.chip.hbm_bytes <= 256 * GIB
    assert 1e14 < family.chip.bf16_flops < 3e15
    assert 2e11 < family.chip.bandwidth < 1e13
    # What a chip can compute on each byte that it reads: all of these are built for some hundred.
    assert 100 < family.chip.bf16_flops / family.chip.bandwidth < 700
    assert (family.runtime is None) == (family.cloud is None)


@pytest.mark.parametrize(
    ("name", "same", "chips", "hosts"),
    [
        ("v5e-256", "v5e-256", 256, 64),
        ("v5litepod-256", "v5e-256", 256, 64),
        ("tpu-v6e-8", "v6e-8", 8, 1),
        ("v4-512", "v4-512", 256, 64),
        ("v5p-8", "v5p-8", 4, 1),
        ("v5p-4x4x4", "v5p-128", 64, 16),
        ("tpu7x-128", "v7x-128", 64, 16),
        ("h100-8", "h100-8", 8, 1),
        ("H100x8", "h100-8", 8, 1),
        ("H100:16", "h100-16", 16, 2),
        ("h100-80gb-8", "h100-8", 8, 1),
        ("h100-mega-8", "h100-mega-8", 8, 1),
        ("a100-80gb-4", "a100-80gb-4", 4, 1),
        ("a100-40gb-32", "a100-40gb-32", 32, 2),
    ],
)
def test_names_count_as_their_vendors_do(name, same, chips, hosts):
    found = find(name)
    assert (found.name, found.chips, found.hosts) == (same, chips, hosts)


def test_the_cloud_counts_cores():
    assert find("v5e-256").cloud_type == "v5litepod-256"
    assert find("v5p-4x4x4").cloud_type == "v5p-128"
    with pytest.raises(ConfigError, match="v4, v5e, v5p, v6e"):
        _ = find("v7x-8").cloud_type
    with pytest.raises(ConfigError, match="no TPU VMs of h100-8"):
        _ = find("h100-8").cloud_type


@pytest.mark.parametrize(
    ("name", "topology", "said"),
    [
        ("v9-8", None, "no accelerator 'v9-8'.*v5e-1 … v5e-256.*h100-1"),
        ("", None, "no accelerator ''"),
        ("v5e", None, "say how many.*v5e-256"),
        ("v5e-0", None, "no accelerator"),
        ("v5e-7", None, "no v5e-7.*v5e-4, v5e-8"),
        ("v5p-9", None, "TensorCores.*v5p-8, v5p-16"),
        ("v5e-16", "4x8", "16 chips, and the topology 4x8 has 32.*Choose from 4x4"),
        ("v5e-16", "5x5", "no topology 5x5.*4x4"),
        ("v5p-5x5x5", None, "no topology 5x5x5.*2x2x1"),
        ("v5p-4x4x4", "4x4x8", "two different topologies"),
        ("h100-12", None, "no h100-12.*multiple of 8"),
        ("h100-8", "2x2", "GPUs have none"),
        ("h100-2x4", None, "no accelerator"),
    ],
)
def test_what_there_is_not_is_refused_with_the_choices(name, topology, said):
    with pytest.raises(ConfigError, match=said):
        find(name, topology)


def test_a_topology_can_be_chosen_where_there_are_several():
    assert find("v4-512").topology == "4x8x8"
    other = find("v4-512", "4x4x16")
    assert (other.name, other.chips) == ("v4-4x4x16", 256)
    assert other.cloud_type == "v4-512"


def test_shapes_are_sorted_so_that_choices_read_in_order():
    for family in FAMILIES:
        sizes = [chips_of(shape) for shape in family.shapes]
        assert sizes == sorted(sizes)
        assert math.prod((2, 3)) == chips_of("2x3")
