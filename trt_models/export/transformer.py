"""Writes the layers of transformers into ONNX graphs, under the names of their weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import TensorProto

from danqing.engine.core.errors import DanqingError
from danqing.trt_models.export.checkpoint import Checkpoint
from danqing.trt_models.export.graph import Graph


class Transformer:
    """Writes layers whose weights have PyTorch's names: `PATH.weight` (out, in) and `PATH.bias` (out,).

    Its methods take and return names of tensors.

    Args:
        graph: the graph to write to.
        weights: the checkpoint.
        width: size of the hidden states.
        heads: number of heads of every attention.
        epsilon: added to the variance in every layer normalisation.
        activation: activation of the MLPs, by its name in config.json.

    Raises:
        DanqingError: an unknown activation, or a width that the heads do not divide.
    """

    def __init__(
        self, graph: Graph, weights: Checkpoint, width: int, heads: int, epsilon: float, activation: str
    ) -> None:
        self.graph, self.weights = graph, weights
        self.width, self.heads, self.epsilon = width, heads, epsilon
        known = {"gelu": self._gelu, "quick_gelu": self._quick_gelu, "gelu_pytorch_tanh": self._tanh_gelu,
                 "gelu_new": self._tanh_gelu}  # fmt: skip
        config = weights.folder / "config.json"
        if activation not in known:
            raise DanqingError(f"{config}: hidden_act is {activation!r}; known: {', '.join(known)}")
        if heads < 1 or width % heads:
            raise DanqingError(f"{config}: num_attention_heads is {heads}, which does not divide {width} (hidden_size)")
        self.activate: Callable[[str], str] = known[activation]

    @classmethod
    def of(
        cls, graph: Graph, weights: Checkpoint, config: Mapping[str, Any], epsilon: float, activation: str
    ) -> Transformer:
        """Makes a writer from a section of config.json.

        `epsilon` and `activation` are the architecture's defaults, for a section without them.
        """
        width, heads = weights.setting(config, "hidden_size", 768), weights.setting(config, "num_attention_heads", 12)
        epsilon = weights.setting(config, "layer_norm_eps", epsilon)
        return cls(graph, weights, width, heads, epsilon, weights.setting(config, "hidden_act", activation))

    def layers(self, x: str, config: Mapping[str, Any], root: str) -> str:
        """Writes all layers of CLIP's kind on x (N, T, width): a normalisation precedes each attention and each MLP."""
        inner = self.weights.setting(config, "intermediate_size", 3072)
        for layer in range(self.weights.setting(config, "num_hidden_layers", 12)):
            at = f"{root}.encoder.layers.{layer}"
            with self.graph.at(at):
                y = self.norm(x, f"{at}.layer_norm1")
                query, key, value, out = (f"{at}.self_attn.{name}_proj" for name in ("q", "k", "v", "out"))
                x = self.add(x, self.attention(y, query, key, value, out))
                y = self.norm(x, f"{at}.layer_norm2")
                x = self.add(x, self.mlp(y, f"{at}.mlp.fc1", f"{at}.mlp.fc2", inner))
        return x

    def linear(
        self, x: str, path: str, rows: int, columns: int | None = None, scale: float = 1.0, bias: bool = True
    ) -> str:
        """Writes scale · (x Wᵀ + b), x (…, columns) → (…, rows), with the scale in the weights."""
        weight = self.weights(f"{path}.weight", rows, columns or self.width)
        product = self.graph.add(
            "MatMul", x, self.graph.weight(weight.T * np.float32(scale), f"{self.weights.prefix}{path}.weight")
        )
        if not bias:
            return product
        shift = self.weights(f"{path}.bias", rows) * np.float32(scale)
        return self.graph.add("Add", product, self.graph.weight(shift, f"{self.weights.prefix}{path}.bias"))

    def norm(self, x: str, path: str, output: str = "", width: int | None = None) -> str:
        """Writes a layer normalisation of x (…, width)."""
        gamma, beta = (
            self.graph.weight(
                self.weights(f"{path}.{name}", width or self.width), f"{self.weights.prefix}{path}.{name}"
            )
            for name in ("weight", "bias")
        )
        return self.graph.add("LayerNormalization", x, gamma, beta, axis=-1, epsilon=self.epsilon, output=output)

    def attention(self, x: str, query: str, key: str, value: str, out: str, mask: str | None = None) -> str:
        """Writes softmax(Q Kᵀ / √d) V by heads and the output projection, x (N, T, width) → (N, T, width).

        The scale 1 / √d is in Q's weights: the unscaled product overflows in 16 bits.

        Args:
            x: hidden states.
            query, key, value, out: paths of the projections' weights.
            mask: (N, 1, 1, T), added to the logits.
        """
        size = self.width // self.heads
        q = self.split(self.linear(x, query, self.width, scale=1 / math.sqrt(size)), [0, 2, 1, 3])
        k = self.split(self.linear(x, key, self.width), [0, 2, 3, 1])
        v = self.split(self.linear(x, value, self.width), [0, 2, 1, 3])
        return self.linear(self.mixed(q, k, v, mask), out, self.width)

    def mixed(self, q: str | np.ndarray, k: str, v: str, mask: str | None = None) -> str:
        """Writes softmax(q k + mask) v of q (N, H, T, d), k (N, H, d, S), v (N, H, S, d) → (N, T, H d)."""
        logits = self.graph.add("MatMul", q, k)
        if mask is not None:
            logits = self.graph.add("Add", logits, mask)
        mixed = self.graph.add("MatMul", self.graph.add("Softmax", logits, axis=-1), v)
        joined = self.graph.add("Transpose", mixed, perm=[0, 2, 1, 3])
        return self.graph.add("Reshape", joined, np.array([0, 0, self.width]))

    def split(self, x: str, order: Sequence[int]) -> str:
        """Writes x (N, T, width) as heads (N, T, H, d), with its axes in the given order."""
        heads = self.graph.add("Reshape", x, np.array([0, 0, self.heads, self.width // self.heads]))
        return self.graph.add("Transpose", heads, perm=list(order))

    def mlp(self, x: str, first: str, second: str, inner: int) -> str:
        """Writes two linear layers, (…, width) → (…, inner) → (…, width), with the activation between them."""
        x = self.activate(self.linear(x, first, inner))
        return self.linear(x, second, self.width, inner)

    def add(self, x: str, y: str) -> str:
        """Writes x + y."""
        return self.graph.add("Add", x, y)

    def pixels(self, mean: Sequence[float], deviation: Sequence[float]) -> str:
        """Writes (pixels / 255 - mean) / deviation, the input `pixels` uint8 (N, S, S, 3) → float32 (N, 3, S, S)."""
        graph = self.graph
        x = graph.add("Transpose", graph.add("Cast", "pixels", to=TensorProto.FLOAT), perm=[0, 3, 1, 2])
        x = graph.add("Sub", x, np.array(mean, np.float32)[:, None, None] * np.float32(255))
        return graph.add("Div", x, np.array(deviation, np.float32)[:, None, None] * np.float32(255))

    def patches(self, x: str, path: str, patch: int, bias: bool) -> str:
        """Writes the patch embedding, (N, 3, S, S) → (N, patches, width): a convolution with its size as stride."""
        kernel = self.weights(f"{path}.weight", self.width, 3, patch, patch)
        shift = self.weights(f"{path}.bias", self.width) if bias else np.zeros(self.width, np.float32)
        x = self.graph.convolve(x, kernel, shift, patch)
        x = self.graph.add("Reshape", x, np.array([0, self.width, -1]))
        return self.graph.add("Transpose", x, perm=[0, 2, 1])

    def with_class_token(self, x: str, token: np.ndarray, positions: np.ndarray) -> str:
        """Writes patches (N, P, width) → (N, 1 + P, width): the class token in front, positions (1 + P, width) added.

        Pads the patches with a row of zeros in front and adds the token to it: repeating the token for every picture
        would compute a shape on the host, which a CUDA graph cannot contain.
        """
        x = self.graph.add("Pad", x, np.array([0, 1, 0, 0, 0, 0]))
        return self.graph.add("Add", x, np.concatenate([(token + positions[0])[None], positions[1:]])[None])

    def token(self, x: str, position: int) -> str:
        """Writes the hidden state at one position, x (N, T, width) → (N, width)."""
        return self.graph.add("Gather", x, np.int64(position), axis=1)

    # GELU: x Φ(x), and its approximations x sigmoid(1.702 x) and by tanh (Hendrycks & Gimpel, arXiv 1606.08415).

    def _quick_gelu(self, x: str) -> str:
        return self.graph.add("Mul", x, self.graph.add("Sigmoid", self.graph.add("Mul", x, np.float32(1.702))))

    def _gelu(self, x: str) -> str:
        erf = self.graph.add("Erf", self.graph.add("Div", x, np.float32(math.sqrt(2))))
        return self.graph.add(
            "Mul", self.graph.add("Mul", x, self.graph.add("Add", erf, np.float32(1))), np.float32(0.5)
        )

    def _tanh_gelu(self, x: str) -> str:
        graph = self.graph
        cube = graph.add("Mul", graph.add("Mul", graph.add("Mul", x, x), x), np.float32(0.044715))
        inner = graph.add("Mul", graph.add("Add", x, cube), np.float32(math.sqrt(2 / math.pi)))
        return graph.add(
            "Mul", graph.add("Mul", x, graph.add("Add", graph.add("Tanh", inner), np.float32(1))), np.float32(0.5)
        )


def padding_mask(graph: Graph, tokens: str, pad: int) -> str:
    """Writes float32 (N, 1, 1, T) to add to logits: 0 for tokens, -10,000 for padding.

    Args:
        graph: the graph to write to.
        tokens: name of int32 (N, T).
        pad: id of padding.
    """
    is_pad = graph.add("Cast", graph.add("Equal", tokens, np.int32(pad)), to=TensorProto.FLOAT)
    return graph.add("Unsqueeze", graph.add("Mul", is_pad, np.float32(-10_000)), np.array([1, 2]))
