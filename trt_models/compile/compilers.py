"""Compiles a model's ONNX to an engine for one kind of device."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from danqing.engine.core.errors import DanqingError, did_you_mean
from danqing.engine.core.files import commit
from danqing.trt_models.card import Card
from danqing.trt_models.compile.onnx_fusion import fuse
from danqing.trt_models.compile.quantise import is_convolutional, quantised_dynamically, quantised_statically
from danqing.trt_models.engines import RUNTIMES, Engine, Engines, is_gpu, runtime_version
from danqing.trt_models.package_files import cache_folder
from danqing.trt_models.precision import FUSED_EXACT_OPS, HALVES, halved
from danqing.trt_models.store import onnx_path

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
LARGEST_ONNX = 1 << 31
"""Size limit in bytes of one ONNX file, which is a protobuf message."""
TORCH_ON_CPU, TORCH_ON_GPU = ("fp32", "bf16"), ("fp16", "bf16")
"""Precisions of torch's engines on a CPU and on a GPU."""


def compile_engine(
    card: Card,
    precision: str,
    target: str,
    batch: tuple[int, int, int] = (1, 8, 64),
    level: int | None = None,
    runtime: str | None = None,
    samples: Iterable[dict[str, np.ndarray]] = (),
) -> Engine:
    """Compiles a model and stores the engine. Recipes use it after it is verified and activated.

    Args:
        card: the model.
        precision: one of `PRECISIONS`; for `cpu` only int8, as the model itself runs in fp32 (torch: `TORCH_ON_CPU`).
        target: `cpu` or a GPU architecture, `sm_90`. TensorRT compiles for the GPU of this machine, TensorRT-RTX for
            the GPUs that it lists, and ONNX Runtime for any; neither of these needs a GPU.
        batch: minimum, usual and maximum rows of a batch.
        level: TensorRT's optimisation level, 0 to 5; None for TensorRT's default.
        runtime: one of `CPU_COMPILERS` or `GPU_COMPILERS`; None takes the first that is installed.
        samples: real inputs, name → array each, to measure the activation ranges of eight-bit engines.

    Returns:
        The engine, with the SHA-256 of its file.

    Raises:
        DanqingError: the engine cannot be compiled here; the message says what is missing.
    """
    if precision not in PRECISIONS:
        raise DanqingError(f"--precision {precision}; {did_you_mean(precision, PRECISIONS)}")
    if not 1 <= batch[0] <= batch[1] <= batch[2]:
        raise DanqingError(
            f"--batch {','.join(map(str, batch))}: write it as fewest,usual,most rows, for example 1,8,64"
        )
    engines, source = Engines(card), onnx_path(card)
    draft = Engine(card.name, engines.onnx, "onnxruntime", "", target, precision, batch, "")
    if target != "cpu" and not is_gpu(target):
        raise DanqingError(
            f"--target {target}: write `cpu`, or a GPU's architecture such as sm_80 (A100) or sm_90 (H100)"
        )
    compilers = CPU_COMPILERS if target == "cpu" else GPU_COMPILERS
    if runtime is not None and runtime not in compilers:
        raise DanqingError(f"--runtime {runtime}: for {target}, {did_you_mean(runtime, compilers)}")
    runtime = runtime or next(name for name in compilers if runtime_version(name))
    version = runtime_version(runtime)
    if version is None:
        raise DanqingError(
            f"--runtime {runtime}: not installed; tensorrt-cu13 is on NVIDIA's own index, tensorrt-rtx-cu13 compiles "
            "without a GPU, torch is pip install 'danqing-engine[torch]', and onnxruntime needs none of them"
        )
    draft = replace(draft, runtime=runtime, runtime_version=version)
    return compilers[runtime](engines, source, draft, level, list(samples))


def _for_tensorrt(
    engines: Engines, source: Path, draft: Engine, level: int | None, samples: list[dict[str, np.ndarray]]
) -> Engine:
    draft = replace(draft, options={"level": level})
    return engines.add(draft, lambda file: _build_plan(engines.card, source, file, draft, level, samples))


def _for_onnxruntime(
    engines: Engines, source: Path, draft: Engine, level: int | None, samples: list[dict[str, np.ndarray]]
) -> Engine:
    """Fuses the graph before it lowers it to 16 bits, since casts would hide the patterns."""
    precision = draft.precision
    if precision not in ("fp32", *HALVES):
        raise DanqingError(f"--precision {precision}: on a GPU, ONNX Runtime computes in fp32, fp16 or bf16")
    model = onnx.load(str(source))
    if precision == "bf16" and is_convolutional(model):
        raise DanqingError(
            f"--precision bf16: {engines.card.name} is convolutional; ONNX Runtime has no bf16 convolution, use fp16"
        )
    fusion = fuse(model)
    if precision in HALVES:
        model = halved(model, precision, FUSED_EXACT_OPS[precision])
    if sum(len(weight.raw_data) for weight in model.graph.initializer) >= LARGEST_ONNX:
        raise DanqingError(
            f"--precision {precision}: {engines.card.name} would have more than 2 GiB, which no ONNX file can; use fp16"
        )

    def write(path: Path) -> None:
        with commit(path) as file:
            file.write(model.SerializeToString())

    return engines.add(replace(draft, options=fusion.to_dict()), write)


