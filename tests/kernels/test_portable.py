"""Kernels for CUDA without a GPU: compiled to machine code, and run in Numba's CUDA simulator."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from cuda.bindings import nvjitlink
from numba.core.errors import TypingError

from danqing.engine.core.progress import Silent
from danqing.engine.core.strings import Strings
from danqing.engine.decide.dedup import faiss_index, groups, lists
from danqing.engine.decide.dedup import fingerprints as fingerprint_groups
from danqing.engine.decide.dedup.captions import SimilarTexts, nearest_texts
from danqing.engine.decide.dedup.features import Features
from danqing.engine.decide.dedup.index import INDEXES, choose_index
from danqing.engine.decide.dedup.neighbours import nearest_rows
from danqing.engine.decide.dedup.sample import NeighbourSample
from danqing.engine.stages.characters import character_classes, cleaning_tables
from danqing.engine.stages.dictionary import open_dictionary
from danqing.engine.stages.language import languages, open_identifier
from danqing.engine.stages.resize import KernelResizer
from danqing.kernels import portable
from danqing.kernels.neighbours import components
from danqing.kernels.neighbours import lists as list_kernels
from danqing.kernels.neighbours import pairs as neighbours
from danqing.kernels.pictures import fingerprints, pixels, resample_batches
from danqing.kernels.pictures.resample_batches import Window
from danqing.kernels.pictures.resampling import CUBIC, LANCZOS, LINEAR
from danqing.kernels.portable import Kernel
from danqing.kernels.text import captions as text
from danqing.kernels.text import cleaning, hashes, hosts, lexicon, urls, utf8, wordpiece
from danqing.kernels.text import languages as language_kernels
from danqing.kernels.text.trie import build
from danqing.trt_models.card import ImageInput
from tests.kernels.pictures.test_resample import by_pillow
from tests.kernels.test_compiled import INTEGERS, TILE
from tests.kernels.text.texts import DIFFICULT_TEXTS, random_texts
from tests.simulated import HOST, run_simulated


def launches() -> Iterator[tuple[Kernel, tuple[Any, ...]]]:
    """Yields every kernel that runs on GPUs (all but `segment_rows`), with arguments of the types of its launches."""
    rows = Strings.of(["一只橘猫", "iPhone 15 Pro"])
    size = len(rows.data) + rows.rows
    words, classes, work = open_dictionary(), character_classes(), text.allocate_scratch(HOST, rows)
    integers = np.empty(size, np.int32)
    table, out = np.empty(2 * size, np.int32), np.empty((rows.rows, len(text.MEASURES)), np.float32)
    yield text.measure_rows, (rows, words, classes, work, table, out)
    data, bits = np.empty(size, np.uint8), np.empty(rows.rows, np.bool_)
    lengths = offsets = np.zeros(rows.rows + 1, np.int64)
    long_rows, tables = rows.of_one_type(), cleaning_tables()
    yield cleaning.normalize_rows, (long_rows, tables, integers, integers, lengths)
    yield cleaning.write_rows, (long_rows, integers, integers, offsets, data)
    yield cleaning.clean_rows, (long_rows, tables, integers, data, lengths, bits, integers)
    yield cleaning.gather_rows, (data, long_rows.offsets, offsets, data)
    found, weights = np.empty(size, np.int64), np.empty(rows.rows, np.float32)
    parts, labels = data[: rows.rows], np.empty((rows.rows, language_kernels.LABELS), np.int16)
    shares, model = np.empty(labels.shape, np.float32), open_identifier().model
    yield language_kernels.choose_parts, (rows, classes, parts, weights, weights)
    yield language_kernels.predict_rows, (rows, parts, model, classes, shares, labels, shares)
    terms = build({"猫": 1})
    yield urls.find_plain, (long_rows, bits)
    yield utf8.find_malformed, (long_rows, bits)
    yield utf8.find_unknown, (long_rows, bits, bits)
    yield lexicon.weigh_rows, (rows, terms, lexicon.marks(), lexicon.Patterns(), integers, found, weights)
    places, lengths, domains = (
        np.zeros(rows.rows, np.int64),
        np.zeros(rows.rows, np.int32),
        hosts.build_domains(DOMAINS),
    )
    yield hosts.find_host_rows, (rows.offsets, rows.data, places, lengths, data)
    yield hosts.find_domain_rows, (places, lengths, data, *domains, np.empty(rows.rows, np.int8))
    bins = np.empty((1, pixels.LEVELS), np.uint32)
    scratch = pixels.TileScratch(np.empty((0, 6, 9), np.uint8), np.empty((0, 9), np.int16), bins[:0])
    sums, histograms = np.zeros((1, 2), np.int64), bins.astype(np.int64)
    yield pixels.sum_tiles, (pixels.Pictures(*[INTEGERS] * 4), pixels.Tiles(*[INTEGERS] * 5), scratch, bins, sums)
    yield pixels.gather_counts, (INTEGERS, bins, histograms)
    yield pixels.compute_statistics, (INTEGERS, sums, histograms, np.empty((1, 3)))
    images, spans, fixed = resample_batches.Images(*[INTEGERS] * 8), np.zeros((2, 2), np.int32), np.zeros(2, np.int32)
    yield resample_batches.resample_lines, (images, spans, fixed, True, np.empty(6, np.uint8))
    features, vectors, reals, counts = (
        neighbours.Rows(INTEGERS, np.zeros(2), INTEGERS),
        np.zeros((2, 2), np.float32),
        np.zeros((2, 2)),
        np.zeros((2, 2), np.int64),
    )
    yield components.find_roots, (INTEGERS, INTEGERS)
    yield components.join_edges, (INTEGERS, INTEGERS, INTEGERS)
    yield neighbours.fill_scales, (features,)
    yield neighbours.unpack, (features, vectors)
    yield neighbours.join_near, (TILE, 0.9, 0.9, INTEGERS, INTEGERS, features, INTEGERS)
    yield neighbours.join_found, (vectors, counts, 0.9, 0.9, INTEGERS, features, INTEGERS)
    asked = (vectors, counts, 0.9, 0.9, INTEGERS, features, features, features.scale, INTEGERS)
    yield neighbours.choose_nearest, asked
    yield neighbours.find_nearest, (TILE, 0.9, INTEGERS, INTEGERS, 0.9, features, features, features.scale, INTEGERS)
    yield neighbours.list_near, (TILE, 0.9, INTEGERS, INTEGERS, 0.9, features, INTEGERS, np.zeros((2, 2), np.int64))
    yield neighbours.count_joined, (INTEGERS, INTEGERS, np.zeros((2, 2), np.int64), INTEGERS, INTEGERS)
    yield list_kernels.rank_lists, (vectors, vectors, np.zeros((2, 2), np.uint16))
    yield list_kernels.average_lists, (INTEGERS, INTEGERS, INTEGERS, vectors, vectors)
    yield neighbours.sum_members, (INTEGERS, INTEGERS, INTEGERS, features, reals)
    yield neighbours.find_nearest_to_sum, (INTEGERS, INTEGERS, INTEGERS, features, reals, INTEGERS)
    yield neighbours.measure_distances, (INTEGERS, INTEGERS, features, features.scale)
    pieces, tokens = (
        wordpiece.build_tables(["[CLS]", "[SEP]", "[PAD]", "[UNK]", "猫"], range(4)),
        np.empty((2, 8), np.int32),
    )
    yield wordpiece.tokenize, (rows.offsets, rows.data, *pieces, tokens, tokens, tokens[0], tokens[0])
    keys, shingles = INTEGERS.astype(np.uint64), hashes.Shingles(INTEGERS, integers, integers.astype(np.uint32))
    yield hashes.write_hashes, (rows, INTEGERS, data)
    yield hashes.count_shingles, (rows, integers)
    yield hashes.write_shingles, (rows, shingles)
    yield hashes.write_band_keys, (shingles, 1, keys)
    yield hashes.join_similar, (shingles, keys, INTEGERS, 0.2, INTEGERS)
    yield hashes.find_most_similar, (shingles, keys, INTEGERS, INTEGERS, 1, 0.2, np.zeros(2), INTEGERS)
    yield hashes.measure_jaccard, (INTEGERS, INTEGERS, shingles, np.zeros(2))
    yield fingerprints.join_in_buckets, (INTEGERS.astype(np.uint64), INTEGERS, INTEGERS.astype(np.uint64), 4, INTEGERS)


def test_every_kernel_compiles_for_gpus_without_spills() -> None:
    """PTX is made once, for the oldest GPUs, and assembled for others too; `test_compiled` makes PTX for both."""
    for kernel, arguments in launches():
        text = kernel.ptx((8, 0), *arguments)
        assert ".target sm_80" in text and kernel.name in text
        for capability in ((8, 0), (9, 0)):
            code, log = assemble(text, capability)
            assert code.startswith(b"\x7fELF") and " 0 stack" in log and " 0 bytes lmem" in log  # no register spills


def assemble(ptx: str, capability: tuple[int, int]) -> tuple[bytes, str]:
    """Assembles PTX; returns the machine code and the assembler's log."""
    handle = nvjitlink.create(2, [f"-arch=sm_{capability[0]}{capability[1]}", "-verbose"])
    try:
        nvjitlink.add_data(handle, nvjitlink.InputType.PTX, ptx.encode(), len(ptx.encode()), "kernel")
        nvjitlink.complete(handle)
        code = bytearray(nvjitlink.get_linked_cubin_size(handle))
        log = bytearray(nvjitlink.get_info_log_size(handle))
        nvjitlink.get_linked_cubin(handle, code)
        nvjitlink.get_info_log(handle, log)
        return bytes(code), log.decode()
    finally:
        nvjitlink.destroy(handle)


