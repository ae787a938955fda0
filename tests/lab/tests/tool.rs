//! The helper program measures what it says.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use warren_lab::{
    ClearTextRules, Direction, Host, Lab, LabError, Link, Proc, Signal, poll_until, require,
};

const TOOL: &str = env!("CARGO_BIN_EXE_lab-tool");
/// Long enough for a slow, shared machine.
const LIMIT: Duration = Duration::from_secs(30);
/// How long a link is cut, and the least gap that must be seen of it: a busy machine reads the last
/// answer before it late.
const CUT: Duration = Duration::from_millis(1000);
const LEAST_GAP_MS: f64 = 600.0;
/// How long it goes on then: the kernel asks for a silent neighbour once a second.
const AFTER: Duration = Duration::from_millis(1500);

/// ```text
/// node1 10.0.1.1 ──cable── lan ── 10.0.1.2 node2
/// ```
fn two_hosts(lab: &Lab) -> Result<(Host, Host, Link), LabError> {
    let (node1, node2, lan) = (lab.host("node1")?, lab.host("node2")?, lab.bridge("lan")?);
    let cable = lab.connect(
        node1.end("eth0").addr("10.0.1.1/24").addr("fd01::1/64"),
        lan.port(),
    )?;
    lab.connect(
        node2.end("eth0").addr("10.0.1.2/24").addr("fd01::2/64"),
        lan.port(),
    )?;
    Ok((node1, node2, cable))
}

#[test]
fn a_tcp_transfer_compares_digests_plants_markers_and_tells_the_peer() -> Result<(), LabError> {
    require!();
    let lab = Lab::new("tcp")?;
    let (node1, node2, cable) = two_hosts(&lab)?;
    let server = node2.spawn_argv(&[TOOL, "tcp-serve", "--port", "7000"])?;
    server.wait_log("listening", LIMIT)?;
    let rules = ClearTextRules {
        marker: b"find-me".to_vec(),
        ..ClearTextRules::default()
    };
    let capture = lab.capture(&[cable.tap()], rules)?;
    for (to, from) in [
        ("10.0.1.2:7000", "10.0.1.1:"),
        ("[fd01::2]:7000", "[fd01::1]:"),
    ] {
        let send = [
            TOOL, "tcp-send", to, "--bytes", "3000001", "--marker", "find-me",
        ];
        let result = node1.run(&send)?.json()?;
        assert_eq!(result["bytes"], 3_000_001);
        assert_eq!(result["digest_equal"], true);
        assert_eq!(result["server_saw_bytes"], 3_000_001);
        assert!(
            result["server_saw_peer"]
                .as_str()
                .expect("text")
                .starts_with(from),
            "{result}"
        );
        assert_eq!(result["server_saw_peer"], result["local"]);
        assert!(result["mbit_per_s"].as_f64().expect("a number") > 1.0);
    }
    assert!(
        capture.stop().clear_text().frames > 10,
        "the marker is on the wire"
    );
    let lines: Vec<Value> = server
        .log()
        .lines()
        .skip(1)
        .map(|l| serde_json::from_str(l).expect("JSON"))
        .collect();
    assert_eq!(lines.len(), 2);
    assert!(
        lines
            .iter()
            .all(|l| l["bytes"] == 3_000_001 && l["digest"].is_string())
    );
    Ok(())
}

#[test]
fn udp_ping_counts_losses_and_gaps() -> Result<(), LabError> {
    require!();
    let lab = Lab::new("udp")?;
    let (node1, node2, cable) = two_hosts(&lab)?;
    let echo = node2.spawn_argv(&[TOOL, "udp-echo", "--port", "7001"])?;
    echo.wait_log("listening", LIMIT)?;
    for to in ["10.0.1.2:7001", "[fd01::2]:7001"] {
        let ping = [TOOL, "udp-ping", to, "--count", "20", "--interval-ms", "5"];
        let result = node1.run(&ping)?.json()?;
        assert_eq!(
            (&result["sent"], &result["lost"]),
            (&20.into(), &0.into()),
            "{result}"
        );
        assert_eq!(result["rtts"].as_array().map(Vec::len), Some(20));
    }
    let ping = [
        TOOL,
        "udp-ping",
        "10.0.1.2:7001",
        "--count",
        "0",
        "--interval-ms",
        "10",
    ];
    let running = node1.spawn_argv(&ping)?;
    running.wait_log("sending", LIMIT)?;
    std::thread::sleep(Duration::from_millis(300));
    let cut = Instant::now();
    cable.cut_one_way(Direction::BToA)?;
    std::thread::sleep(CUT);
    cable.restore()?;
    std::thread::sleep(AFTER);
    let cut = cut.elapsed();
    running.signal(Signal::SIGTERM);
    running.wait_timeout(LIMIT)?;
    let result = last_line(&running);
    let gap = result["longest_gap_ms"].as_f64().expect("a number");
    assert!(
        (LEAST_GAP_MS..cut.as_secs_f64() * 1e3).contains(&gap),
        "{result}"
    );
    assert!(result["lost"].as_u64().expect("a number") >= 20, "{result}");
    Ok(())
}

