"""`danqing models export`: what it writes is PyTorch's model, and recipes find it by its card."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ChineseCLIPConfig,
    ChineseCLIPModel,
    SiglipConfig,
    SiglipModel,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
)

from danqing.engine.cli.main import main
from danqing.engine.core.errors import DanqingError
from danqing.engine.recipe.reading import load_recipe
from danqing.profiling.bench.published import randomised, save
from danqing.profiling.torch_peer import torch_job
from danqing.trt_models.card import Card, card_names, load_card
from danqing.trt_models.compile.compilers import compile_engine
from danqing.trt_models.engines import Engines
from danqing.trt_models.export import exporter, graph
from danqing.trt_models.model_set import ModelSet
from danqing.trt_models.store import model_folder, model_hash, onnx_path
from tests.trt_models.test_checkpoints import SMALL, VISION, own_card

MOST_APART = 2e-5
"""The largest difference of two numbers; unit embeddings and probabilities are of the order of 0.1 to 1."""
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"一只橘猫狗在窗台上晒太阳山水红色的车停路口", "##s", "cat", "dog"]
TEXT = SMALL | {"vocab_size": 300, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
CAPTIONS = ["一只橘猫在窗台上晒太阳", "cats", "", "红色的车停在路口" * 20]
LABELS = {"id2label": {0: "safe", 1: "unsafe"}, "label2id": {"safe": 0, "unsafe": 1}}


@dataclass(frozen=True)
class Family:
    """A small model as published, the cards made from it, and PyTorch's answer to a card's input."""

    model: Any
    cards: dict[str, dict[str, Any]]  # built-in card → what is different about the small one


def size(side: int) -> dict[str, Any]:
    return {"image_input": {"size": side, "resize": side, "fit": "stretch", "interpolation": "cubic"}}


def chinese_clip() -> Family:
    config = ChineseCLIPConfig(
        text_config=TEXT | {"max_position_embeddings": 52}, vision_config=VISION, projection_dim=24
    )
    cards = {"chinese-clip-vit-l-14-image": size(32), "chinese-clip-vit-l-14-text": {}}
    return Family(randomised(ChineseCLIPModel(config)), cards)


def siglip() -> Family:
    config = SiglipConfig(text_config=TEXT | {"max_position_embeddings": 64}, vision_config=VISION)
    return Family(randomised(SiglipModel(config), 1), {"siglip2-b-16-256-image": size(32), "siglip2-b-16-256-text": {}})


def bert() -> Family:
    config = BertConfig(**TEXT, max_position_embeddings=128, **LABELS)
    return Family(randomised(BertForSequenceClassification(config), 2), {"text-safety-20m": {}})


def eva() -> Family:
    config = TimmWrapperConfig(
        architecture="eva02_base_patch14_448",
        model_args={"embed_dim": 128, "depth": 2, "num_heads": 2, "img_size": 56},
        id2label=dict(enumerate(("neutral", "low", "medium", "high"))),
    )
    return Family(randomised(TimmWrapperForImageClassification(config), 3), {"freepik-nsfw": size(56)})


FAMILIES = {"chinese-clip": chinese_clip, "siglip": siglip, "bert": bert, "eva": eva}


def reference(model: Any, card: Card, given: np.ndarray) -> np.ndarray:
    """PyTorch's output for the input of the card's graph."""
    with torch.no_grad():
        if card.task.startswith("image"):
            mean, deviation = (np.array(v, np.float32) for v in statistics(card))
            values = torch.tensor(((given / np.float32(255) - mean) / deviation).transpose(0, 3, 1, 2))
            if card.task == "image_classifier":
                return model(pixel_values=values).logits.softmax(-1)[:, 3].numpy()
            features = model.get_image_features(pixel_values=values).pooler_output
        else:
            ids = torch.tensor(given, dtype=torch.long)
            mask = {} if "siglip" in card.name else {"attention_mask": (ids != 0).long()}
            if card.task == "text_classifier":
                return model(input_ids=ids, **mask).logits.softmax(-1)[:, 1].numpy()
            features = model.get_text_features(input_ids=ids, **mask).pooler_output
        return torch.nn.functional.normalize(features, dim=-1).numpy()


def statistics(card: Card) -> tuple[Any, Any]:
    from danqing.trt_models.export import chinese_clip, siglip

    return (siglip.MEAN, siglip.MEAN) if "siglip" in card.name else (chinese_clip.MEAN, chinese_clip.DEVIATION)


def inputs(card: Card) -> dict[str, np.ndarray]:
    random = np.random.default_rng(7)
    if card.image_input:
        side = card.image_input.size
        return {"pixels": random.integers(0, 256, (5, side, side, 3), np.uint8)}
    assert card.token_input is not None
    length = card.token_input.max_length
    tokens = random.integers(4, 300, (5, length), np.int32)
    for row in range(5):
        tokens[row, length - 9 * row :] = 0
    return {"tokens": tokens}


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DANQING_CACHE", str(tmp_path / "store"))


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_exports_are_the_models(
    name: str, large: bool, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        monkeypatch.setattr(graph, "EXTERNAL_DATA_BYTES", 1 << 12)
    family = FAMILIES[name]()
    folder = save(family.model, tmp_path / "checkpoint", form)
    for file in ("vocab.txt", "tokenizer.model"):
        (folder / file).write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    for built_in, changes in family.cards.items():
        path = own_card(built_in, tmp_path, **changes)
        assert main(["models", "export", path, "--from", str(folder)]) == 0
        card = load_card(path)
        file = onnx_path(card)
        assert file.with_name("model.onnx.data").exists() == large
        onnx.checker.check_model(str(file), full_check=True)
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        given = inputs(card)
        (found,) = session.run(None, given)
        expected = reference(family.model, card, next(iter(given.values())))
        assert found.dtype == np.float32 and np.abs(found - expected).max() < MOST_APART
        assert expected.std(axis=0).min() > 1e-3, "the inputs tell nothing apart"
        if found.ndim == 2:
            assert (found * expected).sum(axis=1).min() >= 0.9999
        (alone,) = session.run(None, {key: array[2:3] for key, array in given.items()})
        np.testing.assert_allclose(alone, found[2:3], atol=1e-6)
        note = json.loads(file.with_name("model.json").read_text())
        assert {"model.onnx"} < note["files"].keys() | {"-"} and "config.json" in note["checkpoint"]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_compiles_for_gpus_that_are_not_there(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]()
    folder = save(family.model, tmp_path / "checkpoint")
    for file in ("vocab.txt", "tokenizer.model"):
        (folder / file).write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    for built_in, changes in family.cards.items():
        path = own_card(built_in, tmp_path, **changes)
        assert main(["models", "export", path, "--from", str(folder)]) == 0
        for precision, target in (("fp16", "sm_80"), ("bf16", "sm_120")):
            engine = compile_engine(load_card(path), precision, target, (1, 4, 16))
            assert Engines(load_card(path)).checked(engine).stat().st_size > 1000


@pytest.mark.parametrize("name", FAMILIES)
def test_pytorch_runs_every_published_family_to_be_timed_beside(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]()
    folder = save(family.model, tmp_path / "checkpoint")
    for built_in, changes in family.cards.items():
        card = load_card(own_card(built_in, tmp_path, **changes))
        torch_job(card, folder, inputs(card), 1)()
    with pytest.raises(DanqingError, match="transformers cannot read this checkpoint"):
        torch_job(card, tmp_path / "nothing", inputs(card), 1)


def test_graphs_keep_what_lower_precision_needs(tmp_path: Path) -> None:
    """Normalisation and softmax are single nodes, pixels float32 up to the first convolution, scales in weights."""
    from danqing.trt_models.export.checkpoint import Checkpoint

    family = chinese_clip()
    network = exporter("chinese_clip.image_tower")
    assert network is not None
    model = network(Checkpoint(save(family.model, tmp_path))).model()
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("LayerNormalization") == 2 * 3 + 2 and kinds.count("Softmax") == 3
    assert kinds[: kinds.index("Conv")] == ["Cast", "Transpose", "Sub", "Div"]
    before = {node.output[0]: node for node in model.graph.node}
    for node in model.graph.node:
        if node.op_type == "Softmax":
            assert before[node.input[0]].op_type == "MatMul"
    names = {weight.name for weight in model.graph.initializer}
    assert {"vision_model.encoder.layers.1.mlp.fc1.weight", "visual_projection.weight"} <= names
    assert [opset.version for opset in model.opset_import] == [17]


def test_the_hash_of_a_large_model_covers_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "EXTERNAL_DATA_BYTES", 1 << 12)
    card = load_card(own_card("text-safety-20m", tmp_path))
    hashes = set()
    for seed in (2, 3):
        folder = save(randomised(bert().model, seed), tmp_path / str(seed))
        (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
        assert main(["models", "export", str(tmp_path / "text-safety-20m.yaml"), "--from", str(folder)]) == 0
        hashes.add((model_hash(card), onnx_path(card).read_bytes()))
    assert len({digest for digest, _ in hashes}) == len({content for _, content in hashes}) == 2
    weights = model_folder(card) / "model.onnx.data"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(DanqingError, match=r"model\.onnx\.data: SHA-256 is .*refusing to load it"):
        onnx_path(card)


def test_a_checkpoint_of_another_size_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save(chinese_clip().model, tmp_path / "checkpoint")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    assert main(["models", "export", "chinese-clip-vit-l-14", "--from", str(folder)]) == 2
    said = capsys.readouterr().err
    assert (
        "(17, 48), chinese-clip-vit-l-14-image has (257, 1024); is it OFA-Sys/chinese-clip-vit-large-patch14?" in said
    )
    long = {"token_input": {"kind": "wordpiece", "file": "vocab.txt", "max_length": 53}}
    path = own_card("chinese-clip-vit-l-14-text", tmp_path, **long)
    assert main(["models", "export", path, "--from", str(folder)]) == 2
    assert "its input has size 53, the checkpoint's has 52" in capsys.readouterr().err
    (folder / "vocab.txt").unlink()
    assert main(["models", "export", own_card("chinese-clip-vit-l-14-text", tmp_path), "--from", str(folder)]) == 2
    assert "vocab.txt: no such file" in capsys.readouterr().err


def test_a_recipe_says_how_to_export_what_it_lacks(tmp_path: Path) -> None:
    own = own_card("freepik-nsfw", tmp_path)
    with pytest.raises(DanqingError, match=f"danqing models export {own} --from FOLDER"):
        ModelSet({"image_safety": own}).hashes()
    models = ModelSet({"text_embedding": "chinese-clip-vit-l-14-text"})
    with pytest.raises(DanqingError, match=r"danqing models export chinese-clip-vit-l-14-text --from FOLDER"):
        models.tokenizer("text_embedding")
    with pytest.raises(DanqingError, match=r"danqing models export chinese-clip-vit-l-14-text --from FOLDER"):
        models.hashes()


def test_the_papers_recipe_names_cards_that_exist() -> None:
    assert set(load_recipe("danqing").models.values()) <= set(card_names())


def test_every_published_card_has_an_exporter() -> None:
    cards = [card for card in map(load_card, card_names()) if card.export]
    assert len(cards) >= 18
    for card in cards:
        assert card.export and exporter(card.export) and card.published and (card.image_input or card.token_input)
