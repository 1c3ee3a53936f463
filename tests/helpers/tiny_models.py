"""Models for tests."""

from clustr_hf import ClusTRConfig, ClusTRForImageClassification


def tiny_config(**overrides):
    """A configuration with every feature of the paper's architecture, for a model that runs in milliseconds."""
    settings = {
        "hidden_sizes": [16, 32, 32, 64],
        "depths": [1, 2, 1, 1],
        "num_attention_heads": [1, 2, 2, 4],
        "mlp_ratios": [2, 2, 2, 2],
        "num_labels": 5,
        **overrides,
    }
    return ClusTRConfig(**settings)


def tiny_classifier(**overrides):
    return ClusTRForImageClassification(tiny_config(**overrides)).eval()
