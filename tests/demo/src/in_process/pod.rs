//! A pod: an endpoint in memory with one address a family, which answers and sends echo requests,
//! and sends and receives streams.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use anyhow::Result;
use warren_e2e::MARKER;

use super::bulk::{self, Message};
use super::packet::{Body, Inner};

const SENDER_PORT: u16 = 40_000;
const RECEIVER_PORT: u16 = 5201;

/// A pod's name and addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PodAddress {
    /// The number of its node.
    pub(super) node: u8,
    /// As `node1/a`.
    pub(super) name: String,
    pub(super) v4: Ipv4Addr,
    pub(super) v6: Ipv6Addr,
}

impl PodAddress {
    pub(super) fn address(&self, ipv6: bool) -> IpAddr {
        if ipv6 { self.v6.into() } else { self.v4.into() }
    }

    /// Tells whether the pod has this address.
    pub(super) fn has(&self, address: IpAddr) -> bool {
        address == self.address(address.is_ipv6())
    }
}

/// What a sender tells at the end of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) digest: String,
    pub(super) took: Duration,
}

/// What a receiver tells of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Received {
    /// The sender's address as the receiver saw it.
    pub(super) source: IpAddr,
    pub(super) bytes: u64,
    pub(super) digest: String,
    pub(super) complete: bool,
}

/// Echo requests under way, one at a time.
struct Probe {
    target: IpAddr,
    id: u16,
    sequence: u16,
    count: u16,
    sent_at: Instant,
    total: Duration,
    answer: SyncSender<Duration>,
}

/// A stream under way.
struct Stream {
    target: IpAddr,
    sender: bulk::Sender,
    start: Instant,
    answer: SyncSender<Sent>,
}

/// The endpoint.
pub(super) struct Pod {
    pub(super) address: PodAddress,
    /// Packets that were handed to it.
    pub(super) packets_seen: u64,
    probes: u16,
    probe: Option<Probe>,
    stream: Option<Stream>,
    received: BTreeMap<(IpAddr, u16), bulk::Receiver>,
}

impl Pod {
    pub(super) fn new(address: PodAddress) -> Self {
        Self {
            address,
            packets_seen: 0,
            probes: 0,
            probe: None,
            stream: None,
            received: BTreeMap::new(),
        }
    }

    /// Takes a packet, and puts what it answers or sends next into `made`.
    pub(super) fn handle_packet(
        &mut self,
        packet: &[u8],
        made: &mut VecDeque<Vec<u8>>,
    ) -> Result<()> {
        self.packets_seen += 1;
        let Some(inner) = Inner::parse(packet) else {
            return Ok(());
        };
        let answer = |body| Inner {
            source: inner.destination,
            destination: inner.source,
            body,
        };
        match inner.body {
            Body::EchoRequest { id, sequence, data } => {
                let body = Body::EchoReply { id, sequence, data };
                made.push_back(answer(body).to_bytes()?);
            }
            Body::EchoReply { id, sequence, .. } => {
                self.handle_reply(inner.source, id, sequence, made)?;
            }
            Body::Udp {
                source_port,
                destination_port,
                data,
            } => match (destination_port, Message::parse(data)) {
                (
                    RECEIVER_PORT,
                    Some(Message::Block {
                        number,
                        count,
                        bytes,
                    }),
                ) => {
                    let receiver = self.received.entry((inner.source, source_port));
                    let next = receiver.or_default().handle_block(number, count, bytes);
                    if let Some(data) = &next {
                        let body = Body::Udp {
                            source_port: destination_port,
                            destination_port: source_port,
                            data,
                        };
                        made.push_back(answer(body).to_bytes()?);
                    }
                }
                (SENDER_PORT, Some(Message::Next { number })) => {
                    if let Some(stream) = &mut self.stream
                        && stream.target == inner.source
                    {
                        stream.sender.handle_next(number, Instant::now());
                        self.poll(made)?;
                    }
                }
                _ => {}
            },
        }
        Ok(())
    }

    /// Sends what the window has room for, and what was not acknowledged in time.
    pub(super) fn poll(&mut self, made: &mut VecDeque<Vec<u8>>) -> Result<()> {
        let Some(stream) = &mut self.stream else {
            return Ok(());
        };
        if let Some(digest) = stream.sender.finished() {
            let took = stream.start.elapsed();
            // Whoever asked may have given up waiting.
            let _ = stream.answer.try_send(Sent { digest, took });
            self.stream = None;
            return Ok(());
        }
        let now = Instant::now();
        while let Some(data) = stream.sender.poll_message(now) {
            let packet = Inner {
                source: self.address.address(stream.target.is_ipv6()),
                destination: stream.target,
                body: Body::Udp {
                    source_port: SENDER_PORT,
                    destination_port: RECEIVER_PORT,
                    data: &data,
                },
            };
            made.push_back(packet.to_bytes()?);
        }
        Ok(())
    }

    /// Returns when to poll again at the latest.
    pub(super) fn timeout(&self) -> Option<Instant> {
        self.stream.as_ref().map(|stream| stream.sender.timeout())
    }

    /// Begins to send echo requests; the answer is the mean time of the replies. One that is lost
    /// is not sent again, and then there is no answer.
    pub(super) fn ping(
        &mut self,
        target: IpAddr,
        count: u16,
        answer: SyncSender<Duration>,
        made: &mut VecDeque<Vec<u8>>,
    ) -> Result<()> {
        self.probes += 1;
        self.probe = Some(Probe {
            target,
            id: self.probes,
            sequence: 0,
            count,
            sent_at: Instant::now(),
            total: Duration::ZERO,
            answer,
        });
        self.request(made)
    }

    /// Begins to send a stream.
    pub(super) fn send(
        &mut self,
        target: IpAddr,
        blocks: u64,
        answer: SyncSender<Sent>,
        made: &mut VecDeque<Vec<u8>>,
    ) -> Result<()> {
        let start = Instant::now();
        self.stream = Some(Stream {
            target,
            sender: bulk::Sender::new(blocks, start),
            start,
            answer,
        });
        self.poll(made)
    }

    /// Returns what has been received.
    pub(super) fn received(&self) -> Vec<Received> {
        let told = |((source, _), receiver): (&(IpAddr, u16), &bulk::Receiver)| Received {
            source: *source,
            bytes: receiver.bytes(),
            digest: receiver.digest(),
            complete: receiver.complete(),
        };
        self.received.iter().map(told).collect()
    }

    fn handle_reply(
        &mut self,
        source: IpAddr,
        id: u16,
        sequence: u16,
        made: &mut VecDeque<Vec<u8>>,
    ) -> Result<()> {
        let Some(probe) = &mut self.probe else {
            return Ok(());
        };
        if (probe.target, probe.id, probe.sequence) != (source, id, sequence) {
            return Ok(());
        }
        probe.total += probe.sent_at.elapsed();
        probe.sequence += 1;
        if probe.sequence < probe.count {
            return self.request(made);
        }
        let _ = probe
            .answer
            .try_send(probe.total / u32::from(probe.count.max(1)));
        self.probe = None;
        Ok(())
    }

    fn request(&mut self, made: &mut VecDeque<Vec<u8>>) -> Result<()> {
        let Some(probe) = &mut self.probe else {
            return Ok(());
        };
        probe.sent_at = Instant::now();
        let packet = Inner {
            source: self.address.address(probe.target.is_ipv6()),
            destination: probe.target,
            body: Body::EchoRequest {
                id: probe.id,
                sequence: probe.sequence,
                data: MARKER.as_bytes(),
            },
        };
        made.push_back(packet.to_bytes()?);
        Ok(())
    }
}
