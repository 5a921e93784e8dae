"""The dataset card: README.md, as Hugging Face's `datasets` and the Hub read it."""

from __future__ import annotations

from typing import Any

import yaml

from danqing import __version__
from danqing.engine.core.files import commit
from danqing.engine.decide.funnel import Funnel
from danqing.engine.run.folder import Run
from danqing.engine.write.output import PARQUET, WEBDATASET, WriteOptions
from danqing.engine.write.products import CARD, is_stamped, stamp

DATA_FILES = {WEBDATASET: "*.tar", PARQUET: "*.parquet"}
"""What `load_dataset` reads. The tables beside tars have scores and no pictures, so they are not named."""
SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B", "n>10B")
"""The Hub's size categories: less than 1,000 rows, then ten times as many each."""


def write_cards(run: Run, options: WriteOptions, shards: int, digest: str) -> None:
    """Writes README.md to OUT and to OUT/shards, so that `load_dataset` reads either folder.

    A card without the stamp at its end is the user's own and is left alone.

    Args:
        run: a decided run.
        options: the format, for the data files, and the licence.
        shards: number of output shards.
        digest: of the decision, for the stamp.
    """
    for folder, prefix in ((run.folder, "shards/"), (run.folder / "shards", "")):
        path = folder / CARD
        text = card(run, options, prefix if shards else None, digest)
        own = path.exists() and not is_stamped(path)
        if folder.exists() and not own and not (path.exists() and path.read_text(encoding="utf-8") == text):
            with commit(path, "w") as file:
                file.write(text)


def card(run: Run, options: WriteOptions, prefix: str | None, digest: str) -> str:
    """Returns the text of the card.

    Args:
        run, options, digest: see `write_cards`.
        prefix: path of the shards relative to the card's folder; None if there are none.
    """
    funnel = Funnel.read(run.folder / "funnel.json")
    parts = [
        f"---\n{yaml.safe_dump(front_matter(funnel.kept, options, prefix), allow_unicode=True, sort_keys=False)}---",
        f"# Image-text pairs curated with the recipe {funnel.recipe}",
        f"{funnel.kept:,} of {funnel.collected:,} pairs, curated with DanQing Engine {__version__}. Pictures are the "
        "original files; captions are cleaned.",
        "## Funnel",
        _funnel(funnel),
        "## Models",
        _models(run.manifest.get("models", {}), run.manifest.get("engines", {})),
        "## Recipe",
        f"```yaml\n{yaml.safe_dump(run.manifest['decided']['recipe'], allow_unicode=True, sort_keys=False)}```",
        stamp(digest),
    ]
    return "\n\n".join(parts) + "\n"


def front_matter(pairs: int, options: WriteOptions, prefix: str | None) -> dict[str, Any]:
    """The card's metadata.

    Args:
        pairs: number of kept pairs.
        options: format and licence.
        prefix: see `card`.

    >>> front_matter(12_000, WriteOptions(), "shards/")["configs"]
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
        **({"configs": [{"config_name": "default", "data_files": files}]} if pattern and prefix is not None else {}),
    }


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
        f"| {role} | {_cell(model['name'])} | `{model.get('onnx', model['card'])}` | `{engines.get(role, '')}` |"
        for role, model in models.items()
    ]
    return "\n".join(["| role | model | hash of network or card | file that scored last |", "|---|---|---|---|", *rows])


def _cell(text: object) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")
