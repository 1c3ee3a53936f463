"""The model: parity with the authors' release, invariances, gradients, precisions, sizes, errors."""

import itertools
import json
import math
import time

import pytest
import torch
from hub_repositories import make_model
from tiny_models import tiny_classifier, tiny_config
from torch import nn

from clustr_hf import ClusTRBackbone, ClusTRConfig, ClusTRForImageClassification, ClusTRModel, find_clusters
from clustr_hf.convert_checkpoint import convert_checkpoint
from clustr_hf.remote_code import feed_forward_fused_clustr
from clustr_hf.remote_code.modeling_clustr import ClusTRMLP
from clustr_hf.remote_code.modeling_clustr_attention import (
    ClusTRAttention,
)
from clustr_hf.remote_code.modeling_clustr_calls import check_finite
from clustr_hf.remote_code.modeling_clustr_embeddings import ClusTRPatchEmbeddings


@pytest.fixture
def released_model(shared, tmp_path):
    return convert_checkpoint(shared / "parity" / "clustr_release_small.safetensors", tmp_path / "converted").eval()


def test_parity_with_the_authors_release_in_float64(recording, released_model):
    tensors, _ = recording
    model = released_model.double()
    with torch.no_grad():
        output = model.clustr(tensors["input.pixel_values"], output_hidden_states=True, output_clusters=True)
        logits = model(tensors["input.pixel_values"]).logits
    recorded = [name for name in tensors if name.endswith("cluster_index")]
    assert len(recorded) == sum(len(scales) for scales in output.cluster_indices)
    for layer, scales in enumerate(output.cluster_indices):
        for scale, cluster_index in enumerate(scales):
            assert torch.equal(cluster_index, tensors[f"clustering.layer{layer}.scale{scale}.cluster_index"])
    for stage, features in enumerate(output.hidden_states[1:], start=1):
        tokens = features.flatten(2).mT
        torch.testing.assert_close(tokens, tensors[f"output.stage{stage}_tokens"], rtol=0, atol=1e-9)
    torch.testing.assert_close(logits, tensors["output.logits"], rtol=0, atol=1e-9)


def test_parity_with_the_authors_release_in_float32(recording, released_model):
    tensors, _ = recording
    with torch.no_grad():
        logits = released_model(tensors["input.pixel_values"].float()).logits
    torch.testing.assert_close(logits.double(), tensors["output.logits"], rtol=0, atol=1e-4)


