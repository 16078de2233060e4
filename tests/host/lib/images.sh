# shellcheck shell=bash
# The images of the stack, as indexes in an OCI layout and in stores of containers. Sourced by host.

# A layer is a part with fs/ (its files, as an overlay's upper directory), blob (the same as a compressed archive), and
# the digests and the size of the blob.

pack() {
  local dir=$1 file
  rm -rf "$dir/whiteouts"
  mkdir "$dir/whiteouts"
  rm -rf "$dir"/fs/var/log/apt "$dir"/fs/var/log/*.log "$dir"/fs/var/cache/{ldconfig,debconf}/* "$dir"/fs/var/lib/dpkg/*-old
  while IFS= read -r -d '' file; do
    mkdir -p "$dir/whiteouts/${file%/*}"
    : >"$dir/whiteouts/${file%/*}/.wh.${file##*/}"
  done < <(cd "$dir/fs" && find . -type c -printf '%p\0')
  while IFS= read -r file; do
    mkdir -p "$dir/whiteouts/$file"
    : >"$dir/whiteouts/$file/.wh..wh..opq"
  done < <(cd "$dir/fs" && getfattr -R -h -m '^trusted\.overlay\.opaque$' . 2>/dev/null | sed -n 's/^# file: //p')
  (cd "$dir/fs" && find . ! -type c ! -type s -print0 | sort -z) >"$dir/files"
  (cd "$dir/whiteouts" && find . -type f -print0) >"$dir/removed"
  tar -c --numeric-owner --no-recursion --null -C "$dir/fs" -T "$dir/files" -C "$dir/whiteouts" -T "$dir/removed" |
    tee >(sha256sum | cut -d' ' -f1 >"$dir/diffid") | zstd -q -2 -T0 >"$dir/blob"
  sha256sum "$dir/blob" | cut -d' ' -f1 >"$dir/digest"
  stat -c %s "$dir/blob" >"$dir/size"
  rm -rf "$dir/whiteouts" "$dir/files" "$dir/removed"
  until [[ -s $dir/diffid ]]; do sleep 0.05; done
}

