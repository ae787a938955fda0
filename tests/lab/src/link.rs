//! Cables between hosts and switches, and what can go wrong with them.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::capture::Tap;
use crate::error::{LabError, Result};
use crate::host::{Bridge, Host};
use crate::lab::LabCore;
use crate::space::{Space, lock};
use crate::util::poll_until;

/// Longest interface name the kernel takes.
const IFNAME_MAX: usize = 15;
/// BR_STATE_FORWARDING.
const BRIDGE_PORT_FORWARDING: &str = "3";
/// How long a new link may take to carry frames.
const READY_LIMIT: Duration = Duration::from_secs(30);

/// One end of a link to be made: an interface of a host with its addresses and default routes, or
/// a port of a switch.
#[derive(Debug, Clone)]
pub struct End {
    host: Host,
    /// Empty for a port that has no name yet.
    ifname: String,
    is_port: bool,
    addresses: Vec<String>,
    gateways: Vec<String>,
}

impl End {
    pub(crate) fn new(host: Host, ifname: &str) -> Self {
        Self {
            host,
            ifname: ifname.to_owned(),
            is_port: false,
            addresses: Vec::new(),
            gateways: Vec::new(),
        }
    }

    pub(crate) fn port(host: Host) -> Self {
        Self {
            is_port: true,
            ..Self::new(host, "")
        }
    }

    /// Adds an address with its prefix length, of either family, usable at once.
    #[must_use]
    pub fn addr(mut self, address: &str) -> Self {
        self.addresses.push(address.to_owned());
        self
    }

    /// Adds a default route by the gateway, of either family.
    #[must_use]
    pub fn via(mut self, gateway: &str) -> Self {
        self.gateways.push(gateway.to_owned());
        self
    }

    /// A hardware address that stays over reboots, as a real card's does: neighbours remember it.
    fn mac(&self) -> String {
        // FNV-1a: std's hasher may give another value in the next release.
        let name = format!("{}/{}", self.host.name(), self.ifname);
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let [a, b, c, d, e, ..] = hash.to_be_bytes();
        format!("02:{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}")
    }

    fn up(&self) -> String {
        let name = &self.ifname;
        let mut batch = String::new();
        if self.is_port {
            let _ = writeln!(batch, "link set {name} master {}", Bridge::DEVICE);
        }
        for address in &self.addresses {
            let nodad = if address.contains(':') { " nodad" } else { "" };
            let _ = writeln!(batch, "address replace {address} dev {name}{nodad}");
        }
        let _ = writeln!(batch, "link set {name} up");
        for gateway in &self.gateways {
            let all = if gateway.contains(':') {
                "::/0"
            } else {
                "0.0.0.0/0"
            };
            let _ = writeln!(batch, "route replace {all} via {gateway} dev {name}");
        }
        batch
    }
}

/// A direction of a link, by the order of the ends given to [`crate::Lab::connect`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the first end to the second.
    AToB,
    /// From the second end to the first.
    BToA,
}

/// A cable: a veth pair. Cheap to clone; stays when dropped, until its lab or [`Link::remove`].
#[derive(Debug, Clone)]
pub struct Link {
    inner: Arc<LinkInner>,
}

#[derive(Debug)]
struct LinkInner {
    lab: std::sync::Weak<LabCore>,
    a: End,
    b: End,
    faults: Mutex<Faults>,
}

/// All that is set on a link; remembered to be set again when a host reboots.
#[derive(Debug, Clone, Default)]
struct Faults {
    /// Per mille of frames dropped, from A to B and back.
    drop_per_mille: [u32; 2],
    /// Dropped whatever the above says.
    cut: [bool; 2],
    unplugged: bool,
    mbit: Option<u32>,
    mtu: Option<u32>,
}

impl Link {
    pub(crate) fn new(lab: &Arc<LabCore>, mut a: End, mut b: End) -> Result<Self> {
        let mut links = lock(&lab.links);
        let (peer_of_a, peer_of_b) = (b.clone(), a.clone());
        for (end, peer) in [(&mut a, peer_of_a), (&mut b, peer_of_b)] {
            if end.is_port && end.ifname.is_empty() {
                let readable = format!("{}-{}", peer.host.name(), peer.ifname);
                end.ifname = if readable.len() <= IFNAME_MAX && !peer.is_port {
                    readable
                } else {
                    format!("port{}", links.len())
                };
            }
            if end.ifname.is_empty() || end.ifname.len() > IFNAME_MAX {
                let why = "an interface name has 1 to 15 characters";
                return Err(LabError::Name {
                    name: end.ifname.clone(),
                    why,
                });
            }
        }
        let inner = LinkInner {
            lab: Arc::downgrade(lab),
            a,
            b,
            faults: Mutex::default(),
        };
        let link = Self {
            inner: Arc::new(inner),
        };
        link.plug()?;
        links.push(link.clone());
        Ok(link)
    }

