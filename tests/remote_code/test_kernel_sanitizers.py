"""The compiled kernel under the compiler's sanitizers: memory, undefined behaviour, and races between threads."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
SOURCES = [*sorted(ROOT.glob("src/clustr_hf/csrc/*.cpp")), ROOT / "tests/remote_code/kernel/stress.cpp"]
# As in setup.py, but with the standard library's threads instead of OpenMP's, which the thread sanitizer does not
# understand. Even small inputs are divided among threads.
FLAGS = ["-std=c++17", "-O1", "-g", "-ffp-contract=fast", "-Wno-psabi", "-Wno-uninitialized", "-pthread"]
FLAGS += ["-DCLUSTR_PRODUCTS_PER_THREAD=1e4"]
# Cases per instruction set; `make sanitize` runs more.
CASES = os.environ.get("SANITIZER_CASES", "40")


def build(program: Path, sources: list[Path], sanitizers: str) -> subprocess.CompletedProcess:
    command = ["g++", *FLAGS, f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", *sources, "-o", program]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_random_calls_are_clean(sanitizers, tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("there is no g++")
    empty = tmp_path / "empty.cpp"
    empty.write_text("int main() { return 0; }\n")
    if build(tmp_path / "empty", [empty], sanitizers).returncode or subprocess.run([tmp_path / "empty"]).returncode:
        pytest.skip(f"programs with -fsanitize={sanitizers} cannot be built or do not run on this system")
    built = build(tmp_path / "stress", SOURCES, sanitizers)
    assert built.returncode == 0, built.stderr
    ran = subprocess.run([tmp_path / "stress", CASES], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"portable: {CASES} cases" in ran.stdout