make_base() {
  bootstrap trixie "$1/fs" "$DEBIAN"
  rm -rf "$1"/fs/var/lib/apt/lists/* "$1"/fs/var/cache/apt/* "$1"/fs/dev/* "$1"/fs/tmp/* "$1"/fs/etc/hostname
  : >"$1/fs/etc/resolv.conf"
  pack "$1"
}

# A server's layer: make_server DIRECTORY MAJOR SUITE
make_server() {
  # shellcheck disable=SC2016
  over "$1/fs" "$base/fs" "version=$2 suite=$3 mirror=$DEBIAN"'
    groupadd --system --gid 999 postgres
    useradd --system --gid 999 --uid 999 --home-dir /var/lib/postgresql --shell /bin/bash postgres
    mkdir -p /etc/postgresql-common
    echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.conf
    [ "$suite" = trixie ] || echo "deb $mirror $suite main" >/etc/apt/sources.list.d/later.list
    apt-get -q update
    apt-get -qy install --no-install-recommends -t "$suite" "postgresql-$version" gosu locales zstd
    localedef -i en_US -c -f UTF-8 en_US.UTF-8
    sample=/usr/share/postgresql/$version/postgresql.conf.sample
    sed -i "s/^#\?listen_addresses.*/listen_addresses = '\''*'\''/" "$sample"
    grep -q "^listen_addresses = .\*." "$sample"
    install -d -o postgres -g postgres -m 1777 /var/lib/postgresql/data
    chown postgres:postgres /var/lib/postgresql
    mkdir -p /docker-entrypoint-initdb.d
    install -m 755 /run/files/docker-entrypoint.sh /usr/local/bin/
    ln -sf ../usr/local/bin/docker-entrypoint.sh /docker-entrypoint.sh
    [ "$(id -u postgres)" = 999 ]
    # Just-in-time compilation is only for long queries, and its library is a third of the image.
    rm -rf "/usr/lib/postgresql/$version"/lib/{llvmjit*,bitcode} /usr/lib/x86_64-linux-gnu/{libLLVM,libz3}*
    # The programs themselves, instead of scripts in Perl that choose a version. A rootless Podman copies each file.
    for program in "/usr/lib/postgresql/$version"/bin/*; do ln -sf "$program" /usr/bin/; done
    rm -r /usr/share/{perl,perl5,man,i18n,postgresql-common}
  ' "$here/images/postgres:files"
  mkdir -p "$1/fs/run"
  install -d -m 3777 -o 999 -g 999 "$1/fs/run/postgresql"
  pack "$1"
}

make_postgres() { make_server "$1" 17 trixie; }

# The next major version, which Debian 13 does not have.
make_postgres_next() { make_server "$1" 18 sid; }

make_redis() {
  # shellcheck disable=SC2016
  over "$1/fs" "$base/fs" '
    groupadd --system --gid 999 redis
    useradd --system --gid 999 --uid 999 --home-dir /data --no-create-home redis
    apt-get -q update
    apt-get -qy install --no-install-recommends redis-server gosu
    install -d -o redis -g redis /data
    install -m 755 /run/files/docker-entrypoint.sh /run/files/redis-server /usr/local/bin/
    [ "$(id -u redis)" = 999 ]
  ' "$here/images/redis:files"
  pack "$1"
}

make_python() {
  over "$1/fs" "$base/fs" '
    apt-get -q update
    apt-get -qy install --no-install-recommends python3 python3-venv nodejs ca-certificates tzdata
    rm -rf /root/.npm
    python3 -m compileall -q -j2 /usr/lib/python3.13 || :
  '
  pack "$1"
}

make_bridge() {
  mkdir -p "$1/fs/usr/local/lib/prisma" "$1/fs/app/docker"
  cp "$here"/images/litellm/{package.json,package-lock.json} "$1/fs/usr/local/lib/prisma/"
  (cd "$1/fs/usr/local/lib/prisma" && npm ci --ignore-scripts --no-audit --no-fund)
  install -m 755 "$here"/images/litellm/{prisma,query-engine,schema-engine} "$1/fs/usr/local/lib/prisma/"
  install -m 644 "$here/images/litellm/query-engine.js" "$1/fs/usr/local/lib/prisma/"
  mkdir -p "$1/fs/usr/local/bin"
  ln -s ../lib/prisma/prisma "$1/fs/usr/local/bin/prisma"
  install -m 755 "$here/images/litellm/prod_entrypoint.sh" "$1/fs/app/docker/"
  pack "$1"
}

# Makes uv, that installs the Python packages and keeps what it has downloaded for the next layer, available in a layer's script.
make_uv() {
  cat <<'SCRIPT'
    export UV_CACHE_DIR=/run/uv/cache UV_LINK_MODE=copy UV_DEFAULT_INDEX=${PIP_INDEX_URL:-https://pypi.org/simple}
    if [ ! -x /run/uv/tool/bin/uv ]; then
      python3 -m venv /run/uv/tool
      /run/uv/tool/bin/pip -q install uv
    fi
SCRIPT
}

# What the LiteLLM layers do after their packages are in: generate the database client, as the official image does.
make_client() {
  cat <<'SCRIPT'
    site=$(echo /app/.venv/lib/python3*/site-packages)
    printf '#!/bin/sh\necho query-engine 393aa359c9ad4a4bb28630fb5613f9c281cde053\n' >/tmp/engine
    chmod +x /tmp/engine
    PRISMA_QUERY_ENGINE_BINARY=/tmp/engine PRISMA_SCHEMA_ENGINE_BINARY=/tmp/engine PRISMA_CLI_QUERY_ENGINE_TYPE=binary \
      DATABASE_URL=postgresql://none PATH=/app/.venv/bin:$PATH CHECKPOINT_DISABLE=1 \
      node /run/prisma/node_modules/prisma/build/index.js generate --schema "$site/litellm/proxy/schema.prisma"
    /app/.venv/bin/python -m compileall -q "$site/prisma"
    ln -sfn /usr/local/lib/prisma/prisma /app/.venv/bin/prisma
    ln -sfn "${site#/app/}/litellm" /app/litellm
    ln -sfn litellm/proxy/schema.prisma /app/schema.prisma
    /app/.venv/bin/python -c 'import prisma, litellm_proxy_extras; prisma.Prisma'
    rm -rf /root/.cache /root/.npm
SCRIPT
}

