"""torch.export and ONNX give the clusters and logits of eager mode for any batch size; unsupported exports fail."""

import itertools
import sys

import export_to_onnx
import onnxruntime
import pytest
import torch
from conftest import REPOSITORY
from hub_repositories import MODEL_CLASSES, enlarge_weights

from clustr_hf import (
    ClusTRBackbone,
    ClusTRConfig,
    ClusTRForImageClassification,
    ClusTRForSemanticSegmentation,
)
from clustr_hf.export import compare_clusters, largest_error


BATCH = {"pixel_values": {0: torch.export.Dim("batch", min=1)}}


def nano(**overrides):
    torch.manual_seed(0)
    model = ClusTRForImageClassification(ClusTRConfig.from_variant("nano", num_labels=5, **overrides)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # wider than the initialisation, so that logits are not tiny
            parameter.mul_(3)
    return model


def segmenter():
    return ClusTRForSemanticSegmentation(ClusTRConfig.from_variant("nano", num_labels=5)).eval()


def pictures(height=64, width=64):
    """A constant image, a half-constant one, and stripes, where many tokens tie; then noise."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(12, 3, height, width, generator=generator)
    images[0] = 0.7
    images[1, :, :, width // 2 :] = -0.4
    images[2] = torch.arange(width) // 8 % 2
    return images


class Clusters(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        output = self.model(pixel_values, output_clusters=True)
        return (output.logits, *itertools.chain(*output.cluster_indices))


def assert_same(found, expected):
    """
    Logits are within 1e-4 if all clusters are equal, which is nearly always the case: the runtimes round differently,
    which occasionally swaps tokens with almost equal decision values.
    """
    differing = sum((torch.as_tensor(a) != b).sum(dim=1) for a, b in zip(found[1:], expected[1:], strict=True))
    assert differing.sum() <= 0.01 * sum(b.numel() for b in expected[1:])
    same = differing == 0
    assert same.sum() >= 0.75 * len(same)
    torch.testing.assert_close(torch.as_tensor(found[0])[same], expected[0][same], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"cluster_assignment": "nearest_center"},
        {
            "cluster_window": 20,
            "cluster_sharing": "stage",
            "max_clusters": 30,
            "use_absolute_position_embeddings": True,
        },
    ],
)
@torch.no_grad()
def test_exported_program_has_the_same_clusters_for_any_batch(overrides):
    model, images = Clusters(nano(**overrides)).eval(), pictures(64, 80)
    program = torch.export.export(model, (images[:2],), dynamic_shapes=BATCH)
    assert not any(
        "clustr_hf" in str(node.target) for node in program.graph.nodes
    )  # plain operators only, so that the program loads anywhere
    for some in (images[:1], images):
        assert_same(program.module()(some), model(some))


@pytest.mark.parametrize("assignment", ["density_parent", "nearest_center"])
@torch.no_grad()
def test_onnx_has_the_same_clusters_for_any_batch(assignment, tmp_path):
    model, images = Clusters(nano(cluster_assignment=assignment)).eval(), pictures()
    program = torch.onnx.export(model, (images[:2],), dynamo=True, verbose=False, dynamic_shapes=BATCH)
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for some in (images[:1], images):
        assert_same(session.run(None, {session.get_inputs()[0].name: some.numpy()}), model(some))


# Strict tracing of models that collect hidden states fails in transformers, for any size.
@pytest.mark.parametrize("make_model, strict", [(nano, False), (nano, True), (segmenter, False)])
def test_a_dynamic_image_size_is_refused(make_model, strict):
    sizes = {"pixel_values": {2: torch.export.Dim("height", min=32), 3: torch.export.Dim("width", min=32)}}
    with pytest.raises(Exception, match="height"), torch.no_grad():
        torch.export.export(make_model(), (pictures(),), dynamic_shapes=sizes, strict=strict)


# As small as possible: the exporter takes most of the time.
TINY = {
    **{"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 2], "num_labels": 3},
    **{"mlp_ratios": [2, 2, 2, 2], "strides": [2, 2, 2, 2], "patch_sizes": [3, 3, 3, 3], "deconv_hidden_sizes": [16]},
    **{"reduction_ratios": [[16, 4], [4], [1], [1]], "fpn_hidden_size": 16, "decoder_hidden_size": 16},
    **{"upernet_hidden_size": 16, "auxiliary_hidden_size": 16},
}


def tiny_checkpoint(kind: str, folder):
    """A model saved by `save_pretrained` whose outputs are not tiny."""
    head = {"segmentation_head": kind} if kind in ("semantic_fpn", "upernet") else {}
    model = MODEL_CLASSES[kind](ClusTRConfig(**TINY, **head)).eval()
    enlarge_weights(model.parameters())
    model.save_pretrained(folder)
    return model


def export_command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["export_to_onnx.py", *map(str, arguments)])
    export_to_onnx.main()


@pytest.mark.parametrize("kind", ["classification", "semantic_fpn", "upernet", "poses", "features"])
@torch.no_grad()
def test_the_script_exports_the_class_of_the_checkpoint(kind, tmp_path, monkeypatch):
    model = tiny_checkpoint(kind, tmp_path / "model")
    export_command(monkeypatch, tmp_path / "model", tmp_path / "x.onnx", "--image_size", 50, 40)
    session = onnxruntime.InferenceSession(tmp_path / "x.onnx")
    names = [output.name for output in session.get_outputs()]
    clusters = [name for name in names if name.startswith("clusters.")]
    assert clusters == ["clusters.0.0", "clusters.0.1", "clusters.1.0"]
    outputs = {"poses": ["heatmaps"], "features": ["last_hidden_state", "pooler_output"]}.get(kind, ["logits"])
    assert names == [*outputs, *clusters]
    images = torch.randn(5, 3, 50, 40, generator=torch.Generator().manual_seed(1))
    for number in (1, 3, 5):
        found = dict(zip(names, session.run(None, {"pixel_values": images[:number].numpy()})))
        expected = model(images[:number])
        for name in outputs:
            assert expected[name].std() > 1e-3
            torch.testing.assert_close(torch.from_numpy(found[name]), expected[name], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_script_exports_the_backbone_of_any_checkpoint(tmp_path, monkeypatch):
    tiny_checkpoint("detection", tmp_path / "model")
    options = ["--model_class", "ClusTRBackbone", "--out_features", "stage1", "stage4", "--image_size", 32]
    export_command(monkeypatch, tmp_path / "model", tmp_path / "x.onnx", *options)
    session = onnxruntime.InferenceSession(tmp_path / "x.onnx")
    names = [output.name for output in session.get_outputs()]
    assert names[:2] == ["feature_maps.stage1", "feature_maps.stage4"]
    backbone = ClusTRBackbone.from_pretrained(tmp_path / "model", out_features=["stage1", "stage4"]).eval()
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for number in (1, 3):
        found = session.run(None, {"pixel_values": images[:number].numpy()})
        for array, expected in zip(found, backbone(images[:number]).feature_maps):
            torch.testing.assert_close(torch.from_numpy(array), expected, rtol=1e-4, atol=1e-4)


HEADS = ["ClusTRForImageClassification", "ClusTRForSemanticSegmentation", "ClusTRForPoseEstimation"]


PAIRS = itertools.product(["classification", "poses", "detection", "features"], HEADS)


@pytest.mark.parametrize("kind, head", [pair for pair in PAIRS if MODEL_CLASSES[pair[0]].__name__ != pair[1]])
def test_the_script_makes_up_no_heads(kind, head, tmp_path, monkeypatch):
    model = tiny_checkpoint(kind, tmp_path / "model")
    with pytest.raises(SystemExit, match=rf"all weights of {head}, .* of {type(model).__name__} and lacks \d+ of them"):
        export_command(monkeypatch, tmp_path / "model", tmp_path / "x.onnx", "--model_class", head)
    assert not (tmp_path / "x.onnx").exists()


@pytest.mark.parametrize("name, missing", [("bccd", "batch size a constant"), ("nuclei", "non-maximum suppression")])
def test_the_script_says_why_detectors_have_no_file(name, missing, tmp_path, monkeypatch):
    folder = REPOSITORY / "checkpoints" / f"clustr-nano-{name}"
    with pytest.raises(SystemExit, match=rf"must be one of .*{missing}.* exported as a ClusTRBackbone"):
        export_command(monkeypatch, folder, tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()


def test_attention_without_clusters_is_compared_too():
    outputs = {"logits": torch.tensor([[1.0], [2.0]])}
    same, share = compare_clusters(outputs, outputs)
    assert same.tolist() == [True, True] and share == 1
    assert largest_error(outputs["logits"], outputs["logits"] + 0.5) == pytest.approx(0.2)
