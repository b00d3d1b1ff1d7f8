//! The one binary. Owns nothing: it hands the command line over.

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
struct DemoArgs {
    #[command(flatten)]
    options: novafed::chaos::demo::DemoOptions,
}

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("host") => novafed::drivers::embedded::process::main(std::env::args().skip(2)),
        Some("node") => match novafed::node::run(std::path::Path::new(&std::env::args().nth(3).unwrap_or_default())) {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => {
                eprintln!("{e}");
                ExitCode::from(e.exit_code())
            }
        },
        Some("demo") => {
            let args = DemoArgs::parse_from(std::env::args().skip(1));
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("runtime");
            runtime.block_on(novafed::chaos::demo::demo(args.options))
        }
        _ => novafed::cli::run(std::env::args_os()),
    }
}
