//! `warren show`: what `wg show` prints, with the nodes' names.

mod fields;
mod human;
mod json;

use std::collections::BTreeMap;

use warren_core::uapi::Device;
use warren_keyring::PublicKey;

pub use fields::fields;
pub use human::{human, humans};
pub use json::json;

use crate::args::{Field, ShowArgs};
use crate::sources::Sources;
use crate::{Environment, Outcome};

/// A device as it is shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShownDevice {
    /// What it tells.
    pub device: Device,
    /// Its key, where the private half is not told: the kernel's stays in the kernel.
    pub hidden_key: Option<PublicKey>,
}

impl From<Device> for ShownDevice {
    fn from(device: Device) -> Self {
        Self {
            device,
            hidden_key: None,
        }
    }
}

impl ShownDevice {
    /// The device's key, if it has one.
    pub fn public_key(&self) -> Option<PublicKey> {
        let private_key = self.device.private_key.as_ref();
        private_key.map(|key| key.public_key()).or(self.hidden_key)
    }
}

/// What stands in the place of a secret key.
pub(crate) const HIDDEN: &str = "(hidden)";

/// A device and the name of its interface.
pub type NamedDevice = (String, ShownDevice);

/// The nodes' names by their keys.
pub type NodeNames = BTreeMap<PublicKey, String>;

/// Runs `warren show`. Fails, as `wg` does, only when nothing could be read.
pub fn run(args: &ShowArgs, environment: &Environment) -> Outcome {
    let sources = Sources::new(args.directories.clone());
    match (args.interface.as_deref(), args.field) {
        (Some("interfaces"), None) => list(&sources, args.json),
        (Some("interfaces"), Some(_)) => {
            let mut outcome = Outcome {
                code: USAGE,
                ..Outcome::default()
            };
            outcome.complain(&"`interfaces` takes no field; give an interface's name, or `all`");
            outcome
        }
        (None | Some("all"), field) => show_all(&sources, args.json, field, environment),
        (Some(name), field) => {
            let mut outcome = Outcome::default();
            match sources.device(name) {
                Ok(device) => {
                    let devices = [(name.to_owned(), device)];
                    outcome.stdout = match field {
                        Some(field) => fields(name, &devices[0].1, field, false),
                        None => people(&sources, &devices, args.json, environment),
                    };
                }
                Err(error) => {
                    outcome.complain(&error);
                    outcome.code = NOTHING_READ;
                }
            }
            outcome
        }
    }
}

const NOTHING_READ: u8 = 1;
const USAGE: u8 = 2;

fn list(sources: &Sources, as_json: bool) -> Outcome {
    let mut outcome = Outcome::default();
    match sources.interfaces() {
        Ok(names) if as_json => {
            outcome.stdout = format!("{}\n", serde_json::Value::from(names));
        }
        // As wg: without an interface there is not even a line.
        Ok(names) if names.is_empty() => {}
        Ok(names) => outcome.stdout = format!("{}\n", names.join(" ")),
        Err(error) => {
            outcome.complain(&error);
            outcome.code = NOTHING_READ;
        }
    }
    outcome
}

fn show_all(
    sources: &Sources,
    as_json: bool,
    field: Option<Field>,
    environment: &Environment,
) -> Outcome {
    let mut outcome = Outcome::default();
    let devices = read_all(sources, &mut outcome);
    match field {
        Some(field) => {
            outcome.stdout = devices
                .iter()
                .map(|(name, device)| fields(name, device, field, true))
                .collect();
        }
        None => outcome.stdout = people(sources, &devices, as_json, environment),
    }
    if devices.is_empty() && outcome.stderr.is_empty() && field.is_none() && !as_json {
        outcome.complain(&format!(
            "no interface has a socket in {}, nor is it one of the kernel's WireGuard; is warren-tunnel \
             running?",
            sources.uapi_dir().display()
        ));
    } else if devices.is_empty() && !outcome.stderr.is_empty() {
        outcome.code = NOTHING_READ;
    }
    outcome
}

/// Reads all devices; complains of those that cannot be read.
pub(crate) fn read_all(sources: &Sources, outcome: &mut Outcome) -> Vec<NamedDevice> {
    let names = sources.interfaces().unwrap_or_else(|error| {
        outcome.complain(&error);
        Vec::new()
    });
    let mut devices = Vec::with_capacity(names.len());
    for name in names {
        match sources.device(&name) {
            Ok(device) => devices.push((name, device)),
            Err(error) => outcome.complain(&error),
        }
    }
    devices
}

fn people(
    sources: &Sources,
    devices: &[NamedDevice],
    as_json: bool,
    environment: &Environment,
) -> String {
    let names = sources.node_names();
    if as_json {
        json(devices, &names, environment)
    } else {
        humans(devices, &names, environment)
    }
}
