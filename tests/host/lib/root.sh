# shellcheck shell=bash
# The root directory of a host, by suite. Sourced by host.

make_debian() {
  local suite=${1##*/debian-}
  bootstrap --include="$HOST_PACKAGES" "${suite%%-*}" "$1/fs" "$DEBIAN"
  rm -rf "$1"/fs/var/lib/apt/lists/* "$1"/fs/var/cache/apt/*.bin "$1"/fs/var/log/* "$1/fs/etc/machine-id"
}

make_ubuntu() {
  curl -sSfL --retry 3 -o "$1/keys.deb" "$UBUNTU/$UBUNTU_KEYS"
  sha256sum --quiet -c <<<"$UBUNTU_KEYS_SHA256  $1/keys.deb"
  dpkg-deb -x "$1/keys.deb" "$1/keys"
  bootstrap --components=main,universe --keyring="$1/keys/usr/share/keyrings/ubuntu-archive-keyring.gpg" \
    --include="$UBUNTU_PACKAGES,$HOST_PACKAGES" noble "$1/fs" "$UBUNTU"
  # The others' sshd has no socket.
  rm -f "$1/fs/etc/systemd/system/sockets.target.wants/ssh.socket"
  rm -rf "$1"/keys* "$1"/fs/var/lib/apt/lists/* "$1"/fs/var/cache/apt/*.bin "$1"/fs/var/log/* "$1/fs/etc/machine-id"
}

# What RHEL 9 has: systemd 252 with Podman 5.
make_bookworm() {
  export DEBIAN TRIXIE_PACKAGES HELD_PACKAGES
  # shellcheck disable=SC2016
  bootstrap --include="$BOOKWORM_PACKAGES" --customize-hook='
    echo "deb $DEBIAN trixie main" >"$1/etc/apt/sources.list.d/trixie.list"
    chroot "$1" sh -euc "
      apt-mark hold $HELD_PACKAGES
      apt-get -q update
      apt-get -qy -o Acquire::Check-Valid-Until=false -o Dpkg::Options::=--force-confold -t trixie install --no-install-recommends $TRIXIE_PACKAGES
      apt-mark unhold $HELD_PACKAGES
    "
  ' bookworm "$1/fs" "$DEBIAN"
  [[ $(chroot "$1/fs" systemctl --version) == 'systemd 252 '* ]]
  rm -rf "$1"/fs/var/lib/apt/lists/* "$1"/fs/var/cache/apt/{*.bin,archives/*.deb} "$1"/fs/var/log/* "$1/fs/etc/machine-id"
}

make_root() {
  # shellcheck disable=SC2016
  over "$1/fs" "$debian/fs" '
    groupmod --gid 1000 operator
    useradd --create-home --uid 1000 --gid 1000 --shell /bin/bash operator
    useradd --create-home --uid 1001 --shell /bin/bash nolinger
    mkdir -p /var/lib/systemd/linger /var/log/journal /srv/images /srv/images-operator /opt
    touch /var/lib/systemd/linger/operator
    printf "127.0.0.1 localhost\n::1 localhost\n" >/etc/hosts
    cp -r --no-preserve=ownership /run/files/. /
    chown -R operator:operator /home/operator
    rm -f /etc/hostname /etc/docker/registry/htpasswd /etc/apt/sources.list.d/*
    # The root lacks manuals and other languages; what is installed later is complete.
    echo force-unsafe-io >/etc/dpkg/dpkg.cfg.d/99mmdebstrap
    systemctl --quiet enable rootless-images.service docker-registry.service
    systemctl --quiet disable ssh.service
    # Podman unmounts what is below /sys/kernel before a container gets a user namespace, and stumbles over mounts below
    # mounts. On a machine there are none; in a host of ours, /sys/kernel is a mount itself.
    systemctl --quiet mask sys-kernel-debug.mount sys-kernel-tracing.mount
    systemctl --quiet mask systemd-modules-load.service console-getty.service getty@tty1.service apt-daily.timer \
      apt-daily-upgrade.timer dpkg-db-backup.timer fstrim.timer systemd-firstboot.service
  ' "$here/root:files"
  printf 'nameserver 127.0.0.53\n' >"$1/fs/etc/resolv.conf"
}

# A Debian archive of a few packages, since hosts reach no other: apt resolves dependencies with it.
make_archive() {
  # shellcheck disable=SC2016
  over "$1/tmp" "$debian/fs" "
    apt-get -q update
    apt-get -qy install --download-only --reinstall --no-install-recommends $packages
    mv /var/cache/apt/archives/*.deb /run/archive/
  " "$1:archive"
  rm -rf "$1/tmp"
  (cd "$1" && dpkg-scanpackages --multiversion . >Packages)
}
