//! GC: removes what belongs to no valid attachment of the network.

use std::collections::BTreeSet;

use warren_core::consts::VETH_PREFIX;
use warren_netlink::Netlink;

use crate::aliases::Aliases;
use crate::attach::{AttachError, remove_link};
use crate::config::NetConf;
use crate::del;
use crate::env::{AttachmentId, ContainerId, IfName};
use crate::error::Error;
use crate::ipam::{Ipam, Reservation};
use crate::plan::{host_name, network_mac};

/// Removes interfaces and reservations that the runtime's list does not have; nothing when it gave
/// no list.
///
/// # Errors
/// [`Error::Detach`] with all that went wrong; the rest was removed. [`Error::Config`] when the list
/// is none: nothing was removed.
pub(crate) async fn gc(conf: &NetConf) -> Result<(), Error> {
    let Some(valid) = conf.valid_attachments()? else {
        tracing::info!("no list of valid attachments: nothing is removed");
        return Ok(());
    };
    let valid: BTreeSet<AttachmentId> = valid.into_iter().collect();
    let host = Netlink::open().map_err(AttachError::from)?;
    let mut errors = Vec::new();
    // Before the reservations: whoever has an interface reserved before.
    let links = host.links().await.map_err(AttachError::from);
    let ipam = Ipam::open(&conf.state_dir, &conf.name)?;
    match ipam.reservations() {
        Ok(reservations) => {
            for stale in reservations.iter().filter_map(id_of) {
                if !valid.contains(&stale) {
                    tracing::info!(attachment = %stale, "not valid any more");
                    errors.append(&mut del::remove(conf, &stale));
                }
            }
        }
        Err(error) => errors.push(error.into()),
    }
    // This network's interfaces whose reservation was lost.
    let mac = Some(network_mac(&conf.state_dir, &conf.name));
    let kept: BTreeSet<String> = valid.iter().map(host_name).collect();
    let strays = match links {
        Ok(mut links) => {
            links.retain(|link| {
                link.name.starts_with(VETH_PREFIX) && link.mac == mac && !kept.contains(&link.name)
            });
            links.into_iter().map(|link| link.name).collect()
        }
        Err(error) => {
            errors.push(error.into());
            Vec::new()
        }
    };
    for name in strays {
        match remove_link(&host, &name).await {
            Ok(true) => tracing::info!(interface = name, "removed: no valid attachment has it"),
            Ok(false) => {}
            Err(error) => errors.push(AttachError::from(error).into()),
        }
    }
    let aliases = Aliases::new(&conf.run_dir, &conf.name);
    match aliases.owners() {
        Ok(owners) => {
            let stale = owners.iter().filter(|owner| !valid.contains(owner));
            let failed = stale.filter_map(|owner| aliases.withdraw(owner).err());
            errors.extend(failed.map(Error::from));
        }
        Err(error) => errors.push(error.into()),
    }
    match errors.is_empty() {
        true => Ok(()),
        false => Err(Error::Detach(errors)),
    }
}

/// The attachment of a reservation, if it names one.
fn id_of(reservation: &Reservation) -> Option<AttachmentId> {
    Some(AttachmentId {
        container_id: ContainerId::new(&*reservation.container_id)?,
        ifname: IfName::new(&*reservation.ifname)?,
    })
}
