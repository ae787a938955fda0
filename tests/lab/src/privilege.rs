//! What this machine allows, and how a test skips where it is too little.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::OnceLock;

use crate::error::{LabError, Result};

/// Set in the environment of the program once it runs inside its user namespace.
const INSIDE: &str = "WARREN_LAB_USERNS";

/// Programs every lab needs, with the Debian package of each.
const PROGRAMS: [(&str, &str); 5] = [
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("nft", "nftables"),
    ("mount", "mount"),
    ("unshare", "util-linux"),
];

/// By which right a lab can be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Privilege {
    /// Namespaces can be made directly.
    Root,
    /// Namespaces can be made inside an unprivileged user namespace.
    UserNamespaces,
    /// No lab is possible.
    None {
        /// What is missing, for a person.
        missing: String,
    },
}

/// Tells by trying (once a process) which namespaces can be made.
pub fn privilege() -> Privilege {
    static FOUND: OnceLock<Privilege> = OnceLock::new();
    FOUND.get_or_init(find).clone()
}

/// Restarts this program inside a new user, mount and network namespace mapped to root, when it
/// may not make namespaces directly. Does nothing when it may. On success the call does not
/// return: the program starts again from `main` with the same arguments.
///
/// # Errors
///
/// [`LabError::Privilege`] when no kind of namespace can be made.
pub fn enter_user_namespace_if_needed() -> Result<()> {
    match privilege() {
        Privilege::Root => Ok(()),
        Privilege::UserNamespaces if inside_user_namespace() => Ok(()),
        Privilege::UserNamespaces => {
            let exe = std::env::current_exe().map_err(|e| LabError::io("find this program", e))?;
            let cause = Command::new("unshare")
                .args(["--user", "--map-root-user", "--mount", "--net", "--"])
                .arg(exe)
                .args(std::env::args_os().skip(1))
                .env(INSIDE, "1")
                .exec();
            Err(LabError::io("start this program again by `unshare`", cause))
        }
        Privilege::None { missing } => Err(LabError::Privilege { missing }),
    }
}

/// Whether the program was restarted by [`enter_user_namespace_if_needed`].
pub(crate) fn inside_user_namespace() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Makes a lab possible for a test or tells why not; used by [`require!`](crate::require).
///
/// # Panics
///
/// When no lab is possible and the environment variable `CI` is set: there a skip is a failure.
pub fn skip_reason() -> Option<String> {
    let reason = enter_user_namespace_if_needed().err()?.to_string();
    assert!(
        std::env::var_os("CI").is_none(),
        "a test cannot run in CI: {reason}"
    );
    // Not by a print macro: the test harness swallows those of tests that pass.
    let _ = writeln!(std::io::stderr(), "skipped: {reason}");
    Some(reason)
}

/// What a test returns when it is skipped.
pub trait Skipped {
    /// The return value of a skipped test.
    fn skipped() -> Self;
}

impl Skipped for () {
    fn skipped() -> Self {}
}

impl<E> Skipped for std::result::Result<(), E> {
    fn skipped() -> Self {
        Ok(())
    }
}

/// Ends the test with `skipped: <reason>` when this machine allows no lab; panics instead when the
/// environment variable `CI` is set. Works in functions returning `()` or `Result<(), _>`.
#[macro_export]
macro_rules! require {
    () => {
        if $crate::skip_reason().is_some() {
            return $crate::Skipped::skipped();
        }
    };
}

fn find() -> Privilege {
    for (program, package) in PROGRAMS {
        if !on_path(program) {
            let missing = format!("the program `{program}` (Debian package {package})");
            return Privilege::None { missing };
        }
    }
    let spaces = libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::CLONE_NEWPID;
    let Err(direct) = crate::holder::try_unshare(spaces) else {
        return if inside_user_namespace() {
            Privilege::UserNamespaces
        } else {
            Privilege::Root
        };
    };
    match crate::holder::try_unshare(libc::CLONE_NEWUSER | spaces) {
        Ok(()) => Privilege::UserNamespaces,
        Err(user) => Privilege::None {
            missing: format!(
                "the right to make namespaces: directly: {direct}; in a user namespace: {user} \
                 (run as root, or allow them: sysctl user.max_user_namespaces, \
                 kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)"
            ),
        },
    }
}

fn on_path(program: &str) -> bool {
    search_path()
        .split(':')
        .any(|dir| std::path::Path::new(dir).join(program).is_file())
}

/// The search path with the folders of system programs, which a user's own often lacks.
pub(crate) fn search_path() -> String {
    let own = std::env::var("PATH").unwrap_or_default();
    let separator = if own.is_empty() { "" } else { ":" };
    format!("{own}{separator}/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin")
}
