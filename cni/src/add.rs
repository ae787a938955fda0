//! ADD: attaches a pod, or leaves nothing behind.

use std::path::Path;

use serde_json::Value;
use warren_netlink::SyncNetlink;

use crate::aliases::Aliases;
use crate::attach::{self, AttachError, Pod};
use crate::config::NetConf;
use crate::env::PodRequest;
use crate::error::Error;
use crate::ipam::{Ipam, Wanted, ranges};
use crate::plan::{AttachPlan, plan_add};
use crate::protect;
use crate::result::CniResult;

/// Attaches the pod; returns the result for the runtime.
///
/// # Errors
/// [`Error`]; what was made is gone again, but for what [`AttachError::Undo`] names.
pub(crate) fn add(conf: &NetConf, request: &PodRequest) -> Result<Value, Error> {
    let pod_conf = conf.pod()?;
    let previous = CniResult::from_prev(conf.prev_result.as_ref())?;
    let node = protect::load_node(&conf.state_dir)?;
    let mut host = SyncNetlink::open().map_err(AttachError::from)?;
    protect::check(&mut host, &node)?;
    protect::check_masquerade(pod_conf.masquerade)?;
    // All that can be refused is refused before an address is taken.
    let pod = Pod::open(&request.netns)?;
    let ipam = Ipam::open(&conf.state_dir, &conf.name)?;
    let ranges = ranges(&pod_conf, &node)?;
    protect::check_families(&ranges)?;
    let mut requested = pod_conf.asked.ips.clone();
    if requested.is_empty() {
        requested.extend(request.args.ip);
    }
    let _lock = ipam.lock(&request.attachment)?;
    if !requested.is_empty() {
        // Before an earlier ADD's pod loses its reservation to what this one asks for.
        pod.refuse_taken(&request.attachment.ifname)?;
    }
    let granted = ipam.reserve(&Wanted {
        owner: &request.attachment,
        pod: request.args.pod.as_deref(),
        ranges: &ranges,
        addresses: &requested,
    })?;
    // What is left of a pod keeps its address, and so does an earlier ADD's pod.
    let mut left = false;
    let mut make = || -> Result<AttachPlan, Error> {
        let mac = pod_conf.asked.mac.or(request.args.mac);
        let attachment = &request.attachment;
        let plan = plan_add(attachment, &granted.addresses, &node, &pod_conf, mac)?;
        attach::attach(&mut host, &pod, &plan)?;
        let aliases = Aliases::new(&conf.run_dir, &conf.name);
        let names = &pod_conf.asked.aliases;
        if let Err(error) = aliases.publish(attachment, &granted.addresses, names) {
            if let Err(undo) = attach::detach(&mut host, attachment) {
                left = true;
                tracing::warn!(error = %undo, "the interface stays until DEL");
            }
            return Err(error.into());
        }
        Ok(plan)
    };
    let plan: AttachPlan = match make() {
        Ok(plan) => plan,
        Err(error) => {
            left |= matches!(error, Error::Attach(AttachError::Undo { .. }));
            if granted.fresh
                && !left
                && let Err(undo) = ipam.give_back(&request.attachment)
            {
                tracing::warn!(error = %undo, "the addresses stay reserved until DEL");
            }
            return Err(error);
        }
    };
    tracing::debug!(interface = plan.host.name, addresses = ?granted.addresses, "attached");
    let netns = netns_text(&request.netns);
    Ok(plan
        .extend(previous, &netns, &pod_conf)
        .to_json(conf.version))
}

/// The namespace's path as the result tells it.
fn netns_text(netns: &Path) -> String {
    netns.to_string_lossy().into_owned()
}
