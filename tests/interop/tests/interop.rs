//! warren-tunnel and every other WireGuard, in both roles: each scenario is written once and run
//! for each implementation.
//!
//! ```text
//!   ours: warren-tunnel                             theirs: an implementation
//!   warren0 10.1.0.1, fd01::1                       wg0 10.2.0.1, fd02::1
//!   eth0 192.0.2.1, 2001:db8::1 ------ lan -------- eth0 192.0.2.2, 2001:db8::2
//!                                       |           (the kernel's: in a virtual machine there)
//!                         flooder eth0 192.0.2.3, 2001:db8::3
//! ```

use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use warren_interop::{Bench, Counting, Moving, Outer, PeerSettings, Result, Side, with_bench};
use warren_keyring::PresharedKey;

/// Makes a test of a scenario for each implementation. The scenario comes first in the names, so
/// that tests that run at the same time are of different implementations.
macro_rules! scenarios {
    ($($(#[$attribute:meta])* $scenario:ident)*) => {$(
        mod $scenario {
            scenarios!(@one $scenario, [$(#[$attribute])*], boringtun_cli, "boringtun-cli");
            scenarios!(@one $scenario, [$(#[$attribute])*], kernel, "kernel");
            scenarios!(@one $scenario, [$(#[$attribute])*], wireguard_go, "wireguard-go");
            scenarios!(@one $scenario, [$(#[$attribute])*], wireguard_go_debian, "wireguard-go-debian");
        }
    )*};
    (@one $scenario:ident, [$(#[$attribute:meta])*], $function:ident, $name:literal) => {
        #[test]
        $(#[$attribute])*
        fn $function() {
            super::with_bench($name, super::$scenario);
        }
    };
}

scenarios! {
    handshake_and_data_in_both_families_and_roles
    a_preshared_key_is_needed_once_set_and_until_cleared
    a_new_session_does_not_interrupt_traffic
    a_changed_address_or_port_is_followed
    a_changed_key_is_taken
    packets_of_every_mtu_pass_whole
    an_honest_peer_gets_in_while_cookies_are_asked_for
    both_ends_count_the_same_bytes
    a_persistent_keepalive_is_sent_without_traffic
    #[ignore = "takes five minutes: make soak"]
    sessions_are_renewed_in_time_under_traffic
}

/// Enough for several windows of TCP, little enough for an emulated kernel.
const TRANSFER_BYTES: u64 = 2 << 20;

fn handshake_and_data_in_both_families_and_roles(bench: &mut Bench) -> Result {
    for outer in Outer::BOTH {
        for side in Side::BOTH {
            bench.start_as_peers(outer, side)?;
            let (initiator, responder) = bench.roles(side);
            initiator.reaches(&responder.inner()[0])?;
            // Learned from the handshake alone.
            let learned = responder.dump(initiator)?.endpoint;
            ensure!(
                learned == initiator.endpoint(outer).parse().ok(),
                "{learned:?}"
            );
            for (from, to) in [(initiator, responder), (responder, initiator)] {
                ensure!(from.dump(to)?.latest_handshake != Some(0));
                for address in to.inner() {
                    ensure!(from.hears(&address)?, "no answer of {address}");
                    from.send_tcp(&address, TRANSFER_BYTES)?;
                }
            }
        }
    }
    Ok(())
}

fn a_preshared_key_is_needed_once_set_and_until_cleared(bench: &mut Bench) -> Result {
    for (outer, side) in Outer::BOTH.into_iter().zip(Side::BOTH) {
        bench.start_as_peers(outer, side)?;
        let (initiator, responder) = bench.roles(side);
        let address = &responder.inner()[0];
        let psk = PresharedKey::generate()?.to_base64();
        let psk = Some(psk.as_str());
        // The responder's is changed in place, the initiator begins a handshake with its own.
        let renew = |of_initiator, of_responder| -> Result {
            let settings = |endpoint, preshared_key| PeerSettings {
                endpoint,
                preshared_key,
                ..PeerSettings::default()
            };
            initiator.remove_peer(&responder.public_key())?;
            responder.set_peer(initiator, &settings(None, of_responder))?;
            initiator.set_peer(responder, &settings(Some(outer), of_initiator))
        };
        initiator.reaches(address)?;
        for (of_initiator, of_responder) in [(psk, None), (None, psk)] {
            renew(of_initiator, of_responder)?;
            ensure!(!initiator.pings(address)?, "a ping without the same key");
            renew(psk, psk)?;
            initiator.reaches(address)?;
            ensure!(responder.hears(&initiator.inner()[1])?);
        }
        renew(None, None)?;
        initiator.reaches(address)?;
    }
    Ok(())
}

fn a_new_session_does_not_interrupt_traffic(bench: &mut Bench) -> Result {
    for (outer, side) in Outer::BOTH.into_iter().zip(Side::BOTH) {
        bench.start()?;
        // Both know where the other is, or the one that forgets its peer could not find it again.
        bench.theirs.add_peer(&bench.ours, Some(outer))?;
        bench.ours.add_peer(&bench.theirs, Some(outer))?;
        bench.ours.reaches(&bench.theirs.inner()[0])?;
        let (forgetful, other) = bench.roles(side);
        let stream = forgetful.start_stream(&other.inner()[0], 6)?;
        for _ in 0..2 {
            std::thread::sleep(Duration::from_millis(1_500));
            let before = other.dump(forgetful)?.latest_handshake;
            forgetful.remove_peer(&other.public_key())?;
            forgetful.add_peer(other, Some(outer))?;
            forgetful.wait("a new session", |end| {
                let own = end.dump(other)?.latest_handshake;
                Ok(match own {
                    Some(time) => time > 0,
                    None => other.dump(end)?.latest_handshake > before,
                })
            })?;
        }
        let longest = stream.finish()?;
        // A handshake that had to be repeated would take five seconds more.
        ensure!(longest < Duration::from_secs(5), "{longest:?} of silence");
    }
    Ok(())
}

fn a_changed_address_or_port_is_followed(bench: &mut Bench) -> Result {
    for outer in Outer::BOTH {
        for side in Side::BOTH {
            bench.start_as_peers(outer, side)?;
            let (mover, other) = bench.roles_mut(side);
            let address = other.inner()[0].clone();
            mover.reaches(&address)?;
            let handshake = other.dump(mover)?.latest_handshake;
            let moving = mover.implementation.moving();
            if moving != Moving::Never {
                mover.move_to(outer, 11)?;
                mover.reaches(&address)?;
                let seen = other.dump(mover)?;
                ensure!(
                    seen.endpoint == mover.endpoint(outer).parse().ok(),
                    "{seen:?}"
                );
            }
            mover.listen_on(52_000)?;
            mover.reaches(&address)?;
            let seen = other.dump(mover)?;
            ensure!(
                seen.endpoint == mover.endpoint(outer).parse().ok(),
                "{seen:?}"
            );
            // What is sent the other way goes to the new place.
            ensure!(other.hears(&mover.inner()[0])?);
            if moving == Moving::AtOnce {
                let last = other.dump(mover)?.latest_handshake;
                ensure!(last == handshake, "not data but a handshake moved it");
            }
        }
    }
    Ok(())
}

fn a_changed_key_is_taken(bench: &mut Bench) -> Result {
    for (outer, side) in Outer::BOTH.into_iter().zip(Side::BOTH) {
        bench.start_as_peers(outer, side)?;
        let (changer, other) = bench.roles_mut(side);
        let address = other.inner()[0].clone();
        changer.reaches(&address)?;
        let old = changer.public_key();
        changer.change_key()?;
        other.remove_peer(&old)?;
        other.add_peer(changer, None)?;
        changer.reaches(&address)?;
        ensure!(other.hears(&changer.inner()[1])?);
        ensure!(other.dump(changer)?.latest_handshake != Some(0));
    }
    Ok(())
}

fn packets_of_every_mtu_pass_whole(bench: &mut Bench) -> Result {
    for (outer, inner) in [
        (Outer::V4, 1280),
        (Outer::V6, 1280),
        (Outer::V4, 1440),
        (Outer::V6, 1420),
        (Outer::V4, 8920),
        (Outer::V6, 8920),
    ] {
        // No room to spare but for the padding, of which there must be none beyond the MTU.
        bench.start_with_mtu(inner, inner + outer.overhead())?;
        bench.introduce(outer, Side::Ours)?;
        bench.ours.reaches(&bench.theirs.inner()[0])?;
        for side in Side::BOTH {
            let (from, to) = bench.roles(side);
            // Every length modulo 16 around the padding, then the longest.
            for size in [inner - 49, inner - 33, inner - 30, inner - 29, inner - 28] {
                let ping = [
                    "ping",
                    "-c1",
                    "-W10",
                    "-s",
                    &size.to_string(),
                    &to.inner()[0],
                ];
                from.machine.run(&ping)?;
            }
            from.send_tcp(&to.inner()[1], TRANSFER_BYTES)?;
        }
    }
    Ok(())
}

fn an_honest_peer_gets_in_while_cookies_are_asked_for(bench: &mut Bench) -> Result {
    for (outer, side) in Outer::BOTH.into_iter().zip(Side::BOTH) {
        bench.start()?;
        let (newcomer, victim) = bench.roles(side);
        let flood = bench.flood(victim, outer)?;
        newcomer.wait("a cookie", |_| Ok(flood.cookies() > 0))?;
        let start = Instant::now();
        bench.introduce(outer, side)?;
        newcomer.reaches(&victim.inner()[0])?;
        let waited = start.elapsed();
        // One attempt is answered by a cookie, the next, five seconds later, carries it; the flood
        // and a busy machine may cost it a few, and one that has no use for cookies never gets in.
        ensure!(waited < Duration::from_secs(27), "it took {waited:?}");
        let cookies = flood.cookies();
        victim.wait("the load to last", |_| Ok(flood.cookies() > cookies))?;
        ensure!(victim.hears(&newcomer.inner()[1])?);
    }
    Ok(())
}

/// What one end has sent and the other has not received is counted by the one alone. A busy machine
/// loses some; a count that is wrong is so each time.
fn both_ends_count_the_same_bytes(bench: &mut Bench) -> Result {
    const TRIES: usize = 4;
    for _ in 1..TRIES {
        if count_bytes(bench).is_ok() {
            return Ok(());
        }
    }
    count_bytes(bench)
}

fn count_bytes(bench: &mut Bench) -> Result {
    const PINGS: u64 = 10;
    for (outer, side) in Outer::BOTH.into_iter().zip(Side::BOTH) {
        bench.start_as_peers(outer, side)?;
        let (initiator, responder) = bench.roles(side);
        initiator.reaches(&responder.inner()[0])?;
        // So few that no socket's buffer runs over: what is lost there, one end alone counts.
        initiator.send_tcp(&responder.inner()[1], 50_000)?;
        let counts = || -> Result<[u64; 4]> {
            let (ours, theirs) = (
                bench.ours.dump(&bench.theirs)?,
                bench.theirs.dump(&bench.ours)?,
            );
            Ok([
                ours.tx_bytes,
                theirs.rx_bytes,
                ours.rx_bytes,
                theirs.tx_bytes,
            ])
        };
        // The passive keepalive, at the latest ten seconds after the last packet, could fall
        // between two looks: two equal ones say that it did not.
        let settled = || -> Result<[u64; 4]> {
            let mut last = counts()?;
            loop {
                std::thread::sleep(Duration::from_millis(300));
                let now = counts()?;
                if now == last {
                    return Ok(now);
                }
                last = now;
            }
        };
        let before = settled()?;
        let (count, to) = (PINGS.to_string(), &bench.theirs.inner()[0]);
        let ping = ["ping", "-c", &count, "-s", "1000", to];
        bench.ours.machine.run(&ping)?;
        let after = settled()?;
        // 1028 bytes each, padded to 1040, and 32 of the message.
        let sent = PINGS * (1040 + 32);
        let [theirs_received, received, theirs_sent] = match bench.theirs.implementation.counting()
        {
            Counting::Messages => {
                ensure!(after[0] == after[1] && after[2] == after[3], "{after:?}");
                [sent; 3]
            }
            Counting::InnerPackets => [PINGS * 1028, PINGS * (1028 + 32), PINGS * 1028],
        };
        let grown: Vec<u64> = after.iter().zip(before).map(|(a, b)| a - b).collect();
        ensure!(
            grown == [sent, theirs_received, received, theirs_sent],
            "{before:?} {after:?}"
        );
    }
    Ok(())
}

fn a_persistent_keepalive_is_sent_without_traffic(bench: &mut Bench) -> Result {
    for (outer, side) in Outer::BOTH.into_iter().zip(Side::BOTH) {
        bench.start()?;
        let (keeper, other) = bench.roles(side);
        let keep = |keepalive_seconds| {
            let settings = PeerSettings {
                endpoint: Some(outer),
                keepalive_seconds,
                ..PeerSettings::default()
            };
            keeper.set_peer(other, &settings)
        };
        // At the end that counts them: keepalives have no bytes inside.
        let bytes = || -> Result<u64> {
            Ok(match other.implementation.counting() {
                Counting::Messages => other.dump(keeper)?.rx_bytes,
                Counting::InnerPackets => keeper.dump(other)?.tx_bytes,
            })
        };
        other.add_peer(keeper, None)?;
        // It alone begins the handshake.
        keep(Some(1))?;
        other.wait("a handshake without traffic", |_| Ok(bytes()? >= 148 + 32))?;
        let start = Instant::now();
        let before = bytes()?;
        std::thread::sleep(Duration::from_secs(5));
        let sent = bytes()? - before;
        let most = 32 * (start.elapsed().as_secs() + 1);
        ensure!((64..=most).contains(&sent), "{sent} bytes");
        keep(None)?;
        std::thread::sleep(Duration::from_millis(200));
        // Keepalives would be in any of these times; what wireguard-go now and then sends once, five
        // seconds after a handshake that was answered before it had set its timer, is in one at most.
        let mut quiet = false;
        for _ in 0..3 {
            let before = bytes()?;
            std::thread::sleep(Duration::from_millis(2_500));
            quiet |= bytes()? == before;
            if quiet {
                break;
            }
        }
        ensure!(quiet, "it goes on");
    }
    Ok(())
}

/// Rekey-After-Time is 120 s for the initiator, whichever end that is.
fn sessions_are_renewed_in_time_under_traffic(bench: &mut Bench) -> Result {
    for side in Side::BOTH {
        bench.start_as_peers(Outer::V4, side)?;
        let (initiator, responder) = bench.roles(side);
        initiator.reaches(&responder.inner()[0])?;
        // Of the end that is ours: it tells for certain.
        let handshake = || bench.ours.dump(&bench.theirs).map(|d| d.latest_handshake);
        let first = handshake()?;
        let stream = initiator.start_stream(&responder.inner()[0], 140)?;
        let longest = stream.finish()?;
        ensure!(longest < Duration::from_secs(1), "{longest:?} of silence");
        let (Some(first), Some(last)) = (first, handshake()?) else {
            bail!("warren-tunnel does not tell when the handshake was");
        };
        ensure!(
            (118..=130).contains(&(last - first)),
            "renewed after {} s",
            last - first
        );
    }
    Ok(())
}
