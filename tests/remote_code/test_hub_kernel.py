"""The kernel repository for the Hub: what `kernels` accepts, the same clusters, layers, and TCFormer's functions."""

import ast
import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import build_hub_kernel
import pytest
import torch
from conftest import REPOSITORY, run_process

import clustr_hf
from clustr_hf import hub_kernel
from clustr_hf.hub_kernel import BACKENDS, build_kernel_repository


kernels = pytest.importorskip("kernels", reason="the package `kernels` cannot be imported")
from kernels import _rust  # noqa: E402


LAUNCH = {"rows": 32, "columns": 64, "block": 32, "warps": 8, "stages": 1, "precision": "tf32x3"}


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return build_kernel_repository(tmp_path_factory.mktemp("kernel") / "dpc", repo_id="me/dpc-knn-clustering")


@pytest.fixture(scope="module")
def kernel(repository):
    return kernels.get_local_kernel(repository / "build", backend="cpu")


def files_of(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def import_variant(folder: Path, name: str):
    """Imports a variant as a package of the given name, without `kernels`."""
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def make_tokens(batch_size=2, num_tokens=60, channels=8, dtype=torch.float32):
    return torch.randn(batch_size, num_tokens, channels, dtype=dtype)


def assert_same_clusters(module, tokens):
    for assignment in ("density_parent", "nearest_center"):
        expected = clustr_hf.find_clusters(tokens, [4, 12], assignment=assignment)
        found = module.find_clusters(tokens, [4, 12], assignment=assignment)
        assert len(found) == 2 and all(map(torch.equal, found, expected))


def test_kernels_accepts_the_repository(repository):
    backends = {str(backend).lower() for backend in _rust.Build.open(repository).general.backends}
    assert backends == set(BACKENDS)
    variants = sorted(path.name for path in (repository / "build").iterdir() if path.is_dir())
    assert variants == [f"torch-{backend}" for backend in BACKENDS]
    source = files_of(repository / "torch-ext" / "dpc_knn_clustering")
    for backend in BACKENDS:
        variant = repository / "build" / f"torch-{backend}"
        metadata = _rust.Metadata.read_from_file(variant / "metadata.json")
        assert str(metadata.name) == "dpc-knn-clustering" and metadata.version == 0
        assert metadata.id.isidentifier() and metadata.id.startswith(f"_dpc_knn_clustering_{backend}_")
        assert str(metadata.backend.backend_type).lower() == backend
        assert metadata.license == "apache-2.0" and metadata.python_depends == []
        metadata.digest.validate(_rust.Digest.hash_variant(_rust.DigestAlgorithm.SHA256, variant))
        files = files_of(variant)
        assert metadata.digest.files.keys() == files.keys() - {"metadata.json"} == source.keys()
        assert all(files[name] == source[name] for name in source)


def test_card_and_description_have_the_repositorys_values(repository):
    card = (repository / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: kernels\nlicense: apache-2.0\ntags:\n- kernels\n")
    assert 'get_kernel("me/dpc-knn-clustering", version=0, trust_remote_code=True)' in card
    assert (repository / "build" / "CARD.md").read_text() == card
    assert 'repo-id = "me/dpc-knn-clustering"' in (repository / "build.toml").read_text()
    compile((repository / "tests" / "test_dpc_knn_clustering.py").read_text(), "test", "exec")


def test_the_source_is_that_beside_the_weights(repository):
    source = repository / "torch-ext" / "dpc_knn_clustering"
    clustering = sorted(path.name for path in source.glob("clustering_*.py"))
    assert "clustering_clustr.py" in clustering and "clustering_triton_kernels_clustr.py" in clustering
    package = Path(hub_kernel.clustering_clustr.__file__).parent
    for name in clustering:
        for line, own in zip((source / name).read_text().splitlines(), (package / name).read_text().splitlines()):
            assert line == own or "clustr_hf" in own


def test_same_arguments_give_the_same_bytes(repository, tmp_path):
    again = build_kernel_repository(tmp_path / "again", repo_id="me/dpc-knn-clustering")
    assert files_of(again) == files_of(repository)


def absolute_imports(code: str) -> tuple[set[str], set[str]]:
    """Packages that a file imports outside and inside `try`."""
    tree = ast.parse(code)
    tried = {node for block in ast.walk(tree) if isinstance(block, ast.Try) for node in ast.walk(block)}
    found = (set(), set())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found[node in tried].update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found[node in tried].add(node.module.partition(".")[0])
    return found


def test_variants_import_the_standard_library_and_torch_only(repository):
    for path in (repository / "build" / "torch-cuda").glob("*.py"):
        imported, tried = absolute_imports(path.read_text())
        assert imported <= {*sys.stdlib_module_names, "torch"} and tried <= {"triton"}, path.name


def test_launch_configurations_lie_beside_the_triton_file(tmp_path, monkeypatch):
    tuned = tmp_path / "Some_GPU_80GB.json"
    tuned.write_text(json.dumps({"32": {"128": LAUNCH}}))
    plain = build_kernel_repository(tmp_path / "plain")
    folder = build_kernel_repository(tmp_path / "tuned", launch_configs=[tuned])
    variant = folder / "build" / "torch-cuda"
    metadata = _rust.Metadata.read_from_file(variant / "metadata.json")
    metadata.digest.validate(_rust.Digest.hash_variant(_rust.DigestAlgorithm.SHA256, variant))
    assert "launch_configs/Some_GPU_80GB.json" in metadata.digest.files
    assert metadata.id != _rust.Metadata.read_from_file(plain / "build" / "torch-cuda" / "metadata.json").id

    module = import_variant(variant, "tuned_kernel").clustering_triton_clustr
    device = SimpleNamespace(name="Some GPU-80GB", major=8, minor=0, gcnArchName="gfx942")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: device)
    tokens = SimpleNamespace(device=torch.device("cuda", 0), element_size=lambda: 4, shape=(1, 10, 100))
    assert module.find_launch(tokens) == module.Launch(**LAUNCH)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"repo_id": "dpc"}, r'`repo_id` must have the form "owner/name", got \'dpc\''),
        ({"version": -1}, "`version` must be a whole number of at least 0, got -1"),
        ({"launch_configs": ["a GPU.json"]}, "`launch_configs` must be named after a GPU, .* got a GPU.json"),
        ({"launch_configs": ["gpu.json", "x/gpu.json"]}, "`launch_configs` must have different names"),
        ({"launch_configs": ["bad.json"]}, r"bad.json must hold .* got: .*'tiles'"),
    ],
)
def test_wrong_arguments_are_named(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bad.json").write_text('{"32": {"64": {"tiles": 3}}}')
    with pytest.raises(ValueError, match=message):
        build_kernel_repository("kernel", **arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.json"]


def test_nothing_is_overwritten_or_left_half_written(repository, tmp_path, monkeypatch):
    before = files_of(repository)
    with pytest.raises(FileExistsError, match=r"must be new or empty, but holds \['README.md', 'build'"):
        build_kernel_repository(repository)
    assert files_of(repository) == before
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="must be a folder, but is a file"):
        build_kernel_repository(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert build_kernel_repository(tmp_path / "empty") == tmp_path / "empty"

    def fail(folder):
        raise OSError("no space left")

    monkeypatch.setattr(hub_kernel, "_file_digests", fail)
    with pytest.raises(OSError, match="no space left"):
        build_kernel_repository(tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file"]


LOAD = """
import json, sys
from pathlib import Path
import kernels, torch
folder, tokens = sys.argv[1:]
tokens = torch.load(tokens)
for backend in ("cpu", None):
    kernel = kernels.get_local_kernel(Path(folder), backend=backend)
    clusters = [scale.tolist() for scale in kernel.find_clusters(tokens, [4, 12])]
    print(json.dumps([kernel.__name__, "transformers" in sys.modules, clusters]))
triton = kernel.clustering_triton_clustr
if triton.is_importable():
    labels = triton.cluster(tokens, [4, 12], 5, "density_parent")
    print(json.dumps(["triton", "transformers" in sys.modules, labels.tolist()]))
"""


def test_a_local_kernel_loads_without_the_package(repository, tmp_path, run_without_package):
    """Loads `torch-cpu` and the variant for this build of PyTorch, and runs the Triton kernels in the interpreter."""
    tokens = make_tokens()
    torch.save(tokens, tmp_path / "tokens.pt")
    output = run_without_package(LOAD, repository / "build", tmp_path / "tokens.pt", TRITON_INTERPRET="1")
    expected = [scale.tolist() for scale in clustr_hf.find_clusters(tokens, [4, 12])]
    names, loaded_transformers, clusters = zip(*map(json.loads, output.splitlines()))
    assert names[0].startswith("_dpc_knn_clustering_cpu_") and names[1].startswith("_dpc_knn_clustering_")
    assert names[2:] == (("triton",) if importlib.util.find_spec("triton") else ())
    assert not any(loaded_transformers) and all(found == expected for found in clusters)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_variant_clusters_on_the_cpu(repository, backend):
    module = import_variant(repository / "build" / f"torch-{backend}", f"variant_{backend}")
    assert_same_clusters(module, make_tokens())
    tokens = make_tokens(1, 48)
    (windows,) = module.find_clusters(tokens, [6], size=(6, 8), window=4)
    assert torch.equal(windows, clustr_hf.find_clusters(tokens, [6], size=(6, 8), window=4)[0])
    merged = module.aggregate_tokens(tokens, windows, 6)
    assert torch.equal(merged, clustr_hf.aggregate_tokens(tokens, windows, 6))


def test_package_and_kernel_in_one_process(kernel):
    """Each has its own operators, which the compiler calls."""
    tokens = make_tokens()
    operators = getattr(torch.ops, kernel.__name__)
    for name in ("find_clusters", "merge_tokens", "merge_tokens_backward"):
        assert getattr(operators, name) is not getattr(torch.ops.clustr_hf, name)
    for module, name in ((kernel, kernel.__name__), (clustr_hf, "clustr_hf"), (kernel, kernel.__name__)):
        called = []

        def note_calls(graph, example_inputs, called=called):
            called.extend(str(node.target) for node in graph.graph.nodes)
            return graph

        torch.compiler.reset()
        compiled = torch.compile(module.find_clusters, fullgraph=True, backend=note_calls)
        assert all(map(torch.equal, compiled(tokens, [4, 12]), clustr_hf.find_clusters(tokens, [4, 12])))
        assert f"{name}.find_clusters" in called
        assert_same_clusters(module, tokens)
    for operator in (operators.find_clusters, torch.ops.clustr_hf.find_clusters):
        torch.library.opcheck(operator, (tokens, [4, 12], 5, "density_parent"))


KERNELIZE = """
import importlib.metadata, re, sys
from transformers.dependency_versions_table import deps
# transformers accepts only a few releases of `kernels`; others pretend to be one of them.
wanted, version = re.search(r">=([\\d.]+)", deps["kernels"])[1], importlib.metadata.version
importlib.metadata.version = lambda name: wanted if name == "kernels" else version(name)
import torch
from kernels import LocalLayerRepository, Mode, kernelize, use_kernel_mapping
from pathlib import Path
from tiny_models import tiny_classifier
from transformers import KernelConfig
from clustr_hf.remote_code.modeling_clustr_attention import ClusTRClustering

model, pixels = tiny_classifier().eval(), torch.rand(2, 3, 64, 64)
names, logits = list(model.state_dict()), model(pixels).logits
KernelConfig({"ClusTRClustering": {"cuda": f"{sys.argv[1]}:FindClusters"}}).sanitize_kernel_mapping(model)
layer = LocalLayerRepository(Path(sys.argv[1]), layer_name="FindClusters")
for mode in (Mode.INFERENCE, Mode.TRAINING | Mode.TORCH_COMPILE):
    with use_kernel_mapping({"ClusTRClustering": {"cpu": layer}}, inherit_mapping=False):
        kernelize(model, mode=mode, device="cpu")
    layers = [module for module in model.modules() if isinstance(module, ClusTRClustering)]
    assert layers and all(module.forward.__module__.startswith("_dpc_knn_clustering_") for module in layers)
    assert torch.equal(model(pixels).logits, logits) and list(model.state_dict()) == names
print("kernelized", len(layers))
"""


def test_a_models_clustering_is_replaced_through_the_hook_of_transformers(repository, tmp_path):
    path = str(REPOSITORY / "tests" / "helpers")
    output = run_process([sys.executable, "-c", KERNELIZE, repository], tmp_path, PYTHONPATH=path)
    assert "kernelized" in output


def test_the_models_layer_clusters_as_the_function():
    from clustr_hf.remote_code.modeling_clustr_attention import ClusTRClustering

    layer, tokens = ClusTRClustering(), make_tokens()
    assert not list(layer.parameters()) and not layer.state_dict()
    assert all(map(torch.equal, layer(tokens, [4, 12]), clustr_hf.find_clusters(tokens, [4, 12])))


def test_layers_have_no_state_and_can_replace_others(kernel, repository):
    class Merge(torch.nn.Module):
        def forward(self, tokens, cluster_index, num_clusters, token_weight=None):
            raise NotImplementedError

    kernels.replace_kernel_forward_from_hub(Merge, "Merge")
    mapping = {"Merge": {"cpu": kernels.LocalLayerRepository(repository, layer_name="AggregateTokens")}}
    with kernels.use_kernel_mapping(mapping, inherit_mapping=False):
        layer = kernels.kernelize(Merge(), mode=kernels.Mode.TRAINING, device="cpu")
    tokens, weight = make_tokens(), torch.rand(2, 60, 1)
    index = torch.randint(0, 4, (2, 60))
    expected = clustr_hf.aggregate_tokens(tokens, index, 4, weight)
    assert torch.equal(layer(tokens, index, 4, weight), expected)
    assert torch.equal(kernel.layers.AggregateTokens()(tokens, index, 4, weight), expected)


def naive_cluster_dpc_knn(tokens, num_clusters, k, mask):
    """
    TCFormer's clustering of one image as its paper and mask say it, without noise, from all N x N distances:
    (N, C), (N,) -> (N,).
    """
    distance = (tokens[:, None] - tokens[None]).square().sum(-1).div(tokens.shape[1]).sqrt()
    distance[:, ~mask] = distance.max() + 1
    density = distance.sort(dim=1).values[:, :k].square().mean(dim=1).neg().exp() * mask
    indicator = torch.empty_like(density)
    for i in range(len(tokens)):
        denser = density > density[i]
        indicator[i] = distance[i][denser].min() if denser.any() else distance.max()
    centers = (indicator * density).argsort(descending=True)[:num_clusters]
    labels = distance[centers].argmin(dim=0)
    labels[centers] = torch.arange(num_clusters)
    return labels


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_clusters, k", [(1, 5), (7, 5), (15, 3), (40, 4)])
def test_drop_in_agrees_with_all_distances(kernel, num_clusters, k, dtype):
    """
    The same numbers, not only the same groups: clusters are in the order of their centre's score. With k > 2 no
    densities tie (two tokens that are each other's nearest are equally dense by k = 2).
    """
    tokens = make_tokens(6, 40, 6, dtype)
    idx_cluster, number = kernel.cluster_dpc_knn({"x": tokens}, num_clusters, k=k)
    assert number == num_clusters and idx_cluster.dtype == torch.long
    for image, labels in zip(tokens.double(), idx_cluster):
        assert torch.equal(labels, naive_cluster_dpc_knn(image, num_clusters, k, torch.ones(40, dtype=torch.bool)))


def test_drop_in_with_padding_agrees_with_all_distances(kernel):
    tokens, mask = make_tokens(8, 40, 6), torch.rand(8, 40) > 0.4
    mask[0] = True
    mask[1] = mask[2]  # images with equally many meaningful tokens
    idx_cluster, _ = kernel.cluster_dpc_knn({"x": tokens}, 7, token_mask=mask.float())
    assert mask.sum(dim=1).min() >= 7 and not idx_cluster[~mask].any()
    for image, labels, is_meaningful in zip(tokens.double(), idx_cluster, mask):
        assert torch.equal(labels, naive_cluster_dpc_knn(image, 7, 5, is_meaningful))


def test_padding_changes_nothing(kernel):
    """The clusters of an image are those of its meaningful tokens alone, even if there are few or none."""
    tokens, mask = make_tokens(4, 20, 6), torch.zeros(4, 20)
    for row, number in zip(mask, (20, 6, 3, 0)):
        row[torch.randperm(20)[:number]] = 1
    idx_cluster, _ = kernel.cluster_dpc_knn({"x": tokens}, 5, token_mask=mask)
    for image, labels, is_meaningful in zip(tokens, idx_cluster, mask > 0):
        if is_meaningful.any():
            (expected,) = clustr_hf.find_clusters(image[is_meaningful][None], [5], 5, "nearest_center")
            assert torch.equal(labels[is_meaningful], expected[0])
    assert sorted(idx_cluster[2][mask[2] > 0].tolist()) == [0, 1, 2] and not idx_cluster[3].any()
    other = torch.where(mask[..., None] > 0, tokens, 1e4 * torch.randn(4, 20, 6))
    assert torch.equal(kernel.cluster_dpc_knn({"x": other}, 5, token_mask=mask)[0], idx_cluster)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"cluster_num": 0}, "`cluster_num` must be from 1 to the 20 tokens, got 0"),
        ({"cluster_num": 21}, "`cluster_num` must be from 1 to the 20 tokens, got 21"),
        ({"cluster_num": 3, "k": 0}, "`k` must be at least 1, got 0"),
        ({"cluster_num": 3, "token_mask": torch.ones(20)}, r"`token_mask` must have shape \(2, 20\), got \(20,\)"),
    ],
)
def test_drop_in_names_wrong_arguments(kernel, arguments, message):
    with pytest.raises(ValueError, match=message):
        kernel.cluster_dpc_knn({"x": make_tokens(2, 20)}, **arguments)


