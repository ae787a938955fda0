//! Hosts reach each other over switches and routers, and links fail as told.

use std::time::{Duration, Instant};

use warren_lab::{Direction, Host, Lab, LabError, Link, poll_until, require};

/// Long enough for a slow, shared machine.
const LIMIT: Duration = Duration::from_secs(30);

fn pings(from: &Host, to: &str) -> Result<bool, LabError> {
    Ok(from.try_run(&["ping", "-n", "-c1", "-W1", to])?.success())
}

/// Sends `count` quick pings and tells how many came back.
fn answered(from: &Host, to: &str, count: u32) -> Result<u32, LabError> {
    let count = count.to_string();
    let argv = ["ping", "-n", "-q", "-i0.002", "-W1", "-c", &count, to];
    let output = from.try_run(&argv)?;
    let received = output
        .stdout
        .split(", ")
        .find_map(|part| part.strip_suffix(" received"));
    Ok(received
        .and_then(|r| r.parse().ok())
        .expect("ping prints how many it received"))
}

/// ```text
/// node1 eth0 ── lan ── eth0 node2
/// ```
fn two_on_a_switch(lab: &Lab) -> Result<(Host, Host, [Link; 2]), LabError> {
    let (node1, node2, lan) = (lab.host("node1")?, lab.host("node2")?, lab.bridge("lan")?);
    let first = lab.connect(
        node1.end("eth0").addr("10.0.1.1/24").addr("fd01::1/64"),
        lan.port(),
    )?;
    let second = lab.connect(
        node2.end("eth0").addr("10.0.1.2/24").addr("fd01::2/64"),
        lan.port(),
    )?;
    Ok((node1, node2, [first, second]))
}

/// ```text
/// node1 ── lan ── node2
/// ```
#[test]
fn hosts_on_one_switch_reach_each_other_in_both_families_at_once() -> Result<(), LabError> {
    require!();
    let lab = Lab::new("switch")?;
    let (node1, node2, _) = two_on_a_switch(&lab)?;
    for (from, to) in [
        (&node1, "10.0.1.2"),
        (&node1, "fd01::2"),
        (&node2, "10.0.1.1"),
        (&node2, "fd01::1"),
    ] {
        from.run(&["ping", "-n", "-c1", "-W10", to])?;
    }
    Ok(())
}

/// ```text
/// node1 10.0.1.1 ── r1 ── 10.0.2.2 node2
/// ```
#[test]
fn a_router_forwards_both_families() -> Result<(), LabError> {
    require!();
    let lab = Lab::new("router")?;
    let (node1, node2, r1) = (lab.host("node1")?, lab.host("node2")?, lab.router("r1")?);
    for (node, number) in [(&node1, 1), (&node2, 2)] {
        let (v4, v6) = (format!("10.0.{number}"), format!("fd0{number}:"));
        let end = node
            .end("eth0")
            .addr(&format!("{v4}.{number}/24"))
            .via(&format!("{v4}.254"));
        let end = end
            .addr(&format!("{v6}:{number}/64"))
            .via(&format!("{v6}:ff"));
        let port = r1.end(&format!("eth{number}"));
        lab.connect(
            end,
            port.addr(&format!("{v4}.254/24"))
                .addr(&format!("{v6}:ff/64")),
        )?;
    }
    for to in ["10.0.2.2", "fd02::2"] {
        let output = node1.run(&["ping", "-n", "-c1", "-W10", to])?;
        assert!(
            output.stdout.contains("ttl=63"),
            "one hop in between: {}",
            output.stdout
        );
    }
    Ok(())
}

/// ```text
/// node1 192.168.1.1 ── nat (masquerade) wan ── 203.0.113.2 outside
/// ```
#[test]
fn a_nat_router_hides_its_inside_and_a_remap_changes_the_port() -> Result<(), LabError> {
    require!();
    let lab = Lab::new("nat")?;
    let (node1, outside) = (lab.host("node1")?, lab.host("outside")?);
    let nat = lab.nat_router("nat", "wan")?;
    let inside = node1
        .end("eth0")
        .addr("192.168.1.1/24")
        .via("192.168.1.254");
    lab.connect(inside, nat.end("lan").addr("192.168.1.254/24"))?;
    lab.connect(
        nat.end("wan").addr("203.0.113.1/24"),
        outside.end("eth0").addr("203.0.113.2/24"),
    )?;

    let server = outside
        .in_netns(|| std::net::UdpSocket::bind("203.0.113.2:7"))?
        .expect("bind");
    let client = node1
        .in_netns(|| std::net::UdpSocket::bind("192.168.1.1:5000"))?
        .expect("bind");
    server.set_read_timeout(Some(LIMIT)).expect("set a timeout");
    let mut seen = Vec::new();
    for round in 0..4 {
        client.send_to(b"hello", "203.0.113.2:7").expect("send");
        let (_, from) = server
            .recv_from(&mut [0; 16])
            .expect("receive through the router");
        assert_eq!(from.ip().to_string(), "203.0.113.1", "the inside is hidden");
        seen.push(from.port());
        if round % 2 == 1 {
            nat.remap()?;
        }
    }
    assert_ne!(seen[0], 5000, "the port is mapped");
    assert_eq!(seen[0], seen[1], "a mapping stays");
    assert_ne!(seen[1], seen[2], "a remap gives another port");
    assert_eq!(seen[2], seen[3], "the new mapping stays");
    Ok(())
}

