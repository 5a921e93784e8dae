"""Model cards, the store, and sessions of stored models."""

from __future__ import annotations

import errno
import hashlib
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from danqing.engine.core.device import Device
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import exchange
from danqing.engine.core.text_column import TextColumn
from danqing.trt_models.card import Card, card_names, load_card
from danqing.trt_models.model_set import ModelSet
from danqing.trt_models.run.session import CPU_BATCH_ROWS, open_session
from danqing.trt_models.store import model_folder, model_hash, onnx_path, store_model
from tests.conftest import started


def write_card(folder: Path, **changes: str) -> str:
    """Writes a model that sums each row, and its card with some keys replaced or added; returns the card's path."""
    rows = helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["n", 3])
    total = helper.make_tensor_value_info("total", TensorProto.FLOAT, ["n"])
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    node = helper.make_node("ReduceSum", ["rows", "axes"], ["total"], keepdims=0)
    model = helper.make_model(
        helper.make_graph([node], "sum", [rows], [total], [axes]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=10,
    )
    onnx.save(model, str(folder / "sum.onnx"))
    digest = hashlib.sha256((folder / "sum.onnx").read_bytes()).hexdigest()
    keys = {"name": "sum", "task": "image_embedding", "licence": "MIT", "onnx": "sum.onnx", "sha256": digest} | changes
    path = folder / "sum.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in keys.items()))
    return str(path)


def test_every_built_in_card_can_be_read() -> None:
    assert {load_card(name).name for name in card_names()} == set(card_names())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"outptus": "{}"}, "unknown key 'outptus'; did you mean 'outputs'"),
        ({"task": "image_embeding"}, "did you mean 'image_embedding'"),
        ({"build": "open_nsfw"}, "exactly one of"),
        ({"sha256": ""}, "needs the file's 'sha256'"),
        ({"patterns": "{phnoe: 1}"}, "patterns: unknown key 'phnoe'; did you mean 'phone'"),
        ({"image_input": "{size: 224}"}, "image_input: .*'resize'"),
        ({"name": "../sum"}, r"name '\.\./sum': use letters"),
        ({"name": "a/b"}, "name 'a/b': use letters"),
        ({"name": ".."}, r"name '\.\.': use letters"),
        ({"name": ""}, "name None: use letters"),
        ({"weights": "[a]"}, "'weights' is a mapping"),
        ({"lexicon": "a"}, "lexicon: must be a list"),
        ({"outputs": "&a {x: *a}"}, r"sum\.yaml:\d+: not valid YAML: aliases"),
        ({"outputs": "[" * 3000}, "not valid YAML"),
        ({"title": "2024-99-99"}, "not valid YAML"),
        ({"title": "x" * 70_000}, "at most 65,536 bytes"),
    ],
)
def test_the_error_for_a_wrong_card_names_the_file(tmp_path: Path, changes: dict[str, str], words: str) -> None:
    with pytest.raises(DanqingError, match=words) as refused:
        load_card(write_card(tmp_path, **changes))
    assert "sum.yaml" in str(refused.value)


def test_the_error_for_an_unknown_model_suggests_a_name() -> None:
    with pytest.raises(DanqingError, match="did you mean 'open-nsfw'"):
        load_card("open_nsfw")


