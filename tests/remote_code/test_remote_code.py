"""A saved folder loads and runs with `trust_remote_code=True` where the package cannot be imported."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import run_process
from hub_repositories import enlarge_weights
from PIL import Image
from safetensors.torch import save_file
from transformers import pipeline
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from clustr_hf import (
    ClusTRBackbone,
    ClusTRConfig,
    ClusTRDetectionImageProcessor,
    ClusTRForImageClassification,
    ClusTRForInstanceSegmentation,
    ClusTRForObjectDetection,
    ClusTRForPoseEstimation,
    ClusTRForSemanticSegmentation,
    ClusTRImageProcessor,
    ClusTRModel,
    ClusTRPoseImageProcessor,
)
from clustr_hf.keypoints import COCO_WHOLEBODY
from clustr_hf.remote_code import clustering_kernel_clustr


CODE_FILES = {
    "configuration_clustr.py",
    "configuration_tables_clustr.py",
    "versions_clustr.py",
    "clustering_kernel_clustr.py",
    "clustering_tensor_clustr.py",
    "clustering_triton_clustr.py",
    "clustering_triton_kernels_clustr.py",
    "clustering_triton_launches_clustr.py",
    "clustering_triton_merge_clustr.py",
    "clustering_triton_merge_kernels_clustr.py",
    "clustering_triton_nearest_kernels_clustr.py",
    "clustering_triton_order_kernels_clustr.py",
    "clustering_triton_peaks_kernels_clustr.py",
    "clustering_triton_support_clustr.py",
    "clustering_triton_tiles_clustr.py",
    "clustering_clustr.py",
    "clustering_content_clustr.py",
    "clustering_equations_clustr.py",
    "clustering_windows_clustr.py",
    "feed_forward_fused_clustr.py",
    "modeling_clustr.py",
    "modeling_clustr_attention.py",
    "modeling_clustr_calls.py",
    "modeling_clustr_embeddings.py",
    "image_processing_clustr.py",
    "image_reading_clustr.py",
    "image_files_clustr.py",
}


@pytest.fixture(scope="module")
def pixel_values():
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pixel_values):
    """A classifier saved by `save_pretrained`, an image, and pixels to compare outputs on."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint")
    config = ClusTRConfig.from_variant("nano", id2label={0: "cat", 1: "dog", 2: "owl"}, label2id={})
    model = ClusTRForImageClassification(config).eval()
    model.save_pretrained(folder)
    ClusTRImageProcessor(size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64}).save_pretrained(folder)
    with torch.no_grad():
        expected = {"pixel_values": pixel_values, "logits": model(pixel_values).logits}
        expected["map"] = model.clustr(pixel_values).last_hidden_state.contiguous()
    save_file(expected, folder / "expected.safetensors")
    Image.effect_mandelbrot((120, 90), (-3, -2.5, 2, 2.5), 100).convert("RGB").save(folder / "image.png")
    return folder


