"""Every tensor- and pipeline-parallel split, head ratio and kind of model: merged, it is the model that was split."""

from __future__ import annotations

import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jitney.export.open import open_source

Tensors = dict[str, torch.Tensor]


@st.composite
def splits(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of a model and its split; more ranks than key-value heads too, and stages without a layer."""
    ranks, groups = draw(st.sampled_from([1, 2, 3, 4, 6])), draw(st.integers(1, 6))
    heads = groups * draw(st.integers(1, 3)) * ranks
    assume(2 * (heads + 2 * groups) % ranks == 0)  # Megatron divides the fused matrix evenly
    stages = draw(st.integers(1, 3))
    return {
        "tensor_model_parallel_size": ranks,
        "pipeline_model_parallel_size": stages,
        "num_layers": draw(st.integers(1, 4)),
        "num_attention_heads": heads,
        "group_query_attention": True,
        "num_query_groups": groups,
        "kv_channels": 2,
        "hidden_size": draw(st.integers(1, 5)),
        "ffn_hidden_size": ranks * draw(st.integers(1, 3)),
        "padded_vocab_size": ranks * draw(st.integers(1, 5)),
        "max_position_embeddings": 4,
        "position_embedding_type": draw(st.sampled_from(["rope", "learned_absolute", "none"])),
        "rotary_base": 10000,
        "normalization": draw(st.sampled_from(["RMSNorm", "LayerNorm"])),
        "norm_epsilon": 1e-5,
        "swiglu": draw(st.booleans()),
        "add_bias_linear": draw(st.booleans()),
        "untie_embeddings_and_output_weights": draw(st.booleans()),
    }


def whole_model(args: dict[str, Any]) -> Tensors:
    hidden, inner, vocab = (args[name] for name in ("hidden_size", "ffn_hidden_size", "padded_vocab_size"))
    fused = 2 * (args["num_attention_heads"] + 2 * args["num_query_groups"])
    shapes: dict[str, tuple[int, ...]] = {"embedding.word_embeddings.weight": (vocab, hidden)}
    if args["position_embedding_type"] == "learned_absolute":
        shapes["embedding.position_embeddings.weight"] = (4, hidden)
    norms = ["decoder.final_layernorm"]
    for layer in range(args["num_layers"]):
        prefix = f"decoder.layers.{layer}."
        norms += [prefix + "input_layernorm", prefix + "pre_mlp_layernorm"]
        linears = {
            prefix + "self_attention.linear_qkv": (fused, hidden),
            prefix + "self_attention.linear_proj": (hidden, 2 * args["num_attention_heads"]),
            prefix + "mlp.linear_fc1": (inner * (2 if args["swiglu"] else 1), hidden),
            prefix + "mlp.linear_fc2": (hidden, inner),
        }
        shapes |= {f"{name}.weight": shape for name, shape in linears.items()}
        shapes |= {f"{name}.bias": shape[:1] for name, shape in linears.items() if args["add_bias_linear"]}
    shapes |= {f"{name}.weight": (hidden,) for name in norms}
    shapes |= {f"{name}.bias": (hidden,) for name in norms if args["normalization"] == "LayerNorm"}
    if args["untie_embeddings_and_output_weights"]:
        shapes["output_layer.weight"] = (vocab, hidden)
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def part(name: str, tensor: torch.Tensor, rank: int, ranks: int, gated: bool) -> torch.Tensor:
    """What Megatron's layers hold on a rank."""
    if "linear_fc1." in name and gated:
        return torch.cat([half.chunk(ranks)[rank] for half in tensor.chunk(2)])
    if any(each in name for each in ("linear_qkv.", "linear_fc1.", "word_embeddings.", "output_layer.")):
        return tensor.chunk(ranks)[rank]
    if "linear_proj.weight" in name or "linear_fc2.weight" in name:
        return tensor.chunk(ranks, 1)[rank]
    return tensor


def save(directory: Path, args: dict[str, Any], tensors: Tensors) -> Path:
    ranks, stages = args["tensor_model_parallel_size"], args["pipeline_model_parallel_size"]
    cuts = [round(args["num_layers"] * stage / stages) for stage in range(stages + 1)]
    for stage in range(stages):
        for rank in range(ranks):
            model = {}
            for name, tensor in tensors.items():
                pieces = name.split(".")
                if "layers" in pieces:
                    layer = int(pieces[2]) - cuts[stage]
                    here = 0 <= layer < cuts[stage + 1] - cuts[stage]
                    pieces[2] = str(layer)
                else:
                    here = stage == (0 if pieces[0] == "embedding" else stages - 1)
                if here:
                    model[".".join(pieces)] = part(name, tensor, rank, ranks, args["swiglu"]).clone()
            if stage == stages - 1 > 0 and not args["untie_embeddings_and_output_weights"]:
                words = "embedding.word_embeddings.weight"
                model["output_layer.weight"] = part(words, tensors[words], rank, ranks, False).clone()
            name = f"mp_rank_{rank:02d}" + (f"_{stage:03d}" if stages > 1 else "")
            (directory / name).mkdir(parents=True)
            torch.save({"args": Namespace(**args), "model": model}, directory / name / "model_optim_rng.pt")
    return directory


@settings(max_examples=60, deadline=None)
@given(splits())
def test_merged_it_is_the_model_that_was_split(args: dict[str, Any]) -> None:
    tensors = whole_model(args)
    single = args | {"tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1}
    with tempfile.TemporaryDirectory() as scratch:
        split = open_source(save(Path(scratch) / "split", args, tensors))
        whole = open_source(save(Path(scratch) / "whole", single, tensors))
        assert split.config == whole.config and split.weights.names() == whole.weights.names()
        for name in whole.weights.names():
            assert torch.equal(split.weights.get(name), whole.weights.get(name)), name
        heads, groups, hidden = args["num_attention_heads"], args["num_query_groups"], args["hidden_size"]
        fused = tensors["decoder.layers.0.self_attention.linear_qkv.weight"].view(groups, -1, 2, hidden)
        queries, keys, values = fused.split([heads // groups, 1, 1], 1)
        for name, expected in (("q_proj", queries), ("k_proj", keys), ("v_proj", values)):
            found = split.weights.get(f"model.layers.0.self_attn.{name}.weight")
            assert torch.equal(found, expected.reshape(-1, hidden))
