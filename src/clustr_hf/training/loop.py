# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
The training loop of all tasks, on one process or many (Accelerate: DDP, FSDP2, mixed precision).

A script describes its task with [`Task`] and calls [`train`]. The loop guarantees:

- The order of the data, augmentation, dropout and drop path are functions of seed, step and process: a run that is
  killed and resumed ends with the weights of an uninterrupted run (bitwise on CPUs with the same number of threads).
- The images of a step and their augmentation do not depend on the number of processes. Random numbers that the model
  and `compute_loss` draw (drop path, mixup) do, and so do batch norms on CPUs; GPUs synchronize their batch norms.
- An evaluation counts every sample once, whatever the number of processes and the batch size.
- After a kill at any moment, all checkpoints are complete. A non-finite loss ends the run and is never saved.
- After SIGINT, SIGTERM or SIGUSR1, all processes finish the same step, save a checkpoint and exit.
- A run does not resume from a checkpoint whose files have changed since they were saved.

A step itself, with gradient accumulation, is in `gradient_accumulation.py`.
"""

import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import gather_object
from huggingface_hub import HfApi
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..publish import full_repository_id
from .arguments import LoopArguments
from .checkpoints import (
    AVERAGE,
    LOADING_ERRORS,
    TrainingState,
    describe_last_good,
    find_checkpoint,
    has_checksums,
    numbered_folders,
    prepare_folder,
    prune,
    remove_folder,
    write_folder,
)
from .data.loaders import training_loader
from .data.seeds import seed_everything
from .distributed import (
    broadcast_buffers,
    check_fsdp_arguments,
    fix_batch_norms_of_fsdp,
    local_shard,
    make_accelerator,
    synchronize_batch_norms,
    uses_fsdp,
)
from .dry_run import dry_run
from .evaluation import EvaluationLoop, Loop
from .gradient_accumulation import update_weights
from .models import set_memory_options
from .optimizers import make_average, make_optimizer
from .outputs import push_outputs, save_pretrained, write_outputs
from .report import format_values, summarize, write_history
from .schedule import TrainingPlan
from .signals import StopRequested, StopRequests, exit_status
from .task import Task


logger = get_logger(__name__)


def train(task: Task, args: LoopArguments, accelerator: Accelerator | None = None) -> dict[str, float]:
    """
    Train a task, or resume its training. With `args.dry_run`, print what would be trained instead. With
    `args.eval_only`, evaluate the initial model or the checkpoint of `args.resume_from_checkpoint` instead, which needs
    no training data.

    Args:
        task ([`Task`]): What to train.
        args ([`LoopArguments`]): How to train it.
        accelerator (`Accelerator`, *optional*): Default: [`make_accelerator`] makes one from the arguments.

    Returns:
        `dict[str, float]`: the content of `all_results.json`, or with `eval_only` that of `eval_results.json`.

    Raises:
        FloatingPointError: if the loss or a weight is not finite; names the step and the last good checkpoint.
        OSError: if a checkpoint cannot be written; the earlier ones remain.
        RuntimeError: if more than `max_skipped_samples` samples cannot be read.
        SystemExit: after a signal, when the checkpoint is saved; its code is 128 plus the number of the signal.
        ValueError: for damaged checkpoints, and for arguments that contradict each other or the checkpoint.
    """
    accelerator = accelerator or make_accelerator(args)
    if args.eval_only:
        return EvaluationLoop(task, args, accelerator).run()
    if task.train_data is None:
        raise ValueError("`train_data` of the task must be given unless `eval_only` is set, got None")
    if args.push_to_hub and task.write_card is None:
        raise ValueError("--push_to_hub needs a task with `write_card`, which completes the repository")
    plan = TrainingPlan.make(args, task.train_data.num_samples, accelerator.num_processes)
    if args.dry_run:
        return dry_run(task, plan, accelerator)
    return TrainingLoop(task, args, plan, accelerator).run()


class TrainingLoop(Loop):
    """One run. Every process has its own loop and calls the same methods in the same order."""

    def __init__(self, task: Task, args: LoopArguments, plan: TrainingPlan, accelerator: Accelerator):
        super().__init__(task, args, accelerator)
        self.plan = plan
        self.losses: list[torch.Tensor] = []  # of the steps since `_collect_losses` last read them
        self.saved_step: int | None = None  # step of the last checkpoint that this process has written
        self.num_reported = 0  # entries of the history that this process has written and plotted
        self.started = time.perf_counter()
        checkpoint = find_checkpoint(self.output_dir, args.resume_from_checkpoint)
        prepare_folder(self.output_dir, accelerator)
        accelerator.gradient_accumulation_steps = plan.accumulation
        self.requests = StopRequests(accelerator.device)
        self._prepare_model()
        self._prepare_data()
        self.state = TrainingState(fingerprint=self._fingerprint(), class_names=self._class_names())
        if checkpoint is not None:
            self._resume(checkpoint)
        self._start_trackers()
        if args.push_to_hub and accelerator.is_main_process:
            HfApi().whoami()  # fails before the training if the user is not logged in
            self.repository = full_repository_id(args.hub_model_id or self.output_dir.resolve().name)

    def _prepare_model(self):
        args, model = self.args, self.task.model
        set_memory_options(model, args.gradient_checkpointing, args.channels_last)
        if uses_fsdp(self.accelerator):
            check_fsdp_arguments(args)
        if args.ema_decay is not None:
            self.ema = make_average(model.to(self.accelerator.device), args.ema_decay, self.accelerator)
            self.accelerator.register_for_checkpointing(self.ema)
        model = synchronize_batch_norms(model, self.accelerator)
        self.model, self.optimizer = self.accelerator.prepare(model, make_optimizer(model, args))
        if uses_fsdp(self.accelerator):
            fix_batch_norms_of_fsdp(self.model)

    def _prepare_data(self):
        task, args = self.task, self.args
        micro_batch_size = self.plan.per_device_batch_size * self.accelerator.num_processes
        self.train_loader = training_loader(
            task.train_data, task.collate, args.train_batch_size, micro_batch_size, args.seed, self._loader_options()
        )
        self.eval_loader = self._make_eval_loader()

    def _fingerprint(self) -> dict[str, Any]:
        """The settings that must not change when a run resumes, since they determine the order of the data."""
        is_stream = self.task.train_data.is_stream
        return {
            "seed": self.args.seed,
            "train_batch_size": self.args.train_batch_size,
            "training samples": self.plan.num_samples,
            "repeats of a sample": self.task.train_data.repeats,
            # A stream is split among processes and workers.
            "processes": self.plan.num_processes if is_stream else None,
            "dataloader_num_workers": self.args.dataloader_num_workers if is_stream else None,
        }

    def _class_names(self) -> list[str] | None:
        """The class names of the model, against which the classes of the data are checked on resuming."""
        id2label = getattr(getattr(self.task.model, "config", None), "id2label", None)
        return None if id2label is None else [id2label[index] for index in range(len(id2label))]

    def _resume(self, checkpoint: Path):
        state = TrainingState.load(checkpoint)
        for name, value in self.state.fingerprint.items():
            if state.fingerprint.get(name) != value:
                raise ValueError(
                    f"--resume_from_checkpoint {checkpoint}: {name} was {state.fingerprint.get(name)} and is now "
                    f"{value}, which changes the order of the data"
                )
        if state.step > self.plan.num_steps:
            raise ValueError(f"{checkpoint} is at step {state.step}, but the run has only {self.plan.num_steps}")
        if (checkpoint / AVERAGE).is_file() != (self.ema is not None):
            raise ValueError(
                f"--ema_decay must be given if and only if it was when {checkpoint} was saved, got "
                f"{self.args.ema_decay}"
            )
        try:
            self.accelerator.load_state(str(checkpoint))
        except LOADING_ERRORS as error:
            damaged = "" if has_checksums(checkpoint) else "damaged, or "
            raise ValueError(
                f"--resume_from_checkpoint {checkpoint} is {damaged}of another model, optimizer or launch: "
                f"{type(error).__name__}: {error}"
            ) from error
        self.state = state
        logger.info(f"Resuming from {checkpoint}")

    def run(self) -> dict[str, float]:
        if self.accelerator.is_main_process:
            for name, value in self.plan.describe().items():
                logger.info(f"{name}: {value}")
        with self.requests:
            try:
                self._train()
            except StopRequested as request:
                self._save_and_leave(request.number)
        return self._finish()

    def _train(self):
        bar = tqdm(
            total=self.plan.num_steps,
            initial=self.state.step,
            disable=not self.accelerator.is_local_main_process,
            desc="training",
            mininterval=1,
        )
        with bar, logging_redirect_tqdm():
            if self.state.step > 0 and self._must_evaluate() and not self._has_evaluated():
                self._evaluate_and_save()  # repeat an evaluation that a signal interrupted
            while self.state.step < self.plan.num_steps:
                for micro_batches in self._rest_of_epoch():
                    self._train_step(micro_batches)
                    self._after_step()
                    bar.update()
                    self._check_for_stop()

    def _check_for_stop(self):
        number = self.requests.agreed()
        if number:
            raise StopRequested(number)

    def _save_and_leave(self, number: int):
        """Save a checkpoint, unless this step has one, and exit with the status of the signal."""
        step = self.state.step
        if self.args.checkpointing_steps == "never":
            advice = "nothing was saved, since --checkpointing_steps is never"
        else:
            if self.saved_step != step:
                self._save_checkpoint()
                self._report()
            advice = "resume with `--resume_from_checkpoint latest`"
        logger.warning(f"{signal.Signals(number).name}: stopped at step {step}, {advice}")
        self.accelerator.wait_for_everyone()  # a launcher may kill the other processes when the first one exits
        self.accelerator.end_training()
        raise SystemExit(exit_status(number))

    def _rest_of_epoch(self) -> Iterator[Iterator[dict]]:
        """For each remaining step of this epoch, its micro-batches; only one at a time is on the device."""
        epoch, step = divmod(self.state.step, self.plan.steps_per_epoch)
        num_steps = min(self.plan.steps_per_epoch - step, self.plan.num_steps - self.state.step)
        self.train_loader.batches.set_position(epoch, step * self.plan.accumulation)
        batches = (batch for batch in self.train_loader if batch is not None)
        for _ in range(num_steps):
            yield (self._receive(next(batches)) for _ in range(self.plan.accumulation))

    def _train_step(self, micro_batches: Iterator[dict]):
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.learning_rate(self.state.step)
        self.model.train()
        loss = update_weights(
            self.accelerator,
            self.model,
            self.optimizer,
            self.task.compute_loss,
            self._seed_each(micro_batches),
            self.args.max_grad_norm,
        )
        self.losses.append(loss)
        self.state.step += 1
        if self.ema is not None:
            self.ema.update(self.accelerator.unwrap_model(self.model), step=self.state.step)

    def _seed_each(self, micro_batches: Iterator[dict]) -> Iterator[dict]:
        """The micro-batches; before each one, the random numbers of its forward pass are seeded."""
        for number, batch in enumerate(micro_batches):
            seed_everything(self.args.seed, self.state.step, number, self.accelerator.process_index)
            yield batch

    def _after_step(self):
        if self.state.step % self.args.logging_steps == 0 or self._is_last():
            self._log_losses()
        self._evaluate_and_save()

    def _evaluate_and_save(self):
        must_evaluate, must_save = self._must_evaluate(), self._must_save()
        if must_evaluate:
            self._evaluate()
        if must_save:
            self._save_checkpoint()
        if must_evaluate or must_save:
            self._report()
        if must_save and self.args.push_to_hub and self.args.hub_strategy == "checkpoint" and not self._is_last():
            self._write_outputs()
            self._push(f"Step {self.state.step}", must_succeed=False)

    def _is_last(self) -> bool:
        return self.state.step == self.plan.num_steps

    def _must_evaluate(self) -> bool:
        return self._is_last() or self._is_due(self.args.eval_steps)

    def _must_save(self) -> bool:
        interval = self.args.checkpointing_steps
        return self._is_due(interval) or (self._is_last() and interval != "never")

    def _has_evaluated(self) -> bool:
        return any(entry["step"] == self.state.step and self.task.metric in entry for entry in self.state.log_history)

    def _is_due(self, interval: str) -> bool:
        if interval == "never":
            return False
        return self.state.step % (self.plan.steps_per_epoch if interval == "epoch" else int(interval)) == 0

    def _collect_losses(self):
        """Read the losses of the steps since the last call and check them. This waits for the device."""
        if not self.losses:
            return
        losses = self.accelerator.reduce(torch.stack(self.losses), reduction="mean").tolist()
        first = self.state.step - len(losses)
        for step, loss in enumerate(losses, start=first + 1):
            if not math.isfinite(loss):
                self._fail(f"the loss of step {step} is {loss}")
        self.state.pending_losses += losses
        self.losses = []

    def _log_losses(self):
        self._collect_losses()
        losses, self.state.pending_losses = self.state.pending_losses, []
        self._log({"loss": sum(losses) / len(losses), "learning_rate": self.plan.learning_rate(self.state.step - 1)})

    def _log(self, values: dict[str, float]):
        epoch = round(self.state.step / self.plan.steps_per_epoch, 4)
        self.state.log_history.append({"step": self.state.step, "epoch": epoch, **values})
        self.accelerator.log(values, step=self.state.step)
        logger.info(format_values(self.state.log_history[-1]))

    def _evaluate(self):
        self._collect_losses()
        scores = self._score()
        self._log(scores)
        self._keep_best(scores[self.task.metric])

    def _keep_best(self, metric: float):
        if not self.task.is_better(metric, self.state.best_metric):
            return
        self.state.best_metric, self.state.best_step = metric, self.state.step
        best = self.output_dir / f"best-{self.state.step}"
        write_folder(best, self._save_model, self.accelerator)
        if self.accelerator.is_main_process:
            for folder in numbered_folders(self.output_dir, "best"):
                if folder != best:
                    remove_folder(folder)

    def _save_model(self, folder: Path):
        model = self._gather_model()
        if model is not None:
            save_pretrained(model, self.task, folder)

    def _save_checkpoint(self):
        self._collect_losses()
        self._check_weights()
        # Each process knows only the samples that it skipped itself.
        self.state.skipped = sorted(set(gather_object(self.state.skipped)))
        self._count_seconds()

        broadcast_buffers(self.model, self.accelerator)  # with FSDP, each shard saves some of the statistics

        def write(folder: Path):
            self.accelerator.save_state(str(folder))
            if self.accelerator.is_main_process:
                self.state.save(folder)

        write_folder(self.output_dir / f"checkpoint-{self.state.step}", write, self.accelerator)
        if self.accelerator.is_main_process:
            prune(self.output_dir, "checkpoint", self.args.checkpoints_total_limit, newest=self.state.step)
        self.saved_step = self.state.step

    def _check_weights(self):
        shards = map(local_shard, self.model.parameters())
        broken = torch.stack([shard.isfinite().all().logical_not() for shard in shards]).any()
        if self.accelerator.reduce(broken.float()) > 0:
            self._fail(f"weights are not finite after step {self.state.step}")

    def _fail(self, problem: str) -> NoReturn:
        raise FloatingPointError(f"{problem}; {describe_last_good(self.output_dir, self.state.step)}")

    def _count_seconds(self):
        now = time.perf_counter()
        self.state.seconds += now - self.started
        self.started = now

    def _report(self):
        """Write and plot the history if it has new entries."""
        num_entries = len(self.state.log_history)
        if self.accelerator.is_main_process and num_entries > self.num_reported:
            write_history(self.state, self.task.metric, self.output_dir)
            self.num_reported = num_entries

    def _write_outputs(self):
        write_outputs(self.output_dir, self._save_model, self.task, summarize(self.state), self.accelerator)

    def _push(self, message: str, must_succeed: bool):
        if self.accelerator.is_main_process:
            push_outputs(self.output_dir, self.repository, message, must_succeed)

    def _finish(self) -> dict[str, float]:
        self._count_seconds()
        self._report()
        self._write_outputs()
        if self.args.push_to_hub:
            self._push("End of training", must_succeed=True)
        # Also ends the process group: otherwise a thread of gloo can abort the process at its exit.
        self.accelerator.end_training()
        return summarize(self.state)
