//! Ratios against bare programs that do the same physical work: `cargo bench --bench ratios [-- part-of-a-name]`.
//! Prints a table and writes `target/ratios.json`. Each `g*.rs` registers what one goal of the performance bar asks.
#![allow(clippy::print_stdout, reason = "a benchmark talks to the terminal")]

mod g1;
mod measure;

fn main() {
    let mut bench = measure::Bench::from_args();
    g1::register(&mut bench);
    bench.finish();
}
