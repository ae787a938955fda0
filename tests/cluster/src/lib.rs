//! A real Kubernetes on one machine, and Warren installed on it as a user would.
//!
//! ```text
//!                        gateway 192.0.2.254, 2001:db8::fe: a host outside the cluster
//!                                     |
//!  ---------------- lan: the underlay, captured, knows of no pod ----------------
//!        |                            |                            |
//!  node1 192.0.2.1              node2 192.0.2.2              node3 192.0.2.3
//!        2001:db8::1                  2001:db8::2                  2001:db8::3
//!  containerd, kubelet, kube-proxy    the same                     the same
//!  etcd, kube-apiserver,
//!  kube-controller-manager, kube-scheduler
//! ```
//!
//! A node is a lab host with namespaces and control groups of its own, so that nothing of it
//! outlives the test's process. All programs are the real ones; images are made locally and imported,
//! for no registry is there. What is in here is the harness: [`Cluster`] and its [`Node`]s, the
//! [`probe`] in the pods, and what goes on with Warren ([`warren`]). What must pass is in
//! [`scenarios`], one file each.

pub mod cluster;
mod dns;
mod kubectl;
mod machine;
pub mod node;
pub mod places;
pub mod probe;
pub mod run;
pub mod scenarios;
pub mod settings;
pub mod warren;

pub use cluster::Cluster;
pub use node::Node;
pub use settings::{ProxyMode, ProxySettings};
