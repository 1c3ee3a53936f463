"""Files and folders that are whole or not there."""

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from accelerate import Accelerator
from conftest import REPOSITORY
from training_checkpoints import (
    STATE_FILE,
    TrainingState,
    find_checkpoint,
    numbered_folders,
    prune,
    remove_incomplete,
    write_atomically,
    write_folder,
)


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


def make_folders(output_dir, *names):
    for name in names:
        (output_dir / name).mkdir(parents=True)
        TrainingState(step=int(name.rpartition("-")[2])).save(output_dir / name)


def test_state_comes_back_as_it_was(tmp_path):
    state = TrainingState(
        step=7,
        pending_losses=[0.1, 1 / 3],
        log_history=[{"step": 5, "loss": 2.0}],
        best_metric=0.25,
        skipped=["training sample 3: broken"],
        fingerprint={"seed": 1, "processes": None},
    )
    state.save(tmp_path)
    assert TrainingState.load(tmp_path) == state


def test_folder_appears_whole_and_replaces_an_older_one(tmp_path, accelerator):
    folder = tmp_path / "checkpoint-1"
    seen = []

    def write(temporary):
        seen.append((temporary.name, sorted(path.name for path in tmp_path.iterdir())))
        (temporary / "weights").write_text(str(len(seen)))

    write_folder(folder, write, accelerator)
    assert (folder / "weights").read_text() == "1"
    write_folder(folder, write, accelerator)
    assert (folder / "weights").read_text() == "2"
    assert seen[0] == ("checkpoint-1.incomplete", ["checkpoint-1.incomplete"])
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def test_folder_that_fails_leaves_nothing_and_keeps_the_older_one(tmp_path, accelerator):
    folder = tmp_path / "checkpoint-1"
    write_folder(folder, lambda temporary: (temporary / "weights").write_text("good"), accelerator)

    def fail(temporary):
        (temporary / "weights").write_text("half")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match=r"checkpoint-1 could not be written .*GB are free.*No space left on device"):
        write_folder(folder, fail, accelerator)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    assert (folder / "weights").read_text() == "good"


@pytest.mark.parametrize(
    "save", ["torch.save({'a': data}, temporary / 'a.bin')", "save_file({'a': data}, temporary / 'a')"]
)
def test_full_disk_is_a_clear_error(tmp_path, save):
    """A limit on the size of files makes real writes of torch and safetensors fail as they do on a full disk."""
    code = f"""
        import torch
        from accelerate import Accelerator
        from pathlib import Path
        from safetensors.torch import save_file
        from training_checkpoints import write_folder

        data = torch.zeros(2**20)
        def write(temporary):
            {save}
        write_folder(Path("checkpoint-2"), write, Accelerator(cpu=True))
    """

    def limit_files():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))

    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "examples"), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        preexec_fn=limit_files,
        timeout=120,
    )
    assert result.returncode == 1
    assert "OSError: checkpoint-2 could not be written and was removed" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_file_is_replaced_whole(tmp_path):
    path = tmp_path / "results.json"
    write_atomically(path, "old")
    with pytest.raises(TypeError):
        write_atomically(path, None)
    assert path.read_text() == "old"
    write_atomically(path, b"new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("results.json", "new")]


def test_pruning_keeps_the_last_by_number(tmp_path):
    make_folders(tmp_path, "checkpoint-9", "checkpoint-10", "checkpoint-100", "best-2", "checkpoint-x-3")
    assert [path.name for path in numbered_folders(tmp_path, "checkpoint")] == [
        "checkpoint-9",
        "checkpoint-10",
        "checkpoint-100",
    ]
    prune(tmp_path, "checkpoint", keep=2)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-10", "checkpoint-100", "best-2", "checkpoint-x-3"}


def test_what_a_killed_run_was_writing_is_never_taken_and_is_removed(tmp_path):
    make_folders(tmp_path, "checkpoint-3")
    (tmp_path / "checkpoint-5.incomplete").mkdir()
    (tmp_path / "checkpoint-5.incomplete" / STATE_FILE).write_text(json.dumps({"step": 5}))
    (tmp_path / "results.json.incomplete").write_text("{")
    assert find_checkpoint(tmp_path, "latest").name == "checkpoint-3"
    remove_incomplete(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


def test_which_checkpoint_to_resume_from(tmp_path):
    assert find_checkpoint(tmp_path / "new", None) is None
    assert find_checkpoint(tmp_path / "new", "latest") is None
    make_folders(tmp_path, "checkpoint-9", "checkpoint-10")
    assert find_checkpoint(tmp_path, "latest").name == "checkpoint-10"
    assert find_checkpoint(tmp_path, str(tmp_path / "checkpoint-9")).name == "checkpoint-9"
    with pytest.raises(ValueError, match=r"has checkpoint-10 of an earlier run.*--resume_from_checkpoint latest"):
        find_checkpoint(tmp_path, None)
    with pytest.raises(ValueError, match=r"elsewhere is not a checkpoint.*checkpoint-9, checkpoint-10"):
        find_checkpoint(tmp_path, "elsewhere")


def test_saved_accelerate_state_needs_no_unpickling(tmp_path, accelerator):
    model = torch.nn.Linear(2, 2)
    prepared, _ = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    prepared(torch.ones(1, 2)).sum().backward()
    write_folder(tmp_path / "checkpoint-1", lambda folder: accelerator.save_state(str(folder)), accelerator)
    assert (tmp_path / "checkpoint-1" / "model.safetensors").is_file()
    assert "state" in torch.load(tmp_path / "checkpoint-1" / "optimizer.bin", weights_only=True)
