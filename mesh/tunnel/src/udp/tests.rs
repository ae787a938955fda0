//! The sockets on loopback: what comes out where.

use std::net::UdpSocket;

use super::*;
use crate::outbox::Outbox;
use crate::source::Endpoint;
use crate::steer::Kind;

/// Where a datagram from this address comes out: `None` is the socket for data.
fn lane_of(lanes: &Lanes, from: &str, datagram: &[u8]) -> Option<usize> {
    let to = lanes.data.local_addr().unwrap().as_socket().unwrap();
    let sender = UdpSocket::bind((from, 0)).unwrap();
    sender.send_to(datagram, to).unwrap();
    let mut arena = ReceiveArena::new();
    for _ in 0..500 {
        if arena.receive(&lanes.data, BATCH).is_ok() {
            return None;
        }
        let mut handshakes = lanes.handshakes.iter();
        if let Some(lane) = handshakes.position(|socket| arena.receive(socket, BATCH).is_ok()) {
            return Some(lane);
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("a datagram of {} bytes was lost", datagram.len());
}

fn one(opened: io::Result<Vec<Lanes>>) -> Lanes {
    let mut lanes = opened.unwrap();
    assert_eq!(lanes.len(), 1);
    lanes.remove(0)
}

fn kind_of(lanes: &Lanes, from: &str, datagram: &[u8]) -> Option<Kind> {
    let lane = lane_of(lanes, from, datagram)?;
    Some(Kind::of(lane).unwrap())
}

/// A datagram of this type and length, with a byte set.
fn datagram(kind: u8, len: usize, set: Option<usize>) -> Vec<u8> {
    let mut bytes = vec![0; len];
    if let Some(first) = bytes.first_mut() {
        *first = kind;
    }
    if let Some(at) = set {
        bytes[at] = 0x80;
    }
    bytes
}

fn check_kinds(domain: Domain, address: &str, source: &str) {
    let at = SocketAddr::new(address.parse().unwrap(), 0);
    let lanes = one(Lanes::open(domain, at, true, 1));
    assert_eq!(lanes.handshakes.len(), steer::lanes() as usize);
    let kind = |bytes: &[u8]| kind_of(&lanes, source, bytes);
    for len in [32, 33, 148, 1452] {
        assert_eq!(kind(&datagram(4, len, None)), None, "data of {len} bytes");
    }
    assert_eq!(kind(&datagram(2, 92, None)), Some(Kind::Answers));
    assert_eq!(kind(&datagram(2, 92, Some(80))), Some(Kind::Answers));
    assert_eq!(kind(&datagram(3, 64, None)), Some(Kind::Answers));
    // Each single byte of MAC2 makes it a claim, and none before it does.
    assert_eq!(kind(&datagram(1, 148, None)), Some(Kind::Strangers));
    assert_eq!(kind(&datagram(1, 148, Some(131))), Some(Kind::Strangers));
    for at in 132..148 {
        assert_eq!(kind(&datagram(1, 148, Some(at))), Some(Kind::Claims));
    }
    // Rubbish never takes the room of data.
    for (first, len) in [
        (0, 0),
        (4, 1),
        (4, 31),
        (1, 4),
        (1, 140),
        (1, 149),
        (9, 1000),
    ] {
        let bytes = datagram(first, len, None);
        assert_eq!(kind(&bytes), Some(Kind::Strangers), "{first}, {len} bytes");
    }
    let reserved = datagram(4, 64, Some(2));
    assert_eq!(kind(&reserved), Some(Kind::Strangers), "reserved bytes");
}

#[test]
fn each_kind_of_message_has_sockets_of_its_own_in_both_families() {
    check_kinds(Domain::IPV4, "127.0.0.1", "127.0.0.1");
    match UdpSocket::bind("[::1]:0") {
        Ok(_) => check_kinds(Domain::IPV6, "::1", "::1"),
        Err(error) => println!("skipped for IPv6: no ::1: {error}"),
    }
}

#[test]
fn peers_have_sockets_apart_from_strangers_however_many_they_are() {
    let at = "127.0.0.1:0".parse().unwrap();
    let lanes = one(Lanes::open(Domain::IPV4, at, true, 1));
    let initiation = datagram(1, 148, None);
    let known = |n: u32| IpAddr::V4(Ipv4Addr::from_bits(0x7f01_0000 + 3 * n));
    for (count, secret) in [
        (1, 5),
        (7, 0x8000_0001),
        (8, 0),
        (9, 77),
        (510, 0xdead_beef),
    ] {
        let peers = (0..count).map(known);
        // Those of the other family and duplicates do not count.
        let others = [known(0), "2001:db8::1".parse().unwrap()];
        let known_addresses = peers.chain(others).collect();
        let deal = Deal {
            secret,
            known: known_addresses,
            ..Deal::default()
        };
        steer::attach(Domain::IPV4, &lanes.data, &deal).unwrap();
        for n in [0, count / 3, count / 2, count - 1] {
            let peer = known(n).to_string();
            assert_eq!(
                kind_of(&lanes, &peer, &initiation),
                Some(Kind::Peers),
                "{n} of {count}"
            );
            let stranger = known(n).to_string().replace("127.1.", "127.2.");
            let kind = kind_of(&lanes, &stranger, &initiation);
            assert_eq!(kind, Some(Kind::Strangers), "{stranger}");
        }
    }
    // More than a program can know: each is among those of one secret or another.
    let all: Vec<IpAddr> = (0..2000).map(known).collect();
    let hits = (1..40u32).filter(|n| {
        let deal = Deal {
            secret: n.wrapping_mul(0x9e37_79b9),
            known: all.clone(),
            ..Deal::default()
        };
        steer::attach(Domain::IPV4, &lanes.data, &deal).unwrap();
        kind_of(&lanes, &known(1234).to_string(), &initiation) == Some(Kind::Peers)
    });
    let hits = hits.count();
    assert!((1..39).contains(&hits), "{hits} of 39");
}

#[test]
fn the_sources_are_spread_over_the_sockets_of_their_kind_and_anew_by_each_secret() {
    let at = "127.0.0.1:0".parse().unwrap();
    let lanes = one(Lanes::open(Domain::IPV4, at, true, 1));
    let sources: Vec<String> = (1..60).map(|n| format!("127.0.{n}.1")).collect();
    let dealt = |secret| {
        let deal = Deal {
            secret,
            ..Deal::default()
        };
        steer::attach(Domain::IPV4, &lanes.data, &deal).unwrap();
        let sources = sources.iter();
        let lane = |from: &String| lane_of(&lanes, from, &datagram(1, 148, None));
        sources.map(lane).collect::<Vec<_>>()
    };
    let (first, second) = (dealt(0x1234_5678), dealt(0x8765_4321));
    for dealt in [&first, &second] {
        let lanes: std::collections::BTreeSet<_> = dealt.iter().collect();
        assert!(lanes.len() >= 6, "of 8 sockets only {lanes:?}");
    }
    let same = first.iter().zip(&second).filter(|(a, b)| a == b).count();
    assert!(same < 30, "{same} of 59 are where they were");
}

#[test]
fn where_the_kernel_refuses_everything_comes_to_the_one_socket_and_the_port_is_ours_alone() {
    let at = "127.0.0.1:0".parse().unwrap();
    let refuse: Attach = |_, _, _| Err(io::ErrorKind::Unsupported.into());
    let lanes = one(Lanes::open_with(Domain::IPV4, at, true, 1, refuse));
    assert!(lanes.handshakes.is_empty());
    for (kind, len) in [(1, 148), (2, 92), (3, 64), (4, 64), (0, 0)] {
        for n in 1..20 {
            let from = format!("127.0.0.{n}");
            assert_eq!(lane_of(&lanes, &from, &datagram(kind, len, None)), None);
        }
    }
    let port = lanes.data.local_addr().unwrap().as_socket().unwrap();
    let other = open(Domain::IPV4, BUFFER_BYTES).unwrap();
    other.set_reuse_port(true).unwrap();
    let error = other.bind(&port.into()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
}

/// Sends datagrams of one length as a train by that socket, and receives all of them.
fn send_train(sender: &mut Sender, data: Socket, receiver: &Socket) -> UdpBook {
    let mut udp = Udp::bind(0, 0, Offloads::ALL).unwrap();
    assert!(
        udp.offloads().udp_segment,
        "the kernel has it since Linux 4.18"
    );
    udp.v4.as_mut().unwrap().data = data;
    let to = receiver.local_addr().unwrap().as_socket().unwrap();
    let mut out = Outbox::new();
    for n in 0..5 {
        let room = out.datagrams.room(1000).unwrap();
        room.fill(n);
        room[0] = 4;
        out.datagrams.commit(1000, Endpoint::from(to).into());
    }
    let mut book = UdpBook::default();
    sender.send(&udp, &out, &mut book);
    receiver
        .set_read_timeout(Some(std::time::Duration::from_secs(10)))
        .unwrap();
    for n in 0..5 {
        let mut room = [0; 2000];
        let len = std::io::Read::read(&mut &*receiver, &mut room).unwrap();
        assert_eq!((len, room[999]), (1000, n));
    }
    assert_eq!(book.counters, UdpCounters::default());
    book
}

fn bound(protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(protocol))?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    Ok(socket)
}

#[test]
fn a_train_that_is_taken_is_one_message() {
    let data = bound(Protocol::UDP).unwrap();
    let mut sender = Sender::new();
    let book = send_train(&mut sender, data, &bound(Protocol::UDP).unwrap());
    assert_eq!(book.sent_messages, 1);
}

#[test]
fn of_a_train_that_is_refused_each_datagram_leaves_alone() {
    let data = bound(Protocol::UDP).unwrap();
    // Trains want checksums: EINVAL.
    set_int_option(&data, libc::SOL_SOCKET, libc::SO_NO_CHECK, 1).unwrap();
    let mut sender = Sender::new();
    let book = send_train(&mut sender, data, &bound(Protocol::UDP).unwrap());
    assert_eq!(book.sent_messages, 5);
    assert!(!sender.has_refusals(), "it may have been about this one");
}

#[test]
fn a_way_that_takes_no_trains_is_remembered_until_routes_change() {
    // UDP-Lite, whose checksums no device computes, says EIO as such a way does.
    let lite = Protocol::from(libc::IPPROTO_UDPLITE);
    let (data, receiver) = match (bound(lite), bound(lite)) {
        (Ok(data), Ok(receiver)) => (data, receiver),
        (Err(error), _) | (_, Err(error)) => {
            assert!(std::env::var_os("CI").is_none(), "{error}");
            eprintln!("skipped: {error}; the kernel has no UDP-Lite");
            return;
        }
    };
    let mut sender = Sender::new();
    for _ in 0..2 {
        let book = send_train(&mut sender, data.try_clone().unwrap(), &receiver);
        assert_eq!(book.sent_messages, 5);
        assert!(sender.has_refusals());
    }
    sender.forget_refusals();
    assert!(!sender.has_refusals());
}

/// Which shard gets the datagram, and in its socket for data or in which other.
fn shard_of(all: &[Lanes], datagram: &[u8]) -> (usize, Option<usize>) {
    let to = all[0].data.local_addr().unwrap().as_socket().unwrap();
    let sender = UdpSocket::bind((to.ip(), 0)).unwrap();
    sender.send_to(datagram, to).unwrap();
    let mut arena = ReceiveArena::new();
    for _ in 0..500 {
        for (shard, lanes) in all.iter().enumerate() {
            if arena.receive(&lanes.data, BATCH).is_ok() {
                return (shard, None);
            }
            let mut handshakes = lanes.handshakes.iter();
            if let Some(lane) = handshakes.position(|socket| arena.receive(socket, BATCH).is_ok()) {
                return (shard, Some(lane));
            }
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("a datagram of {} bytes was lost", datagram.len());
}

fn check_shards(domain: Domain, address: &str, shards: u8) {
    let at = SocketAddr::new(address.parse().unwrap(), 0);
    let all = Lanes::open(domain, at, true, shards).unwrap();
    assert_eq!(all.len(), usize::from(shards));
    for secret in [7, 0x8000_0001] {
        let deal = Deal {
            shards,
            secret,
            known: vec![address.parse().unwrap()],
        };
        steer::attach(domain, &all[0].data, &deal).unwrap();
        for place in crate::Place::all(shards) {
            let shard = usize::from(place.own().number());
            for generation in [false, true] {
                let receiver = place.index(generation, 77) << 8 | 5;
                let with = |kind, len, at: usize| {
                    let mut bytes = datagram(kind, len, None);
                    bytes[at..at + 4].copy_from_slice(&receiver.to_le_bytes());
                    bytes
                };
                for len in [32, 1452] {
                    assert_eq!(shard_of(&all, &with(4, len, 4)), (shard, None));
                }
                for (kind, len, at) in [(2, 92, 8), (3, 64, 4)] {
                    let (got, lane) = shard_of(&all, &with(kind, len, at));
                    assert_eq!(got, shard, "type {kind} of {shards}");
                    assert_eq!(Kind::of(lane.unwrap()), Some(Kind::Answers));
                }
                // The sender's index is at the place of a data message's receiver.
                let (got, lane) = shard_of(&all, &with(1, 148, 4));
                assert_eq!((got, Kind::of(lane.unwrap())), (0, Some(Kind::Peers)));
                let (got, _) = shard_of(&all, &with(9, 148, 4));
                assert_eq!(got, 0);
            }
        }
    }
    // The number of a shard that there is not.
    if shards < crate::shards::MAX_SHARDS {
        let mut bytes = datagram(4, 64, None);
        bytes[7] = 0x78;
        assert_eq!(shard_of(&all, &bytes), (0, None));
        let mut bytes = datagram(2, 92, None);
        bytes[11] = 0x78;
        assert_eq!(shard_of(&all, &bytes).0, 0);
    }
}

#[test]
fn each_shard_gets_what_is_for_its_sessions_and_the_first_all_initiations() {
    let families = [(Domain::IPV4, "127.0.0.1"), (Domain::IPV6, "::1")];
    for (domain, address) in families {
        if let Err(error) = UdpSocket::bind((address, 0)) {
            println!("skipped: no {address}: {error}");
            continue;
        }
        for shards in [2, 3, 16] {
            check_shards(domain, address, shards);
        }
    }
}

#[test]
fn where_the_kernel_does_not_deal_out_several_shards_are_refused() {
    let at = "127.0.0.1:0".parse().unwrap();
    let refuse: Attach = |_, _, _| Err(io::ErrorKind::Unsupported.into());
    let refused = Lanes::open_with(Domain::IPV4, at, true, 4, refuse);
    assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::Unsupported);
}
