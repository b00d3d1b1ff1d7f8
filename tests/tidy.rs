//! The laws that a machine can see: who may name whom, how long a file may be, what no file may hold.
//! Owns: the table of layers (architecture §2). Always: each rule has a planted violation below that it must find, so
//! that a rule which stopped looking fails too.
//! Not here: what the compiler and clippy see (`clippy.toml`, the lint table of `Cargo.toml`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Path from the project's root, with `/`, to the text of the file.
type Tree = BTreeMap<String, String>;

const LINES_MAX: usize = 700;

/// What a layer may not name in its code, and why. A word is looked for in code, not in comments.
struct Layer {
    folder: &'static str,
    forbidden: &'static [&'static str],
    why: &'static str,
}

/// The deciding half, and the dependencies that it may name; any other dependency of Cargo.toml is a violation there.
/// The nouns may also say how they look as JSON, which is data and not the world.
const PURE: &[(&str, &[&str])] =
    &[("src/types/", &["serde", "thiserror", "serde_json", "utoipa"]), ("src/decision/", &["serde", "thiserror"])];

const WORLD: &[&str] = &[
    "std::fs",
    "std::net",
    "std::process",
    "std::env",
    "std::thread",
    "std::io",
    "::now(",
    "HashMap",
    "HashSet",
    "crate::clock",
];

const LAYERS: &[Layer] = &[
    Layer {
        folder: "src/types/",
        forbidden: &[
            "crate::decision",
            "crate::store",
            "crate::protocol",
            "crate::drivers",
            "crate::actors",
            "crate::admin",
            "crate::cli",
            "crate::chaos",
            "crate::node",
            "crate::config",
        ],
        why: "nouns know nobody",
    },
    Layer {
        folder: "src/decision/",
        forbidden: &[
            "crate::store",
            "crate::protocol",
            "crate::drivers",
            "crate::actors",
            "crate::admin",
            "crate::cli",
            "crate::chaos",
            "crate::node",
            "crate::config",
        ],
        why: "a core decides and touches nothing",
    },
    Layer {
        folder: "src/store/",
        forbidden: &[
            "crate::protocol",
            "crate::drivers",
            "crate::actors",
            "crate::admin",
            "crate::cli",
            "crate::chaos",
            "crate::node",
        ],
        why: "the store keeps what it is given",
    },
    Layer {
        folder: "src/protocol/",
        forbidden: &["crate::store", "crate::actors", "crate::admin", "crate::cli", "crate::chaos", "crate::node"],
        why: "the protocol carries, it neither keeps nor acts",
    },
    Layer {
        folder: "src/drivers/",
        // A host keeps its fences, holds and attempts in the store's small durable map.
        forbidden: &[
            "crate::store::Store",
            "crate::store::Txn",
            "crate::actors",
            "crate::admin",
            "crate::cli",
            "crate::chaos",
            "crate::node",
        ],
        why: "a driver obeys whoever holds it",
    },
    Layer {
        folder: "src/actors/",
        forbidden: &["crate::admin", "crate::cli", "crate::chaos", "crate::node"],
        why: "the API stands on the actors, not they on it",
    },
    Layer {
        folder: "src/admin/",
        forbidden: &["crate::cli", "crate::chaos", "crate::node"],
        why: "the API does not know its clients",
    },
    Layer {
        folder: "src/cli/",
        forbidden: &["crate::actors", "crate::chaos", "crate::protocol::quic"],
        why: "the command line speaks the API",
    },
    Layer {
        folder: "src/node",
        forbidden: &["crate::cli", "crate::chaos"],
        why: "a region knows nobody who drives it",
    },
    Layer { folder: "src/config", forbidden: &["crate::cli", "crate::chaos"], why: "a configuration is read, not run" },
];

/// A crate or function that only some files may name.
struct Owner {
    word: &'static str,
    only_in: &'static [&'static str],
    why: &'static str,
}

