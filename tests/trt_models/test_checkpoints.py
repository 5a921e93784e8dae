"""Exports of published checkpoints with random weights, compared with the classes that publish them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

from danqing.engine.core.errors import DanqingError
from danqing.profiling.bench.published import save
from danqing.trt_models.export import aesthetic, bert, chinese_clip, eva, siglip
from danqing.trt_models.export.checkpoint import Checkpoint
from tests.trt_models import small_models
from tests.trt_models.small_models import PIXELS, WORDS, Predictor, ragged_tokens, run


def unit(x: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(x, dim=-1).detach().numpy()


def normalised(pixels: np.ndarray, mean: Any, deviation: Any) -> torch.Tensor:
    scaled = (pixels / 255 - np.array(mean)) / np.array(deviation)
    return torch.tensor(scaled.transpose(0, 3, 1, 2), dtype=torch.float32)


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape and found.dtype == np.float32
    if found.ndim == 2:
        assert (found * expected).sum(axis=1).min() > 0.99999
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.fixture(scope="module")
def clip() -> Any:
    return small_models.chinese_clip()


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_chinese_clip(clip: Any, tmp_path: Path, form: str) -> None:
    weights = Checkpoint(save(clip, tmp_path, form))
    found = run(chinese_clip.image_tower(weights).model(), pixels=PIXELS)
    values = normalised(PIXELS, chinese_clip.MEAN, chinese_clip.DEVIATION)
    assert_close(found, unit(clip.get_image_features(pixel_values=values).pooler_output))
    tokens = ragged_tokens()
    ids = torch.tensor(tokens, dtype=torch.long)
    expected = unit(clip.get_text_features(input_ids=ids, attention_mask=(ids != 0).long()).pooler_output)
    text = chinese_clip.text_tower(weights).model()
    assert_close(run(text, tokens=tokens), expected)
    assert_close(run(text, tokens=tokens[1:3, :5]), expected[1:3])  # padding has no effect


def test_siglip(tmp_path: Path) -> None:
    model = small_models.siglip()
    weights = Checkpoint(save(model, tmp_path))
    expected = model.get_image_features(pixel_values=normalised(PIXELS, siglip.MEAN, siglip.DEVIATION)).pooler_output
    assert_close(run(siglip.image_tower(weights).model(), pixels=PIXELS), unit(expected))
    tokens = np.random.default_rng(2).integers(0, WORDS, (3, 16), dtype=np.int32)
    expected = model.get_text_features(input_ids=torch.tensor(tokens, dtype=torch.long)).pooler_output
    assert_close(run(siglip.text_tower(weights).model(), tokens=tokens), unit(expected))


@pytest.mark.parametrize("names", [["neutral", "low", "medium", "high"], ["High", "neutral"], None])
def test_eva(tmp_path: Path, names: list[str] | None) -> None:
    model = small_models.eva(names=names or [f"LABEL_{number}" for number in range(4)])
    pixels = np.random.default_rng(3).integers(0, 256, (3, 70, 70, 3), dtype=np.uint8)
    values = normalised(pixels, chinese_clip.MEAN, chinese_clip.DEVIATION)
    shares = model(pixel_values=values).logits.softmax(-1).detach().numpy()
    assert shares.std(axis=0).min() > 0.01  # depends on the picture
    high = 0 if names and names[0] == "High" else 3
    assert_close(run(eva.classifier(Checkpoint(save(model, tmp_path))).model(), pixels=pixels), shares[:, high])


def test_another_timm_model_is_refused(tmp_path: Path) -> None:
    config = TimmWrapperConfig(architecture="resnet18", num_labels=4)
    folder = save(TimmWrapperForImageClassification(config), tmp_path)
    with pytest.raises(DanqingError, match=r"config\.json: architecture is 'resnet18'"):
        eva.classifier(Checkpoint(folder))


@pytest.mark.parametrize("legacy", [False, True])
def test_aesthetic_predictor(tmp_path: Path, legacy: bool) -> None:
    model = small_models.clip()
    save(model, tmp_path)
    with pytest.raises(DanqingError, match=r"linearMSE\.pth: missing"):
        aesthetic.predictor(Checkpoint(tmp_path))
    head = Predictor().eval()
    torch.save(head.state_dict(), tmp_path / aesthetic.HEAD_FILE, _use_new_zipfile_serialization=not legacy)
    values = normalised(PIXELS, chinese_clip.MEAN, chinese_clip.DEVIATION)
    features = model.get_image_features(pixel_values=values).pooler_output
    expected = head.layers(torch.nn.functional.normalize(features, dim=-1))[:, 0].detach().numpy()
    weights = Checkpoint(tmp_path)
    assert_close(run(aesthetic.predictor(weights).model(), pixels=PIXELS), expected)
    assert tmp_path / aesthetic.HEAD_FILE in weights.files


@pytest.mark.parametrize("labels", [{0: "safe", 1: "unsafe"}, {0: "porn", 1: "normal", 2: "abuse"}])
def test_bert_classifier(tmp_path: Path, labels: dict[int, str]) -> None:
    model = small_models.bert(labels=labels)
    found = run(bert.classifier(Checkpoint(save(model, tmp_path))).model(), tokens=ragged_tokens())
    ids = torch.tensor(ragged_tokens(), dtype=torch.long)
    shares = model(input_ids=ids, attention_mask=(ids != 0).long()).logits.softmax(-1).detach().numpy()
    safe = next(number for number, name in labels.items() if name in ("safe", "normal"))
    assert_close(found, 1 - shares[:, safe])


@pytest.mark.parametrize("form", ["safetensors", "untied bin"])
def test_masked_language_model(tmp_path: Path, form: str) -> None:
    """As the first BERTs were published, too: old names, a pooler, and a second copy of tied weights."""
    model = small_models.masked_bert(small_models.TEXT | {"tie_word_embeddings": form == "safetensors"})
    save(model, tmp_path, form.removeprefix("untied "))
    if form != "safetensors":
        tensors = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
            for name, tensor in model.state_dict().items()
        }
        others = {"bert.pooler.dense.weight": torch.zeros(48, 48), "cls.seq_relationship.bias": torch.zeros(2)}
        torch.save(tensors | others, tmp_path / "pytorch_model.bin")
    weights, inputs = Checkpoint(tmp_path), small_models.masked_tokens()
    found = run(bert.masked_language_model(weights).model(), **inputs)
    weights.expect_all_read()
    ids = torch.tensor(inputs["tokens"], dtype=torch.long)
    shares = model(input_ids=ids, attention_mask=(ids != 0).long()).logits.log_softmax(-1).detach().numpy()
    rows, places = np.nonzero(inputs["targets"] >= 0)
    assert_close(found, shares[rows, places, inputs["targets"][rows, places]])


def test_a_classifier_without_a_harmless_class_is_refused(tmp_path: Path) -> None:
    folder = save(small_models.bert(labels={0: "A", 1: "B"}), tmp_path)
    with pytest.raises(DanqingError, match=r"config\.json: id2label does not say which class is harmless"):
        bert.classifier(Checkpoint(folder))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_half_precision_weights_become_float32(clip: Any, tmp_path: Path, kind: torch.dtype, form: str) -> None:
    folder = save(clip, tmp_path, form)
    tensors = {name: tensor.to(kind) for name, tensor in clip.state_dict().items()}
    if form == "bin":
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        from safetensors.torch import save_file

        save_file(tensors, folder / "model.safetensors")
    name = "vision_model.embeddings.position_embedding.weight"
    found = Checkpoint(folder)(name)
    assert found.dtype == np.float32 and (found == tensors[name].float().numpy()).all()


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_sharded_weights(clip: Any, tmp_path: Path, form: str) -> None:
    clip.save_pretrained(tmp_path, max_shard_size="50KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 2
    if form == "bin":
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        for shard in shards:
            names = [name for name, file in index["weight_map"].items() if file == shard.name]
            torch.save({name: clip.state_dict()[name] for name in names}, shard.with_suffix(".bin"))
            shard.unlink()
        (tmp_path / "model.safetensors.index.json").unlink()
        index["weight_map"] = {name: Path(f).with_suffix(".bin").name for name, f in index["weight_map"].items()}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    weights = Checkpoint(tmp_path)
    for name, tensor in clip.state_dict().items():
        assert (weights(name) == tensor.numpy()).all()
    assert len(weights.files) > 3


def change(folder: Path, section: Any = (), **changes: Any) -> None:
    """Changes settings of the vision tower in config.json, or replaces its section."""
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"] = 7 if section is None else config["vision_config"] | changes
    (folder / "config.json").write_text(json.dumps(config))


BREAKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), r"config\.json: missing"),
    "broken config": (lambda f: (f / "config.json").write_text("{"), r"config\.json: not valid JSON"),
    "other model": (lambda f: (f / "config.json").write_text('{"model_type": "bert"}'), "model_type is 'bert'"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no weights here; looked for model.safetensors"),
    "cut short": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9]),
        r"model\.safetensors: not a safetensors file: .* cannot lie at",
    ),
    "no header": (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 99), "not a safetensors file: a header of"),
    "other sizes": (
        lambda f: change(f, patch_size=4),
        r"patch_embedding.weight has shape \(48, 3, 8, 8\), and config.json asks for \(48, 3, 4, 4\)",
    ),
    "other activation": (lambda f: change(f, hidden_act="relu"), r"config\.json: hidden_act is 'relu'; known: gelu"),
    "odd heads": (lambda f: change(f, num_attention_heads=5), r"num_attention_heads is 5, which does not divide 48"),
    "no number": (lambda f: change(f, hidden_size="48"), r"config\.json: hidden_size is '48', not a whole number"),
    "no section": (lambda f: change(f, None), r"config\.json: vision_config is 7"),
    "pointer": (
        lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "fetch it with `git lfs pull`",
    ),
    "no such tensor": (
        lambda f: change(f, num_hidden_layers=4),
        r"the weights have no 'vision_model.encoder.layers.3.layer_norm1.weight'; did you mean",
    ),
}


@pytest.mark.parametrize("how", BREAKS)
def test_the_error_for_a_broken_checkpoint_names_the_cause(clip: Any, tmp_path: Path, how: str) -> None:
    damage, words = BREAKS[how]
    damage(save(clip, tmp_path))
    with pytest.raises(DanqingError, match=words):
        chinese_clip.image_tower(Checkpoint(tmp_path))


def test_a_shard_outside_the_folder_is_refused(clip: Any, tmp_path: Path) -> None:
    clip.save_pretrained(tmp_path / "m", max_shard_size="50KB")
    index = tmp_path / "m" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    shutil.copy(next((tmp_path / "m").glob("*.safetensors")), tmp_path / "x.safetensors")
    content["weight_map"]["logit_scale"] = "../x.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(DanqingError, match="which is not a file beside it"):
        Checkpoint(tmp_path / "m")
