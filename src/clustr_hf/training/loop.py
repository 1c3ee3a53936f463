# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
The training loop of all tasks, on one process or many (Accelerate: DDP, FSDP2, mixed precision).

A script describes its task with [`Task`] and calls [`train`]. What the loop promises:

- Order of the data, augmentation, dropout and drop path are functions of seed, step and process: a run that is killed
  and resumed ends with the weights of one that was not (bitwise on CPUs with the same number of threads).
- A step's images and their augmentation do not depend on the number of processes; what the model and `compute_loss`
  draw (drop path, mixup) does, and so do batch norms on CPUs; on several GPUs they are synchronised.
- Evaluation counts every sample once, whatever the number of processes and the size of the batches.
- A kill at any moment leaves whole checkpoints only. A loss that is not finite ends the run before it is saved.
- SIGINT, SIGTERM and SIGUSR1 save a checkpoint after the step in progress, in all processes after the same one, and end
  the run. A run does not resume from a checkpoint whose files have changed since.
"""

import importlib.util
import logging
import math
import os
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.logging import get_logger
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import (
    DistributedType,
    convert_outputs_to_fp32,
    gather_object,
    get_mixed_precision_context_manager,
    send_to_device,
)
from huggingface_hub import HfApi
from safetensors.torch import save_model
from timm.optim import Muon
from timm.utils import ModelEmaV3
from torch import nn
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from ..publish import full_repository_id, push
from .arguments import LoopArguments
from .checkpoints import (
    AVERAGE,
    INCOMPLETE,
    LOADING_ERRORS,
    WEIGHTS,
    TrainingState,
    find_checkpoint,
    folder_step,
    has_checksums,
    numbered_folders,
    prune,
    remove_folder,
    remove_incomplete,
    write_folder,
    write_json,
)
from .data.samples import (
    LoaderOptions,
    seed_everything,
    training_loader,
)
from .devices import is_accelerator
from .evaluation import EvaluationLoop, Loop, keep_batch_norms_of_fsdp
from .report import CURVE, RESULTS, format_values, print_dry_run, summarize, write_history
from .schedule import TrainingPlan, try_step
from .signals import StopRequested, StopRequests, exit_status
from .task import Task


logger = get_logger(__name__)


def make_accelerator(args: LoopArguments) -> Accelerator:
    """The `Accelerator` of a run, with what `accelerate launch` leaves out for CPUs."""
    for tracker in args.report_to or []:
        if importlib.util.find_spec(tracker) is None:
            raise ValueError(f"--report_to {tracker} needs the package: pip install {tracker}")
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    for library in ("accelerate", "httpx"):
        logging.getLogger(library).setLevel(logging.WARNING)
    disable_progress_bar()  # transformers' own, for every model that is saved
    accelerator = Accelerator(
        log_with=args.report_to,
        project_dir=args.output_dir,
        mixed_precision=args.mixed_precision,
        cpu=not torch.accelerator.is_available(),  # several processes on CPUs are found only if this is said
    )
    if accelerator.device.type == "cpu":
        _enable_fsdp_on_cpus(accelerator)
        if accelerator.num_processes == 1 and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
            logger.warning(
                "`accelerate launch --cpu` starts one process, whatever --num_processes says; for several: "
                "--config_file examples/accelerate/ddp_cpu.yaml"
            )
    _keep_outputs_of_fsdp(accelerator)
    return accelerator


def _keep_outputs_of_fsdp(accelerator: Accelerator):
    """FSDP would cast outputs to half precision, where models give float32: boxes, losses."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.mixed_precision_policy is not None and plugin.fsdp_version == 2:
        plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, output_dtype=None)