def test_merge_tokens_by_hand(kernel):
    """Compares two consecutive merges, as in TCFormer's stages, with sums over the places of the grid."""
    tokens = make_tokens(2, 24, 4).requires_grad_()
    grid = torch.arange(24).expand(2, -1)
    token_dict = {"x": tokens, "token_num": 24, "map_size": [4, 6], "init_grid_size": [4, 6], "idx_token": grid}
    token_dict["agg_weight"] = torch.ones(2, 24, 1)
    for number in (9, 3):
        before, weight = token_dict, torch.rand(2, token_dict["x"].shape[1], 1)
        idx_cluster, _ = kernel.cluster_dpc_knn(before, number)
        token_dict = kernel.merge_tokens(before, idx_cluster, number, weight)
        assert token_dict["token_num"] == number and token_dict["map_size"] == [4, 6]
        for image in range(2):
            for m in range(number):
                members = idx_cluster[image] == m
                share = weight[image][members] / weight[image][members].sum()
                mean = (share * before["x"][image][members]).sum(dim=0)
                torch.testing.assert_close(token_dict["x"][image, m], mean, rtol=1e-4, atol=1e-4)
            for place in range(24):
                token = before["idx_token"][image, place]
                cluster = idx_cluster[image, token]
                total = weight[image][idx_cluster[image] == cluster].sum()
                share = before["agg_weight"][image, place] * weight[image, token] / total
                assert token_dict["idx_token"][image, place] == cluster
                torch.testing.assert_close(token_dict["agg_weight"][image, place], share, rtol=1e-4, atol=1e-4)
    token_dict["x"].sum().backward()
    assert tokens.grad.isfinite().all() and tokens.grad.any()


