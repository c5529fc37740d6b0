"""From a model's shape and weights to a step that runs: plan, load, put together, capture.

All of it happens on the worker's thread, which alone touches the card from here on: it sets the device and a stream of
its own, so that a host program's work on the default stream neither waits nor is waited for.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import msgspec
import torch

from ..batch import Capacity, Step
from ..config import EngineConfig
from ..errors import InvalidField
from ..kernels.choice import Choice
from ..kernels.compilation import Kernels
from ..kernels.decode_attention import DecodeAttention
from ..kernels.linear import Linears
from ..kernels.paging import LayerCache
from ..kernels.prefill_choice import prefill_attention_for
from ..kernels.processors import num_processors
from ..kernels.rows import Slotwise, gathered
from ..kernels.sampling import SamplingLaunches
from ..kernels.tuned import choices_file, load_choices
from ..kernels.wide_product import wide_products
from ..model.config import ModelConfig
from ..model.layers import Layers, Weights
from ..weights.cache import cache_root
from .arena import Arena
from .forward import Forward, Ops
from .graphs import Graphs, cuda_recorder, plain_recorder
from .ladder import Ladder
from .loading import load_on
from .naive import NaiveOps
from .ops import KernelOps
from .outbox import Outbox
from .plan import DevicePlan, plan_device
from .sampling_state import SamplingState
from .sizes import PAGE_TOKENS, Sizes, buffer_shapes, linear_widths, mixed_tokens
from .staging import Staging
from .state import SlotState
from .step import CudaStep

LEAST_CAPABILITY = (8, 0)
FP8_CAPABILITY = (8, 9)
WIDE_CAPABILITY = (9, 0)
"""Of the cards on which wide products were measured."""
TOLD_GRAPHS = 10
"""Between two lines of the log."""

KvScales = Sequence[tuple[float, float]]

logger = logging.getLogger("jitney")


def has_fp8() -> bool:
    return torch.cuda.get_device_capability() >= FP8_CAPABILITY


def open_cuda_step(
    model: ModelConfig,
    weights: Weights,
    config: EngineConfig,
    kernels: Kernels | None = None,
    kv_scales: KvScales = (),
) -> Step:
    """Plan the memory, then load the weights, compile the kernels and capture what decoding needs. `kernels`: with what
    was brought for this card. `kv_scales`: by layer, of keys and values in 8 bits (none: 1).

    Raises `CannotServe` where a context does not fit, `ModelError` where a tensor is missing or misshapen,
    `InvalidField` where the card lacks what is asked.
    """
    device = torch.device("cuda", torch.cuda.current_device())
    torch.cuda.set_device(device)
    _check(config, torch.cuda.get_device_capability(device))
    leave_default_stream(device)
    dtype = (
        torch.float32
        if "float32" in (config.dtype, model.dtype * (config.dtype == "auto"))
        else torch.bfloat16
    )
    free_bytes = torch.cuda.mem_get_info(device)[0]
    plan = plan_device(
        model, config, free_bytes, value_bytes=dtype.itemsize, processors=num_processors(device)
    )
    logger.info("%s", ", ".join(f"{name} {size / 2**30:.2f} GiB" for name, size in plan.parts.items()))
    kernels = kernels or Kernels()
    kernels.choices = kernels.choices or load_choices(
        choices_file(cache_root(), torch.cuda.get_device_name())
    )
    return build_step(model, weights, config, plan, dtype, device, kernels=kernels, kv_scales=kv_scales)


def leave_default_stream(device: torch.device) -> None:
    """The thread works on a stream of its own from here on: one for all steps that it opens, since what a step launches
    goes to the thread's stream and its events are recorded on the one that it was made under."""
    if torch.cuda.current_stream(device) == torch.cuda.default_stream(device):
        torch.cuda.set_stream(torch.cuda.Stream(device))


