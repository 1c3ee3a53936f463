"""The calibration of converted models; oracles are sources that the converted attention can equal, and numpy."""

import numpy as np
import pytest
import torch
from transformers import PvtV2Config, PvtV2ForImageClassification, SegformerConfig, SegformerForSemanticSegmentation

from clustr_hf import ClusTRForImageClassification
from clustr_hf.convert_checkpoint import calibrate, convert_grid_backbone
from clustr_hf.convert_checkpoint.calibration import PRIOR_WEIGHT
from clustr_hf.convert_checkpoint.recorded_attention import cell_of_each_token, paired_attentions, record_attentions


TINY = {"depths": [1, 2, 1, 1], "hidden_sizes": [8, 16, 24, 32], "num_attention_heads": [1, 2, 3, 4]}
TINY |= {"mlp_ratios": [2, 2, 2, 2], "num_labels": 3}


def randomized(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.2 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="module")
def source():
    return randomized(PvtV2ForImageClassification(PvtV2Config(**TINY)))


@pytest.fixture(scope="module")
def segmenter():
    return randomized(SegformerForSemanticSegmentation(SegformerConfig(**TINY)))


def images(number=8, height=64, width=96):
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(number, 3, height // 8, width // 8, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")


def test_cells_of_tokens():
    # 5 x 7 tokens in cells of 2 x 2: the last row and column belong to the cells beside them.
    columns = [0, 0, 1, 1, 2, 2, 2]
    expected = [[c + 3 * r for c in columns] for r in (0, 0, 1, 1, 1)]
    assert cell_of_each_token((5, 7), 2).reshape(5, 7).tolist() == expected


def test_recordings_are_those_of_the_source(source, segmenter):
    for model in (source, segmenter):
        pairs = paired_attentions(convert_grid_backbone(model), model)
        assert list(pairs) == [(0, 0), (1, 0), (1, 1), (2, 0)]  # stage 4 reduces nothing
        recordings = record_attentions(model, pairs, images(2))
        grid = convert_grid_backbone(model, attention_type="spatial_reduction")
        for place, recording in recordings.items():
            # The source's attention again, as ClusTR's attention to a grid.
            attention = grid.clustr.stages[place[0]].blocks[place[1]].attention
            output = attention(recording.tokens, recording.size)[0]
            torch.testing.assert_close(output, recording.output, atol=1e-5, rtol=1e-5)
            (reduced,), _ = attention._aggregate(recording.tokens, recording.size, None)
            by_cell = attention.kv_projs[0](reduced)
            cells = cell_of_each_token(recording.size, pairs[place].cell)
            torch.testing.assert_close(recording.keys_and_values, by_cell[:, cells], atol=1e-5, rtol=1e-5)


def test_linear_keys_are_recovered_exactly():
    """If the source reduces nothing, the keys of a cluster's mean are linear in it, and the fit finds them again."""
    source = randomized(PvtV2ForImageClassification(PvtV2Config(**TINY, sr_ratios=[1, 1, 1, 1])))
    model = convert_grid_backbone(source, reduction_ratios=[[4], [2], [1], [1]])
    expected = outputs(model)
    with torch.no_grad():
        for projection in kv_projections(model):
            projection.weight.mul_(0.5)
    assert (outputs(model) - expected).abs().max() > 0.1
    calibrate(model, source, images(), show_progress=False)
    torch.testing.assert_close(outputs(model), expected, atol=5e-3, rtol=0)


@torch.no_grad()
def outputs(model):
    return model(images()).logits


def weights_of(attention):
    """Weights and bias of a single scale's key and value projection, (C + 1, 2C)."""
    projection = attention.kv_projs[0]
    return torch.cat([projection.weight, projection.bias[:, None]], dim=1).T.detach().double().numpy()


def kv_projections(model):
    blocks = [block for stage in model.clustr.stages for block in stage.blocks if block.attention.is_clustered]
    return [projection for block in blocks for projection in block.attention.kv_projs]


def test_least_squares_equal_those_of_numpy(source):
    """One block against `lstsq` on the same tokens; the prior is written as further rows."""
    model = convert_grid_backbone(source, reduction_ratios=[[64], [16], [4], [1]])
    pixel_values = images(24)
    pair = paired_attentions(model, source)[2, 0]
    recording = record_attentions(source, {(2, 0): pair}, pixel_values)[2, 0]
    (index,) = pair.find_clusters(recording)
    inputs, targets = [], []
    for tokens, keys, clusters in zip(recording.tokens, recording.keys_and_values, index):
        for cluster in range(int(index.max()) + 1):
            inputs.append(tokens[clusters == cluster].mean(dim=0).numpy())
            targets.append(keys[clusters == cluster].mean(dim=0).numpy())
    design = np.column_stack([np.stack(inputs), np.ones(len(inputs))]).astype(np.float64)
    prior = np.eye(design.shape[1]) * (PRIOR_WEIGHT * (design**2).sum(axis=0).mean()) ** 0.5
    rows = np.concatenate([design, prior]), np.concatenate([np.stack(targets), prior @ weights_of(pair.ours)])
    expected = np.linalg.lstsq(*rows, rcond=None)[0]
    before = weights_of(pair.ours)
    calibrate(model, source, pixel_values, show_progress=False)
    np.testing.assert_allclose(weights_of(pair.ours), expected, atol=1e-3)
    assert np.abs(expected - before).max() > 0.1


@pytest.mark.parametrize("kind", ["source", "segmenter"])
def test_each_step_lowers_the_errors(kind, request):
    source = request.getfixturevalue(kind)
    model = convert_grid_backbone(source)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen = []
    report = calibrate(
        *(model, source, images(), images()),
        num_steps=20,
        batch_size=4,
        learning_rate=3e-3,
        evaluate=lambda each: seen.append(each.training) or len(seen),
        show_progress=False,
    )
    assert list(report.errors) == ["as converted", "least squares", "transfer"]
    assert report.scores == {"as converted": 1, "least squares": 2, "transfer": 3}
    means = [sum(errors.values()) for errors in report.errors.values()]
    assert means[0] > means[1] > means[2] > 0
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert all(".kv_projs." in name or ".token_weight." in name for name in changed)
    assert any(".token_weight." in name for name in changed)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert report.as_table().splitlines()[2].startswith("| 1, 1 | ")


def test_is_reproducible_and_can_train_queries(source):
    results = []
    for _ in range(2):
        model = convert_grid_backbone(source)
        calibrate(model, source, images(), num_steps=3, batch_size=4, train_queries=True, show_progress=False)
        results.append(model.state_dict())
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())
    name = "clustr.stages.0.blocks.0.attention.q_proj.weight"
    assert not torch.equal(results[0][name], convert_grid_backbone(source).state_dict()[name])


