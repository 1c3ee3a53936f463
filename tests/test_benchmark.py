"""The benchmark: what it records, what it reports, and that it counts and compares what it says."""

import importlib
import json
import math
import re
import statistics
import sys

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, run_process
from PIL import Image

from clustr_hf import ClusTRConfig
from clustr_hf.clustering_clustr import find_clusters


EXAMPLES = REPOSITORY / "examples"
OPTIONS = {"cluster_window": 5, "cluster_sharing": "stage", "max_clusters": 7}


@pytest.fixture
def measure():
    return importlib.import_module("benchmark_measure")


@pytest.fixture
def models():
    return importlib.import_module("benchmark_models")


def run_benchmark(folder, *arguments):
    """Run the script on clustr-nano unless the arguments say otherwise; what it wrote to `benchmark.json`."""
    command = [sys.executable, EXAMPLES / "benchmark.py", "--repeats", 2, "--warmup", 1, "--models", "clustr-nano"]
    run_process([*command, *arguments, "--output_dir", folder / "out"], folder)
    return json.loads((folder / "out" / "benchmark.json").read_text())


def assert_summary_follows_from_rounds(summary, seconds, reference, batch):
    """Everything that is reported, computed again from the raw times."""
    assert summary.keys() == seconds.keys()
    for name, times in seconds.items():
        ratios = sorted(time / other for time, other in zip(times, seconds[reference]))
        assert summary[name]["median_seconds"] == statistics.median(times)
        assert summary[name]["median_seconds_per_image"] == statistics.median(times) / batch
        ratio = summary[name]["ratio"]
        assert [ratio["min"], ratio["max"]] == pytest.approx([ratios[0], ratios[-1]])
        assert ratio["median"] == pytest.approx(statistics.median(ratios))
        quartiles = statistics.quantiles(ratios, n=4, method="inclusive")
        assert [ratio["lower_quartile"], ratio["upper_quartile"]] == pytest.approx([quartiles[0], quartiles[2]])


