//! Keys that are set, changed, cleared, clamped or worthless.

use std::thread;
use std::time::Duration;

use anyhow::ensure;
use warren_keyring::{PresharedKey, PrivateKey};
use warren_lab::Lab;
use warren_selftest::{Device, Heard, Kind, Outer, Pair, Result, Roles, inner, ping};

scenarios! {
    a_changed_key_makes_a_handshake_at_once
    keys_are_set_and_cleared
    a_device_is_not_its_own_peer
    a_private_key_is_clamped
    keys_of_low_order_are_met_with_silence
    a_keepalive_is_sent_when_the_link_comes_up
}

/// The first device gets another private key, and the second the public one: the next packet passes.
fn a_changed_key_makes_a_handshake_at_once(roles: Roles) -> Result {
    let mut pair = Pair::new(roles)?;
    pair.meet(Outer::V4)?;
    pair.reaches(1)?;
    let old = pair.first.public_key();
    pair.first.set_key(PrivateKey::generate()?)?;
    pair.introduce(2)?;
    pair.second.set_peer(&old, &["remove"])?;
    pair.reaches(1)?;
    pair.reaches(2)
}

fn alone(roles: Roles) -> Result<(Lab, Device)> {
    let lab = Lab::new("selftest")?;
    let device = Device::bare(roles.first, &lab.host("host1")?, "wg0")?;
    Ok((lab, device))
}

fn keys_are_set_and_cleared(roles: Roles) -> Result {
    let (_lab, device) = alone(roles)?;
    let key = PrivateKey::generate()?.to_base64();
    let peer = PrivateKey::generate()?.public_key().to_base64();
    let psk = PresharedKey::generate()?.to_base64();
    let shown = |what: &str| -> Result<String> { Ok(device.show(what)?.trim().to_owned()) };
    let psk_of_peer = |psk: &str| format!("{peer}\t{psk}");

    ensure!(shown("private-key")? == "(none)");
    let psk_file = device.secret("psk", &psk)?;
    device.set(&["private-key", &device.secret("key", &key)?])?;
    device.set_peer(&peer, &["preshared-key", &psk_file])?;
    ensure!(shown("private-key")? == *key);
    ensure!(shown("preshared-keys")? == psk_of_peer(&psk));

    device.set(&["private-key", "/dev/null"])?;
    device.set_peer(&peer, &["preshared-key", "/dev/null"])?;
    ensure!(shown("private-key")? == "(none)");
    ensure!(shown("preshared-keys")? == psk_of_peer("(none)"));
    Ok(())
}

/// A peer goes when its key becomes the device's own, and is not taken while it is.
fn a_device_is_not_its_own_peer(roles: Roles) -> Result {
    let (_lab, mut device) = alone(roles)?;
    let own = PrivateKey::generate()?;
    let public = own.public_key().to_base64();
    let peers = |device: &Device| -> Result<String> { Ok(device.show("peers")?.trim().to_owned()) };
    device.set_peer(&public, &[])?;
    ensure!(peers(&device)? == public);
    device.set_key(own)?;
    ensure!(device.show("public-key")?.trim() == public);
    ensure!(peers(&device)?.is_empty());
    device.set_peer(&public, &[])?;
    ensure!(peers(&device)?.is_empty());
    device.set_key(PrivateKey::generate()?)?;
    device.set_peer(&public, &[])?;
    ensure!(peers(&device)? == public);
    Ok(())
}

/// A scalar whose first bits are not as Curve25519 wants them is shown as it is used.
fn a_private_key_is_clamped(roles: Roles) -> Result {
    let (_lab, device) = alone(roles)?;
    let key = PrivateKey::generate()?.to_base64();
    // The first six bits of the text are the first byte's upper ones: 111111 becomes 111110.
    let (raw, clamped) = (format!("/{}", &key[1..]), format!("+{}", &key[1..]));
    device.set(&["private-key", &device.secret("key", &raw)?])?;
    let shown = device.show("private-key")?;
    ensure!(shown.trim() == clamped, "{} for {raw}", shown.trim());
    Ok(())
}

/// All points of a low order, by which anybody would know the secret.
const LOW_ORDER: [&str; 7] = [
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    "4Ot6fDtBuK4WVuP68Z/EatoJjeucMrH9hmIFFl9JuAA=",
    "X5yVvKNQjCSx0LFVnIPvWwREXMRYHI6G2CJO3dCfEVc=",
    "7P///////////////////////////////////////38=",
    "7f///////////////////////////////////////38=",
    "7v///////////////////////////////////////38=",
];

/// Nothing is sent to peers with such keys, which another peer shows would be seen.
fn keys_of_low_order_are_met_with_silence(roles: Roles) -> Result {
    let pair = Pair::new(roles)?;
    let settings = ["persistent-keepalive", "1", "endpoint", "192.0.2.2:1111"];
    let heard = Heard::new(&pair.second.host, "udp dport 1111")?;
    pair.first.sh("ip link set $dev down")?;
    for key in LOW_ORDER {
        // What is refused is silent, too.
        if let Err(refused) = pair.first.set_peer(key, &settings) {
            ensure!(pair.first.kind == Kind::Ours, "{refused:#}");
        }
    }
    pair.first.sh("ip link set $dev up")?;
    thread::sleep(Duration::from_secs(4));
    ensure!(heard.count()? == 0, "{} datagrams", heard.count()?);
    let good = PrivateKey::generate()?.public_key().to_base64();
    pair.first.set_peer(&good, &settings)?;
    heard.wait(1)
}

/// A device that is down and has a peer with a keepalive sends it when it comes up, with the handshake that
/// it needs, and without any packet inside.
///
/// The kernel's device is silent until then. Ours does not know whether its interface is up: it sends as
/// soon as it is told to, and goes on.
fn a_keepalive_is_sent_when_the_link_comes_up(roles: Roles) -> Result {
    let pair = Pair::new(roles)?;
    let [first, second] = [&pair.first, &pair.second];
    let port = Pair::port(2);
    let heard = Heard::new(&second.host, &format!("udp dport {port}"))?;
    first.sh("ip link set $dev down")?;
    let endpoint = Outer::V4.endpoint(2, port);
    let settings = ["persistent-keepalive", "2", "endpoint", &endpoint];
    first.set_peer(&second.public_key(), &settings)?;
    if first.kind == Kind::Kernel {
        thread::sleep(Duration::from_secs(3));
        ensure!(heard.count()? == 0, "it sends while it is down");
    }
    first.sh("ip link set $dev up")?;
    second.wait("a handshake", |second| {
        Ok(second.latest_handshake(&first.public_key())? != 0)
    })?;
    let (_, before) = first.transfer(&second.public_key())?;
    // 32 bytes each, after 148 for the handshake.
    first.wait("two more keepalives", |first| {
        Ok(first.transfer(&second.public_key())?.1 >= before + 64)
    })?;
    ping(&second.host, &inner(1)[0])
}
