"""User-defined tasks with `clustr_hf.training`: the script of docs/your_own_task.md, and a minimal task."""

import importlib
import importlib.util
import json
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from conftest import REPOSITORY, run_process
from safetensors.torch import load_file
from torch import nn

from clustr_hf import training
from clustr_hf.training import LoopArguments, Task, train


PAGE = REPOSITORY / "docs" / "your_own_task.md"


@pytest.fixture(autouse=True)
def new_accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


class Line(nn.Module):
    """A model that fits y = 2 x + 1."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, x, y):
        prediction = self.layer(x)
        return SimpleNamespace(prediction=prediction, loss=nn.functional.mse_loss(prediction, y))


def rows(number):
    values = torch.linspace(-1, 1, number)
    return [{"x": value[None], "y": 2 * value[None] + 1} for value in values]


def settings(output_dir, **others):
    return LoopArguments(output_dir=str(output_dir), train_batch_size=8, learning_rate=0.1, **others)


def test_a_task_of_two_lines(tmp_path):
    """A task without loss, metrics or processor; the best weights have the smallest loss."""
    model, data = Line(), rows(32)
    before = [model(**row).loss.item() for row in rows(5)]
    task = Task(model=model, train_data=data, eval_data=rows(5))
    results = train(task, settings(tmp_path, max_train_steps=40, eval_steps="10", checkpointing_steps="never"))
    saved = Line()
    saved.load_state_dict(load_file(tmp_path / "model.safetensors"))
    losses = [saved(**row).loss.item() for row in rows(5)]
    assert results["eval_loss"] == pytest.approx(sum(losses) / 5) and sum(losses) < 0.1 * sum(before)
    assert results == json.loads((tmp_path / "all_results.json").read_text())
    logged = [
        entry["eval_loss"] for entry in json.loads((tmp_path / "log_history.json").read_text()) if "eval_loss" in entry
    ]
    assert results["best_metric"] == min(logged) < logged[0] and results["eval_samples"] == 5


def test_a_task_with_a_loss_and_a_metric_of_its_own_resumes_exactly(tmp_path):
    def compute_loss(model, batch):
        return (model(**batch).prediction - batch["y"]).abs().mean()

    def predict(model, batch):
        return (model(**batch).prediction - batch["y"]).abs().flatten().tolist()

    def compute_metrics(errors):
        return {"eval_hits": sum(error < 0.2 for error in errors) / len(errors)}

    def run(folder, **others):
        torch.manual_seed(0)
        task = Task(
            model=Line(),
            train_data=rows(32),
            eval_data=rows(7),
            compute_loss=compute_loss,
            predict=predict,
            compute_metrics=compute_metrics,
            metric="eval_hits",
        )
        return train(task, settings(folder, max_train_steps=40, eval_steps="30", checkpointing_steps="20", **others))

    results = run(tmp_path / "whole")
    assert results["eval_hits"] == results["best_metric"] == 1
    (tmp_path / "resumed").mkdir()
    (tmp_path / "whole" / "checkpoint-20").rename(tmp_path / "resumed" / "checkpoint-20")
    run(tmp_path / "resumed", resume_from_checkpoint="latest")
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "resumed")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_what_a_task_lacks_is_named(tmp_path):
    with pytest.raises(ValueError, match="`train_data` of the task must be given"):
        train(Task(model=Line(), eval_data=rows(4)), settings(tmp_path))
    task = Task(model=Line(), train_data=rows(8), eval_data=rows(4), metric="eval_accuracy")
    with pytest.raises(ValueError, match=r"must return the metric 'eval_accuracy', got \['eval_loss'\]"):
        train(task, settings(tmp_path, eval_only=True))
    with pytest.raises(ValueError, match="--push_to_hub needs a task with `write_card`"):
        train(task, settings(tmp_path, push_to_hub=True))


def test_a_dry_run_needs_no_pixels(tmp_path, capsys):
    train(Task(model=Line(), train_data=rows(8), eval_data=rows(4)), settings(tmp_path, dry_run=True))
    assert "memory per device" in capsys.readouterr().out


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "timm" else name)
    with pytest.raises(ImportError, match=r"needs timm: pip install clustr_hf\[training\]"):
        importlib.reload(training)
    monkeypatch.undo()
    assert set(importlib.reload(training).__all__) <= set(vars(training))


def test_the_script_of_the_page_learns_and_resumes(tmp_path):
    text = PAGE.read_text().split("## A complete example")[1]
    (tmp_path / "my_task.py").write_text(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1])
    command = re.search(r"```bash\n(python my_task.py .*?)\n```", text)[1].split()[1:]
    run_process([sys.executable, *command, "--checkpointing_steps", "24"], tmp_path)
    folder = tmp_path / "out" / "squares"
    results = json.loads((folder / "all_results.json").read_text())
    history = json.loads((folder / "log_history.json").read_text())
    errors = [entry["eval_error"] for entry in history if "eval_error" in entry]
    assert results["step"] == 32 and results["best_metric"] == min(errors) < 0.5 * errors[0]
    weights = load_file(folder / "model.safetensors")
    run_process([sys.executable, *command, "--resume_from_checkpoint", folder / "checkpoint-24"], tmp_path)
    resumed = load_file(folder / "model.safetensors")
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)