/// The transport, and what moves its datagrams in tests: a relay of real ones and a network of simulated ones.
const QUINN: &[&str] = &["src/protocol/quic/", "src/chaos/relay.rs", "src/chaos/sim/udp"];

const OWNERS: &[Owner] = &[
    Owner { word: "ractor::", only_in: &["src/actors/"], why: "the actor library stays replaceable" },
    Owner { word: "redb::", only_in: &["src/store/"], why: "each stored byte goes through one module" },
    Owner { word: "quinn::", only_in: QUINN, why: "the transport stays behind `Link`" },
    Owner { word: "quinn_proto::", only_in: QUINN, why: "the transport stays behind `Link`" },
    Owner { word: "start_on(", only_in: &["src/protocol/quic/", "src/chaos/sim/"], why: "such links keep no secret" },
    Owner {
        word: "create_determined(",
        only_in: &["src/protocol/trust/", "src/chaos/sim/"],
        why: "such keys are known",
    },
    Owner { word: "Instant::now(", only_in: &["src/clock.rs"], why: "time is an input" },
    Owner { word: "SystemTime::now(", only_in: &["src/clock.rs"], why: "time is an input" },
    Owner { word: "clock_gettime", only_in: &["src/clock.rs"], why: "time is an input" },
    Owner { word: "unbounded_channel", only_in: &[], why: "memory is not a limit" },
    Owner { word: "mpsc::channel()", only_in: &[], why: "memory is not a limit" },
];

/// Marks of what is not finished, not tried, not here, or belongs to somebody's machine. Put together from halves, so
/// that this file does not hold what it looks for.
const NOWHERE: &[(&str, &str)] = &[
    (concat!("TO", "DO"), "finish it or leave it out"),
    (concat!("FIX", "ME"), "finish it or leave it out"),
    (concat!("unimpl", "emented!("), "finish it or leave it out"),
    (concat!("todo", "!("), "finish it or leave it out"),
    (concat!("#[ign", "ore"), "a test that never runs shows nothing"),
    (concat!("thread::", "sleep("), "nothing sleeps and hopes"),
    (concat!("/wo", "rk/"), "a path of somebody's machine"),
    (concat!("/fa", "rm/"), "a path of somebody's machine"),
    (concat!("/ro", "ot/"), "a path of somebody's machine"),
    (concat!("/ho", "me/"), "a path of somebody's machine"),
    (concat!(".lib", "rary"), "a path of somebody's machine"),
    (concat!("before", "-stop"), "a tool of somebody's machine"),
    (concat!("require", "ments §"), "not in this repository"),
    (concat!("sty", "le §"), "not in this repository"),
    (concat!("perform", "ance.md"), "not in this repository"),
    (concat!("switch_", "model"), "not in this repository"),
    (concat!("fau", "lts.md"), "not in this repository"),
    (concat!("qe", "mu.md"), "not in this repository"),
];

/// `path:line: what, why` for each violation in `tree`.
fn violations(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    let dependencies = dependencies(tree.get("Cargo.toml").map_or("", String::as_str));
    for (path, text) in tree {
        if path == "Cargo.lock" {
            continue;
        }
        for (number, line) in (1..).zip(text.lines()) {
            for (word, why) in NOWHERE {
                if line.contains(word) {
                    found.push(format!("{path}:{number}: '{word}': {why}"));
                }
            }
        }
        if path.ends_with(".rs") {
            rust_file(path, text, &dependencies, &mut found);
        }
    }
    config_files_without_a_test(tree, &mut found);
    stored_without_a_fixture(tree, &mut found);
    links(tree, &mut found);
    found
}

