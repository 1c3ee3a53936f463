"""Semantic segmentation: heads compared with other implementations, loss, masks, checkpoints, Trainer."""

import copy
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import shapes_on_ground
from safetensors.torch import load_file, load_model
from torch.nn.functional import batch_norm, conv2d, cross_entropy, interpolate
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import Dataset
from transformers import (
    AutoModelForSemanticSegmentation,
    Trainer,
    TrainingArguments,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from clustr_hf import (
    ClusTRBackbone,
    ClusTRConfig,
    ClusTRForImageClassification,
    ClusTRForSemanticSegmentation,
    ClusTRImageProcessor,
)


HEADS = ("semantic_fpn", "upernet")


def make_config(head="semantic_fpn", num_labels=5, **settings):
    """Nano with strides of 4, 8, 16, 32 like the paper's variants."""
    settings = {"patch_sizes": [7, 3, 3, 3], "strides": [4, 2, 2, 2], **settings}
    return ClusTRConfig.from_variant("nano", num_labels=num_labels, segmentation_head=head, **settings)


def make_model(head="semantic_fpn", **settings):
    """A model in evaluation mode whose batch norms have seen data."""
    model = ClusTRForSemanticSegmentation(make_config(head, **settings)).train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(4, 3, 64, 64))
    return model.eval()


@pytest.mark.parametrize("head, millions", [("semantic_fpn", 26.428), ("upernet", 52.486)])
def test_parameters_are_the_papers(head, millions):
    config = ClusTRConfig.from_variant("small", num_labels=150, segmentation_head=head)
    with torch.device("meta"):
        model = ClusTRForSemanticSegmentation(config)
    assert model.num_parameters() / 1e6 == pytest.approx(millions, abs=0.001)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("size, expected", [((64, 96), (16, 24)), ((61, 83), (16, 21)), ((33, 47), (9, 12))])
def test_logits_have_stride_4_for_any_size(head, size, expected):
    logits = make_model(head)(torch.randn(2, 3, *size)).logits
    assert logits.shape == (2, 5, *expected) and logits.isfinite().all()


