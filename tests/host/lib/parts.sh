# shellcheck shell=bash
# The cache's parts: made once, named by what makes them. Sourced by host.

# The cache is made of parts: directories named KIND-HASH, the hash being of all that makes the part, made under another
# name and renamed when complete. A changed recipe makes new parts beside those that running hosts still use.

hash_of() {
  local sum
  sum=$(sha256sum)
  printf '%s' "${sum:0:12}"
}

# The hash of some functions of this script, some files of this directory and some words.
recipe() {
  local item
  for item in "$@"; do
    case $item in
      make_*) declare -f "$item" ;;
      root/ | images/*) (cd "$here" && find "$item" -type f -printf '%m %p\n' -exec cat {} + | sort) ;;
      *) printf '%s\n' "$item" ;;
    esac
  done | hash_of
}

set_parts() {
  local suite=$1
  case $suite in
    bookworm) debian=$cache/debian-$suite-$(recipe make_bookworm "$DEBIAN" "$BOOKWORM_PACKAGES" "$TRIXIE_PACKAGES" "$HELD_PACKAGES") ;;
    noble) debian=$cache/debian-$suite-$(recipe make_ubuntu "$UBUNTU" "$UBUNTU_KEYS_SHA256" "$UBUNTU_PACKAGES" "$HOST_PACKAGES") ;;
    *) debian=$cache/debian-$suite-$(recipe make_debian "$suite" "$DEBIAN" "$HOST_PACKAGES") ;;
  esac
  root=$cache/root-$suite-$(recipe make_root "${debian##*/}" root/)
  packages=$ARCHIVE_PACKAGES
  [[ $suite != trixie ]] || packages+=" $PEER_PACKAGES"
  packages=${own_packages:-$packages}
  archive=$cache/archive-$suite-$(recipe make_archive "${debian##*/}" "$packages")
  tools=$cache/debian-trixie-$(recipe make_debian trixie "$DEBIAN" "$HOST_PACKAGES")
  base=$cache/layer-base-$(recipe make_base "$DEBIAN")
  bridge=$cache/layer-bridge-$(recipe make_bridge images/litellm/{package.json,package-lock.json,prisma,query-engine,query-engine.js,schema-engine,prod_entrypoint.sh})
  postgres=$cache/layer-postgres-$(recipe make_postgres make_server "${base##*/}" images/postgres/)
  postgres_next=$cache/layer-postgres-next-$(recipe make_postgres_next make_server "${base##*/}" images/postgres/)
  redis=$cache/layer-redis-$(recipe make_redis "${base##*/}" images/redis/)
  python=$cache/layer-python-$(recipe make_python "${base##*/}")
  litellm=$cache/layer-litellm-$(recipe make_litellm make_release make_uv make_client "${python##*/}" images/litellm/requirements-$LITELLM_VERSION.txt images/litellm/package-lock.json)
  newest=$cache/layer-newest-$(recipe make_newest make_release make_uv make_client make_migration "${litellm##*/}" images/litellm/{package-lock.json,prisma} images/litellm/requirements-$NEWEST_VERSION.txt)
  oldest=$cache/layer-oldest-$(recipe make_oldest make_release make_uv make_client "${python##*/}" images/litellm/requirements-$OLDEST_VERSION.txt images/litellm/package-lock.json)
  oci=$cache/oci-$(recipe make_oci make_image make_blob "${postgres##*/}" "${postgres_next##*/}" "${redis##*/}" "${litellm##*/}" "${newest##*/}" "${oldest##*/}" "${bridge##*/}")
  store=$cache/store-$(recipe make_store "${oci##*/}")
  registry=$cache/registry-$(recipe make_registry "${oci##*/}")
  mapped=$cache/mapped-$suite-$(recipe make_mapped "${root##*/}" "${oci##*/}")
}

complete() { [[ -d $root && -d $debian && -d $archive && -d $store && -d $registry && -d $mapped ]]; }

# Make a part unless it is there: part DIRECTORY FUNCTION [PART IT NEEDS]…
part() {
  local dir=$1 make=$2 needed log=$1.log start code
  shift 2
  [[ ! -d $dir ]] || return 0
  for needed in "$@"; do
    until [[ -d $needed ]]; do
      [[ ! -e $cache/failed ]] || return 1
      sleep 0.2
    done
  done
  remove "$dir.new"
  mkdir "$dir.new"
  progress "${dir##*/} …"
  start=$SECONDS
  set +e
  (
    set -e
    "$make" "$dir.new"
  ) >"$log" 2>&1 </dev/null
  code=$?
  set -e
  if ((code)); then
    : >"$cache/failed"
    { tail -n 25 "$log"; progress "${dir##*/} failed; the whole log: $log"; } >&2
    return 1
  fi
  mv "$dir.new" "$dir"
  rm -f "$log"
  progress "${dir##*/} made in $((SECONDS - start)) s"
}

# Remove a directory of the cache, and first what may be mounted below it.
remove() {
  local dir=$1 mounted
  [[ $dir == "$cache"/* ]] || die "not in the cache: $dir"
  [[ -e $dir ]] || return 0
  while read -r mounted; do
    umount -l "$(printf '%b' "$mounted")" || :
  done < <(awk -v dir="$dir/" 'index($5 "/", dir) == 1 { print $5 }' /proc/self/mountinfo | sort -r)
  rm -rf --one-file-system "$dir"
}

# Run a command with mounts and processes of its own, that end with it.
contained() { setpriv --pdeathsig KILL unshare --mount --pid --fork --kill-child --mount-proc --propagation private -- "$@"; }

# Run a script over file systems: over UPPER LOWER[:LOWER]… SCRIPT [SOURCE:TARGET]…; what it writes goes into UPPER.
over() {
  mkdir -p "$1" "$1.work" "$1.merged"
  # shellcheck disable=SC2016
  contained bash -euo pipefail -c '
    upper=$1 lowers=$2 script=$3 m=$1.merged; shift 3
    mount -t overlay overlay -o "lowerdir=$lowers,upperdir=$upper,workdir=$upper.work" "$m"
    mount -t proc proc "$m/proc"
    mount --rbind /dev "$m/dev"
    for dir in tmp run var/tmp var/cache/apt var/lib/apt/lists; do mount -t tmpfs -o mode=1777 tmp "$m/$dir"; done
    mkdir "$m/run/shm" "$m/run/lock"
    mount --bind "$(readlink -f /etc/resolv.conf)" "$m/etc/resolv.conf"
    if [[ -d $m/etc/ssl/certs ]]; then mount --bind /etc/ssl/certs "$m/etc/ssl/certs"; fi
    for bind; do
      mkdir -p "$m/run/${bind#*:}"
      mount --bind "${bind%%:*}" "$m/run/${bind#*:}"
    done
    # As switch_root does: who is in a mere chroot can make no user namespace.
    cd "$m"
    mount --move . /
    exec chroot . /usr/bin/env -C / DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 HOME=/tmp \
      SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
      PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin /bin/bash -euo pipefail -c "$script"
  ' over "$@"
  rm -rf --one-file-system "$1.work" "$1.merged"
}

bootstrap() {
  contained mmdebstrap --quiet --variant=minbase --aptopt='Acquire::Check-Valid-Until "false"' --dpkgopt=force-unsafe-io \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/info/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/lintian/*' "$@"
}
