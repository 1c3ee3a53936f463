"""The Triton kernels through a real compiler, without a GPU."""

import json
import sys

import pytest
from conftest import REPOSITORY, run_process


pytest.importorskip("triton", reason="the Triton kernels need the package triton")


# The smallest number, one that is not a power of two, and the largest.
CHANNELS = (64, 320, 512)


@pytest.mark.slow
def test_every_launch_compiles_without_spills_within_shared_memory(tmp_path):
    # In a separate process, because Triton interprets in this one. The script also compiles 128 and 256 channels, whose
    # blocks and warps are those of 320 and 512.
    command = [sys.executable, REPOSITORY / "examples/benchmark/compile_triton_kernels.py", "--output_dir", tmp_path]
    printed = run_process([*command, "--channels", *CHANNELS], tmp_path, TRITON_INTERPRET="0")
    assert "none spills" in printed
    rows = json.loads((tmp_path / "triton.json").read_text())
    assert {row["target"] for row in rows} == {"sm_80", "sm_90", "gfx942"}
    assert {row["channels"] for row in rows if row["kernel"] == "filter_nearest"} == set(CHANNELS)
    assert {row["neighbors"] for row in rows if row["kernel"] == "filter_nearest"} == {1, 5}
    assert {row["tokens"] for row in rows if row["kernel"] == "filter_nearest"} == {"fp32", "bf16"}
    for row in rows:
        assert row["registers"] > 0 and row["spilled"] == 0, row
        assert 0 <= row["shared_memory"] <= row["shared_memory_limit"], row
    kernels = {row["kernel"] for row in rows}
    assert {"filter_nearest", "measure_nearest", "follow_parents", "merge_segments", "split_gradients"} <= kernels


def test_the_channels_that_are_not_compiled_are_launched_as_others():
    from benchmark.compile_triton_kernels import CHANNELS as ALL
    from benchmark.triton_programs.launches import choose_launch, launches_of
    from benchmark.triton_programs.usage import SHARED_MEMORY

    for chip in SHARED_MEMORY:
        for size in (2, 4):
            launches = {number: choose_launch(launches_of(chip, chip), 8 * size, number) for number in ALL}
            assert set(launches.values()) == {launches[number] for number in CHANNELS}


def test_spills_and_large_programs_are_complained_about():
    from benchmark.compile_triton_kernels import find_problems
    from benchmark.triton_programs.usage import read_amd_usage

    row = {"kernel": "k", "target": "sm_80", "tokens": "fp32", "channels": 64, "spilled": 0, "shared_memory": 10}
    row["shared_memory_limit"] = 10
    assert find_problems([row]) == []
    assert "8 bytes spilled" in find_problems([{**row, "spilled": 8}])[0]
    assert "11 of 10 bytes" in find_problems([{**row, "shared_memory": 11}])[0]
    assembly = ".vgpr_count: 7\n.vgpr_spill_count: 1\n.sgpr_spill_count: 2\n"
    assert read_amd_usage(assembly) == {"registers": 7, "spilled": 12}
