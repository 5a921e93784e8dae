"""Engines of ONNX Runtime on a GPU: fused operators compared with the plain graph on the CPU, and `verify`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from danqing.engine.core.device import Device
from danqing.engine.demo.crawl import build_crawl
from danqing.engine.recipe.reading import load_recipe
from danqing.engine.run.settings import Settings
from danqing.profiling.parity import verify
from danqing.trt_models.card import load_card
from danqing.trt_models.compile.compilers import compile_engine
from danqing.trt_models.compile.onnx_fusion import fuse
from danqing.trt_models.engines import MAX_FLIPS, MIN_COSINE, Engines
from danqing.trt_models.export import exporter
from danqing.trt_models.export.checkpoint import Checkpoint
from danqing.trt_models.precision import FUSED_EXACT_OPS, halved
from danqing.trt_models.run.session import CUDA_PROVIDER, CudaOnnxSession

pytestmark = pytest.mark.gpu
MAX_DIFFERENCE = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 3e-2}
"""Precision → maximum absolute difference of an element of a unit embedding, or of a probability."""


@pytest.mark.parametrize("precision", MAX_DIFFERENCE)
@pytest.mark.parametrize("name", ["chinese-clip", "siglip", "bert", "eva"])
def test_fused_operators_agree_with_the_plain_graph(gpu: Device, name: str, precision: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from danqing.profiling.bench.published import save
    from tests.trt_models.small_models import own_card
    from tests.trt_models.test_models_command import FAMILIES, inputs

    family = FAMILIES[name]()
    save(family.model, tmp_path)
    for built_in, changes in family.cards.items():
        card = load_card(own_card(built_in, tmp_path, **changes))
        network = exporter(str(card.export))
        assert network is not None
        model = network(Checkpoint(tmp_path)).model()
        examples = inputs(card)
        (plain,) = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            None, examples
        )
        fuse(model)
        if precision != "fp32":
            model = halved(model, precision, FUSED_EXACT_OPS[precision])
        path = tmp_path / "engine.onnx"
        onnx.save(model, str(path))
        session = CudaOnnxSession(path, gpu, 8)
        assert session._session.get_providers()[0] == CUDA_PROVIDER
        (found,) = session.run(**examples).values()
        np.testing.assert_allclose(found.get(), plain, atol=MAX_DIFFERENCE[precision])
        (alone,) = session.run(**{key: array[2:3] for key, array in examples.items()}).values()
        assert (alone.get() == found.get()[2:3]).all()  # a row does not depend on the others


def test_an_engine_is_compiled_verified_and_activated(gpu: Device, tmp_path: Path) -> None:
    card = load_card("open-nsfw")
    engine = compile_engine(card, "fp16", gpu.target, runtime="onnxruntime")
    wanted = {"cosine_mean": MIN_COSINE, "flips": MAX_FLIPS}
    shards = build_crawl(tmp_path / "crawl")
    engine = verify(card, engine, shards, load_recipe("embedded"), Settings(device="cuda"), 256, wanted)
    engines = Engines(card)
    engines.activate(engine)
    assert engines.active(gpu.target)[0] == engine
    engines.rollback(gpu.target)
