"""Classes are matched by name: between lists, between files and splits, and with those of a checkpoint."""

import json
from pathlib import Path

import numpy as np
import pytest
import run_image_classification as trainer_script
import run_image_classification_no_trainer as loop_script
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from safetensors.torch import load_file
from transformers import pipeline

from clustr_hf import ClusTRConfig, ClusTRForImageClassification, ClusTRImageProcessor, bundled_checkpoint
from clustr_hf.training.data.class_names import KnownNames, are_placeholders, choose_names, names_of, shorten
from clustr_hf.training.data.decoding import decode_image
from clustr_hf.training.distillation import match_classes
from clustr_hf.training.known_names import known_names
from clustr_hf.training.models import ModelArguments
from clustr_hf.training.tasks.image_classification.data import (
    HEADS,
    ClassificationDataArguments,
    label_names,
    load_labelled_images,
    load_stream,
)
from clustr_hf.training.tasks.image_classification.model import load_classifier


NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
REVERSED = NAMES[::-1]


@pytest.fixture(scope="module")
def pictures():
    """24 images, and the classes that the bundled checkpoint predicts for them in transformers' pipeline."""
    generator = np.random.default_rng(0)
    images = []
    for index in range(96):
        shape = (3 + index % 8, 3 + index % 5, 1 if index % 2 else 3)  # grey or colored
        coarse = np.broadcast_to(generator.integers(0, 256, shape, dtype=np.uint8), (*shape[:2], 3))
        images.append(Image.fromarray(coarse).resize((32, 32), Image.Resampling.BICUBIC))
    classify = pipeline("image-classification", model=str(bundled_checkpoint()))
    names = [answer[0]["label"] for answer in classify(images, top_k=1)]
    at_most_eight_of_a_class = [index for index, name in enumerate(names) if names[:index].count(name) < 8]
    chosen = at_most_eight_of_a_class[:24]
    images, names = [images[index] for index in chosen], [names[index] for index in chosen]
    assert len(images) == 24 and len(set(names)) > 3
    return images, names


def write_rows(path, pictures, names, part=slice(None)):
    """A parquet file whose labels are indices into the given names."""
    images, labels = (list(values)[part] for values in pictures)
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=list(names))})
    rows = {"image": images, "label": [list(names).index(label) for label in labels]}
    Dataset.from_dict(rows, features=features).to_parquet(path)
    return str(path)


def read_json(path):
    return json.loads(Path(path).read_text())


@pytest.fixture
def score(tmp_path, run_script):
    """Accuracy of a checkpoint, as evaluated by a script."""

    def run(script, *arguments, model=None):
        settings = {"--output_dir": tmp_path / "out", "--cache_dir": tmp_path / "cache"}
        settings["--model_name_or_path"] = model or bundled_checkpoint()
        if script is loop_script:
            settings["--train_batch_size"] = 4
            run_script(script, settings, "--eval_only", *arguments)
        else:
            run_script(script, settings, "--do_eval", "--report_to", "none", *arguments)
        return read_json(tmp_path / "out" / "eval_results.json")["eval_accuracy"]

    return run


def with_other_order(folder, names):
    """The bundled checkpoint with its classes in another order, which predicts the same names."""
    model = ClusTRForImageClassification.from_pretrained(bundled_checkpoint())
    order = torch.tensor([NAMES.index(name) for name in names])
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.copy_(parameter[order])
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: index for index, name in enumerate(names)}
    model.save_pretrained(folder)
    ClusTRImageProcessor.from_pretrained(bundled_checkpoint()).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("script", [loop_script, trainer_script], ids=["loop", "trainer"])
@pytest.mark.parametrize("train_names, validation_names", [(REVERSED, REVERSED), (NAMES, REVERSED), (REVERSED, None)])
def test_a_checkpoint_scores_the_same_whatever_order_the_data_counts_in(
    score, pictures, tmp_path, script, train_names, validation_names
):
    train_file = write_rows(tmp_path / "train.parquet", pictures, train_names)
    validation_names = validation_names or sorted(set(pictures[1]), reverse=True)  # fewer
    validation_file = write_rows(tmp_path / "validation.parquet", pictures, validation_names)
    assert score(script, "--train_file", train_file, "--validation_file", validation_file) == 1.0


