"""TOPICS: finds the topics of the kept captions.

sample of the captions → the run's text model → UMAP → HDBSCAN → the most specific words of each topic

This is BERTopic (Grootendorst, arXiv 2203.05794), which the paper uses to describe its data, with words from jieba. On
a GPU, UMAP and HDBSCAN are cuML's.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from danqing.engine.core.batch import Batch
from danqing.engine.core.device import Device
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import commit, write_json
from danqing.engine.core.progress import Progress
from danqing.engine.core.text_column import TextColumn
from danqing.engine.decide.funnel import Funnel
from danqing.engine.report.rows import hash_bound, hash_uids
from danqing.engine.report.words import words_of
from danqing.engine.run.folder import Run
from danqing.engine.run.tables import scores_schema, scores_table, verdicts_table
from danqing.engine.stages import Context
from danqing.engine.stages.embed import TextEmbedding, Tokens
from danqing.engine.write.output import InputVerdicts, read_verdicts, verdicts_digest
from danqing.engine.write.products import current_topics

MIN_CAPTIONS = 50
SEED = 20260122
UMAP_NEIGHBOURS, UMAP_DIMENSIONS = 15, 5
"""UMAP's n_neighbors and n_components."""
WORDS_PER_TOPIC, EXAMPLES_PER_TOPIC = 10, 8


@dataclass(frozen=True)
class Topic:
    """One topic.

    Attributes:
        captions: number of captions of the sample.
        words: the words with the highest weight, in descending order.
        examples: uids of the captions nearest to the centre, the nearest first.
    """

    captions: int
    words: tuple[str, ...]
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Topics:
    """The topics of a run.

    Attributes:
        kept: number of kept pairs.
        sample: number of captions that were clustered.
        topics: the largest first.
    """

    kept: int
    sample: int
    topics: tuple[Topic, ...]

    @property
    def loose(self) -> int:
        """Number of captions in no topic."""
        return self.sample - sum(topic.captions for topic in self.topics)

    @classmethod
    def of(cls, run: Run, verdicts: list[InputVerdicts]) -> Topics | None:
        """Reads topics.json; None if there is none, or it belongs to other verdicts than these of the run."""
        found = current_topics(run, verdicts)
        if found is None:
            return None
        topics = (Topic(t["captions"], tuple(t["words"]), tuple(t["examples"])) for t in found["topics"])
        return cls(found["kept"], found["sample"], tuple(topics))


