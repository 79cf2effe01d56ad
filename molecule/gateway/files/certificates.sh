#!/bin/sh
# A certificate authority and certificates from it, as role certificates leaves them.
set -eu
tls=/etc/metalworks/tls
getent group metalworks-tls >/dev/null || groupadd --system metalworks-tls
install -d -m 0755 /etc/metalworks "$tls" /opt/stand-in/tls
cd /opt/stand-in/tls

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.crt -days 30 \
    -subj "/CN=Scenario CA" -addext keyUsage=critical,keyCertSign,cRLSign

certificate() { # file, names…
    name=$1
    shift
    printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth\n' "$(printf 'DNS:%s\n' "$@" | paste -sd,)" >"$name.ext"
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$name.key" -out "$name.csr" -subj "/CN=$1"
    openssl x509 -req -in "$name.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -extfile "$name.ext" \
        -out "$name.crt"
}
certificate host gateway metalworks.internal mlflow.metalworks.internal prefect.metalworks.internal \
    s3.metalworks.internal console.metalworks.internal inference.metalworks.internal docs.metalworks.internal
certificate delay1 gpu-1
certificate delay2 gpu-2
certificate elsewhere console.metalworks.internal
certificate database db-1

install -m 0644 ca.crt "$tls/ca.crt"
install -m 0640 -g metalworks-tls host.key "$tls/host.key"
install -m 0644 host.crt "$tls/host.crt"