def semantic_fpn_by_hand(weights, maps):
    """Kirillov et al. 2019, figure 3, computed from the weights."""

    def convolve(name, features, padding):
        return conv2d(features, weights[f"{name}.weight"], weights.get(f"{name}.bias"), padding=padding)

    laterals = [convolve(f"fpn.inner_blocks.{i}.0", features, 0) for i, features in enumerate(maps)]
    for finer in (2, 1, 0):
        laterals[finer] = laterals[finer] + interpolate(laterals[finer + 1], size=laterals[finer].shape[2:])
    pyramid = [convolve(f"fpn.layer_blocks.{i}.0", features, 1) for i, features in enumerate(laterals)]
    merged = torch.zeros(())
    for level, features in enumerate(pyramid):
        for step in range((1, 1, 2, 3)[level]):
            name = f"scale_heads.{level}.{step}"
            features = convolve(f"{name}.0", features, 1)
            norm = [weights[f"{name}.1.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
            features = batch_norm(features, *norm).relu()
            if level > 0:
                features = interpolate(features, scale_factor=2, mode="bilinear", align_corners=False)
        merged = merged + features
    return convolve("classifier", merged, 0)


def test_semantic_fpn_is_the_sum_of_its_scale_heads():
    model = make_model().double()
    pixel_values = torch.randn(2, 3, 64, 128, dtype=torch.float64)
    maps = model.clustr(pixel_values, output_hidden_states=True).hidden_states[1:]
    expected = semantic_fpn_by_hand(model.head.state_dict(), maps)
    torch.testing.assert_close(model(pixel_values).logits, expected, rtol=1e-10, atol=1e-10)


CAMVID = Path(__file__).parents[2] / "checkpoints" / "clustr-nano-camvid"


def test_weights_with_former_names_load_in_every_way(tmp_path):
    """The checkpoint stores the scale heads of its Semantic FPN head as `ladders`."""
    former = load_file(CAMVID / "model.safetensors")
    assert "head.ladders.0.0.0.weight" in former
    current = {name.replace("head.ladders.", "head.scale_heads."): weight for name, weight in former.items()}
    loaded, report = ClusTRForSemanticSegmentation.from_pretrained(CAMVID, output_loading_info=True)
    assert not any(report.values())
    by_state_dict = ClusTRForSemanticSegmentation(loaded.config)
    by_state_dict.load_state_dict(former)
    assert "head.ladders.0.0.0.weight" in former  # unchanged
    by_safetensors = ClusTRForSemanticSegmentation(loaded.config)
    load_model(by_safetensors, CAMVID / "model.safetensors")
    averaged, wrapped = AveragedModel(by_state_dict), AveragedModel(ClusTRForSemanticSegmentation(loaded.config))
    wrapped.load_state_dict(
        {name.replace("head.scale_heads.", "head.ladders."): value for name, value in averaged.state_dict().items()}
    )
    loaded.save_pretrained(tmp_path / "sharded", max_shard_size="500KB")
    by_state_dict.save_pretrained(tmp_path / "new")
    models = [loaded, by_state_dict, by_safetensors, wrapped.module, copy.deepcopy(loaded)]
    models += [
        AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "sharded", low_cpu_mem_usage=True),
        ClusTRForSemanticSegmentation.from_pretrained(tmp_path / "new"),
        ClusTRForSemanticSegmentation.from_pretrained(None, config=loaded.config, state_dict=former),
        ClusTRForSemanticSegmentation.from_pretrained(CAMVID, key_mapping={"no such": "name"}),
    ]
    for model in models:
        weights = model.state_dict()
        assert weights.keys() == current.keys()
        assert all(torch.equal(weights[name], weight) for name, weight in current.items())
    backbone = ClusTRBackbone.from_pretrained(CAMVID).state_dict()
    assert all(torch.equal(weight, former[f"clustr.{name}"]) for name, weight in backbone.items())


def test_upernet_is_that_of_transformers():
    """The same weights in transformers' model with our backbone: same logits and same loss with the auxiliary head."""
    model = make_model("upernet").double()
    upernet_config = UperNetConfig(
        backbone_config=make_config(out_features=["stage1", "stage2", "stage3", "stage4"]),
        hidden_size=64,
        auxiliary_in_channels=128,
        auxiliary_channels=64,
        num_labels=5,
    )
    upernet = UperNetForSemanticSegmentation(upernet_config).double().eval()
    names = {"clustr.": "backbone.", "head.": ""}
    weights = {}
    for name, weight in model.state_dict().items():
        prefix = next(prefix for prefix in names if name.startswith(prefix))
        weights[names[prefix] + name.removeprefix(prefix)] = weight
    upernet.load_state_dict(weights)
    pixel_values, labels = torch.randn(2, 3, 64, 96, dtype=torch.float64), torch.randint(0, 5, (2, 64, 96))
    labels[0, :9] = 255
    ours, theirs = model(pixel_values, labels=labels), upernet(pixel_values, labels=labels)
    logits = interpolate(ours.logits, size=(64, 96), mode="bilinear", align_corners=False)
    torch.testing.assert_close(logits, theirs.logits, rtol=1e-10, atol=1e-10)
    assert ours.loss.item() == pytest.approx(theirs.loss.item(), rel=1e-12)


def test_upernet_of_transformers_trains_and_reloads_with_our_backbone(tmp_path):
    config = UperNetConfig(
        backbone_config=ClusTRConfig.from_variant("nano", out_features=["stage1", "stage2", "stage3", "stage4"]),
        hidden_size=32,
        auxiliary_in_channels=128,
        num_labels=3,
    )
    model = UperNetForSemanticSegmentation(config)
    loss = model(torch.randn(2, 3, 64, 64), labels=torch.randint(0, 3, (2, 64, 64))).loss
    loss.backward()
    assert all(weight.grad is not None for weight in model.parameters() if weight.requires_grad)
    model.save_pretrained(tmp_path)
    reloaded = UperNetForSemanticSegmentation.from_pretrained(tmp_path).eval()
    pixel_values = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model.eval()(pixel_values).logits, reloaded(pixel_values).logits)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("weights", [None, [1.0, 0.5, 2.0, 0.0, 3.0]])
