"""Every column that the engine knows, declared once: type, range, unit and meaning.

Stages name the columns that they produce with `produced`, recipes are checked against the table before any work
(`engine.recipe.reading`), the schemas of scores and verdicts are taken from it, and docs/reference/columns.md is
generated from it (`engine.stages.columns`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

Range = tuple[float | None, float | None]
"""Lowest and highest value, both included; None where there is no bound."""


@dataclass(frozen=True)
class Column:
    """One named column of a batch or of a file.

    Attributes:
        name: as recipes and files write it.
        type: the Arrow type that a row's value is stored with; None if the column is not stored.
        meaning: of a value, one sentence.
        range: the values that can occur, for numbers.
        unit: of a number.
        array: the column in a batch: dtype and shape, or `TextColumn`, whose texts are on the host, on the device or on
            both; empty where the type says it.
        device: whether the column stays on the device; otherwise it is on the host after the stage.
        file: the folder of the run whose files hold it, if it is stored.
        distance: what `within` of a near-duplicate criterion measures: `cosine` distance, `bits` that differ,
            `Jaccard` distance of the shingles, or nothing, if values are only equal or not.

    >>> Column("brightness", pa.float32(), "mean of the grey values", range=(0, 255)).is_score
    True
    """

    name: str
    type: pa.DataType | None
    meaning: str
    range: Range = (None, None)
    unit: str = ""
    array: str = ""
    device: bool = False
    file: Literal["scores", "features", "verdicts", "shards", "recaptions"] = "scores"
    distance: Literal["", "cosine", "bits", "Jaccard"] = ""

    @property
    def is_score(self) -> bool:
        """Whether a threshold can be set for the column: a stored number that is a quantity."""
        types = pa.types
        if self.type is None or self.file != "scores" or self.distance:
            return False
        return bool(types.is_integer(self.type) or types.is_floating(self.type) or types.is_boolean(self.type))

    @property
    def range_text(self) -> str:
        """The range in words: `between 0 and 8 bits`, `at least 0 pixels`."""
        low, high = self.range
        unit = f" {self.unit}" if self.unit else ""
        if low is not None and high is not None:
            return f"between {low:g} and {high:g}{unit}"
        return f"at least {low:g}{unit}" if low is not None else f"at most {high:g}{unit}" if high is not None else ""

    @property
    def content(self) -> str:
        """What a column that is not a score holds, in words."""
        if self.type is None:
            return "values that are not stored"
        return {"cosine": "vectors", "bits": "hashes"}.get(self.distance, "text")


FEATURES = "features"
"""Stored in features/NNNNN.npy, not in scores/NNNNN.parquet."""
ENCODED = "image"
"""The encoded bytes of the picture."""

SHARE: Range = (0, 1)
FLAG: Range = (0, 1)
COUNT: Range = (0, None)

READ = (
    Column("shard", pa.string(), "name of the input shard", array="int64 (rows,), number of the shard"),
    Column("row", pa.int32(), "position in the shard, from 0", range=COUNT),
    Column("key", pa.string(), "the input's own key, made unique within the shard"),
    Column("input_key", pa.string(), "the input's own key where `key` differs from it, else null"),
    Column("uid", pa.string(), "32 hex digits: the input's own, or the xxh128 of image bytes and caption"),
    Column("url", pa.string(), "URL of the picture, if the input has one", array="TextColumn"),
    Column("caption", pa.string(), "the caption as read", array="TextColumn"),
    Column(ENCODED, None, "the encoded picture", array="list of bytes"),
    Column("image_hash", pa.string(), "xxh128 of the encoded picture, 32 hex digits; WRITE copies no other bytes"),
    Column("image_bytes", pa.int64(), "size of the encoded picture; 0 if it was not downloaded", COUNT, "bytes"),
    Column("text_bytes", None, "memory of caption and metadata", COUNT, "bytes", array="int64 (rows,)"),
    Column("metadata", None, "the input's other fields, stored as columns of their own", array="list of dict"),
    Column("error", pa.string(), "why the row has no further scores; null if nothing failed"),
)
"""Columns that reading a shard provides, in the order in which a row is read."""

COMPUTED = (
    Column("blocked_source", pa.int8(), "1 if the URL's domain or a parent domain is on the block list", FLAG),
    Column("words", pa.int32(), "words of the caption as read, segmented by jieba", COUNT, "words"),
    Column("unsafe_text", pa.float32(), "the text classifier's score of the caption as read", COUNT),
    Column(
        "caption_measures", None, "all measures of the caption as read",
        array="float32 (rows, 11), see danqing.kernels.text.captions.MEASURES",
    ),
    Column(
        "text_clean", pa.string(), "the caption in Simplified Chinese, without HTML, emoji and special characters",
        array="TextColumn", distance="Jaccard",
    ),
    Column(
        "caption_hash", pa.string(), "MurmurHash3 (x64, 128 bits) of the clean caption, 32 hex digits; empty for none",
        array="TextColumn",
    ),
    Column("language", pa.string(), "ISO 639 code of the clean caption's language", array="TextColumn"),
    Column("chinese_confidence", pa.float32(), "probability that the clean caption is Chinese", SHARE),
    Column("stop_word_share", pa.float32(), "share of stop words among the words", SHARE),
    Column("nouns", pa.int32(), "nouns among the words", COUNT, "words"),
    Column("content_word_share", pa.float32(), "share of nouns, verbs and adjectives among the words", SHARE),
    Column("text_entropy", pa.float32(), "entropy of the distribution of equal words", COUNT, "bits"),
    Column("han_share", pa.float32(), "share of Han characters among the letters", SHARE),
    Column("kana_share", pa.float32(), "share of kana among the letters", SHARE),
    Column("latin_share", pa.float32(), "share of Latin letters among the letters", SHARE),
    Column("digit_share", pa.float32(), "share of digits among the characters that are not space", SHARE),
    Column("symbol_share", pa.float32(), "share of characters that are neither letter, digit nor space", SHARE),
    Column(
        "longest_repetition", pa.int32(), "longest stretch that repeats a unit of one to four characters", COUNT,
        "characters",
    ),
    Column("unsafe_caption", pa.float32(), "the caption classifier's score of the clean caption", COUNT),
    Column(
        "token_ids", None, "ids of the clean caption's tokens, padded; SentencePiece's are on the host",
        array="int32 (rows, max_length)", device=True,
    ),
    Column("token_lengths", None, "tokens of the clean caption before the padding", array="int32 (rows,)"),
    Column(
        "text_perplexity", pa.float32(), "pseudo-perplexity of the clean caption under a masked language model",
        (1, None),
    ),
    Column("unknown_tokens", pa.int32(), "[UNK] among the tokens of the clean caption", COUNT, "tokens"),
    Column("sha256", pa.string(), "SHA-256 of the encoded picture, 64 hex digits"),
    Column("readable", pa.int8(), "1 if the picture's header can be read", FLAG),
    Column("width", pa.int32(), "width as shown, after EXIF rotation", COUNT, "pixels"),
    Column("height", pa.int32(), "height as shown, after EXIF rotation", COUNT, "pixels"),
    Column("aspect_ratio", pa.float64(), "width ÷ height", COUNT),
    Column("shortest_edge", pa.int32(), "the smaller of width and height", COUNT, "pixels"),
    Column("decode_format", pa.string(), "Pillow's name of the format: JPEG, PNG, WEBP …"),
    Column("has_alpha", pa.bool_(), "true if the picture has transparency", FLAG),
    Column("animated", pa.bool_(), "true if the file has more than one frame; only the first is used", FLAG),
    Column(
        "jpeg_quality", pa.int16(), "estimated libjpeg quality; 100 for other formats, 0 if the header is unreadable",
        (0, 100),
    ),
    Column("pixel_mode", None, "Pillow's name of the pixel mode: RGB, P, CMYK, I;16 …", array="list of str"),
    Column("orientation", None, "EXIF orientation of the decoded pixels", (1, 8), array="int8 (rows,)"),
    Column(
        "pixels", None, "the decoded picture in RGB, rotated as EXIF says, transparency on white",
        array="list of uint8 (height, width, 3)", device=True,
    ),
    Column("decodable", pa.int8(), "1 if the picture can be decoded", FLAG),
    Column("pixel_std", pa.float64(), "standard deviation of the grey values", (0, 127.5), "grey levels"),
    Column("laplacian_variance", pa.float64(), "variance of the Laplacian of the grey values; low if blurred", COUNT),
    Column("image_entropy", pa.float64(), "entropy of the histogram of the 256 grey values", (0, 8), "bits"),
    *(
        Column(name, None, f"input of {model}", array="uint8 (rows, size, size, 3)", device=True)
        for name, model in (
            ("embedding_input", "the image embedding model"),
            ("safety_input", "the image classifier"),
            ("aesthetic_input", "the aesthetic model"),
            ("hash_input", "the perceptual hash"),
        )
    ),
    Column(
        "perceptual_hash", pa.uint64(), "64-bit pHash as imagehash computes it; similar pictures differ in few bits",
        distance="bits",
    ),
    Column(
        "image_embedding", None, "unit vector of the picture", array="float32 (rows, dimension)", device=True
    ),
    Column(
        FEATURES, pa.list_(pa.float16()), "unit vector that near-duplicates are compared by", file="features",
        array="float16 (rows, dimension)", distance="cosine",
    ),
    Column("unsafe_image", pa.float32(), "the image classifier's probability of unsafe content", SHARE),
    Column("aesthetic", pa.float32(), "predicted aesthetic rating", unit="rating, 1 to 10"),
    Column("text_embedding", None, "unit vector of the clean caption", array="float32 (rows, dimension)", device=True),
    Column("alignment_distance", pa.float32(), "L2 distance of the embeddings of picture and caption", (0, 2)),
)  # fmt: skip
"""Columns that the engine's stages compute."""

