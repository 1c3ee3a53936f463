"""Conversion of the authors' checkpoints by function and by command."""

import sys

import pytest
import torch
from conftest import run_process
from safetensors.torch import save_file

from clustr_hf import ClusTRConfig, ClusTRForImageClassification
from clustr_hf.convert_checkpoint import convert_checkpoint, convert_state_dict, infer_config


OURS_TO_AUTHORS = [
    ("embeddings.projection", "patch_embed{stage}.proj"),
    ("embeddings.layer_norm", "patch_embed{stage}.norm"),
    ("layer_norm_before", "norm1"),
    ("layer_norm_after", "norm2"),
    ("attention.q_proj", "attn.q"),
    ("attention.o_proj", "attn.proj"),
    ("attention.token_weight", "attn.weight_layer"),
    ("mlp.depthwise", "mlp.dwconv.dwconv"),
]


def authors_state_dict(model):
    """Our weights under the authors' names: the inverse of the conversion, written out independently."""
    result = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("classifier."):
            result[name.replace("classifier", "head")] = tensor
            continue
        stage, rest = name.removeprefix("clustr.stages.").split(".", 1)
        stage = int(stage) + 1
        scales = len(model.config.reduction_ratios[stage - 1])
        for scale in range(scales):
            rest = rest.replace(f"kv_projs.{scale}.", f"kv{scale + 1 if scales > 1 else ''}.")
        rest = rest.replace("attention.kv", "attn.kv")
        for ours, theirs in OURS_TO_AUTHORS:
            rest = rest.replace(ours, theirs.format(stage=stage))
        if rest.startswith("layer_norm."):
            rest = rest.replace("layer_norm", f"norm{stage}")
        result[rest.replace("blocks.", f"block{stage}.", 1)] = tensor
    return result


@pytest.fixture
def model():
    config = ClusTRConfig.from_variant("tiny", num_labels=3, depths=[1, 1, 2, 1], cluster_assignment="nearest_center")
    return ClusTRForImageClassification(config).eval()


def test_names_round_trip(model):
    converted = convert_state_dict(authors_state_dict(model))
    assert converted.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(converted[name], tensor)


def test_configuration_is_read_off_the_shapes(model):
    inferred = infer_config(convert_state_dict(authors_state_dict(model)))
    assert inferred.to_dict() == model.config.to_dict()


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
def test_wrapped_and_prefixed_pytorch_files_convert(model, tmp_path, wrapper):
    weights = {f"module.model.{name}": tensor for name, tensor in authors_state_dict(model).items()}
    torch.save({wrapper: weights, "epoch": 3} if wrapper else weights, tmp_path / "authors.pth")
    convert_checkpoint(tmp_path / "authors.pth", tmp_path / "ours")
    loaded = ClusTRForImageClassification.from_pretrained(tmp_path / "ours").eval()
    assert loaded.config.cluster_assignment == "nearest_center"
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images).logits, model(images).logits)


COMMAND = [sys.executable, "-m", "clustr_hf.convert_checkpoint"]


def test_command_converts_and_reports(model, tmp_path):
    torch.save(authors_state_dict(model), tmp_path / "authors.pth")
    ratios = ["--reduction_ratios", "[[32,8],[8,2],[4,1],[1]]"]
    printed = run_process([*COMMAND, tmp_path / "authors.pth", tmp_path / "ours", *ratios], tmp_path)
    assert f"{model.num_parameters():,} parameters, 3 labels" in printed
    assert ClusTRConfig.from_pretrained(tmp_path / "ours").reduction_ratios == [[32, 8], [8, 2], [4, 1], [1]]


def test_command_names_the_error(tmp_path):
    with pytest.raises(AssertionError, match="error: `IN` must be a checkpoint file"):
        run_process([*COMMAND, tmp_path / "nothing.pth", tmp_path / "ours"], tmp_path)


class Malicious:
    def __reduce__(self):
        return (print, ("this must never run",))


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "must be a checkpoint file"),
        ({"weights": Malicious()}, "must hold nothing but tensors"),
        ([torch.zeros(1)], "must hold a state dict"),
        ({"layer.weight": torch.zeros(1)}, "must hold weights of the authors' ClusTR classifier.*'layer.weight'"),
        ({"head.weight": torch.zeros(2, 2)}, "must hold a ClusTR classifier"),
        ({"norm1.weight": torch.zeros(2)}, "has no tensor named 'head.weight'"),
        (
            {"norm1.weight": torch.zeros(2), "head.weight": torch.zeros(2, 2)},
            "embeddings.projection.weight' is missing",
        ),
        (b"", "must hold nothing but tensors"),
        (b"some text", "must hold nothing but tensors"),
    ],
)
def test_bad_files_fail_clearly_and_write_nothing(content, message, tmp_path):
    path = tmp_path / "file.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        convert_checkpoint(path, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


