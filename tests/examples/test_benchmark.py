"""The benchmark: its records and reports, and the correctness of its counts and comparisons."""

import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys

import numpy as np
import pytest
import torch
from benchmark import arguments, command, models, plan
from benchmark.measurements import attempts, clusterings, inputs, operations, steps, throughput, timing
from benchmark.measurements import clustering as clustering_measurements
from benchmark.measurements import models as model_measurements
from conftest import REPOSITORY, run_process
from PIL import Image
from torch import nn

from clustr_hf import ClusTRConfig
from clustr_hf.remote_code.clustering_clustr import find_clusters


EXAMPLES = REPOSITORY / "examples"
OPTIONS = {"cluster_window": 5, "cluster_sharing": "stage", "max_clusters": 7}


def run_benchmark(folder, *given, script="benchmark.py"):
    """Run the script, by default on clustr-nano; returns the content of `benchmark.json`."""
    default = ["--repeats", 2, "--warmup", 1, "--models", "clustr-nano"]
    run_process([sys.executable, EXAMPLES / script, *default, *given, "--output_dir", folder / "out"], folder)
    return json.loads((folder / "out" / "benchmark.json").read_text())


def assert_summary_follows_from_rounds(summary, seconds, reference, batch):
    """Recompute all reported statistics from the raw times."""
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
    names = ["clustr-nano", "clustr-nano+options", "pvtv2-b1"]
    given = ["--models", *names, "--reference", "pvtv2-b1", "--passes", "forward", "training"]
    results = run_benchmark(tmp_path, *given, "--settings", "64x2", "64x96x2", "--max_clusters", 8)
    expected = [(64, width, 2, pass_name) for width in (64, 96) for pass_name in ("forward", "training")]
    assert [(e["height"], e["width"], e["batch"], e["pass"]) for e in results["times"]] == expected
    assert results["failures"] == results["agreement"] == []
    for entry in results["times"]:
        assert list(entry["seconds"]) == names
        assert all(len(times) == 2 and min(times) > 0 for times in entry["seconds"].values())
        assert_summary_follows_from_rounds(entry["models"], entry["seconds"], "pvtv2-b1", batch=2)
        shares = {name: model.get("clustering_share") for name, model in entry["models"].items()}
        assert shares["pvtv2-b1"] is None
        assert all((0 < shares[name] < 1) if entry["pass"] == "forward" else shares[name] is None for name in names[:2])

    assert [(entry["model"], entry["pass"]) for entry in results["growth"]] == [
        (name, pass_name) for pass_name in ("forward", "training") for name in names
    ]
    for entry in results["growth"]:
        small, large = entry["median_seconds"]
        assert entry["sizes"] == [[64, 64], [64, 96]]
        assert entry["exponent"] == pytest.approx(np.log(large / small) / np.log(96 / 64))
    assert [entry["model"] for entry in results["operations"]] == names * 2

    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"benchmark.{kind}" for kind in ("json", "md", "png")
    }
    tables = (tmp_path / "out" / "benchmark.md").read_text()
    assert all(f"\n| {name} | " in tables for name in names) and "64 x 96, batch 2, eager training, float32" in tables
    assert "| clustering path | " in tables and "| triton | " in tables
    assert_names_no_machine(tmp_path / "out")
    with Image.open(tmp_path / "out" / "benchmark.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10


def assert_names_no_machine(folder):
    for name in ("benchmark.json", "benchmark.md"):
        text = (folder / name).read_text()
        assert not any(private in text for private in (str(folder.parent), str(REPOSITORY), platform.node()))


def test_measures_memory_of_a_backbone(tmp_path):
    arguments = ["--models", "clustr-nano-backbone", "--settings", "48x64x1", "--passes", "training", "--memory"]
    results = run_benchmark(tmp_path, *arguments, "--repeats", 0)
    (entry,) = results["memory"]
    assert results["times"] == []
    assert (entry["model"], entry["height"], entry["width"], entry["pass"]) == (*arguments[1:2], 48, 64, "training")
    # Gradients and both moments of AdamW are in memory at once, four bytes per parameter each.
    assert entry["peak_bytes"] > entry["increase_bytes"] > 3 * 4 * results["operations"][0]["parameters"]


def test_compares_clusterings(tmp_path):
    (entry,) = run_benchmark(tmp_path, "--settings", "--clustering", "3000x8", script="benchmark")["clustering"]
    assert entry["num_clusters"] == [46, 187]
    assert list(entry["seconds"]) == ["find_clusters", "direct"]
    assert_summary_follows_from_rounds(entry["algorithms"], entry["seconds"], "direct", batch=1)
    assert entry["agreement"] > 0.98
    # `direct` holds N x N matrices with four bytes per entry; the memory of `find_clusters` is linear in N.
    matrix = 4 * 3000**2
    assert entry["memory"]["find_clusters"]["increase_bytes"] < matrix < entry["memory"]["direct"]["increase_bytes"]


@pytest.mark.slow
def test_times_compiled_models(tmp_path):
    (entry,) = run_benchmark(tmp_path, "--settings", "64x1", "--modes", "compiled")["times"]
    assert entry["mode"] == "compiled" and len(entry["seconds"]["clustr-nano"]) == 2


def test_interrupted_run_keeps_what_it_has(tmp_path, monkeypatch):
    time_models = plan.time_models

    def interrupted(args, setting, *others):
        if setting.width == 96:
            raise KeyboardInterrupt
        return time_models(args, setting, *others)

    monkeypatch.setattr(plan, "time_models", interrupted)
    arguments = ["--models", "clustr-nano", "--settings", "64x1", "96x1", "--repeats", "1", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments, "--output_dir", str(tmp_path)])
    with pytest.raises(KeyboardInterrupt):
        command.main()
    (entry,) = json.loads((tmp_path / "benchmark.json").read_text())["times"]
    assert entry["width"] == 64
    assert {path.name for path in tmp_path.iterdir()} == {f"benchmark.{kind}" for kind in ("json", "md", "png")}


