//! Configurations that are long, and parts of them that overlap or go.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;

use anyhow::{Context as _, ensure};
use warren_keyring::PrivateKey;
use warren_lab::Lab;
use warren_selftest::{Device, Outer, Pair, Result, Roles, inner, is_silent, ping};

scenarios! {
    a_peer_has_130560_allowed_ips
    forty_peers_have_52_allowed_ips_each
    of_thirty_peers_the_last_has_allowed_ips
    a_peer_without_allowed_ips_is_before_one_with_197
    overlapping_allowed_ips_are_all_kept_and_replaced
}

/// A device of the first kind, alone.
fn alone(roles: Roles) -> Result<(Lab, Device)> {
    let lab = Lab::new("selftest")?;
    let device = Device::bare(roles.first, &lab.host("host1")?, "wg0")?;
    Ok((lab, device))
}

fn key() -> Result<String> {
    Ok(PrivateKey::generate()?.to_base64().to_string())
}

fn public_key() -> Result<String> {
    Ok(PrivateKey::generate()?.public_key().to_base64())
}

fn configure(device: &Device, text: &str) -> Result {
    let path = device.host.dir().join("wg.conf");
    fs::write(&path, text).context("write the configuration")?;
    let path = path.to_string_lossy();
    device.host.run(&["wg", "setconf", &device.name, &path])?;
    Ok(())
}

/// The AllowedIPs of each peer, in the order of `wg`.
fn shown(device: &Device) -> Result<Vec<(String, BTreeSet<String>)>> {
    let text = device.show("allowed-ips")?;
    let peers = text.lines().map(|line| {
        let mut words = line.split_whitespace().map(str::to_owned);
        (words.next().unwrap_or_default(), words.collect())
    });
    Ok(peers.collect())
}

fn set_of<T: ToString>(prefixes: impl IntoIterator<Item = T>) -> BTreeSet<String> {
    prefixes
        .into_iter()
        .map(|prefix| prefix.to_string())
        .collect()
}

/// More than one message of netlink, and than one buffer of a socket, takes.
fn a_peer_has_130560_allowed_ips(roles: Roles) -> Result {
    let (_lab, device) = alone(roles)?;
    let peer = public_key()?;
    let mut text = format!(
        "[Interface]\nPrivateKey={}\n[Peer]\nPublicKey={peer}\n",
        key()?
    );
    let mut expected = BTreeSet::new();
    for a in 1..=255_u16 {
        for b in 0..=255_u16 {
            let v6 = std::net::Ipv6Addr::from([0x1000 + a, 0, 0, 0, 0, 0, 0, b]);
            let prefixes = [format!("{a}.{b}.0.0/16"), format!("{v6}/128")];
            let _ = writeln!(text, "AllowedIPs={}", prefixes.join(","));
            expected.extend(prefixes);
        }
    }
    configure(&device, &text)?;
    ensure!(expected.len() == 130_560);
    let shown = shown(&device)?;
    ensure!(
        shown.len() == 1 && shown[0].0 == peer,
        "{} peers",
        shown.len()
    );
    ensure!(shown[0].1 == expected, "{} are shown", shown[0].1.len());
    Ok(())
}

fn forty_peers_have_52_allowed_ips_each(roles: Roles) -> Result {
    let (_lab, device) = alone(roles)?;
    let mut text = format!("[Interface]\nPrivateKey={}\n", key()?);
    let mut expected = BTreeSet::new();
    for a in 1..=40 {
        let peer = public_key()?;
        let prefixes = set_of((1..=52).map(|b| format!("{a}.{b}.0.0/16")));
        let _ = writeln!(text, "[Peer]\nPublicKey={peer}");
        for prefix in &prefixes {
            let _ = writeln!(text, "AllowedIPs={prefix}");
        }
        expected.insert((peer, prefixes));
    }
    configure(&device, &text)?;
    let shown: BTreeSet<_> = shown(&device)?.into_iter().collect();
    ensure!(shown == expected, "{} peers: {shown:?}", shown.len());
    Ok(())
}

fn of_thirty_peers_the_last_has_allowed_ips(roles: Roles) -> Result {
    let (_lab, device) = alone(roles)?;
    let mut text = String::new();
    let peers = (0..30).map(|_| public_key()).collect::<Result<Vec<_>>>()?;
    for peer in &peers {
        let _ = writeln!(text, "[Peer]\nPublicKey={peer}");
    }
    text += "AllowedIPs=255.2.3.4/32,abcd::255/128\n";
    configure(&device, &text)?;
    let conf = device.host.run(&["wg", "showconf", "wg0"])?.stdout;
    ensure!(conf.matches("[Peer]").count() == 30, "{conf}");
    for (peer, prefixes) in shown(&device)? {
        let expected = if Some(&peer) == peers.last() {
            set_of(["255.2.3.4/32", "abcd::255/128"])
        } else {
            set_of(["(none)"])
        };
        ensure!(prefixes == expected, "{peer}: {prefixes:?}");
    }
    let unknown = device.host.try_run(&["wg", "show", "unknown"])?;
    ensure!(!unknown.success(), "{}", unknown.stdout);
    Ok(())
}

