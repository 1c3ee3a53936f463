"""The curves of examples/cluster_count: a score against the number of clusters."""

import json
import math

import numpy as np
import pytest
import torch
from cluster_count import command, study
from cluster_count.arguments import CurveArguments, StudyArguments, TimeArguments
from cluster_count.measure import measure
from cluster_count.number_rules import log_decision_values, unexplained_variance
from cluster_count.plan import plan_runs
from cluster_count.rules import RULES
from cluster_count.settings import KINDS, Setting, clustered_blocks
from cluster_count.table import share_of_equal_loss
from cluster_count.timing import measure_time
from datasets import Dataset
from hub_repositories import make_model
from PIL import Image
from tiny_models import tiny_classifier

from clustr_hf import find_clusters
from clustr_hf.training import Task


def small_task() -> Task:
    """Noise, half of it with smooth images, and the sum of the logits as the record."""
    noise = torch.randn(6, 3, 64, 64)
    noise[::2] = torch.nn.functional.interpolate(noise[::2, :, :4, :4], (64, 64), mode="bilinear")
    samples = [{"pixel_values": image, "labels": torch.tensor(0)} for image in noise]
    return Task(
        model=tiny_classifier(),
        eval_data=samples,
        predict=lambda model, batch: model(batch["pixel_values"]).logits.sum(dim=1).tolist(),
        compute_metrics=lambda records: {"eval_loss": float(np.mean(records))},
    )


def test_settings_are_measured_side_by_side():
    task = small_task()
    settings = [Setting("fixed", 1), Setting("fixed", 0.25), Setting("content", 0.0), Setting("content", 0.02)]
    full, quarter, unmerged, merged = measure(task, settings, batch_size=4)
    assert full["samples"] == 6 and full["time"] == 1 and full["clusters_std"] == 0
    # 16 x 16, 8 x 8 and 4 x 4 tokens with the ratios (64, 16), (16, 4), (4, 1); two blocks in the second stage.
    assert full["clusters"] == (4 + 16) + 2 * (4 + 16) + (4 + 16)
    assert quarter["clusters"] == (1 + 4) + 2 * (1 + 4) + (1 + 4)
    assert unmerged["clusters"] == full["clusters"] > merged["clusters"] and merged["clusters_std"] > 0
    assert abs(unmerged["metrics"]["eval_loss"] - full["metrics"]["eval_loss"]) < 1e-4
    assert merged["metrics"] != full["metrics"]
    # The model is left as the last setting, and the first one restores it.
    settings[0].apply(task.model)
    assert measure(task, [Setting("own", 1)], batch_size=6)[0]["metrics"] == pytest.approx(full["metrics"])


@pytest.mark.parametrize("kind", RULES)
def test_rules_choose_fewer_clusters(kind):
    model, images = tiny_classifier(), torch.stack([torch.full((3, 64, 64), 0.3), torch.randn(3, 64, 64)])
    value = {"decision-limit": 0.8, "merged-fixed": 0.5}.get(kind, 0.1)
    with torch.no_grad():
        expected = model(images).logits
        Setting(kind, value).apply(model)
        output = model(images, output_clusters=True)
        alone = torch.cat([model(image[None]).logits for image in images])
        torch.testing.assert_close(output.logits, alone, rtol=0, atol=1e-4)
        numbers = torch.stack([label.amax(dim=1) + 1 for scales in output.cluster_indices for label in scales])
        assert 8 <= numbers.sum() < 2 * 80
        if kind == "merged-fixed":
            assert numbers[:, 1].tolist() == [2, 8] * 4
        Setting("fixed", 1).apply(model)
        assert torch.equal(model(images).logits, expected)
    assert not any("_find_clusters" in vars(block.attention) for _, block in clustered_blocks(model))


