//! Who may write what of a Node, with the manifests that are shipped, real tokens, and the real API server.
//!
//! ```text
//!  host control-plane: etcd, kube-apiserver, kube-controller-manager
//!  Nodes node1, node2; on each a Pod of warren-agent, whose token is bound to it
//! ```
//!
//! What is denied is tried again once the bindings are deleted, and must succeed then.

mod agent;
mod annotations;
mod cluster;
mod cost;
mod manifests;
mod rbac;
mod tokens;
