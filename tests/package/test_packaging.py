"""Wheels for every Python, installation without a compiler, and dependencies that are too old."""

import ast
import json
import re
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
from conftest import REPOSITORY, run_process
from hub_repositories import MODEL_CLASSES, make_model

from clustr_hf import training
from clustr_hf.remote_code import versions_clustr


SOURCE = REPOSITORY / "src" / "clustr_hf"


def build_wheel(folder: Path, **environment: str) -> Path:
    """Build a wheel from the files of a source distribution."""
    copied = ["setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE", "src"]
    for name in copied:
        path = REPOSITORY / name
        ignore = shutil.ignore_patterns("*.so", "*.dll", "*.egg-info", "__pycache__")
        (shutil.copytree(path, folder / name, ignore=ignore) if path.is_dir() else shutil.copy(path, folder / name))
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        ".",
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        "-w",
        "wheels",
    ]
    run_process(command, folder, **environment)
    [wheel] = (folder / "wheels").iterdir()
    return wheel


def pythons() -> list[str]:
    """This interpreter and, if one is installed, an interpreter of another supported version."""
    beside = Path(sys.base_prefix).parent.glob("*3.*/bin/python3")
    on_path = (shutil.which(f"python3.{minor}") for minor in range(10, 16))
    for path in (*sorted(map(str, beside)), *filter(None, on_path)):
        check = "import sys, pip; print(*sys.version_info[:2])"
        printed = subprocess.run([path, "-c", check], capture_output=True, text=True).stdout.split()
        if printed and printed != [*map(str, sys.version_info[:2])] and int(printed[1]) >= 10:
            return [sys.executable, path]
    return [sys.executable]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    if shutil.which("g++") is None and shutil.which("c++") is None:
        pytest.skip("there is no C++ compiler")
    return build_wheel(tmp_path_factory.mktemp("build"))


def test_a_wheel_fits_every_python(wheel):
    assert re.fullmatch(r"clustr_hf-[\d.]+-py3-none-(?!any)\w+\.whl", wheel.name)
    names = set(zipfile.ZipFile(wheel).namelist())
    libraries = {name for name in names if name.startswith("clustr_hf/_clustering_kernel")}
    assert libraries <= {"clustr_hf/_clustering_kernel.so", "clustr_hf/_clustering_kernel.dll"} and len(libraries) == 1
    bundled = SOURCE / "checkpoints" / "clustr-nano-cifar10"
    assert {
        f"clustr_hf/checkpoints/{bundled.name}/{path.name}" for path in bundled.iterdir() if path.is_file()
    } <= names
    assert {"clustr_hf/py.typed", "clustr_hf/clustering_clustr.pyi"} <= names  # for type checkers
    assert {"clustr_hf/publish/card_template.md", "clustr_hf/training/loop.py"} <= names


# Uses only the standard library, since other Pythons have no packages.
SUPPORTED = """
import ctypes, sys
from pathlib import Path
[path] = Path(sys.argv[1], "clustr_hf").glob("_clustering_kernel.*")
print(ctypes.CDLL(str(path)).clustr_supports_v1(b"portable"), ctypes.CDLL(str(path)).clustr_supports_v1(b"sse9"))
"""


@pytest.mark.parametrize("python", pythons())
def test_the_wheel_is_installed_and_its_library_loaded(wheel, python, tmp_path):
    target = tmp_path / "site"
    install = ["-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", target, wheel]
    run_process([python, *install], tmp_path, PYTHONPATH="")
    assert run_process([python, "-c", SUPPORTED, target], tmp_path, PYTHONPATH="") == "1 0\n"


IMPORT_TRAINING = """
import importlib, pkgutil, sys
import clustr_hf.training
assert clustr_hf.__file__.startswith(sys.argv[1]), clustr_hf.__file__
for module in pkgutil.walk_packages(clustr_hf.training.__path__, "clustr_hf.training."):
    importlib.import_module(module.name)
"""


def test_the_wheel_has_the_training_package(wheel, tmp_path):
    """Runs in an empty folder, so that nothing is imported from this repository."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    (tmp_path / "empty").mkdir()
    command = [sys.executable, "-c", IMPORT_TRAINING, tmp_path]
    run_process(command, tmp_path / "empty", PYTHONPATH=str(tmp_path / "site"))


def test_the_extra_covers_what_the_training_package_imports():
    setup = ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    lines = f"{setup['options']['install_requires']} {setup['options.extras_require']['training']}".split()
    declared = {re.match(r"[\w-]+", line)[0].replace("-", "_") for line in lines}
    imported = set()
    for path in (SOURCE / "training").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(node.module.partition(".")[0])
    other = imported - sys.stdlib_module_names - declared
    assert other <= {"PIL", "pyarrow"}  # parts of pillow and datasets
    extra = re.findall(r"^[\w-]+", setup["options.extras_require"]["training"], re.MULTILINE)
    assert sorted(training.REQUIRED) == sorted(extra)


CLASSIFY = """
import json, sys
from transformers import pipeline
run = pipeline("image-classification", model=sys.argv[1], trust_remote_code=True)
assert type(run.model).__module__.startswith("transformers_modules.")
print(run(sys.argv[2], top_k=1)[0]["label"])
"""
FIRST_USE = """
import logging, sys
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s", stream=sys.stdout)
import torch, clustr_hf, clustr_hf.training
assert clustr_hf.training.train and clustr_hf.__file__.startswith(sys.argv[1]), clustr_hf.__file__
print("imported")
for _ in range(3):
    clustr_hf.find_clusters(torch.rand(1, 40, 8), [4])
