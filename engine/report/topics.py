"""TOPICS: what the kept captions are about.

a sample of them → the run's own text model → UMAP → HDBSCAN → the words that tell each topic from the others

It is BERTopic's chain (Grootendorst, arXiv 2203.05794), by which the paper describes its data, on words as jieba cuts
them. On a GPU UMAP and HDBSCAN are cuML's.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from danqing.engine.core.batch import Batch
from danqing.engine.core.device import Device, open_device
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import commit, write_json
from danqing.engine.core.progress import Progress
from danqing.engine.decide.funnel import Funnel
from danqing.engine.run.folder import Run
from danqing.engine.stages import Context
from danqing.engine.stages.dictionary import open_dictionary
from danqing.engine.stages.embed import TextEmbedding, Tokens
from danqing.kernels.text.captions import content_words
from danqing.kernels.text.strings import Strings

FEWEST, SEED = 50, 20260122
NEIGHBOURS, DIMENSIONS = 15, 5
"""Of UMAP: captions that shape a caption's surroundings, and numbers that are left of its embedding."""
WORDS, EXAMPLES = 10, 8
AT_ONCE = 10_000
"""Captions that are cut into words at a time."""
EVERY_UID = 1 << 128


@dataclass(frozen=True)
class Topic:
    """`captions`: how many of the sample. `words`: the most telling first. `examples`: uids, the nearest to its centre
    first."""

    captions: int
    words: tuple[str, ...]
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Topics:
    """`sample`: captions looked at, of the `kept` ones. `topics`: the largest first; a caption may be in none."""

    kept: int
    sample: int
    topics: tuple[Topic, ...]

    @property
    def loose(self) -> int:
        """Captions in no topic."""
        return self.sample - sum(topic.captions for topic in self.topics)

    @classmethod
    def of(cls, run: Run) -> Topics | None:
        """Those found among the run's present verdicts, if they were looked for."""
        path = run.folder / "topics.json"
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if not found or found["decided"] != run.manifest["decided"]:
            return None
        topics = (Topic(t["captions"], tuple(t["words"]), tuple(t["examples"])) for t in found["topics"])
        return cls(found["kept"], found["sample"], tuple(topics))