SPOILED = {
    "integer beside": ({5: torch.zeros(1)}, "must have names of tensors as keys, got 5"),
    "none as key": ({None: torch.zeros(1)}, "must have names of tensors as keys, got None"),
    "bytes as key": ({b"x": torch.zeros(1)}, "must have names of tensors as keys, got b'x'"),
    "number": ({"head.bias": 3}, "must hold tensors, got int 3 as 'head.bias'"),
    "list": ({"head.bias": [1.0, 2.0, 3.0]}, r"must hold tensors, got list \[1.0, 2.0, 3.0\]"),
    "dictionary": ({"head.bias": {"a": torch.zeros(1)}}, "must hold tensors, got dict"),
    "integers": ({"head.bias": torch.zeros(3, dtype=torch.int64)}, "dense tensors of floats, got torch.int64"),
    "complex": ({"head.bias": torch.zeros(3, dtype=torch.complex64)}, "dense tensors of floats, got torch.complex64"),
    "sparse": ({"head.bias": torch.zeros(3).to_sparse()}, "dense tensors of floats, got .* layout torch.sparse_coo"),
    "vector": ({"patch_embed1.proj.weight": torch.zeros(5)}, r"must have 4 dimensions .* got shape \(5,\)"),
    "scalar": ({"head.weight": torch.tensor(1.0)}, r"'classifier.weight' must have 2 dimensions .* got shape \(\)"),
    "no values": ({"block1.0.mlp.fc1.weight": torch.zeros(4, 0)}, r"must have 2 dimensions .* got shape \(4, 0\)"),
    "a block far away": ({"block1.999999999.norm1.weight": torch.zeros(4)}, "number 1 .* missing, while 999999999"),
    "a stage far away": ({"norm999999999.weight": torch.zeros(4)}, "number 4 of .* is missing, while 999999998"),
}


@pytest.mark.parametrize("change, message", SPOILED.values(), ids=SPOILED)
def test_spoiled_weights_are_named_with_their_file_and_write_nothing(model, tmp_path, change, message):
    torch.save({**authors_state_dict(model), **change}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=rf"file.pth: .*{message}"):
        convert_checkpoint(tmp_path / "file.pth", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("content", [{0: torch.zeros(1), 1: torch.zeros(2)}, {}, {"state_dict": {}}])
def test_files_without_names_of_weights_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=r"names of tensors as keys, got 0|a state dict, got an empty one in"):
        convert_checkpoint(tmp_path / "file.pth", tmp_path / "ours")


def test_wrappers_may_be_nested(model, tmp_path):
    weights = authors_state_dict(model)
    torch.save({"state_dict": {"model": weights}, "epoch": 3}, tmp_path / "file.pth")
    assert convert_checkpoint(tmp_path / "file.pth", tmp_path / "ours").config.num_labels == 3
    endless = {}
    endless["model"] = endless
    torch.save(endless, tmp_path / "endless.pth")
    with pytest.raises(ValueError, match="must hold tensors, got dict"):
        convert_checkpoint(tmp_path / "endless.pth", tmp_path / "no")


@pytest.mark.parametrize("heads, message", [("1, 2", "must be JSON, got '1, 2'"), ('{"a": 1}', "must be a list, got")])
def test_metadata_that_are_no_lists_are_named(model, tmp_path, heads, message):
    weights = {name: tensor.contiguous() for name, tensor in authors_state_dict(model).items()}
    save_file(weights, tmp_path / "file.safetensors", metadata={"num_attention_heads": heads})
    with pytest.raises(ValueError, match=rf"file.safetensors: the metadata 'num_attention_heads' {message}"):
        convert_checkpoint(tmp_path / "file.safetensors", tmp_path / "ours")


def test_a_broken_safetensors_file_fails_clearly(tmp_path):
    (tmp_path / "file.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match="must hold nothing but tensors"):
        convert_checkpoint(tmp_path / "file.safetensors", tmp_path / "ours")


def test_weights_that_do_not_fit_write_nothing(model, tmp_path):
    weights = authors_state_dict(model)
    del weights["block3.1.attn.q.bias"]
    torch.save(weights, tmp_path / "file.pth")
    with pytest.raises(RuntimeError, match="Missing key"):
        convert_checkpoint(tmp_path / "file.pth", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
