#!/bin/bash
# Brings the compose stack up, waits until it is healthy and prints its addresses; `up.sh down` takes it down with its
# data. Makes .env out of .env.example, with new passwords, when there is none. Takes Compose 2 or 1.29.
set -euo pipefail
cd "$(dirname "$0")/.."

wait_seconds=300

if docker compose version >/dev/null 2>&1; then
    compose=(docker compose)
    wait=(--wait --wait-timeout "$wait_seconds")
elif command -v docker-compose >/dev/null; then
    compose=(docker-compose)
    wait=() # 1.29 does not know how
else
    echo "neither 'docker compose' nor 'docker-compose' is here; 'make cluster' needs no Docker" >&2
    exit 1
fi

make_env() ( # .env.example with a random value for each change-me; in a subshell, for the umask
    umask 077
    while IFS= read -r line || [ -n "$line" ]; do
        if [[ $line != \#* && $line == *=change-me ]]; then
            line="${line%%=*}=$(openssl rand -hex 24)"
        fi
        printf '%s\n' "$line"
    done <.env.example >.env.new
    mv .env.new .env
    echo "made .env out of .env.example, with new passwords"
)

states() { # one word a container: healthy, unhealthy, starting, or the state of one without a health check
    local containers
    mapfile -t containers < <("${compose[@]}" ps -q)
    docker inspect --format '{{if .State.Health}}{{.State.Health.Status}}{{else}}{{.State.Status}}{{end}}' \
        "${containers[@]}"
}

is_healthy() {
    local now
    now=$(states) && [ -n "$now" ] && ! grep -qvxE 'healthy|running' <<<"$now"
}

wait_healthy() {
    local deadline=$((SECONDS + wait_seconds))
    until is_healthy; do
        if [ $SECONDS -ge $deadline ]; then
            "${compose[@]}" ps >&2
            echo "not healthy after $wait_seconds s" >&2
            return 1
        fi
        sleep 1
    done
}

address() { # address NAME SERVICE PORT: where the port of the service is published, if it is
    local published
    published=$("${compose[@]}" port "$2" "$3" 2>/dev/null) || return 0
    [ -z "$published" ] || printf '%-12s %s\n' "$1" "http://$published"
}

if [ "${1:-up}" = down ]; then
    [ -e .env ] || exit 0 # never brought up
    exec "${compose[@]}" down --volumes
fi

[ -e .env ] || make_env
mkdir -p deploy/certs # else Docker makes it, and as root
"${compose[@]}" up --detach --build "${wait[@]}"
wait_healthy

address gateway nginx 80
address prometheus prometheus 9090
address grafana grafana 3000
