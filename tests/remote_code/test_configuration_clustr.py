"""The configuration: variants, normalisation, and errors that name the field."""

import copy
import json
import pickle

import pytest
from huggingface_hub.errors import StrictDataclassError

from clustr_hf import ClusTRBackbone, ClusTRConfig, ClusTRForImageClassification, ClusTRForObjectDetection
from clustr_hf.remote_code.configuration_tables_clustr import HEAD_FIELDS, PER_STAGE_FIELDS


# Exact for the paper's models (Table 1 rounds to 11.7, 22.7, 40.2 M; Table 6 to 10.8 M).
PARAMETERS = {"tiny": 11_682_417, "small": 22_690_941, "base": 40_246_210}


def count_parameters(model_class, config):
    from accelerate import init_empty_weights

    with init_empty_weights():
        return model_class(config).num_parameters()


@pytest.mark.parametrize("variant", PARAMETERS)
def test_paper_variants_have_the_papers_parameters(variant):
    config = ClusTRConfig.from_variant(variant)
    assert count_parameters(ClusTRForImageClassification, config) == PARAMETERS[variant]


def test_single_scale_and_backbone_have_the_papers_parameters():
    single_scale = ClusTRConfig.from_variant("tiny", reduction_ratios=[[64], [16], [4], [1]])
    assert count_parameters(ClusTRForImageClassification, single_scale) == pytest.approx(10.819e6, abs=1e3)
    assert count_parameters(ClusTRBackbone, ClusTRConfig.from_variant("small")) == pytest.approx(22.178e6, abs=1e3)


