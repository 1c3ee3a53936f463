# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The command lines: of a curve, of the study, and of a report."""

import json
from dataclasses import dataclass, field

from ablations.study_arguments import EXAMPLES, BaseStudyArguments

from cluster_count.settings import KINDS, Setting


SHARES = {
    "classification": (1, 0.5, 0.25, 0.125, 0.0625),
    "segmentation": (1, 0.25, 0.125, 0.0625, 0.03125),
}
# The last one is a control: a single cluster, so that the attention adds the same token everywhere.
TOLERANCES = {
    "classification": (0.008, 0.016, 0.03, 0.06, 0.12, 1),
    "segmentation": (0.0003, 0.001, 0.002, 0.004, 0.015, 1),
}


@dataclass
class CurveArguments:
    """What a curve compares."""

    fixed: list[float] = field(
        default_factory=lambda: [1, 0.5, 0.25, 0.125, 0.0625],
        metadata={"help": "Shares of N / lambda that every image gets; the first one is the reference of the times."},
    )
    content: list[float] = field(
        default_factory=lambda: [0.001, 0.004, 0.016, 0.06],
        metadata={"help": "Values of cluster_tolerance, with which each image gets its own number."},
    )
    rules: dict | str | None = field(
        default=None,
        metadata={"help": f"Values of other rules as a JSON object, of {', '.join(KINDS[2:])}. Default: none."},
    )
    own: bool = field(
        default=False, metadata={"help": "Whether to measure the checkpoint only as its configuration says."}
    )

    def __post_init__(self):
        self.rules = json.loads(self.rules) if isinstance(self.rules, str) else self.rules or {}
        unknown = sorted(set(self.rules) - set(KINDS[2:]))
        if unknown:
            raise ValueError(f"--rules must name any of {list(KINDS[2:])}, got {unknown}")
        for name, values in {"fixed": self.fixed, "content": self.content}.items():
            if not all(0 <= value <= 1 for value in values) or (name == "fixed" and not all(values)):
                raise ValueError(
                    f"--{name} must be numbers in {'(0, 1]' if name == 'fixed' else '[0, 1]'}, got {values}"
                )

    @property
    def settings(self) -> list[Setting]:
        """The settings of the curve."""
        if self.own:
            return [Setting("own", 1)]
        values = {"fixed": self.fixed, "content": self.content, **self.rules}
        return [Setting(kind, value) for kind, each in values.items() for value in each]


@dataclass
class TimeArguments:
    """What is timed."""

    images: str = field(metadata={"help": "Parquet file with photographs in the column `image`."})
    variant: str = field(default="small", metadata={"help": "Size of the model, which has random weights."})
    size: int = field(default=512, metadata={"help": "Height and width of the images in pixels."})
    share: float = field(default=0.25, metadata={"help": "Share of the clusters that images keep on average."})
    num_images: int = field(default=16, metadata={"help": "Number of images that are timed."})
    search_images: int = field(default=2, metadata={"help": "Number of images on which the tolerance is searched."})
    sharing: str = field(default="block", metadata={"help": "`cluster_sharing` of the model."})
    output_dir: str = field(default="out/cluster-count", metadata={"help": "Folder for time.json."})


@dataclass
class StudyArguments(BaseStudyArguments):
    """The data and the seeds of the study."""

    output_dir: str = field(
        default="out/cluster-count", metadata={"help": "Folder for runs, tables and pictures."}, kw_only=True
    )

    recipe = str(EXAMPLES / "recipes/ablation_imagenette.json")
    segmentation_recipe = str(EXAMPLES / "recipes/ablation_camvid.json")

    def __post_init__(self):
        self.check(["train.parquet"])

    def settings(self, task: str) -> list[Setting]:
        """The settings that are compared in a task."""
        shares = [Setting("fixed", share) for share in SHARES[task]]
        return shares + [Setting("content", tolerance) for tolerance in TOLERANCES[task]]
