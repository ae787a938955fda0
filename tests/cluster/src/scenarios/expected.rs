//! What must come of one question of a probe.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::probe::{Check, CheckResult};

/// What must come of a check.
#[derive(Clone, Debug)]
pub(super) struct Expected {
    pub(super) check: Check,
    pub(super) outcome: Outcome,
}

/// The ways that it may come out.
#[derive(Clone, Debug)]
pub(super) enum Outcome {
    /// Always this server answers, which sees one of these clients; any, where there are none.
    Server(String, Vec<IpAddr>),
    /// Each of these servers answers.
    All(BTreeSet<String>),
    /// One and the same server answers.
    Same,
    /// The name has these addresses.
    Addresses(BTreeSet<IpAddr>),
    /// Nobody answers.
    Nobody,
}

impl Expected {
    /// Tells what is not as expected.
    pub(super) fn judge(&self, result: &CheckResult) -> Result<(), String> {
        if matches!(self.outcome, Outcome::Nobody) {
            return match result.answers.first() {
                Some(answer) => Err(format!("answered by {answer:?}, although nobody must")),
                None => Ok(()),
            };
        }
        if let Some(error) = result.errors.first() {
            let of = self.check.times.max(1);
            return Err(format!("{} of {of} failed: {error}", result.errors.len()));
        }
        let servers: BTreeSet<String> = result.answers.iter().map(|a| a.server.clone()).collect();
        match &self.outcome {
            Outcome::Server(server, clients) => {
                for answer in &result.answers {
                    if answer.server != *server {
                        return Err(format!("answered by {}, not by {server}", answer.server));
                    }
                    let client: Option<IpAddr> = answer.client.parse().ok();
                    let is_right = client.is_some_and(|client| clients.contains(&client));
                    if !clients.is_empty() && !is_right {
                        return Err(format!("seen as {}, not as {clients:?}", answer.client));
                    }
                }
                Ok(())
            }
            Outcome::All(all) if servers == *all => Ok(()),
            Outcome::All(all) => Err(format!("answered by {servers:?}, not by {all:?}")),
            Outcome::Same if servers.len() == 1 => Ok(()),
            Outcome::Same => Err(format!("answered by {servers:?}, not by one")),
            Outcome::Addresses(addresses) => {
                let found: BTreeSet<IpAddr> = result
                    .addresses
                    .iter()
                    .filter_map(|a| a.parse().ok())
                    .collect();
                if found == *addresses {
                    Ok(())
                } else {
                    Err(format!("resolved to {found:?}, not to {addresses:?}"))
                }
            }
            Outcome::Nobody => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::{Answer, Kind};

    fn expected(outcome: Outcome) -> Expected {
        Expected {
            check: Check {
                id: String::new(),
                kind: Kind::Tcp,
                to: String::new(),
                times: 1,
                secret: false,
            },
            outcome,
        }
    }

    fn answered(servers: &[(&str, &str)], errors: &[&str]) -> CheckResult {
        CheckResult {
            id: String::new(),
            answers: servers
                .iter()
                .map(|(server, client)| Answer {
                    server: (*server).to_owned(),
                    client: (*client).to_owned(),
                })
                .collect(),
            addresses: Vec::new(),
            errors: errors.iter().map(|&e| e.to_owned()).collect(),
            millis: 0,
        }
    }

    #[test]
    fn a_wrong_server_a_wrong_client_and_an_error_are_each_told() {
        let client: IpAddr = "10.244.1.2".parse().unwrap();
        let row = expected(Outcome::Server("a".into(), vec![client]));
        assert_eq!(row.judge(&answered(&[("a", "10.244.1.2")], &[])), Ok(()));
        for wrong in [
            answered(&[("b", "10.244.1.2")], &[]),
            answered(&[("a", "192.0.2.1")], &[]),
            answered(&[("a", "10.244.1.2")], &["timeout"]),
        ] {
            assert!(row.judge(&wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn who_must_not_be_reached_must_fail() {
        let row = expected(Outcome::Nobody);
        assert_eq!(row.judge(&answered(&[], &["timeout"])), Ok(()));
        assert!(row.judge(&answered(&[("a", "")], &[])).is_err());
    }

    #[test]
    fn all_and_same_count_servers() {
        let both = answered(&[("a", ""), ("b", "")], &[]);
        let all =
            |names: &[&str]| expected(Outcome::All(names.iter().map(|&n| n.to_owned()).collect()));
        assert!(all(&["a", "b"]).judge(&both).is_ok());
        assert!(all(&["a", "b", "c"]).judge(&both).is_err());
        assert!(expected(Outcome::Same).judge(&both).is_err());
        assert!(
            expected(Outcome::Same)
                .judge(&answered(&[("a", "")], &[]))
                .is_ok()
        );
    }
}
