//! Hosts, switches and pods.

use std::ops::Deref;
use std::path::PathBuf;

use crate::capture::Tap;
use crate::cgroup;
use crate::directory;
use crate::error::{LabError, Result};
use crate::link::{End, Link};
use crate::space::{Space, lock};

/// A machine of the lab. Cheap to clone; derefs to [`Space`] for running commands.
#[derive(Debug, Clone)]
pub struct Host {
    space: Space,
}

impl Host {
    pub(crate) fn new(space: Space) -> Self {
        Self { space }
    }

    /// Names one of its interfaces as the end of a link to be made.
    pub fn end(&self, ifname: &str) -> End {
        End::new(self.clone(), ifname)
    }

    /// A capture point on one of its interfaces, such as `warren0`.
    pub fn tap(&self, ifname: &str) -> Tap {
        Tap::new(&self.space, ifname)
    }

    /// Makes control groups for it, one in each of the machine's [`hierarchies`](crate::hierarchies) and in
    /// their order, unless they are there. They stay over a reboot and end with the lab.
    ///
    /// # Errors
    ///
    /// [`LabError::Io`] naming the group.
    pub fn cgroups(&self) -> Result<Vec<PathBuf>> {
        let lab = self.space.inner.lab.dir.file_name().unwrap_or_default();
        cgroup::create(&PathBuf::from(lab).join(self.name()))
    }

    /// Kills every process in it, pods included, and makes its namespaces anew; [`Space::dir`]
    /// stays, and its links are made again as [`crate::Lab::connect`] made them, with their faults.
    /// Routes, sysctls, nftables and pods are gone, as after a real reboot.
    ///
    /// # Errors
    ///
    /// [`LabError::Namespaces`], or [`LabError::Command`] for a link that cannot be made again.
    pub fn reboot(&self) -> Result<()> {
        let lab = &self.space.inner.lab;
        let links: Vec<Link> = lock(&lab.links).clone();
        let ours: Vec<_> = links
            .into_iter()
            .filter(|l| l.touches(&self.space))
            .collect();
        for link in &ours {
            link.unplug()?;
        }
        for pod in lab.spaces_below(self.name()) {
            pod.shut_down();
            lab.remove_space(&pod);
        }
        self.space.shut_down();
        self.space.boot(lab.parent())?;
        for link in &ours {
            link.plug()?;
        }
        Ok(())
    }

    /// Makes a pod's network namespace on this host, as a container runtime would: with a first
    /// process of its own and bound to `/run/netns/<name>`, but without any interface but `lo`.
    ///
    /// # Errors
    ///
    /// [`LabError::Name`], [`LabError::Namespaces`], [`LabError::Command`].
    pub fn pod_netns(&self, name: &str) -> Result<Pod> {
        directory::check_name(name)?;
        let full = format!("{}/{name}", self.name());
        let lab = &self.space.inner.lab;
        if lab.has_space(&full) {
            return Err(LabError::Name {
                name: full,
                why: "it is in use in this lab",
            });
        }
        let spaces = self.space.spaces()?;
        let space = Space::new(lab, &full, name, (&spaces.pid, &spaces.mnt))?;
        let pod = Pod {
            space,
            host: self.clone(),
            path: format!("/run/netns/{name}").into(),
        };
        let bind = pod.inner_pid().and_then(|pid| {
            let path = pod.path.display();
            self.sh(&format!(
                "touch {path} && mount --bind /proc/{pid}/ns/net {path}"
            ))
        });
        if let Err(e) = bind {
            pod.space.shut_down();
            return Err(e);
        }
        lab.add_space(&pod.space);
        Ok(pod)
    }
}

impl Deref for Host {
    type Target = Space;

    fn deref(&self) -> &Space {
        &self.space
    }
}

/// A pod's namespaces on a host. Derefs to [`Space`]; ends with [`Pod::destroy`], its host's reboot
/// or its lab, not when dropped.
#[derive(Debug, Clone)]
pub struct Pod {
    space: Space,
    host: Host,
    path: PathBuf,
}

impl Pod {
    /// The host it is on.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The path of its network namespace as programs on its host see it: what `CNI_NETNS` carries.
    /// [`Space::netns_path`] is the one for the test itself.
    pub fn cni_netns(&self) -> &std::path::Path {
        &self.path
    }

    /// A capture point on one of its interfaces.
    pub fn tap(&self, ifname: &str) -> Tap {
        Tap::new(&self.space, ifname)
    }

    /// Kills its processes and removes its namespaces. Run the plugin's DEL before.
    ///
    /// # Errors
    ///
    /// [`LabError::Command`] when the namespace's bind mount cannot be removed.
    pub fn destroy(&self) -> Result<()> {
        self.space.shut_down();
        self.space.inner.lab.remove_space(&self.space);
        let path = self.path.display();
        self.host
            .sh(&format!("umount {path} && rm {path}"))
            .map(drop)
    }

    /// The PID of its first process as its host sees it.
    fn inner_pid(&self) -> Result<u32> {
        let path = format!("/proc/{}/status", self.init_pid()?);
        let status =
            std::fs::read_to_string(&path).map_err(|e| LabError::io(format!("read {path}"), e))?;
        let pids = status.lines().find_map(|l| l.strip_prefix("NSpid:"));
        // The last is its own PID 1, the one before is its host's view.
        pids.and_then(|p| p.split_whitespace().rev().nth(1)?.parse().ok())
            .ok_or_else(|| {
                LabError::io(
                    format!("find NSpid in {path}"),
                    std::io::Error::other("not there"),
                )
            })
    }
}

impl Deref for Pod {
    type Target = Space;

    fn deref(&self) -> &Space {
        &self.space
    }
}

/// A switch.
#[derive(Debug, Clone)]
pub struct Bridge {
    host: Host,
}

impl Bridge {
    /// The bridge's interface in its namespace.
    pub(crate) const DEVICE: &str = "br0";

    pub(crate) fn new(host: Host) -> Result<Self> {
        // The switch itself must be silent: no MLD, no neighbour discovery, no spanning tree.
        for kind in ["all", "default"] {
            host.sysctl(&format!("net.ipv6.conf.{kind}.disable_ipv6"), "1")?;
        }
        let device = Self::DEVICE;
        host.ip_batch(&format!(
            "link add {device} type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n\
             link set {device} up\n"
        ))?;
        Ok(Self { host })
    }

    /// A free port, as the end of a link to be made.
    pub fn port(&self) -> End {
        End::port(self.host.clone())
    }

    /// The namespace the bridge lives in.
    pub fn host(&self) -> &Host {
        &self.host
    }
}
