//! The plugin's program: wires [`warren_cni`] to the process.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Runtimes give no arguments; people, and `warren doctor`, ask which version is installed.
    if std::env::args_os()
        .nth(1)
        .is_some_and(|argument| argument == "--version")
    {
        println!("warren-cni {}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    warren_cni::run(
        |name| std::env::var_os(name),
        std::io::stdin(),
        std::io::stdout(),
    )
}
