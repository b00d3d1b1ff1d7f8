//! Ratios against bare programs that do the same physical work: `cargo bench --bench ratios [-- part-of-a-name]`.
//! Prints a table and writes `target/ratios.json`. Each `g*.rs` registers measurements of one thing, with the ratio
//! that it has to reach.
#![allow(clippy::print_stdout, reason = "a benchmark talks to the terminal")]

mod fed;
mod g1;
mod g12;
mod g14;
mod g2;
mod g4;
mod measure;
mod resume;

fn main() {
    let mut bench = measure::Bench::from_args();
    g1::register(&mut bench);
    g2::register(&mut bench);
    g4::register(&mut bench);
    g12::register(&mut bench);
    g14::register(&mut bench);
    resume::register(&mut bench);
    bench.finish();
}