@pytest.mark.parametrize(
    "options", [{"cluster_sharing": "stage"}, {"cluster_window": 4}, {"max_clusters": 3}, {"num_neighbors": 2}]
)
def test_clustering_options(source, options):
    model = convert_grid_backbone(source, **options)
    report = calibrate(model, source, images(), num_steps=2, batch_size=4, show_progress=False)
    assert sum(report.errors["transfer"].values()) < sum(report.errors["as converted"].values())


def test_the_fit_uses_the_same_number_of_clusters_in_every_image(source):
    fixed, content = (
        convert_grid_backbone(source, **options)
        for options in ({}, {"cluster_count": "content", "cluster_tolerance": 0.1})
    )
    for model in (fixed, content):
        calibrate(model, source, images(), num_steps=2, batch_size=4, show_progress=False)
    assert all(torch.equal(value, content.state_dict()[name]) for name, value in fixed.state_dict().items())
    assert (content.config.cluster_count, content.config.cluster_tolerance) == ("content", 0.1)
    assert not torch.equal(outputs(fixed), outputs(content))


def test_shared_clusters_are_those_of_the_first_block(source):
    model = convert_grid_backbone(source, cluster_sharing="stage").eval()
    report = calibrate(model, source, images(4), show_progress=False)
    pairs = paired_attentions(model, source)
    recordings = record_attentions(source, pairs, images(4))
    shared = pairs[1, 0].find_clusters(recordings[1, 0])
    output = pairs[1, 1].ours(recordings[1, 1].tokens, recordings[1, 1].size, shared)[0]
    target = recordings[1, 1].output
    error = (output - target).square().sum() / (target - target.mean(dim=(0, 1))).square().sum()
    assert report.errors["least squares"][1, 1] == pytest.approx(error.item(), rel=1e-4)


def test_projections_without_bias():
    source = randomized(PvtV2ForImageClassification(PvtV2Config(**TINY, qkv_bias=False)))
    model = convert_grid_backbone(source)
    report = calibrate(model, source, images(), show_progress=False)
    assert sum(report.errors["least squares"].values()) < sum(report.errors["as converted"].values())
    assert all(projection.bias is None for projection in kv_projections(model))


def test_wrong_arguments_are_refused(source, segmenter):
    model = convert_grid_backbone(source)
    with pytest.raises(ValueError, match="`pixel_values` must be a tensor"):
        calibrate(model, source, images(0))
    with pytest.raises(ValueError, match="`model` and `source` must be in float32"):
        calibrate(convert_grid_backbone(source).double(), source, images())
    with pytest.raises(ValueError, match="must be a ClusTR model with clustered attention"):
        calibrate(convert_grid_backbone(source, attention_type="spatial_reduction"), source, images())
    other = PvtV2ForImageClassification(PvtV2Config(**{**TINY, "depths": [1, 1, 1, 1]}))
    with pytest.raises(ValueError, match="`source` must be the model that `model` was converted from, with `depths`"):
        calibrate(model, other, images())
    with pytest.raises(ValueError, match="converted from, but has other patch embeddings"):
        calibrate(model, randomized(PvtV2ForImageClassification(PvtV2Config(**TINY)), seed=5), images())
    with pytest.raises(ValueError, match=r"`eval_pixel_values` must be a tensor .* got \(0, 3"):
        calibrate(model, source, images(), images(0))
    with pytest.raises(ValueError, match="`batch_size` must be at least 1, got 0"):
        calibrate(model, source, images(), batch_size=0)
    assert isinstance(model, ClusTRForImageClassification)


def test_a_transfer_that_diverges_is_an_error(source):
    model = convert_grid_backbone(source)
    with pytest.raises(FloatingPointError, match=r"`learning_rate` must be lower, got 1e\+30"):
        calibrate(model, source, images(4), num_steps=3, learning_rate=1e30, show_progress=False)


def test_stages_that_only_we_reduce_are_fitted(source):
    model = convert_grid_backbone(source, max_clusters=2)
    assert (3, 0) in paired_attentions(model, source)
