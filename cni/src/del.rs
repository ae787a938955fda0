//! DEL: detaches a pod, whatever is left of it.

use warren_netlink::SyncNetlink;

use crate::aliases::Aliases;
use crate::attach;
use crate::config::NetConf;
use crate::env::AttachmentId;
use crate::error::Error;
use crate::ipam::Ipam;

/// Removes the attachment. What is not there is removed already.
///
/// # Errors
/// [`Error::Detach`] with all that went wrong; the rest was removed.
pub(crate) fn del(conf: &NetConf, attachment: &AttachmentId) -> Result<(), Error> {
    let errors = remove(conf, attachment);
    match errors.is_empty() {
        true => Ok(()),
        false => Err(Error::Detach(errors)),
    }
}

/// Removes all of an attachment that can be removed; returns what went wrong.
pub(crate) fn remove(conf: &NetConf, attachment: &AttachmentId) -> Vec<Error> {
    let mut errors = Vec::new();
    let ipam = Ipam::open(&conf.state_dir, &conf.name);
    // An ADD of the same attachment that the runtime gave up is waited for. Without a state
    // directory the interface still goes.
    let _lock = match &ipam {
        Ok(ipam) => ipam.lock(attachment).ok(),
        Err(_) => None,
    };
    let detached = match SyncNetlink::open() {
        Ok(mut host) => attach::detach(&mut host, attachment),
        Err(error) => Err(error.into()),
    };
    if let Err(error) = Aliases::new(&conf.run_dir, &conf.name).withdraw(attachment) {
        errors.push(error.into());
    }
    // While the interface may be there, its address is not free.
    match detached {
        Ok(found) => {
            tracing::debug!(found, "interface removed");
            match ipam.and_then(|ipam| ipam.release(attachment)) {
                Ok(addresses) => tracing::debug!(?addresses, "addresses released"),
                Err(error) => errors.push(error.into()),
            }
        }
        Err(error) => errors.push(error.into()),
    }
    errors
}
