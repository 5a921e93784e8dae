#!/bin/sh
# Writes cuda13.txt and torch.txt: the version and hashes of every package that the image installs. Needs uv.
set -eu
cd "$(dirname "$0")/.."
joint=$(mktemp)
trap 'rm -f "$joint"' EXIT

# Resolved for the oldest Python that the engine runs on; newer ones (Ubuntu 24.04 has 3.12) take the same versions.
pin() {
    uv pip compile --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
        --override requirements/overrides.txt --no-annotate --no-header "$@"
}
set -- pyproject.toml --extra cuda requirements/cuda13.in
pin "$@" requirements/torch.in --output-file "$joint"
pin "$@" --constraint "$joint" --generate-hashes --output-file requirements/cuda13.txt
pin requirements/torch.in --constraint requirements/cuda13.txt --generate-hashes --output-file requirements/torch.txt
