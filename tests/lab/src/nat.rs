//! A router that masquerades.

use std::io;
use std::ops::Deref;
use std::sync::Mutex;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

use crate::error::{LabError, Result};
use crate::host::Host;
use crate::space::lock;

/// Port ranges the mappings alternate between, so that a new mapping never has the old port.
const PORTS: [&str; 2] = ["20000-29999", "30000-39999"];

/// A router that masquerades IPv4 to one side. Derefs to [`Host`].
#[derive(Debug)]
pub struct NatRouter {
    host: Host,
    outside: String,
    round: Mutex<usize>,
}

impl NatRouter {
    pub(crate) fn new(host: Host, outside: &str) -> Result<Self> {
        let router = Self {
            host,
            outside: outside.to_owned(),
            round: Mutex::new(0),
        };
        router.load(PORTS[0])?;
        Ok(router)
    }

    /// Forgets every mapping, as a router that restarts: the next packet from inside gets a new
    /// one, maybe with the same port.
    ///
    /// # Errors
    ///
    /// [`LabError::Io`] with the kernel's answer.
    pub fn flush_mappings(&self) -> Result<()> {
        self.host
            .in_netns(flush_conntrack)?
            .map_err(|e| LabError::io(format!("flush the mappings of {}", self.host.name()), e))
    }

    /// Forgets every mapping and takes ports from another range, so that every flow from inside
    /// shows up outside from a port it did not have before.
    ///
    /// # Errors
    ///
    /// [`LabError::Command`] or [`LabError::Io`].
    pub fn remap(&self) -> Result<()> {
        let mut round = lock(&self.round);
        *round += 1;
        self.load(PORTS[*round % PORTS.len()])?;
        self.flush_mappings()
    }

    fn load(&self, ports: &str) -> Result<()> {
        let outside = &self.outside;
        let rules = format!(
            "table ip lab-nat\ndelete table ip lab-nat\ntable ip lab-nat {{\n\
             chain out {{ type nat hook postrouting priority srcnat; policy accept;\n\
             oifname \"{outside}\" meta l4proto {{ tcp, udp }} masquerade to :{ports}\n\
             oifname \"{outside}\" masquerade\n}}\n}}\n"
        );
        self.host
            .configure(&["nft", "-f", "-"], rules.as_bytes())
            .map(drop)
    }
}

impl Deref for NatRouter {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

/// Deletes all connection tracking entries of the calling thread's network namespace.
fn flush_conntrack() -> io::Result<()> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    // nlmsghdr (length, type, flags, sequence, port) and nfgenmsg (family, version, resource):
    // IPCTNL_MSG_CT_DELETE of NFNL_SUBSYS_CTNETLINK without a filter means all.
    let kind = ((libc::NFNL_SUBSYS_CTNETLINK << 8) | 2) as u16;
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
    let mut message = Vec::with_capacity(20);
    message.extend_from_slice(&20_u32.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&flags.to_ne_bytes());
    message.extend_from_slice(&[0; 12]);
    use std::os::fd::AsRawFd as _;
    send(socket.as_raw_fd(), &message, MsgFlags::empty())?;
    let mut answer = [0_u8; 256];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    match answer
        .get(16..20.min(length))
        .and_then(|b| b.try_into().ok())
        .map(i32::from_ne_bytes)
    {
        Some(0) => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(-errno)),
        None => Err(io::Error::other("the kernel's answer is too short")),
    }
}
