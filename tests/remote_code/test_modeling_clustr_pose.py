"""The pose estimator: parameters, loss compared with loops, flip test, sizes, checkpoints, Trainer."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import AutoModelForImageClassification, AutoModelForPoseEstimation, Trainer, TrainingArguments

from clustr_hf import (
    ClusTRConfig,
    ClusTRForImageClassification,
    ClusTRForPoseEstimation,
    ClusTRPoseEstimatorOutput,
    ClusTRPoseImageProcessor,
)
from clustr_hf.keypoints import COCO, COCO_WHOLEBODY
from clustr_hf.remote_code.modeling_clustr_pose import flip_back, joints_mse


def make_model(convention=COCO, **settings):
    """Nano with the paper's strides; new heads predict almost 0, larger weights make predictions differ by location."""
    settings = {"patch_sizes": [7, 3, 3, 3], "strides": [4, 2, 2, 2], **convention.config_fields(), **settings}
    model = ClusTRForPoseEstimation(ClusTRConfig.from_variant("nano", **settings)).eval()
    with torch.no_grad():
        for layer in model.head:
            if isinstance(layer, (nn.ConvTranspose2d, nn.Conv2d)):
                layer.weight.normal_(std=0.1)
    return model


def test_parameters_of_the_paper():
    with torch.device("meta"):
        model = ClusTRForPoseEstimation(ClusTRConfig.from_variant("small", **COCO_WHOLEBODY.config_fields()))
    assert sum(weight.numel() for weight in model.parameters()) == 26_407_962  # 26.41 M
    assert model.heatmap_stride == 4


def test_head_is_simple_baselines():
    """Three deconvolutions, written out: each pixel spreads its kernel over 4 x 4 pixels of a grid twice as fine."""
    model = make_model(deconv_hidden_sizes=[6, 5, 4]).double()
    features = torch.randn(2, 160, 3, 2, dtype=torch.float64)
    expected = features
    for deconvolution, norm in (model.head[0:2], model.head[3:5], model.head[6:8]):
        norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2)
        b, _, h, w = expected.shape
        spread = torch.zeros(b, deconvolution.out_channels, 2 * h + 2, 2 * w + 2, dtype=torch.float64)
        for i in range(h):
            for j in range(w):
                patch = torch.einsum("bc,cdxy->bdxy", expected[:, :, i, j], deconvolution.weight)
                spread[:, :, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4] += patch
        expected = spread[:, :, 1:-1, 1:-1]
        mean, variance = norm.running_mean[:, None, None], norm.running_var[:, None, None]
        expected = ((expected - mean) / (variance + norm.eps).sqrt()).relu()
    weight, bias = model.head[9].weight[:, :, 0, 0], model.head[9].bias
    expected = torch.einsum("bchw,kc->bkhw", expected, weight) + bias[:, None, None]
    assert len(model.head) == 10
    torch.testing.assert_close(model.head(features), expected)


def test_a_fresh_head_gives_nearly_no_heat():
    model = ClusTRForPoseEstimation(ClusTRConfig.from_variant("nano", **COCO.config_fields()))
    for layer in model.head:
        if isinstance(layer, (nn.ConvTranspose2d, nn.Conv2d)):
            assert 0.0005 < layer.weight.std() < 0.0015
    assert model(torch.randn(1, 3, 64, 48)).heatmaps.abs().max() < 0.1


@pytest.mark.parametrize(
    "size, strides, deconvolutions, expected",
    [
        ((256, 192), [4, 2, 2, 2], [8, 8, 8], (64, 48)),
        ((64, 48), [2, 2, 2, 2], [8, 8, 8], (32, 24)),
        ((96, 75), [4, 2, 2, 2], [8, 8, 8], (24, 19)),
        ((96, 64), [4, 2, 2, 2], [8], (6, 4)),
    ],
)
def test_heat_maps_have_their_stride_whatever_the_size(size, strides, deconvolutions, expected):
    model = make_model(strides=strides, deconv_hidden_sizes=deconvolutions)
    output = model(torch.randn(2, 3, *size), output_hidden_states=True, output_clusters=True)
    assert isinstance(output, ClusTRPoseEstimatorOutput) and output.loss is None
    assert output.heatmaps.shape == (2, 17, *expected)
    assert len(output.hidden_states) == 5 and len(output.cluster_indices) > 0


