"""
Runs one of transformers' example scripts in a process that knows our classes and has no network.

Arguments: a folder with an `id2label.json`, or "-"; the script; its arguments. Instead of what the scripts download,
the names of the classes come from that folder, and metrics are ours, which have the interface of `evaluate`'s.
"""

import runpy
import sys
from pathlib import Path

import evaluate
import huggingface_hub

import clustr_hf  # noqa: F401  (registers the classes)
from clustr_hf import metrics


class MeanIoU(metrics.MeanIoU):
    """With the argument of `evaluate`'s that the scripts give: their labels are reduced already."""

    def _compute(self, predictions, references, reduce_labels: bool = False, **kwargs):
        if reduce_labels:
            raise ValueError("`reduce_labels` must be False")
        return super()._compute(predictions=predictions, references=references, **kwargs)


def main():
    data, script, *arguments = sys.argv[1:]
    huggingface_hub.hf_hub_download = lambda repo_id, filename, **kwargs: str(Path(data) / filename)
    evaluate.load = lambda name, **kwargs: {"accuracy": metrics.Accuracy, "mean_iou": MeanIoU}[name]()
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
