"""
Run example scripts in processes that a test can kill. The processes are forked from one that has imported the scripts,
since the imports take longer than a short training. They use one thread, which fixes the order of sums.
"""

import multiprocessing
import os
import re
import runpy
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

import pytest
import torch


TESTS = Path(__file__).resolve().parents[1]
EXAMPLES = TESTS.parent / "examples"
# Folders on the module search path of forked processes.
IMPORTED_FOLDERS = (EXAMPLES, TESTS, TESTS / "helpers", TESTS / "remote_code", TESTS / "training")
SCRIPTS = {
    "classification": "run_image_classification_no_trainer",
    "segmentation": "run_semantic_segmentation_no_trainer",
    "detection": "run_object_detection_no_trainer",
    "instances": "run_instance_segmentation_no_trainer",
    "poses": "run_pose_estimation_no_trainer",
}
TIMEOUT = 300.0


@pytest.fixture(scope="session")
def forked_scripts(tmp_path_factory):
    """Start the process from which the scripts are forked."""
    environment = {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_DATASETS_CACHE": str(tmp_path_factory.mktemp("datasets")),
        "PYTHONPATH": os.pathsep.join(map(str, IMPORTED_FOLDERS)),
    }
    with mock.patch.dict(os.environ, environment):
        multiprocessing.get_context("forkserver").set_forkserver_preload(list(SCRIPTS.values()))
        forkserver.ensure_running()
    return ScriptRun


class ScriptRun:
    """A run of a task's script in one process, with its output in a file."""

    def __init__(self, task: str, arguments: Sequence[object], log: Path, **environment: str):
        self.log = log
        log.write_text("")
        context = multiprocessing.get_context("forkserver")
        script = str(EXAMPLES / f"{SCRIPTS[task]}.py")
        command = [script, *map(str, arguments)]
        self.process = context.Process(target=_run, args=(command, str(log), environment))
        self.process.start()

    def wait_for(self, pattern: str):
        """Wait until the output matches."""
        until = time.monotonic() + TIMEOUT
        while not re.search(pattern, self.log.read_text()):
            assert self.process.is_alive(), f"the run ended before {pattern!r}:\n{self.log.read_text()[-4000:]}"
            assert time.monotonic() < until, self.log.read_text()[-4000:]
            time.sleep(0.005)

    def send(self, number: signal.Signals, to_workers: bool = False):
        (os.killpg if to_workers else os.kill)(self.process.pid, number)

    def end(self) -> int:
        """Wait for the end of the process; returns its exit code, negative after a signal."""
        self.process.join(TIMEOUT)
        assert self.process.exitcode is not None, self.log.read_text()[-4000:]
        return self.process.exitcode

    def succeed(self):
        assert self.end() == 0, self.log.read_text()[-4000:]


def restore_signals():
    """Restore the default signal handlers, as in a terminal."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def run_processes(function: Callable[[int, Path], None], number: int, folder: Path) -> list[int | None]:
    """Call `function(rank, folder)` in a process group (gloo); returns the exit codes. Needs `forked_scripts`."""
    context = multiprocessing.get_context("forkserver")
    store = folder / "store"
    processes = [context.Process(target=_join, args=(function, rank, number, folder, store)) for rank in range(number)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(TIMEOUT)
    return [process.exitcode for process in processes]


def _join(function: Callable[[int, Path], None], rank: int, number: int, folder: Path, store: Path):
    restore_signals()
    if number > 1:
        place = {"init_method": f"file://{store}", "rank": rank, "world_size": number}
        torch.distributed.init_process_group("gloo", **place)
    function(rank, folder)
    if number > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def run_on_two_processes(task: str, arguments: Sequence[object], log: Path, **environment: str):
    """Run a script like `accelerate launch --config_file ddp_cpu.yaml`; both must succeed. Needs `forked_scripts`."""
    with socket.create_server(("localhost", 0)) as server:
        place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(server.getsockname()[1]), "WORLD_SIZE": "2"}
    place |= {"ACCELERATE_USE_CPU": "true", **environment}
    runs = [
        ScriptRun(task, arguments, log.with_suffix(f".{rank}"), RANK=str(rank), LOCAL_RANK=str(rank), **place)
        for rank in range(2)
    ]
    for run in runs:
        run.succeed()


def _run(command: list[str], log: str, environment: dict[str, str]):
    restore_signals()
    multiprocessing.set_start_method("fork", force=True)  # otherwise data-loading workers would repeat all imports
    os.setpgid(0, 0)
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.environ.update(environment)
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")