@pytest.fixture(scope="module", params=["semantic_fpn", "upernet"])
def segmentation_folder(request, folder, tmp_path_factory):
    """A segmentation model saved by `save_pretrained`, and an image whose height is not a multiple of the stride."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp(request.param)
    names = {0: "wall", 1: "floor", 2: "tree"}
    labels = {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    config = ClusTRConfig.from_variant("nano", segmentation_head=request.param, **labels)
    ClusTRForSemanticSegmentation(config).save_pretrained(path)
    ClusTRImageProcessor(do_center_crop=False, size={"shortest_edge": 64}, do_reduce_labels=True).save_pretrained(path)
    with Image.open(folder / "image.png") as image:
        image.resize((121, 87)).save(path / "image.png")
    return path


AUTO_MAP = {
    "AutoConfig": "configuration_clustr.ClusTRConfig",
    "AutoModel": "modeling_clustr.ClusTRModel",
    "AutoBackbone": "modeling_clustr.ClusTRBackbone",
    "AutoModelForImageClassification": "modeling_clustr.ClusTRForImageClassification",
}


def test_folder_is_complete(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["auto_map"] == AUTO_MAP
    assert {path.name for path in folder.glob("*.py")} == CODE_FILES
    assert (folder / "model.safetensors").is_file()
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    assert processor["auto_map"] == {"AutoImageProcessor": "image_processing_clustr.ClusTRImageProcessor"}
    for path in folder.glob("*.py"):
        assert "clustr_hf." not in path.read_text().replace("`clustr_hf.", "").replace("torch.ops.clustr_hf.", "")


def test_remote_code_uses_the_kernel_of_an_installed_package(folder):
    model_class = get_class_from_dynamic_module("modeling_clustr.ClusTRForImageClassification", str(folder))
    remote_package = model_class.__module__.rpartition(".")[0]
    assert remote_package.startswith("transformers_modules.")
    remote_kernel = sys.modules[f"{remote_package}.clustering_kernel_clustr"]
    assert remote_kernel is not clustering_kernel_clustr
    assert remote_kernel.is_available() == clustering_kernel_clustr.is_available()


LOAD_ALL = """
import sys, torch
from safetensors.torch import load_file
from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification
folder, trust = sys.argv[1], {"trust_remote_code": True}
expected = load_file(folder + "/expected.safetensors")
pixel_values = expected["pixel_values"]
config = AutoConfig.from_pretrained(folder, **trust)
assert type(config).__name__ == "ClusTRConfig" and config.id2label[2] == "owl"
with torch.no_grad():
    classifier = AutoModelForImageClassification.from_pretrained(folder, **trust).eval()
    torch.testing.assert_close(classifier(pixel_values).logits, expected["logits"])
    model = AutoModel.from_pretrained(folder, **trust).eval()
    torch.testing.assert_close(model(pixel_values).last_hidden_state, expected["map"])
    assert len(model(pixel_values, output_clusters=True).cluster_indices) == 2
    config.out_features = ["stage1", "stage4"]
    backbone = AutoBackbone.from_config(config, **trust).eval()
    backbone.load_state_dict(model.state_dict())
    maps = backbone(pixel_values).feature_maps
    assert [tuple(m.shape) for m in maps] == [(2, 32, 32, 48), (2, 160, 4, 6)]
    torch.testing.assert_close(maps[1], expected["map"])
    reloaded = type(backbone).from_pretrained(folder, out_features=["stage4"])
    torch.testing.assert_close(reloaded(pixel_values).feature_maps[0], expected["map"])
processor = AutoImageProcessor.from_pretrained(folder, **trust)
assert type(processor).__name__ == "ClusTRImageProcessor" and processor.size["shortest_edge"] == 72
modules = [m for m in sys.modules if "clustr_hf" in m and sys.modules[m] is not None]
assert modules == [], modules
print("loaded")
"""


def test_every_auto_class_loads_without_the_package(folder, run_without_package):
    assert run_without_package(LOAD_ALL, folder).endswith("loaded\n")


NO_TRITON = """
import builtins, sys
original = builtins.__import__
def watched(name, globals=None, *args, **kwargs):
    importer = (globals or {}).get("__name__", "")
    assert name.partition(".")[0] != "triton" or "clustr" not in importer, f"{importer} imports {name}"
    return original(name, globals, *args, **kwargs)
