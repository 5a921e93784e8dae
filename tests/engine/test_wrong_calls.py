"""Wrong command lines: each ends with exit status 2 and one line on stderr, and leaves no output folder."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from danqing.engine.cli.main import main

WRONG_CALLS = {
    # numbers
    "score a.tar -o y --threads 0": "--threads. It must be a whole number from 1 to 1024.",
    "score a.tar -o y --threads -1": "--threads. It must be",
    "score a.tar -o y --threads 5000": "--threads. It must be",
    "score a.tar -o y --threads 1.5": "'1.5' is not a whole number",
    "score a.tar -o y --threads ²": "'²' is not a whole number",
    "score a.tar -o y --threads --5": "--threads",
    "score a.tar -o y --max-pixels 0": '"0" for --max-pixels',
    "score a.tar -o y --max-pixels -5": '"-5" for --max-pixels',
    "score a.tar -o y --limit=0": '"0" for --limit',
    "score a.tar -o y --limit -1": '"-1" for --limit',
    "score a.tar -o y --workers-per-gpu 0": "--workers-per-gpu",
    "score a.tar -o y --workers-per-gpu two": "--workers-per-gpu",
    "score a.tar -o y --metrics-port 0": "a whole number from 1 to 65535",
    "score a.tar -o y --metrics-port 70000": "a whole number from 1 to 65535",
    "score a.tar -o y --memory-limit lots": "--memory-limit: 'lots' is not a size",
    "score a.tar -o y --memory-limit 0": "--memory-limit: '0' is not a size",
    "score a.tar -o y --memory-limit=-1G": "--memory-limit: '-1G' is not a size",
    "score a.tar -o y --memory-limit infG": "--memory-limit: 'infG' is not a size",
    "score a.tar -o y --memory-limit nan": "--memory-limit: 'nan' is not a size",
    "curate a.tar -o y --exclude-within -1": "--exclude-within. It must be a number from 0 to 2.",
    "curate a.tar -o y --exclude-within nan": "--exclude-within. It must be a number from 0 to 2.",
    "decide y --threads 0": "--threads",
    "merge y z -o x --threads -3": "--threads",
    "diff y z --within -1": "--within. It must be a number of 0 or more.",
    "diff y z --within inf": "--within. It must be a number of 0 or more.",
    "diff y z --cosine nan": "--cosine. It must be a number from -1 to 1.",
    "diff y z --flips 2": "--flips. It must be a number from 0 to 1.",
    "calibrate redundancy y --within 0.1,x": "not a list of numbers",
    "calibrate redundancy y --sample 0": "--sample",
    "calibrate redundancy y --seed -1": "--seed",
    "topics y --smallest 1": "a whole number of 2 or more",
    "topics y --smallest 2.5": "'2.5' is not a whole number",
    "topics y --sample 0": "--sample",
    "recaption y --endpoint http://h/v1 --concurrency 0": "--concurrency",
    "recaption y --endpoint http://h/v1 --longest-edge 0": "--longest-edge",
    "recaption y --endpoint ,": "--endpoint: name at least one address",
    "recaption y --endpoint http://h/v1 --prompt none": "--prompt none: no such file; known: dense, short",
    "recaption y": "--endpoint",
    "recaption none --endpoint http://h/v1": "none: no run here",
    "profile a.tar -o y --limit 0": "--limit",
    "select t.csv -o y --limit 0": "--limit",
    "select t.csv -o y --threads 0": "--threads",
    "demo -o y --threads 0": "--threads",
    "models verify open-nsfw --data a.tar --min-cosine nan": "--min-cosine. It must be a number from -1 to 1.",
    "models verify open-nsfw --data a.tar --max-flips -1": "--max-flips. It must be a number from 0 to 1.",
    "models verify open-nsfw --data a.tar --pairs 0": "--pairs",
    "models compile open-nsfw --level 6": "--level",
    "models compile open-nsfw --batch 1": "--batch 1: write it as MIN,USUAL,MAX rows",
    "models compile open-nsfw --batch 3,2,1": "--batch 3,2,1",
    # devices
    "score a.tar -o y --device gpu": "--device gpu: must be cpu, cuda",
    "score a.tar -o y --device cuda:x": "--device cuda:x: must be",
    "score a.tar -o y --device ''": "--device : must be",
    "score a.tar -o y --devices x": "--device x: must be",
    "score a.tar -o y --devices ,": "',' names no GPU",
    # paths
    "curate a.tar -o ftp://bucket/out": "ftp://bucket/out: this kind of address is unknown",
    "demo -o s3://b/demo": "-o must be a local folder, not s3://b/demo",
    "decide y --cache s3://b/copies": "--cache must be a local folder, not s3://b/copies",
    "models export open-nsfw --from s3://b/model": "--from must be a local folder, not s3://b/model",
    "report y -o ftp://b/compared": "ftp://b/compared: this kind of address is unknown",
    "report y --figures file": "'file' is a file; name a folder",
    "curate a.tar/ -o y": "a.tar/: a file, not a folder",
    "curate s3a://b/a.tar -o y": "s3a://b: write s3://b",
    "curate S3A:/b/a.tar -o y": "s3a://b: write s3://b",
    "curate 's3://b*/a.tar' -o y": "s3://b*/a.tar: globs apply to keys, not to buckets",
    "score a.tar -o y --part -1/3": "--part -1/3: write I/N with I from 0 to N - 1",
    "score a.tar -o y --part --strict": "--part",
    "curate s3:// -o y": "s3://: names no bucket",
    "curate a.tar pipe:cat -o y": "pipe:cat: this kind of address is unknown",
    "select hf://datasets/x -o y": "hf://datasets/x: this kind of address is unknown",
    "curate a.tar -o file": "'file' is a file; name a folder",
    "select t.csv -o file": "'file' is a file; name a folder",
    "profile a.tar -o file": "'file' is a file; name a folder",
    "merge y z -o file": "'file' is a file; name a folder",
    "demo -o file": "'file' is a file; name a folder",
    "curate a.tar -o file/y": "file/y: cannot be written: Not a directory",
    "curate a.tar -o folder": "folder: not empty and not a run",
    "select t.csv -o folder": "folder: not empty and not a selection",
    "curate none.tar -o y": "none.tar: no such file",
    "curate '' -o y": "an input is empty",
    "curate a.tar a.tar -o y": "given twice",
    "curate file -o y": "file: not an input this command reads",
    "curate empty -o y": "empty: a folder without",
    "curate a.tar -o y --against none": "none: no run here",
    "curate a.tar -o y --exclude-similar-to none": "none: no such file",
    "decide none": "none: no run here",
    "explain chosen 0": "chosen: a selection and no run",
    "report chosen": "chosen: a selection and no run",
    "diff chosen chosen": "chosen: a selection and no run",
    "decide empty": "empty: no run here",
    "write none": "none: no run here",
    "explain none 0": "none: no run here",
    "diff none none": "none: no run here",
    # recipes, lists and models
    "curate a.tar -o y --recipe none": "no recipe 'none'",
    "curate a.tar -o y --recipe none.yaml": "none.yaml: cannot read the recipe",
    "curate a.tar -o y --recipe list.yaml": "list.yaml: a recipe is a mapping",
    "curate a.tar -o y --recipe bytes.yaml": "bytes.yaml: a recipe is UTF-8 text",
    "curate a.tar -o y --set words": "--set words: write it as",
    "curate a.tar -o y --set word.max=1": "did you mean 'words'?",
    "curate a.tar -o y --set words.max=abc": "words.max must be a number",
    "curate a.tar -o y --set models.image_embedding=none": "models.image_embedding: no model card 'none'",
    "curate a.tar -o y --set models.image_embedding=none.yaml": "models.image_embedding: none.yaml: no such model card",
    "curate a.tar -o y --set models.image_embedding=list.yaml": "list.yaml: a model card is a mapping",
    "curate a.tar -o y --set models.image_embedding=bytes.yaml": "bytes.yaml: a model card is UTF-8 text",
    "curate a.tar -o y --set models.image_embedding=broken.yaml": "broken.yaml:2: not valid YAML",
    "curate a.tar -o y --blocklist none.txt": "none.txt: cannot read the block list",
    "curate a.tar -o y --user-dict none.txt": "none.txt: cannot read the user dictionary",
    "curate a.tar -o y --output-format zip": "no 'zip' is installed",
    "select t.csv -o y --url-col link": "t.csv: no column 'link'; choose one with --url-col. The table has: url",
    "select a.tar -o y": "a.tar: not a table this command reads",
    "models export none --from empty": "no model card 'none'",
    "models export open-nsfw --from empty": "nothing to export",
    "models export chinese-clip-vit-l-14 --from none": "none: no such folder",
    "models compile none": "no model card 'none'",
    "models compile open-nsfw --precision fp12": "did you mean 'fp32'?",
    "models compile open-nsfw --target x": "--target x: write `cpu`",
    "models compile jionlp-pornography": "is a word list",
    "models activate none": "no model card 'none'",
    # commands and options
    "curat": 'Did you mean "curate"?',
    "models verfy": 'Did you mean "verify"?',
    "curate a.tar -o y --divice cpu": "Did you mean --device? See danqing curate --help",
    "curate a.tar -o y --part 0/2": "It is an option of score, write, recaption. See danqing curate --help",
    "curate a.tar": "--output",
    "curate -o y": "INPUTS",
    "explain y": "KEY",
    "score a.tar -o y --resizer x": "--resizer",
    "models verify open-nsfw --data": "--data",
    "--install-completion --shell ksh": "--shell",
}


@pytest.fixture
def folder(make_shard: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of every call."""
    make_shard({"0.jpg": b"", "0.txt": ""}, "a.tar")
    (tmp_path / "t.csv").write_text("url,caption\nhttp://a.example/0,小猫\n")
    (tmp_path / "file").write_text("")
    (tmp_path / "list.yaml").write_text("- a\n")
    (tmp_path / "broken.yaml").write_text("a: {\n")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\0a")
    (tmp_path / "empty").mkdir()
    (tmp_path / "chosen").mkdir()
    (tmp_path / "chosen" / "select.json").write_text("{}")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "note").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("line", WRONG_CALLS)
def test_a_wrong_call_is_answered_with_one_line(line: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(folder.rglob("*"))
    assert main(shlex.split(line)) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("danqing: ") and said.err.count("\n") == 1
    assert WRONG_CALLS[line] in said.err
    assert sorted(folder.rglob("*")) == before


def test_errors_show_control_characters_as_escapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["curate", str(tmp_path / "\x1bc\u202egnp.tar"), "-o", str(tmp_path / "y")]) == 2
    assert capsys.readouterr().err == f"danqing: {tmp_path}/\\x1bc\\u202egnp.tar: no such file\n"
