//! From which address a device sends.

use anyhow::ensure;
use warren_selftest::{Outer, Pair, Result, Roles, inner, ping};

scenarios! {
    a_removed_source_address_falls_back
    a_peer_is_answered_from_the_address_that_it_asked
    a_better_route_is_taken
}

/// The first device's address goes while the session lasts; the other one is used from then on.
fn a_removed_source_address_falls_back(roles: Roles) -> Result {
    let pair = Pair::new(roles)?;
    pair.first
        .host
        .sysctl("net.ipv4.conf.eth0.promote_secondaries", "1")?;
    for (outer, bits) in [(Outer::V4, 24), (Outer::V6, 64)] {
        pair.point(1, &outer.endpoint(2, Pair::port(2)))?;
        // The answers tell the first by which of its addresses it is known.
        pair.reaches(1)?;
        pair.first.sh(&format!(
            "ip address add {}/{bits} dev eth0 nodad
             ip address del {}/{bits} dev eth0",
            outer.address(10),
            outer.address(1)
        ))?;
        pair.reaches(1)?;
        let seen = pair.endpoint_seen_by(2)?;
        ensure!(seen == outer.endpoint(10, Pair::port(1)), "{seen}");
    }
    Ok(())
}

/// The first device has several addresses, one of them on an interface that no route leads by, and is
/// asked at each of them.
fn a_peer_is_answered_from_the_address_that_it_asked(roles: Roles) -> Result {
    let pair = Pair::new(roles)?;
    pair.first.sh("ip address add 192.0.2.11/24 dev eth0
         ip address add 2001:db8::b/64 dev eth0 nodad
         ip link add dummy0 type dummy || ip link add dummy0 type bridge
         ip address add 198.51.100.1/24 dev dummy0
         ip link set dummy0 up")?;
    pair.second.sh("ip route add 198.51.100.0/24 dev eth0")?;
    let port = Pair::port(1);
    let asked = [
        Outer::V4.endpoint(1, port),
        Outer::V6.endpoint(1, port),
        Outer::V4.endpoint(11, port),
        Outer::V6.endpoint(11, port),
        format!("198.51.100.1:{port}"),
    ];
    for endpoint in asked {
        pair.point(2, &endpoint)?;
        pair.reaches(2)?;
        let seen = pair.endpoint_seen_by(2)?;
        ensure!(
            seen == endpoint,
            "asked at {endpoint}, answered from {seen}"
        );
    }
    Ok(())
}

/// ```text
///   host1 eth0 192.0.2.1, route metric 2 ---- eth0 192.0.2.2 host2
///         eth1 192.0.2.3, route metric 1 ---- eth1
/// ```
///
/// The route by `eth1` comes when the session is there. The kernel's device takes it with the next packet; a
/// program hears of it, and ours acts on what it hears once a second.
fn a_better_route_is_taken(roles: Roles) -> Result {
    let pair = Pair::new(roles)?;
    let [one, two] = [&pair.first.host, &pair.second.host];
    one.sh("ip route flush dev eth0
         ip route add 192.0.2.0/24 dev eth0 src 192.0.2.1 metric 2")?;
    pair.point(1, &Outer::V4.endpoint(2, Pair::port(2)))?;
    pair.reaches(1)?;
    let seen = pair.endpoint_seen_by(2)?;
    ensure!(seen == Outer::V4.endpoint(1, Pair::port(1)), "{seen}");
    pair.lab.connect(one.end("eth1"), two.end("eth1"))?;
    // A host answers for all its addresses on all its links.
    one.sh("ip address add 192.0.2.3/24 dev eth1 noprefixroute
         ip route add 192.0.2.0/24 dev eth1 src 192.0.2.3 metric 1")?;
    let new = Outer::V4.endpoint(3, Pair::port(1));
    pair.second.wait("packets by the better route", |_| {
        ping(one, &inner(2)[0])?;
        Ok(pair.endpoint_seen_by(2)? == new)
    })
}
