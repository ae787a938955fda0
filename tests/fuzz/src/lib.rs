//! What the fuzz targets share: an engine with a live session to a peer that seals anything.

pub mod mesh;

use std::net::SocketAddr;

use boringtun::noise::{Tunn, TunnResult};
use warren_core::uapi::Request;
use warren_keyring::PrivateKey;
use warren_tunnel::{Engine, EngineConfig, Now, Outbox};

/// After so many inputs everything is made anew: sessions age, and a finding must be repeatable.
const ROUNDS: u32 = 4096;

/// An engine, and a peer of it that has 10.9.0.0/16 and fd09::/64.
pub struct Scene {
    /// What is attacked.
    pub engine: Engine,
    /// Its output.
    pub out: Outbox,
    /// The peer.
    pub peer: Tunn,
    /// Where the peer is.
    pub address: SocketAddr,
    /// A real message of each kind, in the order of WireGuard's types.
    pub messages: [Vec<u8>; 4],
    rounds: u32,
}

impl Scene {
    /// Makes the engine and the session. Keys are fixed: an input must mean the same each time.
    pub fn new() -> Self {
        let key = |byte: u8| PrivateKey::from_bytes([byte; 32]).expect("a constant that is a key");
        let (own, other) = (key(0x41), key(0x62));
        let address: SocketAddr = "192.0.2.9:51871".parse().expect("a constant");
        let mut engine = Engine::new(EngineConfig::new(Some(own.clone()), 7));
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let set = format!(
            "set=1\npublic_key={}\nendpoint={address}\nallowed_ip=10.9.0.0/16\n\
             allowed_ip=fd09::/64\npublic_key={}\nallowed_ip=10.9.77.0/24\n\n",
            hex(other.public_key().as_bytes()),
            hex(key(0x13).public_key().as_bytes()),
        );
        let Ok(Request::Set(set)) = Request::parse(&set) else {
            panic!("the request is a constant, and good");
        };
        let now = Now::read();
        engine
            .apply(now, &set)
            .expect("three peers are not too many");
        let mut peer = Tunn::new(
            other.to_x25519(),
            own.public_key().to_x25519(),
            None,
            None,
            5,
            None,
        );
        let mut out = Outbox::new();
        let mut room = vec![0; 2048];
        let initiation = made(peer.format_handshake_initiation(&mut room, true));
        engine.handle_datagram(now, address, &initiation, &mut out);
        let (_, response) = out.datagrams().next().expect("a response");
        let response = response.to_vec();
        out.clear();
        let keepalive = made(peer.decapsulate(None, &response, &mut room));
        engine.handle_datagram(now, address, &keepalive, &mut out);
        out.clear();
        assert_eq!(engine.counters().handshakes, 1, "the session is not there");
        let data = made(peer.encapsulate(&[0x45; 60], &mut room));
        let mut cookie = response[..64].to_vec();
        cookie[0] = 3;
        cookie[4..8].copy_from_slice(&response[8..12]);
        Self {
            engine,
            out,
            peer,
            address,
            messages: [initiation, response, cookie, data],
            rounds: 0,
        }
    }

    /// Makes everything anew once in a while; call it before each input.
    pub fn refresh(&mut self) {
        self.rounds += 1;
        if self.rounds > ROUNDS {
            *self = Self::new();
        }
    }
}

impl Default for Scene {
    fn default() -> Self {
        Self::new()
    }
}

/// The bytes that boringtun has made.
pub fn made(result: TunnResult<'_>) -> Vec<u8> {
    match result {
        TunnResult::WriteToNetwork(bytes) => bytes.to_vec(),
        _ => panic!("boringtun made no message"),
    }
}
