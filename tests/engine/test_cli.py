from __future__ import annotations

import json
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from inspect import signature
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cyclopts import App

from danqing import __version__
from danqing.engine.cli.commands import app
from danqing.engine.cli.inspect import ToleranceOptions
from danqing.engine.cli.main import HELP, main
from danqing.engine.cli.models import verify
from danqing.engine.cli.options import (
    BUILTIN_RECIPES,
    LayoutOptions,
    MachineOptions,
    SeveralOptions,
    ShardOptions,
    StageOptions,
    TextOptions,
    to_local_folder,
    to_paths,
)
from danqing.engine.cli.reference import general_help, reference_page
from danqing.engine.core.buckets import ENDPOINT
from danqing.engine.core.escape import UNSAFE
from danqing.engine.phases import score_inputs
from danqing.engine.recipe.reading import Recipe, builtin_names
from danqing.engine.report.differences import Tolerance
from danqing.engine.report.explain import find_pairs
from danqing.engine.report.notes import run_notes
from danqing.engine.run.folder import Run
from danqing.engine.run.settings import Settings
from danqing.engine.run.versions import SCORING_VERSIONS
from danqing.engine.sources import Layout, Shard
from danqing.engine.write.output import WriteOptions
from danqing.trt_models.engines import MAX_FLIPS, MIN_COSINE
from tests.conftest import RECIPE_WITHOUT_NETWORKS, picture, started
from tests.engine.score.test_run import samples, tree

Make = Callable[..., Path]


def commands(parent: App = app, *names: str) -> Iterator[tuple[str, ...]]:
    """Yields the words of every command."""
    for name in parent:
        if name not in (*parent.help_flags, *parent.version_flags):
            yield (*names, name)
            yield from commands(parent[name], *names, name)


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0 and capsys.readouterr().out == f"danqing {__version__}\n"
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert main([]) == 0 and capsys.readouterr().out == shown and "words.max=40" in shown
    assert {("curate",), ("models", "verify"), ("--install-completion",)} <= set(commands())
    for words in commands():
        assert main([*words, "--help"]) == 0
        shown = capsys.readouterr().out
        assert "\nExamples" in shown and f"danqing {' '.join(words)}" in shown.split("\nExamples")[1]
        assert max(map(len, shown.splitlines())) <= 80


def test_the_generated_pages_are_current() -> None:
    page, command = "docs/reference/cli.md", "python -m danqing.engine.cli.reference"
    text = (Path(__file__).parents[2] / page).read_text(encoding="utf-8")
    assert text == reference_page() and HELP.read_text(encoding="utf-8") == general_help(), f"run: {command} {page}"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from danqing.engine.cli.main import main; main();"
        "print({'numpy', 'pyarrow', 'numba', 'yaml', 'cyclopts', 'danqing.engine.phases'} & sys.modules.keys())"
    )
    for arguments, imported in (([], "set()"), (["curate"], "{'cyclopts'}")):
        command = [sys.executable, "-c", code, *arguments, "--help"]
        run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
        assert run.stdout.splitlines()[-1] == imported


def test_the_defaults_in_the_help_are_those_of_the_engine() -> None:
    """Options repeat these values, so that printing help need not import the modules that define them."""
    assert list(BUILTIN_RECIPES) == builtin_names()
    tolerance, verified = Tolerance(), signature(verify).parameters
    assert asdict(ToleranceOptions()) == {name: getattr(tolerance, name) for name in ("within", "cosine", "flips")}
    assert (verified["min_cosine"].default, verified["max_flips"].default) == (MIN_COSINE, MAX_FLIPS)
    assert ShardOptions().load() == WriteOptions()


def test_options_of_a_command_become_settings() -> None:
    machine = MachineOptions(device="cpu", threads=2)
    layout, several = LayoutOptions(image_key=".jpg; png,"), SeveralOptions(devices="0,1", workers_per_gpu=2)
    settings = StageOptions(TextOptions(user_dict=(Path("a"),)), machine=machine).settings(layout, several, limit=5)
    assert settings.devices == ("cuda:0", "cuda:1") * 2 and settings.device == "cuda:0"
    assert settings.layout == Layout(image_keys=("jpg", "png")) and settings.user_dictionaries == (Path("a"),)
    assert (settings.threads, settings.limit, settings.max_pixels) == (2, 5, Settings.max_pixels)
    assert StageOptions(machine=machine).settings() == Settings(threads=2)


