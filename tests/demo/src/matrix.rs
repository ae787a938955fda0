//! The table of every pod to every pod.

use anyhow::{Result, ensure};
use warren_e2e::{MeshPod, ping_each};
use warren_lab::Space;

/// Echo requests for each pair and family.
const PINGS: u32 = 3;

/// Pings every pod from every pod in one family and prints the mean round-trip times in ms.
pub(crate) fn show(pods: &[MeshPod], ipv6: bool) -> Result<()> {
    println!(
        "  {} round-trip times in ms, from the row to the column:",
        if ipv6 { "IPv6" } else { "IPv4" }
    );
    let header: String = pods.iter().map(|p| format!("{:>9}", p.name)).collect();
    println!("  {:<9}{header}", "");
    for from in pods {
        let address = |to: &MeshPod| if ipv6 { to.v6.clone() } else { to.v4.clone() };
        let addresses: Vec<String> = pods.iter().map(address).collect();
        let pairs: Vec<(&Space, &str)> = addresses
            .iter()
            .map(|address| (&*from.pod, address.as_str()))
            .collect();
        let mut line = format!("  {:<9}", from.name);
        for (address, seen) in addresses.iter().zip(ping_each(&pairs, PINGS)?) {
            ensure!(
                seen.lossless(),
                "{} does not reach {address}: {seen:?}",
                from.name
            );
            line += &format!("{:>9.2}", seen.rtt_ms.unwrap_or_default());
        }
        println!("{line}");
    }
    Ok(())
}
