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
# build TAG NAME [OPTION…]: the image localhost/NAME:TAG, of its own.
build() {
  mkdir -p /tmp/release
  printf '%s\n' "$1" >"/tmp/release/$2"
  printf 'FROM scratch\nCOPY %s /\n' "$2" >/tmp/release/Containerfile
  podman build --quiet --tag "localhost/$2:$1" "${@:3}" /tmp/release >/dev/null
}
# release TAG [KEY]: an image of its own as that release of LiteLLM, signed if there is a key; prints its digest.
release() {
  local digest
  build "$1" release
  podman push --quiet --digestfile /tmp/digest "localhost/release:$1" "127.0.0.1:5000/berriai/litellm:$1"
  # Podman would show the digest of this copy, too.
  podman rmi "localhost/release:$1" >/dev/null
  digest=$(</tmp/digest)
  [[ $# -lt 2 ]] || sign berriai/litellm "$digest" ghcr.io/berriai/litellm "$2"
  printf %s "$digest"
}
# index TAG: as `release`, for two platforms, as LiteLLM publishes; prints the index's digest.
index() {
  local digest list=localhost/index:$1
  build "$1" release
  build "$1" other --platform linux/arm64
  podman manifest create "$list" >/dev/null
  podman manifest add "$list" "containers-storage:localhost/release:$1" >/dev/null
  podman manifest add --arch arm64 "$list" "containers-storage:localhost/other:$1" >/dev/null
  podman manifest push --quiet --all --digestfile /tmp/digest "$list" "docker://127.0.0.1:5000/berriai/litellm:$1"
  digest=$(</tmp/digest)
  podman manifest rm "$list" >/dev/null
  podman rmi "localhost/release:$1" "localhost/other:$1" >/dev/null
  printf %s "$digest"
}
# attach REPOSITORY DIGEST: leave there, as cosign 2 does, the signature in /root/payload and /root/annotations.
attach() {
  local work payload
  work=$(mktemp -d)
  printf '{"rootfs":{"type":"layers","diff_ids":[]}}' >"$work/config"
  payload=$(blob /root/payload "$1")
  jq -n --arg payload "$payload" --argjson payload_size "$(stat -c %s /root/payload)" \
    --arg config "$(blob "$work/config" "$1")" --argjson config_size "$(stat -c %s "$work/config")" \
    --slurpfile annotations /root/annotations '{
      schemaVersion: 2, mediaType: "application/vnd.oci.image.manifest.v1+json",
      config: {mediaType: "application/vnd.oci.image.config.v1+json", size: $config_size, digest: $config},
      layers: [{mediaType: "application/vnd.dev.cosign.simplesigning.v1+json", size: $payload_size, digest: $payload,
        annotations: $annotations[0]}]}' >"$work/manifest"
  curl -sf -X PUT -H 'Content-Type: application/vnd.oci.image.manifest.v1+json' --data-binary "@$work/manifest" \
    "http://127.0.0.1:5000/v2/$1/manifests/${2/:/-}.sig"
  rm -r "$work"
}
# refer REPOSITORY DIGEST: leave there, as cosign 3 does where a registry has no list of referrers, /root/bundle.
refer() {
  local work digest
  work=$(mktemp -d)
  printf '{}' >"$work/config"
  jq -n --arg bundle "$(blob /root/bundle "$1")" --argjson size "$(stat -c %s /root/bundle)" \
    --arg config "$(blob "$work/config" "$1")" '{
      schemaVersion: 2, mediaType: "application/vnd.oci.image.manifest.v1+json",
      artifactType: "application/vnd.dev.sigstore.bundle.v0.3+json",
      config: {mediaType: "application/vnd.oci.empty.v1+json", size: 2, digest: $config},
      layers: [{mediaType: "application/vnd.dev.sigstore.bundle.v0.3+json", size: $size, digest: $bundle}]}' >"$work/manifest"
  digest=sha256:$(sha256sum <"$work/manifest" | cut -d' ' -f1)
  curl -sf -X PUT -H 'Content-Type: application/vnd.oci.image.manifest.v1+json' --data-binary "@$work/manifest" \
    "http://127.0.0.1:5000/v2/$1/manifests/$digest"
  jq -n --arg digest "$digest" --argjson size "$(stat -c %s "$work/manifest")" '{
    schemaVersion: 2, mediaType: "application/vnd.oci.image.index.v1+json",
    manifests: [{mediaType: "application/vnd.oci.image.manifest.v1+json", size: $size, digest: $digest,
      artifactType: "application/vnd.dev.sigstore.bundle.v0.3+json"}]}' >"$work/index"
  curl -sf -X PUT -H 'Content-Type: application/vnd.oci.image.index.v1+json' --data-binary "@$work/index" \
    "http://127.0.0.1:5000/v2/$1/manifests/${2/:/-}"
  rm -r "$work"
}
