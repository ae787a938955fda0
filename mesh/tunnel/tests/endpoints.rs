//! Where peers are: link-local addresses, and addresses that lie behind the device itself; and from
//! which of our addresses they are answered.
//!
//! ```text
//!   node1 wg0 10.1.0.1               node2 wg0 10.2.0.1
//!   eth0 192.0.2.1, 2001:db8::1 ---- eth0 192.0.2.2, 2001:db8::2     (and fe80::1, fe80::2)
//!   eth1 198.51.100.1 -------------- eth1 198.51.100.2               (in the last test)
//! ```

#![allow(clippy::unwrap_used)] // helpers of tests

mod uapi_device;

use std::time::Duration;

use uapi_device::{PATIENCE, Socket, private_key, public_key, start};
use warren_lab::{Host, Lab, Link, Proc, Result, poll_until, require};

struct Node {
    host: Host,
    socket: Socket,
    _tunnel: Proc,
}

impl Node {
    fn start(lab: &Lab, n: u32) -> Result<Self> {
        let host = lab.host(&format!("node{n}"))?;
        let (_tunnel, socket) = start(&host, "wg0")?;
        let other = 3 - n;
        host.sh(&format!(
            "ip link set wg0 up
             ip address add 10.{n}.0.1/32 dev wg0
             ip route add 10.{other}.0.0/24 dev wg0 src 10.{n}.0.1"
        ))?;
        let key = private_key(n).to_hex();
        socket.set(&format!(
            "private_key={}\nlisten_port=51820\npublic_key={}\nallowed_ip=10.{other}.0.0/24\n",
            *key,
            public_key(other)
        ));
        Ok(Self {
            host,
            socket,
            _tunnel,
        })
    }

    fn set_endpoint(&self, n: u32, endpoint: &str) {
        let key = public_key(n);
        self.socket
            .set(&format!("public_key={key}\nendpoint={endpoint}\n"));
    }

    fn endpoint(&self) -> String {
        let state = self.socket.get();
        let line = state
            .lines()
            .find_map(|line| line.strip_prefix("endpoint="));
        line.unwrap_or("(none)").to_owned()
    }

    /// Whether an answer comes soon.
    fn pings(&self, address: &str) -> bool {
        self.pings_within(address, "1")
    }

    /// Whether an answer comes at all: a busy machine takes its time, and what is lost is lost.
    fn reaches(&self, address: &str) -> bool {
        self.pings_within(address, "20")
    }

    fn pings_within(&self, address: &str, seconds: &str) -> bool {
        let ping = ["ping", "-c1", "-W", seconds, address];
        self.host
            .try_run(&ping)
            .is_ok_and(|output| output.success())
    }

    /// Packets and bytes that the host has sent into the device.
    fn given_to_device(&self) -> Result<(u64, u64)> {
        let read = |name: &str| -> Result<u64> {
            let path = format!("/sys/class/net/wg0/statistics/tx_{name}");
            Ok(self
                .host
                .run(&["cat", &path])?
                .stdout
                .trim()
                .parse()
                .unwrap())
        };
        Ok((read("packets")?, read("bytes")?))
    }
}

fn pair(name: &str) -> Result<(Lab, Node, Node, Link)> {
    let lab = Lab::new(name)?;
    let (node1, node2) = (Node::start(&lab, 1)?, Node::start(&lab, 2)?);
    let link = lab.connect(
        node1.host.end("eth0").addr("192.0.2.1/24"),
        node2.host.end("eth0").addr("192.0.2.2/24"),
    )?;
    for (n, node) in [(1, &node1), (2, &node2)] {
        node.host.sh(&format!(
            "ip address add fe80::{n}/64 dev eth0 nodad
             ip address add 2001:db8::{n}/64 dev eth0 nodad
             sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth0.rp_filter=0"
        ))?;
    }
    Ok((lab, node1, node2, link))
}

