//! The one binary. Owns nothing: it parses the command line and hands over.

use std::process::ExitCode;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("host") => novafed::drivers::embedded::process::main(std::env::args().skip(2)),
        _ => ExitCode::SUCCESS,
    }
}
