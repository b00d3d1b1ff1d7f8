//! Configuration files: every example loads, and every mistake is told what it is.

use std::path::Path;

use novafed::config::{Config, ConfigError, KeySource};
use novafed::types::units::{GIB, MIB};
use novafed::types::{Millis, Resources};

const MINIMAL: &str = "[region]\nname = \"eu\"\nfederation = \"demo\"\nnumber = 1\n";

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("/etc/novafed/node.toml"))
}

fn refusal(more: &str) -> String {
    match parse(&format!("{MINIMAL}{more}")) {
        Ok(config) => panic!("it was taken:\n{more}\n{config:?}"),
        Err(e) => e.to_string(),
    }
}

#[test]
fn every_example_loads() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let mut seen = std::collections::BTreeSet::new();
    for entry in std::fs::read_dir(&directory).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        Config::parse(&text, &path).unwrap_or_else(|e| panic!("{e}"));
        seen.insert(path.file_name().unwrap().to_str().unwrap().to_owned());
    }
    assert!(
        ["loopback-eu.toml", "node.toml", "single-region.toml"].iter().all(|name| seen.contains(*name)),
        "{seen:?}"
    );
}

#[test]
fn the_annotated_example_shows_the_defaults() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let shown = Config::parse(&std::fs::read_to_string(directory.join("node.toml")).unwrap(), &directory.join("n"));
    let (mut shown, plain) = (shown.unwrap(), parse(MINIMAL).unwrap());
    // Relative paths count from the file, so the two stand in different directories.
    let key = KeySource::File(directory.join("store.key"));
    assert_eq!(std::mem::replace(&mut shown.store.key, plain.store.key.clone()), key);
    assert_eq!(
        (shown.listen, shown.store, shown.migration, shown.log, shown.chaos),
        (plain.listen, plain.store, plain.migration, plain.log, plain.chaos)
    );
}

#[test]
fn sizes_durations_and_paths_are_read_as_written() {
    let config = parse(&format!(
        "{MINIMAL}[[peer]]\nregion='us'\nnumber=2\naddress='[::1]:7444'\nca='us.pem'\n\
         [[cluster]]\nid='a'\nhost='shared'\ncapacity={{cpu=2,memory='1 GiB',disk=1073741824}}\n[[cluster]]\nid='b'\n\
         [store]\ncache='8 MiB'\nkey={{file='/secret/key'}}\n[migration]\nmax_downtime=50\nretention_ms='2 min'\n\
         [chaos]\nallow=true\nmax='2 min'\nkillAt='hold:source:before-write'\n"
    ))
    .unwrap();
    assert_eq!(config.peers[0].ca, Path::new("/etc/novafed/us.pem"));
    assert_eq!(config.clusters[0].host().as_str(), "shared");
    assert_eq!(config.clusters[1].host().as_str(), "b");
    let capacity = config.clusters[0].capacity.resources();
    assert_eq!(capacity, Resources { cpu: 2, memory_bytes: GIB, disk_bytes: GIB });
    assert_eq!(config.store.cache, 8 * MIB);
    assert_eq!(config.store.key, KeySource::File("/secret/key".into()));
    assert_eq!((config.migration.max_downtime, config.migration.retention), (Millis(50), Millis(120_000)));
    assert_eq!(config.chaos.max, Millis(120_000));
    assert_eq!(config.chaos.kill_at.unwrap().to_string(), "hold:source:before-write");
}

#[test]
fn an_unknown_key_is_refused_with_its_line_and_the_nearest_known_one() {
    let text = refusal("[store]\ncahce = '8 MiB'\n");
    assert!(text.contains("line 6") && text.contains("'cahce'") && text.contains("did you mean 'cache'"), "{text}");
    let text = refusal("[migraton]\n");
    assert!(text.contains("'migraton'") && text.contains("did you mean 'migration'"), "{text}");
    let text = refusal("[wheelbarrow]\n");
    assert!(text.contains("'wheelbarrow'") && !text.contains("did you mean"), "{text}");
}

#[test]
fn a_bad_value_names_field_value_and_rule() {
    let cluster = "[[cluster]]\nid='a'\n";
    let peer = "[[peer]]\nregion='us'\nnumber=2\nca='x'\n";
    for (more, parts) in [
        ("[store]\ncache = 'lots'\n".to_owned(), ["cache", "'lots'", "not a size"]),
        ("[store]\ncache = 3\n".into(), ["store.cache", "3", "at least 1 MiB"]),
        ("[store]\nkey = { command = [] }\n".into(), ["store.key.command", "[]", "program"]),
        ("[migration]\nmax_downtime = '1 fortnight'\n".into(), ["max_downtime", "'1 fortnight'", "not a duration"]),
        ("[migration]\nmax_downtime = '20 s'\n".into(), ["migration.max_downtime", "20000 ms", "switch_deadline"]),
        ("[migration]\nswitch_deadline = '3 min'\n".into(), ["migration.switch_deadline", "180000 ms", "at most"]),
        ("[migration]\nmax_downtime = '0 ms'\n".into(), ["migration.max_downtime", "0 ms", "no time"]),
        ("[migration]\nbandwidth_max = 0\n".into(), ["migration.bandwidth_max", "0", "no cap"]),
        ("[migration]\nrounds_max = 0\n".into(), ["migration.rounds_max", "0", "at least 1"]),
        ("[migration]\nrunning_max = 0\n".into(), ["migration.running_max", "0", "1 to 4096"]),
        ("[log]\nfilter = 'x=y=z'\n".into(), ["log.filter", "x=y=z", "log filter"]),
        (
            "[chaos]\nkill_at = 'hold:source:before-write'\n".into(),
            ["chaos.kill_at", "hold:source:before-write", "allow = true"],
        ),
        ("[chaos]\nallow = true\nkill_at = 'soon'\n".into(), ["kill_at", "soon", "step:side:phase"]),
        ("[chaos]\nmax = '25 h'\n".into(), ["chaos.max", "90000000 ms", "24 h"]),
        ("[chaos]\nmax = 0\n".into(), ["chaos.max", "0 ms", "1 ms"]),
        (format!("{cluster}{cluster}"), ["cluster[1].id", "= a", "another cluster"]),
        (format!("{cluster}driver='xen'\n"), ["driver", "xen", "embedded"]),
        (format!("{cluster}capacity={{cpu=0}}\n"), ["cluster[0].capacity.cpu", "0", "can't run a VM"]),
        (format!("{peer}address='us'\n"), ["peer[0].address", "us", "host:port"]),
        (format!("{peer}address='us:1'\n{peer}address='us:1'\n"), ["peer[1].region", "us", "another region"]),
        ("[[peer]]\nregion='us'\nnumber=1\nca='x'\naddress='us:1'\n".into(), ["peer[0].number", "1", "no other"]),
        ("[listen]\naddress = 'here'\n".into(), ["address", "here", "socket address"]),
    ] {
        let text = refusal(&more);
        for part in parts {
            assert!(text.contains(part), "'{part}' is missing:\n{more}\n{text}");
        }
    }
    let text = parse(&MINIMAL.replace("\"eu\"", "\"EU!\"")).unwrap_err().to_string();
    assert!(text.contains("name") && text.contains("EU!") && text.contains("a-z"), "{text}");
}

#[test]
fn a_directory_without_a_region_says_how_to_make_one() {
    let directory = tempfile::tempdir().unwrap();
    let error = Config::load(directory.path()).unwrap_err();
    assert!(error.to_string().contains("node.toml") && error.hint().contains("novafed init"), "{error}");
}