#[test]
fn a_link_local_endpoint_is_taken_with_its_interfaces_name_or_number() -> Result<()> {
    require!();
    let (_lab, node1, node2, _link) = pair("linklocal")?;
    let key = private_key(2).public_key().to_string();
    let index = node1.host.run(&["cat", "/sys/class/net/eth0/ifindex"])?;
    let index = index.stdout.trim().to_owned();
    for zone in ["eth0", &index] {
        node1.set_endpoint(2, &format!("[fe80::2%{zone}]:51820"));
        assert_eq!(node1.endpoint(), format!("[fe80::2%{index}]:51820"));
        poll_until(PATIENCE, "a ping over link-local addresses", || {
            node1.pings("10.2.0.1")
        })?;
        node1.set_endpoint(2, "192.0.2.2:51820");
    }
    // What `wg` itself makes of it, and shows.
    let dir = node1.socket.0.parent().unwrap().display().to_string();
    node1.host.sh(&format!(
        "mkdir -p /var/run/wireguard && mount --bind {dir} /var/run/wireguard &&
         wg set wg0 peer {key} endpoint '[fe80::2%eth0]:51820' &&
         wg show wg0 endpoints | grep -F '[fe80::2%eth0]:51820'"
    ))?;
    assert!(node1.reaches("10.2.0.1"));
    // The peer answers to where it was called from.
    assert!(
        node2.endpoint().starts_with("[fe80::1%"),
        "{}",
        node2.endpoint()
    );
    let unknown = format!("public_key={}\nendpoint=[fe80::2%none0]:1\n", public_key(2));
    let answer = node1.socket.say(uapi_device::request(&unknown).as_bytes());
    assert_eq!(answer, "errno=-22\n\n");
    Ok(())
}

#[test]
fn an_endpoint_behind_the_device_itself_makes_no_loop() -> Result<()> {
    require!();
    let (_lab, node1, node2, _link) = pair("loop")?;
    node1.set_endpoint(2, "192.0.2.2:51820");
    poll_until(PATIENCE, "a ping", || node1.pings("10.2.0.1"))?;

    // With a session, which would send anything at once. Packets of 1,400 bytes would be in two
    // pieces after the first round, in four after the second.
    node1.set_endpoint(2, "10.2.0.7:51820");
    let before = node1.given_to_device()?;
    let ping = ["ping", "-q", "-c50", "-i0.01", "-W1", "-s1372", "10.2.0.1"];
    let _ = node1.host.try_run(&ping)?;
    std::thread::sleep(Duration::from_millis(500));
    let after = node1.given_to_device()?;
    let (packets, bytes) = (after.0 - before.0, after.1 - before.1);
    println!("50 pings into a loop: {packets} packets, {bytes} bytes went into the device");
    assert!((50..150).contains(&packets), "{packets} packets");
    assert!(bytes < 50 * 1400 * 3, "{bytes} bytes");
    assert_eq!(node1.endpoint(), "10.2.0.7:51820", "what was set is shown");

    // Where the way there leads elsewhere, the endpoint is as good as any.
    node2.host.sh("ip address add 10.2.0.7/32 dev eth0")?;
    node1
        .host
        .sh("ip route add 10.2.0.7/32 dev eth0 src 192.0.2.1")?;
    poll_until(PATIENCE, "a ping once the route is right", || {
        node1.pings("10.2.0.1")
    })?;
    node1.host.sh("ip route del 10.2.0.7/32 dev eth0")?;
    node1.set_endpoint(2, "192.0.2.2:51820");
    assert!(
        node1.reaches("10.2.0.1"),
        "another endpoint is used at once"
    );
    Ok(())
}