def test_weights_in_other_files_are_hashed(tmp_path: Path) -> None:
    matrix = np.eye(64, dtype=np.float32)
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("MatMul", ["rows", "m"], ["out"])], "g",
            [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["n", 64])],
            [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 64])],
            [onnx.numpy_helper.from_array(matrix, "m")],
        )
    )  # fmt: skip
    path = Path(write_card(tmp_path))
    onnx.save(model, str(tmp_path / "sum.onnx"), save_as_external_data=True, location="w.data", size_threshold=0)

    def digest(name: str) -> str:
        return hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()

    def card(**changes: str) -> Card:
        keys = {"name": "sum", "task": "image_embedding", "licence": "MIT", "onnx": "sum.onnx"} | changes
        path.write_text("".join(f"{key}: {value}\n" for key, value in keys.items()))
        load_card.cache_clear()
        return load_card(str(path))

    with pytest.raises(
        DanqingError, match=r"keeps tensors in w\.data; add its SHA-256 .*weights: \{w\.data: ([0-9a-f]+)"
    ):
        onnx_path(card(sha256=digest("sum.onnx")))
    listed = card(sha256=digest("sum.onnx"), weights=f"{{w.data: {digest('w.data')}}}")
    assert onnx_path(listed) == tmp_path / "sum.onnx"
    (tmp_path / "w.data").write_bytes((matrix * 2).tobytes())
    with pytest.raises(DanqingError, match=r"w\.data: SHA-256 is .*the card sum says .*; refusing to load it"):
        onnx_path(listed)
    swapped = card(sha256=digest("sum.onnx"), weights=f"{{w.data: {digest('w.data')}}}")
    assert swapped.hash != listed.hash and model_hash(swapped) not in (digest("sum.onnx"), digest("w.data"))
    for location in ("../w.data", str(tmp_path / "w.data")):
        model.graph.initializer[0].external_data[0].value = location
        (tmp_path / "sum.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(DanqingError, match="outside its folder; refusing to load it"):
            onnx_path(card(sha256=digest("sum.onnx")))


def test_a_runs_models_name_the_lists_beside_a_card(tmp_path: Path) -> None:
    path = tmp_path / "words.yaml"
    path.write_text("{name: words, task: text_classifier, licence: MIT, lexicon: [{file: w.txt, full: 1}]}")
    hashes = []
    for word in ("猫", "狗"):
        (tmp_path / "w.txt").write_text(word)
        hashes.append(ModelSet({"text_safety": str(path)}).hashes()["text_safety"])
    assert hashes[0]["card"] == hashes[1]["card"] and hashes[0]["files"] != hashes[1]["files"]
    assert "files" not in ModelSet({"text_safety": "jionlp-pornography"}).hashes()["text_safety"]


def test_a_changed_file_is_not_loaded(tmp_path: Path) -> None:
    card = load_card(write_card(tmp_path))
    assert onnx_path(card) == tmp_path / "sum.onnx"
    with (tmp_path / "sum.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(DanqingError, match=r"sum\.onnx: SHA-256 is .*the card sum says"):
        onnx_path(card)


OPEN = """
import sys
from danqing.trt_models.card import load_card
from danqing.trt_models.store import onnx_path
print("ready", flush=True)
sys.stdin.readline()
print(onnx_path(load_card("open-nsfw")))
"""


def test_processes_share_a_fresh_cache(store: Path) -> None:
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with ExitStack() as stack:
        processes = [stack.enter_context(started([sys.executable, "-c", OPEN], **pipes)) for _ in range(3)]
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        answers = []
        for process in processes:  # starts all before it waits for one
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in processes:
            found, error = process.communicate(timeout=240)
            assert process.returncode == 0, error
            answers.append(found)
    assert len(set(answers)) == 1 and Path(answers[0].strip()).is_file()
    assert [path.name for path in (store / "models").iterdir()] == [Path(answers[0].strip()).parent.name]


def test_a_model_that_another_process_has_just_built_is_used(store: Path) -> None:
    card = load_card("open-nsfw")
    folder = model_folder(card)

    def save(content: bytes) -> Callable[[Path], object]:
        return lambda path: path.write_bytes(content)

    def save_late(path: Path) -> None:
        store_model(card, folder, save(b"first"), {})
        path.write_bytes(b"second")

    store_model(card, folder, save_late, {})
    assert (folder / "model.onnx").read_bytes() == b"first" and list(folder.parent.iterdir()) == [folder]
    assert folder.stat().st_mode == folder.parent.stat().st_mode  # readable by others if the umask permits
    (folder / "model.json").unlink()  # an incomplete folder is replaced
    store_model(card, folder, save(b"third"), {})
    assert (folder / "model.onnx").read_bytes() == b"third"
    exported = replace(card, build=None, export="x")
    store_model(exported, folder, save(b"another checkpoint"), {})
    assert (folder / "model.onnx").read_bytes() == b"another checkpoint" and list(folder.parent.iterdir()) == [folder]


def test_an_export_replaces_a_model_in_use_in_one_step(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = replace(load_card("open-nsfw"), build=None, export="x")
    folder = model_folder(card)

    def export(content: bytes) -> None:
        store_model(card, folder, lambda path: path.write_bytes(content), {})
        assert (folder / "model.onnx").read_bytes() == content and list(folder.parent.iterdir()) == [folder]

    export(b"first")
    inode = folder.stat().st_ino
    export(b"first")
    assert folder.stat().st_ino == inode  # equal files are kept
    moved: list[Path] = []
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda self, target: moved.append(self) or rename(self, target))
    with (folder / "model.onnx").open("rb") as in_use:
        export(b"second")
        assert in_use.read() == b"first"
    (one, two) = (store / "one", store / "two")
    one.mkdir(), two.mkdir()
    try:
        exchange(one, two)
    except OSError:
        pytest.skip("this file system cannot exchange two folders")
    assert folder not in moved  # there was a model all the time

    def refuse(made: Path, folder: Path) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr("danqing.trt_models.store.exchange", refuse)
    export(b"third")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"files": 3}'])
def test_the_error_for_a_damaged_model_json_says_the_remedy(store: Path, content: str) -> None:
    card = load_card("open-nsfw")
    store_model(card, model_folder(card), lambda path: path.write_bytes(b"x"), {})
    note = model_folder(card) / "model.json"
    note.write_text(content)
    with pytest.raises(DanqingError, match=f"^{note}: .*remove the folder {note.parent} and run again"):
        onnx_path(card)


def test_the_error_for_an_unwritable_cache_says_the_remedy(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = f"^{store}: the cache cannot be written; .*set DANQING_CACHE to a folder that can"

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    card = load_card("open-nsfw")
    with pytest.raises(DanqingError, match=f"{error} .*No space left"):
        store_model(card, model_folder(card), full, {})
    assert not list((store / "models").iterdir())
    monkeypatch.setenv("DANQING_CACHE", str(store / "file"))
    (store / "file").write_text("")
    for path in (store / "file", store / "file" / "below"):
        monkeypatch.setenv("DANQING_CACHE", str(path))
        with pytest.raises(DanqingError, match=f"^{path}: the cache cannot be written"):
            onnx_path(card)


def test_any_onnx_text_model_can_be_a_classifier(tmp_path: Path, device: Device) -> None:
    tokens = helper.make_tensor_value_info("tokens", TensorProto.INT32, ["n", "length"])
    probability = helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["n"])
    constants = [
        helper.make_tensor("bad", TensorProto.INT32, [], [5]),
        helper.make_tensor("axes", TensorProto.INT64, [1], [1]),
    ]
    nodes = [
        helper.make_node("Equal", ["tokens", "bad"], ["found"]),
        helper.make_node("Cast", ["found"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["numbers", "axes"], ["probability"], keepdims=0),
    ]
    graph = helper.make_graph(nodes, "bad words", [tokens], [probability], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, str(tmp_path / "bad.onnx"))
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n好\n坏\n图\n")
    digest = hashlib.sha256((tmp_path / "bad.onnx").read_bytes()).hexdigest()
    (tmp_path / "bad.yaml").write_text(
        f"name: bad\ntask: text_classifier\nlicence: MIT\nonnx: bad.onnx\nsha256: {digest}\n"
        "token_input: {kind: wordpiece, file: vocab.txt, max_length: 52}\n"
    )
    classifier = ModelSet({"text_safety": str(tmp_path / "bad.yaml")}).text_classifier("text_safety", device)
    assert classifier(TextColumn.of(["好图", "坏图", "", "好图坏"])).tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("rows", [1, CPU_BATCH_ROWS - 1, CPU_BATCH_ROWS, 2 * CPU_BATCH_ROWS + 3])
def test_a_session_takes_any_number_of_rows(tmp_path: Path, device: Device, rows: int) -> None:
    card = load_card(write_card(tmp_path))
    values = np.random.default_rng(rows).random((rows, 3), np.float32)
    total = open_session(onnx_path(card), device).run(rows=values)["total"]
    np.testing.assert_allclose(total, values.sum(1), rtol=1e-6)
