#!/usr/bin/env bash
# What the image runs by itself: a cluster of this container and the service on it. Arguments go to
# `ray start`. KubeRay starts Ray with a command of its own and does not come here.
set -euo pipefail
# The token that Ray's own ports ask for; one is made where none is given (docs/security.md).
if [ -z "${RAY_AUTH_TOKEN:-}" ] && [ -z "${RAY_AUTH_TOKEN_PATH:-}" ]; then
    RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
    export RAY_AUTH_TOKEN
fi
ray start --head --metrics-export-port=8080 --disable-usage-stats "$@"
exec serve run --address auto "$LATENTMAS_CONFIG"
