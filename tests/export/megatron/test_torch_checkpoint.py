"""Megatron's `torch` format beyond what the real checkpoints show: other names, types and views; every fault named."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import megatron_state as made
import pytest
import torch
from tiny_checkpoints import write_tokenizer

from jitney.export.megatron.torch_file import read_torch_file
from jitney.export.open import open_source
from jitney.export.source import Source
from jitney.runtime.errors import ModelError


def assert_weights(source: Source, tensors: dict[str, torch.Tensor], vocab_size: int = 40) -> None:
    weights, fused = source.weights, tensors["decoder.layers.1.self_attention.linear_qkv.weight"]
    groups = fused.view(2, 4, 4, 16)  # group, head in it, element, in
    assert torch.equal(weights.get("model.layers.1.self_attn.q_proj.weight"), groups[:, :2].reshape(16, 16))
    assert torch.equal(weights.get("model.layers.1.self_attn.k_proj.weight"), groups[:, 2].reshape(8, 16))
    assert torch.equal(weights.get("model.layers.1.self_attn.v_proj.weight"), groups[:, 3].reshape(8, 16))
    first = tensors["decoder.layers.0.mlp.linear_fc1.weight"]
    assert torch.equal(weights.get("model.layers.0.mlp.gate_proj.weight"), first[:24])
    assert torch.equal(weights.get("model.layers.0.mlp.up_proj.weight"), first[24:])
    assert torch.equal(weights.get("lm_head.weight"), tensors["output_layer.weight"][:vocab_size])
    assert {tuple(weights.get(name).shape) == weights.shape(name) for name in weights.names()} == {True}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_stored_types(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = made.model(dtype=dtype)
    source = open_source(made.save(tmp_path, made.state(tensors)))
    assert source.config.dtype == str(dtype).removeprefix("torch.")
    assert_weights(source, tensors)


def test_names_of_fused_layers_and_of_wrapped_models(tmp_path: Path) -> None:
    tensors = made.model(fused_norms=True)
    wrapped = {f"module.{name}": tensor for name, tensor in tensors.items()}
    source = open_source(made.save(tmp_path, made.state(wrapped)))
    assert_weights(source, tensors)
    norm = tensors["decoder.layers.1.mlp.linear_fc1.layer_norm_weight"]
    assert torch.equal(source.weights.get("model.layers.1.post_attention_layernorm.weight"), norm)


def test_parameters_that_are_views_of_one_buffer(tmp_path: Path) -> None:
    """As a distributed optimizer keeps them; transposed ones too."""
    tensors = made.model()
    flat = torch.cat([tensor.flatten() for tensor in tensors.values()])
    views, at = {}, 0
    for name, tensor in tensors.items():
        views[name] = flat[at : at + tensor.numel()].view(tensor.shape)
        at += tensor.numel()
    fused = "decoder.layers.1.self_attention.linear_qkv.weight"
    views[fused] = torch.nn.Parameter(tensors[fused].t().contiguous().t())
    assert_weights(open_source(made.save(tmp_path, made.state(views))), tensors)


def test_tensors_with_attributes(tmp_path: Path) -> None:
    """As Megatron marks parameters, and the optimizer's copies of them."""
    tensors: dict[str, Any] = made.model()
    for name, tensor in tensors.items():
        tensors[name] = torch.nn.Parameter(tensor) if "linear" in name else tensor
        tensors[name].tensor_model_parallel, tensors[name].partition_dim = True, 0
    optimizer = [tensor.detach().clone() for tensor in tensors.values()]
    for tensor in optimizer:
        tensor.shared = True
    source = open_source(made.save(tmp_path, made.state(tensors) | {"optimizer": optimizer}))
    assert_weights(source, tensors)
    assert source.stripped[0].num_items == len(tensors)


@pytest.mark.parametrize("how", ["os.system", "argparse.Namespace", "torch.Size"])
def test_attributes_are_no_way_in(how: str, tmp_path: Path) -> None:
    import pickle

    class Made:
        def __reduce__(self) -> Any:
            module, name = how.rsplit(".", 1)
            function = getattr(__import__(module), name)
            return torch._tensor._rebuild_from_type_v2, (function, torch.Tensor, ("touch x",), {})

    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps(Made(), 2))
    with pytest.raises(ModelError, match=how.replace(".", "[.]") if how != "os.system" else "posix.system"):
        read_torch_file(tmp_path / "x.pt")


def test_zero_centred_norms_are_rounded_once(tmp_path: Path) -> None:
    tensors = made.model(dtype=torch.bfloat16)
    source = open_source(made.save(tmp_path, made.state(tensors, apply_layernorm_1p=True)))
    stored = tensors["decoder.final_layernorm.weight"]
    assert torch.equal(source.weights.get("model.norm.weight"), (stored.float() + 1).bfloat16())


