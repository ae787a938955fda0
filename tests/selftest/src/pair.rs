//! Two hosts on a cable, each with a device that has the other as its peer.

use warren_keyring::PresharedKey;
use warren_lab::{Host, Lab, Link};

use crate::Result;
use crate::device::Device;
use crate::kind::Roles;
use crate::traffic::{ping, serve};

/// The family of the packets outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outer {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Outer {
    /// Both families.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The address on the cable whose last number is `number`.
    pub fn address(self, number: u8) -> String {
        match self {
            Self::V4 => format!("192.0.2.{number}"),
            Self::V6 => format!("2001:db8::{number:x}"),
        }
    }

    /// An endpoint there.
    pub fn endpoint(self, number: u8, port: u16) -> String {
        match self {
            Self::V4 => format!("{}:{port}", self.address(number)),
            Self::V6 => format!("[{}]:{port}", self.address(number)),
        }
    }
}

/// The addresses inside of the device 1 or 2.
pub fn inner(number: u8) -> [String; 2] {
    [format!("10.7.0.{number}"), format!("fd07::{number}")]
}

/// 2 for 1, and 1 for 2.
pub fn other(number: u8) -> u8 {
    3 - number
}

/// ```text
///   host1                                               host2
///   wg0 10.7.0.1 fd07::1  port 51821                    wg0 10.7.0.2 fd07::2  port 51822
///   eth0 192.0.2.1 2001:db8::1 ------- cable ---------- eth0 192.0.2.2 2001:db8::2
/// ```
///
/// Both devices have a preshared key, and each has the other's two addresses as its AllowedIPs.
#[derive(Debug)]
pub struct Pair {
    /// The device that a scenario looks at.
    pub first: Device,
    /// The other one.
    pub second: Device,
    /// The cable.
    pub cable: Link,
    /// The preshared key, in base64.
    pub preshared_key: String,
    /// Where all is.
    pub lab: Lab,
}

impl Pair {
    /// The port of the device 1 or 2.
    pub fn port(number: u8) -> u16 {
        51_820 + u16::from(number)
    }

    /// Makes it; no device knows an endpoint, and nothing was sent.
    ///
    /// # Errors
    ///
    /// When a part of it does not come up.
    pub fn new(roles: Roles) -> Result<Self> {
        let lab = Lab::new("selftest")?;
        let [one, two] = [lab.host("host1")?, lab.host("host2")?];
        let end = |host: &Host, number| {
            let end = host.end("eth0");
            let v4 = format!("{}/24", Outer::V4.address(number));
            end.addr(&v4)
                .addr(&format!("{}/64", Outer::V6.address(number)))
        };
        let cable = lab.connect(end(&one, 1), end(&two, 2))?;
        Self::over(lab, cable, [one, two], roles)
    }

    /// Makes the devices on these two hosts, however they are joined.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn over(lab: Lab, cable: Link, [one, two]: [Host; 2], roles: Roles) -> Result<Self> {
        serve(&one)?;
        serve(&two)?;
        let pair = Self {
            first: Device::new(roles.first, &one, "wg0", Self::port(1))?,
            second: Device::new(roles.second, &two, "wg0", Self::port(2))?,
            cable,
            preshared_key: PresharedKey::generate()?.to_base64().to_string(),
            lab,
        };
        for (device, number) in [(&pair.first, 1), (&pair.second, 2)] {
            let [v4, v6] = inner(number);
            device.sh(&format!(
                "ip address add {v4}/24 dev $dev
                 ip address add {v6}/112 dev $dev nodad
                 ip link set $dev addrgenmode none
                 ip link set $dev up"
            ))?;
        }
        pair.introduce(1)?;
        pair.introduce(2)?;
        Ok(pair)
    }

    /// The device 1 or 2.
    pub fn device(&self, number: u8) -> &Device {
        if number == 1 {
            &self.first
        } else {
            &self.second
        }
    }

    /// Tells the device `number` of the other one, anew if its key has changed.
    ///
    /// # Errors
    ///
    /// With what `wg` said.
    pub fn introduce(&self, number: u8) -> Result {
        let (device, peer) = (self.device(number), self.device(other(number)));
        let psk = device.secret("psk", &self.preshared_key)?;
        let allowed = inner(other(number)).join(",");
        let settings = ["preshared-key", &psk, "allowed-ips", &allowed];
        device.set_peer(&peer.public_key(), &settings)
    }

    /// Tells both where the other is.
    ///
    /// # Errors
    ///
    /// With what `wg` said.
    pub fn meet(&self, outer: Outer) -> Result {
        for number in [1, 2] {
            let peer = other(number);
            self.point(number, &outer.endpoint(peer, Self::port(peer)))?;
        }
        Ok(())
    }

    /// Tells the device `number` where the other one is.
    ///
    /// # Errors
    ///
    /// With what `wg` said.
    pub fn point(&self, number: u8, endpoint: &str) -> Result {
        let peer = self.device(other(number)).public_key();
        self.device(number).set_peer(&peer, &["endpoint", endpoint])
    }

    /// Pings the other device from `number` once in each family.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub fn reaches(&self, number: u8) -> Result {
        for address in inner(other(number)) {
            ping(&self.device(number).host, &address)
                .map_err(|error| error.context(self.describe()))?;
        }
        Ok(())
    }

    /// Where the device `number` sends to.
    ///
    /// # Errors
    ///
    /// With what `wg` said.
    pub fn endpoint_seen_by(&self, number: u8) -> Result<String> {
        self.device(number)
            .endpoint(&self.device(other(number)).public_key())
    }

    /// Both ends, for messages.
    pub fn describe(&self) -> String {
        format!("{}\n{}", self.first.describe(), self.second.describe())
    }
}
