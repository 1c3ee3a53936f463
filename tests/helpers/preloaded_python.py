"""
A Python process that forks to run commands like `python` does, but without the time for slow imports.

It has not imported libraries that read the environment on import, which a command may change: Hugging Face's, Triton,
this package. It reads one request per line, JSON with `command`, `cwd`, `environment` and the files for `stdout` and
`stderr`, and answers with the exit status in a line.
"""

import importlib
import json
import os
import runpy
import sys
import types


MODULES = (
    *("numpy", "scipy.ndimage", "scipy.optimize", "scipy.stats", "pandas", "pyarrow.dataset", "pyarrow.parquet"),
    *("sklearn.datasets", "sklearn.metrics", "matplotlib.backends.backend_agg", "matplotlib.figure", "PIL.Image"),
    *("torch", "torch.distributed", "torch.utils.data", "torchvision", "torchvision.transforms.v2"),
    *("aiohttp", "dill", "jinja2", "multiprocess", "requests", "yaml"),
)


def run_command(arguments: list[str]):
    """Do what `python ARGUMENTS` does."""
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    if arguments[0] == "-c":
        sys.argv, sys.path[0] = ["-c", *arguments[2:]], ""
        main.__builtins__ = __builtins__
        exec(compile(arguments[1], "<string>", "exec"), main.__dict__)
    elif arguments[0] == "-m":
        sys.argv, sys.path[0] = arguments[1:], os.getcwd()
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = arguments, os.path.dirname(os.path.abspath(arguments[0]))
        runpy.run_path(arguments[0], run_name="__main__")


def become_command(request: dict):
    """Run a command in a fork, with the streams, working directory and environment of a new process."""
    streams = (
        os.open(os.devnull, os.O_RDONLY),
        *(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND) for name in ("stdout", "stderr")),
    )
    for descriptor, file in enumerate(streams):
        os.dup2(file, descriptor)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.modules["numpy"].random.seed()  # Python's own generator is reseeded by the fork
    run_command(request["command"])


def serve():
    for name in MODULES:
        importlib.import_module(name)
    while line := sys.stdin.readline():
        pid = os.fork()
        if pid == 0:
            become_command(json.loads(line))
            return
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve()