def test_a_checkpoint_whose_order_is_another_scores_the_same(score, pictures, tmp_path):
    model = with_other_order(tmp_path / "model", REVERSED)
    file = write_rows(tmp_path / "train.parquet", pictures, NAMES)
    assert score(loop_script, "--train_file", file, "--validation_file", file, model=model) == 1.0
    assert score(loop_script, "--train_file", file, "--validation_file", file, "--streaming", model=model) == 1.0


def test_fine_tuning_keeps_the_head_of_the_same_classes(run_script, pictures, tmp_path):
    """With a learning rate of almost 0, the model equals the checkpoint, with classes in the checkpoint's order."""
    train_file = write_rows(tmp_path / "train.parquet", pictures, REVERSED)
    validation_file = write_rows(tmp_path / "validation.parquet", pictures, [*NAMES[5:], *NAMES[:5]])
    settings = {"--output_dir": tmp_path / "out", "--cache_dir": tmp_path / "cache", "--train_file": train_file}
    settings |= {"--validation_file": validation_file, "--model_name_or_path": bundled_checkpoint()}
    settings |= {"--max_train_steps": 1, "--train_batch_size": 4, "--learning_rate": 1e-12}
    run_script(loop_script, settings, "--ignore_mismatched_sizes")
    assert read_json(tmp_path / "out" / "all_results.json")["eval_accuracy"] == 1.0
    assert list(read_json(tmp_path / "out" / "config.json")["id2label"].values()) == NAMES


def test_a_run_goes_on_with_the_order_that_it_began_with(run_script, pictures, tmp_path):
    """Resumes training, and evaluates its last checkpoint, after the label order of the files has changed."""
    settings = {"--output_dir": tmp_path / "out", "--cache_dir": tmp_path / "cache", "--train_batch_size": 4}
    settings |= {"--image_size": 32, "--max_train_steps": 2, "--checkpointing_steps": 1, "--learning_rate": 1e-2}
    first = write_rows(tmp_path / "first.parquet", pictures, NAMES)
    run_script(loop_script, {**settings, "--train_file": first, "--validation_file": first})
    expected = read_json(tmp_path / "out" / "all_results.json")
    second = write_rows(tmp_path / "second.parquet", pictures, REVERSED)
    files = {"--train_file": second, "--validation_file": second}
    run_script(loop_script, {**settings, **files, "--resume_from_checkpoint": "latest"}, "--eval_only")
    found = read_json(tmp_path / "out" / "eval_results.json")
    assert found["eval_loss"] == pytest.approx(expected["eval_loss"])
    checkpoint = tmp_path / "out" / "checkpoint-1"
    settings |= {**files, "--output_dir": tmp_path / "again", "--resume_from_checkpoint": checkpoint}
    run_script(loop_script, settings)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "again"))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_trainer_goes_on_with_the_order_that_it_began_with(run_script, pictures, tmp_path):
    settings = {"--output_dir": tmp_path / "out", "--cache_dir": tmp_path / "cache", "--report_to": "none"}
    settings |= {"--image_size": 32, "--per_device_train_batch_size": 12, "--save_steps": 1}
    for names, steps in ((NAMES, 1), (REVERSED, 2)):
        file = write_rows(tmp_path / f"{steps}.parquet", pictures, names)
        files = {"--train_file": file, "--validation_file": file, "--max_steps": steps}
        run_script(trainer_script, {**settings, **files}, "--do_train", "--do_eval")
    assert list(read_json(tmp_path / "out" / "config.json")["id2label"].values()) == NAMES


