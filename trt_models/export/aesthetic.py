"""LAION's aesthetic predictor, version 2: linear layers on the image embedding of OpenAI's CLIP ViT-L/14.

github.com/christophschuhmann/improved-aesthetic-predictor (Apache-2.0), trained on human ratings from 1 to 10.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from danqing.engine.core.errors import DanqingError
from danqing.trt_models.export.checkpoint import Checkpoint
from danqing.trt_models.export.chinese_clip import embedding_dimension, image_features
from danqing.trt_models.export.graph import ExportedNetwork, Graph
from danqing.trt_models.export.torch_file import read_checkpoint

HEAD_FILE = "sac+logos+ava1-l14-linearMSE.pth"
LAYERS = ((0, 1024), (2, 128), (4, 64), (6, 16), (7, 1))
"""Index of each linear layer in the predictor's `layers`, and its number of outputs; the others are dropouts."""


def predictor(weights: Checkpoint) -> ExportedNetwork:
    """Writes the predictor: pixels uint8 (N, S, S, 3) RGB → aesthetic float32 (N,), a rating, mostly from 3 to 7.

    Raises:
        DanqingError: the checkpoint is not CLIP's, or the predictor's file is missing or has other shapes.
    """
    weights.expect("clip")
    graph, width = Graph(), embedding_dimension(weights)
    size = weights.setting(weights.setting(weights.config, "vision_config"), "image_size", 224)
    x = graph.unit(image_features(graph, weights, width))
    path = weights.folder / HEAD_FILE
    if not path.is_file():
        raise DanqingError(f"{path}: missing; put the predictor beside CLIP's files")
    weights.files.append(path)
    head = read_checkpoint(path)
    for index, rows in LAYERS:
        weight, bias = (head.get(f"layers.{index}.{name}", np.empty(0)) for name in ("weight", "bias"))
        if weight.shape != (rows, width) or bias.shape != (rows,):
            raise DanqingError(
                f"{path}: layers.{index} has shapes {weight.shape} and {bias.shape}, not {(rows, width)} and {(rows,)}"
            )
        name = f"layers.{index}"
        product = graph.add("MatMul", x, graph.weight(weight.astype(np.float32).T, f"{name}.weight"))
        x, width = graph.add("Add", product, graph.weight(bias.astype(np.float32), f"{name}.bias")), rows
    graph.add("Squeeze", x, np.array([1]), output="aesthetic")
    return ExportedNetwork(
        graph, "aesthetic", {"pixels": (TensorProto.UINT8, ["N", size, size, 3])}, {"aesthetic": ["N"]}
    )
