# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Matches the class ids of the splits of a data set and of a checkpoint by class name.

A class id is an index into a list of names. Each split and the checkpoint may have their own list. All ids are
converted to the order of one list before training or evaluation.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedConfig

from ...name_lists import MAX_NAMES, shorten


logger = logging.getLogger(__name__)

FLAG = "--ignore_mismatched_sizes"


def are_placeholders(names: Sequence[str]) -> bool:
    """Whether the names are transformers' defaults, LABEL_0, LABEL_1 ..., which carry no information."""
    return list(names) == [f"LABEL_{index}" for index in range(len(names))]


def differ_only_in_repeated(names: Sequence[str], others: Sequence[str]) -> bool:
    """
    Whether two lists of class names are equal but for names that one list has several times and the other extends, so
    that both have the same order. ImageNet's lists differ in this way: "crane" is a bird and a machine, and some lists
    call the latter "crane2".
    """
    if len(names) != len(others) or list(names) == list(others):
        return False
    counts, other_counts = Counter(names), Counter(others)
    return all(
        name == other
        or (counts[name] > 1 and other.startswith(name))
        or (other_counts[other] > 1 and name.startswith(other))
        for name, other in zip(names, others)
    )


def names_of(config: PreTrainedConfig, source: str) -> list[str]:
    """
    The class names of a configuration, in the order of the model's outputs.

    Args:
        config (`PreTrainedConfig`): Configuration of a model with a head.
        source (`str`): Name of the model in error messages.

    Raises:
        ValueError: if the ids are not 0, 1, 2 ..., or `id2label` and `label2id` contradict each other.
    """
    id2label = {int(index): name for index, name in (getattr(config, "id2label", None) or {}).items()}
    if sorted(id2label) != list(range(len(id2label))):
        raise ValueError(f"`id2label` of {source} must name the classes 0, 1, 2 ..., got {shorten(map(str, id2label))}")
    names = [id2label[index] for index in range(len(id2label))]
    reverse = {int(index): name for name, index in (getattr(config, "label2id", None) or {}).items()}
    if sorted(reverse) != sorted(id2label):
        return names  # incomplete, for example because two classes share a name
    others = [reverse[index] for index in range(len(names))]
    if others == names or are_placeholders(others):
        return names
    if are_placeholders(names):
        return others
    if len(set(names)) == len(names):
        raise ValueError(
            f"`id2label` and `label2id` of {source} contradict each other: {shorten(names)} and {shorten(others)}"
        )
    return names


@dataclass(frozen=True)
class KnownNames:
    """
    The classes that a checkpoint was trained for.

    Args:
        names (`Sequence[str]`): Class names, in the order of the model's outputs.
        source (`str`): Name of the checkpoint in messages.
        only_evaluates (`bool`): Whether the checkpoint is evaluated and not trained.
        replaces_head (`bool`): Whether a head for other classes is replaced: `--ignore_mismatched_sizes`.
    """

    names: Sequence[str]
    source: str
    only_evaluates: bool = False
    replaces_head: bool = False

    def match(self, data: Sequence[str]) -> list[str]:
        """
        The class names of the model for the given data, in the order of the model's outputs: the checkpoint's names if
        the data has the same ones (or, to evaluate, some of them), and the data's names if the head is replaced.

        Raises:
            ValueError: if the names cannot be matched and the head is not replaced.
        """
        known, data = list(self.names), list(data)
        if known == data:
            return known
        if are_placeholders(known):
            return self._match_positions(data)
        if differ_only_in_repeated(known, data):
            logger.warning(
                f"{self.source} has several classes with the same name: they are taken in the order of the data"
            )
            return data
        is_subset = len(set(known)) == len(known) and set(data) <= set(known)
        if is_subset and (self.only_evaluates or len(data) == len(known)):
            logger.warning(
                f"the classes of the data are matched by name with those of {self.source}, whose order is "
                f"{shorten(known)}; the data's is {shorten(data)}"
            )
            return known
        if self.replaces_head and not self.only_evaluates:
            logger.warning(f"the head of {self.source} is replaced by a new one for the classes {shorten(data)}")
            return data
        raise ValueError(self.refusal(data))

    def _match_positions(self, data: list[str]) -> list[str]:
        if len(data) == len(self.names):
            logger.warning(
                f"{self.source} does not name its classes ({self.names[0]} ...): they are taken in the order of the "
                f"data's, {shorten(data)}"
            )
        elif self.only_evaluates or not self.replaces_head:
            raise ValueError(self.refusal(data))
        return data

    def refusal(self, data: Sequence[str]) -> str:
        """Error message for data whose classes differ from those of the checkpoint."""
        known, words = list(self.names), []
        for title, names, others in (("the data", data, known), (self.source, known, data)):
            only = [name for name in names if name not in set(others)]
            words.append(f"; only in {title}: {shorten(only)}" if only and len(names) > MAX_NAMES else "")
        advice = f"{FLAG} trains a new head for the classes of the data"
        if self.only_evaluates:
            advice = f"nothing is trained, so {FLAG}, which makes a new head, does not help"
        return (
            f"{self.source} has {len(known)} classes, {shorten(known)}, and the data has {len(data)}, {shorten(data)}: "
            f"these cannot be matched by name{''.join(words)}. {advice[0].upper()}{advice[1:]}"
        )


def choose_names(splits: Mapping[str, Sequence[str]], known: KnownNames | None = None) -> list[str]:
    """
    The class names that the ids of all splits will refer to.

    Args:
        splits (`Mapping[str, Sequence[str]]`): Class names of `train`, `validation` or both, each in the order of the
            ids of that split.
        known ([`KnownNames`], *optional*): Classes of the checkpoint that is trained further or evaluated.

    Raises:
        ValueError: if the class names of the splits and the checkpoint are incompatible.
    """
    data = list(splits["train"] if "train" in splits else splits["validation"])
    if known is not None and known.only_evaluates and "validation" in splits and not are_placeholders(known.names):
        return known.match(splits["validation"])  # the training split is not used
    names = data if known is None else known.match(data)
    for split, own in splits.items():
        find_places(own, names, split)
    return names


def find_places(own: Sequence[str], names: Sequence[str], split: str) -> list[int]:
    """
    The index of each of a split's own names among all names.

    Raises:
        ValueError: if a name is not among them.
    """
    places = {name: index for index, name in enumerate(names)}
    unknown = [name for name in own if name not in places]
    if unknown:
        raise ValueError(
            f"the {split} data must have the classes of the training data, {shorten(names)}, got {shorten(own)}: "
            f"classes without training images: {shorten(unknown)}"
        )
    return [places[name] for name in own]


def find_place(places: Sequence[int], label: int | None, sample: str) -> int:
    """
    The index of a label among all names.

    Args:
        places (`Sequence[int]`): Index of each of the split's own classes among all names.
        label (`int`, *optional*): Class id in the split's own order.
        sample (`str`): Name of the sample in error messages.

    Raises:
        ValueError: if the split has no such class.
    """
    check_label(label, len(places), sample)
    return places[label]


def check_label(label: int | None, number: int, sample: str) -> None:
    """Raise a `ValueError` unless the label is the index of one of `number` classes."""
    if label is None or not 0 <= label < number:
        raise ValueError(f"the label of {sample} must be in [0, {number}), got {label}")