builtins.__import__ = watched
"""
CLUSTERS_BY_TENSORS = """
import torch
clustering = sys.modules[type(model).__module__.replace("modeling_clustr", "clustering_clustr")]
assert clustering.clustering_path(torch.rand(1, 40, 8, dtype=torch.float64)) == "tensor operations"
assert not [name for name in sys.modules if name.endswith("clustering_triton_kernels_clustr")]
print("none imported")
"""


@pytest.mark.parametrize("is_installed", [True, False])
def test_importing_never_imports_triton(folder, run_without_package, is_installed):
    """Without a GPU, clustering does not import Triton; without Triton, everything works."""
    start = NO_TRITON if is_installed else "import sys; sys.modules['triton'] = None"
    assert run_without_package(start + LOAD_ALL + CLUSTERS_BY_TENSORS, folder).endswith("none imported\n")


PACKAGE_WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import clustr_hf, torch
clustr_hf.ClusTRForImageClassification(clustr_hf.ClusTRConfig.from_variant("nano"))(torch.rand(1, 3, 64, 64))
assert not [name for name in sys.modules if name.startswith("clustr_hf.") and "kernels_clustr" in name]
assert clustr_hf.modeling_clustr.ClusTRModel is clustr_hf.ClusTRModel
from clustr_hf.clustering_triton_clustr import can_cluster
from clustr_hf.handler_clustr import EndpointHandler
print("imported")
"""


def test_the_package_needs_no_triton(tmp_path):
    """Triton is not available for every platform; importing the package must not import its kernels."""
    assert run_process([sys.executable, "-c", PACKAGE_WITHOUT_TRITON], tmp_path, is_new=True).endswith("imported\n")


PIPELINES = """
import sys, torch
from transformers import pipeline
folder = sys.argv[1]
classify = pipeline("image-classification", model=folder, trust_remote_code=True)
answers = classify(folder + "/image.png", top_k=3)
assert {answer["label"] for answer in answers} == {"cat", "dog", "owl"}
assert abs(sum(answer["score"] for answer in answers) - 1) < 1e-5
extract = pipeline("image-feature-extraction", model=folder, trust_remote_code=True)
features = torch.tensor(extract(folder + "/image.png"))
assert tuple(features.shape) == (1, 160, 4, 4), features.shape
pooled = torch.tensor(extract(folder + "/image.png", pool=True))
torch.testing.assert_close(pooled, features.mean(dim=(2, 3)))
print(answers[0]["label"])
"""


def test_pipelines_run_without_the_package(folder, run_without_package):
    predicted = run_without_package(PIPELINES, folder).strip().splitlines()[-1]
    model = ClusTRForImageClassification.from_pretrained(folder).eval()
    inputs = ClusTRImageProcessor.from_pretrained(folder)(Image.open(folder / "image.png"), return_tensors="pt")
    with torch.no_grad():
        assert predicted == model.config.id2label[model(**inputs).logits.argmax().item()]


def test_segmentation_folder_is_complete(segmentation_folder):
    """Its map has no class for instances, which the pipeline would prefer."""
    config = json.loads((segmentation_folder / "config.json").read_text())
    segmenter = "modeling_clustr_segmentation.ClusTRForSemanticSegmentation"
    assert config["auto_map"] == {**AUTO_MAP, "AutoModelForSemanticSegmentation": segmenter}
    code = {path.name for path in segmentation_folder.glob("*.py")}
    assert code == {*CODE_FILES, "modeling_clustr_dense.py", "modeling_clustr_segmentation.py"}


SEGMENT = """
import sys
from transformers import AutoModelForSemanticSegmentation, AutoModelForImageClassification, pipeline
folder, output = sys.argv[1:]
segment = pipeline("image-segmentation", model=folder, trust_remote_code=True)
assert type(segment.model).__module__.startswith("transformers_modules.")
assert segment.image_processor.do_reduce_labels
for answer in segment(folder + "/image.png"):
    answer["mask"].save(f"{output}/{answer['label']}.png")
classifier = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)
assert all((classifier.state_dict()[n] == w).all() for n, w in segment.model.state_dict().items() if "clustr" in n)
"""


