"""Detectors: comparison with torchvision's own, labels and padding, initialisation, checkpoints, Trainer."""

import copy
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from conftest import shapes_on_ground
from torch import nn
from torch.utils.data import Dataset
from torchvision.models.detection import MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork, box_convert, masks_to_boxes
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7
from transformers import (
    AutoModelForInstanceSegmentation,
    AutoModelForObjectDetection,
    Trainer,
    TrainingArguments,
)

from clustr_hf import (
    ClusTRBackbone,
    ClusTRConfig,
    ClusTRDetectionImageProcessor,
    ClusTRDetectionOutput,
    ClusTRForImageClassification,
    ClusTRForInstanceSegmentation,
    ClusTRForObjectDetection,
)
from clustr_hf.metrics import coco_average_precision
from clustr_hf.remote_code import modeling_clustr_dense
from clustr_hf.remote_code.image_processing_clustr_detection import encode_mask


DETECTORS = (ClusTRForObjectDetection, ClusTRForInstanceSegmentation)
SIZES = [(75, 100), (64, 128)]


def make_config(num_labels=5, **settings):
    """Nano with strides of 4, 8, 16, 32 like the paper's variants."""
    settings = {"patch_sizes": [7, 3, 3, 3], "strides": [4, 2, 2, 2], **settings}
    return ClusTRConfig.from_variant("nano", num_labels=num_labels, **settings)


def make_model(model_class, **settings):
    """New heads predict the same everywhere; larger weights make predictions differ by location and class."""
    model = model_class(make_config(**settings)).eval()
    with torch.no_grad():
        for name, weight in model.detector.named_parameters():
            if weight.ndim > 1 and "backbone" not in name:
                weight.normal_(std=(2 / weight[0].numel()) ** 0.5)
            if "cls_logits.bias" in name:
                weight.fill_(-2.0)
    return model


def make_labels(sizes=SIZES, padded_size=(75, 128), num_labels=5):
    """Three objects per image: a small one, a large one and one at the border; masks are ellipses in the boxes."""
    boxes = torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.5, 0.5, 0.8, 0.9], [0.9, 0.2, 0.2, 0.3]])
    labels = []
    for index, size in enumerate(sizes):
        rows, columns = (torch.arange(extent)[:, None, None] + 0.5 for extent in padded_size)
        rows, columns = rows[None, :, 0] / size[0], columns[None, :, 0].transpose(1, 2) / size[1]
        center, extent = boxes[:, :2, None, None], boxes[:, 2:, None, None]
        distance = ((columns - center[:, 0]) / extent[:, 0]) ** 2 + ((rows - center[:, 1]) / extent[:, 1]) ** 2
        classes = (torch.arange(3) + index) % num_labels
        labels.append({"class_labels": classes, "boxes": boxes.clone(), "masks": distance < 0.25})
    return labels


def make_batch(sizes=SIZES, **settings):
    padded_size = tuple(max(extents) for extents in zip(*sizes))
    pixel_values, pixel_mask = torch.zeros(len(sizes), 3, *padded_size), torch.zeros(len(sizes), *padded_size).long()
    for image, mask, (height, width) in zip(pixel_values, pixel_mask, sizes):
        image[:, :height, :width] = torch.randn(3, height, width)
        mask[:height, :width] = 1
    labels = make_labels(sizes, padded_size, **settings)
    return {"pixel_values": pixel_values, "pixel_mask": pixel_mask, "labels": labels}


@pytest.mark.parametrize("model_class, millions", zip(DETECTORS, (32.41, 42.33)))
def test_parameters_are_the_papers(model_class, millions):
    with torch.device("meta"):
        model = model_class(ClusTRConfig.from_variant("small", num_labels=80))
    assert model.num_parameters() / 1e6 == pytest.approx(millions, abs=0.005)


class Pyramid(nn.Module):
    """Our backbone with torchvision's pyramid in the form of a backbone for torchvision's detectors."""

    def __init__(self, stages, extra_blocks):
        super().__init__()
        config = make_config(out_features=[f"stage{stage}" for stage in stages])
        self.body = ClusTRBackbone(config)
        self.out_channels = config.fpn_hidden_size
        channels = [config.hidden_sizes[stage - 1] for stage in stages]
        self.fpn = FeaturePyramidNetwork(channels, self.out_channels, extra_blocks)

    def forward(self, images):
        return self.fpn(OrderedDict((str(i), maps) for i, maps in enumerate(self.body(images).feature_maps)))


