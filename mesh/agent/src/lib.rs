//! The mesh controller of Warren: it learns of the nodes, tells of its own, plans by
//! `warren-core`, and applies the difference to the kernel and to the WireGuard device.
//!
//! What it refuses to do: it holds no private key, starts no tunnel, carries no packet, and takes
//! nothing back when it exits, so that its restart touches no traffic. It remembers nothing that
//! the kernel or the tunnel can be asked.
//!
//! Its seams are [`registry::NodeRegistry`] (what tells of nodes), [`dataplane::DataPlane`] (the
//! WireGuard device), [`host::Host`] (the node's kernel) and [`store::Store`] (its disk);
//! [`reconcile::Reconciler`] joins them and does no I/O of its own, [`pace::Pace`] says when without
//! a clock, and [`run`](mod@run) waits for that.

#![deny(unsafe_code)]

pub mod cni_chain;
pub mod cni_config;
pub mod concern;
pub mod config;
pub mod dataplane;
pub mod files;
pub mod host;
pub mod http;
pub mod local;
pub mod lock;
pub mod metrics;
pub mod pace;
pub mod reconcile;
pub mod registry;
pub mod run;
pub mod snapshot;
pub mod status;
pub mod status_server;
pub mod store;
pub mod tunnel_socket;
pub mod uninstall;
