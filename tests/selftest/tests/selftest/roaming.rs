//! Peers that move.

use anyhow::ensure;
use warren_selftest::{Outer, Pair, Result, Roles};

scenarios! {
    a_peer_is_followed_to_another_address_and_port
    a_peer_is_followed_to_the_other_family
}

/// The first device gets another address and another port, in both families outside; what it sends next
/// tells the second where it is.
fn a_peer_is_followed_to_another_address_and_port(roles: Roles) -> Result {
    for (outer, bits) in [(Outer::V4, 24), (Outer::V6, 64)] {
        let pair = Pair::new(roles)?;
        pair.meet(outer)?;
        pair.reaches(2)?;
        pair.first.sh(&format!(
            "ip address del {}/{bits} dev eth0
             ip address add {}/{bits} dev eth0 nodad",
            outer.address(1),
            outer.address(99)
        ))?;
        pair.first.set(&["listen-port", "9999"])?;
        pair.point(1, &outer.endpoint(2, Pair::port(2)))?;
        pair.reaches(1)?;
        let seen = pair.endpoint_seen_by(2)?;
        ensure!(seen == outer.endpoint(99, 9999), "{seen}");
        // And what is sent back goes there.
        pair.reaches(2)?;
    }
    Ok(())
}

fn a_peer_is_followed_to_the_other_family(roles: Roles) -> Result {
    let pair = Pair::new(roles)?;
    pair.meet(Outer::V4)?;
    pair.reaches(1)?;
    for (port, outer) in [("9998", Outer::V6), ("9999", Outer::V4)] {
        pair.first.set(&["listen-port", port])?;
        pair.point(1, &outer.endpoint(2, Pair::port(2)))?;
        pair.reaches(1)?;
        let seen = pair.endpoint_seen_by(2)?;
        ensure!(seen == outer.endpoint(1, port.parse()?), "{seen}");
        pair.reaches(2)?;
    }
    Ok(())
}