def find_topics(run: Run, context: Context, progress: Progress, sample: int, smallest: int | None = None) -> Topics:
    """Writes topics.parquet (uid, topic, x, y), atlas.parquet and topics.json for a decided run.

    Args:
        run: the run.
        context: opens the run's text model.
        progress: receives the number of captions embedded.
        sample: approximate number of captions to cluster.
        smallest: minimum number of captions in a topic; None: a thousandth of the sample, at least 10.

    Returns:
        The topics, as written to topics.json.

    Raises:
        DanqingError: the run has no verdicts, no text model or too few captions, or a package is missing.
    """
    run.check_decided()
    kept, captions = draw_sample(run, sample)
    if len(captions) < MIN_CAPTIONS:
        raise DanqingError(f"{run.folder}: {len(captions)} captions are too few for topics; {MIN_CAPTIONS} are needed")
    libraries = open_libraries(context.device)
    texts = captions["caption"].to_pylist()
    vectors = embed(texts, context, progress)
    reduced, labels = cluster(vectors, smallest or max(10, len(texts) // 1000), libraries)
    uids = captions["uid"].to_pylist()
    topics = []
    for number, words in enumerate(topic_words(texts, labels)):
        members = np.flatnonzero(labels == number)
        topics.append(Topic(len(members), words, tuple(uids[row] for row in nearest_to_centre(vectors, members))))
    found = Topics(kept, len(texts), tuple(topics))
    x, y = principal_axes(reduced).T
    table = pa.table({"uid": captions["uid"], "topic": pa.array(labels, pa.int32()), "x": x, "y": y})
    for name, content in (("topics", table), ("atlas", atlas_of(table, captions, found))):
        with commit(run.folder / f"{name}.parquet") as file:
            pq.write_table(content, file)
    write_json(run.folder / "topics.json", {**asdict(found), "verdicts": verdicts_digest(read_verdicts(run))})
    return found


def atlas_of(table: pa.Table, captions: pa.Table, topics: Topics) -> pa.Table:
    """The captions with their places and topics, for embedding-atlas (https://apple.github.io/embedding-atlas).

    Args:
        table: the content of topics.parquet.
        captions: `uid` and `caption` of the same rows.
        topics: gives the names.

    Returns:
        `uid`, `caption`, `x`, `y`, and `topic`: its number and first words, or `none`.
    """
    names = [f"{number}: {' '.join(topic.words[:4])}" for number, topic in enumerate(topics.topics)]
    named = pa.array([*names, "none"], pa.string()).take(pa.array(np.asarray(table["topic"]) % (len(names) + 1)))
    return (
        captions.select(["uid", "caption"])
        .append_column("x", table["x"])
        .append_column("y", table["y"])
        .append_column("topic", named)
    )


def open_libraries(device: Device) -> tuple[Any, Any]:
    """Imports UMAP and HDBSCAN for the device.

    Returns:
        Two classes, which take the same arguments on every device.

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


def draw_sample(run: Run, sample: int) -> tuple[int, pa.Table]:
    """Draws a sample of the kept pairs, the same in every call.

    The pairs whose uid has a hash below a bound are a random sample, and no shard depends on the others.

    Args:
        run: a decided run.
        sample: approximate number of pairs.

    Returns:
        The number of kept pairs, and the columns `uid` and `caption` (cleaned, if the run has that) of about `sample`
        of them.
    """
    kept = Funnel.of(run).kept
    bound = hash_bound(sample, kept)
    tables = []
    for shard in run.shards:
        names = scores_schema(run, shard.number).names
        caption = "text_clean" if "text_clean" in names else "caption"
        table = scores_table(run, shard.number, ["uid", caption])
        table = table.rename_columns(["uid", "caption"])
        keep = verdicts_table(run, shard.number, ["keep"])["keep"].to_numpy()
        tables.append(table.filter(pa.array(keep & (hash_uids(table["uid"]) <= bound))))
    return kept, pa.concat_tables(tables)


def embed(texts: list[str], context: Context, progress: Progress) -> np.ndarray:
    """Embeds captions with the run's text model.

    Args:
        texts: the captions.
        context: opens the model.
        progress: receives the number of captions embedded.

    Returns:
        float32 (captions, dimension), unit vectors, on the host.
    """
    context = replace(context, wanted=frozenset(TextEmbedding.needs))
    tokens, network = Tokens(context), TextEmbedding(context)
    size = int(network.capacity)
    progress.expect(len(texts), 1)
    parts = []
    for start in range(0, len(texts), size):
        part = texts[start : start + size]
        batch = Batch({"row": np.arange(len(part)), "text_clean": TextColumn.of(part)})
        tokens(batch)
        network(batch)
        parts.append(context.device.down(batch["text_embedding"]).astype(np.float32))
        progress.advance(len(part))
    return np.concatenate(parts)


def cluster(vectors: np.ndarray, smallest: int, libraries: tuple[Any, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Reduces vectors with UMAP and clusters them with HDBSCAN.

    Args:
        vectors: float32 (rows, dimension), on the host; also for cuML, because it uses its own streams.
        smallest: minimum number of rows in a topic.
        libraries: see `open_libraries`.

    Returns:
        The reduced vectors, float32 (rows, UMAP_DIMENSIONS), and the topics, int64 (rows,): 0 for the largest topic, -1
        for none.
    """
    UMAP, HDBSCAN = libraries  # noqa: N806
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both warn about future defaults
        reduced = UMAP(
            n_neighbors=UMAP_NEIGHBOURS, n_components=UMAP_DIMENSIONS, min_dist=0.0, metric="cosine", random_state=SEED
        ).fit_transform(vectors)
        found = np.asarray(HDBSCAN(min_cluster_size=smallest).fit_predict(reduced), np.int64)
    numbers, firsts, sizes = np.unique(found[found >= 0], return_index=True, return_counts=True)
    rank = np.full(found.max() + 2, -1)  # the last entry, which index -1 refers to, stays -1
    rank[numbers[np.lexsort((firsts, -sizes))]] = np.arange(len(numbers))
    return np.asarray(reduced, np.float32), rank[found]


def topic_words(texts: list[str], labels: np.ndarray) -> list[tuple[str, ...]]:
    """Finds the most specific words of each topic.

    The weight of a word in a topic is its class-based TF-IDF (arXiv 2203.05794, section 3.3): tf · log(1 + A / f),
    where tf is the word's frequency in the topic, f its frequency in all topics, and A the mean number of words per
    topic. Only nouns, verbs and adjectives count, without stop words.

    Args:
        texts: the captions.
        labels: int64 (texts,), each caption's topic, -1 for none.

    Returns:
        The words of each topic, in descending order of weight.
    """
    words = list(words_of(texts))
    topic = np.repeat(labels, [len(found) for found in words])
    numbers: dict[str, int] = {}
    word = np.array([numbers.setdefault(w, len(numbers)) for found in words for w in found], np.int64)
    known = list(numbers)
    cells, counts = np.unique(topic * len(known) + word, return_counts=True)
    of, which = np.divmod(cells, max(len(known), 1))
    average = len(word) / len(np.unique(labels))
    weights = counts * np.log1p(average / np.bincount(which, counts)[which])
    out = []
    for number in range(labels.max() + 1):
        candidates = np.flatnonzero(of == number)
        best = candidates[np.argsort(-weights[candidates], kind="stable")[:WORDS_PER_TOPIC]]
        out.append(tuple(known[position] for position in which[best]))
    return out


def nearest_to_centre(vectors: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Returns the members of a topic that are nearest to the members' mean, the nearest first."""
    closeness = vectors[members] @ vectors[members].mean(0)
    return members[np.argsort(-closeness, kind="stable")[:EXAMPLES_PER_TOPIC]]


def principal_axes(vectors: np.ndarray) -> np.ndarray:
    """Projects vectors onto their first two principal components: float32 (rows, 2)."""
    centred = vectors - vectors.mean(0)
    _, directions = np.linalg.eigh(centred.T.astype(np.float64) @ centred)
    return (centred @ directions[:, :-3:-1]).astype(np.float32)