DOMAINS = pa.array(["127.0.0.1", "bad.example"], pa.large_string())
URLS = [
    "http://a.bad.example/", "http:\\\\BAD.example.\\", "//u@%62ad.example:80", "http://good.example", "http://例子.中国",
    "http://0x7f.1/", None, "",
]  # fmt: skip

SIMULATED = """
import sys
import numpy as np
from danqing.engine.core.device import open_device
from danqing.engine.stages.characters import character_classes, cleaning_tables
from danqing.engine.stages.dictionary import open_dictionary
from danqing.engine.stages.resize import BatchResizer
from danqing.kernels.text import captions as text
from danqing.kernels.text.lexicon import Patterns, weigh
from danqing.kernels.pictures.pixels import pixel_statistics
from danqing.engine.core.strings import Strings
from danqing.engine.core.text_column import TextColumn
from danqing.engine.stages.source import find_blocked
from danqing.kernels.text.hosts import build_domains
from danqing.kernels.text.trie import build
from danqing.kernels.text.hashes import hash_texts
from tests.kernels.test_portable import (
    CAPTIONS, DOMAINS, INPUTS, PICTURES, URLS,
    clean_all, find_by_faiss, find_groups, find_similar, identify_all, resize_all, tokenize_all,
)
from tests.simulated import simulate_gpu
from tests import faiss_gpu

simulate_gpu()
sys.modules["faiss"] = faiss_gpu
with open_device("cuda") as device:
    rows = Strings.of(CAPTIONS).on(device)
    np.save("measures.npy", device.down(text.measure(device, rows, open_dictionary(), character_classes())))
    np.save("cleaned.npy", clean_all(device))
    np.save("languages.npy", identify_all(device))
    np.save("tokens.npy", tokenize_all(device))
    np.save("weights.npy", weigh(device, rows, build({"的": 100}), Patterns(1, 1, 1, 1)))
    np.save("blocked.npy", find_blocked(device, TextColumn.of(URLS), build_domains(DOMAINS)))
    np.save("statistics.npy", device.down(pixel_statistics(device, list(map(device.up, PICTURES)))))
    assert pixel_statistics(device, []).shape == (0, 3)
    np.save("groups.npy", find_groups(device))
    np.save("faiss.npy", find_by_faiss(device))
    np.save("hashes.npy", np.array(hash_texts(device, rows).on_host(device).arrow().to_pylist()))
    np.save("similar.npy", find_similar(device))
    np.save("resized.npy", resize_all(device, list(map(device.up, PICTURES))))
    for number, batch in enumerate(BatchResizer(INPUTS, device)(list(map(device.up, PICTURES[3:])))):
        np.save(f"input{number}.npy", device.down(batch))
"""