def test_quantities_of_the_rules_are_those_of_their_definitions():
    tokens = torch.randn(1, 40, 6).double()
    (label,) = find_clusters(tokens, [7])
    within = sum(((part - part.mean(0)) ** 2).sum() for part in (tokens[0][label[0] == m] for m in range(7)))
    total = ((tokens[0] - tokens[0].mean(0)) ** 2).sum()
    assert unexplained_variance(tokens, label[None])[0, 0].item() == pytest.approx(float(within / total))
    distance = torch.cdist(tokens[0], tokens[0]) / math.sqrt(6)
    density = (-distance.sort(dim=1).values[:, :5].square().mean(dim=1)).exp()
    separation = [min((distance[i, j] for j in range(40) if density[j] > density[i]), default=0.0) for i in range(40)]
    values = (density * torch.tensor(separation, dtype=torch.float64)).sort(descending=True).values
    found = log_decision_values(tokens)[0].exp()
    assert found[1:39] == pytest.approx(values[:38].numpy()) and found[0] == found[1]


def test_equal_loss_is_interpolated():
    def point(kind, value, clusters, loss):
        return {"kind": kind, "value": value, "clusters": clusters, "metrics": {"eval_loss": loss}}

    curve = [point("fixed", 1, 400, 1.0), point("fixed", 0.25, 100, 2.0), point("fixed", 0.1, 40, 3.0)]
    # Half the way from 400 to 100 on a logarithmic scale is 200.
    assert share_of_equal_loss(point("content", 0.1, 150, 1.5), curve) == pytest.approx(0.75)
    assert share_of_equal_loss(point("content", 0.1, 40, 0.9), curve) is None
    assert share_of_equal_loss(point("content", 0.1, 40, 3.1), curve) is None
    wavy = [*curve[:2], point("fixed", 0.1, 40, 1.9)]
    assert share_of_equal_loss(point("content", 0.1, 150, 1.5), wavy) is None


def write_study(folder) -> StudyArguments:
    """A study whose runs are complete and measured."""
    for name in ("train.parquet", "val.parquet", "id2label.json"):
        (folder / name).write_text("{}")
    args = StudyArguments(data=str(folder), segmentation_data=str(folder), seeds=[0, 1], output_dir=str(folder / "out"))
    for run in plan_runs(args):
        settings = args.settings(run.task) if run.row == "base" else [Setting("own", 1)]
        points = [
            {
                "kind": each.kind,
                "value": each.value,
                "metrics": {"eval_accuracy": 0.7, "eval_mean_iou": 0.4, "eval_loss": 1 + 0.01 * index},
                "clusters": 320 / (1 + index),
                "milliseconds": 5.0 - 0.1 * index,
            }
            for index, each in enumerate(settings)
        ]
        (run.folder / "cluster-count").mkdir(parents=True)
        (run.folder / "cluster-count" / "cluster_count.json").write_text(json.dumps({"points": points}))
    return args


def test_the_study_has_a_run_for_every_setting_and_reports_them(tmp_path):
    args = write_study(tmp_path)
    runs = plan_runs(args)
    assert len(runs) == 2 * 2 * (1 + 11) and len({run.folder for run in runs}) == len(runs)
    tuned = next(run for run in runs if run.row == "content-0.008" and run.task == "classification")
    assert tuned.arguments["config_overrides"] == {"cluster_count": "content", "cluster_tolerance": 0.008}
    assert tuned.start_from.row == "base" and tuned.arguments["learning_rate"] == 0.0009
    quarter = next(run for run in runs if run.row == "fixed-0.25")
    assert quarter.arguments["config_overrides"] == {"reduction_ratios": [[256, 64], [64, 16], [16, 4], [1]]}
    text = study.report(runs, args)
    assert "### Classification" in text and "### Segmentation" in text
    row = next(line for line in text.splitlines() if line.startswith("| fixed 0.25 "))
    assert "| 0.333 | 70.0 (+0.0 ± 0.0) | 1.0200 |" in row
    for name in ("cluster_count.json", "cluster_count.md", "classification.png", "segmentation.png"):
        assert (tmp_path / "out" / name).stat().st_size > 100
    assert Image.open(tmp_path / "out" / "cluster_count.png").size == (1200, 400)


