"""Baselines: fitted windows, parameter groups of the optimizer, and saving and loading."""

import json

import pytest
import torch
from ablations.costs import make_model
from ablations.rows import EQUAL_TIME
from ablations.tables import ROWS, TABLES
from conftest import REPOSITORY
from transformers import SwinForImageClassification

from clustr_hf import ClusTRImageProcessor
from clustr_hf.training.arguments import LoopArguments, parse_arguments
from clustr_hf.training.baselines import BaselineArguments, load_baseline
from clustr_hf.training.optimizers import make_optimizer
from clustr_hf.training.tasks.image_classification.model import load_classifier


SMALL = {"depths": [1, 2, 1, 1], "hidden_sizes": [8, 16, 32, 64], "num_attention_heads": [1, 1, 2, 2]}
# At 32 pixels and stride 2, the map of the last stage is smaller than a window.
SMALL_SWIN = {"depths": [2, 2, 2, 1], "hidden_sizes": [27, 54, 108, 216], "num_attention_heads": [1, 2, 4, 8]}
BASELINES = ["pvt-v2", "swin", "pvt-v2-128", "swin-128", "small swin"]


def classifier(row):
    """The classifier of a row of the ablations, or a small Swin."""
    if row == "small swin":
        args = BaselineArguments(variant="nano", config_overrides=SMALL_SWIN, baseline="swin", image_size=32)
        return load_classifier(args, ["a", "b"])[0]
    recipe = "ablation_imagenette" if row.endswith("-128") else "ablation_cifar10"
    return make_model(json.loads((REPOSITORY / "examples" / "recipes" / f"{recipe}.json").read_text()), row)


@pytest.mark.parametrize("row, sides", [("swin-128", [32, 16, 8, 4]), ("small swin", [16, 8, 4, 2])])
def test_windows_fit_the_maps_and_are_shifted_where_there_are_several(row, sides):
    model = classifier(row).eval()
    side = model.config.image_size
    stem = model(torch.rand(1, 3, side, side), output_hidden_states=True).reshaped_hidden_states[0]
    assert stem.shape[-1] == sides[0]
    for stage, side in zip(model.swin.encoder.layers, sides, strict=True):
        window = min(4, side)
        assert [block.window_size for block in stage.blocks] == [window] * len(stage.blocks)
        shifts = [0, window // 2] if side > window else [0] * len(stage.blocks)
        assert [block.shift_size for block in stage.blocks] == shifts
        tables = [p for name, p in stage.named_parameters() if "relative_position_bias_table" in name]
        assert all(len(table) == (2 * window - 1) ** 2 for table in tables) and len(tables) == len(stage.blocks)


@pytest.mark.parametrize("row", BASELINES)
def test_what_is_saved_is_what_is_loaded(row, tmp_path):
    """Covers the replaced attention modules of Swin, with their position tables and indices."""
    model = classifier(row).eval()
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    side = 128 if row.endswith("-128") else 32
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        assert torch.equal(model(images).logits, loaded(images).logits)


def test_a_swin_without_small_maps_is_transformers_own():
    """If no map is smaller than a window, only the shift is fitted."""
    model = classifier("swin-128").eval()
    theirs = SwinForImageClassification(model.config).eval()
    theirs.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        torch.testing.assert_close(model(images).logits, theirs(images).logits)


@pytest.mark.parametrize("row", ["swin", "pvt-v2-128", "swin-128", "small swin", "clustr-128"])
def test_muon_moves_most_of_every_backbone_and_norms_and_biases_do_not_decay(row):
    model = classifier(row)
    args = LoopArguments(output_dir="x", optimizer="muon", weight_decay=0.1)
    groups = make_optimizer(model, args).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    matrices, decayed, undecayed = ({names[id(parameter)] for parameter in group["params"]} for group in groups)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.1, 0.0]
    assert matrices | decayed | undecayed == set(names.values())
    vectors = {name for name, parameter in model.named_parameters() if parameter.ndim == 1}
    assert undecayed == vectors | {name for name in names.values() if "relative_position_bias_table" in name}
    numbers = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert sum(numbers[name] for name in matrices) > 0.9 * sum(numbers.values())


@pytest.mark.parametrize("kind", ["classifier", "segmenter"])
@pytest.mark.parametrize("baseline", ["pvt_v2", "swin"])
def test_a_checkpoint_is_read_where_the_arguments_say(baseline, kind, tmp_path, monkeypatch):
    """Checks the arguments of `from_pretrained`, such as the revision; the checkpoint's processor is loaded."""
    processor = ClusTRImageProcessor(size={"shortest_edge": 44}, crop_size={"height": 32, "width": 32})
    new = BaselineArguments(baseline=baseline, config_overrides=SMALL, image_size=32)
    model, same = load_baseline(new, kind, ["a", "b"], processor)
    assert same is processor
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    given = {}
    original = type(model).from_pretrained.__func__

    def spy(cls, *args, **kwargs):
        given.update(kwargs)
        return original(cls, *args, **kwargs)

    monkeypatch.setattr(type(model), "from_pretrained", classmethod(spy))
    saved = BaselineArguments(
        baseline=baseline, model_name_or_path=str(tmp_path), model_revision="4f2a0c9", cache_dir=str(tmp_path / "cache")
    )
    _, loaded = load_baseline(saved, kind, ["a", "b"], ClusTRImageProcessor())
    assert (given["revision"], given["cache_dir"]) == ("4f2a0c9", str(tmp_path / "cache"))
    assert loaded.to_dict() == processor.to_dict()


def test_these_are_the_baselines_of_the_tables():
    rows = {row for table in TABLES.values() for row in table.rows if ROWS[row].baseline and not ROWS[row].is_choice}
    assert rows == {row for row in BASELINES if row in ROWS} | set(EQUAL_TIME)


def test_the_former_name_of_the_option_still_works(tmp_path):
    recipe = tmp_path / "recipe.json"
    recipe.write_text('{"peer": "swin"}')
    for arguments in (["--baseline", "swin"], ["--peer", "swin"], ["--recipe", str(recipe)]):
        args, _ = parse_arguments(BaselineArguments, LoopArguments, arguments=["--output_dir", "out", *arguments])
        assert args.baseline == "swin"
