//! The architecture's rules, read off the sources: who may name what, and how a file has to look.
//!
//! Code under test is told apart by its form: files named `tests.rs` or within `tests/`, and what
//! stands behind a `#[cfg(test)]` at the start of a line. Comments do not count.

use std::fs;
use std::path::{Path, PathBuf};

/// Lines of a file, and of a function.
const FILE_LINES_MAX: usize = 800;
const FUNCTION_LINES_MAX: usize = 80;
/// Functions that read better as one piece; each with its reason.
const LONG_FUNCTIONS: &[(&str, &str, &str)] = &[];

/// Files that cannot do without unsafe code, and say why.
const UNSAFE_FILES: &[&str] = &["src/rt/ring_flags.rs", "src/rt/uring/keepalive.rs"];

/// What only the seam may name.
const SEAM_WORDS: &[&str] = &[
    "glommio",
    "Instant::now",
    "SystemTime",
    "std::fs",
    "std::thread",
    "std::net::Tcp",
    "fastrand",
];
/// What only the seam may share between cores with.
const SHARING_WORDS: &[&str] = &["Mutex", "RwLock", "Atomic", "static mut", "thread_local!"];
/// What nobody leaves behind. (Put together here, so that this file passes, too.)
const LEFTOVERS: &[&str] = &[
    concat!("todo", "!"),
    concat!("unimplemented", "!"),
    concat!("dbg", "!"),
    concat!("#[", "ignore"),
    concat!("FIX", "ME"),
    concat!("TO", "DO"),
    concat!("XX", "X:"),
];

/// Which modules a module may import. `types`, `error` and `config` are open to all.
const IMPORTS: &[(&str, &[&str])] = &[
    ("types", &[]),
    ("error", &["types"]),
    ("config", &["types", "error"]),
    ("rt", &[]),
    ("protocol", &[]),
    ("storage", &["rt"]),
    ("cluster", &["rt", "protocol"]),
    ("replication", &["rt", "storage", "cluster"]),
    (
        "membership",
        &["rt", "protocol", "storage", "cluster", "replication"],
    ),
    (
        "shard",
        &[
            "rt",
            "protocol",
            "storage",
            "cluster",
            "replication",
            "membership",
        ],
    ),
    (
        "http",
        &[
            "rt",
            "protocol",
            "storage",
            "cluster",
            "replication",
            "membership",
            "shard",
        ],
    ),
];
const OPEN_TO_ALL: &[&str] = &["types", "error", "config"];

struct Source {
    /// From the root of the package, with `/`.
    path: String,
    text: String,
}

impl Source {
    /// The lines that are no comments and not under test, with their numbers from 1.
    fn code(&self) -> Vec<(usize, &str)> {
        if self.is_test() {
            return Vec::new();
        }
        let mut lines = Vec::new();
        let mut is_skipping = false;
        for (index, line) in self.text.lines().enumerate() {
            if line == "#[cfg(test)]" {
                is_skipping = true; // up to the end of the item, which is not indented
                continue;
            }
            if is_skipping {
                let ends = line.starts_with('}') || (!line.starts_with(' ') && line.ends_with(';'));
                is_skipping = !ends;
                continue;
            }
            lines.push((index + 1, without_comment(line)));
        }
        lines
    }

    fn is_test(&self) -> bool {
        self.path.ends_with("/tests.rs") || self.path.contains("/tests/")
    }

    fn is_seam(&self) -> bool {
        self.path.starts_with("src/rt/")
    }
}

fn without_comment(line: &str) -> &str {
    let start = line.trim_start();
    if start.starts_with("//") {
        return "";
    }
    line.split(" // ").next().unwrap_or(line)
}

fn collect(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a directory of the package") {
        let path = entry.expect("a directory entry").path();
        if path.ends_with("target") {
            continue; // of a crate under bench/
        }
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn sources(dirs: &[&str]) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    for dir in dirs.iter().filter(|dir| root.join(dir).is_dir()) {
        collect(&root.join(dir), &mut paths);
    }
    paths.sort();
    let read = |path: &PathBuf| Source {
        path: path
            .strip_prefix(root)
            .expect("it is in the package")
            .display()
            .to_string(),
        text: fs::read_to_string(path).expect("a source is text"),
    };
    let sources: Vec<Source> = paths.iter().map(read).collect();
    assert!(sources.len() > 3, "the sources were not found");
    sources
}

/// Panics with all that was found, so that one run shows everything.
fn report(rule: &str, broken: &[String]) {
    assert!(broken.is_empty(), "{rule}:\n  {}", broken.join("\n  "));
}

/// Every place where one of `words` stands in the code of `sources`.
fn places<'s>(sources: impl Iterator<Item = &'s Source>, words: &[&str]) -> Vec<String> {
    let mut places = Vec::new();
    for source in sources {
        for (number, line) in source.code() {
            for word in words.iter().filter(|word| line.contains(**word)) {
                places.push(format!("{}:{number}: {word}", source.path));
            }
        }
    }
    places
}