@pytest.mark.parametrize("with_weights", [False, True])
def test_loss_is_joints_mse(with_weights):
    heatmaps, targets = torch.randn(2, 3, 4, 5, 6).unbind(0)
    weights = torch.tensor([[1, 0, 1, 1], [0, 0.5, 1, 0]]) if with_weights else None
    weights = weights if weights is None else weights.repeat(2, 1)[:3]
    total = 0.0
    for joint in range(4):
        squares = []
        for image in range(3):
            weight = 1.0 if weights is None else float(weights[image, joint])
            for row in range(5):
                for column in range(6):
                    place = (image, joint, row, column)
                    squares.append((float(heatmaps[place]) * weight - float(targets[place]) * weight) ** 2)
        total += sum(squares) / len(squares)
    assert joints_mse(heatmaps, targets, weights).item() == pytest.approx(total / 4, rel=1e-5)
    if with_weights:
        spread = weights[..., None, None].expand_as(targets)
        assert joints_mse(heatmaps, targets, spread) == joints_mse(heatmaps, targets, weights)


def test_keypoints_that_are_not_annotated_teach_nothing():
    model = make_model().train()
    labels, weights = torch.rand(2, 17, 16, 16), torch.zeros(2, 17)
    weights[:, 3] = 1
    model(torch.randn(2, 3, 64, 64), labels=labels, label_weights=weights).loss.backward()
    classifier = model.head[-1].weight.grad.flatten(1).abs().sum(dim=1)
    assert classifier[3] > 0 and classifier.sum() == classifier[3]
    assert all(weight.grad is not None for weight in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loss_is_float32_in_half_precision(dtype):
    heatmaps, targets = torch.full((1, 2, 8, 8), 1e-4, dtype=dtype), torch.zeros(1, 2, 8, 8)
    loss = joints_mse(heatmaps, targets)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(1e-8, rel=0.02)  # 0 in float16


def test_flip_back_exchanges_sides_and_mirrors():
    heatmaps = torch.randn(2, 17, 5, 7)
    flipped = flip_back(heatmaps, torch.tensor(COCO.flip_pairs))
    for index, name in enumerate(COCO.names):
        other = name.replace("left", "LEFT").replace("right", "left").replace("LEFT", "right")
        source = COCO.names.index(other)
        for column in range(7):
            assert torch.equal(flipped[:, index, :, column], heatmaps[:, source, :, 6 - column])
    assert torch.equal(flip_back(flipped, COCO.flip_pairs), heatmaps)


def test_the_flip_test_of_a_symmetric_person_is_an_identity():
    """Targets from the processor for keypoints symmetric to the centre of the crop, and the decoded keypoints."""
    processor, box = ClusTRPoseImageProcessor(), [40, 20, 60, 160]
    generator = np.random.default_rng(0)
    keypoints, middle = np.zeros((133, 3)), box[0] + box[2] / 2
    keypoints[:] = np.stack([np.full(133, middle), generator.uniform(20, 180, 133), np.ones(133)], axis=1)
    for first, second in COCO_WHOLEBODY.flip_pairs:
        keypoints[first, 0] = middle + generator.uniform(-30, 30)
        keypoints[second] = (2 * middle - keypoints[first, 0], keypoints[first, 1], 1)
    image = np.zeros((200, 140, 3), dtype=np.uint8)
    inputs = processor(image, boxes=[[box]], keypoints=[keypoints[None]], return_tensors="pt")
    straight = ClusTRPoseEstimatorOutput(heatmaps=inputs["labels"])
    flipped = ClusTRPoseEstimatorOutput(heatmaps=flip_back(inputs["labels"], COCO_WHOLEBODY.flip_pairs))
    torch.testing.assert_close(flipped.heatmaps, straight.heatmaps, atol=1e-5, rtol=0)
    [[once]] = processor.post_process_pose_estimation(straight, [[box]])
    [[twice]] = processor.post_process_pose_estimation(straight, [[box]], flipped)
    torch.testing.assert_close(twice["keypoints"], once["keypoints"], atol=1e-3, rtol=0)


def test_a_model_takes_mirrored_crops_with_flip_pairs():
    model, crops = make_model(), torch.randn(2, 3, 64, 64)
    crops = (crops + crops.flip(-1)) / 2
    with torch.no_grad():
        straight, back = model(crops).heatmaps, model(crops.flip(-1), flip_pairs=model.config.flip_pairs).heatmaps
    assert torch.equal(back, flip_back(straight, COCO.flip_pairs))
    averaged = (straight + back) / 2  # symmetric for a symmetric crop
    torch.testing.assert_close(flip_back(averaged, COCO.flip_pairs), averaged)


def test_a_mirror_without_pairs_and_one_that_is_compiled():
    model, crops = make_model(), torch.randn(2, 3, 64, 64)
    pairs = model.config.flip_pairs
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(model(crops, flip_pairs=[]).heatmaps, model(crops).heatmaps.flip(-1))
        found, expected = (each(crops, flip_pairs=pairs).heatmaps for each in (compiled, model))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_exports_with_any_number_of_persons():
    model = make_model()
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model, (torch.randn(2, 3, 64, 64),), dynamic_shapes={"pixel_values": {0: batch}})
    crops = torch.randn(5, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(crops).heatmaps, model(crops).heatmaps, atol=1e-4, rtol=1e-4)


