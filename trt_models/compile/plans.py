"""Plans: engines of TensorRT and TensorRT-RTX."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx

from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import commit
from danqing.trt_models.compile.quantise import quantise_statically
from danqing.trt_models.package_files import cache_folder
from danqing.trt_models.precision import HALVES, halved
from danqing.trt_models.runtimes import Job


def build_plan(module: str, job: Job, out: Path) -> None:
    """Builds a plan and writes it.

    Args:
        module: TensorRT's Python module, `tensorrt` or `tensorrt_rtx`.
        job: what to compile.
        out: the plan's file.

    Raises:
        DanqingError: TensorRT cannot read the graph, compile for the target, or build the plan.
    """
    trt = importlib.import_module(module)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    # TensorRT 11 builds only strongly typed networks; TensorRT 10 needs the flag.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    with tempfile.TemporaryDirectory() as folder:
        graph = job.onnx
        if job.precision in HALVES:
            graph = Path(folder) / "model.onnx"
            onnx.save(halved(onnx.load(str(job.onnx)), job.precision), str(graph), save_as_external_data=True)
        elif job.precision != "fp32":
            graph = Path(folder) / "model.onnx"
            quantise_statically(job.onnx, graph, job.required_samples(), job.precision)
        if not parser.parse_from_file(str(graph)):
            errors = "; ".join(str(parser.get_error(number).desc()) for number in range(parser.num_errors))
            raise DanqingError(f"{job.card.name}: TensorRT cannot read the graph: {errors}")
        config = builder.create_builder_config()
        if job.level is not None:
            config.builder_optimization_level = job.level
        _set_architecture(trt, config, job.target)
        config.add_optimization_profile(_profile(builder, network, job))
        with _timings(module, config, job):
            plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise DanqingError(f"{job.card.name}: {module} built no engine for {job.target} in {job.precision}")
    with commit(out) as file:
        file.write(memoryview(plan))


@contextmanager
def _timings(module: str, config: Any, job: Job) -> Iterator[None]:
    """Loads and saves TensorRT's kernel timings, so that the next engine compiles faster. TensorRT-RTX has none."""
    if module != "tensorrt":
        yield
        return
    path = cache_folder() / "engines" / f"timings-{job.version}-{job.target}"
    cache = config.create_timing_cache(path.read_bytes() if path.exists() else b"")
    config.set_timing_cache(cache, False)
    yield
    with commit(path) as file:
        file.write(memoryview(cache.serialize()))


def _set_architecture(trt: Any, config: Any, target: str) -> None:
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


def _profile(builder: Any, network: Any, job: Job) -> Any:
    longest = job.card.token_input.max_length if job.card.token_input else 1
    lengths = (min(2, longest), (longest + 1) // 2, longest)
    profile = builder.create_optimization_profile()
    for position in range(network.num_inputs):
        given = network.get_input(position)
        rest = list(given.shape)[1:]
        shapes = [
            (rows, *(length if side < 0 else side for side in rest))
            for rows, length in zip(job.batch, lengths, strict=True)
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