def torchvision_twin(model, sizes=((32,), (64,), (128,), (256,), (512,))):
    """torchvision's own model, built by its constructor, with our weights and without preprocessing."""
    as_they_are = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3, "max_size": 10**6, "_skip_resize": True}
    ratios = ((0.5, 1.0, 2.0),) * len(sizes)
    if isinstance(model, ClusTRForObjectDetection):
        sizes = tuple((s, int(s * 2 ** (1 / 3)), int(s * 2 ** (2 / 3))) for (s,) in sizes)
        pyramid = Pyramid((2, 3, 4), LastLevelP6P7(160, 64))
        anchors = AnchorGenerator(sizes, ratios)
        twin = RetinaNet(pyramid, 5, anchor_generator=anchors, detections_per_img=100, **as_they_are)
    else:
        pyramid = Pyramid((1, 2, 3, 4), LastLevelMaxPool())
        heads = {
            "box_head": TwoMLPHead(64 * 7**2, 128),
            "box_predictor": FastRCNNPredictor(128, 6),
            "mask_head": MaskRCNNHeads(64, (64, 64, 64, 64), 1),
            "mask_predictor": MaskRCNNPredictor(64, 64, 6),
        }
        twin = MaskRCNN(pyramid, rpn_anchor_generator=AnchorGenerator(sizes, ratios), **heads, **as_they_are)
    prefixes = {"clustr.": "backbone.body.", "detector.backbone.": "backbone.fpn.", "detector.": ""}
    weights = {}
    for name, weight in model.state_dict().items():
        prefix = next(prefix for prefix in prefixes if name.startswith(prefix))
        weights[prefixes[prefix] + name.removeprefix(prefix)] = weight
    twin.load_state_dict(weights)
    return twin.double()


def torchvision_targets(labels, sizes, first_class):
    targets = []
    for label, (height, width) in zip(labels, sizes):
        x, y, w, h = (label["boxes"].double() * torch.tensor([width, height, width, height])).unbind(1)
        boxes = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=1)
        masks = label["masks"][:, :height, :width].to(torch.uint8)
        targets.append({"boxes": boxes, "labels": label["class_labels"] + first_class, "masks": masks})
    return targets