def test_times_models_in_both_passes_at_several_sizes(tmp_path):
    models = ["clustr-nano", "clustr-nano+options", "pvtv2-b1"]
    arguments = ["--models", *models, "--reference", "pvtv2-b1", "--passes", "forward", "training"]
    results = run_benchmark(tmp_path, *arguments, "--settings", "64x2", "64x96x2", "--max_clusters", 8)
    expected = [(64, width, 2, pass_name) for width in (64, 96) for pass_name in ("forward", "training")]
    assert [(e["height"], e["width"], e["batch"], e["pass"]) for e in results["times"]] == expected
    for entry in results["times"]:
        assert list(entry["seconds"]) == models
        assert all(len(times) == 2 and min(times) > 0 for times in entry["seconds"].values())
        assert_summary_follows_from_rounds(entry["models"], entry["seconds"], "pvtv2-b1", batch=2)
        shares = {name: model.get("clustering_share") for name, model in entry["models"].items()}
        assert shares["pvtv2-b1"] is None
        assert all(
            (0 < shares[name] < 1) if entry["pass"] == "forward" else shares[name] is None for name in models[:2]
        )

    assert [(entry["model"], entry["pass"]) for entry in results["growth"]] == [
        (name, pass_name) for pass_name in ("forward", "training") for name in models
    ]
    for entry in results["growth"]:
        small, large = entry["median_seconds"]
        assert entry["sizes"] == [[64, 64], [64, 96]]
        assert entry["exponent"] == pytest.approx(np.log(large / small) / np.log(96 / 64))
    assert [entry["model"] for entry in results["operations"]] == models * 2

    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"benchmark.{kind}" for kind in ("json", "md", "png")
    }
    tables = (tmp_path / "out" / "benchmark.md").read_text()
    assert all(f"\n| {name} | " in tables for name in models) and "64 x 96, batch 2, eager training" in tables
    with Image.open(tmp_path / "out" / "benchmark.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10


def test_measures_memory_of_a_backbone(tmp_path):
    arguments = ["--models", "clustr-nano-backbone", "--settings", "48x64x1", "--passes", "training", "--memory"]
    results = run_benchmark(tmp_path, *arguments, "--repeats", 0)
    (entry,) = results["memory"]
    assert results["times"] == []
    assert (entry["model"], entry["height"], entry["width"], entry["pass"]) == (*arguments[1:2], 48, 64, "training")
    # Gradients and both moments of AdamW are there at once, four bytes for each parameter.
    assert entry["peak_bytes"] > entry["increase_bytes"] > 3 * 4 * results["operations"][0]["parameters"]


def test_compares_clusterings(tmp_path):
    (entry,) = run_benchmark(tmp_path, "--settings", "--clustering", "3000x8")["clustering"]
    assert entry["num_clusters"] == [46, 187]
    assert list(entry["seconds"]) == ["find_clusters", "direct"]
    assert_summary_follows_from_rounds(entry["algorithms"], entry["seconds"], "direct", batch=1)
    assert entry["agreement"] > 0.98
    # The direct one holds N x N matrices of four bytes an entry; the memory of the other one is linear in N.
    matrix = 4 * 3000**2
    assert entry["memory"]["find_clusters"]["increase_bytes"] < matrix < entry["memory"]["direct"]["increase_bytes"]


@pytest.mark.slow
def test_times_compiled_models(tmp_path):
    (entry,) = run_benchmark(tmp_path, "--settings", "64x1", "--modes", "compiled")["times"]
    assert entry["mode"] == "compiled" and len(entry["seconds"]["clustr-nano"]) == 2


def test_interrupted_run_keeps_what_it_has(tmp_path, monkeypatch):
    benchmark = importlib.import_module("benchmark")
    time_models = benchmark.time_models

    def interrupted(args, setting, *others):
        if setting.width == 96:
            raise KeyboardInterrupt
        return time_models(args, setting, *others)

    monkeypatch.setattr(benchmark, "time_models", interrupted)
    arguments = ["--models", "clustr-nano", "--settings", "64x1", "96x1", "--repeats", "1", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments, "--output_dir", str(tmp_path)])
    with pytest.raises(KeyboardInterrupt):
        benchmark.main()
    (entry,) = json.loads((tmp_path / "benchmark.json").read_text())["times"]
    assert entry["width"] == 64
    assert {path.name for path in tmp_path.iterdir()} == {f"benchmark.{kind}" for kind in ("json", "md", "png")}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--models", "resnet"], r"--models: expected one of swin-tiny.*got 'resnet'"),
        (
            ["--models", "clustr-small+speed"],
            r"--models: .*SWITCH window, sharing, max or options, got 'clustr-small\+",
        ),
        (["--settings", "224"], r"--settings: expected SIZExBATCH or HEIGHTxWIDTHxBATCH.*got '224'"),
        (["--settings", "224x0"], r"--settings: expected SIZExBATCH"),
        (["--settings", "64x1"], r"--settings: expected at least 193 for swin-tiny, got 64x64x1"),
        (["--reference", "clustr-nano"], r"--reference: expected one of the models.*got 'clustr-nano'"),
        (["--clustering", "3136"], r"--clustering: expected TOKENSxCHANNELS.*got '3136'"),
        (["--warmup", "0"], r"--warmup: expected a whole number of at least 1, got '0'"),
    ],
)
def test_names_bad_arguments(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments])
    with pytest.raises(SystemExit):
        importlib.import_module("benchmark").parse_args()
    assert re.search(message, capsys.readouterr().err)


def test_reads_sizes_and_chooses_the_reference(monkeypatch):
    benchmark = importlib.import_module("benchmark")
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--settings", "224x4", "800x1333x1"])
    args = benchmark.parse_args()
    assert args.settings == [(224, 224, 4), (800, 1333, 1)]
    assert args.reference == "swin-small"
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--models", "pvtv2-b1", "clustr-tiny"])
    assert benchmark.parse_args().reference == "pvtv2-b1"


@pytest.fixture
def count_operations(measure, models):
    def count(name, *arguments):
        with torch.device("meta"):
            model = models.build_model(name, arguments[0])
        return measure.count_operations(model, *arguments[1:])

    return count


def test_rounds_run_every_action_once_in_changing_order(measure):
    calls = []
    actions = {name: lambda name=name: calls.append(name) for name in "abc"}
    seconds = measure.interleaved_seconds(actions, rounds=20, warmup=2, seed=0, device="cpu", description="test")
    assert [len(times) for times in seconds.values()] == [20] * 3
    assert calls[:6] == list("aabbcc")
    rounds = ["".join(calls[i : i + 3]) for i in range(6, len(calls), 3)]
    assert all(sorted(order) == list("abc") for order in rounds) and len(set(rounds)) == 6