def write_photographs(path) -> None:
    images = [Image.effect_noise((80, 60), 90).convert("RGB") for _ in range(4)]
    Dataset.from_dict({"image": images, "label": [0, 1, 0, 1]}).to_parquet(path)


def test_times_are_measured(tmp_path):
    write_photographs(tmp_path / "images.parquet")
    images = str(tmp_path / "images.parquet")
    result = measure_time(TimeArguments(images, variant="nano", size=64, share=0.5, num_images=3, search_images=1))
    assert 0.2 < result["share"] <= 0.5 and 0 < result["tolerance"] < 1
    for name, parts in result["milliseconds"].items():
        assert (parts["merging"] > 0) == (name == "content") and parts["clustering"] > 0
        assert parts["total"] > 0 and parts["attention"] > 0 and parts["feed-forward network"] > 0


def test_a_curve_is_drawn_from_the_command_line(tmp_path, monkeypatch, capsys):
    make = make_model("classification")
    make[0].save_pretrained(tmp_path / "model")
    make[1].save_pretrained(tmp_path / "model")
    labels = list(make[0].config.id2label.values())
    for label in labels[:2]:
        (tmp_path / "images" / label).mkdir(parents=True)
        for index in range(2):
            Image.effect_noise((70, 70), 60).convert("RGB").save(tmp_path / "images" / label / f"{index}.png")
    options = ["--model_name_or_path", tmp_path / "model", "--validation_dir", tmp_path / "images"]
    options += ["--output_dir", tmp_path / "out", "--fixed", 1, 0.5, "--content", 0.05]
    monkeypatch.setattr("sys.argv", ["cluster_count", "curve", "classification", *map(str, options)])
    command.main()
    points = json.loads((tmp_path / "out" / "cluster_count.json").read_text())["points"]
    assert [(point["kind"], point["value"]) for point in points] == [("fixed", 1), ("fixed", 0.5), ("content", 0.05)]
    assert points[0]["clusters"] > points[1]["clusters"] and points[0]["samples"] == 4
    assert "| by content, tolerance 0.05 |" in (tmp_path / "out" / "cluster_count.md").read_text()
    assert Image.open(tmp_path / "out" / "cluster_count.png").width == 1100
    monkeypatch.setattr("sys.argv", ["cluster_count", "compare", *[str(tmp_path / "out" / "cluster_count.json")] * 2])
    command.main()
    assert "| fixed 0.5 | 0.500 |" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["cluster_count", "curve", "poses"])
    with pytest.raises(SystemExit, match="expected `curve` with one of"):
        command.main()
    assert "examples/cluster_count curve" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fixed": [1, 0]}, r"--fixed must be numbers in \(0, 1\]"),
        ({"content": [2]}, r"--content must be numbers in \[0, 1\]"),
        ({"rules": '{"best": [1]}'}, "--rules must name any of"),
    ],
)
def test_invalid_values_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        CurveArguments(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seeds": [0, 0]}, r"--seeds must be different numbers of at least 0, got \[0, 0\]"),
        ({"jobs": 0}, "--jobs must be at least 1, got 0"),
        ({"data": "nowhere"}, "--data nowhere must be a folder with .*, but lacks"),
        ({"segmentation_data": "nowhere"}, "--segmentation_data nowhere must be a folder with .*, but lacks"),
    ],
)
def test_invalid_studies_are_refused(fields, message, tmp_path):
    (tmp_path / "train.parquet").touch()
    with pytest.raises(ValueError, match=message):
        StudyArguments(**{"data": str(tmp_path), **fields})


def test_settings_of_a_curve():
    curve = CurveArguments(fixed=[1], content=[0.1], rules={"variance-limit": [0.3, 0.5]})
    assert [each.name for each in curve.settings] == [
        "fixed-1",
        "content-0.1",
        "variance-limit-0.3",
        "variance-limit-0.5",
    ]
    assert set(KINDS) == {"fixed", "content", *RULES}