SCORED = (
    Column("gated_at", pa.string(), "the stage that the row did not reach, since an earlier criterion dropped it"),
    Column("feature_row", pa.int32(), "row of the shard's features; -1 without features", (-1, None)),
)
"""Columns that SCORE adds when it writes a shard."""

VERDICTS = (
    Column("keep", pa.bool_(), "true if the row passes every criterion", FLAG, file="verdicts"),
    Column("dropped_by", pa.string(), "the first criterion that the row fails; null if it is kept", file="verdicts"),
    Column("group", pa.int64(), "number of the near-duplicate group; -1 without one", (-1, None), file="verdicts"),
    Column("kept_instead", pa.string(), "uid of the row that the row is a near-duplicate of", file="verdicts"),
    Column(
        "distance", pa.float64(), "distance to that row: cosine, Jaccard, or bits that differ", COUNT, file="verdicts"
    ),
)
"""Columns that DECIDE adds to shard, row, key and uid."""

WRITTEN = (
    Column(
        "similarity", pa.float32(), "cosine of the embeddings of picture and caption: 1 - alignment_distance² / 2",
        (-1, 1), file="shards",
    ),
    Column(
        "recaption", pa.string(), "the recaption, cleaned like a caption, if its outcome is success; after RECAPTION",
        file="shards",
    ),
    Column(
        "recaption_alignment", pa.float32(), "cosine of the embeddings of picture and recaption; after RECAPTION",
        (-1, 1), file="shards",
    ),
)  # fmt: skip
"""Columns that WRITE adds to the scores of the kept pairs (`engine.core.similarity`)."""