fn a_peer_without_allowed_ips_is_before_one_with_197(roles: Roles) -> Result {
    let (_lab, device) = alone(roles)?;
    let peers = [public_key()?, public_key()?];
    let prefixes: Vec<String> = (1..=197).map(|n| format!("abcd::{n}/128")).collect();
    device.set_peer(&peers[0], &[])?;
    device.set_peer(&peers[1], &["allowed-ips", &prefixes.join(",")])?;
    let shown: BTreeSet<_> = shown(&device)?.into_iter().collect();
    let [none, all] = [set_of(["(none)"]), set_of(prefixes)];
    let expected = BTreeSet::from([(peers[0].clone(), none), (peers[1].clone(), all)]);
    ensure!(shown == expected, "{shown:?}");
    Ok(())
}

/// Of prefixes within each other the longest counts, and a shorter list takes the others away.
fn overlapping_allowed_ips_are_all_kept_and_replaced(roles: Roles) -> Result {
    let (_lab, device) = alone(roles)?;
    let peer = public_key()?;
    for list in [
        "0.0.0.0/0,10.0.0.0/8,100.0.0.0/10,172.16.0.0/12,192.168.0.0/16",
        "0.0.0.0/0",
        "::/0,1700::/111,5000::/4,e000::/37,9000::/75",
        "::/0",
    ] {
        device.set_peer(&peer, &["allowed-ips", list])?;
        let shown = shown(&device)?;
        let expected = set_of(list.split(','));
        ensure!(shown == [(peer.clone(), expected)], "{shown:?} for {list}");
    }
    device.set_peer(&peer, &["remove"])?;
    ensure!(shown(&device)?.is_empty());
    Ok(())
}

/// Prefixes are taken from a peer one at a time, and all others go on. Kernels before Linux 6.16 cannot do
/// that, and Debian 12's `wg` has no words for it: it is asked for at ours alone, by its socket.
#[test]
fn allowed_ips_are_removed_one_at_a_time() {
    warren_selftest::run(remove_one_at_a_time, Roles::OURS_FIRST);
}

fn remove_one_at_a_time(roles: Roles) -> Result {
    let pair = Pair::new(roles)?;
    pair.meet(Outer::V4)?;
    pair.reaches(1)?;
    let peer = pair.second.public_key();
    let [v4, v6] = inner(2);
    let mut left = set_of((0..=40).map(|n| format!("10.7.0.{}/32", n + 100)));
    left.extend([
        format!("{v4}/32"),
        format!("{v6}/128"),
        "10.7.0.0/24".to_owned(),
    ]);
    let list: Vec<&str> = left.iter().map(String::as_str).collect();
    pair.first
        .set_peer(&peer, &["allowed-ips", &list.join(",")])?;
    pair.second.sh("ip address add 10.7.0.100/32 dev $dev")?;
    let remove = |prefix: &str| -> Result {
        let hex = warren_keyring::PublicKey::from_base64(&peer)?.to_hex();
        let request =
            format!("set=1\npublic_key={hex}\nupdate_only=true\nallowed_ip=-{prefix}\n\n");
        let script = format!(
            "printf '{}' | socat -t5 - UNIX-CONNECT:/var/run/wireguard/$dev.sock",
            request.replace('\n', "\\n")
        );
        let said = pair.first.sh(&script)?;
        ensure!(said.trim() == "errno=0", "{said}");
        Ok(())
    };
    let many: Vec<String> = left
        .iter()
        .filter(|p| p.starts_with("10.7.0.1"))
        .cloned()
        .collect();
    for prefix in many {
        remove(&prefix)?;
        left.remove(&prefix);
        let shown = shown(&pair.first)?;
        ensure!(
            shown == [(peer.clone(), left.clone())],
            "{shown:?} without {prefix}"
        );
    }
    // The shorter prefix has it still.
    ping(&pair.first.host, "10.7.0.100")?;
    remove("10.7.0.0/24")?;
    ensure!(is_silent(&pair.first.host, "10.7.0.100")?);
    pair.reaches(1)?;
    // One that the peer does not have is none of its own.
    remove("10.7.0.0/24")
}