def test_segmentation_pipeline_runs_without_the_package(segmentation_folder, tmp_path, run_without_package):
    masks = tmp_path / "masks"
    masks.mkdir()
    run_without_package(SEGMENT, segmentation_folder, masks)
    model = ClusTRForSemanticSegmentation.from_pretrained(segmentation_folder).eval()
    processor = ClusTRImageProcessor.from_pretrained(segmentation_folder)
    with Image.open(segmentation_folder / "image.png") as image, torch.no_grad():
        output = model(**processor(image, return_tensors="pt"))
    [expected] = processor.post_process_semantic_segmentation(output, [(87, 121)])
    assert {path.stem for path in masks.iterdir()} == {model.config.id2label[i] for i in expected.unique().tolist()}
    for path in masks.iterdir():
        mask = torch.from_numpy(np.asarray(Image.open(path)).copy())
        assert torch.equal(mask > 0, expected == model.config.label2id[path.stem])


DETECTORS = {
    "AutoModelForObjectDetection": ClusTRForObjectDetection,
    "AutoModelForInstanceSegmentation": ClusTRForInstanceSegmentation,
}


@pytest.fixture(scope="module", params=DETECTORS)
def detection_folder(request, folder, tmp_path_factory):
    """A detector saved by `save_pretrained`, with weights that make predictions differ by location and class."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp(request.param)
    names = {0: "cell", 1: "plate"}
    labels = {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    model = DETECTORS[request.param](ClusTRConfig.from_variant("nano", **labels))
    enlarge_weights([weight for name, weight in model.detector.named_parameters() if "backbone" not in name])
    model.save_pretrained(path)
    ClusTRDetectionImageProcessor(size={"shortest_edge": 64, "longest_edge": 100}).save_pretrained(path)
    shutil.copy(folder / "image.png", path)
    return path


DETECTION_CODE = {
    "annotations_clustr.py",
    "devices_clustr.py",
    "modeling_clustr_dense.py",
    "modeling_clustr_detection.py",
    "modeling_clustr_torchvision.py",
    "image_processing_clustr_detection.py",
}
# Each detector's own file, without the other's.
DETECTOR_CODE = {
    "ClusTRForObjectDetection": "modeling_clustr_retinanet",
    "ClusTRForInstanceSegmentation": "modeling_clustr_mask_rcnn",
}


def test_detection_folder_is_complete(detection_folder):
    config = json.loads((detection_folder / "config.json").read_text())
    [class_name] = config["architectures"]
    auto_map = {**AUTO_MAP}
    for auto_class, model_class in DETECTORS.items():
        if model_class.__name__ == class_name:
            auto_map[auto_class] = f"{DETECTOR_CODE[class_name]}.{class_name}"
    if class_name == "ClusTRForInstanceSegmentation":  # the name that the image-segmentation pipeline requests
        auto_map["AutoModelForImageSegmentation"] = f"{DETECTOR_CODE[class_name]}.{class_name}"
    assert config["auto_map"] == auto_map
    detector_code = f"{DETECTOR_CODE[class_name]}.py"
    assert {path.name for path in detection_folder.glob("*.py")} == {*CODE_FILES, *DETECTION_CODE, detector_code}


DETECT = """
import json, sys
from PIL import Image
from transformers import pipeline
folder, output = sys.argv[1:]
task = "object-detection" if "AutoModelForObjectDetection" in folder else "image-segmentation"
run = pipeline(task, model=folder, trust_remote_code=True)
assert type(run.model).__module__.startswith("transformers_modules.")
assert type(run.image_processor).__module__.startswith("transformers_modules.")
answers = run(folder + "/image.png", threshold=0.2)
for index, answer in enumerate(answers):
    if "mask" in answer:
        answer.pop("mask").save(f"{output}/{index}.png")