def test_clusters_of_recorded_tokens_are_the_authors(recording):
    tensors, metadata = recording
    ratios, depths = json.loads(metadata["reduction_ratios"]), json.loads(metadata["depths"])
    stage_of_layer = [stage for stage, depth in enumerate(depths) for _ in range(depth)]
    for layer in range(5):
        tokens = tensors[f"clustering.layer{layer}.tokens"]
        num_clusters = [tokens.shape[1] // ratio for ratio in ratios[stage_of_layer[layer]]]
        for scale, found in enumerate(find_clusters(tokens, num_clusters, assignment="nearest_center")):
            assert torch.equal(found, tensors[f"clustering.layer{layer}.scale{scale}.cluster_index"])


@pytest.mark.parametrize("assignment", ["density_parent", "nearest_center"])
def test_an_image_does_not_depend_on_its_batch(assignment):
    model = tiny_classifier(cluster_assignment=assignment)
    images = torch.randn(7, 3, 96, 128)
    with torch.no_grad():
        outputs = {size: model.clustr(images[:size], output_clusters=True) for size in (1, 2, 7)}
        again = model.clustr(images, output_clusters=True)
        logits = {size: model(images[:size]).logits for size in (1, 2, 7)}
    for output in (outputs[1], outputs[2], again):
        for scales, reference in zip(output.cluster_indices, outputs[7].cluster_indices):
            for a, b in zip(scales, reference):
                assert torch.equal(a[0], b[0])
    for size in (1, 2):
        torch.testing.assert_close(logits[size], logits[7][:size], rtol=0, atol=1e-5)
    assert torch.equal(again.last_hidden_state, outputs[7].last_hidden_state)


@pytest.mark.parametrize("size", [(32, 32), (57, 83), (224, 224), (512, 800)])
def test_any_size_runs(size):
    height, width = size
    with torch.no_grad():
        output = ClusTRModel(tiny_config())(torch.randn(1, 3, height, width), output_hidden_states=True)
    shapes = [tuple(state.shape[2:]) for state in output.hidden_states]
    strides = (4, 4, 8, 16, 32)
    assert shapes == [(-(-height // stride), -(-width // stride)) for stride in strides]
    assert all(state.isfinite().all() for state in output.hidden_states)


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0])
def test_a_constant_image_runs(value):
    with torch.no_grad():
        assert tiny_classifier()(torch.full((2, 3, 64, 64), value)).logits.isfinite().all()


@pytest.mark.parametrize(
    "pixel_values, message",
    [
        (torch.zeros(3, 64, 64), r"shape \(B, 3, H, W\), got \(3, 64, 64\)"),
        ([1, 2], r"shape \(B, 3, H, W\), got list"),
        (torch.zeros(1, 1, 64, 64), "must have 3 channels"),
        (torch.zeros(1, 3, 31, 64), "at least 32 pixels"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "must be floating point"),
    ],
)
@pytest.mark.parametrize("model_class", [ClusTRModel, ClusTRBackbone, ClusTRForImageClassification])
def test_wrong_pixel_values_are_named(model_class, pixel_values, message):
    with pytest.raises(ValueError, match=f"`pixel_values` .*{message}"):
        model_class(tiny_config())(pixel_values)


def test_output_shapes_are_the_documented_ones():
    config = tiny_config(attn_implementation="eager")
    model = ClusTRModel(config).eval()
    with torch.no_grad():
        output = model(
            torch.randn(2, 3, 64, 96), output_hidden_states=True, output_attentions=True, output_clusters=True
        )
    assert output.last_hidden_state.shape == (2, 64, 2, 3)
    torch.testing.assert_close(output.pooler_output, output.last_hidden_state.mean(dim=(2, 3)))
    assert [tuple(state.shape) for state in output.hidden_states] == [
        (2, 16, 16, 24),
        (2, 16, 16, 24),
        (2, 32, 8, 12),
        (2, 32, 4, 6),
        (2, 64, 2, 3),
    ]
    # N tokens in each stage are 384, 96, 24, 6; the ratios {64, 16}, {16, 4}, {4, 1}, {1}.
    keys = [6 + 24, 6 + 24, 6 + 24, 6 + 24, 6]
    queries, heads = [384, 96, 96, 24, 6], [1, 2, 2, 2, 4]
    assert [tuple(weights.shape) for weights in output.attentions] == [
        (2, head, query, key) for head, query, key in zip(heads, queries, keys)
    ]
    for weights, scales in zip(output.attentions, [2, 2, 2, 2, 1]):
        torch.testing.assert_close(weights.sum(dim=-1), torch.full(weights.shape[:-1], float(scales)))
    assert len(output.cluster_indices) == 4
    for scales, tokens in zip(output.cluster_indices, [384, 96, 96, 24]):
        assert [tuple(index.shape) for index in scales] == [(2, tokens), (2, tokens)]
        assert [index.max().item() + 1 for index in scales] == [6, 24]


def test_the_classifier_hands_on_clusters_and_states():
    model = tiny_classifier()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        output = model(images, output_clusters=True, output_hidden_states=True)
        inner = model.clustr(images, output_clusters=True, output_hidden_states=True)
        as_tuple = model(images, return_dict=False)
    for found, expected in zip(output.cluster_indices, inner.cluster_indices):
        assert all(torch.equal(a, b) for a, b in zip(found, expected))
    assert len(output.hidden_states) == 5
    assert len(as_tuple) == 1 and torch.equal(as_tuple[0], output.logits)


@pytest.mark.parametrize("model_class", [ClusTRModel, ClusTRBackbone, ClusTRForImageClassification])
def test_tuples_by_configuration_equal_tuples_by_argument(model_class):
    model = model_class(tiny_config()).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        by_argument = model(images, return_dict=False)
        model.config.return_dict = False
        by_configuration = model(images)
    assert type(by_argument) is type(by_configuration) is tuple
    torch.testing.assert_close(by_configuration, by_argument)


def test_outputs_are_returned_only_when_asked_for():
    output = ClusTRModel(tiny_config())(torch.randn(1, 3, 64, 64))
    assert list(output.keys()) == ["last_hidden_state", "pooler_output"]


def test_eager_and_sdpa_agree():
    eager, sdpa = tiny_classifier(attn_implementation="eager"), tiny_classifier(attn_implementation="sdpa")
    sdpa.load_state_dict(eager.state_dict())
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(eager(images).logits, sdpa(images).logits, rtol=1e-4, atol=1e-5)


def test_a_window_as_large_as_the_image_changes_nothing():
    torch.manual_seed(0)
    model, image = tiny_classifier(), torch.randn(2, 3, 72, 96)
    windowed = tiny_classifier(cluster_window=24)
    windowed.load_state_dict(model.state_dict())
    assert torch.equal(windowed(image).logits, model(image).logits)
    windowed.config.cluster_window = 5
    assert not torch.equal(windowed(image).logits, model(image).logits)


def test_sharing_clusters_in_stages_of_one_block_changes_nothing():
    torch.manual_seed(0)
    image = torch.randn(2, 3, 64, 64)
    model = tiny_classifier(depths=[1, 1, 1, 1])
    sharing = tiny_classifier(depths=[1, 1, 1, 1], cluster_sharing="stage")
    sharing.load_state_dict(model.state_dict())
    assert torch.equal(sharing(image).logits, model(image).logits)


def test_shared_clusters_are_those_of_the_first_block():
    torch.manual_seed(0)
    image = torch.randn(2, 3, 64, 64)
    model = tiny_classifier(depths=[3, 1, 1, 1])
    own = model(image, output_clusters=True).cluster_indices
    model = tiny_classifier(depths=[3, 1, 1, 1], cluster_sharing="stage").eval()
    shared = model(image, output_clusters=True).cluster_indices
    assert len(own) == len(shared) == 5
    for later in shared[1:3]:
        assert all(torch.equal(a, b) for a, b in zip(later, shared[0]))
    assert not torch.equal(own[1][1], own[0][1])


def test_max_clusters_caps_every_scale():
    torch.manual_seed(0)
    image = torch.randn(2, 3, 128, 128)
    model = tiny_classifier()
    capped = tiny_classifier(max_clusters=6, attn_implementation="eager")
    capped.load_state_dict(model.state_dict())
    output = capped(image, output_clusters=True, output_attentions=True)
    # 1024, 256, 64 and 16 tokens; stage 4 clusters only because of the cap.
    assert [weights.shape[-1] for weights in output.attentions] == [12, 12, 12, 12, 6]
    assert [[int(index.max()) + 1 for index in scales] for scales in output.cluster_indices] == [[6, 6]] * 4 + [[6]]
    capped.config.max_clusters = 1024
    torch.testing.assert_close(capped(image).logits, model(image).logits)


def test_a_stage_without_weights_merges_capped_clusters_to_their_means():
    torch.manual_seed(0)
    attention = ClusTRAttention(tiny_config(max_clusters=3), stage_index=3).eval()
    tokens = torch.randn(1, 10, 64)
    _, _, (cluster_index,) = attention(tokens)
    merged = torch.stack([tokens[0, cluster_index[0] == m].mean(dim=0) for m in range(3)])
    query = attention.q_proj(tokens).view(1, 10, 4, 16).transpose(1, 2)
    key, value = attention.kv_projs[0](merged[None]).view(1, 3, 2, 4, 16).permute(2, 0, 3, 1, 4)
    weights = (query @ key.mT / 4).softmax(dim=-1)
    expected = attention.o_proj((weights @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(tokens)[0], expected, rtol=1e-4, atol=1e-5)


SPEED_OPTIONS = {"cluster_window": 9, "cluster_sharing": "stage", "max_clusters": 7}


def test_all_speed_options_together_train_save_and_compile(tmp_path):
    torch.manual_seed(0)
    model = ClusTRForImageClassification(tiny_config(**SPEED_OPTIONS))
    image = torch.randn(2, 3, 100, 76)
    model(image, labels=torch.tensor([0, 1])).loss.backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not missing
    model.eval().save_pretrained(tmp_path)
    reloaded = ClusTRForImageClassification.from_pretrained(tmp_path)
    assert {name: getattr(reloaded.config, name) for name in SPEED_OPTIONS} == SPEED_OPTIONS
    logits = model(image).logits
    assert torch.equal(reloaded(image).logits, logits)
    compiled = torch.compile(reloaded, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(image).logits, logits, rtol=1e-4, atol=1e-5)
    for one in range(2):
        torch.testing.assert_close(model(image[one : one + 1]).logits, logits[one : one + 1], rtol=1e-4, atol=1e-5)


def test_position_embeddings_are_a_linear_function_of_waves_of_the_coordinates():
    config = tiny_config(use_absolute_position_embeddings=True)
    embeddings, plain = ClusTRPatchEmbeddings(config, 0).eval(), ClusTRPatchEmbeddings(tiny_config(), 0).eval()
    plain.load_state_dict(embeddings.state_dict(), strict=False)
    images, weight = torch.randn(2, 3, 12, 20), embeddings.position_embeddings.projection.weight
    with torch.no_grad():
        added = embeddings(images) - plain(images) - embeddings.position_embeddings.projection.bias[:, None, None]
        for row, column in itertools.product(range(3), range(5)):  # stride 4
            place = [(row + 0.5) / 3 - 0.5, (column + 0.5) / 5 - 0.5]
            waves = [wave(2 * math.pi * n * x) for n in (1, 2) for wave in (math.sin, math.cos) for x in place]
            expected = weight @ torch.tensor([*place, *waves])
            torch.testing.assert_close(added[:, :, row, column], expected.expand(2, -1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("attention_type", ["clustered", "spatial_reduction", "none"])
def test_models_with_position_embeddings_train_save_and_take_images_of_any_size(attention_type, tmp_path):
    fields = {"attention_type": attention_type, "reduction_ratios": [64, 16, 4, 1]}
    model = tiny_classifier(**fields, use_absolute_position_embeddings=True)
    for size in ((32, 32), (57, 83)):
        images = torch.randn(2, 3, *size)
        model.zero_grad()
        model(images, labels=torch.tensor([0, 1])).loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
    model.save_pretrained(tmp_path)
    reloaded = ClusTRForImageClassification.from_pretrained(tmp_path).eval()
    assert reloaded.config.use_absolute_position_embeddings is True
    assert torch.equal(reloaded(images).logits, model(images).logits)
    assert not any("position" in name for name in tiny_classifier(**fields).state_dict())


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_feed_forward_in_pieces_agrees_with_the_whole(activation, monkeypatch):
    """Compares groups of images, and images in strips of rows, with the plain form, without gradient on CPUs."""
    torch.manual_seed(0)
    mlp = ClusTRMLP(tiny_config(hidden_act=activation), stage_index=1).eval()
    tokens = torch.randn(5, 11 * 7, 32)
    features = mlp.fc1(tokens)
    maps = features.view(5, 11, 7, 64).permute(0, 3, 1, 2)
    hidden = mlp.activation(features + mlp.depthwise(maps).flatten(2).mT)  # as in the authors' release
    expected = mlp.fc2(hidden)
    torch.testing.assert_close(mlp(tokens, (11, 7)), expected)
    torch.testing.assert_close(ClusTRMLP.forward.__wrapped__(mlp, tokens, (11, 7)), expected)  # the plain form
    for rows in (1, 3, 5, 11, 22, 10**6):
        monkeypatch.setattr(feed_forward_fused_clustr, "FEED_FORWARD_ELEMENTS", rows * 7 * 64)
        with torch.no_grad():
            torch.testing.assert_close(mlp(tokens, (11, 7)), expected)


@pytest.fixture
def private_operator(monkeypatch):
    """Replaces the private operator, and forgets whether it works."""

    def replace(operator):
        monkeypatch.setattr(torch.ops.mkldnn, "_convolution_pointwise", operator, raising=False)
        feed_forward_fused_clustr._convolve_with_gelu_works.cache_clear()

    yield replace
    feed_forward_fused_clustr._convolve_with_gelu_works.cache_clear()


def missing(*args):
    raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_convolution_pointwise'")


def of_another_signature(features, kernel):
    raise AssertionError("not called with these arguments")


def of_another_meaning(features, *args):
    return features


@pytest.mark.parametrize("operator", [missing, of_another_signature, of_another_meaning])
def test_without_the_private_operator_the_public_ones_run(operator, private_operator):
    mlp = ClusTRMLP(tiny_config(), stage_index=1).eval()
    tokens = torch.randn(2, 11 * 7, 32)
    with torch.no_grad():
        expected = ClusTRMLP.forward.__wrapped__(mlp, tokens, (11, 7))
        private_operator(operator)
        torch.testing.assert_close(mlp(tokens, (11, 7)), expected)
    assert not feed_forward_fused_clustr._convolve_with_gelu_works()


def test_gradients_agree_with_finite_differences():
    """Gradients of the attention, for its tokens (while clusters do not change) and for every parameter."""
    config = tiny_config(attn_implementation="eager")
    attention = ClusTRAttention(config, stage_index=1).double()
    nn.init.normal_(attention.token_weight.weight, std=0.5)
    tokens = torch.randn(1, 16, 32, dtype=torch.float64, requires_grad=True)
    parameters = dict(attention.named_parameters())

    def run(tokens, *values):
        return torch.func.functional_call(attention, dict(zip(parameters, values)), (tokens,))[0]

    assert torch.autograd.gradcheck(run, (tokens, *parameters.values()), fast_mode=True)


def test_all_parameters_receive_a_gradient():
    model = tiny_classifier().train()
    model(torch.randn(4, 3, 96, 96), labels=torch.tensor([0, 1, 2, 3])).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    # A key bias shifts all scores of a query equally and cancels, so only weights must have an effect.
    weights = [(name, p) for name, p in model.named_parameters() if name.endswith("weight")]
    assert [name for name, p in weights if p.grad.abs().max() < 1e-9] == []


def test_gradient_checkpointing_changes_nothing():
    plain, checkpointed = tiny_classifier(), tiny_classifier()
    checkpointed.load_state_dict(plain.state_dict())
    checkpointed.gradient_checkpointing_enable()
    images, labels = torch.randn(2, 3, 64, 64), torch.tensor([0, 1])
    for model in (plain.train(), checkpointed.train()):
        model(images, labels=labels).loss.backward()
    for a, b in zip(plain.parameters(), checkpointed.parameters()):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_half_precision_weights_run(dtype):
    model = tiny_classifier().train()
    images, labels = torch.randn(2, 3, 64, 64), torch.tensor([0, 1])
    with torch.autocast("cpu", dtype=dtype):
        loss = model(images, labels=labels).loss
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        logits = tiny_classifier().to(dtype)(images).logits
    assert logits.dtype == dtype and logits.isfinite().all()


@pytest.mark.parametrize("rate", ["drop_path_rate", "hidden_dropout_prob", "attention_probs_dropout_prob"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_each_kind_of_dropout_acts_in_training_only(rate, implementation):
    model = tiny_classifier(**{rate: 0.5}, attn_implementation=implementation)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(images).logits, model(images).logits)
        model.train()
        assert not torch.equal(model(images).logits, model(images).logits)


def test_drop_path_keeps_the_expectation():
    from clustr_hf.remote_code.modeling_clustr import ClusTRDropPath

    drop_path = ClusTRDropPath(0.25).train()
    dropped = drop_path(torch.ones(4000, 1, 1))
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.05)


def test_drop_path_grows_linearly_over_the_blocks():
    model = ClusTRModel(tiny_config(depths=[1, 2, 1, 1], drop_path_rate=0.4))
    rates = [block.drop_path.drop_probability for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


def test_model_can_be_traced():
    model = tiny_classifier()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        traced = torch.jit.trace(model, images, strict=False)
        torch.testing.assert_close(traced(images + 1)["logits"], model(images + 1).logits)


@pytest.mark.slow
def test_whole_classifier_compiles_without_graph_breaks():
    model = tiny_classifier()
    compiled = torch.compile(model, fullgraph=True)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images).logits, model(images).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_compiled_training_step_matches():
    model = tiny_classifier().train()
    images, labels = torch.randn(2, 3, 64, 64), torch.tensor([0, 1])
    model(images, labels=labels).loss.backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    # After other tests compiled other sizes, this graph would be dynamic, which torch 2.14 cannot compile.
    torch.compiler.reset()
    torch.compile(model, fullgraph=True)(images, labels=labels).loss.backward()
    for parameter, gradient in zip(model.parameters(), expected):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5)


def test_backbone_returns_the_models_maps(tmp_path):
    classifier = tiny_classifier()
    classifier.save_pretrained(tmp_path)
    names = ["stem", "stage1", "stage2", "stage3", "stage4"]
    backbone = ClusTRBackbone.from_pretrained(tmp_path, out_features=names).eval()
    assert backbone.channels == [16, 16, 32, 32, 64]
    images = torch.randn(2, 3, 96, 160)
    with torch.no_grad():
        maps = backbone(images).feature_maps
        states = classifier.clustr(images, output_hidden_states=True).hidden_states
    assert [tuple(m.shape[2:]) for m in maps] == [(24, 40), (24, 40), (12, 20), (6, 10), (3, 5)]
    for a, b in zip(maps, states):
        torch.testing.assert_close(a, b)


def test_fine_tuning_takes_a_new_head_and_keeps_the_backbone(tmp_path):
    classifier = tiny_classifier()
    classifier.save_pretrained(tmp_path)
    tuned = ClusTRForImageClassification.from_pretrained(tmp_path, num_labels=9, ignore_mismatched_sizes=True)
    assert tuned.classifier.out_features == 9
    for a, b in zip(classifier.clustr.parameters(), tuned.clustr.parameters()):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "problem_type, labels, reference",
    [
        ("single_label_classification", torch.tensor([1, 4]), nn.functional.cross_entropy),
        ("multi_label_classification", torch.eye(5)[:2], nn.functional.binary_cross_entropy_with_logits),
    ],
)
def test_losses_are_pytorchs(problem_type, labels, reference):
    model = tiny_classifier(problem_type=problem_type)
    output = model(torch.randn(2, 3, 64, 64), labels=labels)
    torch.testing.assert_close(output.loss, reference(output.logits, labels))


@pytest.mark.parametrize("accumulation", [1, 4])
def test_trainer_logs_the_mean_loss_over_accumulated_batches(tmp_path, accumulation):
    """The loss is a mean over the batch. Unless Trainer knows this, accumulation multiplies the logged loss."""
    from transformers import Trainer, TrainingArguments

    model = tiny_classifier()
    images, labels = torch.randn(8, 3, 64, 64), torch.arange(8) % 5
    with torch.no_grad():
        expected = model(images, labels=labels).loss.item()
    args = TrainingArguments(
        output_dir=str(tmp_path),
        report_to="none",
        max_steps=1,
        logging_steps=1,
        per_device_train_batch_size=8 // accumulation,
        gradient_accumulation_steps=accumulation,
    )
    data = [{"pixel_values": image, "labels": label} for image, label in zip(images, labels)]
    trainer = Trainer(model=model, args=args, train_dataset=data)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-3)


def test_initialisation_is_the_authors():
    model = ClusTRForImageClassification(ClusTRConfig.from_variant("nano"))
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.LayerNorm)):
            assert (module.bias == 0).all()
        if isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all()
        elif isinstance(module, nn.Linear) and module.weight.numel() > 1000:
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1)
        elif isinstance(module, nn.Conv2d) and module.weight.numel() > 1000:
            fan_out = module.out_channels * 9 // module.groups
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)