#[test]
fn an_endpoint_behind_another_peer_is_reached_through_it_and_a_circle_is_not() -> Result<()> {
    require!();
    let (_lab, node1, node2, _link) = pair("onion")?;
    node1.set_endpoint(2, "192.0.2.2:51820");
    poll_until(PATIENCE, "a ping", || node1.pings("10.2.0.1"))?;
    // A third device, on node2: node1 sends to it what node2 hands on.
    let (_tunnel, third) = start(&node2.host, "wg1")?;
    third.set(&format!(
        "private_key={}\nlisten_port=5005\npublic_key={}\nallowed_ip=10.3.1.1/32\n",
        *private_key(3).to_hex(),
        public_key(1)
    ));
    node2
        .host
        .sh("ip link set wg1 up; ip address add 10.3.1.2/24 dev wg1")?;
    node1.host.sh("ip address add 10.3.1.1/24 dev wg0")?;
    node1.socket.set(&format!(
        "public_key={}\nallowed_ip=10.3.1.2/32\nendpoint=10.2.0.1:5005\n",
        public_key(3)
    ));
    assert!(node1.reaches("10.3.1.2"));
    // It was looked at by now, and looked at again when routes change.
    for _ in 0..2 {
        std::thread::sleep(Duration::from_millis(1_500));
        assert!(node1.reaches("10.3.1.2"));
        node1
            .host
            .sh("ip route add 10.77.0.0/24 dev eth0; ip route del 10.77.0.0/24 dev eth0")?;
    }
    // Each of the two is now reached through the other.
    node1.set_endpoint(2, "10.3.1.2:51820");
    let before = node1.given_to_device()?;
    let ping = ["ping", "-q", "-c20", "-i0.01", "-W1", "-s1000", "10.2.0.1"];
    let _ = node1.host.try_run(&ping)?;
    std::thread::sleep(Duration::from_millis(500));
    let packets = node1.given_to_device()?.0 - before.0;
    assert!((20..200).contains(&packets), "{packets} packets");
    node1.set_endpoint(2, "192.0.2.2:51820");
    assert!(node1.reaches("10.2.0.1"));
    // What was held back is looked at once a second, while there are packets.
    poll_until(PATIENCE, "a ping through the other peer again", || {
        node1.pings("10.3.1.2")
    })?;
    Ok(())
}

