//! The settings under `/proc/sys` that a node of the mesh needs, in the one order that is safe.
//!
//! Forwarding turns every IPv6 device with `accept_ra=1` into one that ignores router
//! advertisements, and the node loses its default route some minutes later: such devices get
//! `accept_ra=2` first.

use std::io;

use warren_core::consts::VETH_PREFIX;
use warren_netlink::sysctl::Settings;

/// The settings, and the devices that have some.
pub trait Knobs {
    /// The names of the devices.
    ///
    /// # Errors
    /// The system's answer.
    fn devices(&self) -> io::Result<Vec<String>>;

    /// Reads a setting.
    ///
    /// # Errors
    /// The system's answer.
    fn read(&self, key: &str) -> io::Result<String>;

    /// Writes a setting.
    ///
    /// # Errors
    /// The system's answer.
    fn write(&mut self, key: &str, value: &str) -> io::Result<()>;
}

impl Knobs for Settings {
    fn devices(&self) -> io::Result<Vec<String>> {
        self.names("net/ipv6/conf")
    }

    fn read(&self, key: &str) -> io::Result<String> {
        Settings::read(self, key)
    }

    fn write(&mut self, key: &str, value: &str) -> io::Result<()> {
        Settings::write(self, key, value)
    }
}

/// Sets what differs and returns what could not be set, for people. Nothing else is touched.
pub fn ensure(knobs: &mut impl Knobs, interface: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let mut note = |result: io::Result<()>| match result {
        Ok(()) => true,
        Err(e) => {
            problems.push(format!("{e}; is it writable for the agent (sysctl-dir)?"));
            false
        }
    };
    let (devices, has_ipv6) = match knobs.devices() {
        Ok(devices) => (devices, true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => (Vec::new(), false),
        Err(e) => (Vec::new(), note(Err(e))),
    };
    // `all` and `default` are no devices, and what new devices get is not ours to say; no pod may
    // tell the node about routers.
    let wanted = |name: &&String| {
        !["all", "default", "lo"].contains(&name.as_str())
            && name.as_str() != interface
            && !name.starts_with(VETH_PREFIX)
    };
    let mut safe = true;
    for device in devices.iter().filter(wanted) {
        let key = format!("net/ipv6/conf/{device}/accept_ra");
        safe &= match knobs.read(&key).as_deref() {
            Ok("1") => note(gone_is_fine(knobs.write(&key, "2"))),
            _ => true,
        };
    }
    note(set(knobs, "net/ipv4/ip_forward", "1"));
    // INVARIANT: forwarding is never switched on while a device would lose its routers by it.
    if has_ipv6 && safe {
        note(gone_is_fine(set(
            knobs,
            "net/ipv6/conf/all/forwarding",
            "1",
        )));
    }
    // The tunnel and the pods' veths forward; other devices are the administrator's.
    let ours = |name: &&String| name.as_str() == interface || name.starts_with(VETH_PREFIX);
    for device in devices.iter().filter(ours) {
        let key = format!("net/ipv4/conf/{device}/forwarding");
        note(gone_is_fine(set(knobs, &key, "1")));
    }
    // The strictest of `all` and the device's counts; 2 is "loose", which the tunnel needs.
    let key = format!("net/ipv4/conf/{interface}/rp_filter");
    note(gone_is_fine(set(knobs, &key, "2")));
    problems
}

fn set(knobs: &mut impl Knobs, key: &str, value: &str) -> io::Result<()> {
    if knobs.read(key)? == value {
        return Ok(());
    }
    tracing::info!(key, value, "set a kernel setting");
    knobs.write(key, value)
}

/// Devices come and go; one that is gone needs nothing.
fn gone_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Default)]
    struct Fake {
        values: BTreeMap<String, String>,
        written: Vec<String>,
        read_only: bool,
        asked: RefCell<Vec<String>>,
    }

    impl Fake {
        fn with(values: &[(&str, &str)]) -> Self {
            let values = values
                .iter()
                .map(|(k, v)| ((*k).into(), (*v).into()))
                .collect();
            Self {
                values,
                ..Self::default()
            }
        }
    }

    impl Knobs for Fake {
        fn devices(&self) -> io::Result<Vec<String>> {
            let names = self.values.keys().filter_map(|key| {
                Some(
                    key.strip_prefix("net/ipv6/conf/")?
                        .split_once('/')?
                        .0
                        .to_owned(),
                )
            });
            Ok(names.collect())
        }

        fn read(&self, key: &str) -> io::Result<String> {
            self.asked.borrow_mut().push(key.into());
            self.values
                .get(key)
                .cloned()
                .ok_or_else(|| io::ErrorKind::NotFound.into())
        }

        fn write(&mut self, key: &str, value: &str) -> io::Result<()> {
            if self.read_only {
                return Err(io::ErrorKind::ReadOnlyFilesystem.into());
            }
            self.written.push(format!("{key}={value}"));
            self.values.insert(key.into(), value.into());
            Ok(())
        }
    }

    const HOST: &[(&str, &str)] = &[
        ("net/ipv4/ip_forward", "0"),
        ("net/ipv4/conf/warren0/rp_filter", "1"),
        ("net/ipv6/conf/all/forwarding", "0"),
        ("net/ipv6/conf/all/accept_ra", "1"),
        ("net/ipv6/conf/default/accept_ra", "1"),
        ("net/ipv6/conf/eth0/accept_ra", "1"),
        ("net/ipv6/conf/eth1/accept_ra", "0"),
        ("net/ipv6/conf/warren0/accept_ra", "1"),
        ("net/ipv6/conf/wrn12345678/accept_ra", "1"),
    ];

    #[test]
    fn devices_keep_their_routers_before_forwarding_is_switched_on() {
        let mut knobs = Fake::with(HOST);
        assert_eq!(ensure(&mut knobs, "warren0"), Vec::<String>::new());
        assert_eq!(
            knobs.written,
            [
                "net/ipv6/conf/eth0/accept_ra=2",
                "net/ipv4/ip_forward=1",
                "net/ipv6/conf/all/forwarding=1",
                "net/ipv4/conf/warren0/rp_filter=2",
            ]
        );
    }

    #[test]
    fn nothing_is_written_when_all_is_as_it_should_be() {
        let mut knobs = Fake::with(HOST);
        ensure(&mut knobs, "warren0");
        knobs.written.clear();
        knobs.read_only = true;
        assert_eq!(ensure(&mut knobs, "warren0"), Vec::<String>::new());
        assert_eq!(knobs.written, Vec::<String>::new());
    }

    #[test]
    fn a_tunnel_that_is_not_there_yet_is_no_problem() {
        let mut knobs = Fake::with(&HOST[..1]);
        knobs
            .values
            .insert("net/ipv6/conf/all/forwarding".into(), "1".into());
        assert_eq!(ensure(&mut knobs, "warren0"), Vec::<String>::new());
    }

    #[test]
    fn what_cannot_be_written_is_a_problem_and_forwarding_waits_for_the_routers() {
        let mut knobs = Fake::with(HOST);
        knobs.read_only = true;
        let problems = ensure(&mut knobs, "warren0");
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert!(
            problems.iter().all(|p| p.contains("is it writable")),
            "{problems:?}"
        );
        assert!(
            !knobs
                .asked
                .borrow()
                .contains(&"net/ipv6/conf/all/forwarding".to_owned())
        );
    }
}
