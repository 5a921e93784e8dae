#!/bin/sh
# Runs the tests that need a GPU, then the benchmark. Arguments go to the benchmark, for example --minutes 8.
set -u
cd "$(dirname "$0")/../.." || exit 2
python=${PYTHON:-python}
"$python" -m pytest -m gpu tests/gpu -rs
tests=$?
"$python" -m danqing.profiling.bench.gpu "$@" || exit 1
exit $tests
