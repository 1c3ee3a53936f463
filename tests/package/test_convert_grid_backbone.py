"""
PVTv2 and SegFormer as ClusTR. The oracle is the source itself, a model of transformers: with attention to the same
grid, the converted model must equal it.
"""

import pytest
import torch
from transformers import (
    ConvNextImageProcessor,
    EfficientNetImageProcessor,
    MobileViTImageProcessor,
    PoolFormerImageProcessor,
    PvtImageProcessor,
    PvtV2Backbone,
    PvtV2Config,
    PvtV2ForImageClassification,
    PvtV2Model,
    SegformerConfig,
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    SegformerModel,
    SwinConfig,
    SwinForImageClassification,
)

from clustr_hf import ClusTRBackbone, ClusTRForImageClassification, ClusTRForSemanticSegmentation, ClusTRModel
from clustr_hf.convert_checkpoint import convert_grid_backbone, convert_image_processor, load_grid_source


# The sizes of the released models: depths, hidden sizes and MLP ratios.
PVT_V2 = {
    "b0": ([2, 2, 2, 2], [32, 64, 160, 256], [8, 8, 4, 4]),
    "b1": ([2, 2, 2, 2], [64, 128, 320, 512], [8, 8, 4, 4]),
    "b2": ([3, 4, 6, 3], [64, 128, 320, 512], [8, 8, 4, 4]),
    "b3": ([3, 4, 18, 3], [64, 128, 320, 512], [8, 8, 4, 4]),
    "b4": ([3, 8, 27, 3], [64, 128, 320, 512], [8, 8, 4, 4]),
    "b5": ([3, 6, 40, 3], [64, 128, 320, 512], [4, 4, 4, 4]),
}
SEGFORMER = {name: (depths, sizes, [4, 4, 4, 4]) for name, (depths, sizes, _) in PVT_V2.items()}
TINY = {"depths": [1, 2, 1, 1], "hidden_sizes": [8, 16, 24, 32], "num_attention_heads": [1, 2, 3, 4]}
TINY |= {"mlp_ratios": [2, 2, 2, 2], "num_labels": 3}


