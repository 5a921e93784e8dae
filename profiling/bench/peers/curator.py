"""NeMo Curator's text filters over Parquet with a column `text`, chained in one stage; their bounds let all pass.

That stage gets a worker for each core. They ask Ray for half a core each, though they use a whole one, so that it still
has room for the stages before and after.
"""

from __future__ import annotations

import argparse
import os

import ray
from nemo_curator.backends.ray_data import RayDataExecutor
from nemo_curator.pipeline import Pipeline
from nemo_curator.stages.resources import Resources
from nemo_curator.stages.text.filters import ScoreFilter
from nemo_curator.stages.text.filters.fasttext import FastTextLangId
from nemo_curator.stages.text.filters.heuristic import NonAlphaNumericFilter, NumbersFilter, UrlsFilter, WordCountFilter
from nemo_curator.stages.text.filters.heuristic.repetition import RepeatingDuplicateNGramsFilter
from nemo_curator.stages.text.io.reader import ParquetReader
from nemo_curator.stages.text.io.writer import ParquetWriter

ANY = 10**9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", help="folder of Parquet files, each of which is one task")
    parser.add_argument("output")
    parser.add_argument("--languages", required=True, help="fastText's model of languages")
    options = parser.parse_args()
    filters = {
        "words": WordCountFilter(0, ANY, lang="zh"),
        "symbols": NonAlphaNumericFilter(ANY),
        "digits": NumbersFilter(ANY),
        "links": UrlsFilter(ANY),
        "repetition": RepeatingDuplicateNGramsFilter(2, ANY, lang="zh"),
        "language": FastTextLangId(options.languages, 0.0),
    }
    cores = len(os.sched_getaffinity(0))
    scores = ScoreFilter(list(filters.values()), text_field="text", score_field=list(filters))
    pipeline = Pipeline(
        name="captions",
        stages=[
            ParquetReader(options.input, fields=["text"]),
            scores.with_(num_workers=cores, resources=Resources(cpus=0.5)),
            ParquetWriter(options.output),
        ],
    )
    ray.init(num_cpus=cores, include_dashboard=False, log_to_driver=False)
    pipeline.run(RayDataExecutor())


if __name__ == "__main__":
    main()