def test_everything_else_is_counted(tmp_path: Path) -> None:
    tensors: dict[str, Any] = made.model()
    tensors["mtp.layers.0.eh_proj.weight"] = torch.zeros(16, 32)
    tensors["decoder.layers.0.mlp.linear_fc1._extra_state"] = torch.zeros(100, dtype=torch.uint8)
    shared = torch.zeros(50)
    more = {
        "optimizer": {"a": shared, "b": [shared, shared[:10]]},
        "rng_state": [b"12345"],
        "else": {"x": shared[:2]},
    }
    made.save(tmp_path, made.state(tensors) | more)
    (tmp_path / "mp_rank_00" / "distrib_optim.pt").write_bytes(b"\0" * 1000)
    removed = {each.group: (each.num_items, each.num_bytes) for each in open_source(tmp_path).stripped}
    assert removed == {
        "optimizer": (3, 200 + 40 + 1000),
        "rng": (1, 5),
        "training state": (1, 8),
        "extra state": (1, 100),
        "multi-token prediction": (1, 16 * 32 * 4),
    }


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({}, 40),
        ({"vocab_size": 33}, 33),
        ({"vocab_size": 33, "tokenizer_type": "NullTokenizer"}, 34),
        ({"vocab_size": 50}, 40),
    ],
)
def test_padding_of_the_vocabulary_is_cut(changes: dict[str, Any], size: int, tmp_path: Path) -> None:
    tensors = made.model()
    source = open_source(made.save(tmp_path, made.state(tensors, **changes)))
    assert source.config.vocab_size == size
    assert_weights(source, tensors, size)
    cut = [each.num_bytes for each in source.stripped if each.group == "vocabulary padding"]
    assert cut == ([(40 - size) * 16 * 4 * 2] if size < 40 else [])


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    made.save(tmp_path / "model", made.state())
    source = open_source(tmp_path / "model")
    with pytest.raises(ModelError, match="model: the checkpoint has no tokenizer"):
        source.backend()
    write_tokenizer(tmp_path)
    with pytest.raises(ModelError, match="the tokenizer has 96 tokens, the embedding 40 rows"):
        open_source(tmp_path / "model", tokenizer=tmp_path)
    with pytest.raises(ModelError, match="tokenizer: expected none"):
        open_source("smollm2-135m", tokenizer=tmp_path)


def test_steps_of_a_run(tmp_path: Path) -> None:
    made.save(tmp_path / "iter_0000007", made.state())
    with pytest.raises(ModelError, match="a training run without latest_checkpointed_iteration.txt"):
        open_source(tmp_path)
    tracker = tmp_path / "latest_checkpointed_iteration.txt"
    tracker.write_text("7\n")
    assert open_source(tmp_path).path == tmp_path / "iter_0000007"
    (tmp_path / "iter_0000007").rename(tmp_path / "release")
    for content, named in (
        ("8", "it names step 8"),
        ("../x", "expected a step's number"),
        ("", "expected a step"),
    ):
        tracker.write_text(content)
        with pytest.raises(ModelError, match=f"latest_checkpointed_iteration.txt: {named}"):
            open_source(tmp_path)
    tracker.write_text("release")
    assert open_source(tmp_path).path == tmp_path / "release"


def test_an_uneven_pipeline_and_copies_of_the_embedding(tmp_path: Path) -> None:
    """All layers but the last one's on the first stage; the last stage repeats the embedding for its output layer."""
    tensors = made.model()
    last = {"decoder.final_layernorm.weight", "output_layer.weight"}
    second = {name: tensor for name, tensor in tensors.items() if ".layers.1." in name}
    stages: list[dict[str, torch.Tensor]] = [
        {name: tensor for name, tensor in tensors.items() if name not in last},
        {},
        {name: tensors[name] for name in last}
        | {name.replace(".1.", ".0."): tensor for name, tensor in second.items()},
    ]
    for stage, part in enumerate(stages):
        whole = made.state(
            part or {"unused._extra_state": torch.zeros(1)}, pipeline_model_parallel_size=3, num_layers=3
        )
        made.save(tmp_path, whole, f"mp_rank_00_{stage:03d}")
    source = open_source(tmp_path)
    assert_weights(source, tensors)
    fused = tensors["decoder.layers.1.mlp.linear_fc1.weight"]
    assert torch.equal(source.weights.get("model.layers.2.mlp.gate_proj.weight"), fused[:24])


def without(name: str) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in made.model().items() if key != name}