def test_loss_is_the_mean_over_pixels_that_count(head, weights):
    model = make_model(head, semantic_class_weights=weights, auxiliary_loss_weight=0, semantic_loss_ignore_index=-100)
    labels = torch.randint(0, 5, (2, 50, 70))
    labels[0, :20] = -100
    output = model(torch.randn(2, 3, 48, 64), labels=labels)
    logits = interpolate(output.logits, size=(50, 70), mode="bilinear", align_corners=False)
    class_weights = None if weights is None else torch.tensor(weights)
    torch.testing.assert_close(output.loss, cross_entropy(logits, labels, class_weights, ignore_index=-100))


@pytest.mark.parametrize("head", HEADS)
def test_loss_without_a_labelled_pixel_is_zero_and_so_is_its_gradient(head):
    model = make_model(head, semantic_class_weights=[1.0, 1.0, 2.0, 1.0, 1.0]).train()
    loss = model(torch.randn(2, 3, 64, 64), labels=torch.full((2, 64, 64), 255)).loss
    loss.backward()
    assert loss.item() == 0
    assert all((weight.grad == 0).all() for weight in model.parameters())


@pytest.mark.parametrize("head", HEADS)
def test_every_weight_learns(head):
    model = make_model(head).train()
    model(torch.randn(2, 3, 64, 64), labels=torch.randint(0, 5, (2, 64, 64))).loss.backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


@pytest.mark.parametrize(
    "labels, message",
    [
        (torch.zeros(2, 64, dtype=torch.int64), r"`labels` must have shape \(2, H, W\), got \(2, 64\)"),
        (torch.zeros(1, 64, 64, dtype=torch.int64), r"got \(1, 64, 64\)"),
        (torch.zeros(2, 64, 64), r"`labels` must be int64, got torch.float32"),
        (torch.full((2, 64, 64), 5), r"`labels` must be in \[0, 5\), or 255 .* got 5"),
        (torch.full((2, 64, 64), -1), r"got -1"),
    ],
)
def test_labels_that_do_not_fit_are_named(labels, message):
    with pytest.raises(ValueError, match=message):
        make_model()(torch.randn(2, 3, 64, 64), labels=labels)


def test_settings_that_do_not_fit_are_named(tmp_path):
    make_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"`segmentation_head` must be one of .* got 'fcn'"):
        ClusTRForSemanticSegmentation.from_pretrained(tmp_path, segmentation_head="fcn")
    with pytest.raises(
        ValueError, match="`semantic_class_weights` must have one entry for each of the 5 labels, got 2"
    ):
        ClusTRForSemanticSegmentation(make_config(semantic_class_weights=[1.0, 2.0]))
    with pytest.raises(ValueError, match="`semantic_loss_ignore_index` must not be one of the 5 labels, got 4"):
        make_model(semantic_loss_ignore_index=4)(torch.randn(1, 3, 64, 64), labels=torch.full((1, 64, 64), 4))
    with pytest.raises(ValueError, match="`num_labels` must be at least 2 for semantic segmentation, got 1"):
        make_model(num_labels=1)(torch.randn(1, 3, 64, 64), labels=torch.zeros(1, 64, 64, dtype=torch.int64))


@pytest.mark.parametrize("head", HEADS)
def test_an_image_has_the_same_logits_in_a_padded_batch_as_alone(head):
    model = make_model(head)
    processor = ClusTRImageProcessor(do_center_crop=False, do_resize=False)
    sizes = [(64, 90), (50, 133), (77, 64)]
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in sizes]
    maps = [torch.randint(0, 5, size, dtype=torch.uint8) for size in sizes]
    batch = processor(images, maps, return_tensors="pt")
    assert batch.pixel_values.shape == (3, 3, 77, 133) and batch.pixel_mask.sum(dim=(1, 2)).tolist() == [
        height * width for height, width in sizes
    ]
    output = model(**batch)
    together = processor.post_process_semantic_segmentation(output, sizes, return_segmentation_scores=True)
    losses = []
    for image, label_map, size, result in zip(images, maps, sizes, together):
        single = processor(image, label_map, return_tensors="pt")
        assert "pixel_mask" not in single
        alone = model(**single)
        [expected] = processor.post_process_semantic_segmentation(alone, [size], return_segmentation_scores=True)
        assert result.segmentation.shape == size
        torch.testing.assert_close(result.segmentation_scores, expected.segmentation_scores, rtol=1e-4, atol=1e-5)
        losses.append(alone.loss * size[0] * size[1])
    torch.testing.assert_close(output.loss, sum(losses) / sum(height * width for height, width in sizes))
    coarse = processor.post_process_semantic_segmentation(output)
    assert [tuple(m.shape) for m in coarse] == [(16, 23), (13, 34), (20, 16)]