def clean_all(device: Any) -> np.ndarray:
    """Normalizes and cleans `CAPTIONS`; returns both texts, and what `Cleaned` has beside the text, by row."""
    rows = Strings.of(CAPTIONS).on(device)
    cleaned = cleaning.clean(device, rows, cleaning_tables())
    texts = [
        text.on_host(device).arrow().to_pylist()
        for text in (cleaning.normalize(device, rows, cleaning_tables()), cleaned.text)
    ]
    return np.array([*texts, device.down(cleaned.changed), device.down(cleaned.japanese)])


def identify_all(device: Any) -> np.ndarray:
    """Identifies the language of `CAPTIONS`; returns code and confidence by row."""
    rows = Strings.of(CAPTIONS).on(device)
    japanese = device.up(np.arange(rows.rows, dtype=np.int32) % 5 - 3)
    return np.array([device.down(found) for found in languages(device, rows, japanese)])


def tokenize_all(device: Any) -> np.ndarray:
    """Returns the WordPiece ids of each of `CAPTIONS`, and the numbers of tokens and of [UNK]."""
    pieces = ["[CLS]", "[SEP]", "[PAD]", "[UNK]", *sorted(set("".join(CAPTIONS).lower()))[::2]]
    tables = portable.resident(device, wordpiece.build_tables(pieces, range(4)))
    found = wordpiece.token_ids(device, tables, Strings.of(CAPTIONS).on(device), 12)
    return np.column_stack(list(map(device.down, found)))