FC1 = "decoder.layers.1.mlp.linear_fc1.weight"
FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "tensor missing": (
        lambda d: made.save(d, made.state(without(FC1))),
        f"the tensor {FC1} of shape \\(48, 16\\) is missing",
    ),
    "embedding missing": (
        lambda d: made.save(d, made.state(without("embedding.word_embeddings.weight"))),
        "word_embeddings.weight is missing",
    ),
    "another shape": (
        lambda d: made.save(d, made.state(made.model() | {FC1: torch.zeros(47, 16)})),
        f"tensor {FC1}: expected \\(48, 16\\), found \\(47, 16\\)",
    ),
    "unknown tensor": (
        lambda d: made.save(
            d, made.state(made.model() | {"decoder.layers.0.mlp.router.weight": torch.zeros(4)})
        ),
        "the tensor decoder.layers.0.mlp.router.weight belongs to nothing",
    ),
    "too many layers": (
        lambda d: made.save(d, made.state(num_layers=1)),
        "decoder.layers.1.*belongs to nothing",
    ),
    "no tensor": (
        lambda d: made.save(d, made.state(made.model() | {FC1: [1.0]})),
        f"tensor {FC1}: expected a tensor, found list",
    ),
    "integers": (
        lambda d: made.save(d, made.state(made.model(dtype=torch.int32))),
        "expected weights of float32, bfloat16 or float16, found int32",
    ),
    "vocabulary of another size": (
        lambda d: made.save(d, made.state(padded_vocab_size=64)),
        "args.padded_vocab_size: expected the 40 rows of the embedding, found 64",
    ),
    "no args": (lambda d: made.save(d, {"model": made.model()}), "expected Megatron's state with `args`"),
    "no model": (
        lambda d: made.save(d, {"args": made.state()["args"]}),
        "expected the model's tensors under `model`",
    ),
    "a plain list": (lambda d: made.save(d, [1, 2]), "expected Megatron's state"),
    "before the core library": (
        lambda d: made.save(d, made.state() | {"model": {"language_model": {"encoder": {}}}}),
        "before its core library",
    ),
    "experts": (lambda d: made.save(d, made.state(), "mp_rank_00_000_001"), "expert-parallel ranks"),
    "a rank missing": (
        lambda d: made.save(d, made.state(), "mp_rank_01"),
        "tensor rank 0, pipeline rank 0: model_optim_rng.pt is missing",
    ),
    "an empty rank": (lambda d: (d / "mp_rank_00").mkdir(parents=True), "model_optim_rng.pt is missing"),
    "another split": (
        lambda d: made.save(d, made.state(tensor_model_parallel_size=2)),
        "args.tensor_model_parallel_size is 2, but 1 ranks are here",
    ),
}


@pytest.mark.parametrize(("write", "named"), FAULTS.values(), ids=FAULTS)
def test_faults_are_named(write: Callable[[Path], Any], named: str, tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(ModelError, match=f"(?s){tmp_path}.*{named}"):
        open_source(tmp_path)


def test_ranks_of_different_steps(tmp_path: Path) -> None:
    made.save(tmp_path, made.state(tensor_model_parallel_size=2))
    made.save(tmp_path, made.state(tensor_model_parallel_size=2) | {"iteration": 20}, "mp_rank_01")
    with pytest.raises(ModelError, match="mp_rank_01.*expected iteration 10 as in .*mp_rank_00.*found 20"):
        open_source(tmp_path)


def test_ranks_of_different_models(tmp_path: Path) -> None:
    made.save(tmp_path, made.state(tensor_model_parallel_size=2))
    made.save(
        tmp_path,
        made.state(made.model() | {FC1: torch.zeros(4, 16)}, tensor_model_parallel_size=2),
        "mp_rank_01",
    )
    with pytest.raises(ModelError, match="expected equal parts on 2 tensor-parallel ranks"):
        open_source(tmp_path)


def test_a_file_that_shrank_after_it_was_opened(tmp_path: Path) -> None:
    made.save(tmp_path, made.state())
    source = open_source(tmp_path)
    path = tmp_path / "mp_rank_00" / "model_optim_rng.pt"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ModelError, match="model_optim_rng.pt: expected .* bytes at byte"):
        for name in source.weights.names():
            source.weights.get(name)


def test_plain_tensors_of_every_type(tmp_path: Path) -> None:
    values = {
        str(dtype): (torch.arange(24) % 2).to(dtype).view(2, 3, 4)[:, 1:, ::2]
        for dtype in (
            torch.float64,
            torch.int64,
            torch.int32,
            torch.int16,
            torch.int8,
            torch.uint8,
            torch.bool,
        )
    }
    values |= {"scalar": torch.tensor(3.0), "empty": torch.zeros(0, 4)}
    torch.save(values, tmp_path / "values.pt")
    for name, stored in read_torch_file(tmp_path / "values.pt").items():
        assert torch.equal(stored.read(), values[name]) and stored.read().dtype == values[name].dtype