def test_masks_that_do_not_fit_are_named():
    model, pixel_values = make_model(), torch.randn(2, 3, 64, 64)
    mask = torch.ones(2, 64, 64, dtype=torch.int64)
    whole = model(pixel_values, pixel_mask=mask, labels=torch.zeros(2, 32, 32, dtype=torch.int64))
    assert whole.logits_sizes.tolist() == [[16, 16]] * 2  # without padding
    mask[1, :, 40:] = 0
    with pytest.raises(ValueError, match=r"`pixel_mask` must have shape \(2, 64, 64\)"):
        model(pixel_values, pixel_mask=mask[:, :32])
    with pytest.raises(ValueError, match=r"`labels` must have the shape of `pixel_mask`, got \(2, 32, 32\)"):
        model(pixel_values, pixel_mask=mask, labels=torch.zeros(2, 32, 32, dtype=torch.int64))
    with pytest.raises(ValueError, match="`output_hidden_states` must be False with padded images"):
        model(pixel_values, pixel_mask=mask, output_hidden_states=True)
    model.config.output_hidden_states = True
    with pytest.raises(ValueError, match="`output_hidden_states` must be False with padded images"):
        model(pixel_values, pixel_mask=mask)
    model.config.output_hidden_states = False
    with pytest.raises(ValueError, match="`target_sizes` must have one entry for each of the 2 images, got 1"):
        ClusTRImageProcessor().post_process_semantic_segmentation(model(pixel_values, pixel_mask=mask), [(64, 64)])
    mask[0, :9, :9] = 0
    with pytest.raises(
        ValueError,
        match="`pixel_mask` must be 1 in a rectangle that starts in the upper left corner, not so for image 0",
    ):
        model(pixel_values, pixel_mask=mask)
    classifier = ClusTRForImageClassification(make_config())
    with pytest.raises(ValueError, match="`pixel_mask` must be None"):
        classifier(pixel_values, pixel_mask=mask)


def test_outputs_on_request():
    model, pixel_values = make_model(), torch.randn(1, 3, 64, 64)
    plain = model(pixel_values)
    assert plain.keys() == {"logits"}
    everything = model(pixel_values, output_hidden_states=True, output_clusters=True)
    assert [state.shape[1] for state in everything.hidden_states] == [32, 32, 64, 128, 160]
    assert len(everything.cluster_indices) == 2
    assert torch.equal(model(pixel_values, return_dict=False)[0], plain.logits)
    model.config.output_hidden_states = True
    assert len(model(pixel_values).hidden_states) == 5


@pytest.mark.parametrize("head", HEADS)
def test_exports_with_any_batch(head):
    model = make_model(head)
    batch = {0: torch.export.Dim("batch", min=1, max=16)}
    exported = torch.export.export(model, (torch.randn(2, 3, 64, 80),), dynamic_shapes={"pixel_values": batch})
    pixel_values = torch.randn(3, 3, 64, 80)
    torch.testing.assert_close(exported.module()(pixel_values).logits, model(pixel_values).logits)


@pytest.mark.parametrize("head", HEADS)
def test_half_precision_is_close_and_its_loss_is_float32(head):
    model, pixel_values, labels = make_model(head), torch.randn(2, 3, 64, 64), torch.randint(0, 5, (2, 64, 64))
    exact = model(pixel_values, labels=labels)
    half = model.to(torch.bfloat16)(pixel_values, labels=labels)
    assert half.logits.dtype == torch.bfloat16 and half.loss.dtype == torch.float32
    assert half.loss.item() == pytest.approx(exact.loss.item(), rel=0.02)


@pytest.mark.parametrize("head", HEADS)
def test_saved_models_are_the_same_again(head, tmp_path):
    model = make_model(head, semantic_class_weights=[1, 2, 3, 4, 5])
    model.save_pretrained(tmp_path)
    reloaded, info = ClusTRForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    pixel_values, labels = torch.randn(1, 3, 70, 64), torch.randint(0, 5, (1, 70, 64))
    first, second = (m.eval()(pixel_values, labels=labels) for m in (model, reloaded))
    assert torch.equal(first.logits, second.logits) and torch.equal(first.loss, second.loss)
    assert type(AutoModelForSemanticSegmentation.from_pretrained(tmp_path)) is ClusTRForSemanticSegmentation


