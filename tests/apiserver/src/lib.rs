//! A bare Kubernetes control plane on a lab host: etcd, kube-apiserver with RBAC and NodeRestriction,
//! and kube-controller-manager, which gives each Node its podCIDRs. All are the real programs, built
//! by `tests/kubernetes/prepare`.
//!
//! What it refuses to do: run pods. Nodes are objects that tests make.

#![forbid(unsafe_code)]

mod certificates;
mod client;
mod control_plane;
mod lossy;
mod manifests;
mod programs;
mod proxy;
mod tokens;
mod write;

pub use client::{Identity, block_on};
pub use control_plane::{ControlPlane, Options};
pub use lossy::{Lossy, Spoilt};
pub use manifests::{apply, apply_shipped, rendered, set_policies_in_force};
pub use programs::{program, skip_reason};
pub use proxy::Proxy;
pub use tokens::{AGENT, Binding, agent_pod, secret_token, token};
pub use write::{Form, Outcome, send, write};
