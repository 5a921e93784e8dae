"""A run's folder: what lies where, what is finished, and files that are either whole or not there."""

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
from typing import Any

from danqing import __version__
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import write_json
from danqing.engine.core.quiet import native_stderr_to
from danqing.engine.recipe.reading import Recipe, recipe_from_dict
from danqing.engine.sources import Layout, Shard

log = logging.getLogger("danqing")

VERSIONED = (
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


class Run:
    """The folder of one run and its manifest, run.json."""

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
        """Opens OUT for scoring.

        Args:
            identity: what else the scores depend on (model hashes, block list, options), compared word by word.

        Raises:
            DanqingError: OUT holds a run with another recipe, other models or other inputs; says which.
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
        if differences:
            raise DanqingError(
                f"{folder} holds a run that was scored differently:\n  "
                + "\n  ".join(differences)
                + "\nChoose another --output, or use `danqing decide` to change thresholds only."
            )
        return run

    @classmethod
    def create(cls, folder: Path, recipe: Recipe, content: Mapping[str, Any]) -> Run:
        """Starts a run; what `content` holds beside shards and layout is its identity."""
        versions = {"python": platform.python_version()}
        for name in VERSIONED:
            with suppress(metadata.PackageNotFoundError):
                versions[name] = metadata.version(name)
        started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        manifest = {"engine": __version__, "recipe": recipe.to_dict(), "recipe_hash": recipe.hash, **content}
        run = cls(folder, manifest | {"versions": versions, "counts": {}, "times": {"started": started}})
        run.save()
        return run

    @classmethod
    def open(cls, folder: Path) -> Run:
        path = folder / "run.json"
        try:
            return cls(folder, json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise DanqingError(f"{folder}: no run here (run.json is missing); `danqing score` starts one") from None
        except ValueError as problem:
            raise DanqingError(f"{path}: not valid JSON: {problem}") from None

    def save(self) -> None:
        write_json(self.folder / "run.json", self.manifest)

    def note(self, section: str, **values: Any) -> None:
        self.manifest.setdefault(section, {}).update(values)
        self.save()

    @property
    def recipe(self) -> Recipe:
        """The recipe the run was scored with."""
        return recipe_from_dict(self.manifest["recipe"], str(self.folder / "run.json"))

    @property
    def layout(self) -> Layout:
        return Layout(**{name: tuple(keys) for name, keys in self.manifest["layout"].items()})

    @property
    def shards(self) -> list[Shard]:
        return [Shard(**shard | {"path": Path(shard["path"])}) for shard in self.manifest["shards"]]

    def _file(self, kind: str, number: int, suffix: str) -> Path:
        return self.folder / kind / f"{number:05d}{suffix}"

    def scores(self, number: int) -> Path:
        return self._file("scores", number, ".parquet")

    def features(self, number: int) -> Path:
        return self._file("features", number, ".npy")

    def verdicts(self, number: int) -> Path:
        return self._file("verdicts", number, ".parquet")

    def tar(self, number: int) -> Path:
        return self._file("shards", number, ".tar")

    def table(self, number: int) -> Path:
        return self._file("shards", number, ".parquet")

    def check_decided(self) -> None:
        """Raises DanqingError: there are no verdicts yet; says how to come to some."""
        if "decided" not in self.manifest:
            raise DanqingError(f"{self.folder}: no verdicts yet; run `danqing decide {self.folder}` first")

    def unscored(self) -> list[Shard]:
        return [s for s in self.shards if not self.scores(s.number).exists()]

    @contextmanager
    def logged(self) -> Iterator[None]:
        """run.log receives what the engine says, one line a shard, and what codecs print, while a `with` block runs."""
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
    """Whether a run is there; False means that one can be started.

    Raises:
        DanqingError: the folder holds something else.
    """
    if (folder / "run.json").exists():
        return True
    if folder.exists() and any(folder.iterdir()):
        raise DanqingError(f"{folder}: not empty and not a run (no run.json); choose another folder")
    return False


def identity_differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What differs between an identity read back from JSON and the one of now, a line each."""
    return [
        f"{key}: {_short(there.get(key))} there, {_short(value)} here"
        for key, value in here.items()
        if there.get(key) != json.loads(json.dumps(value))
    ]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:117]}..."
