"""LAION's aesthetic predictor, version 2: linear layers on the image embedding of OpenAI's CLIP ViT-L/14.

github.com/christophschuhmann/improved-aesthetic-predictor (Apache-2.0). Trained on people's ratings from 1 to 10.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from danqing.engine.core.errors import DanqingError
from danqing.trt_models.export.checkpoint import Checkpoint
from danqing.trt_models.export.chinese_clip import pooled, projected
from danqing.trt_models.export.graph import Graph, Network
from danqing.trt_models.export.torch_file import read_checkpoint

HEAD = "sac+logos+ava1-l14-linearMSE.pth"
LAYERS = ((0, 1024), (2, 128), (4, 64), (6, 16), (7, 1))
"""Place of a linear layer in the predictor's `layers`, and its outputs; between them stand dropouts."""


def predictor(weights: Checkpoint) -> Network:
    """pixels uint8 (N, S, S, 3) RGB → aesthetic float32 (N,): the rating people would give, mostly 3 to 7."""
    weights.expect("clip")
    graph, width = Graph(), projected(weights)
    size = weights.setting(weights.setting(weights.config, "vision_config"), "image_size", 224)
    x = graph.unit(pooled(graph, weights, width))
    path = weights.folder / HEAD
    if not path.is_file():
        raise DanqingError(f"{path}: missing; it is the predictor itself, to lie beside CLIP's own files")
    weights.files.append(path)
    head = read_checkpoint(path)
    for place, rows in LAYERS:
        weight, bias = (head.get(f"layers.{place}.{name}", np.empty(0)) for name in ("weight", "bias"))
        if weight.shape != (rows, width) or bias.shape != (rows,):
            raise DanqingError(
                f"{path}: layers.{place} has shapes {weight.shape} and {bias.shape}, not {(rows, width)} and {(rows,)}"
            )
        name = f"layers.{place}"
        product = graph.add("MatMul", x, graph.weight(weight.astype(np.float32).T, f"{name}.weight"))
        x, width = graph.add("Add", product, graph.weight(bias.astype(np.float32), f"{name}.bias")), rows
    graph.add("Squeeze", x, np.array([1]), output="aesthetic")
    return Network(graph, "aesthetic", {"pixels": (TensorProto.UINT8, ["N", size, size, 3])}, {"aesthetic": ["N"]})
