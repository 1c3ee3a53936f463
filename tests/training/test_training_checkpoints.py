"""Atomic writes of files and folders, and the detection of damaged checkpoints."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from accelerate import Accelerator
from conftest import REPOSITORY
from safetensors.torch import save_file

from clustr_hf.training.checkpoints import (
    STATE_FILE,
    TrainingState,
    damage_of_checkpoint,
    find_checkpoint,
    numbered_folders,
    prune,
    remove_incomplete,
    write_atomically,
    write_folder,
)
from clustr_hf.training.checksums import CHECKSUMS, find_damage, write_checksums


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


def make_folders(output_dir, *names):
    for name in names:
        (output_dir / name).mkdir(parents=True)
        TrainingState(step=int(name.rpartition("-")[2])).save(output_dir / name)
        write_checksums(output_dir / name)


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
    assert {path.name for path in folder.iterdir()} == {"weights", CHECKSUMS} and find_damage(folder) == []
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
    """A limit on file sizes makes writes of torch and safetensors fail as on a full disk."""
    code = f"""
        import torch
        from accelerate import Accelerator
        from pathlib import Path
        from safetensors.torch import save_file
        from clustr_hf.training.checkpoints import write_folder

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
    prune(tmp_path, "checkpoint", keep=2, newest=100)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-10", "checkpoint-100", "best-2", "checkpoint-x-3"}


def test_pruning_after_a_damaged_checkpoint_keeps_those_before(tmp_path):
    make_folders(tmp_path, "checkpoint-6", "checkpoint-7", "checkpoint-8")
    prune(tmp_path, "checkpoint", keep=1, newest=7)
    assert [path.name for path in numbered_folders(tmp_path, "checkpoint")] == ["checkpoint-7", "checkpoint-8"]


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


def save_checkpoint(output_dir, step, accelerator):
    """Write the files of a checkpoint, including those of FSDP."""
    folder = output_dir / f"checkpoint-{step}"

    def write(folder):
        weights = {"weight": torch.full((8, 8), float(step))}
        save_file(weights, folder / "model.safetensors")
        for name in ("optimizer.bin", "custom_checkpoint_0.pkl", "random_states_0.pkl", "random_states_1.pkl"):
            torch.save(weights, folder / name)
        (folder / "pytorch_model_fsdp_0").mkdir()
        torch.save(weights, folder / "pytorch_model_fsdp_0" / "__1_0.distcp")
        TrainingState(step=step, log_history=[{"step": 1, "loss": 2.0}]).save(folder)

    write_folder(folder, write, accelerator)
    return folder


def flip(name, place=0.5):
    """Flip one bit at a relative position of the file."""

    def spoil(folder):
        content = bytearray((folder / name).read_bytes())
        content[int(place * len(content))] ^= 4
        (folder / name).write_bytes(content)

    return spoil


def cut(name, kept):
    def spoil(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(kept * len(content))])

    return spoil