def find_topics(run: Run, context: Context, progress: Progress, sample: int, smallest: int | None = None) -> Topics:
    """Writes topics.parquet (uid, topic, its place on a map) and topics.json for a decided run.

    Args:
        sample: about so many captions are looked at.
        smallest: captions that make a topic (default: a thousandth of the sample, 10 at least).

    Raises:
        DanqingError: no verdicts, no text model, too few captions, or a missing package; says what to do.
    """
    run.check_decided()
    kept, captions = draw(run, sample)
    if len(captions) < FEWEST:
        raise DanqingError(f"{run.folder}: {len(captions)} captions are too few to have topics; {FEWEST} are needed")
    libraries = open_libraries(context.device)
    texts = captions["caption"].to_pylist()
    vectors = embed(texts, context, progress)
    reduced, labels = cluster(vectors, smallest or max(10, len(texts) // 1000), libraries)
    uids = captions["uid"].to_pylist()
    topics = []
    for number, words in enumerate(telling_words(texts, labels)):
        members = np.flatnonzero(labels == number)
        topics.append(Topic(len(members), words, tuple(uids[row] for row in nearest_to_centre(vectors, members))))
    found = Topics(kept, len(texts), tuple(topics))
    x, y = principal_axes(reduced).T
    table = pa.table({"uid": captions["uid"], "topic": pa.array(labels, pa.int32()), "x": x, "y": y})
    with commit(run.folder / "topics.parquet") as file:
        pq.write_table(table, file)
    write_json(run.folder / "topics.json", {**asdict(found), "decided": run.manifest["decided"]})
    return found


def open_libraries(device: Device) -> tuple[Any, Any]:
    """UMAP and HDBSCAN for the device: classes, called alike.

    Raises:
        DanqingError: they are not installed; names the extra.
    """
    try:
        if device.kind == "cuda":
            from cuml.cluster import HDBSCAN
            from cuml.manifold import UMAP
        else:
            from sklearn.cluster import HDBSCAN
            from umap import UMAP
    except ImportError as problem:
        extra = "cuda" if device.kind == "cuda" else "topics"
        raise DanqingError(f"topics need another package: {problem}; pip install 'danqing-engine[{extra}]'") from None
    return UMAP, HDBSCAN


def draw(run: Run, sample: int) -> tuple[int, pa.Table]:
    """The number of kept pairs, and the uid and (clean) caption of about `sample` of them, the same every time.

    They are those with the smallest uids, which are hashes: so nothing need be known of all pairs at once.
    """
    import pyarrow.compute as pc  # only here: the other commands have no use for its memory

    kept = Funnel.read(run.folder / "funnel.json").kept
    below = f"{min(sample * EVERY_UID // max(kept, 1), EVERY_UID - 1):032x}"
    tables = []
    for shard in run.shards:
        names = pq.read_schema(run.scores_path(shard.number)).names
        caption = "text_clean" if "text_clean" in names else "caption"
        table = pq.read_table(run.scores_path(shard.number), columns=["uid", caption])
        table = table.rename_columns(["uid", "caption"])
        keep = pq.read_table(run.verdicts_path(shard.number), columns=["keep"])["keep"]
        tables.append(table.filter(pc.and_(keep, pc.less_equal(table["uid"], below))))
    return kept, pa.concat_tables(tables)


def embed(texts: list[str], context: Context, progress: Progress) -> np.ndarray:
    """The captions' embeddings under the run's text model: float32 (captions, dimension), unit rows."""
    tokens, network = Tokens(context), TextEmbedding(context)
    size = int(network.capacity)
    progress.expect(len(texts), 1)
    parts = []
    for start in range(0, len(texts), size):
        some = texts[start : start + size]
        batch = Batch({"row": np.arange(len(some)), "text_clean": some})
        tokens(batch)
        network(batch)
        parts.append(context.device.down(batch["text_embedding"]).astype(np.float32))
        progress.advance(len(some))
    return np.concatenate(parts)


def cluster(vectors: np.ndarray, smallest: int, libraries: tuple[Any, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of `DIMENSIONS` numbers, float32, and each one's topic, int64: 0 the largest, -1 none.

    Args:
        libraries: see `open_libraries`. cuML, too, is handed host memory: it works on streams of its own.
    """
    UMAP, HDBSCAN = libraries  # noqa: N806
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both tell of defaults to come
        reduced = UMAP(
            n_neighbors=NEIGHBOURS, n_components=DIMENSIONS, min_dist=0.0, metric="cosine", random_state=SEED
        ).fit_transform(vectors)
        found = np.asarray(HDBSCAN(min_cluster_size=smallest).fit_predict(reduced), np.int64)
    numbers, firsts, sizes = np.unique(found[found >= 0], return_index=True, return_counts=True)
    rank = np.full(found.max() + 2, -1)  # the last, where -1 looks, stays -1
    rank[numbers[np.lexsort((firsts, -sizes))]] = np.arange(len(numbers))
    return np.asarray(reduced, np.float32), rank[found]


def telling_words(texts: list[str], labels: np.ndarray) -> list[tuple[str, ...]]:
    """Of every topic, its words by class-based TF-IDF: tf · log(1 + A / f), where f is how often all topics have the
    word and A how many words a topic has on average. Nouns, verbs and adjectives only, and no stop words."""
    words: list[list[str]] = []
    with open_device() as host:
        for start in range(0, len(texts), AT_ONCE):
            words += content_words(host, Strings.of(texts[start : start + AT_ONCE]), open_dictionary())
    topic = np.repeat(labels, [len(some) for some in words])
    numbers: dict[str, int] = {}
    word = np.array([numbers.setdefault(w, len(numbers)) for some in words for w in some], np.int64)
    known = list(numbers)
    cells, counts = np.unique(topic * len(known) + word, return_counts=True)
    of, which = np.divmod(cells, max(len(known), 1))
    average = len(word) / len(np.unique(labels))
    weights = counts * np.log1p(average / np.bincount(which, counts)[which])
    out = []
    for number in range(labels.max() + 1):
        here = np.flatnonzero(of == number)
        best = here[np.argsort(-weights[here], kind="stable")[:WORDS]]
        out.append(tuple(known[place] for place in which[best]))
    return out


def nearest_to_centre(vectors: np.ndarray, members: np.ndarray) -> np.ndarray:
    """The rows among a topic's `members` that are likest to their mean."""
    closeness = vectors[members] @ vectors[members].mean(0)
    return members[np.argsort(-closeness, kind="stable")[:EXAMPLES]]


def principal_axes(vectors: np.ndarray) -> np.ndarray:
    """The two directions in which the vectors differ most: float32 (rows, 2)."""
    centred = vectors - vectors.mean(0)
    _, directions = np.linalg.eigh(centred.T.astype(np.float64) @ centred)
    return (centred @ directions[:, :-3:-1]).astype(np.float32)
