"""
From the Hub's weights of another model to published weights of ClusTR, as for ImageNet: a PVTv2-b2 of random weights
stands for the pretrained one.
"""

import json
import sys

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, run_process
from datasets import load_dataset
from forked_scripts import run_on_two_processes
from local_hub import LocalHub, card_errors
from PIL import Image
from safetensors.torch import load_file
from transformers import PvtImageProcessor, PvtV2Config, PvtV2ForImageClassification


EXAMPLES = REPOSITORY / "examples"
PVT_V2_B2 = {"depths": [3, 4, 6, 3], "hidden_sizes": [64, 128, 320, 512], "num_labels": 10}
NUM_PHOTOGRAPHS = 64


def save_photographs(shared_folder, folder):
    """Photographs with labels as class folders; without the shared data, noise of several frequencies."""
    if shared_folder.is_dir():
        rows = load_dataset("parquet", data_files=str(shared_folder / "val.parquet"), split="train")
        rows = rows.shuffle(seed=0).select(range(NUM_PHOTOGRAPHS))
        pictures = [(row["image"].convert("RGB"), row["label"]) for row in rows]
    else:
        generator = np.random.default_rng(0)
        sides = range(4, 4 + NUM_PHOTOGRAPHS)
        noise = [Image.fromarray(generator.integers(0, 256, (side, side, 3), dtype=np.uint8)) for side in sides]
        pictures = [(each.resize((128, 128)), index % 10) for index, each in enumerate(noise)]
    for index, (picture, label) in enumerate(pictures):
        path = folder / ("train" if index >= 8 else "validation") / f"class {label}" / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)


@pytest.mark.slow
def test_rehearsal_for_imagenet(tmp_path, forked_scripts, run_without_package):
    save_photographs(REPOSITORY.parent / "shared" / "data" / "imagenette128", tmp_path / "photographs")
    names = [f"class {index}" for index in range(10)]
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    torch.manual_seed(0)
    PvtV2ForImageClassification(PvtV2Config(**PVT_V2_B2, **labels)).save_pretrained(tmp_path / "pvt_v2_b2")
    PvtImageProcessor().save_pretrained(tmp_path / "pvt_v2_b2")
    (tmp_path / "pvt_v2_b2" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")

    command = [sys.executable, EXAMPLES / "convert_pretrained.py", "--model_name_or_path", tmp_path / "pvt_v2_b2"]
    command += ["--image_dir", tmp_path / "photographs", "--num_calibration_images", NUM_PHOTOGRAPHS]
    command += ["--transfer_steps", 2, "--transfer_batch_size", 8, "--output_dir", tmp_path / "converted"]
    output = run_process(command, tmp_path)
    assert "License of the source's weights: apache-2.0." in output
    errors = json.loads((tmp_path / "converted" / "all_results.json").read_text())["errors"]
    means = [np.mean(list(by_block.values())) for by_block in errors.values()]
    assert len(errors["transfer"]) == 3 + 4 + 6 and means[0] > means[1]

    train = ["--model_name_or_path", tmp_path / "converted", "--teacher_model_name_or_path", tmp_path / "pvt_v2_b2"]
    train += ["--train_dir", tmp_path / "photographs/train", "--validation_dir", tmp_path / "photographs/validation"]
    train += ["--train_batch_size", 4, "--max_train_steps", 2, "--max_eval_samples", 4, "--image_size", 224]
    train += ["--ignore_mismatched_sizes", "--checkpointing_steps", "never", "--output_dir", tmp_path / "tuned"]
    run_on_two_processes("classification", [*train, "--cache_dir", tmp_path / "cache"], tmp_path / "log")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("converted", "tuned"))
    assert before.keys() == after.keys() and any(not torch.equal(before[name], after[name]) for name in before)

    with LocalHub() as hub:
        environment = {**hub.environment, "HF_HOME": str(tmp_path / "home")}
        command = [sys.executable, EXAMPLES / "publish_to_hub.py", tmp_path / "tuned", "--repo_id", "me/clustr-b2"]
        run_process(command, tmp_path, **environment)
        revision, files = hub.repositories["me/clustr-b2"][-1]
        assert card_errors(files["README.md"].decode()) == []
        load = (
            "from transformers import pipeline\n"
            f"place = dict(trust_remote_code=True, revision='{revision}')\n"
            "classify = pipeline('image-classification', model='me/clustr-b2', **place)\n"
            "print(type(classify.model).__name__, classify(sys.argv[1], top_k=1)[0]['label'])"
        )
        photograph = next((tmp_path / "photographs").rglob("*.jpg"))
        answer = run_without_package(load, photograph, **environment).split()
    assert answer[0] == "ClusTRForImageClassification" and " ".join(answer[1:]) in names
