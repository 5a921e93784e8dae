from __future__ import annotations

import doctest
from pathlib import Path

import pyarrow as pa
import pytest

from danqing.engine.core import columns, similarity
from danqing.engine.core.columns import COLUMNS, COMPUTED, Column, produced
from danqing.engine.core.errors import DanqingError
from danqing.engine.recipe import criteria, reading
from danqing.engine.recipe.reading import load_recipe
from danqing.engine.stages import CATALOGUE, Stage
from danqing.engine.stages.columns import known_columns, page

REFERENCE = Path(__file__).parents[3] / "docs" / "reference" / "columns.md"


class Brightness(Stage):
    """A stage of another package."""

    name = "brightness"
    needs = ("pixels",)
    produces = produced(Column("brightness", pa.float32(), "mean of the grey values", (0, 255), "grey levels"))


def test_every_column_is_declared_once_and_made_by_a_stage() -> None:
    groups = (columns.READ, COMPUTED, columns.SCORED, columns.VERDICTS, columns.WRITTEN)
    assert len(COLUMNS) == sum(map(len, groups))
    made = [name for stage in CATALOGUE for name in stage.produces]
    assert sorted(made) == sorted(column.name for column in COMPUTED)
    assert all(column.array for column in COMPUTED if column.type is None)


def test_the_reference_page_is_current() -> None:
    assert REFERENCE.read_text(encoding="utf-8") == page(), (
        "run: python -m danqing.engine.stages.columns > docs/reference/columns.md"
    )


def test_a_stage_of_another_package_brings_its_columns(tmp_path: Path) -> None:
    known = known_columns([*CATALOGUE, Brightness])
    assert known["brightness"].range == (0, 255)
    path = tmp_path / "r.yaml"
    path.write_text("recipe: r\ncriteria:\n  brightness: {min: 20}\n")
    assert load_recipe(path, columns=known).criteria[0].rule == "brightness ≥ 20"
    with pytest.raises(DanqingError, match=r"r\.yaml:3: brightness: no stage computes a column 'brightness'"):
        load_recipe(path)
    with pytest.raises(DanqingError, match="drops every pair, since values are between 0 and 255 grey levels"):
        load_recipe(path, ["brightness.min=300"], known)


def test_stages_that_contradict_the_table_are_refused() -> None:
    class Again(Brightness):
        produces = produced("words")

    class Elsewhere(Brightness):
        produces = produced(Column("keep", pa.int8(), "another thing"))

    class Written(Brightness):
        produces = produced(Column("text", pa.string(), "another thing"))

    class Hungry(Brightness):
        needs = ("sound",)

    with pytest.raises(DanqingError, match="a column 'words' already comes from stage 'caption'; give it another name"):
        known_columns([*CATALOGUE, Again])
    with pytest.raises(DanqingError, match="a column 'keep' already comes from the engine"):
        known_columns([Elsewhere])
    with pytest.raises(DanqingError, match="a column 'text' already comes from writing"):
        known_columns([Written])
    with pytest.raises(DanqingError, match="stage 'brightness' needs a column 'sound', which no stage produces"):
        known_columns([*CATALOGUE, Hungry])
    with pytest.raises(KeyError):
        produced("wrods")


@pytest.mark.parametrize("module", [columns, criteria, reading, similarity])
def test_examples_run(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]