fn rust_file(path: &str, text: &str, dependencies: &BTreeSet<String>, found: &mut Vec<String>) {
    if text.lines().count() > LINES_MAX {
        found.push(format!("{path}: {} lines, at most {LINES_MAX}: split it by meaning", text.lines().count()));
    }
    if !text.starts_with("//!") {
        found.push(format!(
            "{path}:1: opens without a `//!` head: say what it owns, what is always true, what is not here"
        ));
    }
    if !path.starts_with("src/") {
        return;
    }
    let pure = PURE.iter().find(|(folder, _)| path.starts_with(folder));
    // A core's tests may read what they feed it from anywhere; what they feed it has no world in it either.
    let tests_file = path.ends_with("/tests.rs") || path.contains("/tests/");
    let mut selecting = false;
    for (number, code, in_block) in lines_of(text) {
        let in_tests = tests_file || in_block;
        let mut say = |word: &str, why: &str| found.push(format!("{path}:{number}: names '{word}': {why}"));
        for layer in LAYERS.iter().filter(|l| path.starts_with(l.folder)) {
            for word in layer.forbidden.iter().filter(|w| names(code, w)) {
                say(word, layer.why);
            }
        }
        if selecting && !code.trim_start().starts_with("biased;") {
            say("select!", "without `biased;` as its first word it is another run each time");
        }
        selecting = names(code, "select!");
        for owner in OWNERS.iter().filter(|o| !o.only_in.iter().any(|place| path.starts_with(place))) {
            if names(code, owner.word) {
                say(owner.word, owner.why);
            }
        }
        if let Some((_, may_name)) = pure {
            for word in WORLD.iter().filter(|w| names(code, w)) {
                say(word, "the deciding half has no world in it");
            }
            for name in dependencies.iter().filter(|d| !in_tests && !may_name.contains(&d.as_str())) {
                if names(code, &format!("{name}::")) {
                    say(&format!("{name}::"), "the deciding half names no such crate");
                }
            }
        }
    }
}

/// Each line without its comment, with its number and whether it stands in a block of tests: from its opening to the
/// brace that stands where the block began.
fn lines_of(text: &str) -> impl Iterator<Item = (usize, &str, bool)> {
    let (mut marked, mut block) = (false, false);
    (1..).zip(text.lines()).map(move |(number, line)| {
        let code = code_of(line);
        block = (block || (marked && code.ends_with('{'))) && code != "}";
        marked = code == "#[cfg(test)]";
        (number, code, block)
    })
}

/// The line without its comment. Good enough: a `//` inside a string only hides what follows it on that line.
fn code_of(line: &str) -> &str {
    let trimmed = line.trim_start();
    if trimmed.starts_with("//") { "" } else { line.split(" //").next().unwrap_or("") }
}

/// Whether `code` has `word` where no longer word ends in it.
fn names(code: &str, word: &str) -> bool {
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = code[at + word.len()..].chars().next();
        let joined = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
        let open = word.ends_with(|c: char| !c.is_ascii_alphanumeric());
        (word.starts_with(':') || !joined(before)) && (open || !joined(after))
    })
}

/// Names of `[dependencies]`, as code writes them.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    manifest
        .lines()
        .skip_while(|l| l.trim() != "[dependencies]")
        .skip(1)
        .take_while(|l| !l.starts_with('['))
        .filter_map(|l| l.split_once('='))
        .map(|(name, _)| name.trim().replace('-', "_"))
        .collect()
}

/// What outlives the process is frozen: each kind has the bytes of its first version beside the tests.
fn stored_without_a_fixture(tree: &Tree, found: &mut Vec<String>) {
    for (path, text) in tree.iter().filter(|(path, _)| path.starts_with("src/") && path.ends_with(".rs")) {
        for (number, code, in_tests) in lines_of(text) {
            let kind =
                code.split_once("stored!(").and_then(|(_, rest)| rest.split("b\"").nth(1)).and_then(|k| k.get(..4));
            if let Some(kind) = kind
                && !in_tests
                && !tree.contains_key(&format!("tests/fixtures/v1/{kind}.bin"))
            {
                found.push(format!("{path}:{number}: '{kind}' has no frozen fixture: see store/fixture.rs"));
            }
        }
    }
}

