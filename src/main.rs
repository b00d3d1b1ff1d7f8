//! The one binary. Owns nothing: it parses the command line and hands over.

fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
