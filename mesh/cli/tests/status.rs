//! `warren status`, by its texts and exit codes.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::{Manner, Server, Sockets, full_device, good_status, reject};
use warren_cli::json::indent;
use warren_cli::status::{is_well, page};
use warren_core::degraded::DegradedCause;
use warren_core::status::{AgentStatus, DegradedStatus, Health, PeerState};

fn troubled_status() -> AgentStatus {
    let mut status = good_status();
    status.public_key = None;
    status.key_age_seconds = None;
    status.tunnel_version = None;
    status.protected = false;
    status.tunnel = Health {
        ok: false,
        detail: "connect to /var/run/wireguard/warren0.sock: no such file".to_owned(),
    };
    status.synced = false;
    status.problems = vec![
        "write table inet warren: not permitted".to_owned(),
        "add route 10.244.2.0/24: no such device".to_owned(),
    ];
    status.filter_drops = [
        ("antispoof".to_owned(), 7),
        ("egress-src-v4".to_owned(), 0),
        ("ingress-dst-v6".to_owned(), 2),
    ]
    .into();
    status.rejected = vec![
        reject(
            "node5",
            "no-public-key",
            "it has published no key yet",
            true,
        ),
        reject(
            "node4",
            "overlap",
            "its podCIDR 10.244.2.0/24 is node2's",
            false,
        ),
    ];
    for peer in &mut status.peers {
        peer.state = PeerState::Unknown;
        peer.endpoint = None;
        peer.handshake_age_seconds = None;
    }
    status.peers[0].notice = Some("its address 192.0.2.2 is node2's already".to_owned());
    status
}

#[test]
fn good_node_is_a_header_and_a_table_by_name() {
    assert_eq!(
        page(&good_status()),
        "\
node        node1
state       ok
key         ERERERERERERERERERERERERERERERERERERERERERE=
key age     3d 4h
endpoints   192.0.2.1:51871, [2001:db8::1]:51871
podCIDRs    10.244.1.0/24, fd00:1::/64
interface   warren0
protected   yes
tunnel      ok: 2 peers
registry    ok
versions    agent 0.1.0, tunnel 0.1.0
problems    none

NODE   STATE       HANDSHAKE  ENDPOINT                     SENT  RECEIVED  POD CIDRS                    MTU
node2  up          1m 5s ago  192.0.2.2:51871        100.00 MiB  1.50 KiB  10.244.2.0/24, fd00:2::/64  1440
node3  connecting  never      ([2001:db8::3]:51871)       148 B       0 B  10.244.3.0/24               1420
(endpoints in parentheses are published, but the tunnel has none yet)
"
    );
    assert!(is_well(&good_status()));
}

