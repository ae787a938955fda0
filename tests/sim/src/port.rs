//! The reconcile's seams onto a simulated machine.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::io::{Error, ErrorKind};
use std::net::IpAddr;
use std::rc::Rc;

use warren_agent::dataplane::{DataPlane, DataPlaneError, DeviceState};
use warren_agent::files::FileError;
use warren_agent::host::{Host, HostError, Underlay, UnderlayQuery};
use warren_agent::registry::{NodeRegistry, OwnRecord, RegistryError, RegistryReport};
use warren_agent::store::Store;
use warren_core::files::{NodeFile, SavedView, ViewChange};
use warren_core::{Change, ObservedState};

use crate::entry::Entry;
use crate::machine::Machine;
use crate::mutation::Mutation;
use crate::oracle::path_mtu;
use crate::shelf::Saved;

/// A machine, as its agent reaches it. Every answer is there at once, but for that of a machine
/// whose agent is killed at this moment: it never comes, and the reconcile is dropped.
#[derive(Clone, Debug)]
pub struct Port(pub Rc<RefCell<Machine>>);

impl Port {
    async fn operate(&self) {
        let killed = self.0.borrow_mut().burns();
        if killed {
            pending::<()>().await;
        }
    }
}

impl Host for Port {
    fn prepare(&mut self) -> Vec<String> {
        Vec::new()
    }

    async fn observe(&mut self) -> Result<ObservedState, HostError> {
        self.operate().await;
        Ok(self.0.borrow().kernel.clone())
    }

    async fn apply(&mut self, change: &Change) -> Result<(), HostError> {
        self.operate().await;
        let mut machine = self.0.borrow_mut();
        if machine.fails() {
            let change = format!("{change:?}");
            return Err(HostError::NotMine { change });
        }
        machine.apply_host(change);
        Ok(())
    }

    async fn underlay(&mut self, query: &UnderlayQuery) -> Result<Underlay, HostError> {
        self.operate().await;
        let machine = self.0.borrow();
        let asked: &BTreeSet<IpAddr> = &query.endpoints;
        Ok(Underlay {
            addresses: machine.addresses.clone(),
            mtu_bytes: machine.mtu,
            troubles: BTreeMap::new(),
            down: BTreeSet::new(),
            path_mtu: asked
                .iter()
                .map(|to| (*to, path_mtu(machine.mtu, *to)))
                .collect(),
        })
    }

    fn filter_drops(&self) -> BTreeMap<String, u64> {
        BTreeMap::new()
    }
}

impl DataPlane for Port {
    async fn observe(&mut self) -> Result<DeviceState, DataPlaneError> {
        self.operate().await;
        let mut machine = self.0.borrow_mut();
        if machine.mutation == Some(Mutation::RemovesBeforeSync) {
            machine.remove_unplanned();
        }
        let Some(device) = &machine.device else {
            return Err(nobody_listens());
        };
        let mut state = device.state();
        if machine.mutation == Some(Mutation::ResetsEndpoints) {
            state.peers.iter_mut().for_each(|peer| peer.endpoint = None);
        }
        Ok(state)
    }

    async fn apply(&mut self, changes: &[Change]) -> Result<(), DataPlaneError> {
        self.operate().await;
        let mut machine = self.0.borrow_mut();
        if machine.device.is_none() {
            return Err(nobody_listens());
        }
        machine.apply_peers(changes);
        Ok(())
    }
}

fn nobody_listens() -> DataPlaneError {
    DataPlaneError::Connect {
        path: "/simulated".into(),
        source: ErrorKind::NotFound.into(),
    }
}

impl Store for Port {
    fn save_view(&mut self, view: &SavedView) -> Result<(), FileError> {
        let mut machine = self.0.borrow_mut();
        machine.disk.view = Saved::write(view, &machine.shelf);
        machine.disk.saved = true;
        Ok(())
    }

    fn add_to_view(&mut self, change: &ViewChange) -> Result<bool, FileError> {
        let mut machine = self.0.borrow_mut();
        let mut view = machine.disk.view.read();
        view.apply(change.clone());
        machine.disk.view = Saved::write(&view, &machine.shelf);
        // Endpoints alone say nothing of who holds what.
        machine.disk.saved |= !change.nodes.is_empty();
        Ok(true)
    }

    fn save_node(&mut self, _: &NodeFile) -> Result<(), FileError> {
        Ok(())
    }

    fn install_cni(&mut self) -> Result<bool, FileError> {
        let mut machine = self.0.borrow_mut();
        if !machine.has_pods {
            machine.fault("pods are allowed on a node that is not protected".into());
        }
        Ok(!std::mem::replace(&mut machine.disk.cni, true))
    }
}

impl NodeRegistry for Port {
    async fn next(&mut self) -> RegistryReport {
        pending().await
    }

    async fn publish(&mut self, own: &OwnRecord) -> Result<bool, RegistryError> {
        self.operate().await;
        let mut machine = self.0.borrow_mut();
        let desk = &mut machine.registry;
        if !desk.reachable {
            return Err(RegistryError::File(FileError::Io {
                operation: "write",
                path: "/simulated".into(),
                source: Error::from(ErrorKind::HostUnreachable),
            }));
        }
        let old = desk.own.as_ref().map(|listed| &listed.entry);
        let new = Entry::published(old, own);
        let differs = old != Some(&new);
        desk.written = differs.then_some(new);
        Ok(differs)
    }
}
