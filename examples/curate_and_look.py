"""Curates a crawl with the Python API and looks at the scores.

    danqing demo                                                  # makes demo/crawl, a small crawl with known defects
    python examples/curate_and_look.py 'demo/crawl/*.tar' out

Arguments: inputs, folder of the run, and a recipe (default: embedded).
"""

import sys

import pyarrow.dataset as ds

import danqing


def main(inputs: str, output: str, recipe: str = "embedded") -> None:
    run = danqing.curate(inputs, output, recipe)
    print(f"kept {run.funnel.kept} of {run.funnel.collected} pairs with the recipe {run.recipe.name}\n")

    # A dataset reads only the columns and rows that are asked for, so this works for a billion rows, too.
    scores = run.scores(["key", "words", "width", "height", "error"]).to_table()
    print(scores.to_pandas().describe(), "\n")

    # A pair that fails in a stage keeps its row, with the reason.
    failed = run.scores().to_table(columns=["key", "error"], filter=ds.field("error").is_valid())
    print(failed.to_pandas().to_string(max_rows=10), "\n")

    # Rows of scores and verdicts are in the same order: input order.
    dropped = run.verdicts().to_table(filter=~ds.field("keep"))
    print(dropped.to_pandas()["dropped_by"].value_counts().to_string())
    run.explain(dropped["uid"][0].as_py())


if __name__ == "__main__":
    main(*sys.argv[1:])
