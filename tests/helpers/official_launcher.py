"""
Runs one of transformers' example scripts with the classes of this package and without a network.

Arguments: a folder with an `id2label.json`, or "-"; the script; its arguments. The class names come from that folder
and the metrics from this package, in place of downloads.
"""

import runpy
import sys
from pathlib import Path

import evaluate
import huggingface_hub

import clustr_hf  # noqa: F401  (registers the classes)
from clustr_hf import metrics


class MeanIoU(metrics.MeanIoU):
    """Accepts `reduce_labels`, which the scripts pass to the metric of `evaluate`; their labels are already reduced."""

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
