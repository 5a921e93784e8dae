"""`danqing models export`: its models agree with PyTorch's, and recipes find them by card."""

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

from danqing.engine.cli.judging import recipe_with
from danqing.engine.cli.main import main
from danqing.engine.cli.options import RecipeOptions
from danqing.engine.core.errors import DanqingError
from danqing.engine.recipe.reading import load_recipe
from danqing.profiling.bench.published import randomised, save
from danqing.profiling.parity import role_and_recipe
from danqing.profiling.torch_peer import torch_job
from danqing.trt_models.card import Card, card_names, load_card
from danqing.trt_models.compile.compilers import compile_engine
from danqing.trt_models.engines import Engines
from danqing.trt_models.export import exporter, graph
from danqing.trt_models.export.from_checkpoint import export_all
from danqing.trt_models.model_set import ModelSet
from danqing.trt_models.store import model_folder, model_hash, onnx_path
from tests.trt_models import small_models
from tests.trt_models.small_models import own_card, publish

pytestmark = pytest.mark.usefixtures("store")
MAX_DIFFERENCE = 2e-5
"""Of an output's elements, which are of the order of 0.1 to 1."""
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"一只橘猫狗在窗台上晒太阳山水红色的车停路口", "##s", "cat", "dog"]
TEXT = small_models.TEXT | {"vocab_size": 300}


@dataclass(frozen=True)
class Family:
    """A small model of a published architecture.

    Attributes:
        model: PyTorch's model.
        cards: built-in card of the architecture → keys to replace for the small model.
    """

    model: Any
    cards: dict[str, dict[str, Any]]


def size(side: int) -> dict[str, Any]:
    return {"image_input": {"size": side, "resize": side, "fit": "stretch", "interpolation": "cubic"}}


def chinese_clip() -> Family:
    model = small_models.chinese_clip(TEXT | {"max_position_embeddings": 52})
    return Family(model, {"chinese-clip-vit-l-14-image": size(32), "chinese-clip-vit-l-14-text": {}})


def siglip() -> Family:
    model = small_models.siglip(TEXT | {"max_position_embeddings": 64})
    return Family(model, {"siglip2-b-16-256-image": size(32), "siglip2-b-16-256-text": {}})


def bert() -> Family:
    return Family(small_models.bert(TEXT | {"max_position_embeddings": 128}), {"text-safety-20m": {}})


def eva() -> Family:
    return Family(small_models.eva(56), {"freepik-nsfw": size(56)})


FAMILIES = {"chinese-clip": chinese_clip, "siglip": siglip, "bert": bert, "eva": eva}


def reference(model: Any, card: Card, array: np.ndarray) -> np.ndarray:
    """Computes PyTorch's output for an input of the card's graph."""
    with torch.no_grad():
        if card.task.startswith("image"):
            mean, deviation = (np.array(v, np.float32) for v in statistics(card))
            values = torch.tensor(((array / np.float32(255) - mean) / deviation).transpose(0, 3, 1, 2))
            if card.task == "image_classifier":
                return model(pixel_values=values).logits.softmax(-1)[:, 3].numpy()
            features = model.get_image_features(pixel_values=values).pooler_output
        else:
            ids = torch.tensor(array, dtype=torch.long)
            mask = {} if "siglip" in card.name else {"attention_mask": (ids != 0).long()}
            if card.task == "text_classifier":
                return model(input_ids=ids, **mask).logits.softmax(-1)[:, 1].numpy()
            features = model.get_text_features(input_ids=ids, **mask).pooler_output
        return torch.nn.functional.normalize(features, dim=-1).numpy()


def statistics(card: Card) -> tuple[Any, Any]:
    from danqing.trt_models.export import chinese_clip, siglip

    return (siglip.MEAN, siglip.DEVIATION) if "siglip" in card.name else (chinese_clip.MEAN, chinese_clip.DEVIATION)


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


