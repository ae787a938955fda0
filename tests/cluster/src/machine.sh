# Makes a lab host a machine that runs a kubelet: run inside it, at each boot, in a control group
# namespace of its own. Arguments: the host's directory. HIERARCHIES: lines of GROUP MOUNT-POINT OPTION.
set -eu
dir=$1
# Containers' mounts follow the node's, as on a machine that systemd has started.
mount --make-rshared /

# What is written outside of these is the machine's.
for place in etc opt var; do
    mkdir -p "$dir/overlay/$place/upper" "$dir/overlay/$place/work"
    mount -t overlay overlay \
        -o "lowerdir=/$place,upperdir=$dir/overlay/$place/upper,workdir=$dir/overlay/$place/work" "/$place"
done
# Folders of its own instead of the machine's, also where an overlay cannot be: under another overlay.
for place in /etc/cni/net.d /etc/kubernetes /opt/cni/bin /var/lib/cni /var/lib/containerd /var/lib/kubelet \
    /var/log/containers /var/log/pods; do
    mkdir -p "$place" "$dir/root$place"
    mount --bind "$dir/root$place" "$place"
done

mount -t tmpfs -o mode=755 cgroups /sys/fs/cgroup
while read -r _ at option; do
    mkdir -p "$at"
    mount -t cgroup -o "$option" cgroup "$at"
done <<END
$HIERARCHIES
END

# The kubelet wants these values of the whole machine; it is told that they are so.
mkdir -p "$dir/claims"
while read -r key value; do
    echo "$value" >"$dir/claims/${key##*/}"
    mount --bind "$dir/claims/${key##*/}" "/proc/sys/$key"
done <<END
vm/overcommit_memory 1
vm/panic_on_oom 0
kernel/panic 10
kernel/panic_on_oops 1
kernel/keys/root_maxkeys 1000000
kernel/keys/root_maxbytes 25000000
END

echo "nameserver 192.0.2.254" >/etc/kubernetes/resolv.conf
