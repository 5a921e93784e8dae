"""Every layout is read, and every fault of one is an error that names the file and the line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from danqing.engine.core.errors import DanqingError
from danqing.engine.evaluate.datasets import Dataset
from danqing.engine.evaluate.evaluation import evaluate
from danqing.engine.evaluate.formats import read_templates
from danqing.engine.evaluate.results import Evaluation
from danqing.engine.evaluate.suites import open_suite, read_digits
from tests.engine.evaluate.conftest import (
    ColourTowers,
    captions,
    chinese_clip,
    clip_benchmark,
    coloured,
    elevater,
    idx,
    npy,
    tar,
)

CLASSES = [{"cls": b"0"}, {"cls": b"1"}, {"cls": b"2"}]
TEXTS = [("红色的花", [1]), ("绿色的草", [2]), ("蓝色的天", [3])]


def only(path: Path) -> Dataset:
    (dataset,) = open_suite(str(path)).datasets
    return dataset


def found(path: Path) -> Evaluation:
    return evaluate(ColourTowers(), open_suite(str(path)))


def metrics(path: Path) -> dict[str, float]:
    (row,) = found(path).rows
    return row.metrics


def test_elevater(tmp_path: Path) -> None:
    dataset = only(elevater(tmp_path / "cifar-10"))
    assert dataset.classes == ("红色", "绿色", "蓝色")
    assert [example.labels for example in dataset.examples()] == [(0,), (1,), (2,), (0,), (1,), (2,)]
    values = metrics(tmp_path / "cifar-10")
    assert values["acc1"] == pytest.approx(5 / 6)
    assert values["mean_per_class_recall"] == pytest.approx((0.5 + 1 + 1) / 3)


def test_clip_benchmark(tmp_path: Path) -> None:
    dataset = only(clip_benchmark(tmp_path / "wds_colours", CLASSES))
    assert dataset.templates == ("a photo of {c}", "{c}")
    assert metrics(tmp_path / "wds_colours")["acc1"] == 1
    several = clip_benchmark(tmp_path / "several", [{"npy": npy(np.eye(3)[k])} for k in range(3)])
    assert metrics(several) == {"mean_average_precision": 1, "mean_average_precision_11_point": 1}
    pairs = clip_benchmark(tmp_path / "pairs", [{"txt": f"{name}\n{name}色".encode()} for name in "红蓝绿"])
    (pairs / "dataset_type.txt").write_text("retrieval\n")
    (pairs / "classnames.txt").unlink()
    assert metrics(pairs)["image_retrieval_recall@1"] == pytest.approx(1 / 3)  # two of the pictures are swapped
    assert found(pairs).rows[0].texts == 6


def test_chinese_clip(tmp_path: Path) -> None:
    muge = chinese_clip(tmp_path / "MUGE", [*TEXTS, ("红色或绿色", [1, 2])], "valid")
    chinese_clip(muge, [("没有答案", [])])  # MUGE's test split has none
    values = metrics(muge)
    assert values["image_retrieval_recall@1"] == values["text_retrieval_recall@1"] == 1
    with pytest.raises(DanqingError, match=r"test_texts\.jsonl: no text has image_ids"):
        open_suite(str(muge / "test_texts.jsonl"))


@pytest.mark.parametrize(
    "line",
    [
        lambda name, n, text: f"{name}.jpg\t{text}",
        lambda name, n, text: f"{name}#{n}\t{text}",
        lambda name, n, text: f"{name}#zhm#{n} {text}",
    ],
)
def test_tables_of_captions(tmp_path: Path, line: Callable[[str, int, str], str]) -> None:
    folder = captions(tmp_path / "flickr", line, "captions.txt")
    (folder / "README.txt").write_text("Pictures and captions.\n")
    assert next(only(folder).examples()).captions == ("红色的图0", "红色的图1")
    assert metrics(folder / "captions.txt")["mean_recall"] == 1


def test_idx(tmp_path: Path) -> None:
    for name, first in (("mnist", "零"), ("fashion-mnist", "T恤")):
        (tmp_path / name).mkdir()
        idx(tmp_path / name / "t10k-images-idx3-ubyte.gz", np.zeros((3, 8, 8)))
        idx(tmp_path / name / "t10k-labels-idx1-ubyte.gz", np.array([0, 9, 1]))
        dataset = only(tmp_path / name)
        assert dataset.classes[0] == first
        assert [example.labels[0] for example in dataset.examples()] == [0, 9, 1]


def test_shards(tmp_path: Path) -> None:
    samples = {f"{n}.{end}": part for n, name in enumerate("红绿蓝") for end, part in (
        ("png", coloured(name)), ("txt", f"{name}色".encode()))}  # fmt: skip
    tar(tmp_path / "pairs" / "00000.tar", samples)
    assert metrics(tmp_path / "pairs")["mean_recall"] == 1
    assert metrics(tmp_path / "pairs" / "00000.tar")["mean_recall"] == 1


def test_folder_of_data_sets(tmp_path: Path) -> None:
    elevater(tmp_path / "dtd")
    elevater(tmp_path / "mnist")
    (tmp_path / "notes").mkdir()
    suite = open_suite(str(tmp_path))
    assert [dataset.name for dataset in suite.datasets] == ["dtd", "mnist"]
    assert suite.skipped == ("notes",)


def test_digits_for_training_are_others() -> None:
    pictures, digits = read_digits()
    training, _ = read_digits(training=True)
    assert (pictures.shape, training.shape) == ((397, 32, 32), (1400, 32, 32))
    assert pictures.max() == 255 and np.bincount(digits).min() > 25


def broken(path: Path, name: str, content: str | bytes | None) -> None:
    """Replaces a file of a data set, or removes it."""
    if content is None:
        (path / name).unlink()
    else:
        (path / name).write_bytes(content.encode() if isinstance(content, str) else content)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("label_cn.txt", None, r"label_cn\.txt: is missing; it names the 3 classes"),
        ("label_cn.txt", "红\n绿\n", r"label_cn\.txt: 2 names for 3 class folders"),
        ("label_cn.txt", "红\n绿\n蓝".encode("gb18030"), r"label_cn\.txt line 1: is not UTF-8"),
    ],
)
def test_faults_of_elevater(tmp_path: Path, name: str, content: str | bytes | None, message: str) -> None:
    broken(elevater(tmp_path / "dtd"), name, content)
    with pytest.raises(DanqingError, match=message):
        found(tmp_path / "dtd")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("test/1.tar", None, r"1\.tar: is missing; test/nshards\.txt says that there are 2"),
        ("test/1.tar", b"x" * 700, r"1\.tar: is damaged"),
        ("test/nshards.txt", "many", r"nshards\.txt line 1: must be the number"),
        ("classnames.txt", "红\n绿\n", r"1\.tar s2: its class is none of the 2"),
        ("zeroshot_classification_templates.txt", "{c}\na photo\n", r"templates\.txt line 2: a template needs"),
    ],
)
def test_faults_of_clip_benchmark(tmp_path: Path, name: str, content: str | bytes | None, message: str) -> None:
    broken(clip_benchmark(tmp_path / "wds", CLASSES), name, content)
    with pytest.raises(DanqingError, match=message):
        found(tmp_path / "wds")


def test_the_number_of_a_folder_is_its_class(tmp_path: Path) -> None:
    folder = tmp_path / "dtd"
    for label in range(11):
        (folder / "test" / str(label)).mkdir(parents=True)
        (folder / "test" / str(label) / "0.png").write_bytes(coloured("红"))
    (folder / "label_cn.txt").write_text("\n".join("零一二三四五六七八九十"), encoding="utf-8")
    assert [example.id for example in only(folder).examples()] == [f"{label}/0.png" for label in range(11)]
    for name in ("17", "07"):
        (folder / "test" / "10").rename(folder / "test" / name)
        with pytest.raises(DanqingError, match="11 folders must be 0 to 10, each once; 10 is missing"):
            only(folder)
        (folder / "test" / name).rename(folder / "test" / "10")


@pytest.mark.parametrize("value", [np.nan, 2, 0.5, -1])
def test_a_label_of_an_array_is_0_or_1(tmp_path: Path, value: float) -> None:
    clip_benchmark(tmp_path / "wds", [{"npy": npy([1, 0, 0])}, {"npy": npy([0, 1, 0])}, {"npy": npy([0, 0, value])}])
    with pytest.raises(DanqingError, match=rf"1\.tar s2: its \.npy must hold 0 or 1 for each class; it holds {value}"):
        found(tmp_path / "wds")


def test_captions_in_a_tar_are_utf_8(tmp_path: Path) -> None:
    texts = ["\ufeff红".encode(), "绿".encode(), "蓝\n蓝色".encode("gb18030")]
    folder = clip_benchmark(tmp_path / "wds", [{"txt": text} for text in texts])
    (folder / "dataset_type.txt").write_text("retrieval\n")
    assert next(only(folder).examples()).captions == ("红",)
    with pytest.raises(DanqingError, match=r"1\.tar s2\.txt line 1: is not UTF-8"):
        found(folder)


@pytest.mark.parametrize("answer", [{}, {"cls": b"one"}, {"npy": npy([1, 0])}, {"npy": b"x"}])
def test_faults_of_a_class(tmp_path: Path, answer: dict[str, bytes]) -> None:
    clip_benchmark(tmp_path / "wds", [{"cls": b"0"}, {"cls": b"1"}, answer])
    with pytest.raises(DanqingError, match=r"1\.tar s2: (needs its class|its class is none)"):
        found(tmp_path / "wds")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("test_imgs.tsv", None, r"test_imgs\.tsv: is missing"),
        ("test_imgs.tsv", "1\tnot base64!\n", r"test_imgs\.tsv line 1: must be an id, a tab"),
        ("test_imgs.tsv", "1\tAAAA\n2\tAAAA\n1\tAAAA\n", r"test_imgs\.tsv line 3: picture 1 is also in .*line 1;"),
        ("test_imgs.tsv", "1\tAAAA\n蓝\tAAAA\n".encode("gb18030"), r"test_imgs\.tsv line 2: the id is not UTF-8"),
        ("test_texts.jsonl", '{"text_id": 0}', r"test_texts\.jsonl line 1: write"),
        ("test_texts.jsonl", '{"text": null, "image_ids": [1]}', r"test_texts\.jsonl line 1: write"),
        ("test_texts.jsonl", '{"text": "红", "image_ids": "12"}', r"test_texts\.jsonl line 1: write"),
        (
            "test_texts.jsonl",
            '{"text_id": 1, "text": "a", "image_ids": [1]}\n' * 2,
            r"test_texts\.jsonl line 2: text_id 1 is also in .*line 1;",
        ),
        (
            "test_texts.jsonl",
            '{"text": "red", "image_ids": [1]}\n{"text": "红", "image_ids": [1]}'.encode("gb18030"),
            r"test_texts\.jsonl line 2: is not UTF-8",
        ),
        (
            "test_texts.jsonl",
            '{"text": "红", "image_ids": [7]}',
            r"test_texts\.jsonl line 1: image_ids 7: no such pict",
        ),
    ],
)
def test_faults_of_chinese_clip(tmp_path: Path, name: str, content: str | bytes | None, message: str) -> None:
    broken(chinese_clip(tmp_path / "muge", TEXTS), name, content)
    with pytest.raises(DanqingError, match=message):
        found(tmp_path / "muge")


def test_faults_of_captions(tmp_path: Path) -> None:
    folder = captions(tmp_path / "dci", lambda name, n, text: f"{name}.jpg\t{text}")
    (folder / "images" / "p1.jpg").unlink()
    with pytest.raises(DanqingError, match=r"captions\.tsv line 3: no picture p1\.jpg; put it into"):
        found(folder)
    broken(folder, "captions.tsv", "p0.jpg\t红\np1.jpg 红\n")
    with pytest.raises(DanqingError, match=r"captions\.tsv line 2: must be a picture's file"):
        found(folder)


def test_faults_of_idx(tmp_path: Path) -> None:
    idx(tmp_path / "train-images-idx3-ubyte.gz", np.zeros((3, 8, 8)))
    labels = tmp_path / "train-labels-idx1-ubyte.gz"
    with pytest.raises(DanqingError, match=r"labels-idx1-ubyte\.gz: is missing"):
        open_suite(str(tmp_path))
    labels.write_bytes(b"\x1f\x8b")
    with pytest.raises(DanqingError, match=r"labels-idx1-ubyte\.gz: is damaged"):
        open_suite(str(tmp_path))
    idx(labels, np.zeros(2))
    with pytest.raises(DanqingError, match="3 pictures and 2 labels"):
        open_suite(str(tmp_path))


def test_nothing_to_evaluate(tmp_path: Path) -> None:
    with pytest.raises(DanqingError, match="no data set of a known layout"):
        open_suite(str(tmp_path))
    with pytest.raises(DanqingError, match="--suite nowhere: no such file or folder; give demo, digits"):
        open_suite("nowhere")
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(DanqingError, match="danqing write"):
        open_suite(str(tmp_path))


def test_templates(tmp_path: Path) -> None:
    file = tmp_path / "templates.txt"
    file.write_text("一张{}的照片\n{c}\n", encoding="utf-8")
    assert read_templates(file) == ("一张{c}的照片", "{c}")
    file.write_text("\n")
    with pytest.raises(DanqingError, match="no template"):
        read_templates(file)
