//! Pings, TCP and UDP in both families inside and outside, exact counters, sizes.

use anyhow::ensure;
use warren_lab::poll_until;
use warren_selftest::{Kind, Outer, Pair, Result, Roles, inner, ping_many, traffic};

scenarios! {
    ten_pings_are_counted_to_the_byte
    everything_passes_over_ipv4
    everything_passes_over_ipv6
    everything_passes_in_large_packets
    padding_stays_within_the_mtu_of_a_route
}

/// A handshake's messages, a keepalive, and a ping of 84 bytes: padded to 96, and 32 around it.
const INITIATION: u64 = 148;
const RESPONSE: u64 = 92;
const KEEPALIVE: u64 = 32;
const PING: u64 = 96 + 32;

/// The second device sends ten pings, which begin the first session. The link's counters of the kernel's
/// device count messages, as `wg` does; those of a TUN device count what was in them.
fn ten_pings_are_counted_to_the_byte(roles: Roles) -> Result {
    let pair = Pair::new(roles)?;
    // The first learns where the second is.
    pair.point(2, &Outer::V4.endpoint(1, Pair::port(1)))?;
    let [first, second] = [&pair.first, &pair.second];
    let keys = [second.public_key(), first.public_key()];
    ping_many(&second.host, &inner(1)[0], 10)?;
    let [(rx1, tx1), (rx2, tx2)] = [first.transfer(&keys[0])?, second.transfer(&keys[1])?];
    let links = [first.link_bytes()?, second.link_bytes()?];
    // One keepalive may be sent while the machine is slow.
    let answers = RESPONSE + 10 * PING;
    let asked = INITIATION + 10 * PING;
    ensure!(tx1 == answers && rx2 == answers, "answers: {tx1} and {rx2}");
    ensure!(rx1 == tx2, "first received {rx1}, second sent {tx2}");
    ensure!([asked, asked + KEEPALIVE].contains(&tx2), "{tx2}");
    for ((device, link), messages) in [first, second]
        .iter()
        .zip(links)
        .zip([(rx1, tx1), (rx2, tx2)])
    {
        let expected = match device.kind {
            Kind::Kernel => messages,
            Kind::Ours => (10 * 84, 10 * 84),
        };
        ensure!(
            link == expected,
            "{:?}: {link:?} for {expected:?}",
            device.kind
        );
    }
    for (device, key) in [first, second].iter().zip(&keys) {
        ensure!(device.latest_handshake(key)? != 0);
    }
    Ok(())
}

fn everything_passes_over_ipv4(roles: Roles) -> Result {
    let pair = Pair::new(roles)?;
    pair.meet(Outer::V4)?;
    traffic(&pair, 50)
}

fn everything_passes_over_ipv6(roles: Roles) -> Result {
    let pair = Pair::new(roles)?;
    pair.meet(Outer::V6)?;
    traffic(&pair, 10)
}

/// Packets of 34 KB inside, over a cable that takes them.
fn everything_passes_in_large_packets(roles: Roles) -> Result {
    let pair = Pair::new(roles)?;
    pair.cable.set_mtu(65_535)?;
    for device in [&pair.first, &pair.second] {
        device.sh("ip link set $dev mtu 34736")?;
    }
    for outer in Outer::BOTH {
        pair.meet(outer)?;
        traffic(&pair, 10)?;
        for number in [1, 2] {
            // One packet: 8 bytes of ICMP and 20 of IP are added.
            let to = &inner(3 - number)[0];
            let size = (34_736 - 28).to_string();
            let ping = ["ping", "-n", "-c1", "-W30", "-Mdo", "-s", &size, to];
            pair.device(number).host.run(&ping)?;
        }
    }
    Ok(())
}

/// A ping of 1,297 bytes would be padded to more than 1,299, and what is larger than the way takes is
/// dropped by both receivers.
///
/// The kernel's device pads up to the MTU of the route *inside*. A program that reads a TUN device is not
/// told of the route that a packet took; ours pads up to what the route *outside* takes.
fn padding_stays_within_the_mtu_of_a_route(roles: Roles) -> Result {
    const DROP: &str = "nft 'table inet selftest {
        chain in { type filter hook prerouting priority raw; meta l4proto udp meta length >= 1360 drop; }
    }'";
    let pair = Pair::new(roles)?;
    pair.meet(Outer::V4)?;
    pair.reaches(1)?;
    for device in [&pair.first, &pair.second] {
        device.sh("ip link set $dev mtu 1300")?;
        device.sh(DROP)?;
    }
    let answered = |wait| {
        let ping = ["ping", "-n", "-c1", wait, "-s1269", &inner(2)[0]];
        pair.first
            .host
            .try_run(&ping)
            .is_ok_and(|said| said.success())
    };
    ensure!(!answered("-W3"), "nothing is dropped");
    for number in [1, 2_u8] {
        let (device, peer) = (pair.device(number), 3 - number);
        match device.kind {
            Kind::Kernel => device.sh(&format!(
                "ip route add {}/32 dev $dev mtu 1299",
                inner(peer)[0]
            ))?,
            Kind::Ours => device.sh(&format!(
                "ip route add {}/32 dev eth0 mtu 1359",
                Outer::V4.address(peer)
            ))?,
        };
    }
    // Ours looks at the way to a peer every ten seconds.
    poll_until(
        std::time::Duration::from_secs(40),
        "a ping that fits",
        || answered("-W2"),
    )?;
    Ok(())
}
