//! Tunnels in tunnels, and in circles.

use std::thread;
use std::time::Duration;

use anyhow::ensure;
use warren_keyring::PrivateKey;
use warren_lab::{Direction, Host};
use warren_selftest::{
    Device, Kind, Outer, Pair, Result, Roles, exchange, inner, is_silent, other, ping, ping_many,
};

scenarios! {
    a_tunnel_carries_a_tunnel
    a_circle_of_two_tunnels_ends_with_its_cause
    a_peer_is_reached_through_another_one
    a_circle_of_two_peers_stays_bounded
    a_peer_behind_itself_is_not_reached_and_harms_nobody
    a_device_that_is_its_own_endpoint_is_not_harmed
}

/// The addresses inside of the tunnel within.
fn within(number: u8) -> [String; 2] {
    [format!("10.8.0.{number}"), format!("fd08::{number}")]
}

/// A device `wg1` on each host of a pair, whose packets go through the pair's tunnel. Each host has both kinds.
fn nest(pair: &Pair, roles: Roles) -> Result<[Device; 2]> {
    let device = |kind: Kind, host: &Host, number: u8| -> Result<Device> {
        let device = Device::new(kind, host, "wg1", 52_000 + u16::from(number))?;
        let [v4, v6] = within(number);
        device.sh(&format!(
            "ip link set $dev mtu 1340
             ip address add {v4}/24 dev $dev
             ip address add {v6}/112 dev $dev nodad
             ip link set $dev up"
        ))?;
        Ok(device)
    };
    let devices = [
        device(roles.second, &pair.first.host, 1)?,
        device(roles.first, &pair.second.host, 2)?,
    ];
    for (index, number) in [(0, 1_u8), (1, 2)] {
        let peer = other(number);
        let endpoint = format!("[{}]:{}", inner(peer)[1], 52_000 + u16::from(peer));
        let allowed = within(peer).join(",");
        let key = devices[1 - index].public_key();
        devices[index].set_peer(&key, &["allowed-ips", &allowed, "endpoint", &endpoint])?;
    }
    Ok(devices)
}

fn a_tunnel_carries_a_tunnel(roles: Roles) -> Result {
    let pair = Pair::new(roles)?;
    pair.meet(Outer::V4)?;
    let _nested = nest(&pair, roles)?;
    for number in [1, 2] {
        for address in within(other(number)) {
            exchange(&pair.device(number).host, &address)?;
        }
    }
    Ok(())
}

/// The outer tunnel's endpoint is led through the inner one while both have sessions, and then set right.
///
/// Of two devices of the kernel a packet goes round seven times and is dropped (seen on Linux 6.1), and so it
/// does of two of ours, each of which takes hops of it. The kernel's gives it all hops again: of one of each the
/// fragments of what has become too large go on as long as the endpoint is wrong, and what is asked is that all is
/// well afterwards.
fn a_circle_of_two_tunnels_ends_with_its_cause(roles: Roles) -> Result {
    let pair = Pair::new(roles)?;
    pair.meet(Outer::V4)?;
    let [nested, far] = nest(&pair, roles)?;
    let key = far.public_key();
    let sent = || Ok::<_, anyhow::Error>(nested.transfer(&key)?.1);
    ping(&nested.host, &within(2)[0])?;
    // Nothing that the other one says leads back to where it is.
    pair.cable.cut_one_way(Direction::BToA)?;
    pair.point(1, &format!("{}:7", within(2)[0]))?;
    let before = sent()?;
    let flood = ["ping", "-n", "-q", "-f", "-c10", "-W1", &within(2)[0]];
    ensure!(!nested.host.try_run(&flood)?.success(), "who answers?");
    let grown = sent()? - before;
    ensure!(grown > 10 * 256, "nothing went round");
    if nested.kind == far.kind {
        ensure!(grown < 70_000, "{grown} bytes");
    }
    pair.cable.restore()?;
    pair.meet(Outer::V4)?;
    for number in [1, 2] {
        pair.reaches(number)?;
        ping_many(&pair.device(number).host, &within(other(number))[0], 5)?;
    }
    Ok(())
}

