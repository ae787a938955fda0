//! Captures that judge every packet as it passes.

use crate::space::Space;

/// A place to capture: one interface of a host, pod or switch; sees both directions.
#[derive(Debug, Clone)]
pub struct Tap {
    space: Space,
    ifname: String,
    name: String,
}

impl Tap {
    pub(crate) fn new(space: &Space, ifname: &str) -> Self {
        let name = format!("{}:{ifname}", space.name());
        Self {
            space: space.clone(),
            ifname: ifname.to_owned(),
            name,
        }
    }

    pub(crate) fn named(self, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ..self
        }
    }
}