/// ```text
/// node1 ──x── lan ── node2
/// ```
#[test]
fn a_cut_link_is_silent_until_restored() -> Result<(), LabError> {
    require!();
    let lab = Lab::new("cut")?;
    let (node1, _node2, [cable, _]) = two_on_a_switch(&lab)?;
    cable.cut()?;
    assert!(!pings(&node1, "10.0.1.2")?);
    let carrier = node1.run(&["cat", "/sys/class/net/eth0/carrier"])?;
    assert_eq!(carrier.stdout.trim(), "1", "a cut is not seen by the host");
    cable.restore()?;
    // The kernel asks for a silent neighbour only once a second.
    poll_until(LIMIT, "the link after restore", || {
        pings(&node1, "10.0.1.2").unwrap_or(false)
    })?;

    cable.down()?;
    let carrier = node1.run(&["cat", "/sys/class/net/eth0/carrier"])?;
    assert_eq!(carrier.stdout.trim(), "0", "a missing cable is seen");
    cable.restore()?;
    poll_until(LIMIT, "the link after restore", || {
        pings(&node1, "fd01::2").unwrap_or(false)
    })?;
    Ok(())
}

/// ```text
/// node1 ──>x── lan ── node2
/// ```
#[test]
fn a_one_way_cut_still_carries_the_other_way() -> Result<(), LabError> {
    require!();
    for (direction, arrives) in [(Direction::AToB, false), (Direction::BToA, true)] {
        let lab = Lab::new("one-way")?;
        let (node1, node2, [cable, _]) = two_on_a_switch(&lab)?;
        let server = node2
            .in_netns(|| std::net::UdpSocket::bind("10.0.1.2:7"))?
            .expect("bind");
        server
            .set_read_timeout(Some(if arrives {
                LIMIT
            } else {
                Duration::from_millis(500)
            }))
            .expect("set a timeout");
        // Neighbours are known before the cut.
        node1.run(&["ping", "-n", "-c1", "-W10", "10.0.1.2"])?;
        cable.cut_one_way(direction)?;
        let client = node1
            .in_netns(|| std::net::UdpSocket::bind("10.0.1.1:0"))?
            .expect("bind");
        client.send_to(b"x", "10.0.1.2:7").expect("send");
        assert_eq!(
            server.recv_from(&mut [0; 4]).is_ok(),
            arrives,
            "{direction:?}"
        );
        assert!(
            !pings(&node1, "10.0.1.2")?,
            "no answer either way: {direction:?}"
        );
    }
    Ok(())
}

/// ```text
/// node1 ──20 %── lan ── node2
/// ```
#[test]
fn a_lossy_link_loses_about_the_share_asked_for() -> Result<(), LabError> {
    require!();
    let lab = Lab::new("lossy")?;
    let (node1, _node2, [cable, _]) = two_on_a_switch(&lab)?;
    // `ping` waits for the last answer no longer than for any other.
    let count = answered(&node1, "10.0.1.2", 100)?;
    assert!(count >= 99, "{count} of 100 answered without a fault");
    cable.lossy_one_way(Direction::AToB, 20.0)?;
    // 500 trials at 80 %: five standard deviations are 45.
    let count = answered(&node1, "10.0.1.2", 500)?;
    assert!((355..=445).contains(&count), "{count} of 500 answered");
    Ok(())
}

/// ```text
/// node1 ──20 Mbit/s── lan ── node2
/// ```
#[test]
fn a_shaped_link_carries_its_rate_and_no_more() -> Result<(), LabError> {
    require!();
    let lab = Lab::new("shaped")?;
    let (node1, node2, [cable, _]) = two_on_a_switch(&lab)?;
    cable.shape(20)?;
    let listener = node2
        .in_netns(|| std::net::TcpListener::bind("10.0.1.2:7"))?
        .expect("bind");
    let total: usize = 4_000_000;
    let mbit_per_s = || -> Result<f64, LabError> {
        let start = Instant::now();
        let received = std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let (mut stream, _) = listener.accept().expect("accept");
                std::io::copy(&mut stream, &mut std::io::sink()).expect("read")
            });
            let mut stream = node1
                .in_netns(|| std::net::TcpStream::connect("10.0.1.2:7"))?
                .expect("connect");
            std::io::Write::write_all(&mut stream, &vec![7; total]).expect("write");
            drop(stream);
            Ok::<_, LabError>(reader.join().expect("the reader does not panic"))
        })?;
        assert_eq!(received, total as u64);
        Ok(received as f64 * 8e-6 / start.elapsed().as_secs_f64())
    };
    // A busy machine may not give its programs the time that the rate needs, but not each time.
    let mut fastest: f64 = 0.0;
    for _ in 0..5 {
        fastest = fastest.max(mbit_per_s()?);
        assert!(
            fastest <= 22.0,
            "{fastest:.1} Mbit/s through a 20 Mbit/s link"
        );
        if fastest >= 10.0 {
            return Ok(());
        }
    }
    panic!("only {fastest:.1} Mbit/s through a 20 Mbit/s link");
}

/// ```text
/// node1 ──mtu 1280── lan ── node2
/// ```
#[test]
fn a_small_mtu_limits_what_a_host_sends() -> Result<(), LabError> {
    require!();
    let lab = Lab::new("mtu")?;
    let (node1, _node2, [cable, _]) = two_on_a_switch(&lab)?;
    let fits =
        |size: &str| node1.try_run(&["ping", "-n", "-Mdo", "-c1", "-W10", "-s", size, "10.0.1.2"]);
    assert!(fits("1400")?.success());
    cable.set_mtu(1280)?;
    assert!(fits("1252")?.success());
    assert!(!fits("1253")?.success());
    Ok(())
}
