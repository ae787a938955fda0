//! A mesh of an earlier version and the current one, and the upgrade.

use anyhow::{Result, ensure};
use warren_vm::{Cluster, Version, ping_all};

use crate::pods::{check_encrypted, transfer, two_pods_each};
use crate::{identity, untouched};

pub(crate) fn run(cluster: &mut Cluster) -> Result<()> {
    let versions = versions(cluster)?;
    ensure!(versions[0] != versions[1], "node1 has the current version");
    ensure!(versions[1] == versions[2], "node2 and node3 differ");
    let pods = two_pods_each(cluster)?;
    let capture = cluster.capture(&[])?;
    ping_all(cluster, &pods)?;
    transfer(cluster, &pods[0], &pods[2])?;
    transfer(cluster, &pods[4], &pods[0])?;

    let key = identity(cluster.machine(1))?;
    let others = |cluster: &Cluster| -> Result<[String; 2]> {
        Ok([
            untouched(cluster.machine(2))?,
            untouched(cluster.machine(3))?,
        ])
    };
    let before = others(cluster)?;
    cluster
        .machine(1)
        .provision(&cluster.settings, Version::Current)?;
    cluster.wait_connected()?;
    let versions = self::versions(cluster)?;
    ensure!(versions[0] == versions[1], "node1 was not upgraded");
    ensure!(
        identity(cluster.machine(1))? == key,
        "the key is another one"
    );
    ensure!(others(cluster)? == before, "the others were disturbed");
    // The pods that the earlier version attached.
    ping_all(cluster, &pods)?;
    check_encrypted(cluster, capture, 200)
}

/// What tells the agents of the machines apart.
fn versions(cluster: &Cluster) -> Result<Vec<String>> {
    let machines = cluster.machines.iter();
    machines
        .map(|machine| machine.sh("sha256sum < /usr/local/bin/warren-agent"))
        .collect()
}
