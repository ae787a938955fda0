//! Datagrams from anybody, to an engine with a live session.
//!
//! The first byte says what of: the rest as it is, or a real message with the rest laid over it.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use warren_fuzz::Scene;
use warren_tunnel::Now;

thread_local!(static SCENE: RefCell<Scene> = RefCell::new(Scene::new()));

fuzz_target!(|input: &[u8]| {
    let Some((kind, rest)) = input.split_first() else {
        return;
    };
    SCENE.with_borrow_mut(|scene| {
        scene.refresh();
        let datagram = match kind % 8 {
            n @ 0..4 => {
                let mut message = scene.messages[usize::from(n)].clone();
                for (byte, flip) in message.iter_mut().zip(rest) {
                    *byte ^= flip;
                }
                message
            }
            _ => rest.to_vec(),
        };
        let source = "203.0.113.5:1".parse().expect("a constant");
        let Scene { engine, out, .. } = scene;
        let accepted = engine.counters().tun_tx_packets;
        engine.handle_datagram(Now::read(), source, &datagram, out);
        assert_eq!(
            engine.counters().tun_tx_packets,
            accepted,
            "a packet of a stranger was accepted"
        );
        assert!(
            out.datagrams()
                .all(|(to, bytes)| to != source || bytes.len() <= 92),
            "an answer that is larger than a handshake's"
        );
        out.clear();
        engine.handle_timers(Now::read(), out);
        out.clear();
    });
});
