#!/bin/bash
# What scripts share that run the program on the machine itself. Sourced.

# shellcheck disable=SC2034  # for the scripts that source it
readonly gateway=http://127.0.0.1:24157
readonly oldest_podman=4.9
readonly generator=/usr/lib/systemd/system-generators/podman-system-generator

die() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 1
}

say() { printf '\n==> %s\n' "$*" >&2; }

# Why this machine can't run the program; nothing if it can.
obstacle() {
  local version
  if [[ ! -d /run/systemd/system ]]; then
    echo 'systemd does not run here'
  elif ! command -v podman >/dev/null; then
    echo 'there is no Podman here'
  elif [[ ! -x $generator ]]; then
    echo "Podman here has no Quadlet"
  elif version=$("$generator" -version) &&
    [[ $(printf '%s\n' $oldest_podman "${version##* }" | sort -V | head -n 1) != "$oldest_podman" ]]; then
    echo "Podman here is $version, older than $oldest_podman"
  elif ((EUID)) && [[ ! -S ${XDG_RUNTIME_DIR:-/run/user/$EUID}/bus ]]; then
    echo "user $EUID has no systemd session here"
  fi
}

# Sets binary to the program: what is given, or else compiled: compile [FILE]
compile() {
  binary=${1:-}
  [[ ! $binary ]] || return 0
  cargo build --release --locked --quiet
  binary=${CARGO_TARGET_DIR:-target}/release/litellm-units
}

# Copies the program to where units can call it; fails if there is a file: install_program FILE TO
install_program() {
  mkdir -p "${2%/*}"
  (set -o noclobber && cat "$1" >"$2")
  chmod 755 "$2"
}

# Asks the gateway; the key goes by stdin, since others can read a command line: ask KEY PATH [JSON]
# The words in run come before the command: where it is run.
run=()
ask() {
  printf 'header = "Authorization: Bearer %s"\nheader = "Content-Type: application/json"\n' "$1" |
    "${run[@]}" curl --silent --show-error --fail-with-body --config - ${3:+--data "$3"} "$gateway$2"
}

# The string that a JSON text has under a name.
string() { sed -n 's/.*"'"$1"'": *"\([^"]*\)".*/\1/p'; }