def test_no_persons_no_heat_maps():
    model, processor = make_model(), ClusTRPoseImageProcessor()
    images = [np.zeros((60, 80, 3), dtype=np.uint8)] * 2
    inputs = processor(images, boxes=[[], np.zeros((0, 4))], return_tensors="pt")
    assert inputs["pixel_values"].shape == (0, 3, 256, 192)
    output = model(**inputs)
    assert output.heatmaps.shape == (0, 17, 64, 48)
    assert processor.post_process_pose_estimation(output, [[], []]) == [[], []]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"labels": torch.zeros(2, 17, 8, 8)}, r"`labels` must have the shape .* \(2, 17, 16, 16\), got \(2, 17, 8, 8"),
        ({"label_weights": torch.zeros(2, 16)}, r"`label_weights` must have shape \(2, 17\) .* got \(2, 16, 1, 1\)"),
        ({"flip_pairs": [[0, 17]]}, r"`flip_pairs` must hold pairs of keypoint indices in \[0, 17\), got \[0, 17\]"),
        ({"flip_pairs": [1, 2]}, r"`flip_pairs` must hold pairs of keypoint indices in \[0, 17\), got 1"),
        ({"flip_pairs": torch.tensor([1, 2])}, r"`flip_pairs` must hold pairs of keypoint indices in \[0, 17\), got 1"),
        ({"flip_pairs": [[0, 1], [1, 2]]}, r"`flip_pairs` must not repeat a keypoint, got \(1, 2\)"),
        ({"pixel_values": torch.zeros(0, 7, 64, 64)}, "`pixel_values` must have 3 channels"),
        ({"pixel_values": torch.zeros(0)}, r"`pixel_values` must be a tensor of shape \(B, 3, H, W\), got \(0,\)"),
        ({"pixel_values": torch.zeros(2, 3, 16, 64)}, "`pixel_values` must be at least 32 pixels high and wide"),
        ({"pixel_values": torch.zeros(2, 1, 64, 64)}, "`pixel_values` must have 3 channels"),
    ],
)
def test_wrong_inputs_are_named(changes, message):
    inputs = {"pixel_values": torch.zeros(2, 3, 64, 64), "labels": torch.zeros(2, 17, 16, 16)}
    with pytest.raises(ValueError, match=message):
        make_model()(**{**inputs, **changes})