@pytest.mark.parametrize("model_class", DETECTORS)
def test_losses_are_torchvisions(model_class):
    """A padded batch of two sizes that are not multiples of 32; samplers use the same random numbers."""
    model = make_model(model_class).double().train()
    twin = torchvision_twin(model).train()
    batch = make_batch()
    pixel_values = batch["pixel_values"].double()
    images = [image[:, :height, :width] for image, (height, width) in zip(pixel_values, SIZES)]
    labels = [{**label, "boxes": label["boxes"].double()} for label in batch["labels"]]
    torch.manual_seed(1)
    expected = twin(images, torchvision_targets(labels, SIZES, int(model_class is ClusTRForInstanceSegmentation)))
    torch.manual_seed(1)
    output = model(pixel_values, batch["pixel_mask"], labels)
    assert output.loss_dict.keys() == expected.keys() and len(expected) >= 2
    for name, loss in expected.items():
        assert loss > 0
        torch.testing.assert_close(output.loss_dict[name], loss, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(output.loss, sum(expected.values()), rtol=1e-9, atol=1e-12)
    # In evaluation, where torchvision's models return no losses, the losses of single images are averaged.
    targets = torchvision_targets(labels, SIZES, int(model_class is ClusTRForInstanceSegmentation))
    alone = []
    for image, target in zip(images, targets):
        torch.manual_seed(0)
        alone.append(twin([image], [target]))
    output = model.eval()(pixel_values, batch["pixel_mask"], labels)
    for name in expected:
        mean = (alone[0][name] + alone[1][name]) / 2
        torch.testing.assert_close(output.loss_dict[name], mean, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("model_class", DETECTORS)
def test_detections_are_torchvisions(model_class):
    """Each image of a padded batch has the detections that torchvision's model returns for it alone."""
    model = make_model(model_class).double()
    twin = torchvision_twin(model).eval()
    twin.transform.postprocess = lambda detections, *_: detections  # masks stay on their grids
    batch = make_batch()
    pixel_values = batch["pixel_values"].double()
    processor = ClusTRDetectionImageProcessor()
    with torch.no_grad():
        output = model(pixel_values, batch["pixel_mask"])
        found = processor.post_process_object_detection(output, threshold=0.05, target_sizes=SIZES)
        for index, (height, width) in enumerate(SIZES):
            twin.transform.min_size = (min(height, width),)
            [expected] = twin([pixel_values[index, :, :height, :width]])
            assert len(expected["scores"]) > 20 and len(set(expected["labels"].tolist())) > 1
            first_class = int(model_class is ClusTRForInstanceSegmentation)
            torch.testing.assert_close(found[index]["scores"], expected["scores"], rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(found[index]["boxes"], expected["boxes"], rtol=1e-9, atol=1e-7)
            assert torch.equal(found[index]["labels"] + first_class, expected["labels"])
            if "masks" in expected:
                number = len(expected["masks"])
                grids = output.pred_masks[index, :number]
                torch.testing.assert_close(grids, expected["masks"][:, 0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("model_class", DETECTORS)
def test_new_heads_are_initialised_as_torchvisions(model_class, tmp_path):
    """Also on the meta device of `from_pretrained`: the focal loss starts at its prior."""
    settings = {"num_labels": 5, "box_head_hidden_size": 1024, "mask_head_hidden_size": 256}  # torchvision's
    ClusTRForImageClassification(make_config(num_labels=1000)).save_pretrained(tmp_path)
    fresh = model_class(make_config(**settings))
    loaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True, **settings)
    assert all(name.startswith("detector.") for name in info["missing_keys"]) and len(info["missing_keys"]) > 20
    if model_class is ClusTRForObjectDetection:
        theirs = RetinaNet(Pyramid((2, 3, 4), LastLevelP6P7(160, 64)), 5)
    else:
        theirs = MaskRCNN(Pyramid((1, 2, 3, 4), LastLevelMaxPool()), 6)
    reference = {name.replace("backbone.fpn.", "backbone."): w.detach() for name, w in theirs.named_parameters()}
    for model in (fresh, loaded):
        for name, weight in model.detector.named_parameters():
            weight, expected = weight.detach(), reference[name]
            assert weight.shape == expected.shape
            if len(expected.unique()) == 1:
                assert torch.equal(weight, expected), name
            elif weight.numel() > 300:
                assert weight.std() == pytest.approx(expected.std().item(), rel=0.15), name
                assert weight.abs().max() == pytest.approx(expected.abs().max().item(), rel=0.5), name
    if model_class is ClusTRForObjectDetection:
        scores = loaded.eval()(torch.randn(1, 3, 64, 64)).logits.sigmoid()
        assert scores.mean().item() == pytest.approx(0.01, abs=0.003)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_anchors_are_exact_in_any_precision(dtype):
    """At 1312 pixels, bfloat16 represents only every eighth integer."""
    model = make_model(ClusTRForInstanceSegmentation)
    generator, images = model.detector.rpn.anchor_generator, ImageList(torch.zeros(1, 3, 32, 1312), [(32, 1312)])
    maps = [torch.zeros(1, 1, max(1, 8 >> level), 328 >> level) for level in range(5)]
    [expected] = AnchorGenerator(((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5)(images, maps)
    [found] = generator(images, [level.to(dtype) for level in maps])
    assert found.dtype == torch.promote_types(dtype, torch.float32) and torch.equal(found.float(), expected)
    assert torch.equal(generator(images, maps)[0], expected)


def test_proposals_are_pooled_by_the_strides_of_the_model():
    """If maps increase with x, the pooled values give the position of a box, for any image and strides."""
    config = make_config(strides=[3, 2, 2, 2])
    pool = ClusTRForInstanceSegmentation(config).detector.roi_heads.box_roi_pool
    boxes = torch.tensor([[30.0, 0.0, 60.0, 24.0], [0.0, 0.0, 96.0, 24.0]])
    maps = {}
    for level, stride in enumerate((3, 6, 12, 24)):
        x = torch.arange(240 // stride) * stride
        maps[str(level)] = x.expand(1, 1, 24 // stride, -1).float()
    pooled = pool(maps, [boxes], [(17, 33)]).mean(dim=(1, 2, 3))
    torch.testing.assert_close(pooled, torch.tensor([45.0, 48.0]), atol=0.5, rtol=0)


@pytest.mark.parametrize("model_class", DETECTORS)
def test_every_weight_learns(model_class):
    model = make_model(model_class).train()
    model(**make_batch()).loss.backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()] == []


@pytest.mark.parametrize("model_class", DETECTORS)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_images_without_objects_teach_the_background(model_class, mode):
    model, batch = getattr(make_model(model_class), mode)(), make_batch()
    nothing = {"class_labels": torch.zeros(0).long(), "boxes": torch.zeros(0, 4), "masks": torch.zeros(0, 75, 128) > 0}
    for labels in ([nothing, batch["labels"][1]], [nothing, nothing]):
        loss = model(batch["pixel_values"], batch["pixel_mask"], labels).loss
        assert loss.isfinite() and loss > 0
        loss.backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())  # DDP requires all gradients


@pytest.mark.parametrize("model_class", DETECTORS)
def test_crowds_and_boxes_without_area_do_not_count(model_class):
    model, batch = make_model(model_class).train(), make_batch()
    torch.manual_seed(2)
    expected = model(**batch).loss
    for label in batch["labels"]:
        label["class_labels"] = torch.cat([torch.tensor([1, 2, 3]), label["class_labels"]])
        flat = torch.tensor([[0.5, 0.5, 0.0, 0.3], [0.5, 0.5, 0.2, 0.0], [0.4, 0.4, 0.3, 0.3]])
        label["boxes"] = torch.cat([flat, label["boxes"]])
        label["masks"] = torch.cat([torch.ones(3, 75, 128) > 0, label["masks"]])
        label["iscrowd"] = torch.tensor([0, 0, 1, 0, 0, 0])
    torch.manual_seed(2)
    torch.testing.assert_close(model(**batch).loss, expected)


@pytest.mark.parametrize("model_class", DETECTORS)
def test_an_image_has_the_same_output_in_a_padded_batch_as_alone(model_class):
    model, batch = make_model(model_class), make_batch()
    with torch.no_grad():
        output = model(**batch)
        for index, (height, width) in enumerate(SIZES):
            alone = model(batch["pixel_values"][index : index + 1, :, :height, :width])
            number = alone.logits.shape[1]
            for name in ("logits", "pred_boxes", "pred_masks"):
                if name in alone:
                    torch.testing.assert_close(output[name][index, :number], alone[name][0], rtol=1e-4, atol=1e-5)
            assert (output.logits[index, number:].sigmoid() == 0).all()
            if "level_sizes" in alone:
                assert torch.equal(output.level_sizes[index], alone.level_sizes[0])
                assert alone.level_sizes.sum() == number
    assert output.loss.isfinite()


def test_the_loss_in_evaluation_is_always_the_same_and_draws_no_random_numbers():
    """More proposals than are sampled; training samples different ones each time."""
    model, batch = make_model(ClusTRForInstanceSegmentation, roi_batch_size=16), make_batch()
    with torch.no_grad():
        state = torch.get_rng_state()
        first = model(**batch).loss
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(5)
        assert torch.equal(model(**batch).loss, first)
        model.train()
        assert not torch.equal(model(**batch).loss, model(**batch).loss)


@pytest.mark.parametrize("model_class", DETECTORS)
def test_padding_that_all_images_have_changes_nothing(model_class):
    model, batch = make_model(model_class), make_batch([(64, 96), (64, 96)])
    padded = nn.functional.pad(batch["pixel_values"], (0, 50, 0, 30))
    mask = nn.functional.pad(batch["pixel_mask"], (0, 50, 0, 30))
    with torch.no_grad():
        torch.testing.assert_close(model(padded, mask).pred_boxes, model(batch["pixel_values"]).pred_boxes)


def with_sizes(labels, sizes, convert=torch.tensor):
    return [{**label, "size": convert(size)} for label, size in zip(labels, sizes)]


@pytest.mark.parametrize(
    "model_class, mode, convert",
    [
        *((model_class, mode, torch.tensor) for model_class in DETECTORS for mode in ("train", "eval")),
        *((ClusTRForObjectDetection, "train", convert) for convert in (np.array, tuple, list)),
    ],
)
def test_sizes_of_labels_stand_in_for_the_mask(model_class, mode, convert):
    """The official scripts of transformers pass no mask, in training and in evaluation; padding on both sides."""
    model, batch = getattr(make_model(model_class, detections_per_image=10), mode)(), make_batch()
    batch["labels"] = [{**label, "masks": nn.functional.pad(label["masks"], (0, 9, 0, 5))} for label in batch["labels"]]
    for name in ("pixel_values", "pixel_mask"):
        batch[name] = nn.functional.pad(batch[name], (0, 9, 0, 5))
    labels = with_sizes(batch["labels"], SIZES, convert)
    outputs = []
    with torch.no_grad():
        for arguments in (batch, {**batch, "labels": labels}, {**batch, "labels": labels, "pixel_mask": None}):
            torch.manual_seed(4)
            outputs.append(model(**arguments))
        torch.manual_seed(4)
        unknown = model(batch["pixel_values"], labels=batch["labels"])  # assumed to fill `pixel_values`
    for output in outputs[1:]:
        assert output.keys() == outputs[0].keys()
        assert torch.equal(output.loss, outputs[0].loss)
        for name in ("logits", "pred_boxes", "pred_masks", "mask_boxes"):
            assert name not in output or torch.equal(output[name], outputs[0][name])
    assert not torch.equal(unknown.loss, outputs[0].loss)


@pytest.mark.parametrize(
    "size", [(80, 100), (75, 129), (0, 100), (-1, 5), (75.5, 100), (75,), (75, 100, 3), 75, "75", (None, 100)], ids=str
)
def test_sizes_of_labels_that_do_not_fit_are_named(size):
    model, batch = make_model(ClusTRForObjectDetection), make_batch()
    labels = with_sizes(batch["labels"], [SIZES[0], size], lambda value: value)
    with pytest.raises(ValueError, match=r"`labels\[1\]\['size'\]` must be the \(height, width\) of the image without"):
        model(batch["pixel_values"], labels=labels)


def test_sizes_of_labels_and_mask_agree():
    """Labels of transformers' own processors have the padded size and boxes relative to it."""
    model, batch = make_model(ClusTRForObjectDetection), make_batch()
    labels = with_sizes(batch["labels"], [SIZES[0], (64, 127)])
    with pytest.raises(
        ValueError, match=r"`labels\[1\]\['size'\]` must equal .* in `pixel_mask`, \(64, 128\), got \(64, 127\)"
    ):
        model(batch["pixel_values"], batch["pixel_mask"], labels)


@pytest.mark.parametrize("model_class", DETECTORS)
def test_padding_without_a_mask_is_told(model_class, monkeypatch):
    """Boxes are then relative to the padded image, which should not go unnoticed."""
    told = []
    monkeypatch.setattr(modeling_clustr_dense.logger, "warning_once", told.append)
    model, batch = make_model(model_class, detections_per_image=10), make_batch()
    with torch.no_grad():
        model(batch["pixel_values"], batch["pixel_mask"])
        model(batch["pixel_values"][:1, :, :75, :100])
        model(torch.zeros(1, 3, 64, 64))  # a dummy
        assert told == []
        model(batch["pixel_values"])
    assert len(told) == 1 and "`pixel_mask`" in told[0]


@pytest.mark.parametrize("model_class", DETECTORS)
def test_forward_passes_set_nothing_on_modules(model_class, monkeypatch):
    """Other threads may use the model: modes, anchors and limits do not change, not even temporarily."""
    model, batch = make_model(model_class, detections_per_image=7), make_batch()
    model.config.detections_per_image = 9
    model(batch["pixel_values"], batch["pixel_mask"])  # transformers prepares its recording hooks once
    modules, changed, set_attribute = set(map(id, model.modules())), [], nn.Module.__setattr__

    def record(module, name, value):
        if id(module) in modules:
            changed.append((type(module).__name__, name))
        set_attribute(module, name, value)

    monkeypatch.setattr(nn.Module, "__setattr__", record)
    for mode in (model.eval, model.train):
        mode()
        changed.clear()
        model(**batch).loss.backward()
        with torch.no_grad():
            model(batch["pixel_values"], batch["pixel_mask"])
        assert changed == []


def test_threads_predict_and_draw_while_others_evaluate():
    """Losses in another thread change neither predictions nor the random numbers of the process."""
    model = make_model(ClusTRForInstanceSegmentation, roi_batch_size=16, detections_per_image=10)
    batch = make_batch([(48, 64), (64, 64)])
    stop, failed = threading.Event(), []

    def evaluate():
        try:
            with torch.no_grad():
                losses = {model(**batch).loss.item() for _ in iter(lambda: stop.is_set(), True)}
            assert len(losses) <= 1
        except BaseException as error:
            failed.append(error)

    with torch.no_grad():
        expected = model(batch["pixel_values"], batch["pixel_mask"])
    numbers = torch.rand(200, generator=torch.Generator().manual_seed(7))
    threads = [threading.Thread(target=evaluate) for _ in range(2)]
    for thread in threads:
        thread.start()
    torch.manual_seed(7)
    drawn = []
    try:
        with torch.no_grad():
            for _ in range(5):
                drawn += [torch.rand(()) for _ in range(40)]
                output = model(batch["pixel_values"], batch["pixel_mask"])
                assert torch.equal(output.logits, expected.logits)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failed == [] and torch.equal(torch.stack(drawn), numbers)


def test_limits_of_the_configuration_act_when_they_are_changed():
    """The same as a model that is built with these limits."""
    model, batch = make_model(ClusTRForInstanceSegmentation, detections_per_image=30), make_batch([(64, 64)])
    processor = ClusTRDetectionImageProcessor()

    def detect(model):
        with torch.no_grad():
            output = model(batch["pixel_values"])
        return output, processor.post_process_object_detection(output, threshold=0.0)[0]["scores"]

    _, scores = detect(model)
    assert len(scores) == 30
    for name, value in (
        *(("detections_per_image", 7), ("detections_per_image", 120), ("detection_score_threshold", 0.9)),
        *(("detection_nms_threshold", 0.1), ("detection_nms_threshold", 0.9)),
    ):
        changed = copy.deepcopy(model)
        setattr(changed.config, name, value)
        made = ClusTRForInstanceSegmentation(changed.config).eval()
        made.load_state_dict(model.state_dict())
        output, found = detect(changed)
        expected, _ = detect(made)
        assert torch.equal(output.logits, expected.logits) and torch.equal(output.pred_masks, expected.pred_masks)
        assert not torch.equal(found, scores)
        if name == "detections_per_image":
            assert len(found) == value
        assert changed.detector.roi_heads.detections_per_img == 30  # the module itself is not changed
    changed = copy.deepcopy(model)
    changed.config.roi_batch_size = 16
    made = ClusTRForInstanceSegmentation(changed.config).eval()
    made.load_state_dict(model.state_dict())
    assert torch.equal(changed(**batch).loss, made(**batch).loss)
    assert not torch.equal(changed(**batch).loss, model(**batch).loss)


def tensors_of(value):
    """All tensors and numbers in nested outputs."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [part for element in value for part in tensors_of(element)]
    return [value]


@pytest.mark.parametrize("model_class", DETECTORS)
def test_another_default_device_changes_nothing(model_class):
    """Processor, model and post-processing create tensors on explicit devices."""
    model = make_model(model_class, detections_per_image=10)

    def run():
        processor = ClusTRDetectionImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
        batch, _ = shapes_batch(2, processor, size=(80, 120))
        with torch.no_grad():
            output = model.eval()(**batch)
            predicted = model(batch["pixel_values"], batch["pixel_mask"])
        sizes = [(80, 120)] * 2
        results = [batch, output, predicted, processor.post_process_object_detection(output, 0.0, sizes)]
        if "pred_masks" in output:
            for settings in ({}, {"return_binary_maps": True}, {"return_coco_annotation": True}):
                results.append(
                    processor.post_process_instance_segmentation(output, 0.1, target_sizes=sizes, **settings)
                )
        torch.default_generator.manual_seed(1)
        results.append(model.train()(**batch).loss.detach())
        return results

    with torch.device("cpu"):
        expected = tensors_of(run())
    images = shapes_on_ground(2, size=(80, 120))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "shapes_on_ground", lambda *args, **kwargs: images)
        torch.set_default_device("meta")
        try:
            found = tensors_of(run())
        finally:
            torch.set_default_device(None)
    assert len(found) == len(expected) > 20
    for value, other in zip(found, expected):
        assert torch.equal(value, other) if isinstance(other, torch.Tensor) else value == other


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda labels: labels[:1], "`labels` must be a list with one entry for each of 2 images"),
        (lambda labels: labels[0], "`labels` must be a list with one entry for each of 2 images"),
        (lambda labels: labels[0]["boxes"], "`labels` must be a list with one entry for each of 2 images"),
        (lambda labels: [None, None], "`labels` must be a list with one entry for each of 2 images"),
        (
            lambda labels: [{"boxes": labels[0]["boxes"]}] * 2,
            r"`labels\[0\]` must have a tensor 'class_labels', got \['boxes'\]",
        ),
        (
            lambda labels: [labels[0], {**labels[1], "boxes": torch.rand(2, 4)}],
            r"`labels\[1\]\['boxes'\]` must be floats of shape \(3, 4\).* of shape \(2, 4\)",
        ),
        (
            lambda labels: [{**labels[0], "boxes": labels[0]["boxes"].long()}, labels[1]],
            r"must be floats .* got torch.int64",
        ),
        (
            lambda labels: [{**labels[0], "class_labels": torch.tensor([0, 5, 1])}, labels[1]],
            r"`labels\[0\]\['class_labels'\]` must be integers in \[0, 5\)",
        ),
        (
            lambda labels: [{**labels[0], "class_labels": torch.tensor([0.0, 1.0, 1.0])}, labels[1]],
            r"must be integers in \[0, 5\)",
        ),
        (
            lambda labels: [labels[0], {**labels[1], "boxes": labels[1]["boxes"] * 64}],
            r"`labels\[1\]\['boxes'\]` must be relative to the image size, not in pixels",
        ),
        (
            lambda labels: [{**labels[0], "boxes": labels[0]["boxes"] / 0}, labels[1]],
            r"`labels\[0\]\['boxes'\]` must be relative to the image size",
        ),
        (
            lambda labels: [{**labels[0], "iscrowd": torch.zeros(2)}, labels[1]],
            r"`labels\[0\]\['iscrowd'\]` must have shape \(3,\), got \(2,\)",
        ),
    ],
)
def test_labels_that_do_not_fit_are_named(change, message):
    model, batch = make_model(ClusTRForObjectDetection), make_batch()
    with pytest.raises(ValueError, match=message):
        model(batch["pixel_values"], batch["pixel_mask"], change(batch["labels"]))


def test_masks_and_settings_that_do_not_fit_are_named():
    model, batch = make_model(ClusTRForInstanceSegmentation), make_batch()
    without = [{name: value for name, value in label.items() if name != "masks"} for label in batch["labels"]]
    with pytest.raises(ValueError, match=r"`labels\[0\]` must have 'masks': call the image processor with"):
        model(batch["pixel_values"], batch["pixel_mask"], without)
    for masks in (torch.ones(2, 75, 128), torch.ones(75, 128), torch.ones(3, 64, 128), 7 * torch.ones(3, 75, 128)):
        labels = [{**label, "masks": masks} for label in without]
        with pytest.raises(
            ValueError, match=r"`labels\[0\]\['masks'\]` must be bool, or 0 and 1, of shape \(3, 75, 128\)"
        ):
            model(batch["pixel_values"], batch["pixel_mask"], labels)
    with pytest.raises(ValueError, match="`output_hidden_states` must be False with padded images"):
        model(batch["pixel_values"], batch["pixel_mask"], output_hidden_states=True)
    with pytest.raises(ValueError, match="`anchor_sizes` must have one entry for each of 5 levels, got"):
        ClusTRForObjectDetection(make_config(anchor_sizes=[32, 64]))


@pytest.mark.parametrize("model_class", DETECTORS)
def test_outputs_come_in_the_order_of_detr(model_class):
    model, batch = make_model(model_class), make_batch([(64, 96)])
    with torch.no_grad():
        output = model(**batch, output_hidden_states=True, output_clusters=True)
        assert list(output)[:4] == ["loss", "loss_dict", "logits", "pred_boxes"]
        assert len(output.hidden_states) == 5 and len(output.cluster_indices) == 2
        without = model(batch["pixel_values"])
        assert list(without)[:2] == ["logits", "pred_boxes"] and "hidden_states" not in without
        assert torch.equal(model(batch["pixel_values"], return_dict=False)[0], without.logits)
    if model_class is ClusTRForInstanceSegmentation:
        assert without.pred_masks.shape == (1, without.logits.shape[1], 28, 28)
        assert model.train()(**batch).logits is None  # training returns no detections
        assert model(batch["pixel_values"]).logits is not None


@pytest.mark.parametrize("model_class", DETECTORS)
@pytest.mark.parametrize("size", [(1, 1), (20, 70), (33, 31)])
def test_images_of_any_size(model_class, size):
    model, batch = make_model(model_class).train(), make_batch([size])
    assert model(**batch).loss.isfinite()
    with torch.no_grad():
        output = model.eval()(batch["pixel_values"])
    [found] = ClusTRDetectionImageProcessor().post_process_object_detection(output, 0.0, [size])
    limits = torch.tensor([size[1], size[0]] * 2)
    assert (found["boxes"] >= 0).all() and (found["boxes"] <= limits).all()


@pytest.mark.parametrize("model_class", DETECTORS)
def test_half_precision_is_close_and_boxes_are_float32(model_class):
    model, batch = make_model(model_class), make_batch([(256, 256)])
    processor = ClusTRDetectionImageProcessor()
    results = []
    for dtype, autocast in ((torch.float32, False), (torch.float32, True), (torch.bfloat16, False)):
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            output = model.to(dtype)(**batch)
        assert output.logits.dtype == output.pred_boxes.dtype == output.loss.dtype == torch.float32
        results.append((output.loss.item(), processor.post_process_object_detection(output, 0.05, [(256, 256)])[0]))
    exact, *others = results
    for loss, found in others:
        assert loss == pytest.approx(exact[0], rel=0.1)
        assert abs(len(found["scores"]) - len(exact[1]["scores"])) <= 10


@pytest.mark.parametrize(
    "model_class, auto_class", zip(DETECTORS, (AutoModelForObjectDetection, AutoModelForInstanceSegmentation))
)
def test_saved_models_are_the_same_again(model_class, auto_class, tmp_path):
    model, pixel_values = make_model(model_class, anchor_sizes=[8, 16, 32, 64, 128]), torch.randn(1, 3, 70, 64)
    model.save_pretrained(tmp_path)
    reloaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        first, second = (m.eval()(pixel_values) for m in (model, reloaded))
    assert torch.equal(first.logits, second.logits) and torch.equal(first.pred_boxes, second.pred_boxes)
    assert type(auto_class.from_pretrained(tmp_path)) is model_class


BOX_END = torch.tensor([0, 0, 1, 1])  # after the last pixel of a mask


def shapes_batch(number, processor, size=(96, 96)):
    """Discs (0) and squares (1) as returned by the processor, and COCO references at the original size."""
    images, maps = shapes_on_ground(number, size=size)
    annotations, references = [], []
    for index, label_map in enumerate(maps):
        masks = torch.stack([label_map == value for value in (1, 2)])
        masks = masks[masks.flatten(1).any(dim=1)]
        classes = [value - 1 for value in (1, 2) if (label_map == value).any()]
        boxes = masks_to_boxes(masks) + BOX_END
        rles = [encode_mask(mask) for mask in masks]
        references.append({"labels": classes, "boxes": boxes, "masks": rles})
        rows = [
            {"bbox": [*box[:2], *(box[2:] - box[:2])], "category_id": category, "segmentation": rle}
            for box, category, rle in zip(boxes.numpy(), classes, rles)
        ]
        annotations.append({"image_id": index, "annotations": rows})
    batch = processor(images, annotations=annotations, return_segmentation_masks=True, return_tensors="pt")
    return batch, references


class Shapes(Dataset):
    """Rows as in transformers' official example: one image at a time, padded to a common size."""

    def __init__(self, number, processor):
        self.batches = [shapes_batch(1, processor, size=(80 + 8 * index, 96)) for index in range(number)]

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        batch = self.batches[index][0]
        return {**{name: batch[name][0] for name in ("pixel_values", "pixel_mask")}, "labels": batch["labels"][0]}


def collate_as_the_official_example(rows):
    batch = {name: torch.stack([row[name] for row in rows]) for name in ("pixel_values", "pixel_mask")}
    return {**batch, "labels": [row["labels"] for row in rows]}


def test_trainer_takes_the_official_object_detection_recipe(tmp_path):
    """transformers' run_object_detection.py: its arguments, its collation, and how it reads what Trainer gathers."""
    settings = {"max_height": 100, "max_width": 100}
    processor = ClusTRDetectionImageProcessor(size=settings, pad_size={"height": 100, "width": 100})
    data, sizes = Shapes(6, processor), []

    def compute_metrics(results):
        predictions, references = [], []
        for batch, targets in zip(results.predictions, results.label_ids):
            batch_sizes = torch.tensor(np.array([target["orig_size"] for target in targets]))
            logits, boxes = torch.tensor(batch[1]), torch.tensor(batch[2])
            assert logits.shape[:2] == boxes.shape[:2] and logits.shape[2] == 2
            output = ClusTRDetectionOutput(logits=logits, pred_boxes=boxes)
            predictions += processor.post_process_object_detection(output, threshold=0.0, target_sizes=batch_sizes)
            for target, (height, width) in zip(targets, batch_sizes.tolist()):
                boxes = box_convert(torch.tensor(target["boxes"]), "cxcywh", "xyxy")
                boxes = boxes * torch.tensor([width, height, width, height])
                references.append({"labels": target["class_labels"], "boxes": boxes})
                sizes.append((height, width))
        expected = [batch[1][0]["boxes"] for batch in data.batches]
        for reference, boxes in zip(references, expected, strict=True):
            torch.testing.assert_close(reference["boxes"], boxes, atol=0.01, rtol=0)
        return {"map": coco_average_precision(predictions, references, 2)["ap"]}

    model = ClusTRForObjectDetection(make_config(num_labels=2, anchor_sizes=[16, 32, 64, 128, 256]))
    args = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=3,
        per_device_eval_batch_size=2,
        max_steps=1,
        logging_steps=1,
        learning_rate=0.0,
        eval_strategy="steps",
        eval_do_concat_batches=False,
        remove_unused_columns=False,
        report_to="none",
        use_cpu=True,
        train_sampling_strategy="sequential",
    )
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=data,
        eval_dataset=data,
        processing_class=processor,
        data_collator=collate_as_the_official_example,
        compute_metrics=compute_metrics,
    )
    trainer.train()
    history = {name: value for entry in trainer.state.log_history for name, value in entry.items()}
    assert sizes == [(80 + 8 * index, 96) for index in range(6)]
    assert 0 <= history["eval_map"] <= 1 and history["eval_loss"] > 0
    batches = [collate_as_the_official_example([data[i], data[i + 1]]) for i in (0, 2, 4)]
    with torch.no_grad():
        expected = sum(model.train()(**batch).loss.item() for batch in batches) / 3
    assert history["loss"] == pytest.approx(expected, rel=1e-3)  # the loss is not scaled twice


def without_masks(rows):
    """Dropped as in transformers' example."""
    return {name: value for name, value in collate_as_the_official_example(rows).items() if name != "pixel_mask"}


def test_trainer_sees_the_same_without_masks(tmp_path):
    """Images of different sizes padded to squares: losses and boxes, read as in the example."""
    padding = {"size": {"max_height": 100, "max_width": 100}, "pad_size": {"height": 100, "width": 100}}
    processor = ClusTRDetectionImageProcessor(**padding)
    data, results = Shapes(4, processor), []
    model = make_model(ClusTRForObjectDetection, num_labels=2, anchor_sizes=[16, 32, 64, 128, 256])
    settings = {"remove_unused_columns": False, "report_to": "none", "use_cpu": True, "eval_do_concat_batches": False}
    args = TrainingArguments(output_dir=str(tmp_path), per_device_eval_batch_size=2, **settings)
    for collate in (collate_as_the_official_example, without_masks):
        trainer = Trainer(model=model, args=args, data_collator=collate, processing_class=processor)
        output = trainer.predict(data)
        found = []
        for batch, targets in zip(output.predictions, output.label_ids):
            boxes = ClusTRDetectionOutput(logits=torch.tensor(batch[1]), pred_boxes=torch.tensor(batch[2]))
            sizes = torch.tensor(np.array([target["orig_size"] for target in targets]))
            found += processor.post_process_object_detection(boxes, threshold=0.0, target_sizes=sizes)
        results.append((output.metrics["test_loss"], found))
    (loss, found), (other_loss, others) = results
    assert other_loss == loss
    for index, (image, other) in enumerate(zip(found, others, strict=True)):
        assert torch.equal(image["boxes"], other["boxes"]) and torch.equal(image["scores"], other["scores"])
        limits = torch.tensor([96.0, 80 + 8 * index] * 2)
        assert (image["boxes"].amax(dim=0) <= limits).all() and (
            image["boxes"].amax(dim=0)[2:] > 0.9 * limits[2:]
        ).all()


@pytest.mark.slow
@pytest.mark.parametrize("model_class", DETECTORS)
def test_four_images_are_learned_by_heart(model_class):
    processor = ClusTRDetectionImageProcessor(size={"height": 96, "width": 96})
    batch, references = shapes_batch(4, processor)
    settings = {"num_labels": 2, "anchor_sizes": [16, 32, 64, 128, 256], "roi_batch_size": 64}
    model = model_class(make_config(**settings)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    steps = {ClusTRForObjectDetection: 240, ClusTRForInstanceSegmentation: 120}[model_class]
    for step in range(steps):
        for group in optimizer.param_groups:  # a short warm-up, then linear decay to 0
            group["lr"] = 2e-3 * min(1, (step + 1) / 20, 2 * (1 - step / steps))
        model(**batch).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        output = model.eval()(batch.pixel_values)
    sizes = [(96, 96)] * 4
    found = processor.post_process_object_detection(output, threshold=0.05, target_sizes=sizes)
    assert coco_average_precision(found, references, 2)["ap50"] > 0.9
    if model_class is ClusTRForInstanceSegmentation:
        results = processor.post_process_instance_segmentation(
            output, threshold=0.05, target_sizes=sizes, return_coco_annotation=True
        )
        for record, result in zip(found, results):
            record["masks"] = result["segmentation"]
        assert coco_average_precision(found, references, 2, "segm")["ap50"] > 0.9


MEASURE_TRAINING = """
import resource, sys, torch, clustr_hf
model = getattr(clustr_hf, sys.argv[1])(clustr_hf.ClusTRConfig.from_variant("small", num_labels=80)).train()
optimizer = torch.optim.AdamW(model.parameters())
boxes = torch.rand(20, 4) * 0.3 + 0.2
labels = {"class_labels": torch.randint(0, 80, (20,)), "boxes": boxes, "masks": torch.rand(20, 800, 1333) > 0.5}
model(torch.randn(1, 3, 800, 1333), labels=[labels]).loss.backward()
optimizer.step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
"""


@pytest.mark.slow
def test_training_at_800_times_1333_pixels_takes_less_than_12_gigabytes():
    """Peak memory of the process, with torch and AdamW's moments (kilobytes on Linux), for the larger detector."""
    command = [sys.executable, "-c", MEASURE_TRAINING, ClusTRForInstanceSegmentation.__name__]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 1 < float(result.stdout) < 12
