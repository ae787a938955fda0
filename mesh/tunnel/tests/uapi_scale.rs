//! Large requests, and requests that cross traffic.
//!
//! ```text
//!   node1 wg0 10.9.0.1        node2, node3: wg0 10.9.9.9 both
//!   eth0 192.0.2.1 ----------- lan ----------- 192.0.2.2, 192.0.2.3
//! ```

#![allow(clippy::unwrap_used)] // helpers of tests

mod uapi_device;

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use uapi_device::{PATIENCE, Socket, private_key, public_key, start};
use warren_lab::{Host, Lab, Proc, Result, Signal, poll_until, require};

#[test]
fn a_thousand_peers_with_ten_prefixes_each_are_set_at_once() -> Result<()> {
    require!();
    let lab = Lab::new("uapiscale")?;
    let node = lab.host("node")?;
    let (_tunnel, socket) = start(&node, "wg0")?;
    let key = private_key(5000).to_hex();
    let mut lines = format!("private_key={}\nreplace_peers=true\n", *key);
    for n in 0..1000 {
        let peer = public_key(n + 1);
        write!(lines, "public_key={peer}\nendpoint=192.0.2.1:{}\n", n + 1).unwrap();
        lines.push_str("replace_allowed_ips=true\n");
        for k in 0..10 {
            writeln!(lines, "allowed_ip=10.{}.{}.{k}/32", n / 250, n % 250).unwrap();
        }
    }
    // Made anew, and changed in place as the agent does.
    let in_place = lines.replace("replace_peers=true\n", "");
    for (what, lines) in [("new", &lines), ("again", &lines), ("in place", &in_place)] {
        let started = Instant::now();
        socket.set(lines);
        let took = started.elapsed();
        println!("1,000 peers with 10 prefixes each, {what}: {took:?}");
    }
    // By the stock `wg`, which reads the present peers first and sends what differs.
    let dir = socket.0.parent().unwrap().display().to_string();
    node.sh(&format!(
        "mkdir -p /var/run/wireguard && mount --bind {dir} /var/run/wireguard
         wg showconf wg0 > /run/conf"
    ))?;
    for command in ["syncconf", "setconf"] {
        let started = Instant::now();
        node.run(&["wg", command, "wg0", "/run/conf"])?;
        println!("the same by wg {command}: {:?}", started.elapsed());
    }
    let started = Instant::now();
    let state = socket.get();
    println!("their get: {:?}", started.elapsed());
    assert_eq!(state.matches("public_key=").count(), 1000);
    assert_eq!(state.matches("allowed_ip=").count(), 10_000);
    Ok(())
}

#[test]
fn a_large_set_does_not_hold_up_the_packets_of_others() -> Result<()> {
    require!();
    let lab = Lab::new("uapistall")?;
    let node = |n: u32| -> Result<(Host, Proc, Socket)> {
        let host = lab.host(&format!("node{n}"))?;
        let (tunnel, socket) = start(&host, "wg0")?;
        let other = 3 - n;
        host.sh(&format!(
            "ip link set wg0 up; ip address add 10.9.0.{n}/32 dev wg0
             ip route add 10.9.0.{other}/32 dev wg0"
        ))?;
        let key = private_key(n).to_hex();
        socket.set(&format!(
            "private_key={}\nlisten_port=51820\npublic_key={}\nendpoint=192.0.2.{other}:51820\n\
             allowed_ip=10.9.0.{other}/32\n",
            *key,
            public_key(other)
        ));
        Ok((host, tunnel, socket))
    };
    let (node1, node2) = (node(1)?, node(2)?);
    lab.connect(
        node1.0.end("eth0").addr("192.0.2.1/24"),
        node2.0.end("eth0").addr("192.0.2.2/24"),
    )?;
    // Their first handshakes came before the cable.
    let ping = ["ping", "-c1", "-W1", "10.9.0.1"];
    poll_until(PATIENCE, "a ping", || {
        node2.0.try_run(&ping).is_ok_and(|output| output.success())
    })?;
    let tool = warren_lab::bin("lab-tool")?.display().to_string();
    let echo = node1.0.spawn_argv(&[&tool, "udp-echo", "--port", "7000"])?;
    echo.wait_log("listening", PATIENCE)?;
    let new = thousand_peers(10_000);
    let in_place = new.replace("endpoint", "replace_allowed_ips=true\nendpoint");
    for (what, lines) in [("new", &new), ("in place", &in_place)] {
        // Slow enough for the queues to hold what comes while a busy machine keeps a program waiting.
        let flow = ["udp-ping", "10.9.0.1:7000", "--count", "0"];
        let more = ["--interval-ms", "5", "--wait-ms", "5000"];
        let flow = node2
            .0
            .spawn_argv(&[&[&*tool][..], &flow, &more].concat())?;
        flow.wait_log("sending", PATIENCE)?;
        std::thread::sleep(Duration::from_millis(500));
        node1.2.set(lines);
        std::thread::sleep(Duration::from_millis(500));
        flow.signal(Signal::SIGTERM);
        flow.wait_timeout(PATIENCE)?;
        let log = flow.log();
        let number = |key: &str| -> f64 {
            let after = log.split(&format!("\"{key}\":")).nth(1).unwrap();
            after.split([',', '}']).next().unwrap().parse().unwrap()
        };
        let [sent, lost, gap] = ["sent", "lost", "longest_gap_ms"].map(number);
        println!(
            "1,000 peers with 10 prefixes each, {what}, beside traffic: {lost} of {sent} lost, the longest \
             gap was {gap} ms"
        );
        assert!(sent > 100.0 && lost == 0.0, "{log}");
    }
    Ok(())
}

