"""Signals stop a run between two steps; the resumed run ends with the weights of an uninterrupted one."""

import json
import os
import signal
import subprocess
import threading
import time

import pytest
import run_image_classification_no_trainer as script
import torch
from forked_scripts import restore_signals, run_processes
from test_training_loop import assert_same_run
from tiny_models import tiny_classifier

from clustr_hf import ClusTRImageProcessor
from clustr_hf.training.data.loaders import LoaderOptions, make_loader
from clustr_hf.training.distributed import decided_by_main_process
from clustr_hf.training.signals import StopRequests, run_interruptibly
from clustr_hf.training.tasks.image_classification import task


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
CPU = torch.device("cpu")


def read_json(path):
    return json.loads(path.read_text())


def arguments_for(data, output_dir):
    settings = {"--train_dir": data / "train", "--validation_dir": data / "validation", "--output_dir": output_dir}
    settings |= {"--variant": "nano", "--image_size": 32, "--train_batch_size": 8, "--logging_steps": 3}
    return settings | {"--per_device_eval_batch_size": 8}


@pytest.fixture(autouse=True)
def as_in_a_terminal():
    """Restore the default handlers: a shell starts background jobs with SIGINT ignored."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    restore_signals()
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def train(image_folders, tmp_path, run_script, monkeypatch):
    """Run the script; `at={5: SIGTERM}` sends a signal in the fifth call of the loss, `evaluating` of `predict`."""
    compute, predict = task.make_loss, task.predict

    def counted(function, moments):
        calls = []

        def call(*arguments):
            calls.append(1)
            for _ in range(len(calls) in moments):
                os.kill(os.getpid(), moments[len(calls)])
            return function(*arguments)

        return call

    def run(*arguments, output_dir=tmp_path / "out", at=(), evaluating=()):
        monkeypatch.setattr(task, "make_loss", lambda *settings: counted(compute(*settings), at))
        monkeypatch.setattr(task, "predict", counted(predict, evaluating))
        settings = arguments_for(image_folders, output_dir)
        run_script(script, settings, "--cache_dir", tmp_path / "cache", *arguments)
        return output_dir

    return run


def steps_of(folder):
    return sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))


def test_a_run_that_is_stopped_resumes_exactly(train, tmp_path, caplog):
    """Signals arrive in a step, in an evaluation, which is then repeated, and in the last step before evaluation."""
    arguments = ["--max_train_steps", 6, "--eval_steps", 4, "--checkpointing_steps", 4, "--ema_decay", 0.9]
    handlers = [signal.getsignal(number) for number in SIGNALS]
    whole, stopped = train(*arguments, output_dir=tmp_path / "whole"), tmp_path / "stopped"
    resume = [*arguments, "--resume_from_checkpoint", "latest"]
    moments = [
        ({"at": {2: signal.SIGTERM}}, 143, 2),
        ({"evaluating": {2: signal.SIGINT}}, 130, 4),
        ({"at": {2: signal.SIGUSR1}}, 138, 6),
    ]
    for moment, status, step in moments:
        with pytest.raises(SystemExit) as raised:
            train(*resume, output_dir=stopped, **moment)
        assert raised.value.code == status and steps_of(stopped)[-1] == step
        message = f"stopped at step {step}, resume with `--resume_from_checkpoint latest`"
        assert message in caplog.records[-1].getMessage()
        state = read_json(stopped / f"checkpoint-{step}" / "training_state.json")
        assert state["step"] == step and len(state["log_history"]) == {2: 0, 4: 1, 6: 3}[step]
        assert not (stopped / "all_results.json").exists()
    train(*resume, output_dir=stopped)
    assert_same_run(whole, stopped)
    assert [signal.getsignal(number) for number in SIGNALS] == handlers


def test_never_saving_means_never(train, tmp_path, caplog):
    with pytest.raises(SystemExit):
        train("--max_train_steps", 4, "--checkpointing_steps", "never", at={1: signal.SIGTERM})
    assert "stopped at step 1, nothing was saved, since --checkpointing_steps is never" in caplog.text
    assert steps_of(tmp_path / "out") == []


def test_all_processes_of_a_job_receive_a_signal(forked_scripts, image_folders, tmp_path):
    """Data-loading workers receive the signal, too. Ctrl-C in an evaluation leaves no traceback."""
    out = tmp_path / "out"
    settings = [part for pair in arguments_for(image_folders, out).items() for part in pair]
    arguments = [*settings, "--max_train_steps", 500, "--dataloader_num_workers", 2, "--eval_steps", "never"]
    run = forked_scripts("classification", arguments, tmp_path / "training.log")
    run.wait_for("step 3, .*loss")
    run.send(signal.SIGTERM, to_workers=True)
    assert run.end() == 143
    log = (tmp_path / "training.log").read_text()
    assert f"stopped at step {steps_of(out)[-1]}, resume with" in log and "Traceback" not in log

    tiny_classifier(num_labels=3).save_pretrained(tmp_path / "model")
    ClusTRImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "model")
    evaluation = ["--validation_dir", image_folders / "validation", "--output_dir", tmp_path / "evaluated"]
    evaluation += ["--eval_only", "--model_name_or_path", tmp_path / "model", "--per_device_eval_batch_size", 1]
    run = forked_scripts("classification", evaluation, tmp_path / "evaluation.log")
    run.wait_for("evaluation: +0%")
    run.send(signal.SIGINT)
    assert run.end() == 130
    log = (tmp_path / "evaluation.log").read_text()
    assert "interrupted" in log and "Traceback" not in log and not list((tmp_path / "evaluated").glob("*"))


def stop_one_of_two(rank, folder):
    """Send a signal to the second process only, before its third step."""
    for is_delayed in (False, True):
        with StopRequests(CPU, is_delayed=is_delayed) as requests:
            for step in range(1, 9):
                if rank == 1 and step == 3:
                    os.kill(os.getpid(), signal.SIGTERM)
                number = requests.agreed()
                if number:
                    break
        (folder / f"{rank}-{is_delayed}").write_text(f"{number} {step}")


def decide(rank, folder):
    """The second process gets the decision and the error of the first process instead of its own."""
    (folder / f"decided-{rank}").write_text(str(decided_by_main_process(lambda: rank)))
    try:
        decided_by_main_process(lambda: int("no number") if rank == 0 else 5)
    except ValueError as error:
        (folder / f"error-{rank}").write_text(str(error))


def test_processes_agree_on_the_step_and_on_the_checkpoint(forked_scripts, tmp_path):
    assert run_processes(stop_one_of_two, 2, tmp_path) == [0, 0]
    for is_delayed, step in ((False, 3), (True, 4)):
        assert {(tmp_path / f"{rank}-{is_delayed}").read_text() for rank in (0, 1)} == {f"15 {step}"}
    assert run_processes(decide, 2, tmp_path) == [0, 0]
    assert [(tmp_path / f"decided-{rank}").read_text() for rank in (0, 1)] == ["0", "0"]
    assert all("no number" in (tmp_path / f"error-{rank}").read_text() for rank in (0, 1))


def test_workers_end_for_their_parent_only():
    loader = make_loader(list(range(4)), LoaderOptions(num_workers=1), batch_size=1)
    batches = iter(loader)
    next(batches)
    [worker] = batches._workers
    for name in ("TERM", "INT", "USR1"):
        subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
    time.sleep(0.2)
    assert worker.is_alive() and len([next(batches) for _ in range(3)]) == 3
    worker.terminate()
    worker.join(20)
    assert worker.exitcode == 0


def wait_for_a_second_signal(rank, folder):
    with StopRequests(CPU) as requests:
        os.kill(os.getpid(), signal.SIGINT)
        assert requests.agreed() == signal.SIGINT
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)


def test_a_second_signal_ends_the_process_at_once(forked_scripts, tmp_path):
    assert run_processes(wait_for_a_second_signal, 1, tmp_path) == [-signal.SIGTERM]


def test_handlers_are_those_of_before():
    handlers = [signal.getsignal(number) for number in SIGNALS]
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    with StopRequests(CPU) as requests:
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN  # as nohup leaves SIGHUP
        os.kill(os.getpid(), signal.SIGUSR1)
        assert requests.agreed() == 0
    signal.signal(signal.SIGUSR1, handlers[-1])
    assert [signal.getsignal(number) for number in SIGNALS] == handlers
    entered = []
    thread = threading.Thread(target=lambda: entered.append(StopRequests(CPU).__enter__().agreed()))
    thread.start()
    thread.join()
    assert entered == [0] and [signal.getsignal(number) for number in SIGNALS] == handlers


def test_an_interruption_is_one_line(capsys):
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as raised:
        run_interruptibly(main)
    assert raised.value.code == 130 and capsys.readouterr().err.startswith("interrupted")