def find_groups(device: Any) -> np.ndarray:
    """Runs every near-duplicate search on a few vectors; returns groups, representatives and distances by row."""
    vectors = np.random.default_rng(3).normal(size=(8, 5))[np.arange(24) % 8] + 0.02 * np.arange(24)[:, None]
    features = Features(device, [vectors.astype(np.float16)])
    near = groups.near_groups(features, 0.01, groups.nearest_to_centroid(features), 0.02)
    hashes = np.uint64(2) ** np.arange(24, dtype=np.uint64) // np.uint64(7)
    others = nearest_rows(features.take(np.arange(12)), features.take(np.arange(12, 24)), 0.1)
    hash_groups = fingerprint_groups.group_hashes(device, hashes, 2)
    inverted, likely = lists.InvertedFile(features, 0.01, 3), device.up(np.arange(24))
    for rank in range(2):
        inverted.join(rank, likely, Silent())
    found = NeighbourSample(features, 0.01).recall(likely)
    assert 0 < found.joined <= found.pairs
    nearest = np.concatenate([others[0], np.nan_to_num(others[1], nan=-1)])
    by_row = np.full((3, 24), -1.0)
    by_row[:, near.members] = near[1:]
    return np.stack([*by_row, hash_groups, nearest, device.down(likely), np.full(24, found.share)])


def find_by_faiss(device: Any) -> np.ndarray:
    """Searches a few vectors by FAISS, exactly and by lists; returns groups, nearest rows and distances."""
    vectors = np.random.default_rng(3).normal(size=(8, 5))[np.arange(24) % 8] + 0.02 * np.arange(24)[:, None]
    features = Features(device, [vectors.astype(np.float16)])
    index = choose_index("faiss", device.kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faiss_index, "NEAREST", (2, 3))
        patch.setattr(faiss_index, "MIN_ROWS_FOR_LISTS", 0)
        group = groups.near_components(features, 0.01, earlier=np.arange(3), index=index)
        likely, measured = groups.likely_components(features, 0.01, 0.9, index=index)
        halves = features.take(np.arange(12)), features.take(np.arange(12, 24))
        nearest, distance = INDEXES[index]().nearest(*halves, 0.1)
        across = device.up(np.arange(24))
        INDEXES[index]().join_across(features, 0.01, across, 10)
    assert measured is not None and measured.share >= 0.9 and len(set(group.tolist())) < 20
    assert (group[likely] == group).all()
    across = device.down(components.find_components(device, across))
    assert (across != np.arange(24)).any() and (group[across] == group).all()
    return np.stack([group, across, np.concatenate([nearest, np.nan_to_num(distance, nan=-1)])])


def find_similar(device: Any) -> np.ndarray:
    """Groups a few texts and finds the nearest of the first ten; returns groups and distances of each row."""
    texts = [f"一只橘猫坐在窗台上看着第{n % 7}只小鸟{'飞' * (n % 3)}" for n in range(20)] + ["", "猫", "猫🐈", ""]
    encoded = pa.array(texts, pa.large_string()).dictionary_encode()
    values = encoded.indices.to_numpy()
    found = SimilarTexts(device, values, encoded.dictionary, 0.2)
    nearest, distance = nearest_texts(device, values, encoded.dictionary, 10, 0.3)
    assert 3 < len(set(found.group.tolist())) < 20 and 0 < (nearest >= 0).sum() < 14
    distances = found.distances(np.arange(len(found.group)), found.group)
    return np.concatenate([found.group, distances, nearest, np.minimum(distance, 2)])