def _enable_fsdp_on_cpus(accelerator: Accelerator):
    """Accelerate (1.15) heeds FSDP for accelerators only; torch's FSDP2 works on CPUs, which is how it is tested."""
    asked_for = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if asked_for and accelerator.distributed_type == DistributedType.MULTI_CPU:
        plugin = FullyShardedDataParallelPlugin()
        if accelerator.mixed_precision != "no":
            plugin.set_mixed_precision(accelerator.mixed_precision)
        for state in (PartialState, AcceleratorState):
            state._shared_state["distributed_type"] = DistributedType.FSDP
            state._shared_state["fsdp_plugin"] = plugin


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
        RuntimeError: if more samples than `max_skipped_samples` cannot be read.
        SystemExit: after a signal, when a checkpoint is saved; 128 plus the signal's number.
        ValueError: for damaged checkpoints, and for arguments that do not fit together or to the checkpoint.
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


def dry_run(task: Task, plan: TrainingPlan, accelerator: Accelerator) -> dict[str, float]:
    """Say what would be trained, without training; on an accelerator a step is tried, to measure its memory."""
    if not accelerator.is_main_process:
        return {}

    def try_on_accelerator() -> dict[str, Any]:
        model, device = task.model.to(accelerator.device), accelerator.device
        if plan.args.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        batch = send_to_device(first_batch(task, plan.args, plan.per_device_batch_size), device)
        return try_step(model, make_optimizer(model, plan.args), task.compute_loss, batch, accelerator.autocast)

    tried = try_on_accelerator if is_accelerator(accelerator.device) else None
    return print_dry_run(plan, task.model, task.compute_loss, first_batch(task, plan.args, 2), tried)


def first_batch(task: Task, args: LoopArguments, num_images: int) -> dict:
    """A batch of training data on the CPU; a stream is not read far for it."""
    data = replace(task.train_data, shuffle_buffer=num_images)
    loader = training_loader(data, task.collate, args.train_batch_size, num_images, args.seed, LoaderOptions())
    return next(iter(loader))["batch"]


def freeze_stages(model: PreTrainedModel, number: int):
    """Take the first stages of the backbone out of the training; the head and the later stages learn on."""
    stages = model.base_model.stages
    if number > len(stages):
        raise ValueError(f"--freeze_stages must be at most {len(stages)}, the number of stages, got {number}")
    for stage in stages[:number]:
        stage.requires_grad_(False)