print(json.dumps(answers))
"""


def test_detection_pipelines_run_without_the_package(detection_folder, tmp_path, run_without_package):
    answers = json.loads(run_without_package(DETECT, detection_folder, tmp_path).strip().splitlines()[-1])
    model_class = next(model for name, model in DETECTORS.items() if name in detection_folder.name)
    model = model_class.from_pretrained(detection_folder).eval()
    processor = ClusTRDetectionImageProcessor.from_pretrained(detection_folder)
    with Image.open(detection_folder / "image.png") as image, torch.no_grad():
        output = model(**processor(image, return_tensors="pt"))
        size = image.size[::-1]
    assert len(answers) > 3
    if model_class is ClusTRForObjectDetection:
        [found] = processor.post_process_object_detection(output, 0.2, [size])
        assert [answer["label"] for answer in answers] == [model.config.id2label[i] for i in found["labels"].tolist()]
        corners = [[answer["box"][key] for key in ("xmin", "ymin", "xmax", "ymax")] for answer in answers]
        assert corners == found["boxes"].int().tolist()
        scores = found["scores"].tolist()
    else:
        [found] = processor.post_process_instance_segmentation(
            output, threshold=0.2, overlap_mask_area_threshold=0.5, target_sizes=[size]
        )
        for index, (answer, segment) in enumerate(zip(answers, found["segments_info"], strict=True)):
            assert answer["label"] == model.config.id2label[segment["label_id"]]
            mask = torch.from_numpy(np.asarray(Image.open(tmp_path / f"{index}.png")).copy())
            assert torch.equal(mask > 0, found["segmentation"] == segment["id"])
        scores = [segment["score"] for segment in found["segments_info"]]
    assert [answer["score"] for answer in answers] == pytest.approx(scores, abs=1e-5)


POSE_CODE = {
    "modeling_clustr_dense.py",
    "modeling_clustr_pose.py",
    "image_processing_clustr_pose.py",
    "pipeline_clustr_pose.py",
}
BOXES = [[20.0, 10.0, 40.0, 60.0], [60.5, -20.0, 30.0, 80.0]]


@pytest.fixture(scope="module")
def pose_folder(folder, tmp_path_factory):
    """A pose estimator saved by `save_pretrained`, with weights that make predictions differ by location."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("pose")
    model = ClusTRForPoseEstimation(ClusTRConfig.from_variant("nano", **COCO_WHOLEBODY.config_fields()))
    enlarge_weights(model.head.parameters())
    model.save_pretrained(path)
    size = {"height": 64, "width": 48}
    ClusTRPoseImageProcessor(size=size, keypoint_heatmap_downscale_factor=2).save_pretrained(path)
    shutil.copy(folder / "image.png", path)
    return path


def test_pose_folder_is_complete(pose_folder):
    config = json.loads((pose_folder / "config.json").read_text())
    assert config["auto_map"] == {
        **AUTO_MAP,
        "AutoModelForPoseEstimation": "modeling_clustr_pose.ClusTRForPoseEstimation",
    }
    implementation = "pipeline_clustr_pose.ClusTRKeypointDetectionPipeline"
    custom_pipelines = {"keypoint-detection": {"impl": implementation, "pt": ["AutoModelForPoseEstimation"]}}
    assert config["custom_pipelines"] == custom_pipelines
    assert {path.name for path in pose_folder.glob("*.py")} == {*CODE_FILES, *POSE_CODE}
    processor = json.loads((pose_folder / "preprocessor_config.json").read_text())
    assert processor["auto_map"] == {"AutoImageProcessor": "image_processing_clustr_pose.ClusTRPoseImageProcessor"}


ESTIMATE = """
import json, sys
from transformers import AutoModelForPoseEstimation, pipeline
folder, again, boxes = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
def detect(image):
    sides = ("xmin", "ymin", "xmax", "ymax")
    corners = [[x, y, x + w, y + h] for x, y, w, h in boxes]
    found = [{"label": "person", "score": 0.5 + 0.25 * i, "box": dict(zip(sides, c))} for i, c in enumerate(corners)]
    return [*found, {**found[0], "label": "dog"}, {**found[0], "score": 0.3}]
estimate = pipeline("keypoint-detection", model=folder, trust_remote_code=True, detector=detect)
for part in (estimate, estimate.model, estimate.image_processor):
    assert type(part).__module__.startswith("transformers_modules.")
image = folder + "/image.png"
by_boxes, by_detector = estimate(image, boxes=boxes), estimate(image)
assert [p["keypoints"] for p in by_boxes] == [p["keypoints"] for p in by_detector]
assert [d["score"] / b["score"] for b, d in zip(by_boxes, by_detector)] == [0.5, 0.75]
model = AutoModelForPoseEstimation.from_pretrained(folder, trust_remote_code=True)
model.save_pretrained(again)
estimate.image_processor.save_pretrained(again)
reloaded = pipeline(model=again, trust_remote_code=True)  # the task is the only one of the checkpoint
assert reloaded(image, boxes=boxes, flip_test=False) != by_boxes
print(json.dumps(by_boxes))
"""