def test_merge_tokens_defaults(kernel):
    """Without weights, clusters are means; `agg_weight` may be missing, and padding of weight 0 is left out."""
    tokens, mask = make_tokens(1, 10, 4), torch.tensor([[1.0] * 7 + [0.0] * 3])
    token_dict = {"x": tokens, "idx_token": torch.arange(10)[None], "agg_weight": None}
    index = torch.zeros(1, 10, dtype=torch.long)
    merged = kernel.merge_tokens(token_dict, index, 1)
    torch.testing.assert_close(merged["x"][0, 0], tokens[0].mean(dim=0))
    torch.testing.assert_close(merged["agg_weight"], torch.full((1, 10, 1), 0.1))
    assert merged.keys() == {"x", "token_num", "idx_token", "agg_weight"}
    merged = kernel.merge_tokens(token_dict, index, 1, mask[..., None])
    torch.testing.assert_close(merged["x"][0, 0], tokens[0, :7].mean(dim=0))


def test_the_repositorys_own_test_passes(repository, tmp_path):
    """Runs in a copy, because Python writes bytecode beside the files that it imports."""
    copy = shutil.copytree(repository, tmp_path / "copy")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "tests"]
    local = f"me/dpc-knn-clustering={copy}"
    assert "4 passed" in run_process(command, copy, LOCAL_KERNELS=local)


def test_the_script_builds_a_repository(tmp_path, monkeypatch, capsys):
    tuned = tmp_path / "Some_GPU.json"
    tuned.write_text(json.dumps({"32": {"128": LAUNCH}}))
    arguments = [tmp_path / "kernel", "--repo_id", "me/it", "--version", 2, "--launch_config", tuned]
    monkeypatch.setattr(sys, "argv", [build_hub_kernel.__file__, *map(str, arguments)])
    build_hub_kernel.main()
    assert f"kernels.get_local_kernel(Path('{tmp_path}/kernel/build'))" in capsys.readouterr().out
    variant = tmp_path / "kernel" / "build" / "torch-xpu"
    assert (variant / "launch_configs" / "Some_GPU.json").is_file()
    assert json.loads((variant / "metadata.json").read_text())["version"] == 2

    monkeypatch.setattr(sys, "argv", [build_hub_kernel.__file__, "other", "--launch_config", "no.json"])
    with pytest.raises(SystemExit):
        build_hub_kernel.main()
    assert "--launch_config no.json: no such file" in capsys.readouterr().err
