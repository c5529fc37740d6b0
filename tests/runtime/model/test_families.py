"""Every family against transformers: tiny random weights, float32, logits within 1e-4, 64 greedy tokens equal."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from step_driver import Driver, Row
from tiny_models import TensorWeights

from jitney.runtime.batch import Chunk, RowSampling
from jitney.runtime.config import EngineConfig
from jitney.runtime.model.config import ModelConfig, RopeScaling
from jitney.runtime.steps.cpu import open_cpu_step

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")

SHAPE: dict[str, Any] = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
OURS: dict[str, Any] = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "max_position": 512,
    "dtype": "float32",
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama2": ("Llama", {}, {}),
    "llama-mha": ("Llama", {"num_key_value_heads": 4}, {"num_kv_heads": 4}),
    "smollm2": (
        "Llama",
        {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}},
        {"tied_embeddings": True, "rope_theta": 100000.0},
    ),
    "llama3": (
        "Llama",
        {"rope_parameters": LLAMA3},
        {
            "rope_theta": 500000.0,
            "rope_scaling": RopeScaling(kind="llama3", factor=8.0, original_max_position=64),
        },
    ),
    "linear": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
        {"rope_scaling": RopeScaling(kind="linear", factor=4.0)},
    ),
    "bias": (
        "Llama",
        {"attention_bias": True, "mlp_bias": True},
        {"qkv_bias": True, "attention_out_bias": True, "mlp_bias": True},
    ),
    "mistral": ("Mistral", {"sliding_window": 24, "head_dim": 16}, {"sliding_window": 24}),
    "qwen2": ("Qwen2", {}, {"qkv_bias": True}),
    "qwen2-sliding": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1},
        {"qkv_bias": True, "sliding_window": 24, "sliding_layers": (False, True, True)},
    ),
    "qwen3": ("Qwen3", {"head_dim": 32}, {"qk_norm": True, "head_dim": 32}),
    "stablelm": (
        "StableLm",
        {"partial_rotary_factor": 0.25, "use_qkv_bias": True, "layer_norm_eps": 1e-5},
        {"norm": "layer", "rotary_fraction": 0.25, "qkv_bias": True},
    ),
    "gpt2": (
        "GPT2",
        {"n_inner": 96, "tie_word_embeddings": True},
        {
            "num_kv_heads": 4,
            "norm": "layer",
            "activation": "gelu_tanh",
            "gated_mlp": False,
            "rope_theta": None,
            "learned_positions": True,
            "qkv_bias": True,
            "attention_out_bias": True,
            "mlp_bias": True,
            "tied_embeddings": True,
        },
    ),
}
PROMPT = [(7 * i * i + 3 * i + 1) % 160 for i in range(75)]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Iterator[tuple[Any, ModelConfig, TensorWeights]]:
    name, theirs, ours = FAMILIES[request.param]
    torch.manual_seed(1)
    config = getattr(transformers, name + "Config")(**(SHAPE | theirs))
    config._attn_implementation = "eager"
    kind = "LMHeadModel" if name == "GPT2" else "ForCausalLM"
    reference = getattr(transformers, name + kind)(config).eval().float()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.08 if parameter.dim() > 1 else 0.2))
    tensors = dict(reference.state_dict())
    yield reference, ModelConfig(**(OURS | ours)), TensorWeights(gpt2(tensors) if name == "GPT2" else tensors)


def gpt2(theirs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """GPT-2's tensors (products with the weight on the right, query, key and value in one) under our names."""
    ours = {"model.embed_tokens.weight": theirs["transformer.wte.weight"]}
    ours["model.embed_positions.weight"] = theirs["transformer.wpe.weight"]
    for part in ("weight", "bias"):
        ours[f"model.norm.{part}"] = theirs[f"transformer.ln_f.{part}"]
        for i in range(3):
            block, layer = f"transformer.h.{i}.", f"model.layers.{i}."
            ours[f"{layer}input_layernorm.{part}"] = theirs[f"{block}ln_1.{part}"]
            ours[f"{layer}post_attention_layernorm.{part}"] = theirs[f"{block}ln_2.{part}"]
            fused = theirs[f"{block}attn.c_attn.{part}"].t().chunk(3)
            for name, tensor in zip("qkv", fused, strict=True):
                ours[f"{layer}self_attn.{name}_proj.{part}"] = tensor
            ours[f"{layer}self_attn.o_proj.{part}"] = theirs[f"{block}attn.c_proj.{part}"].t()
            ours[f"{layer}mlp.up_proj.{part}"] = theirs[f"{block}mlp.c_fc.{part}"].t()
            ours[f"{layer}mlp.down_proj.{part}"] = theirs[f"{block}mlp.c_proj.{part}"].t()
    return ours


def assert_greedy(reference: Any, tokens: list[int]) -> None:
    """Each token after the prompt is what the reference likes best after those before it."""
    with torch.no_grad():
        best = reference(torch.tensor([PROMPT + tokens])).logits[0].argmax(-1).tolist()
    assert tokens == best[len(PROMPT) - 1 : -1]


def test_logits_and_greedy_tokens(family: tuple[Any, ModelConfig, TensorWeights]) -> None:
    reference, model, weights = family
    with torch.no_grad():
        logprobs = reference(torch.tensor([PROMPT])).logits[0].log_softmax(-1)
    step = open_cpu_step(model, weights, EngineConfig(dtype="float32", max_rows=4, kv_cache_bytes=2**24))
    scored = RowSampling(seed=0, temperature=0.0, prompt_logprobs=160, logprobs=160)
    rows = [Row(PROMPT, scored), Row(PROMPT, cuts=(1, 33, 64, 74))]
    whole, cut = Driver(step).generate(rows, 64)
    assert_greedy(reference, whole)
    assert cut == whole and len(whole) == 64
    for position, scores in enumerate(rows[0].outcomes[0].prompt_logprobs):
        if position:
            assert scores is not None and scores.token_id == PROMPT[position]
            for token, logprob in scores.top:
                assert abs(logprob - logprobs[position - 1, token].item()) < 1e-4
    step.close()


def test_cached_pages_and_recomputed_tokens(family: tuple[Any, ModelConfig, TensorWeights]) -> None:
    reference, model, weights = family
    step = open_cpu_step(model, weights, EngineConfig(dtype="float32", max_rows=4, kv_cache_bytes=2**24))
    driver = Driver(step)
    first = Row(PROMPT)
    [expected] = driver.generate([first], 12)
    assert_greedy(reference, expected)
    cached = tuple(driver.tables[0][:2])  # 64 positions
    row = Row(PROMPT, generated=expected[:5])  # preempted after 5 tokens, then found in the cache
    seat = driver.seat(1, row, 12, start=64, pages=(*cached, *driver.pages_for(32)))
    outcome = driver.run([seat], [Chunk(1, 64, len(PROMPT) + 5 - 64, True)])[1]
    tokens = list(outcome.tokens)
    while len(tokens) < 7:
        tokens += driver.run(decodes=[1])[1].tokens
    assert tokens == expected[5:]
    step.close()
