//! The one binary. Owns nothing: it hands the command line over.

fn main() -> std::process::ExitCode {
    novafed::cli::run(std::env::args_os())
}
