"""The folder of a run: its files, its manifest and its log."""

from __future__ import annotations

import json
import logging
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, Self

from danqing import __version__
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import write_json
from danqing.engine.core.logs import log
from danqing.engine.core.quiet import native_stderr_to
from danqing.engine.recipe.reading import Recipe, recipe_from_dict
from danqing.engine.sources import Layout, Shard

RECORDED_PACKAGES = (
    "nvidia-nvimgcodec-cu13",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "nvidia-dali-cuda130",
    "cupy-cuda13x",
    "numpy",
    "numba",
    "numba-cuda",
    "pillow",
    "pyarrow",
    "jieba",
    "opencc",
)
"""Packages whose versions the manifest records: a change of one can change scores."""


class Run:
    """A run: its folder, and the manifest of what was done in it (run.json).

    Attributes:
        folder: OUT of the commands.
        manifest: content of run.json: inputs, recipe, hashes of the models, versions, counts, times.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def create_or_resume(
        cls,
        folder: Path,
        shards: list[Shard],
        recipe: Recipe,
        layout: Layout,
        identity: Mapping[str, Any],
    ) -> Run:
        """Opens a folder for scoring: starts a run in an empty folder, resumes the run that is there.

        A run without scores, as a failed start leaves it, is replaced if it differs.

        Args:
            folder: OUT; created if it does not exist.
            shards: the inputs, in output order.
            recipe: the models and criteria to score for.
            layout: which parts of a sample are the image and the caption.
            identity: everything else that scores depend on (model hashes, block list, options), as JSON values.

        Raises:
            DanqingError: the folder holds a run with another recipe, identity or other inputs; lists the differences.
        """
        wanted = {
            "shards": [asdict(shard) | {"path": str(shard.path.resolve())} for shard in shards],
            "layout": asdict(layout),
            **identity,
        }
        if not is_run(folder):
            return cls.create(folder, recipe, wanted)
        run = cls.open(folder)
        differences = recipe.differences(run.recipe) + identity_differences(run.manifest, wanted)
        if differences and not any((folder / "scores").glob("*.parquet")):
            return cls.create(folder, recipe, wanted)
        if differences:
            raise DanqingError(
                f"{folder} holds a run that was scored differently:\n  "
                + "\n  ".join(differences)
                + "\nChoose another --output, or use `danqing decide` to change thresholds only."
            )
        return run

    @classmethod
    def create(cls, folder: Path, recipe: Recipe, content: Mapping[str, Any]) -> Run:
        """Starts a run and writes its manifest.

        Args:
            folder: OUT.
            recipe: see `create_or_resume`.
            content: the keys `shards` and `layout`, and the run's identity.
        """
        versions = {"python": platform.python_version()}
        for name in RECORDED_PACKAGES:
            with suppress(metadata.PackageNotFoundError):
                versions[name] = metadata.version(name)
        started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        manifest = {"engine": __version__, "recipe": recipe.to_dict(), "recipe_hash": recipe.hash, **content}
        run = cls(folder, manifest | {"versions": versions, "counts": {}, "times": {"started": started}})
        run.save()
        return run

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Reads the manifest of a run.

        Raises:
            DanqingError: the folder has no run.json, or one that is not valid JSON.
        """
        path = folder / "run.json"
        try:
            return cls(folder, json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise DanqingError(f"{folder}: no run here (run.json is missing); `danqing score` starts one") from None
        except ValueError as problem:
            raise DanqingError(f"{path}: not valid JSON: {problem}") from None

    def save(self) -> None:
        """Writes the manifest."""
        write_json(self.folder / "run.json", self.manifest)

    def note(self, section: str, **values: Any) -> None:
        """Updates a section of the manifest and writes it."""
        self.manifest.setdefault(section, {}).update(values)
        self.save()

    @property
    def recipe(self) -> Recipe:
        """The recipe the run was scored with."""
        return recipe_from_dict(self.manifest["recipe"], str(self.folder / "run.json"))

    @property
    def layout(self) -> Layout:
        """Which parts of a sample are the image and the caption."""
        stored: dict[str, Any] = self.manifest["layout"]
        lists = {name: tuple(value) for name, value in stored.items() if isinstance(value, list)}
        return Layout(**stored | lists)

    @property
    def shards(self) -> list[Shard]:
        """The run's inputs, in output order; a shard's position is its number."""
        return [Shard(**shard | {"path": Path(shard["path"])}) for shard in self.manifest["shards"]]

    def _file(self, kind: str, number: int, suffix: str) -> Path:
        return self.folder / kind / f"{number:05d}{suffix}"

    def scores_path(self, number: int) -> Path:
        """Every row of a shard with every score."""
        return self._file("scores", number, ".parquet")

    def features_path(self, number: int) -> Path:
        """The shard's image embeddings: float16, (rows with one, dimension), unit length."""
        return self._file("features", number, ".npy")

    def verdicts_path(self, number: int) -> Path:
        """Every row of a shard: kept, or dropped by which criterion."""
        return self._file("verdicts", number, ".parquet")

    def tar_path(self, number: int) -> Path:
        """The kept pairs of a shard, as WebDataset."""
        return self._file("shards", number, ".tar")

    def table_path(self, number: int) -> Path:
        """The kept rows of a shard with their scores; with the images, if the output format is Parquet."""
        return self._file("shards", number, ".parquet")

    def check_decided(self) -> None:
        """Raises DanqingError if the run has no verdicts."""
        if "decided" not in self.manifest:
            raise DanqingError(f"{self.folder}: no verdicts yet; run `danqing decide {self.folder}` first")

    def unscored(self) -> list[Shard]:
        """The shards that have no scores yet."""
        return [s for s in self.shards if not self.scores_path(s.number).exists()]

    @contextmanager
    def logged(self) -> Iterator[None]:
        """Appends log records and the stderr of native libraries (codecs) to run.log, within a `with` block."""
        path = self.folder / "run.log"
        handler = logging.FileHandler(path, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        try:
            with native_stderr_to(path):
                yield
        finally:
            log.removeHandler(handler)
            handler.close()


def is_run(folder: Path) -> bool:
    """Says whether a folder holds a run; if not, it is empty or does not exist.

    Raises:
        DanqingError: the folder holds something else.
    """
    if (folder / "run.json").exists():
        return True
    if folder.is_file():
        raise DanqingError(f"{folder}: a file; name a folder for the run")
    if folder.exists() and any(folder.iterdir()):
        raise DanqingError(f"{folder}: not empty and not a run (no run.json); choose another folder")
    return False


def identity_differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Compares identities (see `Run.create_or_resume`).

    Args:
        there: the identity of a run, read from its run.json.
        here: the identity of this call; only its keys are compared.

    Returns:
        One line per difference.
    """
    return [
        f"{key}: {_short(there.get(key))} there, {_short(value)} here"
        for key, value in here.items()
        if there.get(key) != json.loads(json.dumps(value))
    ]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:117]}..."