@pytest.mark.parametrize("exponent", [1, 1.7, 2])
def test_growth_exponent_of_a_power_law(measure, exponent):
    pixels = [224**2, 512**2, 800 * 1333]
    assert measure.growth_exponent(pixels, [3e-7 * number**exponent for number in pixels]) == pytest.approx(exponent)


def test_noise_is_like_images(measure):
    """As much variance in coarse structure as photographs have: neighbours are alike, unlike in white noise."""
    noise = measure.image_like_noise(measure.Setting(64, 96, 2), seed=0)
    assert noise.shape == (2, 3, 64, 96) and noise.std() == pytest.approx(1)
    assert torch.equal(noise, measure.image_like_noise(measure.Setting(64, 96, 2), seed=0))
    correlation = (noise[..., 1:] * noise[..., :-1]).mean()
    assert 0.6 < correlation < 0.95


@pytest.mark.parametrize("switch, most_compared", [("", math.inf), ("+window", 4**2)])
def test_operations_of_nano_by_hand(count_operations, switch, most_compared):
    config = ClusTRConfig.from_variant("nano")
    macs = attention = clustering = 0
    height, width, channels = 48, 64, config.num_channels
    for stage, size in enumerate(config.hidden_sizes):
        height, width = height // 2, width // 2
        tokens, hidden = height * width, size * config.mlp_ratios[stage]
        macs += tokens * size * channels * 3**2
        merged = [tokens // ratio for ratio in config.reduction_ratios[stage]]
        is_clustered = config.reduction_ratios[stage] != [1]
        for _ in range(config.depths[stage]):
            macs += 2 * tokens * size**2 + sum(merged) * 2 * size**2  # queries and output, keys and values
            macs += tokens * size * is_clustered  # token weights
            macs += 2 * tokens * size * hidden + tokens * hidden * 3**2  # feed-forward network
            attention += 2 * tokens * sum(merged) * size
            clustering += tokens * min(tokens, most_compared) * size * is_clustered
        channels = size
    macs += channels * 1000

    counted = count_operations("clustr-nano" + switch, {**OPTIONS, "cluster_window": 4}, 48, 64)
    assert counted["paper_macs"] == macs
    assert counted["clustering_flops"] == 2 * clustering
    assert counted["flops"] == 2 * (macs + attention + clustering)


@pytest.mark.parametrize(
    "name, parameters, gmacs",
    [
        # The paper's Table 1; its rule for FLOPs is not printed, and convolutions and linear layers are 3 to 4 % less.
        ("clustr-tiny", 11.7, 2.15),
        ("clustr-small", 22.7, 4.8),
        ("clustr-base", 40.2, 7.48),
        # The figures of their own papers. Swin's includes attention, 3 %.
        ("swin-tiny", 28.3, 4.5),
        ("swin-small", 49.6, 8.7),
        ("pvtv2-b1", 14.0, 2.1),
        ("pvtv2-b2", 25.4, 4.0),
        ("convnext-tiny", 28.6, 4.5),
        ("convnext-small", 50.2, 8.7),
    ],
)
def test_models_have_the_published_size(count_operations, name, parameters, gmacs):
    counted = count_operations(name, OPTIONS, 224, 224)
    assert counted["parameters"] / 1e6 == pytest.approx(parameters, abs=0.06)
    assert counted["paper_macs"] / 1e9 == pytest.approx(gmacs, rel=0.045)


@pytest.mark.parametrize("switches", [(), ("window",), ("sharing",), ("max",), ("window", "max"), ("options",)])
def test_switches_set_the_speed_options(models, switches):
    config = models.build_model("+".join(["clustr-nano", *switches]), OPTIONS).config
    default = {"cluster_window": None, "cluster_sharing": "block", "max_clusters": None}
    chosen = [models.SWITCHES[switch] for switch in switches] if switches != ("options",) else OPTIONS
    for field, value in default.items():
        assert getattr(config, field, value) == (OPTIONS[field] if field in chosen else value)


@pytest.mark.parametrize("num_tokens, channels", [(5, 3), (64, 1), (300, 16), (1000, 64)])
def test_direct_transcription_gives_the_clusters_of_find_clusters(measure, num_tokens, channels):
    tokens = torch.randn(2, num_tokens, channels, dtype=torch.float64)
    num_clusters = [1, *measure.benchmark_num_clusters(num_tokens)]
    for direct, ours in zip(measure.direct_clusters(tokens, num_clusters), find_clusters(tokens, num_clusters)):
        assert torch.equal(direct, ours)