@pytest.mark.parametrize("attention_type", ["spatial_reduction", "spatial_reduction_knn"])
@pytest.mark.parametrize("ratios", [{}, {"reduction_ratios": [64, 16, 4, 1]}])
def test_grids_have_the_papers_parameters(attention_type, ratios):
    config = ClusTRConfig.from_variant("tiny", attention_type=attention_type, **ratios)
    assert config.reduction_ratios == [[64], [16], [4], [1]]
    assert count_parameters(ClusTRForImageClassification, config) == 13_181_544


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"attention_type": "window"}, "`attention_type` must be one of .* got 'window'"),
        ({"attention_top_k": 0}, "`attention_top_k` must be positive, got"),
        ({"reduction_ratios": [[64, 16], [16], [4], [1]]}, "`reduction_ratios` must be one square .* stage 1"),
        ({"reduction_ratios": [64, 8, 4, 1]}, "`reduction_ratios` must be one square .* stage 2"),
        ({"reduction_ratios": [64, 16, 4.5, 1]}, "`reduction_ratios` must be one square .* stage 3"),
        ({"cluster_window": 7}, "`cluster_window` must be None .* which has no clusters, got 7"),
        ({"cluster_sharing": "stage"}, "`cluster_sharing` must be 'block'"),
        ({"max_clusters": 9}, "`max_clusters` must be None"),
        ({"cluster_assignment": "nearest_center"}, "`cluster_assignment` must be 'density_parent'"),
        ({"num_neighbors": 9}, "`num_neighbors` must be 5"),
    ],
)
def test_what_does_not_go_with_a_grid_is_named(fields, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        ClusTRConfig.from_variant("tiny", **{"attention_type": "spatial_reduction", **fields})


def test_nano_is_small():
    assert count_parameters(ClusTRForImageClassification, ClusTRConfig.from_variant("nano")) < 2_000_000


def test_defaults_are_the_small_variant():
    small = ClusTRConfig.from_variant("small").to_dict()
    default = ClusTRConfig(num_labels=1000).to_dict()
    assert small == default


def test_variants_take_overrides_and_labels():
    assert ClusTRConfig.from_variant("tiny").num_labels == 1000
    assert ClusTRConfig.from_variant("tiny", num_labels=7).num_labels == 7
    assert ClusTRConfig.from_variant("tiny", id2label={0: "a", 1: "b", 2: "c"}).num_labels == 3
    assert ClusTRConfig.from_variant("base", num_neighbors=9).num_neighbors == 9


def test_one_number_a_stage_is_a_single_scale():
    config = ClusTRConfig(reduction_ratios=[64, [16], (4, 1), 1])
    assert config.reduction_ratios == [[64], [16], [4, 1], [1]]


def test_survives_saving(tmp_path):
    config = ClusTRConfig(reduction_ratios=((64, 16.5), 16, (4,), 1), depths=(1, 1, 1, 1), out_features=["stage2"])
    config.semantic_class_weights = [1.0, 0.5]
    config.save_pretrained(tmp_path)
    reloaded = ClusTRConfig.from_pretrained(tmp_path)
    config.auto_map = reloaded.auto_map
    ignored = {"_name_or_path", "transformers_version"}
    assert {k: v for k, v in reloaded.to_dict().items() if k not in ignored} == {
        k: v for k, v in config.to_dict().items() if k not in ignored
    }


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("hidden_sizes", [64, 128], "`hidden_sizes` must have one entry for each of the 4 stages"),
        ("num_attention_heads", [1, 2, 4], "`num_attention_heads` must have one entry"),
        ("reduction_ratios", [[64], [16]], "`reduction_ratios` must have one entry"),
        (
            "num_attention_heads",
            [1, 2, 3, 8],
            "`num_attention_heads`.*256 channels and 3 heads in stage 3",
        ),
        ("reduction_ratios", [[64], [0.5], [4], [1]], "`reduction_ratios` must hold finite numbers of at least 1"),
        ("reduction_ratios", [[64], [], [4], [1]], "`reduction_ratios` must hold finite numbers of at least 1"),
        ("reduction_ratios", [["x"], [4], [4], [1]], "`reduction_ratios` must hold finite numbers of at least 1"),
        ("reduction_ratios", [[float("nan")], [4], [4], [1]], "`reduction_ratios` must hold finite numbers"),
        ("depths", [], "`depths` must have at least one stage"),
        ("depths", [1, 0, 1, 1], "`depths` must be positive"),
        ("strides", [4, 2, -2, 2], "`strides` must be positive"),
        ("mlp_ratios", [4, 4, 0, 4], "`mlp_ratios` must be positive"),
        ("mlp_ratios", [4, 4, 4, 0.001], "`mlp_ratios` must leave at least one channel, got 0.001 of 512 in stage 4"),
        ("layer_norm_eps", -1.0, "`layer_norm_eps` must be positive"),
        ("num_channels", 0, "`num_channels` must be positive"),
        ("num_neighbors", 0, "`num_neighbors` must be positive"),
        ("cluster_assignment", "kmeans", "`cluster_assignment` must be one of .*density_parent.*got 'kmeans'"),
        ("cluster_sharing", "image", "`cluster_sharing` must be one of .*'block', 'stage'.*got 'image'"),
        ("cluster_window", 0, "`cluster_window` must be positive"),
        ("max_clusters", -3, "`max_clusters` must be positive"),
        ("drop_path_rate", 1.0, r"`drop_path_rate` must be in \[0, 1\)"),
        ("hidden_dropout_prob", -0.1, "`hidden_dropout_prob` must be in"),
        ("segmentation_head", "fcn", "`segmentation_head` must be one of .*'semantic_fpn', 'upernet'.*got 'fcn'"),
        ("fpn_hidden_size", 0, "`fpn_hidden_size` must be positive"),
        ("pool_scales", [1, 0], "`pool_scales` must be positive"),
        ("auxiliary_loss_weight", -0.4, "`auxiliary_loss_weight` must not be negative, got -0.4"),
        ("classifier_dropout_prob", 1.0, r"`classifier_dropout_prob` must be in \[0, 1\)"),
        ("semantic_class_weights", [1.0, -1.0], "`semantic_class_weights` must be non-negative and not all 0"),
        ("semantic_class_weights", [0.0, 0.0], "`semantic_class_weights` must be non-negative and not all 0"),
        ("semantic_class_weights", [], "`semantic_class_weights` must be non-negative and not all 0"),
        ("anchor_sizes", [32, 64, 0], "`anchor_sizes` must be positive"),
        ("anchor_aspect_ratios", [-1.0], "`anchor_aspect_ratios` must be positive"),
        ("detection_score_threshold", 1.0, r"`detection_score_threshold` must be in \[0, 1\)"),
        ("detection_nms_threshold", 0.0, r"`detection_nms_threshold` must be in \(0, 1\], got 0.0"),
        ("detections_per_image", 0, "`detections_per_image` must be positive"),
        ("roi_batch_size", -1, "`roi_batch_size` must be positive"),
        ("box_head_hidden_size", 0, "`box_head_hidden_size` must be positive"),
        ("mask_head_hidden_size", 0, "`mask_head_hidden_size` must be positive"),
    ],
)
def test_values_that_do_not_fit_are_named(field, value, message):
    with pytest.raises(ValueError, match=message):
        ClusTRConfig(**{field: value})


@pytest.mark.parametrize(
    "field, value", [("num_channels", "3"), ("depths", 4), ("qkv_bias", "yes"), ("cluster_window", 7.5)]
)
def test_wrong_types_are_named(field, value):
    with pytest.raises((StrictDataclassError, TypeError), match=field):
        ClusTRConfig(**{field: value})


def test_a_changed_configuration_is_checked_before_it_is_saved(tmp_path):
    config = ClusTRConfig()
    config.depths = [1, 1]
    with pytest.raises(StrictDataclassError, match="must have one entry for each of the 2 stages"):
        config.save_pretrained(tmp_path)


