"""config.json: its agreement with the weights, and the defaults that published files omit."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, ChineseCLIPConfig, CLIPConfig, PreTrainedConfig, SiglipConfig

from danqing.engine.core.errors import DanqingError
from danqing.profiling.bench.published import save
from danqing.trt_models.card import ImageInput, load_card
from danqing.trt_models.export import bert, chinese_clip, eva, siglip
from danqing.trt_models.export.checkpoint import Checkpoint
from danqing.trt_models.export.from_checkpoint import export
from danqing.trt_models.export.graph import ExportedNetwork
from danqing.trt_models.store import is_stored
from tests.trt_models import small_models
from tests.trt_models.small_models import TEXT, VISION

Export = Callable[[Checkpoint], ExportedNetwork]
SECTIONS = ("text_config", "vision_config")
MODELS: dict[str, Callable[[], Any]] = {
    "chinese_clip": lambda: small_models.chinese_clip(TEXT | {"max_position_embeddings": 64}),
    "clip": small_models.clip,
    "siglip": small_models.siglip,
    "bert": small_models.bert,
    "eva": small_models.eva,
}
EXPORTS: dict[str, tuple[str, Export]] = {
    "Chinese-CLIP, pictures": ("chinese_clip", chinese_clip.image_tower),
    "Chinese-CLIP, texts": ("chinese_clip", chinese_clip.text_tower),
    "CLIP, pictures": ("clip", chinese_clip.image_tower),
    "SigLIP, pictures": ("siglip", siglip.image_tower),
    "SigLIP, texts": ("siglip", siglip.text_tower),
    "BERT": ("bert", bert.classifier),
    "EVA-02": ("eva", eva.classifier),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return {name: save(make(), tmp_path_factory.mktemp(name)) for name, make in MODELS.items()}


def with_tensor(folder: Path, to: Path, name: str) -> Path:
    """Copies a checkpoint with one more tensor, in PyTorch's format."""
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors") | {name: torch.ones(2, 3)}, to / "pytorch_model.bin")
    (to / "config.json").write_bytes((folder / "config.json").read_bytes())
    return to


@pytest.mark.parametrize("name", EXPORTS)
def test_every_weight_of_a_network_is_used(folders: Mapping[str, Path], name: str) -> None:
    model, write = EXPORTS[name]
    weights = Checkpoint(folders[model])
    write(weights)
    weights.expect_all_read()


@pytest.mark.parametrize("name", [name for name in EXPORTS if name != "EVA-02"])
def test_a_config_with_too_few_layers_is_refused(folders: Mapping[str, Path], tmp_path: Path, name: str) -> None:
    model, write = EXPORTS[name]
    folder = with_tensor(folders[model], tmp_path, "unrelated.weight")
    config = json.loads((folder / "config.json").read_text())
    for section in (config, *(config[key] for key in SECTIONS if key in config)):
        if "num_hidden_layers" in section:
            section["num_hidden_layers"] -= 1
    (folder / "config.json").write_text(json.dumps(config))
    weights = Checkpoint(folder)
    write(weights)  # makes a graph without an error
    with pytest.raises(DanqingError, match=r"no place for 16 of the weights, '.*\.2\..*' for one"):
        weights.expect_all_read()


@pytest.mark.parametrize("extra", ["text_model.embeddings.position_ids", "text_model.pooler.dense.weight", "cls.bias"])
def test_weights_that_no_network_uses_are_ignored(folders: Mapping[str, Path], tmp_path: Path, extra: str) -> None:
    weights = Checkpoint(with_tensor(folders["chinese_clip"], tmp_path, extra))
    chinese_clip.text_tower(weights)
    weights.expect_all_read()


def test_an_unknown_weight_of_a_known_part_is_refused(folders: Mapping[str, Path], tmp_path: Path) -> None:
    weights = Checkpoint(with_tensor(folders["chinese_clip"], tmp_path, "vision_model.encoder.gate.weight"))
    chinese_clip.text_tower(weights)
    weights.expect_all_read()
    chinese_clip.image_tower(weights)
    with pytest.raises(DanqingError, match=r"no place for 1 of the weights, 'vision_model.encoder.gate.weight'"):
        weights.expect_all_read()


def test_a_network_with_unused_weights_is_not_stored(folders: Mapping[str, Path], tmp_path: Path, store: Path) -> None:
    card = load_card("text-safety-1m")
    folder = with_tensor(folders["bert"], tmp_path, "bert.encoder.layer.3.output.dense.bias")
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n", encoding="utf-8")
    with pytest.raises(DanqingError, match=r"get config\.json and the weights from the same repository"):
        export(card, folder)
    assert not is_stored(card)


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_card_can_identify_its_checkpoint_by_the_other_tower(
    folders: Mapping[str, Path], tmp_path: Path, store: Path, tower: str
) -> None:
    card = load_card(f"chinese-clip-vit-l-14-{tower}")
    assert list(card.shapes) == ["vision_model.embeddings.position_embedding.weight"]
    size = ImageInput(VISION["image_size"], VISION["image_size"]) if card.image_input else None
    card = replace(card, shapes={key: [17, 48] for key in card.shapes}, image_input=size)
    folder = with_tensor(folders["chinese_clip"], tmp_path, "vision_model.embeddings.position_ids")
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n", encoding="utf-8")
    export(card, folder)
    assert is_stored(card)


class RecordingCheckpoint(Checkpoint):
    """Records the settings that an exporter reads, with their sections and the exporter's defaults."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.defaults: list[tuple[str, str, Any]] = []

    def setting(self, section: Mapping[str, Any], name: str, default: Any = None) -> Any:
        where = next((key for key in SECTIONS if section is self.config.get(key)), "")
        self.defaults.append((where, name, default))
        return super().setting(section, name, default)


@pytest.mark.parametrize("name", [name for name in EXPORTS if name != "EVA-02"])
def test_defaults_equal_those_of_transformers(folders: Mapping[str, Path], name: str) -> None:
    model, write = EXPORTS[name]
    weights = RecordingCheckpoint(folders[model])
    write(weights)
    kinds: dict[str, type[PreTrainedConfig]] = {
        "chinese_clip": ChineseCLIPConfig, "clip": CLIPConfig, "siglip": SiglipConfig, "bert": BertConfig,
    }  # fmt: skip
    default = kinds[model]()
    checked = 0
    for where, key, found in weights.defaults:
        if found is None or (key, model) == ("projection_size", "siglip"):  # required; by default the hidden size
            continue
        expected = getattr(getattr(default, where) if where else default, key)
        assert (where, key, found) == (where, key, expected)
        checked += 1
    assert checked >= 6