def test_wrong_configurations_are_named():
    with pytest.raises(ValueError, match=r"`edges` must hold pairs of keypoint indices in \[0, 3\), got \[2, 3\]"):
        ClusTRForPoseEstimation(ClusTRConfig.from_variant("nano", num_labels=3, edges=[[0, 1], [2, 3]]))
    for pairs in ([[1]], [[1, 1]], [[0, -1]], [["a", "b"]], [3]):
        with pytest.raises(ValueError, match="`flip_pairs` must hold pairs of two different"):
            ClusTRConfig(flip_pairs=pairs)
    with pytest.raises(ValueError, match="`flip_pairs` must not repeat a keypoint"):
        ClusTRConfig(flip_pairs=[[0, 1], [1, 2]])
    with pytest.raises(ValueError, match="`deconv_hidden_sizes` must be positive"):
        ClusTRConfig(deconv_hidden_sizes=[256, 0])


def test_checkpoints_and_what_they_are_made_of(tmp_path):
    model, crops = make_model(), torch.randn(1, 3, 64, 64)
    model.save_pretrained(tmp_path / "pose")
    reloaded = AutoModelForPoseEstimation.from_pretrained(tmp_path / "pose").eval()
    assert torch.equal(reloaded(crops).heatmaps, model(crops).heatmaps)
    assert reloaded.config.flip_pairs == [list(pair) for pair in COCO.flip_pairs]
    assert "keypoint-detection" in json.loads((tmp_path / "pose" / "config.json").read_text())["custom_pipelines"]
    # Its backbone in a classifier, whose folder has no pose code, and back.
    classifier = AutoModelForImageClassification.from_pretrained(tmp_path / "pose", num_labels=4)
    classifier.save_pretrained(tmp_path / "classifier")
    config = json.loads((tmp_path / "classifier" / "config.json").read_text())
    assert "custom_pipelines" not in config and "AutoModelForPoseEstimation" not in config["auto_map"]
    assert not (tmp_path / "classifier" / "pipeline_clustr_pose.py").exists()
    again = ClusTRForPoseEstimation.from_pretrained(tmp_path / "classifier", num_labels=17)
    expected = model.clustr.state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in again.clustr.state_dict().items())


class Crops(Dataset):
    """Noise with targets; keypoints of every other person are annotated."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return {
            "pixel_values": torch.randn(3, 32, 32, generator=generator),
            "labels": torch.rand(17, 16, 16, generator=generator),
            "label_weights": torch.full((17,), float(index % 2)),
        }


def test_trainer_trains_and_evaluates_it(tmp_path):
    model = ClusTRForPoseEstimation(ClusTRConfig.from_variant("nano", **COCO.config_fields()))
    sizes = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 3}
    args = TrainingArguments(tmp_path, max_steps=3, report_to="none", use_cpu=True, **sizes)
    shapes = {}

    def compute_metrics(prediction):
        labels, weights = prediction.label_ids
        shapes.update(heatmaps=prediction.predictions.shape, labels=labels.shape, weights=weights.shape)
        return {}

    trainer = Trainer(model, args, train_dataset=Crops(), eval_dataset=Crops(), compute_metrics=compute_metrics)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before
    assert shapes == {"heatmaps": (8, 17, 16, 16), "labels": (8, 17, 16, 16), "weights": (8, 17)}


def test_a_classifiers_backbone_is_taken(tmp_path):
    config = ClusTRConfig.from_variant("nano", num_labels=10)
    classifier = ClusTRForImageClassification(config)
    classifier.save_pretrained(tmp_path)
    model = ClusTRForPoseEstimation.from_pretrained(tmp_path, **COCO.config_fields())
    expected = classifier.clustr.state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in model.clustr.state_dict().items())
    assert model.config.num_labels == 17 and model.config.id2label[0] == "nose"
    assert 0.0005 < model.head[0].weight.std() < 0.0015