@pytest.mark.parametrize(("form", "large"), [("safetensors", False), ("bin", True)])
@pytest.mark.parametrize("name", FAMILIES)
def test_exports_agree_with_pytorch(
    name: str, large: bool, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        monkeypatch.setattr(graph, "EXTERNAL_DATA_BYTES", 1 << 12)
    family = FAMILIES[name]()
    folder = publish(family.model, tmp_path / "checkpoint", VOCABULARY, form)
    for built_in, changes in family.cards.items():
        path = own_card(built_in, tmp_path, **changes)
        assert main(["models", "export", path, "--from", str(folder)]) == 0
        card = load_card(path)
        file = onnx_path(card)
        assert file.with_name("model.onnx.data").exists() == large
        onnx.checker.check_model(str(file), full_check=True)
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        examples = inputs(card)
        (found,) = session.run(None, examples)
        expected = reference(family.model, card, next(iter(examples.values())))
        assert found.dtype == np.float32 and np.abs(found - expected).max() < MAX_DIFFERENCE
        assert expected.std(axis=0).min() > 1e-3, "the outputs do not depend on the inputs"
        if found.ndim == 2:
            assert (found * expected).sum(axis=1).min() >= 0.9999
        (one_row,) = session.run(None, {key: array[2:3] for key, array in examples.items()})
        np.testing.assert_allclose(one_row, found[2:3], atol=1e-6)
        note = json.loads(file.with_name("model.json").read_text())
        assert {"model.onnx"} < note["files"].keys() | {"-"} and "config.json" in note["checkpoint"]


@pytest.mark.parametrize("name", ["siglip", "eva"])
def test_families_compile_without_a_gpu(name: str, tmp_path: Path) -> None:
    """The other families compile in test_engines."""
    family = FAMILIES[name]()
    folder = publish(family.model, tmp_path / "checkpoint", VOCABULARY)
    for built_in, changes in family.cards.items():
        path = own_card(built_in, tmp_path, **changes)
        assert main(["models", "export", path, "--from", str(folder)]) == 0
        for precision, target in (("fp16", "sm_80"), ("bf16", "sm_120")):
            engine = compile_engine(load_card(path), precision, target, (1, 4, 16))
            assert Engines(load_card(path)).checked(engine).stat().st_size > 1000


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_can_be_timed_in_pytorch(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]()
    folder = save(family.model, tmp_path / "checkpoint")
    for built_in, changes in family.cards.items():
        card = load_card(own_card(built_in, tmp_path, **changes))
        torch_job(card, folder, [inputs(card)], 1)()
    with pytest.raises(DanqingError, match="transformers cannot read this checkpoint"):
        torch_job(card, tmp_path / "nothing", [inputs(card)], 1)


def test_graphs_have_the_form_that_lower_precision_needs(tmp_path: Path) -> None:
    """Normalisations and softmax are single nodes, pixels are float32 up to the convolution, scales are in weights."""
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
        folder = publish(randomised(bert().model, seed), tmp_path / str(seed), VOCABULARY)
        assert main(["models", "export", str(tmp_path / "text-safety-20m.yaml"), "--from", str(folder)]) == 0
        hashes.add((model_hash(card), onnx_path(card).read_bytes()))
    assert len({digest for digest, _ in hashes}) == len({content for _, content in hashes}) == 2
    weights = model_folder(card) / "model.onnx.data"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(DanqingError, match=r"model\.onnx\.data: SHA-256 is .*refusing to load it"):
        onnx_path(card)


def test_a_checkpoint_of_another_size_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = publish(chinese_clip().model, tmp_path / "checkpoint", VOCABULARY)
    assert main(["models", "export", "chinese-clip-vit-l-14", "--from", str(folder)]) == 2
    error = "(17, 48), chinese-clip-vit-l-14-image has (257, 1024); is it OFA-Sys/chinese-clip-vit-large-patch14?"
    assert error in capsys.readouterr().err
    long = {"token_input": {"kind": "wordpiece", "file": "vocab.txt", "max_length": 53}}
    path = own_card("chinese-clip-vit-l-14-text", tmp_path, **long)
    assert main(["models", "export", path, "--from", str(folder)]) == 2
    assert "its input has size 53, the checkpoint's has 52" in capsys.readouterr().err
    (folder / "vocab.txt").unlink()
    assert main(["models", "export", own_card("chinese-clip-vit-l-14-text", tmp_path), "--from", str(folder)]) == 2
    assert "vocab.txt: no such file" in capsys.readouterr().err


def test_a_failed_export_leaves_nothing(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = chinese_clip()
    folder = publish(family.model, tmp_path / "checkpoint", VOCABULARY)
    cards = [load_card(own_card(name, tmp_path, **changes)) for name, changes in family.cards.items()]
    (folder / "vocab.txt").rename(tmp_path / "vocab.txt")  # the first tower needs none
    for kept in ([], cards[:1]):
        for card in kept:
            export_all([card], folder)
        with pytest.raises(DanqingError, match=r"vocab\.txt: no such file"):
            export_all(cards, folder)
        left = [path.name for path in (store / "models").iterdir()]
        assert left == [model_folder(card).name for card in kept]
    (tmp_path / "vocab.txt").rename(folder / "vocab.txt")
    assert export_all(cards, folder) == [model_folder(card) for card in cards]


def test_a_model_that_no_recipe_names_gets_one(tmp_path: Path, store: Path) -> None:
    """The towers' card files lie beside each other, so that one finds the other."""
    family = chinese_clip()
    folder = publish(family.model, tmp_path / "checkpoint", VOCABULARY)
    image, text = (own_card(name, tmp_path, **changes) for name, changes in family.cards.items())

    def criteria(name: str) -> list[str]:
        _, recipe = role_and_recipe(load_card(name), recipe_with(name, RecipeOptions()))
        return [criterion.name for criterion in recipe.criteria]

    export_all([load_card(image)], folder)
    assert criteria(image) == ["redundancy", "cross_batch_redundancy"]
    assert recipe_with(image, RecipeOptions()).models["text_embedding"] == "chinese-clip-vit-l-14-text"
    export_all([load_card(text)], folder)
    assert "alignment_distance" in criteria(image) and "alignment_distance" in criteria(text)
    assert recipe_with(image, RecipeOptions()).models["text_embedding"] == text
    assert criteria(own_card("freepik-nsfw", tmp_path)) == ["unsafe_image"]
    assert criteria("freepik-nsfw") == ["unsafe_image"]
    with pytest.raises(DanqingError, match="no built-in recipe has a language_model; give one with --recipe"):
        recipe_with("bert-chinese", RecipeOptions())
    lone = "siglip2-b-16-256-text"
    with pytest.raises(DanqingError, match=r"without the other tower: .* --set models\.image_embedding=NAME"):
        recipe_with(lone, RecipeOptions())
    given = RecipeOptions(settings=(f"models.image_embedding={image}",))
    assert "alignment_distance" in [criterion.name for criterion in recipe_with(lone, given).criteria]


def test_the_error_for_a_missing_model_says_how_to_export_it(tmp_path: Path) -> None:
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


def test_a_card_is_meant_though_a_folder_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bert-chinese").mkdir()
    (tmp_path / "own").mkdir()
    assert main(["models", "export", "bert-chinese", "--from", "bert-chinese"]) == 2
    assert "no model cards" not in capsys.readouterr().err
    assert main(["models", "export", "own"]) == 2
    assert "own: no model cards (.yaml) here" in capsys.readouterr().err
    assert main(["models", "export", "bert-chinese"]) == 2
    assert "--from is missing" in capsys.readouterr().err