def make_optimizer(model: nn.Module, args: LoopArguments) -> torch.optim.Optimizer:
    """
    AdamW; or timm's Muon (Jordan et al. 2024: Nesterov momentum 0.95, five Newton-Schulz steps, as fast as AdamW moves
    a weight on average) for the matrices of the backbone, and NAdamW, AdamW with Nesterov's momentum, for the rest:
    head, biases, norms, convolutions on pixels or on single channels, matrices of up to three rows or columns. Biases,
    also those of relative positions, and norms are not decayed.
    """
    decayed, undecayed, matrices = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim <= 1 or "relative_position_bias" in name:
            undecayed.append(parameter)
        elif args.optimizer == "muon" and f"{model.base_model_prefix}." in name and min(parameter.shape[:2]) > 3:
            matrices.append(parameter)
        else:
            decayed.append(parameter)
    groups = [{"params": decayed, "weight_decay": args.weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
    settings = {"lr": args.learning_rate, "betas": (args.adam_beta1, args.adam_beta2)}
    if args.optimizer == "adamw":
        return torch.optim.AdamW(groups, **settings)
    groups = [
        {"params": matrices, "weight_decay": args.weight_decay},
        *({**group, "use_fallback": True} for group in groups),
    ]
    return Muon(groups, nesterov=True, momentum=0.95, ns_steps=5, adjust_lr_fn="match_rms_adamw", **settings)


def refuse_with_fsdp(args: LoopArguments):
    """Raise a `ValueError` for an argument that needs whole weights where FSDP has shards."""
    for name, is_given in (("ema_decay", args.ema_decay is not None), ("optimizer muon", args.optimizer == "muon")):
        if is_given:
            raise ValueError(f"--{name} does not work with FSDP, which shards the weights: use DDP")


class TrainingLoop(Loop):
    """One run. Every process has one and calls the same methods in the same order."""

    def __init__(self, task: Task, args: LoopArguments, plan: TrainingPlan, accelerator: Accelerator):
        super().__init__(task, args, accelerator)
        self.plan = plan
        self.losses: list[torch.Tensor] = []  # of steps that were not looked at yet
        self.saved_step: int | None = None  # of the last checkpoint that this process has written
        self.started = time.perf_counter()
        checkpoint = find_checkpoint(self.output_dir, args.resume_from_checkpoint)
        self._prepare_folder()
        accelerator.gradient_accumulation_steps = plan.accumulation
        self.requests = StopRequests(accelerator.device)
        self._prepare_model()
        self._prepare_data()
        self.state = TrainingState(fingerprint=self._fingerprint(), class_names=self._class_names())
        if checkpoint is not None:
            self._resume(checkpoint)
        self._start_trackers()
        if args.push_to_hub and accelerator.is_main_process:
            HfApi().whoami()  # whoever is not logged in learns it before the training
            self.repository = full_repository_id(args.hub_model_id or self.output_dir.resolve().name)

    def _prepare_folder(self):
        """Make it and remove what a killed run was writing; a mark in it shows whether all machines see the same."""
        mark = self.output_dir / f"mark-{gather_object([os.getpid()])[0]}{INCOMPLETE}"
        if self.accelerator.is_main_process:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            remove_incomplete(self.output_dir)
            mark.touch()
        self.accelerator.wait_for_everyone()
        if not mark.is_file():
            raise ValueError(f"--output_dir {self.output_dir} must be on a disk that all machines share")
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            mark.unlink()

    def _prepare_model(self):
        args, model = self.args, self.task.model
        if args.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        if self.accelerator.distributed_type == DistributedType.FSDP:
            refuse_with_fsdp(args)
        if args.ema_decay is not None:
            self.ema = ModelEmaV3(model.to(self.accelerator.device), decay=args.ema_decay, use_warmup=True)
            self.accelerator.register_for_checkpointing(self.ema)
            self._autocast(self.ema.module)
        if self.accelerator.num_processes > 1 and self.accelerator.device.type != "cpu":
            # A device's few images are too few for statistics; on CPUs torch has no such layer.
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self.model, self.optimizer = self.accelerator.prepare(model, make_optimizer(model, args))
        if self.accelerator.distributed_type == DistributedType.FSDP:
            keep_batch_norms_of_fsdp(self.model)

    def _autocast(self, model: nn.Module):
        """Evaluate in the precision of `--eval_only`, as Accelerate does with the models that it prepares."""
        if self.accelerator.native_amp:
            autocast = get_mixed_precision_context_manager(True, self.accelerator.autocast_handler)
            model.forward = convert_outputs_to_fp32(autocast(model.forward))

    def _prepare_data(self):
        task, args, accelerator = self.task, self.args, self.accelerator
        micro_batch_size = self.plan.per_device_batch_size * accelerator.num_processes
        self.train_loader = training_loader(
            task.train_data, task.collate, args.train_batch_size, micro_batch_size, args.seed, self._loader_options()
        )
        self.eval_loader = self._make_eval_loader()

    def _fingerprint(self) -> dict[str, Any]:
        streamed = self.task.train_data.is_stream
        return {
            "seed": self.args.seed,
            "train_batch_size": self.args.train_batch_size,
            "training samples": self.plan.num_samples,
            "repeats of a sample": self.task.train_data.repeats,
            # A stream is dealt out to processes and workers.
            "processes": self.plan.num_processes if streamed else None,
            "dataloader_num_workers": self.args.dataloader_num_workers if streamed else None,
        }

    def _class_names(self) -> list[str] | None:
        """What the data of whoever goes on from a checkpoint is matched with."""
        id2label = getattr(getattr(self.task.model, "config", None), "id2label", None)
        return None if id2label is None else [id2label[index] for index in range(len(id2label))]

    def _resume(self, checkpoint: Path):
        state = TrainingState.load(checkpoint)
        for name, value in self.state.fingerprint.items():
            if state.fingerprint.get(name) != value:
                raise ValueError(
                    f"--resume_from_checkpoint {checkpoint}: {name} was {state.fingerprint.get(name)} and is now "
                    f"{value}; the position in the data would mean something else"
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
                self._evaluate_and_save()  # an evaluation that a signal has cut short
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
        """Save a checkpoint unless there is one of this step, and end the process with the status of the signal."""
        step = self.state.step
        if self.args.checkpointing_steps == "never":
            advice = "nothing was saved, since --checkpointing_steps is never"
        else:
            if self.saved_step != step:
                self._save_checkpoint()
            advice = "resume with `--resume_from_checkpoint latest`"
        logger.warning(f"{signal.Signals(number).name}: stopped at step {step}, {advice}")
        self.accelerator.wait_for_everyone()  # a launcher may kill the others when the first one leaves
        self.accelerator.end_training()
        raise SystemExit(exit_status(number))

    def _rest_of_epoch(self) -> Iterator[Iterator[dict]]:
        """The micro-batches of each step that is left in this epoch; one at a time is on the device."""
        epoch, step = divmod(self.state.step, self.plan.steps_per_epoch)
        num_steps = min(self.plan.steps_per_epoch - step, self.plan.num_steps - self.state.step)
        self.train_loader.batches.set_position(epoch, step * self.plan.accumulation)
        batches = (batch for batch in self.train_loader if batch is not None)
        for _ in range(num_steps):
            yield (self._receive(next(batches)) for _ in range(self.plan.accumulation))

    def _train_step(self, micro_batches: Iterator[dict]):
        step = self.state.step
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.learning_rate(step)
        self.model.train()
        losses = []
        for number, batch in enumerate(micro_batches):
            seed_everything(self.args.seed, step, number, self.accelerator.process_index)
            with self.accelerator.accumulate(self.model):
                loss = self.task.compute_loss(self.model, batch)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients and self.args.max_grad_norm is not None:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
            losses.append(loss.detach().float())
        self.losses.append(torch.stack(losses).mean())
        self.state.step += 1
        if self.ema is not None:
            self.ema.update(self.accelerator.unwrap_model(self.model), step=self.state.step)

    def _after_step(self):
        if self.state.step % self.args.logging_steps == 0 or self._is_last():
            self._log_losses()
        self._evaluate_and_save()

    def _evaluate_and_save(self):
        if self._must_evaluate():
            self._evaluate()
        if self._is_due(self.args.checkpointing_steps) or (
            self._is_last() and self.args.checkpointing_steps != "never"
        ):
            self._save_checkpoint()
            if self.args.push_to_hub and self.args.hub_strategy == "checkpoint" and not self._is_last():
                self._write_outputs()
                self._push(f"Step {self.state.step}", must_succeed=False)

    def _is_last(self) -> bool:
        return self.state.step == self.plan.num_steps

    def _must_evaluate(self) -> bool:
        return self._is_last() or self._is_due(self.args.eval_steps)

    def _has_evaluated(self) -> bool:
        return any(entry["step"] == self.state.step and self.task.metric in entry for entry in self.state.log_history)

    def _is_due(self, interval: str) -> bool:
        if interval == "never":
            return False
        return self.state.step % (self.plan.steps_per_epoch if interval == "epoch" else int(interval)) == 0

    def _collect_losses(self):
        """Look at the losses of the steps since the last time, which waits for the device."""
        if not self.losses:
            return
        losses = self.accelerator.reduce(torch.stack(self.losses), reduction="mean").tolist()
        first = self.state.step - len(losses)
        for step, loss in enumerate(losses, start=first + 1):
            if not math.isfinite(loss):
                raise FloatingPointError(f"the loss of step {step} is {loss}; {self._last_good()}")
        self.state.pending_losses += losses
        self.losses = []

    def _last_good(self) -> str:
        folders = numbered_folders(self.output_dir, "checkpoint")
        checkpoints = [folder for folder in folders if folder_step(folder) <= self.state.step]
        return f"the last good checkpoint is {checkpoints[-1]}" if checkpoints else "there is no checkpoint yet"

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
        self._report()

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
        """Model and processor as a repository that `from_pretrained` loads."""
        model = self._gather_model()
        if model is None:
            return
        if hasattr(model, "save_pretrained"):
            model.save_pretrained(folder)
        else:
            save_model(model, str(folder / WEIGHTS))
        if self.task.processor is not None:
            self.task.processor.save_pretrained(folder)

    def _save_checkpoint(self):
        self._collect_losses()
        self._check_weights()
        # Every process has seen skipped samples of its own.
        self.state.skipped = sorted(set(gather_object(self.state.skipped)))
        self._count_seconds()

        self._share_buffers(self.model)  # each shard of FSDP holds some of the statistics

        def write(folder: Path):
            self.accelerator.save_state(str(folder))
            if self.accelerator.is_main_process:
                self.state.save(folder)

        write_folder(self.output_dir / f"checkpoint-{self.state.step}", write, self.accelerator)
        if self.accelerator.is_main_process:
            prune(self.output_dir, "checkpoint", self.args.checkpoints_total_limit, newest=self.state.step)
        self.saved_step = self.state.step
        self._report()

    def _check_weights(self):
        shards = (getattr(parameter, "_local_tensor", parameter) for parameter in self.model.parameters())
        broken = torch.stack([shard.isfinite().all().logical_not() for shard in shards]).any()
        if self.accelerator.reduce(broken.float()) > 0:
            raise FloatingPointError(f"weights are not finite after step {self.state.step}; {self._last_good()}")

    def _count_seconds(self):
        now = time.perf_counter()
        self.state.seconds += now - self.started
        self.started = now

    def _report(self):
        if self.accelerator.is_main_process:
            write_history(self.state, self.task.metric, self.output_dir)

    def _write_outputs(self):
        """Model, processor, card and results in the output folder, file by file, each whole."""
        results = summarize(self.state)
        staging = self.output_dir / "model"

        def write(folder: Path):
            self._save_model(folder)
            if self.accelerator.is_main_process:
                write_json(folder / RESULTS, results)
                if (self.output_dir / CURVE).is_file():  # the card shows it
                    shutil.copy(self.output_dir / CURVE, folder)
                if self.task.write_card is not None:
                    self.task.write_card(folder, results)

        write_folder(staging, write, self.accelerator)
        if self.accelerator.is_main_process:
            # The results last: where they are, all is.
            for path in sorted(staging.iterdir(), key=lambda path: path.name == RESULTS):
                path.replace(self.output_dir / path.name)
            shutil.rmtree(staging)
        self.accelerator.wait_for_everyone()

    def _push(self, message: str, must_succeed: bool):
        if not self.accelerator.is_main_process:
            return
        try:
            revision = push(self.output_dir, self.repository, commit_message=message, validate=must_succeed)
            logger.info(f"Pushed {self.repository}; pin its revision={revision}")
        except Exception as error:  # hours of training are worth more than one of many uploads
            if must_succeed:
                raise
            logger.warning(f"could not push {message!r}, training goes on: {error}")

    def _finish(self) -> dict[str, float]:
        self._count_seconds()
        self._report()
        self._write_outputs()
        if self.args.push_to_hub:
            self._push("End of training", must_succeed=True)
        # Trackers, and the process group: a thread of gloo that outlives it can abort a process that has done its work.
        self.accelerator.end_training()
        return summarize(self.state)
