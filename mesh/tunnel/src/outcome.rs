//! What the session layer answers: lengths of messages in the caller's buffer, and what they mean.

/// What became of a packet that was to be sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Sealed {
    /// The data message's length.
    Data(usize),
    /// No usable key pair: the packet has to wait, and a handshake is due.
    NotReady,
    /// boringtun has thrown its key pair away since; it keeps the packet itself and this may be an
    /// initiation of that length.
    Kept(Option<usize>),
}

/// What an authentic data message carried.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Opened {
    pub(crate) kind: OpenedKind,
    /// This was the first message on its key pair: our handshake as a responder is complete.
    pub(crate) completed: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum OpenedKind {
    /// An inner packet of that length, padding cut off.
    Packet(usize),
    Keepalive,
    /// Neither IPv4 nor IPv6.
    Malformed,
}

/// What a tick brought about.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Ticked {
    /// The length of a message to send.
    pub(crate) message: Option<usize>,
    /// The handshake was given up just now: what waits for it is to be dropped.
    pub(crate) gave_up: bool,
}