HEADS = {
    "classification": ClusTRForImageClassification,
    "model": ClusTRModel,
    "backbone": ClusTRBackbone,
}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("head", HEADS)
def test_pixels_that_are_not_finite_are_refused(head, value):
    model = HEADS[head](ClusTRConfig.from_variant("nano")).eval()
    pixel_values = torch.randn(3, 3, 64, 64)
    model(pixel_values)
    pixel_values[1, 2, 40, 7] = value
    for images in (pixel_values, pixel_values.double(), pixel_values.to(torch.bfloat16)):
        with pytest.raises(ValueError, match=r"`pixel_values` must be finite .* in the images \[1\] of 3"):
            model(images)
    with pytest.raises(ValueError, match=r"finite as torch.float16, got NaN or infinity in the images \[0\] of 1"):
        model.half()(torch.full((1, 3, 64, 64), 1e6))


def test_every_task_refuses_pixels_that_are_not_finite():
    for kind in ("semantic_fpn", "upernet", "detection", "instances", "poses"):
        model, _ = make_model(kind)
        pixel_values = torch.zeros(2, 3, 64, 64)
        pixel_values[0, 0, 0, 0] = math.nan
        with pytest.raises(ValueError, match="`pixel_values` must be finite"):
            model(pixel_values)


def test_graphs_do_not_look_at_values_and_the_check_costs_little():
    """A traced model returns NaN for an image with NaN, and leaves the other images unchanged."""
    model = ClusTRForImageClassification(ClusTRConfig.from_variant("nano", attention_type="spatial_reduction"))
    model.eval().requires_grad_(False)
    pixel_values = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        traced = torch.jit.trace(lambda images: model(images).logits, pixel_values, check_trace=False)
        expected, wrong = model(pixel_values).logits, pixel_values.clone()
        wrong[1, 0, 3, 4] = math.nan
        found = traced(wrong)
        seconds = {"model": [], "check": []}
        for _ in range(5):
            for name, call in (("model", model), ("check", check_finite)):
                start = time.perf_counter()
                call(pixel_values)
                seconds[name].append(time.perf_counter() - start)
    torch.testing.assert_close(found[0], expected[0])
    assert found[1].isnan().all()
    mapped = torch.func.vmap(lambda image: model(image[None]).logits[0])(wrong)
    assert mapped[1].isnan().all() and mapped[0].isfinite().all()
    assert min(seconds["check"]) < 0.03 * min(seconds["model"])