#[test]
fn only_the_seam_names_the_runtime_clocks_files_threads_and_chance() {
    let sources = sources(&["src"]);
    let mut broken = places(
        sources.iter().filter(|source| !source.is_seam()),
        SEAM_WORDS,
    );
    // The program reads its configuration before there is a world, and keeps the runtime's
    // own log lines out of the log.
    broken.retain(|place| {
        let is_main = place.starts_with("src/main.rs");
        !(is_main && (place.ends_with("std::fs") || place.ends_with("glommio")))
    });
    report("this belongs in src/rt", &broken);
    let seam = places(sources.iter().filter(|source| source.is_seam()), SEAM_WORDS);
    assert!(
        seam.len() > 10,
        "the seam names none of this: is the test blind?"
    );
}

#[test]
fn cores_share_nothing_above_the_seam() {
    let sources = sources(&["src"]);
    let above = sources.iter().filter(|source| !source.is_seam());
    report("cores share nothing", &places(above, SHARING_WORDS));
}

#[test]
fn unsafe_code_stands_where_it_is_argued() {
    let sources = sources(&["src", "bench"]);
    let is_elsewhere = |source: &&Source| !UNSAFE_FILES.contains(&source.path.as_str());
    let mut broken = Vec::new();
    for source in sources.iter().filter(is_elsewhere) {
        for (number, line) in source.text.lines().enumerate() {
            let line = without_comment(line);
            if line
                .split(|c: char| !c.is_alphanumeric() && c != '_')
                .any(|word| word == "unsafe")
            {
                broken.push(format!("{}:{}", source.path, number + 1));
            }
        }
    }
    report("unsafe code", &broken);
}

#[test]
fn nothing_unfinished_is_left_behind() {
    let mut broken = Vec::new();
    for source in sources(&["src", "tests", "bench"]) {
        for (number, line) in source.text.lines().enumerate() {
            for word in LEFTOVERS.iter().filter(|word| line.contains(**word)) {
                broken.push(format!("{}:{}: {word}", source.path, number + 1));
            }
        }
    }
    report("left behind", &broken);
}

#[test]
fn every_file_opens_with_its_contract() {
    let mut broken = Vec::new();
    for source in sources(&["src", "tests", "bench"]) {
        let first = source.text.lines().next().unwrap_or_default();
        let is_readme =
            source.path == "src/lib.rs" && first == "#![doc = include_str!(\"../README.md\")]";
        let is_header = first.starts_with("//! ") && first.len() > 20;
        if !is_readme && !is_header {
            broken.push(source.path);
        }
    }
    report("no `//!` header", &broken);
}

#[test]
fn imports_point_up_the_table_only() {
    let mut broken = Vec::new();
    for source in sources(&["src"]) {
        let inside = source
            .path
            .trim_start_matches("src/")
            .trim_end_matches(".rs");
        let module = inside.split('/').next().unwrap_or_default();
        if module == "main" || module == "lib" {
            continue;
        }
        let Some((_, allowed)) = IMPORTS.iter().find(|(name, _)| *name == module) else {
            broken.push(format!("{}: `{module}` is not in the table", source.path));
            continue;
        };
        for (number, line) in source.code() {
            for imported in line.split("crate::").skip(1) {
                let end = imported.find(|c: char| !c.is_alphanumeric() && c != '_');
                let name = &imported[..end.unwrap_or(imported.len())];
                let is_open = OPEN_TO_ALL.contains(&name) && !OPEN_TO_ALL.contains(&module);
                let is_module = IMPORTS.iter().any(|(other, _)| *other == name);
                if is_module && name != module && !is_open && !allowed.contains(&name) {
                    broken.push(format!("{}:{number}: imports {name}", source.path));
                }
            }
        }
    }
    report("imports point up only", &broken);
}

#[test]
fn pure_modules_wait_for_nothing() {
    let is_pure = |source: &&Source| {
        let path = source.path.as_str();
        path.starts_with("src/protocol/")
            || (path.starts_with("src/cluster/") && !path.starts_with("src/cluster/peers"))
            || path.starts_with("src/replication/clock")
            || path.starts_with("src/replication/quorum")
            || path.starts_with("src/replication/register")
            || [
                "src/types.rs",
                "src/error.rs",
                "src/config.rs",
                "src/storage/memtable.rs",
                "src/storage/bloom.rs",
                "src/storage/block.rs",
                "src/storage/merge.rs",
                "src/storage/record.rs",
                "src/storage/sstable/partition.rs",
                "src/storage/codec.rs",
                "src/storage/wal/format.rs",
                "src/storage/hints/format.rs",
                "src/shard/latches.rs",
                "src/shard/plan.rs",
                "src/shard/evaluate.rs",
                "src/shard/kv.rs",
                "src/shard/kv_command.rs",
                "src/membership/etcd/gateway.rs",
                "src/membership/record.rs",
                "src/membership/wish.rs",
            ]
            .contains(&path)
    };
    let sources = sources(&["src"]);
    let pure = sources.iter().filter(is_pure);
    assert!(pure.clone().count() > 20, "the pure modules were not found");
    let words = [
        "async ",
        ".await",
        "rt::now",
        "rt::wall_ms",
        "rt::random",
        "rt::spawn",
    ];
    report("pure modules wait for nothing", &places(pure, &words));
}