def test_options_that_take_several_values() -> None:
    _, bound, _ = app.parse_args("models verify NAME ENGINE --data a.tar b.tar --set x.min=1 --set y.max=2")
    assert bound.arguments["data"] == ["a.tar", "b.tar"] and bound.arguments["engine"] == "ENGINE"
    assert bound.arguments["recipe"].settings == ("x.min=1", "y.max=2")
    _, bound, _ = app.parse_args("models compile NAME --gpu sm_90 --data a.tar b.tar")
    assert bound.arguments["data"] == ["a.tar", "b.tar"] and bound.arguments["target"] == "sm_90"
    _, bound, _ = app.parse_args("curate a.tar b.tar -o out --against x --against y --device cpu --device cuda")
    assert bound.arguments["inputs"] == ["a.tar", "b.tar"] and bound.arguments["other"].against == (
        Path("x"),
        Path("y"),
    )
    assert bound.arguments["scoring"].machine.device == "cuda"  # the last one


def test_every_path_is_converted() -> None:
    """A path without a converter would make `s3://b/out` a folder `s3:` of the current one."""
    checked = 0
    for words in commands():
        command = app
        for name in words:
            command = command[name]
        if command.default_command is None:
            continue
        for argument in command.assemble_argument_collection():
            if "Path" in str(argument.hint):
                assert argument.parameter.converter in (to_paths, to_local_folder), (words, argument.name)
                checked += 1
    assert checked > 40


def test_auto_is_the_default_and_says_what_it_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = MachineOptions()
    assert (machine.chosen, machine.note) == ("cpu", "device: cpu (no GPU found)")
    assert MachineOptions("cpu").note == ""
    monkeypatch.setattr("danqing.engine.core.device._counted_gpus", lambda: 2)
    machine = MachineOptions()
    assert (machine.chosen, machine.note) == ("cuda:0", "device: cuda:0")
    assert SeveralOptions(devices="0,1").note(machine) == ""


def test_completion_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["--install-completion", "--shell", "bash"]) == 0
    script = Path(capsys.readouterr().out.split(": ")[0])
    assert script.is_relative_to(tmp_path) and "--exclude-similar-to" in script.read_text()


