#!/bin/sh
# Makes a self-signed certificate for localhost and 127.0.0.1, for development: tls.crt and tls.key in the folder given
# (deploy/certs, which nginx looks into). One that is there and still valid is kept.
set -eu

folder=${1:-$(dirname "$0")/certs}

if openssl x509 -in "$folder/tls.crt" -noout -checkend 86400 >/dev/null 2>&1 && [ -s "$folder/tls.key" ]; then
    echo "kept: $folder/tls.crt"
    exit 0
fi

umask 077
mkdir -p "$folder"
output=$(openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 365 \
    -subj /CN=localhost -addext 'subjectAltName=DNS:localhost,IP:127.0.0.1' \
    -addext 'basicConstraints=critical,CA:FALSE' -addext 'extendedKeyUsage=serverAuth' \
    -keyout "$folder/tls.key" -out "$folder/tls.crt" 2>&1) || { echo "$output" >&2; exit 1; }
chmod 644 "$folder/tls.crt"
chmod 755 "$folder"
echo "made: $folder/tls.crt, valid for a year"