def load(*files, **arguments):
    train_file, validation_file = files if len(files) == 2 else (*files, None)
    args = ClassificationDataArguments(train_file=train_file, validation_file=validation_file)
    return load_labelled_images(args, ModelArguments(**arguments), seed=0)


def named_rows(rows):
    """The mean colour of each image, which identifies it, and the name of its class."""
    names = label_names(rows, "label")
    return {mean_color(decode_image(row["image"], "it")): names[row["label"]] for row in rows}


def mean_color(image):
    return tuple(np.asarray(image).mean(axis=(0, 1)).round(3))


def test_files_of_one_split_that_count_otherwise(pictures, tmp_path):
    """Each file has some of the classes; after loading, all labels refer to one list."""
    (tmp_path / "train").mkdir()
    expected = {mean_color(image): name for image, name in zip(*pictures)}
    for index in range(3):
        part = slice(8 * index, 8 * index + 8)
        own = sorted(set(pictures[1][part]), reverse=index % 2 == 0)
        write_rows(tmp_path / "train" / f"{index}.parquet", pictures, own, part)
    write_rows(tmp_path / "validation.parquet", pictures, sorted(set(pictures[1])))
    data = load(str(tmp_path / "train" / "*.parquet"), str(tmp_path / "validation.parquet"), cache_dir=str(tmp_path))
    assert label_names(data["train"], "label") == label_names(data["validation"], "label")
    assert named_rows(data["train"]) == named_rows(data["validation"]) == expected
    split = load(str(tmp_path / "train" / "*.parquet"), cache_dir=str(tmp_path))
    assert named_rows(split["train"]) | named_rows(split["validation"]) == expected


def test_a_data_set_in_a_folder_and_a_stream_of_it(pictures, tmp_path):
    expected = {mean_color(image): name for image, name in zip(*pictures)}
    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data" / "train.parquet", pictures, NAMES)
    write_rows(tmp_path / "data" / "validation.parquet", pictures, REVERSED)
    args, model_args = (
        ClassificationDataArguments(dataset_name=str(tmp_path / "data")),
        ModelArguments(cache_dir=str(tmp_path)),
    )
    data = load_labelled_images(args, model_args, seed=0)
    assert named_rows(data["train"]) == named_rows(data["validation"]) == expected
    known = KnownNames([*NAMES[3:], *NAMES[:3]], "the checkpoint")
    stream, _, kept = load_stream(args, model_args, known)
    assert named_rows(stream) == named_rows(kept) == expected
    assert label_names(stream, "label") == label_names(kept, "label") == known.names


def test_classes_without_training_images_are_refused(pictures, tmp_path):
    train_file = write_rows(tmp_path / "train.parquet", pictures, NAMES)
    validation_file = write_rows(tmp_path / "validation.parquet", pictures, [*REVERSED, "bicycle"])
    message = r"validation data must have the classes of the training data, \['airplane', .*, got \['truck', .*bicycle"
    with pytest.raises(ValueError, match=message):
        load(train_file, validation_file, cache_dir=str(tmp_path))


@pytest.mark.parametrize("places", [-1, 10, None])
def test_labels_without_a_name_are_refused_before_they_are_matched(pictures, tmp_path, places):
    train_file = write_rows(tmp_path / "train.parquet", pictures, NAMES)
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=REVERSED)})
    rows = Dataset.from_dict({"image": pictures[0], "label": [0, 1, *[3] * 22]}, features=features)
    table = rows.data.table.set_column(1, "label", [[0, 1, places, *[3] * 21]])
    Dataset(table.cast(features.arrow_schema)).to_parquet(tmp_path / "validation.parquet")
    with pytest.raises(ValueError, match=rf"validation sample 2 must be in \[0, 10\), got {places}"):
        load(train_file, str(tmp_path / "validation.parquet"), cache_dir=str(tmp_path))


def make_checkpoint(folder, **settings):
    torch.manual_seed(1)
    model = ClusTRForImageClassification(ClusTRConfig.from_variant("nano", **settings))
    torch.nn.init.normal_(model.classifier.weight)
    model.save_pretrained(folder)
    ClusTRImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False).save_pretrained(folder)
    return str(folder)


