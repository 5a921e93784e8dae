from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from danqing.engine.phases import curate
from danqing.engine.recipe.reading import Recipe
from danqing.engine.run.settings import Settings
from tests.conftest import picture
from tests.engine.score.test_run import GOOD, Make

BOTH_WRITE = """
import os, sys
from pathlib import Path
from danqing.engine.core.quiet import native_stderr_to
with native_stderr_to(Path("log")):
    os.write(2, b"codec\\n")
    print("python", file=sys.stderr)
    os.write(2, b"codec again\\n")
os.write(2, b"after\\n")
print("end", file=sys.stderr)
"""


def test_only_output_of_codecs_goes_to_the_file(tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, "-c", BOTH_WRITE], cwd=tmp_path, env={"PYTHONPATH": str(Path.cwd())},
                         capture_output=True, text=True, check=True, timeout=240)  # fmt: skip
    assert run.stderr == "python\nafter\nend\n" and (tmp_path / "log").read_text() == "codec\ncodec again\n"


def test_broken_pictures_leave_no_line_on_the_terminal(
    make_shard: Make, plain_recipe: Recipe, tmp_path: Path, capfd: object
) -> None:
    texts = {f"{i}.txt": GOOD for i in range(9)}
    odd = [picture(i)[:-2] + bytes(20) + picture(i)[-2:] for i in range(5)]  # libjpeg warns, and decodes them
    members = {f"{i}.jpg": data for i, data in enumerate([*odd, picture(5)[:-200]])}
    shard = make_shard(members | {f"{i}.png": picture(i, form="PNG")[:-900] for i in (7, 8)} | texts)
    run, funnel, _ = curate([str(shard)], tmp_path / "out", plain_recipe, Settings())
    shown = capfd.readouterr().err  # type: ignore[attr-defined]
    assert funnel.kept == 5
    assert "orrupt" not in shown and "libpng" not in shown and "ERROR" not in shown and "score" in shown
    assert "Corrupt JPEG data" in (run.folder / "run.log").read_text()


def test_commands_that_decode_nothing_do_not_load_the_codecs() -> None:
    """Loading them prints which GPU libraries are missing."""
    code = "import sys, danqing.engine.phases; sys.exit('nvidia.nvimgcodec' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=240).returncode == 0
