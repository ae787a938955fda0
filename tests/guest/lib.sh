# Functions to make kernels and file systems for virtual machines from Debian's packages, for `prepare` scripts.
#
# Before: $cache, a directory that stays; $work, one that goes; $label, what messages begin with.
# shellcheck shell=bash disable=SC2154

say() { echo "$label: $*"; }
# done_already NAME VERSION: whether this version of it was made before.
done_already() { [ "$(cat "$cache/stamp/$1" 2>/dev/null)" = "$2" ]; }
stamp() { echo "$2" >"$cache/stamp/$1"; }

apt="$(dirname "${BASH_SOURCE[0]}")/../apt"
updated=
apt_update() {
    [ -n "$updated" ] || [ "$(id -u)" -ne 0 ] || "$apt" update -q >/dev/null
    updated=1
}

# package COMMAND PACKAGE: installs a program's package if it is missing.
package() {
    command -v "$1" >/dev/null && return
    if [ "$(id -u)" -ne 0 ]; then
        say "missing: $1 (as root: apt-get install $2)" >&2
        return 1
    fi
    apt_update
    say "installing $2"
    DEBIAN_FRONTEND=noninteractive "$apt" install -y -q --no-install-recommends "$2" >/dev/null
}

# unpack PACKAGE DIR: the files of a Debian package without installing it.
unpack() {
    # As root itself: the user that apt downloads by may not enter the cache.
    (cd "$work" && apt-get -o APT::Sandbox::User=root download -q "$1" >/dev/null)
    dpkg -x "$work/$1"_*.deb "$2"
}

# copy_program PROGRAM ROOT: a program with the shared libraries it needs.
copy_program() {
    local file
    for file in "$1" $(ldd "$1" | grep -o '/[^ ]*'); do
        install -D "$file" "$2$file"
    done
}

# unpack_kernel DIR: Debian's kernel for virtual machines with its modules, and busybox. $release is its version then.
unpack_kernel() {
    local image
    package depmod kmod
    apt_update
    image=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image-/ { print $2; exit }')
    say "unpacking $image"
    unpack "$image" "$1"
    unpack busybox-static "$1"
    release=$(ls "$1/lib/modules")
    depmod -b "$1" "$release"
}

# initramfs KERNEL ROOT INIT MODULE...: completes the tree ROOT to an initramfs with busybox, the first process INIT
# and these modules with what they need. /modules/order lists them in the order in which to load them.
initramfs() {
    local tree=$1 root=$2 init=$3 path
    shift 3
    mkdir -p "$root"/{bin,sbin,proc,sys,dev,run,tmp,etc,modules,var}
    ln -s /run "$root/var/run"
    cp "$tree/bin/busybox" "$root/bin/busybox"
    for path in $(modprobe -d "$tree" -S "$release" -a --show-depends "$@" |
        awk '/^insmod/ && !seen[$2]++ { print $2 }'); do
        cp "$path" "$root/modules/"
        basename "$path" >>"$root/modules/order"
    done
    install -m 755 "$init" "$root/init"
}

# pack_initramfs ROOT FILE
pack_initramfs() {
    package cpio cpio
    (cd "$1" && find . -print0 | cpio --quiet --null -o -H newc) >"$2"
}
