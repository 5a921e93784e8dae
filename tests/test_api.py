"""The public API, as a notebook uses it: relative paths, texts for paths, default arguments."""

from __future__ import annotations

import doctest
import io
import json
import runpy
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from PIL import Image

import danqing
import danqing.api

EXAMPLES = Path(__file__).parents[1] / "examples"
CAPTION = "公园的草地上有一只可爱的小猫在晒太阳"
RECIPE = """
recipe: example
models:
  image_embedding: efficientnet-lite0-conse
  text_safety: jionlp-pornography
  caption_safety: jionlp-advertising
criteria:
  words: {min: 5, max: 60}
  decodable: {min: 1}
  redundancy: {within: 0.05, keep: first}
"""


def write_shard(path: Path, pairs: dict[str, tuple[bytes, str]], note: object) -> None:
    with tarfile.open(path, "w") as tar:
        for key, (image, caption) in pairs.items():
            parts = {"jpg": image, "txt": caption.encode(), "json": json.dumps({"note": note}).encode()}
            for extension, content in parts.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory: two shards of four pairs, a recipe, a table of URLs, and the finished run `out`."""
    folder = tmp_path_factory.mktemp("notebook")
    photos = sorted((Path(str(resources.files("danqing.engine"))) / "demo" / "photos").glob("*.jpg"))
    images = []
    for photo in photos[:6]:
        buffer = io.BytesIO()
        Image.open(photo).convert("RGB").resize((160, 120)).save(buffer, "JPEG")
        images.append(buffer.getvalue())
    (folder / "shards").mkdir()
    captions = [CAPTION, CAPTION, CAPTION, f"{CAPTION}，旁边坐着一位老人"]
    first = {f"000{i}": (image, caption) for i, (image, caption) in enumerate(zip(images[:4], captions, strict=True))}
    write_shard(folder / "shards" / "00000.tar", first, note=1)
    second = {
        "0004": (images[4], CAPTION),
        "0005": (images[5][:900], CAPTION),
        "0006": (images[5], "小猫"),
        "0007": (images[0], CAPTION),
    }
    write_shard(folder / "shards" / "00001.tar", second, note="text")
    (folder / "recipe.yaml").write_text(RECIPE)
    rows = [f"https://x.example/{i},{caption}" for i, caption in enumerate(("小猫", CAPTION, CAPTION))]
    (folder / "urls.csv").write_text("\n".join(["url,caption", *rows]))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        danqing.curate("shards/*.tar", "out", recipe="recipe.yaml")
        yield folder


def test_importing_danqing_loads_nothing_else() -> None:
    code = "import sys, danqing; sys.exit(any(name in sys.modules for name in ('danqing.api', 'numpy', 'pyarrow')))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)


def test_every_public_name_is_there_and_documented() -> None:
    names = {*danqing.api.__all__}
    assert names == {*danqing.__all__} - {"__version__"} and names < {*dir(danqing)}
    assert all(getattr(danqing, name).__doc__ for name in danqing.api.__all__)
    with pytest.raises(AttributeError, match="no attribute 'curat'"):
        danqing.curat  # type: ignore[attr-defined]  # noqa: B018


def test_the_examples_of_the_docstrings_run(notebook: Path) -> None:
    found = doctest.testmod(danqing.api, extraglobs={"danqing": danqing}, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.attempted > 20 and not found.failed


def test_tables_are_datasets_of_all_shards(notebook: Path) -> None:
    run = danqing.open_run("out")
    scores, verdicts = run.scores().to_table(), run.verdicts().to_table()
    assert scores["key"].to_pylist() == verdicts["key"].to_pylist() == [f"000{i}" for i in range(8)]
    assert scores["note"].to_pylist() == ["1"] * 4 + ['"text"'] * 4  # a number in one shard, text in the other
    assert run.scores(["words", "key"]).schema.names == ["words", "key"]
    assert run.kept().to_table(filter=ds.field("width") > 100)["key"].to_pylist() == [f"000{i}" for i in range(5)]
    assert scores.to_pandas()["words"].min() == 1  # what a notebook does next
    with pytest.raises(danqing.DanqingError, match=r"no column 'wrods'; did you mean 'words'\?"):
        run.scores(["wrods"])


def test_paths_and_recipes_in_any_form_name_the_same_run(notebook: Path) -> None:
    recipe = danqing.load_recipe(notebook / "recipe.yaml")
    both: list[str | Path] = ["shards/00000.tar", Path("shards/00001.tar")]
    for inputs in ("shards", Path("shards"), both):
        assert danqing.curate(inputs, Path("out"), recipe).folder == Path("out")
    assert danqing.load_recipe(recipe, set="words.max=40") == danqing.load_recipe("recipe.yaml", set={"words.max": 40})


def test_a_progress_bar_appears_only_when_asked_for(notebook: Path, capfd: pytest.CaptureFixture[str]) -> None:
    danqing.decide("out", set="words.max=50")
    assert capfd.readouterr().err == ""
    danqing.decide("out", progress=True)
    assert "decide" in capfd.readouterr().err
    danqing.write("out")


def test_what_is_near_other_data_is_dropped(notebook: Path) -> None:
    evaluation = notebook / "evaluation"
    evaluation.mkdir()
    with tarfile.open("shards/00000.tar") as tar:
        tar.extract("0001.jpg", evaluation, filter="data")
    run = danqing.curate("shards/00000.tar", "apart", "recipe.yaml", exclude_similar_to="evaluation", threads=1)
    assert {line.criterion: line.dropped for line in run.funnel.lines}["excluded"] == 1
    again = danqing.curate("shards/00001.tar", "again", "recipe.yaml", against="out")
    assert again.funnel.kept == 0


def test_mistakes_are_named(notebook: Path, tmp_path: Path) -> None:
    with pytest.raises(danqing.DanqingError, match="no run here"):
        danqing.open_run(tmp_path)
    scored = danqing.score("shards/00000.tar", tmp_path / "scored", "recipe.yaml")
    for read in (scored.verdicts, lambda: scored.funnel):
        with pytest.raises(danqing.DanqingError, match="no verdicts yet"):
            read()
    with pytest.raises(danqing.DanqingError, match="no written shards yet; run `danqing write`"):
        scored.kept()
    with pytest.raises(TypeError, match=r"unknown option 'devise'; did you mean 'device'\?"):
        danqing.score("shards", "x", "recipe.yaml", devise="cpu")  # type: ignore[call-arg]
    wrong = {"threads": 0, "limit": 0, "max_pixels": -5, "memory_limit": "much", "resizer": "dahli"}
    for option, value in wrong.items():
        with pytest.raises(danqing.DanqingError, match=f"^{option}="):
            danqing.score("shards", "x", "recipe.yaml", **{option: value})  # type: ignore[arg-type]
    with pytest.raises(danqing.DanqingError, match="no 'parket' is installed; did you mean 'parquet'"):
        danqing.write("out", output_format="parket")
    assert not Path("x").exists()


def test_options_become_the_engines_settings() -> None:
    settings = danqing.api._settings(
        {
            "devices": [0, "1"],
            "workers_per_gpu": 2,
            "memory_limit": "4G",
            "user_dict": "a",
            "limit": 9,
            "image_key": ".jpg, png;",
        }
    )
    assert settings.devices == ("cuda:0", "cuda:1") * 2 and settings.device == "cuda:0"
    assert (settings.memory_limit, settings.limit) == (4 << 30, 9) and settings.user_dictionaries == (Path("a"),)
    assert settings.layout.image_keys == ("jpg", "png") and "caption" in settings.layout.caption_keys
    assert danqing.api._settings({}).device == "cpu" and danqing.api._settings({}).devices == ()


def test_kept_pairs_can_be_read_as_one_table(notebook: Path, tmp_path: Path) -> None:
    run = danqing.curate("shards", tmp_path / "tables", "recipe.yaml", output_format="parquet")
    kept = run.kept()
    assert kept.schema.field("image").type == pa.struct({"bytes": pa.binary(), "path": pa.string()})
    assert pq.read_table(run.table_path(0)).num_rows == kept.count_rows() == 5
    keys = kept.to_table()["key"].to_pylist()
    smaller = danqing.write(run, shard_size=3, shuffle=1, licence="cc0-1.0")
    assert [pq.read_table(run.table_path(number)).num_rows for number in range(2)] == [3, 2]
    assert "license: cc0-1.0" in (run.folder / "README.md").read_text()
    assert sorted(smaller.kept().to_table()["key"].to_pylist()) == keys


def test_the_example_scripts_run(
    notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def output_of(script: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        return capsys.readouterr().out

    out = str(tmp_path / "out")
    looked = output_of("curate_and_look.py", "shards/*.tar", out, "recipe.yaml")
    assert "kept 5 of 8 pairs" in looked and "cannot be decoded" in looked and "dropped by" in looked
    read = output_of("read_for_training.py", out)
    assert read.splitlines() == [f"(4, 64, 64, 3) uint8 {CAPTION}", f"(1, 64, 64, 3) uint8 {CAPTION}"]
    assert "kept: 5 before, 4 now, of 8" in output_of("change_a_threshold.py", out, "words.max=11")
    assert len(list(EXAMPLES.glob("*.py"))) == 3
