# shellcheck shell=bash
# Hosts: booted, entered, stopped. Sourced by host.

# A host's directory, run/NAME (data/ in memory/NAME where memory/ is mounted): options (a line per word: root, debian, store, registry, suite, flags), data/ (what is kept of its
# disk: upper, work, and the directories that must not lie on an overlay), pid (of its systemd-nspawn), console.log.

use_host() {
  [[ ${1:-} =~ ^[a-z0-9][a-z0-9-]{0,50}$ ]] || die "a host's name is of the letters a to z, digits and hyphens: '${1:-}'"
  name=$1
  state=$cache/run/$name
}

# The control group of the host, in the unified hierarchy: by it the host's processes are known and killed.
find_cgroup() {
  local type point
  while read -r _ point type _; do
    [[ $type != cgroup2 ]] || break
  done </proc/self/mounts
  [[ $type == cgroup2 ]] || die 'no cgroup2 file system'
  cgroups=$point
  cgroup=litellm-units-host/$name-$(hash_of <<<"$state")
}

load_host() {
  use_host "$1"
  [[ -r $state/cgroup ]] || die "no host $name"
  { read -r cgroups && read -r cgroup; } <"$state/cgroup"
}

# Sets leader to the pid of the host's PID 1, if it runs.
find_leader() {
  local supervisor line
  leader=
  { read -r supervisor <"$state/pid"; } 2>/dev/null || return 1
  { read -r leader _ <"/proc/$supervisor/task/$supervisor/children"; } 2>/dev/null || [[ $leader ]] || return 1
  while read -r line; do
    [[ $line != 0::/"$cgroup"/* ]] || return 0
  done 2>/dev/null <"/proc/$leader/cgroup"
  leader=
  return 1
}

is_running() { find_leader; }

inside() {
  nsenter --target "$leader" --mount --uts --ipc --net --pid --cgroup --root --wd -- \
    /usr/bin/env -i PATH="$SYSTEM_PATH" HOME=/root LANG=C.UTF-8 "$@"
}

start() {
  local deadline
  mkdir -p "$cgroups/$cgroup"
  rm -f "$state/pid"
  setsid "$self" __run "$name" </dev/null >>"$state/console.log" 2>&1 9>&- &
  deadline=$((SECONDS + ${BOOT_TIMEOUT:-60}))
  until find_leader && [[ $(inside systemctl is-system-running --wait 2>/dev/null) =~ ^(running|degraded)$ ]] &&
    inside busctl --quiet --system get-property org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager Version >/dev/null 2>&1 &&
    inside test -S /run/user/1000/bus; do
    if ((SECONDS > deadline)); then
      tail -n 30 "$state/console.log" >&2
      die "$name does not boot, see $state/console.log"
    fi
    sleep 0.05
  done
}

# The process that becomes the host's systemd-nspawn. Its mounts are its own and go with it.
run_host() {
  load_host "$1"
  echo $$ >"$cgroups/$cgroup/cgroup.procs"
  exec unshare --mount --propagation private -- "$self" __run2 "$name"
}

run_host2() {
  local data directory code
  local -a binds=()
  load_host "$1"
  # shellcheck source=/dev/null
  . "$state/options"
  data=$state/data
  mount -t overlay overlay -o "lowerdir=$root/fs:$debian/fs,upperdir=$data/upper,workdir=$data/work" "$state/root"
  mount -t overlay overlay -o "lowerdir=$registry,upperdir=$data/registry-upper,workdir=$data/registry-work" "$data/registry"
  binds+=("--bind=$data/registry:/var/lib/docker-registry")
  for directory in home opt var/lib/containers var/log/journal; do
    [[ $directory != opt || ! -e $data/opt.img ]] || { mount -o loop "$data/opt.img" "$data/opt" && rm -rf "$data/opt/lost+found"; }
    binds+=("--bind=$data/$directory:/$directory")
  done
  binds+=("--bind-ro=$archive:/srv/archive")
  [[ $empty_store ]] || binds+=("--bind-ro=$store:/srv/images")
  export SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 SYSTEMD_NSPAWN_API_VFS_WRITABLE=1
  while :; do
    systemd-nspawn --quiet --register=no --keep-unit --machine="$name" --directory="$state/root" --boot \
      --private-network --capability=all --system-call-filter='add_key keyctl bpf perf_event_open @keyring @mount' \
      --console=pipe --link-journal=no "${binds[@]}" &
    echo $! >"$state/pid.new"
    mv "$state/pid.new" "$state/pid"
    code=0
    wait $! || code=$?
    # What systemd-nspawn says when the host has rebooted itself.
    ((code == 133)) || break
  done
}

boot() {
  local suite=trixie empty_store='' rootless='' opt_size='' owner='' own_packages='' data directory
  use_host "${1:-}"
  shift
  while (($#)); do
    case $1 in
      --suite) suite=$2 && shift ;;
      --empty-store) empty_store=yes ;;
      --rootless) rootless=yes ;;
      --opt-size) opt_size=$2 && shift ;;
      --owner) owner=$2 && shift ;;
      --packages) own_packages=$2 && shift ;;
      *) die "boot: $1?" ;;
    esac
    shift
  done
  [[ ! -e $state ]] || die "there is a host $name already; stop it first"
  stop_orphans
  build "$suite"
  mkdir -p "$cache/run"
  mkdir "$state" || die "there is a host $name already"
  data=$state/data
  # For a run of the tests; who is elsewhere still sees by its directory that there is a host, and can stop it.
  if mountpoint --quiet "$cache/memory"; then
    mkdir "$cache/memory/$name"
    ln -s "$cache/memory/$name" "$data"
  fi
  mkdir -p "$state/root" "$data"/{work,registry,registry-upper,registry-work} "$data"/upper/etc/containers \
    "$data"/var/lib/containers "$data"/var/log/journal
  chmod 2755 "$data/var/log/journal"
  cp -a "$root/fs/home" "$data/home"
  mkdir "$data/opt"
  printf '%s\n' "$name" >"$data/upper/etc/hostname"
  tr -d - </proc/sys/kernel/random/uuid >"$data/upper/etc/machine-id"
  if [[ $opt_size ]]; then
    truncate -s "$opt_size" "$data/opt.img"
    mkfs.ext4 -q -F -m 0 "$data/opt.img"
  fi
  if [[ $rootless && ! $empty_store ]]; then
    install -d -o 1000 -g 1000 "$data"/home/operator/.local{,/share{,/containers}}
    cp -a "$mapped/storage" "$data/home/operator/.local/share/containers/"
  fi
  if [[ $empty_store ]]; then
    sed '/^additionalimagestores/d' "$root/fs/etc/containers/storage.conf" >"$data/upper/etc/containers/storage.conf"
    sed -i '/^additionalimagestores/d' "$data/home/operator/.config/containers/storage.conf"
  fi
  find_cgroup
  printf '%s\n' "$cgroups" "$cgroup" >"$state/cgroup"
  printf '%s=%q\n' suite "$suite" root "$root" debian "$debian" archive "$archive" store "$store" registry "$registry" empty_store "$empty_store" owner "$owner" >"$state/options"
  start
}

# Kill all of the host at once, as a loss of power does.
cut_power() {
  local try
  [[ -d $cgroups/$cgroup ]] || return 0
  echo 1 >"$cgroups/$cgroup/cgroup.kill"
  for ((try = 0; try < 500; try++)); do
    ! grep -q 'populated 0' "$cgroups/$cgroup/cgroup.events" || break
    sleep 0.01
  done
  for ((try = 0; try < 100; try++)); do
    [[ -s $state/pid && -d /proc/$(<"$state/pid") ]] || break
    sleep 0.01
  done
  find "$cgroups/$cgroup" -depth -mindepth 0 -type d -exec rmdir {} + 2>/dev/null || :
}

shut_down() {
  local try
  find_leader || return 0
  inside systemctl poweroff >/dev/null 2>&1 || :
  for ((try = 0; try < 1200; try++)); do
    find_leader || break
    sleep 0.05
  done
  cut_power
}

# exec NAME [--user USER] [--login] [--cwd DIR] [--env K=V]… [--tty] -- CMD…
run_in() {
  local user=root login='' cwd='' tty='' uid=0 gid=0 home=/root shell=/bin/bash group line top
  local -a env=() become=()
  load_host "${1:-}"
  shift
  while (($#)); do
    case $1 in
      --user) user=$2 && shift ;;
      --login) login=yes ;;
      --cwd) cwd=$2 && shift ;;
      --env) env+=("$2") && shift ;;
      --tty) tty=yes ;;
      --) shift && break ;;
      *) break ;;
    esac
    shift
  done
  (($#)) || die 'exec: no command'
  find_leader || die "$name is not running"
  top=$cgroups/$cgroup/payload
  [[ -d $top ]] || top=$cgroups/$cgroup
  group=$top/system.slice/host-exec.scope
  if [[ $user != root ]]; then
    uid=
    while IFS=: read -r line _ uid gid _ home shell; do
      [[ $line != "$user" ]] || break
      uid=
    done <"/proc/$leader/root/etc/passwd"
    [[ $uid ]] || die "no user $user in $name"
    [[ $login ]] || become=(--reuid "$uid" --regid "$gid" --init-groups)
    if [[ ! $login && -d /proc/$leader/root/run/user/$uid ]]; then
      env=("XDG_RUNTIME_DIR=/run/user/$uid" "DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/$uid/bus" "${env[@]}")
      [[ ! -d $top/user.slice/user-$uid.slice/user@$uid.service ]] ||
        group=$top/user.slice/user-$uid.slice/user@$uid.service/app.slice/host-exec.scope
    fi
  fi
  if [[ ! -d $group ]]; then
    mkdir -p "$group"
    [[ $user == root ]] || chown -R "$uid:$gid" "$group"
  fi
  echo $$ >"$group/cgroup.procs"
  [[ $cwd || -d /proc/$leader/root$home ]] || cwd=/
  [[ ! $tty ]] || set -- /usr/bin/script --quiet --return --flush --command "$(printf '%q ' "$@")" /dev/null
  env=(PATH="$SYSTEM_PATH" LANG=C.UTF-8 TERM="${TERM:-dumb}" "${env[@]}")
  if [[ $login ]]; then
    # shellcheck disable=SC2016
    become+=(/usr/sbin/runuser --login --command 'exec /usr/bin/env "$@"' -- "$user" env --chdir="${cwd:-$home}")
  else
    become+=(/usr/bin/env -i --chdir="${cwd:-$home}" HOME="$home" USER="$user" LOGNAME="$user" SHELL="$shell")
  fi
  exec nsenter --target "$leader" --mount --uts --ipc --net --pid --cgroup --root --wd -- \
    /usr/bin/setpriv --pdeathsig TERM "${become[@]}" "${env[@]}" "$@"
}

put() {
  local owner=root source dest mode uid gid line
  load_host "${1:-}"
  shift
  [[ ${1:-} != --owner ]] || { owner=$2 && shift 2; }
  (($# == 2)) || die 'put NAME [--owner USER] SRC DEST'
  source=$1 dest=$2
  find_leader || die "$name is not running"
  if [[ -d $source ]]; then
    # shellcheck disable=SC2016
    tar -C "$source" -c --owner=0 --group=0 . | inside sh -c 'mkdir -p "$1" && tar -C "$1" -xp && chown -R "$2:" "$1"' put "$dest" "$owner"
  else
    mode=$(stat -L -c %a "$source")
    # shellcheck disable=SC2016
    inside sh -c '
      dest=$1
      if [ -d "$dest" ]; then dest=${dest%/}/$4; fi
      cat >"$dest.put" && chmod "$2" "$dest.put" && chown "$3:" "$dest.put" && mv -f "$dest.put" "$dest"
    ' put "$dest" "$mode" "$owner" "${source##*/}" <"$source"
  fi
}

# A network of these hosts alone: a bridge in the first one, and a cable from each other one to it.
lan() {
  local name switch='' number=1
  for name in "$@"; do
    load_host "$name"
    find_leader || die "$name is not running"
    if [[ ! $switch ]]; then
      switch=$leader
      nsenter --target "$switch" --net ip link add lan type bridge
    else
      nsenter --target "$switch" --net ip link add "lan$number" type veth peer name lan netns "$leader"
      nsenter --target "$switch" --net ip link set "lan$number" master lan up
    fi
    nsenter --target "$leader" --net ip address add "10.98.0.$number/24" dev lan
    nsenter --target "$leader" --net ip link set lan up
    number=$((number + 1))
  done
}

stop() {
  use_host "${1:-}"
  [[ -e $state ]] || return 0
  if [[ -e $state/cgroup ]]; then
    load_host "$name"
    cut_power
  fi
  remove "$cache/memory/$name"
  remove "$state"
}

# A test that was killed leaves its host, which would keep its memory and its disk.
stop_orphans() {
  local dir owner
  for dir in "$cache"/run/*/; do
    owner=$(sed -n 's/^owner=\([0-9]\+\)$/\1/p' "$dir/options" 2>/dev/null) || :
    [[ ! $owner || -d /proc/$owner ]] || (stop "$(basename "$dir")")
  done
}

list() {
  local dir suite
  for dir in "$cache"/run/*/; do
    # It may go at any moment.
    [[ -r $dir/cgroup ]] || continue
    load_host "$(basename "$dir")"
    suite=$(sed -n 's/^suite=//p' "$state/options")
    if find_leader; then line="running $leader"; else line=stopped; fi
    printf '%s %s %s\n' "$name" "$suite" "$line"
  done
}

# Which of the cache's parts running or stopped hosts use, and which the present recipe.
clean() {
  local item name
  if [[ ${1:-} == --old ]]; then
    exec 9>"$cache/lock"
    flock 9
    local -A keep=()
    for suite in trixie sid noble bookworm; do
      set_parts "$suite"
      for item in "$debian" "$root" "$archive" "$tools" "$base" "$bridge" "$postgres" "$postgres_next" "$redis" "$python" "$litellm" "$newest" "$oldest" "$oci" "$store" "$registry" "$mapped"; do
        keep[$item]=1
      done
    done
    for item in "$cache"/{debian,root,archive,layer,oci,store,registry,mapped}-*; do
      [[ ! ${keep[$item]:-} ]] || continue
      grep -qsF "=$item" "$cache"/run/*/options || remove "$item"
    done
  else
    for item in "$cache"/run/*/; do
      [[ ! -d $item ]] || (stop "$(basename "$item")")
    done
    for item in "$cache"/{run,memory,uv,lock,failed,apt.log,READY,READY-sid,READY-noble,READY-bookworm} "$cache"/{debian,root,archive,layer,oci,store,registry,mapped}-*; do remove "$item"; done
  fi
}
