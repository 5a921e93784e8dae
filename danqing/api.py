"""The public Python API: one function per command, with the command's flags as keyword arguments.

`--profile`, `--metrics-port` and `--metrics-address` are flags of the commands only.

A path is a `str` or a `Path` everywhere, and one path stands for a list of one. A progress bar is shown if standard
error is a terminal; `progress=True` and `progress=False` force it on and off. Every function raises `DanqingError` for
bad input; its message names the file, the row or the option (the engine's messages by its flag, `--memory-limit`) and
what to do.

>>> import danqing
>>> run = danqing.curate("shards/*.tar", "study", recipe="recipe.yaml")
>>> run.funnel.collected, run.funnel.kept
(8, 5)
>>> run.scores(["key", "words"]).to_table().num_rows
8
>>> stricter = danqing.decide(run, set={"words.max": 11})
>>> danqing.write(stricter).funnel.kept
4
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from danqing.engine import phases
from danqing.engine.core.device import open_device
from danqing.engine.core.errors import DanqingError, did_you_mean
from danqing.engine.core.memory import read_size
from danqing.engine.core.progress import OpenProgress, silent
from danqing.engine.core.schemas import common_schema
from danqing.engine.core.storage import path_of
from danqing.engine.core.vlm_defaults import AUTO as AUTO_MODEL
from danqing.engine.core.vlm_defaults import CONCURRENCY
from danqing.engine.decide.cluster import RaySearch
from danqing.engine.decide.dedup.index import AUTO
from danqing.engine.decide.funnel import Funnel
from danqing.engine.evaluate.models import evaluate_models
from danqing.engine.evaluate.results import Evaluation, write_evaluations
from danqing.engine.recaption.prompts import open_prompt
from danqing.engine.recipe import reading
from danqing.engine.recipe.reading import DEFAULT_RECIPE, Recipe
from danqing.engine.report.explain import find_pairs, print_pair
from danqing.engine.report.terminal import ProgressBar
from danqing.engine.run.claims import read_share
from danqing.engine.run.folder import Run as EngineRun
from danqing.engine.run.settings import Settings, settings_from
from danqing.engine.select import frames
from danqing.engine.select.selection import Selection
from danqing.engine.select.selection import select as select_tables
from danqing.engine.sources.tables import Columns
from danqing.engine.stages import model_roles
from danqing.engine.stages.columns import known_columns
from danqing.engine.train import import_training
from danqing.engine.train.recipe import load_train_recipe
from danqing.engine.write.formats import with_pairs
from danqing.engine.write.order import kept_schema
from danqing.engine.write.output import PARQUET, SHARD_SIZE, WEBDATASET, WriteOptions
from danqing.engine.write.products import shard_files

__all__ = [
    "DanqingError",
    "Evaluation",
    "Recipe",
    "Run",
    "ScoringOptions",
    "Selection",
    "curate",
    "decide",
    "evaluate",
    "judge_frame",
    "load_recipe",
    "measure_captions",
    "merge",
    "open_run",
    "recaption",
    "score",
    "select",
    "train",
    "write",
]

StrPath = str | os.PathLike[str]
StrPaths = StrPath | Iterable[StrPath]
Overrides = str | Iterable[str] | Mapping[str, object]
"""Values that replace those of a recipe: `"words.max=40"`, a list of such texts, or `{"words.max": 40}`."""


class ScoringOptions(TypedDict, total=False):
    """Keyword arguments of `curate` and `score`, named like the flags of the commands.

    Attributes:
        image_key: names of the image part: member extensions or columns; `"jpg,png"` or a list.
        caption_key: names of the caption part: member extensions, fields of the .json, or columns.
        encoding: encoding of captions and tables; by default detected for each.
        follow_links: also read files outside the input's folder that a table or a link names.
        blocklist: file of blocked domains, one per line, including subdomains.
        user_dict: files of words that jieba does not know, one `word [frequency] [tag]` a line.
        score_everything: no gates; every score of every pair, so that thresholds can be loosened later.
        max_pixels: refuse images with more pixels; default: Pillow's limit.
        resizer: `kernel`: bit-equal to Pillow on every device; `dali`: DALI's graph; `auto` (default): `dali` on a GPU,
            `kernel` on a CPU.
        memory_limit: host memory that scoring keeps to: bytes, or text like `"4G"`.
        strict_engines: raise an error if a compiled engine does not open; by default the one before it is used.
        device: `cpu`, `cuda`, `cuda:N`, or `auto` (default): a GPU if there is one.
        devices: score on these GPUs, one process each: `"0,1"` or `[0, 1]`. The processes are spawned: a script must
            call the function under `if __name__ == "__main__":`.
        workers_per_gpu: processes on each device; default 1.
        part: `"I/N"`: only every N-th shard, as one of N tasks that run at once on one folder; `"any"`: the shards that
            no other process has taken (`score` only).
        ray: score on a Ray cluster, with a worker on every GPU: `auto`, `local` or HOST:PORT.
        threads: host threads; default: all cores.
        vlm_endpoint: OpenAI-compatible endpoints, for criteria with `vlm`: `"http://HOST:8000/v1"` or a list.
        vlm_model: id of their model; default `auto`: the only one that they serve.
        vlm_concurrency: requests at once; default 128.
        limit: use only the first rows of the input.
        force: resume an interrupted run although a version changed that can change scores.
    """

    image_key: str | Iterable[str]
    caption_key: str | Iterable[str]
    encoding: str
    follow_links: bool
    blocklist: StrPath | None
    user_dict: StrPaths
    score_everything: bool
    max_pixels: int | None
    resizer: Literal["auto", "dali", "kernel"]
    memory_limit: int | str | None
    strict_engines: bool
    device: str
    devices: str | Iterable[str | int]
    workers_per_gpu: int
    part: str
    ray: str
    threads: int | None
    vlm_endpoint: str | Iterable[str]
    vlm_model: str
    vlm_concurrency: int
    limit: int | None
    force: bool


class Run(EngineRun):
    """A run's folder, with its tables as datasets. `open_run` and all functions of this module make them.

    It extends the engine's `Run`, which is below DECIDE and the reports in the import layers, by what needs these.

    Attributes:
        folder: the folder, a `Path`.
        manifest: content of run.json.
    """

    def scores(self, columns: Iterable[str] | None = None) -> ds.Dataset:
        """Every row with every score, of the shards scored so far.

        Args:
            columns: only these, in this order; a filter can use no others. Default: all columns.

        Returns:
            A `pyarrow.dataset.Dataset` in input order; null where a score was not computed (see `gated_at`, `error`).

        Raises:
            DanqingError: no shard has scores yet, or a column that there is not.

        >>> open_run("out").scores(["key", "words"]).head(2).to_pylist()
        [{'key': '0000', 'words': 11}, {'key': '0001', 'words': 11}]
        >>> open_run("out").scores().to_table(filter=ds.field("words") < 5)["caption"].to_pylist()
        ['小猫']
        """
        return self._dataset("scores", "score", map(self.scores_path, self._numbers()), columns)

    def verdicts(self) -> ds.Dataset:
        """Every row's identity, `keep`, `dropped_by`, `group`, `kept_instead` and `distance`, in input order.

        Raises:
            DanqingError: the run is not decided.

        >>> open_run("out").verdicts().to_table(filter=ds.field("dropped_by") == "words")["key"].to_pylist()
        ['0006']
        """
        self.check_decided()
        return self._dataset("verdicts", "decide", map(self.verdicts_path, self._numbers()))

    def kept(self) -> ds.Dataset:
        """The kept rows with their scores, as written; with `image` and `text`, if the output format is `parquet`.

        The images of the format `webdataset` are in `folder / "shards" / "*.tar"`. If nothing was kept, there are no
        files, and the dataset is an empty table with the columns that written rows have.

        Raises:
            DanqingError: the run is not written.

        >>> open_run("out").kept().count_rows()
        5
        """
        written = self.manifest.get("written")
        if written and not written["shards"]:
            schema = kept_schema(self)
            return ds.dataset((with_pairs(schema) if written["output_format"] == PARQUET else schema).empty_table())
        files = [self.table_path(number) for number in shard_files(self)] if written else []
        return self._dataset("written shards", "write", files)

    def recaptions(self) -> ds.Dataset:
        """The recaptions of kept rows: `row`, `uid`, `recaption`, `outcome`, tokens, and measures of the recaption.

        Raises:
            DanqingError: there are none yet.
        """
        return self._dataset("recaptions", "recaption", map(self.recaptions_path, self._numbers()))

    @property
    def funnel(self) -> Funnel:
        """What each criterion dropped: `.collected`, `.kept`, `.lines`; `.to_dict()` is the content of funnel.json.

        Raises:
            DanqingError: the run is not decided.

        >>> [(line.criterion, line.dropped) for line in open_run("out").funnel.lines if line.dropped]
        [('words', 1), ('decodable', 1), ('redundancy', 1)]
        """
        self.check_decided()
        return Funnel.read(self.folder / "funnel.json")

    def explain(self, key: str) -> None:
        """Prints every score of a pair with the criteria, and why it was kept or dropped.

        Args:
            key: the pair's key, or its uid (32 hex digits).

        Raises:
            DanqingError: the run has no such pair.

        >>> open_run("out").explain("0006")  # doctest: +ELLIPSIS
        <BLANKLINE>
        00001 row 2  key 0006 ...
        """
        for record in find_pairs(self, str(key)):
            print_pair(self, record)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    def _numbers(self) -> Iterator[int]:
        return (shard.number for shard in self.shards)

    def _dataset(
        self, what: str, command: str, files: Iterable[Path], columns: Iterable[str] | None = None
    ) -> ds.Dataset:
        there = [file for file in files if file.exists()]
        if not there:
            raise DanqingError(f"{self.folder}: no {what} yet; run `danqing {command}` or `danqing.{command}` first")
        schema = common_schema(map(pq.read_schema, there))
        if columns is not None:
            names = _listed(columns)
            for name in names:
                if name not in schema.names:
                    raise DanqingError(f"{self.folder}: no column {name!r}; {did_you_mean(name, schema.names)}")
            schema = pa.schema([schema.field(name) for name in names])
        return ds.dataset(there, schema=schema)


def open_run(folder: StrPath) -> Run:
    """Opens the folder of a run.

    Args:
        folder: the folder, scored, decided or written; by this API or by the commands.

    Returns:
        The run.

    Raises:
        DanqingError: there is no run.

    >>> open_run("out").recipe.name
    'example'
    """
    return Run.open(path_of(folder))


def load_recipe(recipe: StrPath | Recipe, set: Overrides = ()) -> Recipe:
    """Reads and checks a recipe.

    Args:
        recipe: name of a built-in recipe, path of a YAML file, or a recipe.
        set: values to override, see `Overrides`.

    Returns:
        The recipe, every key, column and value checked.

    Raises:
        DanqingError: names the line of the file and the nearest valid name.

    >>> load_recipe("embedded", set={"words.max": 40}).criteria[2].rule
    '5 ≤ words ≤ 40'
    """
    if isinstance(set, Mapping):
        set = [f"{name}={json.dumps(value)}" for name, value in set.items()]
    if isinstance(recipe, Recipe):
        return reading.recipe_from_dict(recipe.to_dict(), recipe.name, _listed(set), known_columns(), model_roles())
    return reading.load_recipe(str(recipe), _listed(set), known_columns(), model_roles())


def curate(
    inputs: StrPaths,
    output: StrPath,
    recipe: StrPath | Recipe = DEFAULT_RECIPE,
    *,
    set: Overrides = (),
    output_format: str = WEBDATASET,
    shard_size: int = SHARD_SIZE,
    shuffle: int | None = None,
    licence: str = "other",
    against: StrPaths = (),
    exclude_similar_to: StrPaths = (),
    exclude_within: float | None = None,
    neighbours: str = AUTO,
    progress: bool | None = None,
    **options: Unpack[ScoringOptions],
) -> Run:
    """Scores, decides and writes. An interrupted run is resumed; a finished one is left as it is.

    Args:
        inputs: WebDataset shards, Parquet files with images, tables that name image files, or folders of these or of
            images; globs and brace ranges.
        output: folder of the run.
        recipe: see `load_recipe`.
        set: values of the recipe to override.
        output_format: `webdataset`: .tar shards and a table of scores; `parquet`: one table with the images; or the
            writer of an installed package.
        shard_size: pairs of a written shard.
        shuffle: seed of a permutation of the written pairs; default: input order.
        licence: licence that the dataset card names.
        against: curated runs; pairs whose image is a near-duplicate of one that they kept are dropped.
        exclude_similar_to: evaluation data: folders of images or shards, or runs; pairs with a near image are dropped.
        exclude_within: cosine distance to evaluation data; default: that of the recipe's near-duplicates.
        neighbours: see `decide`.
        progress: show a progress bar; default: only on a terminal.
        options: see `ScoringOptions`.

    Returns:
        The finished run.

    Raises:
        DanqingError: an input, an option or a folder cannot be used.

    >>> run = curate(["shards/00000.tar", Path("shards/00001.tar")], "out", "recipe.yaml", device="cpu", threads=1)
    >>> run.kept().to_table(columns=["key", "width"]).to_pylist()[0]
    {'key': '0000', 'width': 160}
    >>> sorted(path.name for path in (run.folder / "shards").iterdir())
    ['00000.parquet', '00000.tar', 'README.md', 'sizes.json']
    """
    phases.curate(
        _paths(inputs),
        path_of(output),
        load_recipe(recipe, set),
        _settings(options),
        WriteOptions(output_format, shard_size, shuffle, licence),
        list(map(path_of, _listed(against))),
        list(map(path_of, _listed(exclude_similar_to))),
        exclude_within,
        progress=_progress(progress),
        neighbours=neighbours,
    )
    return open_run(output)


def score(
    inputs: StrPaths,
    output: StrPath,
    recipe: StrPath | Recipe = DEFAULT_RECIPE,
    *,
    set: Overrides = (),
    progress: bool | None = None,
    **options: Unpack[ScoringOptions],
) -> Run:
    """Computes the scores of every pair, once; the expensive phase. An interrupted run is resumed.

    Args:
        inputs, output, recipe, set, progress, options: see `curate`.

    Returns:
        The scored run; `decide` comes next.

    Raises:
        DanqingError: an input, an option or the folder cannot be used.

    >>> score("shards", "scored", "recipe.yaml", score_everything=True).scores().count_rows()
    8
    """
    phases.score_inputs(
        _paths(inputs), path_of(output), load_recipe(recipe, set), _settings(options), progress=_progress(progress)
    )
    return open_run(output)


def decide(
    run: StrPath | EngineRun,
    recipe: StrPath | Recipe | None = None,
    *,
    set: Overrides = (),
    device: str = "auto",
    threads: int | None = None,
    force: bool = False,
    neighbours: str = AUTO,
    ray: str = "",
    progress: bool | None = None,
) -> Run:
    """Applies a recipe's criteria to a scored run; takes seconds and rewrites verdicts and funnel.

    Args:
        run: a run or its folder.
        recipe: see `load_recipe`; default: the recipe the run was scored with.
        set: values of the recipe to override.
        device: see `ScoringOptions`.
        threads: host threads; default: all cores.
        force: decide though the recipe names other models than those that scored the run.
        neighbours: how near-duplicates are searched: `tiles`, `faiss`, `lists` (for a recall below 1), the index of an
            installed package, or `auto` (default): `tiles`; for a recall below 1 `faiss` on a GPU if it is installed,
            else `lists`. Exact ones give equal verdicts.
        ray: search for near-duplicates on a Ray cluster, with workers on `device`: `auto`, `local` or HOST:PORT.
        progress: show a progress bar; default: only on a terminal.

    Returns:
        The decided run; `write` copies its kept pairs.

    Raises:
        DanqingError: shards without scores, a recipe that needs scores which were not computed, or other models.

    >>> scored = score("shards", "scored", "recipe.yaml", score_everything=True)
    >>> decide(scored, set=["words.min=1"]).funnel.kept
    6
    """
    opened = _opened(run)
    chosen = load_recipe(opened.recipe if recipe is None else recipe, set)
    bar, cores = _progress(progress), _positive("threads", threads)
    search = RaySearch(ray, device, cores) if ray else None
    phases.decide_run(opened, chosen, device, cores, bar, force, neighbours, search)
    return opened


def write(
    run: StrPath | EngineRun,
    *,
    output_format: str = WEBDATASET,
    shard_size: int = SHARD_SIZE,
    shuffle: int | None = None,
    licence: str = "other",
    part: str = "",
    ray: str = "",
    progress: bool | None = None,
) -> Run:
    """Copies the kept pairs of a decided run into shards, with kept_uids.npy, README.md and report.html.

    Args:
        run: a run or its folder.
        output_format, shard_size, shuffle, licence: see `curate`.
        part: `"I/N"`: only an N-th of the shards, as one of N tasks that run at once on one folder; `"any"`: the shards
            that no other process has taken.
        ray: copy on a Ray cluster: `auto`, `local` or HOST:PORT.
        progress: show a progress bar; default: only on a terminal.

    Returns:
        The written run.

    Raises:
        DanqingError: the run is not decided, or an input changed since it was scored.

    >>> write(decide("scored"), output_format="parquet").kept().to_table()["text"][0].as_py()
    '公园的草地上有一只可爱的小猫在晒太阳'
    """
    opened = _opened(run)
    options = WriteOptions(output_format, shard_size, shuffle, licence)
    phases.write_run(opened, options, _progress(progress), read_share(part), ray)
    return opened


def recaption(
    run: StrPath | EngineRun,
    endpoint: str | Iterable[str],
    *,
    model: str = AUTO_MODEL,
    prompt: str = "short",
    max_tokens: int | None = None,
    longest_edge: int | None = None,
    concurrency: int = CONCURRENCY,
    again: bool = False,
    part: str = "",
    device: str = "auto",
    threads: int | None = None,
    progress: bool | None = None,
) -> Run:
    """Asks a vision-language model for captions of the kept pictures; `write` then adds them. Can be resumed.

    Args:
        run: a decided run or its folder.
        endpoint: OpenAI-compatible addresses, `"http://HOST:8000/v1"` or a list. A key is read from $DANQING_VLM_KEY.
        model: the model's id; `auto`: the only one that the endpoints serve.
        prompt: `short` or `dense` (Chinese captions), or a text file.
        max_tokens: of an answer; default: 128, with the prompt `dense` 512.
        longest_edge: pixels; larger pictures are sent in this size; default: the original bytes.
        concurrency: requests at once, over all endpoints.
        again: ask anew with another prompt or model; with the same ones, ask again where the outcome is an error.
        part: `"I/N"`: only a part of the input shards, as one of N tasks that run at once on one folder.
        device, threads: measure the recaptions; see `decide`.
        progress: show a progress bar; default: only on a terminal.

    Returns:
        The run; `recaptions()` is the dataset.

    Raises:
        DanqingError: the run is not decided, the endpoints do not answer, or another prompt or model without `again`.
    """
    opened = _opened(run)
    for name, value in (
        ("max_tokens", max_tokens), ("longest_edge", longest_edge), ("concurrency", concurrency), ("threads", threads)
    ):  # fmt: skip
        _positive(name, value)
    settings = settings_from(
        {"vlm_endpoint": _listed(endpoint), "vlm_model": model, "vlm_concurrency": concurrency, "part": part,
         "device": device, "threads": threads}
    )  # fmt: skip
    question = open_prompt(prompt, max_tokens, longest_edge)
    phases.recaption_run(opened, question, settings, again, _progress(progress))
    return opened


def merge(
    runs: Iterable[StrPath | EngineRun],
    output: StrPath,
    *,
    output_format: str = WEBDATASET,
    shard_size: int = SHARD_SIZE,
    shuffle: int | None = None,
    licence: str = "other",
    device: str = "auto",
    threads: int | None = None,
    neighbours: str = AUTO,
    progress: bool | None = None,
) -> Run:
    """Makes one run of several decided runs, without near-duplicates between them, and writes it.

    Args:
        runs: runs or their folders.
        output: folder of the merged run.
        output_format, shard_size, shuffle, licence: see `curate`.
        device, threads, neighbours, progress: see `decide`.

    Returns:
        The merged run.

    Raises:
        DanqingError: the runs have no verdicts, or differ in recipe, models or layout.

    >>> halves = [curate(f"shards/0000{i}.tar", f"half{i}", "recipe.yaml") for i in range(2)]
    >>> [half.funnel.kept for half in halves], merge(halves, "both").funnel.kept
    ([4, 2], 5)
    """
    folders = [run.folder if isinstance(run, EngineRun) else path_of(run) for run in _listed(runs)]
    bar = _progress(progress)
    merged, _ = phases.merge_runs(folders, path_of(output), device, _positive("threads", threads), bar, neighbours)
    phases.write_run(merged, WriteOptions(output_format, shard_size, shuffle, licence), bar)
    return open_run(output)


def select(
    inputs: StrPaths,
    output: StrPath,
    recipe: StrPath | Recipe = DEFAULT_RECIPE,
    *,
    set: Overrides = (),
    url_col: str | None = None,
    caption_col: str | None = None,
    encoding: str | None = None,
    follow_links: bool = False,
    blocklist: StrPath | None = None,
    user_dict: StrPaths = (),
    limit: int | None = None,
    force: bool = False,
    device: str = "auto",
    threads: int | None = None,
    progress: bool | None = None,
) -> Selection:
    """Drops rows of URL tables by the criteria that need no image, before anything is downloaded.

    Args:
        inputs: Parquet, CSV or JSON lines: files, folders, globs, brace ranges.
        output: folder of the selection.
        recipe: see `load_recipe`.
        set: values of the recipe to override.
        url_col: column of the URLs; default: `image_url` or `url`, in any case.
        caption_col: column of the captions; default: `caption`, `text`, `alt_text` or `title`, in any case.
        encoding, follow_links, blocklist, user_dict, limit, force, device, threads: see `ScoringOptions`.
        progress: show a progress bar; default: only on a terminal.

    Returns:
        The selection: `.urls` (folder of the kept rows), `.funnel`, `.download_command()`.

    Raises:
        DanqingError: a table that cannot be read, or a folder with another selection.

    >>> select("urls.csv", "selected", "recipe.yaml").funnel.kept
    2
    """
    settings = _settings(
        {
            "encoding": encoding or "",
            "follow_links": follow_links,
            "blocklist": blocklist,
            "user_dict": user_dict,
            "limit": limit,
            "force": force,
            "device": device,
            "threads": threads,
        }
    )
    return select_tables(
        _paths(inputs),
        path_of(output),
        load_recipe(recipe, set),
        Columns(url_col or "", caption_col or "", settings.layout.encoding),
        settings,
        _progress(progress),
    )


def train(
    runs: StrPaths,
    checkpoint: StrPath,
    output: StrPath,
    recipe: StrPath = "danqing",
    *,
    set: Overrides = (),
    recaption_share: float | None = None,
    decode: Literal["auto", "cpu"] = "auto",
    device: str = "auto",
    threads: int | None = None,
    evaluate: str = "",
    every: int = 0,
    log_to: str | Iterable[str] = (),
    progress: bool | None = None,
) -> Path:
    """Trains a SigLIP model on the pairs that runs have kept; goes on from the last checkpoint in `output`.

    Needs the extra `train`.

    Args:
        runs: folders of written runs.
        checkpoint: folder of the model to start from (`--from`), as published, or `model` of another training.
        output: folder for checkpoints, train.jsonl and the final model.
        recipe: name of a training recipe, or path of a YAML file.
        set: values to override: `"batch=1536"`, a list, or `{"batch": 1536}`.
        recaption_share: share of the pairs whose text is their recaption, 0 to 1; default: the recipe's.
        decode: `cpu`: decode pictures on the host; `auto`: on the device.
        device, threads, progress: see `decide`.
        evaluate: a suite that the model is evaluated on.
        every: steps between two evaluations; 0: only the final model is evaluated.
        log_to: `tensorboard`, `wandb`, `trackio`, or several of them.

    Returns:
        The final model's folder, which `danqing models export` takes.

    Raises:
        DanqingError: a run is not written, the checkpoint is not that of a SigLIP, a package is missing, or `output`
            holds another training.
    """
    loop = import_training()
    settings = [f"{name}={json.dumps(value)}" for name, value in set.items()] if isinstance(set, Mapping) else set
    share = [] if recaption_share is None else [f"recaption_share={recaption_share}"]
    chosen = load_train_recipe(str(recipe), [*_listed(settings), *share])
    options = loop.TrainOptions(
        device, _positive("threads", threads), _one_of("decode", decode, ("auto", "cpu")),
        log_to=tuple(_listed(log_to)), suite=evaluate, every=every,
    )  # fmt: skip
    folders = [path_of(run) for run in _paths(runs)]
    found: Path = loop.train(folders, path_of(checkpoint), path_of(output), chosen, options, _progress(progress)).model
    return found


def judge_frame(
    frame: Any,
    recipe: StrPath | Recipe = DEFAULT_RECIPE,
    *,
    set: Overrides = (),
    url_col: str | None = None,
    caption_col: str | None = None,
    blocklist: StrPath | None = None,
    user_dict: StrPaths = (),
    device: str = "auto",
    threads: int | None = None,
) -> Any:
    """Judges the rows of a frame by the criteria that need no image, as `select` judges those of files.

    Args:
        frame: a frame of cuDF, pandas or polars, or an Arrow table, with a column of URLs and one of captions. The text
            of a cuDF frame stays on its GPU.
        recipe, set, url_col, caption_col, blocklist, user_dict, device, threads: see `select`.

    Returns:
        A frame of the same library with the same rows and index: `keep`, `dropped_by` (the criterion), the scores,
        `text_clean`, and `error` where a row has no URL of the web or no caption.

    Raises:
        DanqingError: a column is missing or holds no text, or an option cannot be used.

    >>> import pandas as pd
    >>> frame = pd.read_csv("urls.csv")
    >>> found = judge_frame(frame, "recipe.yaml")
    >>> frame[found["keep"]].assign(text_clean=found["text_clean"])["text_clean"].tolist()
    ['公园的草地上有一只可爱的小猫在晒太阳', '公园的草地上有一只可爱的小猫在晒太阳']
    """
    device = _device_of(frame, device)
    settings = _settings({"blocklist": blocklist, "user_dict": user_dict, "device": device, "threads": threads})
    columns = Columns(url_col or "", caption_col or "")
    return frames.judge_frame(frame, load_recipe(recipe, set), columns, settings)


def measure_captions(
    captions: Any, *, user_dict: StrPaths = (), device: str = "auto", threads: int | None = None
) -> Any:
    """Measures captions: words, nouns, shares of scripts, entropy; without cleaning them first.

    Args:
        captions: a series of cuDF, pandas or polars, an Arrow array, or a list of str; a missing caption counts as
            empty. The text of a cuDF series is read where it lies.
        user_dict, device, threads: see `ScoringOptions`.

    Returns:
        A frame of the same library with the same rows and index (an Arrow table for arrays and lists): a float32 column
        per measure, which `docs/reference/columns.md` describes.

    >>> import pandas as pd
    >>> frame = pd.DataFrame({"caption": ["一只橘猫趴在窗台上", "小猫"]})
    >>> frame.join(measure_captions(frame["caption"]))["words"].tolist()
    [4.0, 1.0]
    """
    settings = _settings({"user_dict": user_dict, "device": _device_of(captions, device), "threads": threads})
    with open_device(settings.device, settings.threads) as opened:
        return frames.measure_captions(captions, opened, settings.user_dictionaries)


def evaluate(
    models: str | Iterable[str],
    suite: StrPaths,
    *,
    templates: StrPath | None = None,
    limit: int | None = None,
    output: StrPath | None = None,
    resizer: Literal["auto", "dali", "kernel"] = "auto",
    strict_engines: bool = False,
    device: str = "auto",
    threads: int | None = None,
    progress: bool | None = None,
) -> list[Evaluation]:
    """Measures zero-shot classification and retrieval of models with two towers.

    Args:
        models: folders with the cards of both towers, the common beginning of their names, `IMAGE_CARD,TEXT_CARD`, or
            recipes; `@PART` behind one chooses the engines with PART in their name, `@model` none.
        suite: `demo`, `digits`, or data sets in the layouts that docs/evaluation.md lists.
        templates: file of templates with `{c}` for the name of a class.
        limit: only the first pictures of each data set.
        output: evaluation.json to write.
        resizer, strict_engines, device, threads, progress: see `curate`.

    Returns:
        An evaluation for each model: `.rows` with `.metrics`, `.averages`, and `.against(another)` for the differences
        with their intervals.

    Raises:
        DanqingError: a model, a data set or an option cannot be used.

    >>> (found,) = evaluate("embedded", "demo", limit=3, device="cpu")
    >>> found.rows[0].task, found.rows[0].pictures, found.rows[0].texts
    ('zeroshot_retrieval', 3, 6)
    """
    settings = _settings({"resizer": resizer, "strict_engines": strict_engines, "device": device, "threads": threads})
    chosen = None if templates is None else path_of(templates)
    limit = _positive("limit", limit)
    found = evaluate_models(_listed(models), _paths(suite), settings, chosen, limit, _progress(progress))
    if output is not None:
        write_evaluations(path_of(output), found)
    return found


def _device_of(frame: Any, device: str) -> str:
    """The device for a frame: that of a cuDF frame is a GPU."""
    return "cuda" if device == "auto" and frames.library_of(frame) == "cudf" else device


def _settings(options: ScoringOptions) -> Settings:
    """The engine's settings for options as a caller gives them.

    Raises:
        TypeError: an unknown option. DanqingError: a value that is not valid.
    """
    for name in options:
        if name not in ScoringOptions.__annotations__:
            raise TypeError(f"unknown option {name!r}; {did_you_mean(name, ScoringOptions.__annotations__)}")
    if options.get("resizer") is not None:
        _one_of("resizer", options["resizer"], ("auto", "dali", "kernel"))
    for name in ("max_pixels", "threads", "workers_per_gpu", "limit", "vlm_concurrency"):
        _positive(name, options.get(name))  # type: ignore[arg-type]
    blocklist = options.get("blocklist")
    return settings_from(
        {
            **options,
            "blocklist": None if blocklist is None else path_of(blocklist),
            "user_dict": list(map(path_of, _listed(options.get("user_dict") or ()))),
            "memory_limit": _size(options.get("memory_limit")),
        }
    )


def _progress(wanted: bool | None) -> OpenProgress:
    return ProgressBar if (sys.stderr.isatty() if wanted is None else wanted) else silent


def _opened(run: StrPath | EngineRun) -> Run:
    if isinstance(run, Run):
        return run
    return open_run(run.folder if isinstance(run, EngineRun) else run)


def _listed(value: Any) -> list[Any]:
    """A value, or several, as a list; texts and paths are one value."""
    one = isinstance(value, str | os.PathLike) or not isinstance(value, Iterable)
    return [value] if one else list(value)


def _paths(inputs: StrPaths) -> list[str]:
    return [str(path_of(value)) if isinstance(value, Path) else os.fspath(value) for value in _listed(inputs)]


def _positive(name: str, value: int | None) -> int | None:
    if value is not None and (not isinstance(value, int) or value < 1):
        raise DanqingError(f"{name}={value!r}: give a whole number of 1 or more")
    return value


def _one_of(name: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise DanqingError(f"{name}={value!r}: {did_you_mean(value, known)}")
    return value


def _size(value: int | str | None) -> int | None:
    try:
        return _positive("memory_limit", read_size(value) if isinstance(value, str) else value)
    except ValueError:
        raise DanqingError(f"memory_limit={value!r}: give a number of bytes, or text like '4G'") from None