    pub(crate) fn touches(&self, space: &Space) -> bool {
        [&self.inner.a, &self.inner.b]
            .iter()
            .any(|e| Arc::ptr_eq(&e.host.inner, &space.inner))
    }

    /// What messages and reports call it.
    pub fn name(&self) -> String {
        let LinkInner { a, b, .. } = &*self.inner;
        format!(
            "{}:{}--{}:{}",
            a.host.name(),
            a.ifname,
            b.host.name(),
            b.ifname
        )
    }

    /// A capture point that sees both directions, at the switch's end if there is one, so that the
    /// host cannot touch it and it survives the host's reboot.
    pub fn tap(&self) -> Tap {
        let end = self.far();
        Tap::new(&end.host, &end.ifname).named(&self.name())
    }

    /// Drops everything, both ways and silently, while both ends stay up.
    ///
    /// # Errors
    ///
    /// [`LabError::Command`] with what `nft` said; so for the other faults.
    pub fn cut(&self) -> Result<()> {
        self.change(|f| f.cut = [true; 2])
    }

    /// Drops everything that goes in one direction.
    ///
    /// # Errors
    ///
    /// As [`cut`](Self::cut).
    pub fn cut_one_way(&self, direction: Direction) -> Result<()> {
        self.change(|f| f.cut[direction as usize] = true)
    }

    /// Takes the cable out: both ends lose their carrier.
    ///
    /// # Errors
    ///
    /// As [`cut`](Self::cut).
    pub fn down(&self) -> Result<()> {
        self.change(|f| f.unplugged = true)
    }

    /// Drops this share of the frames at random in both directions (0 to 100).
    ///
    /// # Errors
    ///
    /// As [`cut`](Self::cut).
    pub fn lossy(&self, percent: f64) -> Result<()> {
        let per_mille = (percent.clamp(0.0, 100.0) * 10.0).round() as u32;
        self.change(|f| f.drop_per_mille = [per_mille; 2])
    }

    /// Drops this share of the frames at random in one direction (0 to 100).
    ///
    /// # Errors
    ///
    /// As [`cut`](Self::cut).
    pub fn lossy_one_way(&self, direction: Direction, percent: f64) -> Result<()> {
        let per_mille = (percent.clamp(0.0, 100.0) * 10.0).round() as u32;
        self.change(|f| f.drop_per_mille[direction as usize] = per_mille)
    }

    /// Ends cuts, loss and [`down`](Self::down); shape and MTU stay.
    ///
    /// # Errors
    ///
    /// As [`cut`](Self::cut).
    pub fn restore(&self) -> Result<()> {
        self.change(|f| {
            *f = Faults {
                mbit: f.mbit,
                mtu: f.mtu,
                ..Faults::default()
            }
        })
    }

    /// Limits both directions to `mbit` Mbit/s each by a token bucket; 0 ends the limit.
    ///
    /// # Errors
    ///
    /// [`LabError::Command`] with what `tc` said.
    pub fn shape(&self, mbit: u32) -> Result<()> {
        lock(&self.inner.faults).mbit = Some(mbit);
        self.apply_shape(mbit)
    }

    /// Sets the MTU of both ends, in bytes.
    ///
    /// # Errors
    ///
    /// [`LabError::Command`] with what `ip` said.
    pub fn set_mtu(&self, mtu_bytes: u32) -> Result<()> {
        lock(&self.inner.faults).mtu = Some(mtu_bytes);
        self.apply_mtu(mtu_bytes)
    }

    /// Removes the link for good.
    ///
    /// # Errors
    ///
    /// [`LabError::Command`] with what `ip` said.
    pub fn remove(&self) -> Result<()> {
        if let Some(lab) = self.inner.lab.upgrade() {
            lock(&lab.links).retain(|l| !Arc::ptr_eq(&l.inner, &self.inner));
        }
        self.unplug()
    }

    /// Makes the veth pair and sets all that is remembered.
    pub(crate) fn plug(&self) -> Result<()> {
        let LinkInner { a, b, .. } = &*self.inner;
        let peer_netns = b.host.netns_path()?;
        a.host.ip_batch(&format!(
            "link add name {} address {} type veth peer name {} address {} netns {}\n",
            a.ifname,
            a.mac(),
            b.ifname,
            b.mac(),
            peer_netns.display()
        ))?;
        let faults = lock(&self.inner.faults).clone();
        if let Some(mtu) = faults.mtu {
            self.apply_mtu(mtu)?;
        }
        if let Some(mbit) = faults.mbit {
            self.apply_shape(mbit)?;
        }
        // Captures must be back before the first frame.
        if let Some(lab) = self.inner.lab.upgrade() {
            lab.refresh_captures();
        }
        // The switch first: a host that comes up talks at once.
        let far = self.far();
        let near = if std::ptr::eq(far, a) { b } else { a };
        if faults.drops() {
            self.apply_drops(&faults)?;
        }
        if faults.unplugged {
            return near.host.ip_batch(&near.up());
        }
        far.host.ip_batch(&far.up())?;
        near.host.ip_batch(&near.up())?;
        self.wait_ready()
    }

