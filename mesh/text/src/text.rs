//! Numbers, times and addresses as `wg` writes them, and text that is safe to print.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Whether output is coloured, with the sequences of `wg`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    colour: bool,
}

impl Style {
    /// No colours.
    pub const PLAIN: Self = Self { colour: false };
    /// The colours of `wg`.
    pub const COLOURED: Self = Self { colour: true };
    /// Back to no colour.
    pub const RESET: &'static str = "\x1b[0m";
    /// Bold.
    pub const BOLD: &'static str = "\x1b[1m";
    /// Red.
    pub const RED: &'static str = "\x1b[31m";
    /// Green.
    pub const GREEN: &'static str = "\x1b[32m";
    /// Yellow.
    pub const YELLOW: &'static str = "\x1b[33m";
    /// Cyan.
    pub const CYAN: &'static str = "\x1b[36m";

    /// Returns the sequence, or nothing when output is not coloured.
    pub fn code(self, sequence: &'static str) -> &'static str {
        if self.colour { sequence } else { "" }
    }

    /// Colours the text.
    pub fn paint(self, sequence: &'static str, text: &str) -> String {
        format!("{}{text}{}", self.code(sequence), self.code(Self::RESET))
    }
}

/// Writes a number of bytes in the largest unit that it fills.
pub fn bytes(count: u64, style: Style) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if count < 1024 {
        return format!("{count} {}", style.paint(Style::CYAN, "B"));
    }
    let power = (count.ilog2() as usize / 10).min(UNITS.len());
    // Dividing by a power of two is exact, in one step or in several.
    let amount = count as f64 / (1_u64 << (10 * power)) as f64;
    let unit = style.paint(Style::CYAN, UNITS[power - 1]);
    format!("{amount:.2} {unit}")
}

/// Writes seconds in all units that are not zero; nothing for zero. A year has 365 days.
pub fn duration(seconds: u64, style: Style) -> String {
    let parts = [
        (seconds / YEAR, "year"),
        (seconds % YEAR / DAY, "day"),
        (seconds % DAY / HOUR, "hour"),
        (seconds % HOUR / MINUTE, "minute"),
        (seconds % MINUTE, "second"),
    ];
    let mut text = String::new();
    for (count, unit) in parts.into_iter().filter(|(count, _)| *count != 0) {
        let separator = if text.is_empty() { "" } else { ", " };
        let plural = if count == 1 { "" } else { "s" };
        let unit = style.paint(Style::CYAN, &format!("{unit}{plural}"));
        // Writing to a string cannot fail.
        let _ = write!(text, "{separator}{count} {unit}");
    }
    text
}

/// Writes how long ago a Unix time was.
pub fn ago(time: u64, now: u64, style: Style) -> String {
    match now.checked_sub(time) {
        Some(0) => "Now".to_owned(),
        Some(seconds) => format!("{} ago", duration(seconds, style)),
        None => format!("({})", style.paint(Style::RED, WOUND_BACK)),
    }
}

/// Writes seconds in the two largest units that matter, for tables.
pub fn short_duration(seconds: u64) -> String {
    match seconds {
        0..MINUTE => format!("{seconds}s"),
        MINUTE..HOUR => format!("{}m {}s", seconds / MINUTE, seconds % MINUTE),
        HOUR..DAY => format!("{}h {}m", seconds / HOUR, seconds % HOUR / MINUTE),
        DAY.. => format!("{}d {}h", seconds / DAY, seconds % DAY / HOUR),
    }
}

/// Writes an address as the C library's `inet_ntop` does: unlike the standard library, it writes
/// the deprecated IPv4-compatible addresses with dots.
pub fn address(address: IpAddr) -> String {
    if let IpAddr::V6(v6) = address {
        let bits = v6.to_bits();
        if bits >> 32 == 0 && bits >> 16 != 0 {
            return format!("::{}", Ipv4Addr::from_bits(bits as u32));
        }
    }
    address.to_string()
}

/// Writes an endpoint as `wg` does.
pub fn endpoint(endpoint: SocketAddr) -> String {
    match endpoint {
        SocketAddr::V6(v6) if v6.scope_id() == 0 => {
            format!("[{}]:{}", address(IpAddr::V6(*v6.ip())), v6.port())
        }
        _ => endpoint.to_string(),
    }
}

/// Makes text of others safe for a terminal: what could move the cursor, colour, or turn the
/// direction of writing is escaped as `\u{..}`.
pub fn clean(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut cleaned = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_unsafe(c) {
            cleaned.extend(c.escape_unicode());
        } else {
            cleaned.push(c);
        }
    }
    Cow::Owned(cleaned)
}

/// Whether a character does something else in a terminal than to appear.
pub fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}')
}

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
const YEAR: u64 = 365 * DAY;
const WOUND_BACK: &str = "System clock wound backward; connection problems may ensue.";