# The package with the migrations of the newest release is not in the package index, the one before is: what lies between
# the schemas of the two becomes a migration, written by Prisma as LiteLLM's developers have it written.
make_migration() {
  cat <<'SCRIPT'
    extras=$site/litellm_proxy_extras
    migration=$extras/migrations/20261124000000_to_the_schema_of_this_release
    mkdir "$migration"
    node /run/prisma/prisma migrate diff --script --from-schema-datamodel "$extras/schema.prisma" \
      --to-schema-datamodel "$site/litellm/proxy/schema.prisma" >"$migration/migration.sql"
    grep -q '^CREATE TABLE' "$migration/migration.sql"
    cp "$site/litellm/proxy/schema.prisma" "$extras/schema.prisma"
SCRIPT
}

# One release as a layer: make_release DIRECTORY VERSION LOWERS [SCRIPT]
make_release() {
  mkdir -p "$cache/uv"
  over "$1/fs" "$3" "
    $(make_uv)
    [ -d /app/.venv ] || /run/uv/tool/bin/uv venv --quiet --python /usr/bin/python3 /app/.venv
    /run/uv/tool/bin/uv pip install --python /app/.venv/bin/python --compile-bytecode --no-deps -r /run/files/requirements-$2.txt
    $(make_client)
    ${4:-}
  " "$here/images/litellm:files" "$cache/uv:uv" "$bridge/fs/usr/local/lib/prisma:prisma"
  pack "$1"
}

make_litellm() { make_release "$1" "$LITELLM_VERSION" "$python/fs:$base/fs"; }

make_newest() { make_release "$1" "$NEWEST_VERSION" "$litellm/fs:$python/fs:$base/fs" "$(make_migration)"; }

make_oldest() { make_release "$1" "$OLDEST_VERSION" "$python/fs:$base/fs"; }

# Puts a blob into an OCI layout and prints what describes it there: make_blob LAYOUT TEXT
make_blob() {
  local sum
  sum=$(printf '%s' "$2" | sha256sum)
  printf '%s' "$2" >"$1/blobs/sha256/${sum%% *}"
  printf '"digest":"sha256:%s","size":%d' "${sum%% *}" "${#2}"
}