def test_unknown_activation_is_named():
    with pytest.raises(ValueError, match=r"`hidden_act` must be one of .*'gelu'.* got 'gello'"):
        ClusTRForImageClassification(ClusTRConfig.from_variant("nano", hidden_act="gello"))


def test_unknown_variant_is_named():
    with pytest.raises(ValueError, match=r"`variant` must be one of .*'nano'.* got 'huge'"):
        ClusTRConfig.from_variant("huge")


def test_hidden_size_is_the_last_stage_whatever_happens_to_it(tmp_path):
    """`hidden_size` for composites of transformers: in files, dictionaries and variants, and after assignments."""
    config = ClusTRConfig.from_variant("nano", hidden_sizes=[16, 32, 64, 80], num_attention_heads=[1, 1, 2, 5])
    assert config.hidden_size == 80
    assert ClusTRConfig.from_dict(config.to_dict()).hidden_size == 80
    config.save_pretrained(tmp_path)
    assert ClusTRConfig.from_pretrained(tmp_path).hidden_size == 80
    assert ClusTRConfig.from_pretrained(tmp_path, hidden_sizes=[16, 32, 64, 160]).hidden_size == 160
    assert copy.deepcopy(config).hidden_size == 80
    config.hidden_sizes = [16, 32, 64, 160]
    assert config.hidden_size == 160
    config.hidden_size = 160
    assert ClusTRConfig(hidden_size=512).hidden_size == 512  # the same value, as other tools write it next to the list


@pytest.mark.parametrize(
    "make", [lambda: ClusTRConfig(hidden_size=768), lambda: setattr(ClusTRConfig(), "hidden_size", 768)]
)
def test_another_hidden_size_is_refused(make):
    with pytest.raises(ValueError, match=r"`hidden_size` must be the last of `hidden_sizes`, 512: .*got 768"):
        make()


def test_layout_of_the_last_hidden_state_is_a_flag(tmp_path):
    assert ClusTRConfig().flatten_last_hidden_state is False
    ClusTRConfig(flatten_last_hidden_state=True).save_pretrained(tmp_path)
    assert ClusTRConfig.from_pretrained(tmp_path).flatten_last_hidden_state is True
    with pytest.raises(StrictDataclassError, match="flatten_last_hidden_state"):
        ClusTRConfig(flatten_last_hidden_state="tokens")


def test_the_file_of_a_model_leaves_out_unused_heads(tmp_path):
    """Default fields of other heads are left out; the backbone's and the own head's fields are always stored."""
    classifier = ClusTRConfig.from_variant("tiny", architectures=["ClusTRForImageClassification"], pool_scales=[1, 3])
    stored = json.loads(classifier.to_json_string())
    assert stored["pool_scales"] == [1, 3] and stored["num_neighbors"] == 5 and stored["depths"] == [1, 2, 6, 1]
    heads = {field for fields in HEAD_FIELDS.values() for field in fields}
    assert heads & set(stored) == {"pool_scales"}
    for name, fields in HEAD_FIELDS.items():
        assert heads & set(json.loads(ClusTRConfig(architectures=[name]).to_json_string())) == set(fields)
    for names in (None, ["MyClusTR"], ["ClusTRModel", "MyClusTR"]):  # the fields of these are unknown
        assert heads <= set(json.loads(ClusTRConfig(architectures=names).to_json_string()))
    assert heads <= set(classifier.to_dict())
    classifier.save_pretrained(tmp_path)
    reloaded = ClusTRConfig.from_pretrained(tmp_path)
    for copied in (
        reloaded,
        ClusTRConfig.from_dict(stored),
        copy.deepcopy(classifier),
        pickle.loads(pickle.dumps(classifier)),
    ):
        for field in heads | {"num_labels", *PER_STAGE_FIELDS}:
            assert getattr(copied, field) == getattr(classifier, field)


def test_a_saved_model_knows_its_head(tmp_path):
    config = ClusTRConfig.from_variant("nano", num_labels=3)
    ClusTRForImageClassification(config).save_pretrained(tmp_path / "classifier")
    stored = json.loads((tmp_path / "classifier" / "config.json").read_text())
    assert "anchor_sizes" not in stored and "flip_pairs" not in stored
    config = ClusTRConfig.from_pretrained(tmp_path / "classifier")
    assert config.anchor_sizes == [32, 64, 128, 256, 512] and config.decoder_hidden_size == 64
    ClusTRForObjectDetection(config).save_pretrained(tmp_path / "detector")
    stored = json.loads((tmp_path / "detector" / "config.json").read_text())
    assert stored["anchor_sizes"] == config.anchor_sizes and "flip_pairs" not in stored
