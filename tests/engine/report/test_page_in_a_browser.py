"""report.html in a real browser: offline, without complaints, on a screen and on a phone, and its what-if."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator

import pyarrow.parquet as pq
import pytest

from danqing.engine.phases import curate
from danqing.engine.recipe.reading import load_recipe
from danqing.engine.run.folder import Run
from danqing.engine.run.settings import Settings
from tests.conftest import RECIPE_WITHOUT_NETWORKS, picture
from tests.engine.report.browser import CHROMIUM, Page, browser

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

HOSTILE = '</p><script>window.hacked=1</script><img src=x onerror="hacked=1">在公园的草地上有一只小猫在晒太阳'
KEY = "<svg onload=hacked=1>"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("page")
    captions = {f"{n:02d}": "公园的草地上有一只可爱的小猫" + "在晒太阳" * n for n in range(6)}
    captions |= {KEY: HOSTILE, "unsafe": "公园的草地上有一只可爱的小猫看色情电影"}
    with tarfile.open(folder / "crawl.tar", "w") as tar:
        for number, (key, caption) in enumerate(captions.items()):
            record = {"url": f'https://img.shop.example.com.cn/{key}"><b>'}
            for end, data in (
                ("jpg", picture(number)),
                ("txt", caption.encode()),
                ("json", json.dumps(record).encode()),
            ):
                info = tarfile.TarInfo(f"{key}.{end}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    (folder / "plain.yaml").write_text(RECIPE_WITHOUT_NETWORKS)
    recipe = load_recipe(folder / "plain.yaml", ["words.max=200"])
    return curate([str(folder / "crawl.tar")], folder / "a run", recipe, Settings())[0]


@pytest.fixture(scope="module")
def page(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        opened.open(run.folder / "report.html")
        yield opened


def test_it_loads_without_requests_or_complaints(page: Page, run: Run) -> None:
    assert page.requests == [(run.folder / "report.html").resolve().as_uri()] and page.complaints == []
    assert page.run("document.title") == "a run" and page.run("document.images.length") > 5
    assert page.run("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert page.run("[...document.images].every(image => image.alt)")
    unnamed = "[...document.querySelectorAll('svg')].filter(s => !s.getAttribute('aria-label') && !s.ariaHidden).length"
    assert page.run(unnamed) == 0
    anchors = "[...document.querySelectorAll('a')].map(a => a.getAttribute('href') || a.href.baseVal)"
    assert page.run(f"{anchors}.filter(h => !document.querySelector(h)).length") == 0


def test_hostile_texts_stay_text(page: Page) -> None:
    assert page.run("typeof window.hacked") == "undefined" and page.run("document.scripts.length") == 2
    assert page.run("document.body.innerText").count(HOSTILE) > 0
    captions = "[...document.querySelectorAll('.tile p[lang]')].filter(p => p.textContent.includes('hacked'))"
    assert page.run(f"{captions}[0].textContent") == HOSTILE and page.run(f"{captions}[0].lang") == "zh"
    assert page.run("document.querySelectorAll('main img[onerror], main svg[onload]').length") == 0


def test_a_slider_changes_the_numbers_and_the_command(page: Page, run: Run) -> None:
    panel = "document.querySelector('[data-criterion=words]')"
    slider = f"{panel}.querySelector('[data-bound=max]')"
    shown = f"Number({panel}.querySelector('.result b').textContent)"
    kept = json.loads((run.folder / "funnel.json").read_text())["kept"]
    assert page.run(shown) == kept and "exact" in page.run(f"{panel}.innerText")
    assert page.run("getComputedStyle(document.querySelector('.changes')).display") == "none"
    page.run(f"{slider}.value = 9, {slider}.dispatchEvent(new Event('input', {{bubbles: true}}))")
    value, fewer = page.run(f"{panel}.querySelectorAll('output')[1].textContent"), page.run(shown)
    assert 0 <= fewer < kept
    command = page.run("document.querySelector('.changes .command').textContent")
    assert command == f"danqing decide '{run.folder.resolve()}' --set words.max={value}"
    line = page.run("getComputedStyle(document.querySelector('#criterion-words line[data-moved=max]')).visibility")
    assert line == "visible" and page.run("getComputedStyle(document.querySelector('.changes')).display") == "block"
    note = "document.querySelector('.changes .note').textContent"
    other = "document.querySelector('[data-criterion=aspect_ratio] [data-bound=max]')"
    page.run(f"{other}.value = 1, {other}.dispatchEvent(new Event('input', {{bubbles: true}}))")
    words, ratio = (
        command.split("words.max=")[1],
        page.run(f"{other}.parentElement.querySelector('output').textContent"),
    )
    scores = pq.read_table(run.scores_path(0)).to_pylist()
    kept_uids = {v["uid"] for v in pq.read_table(run.verdicts_path(0)).to_pylist() if v["keep"]}
    both = [
        s for s in scores if s["uid"] in kept_uids and s["words"] <= float(words) and s["aspect_ratio"] <= float(ratio)
    ]
    assert page.run(note).startswith(f"With all changes, {len(both)} pairs are kept (exact")
    page.run("document.querySelector('[data-do=reset]').click()")
    assert page.run(shown) == kept


def test_galleries_open_and_unsafe_pictures_are_veiled(page: Page) -> None:
    veiled = "document.querySelector('#criterion-unsafe_text .veiled')"
    assert page.run("[...document.querySelectorAll('details')].every(d => !d.open)")
    page.run("document.querySelectorAll('summary').forEach(s => s.click())")
    assert page.run("[...document.querySelectorAll('details')].every(d => d.open)")
    assert "blur" in page.run(f"getComputedStyle({veiled}.querySelector('img')).filter")
    page.run(f"(p => (p.querySelector('.veil').click(), window.picture = p))({veiled})")
    assert page.run("getComputedStyle(picture.querySelector('img')).filter") == "none"


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(page: Page, run: Run, width: int) -> None:
    page.open(run.folder / "report.html", width, dark=True)
    page.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.run("document.documentElement.scrollWidth") == width and page.complaints == []
    shown = "[...document.querySelectorAll('.funnel')].filter(f => f.offsetHeight).map(f => f.className)"
    assert page.run(shown) == ["funnel narrow" if width == 390 else "funnel broad"]
    size = "document.querySelector('.funnel.narrow .name').getBoundingClientRect().height"
    assert width > 390 or page.run(size) >= 12  # legible
    colour = page.run("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, re.findall(r"\d+", colour))) < 150