    /// Waits until both ends carry frames: the kernel may put off the news of a new carrier, and
    /// with it a switch's port, for up to a second.
    fn wait_ready(&self) -> Result<()> {
        for end in [&self.inner.a, &self.inner.b] {
            let (file, wanted) = if end.is_port {
                ("brport/state", BRIDGE_PORT_FORWARDING)
            } else {
                ("operstate", "up")
            };
            let pid = end.host.init_pid()?;
            let path = format!("/proc/{pid}/root/sys/class/net/{}/{file}", end.ifname);
            let what = format!("{} on {} to be {wanted}", end.ifname, end.host.name());
            let ready = || std::fs::read_to_string(&path).is_ok_and(|s| s.trim() == wanted);
            poll_until(READY_LIMIT, &what, ready)?;
        }
        Ok(())
    }

    /// Removes the veth pair.
    pub(crate) fn unplug(&self) -> Result<()> {
        let far = self.far();
        far.host.ip_batch(&format!("link delete {}\n", far.ifname))
    }

    /// The end at which faults and captures are: a switch's if there is one.
    fn far(&self) -> &End {
        let LinkInner { a, b, .. } = &*self.inner;
        if a.is_port { a } else { b }
    }

    fn change(&self, edit: impl FnOnce(&mut Faults)) -> Result<()> {
        let mut faults = lock(&self.inner.faults);
        let was_unplugged = faults.unplugged;
        edit(&mut faults);
        self.apply_drops(&faults)?;
        let end = self.far();
        match (was_unplugged, faults.unplugged) {
            (false, true) => end
                .host
                .ip_batch(&format!("link set {} down\n", end.ifname)),
            (true, false) => {
                // A host's end that was down has lost its routes and IPv6 addresses.
                end.host.ip_batch(&end.up())?;
                self.wait_ready()
            }
            _ => Ok(()),
        }
    }

    fn apply_drops(&self, faults: &Faults) -> Result<()> {
        let end = self.far();
        let name = &end.ifname;
        let ([to_b, to_a], far_is_b) = (faults.rules(), !std::ptr::eq(end, &self.inner.a));
        let (incoming, outgoing) = if far_is_b { (to_b, to_a) } else { (to_a, to_b) };
        let rules = format!(
            "table netdev lab-{name}\ndelete table netdev lab-{name}\n\
             table netdev lab-{name} {{\n\
             chain incoming {{ type filter hook ingress device \"{name}\" priority 0; policy accept;\n{incoming}\n}}\n\
             chain outgoing {{ type filter hook egress device \"{name}\" priority 0; policy accept;\n{outgoing}\n}}\n}}\n"
        );
        end.host
            .configure(&["nft", "-f", "-"], rules.as_bytes())
            .map(drop)
    }

    fn apply_shape(&self, mbit: u32) -> Result<()> {
        for End { host, ifname, .. } in [&self.inner.a, &self.inner.b] {
            let command = if mbit == 0 {
                format!("qdisc replace dev {ifname} root pfifo_fast\n")
            } else {
                // The bucket holds 4 ms and the queue 50 ms of traffic.
                let burst = (u64::from(mbit) * 500).max(16_384);
                format!(
                    "qdisc replace dev {ifname} root tbf rate {mbit}mbit burst {burst} latency 50ms\n"
                )
            };
            host.configure(&["tc", "-batch", "-"], command.as_bytes())?;
        }
        Ok(())
    }

    fn apply_mtu(&self, mtu_bytes: u32) -> Result<()> {
        for End { host, ifname, .. } in [&self.inner.a, &self.inner.b] {
            host.ip_batch(&format!("link set {ifname} mtu {mtu_bytes}\n"))?;
        }
        Ok(())
    }
}

impl Faults {
    fn drops(&self) -> bool {
        self.cut != [false; 2] || self.drop_per_mille != [0; 2]
    }

    /// The nftables rule for each direction, maybe empty.
    fn rules(&self) -> [String; 2] {
        [0, 1].map(|way| match (self.cut[way], self.drop_per_mille[way]) {
            (true, _) | (_, 1000..) => "drop".to_owned(),
            (_, 0) => String::new(),
            (_, share) => format!("numgen random mod 1000 < {share} drop"),
        })
    }
}