def test_keypoint_pipeline_runs_without_the_package(pose_folder, tmp_path, run_without_package):
    again = tmp_path / "again"
    output = run_without_package(ESTIMATE, pose_folder, again, json.dumps(BOXES))
    assert {path.name for path in again.glob("*.py")} == {*CODE_FILES, *POSE_CODE}
    model = ClusTRForPoseEstimation.from_pretrained(pose_folder).eval()
    processor = ClusTRPoseImageProcessor.from_pretrained(pose_folder)
    with Image.open(pose_folder / "image.png") as image, torch.no_grad():
        crops = processor(image, boxes=[BOXES], return_tensors="pt").pixel_values
        outputs = model(crops), model(crops.flip(-1), flip_pairs=COCO_WHOLEBODY.flip_pairs)
    [expected] = processor.post_process_pose_estimation(outputs[0], [BOXES], outputs[1])
    found = json.loads(output.strip().splitlines()[-1])
    for person, reference in zip(found, expected, strict=True):
        assert [point["label"] for point in person["keypoints"]] == list(COCO_WHOLEBODY.names)
        points = [[point["x"], point["y"]] for point in person["keypoints"]]
        torch.testing.assert_close(torch.tensor(points), reference["keypoints"], atol=1e-3, rtol=0)
        scores = torch.tensor([point["score"] for point in person["keypoints"]])
        torch.testing.assert_close(scores, reference["scores"])
        assert person["score"] == pytest.approx(scores[scores > 0.2].mean().item())
        assert list(person["box"].values()) == reference["bbox"].tolist()


DETECT_AND_ESTIMATE = """
import json, sys
from transformers import pipeline
folder, detector = sys.argv[1:]
estimate = pipeline("keypoint-detection", model=folder, detector=detector, trust_remote_code=True)
for part in (estimate, estimate.detector.model, estimate.detector.image_processor):
    assert type(part).__module__.startswith("transformers_modules.")
image = folder + "/image.png"
settings = {"detector_label": estimate.detector.model.config.id2label[0], "detector_threshold": 0.0}
print(json.dumps([len(estimate(image, **settings)), len(estimate([image] * 2, batch_size=2, **settings)[1])]))
"""


@pytest.mark.parametrize("detection_folder", list(DETECTORS)[:1], indirect=True)
def test_a_detector_with_remote_code_is_trusted_as_the_pipeline_is(pose_folder, detection_folder, run_without_package):
    output = run_without_package(DETECT_AND_ESTIMATE, pose_folder, detection_folder)
    numbers = json.loads(output.strip().splitlines()[-1])
    assert numbers[0] == numbers[1] > 0


RESAVE = """
import sys
from transformers import AutoImageProcessor, AutoModelForImageClassification
model = AutoModelForImageClassification.from_pretrained(
    sys.argv[1], num_labels=7, ignore_mismatched_sizes=True, trust_remote_code=True
)
model.save_pretrained(sys.argv[2])
AutoImageProcessor.from_pretrained(sys.argv[1], trust_remote_code=True).save_pretrained(sys.argv[2])
"""


def test_a_model_loaded_by_remote_code_can_be_saved_and_loaded_again(folder, tmp_path, run_without_package):
    again = tmp_path / "again"
    run_without_package(RESAVE, folder, again)
    assert {path.name for path in again.glob("*.py")} == CODE_FILES
    first, second = (json.loads((path / "config.json").read_text()) for path in (folder, again))
    assert first["auto_map"] == second["auto_map"]
    head = "from transformers import AutoModelForImageClassification as A; import sys\n"
    run_without_package(head + "assert A.from_pretrained(sys.argv[1], trust_remote_code=True).num_labels == 7", again)


