//! Inner packets: sealed by a peer that may lie, and read from the TUN.
#![no_main]

use std::cell::RefCell;
use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use warren_fuzz::{Scene, made};
use warren_tunnel::Now;

thread_local!(static SCENE: RefCell<Scene> = RefCell::new(Scene::new()));

fuzz_target!(|packet: &[u8]| {
    // `encapsulate` takes an empty packet for a keepalive.
    if packet.len() > 65_000 {
        return;
    }
    SCENE.with_borrow_mut(|scene| {
        scene.refresh();
        let now = Now::read();
        let mut room = vec![0; packet.len() + 256];
        let sealed = made(scene.peer.encapsulate(packet, &mut room));
        if sealed[0] != 4 {
            // boringtun wants a new session by its own clock.
            *scene = Scene::new();
            return;
        }
        let Scene {
            engine,
            out,
            address,
            ..
        } = scene;
        let before = engine.counters().clone();
        engine.handle_datagram(now, *address, &sealed, out);
        let delivered: Vec<&[u8]> = out.packets().collect();
        for inner in &delivered {
            assert!(packet.starts_with(inner), "other bytes than were sealed");
            let source: IpAddr = match inner[0] >> 4 {
                4 => <[u8; 4]>::try_from(&inner[12..16])
                    .expect("a header")
                    .into(),
                6 => <[u8; 16]>::try_from(&inner[8..24])
                    .expect("a header")
                    .into(),
                version => panic!("IP version {version} was delivered"),
            };
            let own = match source {
                IpAddr::V4(source) => source.octets()[..2] == [10, 9] && source.octets()[2] != 77,
                IpAddr::V6(source) => source.segments()[..4] == [0xfd09, 0, 0, 0],
            };
            assert!(own, "source {source} is not the peer's");
        }
        let after = engine.counters();
        let dropped = after.drops.total() - before.drops.total();
        let taken = after.tun_tx_packets - before.tun_tx_packets;
        let probes = after.path_probes - before.path_probes;
        assert_eq!(taken, delivered.len() as u64);
        if !packet.is_empty() {
            assert_eq!(
                taken + dropped + probes,
                1,
                "neither delivered nor counted, or both"
            );
        }
        out.clear();
        engine.handle_tun_packet(now, packet, out);
        out.clear();
    });
});