"""


def test_the_checkpoint_of_a_wheel_runs_without_the_package(wheel, tmp_path, run_without_package):
    """The checkpoint is loaded from an extracted wheel; the package cannot be imported."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    image = REPOSITORY / "examples" / "space" / "images" / "cat.jpg"
    folder = tmp_path / "site" / "clustr_hf" / "checkpoints" / "clustr-nano-cifar10"
    assert run_without_package(CLASSIFY, folder, image) == "cat\n"


def test_without_a_compiler_the_install_works_and_the_first_use_says_so(tmp_path):
    missing = dict.fromkeys(["CC", "CXX", "LDSHARED", "LDCXXSHARED"], "/no/compiler")
    wheel = build_wheel(tmp_path, **missing)
    assert not any("_clustering_kernel." in name for name in zipfile.ZipFile(wheel).namelist())
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    (tmp_path / "empty").mkdir()
    code = [sys.executable, "-c", FIRST_USE, tmp_path]
    printed = run_process(code, tmp_path / "empty", PYTHONPATH=str(tmp_path / "site"))
    lines = printed[printed.index("imported") :].splitlines()[1:]
    assert len(lines) == 1, lines
    assert re.match(r"INFO clustr_hf\.\S+ .*kernel is missing: it was not built .*clustering runs as PyTorch", lines[0])
    assert "install a C++ compiler" in lines[0] and "pip install" in lines[0]


@pytest.mark.parametrize("reason", ["not a library", "none"])
def test_remote_code_says_why_there_is_no_kernel(reason, tmp_path, monkeypatch, caplog):
    from clustr_hf.remote_code import clustering_kernel_clustr as kernel

    class Package:
        submodule_search_locations = (str(tmp_path),)

    (tmp_path / kernel.LIBRARY_FILE).write_text("not a library")
    package = Package() if reason == "not a library" else None
    monkeypatch.setattr(kernel.importlib.util, "find_spec", lambda name: package)
    with caplog.at_level("INFO"):
        assert kernel._library.__wrapped__() is None
    [message] = caplog.messages
    expected = f"{tmp_path / kernel.LIBRARY_FILE} cannot be used" if package else "clustr_hf is not installed"
    assert expected in message and "pip install" in message


@pytest.mark.parametrize("name, old, new", [("transformers", "4.57.6", "5.20.0.dev0"), ("torch", "2.5.1+cu121", "3.0")])
def test_old_releases_are_named(name, old, new):
    needed = versions_clustr.MINIMUM_VERSIONS[name]
    with pytest.raises(ImportError, match=re.escape(f"{name} {needed} or newer, but {name} {old} is installed")):
        versions_clustr.check_version(name, old)
    versions_clustr.check_version(name, new)


def test_the_versions_are_those_of_the_package():
    setup = ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    requirements = setup["options"]["install_requires"].split()
    for name, version in versions_clustr.MINIMUM_VERSIONS.items():
        assert any(re.fullmatch(rf"{name}>={re.escape(version)}(,<\d+)?", line) for line in requirements)


# Stands in for transformers 4.57: a module of that version that lacks all imported names.
OLD_PACKAGE = """
import sys, types
sys.modules["transformers"] = types.ModuleType("transformers")
sys.modules["transformers"].__version__ = "4.57.6"
import clustr_hf
"""
OLD_REMOTE_CODE = """
import functools, transformers
loaders = {name: getattr(transformers, name).from_pretrained for name in sys.argv[2].split()}
loaders["pipeline"] = functools.partial(transformers.pipeline, sys.argv[3])
sys.modules["transformers"].__version__ = "4.57.6"  # only now: its own imports make another module of it
for name, load in loaders.items():
    try:
        load(sys.argv[1], trust_remote_code=True)
        print(f"{name}: no error")
    except ImportError as error:
        print(f"{name}: {error}")
"""
MESSAGE = "ClusTR requires transformers 5.20 or newer, but transformers 4.57.6 is installed."


def test_the_package_names_an_old_transformers(tmp_path):
    with pytest.raises(AssertionError, match=f"ImportError: {MESSAGE}"):
        run_process([sys.executable, "-c", OLD_PACKAGE], tmp_path, PYTHONPATH=str(SOURCE.parent))


def test_remote_code_names_an_old_transformers(tmp_path, run_without_package):
    model, processor = make_model("detection")
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    names = ["AutoConfig", "AutoModel", "AutoModelForObjectDetection", "AutoImageProcessor"]
    printed = run_without_package(OLD_REMOTE_CODE, tmp_path / "model", " ".join(names), "object-detection")
    lines = printed.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [*names, "pipeline"]
    assert all(line.partition(": ")[2].startswith(MESSAGE) for line in lines)


@pytest.mark.parametrize("kind", MODEL_CLASSES)
def test_what_a_configuration_names_checks_the_versions_first(kind, tmp_path):
    model, processor = make_model(kind)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    places = set()
    for path in tmp_path.glob("*config.json"):
        config = json.loads(path.read_text())
        places |= {*config.get("auto_map", {}).values()}
        places |= {pipeline["impl"] for pipeline in config.get("custom_pipelines", {}).values()}
    assert len(places) >= 4
    for place in places:
        body = ast.parse((tmp_path / f"{place.partition('.')[0]}.py").read_text()).body
        first = next(node for node in body if isinstance(node, (ast.Import, ast.ImportFrom)))
        assert isinstance(first, ast.ImportFrom) and first.module == "versions_clustr", place