/// ```text
/// node1 ──echo comes late── lan ── node2
/// ```
#[test]
fn udp_ping_waits_for_late_answers_after_a_signal() -> Result<(), LabError> {
    require!();
    let lab = Lab::new("late")?;
    let (node1, node2, _cable) = two_hosts(&lab)?;
    let echo = node2.spawn_argv(&[TOOL, "udp-echo", "--port", "7003"])?;
    echo.wait_log("listening", LIMIT)?;
    let ping = [TOOL, "udp-ping", "10.0.1.2:7003", "--count", "0"];
    let more = ["--interval-ms", "10", "--wait-ms", "30000"];
    let running = node1.spawn_argv(&[&ping[..], &more].concat())?;
    running.wait_log("sending", LIMIT)?;
    // The echo stands still, so that datagrams are under way when the sender is told to end.
    echo.signal(Signal::SIGSTOP);
    std::thread::sleep(Duration::from_millis(300));
    running.signal(Signal::SIGTERM);
    std::thread::sleep(Duration::from_millis(300));
    assert!(running.is_running(), "{}", running.log());
    echo.signal(Signal::SIGCONT);
    running.wait_timeout(LIMIT)?;
    let result = last_line(&running);
    assert_eq!(result["lost"], 0, "{result}");
    assert!(result["sent"].as_u64() > Some(1), "{result}");
    Ok(())
}

/// What a process printed in the end.
fn last_line(ended: &Proc) -> Value {
    let log = ended.log();
    serde_json::from_str(log.lines().last().unwrap_or_default()).expect("JSON")
}

#[test]
fn a_stream_tells_its_longest_stall() -> Result<(), LabError> {
    require!();
    let lab = Lab::new("stream")?;
    let (node1, node2, cable) = two_hosts(&lab)?;
    let server = node2.spawn_argv(&[TOOL, "stream-serve", "--port", "7002"])?;
    server.wait_log("listening", LIMIT)?;
    let stream = node1.spawn_argv(&[TOOL, "stream-send", "10.0.1.2:7002"])?;
    std::thread::sleep(Duration::from_millis(300));
    let cut = Instant::now();
    cable.cut()?;
    std::thread::sleep(CUT);
    cable.restore()?;
    std::thread::sleep(AFTER);
    stream.signal(Signal::SIGTERM);
    stream.wait_timeout(LIMIT)?;
    let cut = cut.elapsed();
    let result = last_line(&stream);
    assert_eq!(result["sent"], result["echoed"], "{result}");
    assert_eq!(result["in_order"], true);
    let stall = result["longest_stall_ms"].as_f64().expect("a number");
    assert!(
        (LEAST_GAP_MS..cut.as_secs_f64() * 1e3).contains(&stall),
        "{result}"
    );
    Ok(())
}

#[test]
fn a_raw_frame_arrives_as_it_was_given() -> Result<(), LabError> {
    require!();
    let lab = Lab::new("raw")?;
    let (node1, _node2, cable) = two_hosts(&lab)?;
    let rules = ClearTextRules {
        pod_ranges: vec!["10.244.0.0/16".parse().expect("a prefix")],
        allow: warren_lab::Allow::usual(),
        ..ClearTextRules::default()
    };
    let capture = lab.capture(&[cable.tap()], rules)?;
    // IPv4, protocol 253 (for experiments), from 10.244.9.9 to 10.0.1.2.
    let packet = "4500 0014 0000 0000 40fd 0000 0af40909 0a000102";
    let frame = format!("ffffffffffff 020000000001 0800 {packet}");
    node1.run(&[TOOL, "send-raw", "eth0", &frame])?;
    node1.run(&[
        TOOL, "send-raw", "eth0", packet, "--layer", "ip", "--count", "2",
    ])?;
    let wrong = node1.try_run(&[TOOL, "send-raw", "eth0", "zz"])?;
    assert!(!wrong.success());
    let seen = || capture.snapshot().clear_text().frames == 3;
    poll_until(LIMIT, "three spoofed packets", seen)?;
    let report = capture.stop();
    assert_eq!(report.unexpected().frames, 0);
    assert!(
        report
            .violations()
            .iter()
            .all(|v| v.reason.contains("10.244.9.9 as IPv4 source"))
    );
    Ok(())
}

#[test]
fn a_program_of_this_workspace_is_found() -> Result<(), LabError> {
    let path = warren_lab::bin("lab-tool")?;
    assert!(
        Command::new(path)
            .arg("--help")
            .output()
            .expect("it runs")
            .status
            .success()
    );
    let error = warren_lab::bin("no-such-program").expect_err("it does not exist");
    assert!(
        error
            .to_string()
            .contains("cargo build --bin no-such-program")
    );
    Ok(())
}
