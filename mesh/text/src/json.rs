//! JSON text, indented without a change of its content.

use std::fmt::Write as _;

use crate::text::is_unsafe;

/// Indents a JSON document: the order of members, numbers and unknown members stay as they are.
/// Characters that a terminal would act on are escaped, which means the same in JSON.
///
/// # Errors
/// When the text is no JSON, or is nested deeper than 128 levels.
pub fn indent(text: &str) -> Result<String, serde_json::Error> {
    // Nothing below needs to doubt the text after this.
    serde_json::from_str::<serde_json::Value>(text)?;
    let mut out = String::with_capacity(text.len() * 2);
    let mut depth = 0_usize;
    let mut place = Place::Outside;
    // A container's first line is opened when something comes that is not its end.
    let mut opened = false;
    for c in text.chars() {
        if place == Place::Outside {
            if c.is_ascii_whitespace() {
                continue;
            }
            let closes = matches!(c, '}' | ']');
            if closes {
                depth = depth.saturating_sub(1);
            }
            if opened != closes {
                new_line(&mut out, depth);
            }
            opened = matches!(c, '{' | '[');
        }
        match (place, c) {
            (Place::Outside, '{' | '[') => {
                out.push(c);
                depth += 1;
            }
            (Place::Outside, ',') => {
                out.push(',');
                new_line(&mut out, depth);
            }
            (Place::Outside, ':') => out.push_str(": "),
            (_, c) if is_unsafe(c) => {
                // Writing to a string cannot fail.
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            (_, c) => out.push(c),
        }
        place = place.after(c);
    }
    out.push('\n');
    Ok(out)
}

/// Where in the text a character is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Outside,
    String,
    Escape,
}

impl Place {
    fn after(self, c: char) -> Self {
        match (self, c) {
            (Self::Outside, '"') | (Self::Escape, _) => Self::String,
            (Self::String, '"') => Self::Outside,
            (Self::String, '\\') => Self::Escape,
            (place, _) => place,
        }
    }
}

fn new_line(out: &mut String, depth: usize) {
    out.push('\n');
    out.extend(std::iter::repeat_n("  ", depth));
}