def named(*names):
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


def test_another_number_of_classes_names_the_scripts_flag(score, pictures, tmp_path):
    file = write_rows(tmp_path / "train.parquet", pictures, NAMES)
    files = ["--train_file", file, "--validation_file", file]
    for index, fields in enumerate(({"num_labels": 7}, named("cat", "dog"))):
        model = make_checkpoint(tmp_path / str(index), **fields)
        with pytest.raises(ValueError, match=r"has \d classes, .* the data has 10.*--ignore_mismatched_sizes"):
            load_labelled_images(
                ClassificationDataArguments(train_file=file), ModelArguments(model_name_or_path=model), 0
            )
        with pytest.raises(ValueError, match=r"--ignore_mismatched_sizes"):
            load_classifier(ModelArguments(model_name_or_path=model), NAMES)
        for script in (loop_script, trainer_script):
            with pytest.raises(ValueError, match=r"Nothing is trained, so --ignore_mismatched_sizes"):
                score(script, *files, "--ignore_mismatched_sizes", model=model)


def test_shapes_that_do_not_fit_name_the_scripts_flag(tmp_path):
    """The shapes of the backbone differ."""
    model = make_checkpoint(tmp_path / "it", **named("cat", "dog"))
    args = ModelArguments(model_name_or_path=model, config_overrides={"mlp_ratios": [2, 2, 2, 2]})
    with pytest.raises(ValueError, match=r"differ in shape from the model's.*--ignore_mismatched_sizes"):
        load_classifier(args, ["cat", "dog"])


def test_other_classes_of_the_same_number_get_a_new_head(tmp_path, caplog):
    model = make_checkpoint(tmp_path / "it", **named("cat", "dog", "emu"))
    args = ModelArguments(model_name_or_path=model)
    message = (
        r"3 classes, \['cat', 'dog', 'emu'\], and the data has 3, \['ant', 'dog', 'cat'\]: these cannot be matched"
    )
    with pytest.raises(ValueError, match=message):
        known_names(args, HEADS).match(["ant", "dog", "cat"])
    args.ignore_mismatched_sizes = True
    assert known_names(args, HEADS).match(["ant", "dog", "cat"]) == ["ant", "dog", "cat"]
    assert "is replaced by a new one for the classes ['ant', 'dog', 'cat']" in caplog.text
    before, after = load_file(f"{model}/model.safetensors"), load_classifier(args, ["ant", "dog", "cat"])[0]
    for name, weight in after.state_dict().items():
        if name == "classifier.weight":
            assert weight.std() < 0.1 < before[name].std()  # initialised like a new weight
        elif "classifier" not in name:
            assert torch.equal(weight, before[name]), name
    assert after.config.id2label == {0: "ant", 1: "dog", 2: "cat"}


def test_a_checkpoint_without_names_is_taken_by_position_and_that_is_said(score, pictures, tmp_path, caplog):
    model = with_other_order(tmp_path / "model", REVERSED)
    config = read_json(model / "config.json")
    for name in ("id2label", "label2id"):
        config.pop(name)
    (model / "config.json").write_text(json.dumps({**config, "num_labels": 10}))
    file = write_rows(tmp_path / "train.parquet", pictures, REVERSED)
    assert score(loop_script, "--train_file", file, "--validation_file", file, model=model) == 1.0
    assert "does not name its classes (LABEL_0 ...): they are taken in the order of the data's" in caplog.text


def test_a_checkpoint_of_another_task_has_no_classes_to_match(tmp_path):
    args = ModelArguments(model_name_or_path=make_checkpoint(tmp_path / "it", **named("cat", "dog")))
    assert known_names(args, ["ForObjectDetection"]) is None
    with pytest.raises(
        ValueError, match=r"is of \['ClusTRForImageClassification'\]: to evaluate it, its class must be a For"
    ):
        known_names(args, ["ForObjectDetection"], only_evaluates=True)