# One image in an OCI layout: make_image LAYOUT NAME FORM CONFIG LAYER…
# As published images are, it is an index (FORM index) of two platforms, each with an attestation; in the image of the
# other platform, which nothing here could run, is one file. With FORM plain, it is the manifest of the one platform.
make_image() {
  local out=$1/${2//[:\/]/_} name=$2 form=$3 settings=$4 oci=application/vnd.oci.image layer digest diffids='' layers=''
  local config manifest top architecture statement manifests='' attestations=''
  shift 4
  mkdir -p "$out/blobs/sha256"
  : >"$out/manifests"
  for layer in "$@"; do
    digest=$(<"$layer/digest")
    ln "$layer/blob" "$out/blobs/sha256/$digest"
    diffids+="${diffids:+,}\"sha256:$(<"$layer/diffid")\""
    layers+="${layers:+,}{\"mediaType\":\"$oci.layer.v1.tar+zstd\",\"digest\":\"sha256:$digest\",\"size\":$(<"$layer/size")}"
  done
  for architecture in amd64 arm64; do
    if [[ $architecture == arm64 ]]; then
      [[ $form == index ]] || break
      printf 'the image of another platform\n' >"$out/platform"
      tar -c --numeric-owner --owner 0 --group 0 --mtime @0 -C "$out" platform >"$out/layer"
      digest=$(sha256sum "$out/layer" | cut -d' ' -f1)
      diffids="\"sha256:$digest\""
      layers="{\"mediaType\":\"$oci.layer.v1.tar\",\"digest\":\"sha256:$digest\",\"size\":$(stat -c %s "$out/layer")}"
      mv "$out/layer" "$out/blobs/sha256/$digest"
      rm "$out/platform"
    fi
    config="{\"created\":\"2025-12-20T00:00:00Z\",\"architecture\":\"$architecture\",\"os\":\"linux\",\"config\":$settings,\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[$diffids]}}"
    config="{\"mediaType\":\"$oci.config.v1+json\",$(make_blob "$out" "$config")}"
    manifest="{\"schemaVersion\":2,\"mediaType\":\"$oci.manifest.v1+json\",\"config\":$config,\"layers\":[$layers]}"
    manifest="\"mediaType\":\"$oci.manifest.v1+json\",$(make_blob "$out" "$manifest")"
    digest=${manifest#*sha256:} digest=${digest%%\"*}
    printf '%s\n' "$digest" >>"$out/manifests"
    manifests+="${manifests:+,}{$manifest,\"platform\":{\"architecture\":\"$architecture\",\"os\":\"linux\"}}"
    [[ $form == index ]] || break

    statement="{\"_type\":\"https://in-toto.io/Statement/v0.1\",\"predicateType\":\"https://slsa.dev/provenance/v1\",\"subject\":[{\"name\":\"pkg:docker/${name%:*}@${name##*:}?platform=linux%2F$architecture\",\"digest\":{\"sha256\":\"$digest\"}}],\"predicate\":{\"buildDefinition\":{\"buildType\":\"https://mobyproject.org/buildkit@v1\"}}}"
    statement=$(make_blob "$out" "$statement")
    config="{\"architecture\":\"unknown\",\"os\":\"unknown\",\"config\":{},\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[$(cut -d, -f1 <<<"${statement#*:}")]}}"
    config="{\"mediaType\":\"$oci.config.v1+json\",$(make_blob "$out" "$config")}"
    statement="{\"schemaVersion\":2,\"mediaType\":\"$oci.manifest.v1+json\",\"config\":$config,\"layers\":[{\"mediaType\":\"application/vnd.in-toto+json\",$statement,\"annotations\":{\"in-toto.io/predicate-type\":\"https://slsa.dev/provenance/v1\"}}]}"
    statement=$(make_blob "$out" "$statement")
    attestations+=",{\"mediaType\":\"$oci.manifest.v1+json\",$statement,\"annotations\":{\"vnd.docker.reference.digest\":\"sha256:$digest\",\"vnd.docker.reference.type\":\"attestation-manifest\"},\"platform\":{\"architecture\":\"unknown\",\"os\":\"unknown\"}}"
    digest=${statement#*sha256:}
    printf '%s\n' "${digest%%\"*}" >>"$out/manifests"
  done
  top=$manifest
  if [[ $form == index ]]; then
    top="{\"schemaVersion\":2,\"mediaType\":\"$oci.index.v1+json\",\"manifests\":[$manifests$attestations]}"
    top="\"mediaType\":\"$oci.index.v1+json\",$(make_blob "$out" "$top")"
    digest=${top#*sha256:}
    printf '%s\n' "${digest%%\"*}" >>"$out/manifests"
  fi
  printf '{"schemaVersion":2,"manifests":[{%s,"annotations":{"org.opencontainers.image.ref.name":"%s"}}]}' "$top" "${name##*:}" >"$out/index.json"
  printf '{"imageLayoutVersion":"1.0.0"}' >"$out/oci-layout"
  printf '%s\n' "$name" >"$out/name"
}

make_oci() {
  local sbin=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin env settings
  make_image "$1" "$POSTGRES_IMAGE" index '{"Env":["PATH='"$sbin"':/usr/lib/postgresql/17/bin","LANG=en_US.utf8","PG_MAJOR=17","PG_VERSION=17.7-3.pgdg13+1","PGDATA=/var/lib/postgresql/data"],"Entrypoint":["docker-entrypoint.sh"],"Cmd":["postgres"],"ExposedPorts":{"5432/tcp":{}},"Volumes":{"/var/lib/postgresql/data":{}},"StopSignal":"SIGINT"}' "$base" "$postgres"
  # From 18 on, the volume is the directory above, and PGDATA deeper.
  make_image "$1" "$POSTGRES_NEXT_IMAGE" index '{"Env":["PATH='"$sbin"':/usr/lib/postgresql/18/bin","LANG=en_US.utf8","PG_MAJOR=18","PGDATA=/var/lib/postgresql/18/docker"],"Entrypoint":["docker-entrypoint.sh"],"Cmd":["postgres"],"ExposedPorts":{"5432/tcp":{}},"Volumes":{"/var/lib/postgresql":{}},"StopSignal":"SIGINT"}' "$base" "$postgres_next"
  make_image "$1" "$REDIS_IMAGE" index '{"Env":["PATH='"$sbin"'","REDIS_VERSION=7.4.6"],"Entrypoint":["docker-entrypoint.sh"],"Cmd":["redis-server"],"ExposedPorts":{"6379/tcp":{}},"Volumes":{"/data":{}},"WorkingDir":"/data"}' "$base" "$redis"
  env='"PATH=/app/.venv/bin:'"$sbin"'","PRISMA_QUERY_ENGINE_BINARY=/usr/local/lib/prisma/query-engine","USE_PRISMA_MIGRATE=True","LITELLM_LOCAL_MODEL_COST_MAP=True"'
  settings='"Entrypoint":["docker/prod_entrypoint.sh"],"Cmd":["--port","4000"],"ExposedPorts":{"4000/tcp":{}},"WorkingDir":"/app"'
  make_image "$1" "$LITELLM_IMAGE" index "{\"Env\":[$env],$settings}" "$base" "$python" "$bridge" "$litellm"
  make_image "$1" "$PLAIN_IMAGE" plain "{\"Env\":[$env],\"Labels\":{\"form\":\"plain\"},$settings}" "$base" "$python" "$bridge" "$litellm"
  make_image "$1" "$NEWEST_IMAGE" index "{\"Env\":[$env],$settings}" "$base" "$python" "$bridge" "$litellm" "$newest"
  make_image "$1" "$OLDEST_IMAGE" index "{\"Env\":[$env],$settings}" "$base" "$python" "$bridge" "$oldest"
}

# The images as Podman's storage, that hosts use read-only.
make_store() {
  # shellcheck disable=SC2016
  over "$1/tmp" "$tools/fs" '
    for image in /run/oci/*; do
      name=$(<"$image/name")
      skopeo --insecure-policy copy -q "oci:$image:${name##*:}" "containers-storage:[overlay@/run/store+/run/scratch]$name"
    done
    umount /run/store/overlay 2>/dev/null || :
  ' "$oci:oci" "$1:store"
  rm -rf "$1/tmp"
  find "$1" -maxdepth 2 -type d -exec chmod a+rx {} +
  find "$1" -maxdepth 2 -type f -exec chmod a+r {} +
}

# The images of the servers in storage of the user operator, for containers in which 999 is that user: once more with
# such owners, as Podman leaves it after the first container. With an image of another storage it does this anew for
# each container.
make_mapped() {
  mkdir "$1/storage"
  # shellcheck disable=SC2016
  over "$1/tmp" "$root/fs:$debian/fs" '
    chown operator: /run/storage
    install -d -m 700 -o operator /run/operator
    # Without control groups Podman does nothing.
    mount -t sysfs sysfs /sys
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    as_operator() { setpriv --reuid 1000 --regid 1000 --init-groups env HOME=/home/operator XDG_RUNTIME_DIR=/run/operator "$@"; }
    for image in /run/oci/*_postgres_17* /run/oci/*_redis_*; do
      name=$(<"$image/name")
      as_operator podman --root /run/storage unshare \
        skopeo --insecure-policy copy -q "oci:$image:${name##*:}" "containers-storage:[overlay@/run/storage+/tmp/scratch]$name"
      as_operator podman --root /run/storage create --userns keep-id:uid=999,gid=999 "$name"
    done
    as_operator podman --root /run/storage rm --all --volumes
    as_operator podman --root /run/storage unshare umount /run/storage/overlay 2>/dev/null || :
    # Where it is and what runs, which is not so in a host.
    rm -rf /run/storage/{db.sql,defaultNetworkBackend,libpod,networks,volumes,overlay-containers}
  ' "$oci:oci" "$1/storage:storage"
  rm -rf "$1/tmp"
}

# The images as the storage of a registry.
make_registry() {
  local v2=$1/docker/registry/v2 image name repository blob digest tag directory
  for image in "$oci"/*; do
    name=$(<"$image/name")
    tag=${name##*:} name=${name%:*}
    repository=$v2/repositories/${name#*/}
    for blob in "$image"/blobs/sha256/*; do
      digest=${blob##*/}
      if grep -qxF "$digest" "$image/manifests"; then directory=_manifests/revisions; else directory=_layers; fi
      mkdir -p "$v2/blobs/sha256/${digest:0:2}/$digest" "$repository/$directory/sha256/$digest"
      ln -f "$blob" "$v2/blobs/sha256/${digest:0:2}/$digest/data"
      printf 'sha256:%s' "$digest" >"$repository/$directory/sha256/$digest/link"
    done
    # The last one is what the tag names.
    digest=$(tail -n 1 "$image/manifests")
    for directory in "_manifests/tags/$tag/current" "_manifests/tags/$tag/index/sha256/$digest"; do
      mkdir -p "$repository/$directory"
      printf 'sha256:%s' "$digest" >"$repository/$directory/link"
    done
  done
}
