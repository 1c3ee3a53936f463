"""A trained model is loaded with all its weights or refused."""

import pytest
import torch
from hub_repositories import MODEL_CLASSES, make_model
from safetensors.torch import load_file, save_file

from clustr_hf import ClusTRBackbone, ClusTRForImageClassification, ClusTRForSemanticSegmentation, ClusTRModel
from clustr_hf.loading import load_trained


@pytest.mark.parametrize("kind", MODEL_CLASSES)
def test_the_saved_class_is_loaded_with_its_weights(kind, tmp_path):
    model, _ = make_model(kind)
    model.save_pretrained(tmp_path)
    loaded = load_trained(tmp_path)
    assert type(loaded) is MODEL_CLASSES[kind] and not loaded.training
    weights = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(loaded.state_dict()[name], weight) for name, weight in weights.items())
    backbone = load_trained(tmp_path, ClusTRModel)
    assert all(
        torch.equal(weight, model.base_model.state_dict()[name]) for name, weight in backbone.state_dict().items()
    )
    assert load_trained(tmp_path, ClusTRBackbone, out_features=["stage2"]).channels == [64]


@pytest.mark.parametrize("kind", [kind for kind in MODEL_CLASSES if kind != "classification"])
def test_heads_of_other_tasks_are_not_made_up(kind, tmp_path):
    make_model(kind)[0].save_pretrained(tmp_path)
    name = MODEL_CLASSES[kind].__name__
    with pytest.raises(ValueError, match=f"all weights of ClusTRForImageClassification, .* of {name} and lacks 2 of"):
        load_trained(tmp_path, ClusTRForImageClassification)


def test_incomplete_checkpoints_are_refused(tmp_path):
    make_model("upernet")[0].save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    lost = next(name for name in weights if name.startswith("head."))
    del weights[lost]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"of ClusTRForSemanticSegmentation and lacks 1 of them: {lost}"):
        load_trained(tmp_path, ClusTRForSemanticSegmentation)
    with pytest.raises(ValueError, match=f"lacks 1 of them: {lost}"):
        load_trained(tmp_path)


def test_other_models_are_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["SwinForImageClassification"], "model_type": "swin"}')
    with pytest.raises(ValueError, match=r"`architectures` must be one of .* got SwinForImageClassification"):
        load_trained(tmp_path)


@pytest.mark.parametrize("content", [b"", b"<html>Not found</html>", 0.5, 0.999])
def test_weights_that_cannot_be_read_are_named(tmp_path, content):
    make_model("classification")[0].save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(content * len(whole))] if isinstance(content, float) else content)
    with pytest.raises(ValueError, match=rf"`name_or_path` {tmp_path} has weights .*, in model\.safetensors: .*again"):
        load_trained(tmp_path)
