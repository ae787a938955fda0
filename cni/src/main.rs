//! The plugin's program: wires [`warren_cni`] to the process.

use std::process::ExitCode;

fn main() -> ExitCode {
    warren_cni::run(
        |name| std::env::var_os(name),
        std::io::stdin(),
        std::io::stdout(),
    )
}