@pytest.mark.parametrize(
    "given, message",
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
        (["--throughput", "224x"], r"--throughput: expected SIZE or HEIGHTxWIDTH.*got '224x'"),
        (["--throughput", "64x256"], r"--throughput: expected at least 193 for swin-tiny, got 64x256"),
        (["--throughput", "224", "--device", "cpu"], r"--largest_batch: expected a number .*on a CPU, got none"),
        (["--device", "cuda:1"], r"--device: expected cpu, for torch .* finds no accelerator.*got 'cuda:1'"),
        (["--device", "accelerator"], r"--device: expected cpu, for torch .* finds no accelerator.*got 'accelerator'"),
    ],
)
def test_names_bad_arguments(given, message, monkeypatch, capsys):
    monkeypatch.setattr("clustr_hf.devices.available_devices", lambda: ["cpu"])
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *given])
    with pytest.raises(SystemExit):
        arguments.parse_args()
    assert re.search(message, capsys.readouterr().err)


def test_reads_sizes_and_chooses_the_reference(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--settings", "224x4", "800x1333x1"])
    args = arguments.parse_args()
    assert args.settings == [(224, 224, 4), (800, 1333, 1)]
    assert args.reference == "swin-small"
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--models", "pvtv2-b1", "clustr-tiny"])
    assert arguments.parse_args().reference == "pvtv2-b1"


@pytest.fixture
def count_operations():
    def count(name, *arguments):
        with torch.device("meta"):
            model = models.build_model(name, arguments[0])
        return operations.count_operations(model, *arguments[1:])

    return count


def test_rounds_run_every_action_once_in_changing_order():
    calls = []
    actions = {name: lambda name=name: calls.append(name) for name in "abc"}
    settings = {"rounds": 20, "warmup": 2, "seed": 0, "device": "cpu", "description": "test"}
    seconds, failures = timing.interleaved_seconds(actions, **settings)
    assert failures == {} and [len(times) for times in seconds.values()] == [20] * 3
    assert calls[:6] == list("aabbcc")
    rounds = ["".join(calls[i : i + 3]) for i in range(6, len(calls), 3)]
    assert all(sorted(order) == list("abc") for order in rounds) and len(set(rounds)) == 6


@pytest.mark.parametrize("exponent", [1, 1.7, 2])
def test_growth_exponent_of_a_power_law(exponent):
    pixels = [224**2, 512**2, 800 * 1333]
    assert timing.growth_exponent(pixels, [3e-7 * number**exponent for number in pixels]) == pytest.approx(exponent)


def test_noise_is_like_images():
    """Like photographs and unlike white noise, it has variance in coarse structures, so that neighbours are similar."""
    noise = inputs.image_like_noise(inputs.Setting(64, 96, 2), seed=0)
    assert noise.shape == (2, 3, 64, 96) and noise.std() == pytest.approx(1)
    assert torch.equal(noise, inputs.image_like_noise(inputs.Setting(64, 96, 2), seed=0))
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
        # The figures of their own papers. Swin's figure includes attention, 3 %.
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
def test_switches_set_the_speed_options(switches):
    config = models.build_model("+".join(["clustr-nano", *switches]), OPTIONS).config
    default = {"cluster_window": None, "cluster_sharing": "block", "max_clusters": None}
    chosen = [models.SWITCHES[switch] for switch in switches] if switches != ("options",) else OPTIONS
    for field, value in default.items():
        assert getattr(config, field, value) == (OPTIONS[field] if field in chosen else value)


@pytest.mark.parametrize("num_tokens, channels", [(5, 3), (64, 1), (300, 16), (1000, 64)])
def test_direct_transcription_gives_the_clusters_of_find_clusters(num_tokens, channels):
    tokens = torch.randn(2, num_tokens, channels, dtype=torch.float64)
    num_clusters = [1, *inputs.benchmark_num_clusters(num_tokens)]
    for direct, ours in zip(clusterings.direct_clusters(tokens, num_clusters), find_clusters(tokens, num_clusters)):
        assert torch.equal(direct, ours)


def test_an_action_that_fails_leaves_the_rounds_and_is_named():
    calls = []

    def fails_in_the_second_round():
        calls.append("b")
        if calls.count("b") == 3:
            raise torch.OutOfMemoryError("no memory is left")

    actions = {"a": lambda: None, "b": fails_in_the_second_round}
    settings = {"rounds": 4, "warmup": 1, "seed": 0, "device": "cpu", "description": "test"}
    seconds, failures = timing.interleaved_seconds(actions, **settings)
    assert list(seconds) == ["a"] and len(seconds["a"]) == 4
    assert failures == {"b": "OutOfMemoryError: no memory is left"} and len(calls) == 3


def test_ratios_need_the_reference():
    summary = timing.summarize({"a": [1.0, 3.0, 2.0]}, reference="b", batch=4)
    assert summary == {"a": {"median_seconds": 2.0, "median_seconds_per_image": 0.5, "ratio": None}}


class Recorder(nn.Module):
    """A model of one layer that records its dtypes, and runs out of memory for eight images."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 1)
        self.seen = []

    def forward(self, pixel_values):
        if len(pixel_values) >= 8:
            raise torch.OutOfMemoryError("eight images do not fit")
        features = self.layer(pixel_values)
        self.seen.append((pixel_values.dtype, self.layer.weight.dtype, features.dtype))
        return features


@pytest.mark.parametrize(
    "dtype, expected",
    [
        ("float32", (torch.float32, torch.float32, torch.float32)),
        ("bfloat16", (torch.bfloat16, torch.bfloat16, torch.bfloat16)),
        ("autocast", (torch.float32, torch.float32, torch.bfloat16)),
    ],
)
def test_precision_of_images_weights_and_features(dtype, expected):
    model = Recorder()
    steps.make_step(model, torch.rand(2, 3, 4, 4), "forward", compiled=False, dtype=dtype)()
    assert model.seen == [expected]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "autocast"])
def test_training_in_each_precision_moves_the_weights(monkeypatch, dtype):
    monkeypatch.setattr(steps, "LEARNING_RATE", 1.0)
    model = models.build_model("clustr-nano", OPTIONS)
    before = model.classifier.weight.detach().clone()
    steps.make_step(model, torch.rand(1, 3, 32, 32), "training", compiled=False, dtype=dtype)()
    assert model.classifier.weight.isfinite().all() and not torch.equal(model.classifier.weight.float(), before)


@pytest.mark.parametrize("largest_batch, stops", [(None, True), (4, False), (3, False)])
def test_batches_double_until_memory_is_full(largest_batch, stops):
    found = throughput.images_per_second(Recorder(), (8, 8), "forward", "float32", "cpu", largest_batch, seed=0)
    assert [row["batch"] for row in found["batches"]] == ([1, 2] if largest_batch == 3 else [1, 2, 4])
    assert all(row["images_per_second"] > 0 and row["peak_bytes"] > 0 for row in found["batches"])
    assert found["stopped_by"] == ("OutOfMemoryError: eight images do not fit" if stops else None)


def test_large_batches_repeat_images(monkeypatch):
    seen = []
    monkeypatch.setattr(throughput, "MAX_DIFFERENT_IMAGES", 2)
    monkeypatch.setattr(throughput, "make_step", lambda model, images, *args, **kwargs: lambda: seen.append(images))
    throughput._time_batch(None, inputs.Setting(8, 8, 5), "forward", "float32", "cpu", seed=0)
    assert seen[0].shape == (5, 3, 8, 8) and torch.equal(seen[0][:2], seen[0][2:4])


class FakeClock:
    """A clock whose marks are one second apart."""

    def __init__(self):
        self.marks = 0

    def mark(self):
        self.marks += 1
        return self.marks

    def seconds(self, start, end):
        return float(end - start)


def test_share_of_the_clustering_is_between_its_marks(monkeypatch):
    """The fake clock measures n clusterings of one second each, with n + 1 seconds around them."""
    monkeypatch.setattr(clusterings, "make_clock", lambda device: FakeClock())
    monkeypatch.setattr(clusterings, "clustering_path", lambda tokens, num_neighbors: f"{tokens.dtype} {num_neighbors}")
    model = models.build_model("clustr-nano", OPTIONS)
    step = steps.make_step(model, torch.rand(1, 3, 32, 32), "forward", compiled=False)
    number = sum(
        depth for depth, ratios in zip(model.config.depths, model.config.reduction_ratios) if list(ratios) != [1]
    )
    found = clusterings.clustering_share(step, "cpu")
    assert found == {"clustering_share": number / (2 * number + 1), "clustering_paths": ["torch.float32 5"]}


def test_a_crash_of_a_process_is_a_failure():
    assert attempts.attempt_in_fresh_process(math.sqrt, 4) == (2.0, None)
    assert attempts.attempt_in_fresh_process(math.sqrt, -1)[1].startswith("ValueError: ")
    result, failure = attempts.attempt_in_fresh_process(os._exit, 1)
    assert result is None and failure.startswith("BrokenProcessPool: ")


@pytest.mark.parametrize(
    "message, described",
    [
        ("in /home/somebody/my.env/torch/x.py,\n line 3", "in x.py, line 3"),
        ('File "C:\\Users\\somebody\\x.py"', 'File "x.py"'),
        ("3 / 4 of 1/2, see https://pytorch.org/docs/x.html", "3 / 4 of 1/2, see https://pytorch.org/docs/x.html"),
        ("x" * 1000, "x" * (400 - len("ValueError: "))),
    ],
)
def test_failures_are_one_line_without_folders(message, described):
    assert attempts.describe_failure(ValueError(message)) == f"ValueError: {described}"


@pytest.fixture
def run_in_this_process(monkeypatch, tmp_path):
    """Run the script in this process, by default treating the CPU as an accelerator; returns results and exit code."""

    def run(*given, is_accelerator=True):
        for module in (command, model_measurements):
            monkeypatch.setattr(module, "is_accelerator", lambda device: is_accelerator)
        monkeypatch.setattr(model_measurements, "allocated_memory", lambda device: 0)
        for module in (command, clustering_measurements):
            monkeypatch.setattr(module, "attempt_in_fresh_process", attempts.attempt)
        script = ["benchmark.py", "--device", "cpu", "--output_dir", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", [*script, *map(str, given)])
        ended = None
        try:
            command.main()
        except SystemExit as error:
            ended = error.code
        return json.loads((tmp_path / "out" / "benchmark.json").read_text()), ended

    return run


TINY = ("--settings", "64x1", "--models", "clustr-nano", "pvtv2-b1", "--repeats", 2, "--warmup", 1)


def test_an_accelerators_clusters_and_memory_are_in_the_report(run_in_this_process, tmp_path):
    dtypes = ["float32", "bfloat16", "autocast"]
    results, ended = run_in_this_process(*TINY, "--throughput", "64", "--largest_batch", 2, "--dtypes", *dtypes)
    assert ended is None and results["failures"] == []
    assert [entry["kind"] for entry in results["agreement"]] == ["random", "image-like"]
    assert all(entry["agreement"] == 1 for entry in results["agreement"])
    assert results["environment"]["clustering_path"] == results["agreement"][0]["clustering_path"]
    assert [entry["dtype"] for entry in results["times"]] == dtypes
    for times in results["times"]:
        assert all(model["peak_bytes"] > 0 for model in times["models"].values())
        assert times["models"]["clustr-nano"]["clustering_paths"] == [results["environment"]["clustering_path"]]
    assert [(entry["dtype"], entry["model"], len(entry["batches"])) for entry in results["throughput"]] == [
        (dtype, model, 2) for dtype in dtypes for model in ("clustr-nano", "pvtv2-b1")
    ]
    tables = (tmp_path / "out" / "benchmark.md").read_text()
    assert "| 3136 | image-like | 48 | " in tables and "| peak memory (MB) |" in tables
    assert "| model | 1 | 2 | largest batch | stopped by |" in tables
    assert_names_no_machine(tmp_path / "out")


@pytest.mark.parametrize("broken", ["find_clusters", "clustering_path"])
def test_wrong_clusters_are_recorded_and_refused(run_in_this_process, monkeypatch, broken):
    """The accelerator's clustering, which is the second one, returns shifted labels or fails."""
    calls = []

    def wrong(tokens, num_clusters):
        calls.append(tokens)
        labels = find_clusters(tokens, num_clusters)
        return labels if len(calls) % 2 else [label.roll(1, dims=1) for label in labels]

    def fails(tokens, num_neighbors):
        raise RuntimeError("no kernel")

    monkeypatch.setattr(clusterings, broken, wrong if broken == "find_clusters" else fails)
    results, ended = run_in_this_process(*TINY)
    assert results["times"] == results["operations"] == []
    if broken == "find_clusters":
        assert min(entry["agreement"] for entry in results["agreement"]) < 0.98
        assert re.search(r"the clusters on cpu must be the CPU's for 98% of the tokens, got \d", ended)
    else:
        assert "clustering on cpu failed: RuntimeError: no kernel" in ended
        assert results["failures"][0]["message"] == "RuntimeError: no kernel"


@pytest.mark.parametrize("broken", ["clustr-nano", "pvtv2-b1", "all"])
def test_models_that_fail_are_in_the_report_with_the_others(run_in_this_process, monkeypatch, tmp_path, broken):
    make_step = model_measurements.make_step

    def make_step_or_fail(model, *args):
        if broken == "all" or type(model).__name__.lower().startswith(broken[:3]):
            raise torch.OutOfMemoryError("no | memory")
        return make_step(model, *args)

    monkeypatch.setattr(model_measurements, "make_step", make_step_or_fail)
    results, ended = run_in_this_process(*TINY, "--clustering", "300x4")
    named = ["clustr-nano", "pvtv2-b1"] if broken == "all" else [broken]
    failure = {"measurement": "times of 64x64x1 forward float32 eager", "message": "OutOfMemoryError: no | memory"}
    assert ended is None and results["failures"] == [{**failure, "model": name} for name in named]
    assert len(results["clustering"]) == 1 and len(results["operations"]) == 2
    timed = [name for entry in results["times"] for name in entry["models"]]
    assert timed == [name for name in ("clustr-nano", "pvtv2-b1") if name not in named]
    tables = (tmp_path / "out" / "benchmark.md").read_text()
    assert all(f" | {name} | OutOfMemoryError: no \\| memory |" in tables for name in named)
    assert (tmp_path / "out" / "benchmark.png").exists() == (broken != "all")


def test_a_run_in_which_everything_fails_says_so(run_in_this_process, monkeypatch):
    def fails(*args):
        raise RuntimeError("broken")

    for name in ("count_model", "time_models"):
        monkeypatch.setattr(plan, name, fails)
    results, ended = run_in_this_process(*TINY)
    assert ended == "every measurement failed"
    assert [failure["message"] for failure in results["failures"]] == ["RuntimeError: broken"] * 3


def test_a_direct_clustering_without_memory_leaves_ours(run_in_this_process, monkeypatch):
    def fails(tokens, num_clusters):
        raise torch.OutOfMemoryError("N x N")

    monkeypatch.setitem(clusterings.CLUSTERINGS, "direct", fails)
    results, _ = run_in_this_process("--settings", "--clustering", "300x4", "--repeats", 1, is_accelerator=False)
    [entry] = results["clustering"]
    assert list(entry["algorithms"]) == ["find_clusters"] and entry["agreement"] is None
    assert [failure["model"] for failure in results["failures"]] == ["direct"]


def test_make_benchmark_gpu_is_a_command_of_the_script(monkeypatch):
    printed = subprocess.run(
        ["make", "--no-print-directory", "-n", "benchmark-gpu"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    given = printed.stdout.replace("\\\n", " ").split("examples/benchmark ")[1].split()
    monkeypatch.setattr("clustr_hf.devices.available_devices", lambda: ["cpu", "cuda:0"])
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *given])
    args = arguments.parse_args()
    assert args.device == "cuda:0" and str(args.output_dir) == "out/benchmark-gpu"
    planned = [measurement.section for measurement in plan.planned_measurements(args)]
    # Modes, settings, passes and precisions; then passes and precisions of each of five models.
    assert planned.count("times") == 2 * 2 * 2 * 3 and planned.count("throughput") == 2 * 3 * 5
    assert planned.count("clustering") == 2
