# shellcheck shell=bash
# sign REPOSITORY DIGEST NAME KEY: leave in the host's registry what `cosign sign --key KEY` leaves there
# (https://github.com/sigstore/cosign/blob/main/specs/SIGNATURE_SPEC.md).
blob() {
  local digest url
  digest=sha256:$(sha256sum <"$1" | cut -d' ' -f1)
  url=$(curl -sf -D- -o/dev/null -X POST "http://127.0.0.1:5000/v2/$2/blobs/uploads/" | tr -d '\r' | awk 'tolower($1) == "location:" { print $2 }')
  curl -sf -X PUT -H 'Content-Type: application/octet-stream' --data-binary "@$1" "$url&digest=$digest"
  printf %s "$digest"
}
sign() {
  local work
  work=$(mktemp -d)
  printf '{"critical":{"identity":{"docker-reference":"%s"},"image":{"docker-manifest-digest":"%s"},"type":"cosign container image signature"},"optional":null}' "$3" "$2" >"$work/payload"
  printf '{"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' "$(sha256sum <"$work/payload" | cut -d' ' -f1)" >"$work/config"
  jq -n --arg payload "$(blob "$work/payload" "$1")" --argjson payload_size "$(stat -c %s "$work/payload")" \
    --arg config "$(blob "$work/config" "$1")" --argjson config_size "$(stat -c %s "$work/config")" \
    --arg signature "$(openssl dgst -sha256 -sign "$4" "$work/payload" | base64 -w0)" '{
      schemaVersion: 2, mediaType: "application/vnd.oci.image.manifest.v1+json",
      config: {mediaType: "application/vnd.oci.image.config.v1+json", size: $config_size, digest: $config},
      layers: [{mediaType: "application/vnd.dev.cosign.simplesigning.v1+json", size: $payload_size, digest: $payload,
        annotations: {"dev.cosignproject.cosign/signature": $signature}}]}' >"$work/manifest"
  curl -sf -X PUT -H 'Content-Type: application/vnd.oci.image.manifest.v1+json' --data-binary "@$work/manifest" \
    "http://127.0.0.1:5000/v2/$1/manifests/${2/:/-}.sig"
  rm -r "$work"
}
# release TAG [KEY]: an image of its own as that release of LiteLLM, signed if there is a key; prints its digest.
release() {
  local digest
  mkdir -p /tmp/release
  printf '%s\n' "$1" >/tmp/release/release
  printf 'FROM scratch\nCOPY release /\n' >/tmp/release/Containerfile
  podman build --quiet --tag "localhost/release:$1" /tmp/release >/dev/null
  podman push --quiet --digestfile /tmp/digest "localhost/release:$1" "127.0.0.1:5000/berriai/litellm:$1"
  digest=$(</tmp/digest)
  [[ $# -lt 2 ]] || sign berriai/litellm "$digest" ghcr.io/berriai/litellm "$2"
  printf %s "$digest"
}