@pytest.mark.parametrize("head", HEADS)
def test_a_classifier_gives_its_backbone_to_a_segmentation_model(head, tmp_path):
    classifier = ClusTRForImageClassification(make_config(num_labels=1000))
    classifier.save_pretrained(tmp_path)
    model, info = ClusTRForSemanticSegmentation.from_pretrained(
        tmp_path, num_labels=5, segmentation_head=head, output_loading_info=True
    )
    assert all(name.startswith("head.") for name in info["missing_keys"])
    assert set(info["unexpected_keys"]) == {"classifier.weight", "classifier.bias"}
    for name, weight in classifier.clustr.state_dict().items():
        assert torch.equal(model.clustr.state_dict()[name], weight), name
    assert model(torch.randn(1, 3, 64, 64)).logits.shape == (1, 5, 16, 16)


@pytest.mark.parametrize("head", HEADS)
def test_classifiers_begin_small_and_norms_neutral(head, tmp_path):
    """Also with a new head on the meta device of `from_pretrained`: all classes are predicted equally."""
    ClusTRForImageClassification(make_config()).save_pretrained(tmp_path)
    settings = {"num_labels": 50, "segmentation_head": head}
    for model in (
        ClusTRForSemanticSegmentation(make_config(**{"head": head, "num_labels": 50})),
        ClusTRForSemanticSegmentation.from_pretrained(tmp_path, **settings),
    ):
        classifiers = {name: weight for name, weight in model.head.named_parameters() if "classifier" in name}
        assert len(classifiers) == {"semantic_fpn": 2, "upernet": 4}[head]
        for name, weight in classifiers.items():
            assert weight.std() < 0.025 and name.endswith("weight") == bool(weight.any()), name
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                assert (buffer == float(name.endswith("var"))).all(), name


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("size", [(1, 1), (5, 256), (31, 40), (100, 20)])
def test_small_images_are_padded_and_their_logits_are_not(head, size):
    model, pixel_values = make_model(head), torch.randn(2, 3, *size)
    labels = torch.randint(0, 5, (2, *size))
    output = model(pixel_values, labels=labels)
    assert output.logits.shape == (2, 5, -(-size[0] // 4), -(-size[1] // 4))
    assert output.loss.isfinite()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("size", [(64, 90), (45, 64), (33, 97), (17, 64)])
def test_images_are_mirrored_up_to_whole_strides(head, size):
    """Compared with NumPy's reflection; logits, also the auxiliary ones, cover the image without padding."""
    model, image = make_model(head), torch.randn(1, 3, *size)
    labels = torch.randint(0, 5, (1, *size))
    margins = [(0, 0), (0, 0), *((0, -extent % 32) for extent in size)]
    mirrored = torch.from_numpy(np.pad(image.numpy(), margins, mode="reflect"))
    with torch.no_grad():
        output, whole = model(image, labels=labels), model(mirrored).logits
        logits = whole[..., : -(-size[0] // 4), : -(-size[1] // 4)]
        torch.testing.assert_close(output.logits, logits)
        loss = cross_entropy(interpolate(logits, size=size, mode="bilinear"), labels)
        if head == "upernet":
            auxiliary = model.head(model._stage_maps(mirrored)[0], with_auxiliary=True)[1]
            auxiliary = auxiliary[..., : -(-size[0] // 16), : -(-size[1] // 16)]
            loss += 0.4 * cross_entropy(interpolate(auxiliary, size=size, mode="bilinear"), labels)
    torch.testing.assert_close(output.loss, loss)


@pytest.mark.parametrize("size", [(64, 64), (3, 45, 64), (1, 1, 3, 45, 64)])
def test_images_of_another_rank_are_named_as_they_came(size):
    with pytest.raises(ValueError, match=rf"must be a tensor of shape \(B, 3, H, W\), got {re.escape(str(size))}"):
        make_model()(torch.zeros(size))


def test_class_weights_work_under_autocast():
    model, pixel_values = make_model(semantic_class_weights=[1, 2, 3, 4, 5]), torch.randn(2, 3, 64, 64)
    labels = torch.randint(0, 5, (2, 64, 64))
    exact = model(pixel_values, labels=labels).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(pixel_values, labels=labels).loss
    assert half.dtype == torch.float32 and half.item() == pytest.approx(exact.item(), rel=0.02)


class Maps(Dataset):
    def __init__(self, number):
        generator = torch.Generator().manual_seed(3)
        self.pixel_values = torch.randn(number, 3, 64, 64, generator=generator)
        self.labels = torch.randint(0, 5, (number, 64, 64), generator=generator)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"pixel_values": self.pixel_values[index], "labels": self.labels[index]}


def test_trainer_accumulates_gradients_without_scaling_the_loss_twice(tmp_path):
    model, data = make_model(classifier_dropout_prob=0.0), Maps(8)
    with torch.no_grad():
        batches = [
            {n: v[i : i + 2] for n, v in (("pixel_values", data.pixel_values), ("labels", data.labels))}
            for i in range(0, 8, 2)
        ]
        model.train()
        expected = sum(model(**batch).loss.item() for batch in batches) / 4
    args = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        max_steps=1,
        logging_steps=1,
        learning_rate=0.0,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        train_sampling_strategy="sequential",
    )
    trainer = Trainer(model=model, args=args, train_dataset=data)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-3)


def test_trainer_evaluates_padded_batches(tmp_path):
    """Logits and their sizes without padding are gathered over batches of images of different sizes."""
    processor = ClusTRImageProcessor(do_center_crop=False, do_resize=False, pad_size={"height": 80, "width": 96})
    sizes = [(64, 90), (50, 96), (80, 64), (80, 96)]
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in sizes]
    maps = [torch.randint(0, 5, size, dtype=torch.uint8) for size in sizes]
    model = make_model()
    args = TrainingArguments(output_dir=str(tmp_path), per_device_eval_batch_size=2, report_to="none", use_cpu=True)
    trainer = Trainer(
        model=model, args=args, data_collator=lambda pairs: dict(processor(*zip(*pairs), return_tensors="pt"))
    )
    (logits, logits_sizes), labels, metrics = trainer.predict(list(zip(images, maps)))
    assert logits.shape == (4, 5, 20, 24) and labels.shape == (4, 80, 96)
    assert logits_sizes.tolist() == [[16, 23], [13, 24], [20, 16], [20, 24]]
    alone = model(**processor(images[1], maps[1], return_tensors="pt"))
    torch.testing.assert_close(torch.from_numpy(logits[1]), alone.logits[0].detach())
    assert metrics["test_loss"] > 0


@pytest.mark.parametrize("head", HEADS)
def test_four_images_are_learned_by_heart(head):
    images, maps = shapes_on_ground(4)
    processor = ClusTRImageProcessor(do_center_crop=False, do_resize=False)
    batch = processor(images, maps, return_tensors="pt")
    model = ClusTRForSemanticSegmentation(make_config(head, num_labels=3)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(80):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        output = model.eval()(batch.pixel_values)
    found = processor.post_process_semantic_segmentation(output, [(96, 96)] * 4)
    right = sum((result == label_map).sum().item() for result, label_map in zip(found, maps))
    assert right / (4 * 96 * 96) > 0.95
    assert sum((label_map == 0).sum().item() for label_map in maps) / (4 * 96 * 96) < 0.9  # not background only


MEASURE_TRAINING = """
import resource, sys, torch
from clustr_hf import ClusTRConfig, ClusTRForSemanticSegmentation
model = ClusTRForSemanticSegmentation(
    ClusTRConfig.from_variant("small", num_labels=150, segmentation_head=sys.argv[1])
).train()
optimizer = torch.optim.AdamW(model.parameters())
for side in (64, 512):  # the first step makes AdamW's moments
    model(torch.randn(2, 3, side, side), labels=torch.randint(0, 150, (2, side, side))).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
"""


@pytest.mark.slow
def test_training_at_512_pixels_takes_less_than_8_gigabytes():
    """Peak memory of the process, with torch and AdamW's moments (kilobytes on Linux), for the larger head."""
    command = [sys.executable, "-c", MEASURE_TRAINING, "upernet"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 1 < float(result.stdout) < 8