fn config_files_without_a_test(tree: &Tree, found: &mut Vec<String>) {
    let tests: Vec<&String> =
        tree.iter().filter(|(p, t)| p.starts_with("tests/") || t.contains("#[cfg(test)]")).map(|(_, t)| t).collect();
    for path in tree.keys().filter(|p| p.starts_with("config/") && p.ends_with(".toml")) {
        let name = path.rsplit('/').next().unwrap_or(path);
        if !tests.iter().any(|t| t.contains(name)) {
            found.push(format!("{path}: no test loads it"));
        }
    }
}

/// Every relative link of a page leads to a file, and every page of `docs/` is linked from another.
fn links(tree: &Tree, found: &mut Vec<String>) {
    let mut linked = BTreeSet::new();
    for (path, text) in tree.iter().filter(|(p, _)| p.ends_with(".md")) {
        for (number, line) in (1..).zip(text.lines()) {
            for target in line.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
                let file = target.split('#').next().unwrap_or("");
                if file.is_empty() || target.contains("://") {
                    continue;
                }
                let full = resolve(path, file);
                let folder = format!("{full}/");
                if !tree.contains_key(&full) && !tree.keys().any(|p| p.starts_with(&folder)) {
                    found.push(format!("{path}:{number}: links to '{target}', which is not there"));
                }
                if full != *path {
                    linked.insert(full);
                }
            }
        }
    }
    for path in tree.keys().filter(|p| p.starts_with("docs/") && p.ends_with(".md")) {
        if !linked.contains(path) {
            found.push(format!("{path}: no other page links to it"));
        }
    }
}

/// `link` as written in the page `from`, as a path from the root.
fn resolve(from: &str, link: &str) -> String {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in link.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            name => parts.push(name),
        }
    }
    parts.join("/")
}

/// Every text file of the project, without what is built and what belongs to the version control.
fn project() -> Tree {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tree = Tree::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the project is readable") {
            let path = entry.expect("an entry of the project is readable").path();
            let name = path.strip_prefix(root).expect("below the root").to_string_lossy().replace('\\', "/");
            if name == "target" || name == ".git" {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else {
                // Of what is no text only the name counts.
                tree.insert(name, fs::read_to_string(&path).unwrap_or_default());
            }
        }
    }
    tree
}

#[test]
fn the_project_keeps_its_laws() {
    let tree = project();
    assert!(tree.len() > 20, "the walk saw only {} files", tree.len());
    let found = violations(&tree);
    assert!(found.is_empty(), "{} violations:\n{}", found.len(), found.join("\n"));
}