def _for_cpu(
    engines: Engines, source: Path, draft: Engine, level: int | None, samples: list[dict[str, np.ndarray]]
) -> Engine:
    if draft.precision != "int8":
        raise DanqingError(
            f"--precision {draft.precision}: on a CPU the model itself runs in fp32; only int8 is compiled"
        )
    if is_convolutional(onnx.load(str(source), load_external_data=False)):
        draft = replace(draft, options={"ranges": "fixed"})
        return engines.add(draft, lambda file: quantised_statically(source, file, _needed(samples, engines.card)))
    # One row per batch: a range measured over several rows would make a row's output depend on the other rows.
    draft = replace(draft, batch=(1, 1, 1), options={"ranges": "taken anew each time"})
    return engines.add(draft, lambda file: quantised_dynamically(source, file))


def _for_torch(
    engines: Engines, source: Path, draft: Engine, level: int | None, samples: list[dict[str, np.ndarray]]
) -> Engine:
    precisions = TORCH_ON_CPU if draft.target == "cpu" else TORCH_ON_GPU
    if draft.precision not in precisions:
        raise DanqingError(f"--precision {draft.precision}: on {draft.target} torch runs {' or '.join(precisions)}")
    from danqing.trt_models.run.torch_session import write_graph

    return engines.add(draft, lambda file: write_graph(source, file, draft.precision))


Compiler = Callable[[Engines, Path, Engine, int | None, list[dict[str, np.ndarray]]], Engine]
CPU_COMPILERS: dict[str, Compiler] = {"onnxruntime": _for_cpu, "torch": _for_torch}
GPU_COMPILERS: dict[str, Compiler] = {
    "tensorrt": _for_tensorrt,
    "tensorrt-rtx": _for_tensorrt,
    "onnxruntime": _for_onnxruntime,
    "torch": _for_torch,
}
"""Runtime → function that compiles for it, in the order of preference."""


def _needed(samples: Sequence[dict[str, np.ndarray]], card: Card) -> Sequence[dict[str, np.ndarray]]:
    if not samples:
        raise DanqingError(f"int8 of {card.name} needs real inputs to take ranges from: give shards with --data")
    return samples


def _build_plan(
    card: Card, source: Path, out: Path, engine: Engine, level: int | None, samples: Sequence[dict[str, np.ndarray]]
) -> None:
    trt = importlib.import_module(RUNTIMES[engine.runtime].module)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    # TensorRT 11 builds only strongly typed networks; TensorRT 10 needs the flag.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    with tempfile.TemporaryDirectory() as folder:
        graph = source
        if engine.precision in HALVES:
            graph = Path(folder) / "model.onnx"
            onnx.save(halved(onnx.load(str(source)), engine.precision), str(graph), save_as_external_data=True)
        elif engine.precision != "fp32":
            graph = Path(folder) / "model.onnx"
            quantised_statically(source, graph, _needed(samples, card), engine.precision)
        if not parser.parse_from_file(str(graph)):
            said = "; ".join(str(parser.get_error(number).desc()) for number in range(parser.num_errors))
            raise DanqingError(f"{card.name}: TensorRT cannot read the graph: {said}")
        config = builder.create_builder_config()
        if level is not None:
            config.builder_optimization_level = level
        _aim(trt, config, engine.target)
        config.add_optimization_profile(_profile(builder, network, card, engine.batch))
        with _timings(config, engine):
            plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise DanqingError(f"{card.name}: {engine.runtime} built no engine for {engine.target} in {engine.precision}")
    with commit(out) as file:
        file.write(memoryview(plan))


@contextmanager
def _timings(config: Any, engine: Engine) -> Iterator[None]:
    """Loads and saves TensorRT's kernel timings, so that the next engine compiles faster. TensorRT-RTX has none."""
    if engine.runtime != "tensorrt":
        yield
        return
    path = cache_folder() / "engines" / f"timings-{engine.runtime_version}-{engine.target}"
    cache = config.create_timing_cache(path.read_bytes() if path.exists() else b"")
    config.set_timing_cache(cache, False)
    yield
    with commit(path) as file:
        file.write(memoryview(cache.serialize()))


def _aim(trt: Any, config: Any, target: str) -> None:
    """Sets the architecture to compile for. TensorRT compiles only for the GPU of this machine."""
    if not hasattr(config, "set_compute_capability"):
        here = this_gpu()
        if here != target:
            raise DanqingError(
                f"--target {target}: TensorRT compiles for the GPU of this machine, {here or 'which has none'}; "
                "--runtime onnxruntime compiles for any"
            )
        return
    name = target.replace("sm_", "SM")
    known = [kind for kind in dir(trt.ComputeCapability) if kind.startswith("SM")]
    if name not in known:
        names = [kind.replace("SM", "sm_") for kind in known]
        raise DanqingError(
            f"--target {target}: TensorRT-RTX compiles for {', '.join(sorted(names))}; "
            "--runtime onnxruntime compiles for any"
        )
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, name), 0)


def _profile(builder: Any, network: Any, card: Card, batch: tuple[int, int, int]) -> Any:
    longest = card.token_input.max_length if card.token_input else 1
    lengths = (min(2, longest), (longest + 1) // 2, longest)
    profile = builder.create_optimization_profile()
    for position in range(network.num_inputs):
        given = network.get_input(position)
        rest = list(given.shape)[1:]
        shapes = [
            (rows, *(length if side < 0 else side for side in rest))
            for rows, length in zip(batch, lengths, strict=True)
        ]
        profile.set_shape(given.name, *shapes)
    return profile


def this_gpu() -> str | None:
    """Returns the architecture of this machine's first GPU, such as `sm_90`; None if there is no GPU."""
    try:
        import cupy

        return f"sm_{cupy.cuda.Device(0).compute_capability}"
    except Exception:  # CuPy, the driver or the GPU is missing
        return None