def test_the_commands_one_after_the_other(make_shard: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, out = tmp_path / "plain.yaml", str(tmp_path / "out")
    recipe.write_text(RECIPE_WITHOUT_NETWORKS)
    members = samples(0, 3) | {"bad.jpg": b"<html>", "bad.txt": "公园的草地上有一只可爱的小猫"}
    shard = str(make_shard(members))
    assert main(["curate", shard, "-o", out, "--recipe", str(recipe)]) == 0
    assert "4" in capsys.readouterr().out
    assert main(["curate", shard, "-o", out, "--recipe", str(recipe)]) == 0
    assert "already scored" in capsys.readouterr().out
    assert main(["decide", out, "--set", "words.max=6"]) == 0
    assert main(["write", out]) == 0
    capsys.readouterr()
    assert main(["explain", out, "bad"]) == 0
    shown = capsys.readouterr().out
    assert "公园的草地上有一只可爱的小猫" in shown and "dropped here" in shown and "an HTML page" in shown
    assert main(["explain", out, "nobody"]) == 2


def test_scripts_get_one_json_object(make_shard: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, out = tmp_path / "plain.yaml", str(tmp_path / "out")
    recipe.write_text(RECIPE_WITHOUT_NETWORKS)

    def run(*arguments: str) -> Any:
        assert main([*arguments, "--json"]) == 0
        said = capsys.readouterr()
        assert "\x1b" not in said.err and "danqing:" not in said.err
        return json.loads(said.out)

    shard = str(make_shard(samples(0, 3)))
    scored = run("score", shard, "-o", out, "--recipe", str(recipe))
    assert scored["folder"] == out and scored["stages"]["read"]["pairs"] == 3 and not scored["already_scored"]
    curated = run("curate", shard, "-o", out, "--recipe", str(recipe))
    assert curated["kept"] == curated["funnel"]["kept"] == 3 and curated["already_scored"]
    assert run("decide", out, "--set", "words.max=6")["kept"] == 0
    assert run("write", out)["kept"] == 0
    pairs = run("explain", out, "00001")["pairs"]
    assert [pair["dropped_by"] for pair in pairs] == ["words"]
    assert run("diff", out, out)["agree"] is True
    assert {model["name"] for model in run("models", "list")["models"]} >= {"open-nsfw"}


def test_what_probably_went_wrong_is_said_at_the_end(
    make_shard: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = tmp_path / "plain.yaml", str(tmp_path / "out")
    recipe.write_text(RECIPE_WITHOUT_NETWORKS)
    members = samples(0, 3) | {"bad.jpg": b"<html>", "bad.txt": "公园的草地上有一只可爱的小猫"}
    assert main(["curate", str(make_shard(members)), "-o", out, "--recipe", str(recipe)]) == 0
    many = "warning: 1 of 4 rows have an error (25.0%); 1 of them: not a picture: an HTML page\n"
    assert capsys.readouterr().err.endswith(many)
    assert main(["decide", out, "--set", "words.max=6", "--json"]) == 0
    said = capsys.readouterr()
    nothing = "warning: words drops all 4 rows that reach it (5 ≤ words ≤ 6); nothing is kept\n"
    assert said.err.endswith(many + nothing) and json.loads(said.out)["notes"] == (many + nothing).splitlines()
    table = tmp_path / "t.csv"
    table.write_text("url,caption\nhttp://a.example/0,小猫\n")
    assert main(["select", str(table), "-o", str(tmp_path / "chosen"), "--recipe", str(recipe)]) == 0
    assert "warning: words drops the only row that reaches it" in capsys.readouterr().err


def test_a_few_errors_are_counted_and_most_of_them_named(plain_recipe: Recipe, tmp_path: Path) -> None:
    shard = Shard(0, "a", tmp_path / "a", 0)
    run = Run.create_or_resume(tmp_path / "out", [shard], plain_recipe, Layout(), {})
    run.scores_path(0).parent.mkdir()

    def notes(errors: list[str | None]) -> list[str]:
        pq.write_table(pa.table({"error": pa.array(errors, pa.string())}), run.scores_path(0))
        return run_notes(run)

    assert notes([None] * 20) == notes([]) == []
    assert notes(["x", *[None] * 19]) == ["1 of 20 rows have an error (5.0%); see the column error of scores/"]
    run.manifest["engines"] = {"text_safety": {"a" * 64: 2, "b" * 64: 1}}
    (note,) = notes([None])
    assert note == f"scored by several engines: text_safety: 2 shards by {'a' * 12}, 1 shards by {'b' * 12}"
    run.manifest.pop("engines")
    assert notes(["x", "y" * 200, "y" * 200, *[None] * 17]) == [
        f"warning: 3 of 20 rows have an error (15.0%); 2 of them: {'y' * 119}…"
    ]


def test_pairs_are_explained_by_the_inputs_own_key(plain_recipe: Recipe, tmp_path: Path) -> None:
    table = {"image": [picture(1), picture(2)], "text": ["小猫", "小狗"], "key": ["a", "a"]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    run, _ = score_inputs([str(tmp_path / "a.parquet")], tmp_path / "out", plain_recipe, Settings())
    assert [pair["key"] for pair in find_pairs(run, "a")] == ["a", "a_1"]
    assert [pair["key"] for pair in find_pairs(run, "a_1")] == ["a_1"]


def test_names_and_captions_are_shown_with_escapes(
    make_shard: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = tmp_path / "plain.yaml", str(tmp_path / "out")
    recipe.write_text(RECIPE_WITHOUT_NETWORKS)
    key, caption = "[bold]k\u202e", "小猫\x1b[2J [red]在[/red] 公园的草地上晒太阳\x9b"
    shard = make_shard({f"{key}.jpg": picture(1), f"{key}.txt": caption})
    assert main(["curate", str(shard), "-o", out, "--recipe", str(recipe)]) == 0
    capsys.readouterr()
    assert main(["explain", out, key]) == 0
    shown = capsys.readouterr().out
    assert "key [bold]k\\u202e" in shown and "小猫\\x1b[2J [red]在[/red] 公园的草地上晒太阳\\x9b" in shown
    assert not UNSAFE.search(shown)
    assert main(["explain", out, key, "--json"]) == 0
    shown = capsys.readouterr().out
    assert not UNSAFE.search(shown) and json.loads(shown)["pairs"][0]["caption"] == caption
    assert main(["explain", out, "[/]"]) == 2 and "no pair with key or uid '[/]'" in capsys.readouterr().err
    page = (tmp_path / "out" / "report.html").read_text()
    assert "[bold]k\\u202e" in page and not UNSAFE.search(page)


def test_quiet_prints_nothing(make_shard: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recipe, out = tmp_path / "plain.yaml", str(tmp_path / "out")
    recipe.write_text(RECIPE_WITHOUT_NETWORKS)
    shard = str(make_shard(samples(0, 3)))
    assert main(["curate", shard, "-o", out, "--recipe", str(recipe), "--quiet"]) == 0
    assert main(["decide", out, "--quiet"]) == main(["write", out, "--quiet"]) == 0
    assert capfd.readouterr() == ("", "")
    assert main(["write", str(tmp_path), "--quiet"]) == 2
    assert capfd.readouterr().err.startswith("danqing: ")


def test_a_limit_takes_the_first_rows(make_shard: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, out = tmp_path / "plain.yaml", tmp_path / "out"
    recipe.write_text(RECIPE_WITHOUT_NETWORKS)
    shards = [str(make_shard(samples(100 * i, 3), f"{i:05d}.tar")) for i in range(2)]
    (tmp_path / "00002.tar").write_bytes(b"not opened")
    command = ["curate", *shards, str(tmp_path / "00002.tar"), "-o", str(out), "--recipe", str(recipe)]
    assert main([*command, "--limit", "5"]) == 0
    keys = [pq.read_table(path)["key"].to_pylist() for path in sorted((out / "scores").glob("*.parquet"))]
    assert keys == [["00000", "00001", "00002"], ["00100", "00101"]]
    assert "5 pairs in" in capsys.readouterr().out
    with tarfile.open(out / "shards" / "00000.tar") as written:
        assert sorted(written.getnames()) == sorted(
            f"{key}.{kind}" for key in keys[0] + keys[1] for kind in ("jpg", "json", "txt")
        )
    assert main([*command, "--limit", "4"]) == 2
    assert "limit: 5 there, 4 here" in capsys.readouterr().err


def test_a_limit_takes_the_first_rows_of_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, out = tmp_path / "plain.yaml", tmp_path / "out"
    recipe.write_text(RECIPE_WITHOUT_NETWORKS)
    for name, first, rows in (("a", 0, 3), ("b", 3, 3)):
        lines = [f"https://example.com/{row}.jpg,公园的草地上有一只可爱的小猫" for row in range(first, first + rows)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["url,caption", *lines]))
    (tmp_path / "c.csv").write_text("no,such,columns\n")
    command = ["select", str(tmp_path / "?.csv"), "-o", str(out), "--recipe", str(recipe), "--json"]
    monkeypatch.setenv(ENDPOINT, "")
    assert main([*command, "--limit", "4", "--endpoint", "http://minio:9000"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["funnel"]["collected"] == 4
    assert result["next"][1].endswith(f"-o curated --recipe {recipe} --endpoint http://minio:9000")
    rows = [pq.read_table(path)["row"].to_pylist() for path in sorted((out / "verdicts").glob("*.parquet"))]
    assert rows == [[0, 1, 2], [0]]
    assert main(command) == 2


WITHOUT_EXTRAS = """
import sys
from danqing.engine.cli.main import main

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name in (
            "nvidia.dali", "pandas", "cv2", "torch", "transformers", "tokenizers", "numba.cuda", "cupy", "rmm", "scipy",
            "sklearn", "umap",
        ):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Hidden())
sys.exit(main())
"""


def test_the_core_runs_without_the_extras(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_EXTRAS, "demo", "-o", str(tmp_path / "demo")]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert run.returncode == 0, run.stderr[-2000:]
    versions = Run.open(tmp_path / "demo" / "run").manifest["versions"]
    assert {"python", "numpy", "onnxruntime"} <= versions.keys()  # of what is there, none of what is not
    assert "onnxruntime-gpu" in SCORING_VERSIONS and "onnxruntime-gpu" not in versions


def test_a_killed_run_leaves_whole_files_and_goes_on(make_shard: Make, tmp_path: Path) -> None:
    recipe, out, whole = tmp_path / "plain.yaml", tmp_path / "out", tmp_path / "whole"
    recipe.write_text(RECIPE_WITHOUT_NETWORKS)
    shards = [str(make_shard(samples(100 * i, 50), f"{i:05d}.tar")) for i in range(6)]
    command, python = ["curate", *shards, "--recipe", str(recipe), "-o"], [sys.executable, "-m", main.__module__]
    with started([*python, *command, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        while running.poll() is None and not (out / "scores" / "00000.parquet").exists():
            time.sleep(0.005)
    assert running.wait() == -signal.SIGKILL, "it finished before it could be killed"
    for path in (out / "scores").glob("*.parquet"):
        assert pq.read_table(path).num_rows == 50
    assert not (out / "kept_uids.npy").exists()
    for folder in (out, whole):
        assert main([*command, str(folder)]) == 0
    assert tree(out) == tree(whole)