def build_step(
    model: ModelConfig,
    weights: Weights,
    config: EngineConfig,
    plan: DevicePlan,
    dtype: torch.dtype,
    device: torch.device,
    *,
    naive: bool = False,
    kernels: Kernels | None = None,
    kv_scales: KvScales = (),
) -> CudaStep:
    """The step on any device; on the CPU without graphs. `naive`: the layers in plain torch. `kernels` None: each is
    compiled when it is first launched."""
    sizes = plan.sizes
    with torch.inference_mode():
        layers = load_on(device, model, weights, config, sizes, dtype)
        arena = Arena()
        state, sampling = SlotState(arena, sizes), SamplingState(arena, sizes.num_slots, model.vocab_size)
        arena.allocate(device)
        sampler = SamplingLaunches(sampling.rows, sizes.max_samples, model.vocab_size, dtype, device)
        kv_dtype = torch.float8_e4m3fn if config.kv_dtype == "fp8" else dtype
        shape = (sizes.num_pages, 2, model.num_kv_heads, PAGE_TOKENS, model.head_dim)
        pools = [torch.empty(shape, dtype=kv_dtype, device=device) for _ in range(model.num_layers)]
        ops: Ops
        if naive:
            ops = NaiveOps(model, layers, pools, state.tables)
        else:
            is_narrow = kv_dtype == torch.float8_e4m3fn and kv_scales
            scales = kv_scales if is_narrow else [(1.0, 1.0)] * len(pools)
            caches = [LayerCache(pool, state.tables, *pair) for pool, pair in zip(pools, scales, strict=True)]
            ops = _kernels(model, layers, caches, sizes, config, kernels.choices if kernels else {})
        outbox = Outbox(sizes.max_samples, device)
        slotwise = Slotwise(
            state.positions,
            state.last_tokens,
            state.rows[0],
            state.prompt[0],
            state.chunks,
            state.counter,
            state.idle,
        )
        buffers = gathered(sizes.max_tokens, sizes.max_samples, device)
        forward, short = (
            Forward(some, ops, sampler, slotwise, buffers, outbox.ring)
            for some in (layers, _one_of_each(model, layers))
        )
    ladder = Ladder(sizes)
    record = cuda_recorder() if device.type == "cuda" and not naive else plain_recorder
    graphs = Graphs(forward.run, ladder.graphs(), record, warm=short.run)
    staging = Staging(arena, config.run_ahead + 2)
    mixed = mixed_tokens(model, sizes.prefill_tokens)
    capacity = Capacity(
        num_pages=sizes.num_pages, page_size=PAGE_TOKENS, max_rows=sizes.max_rows, depth=config.run_ahead,
        max_batch_tokens=sizes.prefill_tokens, mixed_tokens=mixed, chunk_sizes=tuple(ladder.offered()),
    )  # fmt: skip
    step = CudaStep(capacity, arena, state, sampling, forward, ladder, graphs, staging, outbox)
    if kernels is not None:
        kernels.compile(lambda: step.rehearse(short, [*ladder.graphs(), *ladder.launched()]))
    if device.type == "cuda":
        _capture(step, sum(1 for _ in ladder.first()))
    return step


def _capture(step: CudaStep, needed: int) -> None:
    for number in range(1, needed + 1):
        if not step.prepare():  # there was no memory for more, which was said
            return
        if number % TOLD_GRAPHS == 0 or number == needed:
            logger.info("%d of %d graphs captured", number, needed)


def _one_of_each(model: ModelConfig, layers: Layers) -> Layers:
    """The first layers, until one of each kind is among them."""
    kinds = [model.slides(i) for i in range(model.num_layers)]
    return msgspec.structs.replace(layers, layers=layers.layers[: max(map(kinds.index, kinds)) + 1])


def _kernels(
    model: ModelConfig,
    layers: Layers,
    caches: list[LayerCache],
    sizes: Sizes,
    config: EngineConfig,
    choices: Mapping[str, Choice],
) -> KernelOps:
    embed = layers.shared["embed"]["weight"]
    device, dtype = embed.device, embed.dtype
    shapes = buffer_shapes(model, sizes)
    buffers = {name: torch.zeros(shape, dtype=dtype, device=device) for name, shape in shapes.items()}
    deterministic = config.mode == "deterministic"
    linears = Linears(
        device, dtype, max_tokens=sizes.max_tokens, widths=linear_widths(model, narrow=config.quantize == "fp8"),
        deterministic=deterministic, tuned=choices,
    )  # fmt: skip
    if dtype == torch.bfloat16 and not deterministic and _capability(device) == WIDE_CAPABILITY:
        linears.wide = wide_products(linears.scratch, num_processors(device))
    decode = None
    if not deterministic:
        rows = sizes.row_buckets[-1]
        decode = DecodeAttention(
            rows, model.num_heads, model.num_kv_heads, model.head_dim, PAGE_TOKENS, device,
            stored=caches[0].pool.dtype, windows=model.windows, processors=num_processors(device),
        )  # fmt: skip
    prefill = prefill_attention_for(
        device, dtype, caches[0].pool.dtype, model.head_dim, deterministic=deterministic
    )
    logger.info("prefill attention: %s (%s)", prefill.name, prefill.reason)
    return KernelOps(model, layers, caches, buffers, linears, decode, prefill)


def _capability(device: torch.device) -> tuple[int, int] | None:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def _check(config: EngineConfig, capability: tuple[int, int]) -> None:
    found = f"compute capability {capability[0]}.{capability[1]}"
    if capability < LEAST_CAPABILITY:
        raise InvalidField("device", "'cpu', or a card of compute capability 8.0 or newer", found)
    for field in ("quantize", "kv_dtype"):
        if getattr(config, field) == "fp8" and capability < FP8_CAPABILITY:
            raise InvalidField(field, f"what {found} has: fp8 needs 8.9 or newer", "fp8")
