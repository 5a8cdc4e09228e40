#!/bin/sh
# Writes the TLS server of nginx when there is a certificate, and removes it when there is none.
# The nginx image runs this before nginx starts; deploy/cluster/nginx.py does the same with other paths.
set -eu

certs=${TLS_CERTS:-/etc/nginx/certs}
conf=${TLS_CONF:-/etc/nginx/conf.d/tls.conf}
listen=${TLS_LISTEN:-443}

if [ ! -e "$certs/tls.crt" ] || [ ! -e "$certs/tls.key" ]; then
    rm -f "$conf"
    echo "40-tls.sh: no tls.crt and tls.key in $certs: no TLS" >&2
    exit 0
fi

cat >"$conf" <<END
server {
    listen $listen ssl;
    ssl_certificate "$certs/tls.crt";
    ssl_certificate_key "$certs/tls.key";
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_session_cache shared:tls:10m;
    ssl_session_timeout 1h;
    include proxy.conf;
}
END
