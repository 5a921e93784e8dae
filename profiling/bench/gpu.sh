#!/bin/sh
# Everything that needs a GPU: the tests, then the steps that fit. Arguments go to the latter, e.g. --minutes 8.
set -u
cd "$(dirname "$0")/../.." || exit 2
python=${PYTHON:-python}
"$python" -m pytest -m gpu tests/gpu -rs
tests=$?
"$python" -m profiling.bench.gpu "$@" || exit 1
exit $tests
