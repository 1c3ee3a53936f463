"""Fixtures and helpers that several test files share."""

import os


# Makes Triton interpret its kernels on CPUs. Triton reads the variable on import, and torch imports Triton.
os.environ.setdefault("TRITON_INTERPRET", "1")

import json
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from forked_scripts import forked_scripts  # noqa: F401 (a fixture)
from PIL import Image, ImageDraw
from safetensors import safe_open
from sklearn.datasets import load_digits

from clustr_hf.remote_code.image_processing_clustr_detection import encode_mask


os.environ.setdefault("HF_HUB_OFFLINE", "1")

REPOSITORY = Path(__file__).resolve().parents[1]
# Data and recordings beside the checkout; tests that use them are skipped if the folder does not exist.
SHARED = REPOSITORY.parent / "shared"
# Bundled checkpoints, in the package and in the repository.
CHECKPOINT_FOLDERS = sorted(
    path.parent
    for place in ("src/clustr_hf/checkpoints", "checkpoints")
    for path in REPOSITORY.glob(f"{place}/*/config.json")
)


# Test files that take minutes, the longest first.
LONGEST = (
    *("test_publish", "test_training_loop", "test_clustering_triton_clustr", "test_docs", "test_bundled"),
    *("test_clustering_kernel_clustr", "test_modeling_clustr_detection", "test_export", "test_evaluation_loop"),
    *("test_run_detection_no_trainer", "test_run_pose_estimation_no_trainer", "test_modeling_clustr_segmentation"),
    *("test_run_semantic_segmentation_no_trainer", "test_benchmark", "test_remote_code", "test_triton_compilation"),
    *("test_ablations", "test_ecosystem", "test_examples", "test_run_image_classification_no_trainer", "test_space"),
)


