//! `kubectl warren status`: how each node and each pair of nodes is.

mod disagreements;
mod page;
mod pairs;
mod report;

pub use disagreements::{Disagreement, Kind};
pub use page::{Style, page};
pub use pairs::{PairState, Seen};
pub use report::{NodeReport, Refusal, Report, State};

use warren_text::outcome::Outcome;

use crate::args::{Output, StatusArgs};
use crate::client::Connection;
use crate::{document, gather, nothing_read};

/// Runs `kubectl warren status`. Exit codes: 0 all well, 1 trouble, 2 nothing could be read.
pub async fn run(args: &StatusArgs) -> Outcome {
    let facts = async {
        let connection = Connection::new(&args.target, args.request_timeout).await?;
        gather::status(&connection, &args.target.namespace).await
    };
    let report = match facts.await {
        Ok(facts) => Report::of(&facts),
        Err(cause) => return nothing_read(&cause),
    };
    let code = u8::from(report.state != State::Ok);
    if args.output() == Some(Output::Json) {
        return document(&report, code);
    }
    let style = Style {
        wide: args.output() == Some(Output::Wide),
        matrix: args.matrix,
    };
    Outcome {
        stdout: page(&report, style),
        code,
        ..Outcome::default()
    }
}