/// A third device on the second host, as a peer of the first device, which reaches its endpoint through its
/// own other peer.
fn onion(pair: &Pair, roles: Roles) -> Result<Device> {
    pair.meet(Outer::V4)?;
    pair.reaches(1)?;
    let third = Device::new(roles.second, &pair.second.host, "wg1", 5005)?;
    third.sh("ip address add 10.9.0.2/24 dev $dev; ip link set $dev up")?;
    third.set_peer(&pair.first.public_key(), &["allowed-ips", "10.9.0.1/32"])?;
    pair.first.sh("ip address add 10.9.0.1/24 dev $dev")?;
    let endpoint = format!("{}:5005", inner(2)[0]);
    let settings = ["allowed-ips", "10.9.0.2/32", "endpoint", &endpoint];
    pair.first.set_peer(&third.public_key(), &settings)?;
    ping_many(&pair.first.host, "10.9.0.2", 3)?;
    Ok(third)
}

fn a_peer_is_reached_through_another_one(roles: Roles) -> Result {
    let pair = Pair::new(roles)?;
    let third = onion(&pair, roles)?;
    ping_many(&third.host, "10.9.0.1", 3)?;
    let seen = third.endpoint(&pair.first.public_key())?;
    let expected = format!("{}:{}", inner(1)[0], Pair::port(1));
    ensure!(seen == expected, "{seen}");
    Ok(())
}

/// Both peers of the first device have sessions, and each is then reached through the other.
fn a_circle_of_two_peers_stays_bounded(roles: Roles) -> Result {
    let pair = Pair::new(roles)?;
    let third = onion(&pair, roles)?;
    let [second, third] = [pair.second.public_key(), third.public_key()];
    let sent =
        || -> Result<u64> { Ok(pair.first.transfer(&second)?.1 + pair.first.transfer(&third)?.1) };
    // Nothing that the other one says leads back to where it is.
    pair.cable.cut_one_way(Direction::BToA)?;
    pair.point(1, "10.9.0.2:7")?;
    let before = sent()?;
    let flood = ["ping", "-n", "-q", "-f", "-c10", "-W1", &inner(2)[0]];
    ensure!(!pair.first.host.try_run(&flood)?.success(), "who answers?");
    thread::sleep(Duration::from_secs(3));
    let grown = sent()? - before;
    // Ours may know of the circle before it sends anything.
    ensure!(grown < 200_000, "{grown} bytes");
    pair.cable.restore()?;
    pair.meet(Outer::V4)?;
    pair.reaches(1)?;
    // Ours looks once a second, while there are packets, whether what it holds back goes round still.
    pair.first.wait("the peer behind the other one", |first| {
        Ok(!is_silent(&first.host, "10.9.0.2")?)
    })
}

/// The endpoint of a peer is among its own AllowedIPs, so that what is sent there comes back to the device.
fn a_peer_behind_itself_is_not_reached_and_harms_nobody(roles: Roles) -> Result {
    let pair = Pair::new(roles)?;
    pair.meet(Outer::V4)?;
    pair.reaches(1)?;
    pair.first.sh("ip address add 10.9.0.1/24 dev $dev")?;
    let key = PrivateKey::generate()?.public_key().to_base64();
    pair.first.set_peer(
        &key,
        &["allowed-ips", "10.9.0.2/32", "endpoint", "10.9.0.2:5"],
    )?;
    ensure!(is_silent(&pair.first.host, "10.9.0.2")?, "who answers?");
    let (_, sent) = pair.first.transfer(&key)?;
    ensure!(sent < 10_000, "{sent} bytes");
    pair.reaches(1)?;
    pair.reaches(2)
}

/// Its own address and port are the endpoint of a peer: what it sends comes back to its own socket.
fn a_device_that_is_its_own_endpoint_is_not_harmed(roles: Roles) -> Result {
    let pair = Pair::new(roles)?;
    pair.meet(Outer::V4)?;
    pair.first.sh("ip address add 10.9.0.1/24 dev $dev")?;
    let key = PrivateKey::generate()?.public_key().to_base64();
    let own = Outer::V4.endpoint(1, Pair::port(1));
    pair.first
        .set_peer(&key, &["allowed-ips", "10.9.0.2/32", "endpoint", &own])?;
    ensure!(is_silent(&pair.first.host, "10.9.0.2")?, "who answers?");
    let (received, sent) = pair.first.transfer(&key)?;
    ensure!(
        received == 0 && (148..10_000).contains(&sent),
        "{received} and {sent} bytes"
    );
    pair.reaches(1)?;
    pair.reaches(2)
}