def randomize(model):
    """Random weights for all parameters; biases and norms of new models are constants, which would hide errors."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
            else:
                fan_in = parameter[0].numel()
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
    return model.eval()


def tiny_pvt(model_class=PvtV2ForImageClassification, **settings):
    return randomize(model_class(PvtV2Config(**{**TINY, **settings})))


def tiny_segformer(model_class=SegformerForImageClassification, **settings):
    return randomize(model_class(SegformerConfig(**{**TINY, **settings})))


def images(height=96, width=64, batch=2):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model, pixel_values):
    return model(pixel_values=pixel_values).logits


@pytest.mark.parametrize(
    ("model_class", "config_class", "sizes"),
    [(PvtV2ForImageClassification, PvtV2Config, PVT_V2), (SegformerForImageClassification, SegformerConfig, SEGFORMER)],
    ids=["pvt_v2", "segformer"],
)
@pytest.mark.parametrize("size", list(PVT_V2))
def test_equals_its_source_with_attention_to_the_same_grid(model_class, config_class, sizes, size):
    depths, hidden_sizes, mlp_ratios = sizes[size]
    config = config_class(depths=depths, hidden_sizes=hidden_sizes, mlp_ratios=mlp_ratios, num_labels=11)
    source = randomize(model_class(config))
    expected = logits(source, images(64, 96, batch=1))
    model = convert_grid_backbone(source, attention_type="spatial_reduction")
    torch.testing.assert_close(logits(model, images(64, 96, batch=1)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("make", [tiny_pvt, tiny_segformer])
def test_clusters_have_the_papers_ratios_and_another_output(make):
    source = make()
    model = convert_grid_backbone(source)
    assert isinstance(model, ClusTRForImageClassification) and not model.training
    assert repr(model.config.reduction_ratios) == "[[64, 16], [16, 4], [4, 1], [1]]"  # no floats
    assert (logits(model, images()) - logits(source, images())).abs().max() > 1e-2  # the test above sees attention


@pytest.mark.parametrize("make", [tiny_pvt, tiny_segformer])
@pytest.mark.parametrize("settings", [{"hidden_act": "relu"}, {"hidden_act": "gelu_new"}, {"layer_norm_eps": 1e-2}])
def test_settings_are_carried_over(make, settings):
    source = make(**settings)
    model = convert_grid_backbone(source, attention_type="spatial_reduction")
    torch.testing.assert_close(logits(model, images()), logits(source, images()), atol=1e-5, rtol=1e-5)


def test_other_geometry_is_carried_over():
    geometry = {"patch_sizes": [3, 5, 3, 3], "strides": [2, 2, 1, 2], "sr_ratios": [4, 1, 2, 2], "num_channels": 4}
    source = tiny_pvt(**geometry, qkv_bias=False, num_labels=0)
    model = convert_grid_backbone(source, attention_type="spatial_reduction")
    pixel_values = torch.randn(2, 4, 40, 56)
    torch.testing.assert_close(logits(model, pixel_values), logits(source, pixel_values), atol=1e-5, rtol=1e-5)
    assert convert_grid_backbone(source).config.reduction_ratios == [[16, 4], [1], [4, 1], [4, 1]]


def test_labels_and_dropouts_are_carried_over():
    labels = {0: "cat", 1: "dog", 2: "bird"}
    dropouts = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.2, "drop_path_rate": 0.3}
    source = tiny_pvt(id2label=labels, label2id={name: index for index, name in labels.items()}, **dropouts)
    config = convert_grid_backbone(source).config
    assert config.id2label == labels
    assert {name: getattr(config, name) for name in dropouts} == dropouts


@pytest.mark.parametrize(
    ("source_class", "make", "model_class"),
    [
        (PvtV2Backbone, tiny_pvt, ClusTRBackbone),
        (PvtV2Model, tiny_pvt, ClusTRModel),
        (SegformerModel, tiny_segformer, ClusTRModel),
        (SegformerForSemanticSegmentation, tiny_segformer, ClusTRForSemanticSegmentation),
    ],
)
def test_kinds_of_models(source_class, make, model_class):
    features = {"out_features": ["stage2", "stage4"]} if source_class is PvtV2Backbone else {}
    source = make(source_class, **features)
    model = convert_grid_backbone(source, attention_type="spatial_reduction")
    assert type(model) is model_class
    with torch.no_grad():
        if source_class is PvtV2Backbone:
            ours, theirs = model(images()).feature_maps, source(images()).feature_maps
            assert len(ours) == 2
        elif source_class is SegformerForSemanticSegmentation:
            ours, theirs = [[part(images()).last_hidden_state] for part in (model.clustr, source.segformer)]
        else:
            ours, theirs = [[part(images()).last_hidden_state] for part in (model, source)]
    for our_map, their_map in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our_map, their_map, atol=1e-5, rtol=1e-5)


def test_a_segmenter_can_have_other_labels_and_heads():
    source = tiny_segformer(SegformerForSemanticSegmentation)
    model = convert_grid_backbone(source, num_labels=5, segmentation_head="upernet", upernet_hidden_size=16)
    assert logits(model, images()).shape[1] == 5


def test_one_key_per_token_needs_no_clusters():
    """With a ratio of 1 in every stage and a source that reduces nothing, both are plain attention."""
    source = tiny_pvt(sr_ratios=[1, 1, 1, 1])
    model = convert_grid_backbone(source)
    torch.testing.assert_close(logits(model, images()), logits(source, images()), atol=1e-5, rtol=1e-5)
    doubled = convert_grid_backbone(source, reduction_ratios=[[1, 1], [1, 1], [1], [1]])  # the scales are summed
    torch.testing.assert_close(logits(doubled, images()), logits(source, images()), atol=1e-5, rtol=1e-5)


def test_new_position_embeddings_change_nothing():
    source = tiny_pvt()
    settings = {"attention_type": "spatial_reduction", "use_absolute_position_embeddings": True}
    model = convert_grid_backbone(source, **settings)
    torch.testing.assert_close(logits(model, images()), logits(source, images()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_keeps_the_dtype_and_leaves_the_source_as_it_is(dtype):
    source = tiny_pvt().to(dtype)
    before = {name: value.clone() for name, value in source.state_dict().items()}
    model = convert_grid_backbone(source, attention_type="spatial_reduction")
    assert model.dtype == dtype
    assert all(torch.equal(value, before[name]) for name, value in source.state_dict().items())
    if dtype == torch.float64:
        expected = logits(source, images().double())
        torch.testing.assert_close(logits(model, images().double()), expected, atol=1e-12, rtol=1e-12)


def test_folders(tmp_path):
    source = tiny_segformer()
    source.save_pretrained(tmp_path)
    model = convert_grid_backbone(tmp_path, attention_type="spatial_reduction")
    torch.testing.assert_close(logits(model, images()), logits(source, images()), atol=1e-5, rtol=1e-5)
    incomplete = {name: value for name, value in source.state_dict().items() if "q_proj" not in name}
    source.save_pretrained(tmp_path, state_dict=incomplete)
    with pytest.raises(ValueError, match="must have all weights of SegformerForImageClassification, but lacks"):
        load_grid_source(tmp_path)
    SwinForImageClassification(SwinConfig(embed_dim=8, depths=[1], num_heads=[1])).save_pretrained(tmp_path / "swin")
    with pytest.raises(ValueError, match=r"must be a model of the types \['pvt_v2', 'segformer'\], got 'swin'"):
        load_grid_source(tmp_path / "swin")


def subclass_of_pvt():
    class Changed(PvtV2ForImageClassification):
        pass

    return Changed(PvtV2Config(**TINY))


BLOCK = "pvt_v2.encoder.layers.0.blocks.0"


def weight_norm_on(name):
    """A function that makes a source one of whose layers computes its weights."""

    def make():
        source = tiny_pvt()
        torch.nn.utils.parametrizations.weight_norm(source.get_submodule(name))
        return source

    return make


@pytest.mark.parametrize(
    ("source", "overrides", "error", "message"),
    [
        (lambda: tiny_pvt(linear_attention=True), {}, ValueError, "`linear_attention=True`"),
        (tiny_pvt, {"hidden_sizes": [8, 16, 24, 64]}, ValueError, r"must not change \['hidden_sizes'\]"),
        (tiny_pvt, {"num_labels": 7}, ValueError, r"must not change \['num_labels'\]"),
        (tiny_pvt, {"attention_type": "none"}, ValueError, "`attention_type` must be one of"),
        (
            tiny_pvt,
            {"attention_type": "spatial_reduction", "reduction_ratios": [4, 4, 4, 1]},
            ValueError,
            r"must be the source's, \[\[64\], \[16\], \[4\], \[1\]\]",
        ),
        (subclass_of_pvt, {}, TypeError, "`source` must be one of .* got Changed"),
        (weight_norm_on(f"{BLOCK}.mlp.dense1"), {}, ValueError, "without adapters or parametrizations"),
        (weight_norm_on(f"{BLOCK}.attention.key"), {}, ValueError, "without adapters or parametrizations"),
        (weight_norm_on("classifier"), {}, ValueError, "without adapters or parametrizations"),
        (
            tiny_pvt,
            {"reduction_ratio": [64, 16, 4, 1]},
            ValueError,
            r"ClusTRConfig, got \['reduction_ratio'\]",
        ),
        (lambda: tiny_pvt().to("meta"), {}, ValueError, "floating-point weights with data"),
    ],
)
def test_what_cannot_be_carried_over_is_refused(source, overrides, error, message):
    with pytest.raises(error, match=message):
        convert_grid_backbone(source(), **overrides)


@pytest.mark.parametrize(
    "source", [PvtImageProcessor(), SegformerImageProcessor(do_reduce_labels=True), PvtImageProcessor(do_resize=False)]
)
def test_image_processors_give_the_same_pixels(source):
    image = torch.randint(0, 256, (3, 300, 260), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    converted = convert_image_processor(source)
    expected, got = (each(image, return_tensors="pt").pixel_values for each in (source, converted))
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    assert converted.do_reduce_labels == getattr(source, "do_reduce_labels", False)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.8), "of shape"),
        (PoolFormerImageProcessor(), "that differ"),
        (EfficientNetImageProcessor(size=[32, 32], rescale_offset=True), "that differ"),
        (MobileViTImageProcessor(size={"shortest_edge": 72}, do_center_crop=False), "that differ|mean"),
    ],
    ids=["convnext", "poolformer", "efficientnet", "mobilevit"],
)
def test_settings_that_are_only_the_sources_are_refused(source, message):
    with pytest.raises(ValueError, match=f"`source` must .*({message})"):
        convert_image_processor(source)


def test_settings_that_are_off_stay_off():
    source = PvtImageProcessor(do_normalize=None, do_resize=None)
    converted = convert_image_processor(source)
    assert converted.do_normalize is False and converted.do_resize is False and converted.do_rescale is True


@pytest.mark.parametrize("reshape", [False, True])
def test_the_last_stage_has_the_shape_of_the_sources(reshape):
    source = tiny_segformer(SegformerModel, reshape_last_stage=reshape)
    model = convert_grid_backbone(source, attention_type="spatial_reduction")
    expected = source(images()).last_hidden_state
    torch.testing.assert_close(model(images()).last_hidden_state, expected, atol=1e-5, rtol=1e-5)
