//! Behind routers that translate addresses.

use std::thread;
use std::time::Duration;

use anyhow::{bail, ensure};
use warren_lab::Lab;
use warren_selftest::{Kind, Outer, Pair, Result, Roles, inner, is_silent, ping};

scenarios! {
    a_keepalive_outlives_the_mapping_of_a_router
    a_router_into_the_tunnel_says_that_a_host_is_unreachable
}

/// How long the router keeps a mapping that is not used, in seconds.
const MAPPING_SECONDS: u64 = 5;

/// ```text
///   host1 192.168.1.100 ---- 192.168.1.1 router 10.0.0.1 ---- 10.0.0.100 host2
/// ```
fn a_keepalive_outlives_the_mapping_of_a_router(roles: Roles) -> Result {
    let lab = Lab::new("selftest")?;
    let [one, two] = [lab.host("host1")?, lab.host("host2")?];
    let router = lab.nat_router("router", "out0")?;
    let inside = router.end("in0").addr("192.168.1.1/24");
    let cable = lab.connect(
        one.end("eth0").addr("192.168.1.100/24").via("192.168.1.1"),
        inside,
    )?;
    lab.connect(
        two.end("eth0").addr("10.0.0.100/24"),
        router.end("out0").addr("10.0.0.1/24"),
    )?;
    for timeout in ["udp_timeout", "udp_timeout_stream"] {
        let key = format!("net.netfilter.nf_conntrack_{timeout}");
        router.sysctl(&key, &MAPPING_SECONDS.to_string())?;
    }
    let pair = Pair::over(lab, cable, [one, two], roles)?;
    let keep = |seconds| {
        let peer = pair.second.public_key();
        pair.first
            .set_peer(&peer, &["persistent-keepalive", seconds])
    };
    pair.point(1, &format!("10.0.0.100:{}", Pair::port(2)))?;
    keep("1")?;
    pair.reaches(1)?;
    pair.reaches(2)?;
    let seen = pair.endpoint_seen_by(2)?;
    ensure!(seen.starts_with("10.0.0.1:"), "{seen}");
    thread::sleep(Duration::from_secs(2 * MAPPING_SECONDS));
    pair.reaches(2)?;
    ensure!(
        pair.endpoint_seen_by(2)? == seen,
        "the mapping is another one"
    );
    // Without it, the mapping ends and nothing comes through. What either end sends once, ten seconds after
    // the last data, may fall into one of these times.
    keep("0")?;
    for _ in 0..3 {
        thread::sleep(Duration::from_secs(2 * MAPPING_SECONDS));
        if is_silent(&pair.second.host, &inner(1)[0])? {
            return Ok(());
        }
    }
    bail!("the mapping is kept anyway")
}

/// ```text
///   client 203.0.113.1 ---- 203.0.113.2 host1 wg0 ==== wg0 host2
///                           source NAT to 10.7.0.1
/// ```
///
/// When the first device has no peer for a packet, the client is told so, by whatever it takes for the
/// router or the host: the NAT is undone in what the error quotes and in where it goes.
fn a_router_into_the_tunnel_says_that_a_host_is_unreachable(roles: Roles) -> Result {
    let pair = Pair::new(roles)?;
    pair.meet(Outer::V4)?;
    let client = pair.lab.host("client")?;
    let gateway = pair.first.host.end("eth1").addr("203.0.113.2/24");
    pair.lab
        .connect(client.end("eth0").addr("203.0.113.1/24"), gateway)?;
    pair.first.host.sysctl("net.ipv4.ip_forward", "1")?;
    pair.first.sh("nft 'table ip selftest {
             chain out { type nat hook postrouting priority srcnat;
                 ip saddr 203.0.113.0/24 oifname \"wg0\" snat to 10.7.0.1; }
         }'")?;
    client.sh("ip route add 10.7.0.0/24 via 203.0.113.2")?;
    ping(&client, &inner(2)[0])?;
    pair.first
        .set_peer(&pair.second.public_key(), &["remove"])?;
    let said = client.try_run(&["ping", "-n", "-c1", "-W10", &inner(2)[0]])?;
    let by = match pair.first.kind {
        Kind::Kernel => "203.0.113.2",
        // A TUN device cannot send from the host's own address: the unreachable host seems to say it itself.
        Kind::Ours => "10.7.0.2",
    };
    let expected = format!("From {by} icmp_seq=1 Destination Host Unreachable");
    ensure!(
        said.stdout.contains(&expected),
        "{}{}",
        said.stdout,
        said.stderr
    );
    Ok(())
}
