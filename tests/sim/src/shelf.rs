//! Files of a thousand nodes that say the same: each text is kept once.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;

use warren_core::files::SavedView;
use warren_core::{NodeRecord, NodeView};
use warren_keyring::PublicKey;

/// Every view and record that some machine has on its disk.
#[derive(Debug, Default)]
pub struct Shelf {
    views: RefCell<BTreeMap<String, Vec<Rc<NodeView>>>>,
    records: RefCell<BTreeMap<String, Vec<Rc<NodeRecord>>>>,
}

/// A saved view on a machine's disk.
#[derive(Clone, Debug, Default)]
pub struct Saved {
    views: Vec<Rc<NodeView>>,
    incumbents: Vec<Rc<NodeRecord>>,
    /// The published endpoint that each peer was last given.
    pub applied_endpoints: BTreeMap<PublicKey, SocketAddr>,
}

impl Saved {
    /// Writes a view.
    pub fn write(view: &SavedView, shelf: &Shelf) -> Self {
        let (mut views, mut records) = (shelf.views.borrow_mut(), shelf.records.borrow_mut());
        Self {
            views: view
                .views
                .iter()
                .map(|view| share(&mut views, &view.name, view))
                .collect(),
            incumbents: view
                .incumbents
                .iter()
                .map(|record| share(&mut records, record.name.as_str(), record))
                .collect(),
            applied_endpoints: view.applied_endpoints.clone(),
        }
    }

    /// Reads it back.
    pub fn read(&self) -> SavedView {
        SavedView {
            views: self.views.iter().map(|view| (**view).clone()).collect(),
            incumbents: self.incumbents.iter().map(|r| (**r).clone()).collect(),
            applied_endpoints: self.applied_endpoints.clone(),
        }
    }
}

/// The one copy of `what`.
fn share<T: Clone + PartialEq>(
    of: &mut BTreeMap<String, Vec<Rc<T>>>,
    name: &str,
    what: &T,
) -> Rc<T> {
    let known = of.entry(name.to_owned()).or_default();
    // The newest is the likeliest.
    if let Some(same) = known.iter().rev().find(|known| ***known == *what) {
        return Rc::clone(same);
    }
    let new = Rc::new(what.clone());
    known.push(Rc::clone(&new));
    new
}
