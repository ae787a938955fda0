//! Who owns which source, marks, and routes that lead into the device.

use anyhow::ensure;
use warren_keyring::PrivateKey;
use warren_lab::Host;
use warren_selftest::{Heard, Outer, Pair, Result, Roles, inner, is_silent, ping, ping_many, say};

scenarios! {
    a_more_specific_peer_owns_the_source
    a_changed_mark_leads_another_way
    packets_that_are_marked_on_their_way_out_arrive
    a_default_route_by_policy_leads_into_the_device
}

/// What the second device sends is in the prefix that it has at the first, until another peer there gets
/// its very address: then it authenticates and moves the endpoint, and what was in it is dropped.
fn a_more_specific_peer_owns_the_source(roles: Roles) -> Result {
    let pair = Pair::new(roles)?;
    pair.meet(Outer::V4)?;
    let second = pair.second.public_key();
    let other = PrivateKey::generate()?.public_key().to_base64();
    let first_address = &inner(1)[0];
    let say = || say(&pair.second.host, first_address, 1111);
    pair.first
        .set_peer(&second, &["allowed-ips", "10.7.0.0/24"])?;
    let heard = Heard::new(&pair.first.host, "iifname wg0 udp dport 1111")?;
    say()?;
    heard.wait(1)?;

    pair.first
        .set_peer(&other, &["allowed-ips", "10.7.0.2/32"])?;
    pair.second.set(&["listen-port", "9997"])?;
    say()?;
    let moved = Outer::V4.endpoint(2, 9997);
    pair.first.wait("the endpoint to move", |first| {
        Ok(first.endpoint(&second)? == moved)
    })?;
    // It is there once the endpoint is, or is not.
    ensure!(heard.count()? == 1, "a stranger's address was let in");

    pair.first.set_peer(&other, &["remove"])?;
    say()?;
    heard.wait(2)
}

/// ```text
///   host1 eth0 192.0.2.1 ------------ eth0 192.0.2.2 host2
///         eth1 198.51.100.1 --------- eth1 198.51.100.2
/// ```
///
/// What is marked goes to 192.0.2.2 by `eth1`.
fn a_changed_mark_leads_another_way(roles: Roles) -> Result {
    let pair = Pair::new(roles)?;
    let end = |host: &Host, number: u8| host.end("eth1").addr(&format!("198.51.100.{number}/24"));
    let [one, two] = [&pair.first.host, &pair.second.host];
    pair.lab.connect(end(one, 1), end(two, 2))?;
    one.sh("ip rule add fwmark 7 lookup 77
         ip route add 192.0.2.2/32 via 198.51.100.2 dev eth1 table 77")?;
    pair.point(1, &Outer::V4.endpoint(2, Pair::port(2)))?;
    for (mark, address) in [
        ("0", "192.0.2.1"),
        ("7", "198.51.100.1"),
        ("0", "192.0.2.1"),
    ] {
        pair.first.set(&["fwmark", mark])?;
        // The second device learns of it by the first packet, and answers there.
        ping(one, &inner(2)[0])?;
        let seen = pair.endpoint_seen_by(2)?;
        let expected = format!("{address}:{}", Pair::port(1));
        ensure!(
            seen == expected,
            "with the mark {mark} it comes from {seen}"
        );
    }
    Ok(())
}

/// Each packet is marked after it was routed and is routed once more, with and without a socket bound to
/// the device.
fn packets_that_are_marked_on_their_way_out_arrive(roles: Roles) -> Result {
    let pair = Pair::new(roles)?;
    pair.meet(Outer::V4)?;
    let one = &pair.first.host;
    let bound = || one.run(&["ping", "-n", "-c1", "-W30", "-Iwg0", &inner(2)[0]]);
    bound()?;
    one.sh("nft 'table ip selftest {
             chain out { type route hook output priority mangle; counter meta mark set 1; }
         }'")?;
    ping(one, &inner(2)[0])?;
    bound()?;
    Ok(())
}

/// As `wg-quick` does it: all goes into the device but what the device itself sends, which is marked. There is
/// another default route of IPv6, too.
fn a_default_route_by_policy_leads_into_the_device(roles: Roles) -> Result {
    let pair = Pair::new(roles)?;
    pair.meet(Outer::V4)?;
    pair.reaches(1)?;
    pair.second.sh("ip address add 198.18.99.7/32 dev $dev
         ip address add 2001:db8:99::7/128 dev $dev nodad")?;
    let far = ["198.18.99.7", "2001:db8:99::7"];
    pair.first.sh("ip address add fc00::9/96 dev eth0 nodad
         ip -6 route add default via fc00::1")?;
    ensure!(
        is_silent(&pair.first.host, far[0])?,
        "it is reached already"
    );
    let peer = pair.second.public_key();
    pair.first.set(&["fwmark", "51820"])?;
    pair.first
        .set_peer(&peer, &["allowed-ips", &far.join(",")])?;
    pair.first.sh("for family in -6 -4; do
             ip $family route add default dev $dev table 51820
             ip $family rule add not fwmark 51820 table 51820
             ip $family rule add table main suppress_prefixlength 0
         done")?;
    for address in far {
        ping_many(&pair.first.host, address, 30)?;
    }
    Ok(())
}