TWO_AT_ONCE = """
import sys, torch
from transformers import AutoModelForImageClassification as A
models = [A.from_pretrained(folder, trust_remote_code=True).eval() for folder in sys.argv[1:]]
assert type(models[0]).__module__ != type(models[1]).__module__
pixel_values = torch.rand(1, 3, 64, 64)
for model in models:
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(pixel_values).logits, model(pixel_values).logits)
"""


def test_two_repositories_work_in_one_process(folder, tmp_path, run_without_package):
    """Each folder has its own copy of the code and registers the compiler's clustering operation again."""
    shutil.copytree(folder, tmp_path / "other")
    run_without_package(TWO_AT_ONCE, folder, tmp_path / "other")


@pytest.mark.parametrize("model_class", [ClusTRModel, ClusTRBackbone])
def test_headless_checkpoints_are_complete_too(model_class, tmp_path, run_without_package):
    model = model_class(ClusTRConfig.from_variant("nano")).eval()
    model.save_pretrained(tmp_path / "checkpoint")
    run_without_package(
        "import sys, torch\nfrom safetensors.torch import load_file\n"
        "from transformers import AutoModel, AutoModelForImageClassification as Classifier\n"
        "weights = load_file(sys.argv[1] + '/model.safetensors')\n"
        "model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "classifier = Classifier.from_pretrained(sys.argv[1], num_labels=4, trust_remote_code=True)\n"
        "for loaded in (model, classifier.clustr):\n"
        "    state = loaded.state_dict()\n"
        "    assert state.keys() == weights.keys()\n"
        "    assert all(torch.equal(state[name], weights[name]) for name in weights)\n",
        tmp_path / "checkpoint",
    )


def test_segmentation_pipelines_of_the_package_load_the_checkpoints_class(segmentation_folder, detection_folder):
    assert type(pipeline("image-segmentation", model=str(segmentation_folder)).model) is ClusTRForSemanticSegmentation
    if "Instance" in detection_folder.name:
        assert type(pipeline("image-segmentation", model=str(detection_folder)).model) is ClusTRForInstanceSegmentation
    else:
        assert type(pipeline("object-detection", model=str(detection_folder)).model) is ClusTRForObjectDetection


def test_importing_the_package_prints_nothing():
    result = subprocess.run([sys.executable, "-c", "import clustr_hf"], capture_output=True, text=True, check=True)
    assert result.stdout == "" and result.stderr == ""


def test_importing_the_package_registers_every_auto_class(folder):
    from transformers import (
        AutoBackbone,
        AutoConfig,
        AutoImageProcessor,
        AutoModel,
        AutoModelForImageClassification,
        AutoModelForInstanceSegmentation,
        AutoModelForObjectDetection,
        AutoModelForPoseEstimation,
        AutoModelForSemanticSegmentation,
    )

    config = AutoConfig.from_pretrained(folder)
    assert type(config) is ClusTRConfig
    assert type(AutoModel.from_pretrained(folder)) is ClusTRModel
    assert type(AutoModelForImageClassification.from_pretrained(folder)) is ClusTRForImageClassification
    assert type(AutoModelForSemanticSegmentation.from_config(config)) is ClusTRForSemanticSegmentation
    assert type(AutoModelForObjectDetection.from_config(config)) is ClusTRForObjectDetection
    assert type(AutoModelForInstanceSegmentation.from_config(config)) is ClusTRForInstanceSegmentation
    assert type(AutoModelForPoseEstimation.from_config(config)) is ClusTRForPoseEstimation
    assert type(AutoBackbone.from_config(config)) is ClusTRBackbone
    assert type(AutoImageProcessor.from_pretrained(folder)) is ClusTRImageProcessor