/// A thousand peers with ten prefixes each, with the keys of these numbers.
fn thousand_peers(first_key: u32) -> String {
    let mut lines = String::new();
    for n in 0..1000 {
        let peer = public_key(first_key + n);
        write!(lines, "public_key={peer}\nendpoint=192.0.2.9:{}\n", n + 1).unwrap();
        for k in 0..10 {
            writeln!(lines, "allowed_ip=10.{}.{}.{k}/32", 100 + n / 250, n % 250).unwrap();
        }
    }
    lines
}

#[test]
fn a_prefix_moves_between_peers_without_a_lost_packet() -> Result<()> {
    require!();
    let lab = Lab::new("uapimove")?;
    let lan = lab.bridge("lan")?;
    let nodes: Vec<(Host, Proc, Socket)> = (1..4)
        .map(|n| {
            let host = lab.host(&format!("node{n}"))?;
            lab.connect(host.end("eth0").addr(&format!("192.0.2.{n}/24")), lan.port())?;
            let (tunnel, socket) = start(&host, "wg0")?;
            let address = if n == 1 { "10.9.0.1" } else { "10.9.9.9" };
            host.sh(&format!(
                "ip link set wg0 up; ip address add {address}/32 dev wg0; ip route add 10.9.0.0/16 dev wg0"
            ))?;
            let key = private_key(n).to_hex();
            socket.set(&format!("private_key={}\nlisten_port=51820\n", *key));
            Ok((host, tunnel, socket))
        })
        .collect::<Result<_>>()?;
    let (node1, _, socket) = &nodes[0];
    let give = |n: u32| format!("public_key={}\nallowed_ip=10.9.9.9/32\n", public_key(n));
    for (n, (_, _, socket)) in (2..).zip(&nodes[1..]) {
        socket.set(&format!(
            "public_key={}\nendpoint=192.0.2.1:51820\nallowed_ip=10.9.0.1/32\n",
            public_key(1)
        ));
        nodes[0]
            .2
            .set(&format!("{}endpoint=192.0.2.{n}:51820\n", give(n)));
        let ping = ["ping", "-c1", "-W1", "10.9.9.9"];
        poll_until(PATIENCE, "a ping", || {
            node1.try_run(&ping).is_ok_and(|output| output.success())
        })?;
    }
    // Replies that come from the peer that has just lost the prefix are refused, as they must be:
    // what is counted is what arrives.
    let received = |host: &Host| -> Result<u64> {
        let counters = host.run(&["cat", "/sys/class/net/wg0/statistics/rx_packets"]);
        counters.map(|output| output.stdout.trim().parse().unwrap())
    };
    let before = received(&nodes[1].0)? + received(&nodes[2].0)?;
    let flood = node1.spawn_argv(&["ping", "-q", "-i0.003", "-c3000", "-W1", "10.9.9.9"])?;
    let mut moves = 0;
    while flood.is_running() {
        socket.set(&give(2 + moves % 2));
        moves += 1;
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(flood.wait_timeout(PATIENCE).is_ok());
    let mut arrived = 0;
    // The last may still be under way.
    let _ = poll_until(PATIENCE, "all requests", || {
        let now = received(&nodes[1].0).and_then(|one| Ok(one + received(&nodes[2].0)?));
        arrived = now.map_or(0, |now| now - before);
        arrived >= 3000
    });
    println!("{moves} moves, {arrived} of 3000 requests arrived");
    assert!(moves > 50, "{moves} moves");
    assert_eq!(arrived, 3000, "{}", flood.log());
    Ok(())
}
