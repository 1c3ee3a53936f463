"""The script of docs/your_own_task.md; test_training_own_task.py has the smallest task."""

import json
import re
import sys

import torch
from conftest import REPOSITORY, run_process
from safetensors.torch import load_file


PAGE = REPOSITORY / "docs" / "your_own_task.md"


def test_the_script_of_the_page_learns_and_resumes(tmp_path):
    text = PAGE.read_text().split("## A complete example")[1]
    (tmp_path / "my_task.py").write_text(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1])
    command = re.search(r"```\n(python my_task.py .*?)\n```", text)[1].split()[1:]
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