#[test]
fn another_mark_leads_another_way_and_from_another_address() -> Result<()> {
    require!();
    let (lab, node1, node2, _link) = pair("mark")?;
    let _second = lab.connect(
        node1.host.end("eth1").addr("198.51.100.1/24"),
        node2.host.end("eth1").addr("198.51.100.2/24"),
    )?;
    node1.host.sh("ip rule add fwmark 7 lookup 77
         ip route add 192.0.2.2/32 via 198.51.100.2 dev eth1 table 77")?;
    node1.set_endpoint(2, "192.0.2.2:51820");
    for (mark, from) in [(0, "192.0.2.1"), (7, "198.51.100.1"), (0, "192.0.2.1")] {
        node1.socket.set(&format!("fwmark={mark}\n"));
        assert!(node1.reaches("10.2.0.1"));
        assert_eq!(node2.endpoint(), format!("{from}:51820"), "mark {mark}");
    }
    Ok(())
}

#[test]
fn a_peer_is_not_followed_to_an_address_behind_the_device() -> Result<()> {
    require!();
    let (_lab, node1, node2, _link) = pair("follow")?;
    node1.set_endpoint(2, "192.0.2.2:51820");
    node2.set_endpoint(1, "192.0.2.1:51820");
    poll_until(PATIENCE, "a ping", || node1.pings("10.2.0.1"))?;
    // Trap: node2's packets come with a source that only the tunnel leads to.
    node2.host.sh("nft add table ip t
         nft add chain ip t post '{ type nat hook postrouting priority 100; }'
         nft add rule ip t post oifname eth0 udp sport 51820 snat to 10.2.0.1")?;
    node1.host.sh("nft add table ip t
         nft add counter ip t seen
         nft add chain ip t in '{ type filter hook input priority 0; }'
         nft add rule ip t in iifname eth0 ip saddr 10.2.0.1 udp dport 51820 counter name seen")?;
    let before = node1.given_to_device()?;
    let mut answered = 0;
    for _ in 0..20 {
        answered += u32::from(node2.reaches("10.1.0.1"));
        std::thread::sleep(Duration::from_millis(50));
    }
    let packets = node1.given_to_device()?.0 - before.0;
    println!("{answered} of 20 answered, {packets} packets went into the device");
    let seen = node1
        .host
        .run(&["nft", "list", "counter", "ip", "t", "seen"])?;
    assert!(!seen.stdout.contains("packets 0 "), "{}", seen.stdout);
    assert!(answered >= 18, "{answered} of 20 answered");
    assert!(packets < 60, "{packets} packets");
    assert_eq!(node1.endpoint(), "192.0.2.2:51820");
    assert!(node1.reaches("10.2.0.1"));
    // From an address that is not behind the device it is followed as ever.
    node2.host.run(&["nft", "delete", "table", "ip", "t"])?;
    node2.socket.set("listen_port=51821\n");
    // What the translation made of node1's own packets was another port.
    node2.set_endpoint(1, "192.0.2.1:51820");
    poll_until(PATIENCE, "node1 follows node2", || {
        node2.pings("10.1.0.1");
        node1.endpoint() == "192.0.2.2:51821"
    })?;
    Ok(())
}

#[test]
fn a_peer_is_answered_from_the_address_that_it_asked() -> Result<()> {
    require!();
    let (_lab, node1, node2, _link) = pair("asked")?;
    node1.host.sh("ip address add 192.0.2.50/24 dev eth0
         ip address add 2001:db8::50/64 dev eth0 nodad")?;
    for (asked, first) in [
        ("192.0.2.50:51820", "192.0.2.1:51820"),
        ("[2001:db8::50]:51820", "[2001:db8::1]:51820"),
    ] {
        node2.set_endpoint(1, asked);
        poll_until(PATIENCE, "a ping", || node2.pings("10.1.0.1"))?;
        assert!(node1.reaches("10.2.0.1"));
        assert_eq!(node2.endpoint(), asked);
        // Routes come and go with pods: that is no reason to answer from elsewhere.
        node1
            .host
            .sh("ip route add 10.77.0.0/24 dev eth0; ip route del 10.77.0.0/24 dev eth0")?;
        std::thread::sleep(Duration::from_millis(100));
        assert!(node1.reaches("10.2.0.1"));
        assert_eq!(node2.endpoint(), asked);
        // Nobody is left without an answer when the address goes.
        let address = asked.trim_start_matches('[');
        let address = address.trim_end_matches(":51820").trim_end_matches(']');
        node1.host.sh(&format!(
            "ip address del {address}/$(case {address} in *:*) echo 64;; *) echo 24;; esac) dev eth0"
        ))?;
        assert!(
            node1.reaches("10.2.0.1"),
            "the first packet after {asked} went"
        );
        let now = node2.endpoint();
        if asked.starts_with('[') {
            // Which of several IPv6 addresses it is, is the kernel's choice.
            assert_ne!(now, asked);
        } else {
            assert_eq!(now, first);
        }
    }
    Ok(())
}

#[test]
fn a_changed_preferred_route_is_followed() -> Result<()> {
    require!();
    let (lab, node1, node2, _link) = pair("preferred")?;
    let _second = lab.connect(
        node1.host.end("eth1").addr("198.51.100.1/24"),
        node2.host.end("eth1").addr("198.51.100.2/24"),
    )?;
    for node in [&node1, &node2] {
        node.host.sh("sysctl -qw net.ipv4.conf.eth1.rp_filter=0")?;
    }
    // node2 has one address that both ways lead to, and speaks to node1 by the first.
    node2.host.sh("ip address add 203.0.113.2/32 dev lo
         ip route replace 192.0.2.0/24 dev eth0 src 203.0.113.2
         ip route replace 198.51.100.0/24 dev eth1 src 203.0.113.2")?;
    node1
        .host
        .sh("ip route add 203.0.113.2/32 via 192.0.2.2 dev eth0")?;
    node2.set_endpoint(1, "192.0.2.1:51820");
    poll_until(PATIENCE, "a ping", || node2.pings("10.1.0.1"))?;
    assert_eq!(node1.endpoint(), "203.0.113.2:51820");
    assert_eq!(node2.endpoint(), "192.0.2.1:51820");
    node1
        .host
        .sh("ip route replace 203.0.113.2/32 via 198.51.100.2 dev eth1")?;
    poll_until(PATIENCE, "packets from the other way's address", || {
        node1.pings("10.2.0.1");
        node2.endpoint() == "198.51.100.1:51820"
    })?;
    assert!(node2.reaches("10.1.0.1"));
    assert_eq!(node2.endpoint(), "198.51.100.1:51820");
    Ok(())
}