def resize_all(device: Any, pictures: list[Any]) -> np.ndarray:
    """Resizes each picture and two views of pictures with each filter; returns all pixels, flat."""
    pictures = [*pictures, pictures[4][:, 3:60], pictures[5][::-2]]
    windows = [Window(rows, columns, 0, 0, rows, columns) for rows, columns in SIZES]
    parts = [resample_batches.resample_pictures(device, pictures, windows, f) for f in (CUBIC, LINEAR, LANCZOS)]
    return np.concatenate(list(map(device.down, parts)))


def test_kernels_run_without_numbas_runtime(device: Any) -> None:
    """Numba's private option `_nrt=False` leaves out reference counts, and with them all functions that allocate."""

    @portable.kernel
    def allocate(first, last, step, out):
        for row in range(first, last, step):
            out[row] = np.zeros(1)[0]

    with pytest.raises(TypingError, match=r"No implementation of function .*zeros"):
        allocate.launch(device, 1, np.empty(1))


def test_tables_are_copied_once_and_used_after_the_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    resident: dict[Any, Any] = {}
    monkeypatch.setattr(portable, "_resident", resident)
    copied: list[Any] = []

    def wait() -> None:
        time.sleep(0.05)
        assert not resident

    device: Any = SimpleNamespace(kind="cuda", number=0, up=lambda array: copied.append(array) or [array], wait=wait)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: portable.resident(device, INTEGERS), range(4)))
    assert len(copied) == 1 and all(copy is found[0] for copy in found)


CAPTIONS = [text for text in DIFFICULT_TEXTS if len(text) < 60] + random_texts(20)
CAPTIONS += ["<p class='a'>劝君&nbsp;&#27785;&#x9189;</P><b>乾坤</b>", "<script>1</script>駅&notit;&amp;lt;i&amp;gt;"]
PICTURES = [
    np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for seed, shape in enumerate([(1, 1), (1, 9), (9, 1), (2, 2), (3, 257), (67, 5)])
]
INPUTS = [ImageInput(4, 5, interpolation="lanczos"), ImageInput(4, 6, "stretch", "linear", 75)]
SIZES = [(3, 2), (4, 1), (1, 5), (2, 2), (2, 20), (11, 7), (5, 19), (40, 4)]
"""Rows and columns to which the pictures and two views of them are resized."""


def test_results_in_the_cuda_simulator_equal_the_cpus(tmp_path: Any, device: Any) -> None:
    from danqing.kernels.text.lexicon import Patterns, weigh

    run_simulated("-c", SIMULATED, folder=tmp_path)
    rows = Strings.of(CAPTIONS)
    measures = text.measure(device, rows, open_dictionary(), character_classes())
    np.testing.assert_allclose(np.load(tmp_path / "measures.npy"), measures, rtol=1e-6)
    assert np.load(tmp_path / "cleaned.npy").tolist() == clean_all(device).tolist()
    np.testing.assert_allclose(np.load(tmp_path / "languages.npy"), identify_all(device), atol=1e-6)
    assert np.load(tmp_path / "tokens.npy").tolist() == tokenize_all(device).tolist()
    weights = weigh(device, rows, build({"的": 100}), Patterns(1, 1, 1, 1))
    assert (np.load(tmp_path / "weights.npy") == weights).all()
    assert np.load(tmp_path / "blocked.npy").tolist() == [1, 1, 1, 0, 0, 1, 0, 0]
    np.testing.assert_allclose(np.load(tmp_path / "groups.npy"), find_groups(device), atol=1e-9)
    np.testing.assert_allclose(np.load(tmp_path / "faiss.npy"), find_by_faiss(device), atol=1e-9)
    assert np.load(tmp_path / "hashes.npy").tolist() == hashes.hash_texts(device, rows).arrow().to_pylist()
    assert (np.load(tmp_path / "similar.npy") == find_similar(device)).all()
    host_copies = [np.ascontiguousarray(picture) for picture in (PICTURES[4][:, 3:60], PICTURES[5][::-2])]
    expected = [
        by_pillow(picture, *size, interpolation).ravel()
        for interpolation in (CUBIC, LINEAR, LANCZOS)
        for picture, size in zip([*PICTURES, *host_copies], SIZES, strict=True)
    ]
    assert (np.load(tmp_path / "resized.npy") == np.concatenate(expected)).all()
    for number, batch in enumerate(KernelResizer(INPUTS, device)(PICTURES[3:])):
        assert (np.load(tmp_path / f"input{number}.npy") == batch).all()
    assert (np.load(tmp_path / "statistics.npy") == pixels.pixel_statistics(device, PICTURES)).all()
