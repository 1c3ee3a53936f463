"""The layout of the repository: what imports what, and how long files and functions may be."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY


PACKAGE = REPOSITORY / "src" / "clustr_hf"
EXAMPLES = REPOSITORY / "examples"
COPIES = {PACKAGE / "checkpoints", REPOSITORY / "checkpoints"}  # bundled checkpoints hold copies of the code
SOURCES = [
    path
    for folder in (PACKAGE, EXAMPLES)
    for path in sorted(folder.rglob("*.py"))
    if COPIES.isdisjoint(path.parents) and "template" not in path.parts
]
# Rooms from the bottom to the top: a file imports from its own room and from those before it.
ROOMS = (
    ("remote_code",),
    ("bundled", "devices", "module_aliases", "name_lists"),
    ("convert_checkpoint", "export", "hub_kernel", "keypoints", "loading"),
    ("metrics", "visualization", "publish"),
    ("training",),
)
MAX_FUNCTION_LINES = 40
MAX_UPLOADED_LINES = 500
MAX_SCRIPT_LINES = 150
MAX_EXAMPLES = 16


def relative(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name and number of lines of every function, docstrings left out."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0]
            has_docstring = ast.get_docstring(node, clean=False) is not None
            docstring = first.end_lineno - first.lineno + 1 if has_docstring else 0
            yield node.name, node.end_lineno - node.lineno + 1 - docstring


def test_functions_are_short():
    long = [
        f"{relative(path)}: {name} has {lines} lines"
        for path in SOURCES
        for name, lines in functions(path)
        if lines > MAX_FUNCTION_LINES
    ]
    assert not long, "\n".join(long)


@pytest.mark.parametrize(
    ("paths", "limit"),
    [
        (sorted((PACKAGE / "remote_code").glob("*.py")), MAX_UPLOADED_LINES),
        (sorted(EXAMPLES.rglob("*.py")), MAX_SCRIPT_LINES),
    ],
    ids=["uploaded", "examples"],
)
def test_files_are_short(paths, limit):
    assert paths
    lines = {relative(path): len(path.read_text().splitlines()) for path in paths}
    assert {name: number for name, number in lines.items() if number > limit} == {}


def test_what_is_uploaded_lies_flat_in_one_folder():
    folder = PACKAGE / "remote_code"
    assert [path for path in folder.iterdir() if path.is_dir() and path.name != "__pycache__"] == []
    assert list(PACKAGE.rglob("*_clustr*.py")), "the pattern of uploaded files has changed"
    elsewhere = [path for path in SOURCES if "_clustr" in path.stem and path.parent not in (folder, PACKAGE)]
    assert elsewhere == []


def imported_modules(path: Path, package: str) -> Iterator[str]:
    """Absolute names of all modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def package_of(path: Path) -> str:
    return ".".join(["clustr_hf", *path.relative_to(PACKAGE).parent.parts])


def room_of(module: str) -> str | None:
    """The first part of a module's name within the package."""
    parts = module.split(".")
    return parts[1] if parts[0] == "clustr_hf" and len(parts) > 1 else None


def test_imports_of_the_package_point_one_way():
    floors = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}
    wrong = []
    for path in SOURCES:
        if PACKAGE not in path.parents or (path.parent == PACKAGE and path.stem == "__init__"):
            continue
        own = room_of(f"{package_of(path)}.{path.stem}")
        assert own in floors, f"{relative(path)} is in no room of ROOMS"
        for module in imported_modules(path, package_of(path)):
            room = room_of(module)
            if room in floors and floors[room] > floors[own]:
                wrong.append(f"{relative(path)} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_itself_in_a_circle():
    modules = {
        f"{package_of(path)}.{path.stem}".removesuffix(".__init__"): path
        for path in SOURCES[:]
        if PACKAGE in path.parents
    }
    edges = {
        name: {
            target
            for module in imported_modules(path, package_of(path))
            for target in (module, module.rpartition(".")[0])
            if target in modules and target != name and modules[target].stem != "__init__"
        }
        for name, path in modules.items()
    }
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]):
        assert name not in above, " -> ".join([*above[above.index(name) :], name])
        if name not in done:
            for target in sorted(edges[name]):
                visit(target, (*above, name))
            done.add(name)

    for name in modules:
        visit(name, ())


def test_example_scripts_do_not_import_each_other():
    scripts = sorted(EXAMPLES.glob("*.py"))
    assert 0 < len(scripts) <= MAX_EXAMPLES
    names = {path.stem for path in scripts if not (EXAMPLES / path.stem).is_dir()}
    for path in EXAMPLES.rglob("*.py"):
        imported = {module.partition(".")[0] for module in imported_modules(path, "")}
        assert imported.isdisjoint(names), relative(path)


def test_the_package_does_not_import_examples_or_tests():
    folders = {path.stem for folder in (EXAMPLES, REPOSITORY / "tests") for path in folder.iterdir()}
    folders -= set(sys.stdlib_module_names) | {"accelerate"}
    for path in SOURCES:
        if PACKAGE in path.parents:
            imported = {module.partition(".")[0] for module in imported_modules(path, package_of(path))}
            assert imported.isdisjoint(folders), relative(path)
