//! The helper program that tests run inside hosts and pods. Each subcommand prints its result as
//! one line of JSON on standard output.

mod hold;
mod raw;
mod stream;
mod tcp;
mod udp;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Parser, Subcommand};

/// Set by SIGINT and SIGTERM: long-running subcommands then print their result and end.
static STOP: AtomicBool = AtomicBool::new(false);

#[derive(Debug, Parser)]
#[command(name = "lab-tool", about = "Traffic for network tests; prints JSON")]
struct Arguments {
    #[command(subcommand)]
    command: Tool,
}

#[derive(Debug, Subcommand)]
enum Tool {
    /// Accept TCP connections, digest what each sends and answer with a line of JSON
    TcpServe {
        /// Address to listen on
        #[arg(long, default_value = "::")]
        address: std::net::IpAddr,
        /// Port to listen on
        #[arg(long)]
        port: u16,
    },
    /// Send pseudo-random bytes to a tcp-serve and compare digests
    TcpSend(tcp::Send),
    /// Send every UDP datagram back to where it came from
    UdpEcho {
        /// Address to listen on
        #[arg(long, default_value = "::")]
        address: std::net::IpAddr,
        /// Port to listen on
        #[arg(long)]
        port: u16,
    },
    /// Send numbered datagrams to a udp-echo and count what comes back
    UdpPing(udp::Ping),
    /// Accept connections of stream-send and echo them
    StreamServe {
        /// Address to listen on
        #[arg(long, default_value = "::")]
        address: std::net::IpAddr,
        /// Port to listen on
        #[arg(long)]
        port: u16,
    },
    /// Keep a TCP connection busy with numbers and report the longest time without an answer
    StreamSend(stream::Send),
    /// Send a frame given in hex on an interface as it is
    SendRaw(raw::SendRaw),
    /// Make a lab of two hosts on a switch and hold it until standard input ends
    HoldLab,
}

fn main() -> anyhow::Result<()> {
    let tool = Arguments::parse().command;
    if !matches!(tool, Tool::HoldLab) {
        stop_on_signals()?;
    }
    match tool {
        Tool::TcpServe { address, port } => tcp::serve(SocketAddr::new(address, port)),
        Tool::TcpSend(send) => send.run(),
        Tool::UdpEcho { address, port } => udp::echo(SocketAddr::new(address, port)),
        Tool::UdpPing(ping) => ping.run(),
        Tool::StreamServe { address, port } => stream::serve(SocketAddr::new(address, port)),
        Tool::StreamSend(send) => send.run(),
        Tool::SendRaw(send) => send.run(),
        Tool::HoldLab => hold::run(),
    }
}

fn stop_on_signals() -> anyhow::Result<()> {
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
    extern "C" fn on_signal(_: libc::c_int) {
        // The second signal ends the program even where it is blocked in a system call.
        if STOP.swap(true, Ordering::Relaxed) {
            // SAFETY: `_exit` is async-signal-safe.
            unsafe { libc::_exit(130) }
        }
    }
    let action = SigAction::new(
        SigHandler::Handler(on_signal),
        SaFlags::empty(),
        SigSet::empty(),
    );
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: the handler only touches an atomic and may call `_exit`.
        unsafe { sigaction(signal, &action)? };
    }
    Ok(())
}

fn stopped() -> bool {
    STOP.load(Ordering::Relaxed)
}

/// An IPv4 peer of a dual-stack socket shows up as a mapped address; tests compare plain ones.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