def test_long_lists_are_cut_but_what_differs_is_named():
    names = [f"class {index}" for index in range(1000)]
    assert shorten(names).endswith("'class 9', ...] (1000 names)") and shorten(names[:3]) == str(names[:3])
    with pytest.raises(ValueError) as error:
        KnownNames(names, "the checkpoint X").match([*names[:-1], "something else"])
    message = str(error.value)
    assert "only in the data: ['something else']; only in the checkpoint X: ['class 999']" in message
    assert len(message) < 900
    with pytest.raises(ValueError, match=r"training data, \[.* \(1000 names\), got \['x'\]: .* images: \['x'\]"):
        choose_names({"train": names, "validation": ["x"]})


def test_names_of_a_configuration():
    for fields, expected in (
        (named("b", "a"), ["b", "a"]),
        ({"num_labels": 3}, ["LABEL_0", "LABEL_1", "LABEL_2"]),
        ({**named("b", "a"), "label2id": {"LABEL_0": 0, "LABEL_1": 1}}, ["b", "a"]),
        ({"id2label": {0: "LABEL_0", 1: "LABEL_1"}, "label2id": {"a": 1, "b": 0}}, ["b", "a"]),
        ({"id2label": {0: "a", 1: "a"}, "label2id": {"a": 1}}, ["a", "a"]),
    ):
        found = names_of(ClusTRConfig(**fields), "it")
        assert found == expected and are_placeholders(found) == (expected[0] == "LABEL_0")
    with pytest.raises(ValueError, match=r"of it contradict each other: \['b', 'a'\] and \['a', 'b'\]"):
        names_of(ClusTRConfig(id2label={0: "b", 1: "a"}, label2id={"a": 0, "b": 1}), "it")
    with pytest.raises(ValueError, match="must name the classes 0, 1, 2"):
        names_of(ClusTRConfig(id2label={0: "b", 2: "a"}, label2id={"a": 2, "b": 0}), "it")


def test_imagenets_two_cranes(tmp_path, caplog):
    """A list that renames the second class of a name has the order of one that does not."""
    known, data = ["tench", "crane", "hen", "crane"], ["tench", "crane", "hen", "crane2"]
    assert KnownNames(known, "x").match(data) == data and "x has several classes with the same name" in caplog.text
    assert KnownNames(data, "x").match(known) == known
    assert match_classes(known, data, "t") is None and match_classes(data, known, "t") is None
    for other in (["tench", "hen", "crane", "crane2"], ["tench", "crane", "hen", "digger"], known[:3]):
        with pytest.raises(ValueError, match="cannot be matched by name"):
            KnownNames(known, "x").match(other)
    args = ModelArguments(model_name_or_path=make_checkpoint(tmp_path, **named(*known)), image_size=32)
    model, _ = load_classifier(args, data)
    saved = load_file(tmp_path / "model.safetensors")
    assert torch.equal(model.classifier.weight, saved["classifier.weight"])
    assert list(model.config.id2label.values()) == data


def test_names_that_are_used_twice_are_not_matched():
    known = KnownNames(["crane", "crane", "emu"], "it", only_evaluates=True)
    assert known.match(["crane", "crane", "emu"]) == ["crane", "crane", "emu"]
    with pytest.raises(ValueError, match="cannot be matched by name"):
        known.match(["emu", "crane"])


def test_shared_pictures_score_the_same_in_another_order(shared, score, tmp_path):
    """Scores CIFAR-10's test images with classes in reverse order."""
    file = shared / "data" / "cifar10" / "test.parquet"
    rows = Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "cache")).select(range(300))
    pictures = rows["image"][:], [NAMES[label] for label in rows["label"]]
    expected, found = (
        score(loop_script, "--train_file", written, "--validation_file", written)
        for written in (write_rows(tmp_path / f"{names[0]}.parquet", pictures, names) for names in (NAMES, REVERSED))
    )
    assert found == expected > 0.85
