//! A way to the API server that a test can cut.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::mpsc;
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use warren_lab::Host;

/// Forwards TCP connections on a host's loopback while it is open.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    /// Whether it is open; nobody sends any more once it ends.
    open: Option<watch::Sender<bool>>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Starts one on the host, open.
    ///
    /// # Errors
    /// Those of the namespace and of the socket.
    pub fn start(host: &Host, target: SocketAddr) -> Result<Self> {
        let (open, state) = watch::channel(true);
        let (sender, receiver) = mpsc::channel();
        let host = host.clone();
        let thread = std::thread::spawn(move || {
            let failed = sender.clone();
            let served = host.in_netns(|| serve(target, state, &sender));
            let problem = served.map_err(anyhow::Error::from).and_then(|done| done);
            if let Err(e) = problem {
                // Nobody listens once the proxy has started.
                let _ = failed.send(Err(e));
            }
        });
        let address = receiver.recv().context("start the proxy")??;
        Ok(Self {
            address,
            open: Some(open),
            thread: Some(thread),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Breaks all connections and takes no new ones until it is opened again.
    pub fn set_open(&self, is_open: bool) {
        if let Some(open) = &self.open {
            open.send_replace(is_open);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.open = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(
    target: SocketAddr,
    state: watch::Receiver<bool>,
    started: &mpsc::Sender<Result<SocketAddr>>,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        // The test waits for it.
        let _ = started.send(Ok(listener.local_addr()?));
        let mut ended = state.clone();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = end(&mut ended) => return Ok(()),
            };
            if let (Ok((stream, _)), true) = (accepted, *state.borrow()) {
                tokio::spawn(forward(stream, target, state.clone()));
            }
        }
    })
}

async fn end(state: &mut watch::Receiver<bool>) {
    while state.changed().await.is_ok() {}
}

async fn forward(mut near: TcpStream, target: SocketAddr, mut state: watch::Receiver<bool>) {
    let Ok(mut far) = TcpStream::connect(target).await else {
        return;
    };
    tokio::select! {
        _ = copy_bidirectional(&mut near, &mut far) => {}
        _ = state.wait_for(|open| !open) => {}
    }
}