def pytest_collection_modifyitems(items):
    """Run long files first, so that no worker of pytest-xdist is left with one at the end."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture
def shared():
    """Path of the shared data, or a skip."""
    if not SHARED.is_dir():
        pytest.skip("the shared data is not beside this checkout")
    return SHARED


@pytest.fixture
def recording(shared):
    """Tensors recorded from the authors' released model, by name, and the settings of that model."""
    with safe_open(shared / "parity" / "clustr_release_small.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


# Variables that a preloaded process has already read; a command that changes one needs a new process.
READ_BY_IMPORTS = ("OMP_NUM_THREADS", "PYTHONPATH", "TRITON_INTERPRET", "PYTHONWARNINGS")


class PreloadedPython:
    """Runs Python commands in forks of preloaded_python.py, a process that has already imported slow libraries."""

    def __init__(self):
        self.process = None

    def can_run(self, command: list[str], environment: dict[str, str]) -> bool:
        is_plain = command[0] == sys.executable and (command[1] in ("-c", "-m") or not command[1].startswith("-"))
        return is_plain and all(environment.get(name) == os.environ.get(name) for name in READ_BY_IMPORTS)

    def run(self, command: list[str], cwd, environment: dict[str, str], timeout: float) -> tuple[int, str, str]:
        """Exit status, standard output and standard error of a command."""
        if self.process is None:
            server = [sys.executable, str(Path(__file__).parent / "helpers" / "preloaded_python.py")]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            self.process = subprocess.Popen(server, **pipes, text=True, start_new_session=True)
        with tempfile.TemporaryDirectory() as folder:
            files = {name: str(Path(folder) / name) for name in ("stdout", "stderr")}
            request = {"command": command[1:], "cwd": str(cwd), "environment": environment, **files}
            watch = threading.Timer(timeout, self.stop)
            watch.start()
            try:
                self.process.stdin.write(json.dumps(request) + "\n")
                self.process.stdin.flush()
                answer = self.process.stdout.readline()
            finally:
                watch.cancel()
            texts = [Path(path).read_text() if Path(path).exists() else "" for path in files.values()]
        if not answer:
            self.process = None
            raise TimeoutError(f"{command} took more than {timeout} s: {texts}")
        return int(answer), *texts

    def stop(self):
        """Kill the process and its forks."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


PRELOADED = PreloadedPython()


@pytest.fixture(scope="session", autouse=True)
def preloaded():
    yield
    PRELOADED.stop()


def run_process(command, cwd, is_new: bool = False, **environment: str) -> str:
    """
    Run a command offline and without a GPU; returns its standard output, and fails with its output if it fails. Python
    commands run in a preloaded process unless `is_new` is set.
    """
    command = list(map(str, command))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", **environment}
    if not is_new and PRELOADED.can_run(command, environment):
        status, stdout, stderr = PRELOADED.run(command, cwd, environment, timeout=600)
    else:
        result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
        status, stdout, stderr = result.returncode, result.stdout, result.stderr
    assert status == 0, stdout[-2000:] + stderr[-8000:]
    return stdout


@pytest.fixture
def run_without_package(tmp_path):
    """Run Python code in a process that cannot import clustr_hf; returns its standard output."""

    def run(code: str, *arguments: object, is_new: bool = False, **environment: str) -> str:
        blocked = f"import sys; sys.modules['clustr_hf'] = None\n{code}"
        command = [sys.executable, "-c", blocked, *arguments]
        return run_process(command, tmp_path, is_new, HF_MODULES_CACHE=str(tmp_path / "modules"), **environment)

    return run


@pytest.fixture(scope="session")
def image_folders(tmp_path_factory):
    """Digits 0 to 2 as class folders of images, for training and validation."""
    folder = tmp_path_factory.mktemp("images")
    digits = load_digits(n_class=3)
    for split, part in (("train", slice(0, 60)), ("validation", slice(60, 91))):
        for index, (image, digit) in enumerate(zip(digits.images[part], digits.target[part])):
            path = folder / split / ["zero", "one", "two"][digit] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((image * 255 / 16).astype(np.uint8)).save(path)
    return folder


@pytest.fixture
def run_script(monkeypatch):
    """Run the `main` of a training script in this process, with named settings and further arguments."""

    def run(script, settings: dict, *arguments):
        command = [*(str(part) for pair in settings.items() for part in pair), *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", [script.__file__, *command])
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        script.main()

    return run


def shapes_on_ground(number: int, seed: int = 1, size: tuple[int, int] = (96, 96)):
    """
    Images `(3, height, width)` of a bright disc (1) and a striped square (2) on a dark background (0), and their label
    maps `(height, width)`, all uint8.
    """
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(*(torch.arange(extent) for extent in size), indexing="ij")
    images, maps = [], []
    for _ in range(number):
        center = torch.randint(20, min(size) - 20, (2, 2), generator=generator)
        disc = (rows - center[0, 0]) ** 2 + (columns - center[0, 1]) ** 2 < 15**2
        square = ((rows - center[1, 0]).abs() < 12) & ((columns - center[1, 1]).abs() < 12)
        label_map = torch.where(disc, 1, torch.where(square, 2, 0))
        shades = torch.tensor([40, 220, 130])[label_map] + torch.where(label_map == 2, 60 * (columns % 4 < 2), 0)
        noise = torch.randint(0, 30, (3, *size), generator=generator)
        images.append((shades + noise).clamp(max=255).to(torch.uint8))
        maps.append(label_map.to(torch.uint8))
    return images, maps


@pytest.fixture(scope="session")
def segmentation_folders(tmp_path_factory):
    """These shapes as folders of images and label maps; the validation images have two sizes."""
    folder = tmp_path_factory.mktemp("shapes")
    (folder / "id2label.json").write_text('{"0": "ground", "1": "disc", "2": "square"}')
    parts = [("train", 0, 12, (96, 96)), ("validation", 12, 3, (90, 120)), ("validation", 15, 2, (128, 96))]
    for split, first, number, size in parts:
        for index, pair in enumerate(zip(*shapes_on_ground(number, seed=first, size=size)), start=first):
            for kind, pixels in zip(("images", "annotations"), pair):
                path = folder / split / kind / f"{index:02d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.numpy() if kind == "annotations" else pixels.permute(1, 2, 0).numpy()).save(path)
    return folder


def coco_annotations(label_map: np.ndarray, first_id: int, image_id: int, as_polygons: bool) -> list[dict]:
    """COCO annotations, with masks, of the disc (category 3) and the square (category 7) of a label map."""
    annotations = []
    for value, category in ((1, 3), (2, 7)):
        rows, columns = np.nonzero(label_map == value)
        if len(rows) == 0:
            continue
        x, y = columns.min().item(), rows.min().item()
        width, height = columns.max().item() + 1 - x, rows.max().item() + 1 - y
        corners = [x, y, x + width, y, x + width, y + height, x, y + height]
        annotation = {"bbox": [x, y, width, height], "area": len(rows), "iscrowd": 0, "category_id": category}
        is_square = value == 2 and len(rows) == width * height
        annotation["segmentation"] = (
            [corners] if as_polygons and is_square else encode_mask(torch.from_numpy(label_map == value))
        )
        annotations.append({**annotation, "id": first_id + len(annotations), "image_id": image_id})
    return annotations


@pytest.fixture(scope="session")
def coco_folders(segmentation_folders, tmp_path_factory):
    """The same shapes as COCO files: `train.json`, `validation.json`, and images in folders of the same names."""
    folder = tmp_path_factory.mktemp("coco")
    for split in ("train", "validation"):
        images, annotations = [], []
        for image_id, path in enumerate(sorted((segmentation_folders / split / "images").iterdir()), start=10):
            label_map = np.asarray(Image.open(segmentation_folders / split / "annotations" / path.name))
            height, width = label_map.shape
            images.append({"id": image_id, "file_name": path.name, "height": height, "width": width})
            annotations += coco_annotations(label_map, len(annotations) + 1, image_id, as_polygons=image_id % 2 == 0)
        crowd = {**annotations[0], "id": 1000, "iscrowd": 1, "bbox": [0, 0, 20, 20], "area": 400}
        images.append({**images[0], "id": 99})  # the first image again, without objects
        content = {
            "images": images,
            "annotations": [*annotations, crowd],
            "categories": [{"id": 7, "name": "square"}, {"id": 3, "name": "disc"}],
        }
        (folder / f"{split}.json").write_text(json.dumps(content))
        (folder / split).symlink_to(segmentation_folders / split / "images")
    return folder


def draw_persons(image_id: int, size: tuple[int, int], first_id: int) -> tuple[Image.Image, list[dict]]:
    """
    An image (height, width) of persons whose 17 keypoints are dots of different colours, and their annotations: two
    persons, a crowd, and a person without keypoints.
    """
    generator = np.random.default_rng(image_id)
    image = Image.fromarray(generator.integers(0, 40, (*size, 3), dtype=np.uint8))
    canvas, annotations = ImageDraw.Draw(image), []
    for x in (5, size[1] // 2):
        width, height = generator.uniform(36, 44), generator.uniform(52, 68)
        box = np.array([x, generator.uniform(2, size[0] - height - 2), width, height])
        grid = np.array([[column / 4 + 0.12, row / 5 + 0.1] for row in range(5) for column in range(4)][:17])
        points = box[:2] + (grid + generator.uniform(-0.06, 0.06, (17, 2))) * box[2:]
        visible = generator.choice([0, 1, 2], 17, p=[0.1, 0.2, 0.7])
        for index, (x0, y0) in enumerate(points):
            color = (255 - 80 * (index % 3), 80 * (index // 3 % 3) + 60, 100 * (index // 9) + 50)
            canvas.ellipse((x0 - 3, y0 - 3, x0 + 3, y0 + 3), fill=color)
        keypoints = np.column_stack([points, visible]) * (visible > 0)[:, None]
        area = {"bbox": box.tolist(), "area": 0.6 * width * height}
        annotations.append({**area, "keypoints": keypoints.ravel().tolist(), "iscrowd": 0})
    annotations.append({**annotations[0], "iscrowd": 1})
    annotations.append({**annotations[1], "keypoints": [0] * 51, "bbox": [0, 0, 9, 9], "area": 50})
    place = {"image_id": image_id, "category_id": 1}
    return image, [{**row, **place, "id": first_id + index} for index, row in enumerate(annotations)]


@pytest.fixture(scope="session")
def person_folders(tmp_path_factory):
    """These persons as COCO files: `train.json`, `validation.json`, and images in folders of the same names."""
    folder = tmp_path_factory.mktemp("persons")
    for split, first, number in (("train", 10, 12), ("validation", 50, 4)):
        (folder / split).mkdir()
        images, annotations = [], []
        for image_id in range(first, first + number):
            size = (80, 110) if image_id % 2 else (96, 100)
            image, persons = draw_persons(image_id, size, len(annotations) + 1)
            image.save(folder / split / f"{image_id}.png")
            images.append({"id": image_id, "file_name": f"{image_id}.png", "height": size[0], "width": size[1]})
            annotations += persons
        images.append({**images[0], "id": 99})  # the first image again, without persons
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder
