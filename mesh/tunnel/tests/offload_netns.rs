//! The tunnel with and without each offload: what arrives, and what the status says.
//!
//! ```text
//!   node1                            node2
//!   wg0 10.1.0.1, fd01::1            wg0 10.2.0.1, fd02::1
//!   eth0 192.0.2.1, 2001:db8::1 ---- eth0 192.0.2.2, 2001:db8::2
//! ```

#![allow(clippy::unwrap_used)] // helpers of tests

mod uapi_device;

use std::io::{self, Read, Write};
use std::mem;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use uapi_device::{PATIENCE, Socket, TUNNEL, private_key, public_key};
use warren_lab::{Host, Lab, Link, Proc, Result, poll_for, poll_until, require};

const ALL: &str = "tso,uso,udp_segment,udp_gro";

struct Node {
    host: Host,
    uapi: Socket,
    tunnel: Proc,
}

impl Node {
    fn start(lab: &Lab, n: u32, options: &[&str]) -> Result<Self> {
        let host = lab.host(&format!("node{n}"))?;
        let dir = host.dir().join("uapi");
        let tunnel = host.spawn(
            Command::new(TUNNEL)
                .args([
                    "--interface",
                    "wg0",
                    "--ephemeral",
                    "--listen-port",
                    "51820",
                ])
                .args(options)
                .arg("--uapi-dir")
                .arg(&dir),
        )?;
        tunnel.wait_log("the tunnel is up", PATIENCE)?;
        let other = 3 - n;
        host.sh(&format!(
            "ip link set wg0 up
             ip address add 10.{n}.0.1/32 dev wg0
             ip address add fd0{n}::1/128 dev wg0 nodad
             ip route add 10.{other}.0.0/24 dev wg0 src 10.{n}.0.1
             ip route add fd0{other}::/64 dev wg0 src fd0{n}::1"
        ))?;
        let uapi = Socket(dir.join("wg0.sock"));
        Ok(Self { host, uapi, tunnel })
    }

    /// Makes the other one a peer; the way there is to be up by now.
    fn introduce(&self, n: u32) {
        let other = 3 - n;
        let key = private_key(n).to_hex();
        self.uapi.set(&format!(
            "private_key={}\npublic_key={}\nendpoint=192.0.2.{other}:51820\n\
             allowed_ip=10.{other}.0.0/24\nallowed_ip=fd0{other}::/64\n",
            *key,
            public_key(other)
        ));
    }

    fn status(&self, key: &str) -> String {
        let socat = ["socat", "-", "UNIX-CONNECT:/run/warren/tunnel.sock"];
        let text = self.host.run(&socat).unwrap().stdout;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_else(|| panic!("{key} in {text}")).to_owned()
    }

    fn count(&self, key: &str) -> u64 {
        self.status(key).parse().unwrap()
    }

    /// What the kernel counts at the interface.
    fn kernel(&self, name: &str) -> u64 {
        let path = format!("/sys/class/net/wg0/statistics/{name}");
        let text = self.host.run(&["cat", &path]).unwrap().stdout;
        text.trim().parse().unwrap()
    }
}

fn pair(name: &str, options: [&[&str]; 2]) -> Result<(Lab, Node, Node, Link)> {
    let lab = Lab::new(name)?;
    let (node1, node2) = (
        Node::start(&lab, 1, options[0])?,
        Node::start(&lab, 2, options[1])?,
    );
    let end = |node: &Node, n| {
        let end = node.host.end("eth0").addr(&format!("192.0.2.{n}/24"));
        end.addr(&format!("2001:db8::{n}/64"))
    };
    let link = lab.connect(end(&node1, 1), end(&node2, 2))?;
    node1.introduce(1);
    node2.introduce(2);
    let ping = ["ping", "-c1", "-W1", "10.2.0.1"];
    poll_until(PATIENCE, "a ping", || {
        node1.host.try_run(&ping).is_ok_and(|ping| ping.success())
    })?;
    Ok((lab, node1, node2, link))
}

/// Bytes that repeat at no length that anything is cut at.
fn pattern(len: usize) -> Vec<u8> {
    (0..len)
        .map(|n| (n % 251) as u8 ^ (n / 65_521) as u8)
        .collect()
}

/// Sends by TCP and compares all that arrives.
fn stream(from: &Node, to: &Node, address: &str, len: usize) -> Result<()> {
    let address: SocketAddr = address.parse().unwrap();
    let listener = to.host.in_netns(|| bind(|| TcpListener::bind(address)))?;
    let sent = pattern(len);
    thread::scope(|scope| {
        scope.spawn(|| {
            from.host
                .in_netns(|| {
                    let mut stream = TcpStream::connect(address).unwrap();
                    stream.write_all(&sent).unwrap();
                })
                .unwrap();
        });
        let mut received = Vec::new();
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.read_to_end(&mut received).unwrap();
        assert!(received == sent, "{} of {len} bytes", received.len());
    });
    Ok(())
}

/// Sends datagrams in super-packets and compares all that arrive: every length, in order.
fn datagrams(from: &Node, to: &Node, source: &str, address: &str) -> Result<()> {
    let address: SocketAddr = address.parse().unwrap();
    let receiver = to.host.in_netns(|| bind(|| UdpSocket::bind(address)))?;
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();
    let sender = from
        .host
        .in_netns(|| UdpSocket::bind((source, 0)).unwrap())?;
    for (segment_len, total) in [(1000, 7500), (1301, 1301 * 40), (8, 8 * 64), (100, 50)] {
        set_segment_len(&sender, segment_len as libc::c_int);
        let sent = pattern(total);
        sender.send_to(&sent, address).unwrap();
        for datagram in sent.chunks(segment_len) {
            let mut room = [0; 2000];
            let len = receiver.recv(&mut room).unwrap();
            assert!(
                room[..len] == *datagram,
                "{len} of {} bytes",
                datagram.len()
            );
        }
    }
    Ok(())
}

/// A port that was just used stays taken for a moment when another test forks meanwhile.
fn bind<T>(bind: impl Fn() -> io::Result<T>) -> T {
    poll_for(PATIENCE, "a port", || match bind() {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => None,
        bound => Some(bound.unwrap()),
    })
    .unwrap()
}

fn set_segment_len(socket: &UdpSocket, bytes: libc::c_int) {
    // SAFETY: pointer and length describe `bytes`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_SEGMENT,
            (&raw const bytes).cast(),
            mem::size_of_val(&bytes) as libc::socklen_t,
        )
    };
    assert_eq!(result, 0);
}

fn move_all(node1: &Node, node2: &Node) -> Result<()> {
    stream(node1, node2, "10.2.0.1:5001", 6_000_001)?;
    stream(node2, node1, "[fd01::1]:5001", 3_000_001)?;
    datagrams(node1, node2, "10.1.0.1", "10.2.0.1:5002")?;
    datagrams(node2, node1, "fd02::1", "[fd01::1]:5002")
}

#[test]
fn all_arrives_whatever_is_off_on_either_side_and_the_status_says_what_is_on() -> Result<()> {
    require!();
    let off: [(&[&str], &str); 5] = [
        (&["--no-tso"], "udp_segment,udp_gro"),
        (&["--no-uso"], "tso,udp_segment,udp_gro"),
        (&["--no-udp-segment"], "tso,uso,udp_gro"),
        (&["--no-udp-gro"], "tso,uso,udp_segment"),
        (&["--no-tso", "--no-udp-segment", "--no-udp-gro"], "none"),
    ];
    for (n, (options, on)) in off.into_iter().enumerate() {
        let (_lab, node1, node2, _link) = pair(&format!("offload{n}"), [options, &[]])?;
        assert_eq!(node1.status("offload"), on);
        assert_eq!(node2.status("offload"), ALL);
        assert!(
            node1.tunnel.log().contains(&format!("offload={on}")),
            "{}",
            node1.tunnel.log()
        );
        move_all(&node1, &node2)?;
        for node in [&node1, &node2] {
            assert_eq!(node.count("tun_errors"), 0);
            assert_eq!(node.count("udp_send_errors"), 0);
            for drop in [
                "drop_tun_malformed",
                "drop_inner_malformed",
                "drop_replayed",
            ] {
                assert_eq!(node.count(drop), 0, "{drop}");
            }
            // The ends of the streams are still under way.
            for (ours, kernels) in [
                ("tun_rx_frames", "tx_packets"),
                ("tun_tx_frames", "rx_packets"),
            ] {
                poll_until(PATIENCE, &format!("as many {ours} as {kernels}"), || {
                    node.count(ours) == node.kernel(kernels)
                })?;
            }
        }
        let together = |packets, frames| node1.count(packets) > node1.count(frames);
        assert_eq!(
            together("tun_rx_packets", "tun_rx_frames"),
            on.contains("tso")
        );
        assert_eq!(
            together("tun_tx_packets", "tun_tx_frames"),
            on.contains("tso")
        );
        let segment = on.contains("udp_segment");
        assert_eq!(together("udp_tx_datagrams", "udp_tx_messages"), segment);
        let gro = on.contains("udp_gro");
        assert_eq!(together("udp_rx_datagrams", "udp_rx_messages"), gro);
    }
    Ok(())
}

#[test]
fn with_everything_on_a_train_goes_through_as_one() -> Result<()> {
    require!();
    let (_lab, node1, node2, _link) = pair("offloadall", [&[], &[]])?;
    assert_eq!(node1.status("offload"), ALL);
    move_all(&node1, &node2)?;
    // The ends of the streams are still under way.
    let counted = || [node2.count("tun_tx_packets"), node2.count("tun_tx_frames")];
    let (mut before, mut since) = (counted(), Instant::now());
    poll_until(PATIENCE, "silence", || {
        let now = counted();
        if std::mem::replace(&mut before, now) != now {
            since = Instant::now();
        }
        since.elapsed() > Duration::from_secs(1)
    })?;
    datagrams(&node1, &node2, "10.1.0.1", "10.2.0.1:5003")?;
    // 8 + 40 + 64 + 1 datagrams, in four super-packets.
    let [packets, frames] = before;
    poll_until(PATIENCE, "all packets to be counted", || {
        counted()[0] - packets >= 113
    })?;
    assert_eq!(counted(), [packets + 113, frames + 4]);
    Ok(())
}

#[test]
fn all_arrives_by_a_device_that_computes_no_checksums() -> Result<()> {
    require!();
    let (_lab, node1, node2, _link) = pair("offloadnosum", [&[], &[]])?;
    node1
        .host
        .in_netns(|| switch_checksums_off("eth0"))?
        .unwrap();
    move_all(&node1, &node2)?;
    assert_eq!(node1.count("udp_send_errors"), 0);
    Ok(())
}

#[test]
fn a_way_that_becomes_too_narrow_for_a_train_still_takes_its_datagrams() -> Result<()> {
    require!();
    let (_lab, node1, node2, link) = pair("offloadmtu", [&[], &[]])?;
    move_all(&node1, &node2)?;
    link.set_mtu(1300)?;
    // The tunnel asks for the way every ten seconds; until then it believes in the old one.
    move_all(&node1, &node2)?;
    assert_eq!(node1.count("udp_send_errors"), 0);
    assert_eq!(node2.count("udp_send_errors"), 0);
    Ok(())
}

#[test]
fn segments_wait_for_the_handshake_like_packets() -> Result<()> {
    require!();
    let (_lab, node1, node2, link) = pair("offloadwait", [&[], &[]])?;
    let key = public_key(2);
    // A new session is needed: the old keys go with the peer.
    node1.uapi.set(&format!("public_key={key}\nremove=true\n"));
    link.cut()?;
    node1.uapi.set(&format!(
        "public_key={key}\nendpoint=192.0.2.2:51820\nallowed_ip=10.2.0.0/24\n"
    ));
    let receiver = node2
        .host
        .in_netns(|| UdpSocket::bind("10.2.0.1:5004").unwrap())?;
    receiver
        .set_read_timeout(Some(PATIENCE + Duration::from_secs(10)))
        .unwrap();
    let sender = node1
        .host
        .in_netns(|| UdpSocket::bind("10.1.0.1:0").unwrap())?;
    set_segment_len(&sender, 1000);
    let sent = pattern(20_500);
    sender.send_to(&sent, "10.2.0.1:5004").unwrap();
    poll_until(PATIENCE, "packets that wait", || {
        node1.count("queue_bytes") > 20_500
    })?;
    link.restore()?;
    for datagram in sent.chunks(1000) {
        let mut room = [0; 2000];
        let len = receiver.recv(&mut room).unwrap();
        assert!(room[..len] == *datagram);
    }
    Ok(())
}

/// What `ethtool -K DEVICE tx off` does.
fn switch_checksums_off(device: &str) -> std::io::Result<()> {
    /// `struct ethtool_value` of linux/ethtool.h.
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    const ETHTOOL_STXCSUM: u32 = 0x17;
    let mut value = Value {
        command: ETHTOOL_STXCSUM,
        data: 0,
    };
    // SAFETY: plain data, for which all zero is a value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    let socket = UdpSocket::bind("127.0.0.1:0").or_else(|_| UdpSocket::bind("0.0.0.0:0"))?;
    // SAFETY: the request and the value that it points to outlive the call.
    let result =
        unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    match result {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

#[test]
fn all_arrives_where_the_loop_polls_and_the_status_tells_that_it_does() -> Result<()> {
    require!();
    let (_lab, node1, node2, _link) = pair("spin", [&["--spin", "200"], &[]])?;
    assert_eq!((node1.count("spin_us"), node2.count("spin_us")), (200, 0));
    move_all(&node1, &node2)?;
    // The next packet as soon as the answer is there.
    let flood = ["ping", "-f", "-c500", "-w5", "10.2.0.1"];
    poll_until(PATIENCE, "a poll in time", || {
        node1.host.try_run(&flood).is_ok_and(|ping| ping.success())
            && node1.count("spins_in_time") > 0
    })?;
    for key in ["spins_in_time", "spins_in_vain"] {
        assert_eq!(node2.count(key), 0, "{key}");
    }
    Ok(())
}
