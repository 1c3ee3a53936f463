"""
Sends the files of `hostile_files.py` to a handler and prints the time and memory that each takes. A test runs it in a
separate process, since the peak memory of a process never decreases.

    python tests/helpers/hostile_requests.py    # a line {"name": ..., "seconds": ..., "megabytes": ..., "answer": ...}
"""

import io
import json
import resource
import time

import torch
from hostile_files import FILES
from hub_repositories import PIPELINES, make_model
from PIL import Image
from transformers import pipeline

from clustr_hf.remote_code.handler_clustr import EndpointHandler


def make_handler(kind: str) -> EndpointHandler:
    handler = EndpointHandler.__new__(EndpointHandler)
    model, processor = make_model(kind)
    # Small inputs, since the model is not tested here.
    processor.size, processor.crop_size = {"shortest_edge": 32}, {"height": 32, "width": 32}
    handler.task = PIPELINES[kind]
    handler.pipeline = pipeline(handler.task, model=model, image_processor=processor)
    return handler


def measure(name: str, answer, *arguments):
    """Print a line with the CPU seconds, the increase of the peak memory in megabytes, and any error message."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        answer(*arguments)
        message = ""
    except Exception as error:
        message = f"{type(error).__name__}: {error}"[:300]
    seconds = time.process_time() - start
    megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    line = {"name": name, "seconds": round(seconds, 2), "megabytes": round(megabytes), "answer": message}
    print(json.dumps(line), flush=True)


def main():
    torch.set_num_threads(1)
    handler = make_handler("classification")
    buffer = io.BytesIO()
    Image.new("RGB", (90, 90)).save(buffer, "PNG")
    handler({"inputs": buffer.getvalue()})
    for name, make in FILES.items():
        content = make()
        measure(f"{name}: one", handler, {"inputs": content})
        measure(f"{name}: sixteen", handler, {"inputs": [content] * 16})
        if name.startswith(("tiff", "gif")) or "19 MB" in name:
            measure(f"{name}: processor", handler.pipeline.image_processor.read_image, content)


if __name__ == "__main__":
    main()
