//! Errors of the API's client, in one line for people.

use std::error::Error;

/// The causes from the outermost to the innermost, each said once.
pub(crate) fn describe(error: &(dyn Error + 'static)) -> String {
    // kube prints a refusal twice, the second time as Rust does.
    if let Some(kube::Error::Api(status)) = error.downcast_ref() {
        return status.message.clone();
    }
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let next = cause.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        source = cause.source();
    }
    text
}