def replace(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def remove(name):
    return lambda folder: (folder / name).unlink()


def swap(folder):
    """Replace the weights by valid weights of another step, of the same size."""
    save_file({"weight": torch.zeros(8, 8)}, folder / "model.safetensors")


DAMAGES = {
    "a bit of the weights": (flip("model.safetensors", 0.9), r"model\.safetensors differs from what was saved"),
    "a bit of their header": (flip("model.safetensors", 0.01), r"model\.safetensors differs"),
    "a bit of the optimizer": (flip("optimizer.bin"), r"optimizer\.bin differs"),
    "a bit of the average": (flip("custom_checkpoint_0.pkl"), r"custom_checkpoint_0\.pkl differs"),
    "a bit of a shard": (flip("pytorch_model_fsdp_0/__1_0.distcp"), r"pytorch_model_fsdp_0/__1_0\.distcp differs"),
    "a bit of the state": (flip(STATE_FILE), r"training_state\.json differs"),
    "weights of another step": (swap, r"model\.safetensors differs"),
    "truncated weights": (cut("model.safetensors", 0.6), r"model\.safetensors is truncated: it has \d+ bytes, and had"),
    "empty weights": (cut("model.safetensors", 0), r"model\.safetensors is truncated: it has 0 bytes"),
    "truncated state": (cut(STATE_FILE, 0.5), r"training_state\.json is truncated"),
    "no weights": (remove("model.safetensors"), r"model\.safetensors is missing"),
    "no random states": (remove("random_states_1.pkl"), r"random_states_1\.pkl is missing"),
    "no state": (remove(STATE_FILE), r"training_state\.json is missing"),
    "longer": (replace("optimizer.bin", b"x" * 10**4), r"optimizer\.bin is too long: it has 10000 bytes"),
    "no checksums": (remove(CHECKSUMS), r"checksums\.json is missing"),
    "truncated checksums": (cut(CHECKSUMS, 0.5), r"checksums\.json is not valid JSON"),
    "bytes for checksums": (replace(CHECKSUMS, b"\xff\x00"), r"checksums\.json is not valid JSON"),
    "other JSON": (replace(CHECKSUMS, b'["model.safetensors"]'), r"checksums\.json does not hold a size and a SHA-256"),
    "empty checksums": (replace(CHECKSUMS, b"{}"), r"training_state\.json has no checksum"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_the_checkpoint_before_is_whole(tmp_path, accelerator, caplog, damage):
    spoil, message = DAMAGES[damage]
    first, second = (save_checkpoint(tmp_path, step, accelerator) for step in (9, 10))
    assert find_checkpoint(tmp_path, "latest") == second and caplog.records == []
    spoil(second)
    assert find_checkpoint(tmp_path, "latest") == first
    [record] = caplog.records
    assert record.levelname == "WARNING" and record.getMessage().endswith("; falling back to checkpoint-9")
    assert re.search(message, record.getMessage())
    with pytest.raises(
        ValueError, match=rf"checkpoint-10 is damaged: {message}.*Undamaged checkpoints beside it: .*-9$"
    ):
        find_checkpoint(tmp_path, str(second))
    assert find_checkpoint(tmp_path, str(first)) == first
    spoil(first)
    with pytest.raises(ValueError, match=rf"finds no undamaged checkpoint: .*{message}.*start fresh"):
        find_checkpoint(tmp_path, "latest")


def test_an_average_or_weights_that_were_added_are_not_read(tmp_path, accelerator):
    folder = save_checkpoint(tmp_path, 9, accelerator)
    (folder / "notes.txt").write_text("a good one")
    assert damage_of_checkpoint(folder) == []
    for name in ("model.safetensors", "custom_checkpoint_0.pkl"):
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        write_checksums(folder)
        (folder / name).write_bytes(content)
        assert damage_of_checkpoint(folder) == [f"{name} was added after it was saved"]
        write_checksums(folder)


def test_a_checkpoint_from_before_there_were_checksums_is_taken_with_a_warning(tmp_path, accelerator, caplog):
    folder = save_checkpoint(tmp_path, 9, accelerator)
    state = json.loads((folder / STATE_FILE).read_text())
    del state["checksums"]
    (folder / STATE_FILE).write_text(json.dumps(state))
    (folder / CHECKSUMS).unlink()
    assert find_checkpoint(tmp_path, "latest") == find_checkpoint(tmp_path, str(folder)) == folder
    assert len(caplog.records) == 2 and "has no checksums.json" in caplog.text
    find_checkpoint(tmp_path, "latest", announce=False)
    assert len(caplog.records) == 2 and TrainingState.load(folder).step == 9
    for content in (b"{", b"[1]", b'{"step": 1, "colour": "red"}', b"\xff"):
        (folder / STATE_FILE).write_bytes(content)
        with pytest.raises(ValueError, match=r"training_state\.json (is not valid JSON|does not hold the state)"):
            find_checkpoint(tmp_path, str(folder))


def test_checksums_are_those_of_other_programs(tmp_path):
    (tmp_path / "part").mkdir()
    for name in ("a.bin", "part/b.bin"):
        (tmp_path / name).write_bytes(os.urandom(3 * 2**20 + 5))
    write_checksums(tmp_path)
    for name, entry in json.loads((tmp_path / CHECKSUMS).read_text()).items():
        printed = subprocess.run(["sha256sum", tmp_path / name], capture_output=True, text=True, check=True).stdout
        assert printed.split()[0] == entry["sha256"] and (tmp_path / name).stat().st_size == entry["size"]