#[test]
fn files_fit_in_a_head() {
    let mut broken = Vec::new();
    for source in sources(&["src"]) {
        let lines = source.text.lines().count();
        if lines > FILE_LINES_MAX {
            broken.push(format!("{}: {lines} lines", source.path));
        }
    }
    report("files are too long", &broken);
}

#[test]
fn functions_fit_a_screen() {
    let mut broken = Vec::new();
    let mut longest = 0;
    for source in sources(&["src"]) {
        // A function under way: its indentation, its name, its first line.
        let mut open: Vec<(usize, String, usize)> = Vec::new();
        for (number, line) in source.text.lines().enumerate() {
            let indent = line.len() - line.trim_start().len();
            if let Some(name) = function_name(line) {
                open.push((indent, name.to_owned(), number));
            }
            let ends = line.trim_start().starts_with('}')
                && open.last().is_some_and(|(start, ..)| *start == indent);
            let is_one_line = line.ends_with("{}") || line.ends_with(';');
            let opened_here = open.last().is_some_and(|(.., first)| *first == number);
            let ends = ends || (is_one_line && opened_here);
            if !ends {
                continue;
            }
            let Some((_, name, first)) = open.pop() else {
                continue;
            };
            let lines = number - first + 1;
            longest = longest.max(lines);
            let is_argued = LONG_FUNCTIONS
                .iter()
                .any(|(path, function, _)| *path == source.path && *function == name);
            if lines > FUNCTION_LINES_MAX && !is_argued {
                broken.push(format!(
                    "{}:{}: {name}, {lines} lines",
                    source.path,
                    first + 1
                ));
            }
        }
    }
    assert!(longest > 40, "no function was measured");
    report("functions are too long", &broken);
}

/// The name of the function that begins on this line.
fn function_name(line: &str) -> Option<&str> {
    let mut rest = line.trim_start();
    for prefix in ["pub", "(crate)", "(super)", "const", "async"] {
        rest = rest.strip_prefix(prefix).unwrap_or(rest).trim_start();
    }
    let rest = rest.strip_prefix("fn ")?;
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_')?;
    Some(&rest[..end])
}

#[test]
fn every_test_has_a_name_that_says_what_it_is_about() {
    let mut broken = Vec::new();
    for source in sources(&["src", "tests"]) {
        let mut is_test = false;
        for (number, line) in source.text.lines().enumerate() {
            let trimmed = line.trim();
            if trimmed == "#[test]" {
                is_test = true;
            } else if is_test && let Some(name) = function_name(line) {
                is_test = false;
                if name.split('_').count() < 3 {
                    broken.push(format!("{}:{}: {name}", source.path, number + 1));
                }
            }
        }
    }
    report("a test's name is a sentence", &broken);
}

/// The list of known ways to lose data names tests; without one of them a promise is unguarded.
#[test]
fn every_known_loss_has_its_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let list = fs::read_to_string(root.join("tests/losses.txt")).expect("it is in the package");
    let sources = sources(&["src", "tests"]);
    let (mut broken, mut losses) = (Vec::new(), Vec::new());
    for line in list.lines().filter(|line| !line.starts_with('#')) {
        if let Some(test) = line.strip_prefix("    ") {
            let (place, name) = test.split_once(' ').expect("a place and a name");
            let is_there = sources.iter().any(|source| {
                let path = source.path.trim_end_matches(".rs");
                let path = path.trim_start_matches("src/").trim_start_matches("tests/");
                let is_place = path == place || path.starts_with(&format!("{place}/"));
                let has = |indent| {
                    let start = format!("#[test]\n{indent}fn {name}()");
                    source.text.contains(&start)
                };
                is_place && (has("") || has("    "))
            });
            if !is_there {
                broken.push(test.to_owned());
            }
        } else if let Some((number, _)) = line.split_once(' ') {
            losses.push(number.to_owned());
        }
    }
    report("the list of losses names a test that is not there", &broken);
    let wanted: Vec<String> = (1..=37).map(|number| format!("B{number:02}")).collect();
    assert_eq!(losses, wanted, "every loss has its number");
}