#[test]
fn each_planted_violation_is_found_and_nothing_else() {
    let clean = Tree::from([
        ("Cargo.toml".into(), "[dependencies]\nserde = \"1\"\nfast-rand = \"2\"\n[lints]\n".into()),
        ("src/lib.rs".into(), "//! Head.\n".into()),
        ("docs/a.md".into(), "[b](b.md)".into()),
        ("docs/b.md".into(), "[a](a.md#x) [web](https://example.org)".into()),
        (
            "src/decision/core.rs".into(),
            "//! Head: no redb:: here.\nuse serde::Serialize; // not tokio::spawn\n".into(),
        ),
    ]);
    assert_eq!(violations(&clean), Vec::<String>::new());

    let long = format!("//! Head.\n{}", "\n".repeat(LINES_MAX));
    let plants: &[(&str, &str)] = &[
        ("src/types/a.rs", "//! Head.\nuse crate::decision::x;\n"),
        ("src/decision/a.rs", "//! Head.\nuse crate::actors::x;\n"),
        ("src/decision/b.rs", "//! Head.\nuse std::collections::HashMap;\n"),
        ("src/decision/c.rs", "//! Head.\nfn f() { fast_rand::u8(); }\n"),
        ("src/decision/d.rs", "//! Head.\nfn f() { Clock::now(); }\n"),
        ("src/decision/e.rs", "//! Head.\n#[cfg(test)]\nmod tests;\nfn f() { fast_rand::u8(); }\n"),
        ("src/decision/f.rs", "//! Head.\n#[cfg(test)]\nmod tests {\n    use fast_rand::u8;\n}\nuse fast_rand::u8;\n"),
        ("src/store/c.rs", "//! Head.\ncrate::stored!(Thing, b\"thng\");\n"),
        ("src/store/a.rs", "//! Head.\nuse crate::actors::x;\n"),
        ("src/protocol/a.rs", "//! Head.\nuse crate::store::x;\n"),
        ("src/drivers/a.rs", "//! Head.\nuse crate::actors::x;\n"),
        ("src/actors/a.rs", "//! Head.\nuse crate::admin::x;\n"),
        ("src/admin/a.rs", "//! Head.\nuse crate::cli::x;\n"),
        ("src/cli/a.rs", "//! Head.\nuse crate::chaos::x;\n"),
        ("src/node.rs", "//! Head.\nuse crate::chaos::x;\n"),
        ("src/config.rs", "//! Head.\nuse crate::cli::x;\n"),
        ("src/store/b.rs", "//! Head.\nuse ractor::Actor;\n"),
        ("src/actors/b.rs", "//! Head.\nuse redb::Database;\n"),
        ("src/protocol/b.rs", "//! Head.\nuse quinn::Endpoint;\n"),
        ("src/chaos/a.rs", "//! Head.\nuse quinn::Endpoint;\n"),
        ("src/protocol/c.rs", "//! Head.\nuse quinn_proto::InvalidCid;\n"),
        ("src/node/a.rs", "//! Head.\nfn f() { QuicNode::start_on(s); }\n"),
        ("src/node/b.rs", "//! Head.\nfn f() { RegionCa::create_determined(s); }\n"),
        ("src/admin/b.rs", "//! Head.\nfn f() { std::time::SystemTime::now(); }\n"),
        ("src/admin/c.rs", "//! Head.\nlet t = Instant::now();\n"),
        ("src/admin/d.rs", "//! Head.\nlet c = mpsc::unbounded_channel();\n"),
        ("src/admin/e.rs", "//! Head.\nlet c = mpsc::channel();\n"),
        ("src/admin/k.rs", "//! Head.\nasync fn f() {\n    tokio::select! {\n        () = g() => {}\n    }\n}\n"),
        ("src/admin/f.rs", "fn no_head() {}\n"),
        ("tests/long.rs", &long),
        ("src/admin/g.rs", concat!("//! Head.\n// TO", "DO: later\n")),
        ("src/admin/h.rs", concat!("//! Head.\n// FIX", "ME\n")),
        ("src/admin/i.rs", concat!("//! Head.\nunimpl", "emented!();\n")),
        ("tests/a.rs", concat!("//! Head.\n#[ign", "ore]\n")),
        ("tests/b.rs", concat!("//! Head.\nthread::", "sleep(x);\n")),
        ("tests/c.rs", concat!("//! Head (require", "ments §4).\n")),
        ("tests/d.rs", concat!("//! Head, as in `switch_", "model.py`.\n")),
        ("README.md", concat!("see /wo", "rk/x\n")),
        (".ci/run", concat!("cd /ro", "ot/x\n")),
        ("config/a.toml", "x = 1\n"),
        ("README.md", "[gone](docs/gone.md)\n"),
        ("docs/lonely.md", "nobody links here\n"),
    ];
    for (path, text) in plants {
        let mut tree = clean.clone();
        tree.insert((*path).into(), (*text).into());
        let found = violations(&tree);
        assert_eq!(found.len(), 1, "planted in {path}:\n{text}\nfound: {found:#?}");
        assert!(found[0].starts_with(path), "planted in {path}, found {found:#?}");
    }
}
