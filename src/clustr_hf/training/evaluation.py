# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Evaluation of a model, on its own or during training.

Every sample counts once, whatever the number of processes and the batch size.
"""

import copy
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import gather_object, load_fsdp_model, send_to_device
from safetensors.torch import load_file
from torch import nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present
from tqdm.auto import tqdm

from .arguments import LoopArguments
from .checkpoints import AVERAGE, LOADING_ERRORS, WEIGHTS, TrainingState, find_checkpoint, write_json
from .data.loaders import LoaderOptions, evaluation_loader
from .distributed import broadcast_buffers, fix_batch_norms_of_fsdp, uses_fsdp
from .report import EVALUATION, format_values
from .task import Task


logger = get_logger(__name__)


class Loop:
    """Base class of training and evaluation. Subclasses set `model` and `eval_loader`."""

    def __init__(self, task: Task, args: LoopArguments, accelerator: Accelerator):
        self.task, self.args, self.accelerator = task, args, accelerator
        self.output_dir = Path(args.output_dir)
        self.state = TrainingState()
        self.ema = None
        # Gathered weights are loaded into this copy; the wrapped or sharded model stays as it is.
        self.skeleton = copy.deepcopy(task.model) if accelerator.is_main_process else None

    def _loader_options(self) -> LoaderOptions:
        return LoaderOptions(
            num_workers=self.args.dataloader_num_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            process_index=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
        )

    def _make_eval_loader(self):
        batch_size = self.args.per_device_eval_batch_size
        return evaluation_loader(self.task.eval_data, self.task.collate, batch_size, self._loader_options())

    def _start_trackers(self):
        if self.args.report_to:
            settings = {key: value for key, value in asdict(self.args).items() if isinstance(value, (int, float, str))}
            self.accelerator.init_trackers("clustr_hf", config=settings)

    def _receive(self, loaded: dict) -> dict:
        """Move a batch of the task to the device; log and count each skipped sample once."""
        for message in loaded["skipped"]:
            if message not in self.state.skipped:
                logger.warning(f"skipped an unreadable sample: {message}", main_process_only=False)
                self.state.skipped.append(message)
        if len(self.state.skipped) > self.args.max_skipped_samples:
            raise RuntimeError(
                f"{len(self.state.skipped)} samples could not be read, --max_skipped_samples allows "
                f"{self.args.max_skipped_samples}; the last one is {self.state.skipped[-1]}"
            )
        return send_to_device(loaded["batch"], self.accelerator.device, non_blocking=True)

    @torch.no_grad()
    def _score(self) -> dict[str, float]:
        """The metrics of the task on the evaluation data, and the number of samples, `eval_samples`."""
        model = self.model if self.ema is None else self.ema.module
        model.eval()
        # On CPUs each process has its own batch norm statistics; only those of the main process are saved.
        broadcast_buffers(model, self.accelerator)
        records = []
        show_bar = self.accelerator.is_local_main_process
        for loaded in tqdm(self.eval_loader, desc="evaluation", leave=False, disable=not show_bar, mininterval=1):
            self._check_for_stop()
            predicted = self.task.predict(model, self._receive(loaded))
            records += [(i, record) for i, record in zip(loaded["indices"].tolist(), predicted, strict=True) if i >= 0]
        records = sorted(gather_object(records), key=lambda pair: pair[0])
        metrics = self.task.compute_metrics([record for _, record in records])
        if self.task.metric not in metrics:
            raise ValueError(f"`compute_metrics` must return the metric {self.task.metric!r}, got {sorted(metrics)}")
        return {**metrics, "eval_samples": len(records)}

    def _check_for_stop(self):
        """Hook of the training loop, which stops an evaluation here after a signal."""

    def _gather_model(self) -> nn.Module | None:
        """The model to save, on the CPU with whole weights; None except in the main process. All must call it."""
        weights = self.accelerator.get_state_dict(self.model) if self.ema is None else self.ema.module.state_dict()
        if not self.accelerator.is_main_process:
            return None
        self.skeleton.load_state_dict({name: weight.cpu() for name, weight in weights.items()})
        return self.task.to_save(copy.deepcopy(self.skeleton))


class EvaluationLoop(Loop):
    """The evaluation of a model, or of a checkpoint of a run. Every process has its own loop."""

    def __init__(self, task: Task, args: LoopArguments, accelerator: Accelerator):
        checkpoint = self._find_checkpoint(args)
        is_whole = checkpoint is not None and (checkpoint / WEIGHTS).is_file()
        if is_whole:
            load_weights(task.model, checkpoint)
        super().__init__(task, args, accelerator)
        if checkpoint is not None:
            self.state.step = TrainingState.load(checkpoint).step
        self._prepare_model(None if is_whole else checkpoint)
        self.eval_loader = self._make_eval_loader()
        self._start_trackers()

    @staticmethod
    def _find_checkpoint(args: LoopArguments) -> Path | None:
        """The checkpoint to evaluate; None to evaluate the model of the task as it is."""
        if args.resume_from_checkpoint is None:
            return None
        checkpoint = find_checkpoint(Path(args.output_dir), args.resume_from_checkpoint)
        if checkpoint is None:
            raise ValueError(
                f"--resume_from_checkpoint {args.resume_from_checkpoint}: {args.output_dir} has none to evaluate"
            )
        return checkpoint

    def _prepare_model(self, sharded_checkpoint: Path | None):
        model, accelerator = self.task.model, self.accelerator
        if not uses_fsdp(accelerator):
            if sharded_checkpoint is not None:
                raise ValueError(
                    f"--resume_from_checkpoint {sharded_checkpoint} must contain {WEIGHTS}, or shards if FSDP is "
                    f"launched"
                )
            self.model = accelerator.prepare_model(model, evaluation_mode=True)
            return
        unused = torch.optim.SGD(model.parameters(), lr=0.0)  # Accelerate shards models only with an optimizer
        self.model, _ = accelerator.prepare(model, unused)
        fix_batch_norms_of_fsdp(self.model)
        if sharded_checkpoint is not None:
            load_fsdp_model(accelerator.state.fsdp_plugin, accelerator, self.model, str(sharded_checkpoint))

    def run(self) -> dict[str, float]:
        """Evaluate the model; write `eval_results.json`, and the tables and pictures of the task."""
        scores = self._score()
        model = None if self.task.write_evaluation is None else self._gather_model()
        if self.accelerator.is_main_process:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            write_json(self.output_dir / EVALUATION, scores)
            if model is not None:
                self.task.write_evaluation(model.eval(), self.output_dir)
            logger.info(format_values(scores))
        self.accelerator.log(scores, step=self.state.step)
        self.accelerator.end_training()
        return scores


def load_weights(model: nn.Module, checkpoint: Path) -> None:
    """
    Load the weights that a run would save as its model from a checkpoint: the moving average, if there is one.

    Raises:
        ValueError: if the weights cannot be read or belong to another model.
    """
    try:
        if (checkpoint / AVERAGE).is_file():
            weights = torch.load(checkpoint / AVERAGE, map_location="cpu", weights_only=True)
        else:
            weights = load_file(checkpoint / WEIGHTS)
    except LOADING_ERRORS as error:
        raise ValueError(f"--resume_from_checkpoint {checkpoint} cannot be loaded: {error}") from error
    consume_prefix_in_state_dict_if_present(weights, "module.")  # the prefix of DDP and of the moving average
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"--resume_from_checkpoint {checkpoint} is of another model: the arguments must name the model as in its "
            f"training ({error})"
        ) from error
