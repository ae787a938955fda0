//! Frames sent as they are, for spoofing tests.

use std::io;

use anyhow::{Context as _, bail};
use serde_json::json;

/// What the given bytes begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Layer {
    /// An Ethernet header
    Ethernet,
    /// An IP header; the Ethernet header is made, to --to
    Ip,
}

#[derive(Debug, clap::Args)]
pub(crate) struct SendRaw {
    /// The interface to send on
    ifname: String,
    /// The frame in hex; spaces and colons are ignored
    hex: String,
    /// What the frame begins with
    #[arg(long, value_enum, default_value = "ethernet")]
    layer: Layer,
    /// Hardware address for an IP packet on an Ethernet interface
    #[arg(long, default_value = "ff:ff:ff:ff:ff:ff")]
    to: String,
    /// How often to send it
    #[arg(long, default_value_t = 1)]
    count: u32,
}

impl SendRaw {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let frame = bytes(&self.hex).context("parse the frame")?;
        let hardware = bytes(&self.to).context("parse the hardware address")?;
        let (kind, protocol) = match (self.layer, frame.first().map(|b| b >> 4)) {
            (Layer::Ethernet, _) => match frame.get(12..14) {
                Some(&[high, low]) => (libc::SOCK_RAW, u16::from_be_bytes([high, low])),
                _ => bail!("the frame is shorter than an Ethernet header"),
            },
            (Layer::Ip, Some(4)) => (libc::SOCK_DGRAM, 0x0800),
            (Layer::Ip, Some(6)) => (libc::SOCK_DGRAM, 0x86dd),
            (Layer::Ip, _) => bail!("the packet is neither IPv4 nor IPv6"),
        };
        for _ in 0..self.count {
            send(&self.ifname, kind, protocol, &hardware, &frame)
                .with_context(|| format!("send on {}", self.ifname))?;
        }
        println!("{}", json!({ "sent": self.count, "bytes": frame.len() }));
        Ok(())
    }
}

fn send(ifname: &str, kind: i32, protocol: u16, hardware: &[u8], frame: &[u8]) -> io::Result<()> {
    use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
    let index = nix::net::if_::if_nametoindex(ifname)?;
    // SAFETY: plain integers; the result is checked.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = index as i32;
    address.sll_halen = 6;
    for (to, byte) in address.sll_addr.iter_mut().zip(hardware.iter().take(6)) {
        *to = *byte;
    }
    // SAFETY: both pointer and length pairs describe values that outlive the call.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    };
    if sent < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn bytes(hex: &str) -> anyhow::Result<Vec<u8>> {
    let digits = hex.chars().filter(|c| !c.is_whitespace() && *c != ':');
    let digits = digits
        .map(|c| {
            c.to_digit(16)
                .map(|d| d as u8)
                .with_context(|| format!("{c:?} is not hex"))
        })
        .collect::<anyhow::Result<Vec<u8>>>()?;
    if digits.len() % 2 == 1 {
        bail!("an odd number of hex digits");
    }
    Ok(digits
        .chunks_exact(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect())
}
