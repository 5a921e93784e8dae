from __future__ import annotations

import io
import sys
import time

import pytest
from rich.console import Console
from rich.table import Table

from danqing.engine.decide.funnel import Funnel, Line
from danqing.engine.report import terminal
from danqing.engine.report.differences import Difference, Tolerance
from danqing.engine.report.terminal import ProgressBar, SafeConsole, display, print_difference, print_funnel


def shown_progress(monkeypatch: pytest.MonkeyPatch, quiet: bool = False) -> str:
    """What a phase of ten shards leaves in a log file."""
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.setattr(terminal, "LINE_SECONDS", 0.02)
    with display(quiet, "device: cpu (no GPU found)"):
        for title in ("score", "decide"):
            with ProgressBar(title, 1000) as progress:
                for _ in range(10):
                    progress.expect(2000, 100)
                    progress.advance(1000)
                    time.sleep(0.01)
                progress.advance(10_000)
    return log.getvalue()


def test_a_log_file_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    note, *lines = shown_progress(monkeypatch).splitlines()
    assert note == "device: cpu (no GPU found)" and note not in lines
    assert all(line.isprintable() for line in lines)
    first, last = (lines[0], [line for line in lines if line.startswith("score")][-1])
    assert first.startswith("score: ") and " of 20,000 pairs, " in first and first.endswith(" left")
    assert last.startswith("score: 20,000 pairs in 0:00:00, ") and last.endswith(" pairs/s")
    assert lines[-1].startswith("decide: 20,000 pairs in ")


def test_quiet_progress_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown_progress(monkeypatch, quiet=True) == ""


def test_a_phase_that_fails_leaves_no_closing_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), ProgressBar("score", 10) as progress:
        progress.advance(1)
        raise ZeroDivisionError
    assert capsys.readouterr().err == ""


def test_a_list_of_changed_verdicts_says_what_it_leaves_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "console", SafeConsole(width=80))
    flips: list[tuple[str, str | None, str | None]] = [(f"[b]{n}", None, "words") for n in range(26)]
    print_difference(Difference(Tolerance(), rows=30, flips=flips))
    shown = capsys.readouterr().out
    assert "  [b]19: kept there, words here\n  … and 6 more\n" in shown and "[b]20" not in shown
    assert "verdicts: 26 of 30 differ" in shown


def test_the_console_escapes_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    console = SafeConsole(width=80, force_terminal=True, color_system="standard", highlight=False)
    table = Table("a\x1b[2J", title="t\u202e")
    table.add_row("c\x07\x9b")
    console.print("[bold]x\x1b]0;title\x07[/]", table)
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("x\\x1b]0;title", "a\\x1b[2J", "t\\u202e", "c\\x07\\x9b"))
    assert "\x1b[1m" in shown and "\x1b[2J" not in shown  # its own codes work


@pytest.mark.parametrize("width", [80, 140])
def test_names_of_criteria_are_whole_in_the_funnel(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "console", Console(width=width))
    names = ["chinese_confidence", "laplacian_variance", "cross_batch_redundancy"]
    lines = [
        Line(names[0], "text refinement", "linguistic structure: is it Chinese?", f"{names[0]} ≥ 0.5", 458, 52),
        Line(names[1], "visual [diversification]", "blurry images", f"0.0001 ≤ {names[1]} ≤ 1000", 147, 31),
        Line(names[2], "cross-batch", "redundancy", "one of each group, cosine distance < 0.1", 67, 0),
    ]
    print_funnel(Funnel("danqing", 510, tuple(lines)))
    shown = capsys.readouterr().out
    assert all(name in shown for name in names) and "…" not in shown
    assert "visual [diversification]" in shown and max(map(len, shown.splitlines())) <= width