ANSWERED = (
    Column("row", pa.int32(), "row of the shard; only kept rows are here", COUNT, file="recaptions"),
    Column("uid", pa.string(), "uid of the row", file="recaptions"),
    Column("recaption", pa.string(), "the model's caption, unchanged; null if there is none", file="recaptions"),
    Column(
        "outcome", pa.string(), "success, truncated (by max_tokens), blocked (by a filter), error", file="recaptions"
    ),
    Column("finish_reason", pa.string(), "why the model stopped, as the server names it", file="recaptions"),
    Column("prompt_tokens", pa.int32(), "tokens of prompt and picture", COUNT, "tokens", file="recaptions"),
    Column("completion_tokens", pa.int32(), "tokens of the answer", COUNT, "tokens", file="recaptions"),
    Column("seconds", pa.float32(), "from the first request to the answer", COUNT, "seconds", file="recaptions"),
    Column("error", pa.string(), "why the outcome is error or blocked", file="recaptions"),
)
"""Columns of recaptions/NNNNN.parquet that RECAPTION takes from the answers."""
MEASURED = (
    "unsafe_text", "words", "text_clean", "language", "chinese_confidence", "stop_word_share", "nouns",
    "content_word_share", "text_entropy", "han_share", "kana_share", "latin_share", "digit_share", "symbol_share",
    "longest_repetition", "unsafe_caption", "unknown_tokens",
)  # fmt: skip
"""Columns of a run's scores that RECAPTION also computes of the recaptions, as `recaption_NAME`."""
JUDGED = (
    Column(
        "recaption_alignment", pa.float32(), "cosine of the embeddings of picture and recaption", (-1, 1),
        file="recaptions",
    ),
    Column(
        "recaption_fails", pa.string(),
        "first of the recipe's criteria of text and alignment that the recaption fails; null if none",
        file="recaptions",
    ),
)  # fmt: skip
"""Columns that RECAPTION adds to those of `MEASURED`."""

COLUMNS = {column.name: column for column in (*READ, *COMPUTED, *SCORED, *VERDICTS, *WRITTEN)}

SHARD_COLUMNS = tuple(column.name for column in READ)
"""Given to the stages by a shard of pairs."""
TABLE_COLUMNS = ("row", "url", "caption", "error")
"""Given to the stages by a table of URLs and captions, before the pictures are downloaded."""
RECIPE_COLUMNS = {column.name: column for column in (COLUMNS["image_bytes"], *COMPUTED)}
"""Columns that a recipe can name without extensions."""


def produced(*columns: str | Column) -> dict[str, Column]:
    """The columns of a stage by name.

    Args:
        columns: names of the table, or columns of the stage's own.

    Raises:
        KeyError: a name is not in the table.

    >>> list(produced("words", Column("rhymes", pa.int32(), "rhymes in the caption")))
    ['words', 'rhymes']
    """
    found = (COLUMNS[column] if isinstance(column, str) else column for column in columns)
    return {column.name: column for column in found}


def arrow_types(columns: Iterable[str]) -> dict[str, pa.DataType]:
    """The Arrow types of columns of the table, in the given order.

    >>> arrow_types(["row", "keep"])
    {'row': DataType(int32), 'keep': DataType(bool)}
    """
    return {name: COLUMNS[name].type for name in columns}
