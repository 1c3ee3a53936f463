# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Signals that stop a run: Ctrl-C, and SIGTERM or SIGUSR1 from a scheduler that needs the machine.

[`StopRequests`] notes them, and the processes of a training agree on the step after which all of them stop.
[`run_interruptibly`] ends a script by Ctrl-C without a traceback. The exit status is the shell's for a signal, 128 plus
its number: 130 for SIGINT, 143 for SIGTERM.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

import torch


# As far as the platform has them.
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
    A context in which the first signal is noted and the second one ends the process as if nobody had listened.

    Outside the main thread, where Python allows no handlers, signals do what they did before; so do those that whoever
    started the process has ignored (`nohup`, jobs in the background of a script).

    Args:
        device (`torch.device`): Of the training.
        is_delayed (`bool`, *optional*): As in [`agreed`]; default: on all devices but CPUs.
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

    def __exit__(self, *_):
        for number, handler in self._handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._handlers = {}

    def _receive(self, number: int, _: FrameType | None):
        if self.received:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.received = number
        name = signal.Signals(number).name
        # Not the logger, which may be at work in the code that was interrupted.
        os.write(2, f"\n{name}: stopping after this step; another signal stops at once\n".encode())

    def agreed(self) -> int:
        """
        The signal after which to stop, or 0: the same in all processes, which must call it equally often. One that any
        of them has received is enough.

        On accelerators the answer is that of the call before (`is_delayed`): to wait for this one, which the device
        reaches after all that was asked of it, would leave the device without work.
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
        """The request on the CPU, and the event at which it will be there."""
        answer = request.to("cpu", non_blocking=True)
        if self.device.type == "cpu":
            return answer, None
        arrival = torch.Event(device=self.device)
        arrival.record()
        return answer, arrival


def run_interruptibly(main: Callable[[], object]):
    """Run a script's `main`; Ctrl-C, where nothing else listens, ends it with one line instead of a traceback."""
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted; the checkpoints that were saved before remain", file=sys.stderr)
        raise SystemExit(exit_status(signal.SIGINT)) from None


def leave_stopping_to_main_process(_: int = 0):
    """
    A `worker_init_fn` for `DataLoader`: its workers live through signals that all processes of a job receive, since
    without them the step in progress could not be finished. SIGTERM of the parent, which ends workers so, still counts.
    """
    for number in STOPPING:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # elsewhere nobody knows who has sent it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_for_parent, daemon=True).start()


def _end_for_parent():
    parent = multiprocessing.parent_process().pid
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
