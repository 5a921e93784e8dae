#!/bin/bash
# Builds the image without Docker, on a Debian base instead of NVIDIA's, and runs the demo in it on the CPU.
#
#   apt-get install buildah mmdebstrap
#   tests/slow/image.sh
#
# Needs root, no daemon, 40 GB of disk and half an hour or more. Settings, from the environment:
#   SUITE           Debian release of the base (default: bookworm, Python 3.11; trixie has 3.13)
#   BASE            an existing base image (default: one made here)
#   BUILD_ARGS      more arguments for `buildah build`, for example "--build-arg TORCH=1"
#   VOLUMES         volumes of the build, for example settings of a package index: "/etc/pip.conf:/etc/pip.conf:ro …"
#   STORE           folder of buildah's storage (default: a temporary one, removed at the end)
#   STORAGE_DRIVER  overlay (default), or vfs where overlay does not work: then the image has one layer a stage
set -euo pipefail
cd "$(dirname "$0")/../.."
export BUILDAH_ISOLATION=chroot STORAGE_DRIVER=${STORAGE_DRIVER:-overlay}
suite=${SUITE:-bookworm}
scratch=$(mktemp -d)
store=${STORE:-$scratch/store}
export TMPDIR=$scratch

buildah() {
    command buildah --root "$store" --runroot "$scratch/run" "$@"
}

containers=()
clean_up() {
    [ "${#containers[@]}" = 0 ] || buildah rm "${containers[@]}" > /dev/null
    if [ -z "${STORE:-}" ]; then
        buildah rm --all > /dev/null
        buildah rmi --all --force > /dev/null
    fi
    rm -rf "$scratch"
}
trap clean_up EXIT

say() {
    printf '\n== %s\n' "$*"
}

if command -v hadolint > /dev/null; then
    say 'Dockerfile: hadolint'
    hadolint Dockerfile
fi

if [ -z "${BASE:-}" ]; then
    say "base: Debian $suite"
    mmdebstrap --quiet --variant=minbase --include=ca-certificates "$suite" "$scratch/base.tar"
    container=$(buildah from scratch)
    buildah add --quiet "$container" "$scratch/base.tar" / > /dev/null
    buildah commit --quiet --rm "$container" "$suite" > /dev/null
    rm "$scratch/base.tar"
    BASE=localhost/$suite
fi

say "image: on $BASE"
arguments=(--format docker --build-arg "BASE=$BASE")
[ "$STORAGE_DRIVER" = vfs ] || arguments+=(--layers)
for volume in ${VOLUMES:-}; do
    arguments+=(--volume "$volume")
done
# BUILD_ARGS holds several words.
# shellcheck disable=SC2086
buildah build "${arguments[@]}" ${BUILD_ARGS:-} --tag danqing .

# A container of its own for each user, since the files in /cache belong to the uid that made them.
in_image() { # CONTAINER USER COMMAND…
    local container=$1 user=$2
    shift 2
    buildah run --user "$user" --volume "$scratch/data-${user%:*}:/data" "$container" -- "$@"
}

say 'labels and settings of the image'
buildah inspect --type image danqing | python3 -c '
import json, sys
config = json.load(sys.stdin)["Docker"]["config"]
labels = {name: value for name, value in config["Labels"].items() if name.startswith("org.opencontainers.image.")}
print(*(f"{name.rpartition(chr(46))[2]}: {value}" for name, value in sorted(labels.items())), sep="\n")
assert config["StopSignal"] == "SIGINT" and config["User"] == "10001", config
assert labels["org.opencontainers.image.title"] == "DanQing Engine"
'

for user in 10001 4242:4242; do
    container=$(buildah from danqing)
    containers+=("$container")
    install --directory --owner="${user%:*}" "$scratch/data-${user%:*}"
    in_image "$container" "$user" danqing --version

    if [ "$user" = 10001 ]; then
        say 'libraries that the GPU side loads'
        # shellcheck disable=SC2016
        in_image "$container" "$user" sh -c '
            ln -s /lib/x86_64-linux-gnu/libdl.so.2 /tmp/libcuda.so.1
            LD_LIBRARY_PATH=/tmp python -P -
        ' < tests/slow/gpu_libraries.py
    fi

    say "demo as uid $user"
    in_image "$container" "$user" danqing demo | tail -n 4
    [ "$(stat --format %u "$scratch/data-${user%:*}/demo/run/report.html")" = "${user%:*}" ]

    say "health check as uid $user: of a job with metrics, and of none"
    # shellcheck disable=SC2016
    in_image "$container" "$user" sh -euc '
        danqing score "demo/crawl/*.tar" -o scored --metrics-port 9100 > score.log 2>&1 &
        job=$!
        until [ -n "$(ls /cache/metrics 2> /dev/null)" ]; do
            kill -0 "$job" || { cat score.log; exit 1; }
            sleep 1
        done
        python -P -m danqing.engine.score.health
        wait "$job"
        [ -z "$(ls /cache/metrics)" ]
        python -P -m danqing.engine.score.health
    '
done

say 'passed'
