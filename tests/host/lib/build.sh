# shellcheck shell=bash
# Everything that a host needs, made where it is missing. Sourced by host.

need() {
  local command package missing=()
  while read -r command package; do
    command -v "$command" >/dev/null || missing+=("$package")
  done <<'TABLE'
mmdebstrap mmdebstrap
systemd-nspawn systemd-container
getfattr attr
zstd zstd
mkfs.ext4 e2fsprogs
node nodejs
npm npm
curl curl
dpkg-scanpackages dpkg-dev
TABLE
  ((${#missing[@]})) || return 0
  progress "installing ${missing[*]}"
  {
    apt-get -q update
    DEBIAN_FRONTEND=noninteractive apt-get -qy install --no-install-recommends "${missing[@]}"
  } >"$cache/apt.log" 2>&1 </dev/null || die "apt-get failed, see $cache/apt.log"
}

build() {
  local suite=$1 pids=() pid leftover failed=0
  set_parts "$suite"
  local ready=$cache/READY
  [[ $suite == trixie ]] || ready+=-$suite
  if ! complete; then
    [[ $EUID == 0 ]] || die 'needs root'
    mkdir -p "$cache"
    exec 9>"$cache/lock"
    flock --nonblock 9 || { progress 'another build is running; waiting for it'; flock 9; }
    rm -f "$cache/failed"
    need
    for leftover in "$cache"/*.new; do remove "$leftover"; done
    {
      case $suite in
        bookworm) part "$debian" make_bookworm ;;
        noble) part "$debian" make_ubuntu ;;
        *) part "$debian" make_debian ;;
      esac
      part "$root" make_root
      part "$archive" make_archive
      [[ $tools == "$debian" ]] || part "$tools" make_debian
      part "$postgres" make_postgres "$base"
      part "$postgres_next" make_postgres_next "$base"
      part "$redis" make_redis "$base"
    } &
    pids+=($!)
    {
      part "$base" make_base
      part "$python" make_python
      part "$litellm" make_litellm "$bridge"
      part "$newest" make_newest "$bridge"
      part "$oldest" make_oldest "$bridge"
    } &
    pids+=($!)
    part "$bridge" make_bridge &
    pids+=($!)
    # shellcheck disable=SC2064
    trap "kill ${pids[*]} 2>/dev/null || :" EXIT
    for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
    trap - EXIT
    ((!failed)) || die 'the build failed'
    part "$oci" make_oci
    part "$store" make_store
    part "$registry" make_registry
    part "$mapped" make_mapped
    # Half a gigabyte of downloads, that only another recipe would use again.
    remove "$cache/uv"
    exec 9>&-
    progress "ready: $cache"
  fi
  printf '%s %s %s\n' "${root##*/}" "${store##*/}" "${registry##*/}" | cmp -s - "$ready" ||
    printf '%s %s %s\n' "${root##*/}" "${store##*/}" "${registry##*/}" >"$ready"
}
