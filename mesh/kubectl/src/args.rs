//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Shows the encrypted pod network of the whole cluster.
#[derive(Debug, Parser)]
#[command(
    name = "kubectl-warren",
    bin_name = "kubectl warren",
    version,
    arg_required_else_help = true
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print how each node and each pair of nodes is, as the agents see it
    #[command(after_help = STATUS_HELP)]
    Status(StatusArgs),
    /// Check the cluster and each node as an operator would, and say what to do
    #[command(after_help = DOCTOR_HELP)]
    Doctor(DoctorArgs),
}

const STATUS_HELP: &str = "\
Each agent is asked by `kubectl exec` in its pod: you need the right to list Nodes, and in the namespace to list
Pods and to create pods/exec. An agent that cannot be asked is shown with the cause.

Exit code: 0 all well; 1 trouble: a node is not ok or could not be asked, a pair is degraded or one-sided, a node
is refused, or Nodes and agents disagree; 2 nothing could be read, or wrong usage.";

const DOCTOR_HELP: &str = "\
Changes nothing: whether the admission policies are in force is seen by dry runs that they must deny, for which you
need the right to impersonate users, groups and service accounts. What you may not look at is a warning. In each
agent's pod `warren doctor` is run, which sends a few pings through the tunnel (--no-probe sends nothing).

Exit code: 0 no error found (there may be warnings), 1 at least one error, 2 nothing could be read, or wrong usage.";

/// Arguments of `kubectl warren status`.
#[derive(Clone, Debug, Args)]
pub struct StatusArgs {
    /// How to print: `wide` adds columns, `json` is for programs
    #[arg(short, long, value_enum)]
    pub output: Option<Output>,
    /// Print JSON, as `-o json` does
    #[arg(long, conflicts_with = "output")]
    pub json: bool,
    /// Print the matrix of handshakes however many nodes there are [default: up to 12]
    #[arg(long)]
    pub matrix: bool,
    /// Which cluster.
    #[command(flatten)]
    pub target: Target,
    /// How long each request and each agent may take, such as 5s or 1m; 0 for no limit
    #[arg(long, default_value = "10s", value_parser = limit)]
    pub request_timeout: Limit,
}

/// Arguments of `kubectl warren doctor`.
#[derive(Clone, Debug, Args)]
pub struct DoctorArgs {
    /// How to print: `wide` lists what is well on each node too, `json` is for programs
    #[arg(short, long, value_enum)]
    pub output: Option<Output>,
    /// Print JSON, as `-o json` does
    #[arg(long, conflicts_with = "output")]
    pub json: bool,
    /// Let the nodes send no pings
    #[arg(long)]
    pub no_probe: bool,
    /// Which cluster.
    #[command(flatten)]
    pub target: Target,
    /// How long each request and each node's doctor may take, such as 5s or 1m; 0 for no limit
    #[arg(long, default_value = "60s", value_parser = limit)]
    pub request_timeout: Limit,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// More columns.
    Wide,
    /// A document for programs.
    Json,
}

/// Which cluster, and as whom; as kubectl has it.
#[derive(Clone, Debug, Default, Args)]
pub struct Target {
    /// The kubeconfig file [default: as kubectl finds it; in a pod, its service account]
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// The kubeconfig's context
    #[arg(long)]
    pub context: Option<String>,
    /// The kubeconfig's cluster
    #[arg(long)]
    pub cluster: Option<String>,
    /// The kubeconfig's user
    #[arg(long)]
    pub user: Option<String>,
    /// The namespace of Warren's DaemonSets
    #[arg(short, long, default_value = "warren-system")]
    pub namespace: String,
    /// User to impersonate
    #[arg(long = "as", value_name = "USER")]
    pub as_user: Option<String>,
    /// Group to impersonate; may be given several times
    #[arg(long = "as-group", value_name = "GROUP", requires = "as_user")]
    pub as_groups: Vec<String>,
}

/// How long something may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit(pub Option<Duration>);

impl StatusArgs {
    /// How to print.
    pub fn output(&self) -> Option<Output> {
        self.json.then_some(Output::Json).or(self.output)
    }
}

impl DoctorArgs {
    /// How to print.
    pub fn output(&self) -> Option<Output> {
        self.json.then_some(Output::Json).or(self.output)
    }
}

/// Reads a time as kubectl does: parts of a number and a unit, or seconds alone.
fn limit(text: &str) -> Result<Limit, String> {
    let wrong = || "allowed is a time such as 500ms, 5s, 1m30s or 2h; 0 is no limit".to_owned();
    let mut total = Duration::ZERO;
    let mut rest = text;
    if text.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let number: u32 = rest[..digits].parse().map_err(|_| wrong())?;
        let after = &rest[digits..];
        let letters = after.len()
            - after
                .trim_start_matches(|c: char| c.is_ascii_alphabetic())
                .len();
        let unit = match &after[..letters] {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(3600),
            "" if digits == text.len() => Duration::from_secs(1),
            _ => return Err(wrong()),
        };
        let part = unit.checked_mul(number).ok_or_else(wrong)?;
        total = total.checked_add(part).ok_or_else(wrong)?;
        rest = &after[letters..];
    }
    Ok(Limit((!total.is_zero()).then_some(total)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_kubectl_reads_them() {
        let seconds = |text| limit(text).map(|limit| limit.0.map(|time| time.as_secs_f64()));
        assert_eq!(seconds("5"), Ok(Some(5.0)));
        assert_eq!(seconds("500ms"), Ok(Some(0.5)));
        assert_eq!(seconds("1m30s"), Ok(Some(90.0)));
        assert_eq!(seconds("0"), Ok(None));
        assert_eq!(seconds("0s"), Ok(None));
        for wrong in ["", "s", "1d", "5 s", "-1s", "1s5", "99999999999s"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn groups_are_impersonated_with_a_user_only() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' '));
        assert!(parse("kubectl-warren status --as a --as-group b --as-group c").is_ok());
        assert!(parse("kubectl-warren status --as-group b").is_err());
    }
}