#[test]
fn troubled_node_says_what_is_wrong_and_who_is_refused() {
    assert_eq!(page(&troubled_status()), "\
node        node1
state       FAILED: pods are not protected (and 4 more)
key         not known yet
endpoints   192.0.2.1:51871, [2001:db8::1]:51871
podCIDRs    10.244.1.0/24, fd00:1::/64
interface   warren0
protected   NO: pods' packets could leave in clear; no new pod is let in until it is repaired
tunnel      FAILED: connect to /var/run/wireguard/warren0.sock: no such file
registry    ok (not all nodes are known yet)
dropped     antispoof 7, ingress-dst-v6 2 (packets, by rule)
versions    agent 0.1.0, tunnel not known
problems    write table inet warren: not permitted
            add route 10.244.2.0/24: no such device

NODE   STATE    HANDSHAKE  ENDPOINT                     SENT  RECEIVED  POD CIDRS                    MTU
node2  unknown  unknown    (192.0.2.2:51871)      100.00 MiB  1.50 KiB  10.244.2.0/24, fd00:2::/64  1440
node3  unknown  unknown    ([2001:db8::3]:51871)       148 B       0 B  10.244.3.0/24               1420
(endpoints in parentheses are published, but the tunnel has none yet)

refused nodes
  node4: its podCIDR 10.244.2.0/24 is node2's (overlap)

nodes not ready yet
  node5: it has published no key yet (no-public-key)

notices
  node3: its address 192.0.2.2 is node2's already
");
    assert!(!is_well(&troubled_status()));
}

#[test]
fn degraded_peer_is_in_the_top_line_and_has_its_cause_below() {
    let mut status = good_status();
    let cause = DegradedCause::NoAnswer {
        silent: Duration::from_secs(17),
        initiations: 1,
    };
    for peer in &mut status.peers {
        peer.state = PeerState::Degraded;
        peer.degraded = Some(DegradedStatus::from(&cause));
    }
    let page = page(&status);
    let told = "nothing received from it for 17 s";
    assert!(page.contains(&format!("\nstate       degraded: node3: {told}")));
    assert!(page.contains(" (and 1 more)\n"));
    assert!(
        page.contains(&format!("\ndegraded peers\n  node3: {told}")),
        "{page}"
    );
    assert!(page.contains(" (no-answer)\n") && page.contains("\nnode2  degraded  "));
    assert!(!is_well(&status));
    for peer in &mut status.peers {
        peer.degraded = None;
    }
    let device = "eth0".to_owned();
    status.degraded = vec![DegradedStatus::from(&DegradedCause::LinkDown { device })];
    assert!(top_line(&status).ends_with("device eth0 is down or has no carrier"));
}

fn top_line(status: &AgentStatus) -> String {
    page(status).lines().nth(1).unwrap().to_owned()
}

#[test]
fn node_alone_has_no_table() {
    let mut status = good_status();
    status.peers.clear();
    assert!(page(&status).ends_with("\n\nno other node is known\n"));
}

#[test]
fn idle_peer_shows_the_age_in_its_two_largest_units() {
    let ages = [
        (0, "0s ago"),
        (59, "59s ago"),
        (60, "1m 0s ago"),
        (3599, "59m 59s ago"),
        (3600, "1h 0m ago"),
        (86_399, "23h 59m ago"),
        (86_400, "1d 0h ago"),
        (1_000_000, "11d 13h ago"),
    ];
    for (age, text) in ages {
        let mut status = good_status();
        status.peers[1].state = PeerState::Idle;
        status.peers[1].handshake_age_seconds = Some(age);
        let page = page(&status);
        assert!(
            page.contains(&format!("node2  idle        {text}  ")),
            "{page}"
        );
    }
}

#[test]
fn each_trouble_alone_is_trouble() {
    let troubles: [fn(&mut AgentStatus); 5] = [
        |status| status.protected = false,
        |status| status.tunnel.ok = false,
        |status| status.registry.ok = false,
        |status| status.synced = false,
        |status| status.problems.push("a".to_owned()),
    ];
    for trouble in troubles {
        let mut status = good_status();
        trouble(&mut status);
        let sockets = Sockets::new();
        let _agent = sockets.agent(serde_json::to_vec(&status).unwrap());
        let shown = sockets.warren(&["status"]);
        assert_eq!((shown.code, shown.stdout), (1, page(&status)));
    }
}

#[test]
fn refused_and_idle_peers_are_no_trouble_of_this_node() {
    let mut status = good_status();
    status.rejected = troubled_status().rejected;
    status.peers[1].state = PeerState::Idle;
    let sockets = Sockets::new();
    let _agent = sockets.agent(serde_json::to_vec(&status).unwrap());
    let shown = sockets.warren(&["status"]);
    assert_eq!((shown.code, shown.stderr.as_str()), (0, ""));
    assert_eq!(shown.stdout, page(&status));
}

#[test]
fn hostile_text_cannot_steer_the_terminal() {
    let mut status = troubled_status();
    let hostile = "a\x1b]0;x\x07\n\u{202e}\u{9b}2J";
    status.node = hostile.to_owned();
    status.problems = vec![hostile.to_owned()];
    status.peers[0].node = hostile.to_owned();
    status.peers[1].notice = Some(hostile.to_owned());
    status.rejected[0] = reject(hostile, hostile, hostile, false);
    status.filter_drops.insert(hostile.to_owned(), 1);
    let page = page(&status);
    let is_hostile = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
    assert!(!page.contains(is_hostile), "{page:?}");
    assert_eq!(
        page.matches("a\\u{1b}]0;x\\u{7}\\u{a}\\u{202e}\\u{9b}2J")
            .count(),
        9
    );
}

#[test]
fn json_is_the_agents_document_indented() {
    let sockets = Sockets::new();
    let mut document = serde_json::to_value(good_status()).unwrap();
    // A newer agent's document keeps what this program does not know.
    document["of_the_future"] =
        serde_json::json!({"z": 1.50, "a": [], "s": "\u{9b}\u{1b} \\\" {,:"});
    let _agent = sockets.agent(document.to_string());
    let shown = sockets.warren(&["status", "--json"]);
    assert_eq!((shown.code, shown.stderr.as_str()), (0, ""));
    let read: serde_json::Value = serde_json::from_str(&shown.stdout).unwrap();
    assert_eq!(read, document);
    assert_eq!(
        serde_json::from_str::<AgentStatus>(&shown.stdout).unwrap(),
        good_status()
    );
    assert!(!shown.stdout.contains('\u{9b}'));

    let troubled = serde_json::to_vec(&troubled_status()).unwrap();
    drop(_agent);
    let _agent = sockets.agent(troubled);
    assert_eq!(sockets.warren(&["status", "--json"]).code, 1);
}

#[test]
fn indenting_keeps_order_and_numbers() {
    assert_eq!(
        indent(r#"{"b":18446744073709551616,"a":[1e5, {} ,[ ],[{"x":"\\\"]"}]]}"#).unwrap(),
        "{\n  \"b\": 18446744073709551616,\n  \"a\": [\n    1e5,\n    {},\n    [],\n    [\n      \
         {\n        \"x\": \"\\\\\\\"]\"\n      }\n    ]\n  ]\n}\n"
    );
    assert!(indent("{").is_err());
    assert!(indent(&"[".repeat(1_000_000)).is_err());
}

#[test]
fn absent_agent_is_said_and_the_tunnel_is_shown() {
    let sockets = Sockets::new();
    let _tunnel = sockets.tunnel("queues=1\ndrop_no_peer=3\nbad=\x1b[2J\n\n");
    let _device = sockets.device("warren0", &full_device());
    let shown = sockets.warren(&["status"]);
    assert_eq!(shown.code, 1);
    assert!(
        shown.stdout.starts_with(
            "\
The agent gives no status.
The tunnel goes on with the peers it has and the filters stay; but no new node is learned, and no
change is repaired. Start warren-agent, or see its log. If its sockets are elsewhere, give
--run-dir.

The tunnel says:
  queues=1
  drop_no_peer=3
  bad=\\u{1b}[2J

interface: warren0
  public key: "
        ),
        "{}",
        shown.stdout
    );
    assert!(
        shown
            .stderr
            .starts_with("warren: read the agent's status: connect to ")
    );
    assert!(
        shown.stderr.contains("warren/agent.sock: No such file"),
        "{}",
        shown.stderr
    );

    let json = sockets.warren(&["status", "--json"]);
    assert_eq!((json.code, json.stdout.as_str()), (1, ""));
    assert!(json.stderr.contains("agent.sock"));
}

#[test]
fn device_alone_is_shown_when_the_tunnels_own_socket_is_gone() {
    let sockets = Sockets::new();
    let _device = sockets.device("warren0", &full_device());
    let shown = sockets.warren(&["status"]);
    assert_eq!(shown.code, 1);
    assert!(shown.stdout.contains("\ninterface: warren0\n"));
    assert!(shown.stderr.contains("tunnel.sock"), "{}", shown.stderr);
}

#[test]
fn nothing_to_read_is_its_own_exit_code() {
    let sockets = Sockets::new();
    for arguments in [&["status"][..], &["status", "--json"]] {
        let shown = sockets.warren(arguments);
        assert_eq!(shown.code, 2);
        assert!(shown.stderr.contains("agent.sock"));
    }
    let page = sockets.warren(&["status"]).stdout;
    assert!(page.starts_with("Neither the agent nor the tunnel answers.\n"));
}

#[test]
fn answers_that_are_no_status_are_refused() {
    let sockets = Sockets::new();
    for (answer, cause) in [
        (&b"{}"[..], "missing field"),
        (b"\xff", "not UTF-8"),
        (b"", "EOF"),
        (br#"{"version": "1", "version"#, "EOF"),
    ] {
        let _agent = sockets.agent(answer);
        let shown = sockets.warren(&["status"]);
        assert_eq!(shown.code, 2);
        assert!(shown.stderr.contains(cause), "{}", shown.stderr);
    }
}

#[test]
fn hanging_agent_is_given_up_and_hides_nothing() {
    let sockets = Sockets::new();
    let _agent = Server::start(&sockets.path("warren/agent.sock"), Manner::Hang, "");
    let _device = sockets.device("warren0", &full_device());
    let shown = sockets.warren(&["show", "warren0"]);
    assert_eq!(shown.code, 0);
    assert!(shown.stdout.starts_with("interface: warren0\n"));
    let status = sockets.warren(&["status"]);
    assert_eq!(status.code, 1);
    assert!(
        status.stderr.contains("no whole answer within 5s"),
        "{}",
        status.stderr
    );
}
