"""The dataset card: README.md, as Hugging Face's `datasets` and the Hub read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from danqing import __version__
from danqing.engine.core.files import commit
from danqing.engine.decide.funnel import Funnel
from danqing.engine.run.folder import Run
from danqing.engine.write.formats import RUN_COLUMNS
from danqing.engine.write.output import PARQUET, WEBDATASET, WriteOptions
from danqing.engine.write.products import CARD, EXTENSIONS, is_stamped, stamp

DATA_FILES = {WEBDATASET: "*.tar", PARQUET: "*.parquet"}
"""What `load_dataset` reads. The tables beside tars have scores and no pictures, so they are not named."""
SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B", "n>10B")
"""The Hub's size categories: less than 1,000 rows, then ten times as many each."""


def write_cards(run: Run, options: WriteOptions, tables: list[Path], digest: str) -> None:
    """Writes README.md to OUT and to OUT/shards, so that `load_dataset` reads either folder.

    A card without the stamp at its end is the user's own and is left alone.

    Args:
        run: a decided run.
        options: the format, for the data files, and the licence.
        tables: the tables of all output shards.
        digest: of the decision, for the stamp.
    """
    pairs = Funnel.of(run).kept
    features = tar_features(tables) if options.output_format == WEBDATASET else []
    for folder, prefix in ((run.folder, "shards/"), (run.folder / "shards", "")):
        path = folder / CARD
        text = card(run, front_matter(pairs, options, prefix if tables else None, features), digest)
        own = path.exists() and not is_stamped(path)
        if folder.exists() and not own and not (path.exists() and path.read_text(encoding="utf-8") == text):
            with commit(path, "w") as file:
                file.write(text)


def card(run: Run, matter: dict[str, Any], digest: str) -> str:
    """Returns the text of the card.

    Args:
        run, digest: see `write_cards`.
        matter: see `front_matter`.
    """
    funnel = Funnel.of(run)
    parts = [
        f"---\n{_yaml(matter)}---",
        f"# Image-text pairs curated with the recipe {funnel.recipe}",
        f"{funnel.kept:,} of {funnel.collected:,} pairs, curated with DanQing Engine {__version__}. Pictures are the "
        "original files; captions are cleaned.",
        "## Funnel",
        _funnel(funnel),
        "## Models",
        _models(run.manifest.get("models", {}), run.manifest.get("engines", {})),
        "## Recipe",
        f"```yaml\n{_yaml(run.manifest['decided']['recipe'])}```",
        stamp(digest),
    ]
    return "\n\n".join(parts) + "\n"


def _yaml(content: Any) -> str:
    return str(yaml.safe_dump(content, allow_unicode=True, sort_keys=False))


def front_matter(
    pairs: int, options: WriteOptions, prefix: str | None, features: list[dict[str, Any]]
) -> dict[str, Any]:
    """The card's metadata.

    Args:
        pairs: number of kept pairs.
        options: format and licence.
        prefix: path of the shards relative to the card's folder; None if there are none.
        features: types of the fields, if they cannot be read from the files (`tar_features`).

    >>> front_matter(12_000, WriteOptions(), "shards/", [])["configs"]
    [{'config_name': 'default', 'data_files': [{'split': 'train', 'path': 'shards/*.tar'}]}]
    """
    pattern = DATA_FILES.get(options.output_format)
    files = [{"split": "train", "path": f"{prefix}{pattern}"}]
    return {
        "license": options.licence,
        "language": ["zh"],
        "size_categories": [size_category(pairs)],
        "task_categories": ["image-to-text", "text-to-image", "zero-shot-image-classification"],
        "tags": ["image-text pairs", "danqing-engine", *([options.output_format] if pattern else [])],
        **({"dataset_info": {"features": features}} if features else {}),
        **({"configs": [{"config_name": "default", "data_files": files}]} if pattern and prefix is not None else {}),
    }


def tar_features(tables: list[Path]) -> list[dict[str, Any]]:
    """The types of a tar's fields, as the card states them.

    Without them `datasets` takes the types from the first five pairs: it refuses pictures with different extensions
    and loses fields of the .json that are null there.

    Args:
        tables: the tables beside the tars.
    """
    if not tables:
        return []
    metadata = [pq.read_schema(table).metadata for table in tables]
    extensions = sorted({extension for found in metadata for extension in json.loads(found[EXTENSIONS])})
    fields = [field for field in pq.read_schema(tables[0]) if field.name not in RUN_COLUMNS]
    return [
        *({"name": extension, "dtype": "image" if extension != "bin" else "binary"} for extension in extensions),
        {"name": "txt", "dtype": "string"},
        {"name": "json", "struct": [_feature(field.type, field.name) for field in fields]},
        {"name": "__key__", "dtype": "string"},
        {"name": "__url__", "dtype": "string"},
    ]


def _feature(kind: pa.DataType, name: str) -> dict[str, Any]:
    """The type of a field of a .json in the notation of cards."""
    if pa.types.is_struct(kind):
        return {"name": name, "struct": [_feature(field.type, field.name) for field in kind]}
    if pa.types.is_list(kind):
        item = _feature(kind.value_type, name)
        return {"name": name, "list": item.get("dtype", item.get("struct"))}
    plain = pa.types.is_integer(kind) or pa.types.is_boolean(kind)
    wide = {"float": "float32", "double": "float64", "bool": "bool"}
    return {"name": name, "dtype": wide.get(str(kind), str(kind) if plain else "string")}


def size_category(pairs: int) -> str:
    """The Hub's category of a number of rows.

    >>> size_category(999), size_category(1000), size_category(10**12)
    ('n<1K', '1K<n<10K', 'n>10B')
    """
    place = sum(pairs >= 1000 * 10**power for power in range(len(SIZES) - 1))
    return SIZES[place]


def _funnel(funnel: Funnel) -> str:
    lines = [
        "| step | rule | pairs left | dropped | share |",
        "|---|---|---:|---:|---:|",
        f"| collected | | {funnel.collected:,} | | |",
    ]
    for line in funnel.lines:
        numbers = f"{line.left:,} | {line.dropped:,} | {line.share:.2%}"
        lines.append(f"| {_cell(line.step)} | {_cell(line.measured_rule)} | {numbers} |")
    return "\n".join(lines)


def _models(models: dict[str, dict[str, Any]], engines: dict[str, str]) -> str:
    rows = [
        f"| {role} | {_cell(model['name'])} | {model.get('onnx', model['card'])} | {engines.get(role, '')} |"
        for role, model in models.items()
    ]
    return "\n".join(["| role | model | hash of network or card | file that scored last |", "|---|---|---|---|", *rows])


def _cell(text: object) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")
