# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Signals that stop a run: SIGINT (Ctrl-C), and SIGTERM or SIGUSR1 from a scheduler that needs the machine.

[`StopRequests`] records signals and makes all processes of a training stop after the same step. [`run_interruptibly`]
ends a script on Ctrl-C without a traceback. The exit status follows the convention of shells, 128 plus the number of
the signal: 130 for SIGINT, 143 for SIGTERM.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch


# The signals that exist on this platform.
STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


def exit_status(number: int) -> int:
    return 128 + number


class StopRequested(Exception):
    """Raised in all processes, between two steps or in an evaluation, after any of them has received a signal."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


class StopRequests:
    """
    A context that records the first signal; a second signal has its usual effect and ends the process.

    The context does not change signals outside the main thread, where Python does not allow handlers, nor signals that
    the process ignores from its start (`nohup`, background jobs of a script).

    Args:
        device (`torch.device`): Device of the training.
        is_delayed (`bool`, *optional*): Whether [`agreed`] returns the result of its previous call. Default: true on
            accelerators, false on CPUs.
    """

    def __init__(self, device: torch.device, is_delayed: bool | None = None):
        self.received = 0
        self.device = device
        self.is_delayed = device.type != "cpu" if is_delayed is None else is_delayed
        self._earlier: tuple[torch.Tensor, torch.Event | None] | None = None
        self._handlers = {}

    def __enter__(self) -> "StopRequests":
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._handlers[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._handlers = {}

    def _receive(self, number: int, _: FrameType | None):
        if self.received:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.received = number
        name = signal.Signals(number).name
        # Not through the logger, which the signal may have interrupted.
        os.write(2, f"\n{name}: stopping after this step; another signal stops at once\n".encode())

    def agreed(self) -> int:
        """
        The number of the signal that any process has received, or 0. All processes must call this method the same
        number of times; all get the same answer.

        With `is_delayed`, the answer is the result of the previous call. An accelerator would otherwise run out of work
        while the host waits for the answer, which is queued behind all other work.
        """
        if not torch.distributed.is_available() or not torch.distributed.is_initialized():
            return self.received
        request = torch.tensor(self.received, device=self.device)
        torch.distributed.all_reduce(request, op=torch.distributed.ReduceOp.MAX)
        if not self.is_delayed:
            return int(request)
        earlier, self._earlier = self._earlier, self._copy(request)
        if earlier is None:
            return 0
        answer, arrival = earlier
        if arrival is not None:
            arrival.synchronize()
        return int(answer)

    def _copy(self, request: torch.Tensor) -> tuple[torch.Tensor, torch.Event | None]:
        """Copy the request to the CPU; the event, if any, marks the end of the copy."""
        answer = request.to("cpu", non_blocking=True)
        if self.device.type == "cpu":
            return answer, None
        arrival = torch.Event(device=self.device)
        arrival.record()
        return answer, arrival


def run_interruptibly(main: Callable[[], object]) -> None:
    """Run the `main` function of a script; Ctrl-C ends it with a one-line message instead of a traceback."""
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted; checkpoints that are already saved remain", file=sys.stderr)
        raise SystemExit(exit_status(signal.SIGINT)) from None


def leave_stopping_to_main_process(_: int = 0) -> None:
    """
    A `worker_init_fn` for `DataLoader` that makes workers ignore signals sent to all processes of a job, so that the
    step in progress can be finished. SIGTERM from the parent process still ends the workers.
    """
    for number in STOPPING:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # tells who sent a signal; not available on all platforms
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_for_parent, daemon=True).start()


def _end_for_parent():
    parent = multiprocessing.parent_process().pid
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
