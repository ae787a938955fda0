//! A peer that seals whatever it is told to, also what no honest tunnel would let through.
//!
//! It is made of boringtun itself: `warren-tunnel`'s engine refuses to send what is no IP packet.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use boringtun::noise::{Tunn, TunnResult};
use warren_keyring::{PrivateKey, PublicKey};

/// How long one answer is waited for.
const ANSWER_WAIT: Duration = Duration::from_millis(300);
const ROOM: usize = 65_536 + 64;

/// A session with a tunnel, and all that passed on it.
pub struct Sealer {
    tunn: Tunn,
    socket: UdpSocket,
    to: SocketAddr,
    /// Every datagram of both directions, in order.
    pub recorded: Vec<Vec<u8>>,
}

impl Sealer {
    /// Makes a session by a handshake from `socket`.
    ///
    /// # Errors
    /// When nobody answers within 10 s.
    pub fn connect(
        socket: UdpSocket,
        to: SocketAddr,
        own: &PrivateKey,
        other: &PublicKey,
    ) -> Result<Self> {
        socket.set_read_timeout(Some(ANSWER_WAIT))?;
        let tunn = Tunn::new(own.to_x25519(), other.to_x25519(), None, None, 0x51, None);
        let mut sealer = Self {
            tunn,
            socket,
            to,
            recorded: Vec::new(),
        };
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(30) {
            let mut room = vec![0; ROOM];
            let made = sealer.tunn.format_handshake_initiation(&mut room, true);
            if let TunnResult::WriteToNetwork(initiation) = made {
                let initiation = initiation.to_vec();
                sealer.transmit(&initiation)?;
            }
            if sealer.receive()? {
                return Ok(sealer);
            }
        }
        bail!("{to} has not answered the handshake")
    }

    /// Seals the bytes and sends them.
    ///
    /// # Errors
    /// Without a session, or when the socket refuses.
    pub fn send(&mut self, inner: &[u8]) -> Result<()> {
        let mut room = vec![0; ROOM];
        let TunnResult::WriteToNetwork(sealed) = self.tunn.encapsulate(inner, &mut room) else {
            bail!("{} bytes were not sealed", inner.len());
        };
        let sealed = sealed.to_vec();
        self.transmit(&sealed)
    }

    /// Takes datagrams until none comes for a while; tells whether a session was confirmed.
    ///
    /// # Errors
    /// When the socket refuses to send what is to be answered.
    pub fn receive(&mut self) -> Result<bool> {
        let (mut datagram, mut room) = (vec![0; ROOM], vec![0; ROOM]);
        let mut confirmed = false;
        while let Ok((len, from)) = self.socket.recv_from(&mut datagram) {
            self.recorded.push(datagram[..len].to_vec());
            let taken = self
                .tunn
                .decapsulate(Some(from.ip()), &datagram[..len], &mut room);
            if let TunnResult::WriteToNetwork(answer) = taken {
                let answer = answer.to_vec();
                self.transmit(&answer)?;
                confirmed = true;
            }
        }
        Ok(confirmed)
    }

    fn transmit(&mut self, datagram: &[u8]) -> Result<()> {
        self.socket
            .send_to(datagram, self.to)
            .with_context(|| format!("send to {}", self.to))?;
        self.recorded.push(datagram.to_vec());
        Ok(())
    }
}
