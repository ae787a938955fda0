//! Zones of link-local endpoints: `wg` sends the interface's name, the device keeps its index.

use std::borrow::Cow;

use nix::net::if_::if_nametoindex;

/// Returns the line with the zone of an endpoint as a number, as in `endpoint=[fe80::1%2]:51820`; a
/// line that is nothing of the kind, or whose interface is not there, comes back as it was.
pub(crate) fn numbered(line: &str) -> Cow<'_, str> {
    number(line).map_or(Cow::Borrowed(line), Cow::Owned)
}

fn number(line: &str) -> Option<String> {
    let (address, rest) = line.strip_prefix("endpoint=[")?.split_once('%')?;
    let (zone, port) = rest.split_once("]:")?;
    if zone.is_empty() || zone.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let index = if_nametoindex(zone).ok()?;
    Some(format!("endpoint=[{address}%{index}]:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_names_of_interfaces_become_numbers() {
        let lo = if_nametoindex("lo").unwrap();
        let expected = format!("endpoint=[fe80::1%{lo}]:5");
        assert_eq!(numbered("endpoint=[fe80::1%lo]:5"), expected);
        for line in [
            "endpoint=[fe80::1%7]:5",
            "endpoint=[fe80::1%]:5",
            "endpoint=[fe80::1%no such one]:5",
            "endpoint=[fe80::1%lo:5",
            "endpoint=1.2.3.4:5",
            "allowed_ip=fe80::1%lo/64",
            "",
        ] {
            assert_eq!(numbered(line), line);
        }
    }
}
